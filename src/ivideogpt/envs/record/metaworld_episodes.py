"""Recording of Meta-World episodes with the package's scripts, with or without noise, into an episode store.

collect_metaworld(["plate-slide"], range(60), "stores/plate-slide", MetaworldRecording(noise=0.3, random_share=0.2))
"""

from __future__ import annotations

import math
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
from ivideogpt.policies.scripted import SHORTEST_STRETCH, MetaWorldScript

if TYPE_CHECKING:
    from ivideogpt.envs.metaworld import MetaWorld

EPISODES_A_SHARD = 10


@dataclass(frozen=True, kw_only=True)
class MetaworldRecording:
    """Settings of a recording of Meta-World episodes.

    Attributes:
        noise: standard deviation of the noise on each action dimension (-1 to 1).
        random_share: share of the steps, 0 to 1, that are spent in stretches of random motion.
        longest_stretch: most steps of such a stretch, at least 5. Long stretches reach the ends of the hand's space,
            where an untrained agent spends its time.
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
        """Check noise, random_share and longest_stretch."""
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UserError(f"noise is {self.noise}; expected a standard deviation of at least 0")
        if not 0 <= self.random_share <= 1:
            raise UserError(f"random_share is {self.random_share}; expected a share between 0 and 1")
        if self.longest_stretch < SHORTEST_STRETCH:
            raise UserError(f"longest_stretch is {self.longest_stretch}; expected at least {SHORTEST_STRETCH} steps")

    def environment(self, task: str) -> MetaWorld:
        """Make the environment that episodes of ``task`` are recorded in.

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


def record_metaworld(task: str, seeds: Sequence[int], recording: MetaworldRecording) -> Iterator[SourceEpisode]:
    """Record one episode of ``task`` a seed; the same seed and recording give the same episode.

    Args:
        task: of Meta-World.
        seeds: of the start and the behaviour; from ``FIRST_TEST_SEED`` on the split is "test".
        recording: the settings.

    Yields:
        Episodes of ``steps`` + 1 frames with actions ``[t 4]`` as they were taken (-1 to 1), rewards, terminated
        (never true), state ``[t 39]``, and the array ``success``, bool ``[t]``: True where the step from
        frame t to t + 1 succeeded.

    Raises:
        UserError: see ``MetaWorld``.
    """
    environment = recording.environment(task)
    try:
        for seed in seeds:
            yield _record(environment, seed, recording)
    finally:
        environment.close()


def _record(environment: MetaWorld, seed: int, recording: MetaworldRecording) -> SourceEpisode:
    from ivideogpt.envs.metaworld import ACTION_FIELDS

    task, length = environment.task, environment.steps + 1
    script = MetaWorldScript(
        task,
        np.random.default_rng([seed, 1]),
        noise=recording.noise,
        random_share=recording.random_share,
        longest_stretch=recording.longest_stretch,
    )
    frame, info = environment.reset(seed=seed)
    frames, states = [frame], [info["state"]]
    actions = np.zeros((length, sum(width for _, width in ACTION_FIELDS)), np.float32)
    rewards, success = np.zeros(length, np.float32), np.zeros(length, bool)
    for step in range(environment.steps):
        actions[step] = script(info["state"])
        frame, rewards[step], _, _, info = environment.step(actions[step])
        success[step] = info["success"]
        frames.append(frame)
        states.append(info["state"])
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
        meta={
            "task": task,
            "seed": int(seed),
            "noise": recording.noise,
            "random_share": recording.random_share,
            "success": bool(success.any()),
            "return": float(rewards.sum()),
        },
    )


def metaworld_facts(recording: MetaworldRecording) -> StoreFacts:
    """Return the facts for a store's index; stores of one name share an embodiment id in a mixture."""
    return StoreFacts(
        name="metaworld",
        url="https://github.com/Farama-Foundation/Metaworld",
        options=to_dict(recording),
        notes={package: version(package) for package in ("metaworld", "mujoco")},
    )


def metaworld_shards(tasks: Sequence[str], seeds: Sequence[int], recording: MetaworldRecording) -> list[ShardTask]:
    """Make a ``ShardTask`` for every ``EPISODES_A_SHARD`` seeds of a task, tasks one after the other.

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
    tasks: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    recording: MetaworldRecording,
    workers: int | None = None,
) -> None:
    """Record episodes into the store ``out``; the same call again resumes a stopped one.

    Args:
        tasks: of Meta-World.
        seeds: one episode each, of every task.
        out: a new or empty folder, or that of an earlier call with the same ``recording``.
        recording: the settings.
        workers: processes; 0: this one; None: one for each processor.

    Raises:
        UserError: there is no such task, nothing can be drawn here, a number is out of range, or the folder cannot be
            written or holds something else.
    """
    shards = metaworld_shards(tasks, seeds, recording)
    # A wrong task, picture size or OpenGL shows before the folder is made.
    for task in tasks[:1]:
        recording.environment(task).close()
    convert_to_store(shards, out, facts=metaworld_facts(recording), workers=workers)
