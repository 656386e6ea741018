"""Episodes that the agent lives through in the world model, from states that really were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.mbrl.replay_buffer import Replay
from ivideogpt.policies.drqv2 import DrQv2
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """What is imagined, when, and for how long it is used. The defaults are the official ones, but for ``retained``.

    Attributes:
        rows: episodes imagined at once.
        horizon: steps of one.
        first_horizon: of the first; it grows to ``horizon`` in a straight line.
        horizon_frames: simulator frames in which it grows; 0: it is ``horizon`` from the start.
        every: steps of the environment between two imaginations.
        initial: imaginations at once, as soon as there is a world model.
        updates: of the agent a step, where there is imagination; 0: as many as without. What was imagined is more data:
            more can be learned from it before it is known by heart.
        real_share: of a batch of the agent that really happened.
        retained: imaginations whose episodes are kept; 0: all, as in the official code.
        temperature, top_k: of tokens.
    """

    rows: int = 32
    horizon: int = 10
    first_horizon: int = 10
    horizon_frames: int = 0
    every: int = 100
    initial: int = 20
    updates: int = 0
    real_share: float = 0.5
    retained: int = 20
    temperature: float = 1.0
    top_k: int = 100

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(
            self, rows=1, horizon=1, first_horizon=1, horizon_frames=0, every=1, initial=0, retained=0, updates=0
        )
        if not 0 <= self.real_share <= 1:
            raise UserError(f"real_share is {self.real_share}; expected 0 to 1")
        self.sampling()

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(temperature=self.temperature, top_k=self.top_k)

    def horizon_at(self, frames: int) -> int:
        """Steps of an imagined episode after so many simulator frames."""
        if not self.horizon_frames:
            return self.horizon
        share = min(frames / self.horizon_frames, 1.0)
        return round(self.first_horizon + share * (self.horizon - self.first_horizon))


class ReplayStarts:
    """States of a buffer to start an imagination from."""

    def __init__(self, replay: Replay, frames: int) -> None:
        """The last of ``frames`` is the state."""
        self.replay, self.frames = replay, frames

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> np.ndarray:
        """uint8 ``[count frames h w 3]``, each state as likely; there are no numbers to choose by."""
        assert indices is None
        return self.replay.starts(count, self.frames, random)


def imagine_episodes(
    model: WorldModel,
    agent: DrQv2,
    replay: Replay,
    config: ImaginationConfig,
    *,
    stack: int,
    horizon: int,
    noise: float,
    seed: int,
    generator: torch.Generator,
    model_units: bool = False,
    brightness: float = 1.0,
) -> list[tuple[Episode, int]]:
    """Lets the agent act in the world model.

    Args:
        model: with a reward head.
        agent: acts, with exploration.
        replay: where the start states are from.
        config: rows and sampling.
        stack: frames of an observation.
        horizon: steps.
        noise: standard deviation of the exploration.
        seed: of the imagination: which starts, which tokens.
        generator: of the exploration.
        model_units: see ``WorldConfig``.
        brightness: see ``DrQv2.act``.

    Returns:
        Episodes and the frame that their first transition starts from; where one terminates another one begins.
    """
    starts = ReplayStarts(replay, max(stack, model.context_frames))
    environment = ImaginedVectorEnv(
        model,
        starts,
        num_envs=config.rows,
        horizon=horizon,
        frame_stack=stack,
        autoreset_mode=AutoresetMode.DISABLED,
        sampling=config.sampling(),
        seed=seed,
        raw_actions=not model_units,
    )
    observations, _ = environment.reset()
    lives = [_Life(row) for row in _stacks(observations, stack)]
    found: list[tuple[Episode, int]] = []
    for step in range(horizon):
        seen = _stacks(observations, stack)
        actions = agent.act(seen, noise, generator, brightness=brightness)
        observations, rewards, terminated, _, _ = environment.step(actions)
        seen = _stacks(observations, stack)
        for row, life in enumerate(lives):
            life.add(seen[row, -1], actions[row], float(rewards[row]), bool(terminated[row]))
        if terminated.any() and step < horizon - 1:
            observations, _ = environment.reset(options={"reset_mask": terminated})
            seen = _stacks(observations, stack)
            for row in np.flatnonzero(terminated):
                found.append((lives[row].episode(), stack - 1))
                lives[row] = _Life(seen[row])
    found += [(life.episode(), stack - 1) for life in lives]
    environment.close()
    return found


class _Life:
    """An episode while it is lived."""

    def __init__(self, seen: np.ndarray) -> None:
        """From what is seen first, uint8 ``[k h w 3]``."""
        self.frames: list[np.ndarray] = list(seen)
        self.rows: list[tuple[np.ndarray, float, bool]] = []

    def add(self, frame: np.ndarray, action: np.ndarray, reward: float, terminated: bool) -> None:
        self.frames.append(frame)
        self.rows.append((action, reward, terminated))

    def episode(self) -> Episode:
        return as_episode(self.frames, self.rows, key="imagined")


def as_episode(
    frames: Sequence[np.ndarray], rows: Sequence[tuple[np.ndarray, float, bool]], *, key: str, **meta: object
) -> Episode:
    """An episode of what was seen and done.

    Args:
        frames: uint8 ``[h w 3]`` each; those before the last ``len(rows) + 1`` are only seen.
        rows: action, reward and terminated of each transition.
        key: its name.
        **meta: what else is known of it.
    """
    before, count = len(frames) - 1 - len(rows), len(frames)
    actions = np.zeros((count, len(rows[0][0])), np.float32)
    rewards, terminated = np.zeros(count, np.float32), np.zeros(count, bool)
    for index, (action, reward, ended) in enumerate(rows, before):
        actions[index], rewards[index], terminated[index] = action, reward, ended
    return Episode(
        frames=np.stack(frames), actions=actions, rewards=rewards, terminated=terminated, key=key, meta=dict(meta)
    )


def _stacks(observations: np.ndarray, stack: int) -> np.ndarray:
    """``[n k h w 3]``, whether there is a stack or not."""
    return observations if stack > 1 else observations[:, None]
