"""Episode stores of noise that drifts, small enough for tiny models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.convert.source import SourceEpisode
from ivideogpt.data.store import EpisodeStore
from ivideogpt.data.store_facts import StoreFacts
from ivideogpt.data.store_writer import ShardTask, convert_to_store


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[..., EpisodeStore]:
    """``store_of(lengths, name=, dim=, size=, split=, rewards=)``: an episode of each length; ``dim`` 0: no actions."""

    def make(
        lengths: tuple[int, ...],
        *,
        name: str = "mine",
        dim: int = 3,
        size: tuple[int, int] = (16, 16),
        split="test",
        rewards: bool = False,
    ) -> EpisodeStore:
        def read():
            for index, length in enumerate(lengths):
                random = np.random.default_rng(index)
                picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                actions = random.normal(size=(length, max(dim, 1))).astype(np.float32)
                actions[-1] = 0
                yield SourceEpisode(
                    key=f"e{index}",
                    split=split if isinstance(split, str) else split[index],
                    cameras={"image": np.stack([np.roll(picture, t, axis=1) for t in range(length)])},
                    actions=actions if dim else None,
                    rewards=np.arange(length, dtype=np.float32) if rewards else None,
                )

        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        convert_to_store([ShardTask("all", read)], folder, facts=StoreFacts(name=name), workers=0)
        return EpisodeStore(folder)

    return make
