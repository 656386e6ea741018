"""Recording of ManiSkill, RoboDesk and robosuite: the script of a task with noise, or random actions without one.

collect_simulator("robodesk/push_red", range(20), "stores/push-red", SimulatorRecording(noise=0.1))
collect_simulator("maniskill/pick-cube", range(20), "stores/pick-cube", SimulatorRecording(length=51))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import in_groups
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED
from ivideogpt.envs.registry import make

_EPISODES_A_SHARD = 10


@dataclass(frozen=True, kw_only=True)
class SimulatorRecording:
    """Settings of recorded episodes.

    Attributes:
        length: frames of an episode; it runs on after success, so that all have one length.
        size: side of a frame in pixels.
        noise: standard deviation of what is added to the actions of a script (-1 to 1).
        smoothness: of random actions: the share of the last action in the next one.
    """

    length: int = 25
    size: int = 64
    noise: float = 0.1
    smoothness: float = 0.8

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, length=2, size=1, noise=0, smoothness=0)
        if self.smoothness >= 1:
            raise UserError(f"smoothness is {self.smoothness}; expected less than 1, or the actions never change")


def record_simulator(task: str, seeds: Sequence[int], recording: SimulatorRecording) -> Iterator[SourceEpisode]:
    """Record one episode a seed; the same seed and recording give the same episode.

    Args:
        task: name of an environment whose info has ``success`` and ``state``; its ``scripted_action()`` acts, if any.
        seeds: of the start and the noise; from ``FIRST_TEST_SEED`` on the split is "test".
        recording: the settings.

    Yields:
        Episodes with actions ``[t a]``, rewards, the state ``[t s]``, and the array ``success`` bool ``[t]``, True
        where a transition leads to a state that solves the task.

    Raises:
        UserError: there is no such environment, or it cannot be drawn here.
    """
    environment: Any = make(task, size=recording.size, steps=recording.length).unwrapped
    try:
        for seed in seeds:
            yield _record(environment, task, seed, recording)
    finally:
        environment.close()


def _record(environment: Any, task: str, seed: int, recording: SimulatorRecording) -> SourceEpisode:
    random, length = np.random.default_rng([seed, 2]), recording.length
    width = environment.action_space.shape[0]
    script, drift = getattr(environment, "scripted_action", None), random.standard_normal(width)
    frame, info = environment.reset(seed=seed)
    frames, states = [frame], [info["state"]]
    actions, rewards = np.zeros((length, width), np.float32), np.zeros(length, np.float32)
    success = np.zeros(length, bool)
    for step in range(length - 1):
        noise = random.standard_normal(width)
        if script is None:
            drift = recording.smoothness * drift + np.sqrt(1 - recording.smoothness**2) * noise
        actions[step] = np.clip(drift if script is None else script() + recording.noise * noise, -1, 1)
        frame, rewards[step], _, _, info = environment.step(actions[step])
        success[step] = info["success"]
        frames.append(frame)
        states.append(info["state"])
    return SourceEpisode(
        key=f"{task.replace('/', '_')}_{seed:08d}",
        split="test" if seed >= FIRST_TEST_SEED else "train",
        cameras={"image": np.stack(frames)},
        actions=actions,
        action_fields=(ActionField(name="action", size=width),),
        rewards=rewards,
        state=np.stack(states).astype(np.float32),
        arrays={"success": success},
        fps=float(environment.metadata["render_fps"]),
        meta={
            "task": task,
            "seed": int(seed),
            **({} if script is None else {"noise": recording.noise}),
            "success": bool(success.any()),
            "return": float(rewards.sum()),
        },
    )


def collect_simulator(
    task: str, seeds: Sequence[int], out: str | Path, recording: SimulatorRecording, workers: int | None = None
) -> None:
    """Record episodes into the store ``out``; the same call again resumes a stopped one.

    Args:
        task: such as "robodesk/push_red".
        seeds: one episode each.
        out: a new or empty folder, or that of an earlier call with the same ``recording``.
        recording: the settings.
        workers: processes; 0: this one; None: one for each processor.

    Raises:
        UserError: see `record_simulator`, or the folder cannot be written or holds something else.
    """
    make(task).close()  # a missing package or OpenGL shows before the folder is made
    shards = [
        ShardTask(
            name=f"{task.replace('/', '-')}-{group[0]:08d}-{group[-1] + 1:08d}",
            read=partial(record_simulator, task=task, seeds=tuple(group), recording=recording),
        )
        for group in in_groups(seeds, _EPISODES_A_SHARD)
    ]
    convert_to_store(shards, out, facts=StoreFacts(name=task, options=asdict(recording)), workers=workers)
