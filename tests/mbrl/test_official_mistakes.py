"""One promise for each mistake of the official code (those of replay, agent and loop are in their own tests)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.run import Run
from ivideogpt.mbrl.replay_buffer import ReplayBuffer, Segments
from ivideogpt.mbrl.world_model_batches import tokenise_segments
from ivideogpt.mbrl.world_model_learner import TokenLearner
from ivideogpt.mbrl.world_model_source import train_from_scratch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny world model, the episodes that it was made of and its run."""
    from ivideogpt.configs.mbrl import debug

    config, replay, random = debug(), ReplayBuffer(1000), np.random.default_rng(0)
    for _ in range(6):
        actions = random.uniform(-1, 1, (11, 2)).astype(np.float32)
        actions[-1] = 0
        replay.add(
            Episode(
                frames=random.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8),
                actions=actions,
                rewards=1 - np.square(actions).sum(axis=1),
                terminated=np.zeros(11, bool),
            )
        )
    run = Run(tmp_path_factory.mktemp("run"), device="cpu", log_every=0)
    model = train_from_scratch(replay, config.world_model.scratch, run, seed=0)
    return model, replay, run, config.world_model


def segments(count: int = 3, frames: int = 5) -> Segments:
    rewards = np.arange(count * (frames - 1), dtype=np.float32).reshape(count, -1)
    pixels = np.zeros((count, frames, 16, 16, 3), np.uint8)
    return Segments(pixels, np.zeros((count, frames - 1, 2), np.float32), rewards, np.zeros(rewards.shape, bool))


def test_a_frame_is_to_tell_the_reward_of_the_action_that_led_to_it(made) -> None:
    """The official target at a frame was the reward of the next action, which nothing could know yet."""
    model, *_ = made
    drawn = segments()
    first = model.context_frames - 1
    assert torch.equal(tokenise_segments(model, drawn).rewards, torch.from_numpy(drawn.rewards[:, first:]))


def test_codebooks_get_no_gradient_and_do_not_join_the_norm_that_clips(made) -> None:
    """The official ones were never reset and 65,536 times too large: all other gradients were clipped to nothing."""
    model, replay, run, config = made
    learner = TokenLearner(replace(config, tokenizer_update_every_steps=1), run, model)
    book = model.tokenizer.quantize.embedding.weight
    assert not book.requires_grad
    before, clipped = book.clone(), []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, most):
        parameters = list(parameters)
        clipped.extend(parameters)
        return clip(parameters, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        learner.update(replay, np.random.default_rng(0), tokenizer=True)
    assert torch.equal(book, before), "codes keep their meaning"
    assert clipped and (book.grad is None or not book.grad.any())
    model.tokenizer.requires_grad_(False)


def test_imagining_has_no_dropout(made) -> None:
    model, replay, run, config = made
    learner = TokenLearner(config, run, model)
    learner.update(replay, np.random.default_rng(0), tokenizer=False)
    assert not any(module.training for module in model.modules())


def test_dropout_acts_while_imagining_only_where_the_transformer_is_in_training(made) -> None:
    model, replay, *_ = made
    context = torch.zeros(2, model.context_frames, 3, 16, 16)
    actions = torch.rand(2, 3, 2)
    for layer in model.transformer.layers:
        layer.attention.dropout = 0.5
    try:
        still = model.imagine(context, actions).log_probs
        assert torch.equal(still, model.imagine(context, actions).log_probs)
        model.transformer.train()
        torch.manual_seed(0)
        one = model.imagine(context, actions).log_probs
        torch.manual_seed(1)
        assert not torch.equal(one, model.imagine(context, actions).log_probs)
    finally:
        model.eval()
        for layer in model.transformer.layers:
            layer.attention.dropout = 0.0


def test_random_numbers_of_draws_differ_between_agent_and_world_model(made) -> None:
    """Three official loaders had one seed, so they drew the same places."""
    _, replay, *_ = made
    random = np.random.default_rng(0)
    first = replay.segments(50, 5, random).actions
    assert not np.array_equal(first, replay.segments(50, 5, random).actions)
