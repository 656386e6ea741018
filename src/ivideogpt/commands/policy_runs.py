"""Runs of a policy in the simulator or in the world model, for the commands that measure policies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.commands.inputs import choose_pool
from ivideogpt.commands.output import print_json, print_table
from ivideogpt.core.config import load_json, save_json
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import find_environment

if TYPE_CHECKING:
    from ivideogpt.commands.policy_choice import PolicyChoice
    from ivideogpt.evaluation.policy_trials import PolicyTrial, TrialResult
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.worldmodel.world_model import WorldModel

_SETTINGS = "settings.json"
# Steps of an imagined episode of an environment without a limit.
_STEPS = 100


@dataclass(frozen=True)
class TrialSeeds:
    """Trials of an evaluation.

    Attributes:
        name: of the environment.
        per_task: trials of each task.
        first: seed of the first trial of each task.
        workers: processes; None: one for each processor.
        ray: address of a Ray cluster that plays the trials of the simulator; None: none.
    """

    name: str
    per_task: int
    first: int
    workers: int | None
    ray: str | None = None

    def trials(self, choice: PolicyChoice) -> list[PolicyTrial]:
        """Return the trials of a policy."""
        from ivideogpt.evaluation.policy_trials import trials_of

        return choice.trials or trials_of(self.name, per_task=self.per_task, first_seed=self.first)


@dataclass(frozen=True)
class PolicyWorld:
    """A world model, the judge of success in it, and the settings of its episodes.

    Attributes:
        checkpoint: as it was named.
        model: the world model.
        classifier: the judge; None: the success head of the model.
        settings: `ImaginationSettings`.
    """

    checkpoint: str
    model: WorldModel
    classifier: SuccessClassifier | None
    settings: Any

    @property
    def facts(self) -> dict[str, Any]:
        """The world and the judge, to keep beside the results."""
        judge = "success head"
        if self.classifier is not None:
            facts = self.classifier.facts
            judge = f"classifier of {facts.task}, threshold {facts.threshold:.6f}"
        steps, reanchor = self.settings.steps, self.settings.reanchor_every
        return {"world": self.checkpoint, "judge": judge, "max_steps": steps, "reanchor_every": reanchor}


def open_policy_world(
    world: str, classifier: Path | None, name: str, steps: int | None, reanchor_every: int | None, device: str
) -> PolicyWorld:
    """Load a world model and the judge of success in it.

    Args:
        world: the checkpoint.
        classifier: folder of the judge; None: the success head of the model.
        name: of the environment.
        steps: of an episode; None: the limit of the environment, or 100.
        reanchor_every: see ``WorldModel.segment_frames``.
        device: of the model.

    Raises:
        UserError: a checkpoint cannot be loaded, or the judge is missing or of another task or frame size.
    """
    from ivideogpt.core.run import choose_device
    from ivideogpt.evaluation.imagined_trials import ImaginationSettings, check_judge
    from ivideogpt.evaluation.policy_trials import tasks_of
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.worldmodel.world_model import WorldModel

    model = WorldModel.from_pretrained(world).to(choose_device(device))
    row = find_environment(name)
    if steps is None:
        steps = (row[1].max_steps if row is not None else None) or _STEPS
    judge = None
    if classifier is not None:
        judge = SuccessClassifier.from_pretrained(classifier, resolution=model.resolution)
        if judge.facts.task not in (name, *tasks_of(name), name.partition("/")[0]):
            SuccessClassifier.from_pretrained(classifier, task=name)  # says that it is of another task
        print(judge.summary())
    check_judge(model, judge)
    return PolicyWorld(world, model, judge, ImaginationSettings(steps=steps, reanchor_every=reanchor_every))


def real_policy(
    choice: PolicyChoice, policy: str, seeds: TrialSeeds, folder: Path, facts: Mapping[str, Any], *, report: bool = True
) -> list[TrialResult]:
    """Play a policy in the simulator; print the results, and return them."""
    from tqdm import tqdm

    from ivideogpt.evaluation.policy_trials import read_results, run_trials

    chosen = seeds.trials(choice)
    if len(read_results(chosen, folder)) < len(chosen):  # an error shows before anything is written
        check_policy(choice, chosen[0])
    _keep_settings(
        folder, {"environment": seeds.name, "policy": policy, **facts, **choice.facts}, asdict(choice.settings)
    )
    start = time.perf_counter()
    done = len(read_results(chosen, folder))
    pool, _ = choose_pool(seeds.ray, seeds.workers, needs=[folder])
    if seeds.ray is None and len(chosen) - done <= 1:
        pool = 0
    played = run_trials(chosen, choice.make, choice.settings, folder, workers=pool)
    for _ in tqdm(played, total=len(chosen), initial=done, unit="trial", desc=choice.label):
        pass
    results = read_results(chosen, folder)
    if report:
        values = {"environment": seeds.name, "policy": policy, "results": folder}
        print_results(results, values, time.perf_counter() - start)
    return results


def check_policy(choice: PolicyChoice, trial: PolicyTrial) -> tuple[int, int]:
    """Make the environment and the policy of a trial; return numbers of an action and the side of a picture in px.

    Raises:
        UserError: one cannot be made, or they do not fit each other.
        MissingExtraError: the environment's package is not installed.
    """
    from ivideogpt.envs.vector import environment_sizes

    settings = choice.settings
    sizes = environment_sizes(trial.task, image_size=settings.image_size, **settings.environment_options)
    choice.make(trial, *sizes)
    return sizes


def imagined_policy(
    choice: PolicyChoice,
    policy: str,
    seeds: TrialSeeds,
    folder: Path,
    imagination: PolicyWorld,
    data: Path | None = None,
    *,
    report: bool = True,
) -> list[TrialResult]:
    """Play a policy in the world model; print the results, and return them."""
    from tqdm import tqdm

    from ivideogpt.data.episode_files import open_episodes
    from ivideogpt.evaluation.imagined_trials import recorded_starts, run_imagined_trials, simulated_starts
    from ivideogpt.evaluation.policy_trials import read_results

    start, model = time.perf_counter(), imagination.model
    if data is None:
        chosen = seeds.trials(choice)
        starts = simulated_starts(model, chosen, choice.settings)
    else:
        episodes = open_episodes(data, most=seeds.per_task)
        chosen, starts = recorded_starts(model, episodes, seeds.name, choice.settings, count=seeds.per_task)
    facts = {"environment": seeds.name, "policy": policy, "data": data and str(data), **imagination.facts}
    _keep_settings(folder, facts | dict(choice.facts), asdict(choice.settings))
    done = len(read_results(chosen, folder))
    bar = tqdm(total=len(chosen), initial=done, unit="trial", desc=f"{choice.label}, imagined")
    with bar:
        for count in run_imagined_trials(
            model, imagination.classifier, chosen, starts, choice.make, choice.settings, folder, imagination.settings
        ):
            bar.update(count)
    results = read_results(chosen, folder)
    if report:
        values = {"environment": seeds.name, "policy": policy, "results": folder, **imagination.facts}
        if imagination.classifier is not None:
            values["classifier"] = imagination.classifier.scores()
        print_results(results, values | _trust(model, results), time.perf_counter() - start)
    return results


def _trust(model: WorldModel, results: Sequence[TrialResult]) -> dict[str, Any]:
    """Return how far the frames can be trusted, and print it."""
    import numpy as np

    from ivideogpt.evaluation.calibration import read_calibration

    signal = "token entropy in nats" if model.has_tokens else "change since the start"
    mean = float(np.mean([result.trust for result in results if result.trust is not None]))
    calibration = read_calibration(model.config.metadata)
    frames = 0 if calibration is None else calibration.frames
    imagined = sum(result.steps for result in results)
    covered = sum(min(result.steps, frames) for result in results) / max(imagined, 1)
    print(
        f"trust: mean {signal} {mean:.3g}; the error of frames was measured for the first {frames} of an episode, "
        f"{covered:.0%} of these"
    )
    return {"trust": {"signal": signal, "mean": mean, "measured_share": covered}}


def _keep_settings(folder: Path, chosen: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write the settings into a new folder, or check that a folder with results has the same.

    Raises:
        UserError: they differ; results of two evaluations would be mixed.
    """
    path, values = folder / _SETTINGS, {**chosen, "settings": {**settings, "videos": None}}
    if path.is_file():
        if load_json(path) != values:
            raise UserError(f"'{folder}' holds results of another evaluation; give another folder with --out")
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_json(path, values)


