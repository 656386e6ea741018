"""The clips of a protocol, read from an episode store; data that do not fit the checkpoint are refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import centre_square, resize
from ivideogpt.data.catalog import DATASETS
from ivideogpt.data.loader import clip_random
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.evaluation.protocols import PROTOCOLS, Protocol
from ivideogpt.evaluation.rollouts import Clips
from ivideogpt.worldmodel.world_model import WorldModel

_HELD_OUT = ("test", "val")


@dataclass(frozen=True)
class HeldOut:
    """Clips and where they come from.

    Attributes:
        clips: of one length, at the size of the model; of a goal-conditioned one the goal comes first.
        dataset: the name of the store.
        split: of the episodes.
        stride: recorded frames from one frame of a clip to the next.
        too_short: episodes of the split that have no room for a clip and were left out.
        mismatches: what was overlooked because the user said so, in words.
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
    """One clip of each episode of the split that is long enough, in the order of the store.

    Args:
        model: whose checkpoint says what fits.
        store: the episodes.
        protocol: settled; see `protocols.settle`.
        count: at most so many clips, of episodes spread evenly over the split; None: of all.
        stride: recorded frames from one frame of a clip to the next; None: the checkpoint's.
        camera: of the store; None: the one that the catalogue uses.
        seed: of random starts.
        allow_mismatch: measure on data that do not fit too: other strides are taken as they are, frames are resized,
            missing numbers of an action are zero.

    Raises:
        UserError: the data do not fit, there is no such split, or no episode is long enough.
    """
    stride = model.config.frame_stride if stride is None else stride
    for name, value in (("clips", count), ("stride", stride)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
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
    chosen = usable if count is None else usable[np.unique(np.linspace(0, len(usable) - 1, count).round().astype(int))]
    starts = []
    for index in chosen.tolist():
        room = int(store.lengths[index]) - span + 1
        starts.append(0 if protocol.start == "first" else int(clip_random(seed, index).integers(room)))
    read = [
        _read(model, store, index, start + stride * np.arange(frames), camera)
        for index, start in zip(chosen.tolist(), starts, strict=True)
    ]
    rewards = [paid for _, _, paid in read if paid is not None]
    clips = Clips(
        torch.stack([pixels for pixels, _, _ in read]),
        torch.stack([actions for _, actions, _ in read if actions is not None]) if model.action_dim else None,
        tuple(store.keys[index] for index in chosen),
        tuple(starts),
        torch.stack(rewards) if len(rewards) == len(read) else None,
    )
    return HeldOut(clips, store.facts.dataset.name, split, stride, len(episodes) - len(usable), tuple(mismatches))


def check_fit(
    model: WorldModel, store: EpisodeStore, protocol: Protocol, stride: int, camera: str | None = None
) -> list[str]:
    """What in the data differs from what the checkpoint says of itself, in words; an empty list: nothing.

    Args:
        model: its configuration says action dimension, frame stride, resolution and context frames.
        store: the episodes.
        protocol: whose frames may be resized, if it says so.
        stride: to be used.
        camera: to be used.

    Raises:
        UserError: what cannot be made to fit: the model needs actions and the episodes have none, or have wider ones.
    """
    found = []
    given, trained = PROTOCOLS[protocol.name].context_frames, model.context_frames
    if given not in (None, trained):
        found.append(f"protocol {protocol.name} gives {given} context frames and the checkpoint takes {trained}")
    if stride != model.config.frame_stride:
        found.append(f"the stride is {stride} and the checkpoint's is {model.config.frame_stride}")
    row = DATASETS.get(store.facts.dataset.name)
    if row is not None and row.stride() != stride:
        found.append(f"the stride is {stride} and {row.name} is used at stride {row.stride()}")
    size = model.resolution
    others = [sides for sides in _sizes(store, camera) if sides != (size, size)]
    if others and not protocol.resize:
        height, width = others[0]
        found.append(f"frames have {width} x {height} pixels and the checkpoint takes {size} x {size}")
    return found + _check_actions(model, store)


def _check_actions(model: WorldModel, store: EpisodeStore) -> list[str]:
    wanted, actions = model.action_dim, store.facts.actions
    if not wanted:
        return []
    if actions is None:
        raise UserError(
            f"the checkpoint needs actions of {wanted} numbers, and {store.folder} has none; convert others"
        )
    if actions.dim > wanted:
        raise UserError(
            f"actions in {store.folder} have {actions.dim} numbers and the checkpoint takes {wanted}; "
            "expected data with the actions that it was trained on"
        )
    return [f"actions have {actions.dim} numbers and the checkpoint takes {wanted}"] if actions.dim < wanted else []


def _sizes(store: EpisodeStore, camera: str | None) -> set[tuple[int, int]]:
    """Sizes (height, width) of the frames that will be read."""
    if camera is not None:
        if camera not in store.facts.cameras:
            raise UserError(f"{store.folder} has no camera {camera!r}; it has {', '.join(store.facts.cameras)}")
        return set(store.facts.cameras[camera])
    names = {store.info(index)["camera"] for index in range(0, len(store), max(len(store) // 8, 1))}
    return {sides for name in names for sides in store.facts.cameras[name]}


def _episodes(store: EpisodeStore, split: str | None) -> tuple[str, np.ndarray]:
    """The split to use and the numbers of its episodes, int64 ``[n]``."""
    there = sorted(set(store.splits))
    if split is None:
        split = next((name for name in _HELD_OUT if name in there), None)
        if split is None:
            raise UserError(
                f"{store.folder} has no split {' or '.join(map(repr, _HELD_OUT))}, only {', '.join(there)}; give "
                "--split to measure on episodes that the model may have been trained on"
            )
    if split not in there:
        raise UserError(f"{store.folder} has no split {split!r}; its splits: {', '.join(there)}")
    return split, np.flatnonzero(np.array([name == split for name in store.splits]))


def _read(
    model: WorldModel, store: EpisodeStore, index: int, rows: np.ndarray, camera: str | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Frames uint8 ``[t 3 h w]`` at the model's size; actions float32 ``[t a]``, rewards float32 ``[t]``, or None."""
    in_a_row = len(rows) == 1 or rows[1] - rows[0] == 1
    clip = store.clip(index, range(int(rows[0]), int(rows[-1]) + 1) if in_a_row else rows, camera=camera)
    frames = torch.from_numpy(clip.frames)
    known = DATASETS.get(store.facts.dataset.name)
    if known is not None and known.centre_crop:
        square = centre_square(*frames.shape[1:3])
        frames = frames[:, square.top : square.top + square.height, square.left : square.left + square.width]
    frames = resize(frames, model.resolution)
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
