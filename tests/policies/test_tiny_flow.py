"""Tiny flow: it reads pictures, words and state, learns from demonstrations, and resumes exactly."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.policies.vla.tiny_flow import (
    FlowObservation,
    FlowPolicy,
    TinyFlow,
    TinyFlowConfig,
    hash_words,
)
from ivideogpt.training.imitation import ChunkDataset, ImitationTraining, train_imitation

SMALL = TinyFlowConfig(
    resolution=16, width=16, heads=2, halvings=2, points=4, encoder_layers=1, expert_layers=1, words=4, denoise_steps=2
)
TRAINING = ImitationTraining(steps=6, batch_size=8, warmup_steps=1, average_decay=0.5, log_every=0, save_every=2)


def demonstrations(count: int = 12) -> tuple[list[Episode], list[str]]:
    """Return episodes in which the word decides the action: "left" is -0.5, "right" 0.5."""
    episodes, words = [], []
    for number in range(count):
        random = np.random.default_rng(number)
        sign = 1 if number % 2 else -1
        actions = np.full((9, 2), 0.5 * sign, np.float32)
        actions[-1] = 0
        terminated = np.zeros(9, bool)
        terminated[6] = True
        frames = random.integers(0, 255, (9, 16, 16, 3)).astype(np.uint8)
        episodes.append(
            Episode(frames=frames, actions=actions, terminated=terminated, state=np.zeros((9, 3), np.float32))
        )
        words.append("go right" if sign > 0 else "go left")
    return episodes, words


def new_policy(config: TinyFlowConfig = SMALL, seed: int = 0) -> TinyFlow:
    torch.manual_seed(seed)
    return TinyFlow(config)


def run_in(folder: Path) -> Run:
    return Run(folder, seed=0, device="cpu", log_every=0, save_every=2)


def test_every_preset_has_less_than_ten_million_parameters_and_others_are_refused() -> None:
    for name in PRESETS["policies"]:
        policy = TinyFlow(find_preset(name, "policies").policy)
        assert sum(x.numel() for x in policy.parameters()) < 10_000_000
    with pytest.raises(UserError, match="less than 10 million"):
        TinyFlow(replace(SMALL, width=1024))
    with pytest.raises(UserError, match="halvings"):
        TinyFlowConfig(resolution=18, halvings=3)


def test_the_policy_learns_what_the_words_say(tmp_path: Path) -> None:
    config = replace(TRAINING, steps=150, learning_rate=3e-3, batch_size=32, average_decay=0.9, save_every=0)
    policy = train_imitation(config, new_policy(), ChunkDataset(*demonstrations(), SMALL), run_in(tmp_path))
    acting = FlowPolicy(policy)
    acting.reset(range(8), ["go left"] * 4 + ["go right"] * 4)
    frames = np.random.default_rng(99).integers(0, 255, (8, 1, 16, 16, 3)).astype(np.uint8)
    actions = acting.act({"frames": frames})
    assert actions.shape == (8, 4, 2) and actions.dtype == np.float32
    assert actions[:4].mean() < -0.3 and actions[4:].mean() > 0.3


def test_a_stopped_training_goes_on_with_the_same_losses_and_the_same_policy(tmp_path: Path) -> None:
    data = ChunkDataset(*demonstrations(), SMALL)
    whole = train_imitation(TRAINING, new_policy(), data, run_in(tmp_path / "whole"))
    train_imitation(TRAINING, new_policy(), data, run_in(tmp_path / "parts"), until=4)
    resumed = train_imitation(TRAINING, new_policy(seed=1), data, run_in(tmp_path / "parts"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    loaded = TinyFlow.from_pretrained(tmp_path / "parts")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_row_acts_alike_in_any_batch_and_by_its_seed() -> None:
    torch.manual_seed(0)
    policy = new_policy().eval()
    torch.nn.init.normal_(policy.out.weight)
    frames = np.random.default_rng(0).integers(0, 255, (3, 1, 16, 16, 3)).astype(np.uint8)
    acting = FlowPolicy(policy)
    acting.reset([5, 6, 7], ["a", "b", "c"])
    together = acting.act({"frames": frames})
    acting.reset([6], ["b"])
    assert np.allclose(acting.act({"frames": frames[1:2]}), together[1:2], atol=1e-5)
    acting.reset([8], ["b"])
    assert not np.allclose(acting.act({"frames": frames[1:2]}), together[1:2], atol=1e-3)


def test_actions_after_the_end_of_a_task_are_not_imitated_and_chunks_are_padded() -> None:
    episodes, words = demonstrations(2)
    data = ChunkDataset(episodes, words, SMALL)
    assert len(data) == 2 * 7
    _, actions, counts = data.draw(200, np.random.default_rng(0))
    assert set(counts.sum(dim=1).tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert (actions[counts == 0] == 0).all() and (actions[counts == 1].abs() == 0.5).all()


def test_ranges_of_actions_in_other_units_are_mapped_there_and_back() -> None:
    config = replace(SMALL, action_low=(0.0, 0.0), action_high=(512.0, 256.0))
    raw = np.array([[0, 256], [512, 128]], np.float32)
    assert config.from_raw(raw).tolist() == [[-1, 1], [1, 0]]
    assert config.to_raw(config.from_raw(raw)).tolist() == raw.tolist()
    episodes, words = demonstrations(2)
    large = [replace(episode, actions=episode.actions * 100) for episode in episodes]
    with pytest.raises(UserError, match="policy.action_low"):
        ChunkDataset(large, words, SMALL)


def test_data_and_observations_of_another_size_are_refused_in_a_sentence(tmp_path: Path) -> None:
    episodes, words = demonstrations(2)
    with pytest.raises(UserError, match="frames of 16 x 16 px and the policy reads 32"):
        ChunkDataset(episodes, words, replace(SMALL, resolution=32))
    with pytest.raises(UserError, match="actions of 2 numbers and the policy gives 3"):
        ChunkDataset(episodes, words, replace(SMALL, action_dim=3))
    with pytest.raises(UserError, match="state of 3 numbers and the policy reads 4"):
        ChunkDataset(episodes, words, replace(SMALL, state_dim=4))
    reads_state = TinyFlow(replace(SMALL, state_dim=3))
    seen = FlowObservation(torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(UserError, match="a world model has no state"):
        reads_state.encode(seen)
    with pytest.raises(UserError, match="holds no policy"):
        TinyFlow.from_pretrained(tmp_path)


def test_words_are_hashed_without_case_and_long_instructions_are_cut() -> None:
    rows = hash_words(["Push the RED square to the left", "push the red", ""], SMALL)
    assert rows.shape == (3, 4) and torch.equal(rows[0, :3], rows[1, :3]) and (rows[2] == 0).all()
    assert (rows[1, :3] > 0).all() and rows[1, 3] == 0
