"""Synthetic episodes of a square that an action moves, for trying commands without a simulator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

NAME = "squares"
_SIDE, _LENGTH, _SQUARE = 16, 12, 4


def collect_squares(folder: str | Path, *, episodes: int = 16) -> None:
    """Write a store of squares in two splits, unless it exists: 16 x 16 px, actions (1 or 2 px) and rewards."""
    split = {"train": range(episodes), "val": range(episodes, episodes + max(episodes // 4, 1))}
    tasks = [ShardTask(f"{name}-00000", partial(_episodes, name, seeds)) for name, seeds in split.items()]
    convert_to_store(tasks, folder, facts=StoreFacts(name=NAME, licence="MIT"), workers=0)


def _episodes(split: str, seeds: range) -> Iterator[SourceEpisode]:
    for seed in seeds:
        random = np.random.default_rng(seed)
        frames = np.full((_LENGTH, _SIDE, _SIDE, 3), 255, np.uint8)
        actions = random.integers(1, 3, (_LENGTH, 1)).astype(np.float32)
        actions[-1] = 0
        x, y = 0, int(random.integers(0, _SIDE - _SQUARE))
        for t in range(_LENGTH):
            left = min(x, _SIDE - _SQUARE)
            frames[t, y : y + _SQUARE, left : left + _SQUARE] = (200, 30, 30)
            x += int(actions[t, 0])
        key, rewards = f"squares-{seed:04d}", actions[:, 0] / 2
        yield SourceEpisode(key=key, split=split, cameras={"image": frames}, actions=actions, rewards=rewards)
