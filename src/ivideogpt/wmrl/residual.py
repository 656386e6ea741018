"""Learning of a correction of a frozen policy: DrQ-v2 on single steps; see ``ivideogpt.policies.vla.residual``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.run import Run
from ivideogpt.envs.collector import episode_of
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.policies.drqv2 import AgentConfig
from ivideogpt.policies.vla.residual import ResidualPolicy
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.rollouts import Rows

#: Transitions that are kept.
_CAPACITY = 50_000


def residual_agent_config(config: WmRlConfig) -> AgentConfig:
    """Return the settings of the agent; no shifts, because the margin of its pictures must stay in its place."""
    return AgentConfig(
        encoder_channels=16, hidden_size=256, batch_size=config.minibatch, random_shift=0, discount=config.discount
    )


class ResidualAgent:
    """The agent of a corrected policy and the transitions that it learns from."""

    def __init__(self, config: WmRlConfig, policy: ResidualPolicy) -> None:
        """Take the policy, whose agent ``learn`` changes."""
        self.config, self.policy, self.agent = config, policy, policy.agent
        self.buffer = ReplayBuffer(_CAPACITY)

    def play(
        self, rows: Rows, started: tuple[np.ndarray, list[str]], seed: int, *, noise: float, horizon: int
    ) -> tuple[list[Episode], np.ndarray]:
        """Play episodes that have begun.

        Args:
            rows: of a world model or an environment.
            started: what their ``begin`` returned.
            seed: of policy and noise.
            noise: standard deviation of the noise on corrections.
            horizon: most steps.

        Returns:
            An episode for each row, with the agent's pictures and corrections; and the success of each, bool ``[n]``.
        """
        frames, instructions = started
        generator = torch.Generator().manual_seed(seed)
        self.policy.reset([seed + row for row in range(rows.count)], instructions)
        over, success = np.zeros(rows.count, bool), np.zeros(rows.count, bool)
        pictures: list[list[np.ndarray]] = [[] for _ in range(rows.count)]
        steps: list[list[tuple[np.ndarray, float, bool]]] = [[] for _ in range(rows.count)]
        for step in range(horizon + 1):
            seen, chosen = self.policy.propose({"frames": frames})
            for row in range(rows.count):  # the picture after the last step of an episode is kept too
                if len(pictures[row]) == len(steps[row]):
                    pictures[row].append(seen[row])
            if over.all() or step == horizon:
                break
            correction = self.agent.explore({"frames": seen[:, None]}, noise, generator)
            outcome = rows.play_chunk(self.policy.corrected(chosen, correction)[:, None])
            for row in np.flatnonzero(~over):
                reward = float(outcome.success[row])
                steps[row].append((correction[row], reward, bool(outcome.success[row])))
            success |= outcome.success & ~over
            over, frames = over | outcome.over, outcome.frames.reshape(frames.shape)
        episodes = [
            episode_of(pictures[row], steps[row], key=f"row-{row}") for row in range(rows.count) if len(steps[row])
        ]
        return episodes, success

    def learn(self, episodes: Sequence[Episode], random: np.random.Generator) -> dict[str, float]:
        """Add episodes to the buffer and make the updates of an iteration; return the means of their figures."""
        for episode in episodes:
            self.buffer.add(episode)
        settings, figures = self.agent.config, []
        generator = torch.Generator().manual_seed(int(random.integers(2**31)))
        for _ in range(self.config.bc_updates):
            batch = self.buffer.transitions(
                settings.batch_size, stack=1, steps=settings.n_step, discount=settings.discount, random=random
            )
            figures.append(self.agent.learn(batch.to(self.agent.device), self.config.noise_level, generator))
        return {name: float(np.mean([x[name].item() for x in figures])) for name in figures[0]}

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizers and transitions."""
        return {"agent": self.agent.training_state(), "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.agent.load_training_state(state_dict["agent"])
        self.buffer.load_state_dict(state_dict["buffer"])


def improve_residual(
    config: WmRlConfig,
    agent: ResidualAgent,
    rows: Rows,
    run: Run,
    *,
    base: Path | None = None,
    evaluate: Callable[[], float] | None = None,
    until: int | None = None,
) -> ResidualAgent:
    """Learn a correction of a policy, or go on where ``run`` stopped; see ``improve_policy``.

    Each checkpoint is a whole policy, with a copy of the frozen policy in the folder ``base``, if given.
    """
    done, last = (
        run.resume(residual=agent, rows=rows),
        min(config.iterations if until is None else until, config.iterations),
    )
    for step in run.updates("wm-rl", done, last, clips=rows.count, unit="episode"):
        random = np.random.default_rng([config.seed, step])
        started = rows.begin(random, config.group)
        seed = int(random.integers(2**31))
        episodes, success = agent.play(rows, started, seed, noise=config.noise_level, horizon=config.horizon)
        figures = agent.learn(episodes, random)
        played = sum(len(episode) - 1 for episode in episodes)
        if evaluate is not None and config.evaluate_every and (step + 1) % config.evaluate_every == 0:
            figures["real_success"] = evaluate()
        run.log(step + 1, success=float(success.mean()), steps=played, **figures)
        if run.is_save_step(step + 1, last=last):
            run.save(
                step + 1, also=lambda folder: agent.policy.save_pretrained(folder, base), residual=agent, rows=rows
            )
    return agent
