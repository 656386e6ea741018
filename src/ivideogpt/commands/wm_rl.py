"""``ivideogpt wm-rl``: improve a policy in a world model, and make its inputs where they are not given."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.kept_settings import keep_values, kept_values, load_settings
from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import LIBERO_START_STATES, LIBERO_SUITES, find_environment

if TYPE_CHECKING:
    from ivideogpt.configs.wmrl import WmRlRecipe
    from ivideogpt.core.run import Run
    from ivideogpt.policies.vla.tiny_flow import TinyFlow
    from ivideogpt.wmrl.config import WmRlConfig
    from ivideogpt.wmrl.loop import HeldOutCheck
    from ivideogpt.wmrl.rollouts import Rows

_KIND = "wmrl"
_DEFAULT_PRESET = "libero"


def load_wm_rl_settings(typed: Mapping[str, str]) -> WmRlRecipe:
    """Load the settings that options change: those of the resumed run, else those of the preset or configuration."""
    from ivideogpt.configs.wmrl import WmRlRecipe, suite_of_config

    if "config_name" not in typed:
        return load_settings(typed, _KIND, WmRlRecipe)
    suite = suite_of_config(typed["config_name"])
    recipe = load_settings({"preset": _DEFAULT_PRESET, **typed}, _KIND, WmRlRecipe)
    return recipe if recipe.rl.task.startswith(suite) else replace(recipe, rl=replace(recipe.rl, task=suite))


def wm_rl(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: WmRlRecipe,
    config_name: str | None = None,
    task_name: str | None = None,
    demo: bool = True,
    run: Path | None = None,
    policy: str | None = None,
    world: str | None = None,
    classifier: str | None = None,
    demos: str | None = None,
    recordings: str | None = None,
    held_out: str | None = None,
    imagination: bool = True,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Improve a vision-language-action policy by reinforcement learning in a world model, and measure it in reality.

    Inputs that are not given are made in the folder of the run: demonstrations, recordings, policy, world model and
    classifier of success. The same command continues after a stop.

    Args:
        preset: toy-push, debug (a minute), libero or libero-quick (one task, half an hour); its settings are options
            too, which `PRESET --help` lists. Default: the settings of the resumed run.
        settings: the settings of the preset.
        config_name: instead of a preset, a configuration of a WM-RL fork of the official repository, such as
            libero_spatial_mbpo_openpi_pi05_config.
        task_name: the environment, such as libero_spatial/0.
        demo: imitate demonstrations before; --no-demo needs a --policy.
        run: folder of everything that is made; default: runs/wm-rl/TASK-ALGORITHM-SEED.
        policy: a policy to improve: the folder of a run of `ivideogpt train-policy`.
        world: a world model that takes actions: a folder, a run (also one of `ivideogpt mbrl`), a shipped model or a
            Hub id.
        classifier: of success: the folder of a run of `ivideogpt train-classifier`.
        demos: an episode store of demonstrations with instructions.
        recordings: an episode store; imagined episodes begin at its first frames, with its instructions.
        held_out: an episode store that world model and classifier are checked on.
        imagination: play in the world model; --no-imagination plays in the environment, to compare with.
        seed: of demonstrations, policy and improvement.
        device: auto, cpu or cuda.
        precision: of the training of policy and world model: auto, float32 or bfloat16.
    """
    from ivideogpt.commands.wm_rl_inputs import INPUTS, StageResults, check_inputs, make_inputs
    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.run import choose_device, choose_precision
    from ivideogpt.policies.vla.tiny_flow import TinyFlow

    start = time.perf_counter()
    changes: dict[str, Any] = {"task": task_name, "seed": seed}
    changes["imagination"] = None if imagination else False
    config = replace(settings.rl, **{name: value for name, value in changes.items() if value is not None})
    recipe = replace(settings, rl=config)
    if not demo and policy is None:
        raise UserError("without demonstrations there is no policy to improve; give one with --policy")
    folder = run or Path("runs/wm-rl") / f"{config.task.replace('/', '-')}-{config.algorithm}-{config.seed}"
    check_folder(folder)
    choose_device(device)
    choose_precision(precision, device)
    kept = kept_values(folder, _KIND)
    given = dict(zip(INPUTS, (policy, world, classifier, demos, recordings, held_out), strict=True))
    given = {name: value or (kept.get(name) if kept else None) for name, value in given.items()}
    check_inputs(recipe, given)
    keep_values(folder, _KIND, preset or (kept["preset"] if kept else _DEFAULT_PRESET), recipe, **given)
    results = StageResults(folder / "results.json")
    inputs = make_inputs(recipe, folder, given, results, device, precision)
    network = TinyFlow.from_pretrained(inputs["policy"])
    measure = _measurement(recipe)
    if "before" not in results.values:
        with results.stage("evaluation before"):
            results.values["before"] = measure(network)
    with results.stage("improvement"):
        improved, check, steps = _improve(recipe, network, inputs, folder / "improved", device, measure)
    if "after" not in results.values:
        with results.stage("evaluation after"):
            results.values["after"] = improved()
    _print_summary(recipe, results.values, check, steps, step_folders(folder / "improved")[-1], start)


