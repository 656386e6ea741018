"""PushT episodes recorded with scripted behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

#: PushT episodes from this seed on are held out.
FIRST_TEST_SEED = 10_000
FRAMES_A_SECOND = 10.0
PUSHT_URL = "https://github.com/huggingface/gym-pusht"

# Of the drags: how often each kind is chosen (the rest are pauses).
_PUSH_SHARE, _ROAM_SHARE = 0.62, 0.28
# The plane of PushT is 512 px wide; the agent's radius is 15 px.
_LOW, _HIGH = 16.0, 496.0
# From the block's reference point to its centre of mass, along its own y axis, in px.
_CENTRE_OFFSET = 45.0
# Far enough from the block's centre not to touch it, in px.
_CLEARANCE = 105.0


@dataclass
class _Leg:
    """A stretch of a drag: move the target to ``goal`` at ``speed`` px a step, then hold it for ``hold`` steps."""

    goal: np.ndarray
    speed: float
    hold: int = 0


class DragPolicy:
    """A person who drags the agent of PushT with a mouse: pushes the block, roams, pauses.

    A push goes behind the block, as seen from where the block should go, and then through it. The target moves
    at a speed drawn for each stretch, from slow to a jump, with a little tremor; where the block lies is read
    from the state when a push begins.
    """

    def __init__(self, random: np.random.Generator) -> None:
        """Draws everything from ``random``."""
        self._random = random
        self._legs: list[_Leg] = []
        self._target: np.ndarray | None = None
        self._tremor = random.choice([0.0, 0.7, 2.0])

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """The next target position, float32 ``[2]`` in px (0 to 512), for ``state`` [5] (see the environment)."""
        target = state[:2].astype(np.float64) if self._target is None else self._target
        while not self._legs:
            self._legs = self._plan(target, state)
        leg = self._legs[0]
        offset = leg.goal - target
        distance = float(np.linalg.norm(offset))
        if distance > leg.speed:
            target = target + offset * (leg.speed / distance)
        else:
            target = leg.goal
            leg.hold -= 1
            if leg.hold < 0:
                self._legs.pop(0)
        self._target = target
        shaken = target + self._tremor * self._random.standard_normal(2)
        return np.clip(shaken, 0.0, 512.0).astype(np.float32)

    def _plan(self, target: np.ndarray, state: np.ndarray) -> list[_Leg]:
        kind = self._random.random()
        if kind < _PUSH_SHARE:
            return self._push(target, state)
        if kind < _PUSH_SHARE + _ROAM_SHARE:
            return self._roam(target)
        return [_Leg(target, 1.0, hold=int(self._random.integers(3, 13)))]

    def _push(self, target: np.ndarray, state: np.ndarray) -> list[_Leg]:
        sine, cosine = np.sin(state[4]), np.cos(state[4])
        centre = state[2:4] + _CENTRE_OFFSET * np.array([-sine, cosine])
        # Towards a place inside the plane, so that the block is not ground against the walls for long.
        wanted = self._random.uniform(110, 402, 2) - centre
        heading = np.arctan2(wanted[1], wanted[0]) + self._random.normal(0.0, 0.3)
        direction = np.array([np.cos(heading), np.sin(heading)])
        side = np.array([-direction[1], direction[0]])
        lateral = side * self._random.normal(0.0, 20.0)
        behind = centre - direction * self._random.uniform(75, _CLEARANCE) + lateral
        beyond = centre + direction * self._random.uniform(10, 130) + lateral
        approach = self._speed(14, 90)
        legs = [_Leg(_inside(behind), approach, hold=int(self._random.integers(0, 2)))]
        # From before the block a straight way would run through it: go round on the nearer side.
        ahead = float((target - centre) @ direction)
        aside = float((target - centre) @ side)
        if ahead > -_CLEARANCE / 2 and self._random.random() < 0.8:
            around = centre + side * (_CLEARANCE if aside >= 0 else -_CLEARANCE)
            legs.insert(0, _Leg(_inside(around), approach))
        legs.append(_Leg(_inside(beyond), self._speed(5, 45), hold=int(self._random.integers(0, 4))))
        return legs

    def _roam(self, target: np.ndarray) -> list[_Leg]:
        speed = self._speed(6, 80)
        heading = self._random.uniform(-np.pi, np.pi)
        legs = []
        for _ in range(self._random.integers(2, 7)):
            # A curve, not a zigzag: each point lies ahead of the last, a little turned.
            heading += self._random.normal(0.0, 0.6)
            length = self._random.uniform(1.0, 3.0) * speed
            target = _inside(target + length * np.array([np.cos(heading), np.sin(heading)]))
            legs.append(_Leg(target, speed))
        return legs

    def _speed(self, low: float, high: float) -> float:
        """Speed in px a step, log-uniform; now and then a jump."""
        if self._random.random() < 0.08:
            return 600.0
        return float(np.exp(self._random.uniform(np.log(low), np.log(high))))


@dataclass(frozen=True, kw_only=True)
class PushTRecording:
    """Settings of recorded PushT episodes.

    Attributes:
        length: frames of an episode, at 10 a second.
        shard: episodes of a file.
    """

    length: int = 48
    shard: int = 100


def _inside(point: np.ndarray) -> np.ndarray:
    return np.clip(point, _LOW, _HIGH)


def collect_pusht(seeds: Iterable[int], length: int = 48) -> Iterator[Episode]:
    """Records one PushT episode a seed; the same seed gives the same episode.

    Args:
        seeds: of the start and the behaviour; from ``FIRST_TEST_SEED`` on the split is "test".
        length: frames an episode, at 10 a second.

    Yields:
        Episodes with frames ``[length 64 64 3]``, actions ``[length 2]`` in px (raw target positions, 0 to 512),
        rewards, terminated (never true: episodes run on after a success) and state ``[length 5]``.
    """
    from ivideogpt.envs.pusht import PushT, normalised_action

    environment = PushT(terminate_on_success=False)
    for seed in seeds:
        policy = DragPolicy(np.random.default_rng([seed, 1]))
        frame, info = environment.reset(seed=seed)
        frames, states = [frame], [info["state"]]
        actions, rewards = np.zeros((length, 2), np.float32), np.zeros(length, np.float32)
        contacts = 0
        for step in range(length - 1):
            actions[step] = policy(info["state"])
            frame, rewards[step], _, _, info = environment.step(normalised_action(actions[step]))
            frames.append(frame)
            states.append(info["state"])
            contacts += info["n_contacts"] > 0
        yield Episode(
            frames=np.stack(frames),
            actions=actions,
            rewards=rewards,
            terminated=np.zeros(length, bool),
            state=np.stack(states),
            key=f"pusht_{seed:08d}",
            split="test" if seed >= FIRST_TEST_SEED else "train",
            meta={"environment": "ivideogpt/PushT-v0", "seed": int(seed), "contact_steps": int(contacts)},
        )


def collect(seeds: str, out: Path, shard: int = 100, length: int = 48, workers: int | None = None) -> None:
    """Records PushT episodes into an episode store; shards that are there are kept, so it resumes.

    Args:
        seeds: "first:stop", one episode a seed, stop excluded; seeds from 10000 on are held out.
        out: folder of the store.
        shard: episodes a file.
        length: frames an episode, at 10 a second.
        workers: processes; 0: this one; default: one for each processor.

    Raises:
        UserError: seeds is not "first:stop", or shard or length is too small.
    """
    first, stop = parse_seeds(seeds)
    if shard < 1 or length < 2:
        raise UserError(f"shard is {shard} and length is {length}; expected at least 1 and 2")
    blocks = [range(start, min(start + shard, stop)) for start in range(first, stop, shard)]
    tasks = [
        ShardTask(f"pusht-{block.start:08d}-{block.stop:08d}", partial(_recorded, block, length)) for block in blocks
    ]
    facts = StoreFacts(name="pusht", url=PUSHT_URL, licence="MIT", options={"length": length, "shard": shard})
    convert_to_store(tasks, out, facts=facts, workers=workers)


def _recorded(seeds: range, length: int) -> Iterator[SourceEpisode]:
    for episode in collect_pusht(seeds, length):
        yield SourceEpisode(
            key=episode.key,
            split=episode.split,
            cameras={"image": episode.frames},
            actions=episode.actions,
            action_fields=(ActionField(name="x", size=1), ActionField(name="y", size=1)),
            rewards=episode.rewards,
            terminated=episode.terminated,
            state=episode.state,
            fps=FRAMES_A_SECOND,
            meta=episode.meta,
        )


def parse_seeds(seeds: str) -> tuple[int, int]:
    """First and stop of "first:stop"; UserError where it is something else."""
    try:
        first, stop = (int(part) for part in seeds.split(":"))
    except ValueError:
        raise UserError(f"seeds is {seeds!r}; expected first:stop, for example 0:3000") from None
    if not 0 <= first < stop:
        raise UserError(f"seeds is {seeds!r}; expected 0 <= first < stop")
    return first, stop
