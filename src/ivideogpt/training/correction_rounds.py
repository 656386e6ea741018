"""Rounds of corrections in the folder of a run: made once, read again when the run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        """Keep the ``kept`` latest rounds as files of ``folder``."""
        self._folder, self._kept = folder, kept
        self._steps: list[int] = []
        self.clips: list[PictureClips] = []

    def load(self, steps: Sequence[int]) -> None:
        """Read the rounds that came before the given updates, as far as they are kept.

        Raises:
            UserError: a file is missing or damaged.
        """
        for step in steps[-self._kept :]:
            self._append(step, self._read(step))

    def add(self, step: int, make: Callable[[int], PictureClips]) -> None:
        """Read the round before update ``step``, or make it and write it; forget what is too old.

        Args:
            step: updates made before.
            make: makes the round, given a seed.
        """
        path = self._path(step)
        if not path.is_file():
            clips = make(step)
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {name: torch.from_numpy(getattr(clips, name)) for name in _ARRAYS})
        # What was written is read: a resumed run trains on the same bytes.
        self._append(step, self._read(step))

    def _append(self, step: int, clips: PictureClips) -> None:
        self._steps.append(step)
        self.clips.append(clips)
        for old in self._steps[: -2 * self._kept]:  # a run that resumes at an older checkpoint needs older rounds
            self._path(old).unlink(missing_ok=True)
        del self.clips[: -self._kept]

    def _read(self, step: int) -> PictureClips:
        tensors = load_tensors(self._path(step))
        return PictureClips(**{name: tensors[name].numpy() for name in _ARRAYS})

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"
