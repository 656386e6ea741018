"""``ivideogpt mbrl``: reinforcement learning in a simulator and in the world model of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import find_environment

if TYPE_CHECKING:
    from ivideogpt.mbrl.config import MbrlConfig
    from ivideogpt.mbrl.run_records import Progress
    from ivideogpt.scaling.ray_actors import RayActors

_DEFAULT_PRESET = "metaworld"


def load_mbrl_settings(typed: Mapping[str, str]) -> MbrlConfig:
    """Load the settings that options change: those of a resumed run, else those of the preset for the task.

    Raises:
        UserError: there is no such preset or task, or the run was begun with another preset.
    """
    from ivideogpt.mbrl.run_reader import SETTINGS

    preset = typed.get("preset")
    if "run" in typed:
        check_folder(Path(typed["run"]))
        path = Path(typed["run"]) / SETTINGS
        if path.is_file():
            kept = _load_kept(path)
            if preset not in (None, kept["preset"]):
                raise UserError(
                    f"'{typed['run']}' was begun with the preset {kept['preset']}, not {preset}; choose another folder"
                )
            return _config_of(kept, path)
    config = find_preset(preset or _preset_of(typed.get("task")), "mbrl")
    return config.for_task(typed["task"]) if "task" in typed else config


def _preset_of(task: str | None) -> str:
    """Return the preset of an environment, where none is named."""
    row = None if task is None else find_environment(task)
    return (row[1].preset if row else "") or _DEFAULT_PRESET


def mbrl(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: MbrlConfig,
    task: str | None = None,
    num_train_frames: int | None = None,
    demo: bool = False,
    demos: str | None = None,
    run: Path | None = None,
    model: str | None = None,
    imagination: bool = True,
    seed: int | None = None,
    environments: int | None = None,
    render_backend: str | None = None,
    workers: bool = False,
    ray: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Train an agent on real and imagined episodes; the same command resumes a stopped run.

    Args:
        preset: metaworld (default), official, pusht, reacher, maniskill (default for its tasks), libero (the same) or
            debug; its settings are options too, which `PRESET --help` lists. A resumed run keeps its own.
        settings: the settings of the preset.
        task: a task of Meta-World, such as plate_slide; of ManiSkill, such as maniskill/pick_cube; a suite or a task of
            LIBERO, such as libero_spatial or libero_spatial/0; pusht, reacher, the id of a gymnasium environment, or
            module:Name.
        num_train_frames: simulator frames in all.
        demo: begin with demonstrations: those of --demos, else of the folder demos/TASK, else five scripted ones.
        demos: an episode store, or a folder of official .npz files.
        run: folder for checkpoints, curves and pictures; default: runs/mbrl/TASK-METHOD-SEED.
        model: the world model: a folder, a run, a shipped model or a Hub id; none: a new one.
        imagination: train on imagined episodes too; --no-imagination trains on real ones alone.
        seed: of everything that is random.
        environments: simulators stepped together.
        render_backend: of ManiSkill: auto, sapien_cpu or sapien_cuda.
        workers: step each in a process of its own.
        ray: simulators and imagination are actors on a Ray cluster: auto (that of this machine; also --ray alone),
            local, HOST:PORT or ray://HOST:PORT.
        device: auto, cpu or cuda.
        precision: of the world model's training: auto, float32 or bfloat16.
    """
    import torch

    from ivideogpt.core.run import Run, choose_device, choose_precision
    from ivideogpt.mbrl.loop import check_environment, train_agent

    # settings
    options: dict[str, Any] = {"seed": seed, "num_envs": environments, "demo_folder": demos}
    options["env_processes"] = workers or None
    options["num_demos"] = -1 if (demo or demos) and not settings.num_demos else None
    options["use_world_model"] = None if imagination else False
    config = replace(settings, **{name: value for name, value in options.items() if value is not None})
    if model is not None:
        checkpoint = None if model == "none" else model
        config = replace(config, world_model=replace(config.world_model, checkpoint=checkpoint))
    if task is not None:
        config = config.for_task(task)
    if render_backend is not None:
        row = find_environment(config.task)
        if row is None or row[1].extra != "maniskill":
            raise UserError(f"render_backend is for ManiSkill, and the task is {config.task}; leave it out")
        options_of_task = config.environment_options | {"render_backend": render_backend}
        config = replace(config, environment_options=options_of_task)
    if num_train_frames is not None:
        config = config.for_frames(num_train_frames)
    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)

    # training
    title = f"{config.task.split('/')[-1]}-{config.method}-{config.seed}"
    folder = Path("runs/mbrl") / title if run is None else run
    check_folder(folder)
    actors = _find_cluster(ray, workers, choose_device(device).type)
    chosen_precision = choose_precision(precision, device)
    sizes = check_environment(config, folder)
    is_new = bool(config.num_demos) and not (folder / "checkpoints").is_dir()
    demonstrations = _demonstrations(config, *sizes) if is_new else []
    _keep_settings(folder, preset, config)
    print(_summary(config))
    start = time.perf_counter()
    running = Run(
        folder,
        seed=config.seed,
        device=device,
        precision=chosen_precision,
        log_every=0,
        save_every=max(config.save_every_steps // config.num_envs, 1),
        keep_last=1,
    )
    progress = train_agent(config, running, demonstrations, workers=actors)
    if actors is not None:
        actors.close()
    _print_results(folder, progress, running.seconds, time.perf_counter() - start)


def _find_cluster(ray: str | None, workers: bool, device: str) -> RayActors | None:
    """Connect to the Ray cluster of --ray; None without one."""
    if ray is None:
        return None
    if workers:
        raise UserError("a Ray cluster has its own workers: give --ray or --workers, not both")
    from ivideogpt.scaling.ray_actors import RayActors
    from ivideogpt.scaling.ray_pool import RayPool

    return RayActors(RayPool(ray, device=device))


def _print_results(folder: Path, progress: Progress, seconds: float, seconds_now: float) -> None:
    last, spent = progress.evaluations[-1], sorted(progress.seconds.items())
    print_table(("seconds spent on", "s"), [(name, f"{value:.1f}") for name, value in spent])
    print_json(
        {
            "run": folder,
            "return": fmean(last["returns"]),
            "success": fmean(last["successes"]),
            "env_frames": last["env_frames"],
            "imagined_transitions": progress.imagined_transitions,
            "agent_updates": progress.agent_updates,
            "world_model_updates": progress.world_model_updates,
            "evaluations": len(progress.evaluations),
            "seconds": round(seconds, 1),
            "seconds_now": round(seconds_now, 1),
        }
    )


def _summary(config: MbrlConfig) -> str:
    if not config.use_world_model:
        return f"{config.task}: without a world model"
    world = config.world_model.checkpoint or "a new one, made of the first episodes"
    return f"{config.task}: world model {world}"


def _load_kept(path: Path) -> dict[str, Any]:
    kept = load_json(path)
    if not {"preset", "settings", "method"} <= kept.keys():
        raise UserError(f"'{path.parent}' holds another kind of run; choose another folder")
    return kept


def _config_of(kept: Mapping[str, Any], path: Path) -> MbrlConfig:
    from ivideogpt.mbrl.config import MbrlConfig

    try:
        return from_dict(MbrlConfig, kept["settings"], where=str(path))
    except UserError as error:
        raise UserError(
            f"'{path.parent}' holds a run of another version and cannot be resumed ({error}); choose another folder"
        ) from error


def _keep_settings(folder: Path, preset: str | None, config: MbrlConfig) -> None:
    """Write the settings of a new run into its folder, or check that a resumed run has the same.

    Raises:
        UserError: the folder's run has other settings; only more frames are allowed.
    """
    from ivideogpt.mbrl.run_reader import SETTINGS

    path = folder / SETTINGS
    values = {
        "preset": preset or _preset_of(config.task),
        "task": config.task,
        "seed": config.seed,
        "method": config.method,
    }
    values |= {"settings": to_dict(config)}
    if path.is_file():
        kept = _load_kept(path)
        values["preset"] = kept["preset"]
        earlier = replace(_config_of(kept, path), total_env_steps=config.total_env_steps)
        if earlier != config:
            names = [name for name, value in to_dict(config).items() if to_dict(earlier)[name] != value]
            raise UserError(
                f"'{folder}' holds a run with other settings ({', '.join(names)}); resume it with the same, or use "
                "another folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
    save_json(path, values)


def _demonstrations(config: MbrlConfig, action_dim: int, image: int) -> list:
    """Read or record the demonstrations that the run begins with, and check them against its environment."""
    import numpy as np

    from ivideogpt.mbrl.demonstrations import (
        DEMOS,
        SCRIPTED,
        check_demos,
        demonstration_folder,
        read_demonstrations,
        scripted_demos,
    )

    own = demonstration_folder(config.task)
    place = Path(config.demo_folder) if config.demo_folder else own if own.exists() else DEMOS
    if config.demo_folder or place.exists():
        demonstrations, source = read_demonstrations(place, config.task), f"of {place}"
    else:
        demonstrations = scripted_demos(config.task, SCRIPTED, config.seed, config.environment_options)
        source = f"recorded by the script, as there is no folder {own} or {DEMOS}"
    if config.num_demos >= 0:
        demonstrations = demonstrations[: config.num_demos]
    row = find_environment(config.task)
    control_mode = None
    if row is not None and row[1].extra == "maniskill":
        control_mode = ({"control_mode": "pd_ee_delta_pose", **row[1].options, **config.environment_options})[
            "control_mode"
        ]
    check_demos(
        demonstrations,
        action_dim=action_dim,
        image=image,
        control_mode=control_mode,
    )
    # The official recordings do not say whether they succeed; only success pays more than 10 at once.
    succeeded = sum(
        bool(demonstration.meta.get("success", np.any(np.asarray(demonstration.rewards) > 10)))
        for demonstration in demonstrations
    )
    print(f"{len(demonstrations)} demonstrations {source}; {succeeded} of them succeed")
    return demonstrations
