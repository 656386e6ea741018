"""What the agent reaches in the real environment, without exploration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv

from ivideogpt.mbrl.collector import Collector
from ivideogpt.policies.drqv2 import DrQv2

#: Added to the seed of a run for its evaluations: they meet other episodes, the same ones each time.
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Evaluated:
    """Episodes of an evaluation.

    Attributes:
        returns: sum of rewards of each.
        successes: whether a step of it succeeded.
        lengths: steps of each.
        frames: of the first, uint8 ``[t h w 3]``.
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


def evaluate(agent: DrQv2, environments: VectorEnv, episodes: int, *, seed: int, stack: int) -> Evaluated:
    """Plays ``episodes`` with the mean actions; each environment plays as many, so the shortest are not favoured.

    Args:
        agent: acts.
        environments: with autoreset disabled.
        episodes: a multiple of the environments, or a few more are played.
        seed: of the run.
        stack: frames of an observation.
    """
    collector = Collector(environments, seed=seed + EVALUATION_SEED, stack=stack)
    share = -(-episodes // environments.num_envs)
    found: dict[tuple[int, int], tuple[float, bool, int, np.ndarray]] = {}
    while len(found) < share * environments.num_envs:
        for episode in collector.step(agent.act(collector.observations)):
            _, row, number = episode.key.split("-")
            if int(number) < share:
                meta = episode.meta
                found[int(number), int(row)] = meta["return"], meta["success"], len(episode) - 1, episode.frames
    rows = [found[key] for key in sorted(found)]
    returns, successes, lengths, frames = map(list, zip(*rows, strict=True))
    return Evaluated(returns, successes, lengths, frames[0])
