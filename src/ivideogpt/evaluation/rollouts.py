"""How well a model imagines held-out clips, beside what each figure must be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.metrics.image import psnr, ssim
from ivideogpt.worldmodel import inputs
from ivideogpt.worldmodel.sampling import Sampling
from ivideogpt.worldmodel.session import Imagination, imagination
from ivideogpt.worldmodel.world_model import WorldModel

#: (true future, imagined future, last context frame) of n clips to figures.
Measures = Callable[[Tensor, Tensor, Tensor], dict[str, float]]


@dataclass(frozen=True)
class Clips:
    """Held-out clips of one length.

    Attributes:
        frames: uint8 ``[n t c h w]``, context first.
        actions: float32 ``[n t a]`` raw, or None; ``actions[:, t]`` leads from frame t to t + 1.
    """

    frames: Tensor
    actions: Tensor | None

    @classmethod
    def from_episodes(cls, windows: Sequence[Episode]) -> Clips:
        """Stacks windows of one length.

        Raises:
            UserError: there are none, or they differ in length.
        """
        if len({len(window) for window in windows}) != 1:
            raise UserError(
                f"windows have {sorted({len(w) for w in windows})} frames; expected one length and at least one window"
            )
        frames = torch.stack([torch.from_numpy(window.frames) for window in windows]).permute(0, 1, 4, 2, 3)
        if any(window.actions is None for window in windows):
            return cls(frames, None)
        actions = torch.stack([torch.from_numpy(window.actions) for window in windows if window.actions is not None])
        return cls(frames, actions.float())


def imagine_with_progress(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    label: str = "imagining",
    **options: object,
) -> tuple[Imagination, float]:
    """`WorldModel.imagine` with a progress bar.

    Returns:
        The imagination, and the seconds it took from context to decoded frames.
    """
    start = time.perf_counter()
    session = model.session(context, **options)  # type: ignore[arg-type]
    actions = inputs.check_actions(model, actions, session.rows, horizon)
    for index in tqdm(range(horizon), desc=label, unit="frame", leave=False, disable=None):
        session.advance(None if actions is None else actions[:, index])
    imagined = imagination(session, 0)
    return imagined, time.perf_counter() - start


def rollout_figures(
    model: WorldModel,
    clips: Clips,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    batch_size: int = 25,
    measures: Measures | None = None,
) -> dict[str, dict[str, float]]:
    """Imagines the future of every clip, with the true and with permuted actions.

    Args:
        model: the world model.
        clips: its context frames, then the true future.
        sampling: how tokens are drawn.
        seed: row i of the clips draws from stream (seed, i).
        batch_size: clips imagined together.
        measures: more figures, of the domain.

    Returns:
        For each of "imagined", "copy_last", "reconstruction" (the tokenizer alone) and, with actions,
        "permuted_actions": ``psnr`` and ``ssim`` (mean over frames), ``psnr_last`` and what ``measures`` gives.
        "imagined" also has ``frames_per_second`` of the whole batch.
    """
    count = model.context_frames
    frames = clips.frames.float() / 255
    context, true = frames[:, :count], frames[:, count:]
    actions = None
    if model.action_dim and clips.actions is not None:
        actions = model.normalize_actions(clips.actions[:, count - 1 : -1])
    found = {"copy_last": context[:, -1:].expand_as(true), "reconstruction": reconstruct(model, frames)}
    found["imagined"], seconds = _imagine(
        model, context, actions, true.shape[1], batch_size, sampling, seed, "imagining"
    )
    if actions is not None:
        # Each clip gets the actions of the next one: the same distribution, the wrong future.
        wrong = actions.roll(1, dims=0)
        found["permuted_actions"], _ = _imagine(
            model, context, wrong, true.shape[1], batch_size, sampling, seed, "with permuted actions"
        )
    figures = {}
    for name, future in found.items():
        ratio = psnr(future, true)
        figures[name] = {
            "psnr": float(ratio.mean()),
            "psnr_last": float(ratio[:, -1].mean()),
            "ssim": float(ssim(future, true).mean()),
        }
        if measures is not None:
            figures[name] |= measures(true, future, context[:, -1])
    figures["imagined"]["frames_per_second"] = true.shape[0] * true.shape[1] / seconds
    return figures


@torch.inference_mode()
def reconstruct(model: WorldModel, frames: Tensor, batch_size: int = 25) -> Tensor:
    """The future frames of ``[n t c h w]`` after encoding and decoding: ``[n f c h w]`` in [0, 1]."""
    count, tokenizer, parts = model.context_frames, model.tokenizer, []
    for start in range(0, len(frames), batch_size):
        clip = frames[start : start + batch_size].to(device=model.device, dtype=model.dtype)
        codes, features = tokenizer.encode_context(clip[:, :count])
        future = tokenizer.encode_future(clip[:, count:], features)
        parts.append(tokenizer.decode_future(future, tokenizer.decode_context(codes)[1]).clamp(0, 1).float().cpu())
    return torch.cat(parts)


def _imagine(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    batch_size: int,
    sampling: Sampling | None,
    seed: int,
    label: str,
) -> tuple[Tensor, float]:
    parts, total = [], 0.0
    for start in range(0, len(context), batch_size):
        rows = slice(start, start + batch_size)
        seeds = [seed * 1_000_003 + row for row in range(len(context))[rows]]
        some = None if actions is None else actions[rows]
        imagined, seconds = imagine_with_progress(
            model, context[rows], some, horizon, label, sampling=sampling, seed=seeds
        )
        parts.append(imagined.frames.cpu())
        total += seconds
    return torch.cat(parts), total
