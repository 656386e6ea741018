"""Updates of a flow policy: ratio 1 at first, advantages by hand, every algorithm learns, exact resume."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.policies.vla.residual import (
    ResidualConfig,
    ResidualPolicy,
    new_residual_agent,
    read_residual,
    residual_checkpoint,
)
from ivideogpt.policies.vla.tiny_flow import FlowPolicy, TinyFlow, TinyFlowConfig
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.loop import improve_policy
from ivideogpt.wmrl.residual import ResidualAgent, improve_residual, residual_agent_config
from ivideogpt.wmrl.rollouts import Outcome, Rows, play_episodes
from ivideogpt.wmrl.updates import (
    ChunkValue,
    FlowLearner,
    SuccessBuffer,
    episode_returns,
    grpo_advantages,
    ppo_advantages,
)

SIZES = TinyFlowConfig(
    resolution=16,
    width=16,
    heads=2,
    halvings=0,
    points=2,
    encoder_layers=1,
    expert_layers=1,
    words=2,
    chunk=2,
    denoise_steps=2,
)
CONFIG = WmRlConfig(
    iterations=4, prompts=2, group=8, horizon=4, minibatch=256, epochs=1, learning_rate=3e-3, log_every=0, save_every=1
)


class PushRight(Rows):
    """Episodes of at most four steps that succeed once the mean of a chunk's first numbers is above a limit."""

    def __init__(self, count: int = 16, limit: float = 0.3) -> None:
        self.count, self.steps, self.limit = count, 0, limit
        self._ages, self._over = np.zeros(count, int), np.zeros(count, bool)

    def begin(self, random: np.random.Generator, group: int) -> tuple[np.ndarray, list[str]]:
        self._ages[:], self._over[:] = 0, False
        return np.zeros((self.count, 1, 16, 16, 3), np.uint8), ["right"] * self.count

    def play_chunk(self, actions: np.ndarray) -> Outcome:
        success = (actions[:, :, 0].mean(axis=1) > self.limit) & ~self._over
        steps = np.where(self._over, 0, actions.shape[1])
        self._ages += steps
        self._over |= success | (self._ages >= 4)
        self.steps += int(steps.sum())
        frames = np.zeros((actions.shape[1], self.count, 1, 16, 16, 3), np.uint8)
        ages = (self._ages - steps)[None] + 1 + np.arange(actions.shape[1])[:, None]
        frames[:, :, 0, 0, 0, 0] = ages
        return Outcome(frames, success, self._over.copy(), steps)

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        super().load_state_dict(state_dict)


def new_policy(seed: int = 0) -> TinyFlow:
    torch.manual_seed(seed)
    return TinyFlow(SIZES).eval()


def played(policy: TinyFlow, rows: Rows, config: WmRlConfig = CONFIG, seed: int = 0):
    frames, instructions = rows.begin(np.random.default_rng(seed), config.group)
    generator = torch.Generator().manual_seed(seed)
    return play_episodes(
        policy, rows, frames, instructions, generator, horizon=config.horizon, noise_level=config.noise_level
    )


def run_in(folder: Path, save_every: int = 1) -> Run:
    return Run(folder, seed=0, device="cpu", log_every=0, save_every=save_every)


def test_the_ratio_of_the_first_update_is_exactly_one_and_the_divergence_zero() -> None:
    policy = new_policy()
    learner = FlowLearner(CONFIG, policy, new_policy(), ChunkValue(16))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    figures = learner.update(played(policy, PushRight(limit=0.1)), optimizer, torch.Generator())
    assert figures["chunks"] > 0
    assert figures["first_ratio"] == pytest.approx(1, abs=1e-6) and figures["kl"] == pytest.approx(0, abs=1e-9)
    assert figures["clipped"] == 0


