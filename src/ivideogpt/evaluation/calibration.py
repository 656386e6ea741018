"""Expected error of an imagined frame, from a signal that is known without the truth.

    calibration = fit_calibration(psnr, entropies)         # [n f] of held-out clips
    store_calibration("runs/mine/checkpoint", calibration)
    calibration.level(entropy=0.3, frame=5).psnr           # dB

The signal is the entropy of the tokens, or the number of the frame for models that draw no tokens. It splits the frames
into three levels of equal size. Each level has an expected PSNR and a hit rate: the share of frames whose PSNR lies
within a tolerance of the expected one, measured on clips that the level was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError

#: Key of the calibration in the metadata of a checkpoint.
METADATA_KEY = "expected_error"
#: Names of the levels, the smallest expected error first.
LEVEL_NAMES = ("small", "medium", "large")
#: A frame is a hit where its PSNR lies within so many dB of the expected one.
HIT_TOLERANCE = 3.0
#: Fewest clips for a fit.
MIN_CALIBRATION_CLIPS = 10

Signal = Literal["entropy", "frame"]


@dataclass(frozen=True, kw_only=True)
class ErrorLevel:
    """Frames of similar signal.

    Attributes:
        name: of the expected error: "small", "medium" or "large".
        limit: largest signal of the level; None: no limit.
        psnr: expected PSNR in dB, the median of the held-out frames.
        hit_rate: share of held-out frames within the tolerance of it, 0 to 1.
    """

    name: str
    limit: float | None
    psnr: float
    hit_rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Expected error by level.

    Attributes:
        signal: "entropy": mean entropy of the tokens of a frame in nats; "frame": number of the imagined frame, from 1.
        levels: three, the smallest expected error first.
        tolerance: of the hit rates, in dB.
        clips: held-out clips of the fit.
        frames: imagined frames of each clip.
    """

    signal: Signal
    levels: tuple[ErrorLevel, ...]
    tolerance: float
    clips: int
    frames: int

    def level(self, *, entropy: float | None, frame: int) -> ErrorLevel | None:
        """Return the level of one imagined frame; None for a later frame than any that was measured.

        Args:
            entropy: mean entropy of its tokens in nats; None for a model that draws none.
            frame: its number, from 1.

        Raises:
            UserError: the calibration is by entropy, and there is none.
        """
        if self.signal == "entropy" and entropy is None:
            raise UserError("the expected error is calibrated by entropy, and the model gives none; calibrate it again")
        if frame > self.frames:
            return None
        value = frame if self.signal == "frame" or entropy is None else entropy
        return next(level for level in self.levels if level.limit is None or value <= level.limit)


def fit_calibration(psnr: Tensor, entropies: Tensor | None) -> Calibration | None:
    """Fit three levels on held-out clips; None for fewer than `MIN_CALIBRATION_CLIPS`.

    Args:
        psnr: ``[n f]`` of one future of each clip, in dB.
        entropies: ``[n f]`` in nats, or None for a model that draws no tokens.

    Raises:
        UserError: the shapes differ.
    """
    if psnr.ndim != 2 or (entropies is not None and entropies.shape != psnr.shape):
        shape = None if entropies is None else list(entropies.shape)
        raise UserError(f"psnr is {list(psnr.shape)} and entropies are {shape}; expected the same [n f]")
    clips, frames = psnr.shape
    if clips < MIN_CALIBRATION_CLIPS:
        return None
    error = psnr.detach().double().cpu().numpy()
    if entropies is None:
        signal = np.broadcast_to(np.arange(1.0, frames + 1), error.shape)
    else:
        signal = entropies.detach().double().cpu().numpy()
    # levels of all clips
    limits = _terciles(signal)
    expected = _expected(signal, error, limits)
    # hit rates of each half of the clips by the levels of the other half
    hits, counts = np.zeros(len(LEVEL_NAMES)), np.zeros(len(LEVEL_NAMES))
    for fitted, tested in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        half_limits = _terciles(signal[fitted])
        half_expected = _expected(signal[fitted], error[fitted], half_limits)
        index = np.searchsorted(half_limits, signal[tested], side="left")
        hit = np.abs(error[tested] - half_expected[index]) <= HIT_TOLERANCE
        for level in range(len(LEVEL_NAMES)):
            hits[level] += hit[index == level].sum()
            counts[level] += (index == level).sum()
    rates = hits / np.maximum(counts, 1)
    levels = [
        ErrorLevel(name=name, limit=limit, psnr=round(float(value), 2), hit_rate=round(float(rate), 3))
        for name, limit, value, rate in zip(LEVEL_NAMES, [*limits.tolist(), None], expected, rates, strict=True)
    ]
    return Calibration(
        signal="frame" if entropies is None else "entropy",
        levels=tuple(levels),
        tolerance=HIT_TOLERANCE,
        clips=clips,
        frames=frames,
    )


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
    """Return the median PSNR of each level; a level never expects more than the one before it."""
    index = np.searchsorted(limits, signal, side="left")
    medians = [float(np.median(psnr[index == level])) if (index == level).any() else np.nan for level in range(3)]
    # An empty level expects what its neighbour does; equal signals can leave one empty.
    filled = [next((m for m in (*medians[i::-1], *medians[i:]) if np.isfinite(m)), np.nan) for i in range(3)]
    return np.minimum.accumulate(np.array(filled))
