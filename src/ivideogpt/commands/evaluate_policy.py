"""``ivideogpt evaluate-policy``: the success of a policy in a simulator."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.inputs import choose_pool
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import load_json, save_json
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import canonical_name, find_environment

if TYPE_CHECKING:
    from ivideogpt.core.protocols import Policy
    from ivideogpt.evaluation.policy_trials import PolicyMaker, PolicyTrial, TrialResult, TrialSettings

_SETTINGS = "settings.json"
#: Policies that are made in other ways than by their name alone.
_NO_SCRIPTS = ("random", "drqv2", "planner")


def evaluate_policy_command(
    environment: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ENV", help_behavior_hint="")
    ] = None,
    *,
    suite: str | None = None,
    policy: str = "random",
    trials: int = 50,
    first_seed: int = 0,
    demos: Path | None = None,
    out: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    videos: int = 2,
    image_size: int | None = None,
    environment_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}",
) -> None:
    """Play a policy in a simulator and measure its success; the same command continues after a stop.

    Args:
        environment: of any kind: libero_spatial, libero_spatial/3, maniskill/pick_cube, plate-slide, pusht, the id of a
            gymnasium environment, or module:Name.
        suite: the same; for a suite of LIBERO, all its tasks.
        policy: random; replay (the actions of demonstrations: it measures the simulator and the data); the script of
            the environment (metaworld-script, pusht-drag, reacher-script); or the folder of an agent, a run of
            `ivideogpt mbrl`.
        trials: episodes of each task. In LIBERO the seeds 0 to 49 are the fixed start states of a task.
        first_seed: of the first trial of each task.
        demos: for replay: an episode store; default: the folder in demos/ where `ivideogpt mbrl` looks.
        out: folder of the results and videos; default: runs/policies/ENV-POLICY.
        workers: processes; 0: this one; default: one for each processor.
        ray: work on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or ray://HOST:PORT;
            every machine must have the same folders.
        videos: of each task, the number of trials with a video.
        image_size: side that pictures are resized to for the policy; an agent's run says it itself.
        environment_options: arguments of the environment, such as '{"steps": 100}'.
    """
    from tqdm import tqdm

    from ivideogpt.evaluation.policy_trials import read_results, run_trials

    if (name := environment or suite) is None or (environment and suite and environment != suite):
        raise UserError("name one environment, such as --suite libero_spatial or maniskill/pick_cube")
    if trials < 1 or videos < 0:
        raise UserError(f"trials is {trials} and videos is {videos}; expected at least 1 and 0")
    name = canonical_name(name)
    chosen, make_policy, settings, facts = _choose_policy(
        policy, name, trials=trials, first_seed=first_seed, demos=demos, image_size=image_size
    )
    options = settings.environment_options | _options(environment_options)
    settings = type(settings)(**asdict(settings) | {"environment_options": options, "videos": videos})
    label = Path(policy).name if Path(policy).is_dir() else policy
    folder = Path("runs/policies") / f"{name.replace('/', '-')}-{label}" if out is None else out
    check_folder(folder)
    _keep_settings(folder, {"environment": name, "policy": policy, "demos": str(demos)} | facts, asdict(settings))
    start = time.perf_counter()
    done = len(read_results(chosen, folder))
    pool, _ = choose_pool(ray, workers, needs=[folder])
    if ray is None and len(chosen) - done <= 1:
        pool = 0
    played = run_trials(chosen, make_policy, settings, folder, workers=pool)
    for _ in tqdm(played, total=len(chosen), initial=done, unit="trial"):
        pass
    results = read_results(chosen, folder)
    _print_results(results, {"environment": name, "policy": policy, "results": folder}, time.perf_counter() - start)


def _choose_policy(
    policy: str, name: str, *, trials: int, first_seed: int, demos: Path | None, image_size: int | None
) -> tuple[list[PolicyTrial], PolicyMaker, TrialSettings, dict[str, str]]:
    """Return the trials, the maker of a policy, what the policy sees, and which checkpoint it is of, if any."""
    from ivideogpt.evaluation.policy_trials import (
        TrialSettings,
        random_policy,
        replay_policy,
        replay_trials,
        tasks_of,
        trials_of,
    )
    from ivideogpt.policies.registry import POLICIES

    settings = TrialSettings(image_size=image_size)
    if policy == "replay":
        episodes = _read_demos(name, demos)
        chosen = replay_trials(name, episodes, per_task=trials)
        numbers = [trial.episode for trial in chosen if trial.episode is not None]
        actions = {number: episodes[number].actions[:-1] for number in numbers}
        control_modes = {episodes[number].meta.get("control_mode") for number in numbers} - {None}
        options = {"control_mode": control_modes.pop()} if len(control_modes) == 1 else {}
        settings = TrialSettings(image_size=image_size, environment_options=options)
        return chosen, partial(replay_policy, actions=actions), settings, {}
    if demos is not None:
        raise UserError(f"demos is for the policy replay, and the policy is {policy!r}; leave it out")
    chosen = trials_of(name, per_task=trials, first_seed=first_seed)
    if policy == "random":
        return chosen, random_policy, settings, {}
    scripts = [key for key in POLICIES if key not in _NO_SCRIPTS]
    if policy in scripts:
        options = {"task": tasks_of(name)[0].partition("/")[2]} if policy.startswith("metaworld") else {}
        return chosen, partial(_scripted, policy, options), settings, {}
    if not Path(policy).is_dir():
        expected = ", ".join(sorted([*scripts, "random", "replay"]))
        raise UserError(
            f"there is no policy {policy!r}; expected one of {expected}, or the folder of a run of ivideogpt mbrl"
        )
    from ivideogpt.mbrl.agents import agent_policy, newest_checkpoint, read_agent_config

    run = Path(policy)
    config, checkpoint = read_agent_config(run), newest_checkpoint(run)
    own = find_environment(config.task)
    this = find_environment(name)
    is_same = own is not None and this is not None and own[1].id == this[1].id
    settings = TrialSettings(
        frame_stack=config.frame_stack,
        image_size=image_size or config.image_size,
        environment_options=dict(config.environment_options) if is_same else {},
    )
    # Results of an agent that has learned on since are those of another policy.
    facts = {"checkpoint": checkpoint.name}
    return chosen, partial(agent_policy, run=run, checkpoint=checkpoint), settings, facts


def _read_demos(name: str, demos: Path | None) -> list[Any]:
    from ivideogpt.data.episode_files import is_store
    from ivideogpt.mbrl.demonstrations import demonstration_folder, read_stored

    folder = demonstration_folder(name) if demos is None else demos
    if not is_store(folder):
        raise UserError(f"{folder} is no episode store; give demonstrations of {name} with --demos STORE")
    episodes = list(read_stored(folder))
    if any(episode.actions is None for episode in episodes):
        raise UserError(f"{folder} holds episodes without actions; give demonstrations with actions")
    return episodes


def _scripted(policy: str, options: Mapping[str, Any], trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    from ivideogpt.policies.registry import make_policy

    return make_policy(policy, **options)


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"environment_options is {text!r}; expected JSON such as '{{\"steps\": 100}}'")
    return options


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


def _print_results(results: Sequence[TrialResult], values: dict[str, Any], seconds: float) -> None:
    import numpy as np

    from ivideogpt.evaluation.intervals import share_estimate

    tasks: dict[str, list[TrialResult]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    rows, by_task = [], {}
    for task, group in [*tasks.items(), *([("all", list(results))] if len(tasks) > 1 else [])]:
        share = share_estimate(sum(result.success for result in group), len(group))
        total, steps = (float(np.mean([getattr(r, key) for r in group])) for key in ("total_reward", "steps"))
        rows.append((task, f"{len(group)}", share.value, f"{share.low:.2f} to {share.high:.2f}", total, steps))
        by_task[task] = {
            "trials": len(group),
            "success": round(share.value, 4),
            "interval": [round(share.low, 4), round(share.high, 4)],
            "return": total,
            "steps": steps,
        }
    print_table(("task", "trials", "success", "95 %", "return", "steps"), rows)
    step_seconds = sum(result.seconds for result in results) / max(sum(result.steps for result in results), 1)
    total_share = by_task["all"] if len(tasks) > 1 else next(iter(by_task.values()))
    print_json(values | total_share | {"tasks": by_task, "seconds_per_step": step_seconds, "seconds": seconds})
