"""The environments this project knows, by short name and by gymnasium id.

An environment's own packages, and gymnasium itself, are imported when they are used, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ivideogpt.core.config import suggestion
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
_METAWORLD = "metaworld/"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """How an environment is found.

    Attributes:
        id: in gymnasium's register.
        entry_point: "module:class".
        extra: of ivideogpt, that installs its packages.
        max_steps: where gymnasium is to cut episodes off; None: the environment does it.
        options: given to the class, unless the caller gives others.
    """

    id: str
    entry_point: str
    extra: str
    max_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


_ANY_METAWORLD = Registration(
    id="ivideogpt/MetaWorld-v0", entry_point="ivideogpt.envs.metaworld:MetaWorld", extra="metaworld"
)

#: What is registered, by short name.
ENVIRONMENTS: dict[str, Registration] = {
    "pusht": Registration(
        id="ivideogpt/PushT-v0", entry_point="ivideogpt.envs.pusht:PushT", extra="pusht", max_steps=300
    ),
    "reacher": Registration(id="ivideogpt/Reacher-v0", entry_point="ivideogpt.envs.reacher:Reacher", extra="rl"),
} | {_METAWORLD + task: replace(_ANY_METAWORLD, options={"task": task}) for task in METAWORLD_TASKS}


def register(extra: str = "pusht") -> None:
    """Makes the ids known to gymnasium; calling it again changes nothing.

    Args:
        extra: the one to name where gymnasium is missing.

    Raises:
        MissingExtraError: gymnasium is not installed.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise MissingExtraError("gymnasium", extra) from error
    for found in ENVIRONMENTS.values():
        if found.id not in gymnasium.registry:
            gymnasium.register(id=found.id, entry_point=found.entry_point, max_episode_steps=found.max_steps)


def is_ours(name: str) -> bool:
    """Whether ``make`` is to know it: a short name, or any task of Meta-World."""
    return name in ENVIRONMENTS or name.startswith(_METAWORLD)


def make(name: str, **kwargs: Any) -> gymnasium.Env:
    """An environment by its short name.

    Args:
        name: a key of ``ENVIRONMENTS``, for example "pusht", or "metaworld/" and any task of Meta-World.
        **kwargs: passed on to the environment.

    Raises:
        UserError: the name is unknown.
        MissingExtraError: the environment's package is not installed.
    """
    found = ENVIRONMENTS.get(name)
    if found is None and name.startswith(_METAWORLD):
        found = replace(_ANY_METAWORLD, options={"task": name.removeprefix(_METAWORLD)})
    if found is None:
        raise UserError(f"there is no environment {name!r}; {suggestion(name, ENVIRONMENTS)}")
    register(found.extra)
    import gymnasium

    return gymnasium.make(found.id, **{**found.options, **kwargs})
