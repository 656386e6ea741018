"""Replay of ManiSkill's trajectory files in the simulator: the pictures, rewards and successes that they lack."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.maniskill import (
    Trajectory,
    TrajectoryFile,
    TrajectoryInfo,
    read_trajectories,
    read_trajectory_file,
)
from ivideogpt.data.convert.source_episode import ActionField, Omission, SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ConversionSummary, ShardTask, convert_to_store
from ivideogpt.envs.registry import find_environment

if TYPE_CHECKING:
    from ivideogpt.envs.maniskill import ManiSkill

Replay = Literal["states", "first-state", "actions"]
REPLAYS: tuple[Replay, ...] = ("states", "first-state", "actions")
_SHARD = "replay-00000"


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Settings of a replay.

    Attributes:
        replay: "states" puts the simulator into each recorded state before it takes the action (exact on any machine);
            "first-state" into the first one only; "actions" begins at the seed.
        episodes: number of them; -1: all.
        success_only: keep only those that succeed in the replay.
        max_episode_steps: longer ones are cut.
        size, camera: of the pictures, see ``ManiSkill``.
        render_backend: see ``ManiSkill``.
    """

    replay: Replay = "states"
    episodes: int = -1
    success_only: bool = False
    max_episode_steps: int | None = None
    size: int = 64
    camera: str = "render"
    render_backend: str = "auto"

    def __post_init__(self) -> None:
        """Check the range of every number."""
        if self.replay not in REPLAYS:
            raise UserError(f"replay is {self.replay!r}; expected one of {', '.join(REPLAYS)}")
        if self.episodes != -1 and self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}; expected at least 1, or -1 for all")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise UserError(f"max_episode_steps is {self.max_episode_steps}; expected at least 1")


def convert_trajectories(
    path: Path, folder: Path, settings: ReplaySettings, *, task: str | None = None, metadata_path: Path | None = None
) -> ConversionSummary:
    """Replay trajectories into the episode store ``folder``.

    Args:
        path: the .h5 file.
        folder: a new or empty folder, or that of an earlier call with the same settings.
        settings: of the replay.
        task: that the file must be of; None: any of the five.
        metadata_path: see ``read_trajectory_file``.

    Raises:
        UserError: the file is of another task, cannot be read or has no states; nothing can be drawn here; none of the
            trajectories succeeds.
    """
    from ivideogpt.envs.maniskill import choose_render_backend, maniskill_id

    source = read_trajectory_file(path, metadata_path)
    recorded = maniskill_id(source.task)
    if task is not None and maniskill_id(task) != recorded:
        raise UserError(f"{path} holds trajectories of {recorded}, not of {maniskill_id(task)}; give --task {recorded}")
    chosen = tuple(info for info in source.trajectories if info.success or not settings.success_only)
    if not chosen:
        raise UserError(f"{path} holds no trajectories{' that succeed' if settings.success_only else ''}")
    choose_render_backend(settings.render_backend)
    if next(read_trajectories(source, chosen[:1])).states is None and settings.replay != "actions":
        raise UserError(f"{path} holds no states of the simulator; replay its actions: --replay actions")
    read = partial(replay_trajectories, source=source, chosen=chosen, settings=settings)
    key = find_environment(recorded)
    facts = StoreFacts(
        name=f"maniskill-{key[0].partition('/')[2] if key else recorded}",
        url="https://github.com/haosulab/ManiSkill",
        options={"file": path.name} | asdict(settings),
        notes={package: version(package) for package in ("mani-skill", "sapien")},
    )
    return convert_to_store([ShardTask(_SHARD, read)], folder, facts=facts, workers=0)


def replay_trajectories(
    *, source: TrajectoryFile, chosen: tuple[TrajectoryInfo, ...], settings: ReplaySettings
) -> Iterator[SourceEpisode | Omission]:
    """Yield the episodes of trajectories, and an omission for each that does not succeed again.

    Episodes have actions ``[t a]``, rewards, the state observation, the array ``success`` (bool ``[t]``: True where the
    step from frame t to t + 1 succeeded); ``terminated`` is never true, as in the environment.

    Raises:
        UserError: the actions have another size than the robot takes, or states are of another scene.
    """
    from ivideogpt.envs.maniskill import ManiSkill

    environment = ManiSkill(
        source.task,
        size=settings.size,
        camera=settings.camera,
        control_mode=source.control_mode,
        render_backend=settings.render_backend,
        steps=10**6,
    )
    kept = 0
    try:
        for info, trajectory in zip(chosen, read_trajectories(source, chosen), strict=True):
            episode = replay_trajectory(environment, info, trajectory, settings)
            if settings.success_only and not episode.meta["success"]:
                yield Omission(items="episodes", reason="the replay does not succeed", names=(episode.key,))
                continue
            yield episode
            kept += 1
            if kept == settings.episodes:
                return
    finally:
        environment.close()


def replay_trajectory(
    environment: ManiSkill, info: TrajectoryInfo, trajectory: Trajectory, settings: ReplaySettings
) -> SourceEpisode:
    """Replay one trajectory; see ``replay_trajectories``."""
    width, steps = environment.action_space.shape[0], len(trajectory.actions)  # type: ignore[index]
    if trajectory.actions.shape[1] != width:
        raise UserError(
            f"traj_{info.episode_id} has actions of {trajectory.actions.shape[1]} numbers and {environment.task} with "
            f"{environment.control_mode} takes {width}; the description names another control mode or robot"
        )
    steps = min(steps, settings.max_episode_steps or steps)
    seed = info.seed if info.seed is not None else info.episode_id
    frame, details = environment.reset(seed=seed)  # also builds the objects of this seed
    state = details["state"]
    by_states = settings.replay == "states"
    frames, states = [], []
    rewards, success = np.zeros(steps + 1, np.float32), np.zeros(steps + 1, bool)
    for step in itertools.count():
        if by_states or (step == 0 and settings.replay == "first-state"):
            frame = environment.set_simulator_state(trajectory.state(step))
            state = environment.observed_state()
        frames.append(frame)
        states.append(state)
        if step == steps:
            break
        frame, rewards[step], _, _, details = environment.step(trajectory.actions[step])
        state, success[step] = details["state"], details["success"]
    actions = np.zeros((steps + 1, width), np.float32)
    actions[:-1] = np.clip(trajectory.actions[:steps], -1.0, 1.0)
    return SourceEpisode(
        key=f"traj_{info.episode_id}",
        camera="observation",
        cameras={"observation": np.stack(frames)},
        actions=actions,
        action_fields=(ActionField(name=environment.control_mode, size=width),),
        rewards=rewards,
        terminated=np.zeros(steps + 1, bool),
        state=np.stack(states).astype(np.float32),
        arrays={"success": success},
        fps=environment.metadata["render_fps"],
        meta={
            "task": environment.task,
            "control_mode": environment.control_mode,
            "camera": settings.camera,
            "seed": seed,
            "replay": settings.replay,
            "success": bool(success.any()),
            "recorded_success": info.success,
            "return": float(rewards.sum()),
        },
    )
