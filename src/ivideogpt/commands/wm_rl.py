"""``ivideogpt wm-rl``: improve a policy in a world model, and make its inputs where they are not given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.kept_settings import keep_values, kept_values, load_settings
from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.configs.wmrl import WmRlRecipe
    from ivideogpt.wmrl.loop import HeldOutCheck

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
        policy: a policy to improve: the folder of a run of `ivideogpt train-policy`; for residual_drq any policy that
            reads pictures alone, also ws://HOST:PORT, a policy server of the openpi protocol.
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
    from ivideogpt.commands.wm_rl_improvers import improve, new_improver
    from ivideogpt.commands.wm_rl_inputs import INPUTS, StageResults, check_inputs, make_inputs
    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.run import choose_device, choose_precision
    from ivideogpt.models.success_classifier import SuccessClassifier

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
    improver = new_improver(recipe, inputs, device)
    if "before" not in results.values:
        with results.stage("evaluation before"):
            results.values["before"] = improver.measure()
    with results.stage("improvement"):
        check, steps = improve(recipe, improver, inputs, folder / "improved", device)
    if "after" not in results.values:
        with results.stage("evaluation after"):
            results.values["after"] = improver.measure()
    judge = SuccessClassifier.from_pretrained(inputs["classifier"]).scores() if config.imagination else None
    _print_summary(recipe, results.values, check, judge, steps, step_folders(folder / "improved")[-1], start)


def _print_summary(
    recipe: WmRlRecipe,
    results: Mapping[str, Any],
    check: HeldOutCheck | None,
    judge: Mapping[str, Any] | None,
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
            "classifier": judge,
            "stages": results["seconds"],
            "seconds": round(time.perf_counter() - start, 1),
            "output": newest[1],
        }
    )
