"""Held-out clips of a protocol, read from an episode store or recorded in a simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import centre_square, resize
from ivideogpt.data.catalog import DATASETS
from ivideogpt.data.loader import clip_random
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.evaluation.protocols import PROTOCOLS, Protocol
from ivideogpt.evaluation.pusht_protocol import contact_start, record_pusht
from ivideogpt.worldmodel.world_model import WorldModel

_HELD_OUT_SPLITS = ("test", "val")


class Simulator(NamedTuple):
    """Source of fresh episodes.

    Attributes:
        record: seeds (first:stop, or None) to episodes.
        start: an episode and the length of a clip to the first frame of the clip.
    """

    record: Callable[[str | None], list[Episode]]
    start: Callable[[Episode, int], int]


#: Simulators by name.
SIMULATORS: Mapping[str, Simulator] = {"pusht": Simulator(record_pusht, contact_start)}


@dataclass(frozen=True)
class Clips:
    """Clips of one length.

    Attributes:
        frames: uint8 ``[n t c h w]``, context first.
        actions: float32 ``[n t a]`` raw, or None; ``actions[:, t]`` leads from frame t to t + 1.
        keys: the episode of each clip; empty: unknown.
        starts: the first recorded frame of each clip; empty: unknown.
        rewards: float32 ``[n t]``, or None; ``rewards[:, t]`` belongs to the transition from frame t to t + 1.
    """

    frames: Tensor
    actions: Tensor | None
    keys: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    rewards: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.frames)

    @classmethod
    def from_episodes(cls, windows: Sequence[Episode], starts: tuple[int, ...] = ()) -> Clips:
        """Stack windows of one length.

        Raises:
            UserError: there are none, or they differ in length.
        """
        if len({len(window) for window in windows}) != 1:
            raise UserError(
                f"windows have {sorted({len(w) for w in windows})} frames; expected one length and at least one window"
            )
        frames = torch.stack([torch.from_numpy(window.frames) for window in windows]).permute(0, 1, 4, 2, 3)
        actions, rewards = (
            [torch.from_numpy(x).float() for window in windows if (x := getattr(window, name)) is not None]
            for name in ("actions", "rewards")
        )
        return cls(
            frames,
            torch.stack(actions) if len(actions) == len(windows) else None,
            tuple(window.key for window in windows),
            starts,
            torch.stack(rewards) if len(rewards) == len(windows) else None,
        )


@dataclass(frozen=True)
class HeldOut:
    """Clips and their source.

    Attributes:
        clips: of one length, at the size of the model; of a goal-conditioned one the goal comes first.
        dataset: name of the store, or of the simulator.
        split: of the episodes.
        stride: recorded frames from one frame of a clip to the next.
        too_short: episodes of the split that are shorter than a clip and were left out.
        mismatches: differences between data and checkpoint that the user allowed, in words.
    """

    clips: Clips
    dataset: str
    split: str
    stride: int
    too_short: int
    mismatches: tuple[str, ...]


def read_clips(
    model: WorldModel,
    store: EpisodeStore,
    protocol: Protocol,
    *,
    count: int | None = None,
    stride: int | None = None,
    camera: str | None = None,
    seed: int = 0,
    allow_mismatch: bool = False,
) -> HeldOut:
    """Read one clip of each episode of the split that is long enough, in the order of the store.

    Args:
        model: the data must fit its configuration.
        store: the episodes.
        protocol: settled; see `protocols.settle`.
        count: most clips, of episodes spread evenly over the split; None: all.
        stride: recorded frames from one frame of a clip to the next; None: the checkpoint's.
        camera: of the store; None: that of the catalogue.
        seed: of random starts.
        allow_mismatch: measure on data that do not fit too: strides are taken as they are, frames are resized,
            missing numbers of an action are zero.

    Raises:
        UserError: the data do not fit, there is no such split, or no episode is long enough.
    """
    stride = model.config.frame_stride if stride is None else stride
    _check_positive(clips=count, stride=stride)
    mismatches = check_fit(model, store, protocol, stride, camera)
    if mismatches and not allow_mismatch:
        raise UserError(f"{'; '.join(mismatches)}; give --allow-mismatch to measure all the same")
    split, episodes = _episodes(store, protocol.split)
    assert protocol.clip_frames is not None
    # The goal is the last frame of the window once more.
    frames = protocol.clip_frames - model.config.goal_conditioned
    span = (frames - 1) * stride + 1
    usable = episodes[store.lengths[episodes] >= span]
    if not len(usable):
        raise UserError(
            f"a clip of {frames} frames at stride {stride} needs {span} recorded frames, and the longest episode of "
            f"split {split!r} has {store.lengths[episodes].max()}; give a shorter --horizon or a smaller --stride"
        )
    chosen = usable[_spread(len(usable), count)]
    starts = []
    for index in chosen.tolist():
        last = int(store.lengths[index]) - span
        starts.append(0 if protocol.start == "first" else int(clip_random(seed, index).integers(last + 1)))
    read = [
        _read(model, store, index, start + stride * np.arange(frames), camera)
        for index, start in zip(chosen.tolist(), starts, strict=True)
    ]
    rewards = [x for _, _, x in read if x is not None]
    clips = Clips(
        torch.stack([pixels for pixels, _, _ in read]),
        torch.stack([actions for _, actions, _ in read if actions is not None]) if model.action_dim else None,
        tuple(store.keys[index] for index in chosen),
        tuple(starts),
        torch.stack(rewards) if len(rewards) == len(read) else None,
    )
    return HeldOut(clips, store.facts.dataset.name, split, stride, len(episodes) - len(usable), tuple(mismatches))


def record_clips(
    model: WorldModel,
    protocol: Protocol,
    *,
    seeds: str | None = None,
    store: EpisodeStore | None = None,
    count: int | None = None,
) -> HeldOut:
    """Cut one clip of each fresh episode of a simulator.

    Args:
        model: its frames and actions must be those of the simulator.
        protocol: settled, with a simulator.
        seeds: of the episodes to record, first:stop; None: those of the simulator.
        store: take its episodes of the protocol's split instead of recording any.
        count: most clips, of episodes spread evenly over those; None: all.

    Raises:
        UserError: the model is of another world, the count is below 1, the seeds cannot be read, or an episode is too
            short.
        MissingExtraError: the simulator is not installed.
    """
    assert protocol.simulator is not None and protocol.clip_frames is not None
    _check_positive(clips=count)
    simulator, length = SIMULATORS[protocol.simulator], protocol.clip_frames
    if store is None:
        episodes = simulator.record(seeds)
    else:
        episodes = [episode for episode in store if episode.split == protocol.split]
        if not episodes:
            raise UserError(
                f"{store.folder} has no episodes of the split {protocol.split!r}; record some, or leave it out"
            )
    episodes = [episodes[index] for index in _spread(len(episodes), count)]
    starts = tuple(simulator.start(episode, length) for episode in episodes)
    windows = [episode.window(start, length) for episode, start in zip(episodes, starts, strict=True)]
    clips = Clips.from_episodes(windows, starts)
    size, config = model.frame_size, model.config
    dim = 0 if clips.actions is None else clips.actions.shape[-1]
    if (tuple(clips.frames.shape[-2:]), dim, 1, False) != (
        size,
        model.action_dim,
        config.frame_stride,
        config.goal_conditioned,
    ):
        raise UserError(
            f"protocol {protocol.name} measures models of frames of {clips.frames.shape[-1]} px, actions of {dim} "
            f"numbers and stride 1, without a goal; the checkpoint has {size[1]} x {size[0]} px, {model.action_dim} "
            f"numbers, stride {config.frame_stride}: choose another protocol"
        )
    return HeldOut(clips, protocol.simulator, "test", 1, 0, ())


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")


def _spread(length: int, count: int | None) -> np.ndarray:
    """Return at most ``count`` indices spread evenly over 0 to ``length`` - 1; None: all."""
    return np.unique(np.linspace(0, length - 1, length if count is None else count).round().astype(int))


def check_fit(
    model: WorldModel, store: EpisodeStore, protocol: Protocol, stride: int, camera: str | None = None
) -> list[str]:
    """List the differences between the data and the configuration of the checkpoint, in words; empty: they fit.

    Args:
        model: its action dimension, frame stride, resolution and context frames are compared.
        store: the episodes.
        protocol: decides whether frames of another size differ, or are resized.
        stride: recorded frames from one frame of a clip to the next.
        camera: of the store.

    Raises:
        UserError: the data can never fit: the model needs actions and the episodes have none, or have wider ones.
    """
    differences = []
    expected, trained = PROTOCOLS[protocol.name].context_frames, model.context_frames
    if expected not in (None, trained):
        differences.append(
            f"protocol {protocol.name} gives {expected} context frames and the checkpoint takes {trained}"
        )
    if stride != model.config.frame_stride:
        differences.append(f"the stride is {stride} and the checkpoint's is {model.config.frame_stride}")
    row = DATASETS.get(store.facts.dataset.name)
    if row is not None and row.stride() != stride:
        differences.append(f"the stride is {stride} and {row.name} is used at stride {row.stride()}")
    different = [sides for sides in _sizes(store, camera) if sides != model.frame_size]
    if different and not protocol.resize:
        (height, width), (rows, columns) = different[0], model.frame_size
        differences.append(f"frames have {width} x {height} pixels and the checkpoint takes {columns} x {rows}")
    return differences + _check_actions(model, store)


def _check_actions(model: WorldModel, store: EpisodeStore) -> list[str]:
    dim, actions = model.action_dim, store.facts.actions
    if not dim:
        return []
    if actions is None:
        raise UserError(f"the checkpoint needs actions of {dim} numbers, and {store.folder} has none; convert others")
    if actions.dim > dim:
        raise UserError(
            f"actions in {store.folder} have {actions.dim} numbers and the checkpoint takes {dim}; "
            "expected data with the actions that it was trained on"
        )
    return [f"actions have {actions.dim} numbers and the checkpoint takes {dim}"] if actions.dim < dim else []


def _sizes(store: EpisodeStore, camera: str | None) -> set[tuple[int, int]]:
    """Return the sizes (height, width) of the frames to read."""
    if camera is not None:
        if camera not in store.facts.cameras:
            raise UserError(f"{store.folder} has no camera {camera!r}; it has {', '.join(store.facts.cameras)}")
        return set(store.facts.cameras[camera])
    names = {store.info(index)["camera"] for index in range(0, len(store), max(len(store) // 8, 1))}
    return {sides for name in names for sides in store.facts.cameras[name]}


def _episodes(store: EpisodeStore, split: str | None) -> tuple[str, np.ndarray]:
    """Return the split to use and the numbers of its episodes, int64 ``[n]``."""
    splits = sorted(set(store.splits))
    if split is None:
        split = next((name for name in _HELD_OUT_SPLITS if name in splits), None)
        if split is None:
            raise UserError(
                f"{store.folder} has no split {' or '.join(map(repr, _HELD_OUT_SPLITS))}, only {', '.join(splits)}; "
                "give --split to measure on episodes that the model may have been trained on"
            )
    if split not in splits:
        raise UserError(f"{store.folder} has no split {split!r}; its splits: {', '.join(splits)}")
    return split, np.flatnonzero(np.array([name == split for name in store.splits]))


def _read(
    model: WorldModel, store: EpisodeStore, index: int, rows: np.ndarray, camera: str | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Read frames uint8 ``[t 3 h w]`` at the model's size; actions ``[t a]`` and rewards ``[t]`` float32, or None."""
    consecutive = len(rows) == 1 or rows[1] - rows[0] == 1
    clip = store.clip(index, range(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows, camera=camera)
    frames = torch.from_numpy(clip.frames)
    row = DATASETS.get(store.facts.dataset.name)
    if row is not None and row.centre_crop and model.frame_size[0] == model.frame_size[1]:
        square = centre_square(*frames.shape[1:3])
        frames = frames[:, square.top : square.top + square.height, square.left : square.left + square.width]
    frames = resize(frames, model.frame_size)
    actions = None
    if model.action_dim:
        if clip.actions is None:
            raise UserError(f"episode {clip.key!r} of {store.folder} has no actions, and the checkpoint needs them")
        # Source: thuml/iVideoGPT, which also takes every n-th action without adding them up; same.
        actions = torch.zeros(len(rows), model.action_dim)
        actions[:, : clip.actions.shape[1]] = torch.from_numpy(clip.actions)
    rewards = None if clip.rewards is None else torch.from_numpy(clip.rewards).float()
    if model.config.goal_conditioned:
        frames = torch.cat([frames[-1:], frames])
        actions = None if actions is None else torch.cat([torch.zeros_like(actions[:1]), actions])
        rewards = None if rewards is None else torch.cat([torch.zeros_like(rewards[:1]), rewards])
    return frames, actions, rewards
