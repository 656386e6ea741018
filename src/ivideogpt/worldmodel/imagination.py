"""A finished rollout; its frames are decoded when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.worldmodel.lazy_frames import Frame, stacked

#: Frames of t steps for some rows, and such blocks one below the other.
_Blocks = tuple[tuple[Frame, ...], ...]

# Limits of the picture in a notebook, so that the notebook stays small.
_ROWS, _ANIMATED_FRAMES, _STRIP_FRAMES = 4, 64, 8
_FPS, _GAP = 4, 2
# Frames are enlarged by whole numbers until they are at least this high.
_ANIMATION_HEIGHT, _STRIP_HEIGHT = 128, 64


class Imagination:
    """Imagined frames with their tokens, rewards and terminations.

    ``frames`` are decoded when they are first read, by the tokenizer as it is then and where it is then. Until then
    tokens are held, and no cache; what the session does later changes nothing. Copies and pickles hold the frames.

    Attributes:
        ids: int64 ``[b horizon m]`` of the full vocabulary without separators; m is 0 for a model without tokens.
        log_probs: float32 ``[b horizon m]``.
        entropies: float32 ``[b horizon m]`` in nats: how uncertain each token was.
        rewards: ``[b horizon]`` in reward units, or None; ``rewards[:, i]`` is the reward of ``actions[:, i]``.
        terminations: ``[b horizon]``, probability that each step was the last, or None.
    """

    def __init__(
        self,
        frames: Tensor | _Blocks,
        ids: Tensor,
        log_probs: Tensor,
        entropies: Tensor,
        rewards: Tensor | None,
        terminations: Tensor | None = None,
    ) -> None:
        """Hold the results of a rollout; ``frames``: ``[b horizon c h w]`` in [0, 1], or frames still to be decoded."""
        self._frames, self.ids, self.log_probs, self.entropies = frames, ids, log_probs, entropies
        self.rewards, self.terminations = rewards, terminations

    @property
    def frames(self) -> Tensor:
        """Frames ``[b horizon c h w]`` in [0, 1], on the device of ``ids``."""
        if not isinstance(self._frames, Tensor):
            self._frames = stacked(self._frames)
        return self._frames

    @property
    def horizon(self) -> int:
        """Number of frames of a row."""
        return self.ids.shape[1]

    def frames_at(self, steps: Sequence[int]) -> Tensor:
        """Return the frames ``[b n c h w]`` of some steps, from 0 on or from the end (-1); only they are decoded."""
        if isinstance(self._frames, Tensor):
            return self._frames[:, list(steps)]
        return stacked([[block[step] for step in steps] for block in self._frames])

    @classmethod
    def joined(cls, parts: Sequence[Imagination]) -> Imagination:
        """Join the rows of several imaginations whose frames were not read yet."""

        def concatenate(values: Sequence[Tensor | None]) -> Tensor | None:
            return None if values[0] is None else torch.cat(values)  # type: ignore[arg-type]

        blocks = [block for part in parts if not isinstance(part._frames, Tensor) for block in part._frames]
        return cls(
            frames=tuple(blocks),
            ids=torch.cat([part.ids for part in parts]),
            log_probs=torch.cat([part.log_probs for part in parts]),
            entropies=torch.cat([part.entropies for part in parts]),
            rewards=concatenate([part.rewards for part in parts]),
            terminations=concatenate([part.terminations for part in parts]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_frames": self.frames}

    def __repr__(self) -> str:
        rows, horizon = self.ids.shape[:2]
        heads = [name for name in ("rewards", "terminations") if getattr(self, name) is not None]
        return f"Imagination({', '.join([f'{rows} rows', f'{horizon} frames', *heads])})"

    def _repr_html_(self) -> str:
        return imagination_html(self)


def imagination_html(imagination: Imagination) -> str:
    """Return HTML for a notebook: up to 4 rows side by side as one animation, then a strip with a line of frames a row.

    It has no script, and its pictures are inside.
    """
    # Imported here, because the codecs take long to load and only notebooks need them.
    from ivideogpt.data.data_uri import animation_uri, png_uri, sprite_sheet
    from ivideogpt.data.render import to_uint8

    rows, horizon, _, height, _ = imagination.frames.shape
    videos = np.stack([to_uint8(row) for row in imagination.frames[:_ROWS]])
    animated, still = _spread(horizon, _ANIMATED_FRAMES), _spread(horizon, _STRIP_FRAMES)
    together = np.stack([sprite_sheet(videos[:, frame], len(videos), _GAP) for frame in animated])
    strip = sprite_sheet(rearrange(videos[:, still], "b t h w c -> (b t) h w c"), len(still), _GAP)
    text = [f"{rows} row{'s' * (rows > 1)}", f"{horizon} frame{'s' * (horizon > 1)}"]
    if rows > _ROWS:
        text.append(f"the first {_ROWS} rows are shown")
    if horizon > _ANIMATED_FRAMES:
        text.append(f"{_ANIMATED_FRAMES} of the frames move")
    numbers = ", ".join(f"+{frame + 1}" for frame in still)
    scales = -(-_ANIMATION_HEIGHT // height), -(-_STRIP_HEIGHT // height)
    return (
        f"<div><div>Imagination: {', '.join(text)}</div>"
        + _picture(animation_uri(together, _FPS), together.shape[2] * scales[0], "imagined rows, moving")
        + f"<div>{numbers}</div>"
        + _picture(png_uri(strip), strip.shape[1] * scales[1], f"imagined frames {numbers}")
        + "</div>"
    )


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` numbers from 0 to count - 1, evenly spread, with both ends."""
    return [round(number) for number in np.linspace(0, count - 1, min(count, most))]


def _picture(uri: str, width: int, text: str) -> str:
    style = "image-rendering: pixelated; max-width: 100%; display: block; margin: 4px 0"
    return f'<img src="{uri}" width="{width}" alt="{text}" style="{style}">'
