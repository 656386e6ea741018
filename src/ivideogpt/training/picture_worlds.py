"""Worlds that picture models are trained in, by name: a new world is one more entry of `PICTURE_WORLDS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ivideogpt.core.config import suggestion
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.training.picture_crops import PictureClips
from ivideogpt.worldmodel.config import ActionSpace


@dataclass(frozen=True, kw_only=True)
class PictureWorld:
    """A world, and its functions as "module:function", which are imported when they are used.

    Attributes:
        clips: recorded episodes of one length to clips: (episodes) to `PictureClips`.
        correct: a round with the simulator: (model, transitions, seed) to `PictureClips`; None: there is no simulator.
        actions: meaning of the numbers of an action; empty: as the store says.
    """

    clips: str
    correct: str | None = None
    actions: ActionSpace = ActionSpace()

    def read_clips(self, episodes: Sequence[Episode]) -> PictureClips:
        """Make clips of recorded episodes of one length."""
        return _imported(self.clips)(episodes)

    def correction(self) -> Callable[[PictureDynamics, int, int], PictureClips] | None:
        """Return the function that plays a round with the simulator."""
        return None if self.correct is None else _imported(self.correct)


_PUSHT = "ivideogpt.training.pusht_corrections"

#: Every world by name; "any" is a still camera and no simulator.
PICTURE_WORLDS: Mapping[str, PictureWorld] = {
    "any": PictureWorld(clips="ivideogpt.training.picture_data:clips_of_changes"),
    "pusht": PictureWorld(
        clips=f"{_PUSHT}:pusht_clips",
        correct=f"{_PUSHT}:correct_pusht",
        actions=ActionSpace(names=("x", "y"), low=(0.0, 0.0), high=(512.0, 512.0), units=("px", "px"), pointer=True),
    ),
}


def find_picture_world(name: str) -> PictureWorld:
    """Return the world of that name.

    Raises:
        UserError: there is none; the message names the closest one.
    """
    if name not in PICTURE_WORLDS:
        raise UserError(f"there is no world {name!r} for picture models; {suggestion(name, PICTURE_WORLDS)}")
    return PICTURE_WORLDS[name]


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
