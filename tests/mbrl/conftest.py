"""Small runs of reinforcement learning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ivideogpt.configs.mbrl import debug
from ivideogpt.core.run import Run
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.loop import train_agent
from ivideogpt.mbrl.run_records import Progress


@pytest.fixture
def config() -> MbrlConfig:
    """A run of seconds."""
    return replace(debug(), evaluation_episodes=1, save_every_steps=20)


@pytest.fixture
def go() -> Callable[..., Progress]:
    """Trains in a folder, as the command does."""

    def train(config: MbrlConfig, folder: Path, **options) -> Progress:
        every = max(config.save_every_steps // config.num_envs, 1)
        run = Run(folder, seed=config.seed, device="cpu", log_every=0, save_every=every, keep_last=0)
        return train_agent(config, run, **options)

    return train
