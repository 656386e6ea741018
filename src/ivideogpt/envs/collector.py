"""Episodes of vector environments, real or imagined, and the evaluation of a policy in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy

#: Steps after which an episode counts as endless.
MOST_STEPS = 20_000


class Collector:
    """A recorder that steps n environments and returns each episode when it is over.

    An episode is a function of its seed and its actions. So that is the collector's state: on resume, open episodes are
    replayed up to where they were.
    """

    def __init__(self, environments: VectorEnv, *, seed: int, frame_stack: int) -> None:
        """Reset all environments.

        Args:
            environments: with autoreset disabled.
            seed: of their episodes.
            frame_stack: frames k of an observation.
        """
        self.environments, self.seed, self.frame_stack = environments, seed, frame_stack
        #: Seed of each row whose episode began in the last reset or step, else None; for ``Policy.reset``.
        self.new_seeds: list[int | None] = []
        self._episodes = [0] * environments.num_envs
        self._begin()

    @property
    def observation(self) -> dict[str, np.ndarray]:
        """Current observation for a `Policy`: ``frames``, and ``state`` where the environments give one."""
        state = {} if self._state is None else {"state": self._state.copy()}
        return {"frames": self._stacked} | state

    def step(self, actions: np.ndarray) -> list[Episode]:
        """Take an action in each environment, float32 ``[n a]``; return the episodes that this ended.

        Raises:
            UserError: an episode does not end.
        """
        ended = self._advance(np.asarray(actions, np.float32))
        self.new_seeds = [None] * self.environments.num_envs
        episodes = []
        for row in np.flatnonzero(ended):
            rewards = [reward for _, reward, _ in self._transitions[row]]
            episodes.append(
                episode_of(
                    self._frames[row],
                    self._transitions[row],
                    key=f"real-{row}-{self._episodes[row]}",
                    success=bool(self._success[row]),
                    **{"return": float(np.sum(rewards))},
                )
            )
            self._episodes[row] += 1
        if ended.any():
            self._reset(ended)
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers, actions and last frames of the open episodes."""
        actions = [np.array([action for action, _, _ in rows], np.float32) for rows in self._transitions]
        frames = [np.stack(frames[-1:]) for frames in self._frames]
        return {"episodes": list(self._episodes), "actions": actions, "last": frames}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the open episodes.

        Raises:
            UserError: another number of environments, or they show other pictures than before.
        """
        if len(state["episodes"]) != self.environments.num_envs:
            raise UserError(
                f"the run has {len(state['episodes'])} environments, not {self.environments.num_envs}; "
                "go on with as many"
            )
        self._episodes = list(state["episodes"])
        self._begin()
        played = [np.asarray(actions).reshape(-1, self._action_dim) for actions in state["actions"]]

        # Environments of a vector step together: the longest episode begins, the others wait at their start.
        idle = np.zeros(self._action_dim, np.float32)
        for remaining in range(max(map(len, played)), 0, -1):
            waits = np.array([len(actions) < remaining for actions in played])
            self._advance(
                np.stack([idle if wait else actions[-remaining] for wait, actions in zip(waits, played, strict=True)])
            )
            if waits.any():
                self._reset(waits)
        for row, (last, frames) in enumerate(zip(state["last"], self._frames, strict=True)):
            if not np.array_equal(last[0], frames[-1]):
                raise UserError(
                    f"environment {row} shows another picture after the same seed and actions than before the stop; "
                    "it has randomness of its own or another version, so this run cannot go on exactly: start a new one"
                )

    @property
    def _action_dim(self) -> int:
        return int(self.environments.single_action_space.shape[0])  # type: ignore[index]

    def _begin(self) -> None:
        count = self.environments.num_envs
        self._frames: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._transitions: list[list[tuple[np.ndarray, float, bool]]] = [[] for _ in range(count)]
        self._success = np.zeros(count, bool)
        self._state: np.ndarray | None = None
        self._reset(np.ones(count, bool))

    def _reset(self, rows: np.ndarray) -> None:
        self.new_seeds = [
            simulator_seed(self.seed, row, number) if is_reset else None
            for row, (number, is_reset) in enumerate(zip(self._episodes, rows, strict=True))
        ]
        observations, info = self.environments.reset(seed=self.new_seeds, options={"reset_mask": rows})  # pyright: ignore[reportArgumentType]  a list too
        self._observe(observations, info)
        for row in np.flatnonzero(rows):
            self._frames[row], self._transitions[row] = [self._stacked[row, -1]], []
            self._success[row] = False

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        observations, rewards, terminated, truncated, info = self.environments.step(actions)
        self._observe(observations, info)
        self._success |= np.asarray(info.get("success", np.zeros(len(actions))), bool)
        for row, action in enumerate(actions):
            self._frames[row].append(self._stacked[row, -1])
            self._transitions[row].append((action, float(rewards[row]), bool(terminated[row])))
            if len(self._transitions[row]) > MOST_STEPS:
                raise UserError(
                    f"an episode is not over after {MOST_STEPS:,} steps; give the environment a limit, such as "
                    'environment_options={"max_episode_steps": 500}'
                )
        return np.asarray(terminated | truncated)

    def _observe(self, observations: np.ndarray, info: Mapping[str, Any]) -> None:
        # A copy: the environments use their buffer again.
        self._stacked = np.array(observations if self.frame_stack > 1 else observations[:, None])
        if "state" in info:
            rows = np.asarray(info.get("_state", np.ones(len(observations), bool)))
            if self._state is None:
                self._state = np.array(info["state"])
            self._state[rows] = info["state"][rows]


def simulator_seed(seed: int, row: int, episode: int) -> int:
    """Return the seed of an environment's episode, given the run's seed, the environment's and the episode's number."""
    return int(np.random.SeedSequence([seed, row, episode]).generate_state(1)[0])


def episode_of(
    frames: Sequence[np.ndarray], transitions: Sequence[tuple[np.ndarray, float, bool]], *, key: str, **meta: object
) -> Episode:
    """Make an episode of frames and transitions.

    Args:
        frames: uint8 ``[h w 3]`` each; those before the last ``len(transitions) + 1`` have no transition.
        transitions: action, reward and terminated of each.
        key: name of the episode.
        **meta: its meta data.
    """
    before, count = len(frames) - 1 - len(transitions), len(frames)
    actions = np.zeros((count, len(transitions[0][0])), np.float32)
    rewards, terminated = np.zeros(count, np.float32), np.zeros(count, bool)
    for index, (action, reward, ended) in enumerate(transitions, before):
        actions[index], rewards[index], terminated[index] = action, reward, ended
    return Episode(
        frames=np.stack(frames), actions=actions, rewards=rewards, terminated=terminated, key=key, meta=dict(meta)
    )


@dataclass(frozen=True)
class PolicyEvaluation:
    """Episodes of an evaluation.

    Attributes:
        returns: sum of rewards of each episode.
        successes: True where a step of it succeeded.
        lengths: steps of each.
        frames: of the first episode, uint8 ``[t h w 3]``.
    """

    returns: list[float]
    successes: list[bool]
    lengths: list[int]
    frames: np.ndarray

    @property
    def mean_return(self) -> float:
        """Mean over the episodes."""
        return float(np.mean(self.returns))

    @property
    def success(self) -> float:
        """Share of the episodes with success."""
        return float(np.mean(self.successes))


def evaluate_policy(
    policy: Policy, environments: VectorEnv, episodes: int, *, seed: int, frame_stack: int
) -> PolicyEvaluation:
    """Play episodes of a policy, as many in each environment, so that short ones are not favoured.

    Args:
        policy: acts; the rest of a chunk of actions is dropped when an episode ends.
        environments: real or imagined, with autoreset disabled.
        episodes: a multiple of the environments, or a few more are played.
        seed: of the episodes; the same seed gives the same ones.
        frame_stack: frames of an observation.
    """
    collector = Collector(environments, seed=seed, frame_stack=frame_stack)
    per_environment = -(-episodes // environments.num_envs)
    results: dict[tuple[int, int], tuple[float, bool, int, np.ndarray]] = {}
    policy.reset(collector.new_seeds)
    while len(results) < per_environment * environments.num_envs:
        actions = policy.act(collector.observation)
        chunk = [actions] if actions.ndim == 2 else list(np.moveaxis(actions, 1, 0))
        for action in chunk:
            ended = collector.step(action)
            for episode in ended:
                _, row, number = episode.key.split("-")
                if int(number) < per_environment:
                    meta = episode.meta
                    results[int(number), int(row)] = meta["return"], meta["success"], len(episode) - 1, episode.frames
            if ended:
                policy.reset(collector.new_seeds)
                break
    in_order = [results[key] for key in sorted(results)]
    returns, successes, lengths, frames = map(list, zip(*in_order, strict=True))
    return PolicyEvaluation(returns, successes, lengths, frames[0])