def test_groups_whose_episodes_end_alike_change_nothing() -> None:
    policy = new_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    learner = FlowLearner(CONFIG, policy, new_policy(), ChunkValue(16))
    for limit in (-9.0, 9.0):
        episodes = played(policy, PushRight(limit=limit))
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
        assert learner.update(episodes, optimizer, torch.Generator()) == {"chunks": 0.0}
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_returns_and_group_advantages_are_those_computed_by_hand() -> None:
    episodes = played(new_policy(), PushRight(limit=0.1))
    returns = episode_returns(episodes, 0.9)
    expected = [
        0.9 ** int(steps) if won else 0.0 for steps, won in zip(episodes.steps, episodes.succeeded, strict=True)
    ]
    assert returns.tolist() == pytest.approx(expected)
    advantages = grpo_advantages(episodes, replace(CONFIG, discount=0.9))
    group = np.array(expected[:8])
    assert advantages[0, :8].tolist() == pytest.approx(((group - group.mean()) / group.std(ddof=1)).tolist(), abs=1e-4)
    assert torch.equal(advantages[0], advantages[-1])


def test_generalised_advantages_are_those_computed_by_hand() -> None:
    policy, rows = new_policy(), PushRight(limit=9.0)
    episodes = played(policy, rows)
    episodes = replace(episodes, success=torch.zeros_like(episodes.success))
    episodes.success[1, 0] = True  # row 0 succeeds in its second chunk
    value = ChunkValue(16)
    torch.nn.init.zeros_(value.layers[2].weight)
    torch.nn.init.constant_(value.layers[2].bias, 0.25)
    config = replace(CONFIG, discount=0.9, gae_lambda=0.5)
    _, returns = ppo_advantages(episodes, policy, value, config)
    gamma = 0.9**2  # a chunk has two steps
    last_won, last_lost = 1 - 0.25, gamma * 0.25 - 0.25
    first = gamma * 0.25 - 0.25
    assert returns[:, 0].tolist() == pytest.approx([first + gamma * 0.5 * last_won + 0.25, last_won + 0.25])
    assert returns[:, 1].tolist() == pytest.approx([first + gamma * 0.5 * last_lost + 0.25, last_lost + 0.25])


def test_of_each_group_the_shortest_success_is_imitated_from_every_step() -> None:
    episodes = played(new_policy(), PushRight(limit=9.0))  # two groups of eight, two chunks of two actions
    steps, success = episodes.steps.clone(), torch.zeros_like(episodes.success)
    success[1, 2] = success[0, 5] = success[1, 6] = True
    steps[2], steps[5], steps[6] = 4, 1, 3
    buffer = SuccessBuffer(new_policy())
    buffer.add(replace(episodes, success=success, steps=steps), 8)
    assert len(buffer) == 1 and torch.equal(buffer.actions[0, 0], episodes.actions[0, 5, 0])
    assert buffer.counts.tolist() == [[1, 0]]  # the second action came after the success
    buffer.add(replace(episodes, success=success, steps=steps), 2)  # rows 2 and 3, 4 and 5, 6 and 7
    assert buffer.counts[1:].tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [1, 0], [1, 1], [1, 1], [1, 0]]
    taken = episodes.actions[:, 2].flatten(0, 1)
    assert torch.equal(buffer.actions[1:4], torch.stack([taken[:2], taken[1:3], taken[2:4]]))
    assert buffer.frames[1:5, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]  # the age of the episode


@pytest.mark.parametrize("algorithm", ["grpo_flow", "ppo_flow", "filtered_bc"])
def test_every_algorithm_makes_success_more_frequent(algorithm: str, tmp_path: Path) -> None:
    config = replace(CONFIG, algorithm=algorithm, iterations=25, epochs=2, demo_share=0.0, bc_updates=8, minibatch=64)
    policy, rows = new_policy(), PushRight(limit=0.8)
    before = played(policy, PushRight(128, limit=0.8), seed=9).succeeded.float().mean()
    improve_policy(config, policy, rows, run_in(tmp_path, save_every=0))
    after = played(policy, PushRight(128, limit=0.8), seed=9).succeeded.float().mean()
    assert before < 0.6 and after > before + 0.25


