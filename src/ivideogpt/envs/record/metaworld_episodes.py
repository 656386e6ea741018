"""Episodes of Meta-World played by the package's own scripts, steady or shaken, written into an episode store.

collect_metaworld(["plate-slide"], range(60), "stores/plate-slide", Recording(noise=0.3, random_share=0.2))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import in_groups
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED

if TYPE_CHECKING:
    from ivideogpt.envs.metaworld import MetaWorld

EPISODES_A_SHARD = 10
# Fewest steps that the hand is either led by the script or moved at random.
_SHORTEST_STRETCH = 5


@dataclass(frozen=True, kw_only=True)
class Recording:
    """How episodes of Meta-World are recorded.

    Attributes:
        noise: standard deviation of what is added to each number of an action (-1 to 1).
        random_share: share of the steps, 0 to 1, that are spent in stretches of random motion.
        longest_stretch: steps, at least 5, that one lasts at most. Long ones reach the ends of the space of the hand,
            where an agent that has not learned anything yet spends its time.
        size, action_repeat, steps, shadow_size, samples: see ``MetaWorld``.
    """

    noise: float = 0.0
    random_share: float = 0.0
    longest_stretch: int = 15
    size: int = 64
    action_repeat: int = 2
    steps: int = 100
    shadow_size: int = 1024
    samples: int = 4

    def __post_init__(self) -> None:
        """Raises UserError where noise, random_share or longest_stretch is out of range."""
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UserError(f"noise is {self.noise}; expected a standard deviation of at least 0")
        if not 0 <= self.random_share <= 1:
            raise UserError(f"random_share is {self.random_share}; expected a share between 0 and 1")
        if self.longest_stretch < _SHORTEST_STRETCH:
            raise UserError(f"longest_stretch is {self.longest_stretch}; expected at least {_SHORTEST_STRETCH} steps")

    def environment(self, task: str) -> MetaWorld:
        """The environment that episodes of ``task`` are recorded in.

        Raises:
            UserError: see ``MetaWorld``.
        """
        from ivideogpt.envs.metaworld import MetaWorld

        return MetaWorld(
            task,
            size=self.size,
            action_repeat=self.action_repeat,
            steps=self.steps,
            shadow_size=self.shadow_size,
            samples=self.samples,
        )


class ShakenPolicy:
    """The package's script of a task, with a trembling hand that now and then moves at random for a while.

    In a random stretch the hand goes in one direction and the gripper opens or closes at one pace.
    """

    def __init__(self, task: str, recording: Recording, random: np.random.Generator) -> None:
        """Draws everything from ``random``; see ``Recording`` for noise and stretches."""
        from ivideogpt.envs.metaworld import SCRIPTS, task_name

        self._script = SCRIPTS[task_name(task)]()
        self._recording, self._random = recording, random
        self._steps_left = 0
        self._direction: np.ndarray | None = None

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """The next action, float32 ``[4]`` in -1 to 1, for ``state`` float64 ``[39]`` (see the environment)."""
        if not self._steps_left:
            self._steps_left = int(self._random.integers(_SHORTEST_STRETCH, self._recording.longest_stretch + 1))
            at_random = self._random.random() < self._recording.random_share
            self._direction = self._random.uniform(-1.0, 1.0, 4) if at_random else None
        self._steps_left -= 1
        action = self._scripted(state) if self._direction is None else self._direction
        shaken = action + self._recording.noise * self._random.standard_normal(4)
        return np.clip(shaken, -1.0, 1.0).astype(np.float32)

    def _scripted(self, state: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # The scripts warn that they ask for more than the limit; the action is clipped here.
            warnings.filterwarnings("ignore", message="Constant")
            return np.asarray(self._script.get_action(state), np.float64)


def record_metaworld(task: str, seeds: Sequence[int], recording: Recording) -> Iterator[SourceEpisode]:
    """Records one episode of ``task`` a seed; the same seed and recording give the same episode.

    Args:
        task: of Meta-World.
        seeds: of the start and the behaviour; from ``FIRST_TEST_SEED`` on the split is "test".
        recording: how.

    Yields:
        Episodes of ``steps`` + 1 frames with actions ``[t 4]`` as they were taken (-1 to 1), rewards, terminated
        (never true), state ``[t 39]``, and the array ``success``, bool ``[t]``: whether the step from frame t to
        t + 1 succeeded.

    Raises:
        UserError: see ``MetaWorld``.
    """
    environment = recording.environment(task)
    try:
        for seed in seeds:
            yield _record(environment, seed, recording)
    finally:
        environment.close()


def _record(environment: MetaWorld, seed: int, recording: Recording) -> SourceEpisode:
    from ivideogpt.envs.metaworld import ACTION_FIELDS

    task, length = environment.task, environment.steps + 1
    policy = ShakenPolicy(task, recording, np.random.default_rng([seed, 1]))
    frame, info = environment.reset(seed=seed)
    frames, states = [frame], [info["state"]]
    actions = np.zeros((length, sum(width for _, width in ACTION_FIELDS)), np.float32)
    rewards, success = np.zeros(length, np.float32), np.zeros(length, bool)
    for step in range(environment.steps):
        actions[step] = policy(info["state"])
        frame, rewards[step], _, _, info = environment.step(actions[step])
        success[step] = info["success"]
        frames.append(frame)
        states.append(info["state"])
    said = {"noise": recording.noise, "random_share": recording.random_share}
    said |= {"success": bool(success.any()), "return": float(rewards.sum())}
    return SourceEpisode(
        key=f"{task}_{seed:08d}",
        split="test" if seed >= FIRST_TEST_SEED else "train",
        camera="observation",
        cameras={"observation": np.stack(frames)},
        actions=actions,
        action_fields=tuple(ActionField(name=name, size=width) for name, width in ACTION_FIELDS),
        rewards=rewards,
        terminated=np.zeros(length, bool),
        state=np.stack(states).astype(np.float32),
        arrays={"success": success},
        fps=environment.metadata["render_fps"],
        meta={"task": task, "seed": int(seed)} | said,
    )


def metaworld_facts(recording: Recording) -> StoreFacts:
    """What the index of a store of such episodes says; stores of one name share an embodiment id in a mixture."""
    return StoreFacts(
        name="metaworld",
        url="https://github.com/Farama-Foundation/Metaworld",
        options=to_dict(recording),
        notes={package: version(package) for package in ("metaworld", "mujoco")},
    )


def metaworld_shards(tasks: Sequence[str], seeds: Sequence[int], recording: Recording) -> list[ShardTask]:
    """One ``ShardTask`` for every ``EPISODES_A_SHARD`` seeds of a task, tasks one after the other.

    The name of a shard holds its seeds, so a longer range of seeds may be collected into the same folder as long as
    the earlier one ended with a full shard.

    Raises:
        UserError: there is no such task.
    """
    from ivideogpt.envs.metaworld import task_name

    return [
        ShardTask(
            name=f"{task}-{group[0]:08d}-{group[-1] + 1:08d}",
            read=partial(record_metaworld, task=task, seeds=tuple(group), recording=recording),
        )
        for task in map(task_name, tasks)
        for group in in_groups(seeds, EPISODES_A_SHARD)
    ]


def collect_metaworld(
    tasks: Sequence[str], seeds: Sequence[int], out: str | Path, recording: Recording, workers: int | None = None
) -> None:
    """Records episodes into the store ``out``; the same call again goes on where a stopped one was.

    Args:
        tasks: of Meta-World.
        seeds: one episode each, of every task.
        out: a new or empty folder, or that of an earlier call with the same ``recording``.
        recording: how.
        workers: processes; 0: this one; None: one for each processor.

    Raises:
        UserError: there is no such task, nothing can be drawn here, a number is out of range, or the folder cannot be
            written or holds something else.
    """
    shards = metaworld_shards(tasks, seeds, recording)
    # What is wrong with task, picture or OpenGL is said before the folder is made.
    for task in tasks[:1]:
        recording.environment(task).close()
    convert_to_store(shards, out, facts=metaworld_facts(recording), workers=workers)