def _improve(
    recipe: WmRlRecipe, network: TinyFlow, inputs: Mapping[str, str], folder: Path, device: str, measure: Any
) -> tuple[Callable[[], list[bool]], HeldOutCheck | None, int]:
    """Improve the policy.

    Returns:
        A function that evaluates it, the check of the world model, and the steps that the policy learned from, imagined
        or real.
    """
    from ivideogpt.commands.train_policy import read_instructed
    from ivideogpt.core.run import Run
    from ivideogpt.training.imitation import ChunkDataset
    from ivideogpt.wmrl.loop import improve_policy
    from ivideogpt.wmrl.rollouts import RealRows

    config, check = recipe.rl, None
    running = Run(
        folder, seed=config.seed, device=device, log_every=config.log_every, save_every=config.save_every, keep_last=1
    )
    network.to(running.device)
    rows: Rows
    if config.imagination:
        rows, check = _imagined_rows(recipe, network, inputs, running)
        config = replace(config, horizon=min(config.horizon, check.trusted_steps))
    else:
        rows = RealRows(
            config.task,
            network,
            count=config.prompts * config.group,
            horizon=config.horizon,
            options=config.environment_options,
        )
    if config.algorithm == "residual_drq":
        return _improve_residual(config, network, rows, running), check, rows.steps
    demonstrations = None
    if config.algorithm == "filtered_bc" and config.demo_share:
        demonstrations = ChunkDataset(*read_instructed(Path(inputs["demos"])), network.config)
    improved = improve_policy(
        config,
        network,
        rows,
        running,
        demonstrations=demonstrations,
        evaluate=lambda policy: float(sum(measure(policy)) / config.evaluation_episodes),
    )
    return lambda: measure(improved), check, rows.steps


def _improve_residual(config: WmRlConfig, network: TinyFlow, rows: Rows, run: Run) -> Callable[[], list[bool]]:
    """Learn a correction of the policy; return a function that evaluates the corrected policy."""
    from ivideogpt.envs.collector import MOST_STEPS
    from ivideogpt.policies.vla.tiny_flow import FlowPolicy
    from ivideogpt.wmrl.residual import ResidualAgent, improve_residual
    from ivideogpt.wmrl.rollouts import RealRows

    base = FlowPolicy(network)
    agent = ResidualAgent(config, network.config.resolution, network.config.action_dim, run.device)

    def measure() -> list[bool]:
        total = config.evaluation_episodes
        count = max(n for n in range(1, min(config.evaluation_rows, total) + 1) if total % n == 0)
        real = RealRows(config.task, network, count=count, options=config.environment_options)
        successes: list[bool] = []
        seeds = evaluation_seeds(config)
        for first in range(0, total, count):
            started = real.begin_at(seeds[first : first + count])
            successes += agent.play(base, real, started, seeds[first], noise=0.0, horizon=MOST_STEPS)[1].tolist()
        real.close()
        return successes

    improve_residual(config, base, agent, rows, run, evaluate=lambda: sum(measure()) / config.evaluation_episodes)
    return measure


