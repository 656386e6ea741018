"""Clips of the gallery: the recording, several imagined futures, and the same start under other actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.evaluation.rollouts import imagine_with_progress
from ivideogpt.metrics.image import psnr, ssim
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class Window:
    """Context and true future of one clip.

    Attributes:
        key: of the episode.
        start: first recorded frame of the clip.
        stride: recorded frames from one frame of the clip to the next.
        context: ``[c c h w]`` in [0, 1].
        true: ``[f c h w]`` in [0, 1].
        actions: ``[f a]`` in model units, or None for an action-free model; row i leads to future frame i.
    """

    key: str
    start: int
    stride: int
    context: Tensor
    true: Tensor
    actions: Tensor | None


@dataclass(frozen=True)
class Showcase:
    """A window and the futures that the model imagined from its context.

    Attributes:
        window: context and truth.
        seeds: one a future.
        futures: ``[k f c h w]``: under the true actions, one a seed.
        entropies: float32 ``[k f]`` of the tokens in nats, mean over a frame; empty for a model that draws no tokens.
        variations: name -> ``[f c h w]``: under other actions, each with the random numbers of the first future.
    """

    window: Window
    seeds: list[int]
    futures: Tensor
    entropies: Tensor
    variations: dict[str, Tensor]

    @cached_property
    def psnr(self) -> Tensor:
        """PSNR of each frame of each future in dB, ``[k f]``."""
        return psnr(self.futures, self.window.true.expand_as(self.futures))

    @cached_property
    def ssim(self) -> Tensor:
        """SSIM of each frame of each future, ``[k f]``."""
        return ssim(self.futures, self.window.true.expand_as(self.futures))

    @property
    def psnr_copy_last(self) -> Tensor:
        """PSNR of a copy of the last context frame in dB, ``[f]``."""
        return psnr(self._copy(), self.window.true[None])[0]

    @property
    def ssim_copy_last(self) -> Tensor:
        """SSIM of a copy of the last context frame, ``[f]``."""
        return ssim(self._copy(), self.window.true[None])[0]

    def change(self, name: str) -> float:
        """Return the mean absolute difference of a pixel between a variation and the first future, of 255."""
        return float((self.variations[name] - self.futures[0]).abs().mean() * 255)

    def _copy(self) -> Tensor:
        return self.window.context[-1].expand_as(self.window.true)[None]


def find_windows(
    model: WorldModel, episodes: Sequence[Episode], count: int, horizon: int, stride: int | None = None
) -> list[Window]:
    """Cut at most ``count`` windows: one an episode in their order, and more of each where there are too few episodes.

    The window of an episode begins where ``meta["start"]`` says, if it can, else in the middle; several windows of one
    episode are spread evenly. Episodes that are too short are passed over.

    Args:
        model: its configuration decides on the context frames, and on a goal as the first of them.
        episodes: recordings.
        count: most windows.
        horizon: future frames of each.
        stride: recorded frames from one frame of a clip to the next; None: the model's.

    Raises:
        UserError: no episode is long enough, or frames or actions are not what the model takes.
    """
    stride = model.config.frame_stride if stride is None else stride
    for name, value in (("count", count), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    count_context = 1 if model.config.goal_conditioned else model.context_frames
    needed = (count_context + horizon - 1) * stride + 1
    usable = [episode for episode in episodes if len(episode) >= needed]
    if not usable:
        most = (max((len(episode) for episode in episodes), default=0) - 1) // stride + 1 - count_context
        advice = f"use a horizon of at most {most}" if most > 0 else "give a longer recording"
        raise UserError(f"horizon is {horizon}, but no episode has the {needed} frames that this needs; {advice}")
    share, extra = divmod(count, len(usable))
    return [
        _window(model, episode, start, stride, count_context, horizon)
        for index, episode in enumerate(usable[:count])
        for start in _starts(episode, needed, share + (index < extra))
    ]


def imagine_showcase(
    model: WorldModel,
    window: Window,
    variations: dict[str, Tensor],
    seeds: list[int],
    sampling: Sampling | None = None,
    label: str = "imagining",
) -> Showcase:
    """Imagine the futures and variations of one window in one batch.

    Args:
        model: the world model.
        window: context, true future and actions.
        variations: name -> actions ``[f a]`` in model units; see `other_actions`.
        seeds: one a future.
        sampling: of the tokens.
        label: of the progress bar.
    """
    rows = len(seeds) + len(variations)
    actions = None
    if window.actions is not None:
        actions = torch.stack([window.actions] * len(seeds) + list(variations.values()))
    imagined, _ = imagine_with_progress(
        model,
        window.context.expand(rows, *window.context.shape),
        actions,
        len(window.true),
        label,
        sampling=sampling,
        seed=[*seeds, *(seeds[0] for _ in variations)],
    )
    frames = imagined.frames.cpu()
    entropies = imagined.entropies[: len(seeds)].cpu()
    return Showcase(
        window,
        seeds,
        frames[: len(seeds)],
        entropies.mean(dim=-1) if entropies.numel() else entropies.flatten(1),
        dict(zip(variations, frames[len(seeds) :], strict=True)),
    )


def other_actions(windows: Sequence[Window], index: int) -> dict[str, Tensor]:
    """Return variations of a window's actions, ``[f a]`` each; none for an action-free model.

    Those of the next window, the first action held, and the opposite.
    """
    own, neighbour = windows[index].actions, (index + 1) % len(windows)
    if own is None:
        return {}
    actions = {"first action held": own[:1].expand_as(own), "actions mirrored": -own}
    swapped = windows[neighbour].actions
    if neighbour != index and swapped is not None:
        actions = {f"actions of showcase {neighbour + 1}": swapped} | actions
    return actions


def _starts(episode: Episode, needed: int, each: int) -> list[int]:
    last = len(episode) - needed
    if each > 1:
        return sorted({round(last * index / (each - 1)) for index in range(each)})
    marked = episode.meta.get("start")
    return [min(max(marked, 0), last) if isinstance(marked, int) else last // 2]


def _window(model: WorldModel, episode: Episode, start: int, stride: int, count: int, horizon: int) -> Window:
    name, size = f"episode {episode.key!r}", model.resolution
    if episode.frames.shape[1:3] != (size, size):
        height, width = episode.frames.shape[1:3]
        raise UserError(
            f"{name} has frames of {width} x {height} pixels; this model takes {size} x {size}: resize them"
        )
    rows = np.arange(count + horizon) * stride + start
    frames = torch.from_numpy(episode.frames[rows]).permute(0, 3, 1, 2).float() / 255
    context = torch.stack([frames[-1], frames[0]]) if model.config.goal_conditioned else frames[:count]
    actions = None
    if model.action_dim:
        if episode.actions is None:
            raise UserError(f"{name} has no actions, and this model needs {model.action_dim} numbers a frame")
        if episode.actions.shape[1] != model.action_dim:
            raise UserError(
                f"{name} has actions of {episode.actions.shape[1]} numbers; this model was trained with "
                f"{model.action_dim}"
            )
        # Source: thuml/iVideoGPT, which also takes every n-th action without adding them up; same.
        actions = model.normalize_actions(torch.from_numpy(episode.actions[rows[count - 1 : -1]]).float())
    return Window(episode.key, start, stride, context, frames[count:], actions)
