"""``ivideogpt mbrl``: reinforcement learning in a simulator and in the world model of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.configs.recipe import changed
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.run_reader import SETTINGS

_ENVIRONMENTS = ("pusht", "reacher")


def mbrl(
    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = "metaworld",
    *,
    task: str | None = None,
    num_train_frames: int | None = None,
    demo: bool = False,
    demos: str | None = None,
    run: Path | None = None,
    model: str | None = None,
    imagination: bool = True,
    compat: str | None = None,
    seed: int | None = None,
    set: tuple[str, ...] = (),  # noqa: A002  the name of the option
    environments: int | None = None,
    workers: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Train an agent on real and imagined episodes; the same command again goes on where a stopped run ended.

    Args:
        preset: metaworld, official, pusht, reacher or debug.
        task: of Meta-World, such as plate_slide; or pusht, reacher, or an environment that gymnasium knows by its id.
        num_train_frames: simulator frames in all.
        demo: begins with demonstrations: those of --demos, else of the folder demos/TASK, else five scripted ones.
        demos: an episode store, or a folder of official .npz files.
        run: folder for checkpoints, curves and pictures; default: runs/mbrl/TASK-METHOD-SEED.
        model: the world model: a folder, a run, a shipped model or a Hub id; none: a new one.
        imagination: --no-imagination learns from real episodes alone.
        compat: none, or official: the mistakes of the official code again.
        seed: of everything that is random.
        set: settings to change, such as agent.batch_size=64; the run folder's settings.json lists all.
        environments: simulators stepped together.
        workers: each in a process of its own.
        device: auto, cpu or cuda.
        precision: of the world model's training: auto, float32 or bfloat16.
    """
    from ivideogpt.configs.mbrl import find_mbrl
    from ivideogpt.core.run import Run, choose_precision
    from ivideogpt.mbrl.loop import train_agent

    given: dict[str, Any] = {"frames": num_train_frames, "compat": compat, "seed": seed, "environments": environments}
    given |= {"task": None if task is None else environment_name(task), "demo_folder": demos, "imagine": imagination}
    given |= {"workers": workers or None, "demos": -1 if demo or demos else None, "world_model.checkpoint": model}
    words = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    if model == "none":
        words.append("world_model.checkpoint=null")
    config = changed(find_mbrl(preset), [*words, *set])
    title = f"{config.task.split('/')[-1]}-{config.method}-{config.seed}"
    folder = Path("runs/mbrl") / title if run is None else run
    check_folder(folder)
    _settle(folder, preset, config)
    print(_about(config))
    start, going = (
        time.perf_counter(),
        Run(
            folder,
            seed=config.seed,
            device=device,
            precision=choose_precision(precision, device),
            log_every=0,
            save_every=max(config.save_every // config.environments, 1),
            keep_last=1,
        ),
    )
    shown = [] if (folder / "checkpoints").is_dir() or not config.demos else _demos(config)
    found = train_agent(config, going, shown)
    last = found.evaluations[-1]
    print_table(("seconds spent on", "s"), [(name, f"{value:.1f}") for name, value in sorted(found.seconds.items())])
    print_json(
        {
            "run": folder,
            "return": float(np.mean(last["returns"])),
            "success": float(np.mean(last["successes"])),
            "env_frames": last["env_frames"],
            "imagined_transitions": found.imagined,
            "agent_updates": found.agent_updates,
            "world_model_updates": found.world_updates,
            "evaluations": len(found.evaluations),
            "seconds": round(going.seconds, 1),
            "seconds_now": round(time.perf_counter() - start, 1),
        }
    )


def environment_name(task: str) -> str:
    """The environment that a task means: its own name, else a task of Meta-World."""
    if task in _ENVIRONMENTS or "/" in task or "-v" in task.removesuffix("-v3") or task[:1].isupper():
        return task
    return f"metaworld/{task.replace('_', '-')}"


def _about(config: Any) -> str:
    if not config.imagine:
        return f"{config.task}: without a world model"
    world = config.world_model.checkpoint or "a new one, made of the first episodes"
    return f"{config.task}: world model {world}"


def _settle(folder: Path, preset: str, config: Any) -> None:
    """Writes what a new run begins with; refuses to go on with something else.

    Raises:
        UserError: the folder's run has other settings.
    """
    mine = {"preset": preset, "task": config.task, "seed": config.seed, "method": config.method}
    mine |= {"settings": to_dict(config)}
    path = folder / SETTINGS
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_json(path, mine)
        return
    before = load_json(path)
    if "settings" not in before or "method" not in before:
        raise UserError(f"'{folder}' holds another kind of run; choose another folder")
    earlier = replace(from_dict(type(config), before["settings"], where=str(path)), frames=config.frames)
    if earlier != config:
        names = [name for name, value in to_dict(config).items() if to_dict(earlier)[name] != value]
        raise UserError(
            f"'{folder}' holds a run with other settings ({', '.join(names)}); use the same to go on, or another folder"
        )
    save_json(path, mine)


def _demos(config: Any) -> list:
    """The demonstrations that the run begins with, checked against its environment."""
    from ivideogpt.envs.vector import make_vector
    from ivideogpt.mbrl.demonstrations import DEMOS, SCRIPTED, check_demos, read_demos, scripted_demos

    name = config.task.split("/")[-1]
    place = Path(config.demo_folder) if config.demo_folder else DEMOS / name if (DEMOS / name).exists() else DEMOS
    if config.demo_folder or place.exists():
        found, where = read_demos(place, config.task), f"of {place}"
    else:
        found = scripted_demos(config.task, SCRIPTED, config.seed, config.environment)
        where = f"recorded by the script, as there is no folder {DEMOS / name} or {DEMOS}"
    if config.demos >= 0:
        found = found[: config.demos]
    environment = make_vector(config.task, 1, **config.environment)
    space, actions = environment.single_observation_space.shape, environment.single_action_space.shape
    environment.close()
    check_demos(found, action_dim=int(actions[0]), image=int(space[-2]))  # type: ignore[index]
    # Who recorded the official ones does not say; only success pays as much.
    succeeded = sum(bool(one.meta.get("success", np.any(np.asarray(one.rewards) > 10))) for one in found)
    print(f"{len(found)} demonstrations {where}; {succeeded} of them succeed")
    return found
