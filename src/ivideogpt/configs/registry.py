"""All presets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ivideogpt.configs.metaworld import metaworld_recipe
from ivideogpt.configs.official import OFFICIAL
from ivideogpt.configs.pusht import pusht_recipe
from ivideogpt.configs.recipe import Recipe
from ivideogpt.configs.robot import debug_recipe, robot_recipe
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError

PRESETS: Mapping[str, Callable[[], Recipe]] = {
    "debug": debug_recipe,
    "pusht-64": pusht_recipe,
    "robot-64": robot_recipe,
    "metaworld-64": metaworld_recipe,
    **{name: official.recipe for name, official in OFFICIAL.items()},
}


def find_preset(name: str) -> Recipe:
    """The preset ``name``.

    Raises:
        UserError: there is none; the message names the closest one.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; {suggestion(name, PRESETS)}")
    return PRESETS[name]()
