"""A finished imagination; its frames are decoded when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ivideogpt.worldmodel.lazy_frames import Frame, stacked

#: Rows that stand one below the other, as frames that may wait to be decoded.
_Blocks = tuple[tuple[Frame, ...], ...]


@dataclass(frozen=True)
class Imagination:
    """Imagined frames.

    ``frames`` are decoded when they are first looked at, by the tokenizer as it is then and where it is then. Until
    then tokens are held, and no cache; what the session does later changes nothing. Copies and pickles of an
    imagination hold its frames.

    Attributes:
        frames: ``[b horizon c h w]`` in [0, 1], on the device of ``ids``.
        ids: int64 ``[b horizon m]`` of the full vocabulary, separators left out.
        log_probs: float32 ``[b horizon m]``.
        entropies: float32 ``[b horizon m]`` in nats: how unsure the model was of each token.
        rewards: ``[b horizon]`` in reward units, or None; ``rewards[:, i]`` is paid for ``actions[:, i]``.
        terminations: ``[b horizon]``, probability that each step was the last, or None.
    """

    frames: Tensor
    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
    rewards: Tensor | None
    terminations: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Imagination]) -> Imagination:
        """Rows of several imaginations that nobody has looked at, one below the other."""

        def below(values: Sequence[Tensor | None]) -> Tensor | None:
            return None if values[0] is None else torch.cat(values)  # type: ignore[arg-type]

        return cls(
            frames=tuple(block for part in parts for block in part.__dict__["frames"]),  # type: ignore[arg-type]
            ids=torch.cat([part.ids for part in parts]),
            log_probs=torch.cat([part.log_probs for part in parts]),
            entropies=torch.cat([part.entropies for part in parts]),
            rewards=below([part.rewards for part in parts]),
            terminations=below([part.terminations for part in parts]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _repr_html_(self) -> str:
        from ivideogpt.worldmodel.notebook import imagination_html  # pictures are made only where somebody looks

        return imagination_html(self)


class _DecodedWhenLookedAt:
    """The attribute ``frames`` of an imagination: pixels, or frames that wait."""

    def __get__(self, imagined: Imagination | None, owner: type[Imagination]) -> Tensor:
        if imagined is None:
            raise AttributeError("frames are those of one imagination")
        frames = imagined.__dict__["frames"]
        if not isinstance(frames, Tensor):
            frames = imagined.__dict__["frames"] = stacked(frames)
        return frames

    def __set__(self, imagined: Imagination, frames: Tensor | _Blocks) -> None:
        imagined.__dict__["frames"] = frames


# Set here, for a class variable would be a default value to the dataclass.
Imagination.frames = _DecodedWhenLookedAt()  # type: ignore[assignment]
