"""The reward head learns what the action that led to a frame earned; on targets one step late it cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt import Sampling
from ivideogpt.configs.mbrl import debug
from ivideogpt.core.run import Run
from ivideogpt.envs.collector import Collector
from ivideogpt.envs.vector import make_vector
from ivideogpt.mbrl.replay_buffer import ReplayBuffer, Segments
from ivideogpt.mbrl.world_model_batches import as_floats
from ivideogpt.mbrl.world_model_learner import TokenLearner
from ivideogpt.mbrl.world_model_source import WorldModelTraining, train_from_scratch


@pytest.fixture(scope="module")
def lived() -> tuple[ReplayBuffer, ReplayBuffer]:
    """Random episodes of a world that pays for the action alone: to learn from, and apart."""
    environments = make_vector("reacher", 1, size=16, steps=10, reward="action")
    collector, random = Collector(environments, seed=0, frame_stack=1), np.random.default_rng(0)
    kept = ReplayBuffer(10_000), ReplayBuffer(10_000)
    while len(kept[0]) < 1500:
        for episode in collector.step(random.uniform(-1, 1, (1, 2)).astype(np.float32)):
            kept[collector._episodes[0] % 5 == 0].add(episode)
    return kept


class LateRewards:
    """A buffer whose rewards are those of the next action, as the official code had them."""

    def __init__(self, replay: ReplayBuffer) -> None:
        self.replay = replay

    def segments(self, count: int, length: int, random: np.random.Generator) -> Segments:
        longer = self.replay.segments(count, length + 1, random)
        shorter = Segments(longer.frames[:, :-1], *(part[:, :-1] for part in longer[1:]))
        return shorter._replace(rewards=longer.rewards[:, 1:])


def explained(lived, tmp_path, *, late: bool) -> float:
    """R^2 of imagined rewards in episodes that were not learned from."""
    torch.manual_seed(0)
    config = debug().world_model
    scratch = replace(
        config.scratch,
        model=replace(
            config.scratch.model, heads=replace(config.scratch.model.heads, action_frequencies=2), symlog_rewards=True
        ),
        transformer=replace(config.scratch.transformer, steps=2),
    )
    run = Run(tmp_path, device="cpu", log_every=0)
    model = train_from_scratch(lived[0], scratch, run, seed=0)
    training = WorldModelTraining(
        checkpoint=None, batch_size=16, segment_frames=6, tokenizer_update_every_steps=0, learning_rate=5e-3
    )
    learner, random = TokenLearner(training, run, model), np.random.default_rng(1)
    source = LateRewards(lived[0]) if late else lived[0]
    for _ in range(120):
        learner.update(source, random, tokenizer=False)
    apart = lived[1].segments(64, 5, np.random.default_rng(2))
    frames = as_floats(apart.frames)
    found = model.imagine(frames[:, :2], torch.from_numpy(apart.actions[:, 1:]), sampling=Sampling(greedy=True)).rewards
    paid = apart.rewards[:, 1:]
    return float(1 - np.square(found.numpy() - paid).mean() / paid.var())


def test_rewards_of_actions_are_explained_by_our_targets_and_not_by_the_official_ones(lived, tmp_path) -> None:
    assert explained(lived, tmp_path / "ours", late=False) > 0.9
    assert explained(lived, tmp_path / "official", late=True) < 0.1
