"""Episodes of the agent in the world model, from real states: rollouts, made here or by the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.collector import episode_of
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.start_states import GivenStarts, StartBatch
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.policies.drqv2 import DrQv2
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """Settings of imagined rollouts. The defaults are the official ones, except ``kept_rollouts``.

    Attributes:
        parallel_episodes: episodes of a rollout.
        horizon: steps of an episode.
        initial_horizon: steps at the start; they grow linearly to ``horizon``.
        horizon_growth_steps: environment steps of the growth; 0: ``horizon`` from the start.
        every_steps: environment steps between two rollouts.
        overlap: a rollout joins the data when the next one begins, so that a cluster can imagine it meanwhile; the
            result is the same without a cluster. False: at once.
        initial_rollouts: rollouts as soon as there is a world model.
        agent_updates_per_step: updates of the agent where there is imagination; 0: as many as without. Imagined
            transitions are more data, so more can be learned before the agent overfits.
        real_share: share of real transitions in a batch of the agent.
        kept_rollouts: newest rollouts whose episodes are kept; 0: all, as in the official code.
        temperature, top_k: of the sampled tokens.
    """

    parallel_episodes: int = 32
    horizon: int = 10
    initial_horizon: int = 10
    horizon_growth_steps: int = 0
    every_steps: int = 100
    overlap: bool = False
    initial_rollouts: int = 20
    agent_updates_per_step: int = 0
    real_share: float = 0.5
    kept_rollouts: int = 20
    temperature: float = 1.0
    top_k: int = 100

    def __post_init__(self) -> None:
        """Check the range of every number."""
        check_at_least(self, parallel_episodes=1, horizon=1, initial_horizon=1, horizon_growth_steps=0, every_steps=1)
        check_at_least(self, initial_rollouts=0, kept_rollouts=0, agent_updates_per_step=0)
        if not 0 <= self.real_share <= 1:
            raise UserError(f"real_share is {self.real_share}; expected 0 to 1")
        self.sampling()

    def sampling(self) -> Sampling:
        """Return the rule that tokens are drawn by."""
        return Sampling(temperature=self.temperature, top_k=self.top_k)

    def horizon_at(self, steps: int) -> int:
        """Return the steps of an imagined episode after so many environment steps."""
        if not self.horizon_growth_steps:
            return self.horizon
        share = min(steps / self.horizon_growth_steps, 1.0)
        return round(self.initial_horizon + share * (self.horizon - self.initial_horizon))


class Workers(Protocol):
    """Processes of a cluster: environments and imagination run there, learning here."""

    def environments(self, rows: Sequence[Callable[[], gymnasium.Env]]) -> VectorEnv:
        """Make a vector of environments, without autoreset."""
        ...

    def begin(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], list[Any]]:
        """Begin to call ``function`` as it is now with each of ``items``; return what waits for the results."""
        ...


@dataclass(frozen=True)
class RolloutPlan:
    """A rollout before it is imagined.

    Attributes:
        starts: states, one an episode; an episode after a terminated one draws one of them.
        horizon: steps.
        noise: standard deviation of the exploration.
        seed: of tokens and exploration.
    """

    starts: StartBatch
    horizon: int
    noise: float
    seed: int


class RolloutBuffer(ReplayBuffer):
    """A replay buffer of imagined episodes that keeps those of the newest rollouts."""

    def __init__(self, capacity: int, *, kept_rollouts: int) -> None:
        """Make an empty buffer; ``kept_rollouts`` 0 keeps all rollouts."""
        super().__init__(capacity)
        self.kept_rollouts = kept_rollouts
        self._rollout_sizes: list[int] = []

    def add_rollout(self, episodes: Sequence[tuple[Episode, int]]) -> int:
        """Add the episodes of a rollout with the frame that each one's first transition starts from.

        Returns:
            Number of added transitions.
        """
        for episode, first in episodes:
            self.add(episode, first=first)
        self._rollout_sizes.append(len(episodes))
        if self.kept_rollouts:
            self._rollout_sizes = self._rollout_sizes[-self.kept_rollouts :]
            self.keep_newest(sum(self._rollout_sizes))
        return sum(len(episode) - 1 - first for episode, first in episodes)

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes and the sizes of the rollouts."""
        return super().state_dict() | {"rollout_sizes": list(self._rollout_sizes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._rollout_sizes = list(state["rollout_sizes"])


def imagine_episodes(
    model: WorldModel,
    agent: DrQv2,
    config: ImaginationConfig,
    frame_stack: int,
    raw_actions: bool,
    rollout: RolloutPlan,
) -> list[tuple[Episode, int]]:
    """Let the agent act in the world model; a function of its arguments alone.

    Args:
        model: with a reward head.
        agent: acts, with exploration.
        config: sampling.
        frame_stack: frames of an observation.
        raw_actions: see ``ImaginedVectorEnv``.
        rollout: start states and horizon.

    Returns:
        Episodes, and the frame that each one's first transition starts from; where an episode terminates early, another
        one begins.
    """
    generator, horizon = torch.Generator().manual_seed(rollout.seed), rollout.horizon
    count = len(rollout.starts.frames)
    environment = ImaginedVectorEnv(
        model,
        GivenStarts(rollout.starts.frames, rewards=rollout.starts.rewards),
        num_envs=count,
        horizon=horizon,
        frame_stack=frame_stack,
        autoreset_mode=AutoresetMode.DISABLED,
        sampling=config.sampling(),
        seed=rollout.seed,
        raw_actions=raw_actions,
    )
    first, _ = environment.reset(options={"indices": np.arange(count)})
    frames = _stacked(first, frame_stack)
    open_episodes = [_OpenEpisode(row) for row in frames]
    episodes: list[Episode] = []
    for step in range(horizon):
        actions = agent.explore({"frames": frames}, rollout.noise, generator)
        observations, rewards, terminated, _, _ = environment.step(actions)
        frames = _stacked(observations, frame_stack)
        for row, episode in enumerate(open_episodes):
            episode.add(frames[row, -1], actions[row], float(rewards[row]), bool(terminated[row]))
        if terminated.any() and step < horizon - 1:
            frames = _stacked(environment.reset(options={"reset_mask": terminated})[0], frame_stack)
            for row in np.flatnonzero(terminated):
                episodes.append(open_episodes[row].finish())
                open_episodes[row] = _OpenEpisode(frames[row])
    episodes += [episode.finish() for episode in open_episodes]
    environment.close()
    return [(episode, frame_stack - 1) for episode in episodes]


class _OpenEpisode:
    """An episode that is not over."""

    def __init__(self, first_frames: np.ndarray) -> None:
        """Begin with the first observation, uint8 ``[k h w 3]``."""
        self.frames: list[np.ndarray] = list(first_frames)
        self.transitions: list[tuple[np.ndarray, float, bool]] = []

    def add(self, frame: np.ndarray, action: np.ndarray, reward: float, terminated: bool) -> None:
        self.frames.append(frame)
        self.transitions.append((action, reward, terminated))

    def finish(self) -> Episode:
        return episode_of(self.frames, self.transitions, key="imagined")


def _stacked(observations: np.ndarray, frame_stack: int) -> np.ndarray:
    """Return ``[n k h w 3]``, with or without a stack."""
    return observations if frame_stack > 1 else observations[:, None]
