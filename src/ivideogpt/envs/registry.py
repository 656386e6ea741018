"""Environments by name. A new environment is one file and one row of ``ENVIRONMENTS``.

A name is one of ours ("pusht", "metaworld/hammer", or plain "hammer", "maniskill/pick-cube", "libero_spatial"), an id
that gymnasium knows ("CarRacing-v3"), or "module:Name": an id that importing the module registers, or a class in it.
Packages of environments, and gymnasium itself, are imported when they are used, not here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ivideogpt.core.config import closest
from ivideogpt.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    import gymnasium

#: The six tasks of Meta-World that the official world model is used in.
METAWORLD_TASKS = (
    "button-press-topdown-wall",
    "coffee-push",
    "door-lock",
    "hammer",
    "handle-pull-side",
    "plate-slide",
)
_TASK_NAMES = """
    assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side
    handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
    plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall
    shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""
#: Every task of Meta-World.
ALL_METAWORLD_TASKS = tuple(_TASK_NAMES.split())
_METAWORLD = "metaworld/"
_MANISKILL = "maniskill/"
#: The five tasks of ManiSkill, by their name here: ManiSkill's id and steps of an episode, and a control mode.
MANISKILL_TASKS: dict[str, dict[str, Any]] = {
    "pick-cube": {"task": "PickCube-v1", "steps": 50},
    "lift-peg-upright": {"task": "LiftPegUpright-v1", "steps": 50},
    "peg-insertion-side": {"task": "PegInsertionSide-v1", "steps": 100, "control_mode": "pd_joint_delta_pos"},
    "push-t": {"task": "PushT-v1", "steps": 100},
    "stack-cube": {"task": "StackCube-v1", "steps": 50},
}
#: The suites of LIBERO, and the number of tasks of each.
LIBERO_SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
#: Fixed start states of each task of LIBERO.
LIBERO_START_STATES = 50

#: The seven tasks of RoboDesk that VP2 plans in.
ROBODESK_TASKS = (
    "push_red",
    "push_green",
    "push_blue",
    "open_slide",
    "open_drawer",
    "upright_block_off_table",
    "flat_block_off_table",
)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """Registry entry of an environment.

    Attributes:
        id: in gymnasium's registry.
        entry_point: "module:class".
        extra: of ivideogpt, that installs its packages.
        max_steps: where gymnasium truncates an episode; None: the environment does it.
        options: arguments of the class, unless the caller gives others.
        vector_entry_point: "module:class" of environments that a graphics card steps together, with
            ``sim_backend="physx_cuda"``; "": there is none.
        preset: of reinforcement learning, where none is named; "": the default.
        demonstrations: of the environment, a folder in the folder of all demonstrations; "": the task's name.
    """

    id: str
    entry_point: str
    extra: str
    max_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vector_entry_point: str = ""
    preset: str = ""
    demonstrations: str = ""


def _libero(suite: str, task_id: int | None) -> EnvironmentSpec:
    options = {"suite": suite} | ({} if task_id is None else {"task_id": task_id})
    return EnvironmentSpec(
        id="ivideogpt/LIBERO-v0",
        entry_point="ivideogpt.envs.libero:Libero",
        extra="libero",
        options=options,
        preset="libero",
        demonstrations=suite,
    )


#: Every environment of this package, by its name.
ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    "pusht": EnvironmentSpec(
        id="ivideogpt/PushT-v0", entry_point="ivideogpt.envs.pusht:PushT", extra="pusht", max_steps=300
    ),
    "reacher": EnvironmentSpec(id="ivideogpt/Reacher-v0", entry_point="ivideogpt.envs.reacher:Reacher", extra="rl"),
    "toy-push": EnvironmentSpec(id="ivideogpt/ToyPush-v0", entry_point="ivideogpt.envs.toys:ToyPush", extra="rl"),
    **{
        _METAWORLD + task: EnvironmentSpec(
            id="ivideogpt/MetaWorld-v0",
            entry_point="ivideogpt.envs.metaworld:MetaWorld",
            extra="metaworld",
            options={"task": task},
        )
        for task in ALL_METAWORLD_TASKS
    },
    **{
        _MANISKILL + task: EnvironmentSpec(
            id="ivideogpt/ManiSkill-v0",
            entry_point="ivideogpt.envs.maniskill:ManiSkill",
            extra="maniskill",
            options=options,
            vector_entry_point="ivideogpt.envs.maniskill:ManiSkillVector",
            preset="maniskill",
        )
        for task, options in MANISKILL_TASKS.items()
    },
    **{
        f"robodesk/{task}": EnvironmentSpec(
            id="ivideogpt/RoboDesk-v0",
            entry_point="ivideogpt.envs.robodesk:RoboDesk",
            extra="vp2",
            options={"task": task},
        )
        for task in ROBODESK_TASKS
    },
    "robosuite/push": EnvironmentSpec(
        id="ivideogpt/RobosuitePush-v0", entry_point="ivideogpt.envs.robosuite_push:RobosuitePush", extra="vp2"
    ),
    # a suite, whose episodes are of all its tasks, and each of its tasks
    **{suite: _libero(suite, None) for suite in LIBERO_SUITES},
    **{
        f"{suite}/{number}": _libero(suite, number) for suite, count in LIBERO_SUITES.items() for number in range(count)
    },
}
_MANISKILL_IDS = {options["task"].lower(): task for task, options in MANISKILL_TASKS.items()}