def test_a_stopped_improvement_goes_on_with_the_same_policy(tmp_path: Path) -> None:
    for algorithm in ("grpo_flow", "filtered_bc"):
        config = replace(CONFIG, algorithm=algorithm, demo_share=0.0, bc_updates=2)
        whole = improve_policy(config, new_policy(), PushRight(), run_in(tmp_path / algorithm / "whole"))
        improve_policy(config, new_policy(), PushRight(), run_in(tmp_path / algorithm / "parts"), until=2)
        rows = PushRight()
        resumed = improve_policy(config, new_policy(seed=5), rows, run_in(tmp_path / algorithm / "parts"))
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        stored = TinyFlow.from_pretrained(tmp_path / algorithm / "parts")
        assert torch.equal(stored.out.weight, whole.out.weight) and rows.steps > 0


def test_a_penalty_keeps_the_policy_near_to_the_one_at_the_start(tmp_path: Path) -> None:
    def distance(weight: float) -> float:
        config = replace(CONFIG, kl_weight=weight, iterations=8)
        start = new_policy()
        policy = improve_policy(config, new_policy(), PushRight(), run_in(tmp_path / str(weight), save_every=0))
        pairs = zip(start.parameters(), policy.parameters(), strict=True)
        frames = np.zeros((64, 1, 16, 16, 3), np.uint8)
        actions = []
        for network in (start, policy):
            acting = FlowPolicy(network)
            acting.reset(range(64), ["right"] * 64)
            actions.append(acting.act({"frames": frames}))
        assert any(not torch.equal(a, b) for a, b in pairs)
        return float(np.abs(actions[0] - actions[1]).mean())

    assert distance(5.0) < 0.8 * distance(0.0)


def test_the_correction_begins_at_zero_learns_and_resumes(tmp_path: Path) -> None:
    config = replace(CONFIG, algorithm="residual_drq", iterations=2, bc_updates=2, minibatch=8, residual_scale=0.5)
    new_policy().save_pretrained(tmp_path / "policy")

    def new_agent(seed: int) -> ResidualAgent:
        torch.manual_seed(seed)
        sizes = ResidualConfig(resolution=16, scale=config.residual_scale, agent=residual_agent_config(config))
        return ResidualAgent(config, ResidualPolicy(sizes, FlowPolicy(new_policy()), new_residual_agent(sizes)))

    def improved(agent: ResidualAgent, name: str, until: int | None = None) -> ResidualAgent:
        return improve_residual(
            config, agent, PushRight(), run_in(tmp_path / name), base=tmp_path / "policy", until=until
        )

    agent, rows = new_agent(0), PushRight()
    started = rows.begin(np.random.default_rng(0), 8)
    episodes, success = agent.play(rows, started, 3, noise=0.0, horizon=4)
    assert success.shape == (16,) and all(len(x) == 1 + min(4, len(x.frames) - 1) for x in episodes)
    assert all(np.abs(x.actions).max() < 1e-6 for x in episodes if x.actions is not None)
    whole = improved(new_agent(0), "whole")
    improved(new_agent(0), "parts", until=1)
    resumed = improved(new_agent(7), "parts")
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(value, resumed.agent.state_dict()[name]), name
    assert len(resumed.buffer) == len(whole.buffer) > 0
    checkpoint = residual_checkpoint(tmp_path / "parts")
    assert checkpoint is not None and (checkpoint / "base" / "policy.safetensors").is_file()
    _, stored = read_residual(checkpoint)
    assert all(torch.equal(value, whole.agent.state_dict()[name]) for name, value in stored.state_dict().items())


def test_bad_settings_are_refused_in_a_sentence() -> None:
    for changes, sentence in (
        ({"group": 1}, "expected at least 2"),
        ({"noise_level": 0.0}, "stochastic step"),
        ({"demo_share": 1.5}, "expected 0 to 1"),
        ({"iterations": 0}, "iterations is 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            replace(CONFIG, **changes)
