"""How well a model imagines held-out clips, beside what each figure must be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.metrics.image import psnr, ssim
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.world_model import WorldModel

#: (true future, imagined future, last context frame) of n clips to figures.
Measures = Callable[[Tensor, Tensor, Tensor], dict[str, float]]


@dataclass(frozen=True)
class Clips:
    """Held-out clips of one length.

    Attributes:
        frames: uint8 ``[n t c h w]``, context first.
        actions: float32 ``[n t a]`` raw, or None; ``actions[:, t]`` leads from frame t to t + 1.
        keys: the episode of each clip; empty: unknown.
        starts: the first recorded frame of each clip; empty: unknown.
        rewards: float32 ``[n t]``, or None; ``rewards[:, t]`` is paid for the way from frame t to t + 1.
    """

    frames: Tensor
    actions: Tensor | None
    keys: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    rewards: Tensor | None = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.frames)

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
        keys = tuple(window.key for window in windows)
        if any(window.actions is None for window in windows):
            return cls(frames, None, keys)
        actions = torch.stack([torch.from_numpy(window.actions) for window in windows if window.actions is not None])
        return cls(frames, actions.float(), keys)


@dataclass(frozen=True)
class Futures:
    """Some futures of some clips.

    Attributes:
        clips: numbers of the n clips.
        samples: numbers of the k futures of each.
        frames: ``[n k f c h w]`` in [0, 1], on the model's device.
        ids: int64 ``[n k f m]`` of the full vocabulary.
        entropies: float32 ``[n k f]``: of the model's choice of a token, nats, mean over the tokens of a frame.
        rewards: ``[n k f]`` in reward units, or None for a model without them.
        seconds: from the context, or from the futures before these, to decoded frames.
    """

    clips: range
    samples: range
    frames: Tensor
    ids: Tensor
    entropies: Tensor
    rewards: Tensor | None
    seconds: float


class ClipFutures(NamedTuple):
    """One future of every clip.

    Attributes:
        frames: ``[n f c h w]`` in [0, 1], on the CPU.
        rewards: ``[n f]`` in reward units, on the CPU, or None for a model without them.
        seconds: from contexts to decoded frames.
    """

    frames: Tensor
    rewards: Tensor | None
    seconds: float


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
    with tqdm(total=horizon, desc=label, unit="frame", leave=False, disable=None) as bar:
        imagined = session.rollout(actions, horizon, on_step=bar.update)
    imagined.frames  # noqa: B018  looked at here, so that decoding counts
    return imagined, time.perf_counter() - start


def imagine_futures(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    *,
    samples: int = 1,
    batch_size: int = 25,
    sampling: Sampling | None = None,
    seed: int = 0,
    label: str = "imagining",
) -> Iterator[Futures]:
    """Imagines every clip, several times each if asked, in batches of bounded size and with a progress bar.

    A context is encoded and read once, whatever the number of futures. Future j of clip i draws the same random numbers
    whatever else is in the batch; the first is the one that `WorldModel.imagine` gives for the seed of the clip.

    Args:
        model: the world model.
        context: ``[n c_frames c h w]``, float in [0, 1] or uint8.
        actions: ``[n horizon a]`` in model units, or None for an action-free model.
        horizon: frames to imagine.
        samples: futures of each clip.
        batch_size: rows imagined together, at least 1: several clips, or some futures of one.
        sampling: how tokens are drawn.
        seed: clip i draws from stream (seed, i).
        label: of the progress bar.

    Yields:
        All clips in their order; where the futures of one do not fit into a batch, some of them after the others.

    Raises:
        UserError: samples or batch_size are less than 1, or context or actions do not fit the model.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    together = max(batch_size // samples, 1)
    with tqdm(total=len(context) * samples * horizon, desc=label, unit="frame", leave=False, disable=None) as bar:
        for start in range(0, len(context), together):
            clips = range(start, min(start + together, len(context)))
            rows, began = slice(clips.start, clips.stop), time.perf_counter()
            seeds = [seed * 1_000_003 + row for row in clips]
            session = model.session(context[rows], sampling=sampling, seed=seeds)
            for first in range(0, samples, batch_size):
                chosen = range(first, min(first + batch_size, samples))
                branch = session.fork(len(chosen), first=first) if samples > 1 else session
                repeated = None if actions is None else actions[rows].repeat_interleave(len(chosen), dim=0)
                imagined = branch.rollout(repeated, horizon, on_step=partial(bar.update, branch.rows))
                frames, ids, entropies = (
                    rearrange(x, "(n k) ... -> n k ...", k=len(chosen))
                    for x in (imagined.frames, imagined.ids, imagined.entropies.mean(dim=-1))
                )
                rewards = None
                if imagined.rewards is not None:
                    rewards = rearrange(imagined.rewards, "(n k) f -> n k f", k=len(chosen))
                if model.device.type == "cuda":  # frames are not there yet, only asked for
                    torch.cuda.synchronize(model.device)
                yield Futures(clips, chosen, frames, ids, entropies, rewards, time.perf_counter() - began)
                began = time.perf_counter()


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

    def imagine(steer: Tensor | None, label: str) -> ClipFutures:
        return imagine_clips(
            model,
            context,
            steer,
            true.shape[1],
            batch_size=batch_size,
            sampling=sampling,
            seed=seed,
            label=label,
        )

    found["imagined"], _, seconds = imagine(actions, "imagining")
    if actions is not None:
        # Each clip gets the actions of the next one: the same distribution, the wrong future.
        found["permuted_actions"] = imagine(actions.roll(1, dims=0), "with permuted actions").frames
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
        parts.append(tokenizer.decode_future(future, tokenizer.decoder_features(codes)).clamp(0, 1).float().cpu())
    return torch.cat(parts)


def imagine_clips(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    *,
    batch_size: int = 25,
    sampling: Sampling | None = None,
    seed: int = 0,
    label: str = "imagining",
) -> ClipFutures:
    """One future of each clip; see `imagine_futures`."""
    parts, rewards, seconds = [], [], 0.0
    batches = imagine_futures(
        model, context, actions, horizon, batch_size=batch_size, sampling=sampling, seed=seed, label=label
    )
    for batch in batches:
        parts.append(batch.frames[:, 0].cpu())
        rewards += [] if batch.rewards is None else [batch.rewards[:, 0].cpu()]
        seconds += batch.seconds
    return ClipFutures(torch.cat(parts), torch.cat(rewards) if rewards else None, seconds)
