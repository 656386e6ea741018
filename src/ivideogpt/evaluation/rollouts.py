"""Futures of held-out clips: several of each clip from one encoded context, in batches of bounded size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class Futures:
    """Some futures of each clip of a batch.

    Attributes:
        samples: numbers of these k futures among all of a clip.
        frames: ``[n k f c h w]`` in [0, 1], on the model's device.
        ids: int64 ``[n k f m]`` of the full vocabulary; m is 0 for a model that draws no tokens.
        entropies: float32 ``[n k f]`` of the tokens in nats, mean over a frame; NaN without tokens.
        rewards: ``[n k f]`` in reward units, or None for a model without them.
        seconds: from the context, or from the futures before these, to decoded frames.
    """

    samples: range
    frames: Tensor
    ids: Tensor
    entropies: Tensor
    rewards: Tensor | None
    seconds: float


def clip_seeds(seed: int, clips: range) -> list[int]:
    """Return the seed of each clip by its number, whatever the batch that it is in."""
    return [seed * 1_000_003 + clip for clip in clips]


def imagine_futures(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    *,
    seeds: Sequence[int],
    samples: int = 1,
    batch_size: int = 25,
    sampling: Sampling | None = None,
    last_rewards: Tensor | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Futures]:
    """Imagine several futures of each clip from one encoded context.

    Future j of a clip draws the same random numbers whatever the batch; the first future is the one that
    `WorldModel.imagine` gives for the seed of the clip.

    Args:
        model: the world model.
        context: ``[n c_frames c h w]``, float in [0, 1] or uint8.
        actions: ``[n p+horizon a]`` in model units, past ones first, or None for an action-free model.
        horizon: frames to imagine.
        seeds: one a clip.
        samples: futures of each clip.
        batch_size: rows imagined together, at least 1; fewer clips should come than that.
        sampling: of the tokens.
        last_rewards: ``[n]`` of the transition to the last context frame; see `Session`.
        on_step: called after each step with the number of its rows, for progress bars.

    Yields:
        All clips with some of their futures, until there are ``samples`` of each.

    Raises:
        UserError: samples or batch_size are less than 1, or context or actions do not fit the model.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    start = time.perf_counter()
    past, actions = model.split_actions(actions)
    session = model.session(context, sampling=sampling, seed=list(seeds), past_actions=past, last_rewards=last_rewards)
    together = max(batch_size // len(context), 1)
    for first in range(0, samples, together):
        chunk = range(first, min(first + together, samples))
        branch = session.fork(len(chunk), first=first) if samples > 1 else session
        repeated = None if actions is None else actions.repeat_interleave(len(chunk), dim=0)
        step = None if on_step is None else partial(on_step, branch.rows)
        imagined = branch.rollout(repeated, horizon, on_step=step)
        entropies = imagined.entropies.mean(dim=-1)
        frames, ids, entropies, rewards = (
            None if x is None else rearrange(x, "(n k) ... -> n k ...", k=len(chunk))
            for x in (imagined.frames, imagined.ids, entropies, imagined.rewards)
        )
        assert frames is not None and ids is not None and entropies is not None
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        yield Futures(chunk, frames, ids, entropies, rewards, time.perf_counter() - start)
        start = time.perf_counter()


def imagine_with_progress(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    horizon: int,
    label: str = "imagining",
    **options: object,
) -> tuple[Imagination, float]:
    """Imagine as `WorldModel.imagine` does, with a progress bar.

    Returns:
        The imagination, and the seconds from context to decoded frames.
    """
    start = time.perf_counter()
    session = model.session(context, **options)  # type: ignore[arg-type]
    with tqdm(total=horizon, desc=label, unit="frame", leave=False, disable=None) as bar:
        imagined = session.rollout(actions, horizon, on_step=bar.update)
    imagined.frames  # noqa: B018  decoded here, so that it counts
    return imagined, time.perf_counter() - start
