"""Rounds of corrections in the folder of a run: made once, read again when the run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.files import writing
from ivideogpt.training.picture_crops import PictureClips

_ARRAYS = ("frames", "actions", "places", "chances")


class CorrectionRounds:
    """The latest rounds of a run, oldest first.

    Attributes:
        clips: the clips of each round.
    """

    def __init__(self, folder: Path, *, kept: int) -> None:
        """Train on the ``kept`` latest rounds; all rounds are files of ``folder`` until they are forgotten."""
        self._folder, self._kept = folder, kept
        self.clips: list[PictureClips] = []

    def resume(self, steps: Sequence[int]) -> None:
        """Add the rounds before the given updates, as far as they are kept.

        Raises:
            UserError: a file is missing or damaged.
        """
        for step in steps[-self._kept :]:
            self.add(step)

    def has(self, step: int) -> bool:
        """Return whether the round before update ``step`` is in the folder."""
        return self._path(step).is_file()

    def write(self, step: int, clips: PictureClips) -> None:
        """Write the round before update ``step``."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path(step), {name: torch.from_numpy(getattr(clips, name)) for name in _ARRAYS})

    def add(self, step: int) -> None:
        """Read the round before update ``step``, in the place of the oldest one.

        Raises:
            UserError: the file is missing or damaged.
        """
        tensors = load_tensors(self._path(step))
        frames, actions, places, chances = (tensors[name].numpy() for name in _ARRAYS)
        self.clips.append(PictureClips(frames=frames, actions=actions, places=places, chances=chances))
        del self.clips[: -self._kept]

    def forget(self, oldest: int) -> None:
        """Delete the files that no run needs that resumes after ``oldest`` updates or more."""
        steps = [int(path.stem.removeprefix("step-")) for path in sorted(self._folder.glob("step-*.safetensors"))]
        for step in [step for step in steps if step < oldest][: -self._kept]:
            self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"