def print_results(results: Sequence[TrialResult], values: dict[str, Any], seconds: float) -> None:
    """Print a table of the results of each task, and one line of JSON with ``values``."""
    import numpy as np

    from ivideogpt.evaluation.intervals import share_estimate

    tasks: dict[str, list[TrialResult]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    rows, by_task = [], {}
    for task, group in [*tasks.items(), *([("all", list(results))] if len(tasks) > 1 else [])]:
        share = share_estimate(sum(result.success for result in group), len(group))
        total, steps = (float(np.mean([getattr(r, key) for r in group])) for key in ("total_reward", "steps"))
        final = float(np.mean([np.nan if r.final_reward is None else r.final_reward for r in group]))
        rows.append((task, f"{len(group)}", share.value, f"{share.low:.2f} to {share.high:.2f}", total, final, steps))
        by_task[task] = {
            "trials": len(group),
            "success": round(share.value, 4),
            "interval": [round(share.low, 4), round(share.high, 4)],
            "return": total,
            "final_reward": final,
            "steps": steps,
        }
    print_table(("task", "trials", "success", "95 %", "return", "final reward", "steps"), rows)
    step_seconds = sum(result.seconds for result in results) / max(sum(result.steps for result in results), 1)
    total_share = by_task["all"] if len(tasks) > 1 else next(iter(by_task.values()))
    print_json(values | total_share | {"tasks": by_task, "seconds_per_step": step_seconds, "seconds": seconds})
