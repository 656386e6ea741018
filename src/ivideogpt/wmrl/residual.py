"""A correction of a frozen policy: DrQ-v2 on single steps, beside the chunks of the policy.

It needs no probability of the policy, so it works for any `Policy`, also a remote one. The agent sees a picture: the
frame, and below it a margin whose columns show the policy's action and hashed words of the instruction as brightness.

Source: Johannink et al. 2019 (residual reinforcement learning) and Yarats et al. 2021 (DrQ-v2).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.protocols import Policy
from ivideogpt.core.run import Run
from ivideogpt.envs.collector import episode_of
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.policies.drqv2 import AgentConfig, DrQv2
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.rollouts import Rows

#: Pixels of the margin, columns for words, and transitions that are kept.
_MARGIN, _WORDS, _CAPACITY = 8, 16, 50_000


def annotated_frames(frames: np.ndarray, actions: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """Return the pictures of the agent, uint8 ``[n s s 3]`` with s = h + 8.

    Args:
        frames: uint8 ``[n h h 3]``.
        actions: of the policy, float32 ``[n a]`` in -1 to 1.
        instructions: one a row.
    """
    side = frames.shape[1] + _MARGIN
    values = np.zeros((len(frames), actions.shape[1] + _WORDS))
    values[:, : actions.shape[1]] = (actions + 1) / 2
    for row, text in enumerate(instructions):
        for word in text.lower().split():
            values[row, actions.shape[1] + zlib.crc32(word.encode()) % _WORDS] = 1
    pictures = np.zeros((len(frames), side, side, 3), np.uint8)
    pictures[:, :-_MARGIN, :-_MARGIN] = frames
    columns = values[:, np.arange(side) * values.shape[1] // side]
    pictures[:, -_MARGIN:] = (255 * columns).round().astype(np.uint8)[:, None, :, None]
    return pictures


class ResidualAgent:
    """An agent and the transitions that it learns from."""

    def __init__(self, config: WmRlConfig, image: int, action_dim: int, device: torch.device) -> None:
        """Draw new weights for frames of ``image`` pixels a side and actions of ``action_dim`` numbers."""
        # The margin must stay in its place: no shifts. Its last layer begins at 0: no correction.
        settings = AgentConfig(
            encoder_channels=16, hidden_size=256, batch_size=config.minibatch, random_shift=0, discount=config.discount
        )
        self.config, self.agent = config, DrQv2(image + _MARGIN, 1, action_dim, settings).to(device)
        torch.nn.init.zeros_(self.agent.actor.policy[-1].weight)  # type: ignore[arg-type,index]
        torch.nn.init.zeros_(self.agent.actor.policy[-1].bias)  # type: ignore[arg-type,index]
        self.buffer = ReplayBuffer(_CAPACITY)

    def play(
        self, base: Policy, rows: Rows, started: tuple[np.ndarray, list[str]], seed: int, *, noise: float, horizon: int
    ) -> tuple[list[Episode], np.ndarray]:
        """Play episodes that have begun.

        Args:
            base: the frozen policy.
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
        base.reset([seed + row for row in range(rows.count)], instructions)
        over, success = np.zeros(rows.count, bool), np.zeros(rows.count, bool)
        pictures: list[list[np.ndarray]] = [[] for _ in range(rows.count)]
        steps: list[list[tuple[np.ndarray, float, bool]]] = [[] for _ in range(rows.count)]
        chunk = np.zeros((rows.count, 0, 0), np.float32)
        for step in range(horizon + 1):
            if not chunk.shape[1]:
                chosen = base.act({"frames": frames})
                chunk = chosen if chosen.ndim == 3 else chosen[:, None]
            seen = annotated_frames(frames[:, -1], chunk[:, 0], instructions)
            for row in range(rows.count):  # the picture after the last step of an episode is kept too
                if len(pictures[row]) == len(steps[row]):
                    pictures[row].append(seen[row])
            if over.all() or step == horizon:
                break
            correction = self.agent.explore({"frames": seen[:, None]}, noise, generator)
            actions = np.clip(chunk[:, 0] + self.config.residual_scale * correction, -1, 1)
            outcome = rows.play_chunk(actions[:, None].astype(np.float32))
            for row in np.flatnonzero(~over):
                reward = float(outcome.success[row])
                steps[row].append((correction[row], reward, bool(outcome.success[row])))
            success |= outcome.success & ~over
            over, frames, chunk = over | outcome.over, outcome.frames, chunk[:, 1:]
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
    base: Policy,
    agent: ResidualAgent,
    rows: Rows,
    run: Run,
    *,
    evaluate: Callable[[], float] | None = None,
    until: int | None = None,
) -> ResidualAgent:
    """Learn a correction of a policy, or go on where ``run`` stopped; see ``improve_policy``."""
    done, last = (
        run.resume(residual=agent, rows=rows),
        min(config.iterations if until is None else until, config.iterations),
    )
    for step in run.updates("wm-rl", done, last, clips=rows.count, unit="episode"):
        random = np.random.default_rng([config.seed, step])
        started = rows.begin(random, config.group)
        seed = int(random.integers(2**31))
        episodes, success = agent.play(base, rows, started, seed, noise=config.noise_level, horizon=config.horizon)
        figures = agent.learn(episodes, random)
        played = sum(len(episode) - 1 for episode in episodes)
        if evaluate is not None and config.evaluate_every and (step + 1) % config.evaluate_every == 0:
            figures["real_success"] = evaluate()
        run.log(step + 1, success=float(success.mean()), steps=played, **figures)
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, residual=agent, rows=rows)
    return agent