def _imagined_rows(
    recipe: WmRlRecipe, network: TinyFlow, inputs: Mapping[str, str], run: Run
) -> tuple[Rows, HeldOutCheck]:
    from ivideogpt.commands.wm_rl_inputs import read_all
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.wmrl.loop import check_held_out
    from ivideogpt.wmrl.rollouts import ImaginedRows, InstructedStarts
    from ivideogpt.worldmodel.world_model import WorldModel

    config = recipe.rl
    model = WorldModel.from_pretrained(inputs["world"]).to(run.device).eval()
    classifier = SuccessClassifier.from_pretrained(inputs["classifier"]).to(run.device)
    print(classifier.summary(), file=sys.stderr)
    check = check_held_out(config, model, classifier, *read_all(inputs["held_out"]))
    frames = max(model.context_frames, network.config.images)
    starts = InstructedStarts(*read_all(inputs["recordings"]), frames=frames, latest=config.latest_start)
    rows = ImaginedRows(
        model,
        starts,
        classifier,
        network,
        count=config.prompts * config.group,
        horizon=min(config.horizon, check.trusted_steps),
        reanchor_every=config.reanchor_every,
    )
    return rows, check


def evaluation_seeds(config: WmRlConfig) -> list[int]:
    """Return the seeds of the episodes of an evaluation.

    In LIBERO they go round the tasks of a suite and round the start states from ``evaluation_seed`` on, so that none is
    one of the first states, which demonstrations begin at.
    """
    first, count = config.evaluation_seed, config.evaluation_episodes
    row = find_environment(config.task)
    if row is None or row[1].extra != "libero":
        return list(range(first, first + count))
    tasks, states = LIBERO_SUITES.get(row[0], 1), LIBERO_START_STATES
    places = [first % states + n // tasks % (states - first % states) for n in range(count)]
    return [place + states * (n % tasks) for n, place in enumerate(places)]


def _measurement(recipe: WmRlRecipe):
    """Return a function that plays the episodes of an evaluation in the environment: policy to successes."""
    from ivideogpt.envs.collector import MOST_STEPS
    from ivideogpt.wmrl.rollouts import RealRows, evaluate_flow

    config = recipe.rl

    def measure(policy: TinyFlow) -> list[bool]:
        count = min(config.evaluation_rows, config.evaluation_episodes)
        rows = RealRows(config.task, policy, count=count, options=config.environment_options)
        try:
            return evaluate_flow(policy, rows, evaluation_seeds(config), horizon=MOST_STEPS)
        finally:
            rows.close()

    return measure


def _print_summary(
    recipe: WmRlRecipe,
    results: Mapping[str, Any],
    check: HeldOutCheck | None,
    steps: int,
    newest: tuple[int, Path],
    start: float,
) -> None:
    from ivideogpt.evaluation.intervals import share_estimate

    config, values = recipe.rl, {}
    for name in ("before", "after"):
        share = share_estimate(sum(results[name]), len(results[name]))
        values |= {
            f"success_{name}": round(share.value, 4),
            f"interval_{name}": [round(share.low, 4), round(share.high, 4)],
        }
    checked = {} if check is None else {"agreement": round(check.agreement, 4), "trusted_steps": check.trusted_steps}
    print_json(
        {
            "task": config.task,
            "algorithm": config.algorithm,
            "imagination": config.imagination,
            "seed": config.seed,
            **values,
            "episodes": config.evaluation_episodes,
            "iterations": newest[0],
            "steps": steps,
            **checked,
            "stages": results["seconds"],
            "seconds": round(time.perf_counter() - start, 1),
            "output": newest[1],
        }
    )