def find_environment(name: str) -> tuple[str, EnvironmentSpec] | None:
    """Find an environment of this package.

    Args:
        name: as people write it: "PushT", "plate_slide", "plate-slide-v3", "metaworld/plate-slide",
            "maniskill/pick_cube", "PickCube-v1", "libero_spatial" and "libero-spatial/3" are understood.

    Returns:
        Its key in ``ENVIRONMENTS`` and its row, or None.
    """
    plain = name.lower().replace("_", "-")
    maniskill = plain.removeprefix(_MANISKILL)
    for key in (
        name,
        plain,
        plain.replace("-", "_"),
        _METAWORLD + plain.removeprefix(_METAWORLD).removesuffix("-v3"),
        _MANISKILL + _MANISKILL_IDS.get(maniskill, maniskill),
    ):
        # without a prefix, "push-t" is a misspelt "pusht" rather than ManiSkill's task
        if key in ENVIRONMENTS and plain != "push-t":
            return key, ENVIRONMENTS[key]
    return None


def canonical_name(name: str) -> str:
    """Return the one spelling of an environment's name; check that there is such an environment.

    Raises:
        UserError: there is none, or its module cannot be imported.
        MissingExtraError: gymnasium is not installed.
    """
    if match := find_environment(name):
        return match[0]
    module, _, attribute = name.rpartition(":")
    if module:
        _import(module, name)
    registered = _gymnasium().registry
    if attribute in registered or (module and hasattr(sys.modules[module], attribute)):
        return name
    if module:
        raise UserError(f"module {module!r} registers no environment {attribute!r} and has no class of that name")
    if (suite := name.replace("-", "_").partition("/")[0]) in LIBERO_SUITES:
        raise UserError(
            f"there is no task {name!r}; {suite} has the tasks {suite}/0 to {suite}/{LIBERO_SUITES[suite] - 1}"
        )
    near = closest(name, [*ENVIRONMENTS, *registered])
    if near is None and (task := closest(name.removesuffix("-v3"), ALL_METAWORLD_TASKS)):
        near = _METAWORLD + task
    if near:
        raise UserError(f"there is no environment {name!r}; did you mean {near!r}?")
    raise UserError(
        f"there is no environment {name!r}; expected pusht, reacher, toy-push, a task of Meta-World such as "
        "plate-slide, one of ManiSkill such as maniskill/pick_cube, one of RoboDesk such as robodesk/push_red, "
        "robosuite/push, a suite of LIBERO such as libero_spatial, an id that gymnasium knows, or module:Name"
    )


def make(name: str, **options: Any) -> gymnasium.Env:
    """Make an environment by its name.

    Args:
        name: see the head of this file.
        **options: arguments of the environment; ``max_episode_steps`` truncates its episodes.

    Raises:
        UserError: there is no such environment, or it cannot be made with these options.
        MissingExtraError: the environment's package is not installed.
    """
    match = find_environment(name)
    name = canonical_name(name)
    if match is not None:
        _, spec = match
        register(spec.extra)
        name, options = spec.id, {**spec.options, **options}
    gymnasium = _gymnasium()
    module, _, attribute = name.rpartition(":")
    target: Any = attribute or name
    if module and attribute not in gymnasium.registry:
        target = gymnasium.envs.registration.EnvSpec(id=attribute, entry_point=getattr(sys.modules[module], attribute))
    try:
        return gymnasium.make(target, **options)
    except TypeError as error:
        raise UserError(f"environment {name} does not take the options {sorted(options)} ({error})") from error
    except (gymnasium.error.Error, ImportError) as error:
        if isinstance(error, MissingExtraError):
            raise
        raise UserError(f"environment {name!r} cannot be made: {' '.join(str(error).split())}") from error


def register(extra: str = "rl") -> None:
    """Register this package's ids with gymnasium; calling it again changes nothing.

    Args:
        extra: named where gymnasium is missing.

    Raises:
        MissingExtraError: gymnasium is not installed.
    """
    gymnasium = _gymnasium(extra)
    for spec in ENVIRONMENTS.values():
        if spec.id not in gymnasium.registry:
            gymnasium.register(id=spec.id, entry_point=spec.entry_point, max_episode_steps=spec.max_steps)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """A finder that registers the environments as soon as gymnasium has been imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_gymnasium() -> None:
    """Register the ids now if gymnasium is imported, else when it is: ``import ivideogpt`` alone stays fast."""
    if "gymnasium" in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


def _gymnasium(extra: str = "rl") -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ModuleNotFoundError as error:
        raise MissingExtraError("gymnasium", extra) from error


def _import(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except MissingExtraError:
        raise
    except Exception as error:  # a module of the user's can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"environment {name!r} needs the module {module!r}, which cannot be imported ({reason}); "
            "install it, or put its folder on PYTHONPATH"
        ) from error
