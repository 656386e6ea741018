"""Expected error of an imagined frame, from a signal that is known without the truth.

    calibration = fit_calibration(psnr, "entropy", entropies)         # [n f] of held-out clips
    store_calibration("runs/mine/checkpoint", calibration)
    calibration.level(0.3, frame=5).psnr                              # dB

The signal is the entropy of the tokens, or for models that draw no tokens the change: how far the frame differs from
the last given one. It splits the frames into three levels of equal size. Each level has a PSNR that four of five of its
frames reach, and a hit rate: the share of frames that reach it, measured on clips that the level was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError

#: Key of the calibration in the metadata of a checkpoint.
METADATA_KEY = "expected_error"
#: Names of the levels, the smallest expected error first.
LEVEL_NAMES = ("small", "medium", "large")
#: Share of the fitted frames that reach the expected PSNR of their level.
REACHED_BY = 0.8
#: Fewest clips for a fit.
MIN_CALIBRATION_CLIPS = 10

Signal = Literal["entropy", "change"]


@dataclass(frozen=True, kw_only=True)
class ErrorLevel:
    """Frames of similar signal.

    Attributes:
        name: of the expected error: "small", "medium" or "large".
        limit: largest signal of the level; None: no limit.
        psnr: PSNR in dB that most frames of the level reach.
        hit_rate: share of the frames of other clips that reach it, 0 to 1.
    """

    name: str
    limit: float | None
    psnr: float
    hit_rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Expected error by level.

    Attributes:
        signal: "entropy": mean entropy of the tokens of a frame in nats; "change": mean absolute difference of a frame
            to the last given one, see `frame_changes`.
        levels: three, the smallest expected error first.
        share: of the fitted frames that reach the PSNR of their level.
        clips: held-out clips of the fit.
        frames: imagined frames of each clip.
    """

    signal: Signal
    levels: tuple[ErrorLevel, ...]
    share: float
    clips: int
    frames: int

    def level(self, value: float | None, *, frame: int) -> ErrorLevel | None:
        """Return the level of one imagined frame; None where nothing was measured.

        Args:
            value: of the signal; None: unknown.
            frame: its number, from 1; later frames than those of the clips were not measured.
        """
        if value is None or frame > self.frames:
            return None
        return next(level for level in self.levels if level.limit is None or value <= level.limit)


def frame_changes(frames: Tensor, last: Tensor) -> Tensor:
    """Return the mean absolute difference of each frame to the last given one, in 0 to 1.

    Args:
        frames: ``[n f c h w]``, uint8 or floating in [0, 1].
        last: ``[n c h w]`` of the same type.

    Returns:
        float32 ``[n f]``.
    """
    scale = 255 if frames.dtype == torch.uint8 else 1
    return (frames.float() - last[:, None].float()).abs().flatten(2).mean(2) / scale


def fit_calibration(psnr: Tensor, signal: Signal, values: Tensor) -> Calibration | None:
    """Fit three levels on held-out clips; None for fewer than `MIN_CALIBRATION_CLIPS`.

    Args:
        psnr: ``[n f]`` of one future of each clip, in dB.
        signal: see `Calibration`.
        values: ``[n f]`` of the signal.

    Raises:
        UserError: the shapes differ.
    """
    if psnr.ndim != 2 or values.shape != psnr.shape:
        raise UserError(f"psnr is {list(psnr.shape)} and values are {list(values.shape)}; expected the same [n f]")
    clips, frames = psnr.shape
    if clips < MIN_CALIBRATION_CLIPS:
        return None
    reached, signals = (x.detach().double().cpu().numpy() for x in (psnr, values))
    # levels of all clips
    limits = _terciles(signals)
    expected = _expected(signals, reached, limits)
    # hit rates of each half of the clips by the levels of the other half
    hits, counts = np.zeros(len(LEVEL_NAMES)), np.zeros(len(LEVEL_NAMES))
    for fitted, tested in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        half_limits = _terciles(signals[fitted])
        half_expected = _expected(signals[fitted], reached[fitted], half_limits)
        index = np.searchsorted(half_limits, signals[tested], side="left")
        hit = reached[tested] >= half_expected[index]
        for level in range(len(LEVEL_NAMES)):
            hits[level] += hit[index == level].sum()
            counts[level] += (index == level).sum()
    rates = hits / np.maximum(counts, 1)
    levels = [
        ErrorLevel(name=name, limit=limit, psnr=round(float(value), 2), hit_rate=round(float(rate), 3))
        for name, limit, value, rate in zip(LEVEL_NAMES, [*limits.tolist(), None], expected, rates, strict=True)
    ]
    return Calibration(signal=signal, levels=tuple(levels), share=REACHED_BY, clips=clips, frames=frames)


def store_calibration(folder: Path | str, calibration: Calibration) -> None:
    """Write a calibration into the metadata of a checkpoint of ours; its weights stay as they are.

    Raises:
        UserError: the folder has no configuration of ours.
    """
    path = Path(folder) / "config.json"
    values = load_json(path)
    if "world_model" not in values:
        raise UserError(f"{path} is a configuration of the official code, which has no place for an expected error")
    metadata = values["world_model"].setdefault("metadata", {})
    metadata[METADATA_KEY] = to_dict(calibration)
    save_json(path, values)


def read_calibration(metadata: dict[str, Any]) -> Calibration | None:
    """Read the calibration in the metadata of a checkpoint; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if METADATA_KEY not in metadata:
        return None
    return from_dict(Calibration, metadata[METADATA_KEY], where=f"metadata of the checkpoint, {METADATA_KEY}")


def _terciles(signal: np.ndarray) -> np.ndarray:
    """Return the two limits that split the signal into thirds; a value at a limit is below it."""
    return np.quantile(signal, [1 / 3, 2 / 3], method="lower")


def _expected(signal: np.ndarray, psnr: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the PSNR that most frames of each level reach; a level never expects more than the one before it."""
    index = np.searchsorted(limits, signal, side="left")
    groups = [psnr[index == level] for level in range(3)]
    reached = [float(np.quantile(group, 1 - REACHED_BY)) if group.size else np.nan for group in groups]
    # An empty level expects what its neighbour does; equal signals can leave one empty.
    filled = [next((x for x in (*reached[i::-1], *reached[i:]) if np.isfinite(x)), np.nan) for i in range(3)]
    return np.minimum.accumulate(np.array(filled))
