"""The environments this project knows, by short name and by gymnasium id.

An environment's own packages, and gymnasium itself, are imported when they are used, not here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from ivideogpt.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    import gymnasium

#: Short name -> (gymnasium id, entry point, episode limit in steps).
ENVIRONMENTS: dict[str, tuple[str, str, int]] = {
    "pusht": ("ivideogpt/PushT-v0", "ivideogpt.envs.pusht:PushT", 300),
}


def register() -> None:
    """Makes the ids known to gymnasium; calling it again changes nothing.

    Raises:
        MissingExtraError: gymnasium is not installed.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise MissingExtraError("gymnasium", "pusht") from error
    for environment_id, entry_point, max_episode_steps in ENVIRONMENTS.values():
        if environment_id not in gymnasium.registry:
            gymnasium.register(id=environment_id, entry_point=entry_point, max_episode_steps=max_episode_steps)


def make(name: str, **kwargs: Any) -> gymnasium.Env:
    """An environment by its short name.

    Args:
        name: a key of ``ENVIRONMENTS``, for example "pusht".
        **kwargs: passed on to the environment.

    Raises:
        UserError: the name is unknown.
        MissingExtraError: the environment's package is not installed.
    """
    if name not in ENVIRONMENTS:
        close = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(ENVIRONMENTS))
        raise UserError(f"there is no environment {name!r}; {hint}")
    register()
    import gymnasium

    return gymnasium.make(ENVIRONMENTS[name][0], **kwargs)
