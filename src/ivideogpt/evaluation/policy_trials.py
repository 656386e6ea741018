"""Success of a policy in a simulator: independent trials, in parallel processes, each with a file of its result.

    trials = trials_of("libero_spatial", per_task=50)
    run_trials(trials, partial(random_policy), settings, folder, workers=2)
    read_results(trials, folder)

A trial is one episode. Its file is written when it is over, so a resumed evaluation plays the trials that lack
one.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.config import from_dict, load_json
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.protocols import Policy
from ivideogpt.data.process_pool import TaskPool, as_pool
from ivideogpt.data.render import write_mp4
from ivideogpt.envs.collector import MOST_STEPS
from ivideogpt.envs.registry import LIBERO_SUITES, canonical_name, find_environment
from ivideogpt.envs.vector import make_single
from ivideogpt.policies.registry import make_policy

#: Makes the policy of a trial: (trial, numbers of an action, side of the pictures in pixels).
PolicyMaker = Callable[["PolicyTrial", int, int], Policy]


@dataclass(frozen=True, kw_only=True)
class PolicyTrial:
    """One episode to play.

    Attributes:
        task: name of the environment.
        seed: of its reset and of the policy.
        episode: number of the recorded episode in the store of demonstrations that is played again; None: none.
        reset_options: of the environment.
    """

    task: str
    seed: int
    episode: int | None = None
    reset_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its files."""
        episode = "" if self.episode is None else f"_{self.episode:05d}"
        return f"{''.join(c if c.isalnum() else '_' for c in self.task)}_{self.seed:08d}{episode}"


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Settings that all trials of an evaluation share.

    Attributes:
        environment_options: arguments of the environment.
        frame_stack, image_size: of what the policy sees, see ``make_vector``.
        videos: of each task, the number of trials that a video is written of.
    """

    environment_options: dict[str, Any] = field(default_factory=dict)
    frame_stack: int = 1
    image_size: int | None = None
    videos: int = 2


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        task, seed: of the trial.
        success: True where a step of the episode succeeded.
        total_reward: sum of the rewards.
        steps: of the episode.
        seconds: wall-clock, without building the simulator.
        final_reward: of the last step; in PushT the covered share of the goal / 0.95.
        trust: of an imagined episode, mean of the signal that tells how far to trust its frames; see
            ``evaluation.calibration``.
    """

    task: str
    seed: int
    success: bool
    total_reward: float
    steps: int
    seconds: float
    final_reward: float | None = None
    trust: float | None = None


def tasks_of(name: str) -> tuple[str, ...]:
    """Return the tasks of a suite of LIBERO, or the one environment that ``name`` is.

    Raises:
        UserError: there is no such environment.
    """
    name = canonical_name(name)
    return tuple(f"{name}/{number}" for number in range(LIBERO_SUITES[name])) if name in LIBERO_SUITES else (name,)


def trials_of(name: str, *, per_task: int, first_seed: int = 0) -> list[PolicyTrial]:
    """Return the trials of an environment; in LIBERO the seeds 0 to 49 are the 50 fixed start states of a task."""
    seeds = range(first_seed, first_seed + per_task)
    return [PolicyTrial(task=task, seed=seed) for task in tasks_of(name) for seed in seeds]


def replay_trials(name: str, episodes: Sequence[Episode], *, per_task: int) -> list[PolicyTrial]:
    """Return trials that begin where recorded episodes began: at their state of the simulator, or at their seed.

    Raises:
        UserError: an episode says neither, or none is of the environment.
    """
    trials: list[PolicyTrial] = []
    tasks = tasks_of(name)
    for number, episode in enumerate(episodes):
        recorded = recorded_task(episode, tasks)
        if recorded is None or sum(trial.task == recorded for trial in trials) == per_task:
            continue
        start, seed = episode.meta.get("initial_state"), episode.meta.get("seed")
        if start is None and seed is None:
            raise UserError(
                f"episode {episode.key!r} says neither the seed nor the state of the simulator that it began with; "
                "give demonstrations that were recorded here, or converted by ivideogpt demos"
            )
        options = {} if start is None else {"simulator_state": start}
        trials.append(PolicyTrial(task=recorded, seed=int(seed or 0), episode=number, reset_options=options))
    if not trials:
        raise UserError(f"none of the {len(episodes)} recorded episodes is of {name}; give its demonstrations")
    return trials


def recorded_task(episode: Episode, tasks: Sequence[str]) -> str | None:
    """Return which of ``tasks`` an episode is of, or None. Episodes that name no task are of the only one."""
    name = episode.meta.get("task", tasks[0] if len(tasks) == 1 else None)
    if name is None:
        return None
    row = find_environment(str(name))
    if row is not None:
        return row[0] if row[0] in tasks else None
    suite = str(episode.meta.get("suite", ""))
    if suite not in LIBERO_SUITES:  # a task of another environment
        return tasks[0] if tasks == (name,) else None
    from ivideogpt.envs.libero import libero_tasks

    numbers = {task.name: f"{suite}/{number}" for number, task in enumerate(libero_tasks(suite))}
    return numbers[name] if numbers.get(str(name)) in tasks else None


class ReplayPolicy:
    """A `Policy` that takes the actions of a recorded episode, and after the last of them none."""

    def __init__(self, actions: np.ndarray, idle: np.ndarray) -> None:
        """Take actions float32 ``[t a]``, then ``idle`` ``[a]``."""
        self._actions, self._idle = actions, idle
        self._step = 0

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin the episode again; see `Policy`."""
        self._step = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next recorded action, float32 ``[1 a]``; the observation is not read."""
        action = self._actions[self._step] if self._step < len(self._actions) else self._idle
        self._step += 1
        return np.asarray(action, np.float32)[None]


def random_policy(trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    """Make the policy of random actions for any trial."""
    return make_policy("random", action_dim=action_dim)


def replay_policy(trial: PolicyTrial, action_dim: int, image: int, *, actions: Mapping[int, np.ndarray]) -> Policy:
    """Make a `ReplayPolicy` of the trial's recorded episode.

    Args:
        trial: of ``replay_trials``.
        action_dim: numbers of an action of the environment.
        image: not used.
        actions: of each episode, float32 ``[t a]`` without the padding row.

    Raises:
        UserError: the recorded actions have another size.
    """
    assert trial.episode is not None
    recorded = actions[trial.episode]
    if recorded.shape[1] != action_dim:
        raise UserError(
            f"recorded episode {trial.episode} has actions of {recorded.shape[1]} numbers and {trial.task} takes "
            f"{action_dim}; give demonstrations of this environment and control mode"
        )
    # Fingers stay as they were left.
    idle = np.zeros(action_dim, np.float32)
    idle[-1] = recorded[-1, -1] if len(recorded) and trial.task.partition("/")[0] in LIBERO_SUITES else 0
    return ReplayPolicy(recorded, idle)


def run_trials(
    trials: Sequence[PolicyTrial],
    make_policy: PolicyMaker,
    settings: TrialSettings,
    folder: Path,
    *,
    workers: int | TaskPool | None = 0,
) -> Iterator[None]:
    """Play the trials that have no result yet; yield after each.

    Args:
        trials: to play.
        make_policy: can be pickled.
        settings: of the environments and what the policy sees.
        folder: of ``trials/*.json`` and ``videos/*.mp4``.
        workers: processes; 0: this one; None: one for each processor. Or a pool.

    Raises:
        UserError: an environment cannot be made, or an episode does not end.
    """
    waiting = waiting_trials(trials, settings, folder)
    for _ in as_pool(workers).run(partial(_run_trial, make_policy, settings, folder), waiting):
        yield
    _close_environments()
    _environment.cache_clear()


def waiting_trials(
    trials: Sequence[PolicyTrial], settings: TrialSettings, folder: Path
) -> list[tuple[PolicyTrial, bool]]:
    """Return the trials without a result, each with True where a video is to be written of it."""
    counts: dict[str, int] = {}
    waiting = []
    for trial in trials:
        number = counts[trial.task] = counts.get(trial.task, 0) + 1
        if not _result_path(folder, trial).is_file():
            waiting.append((trial, number <= settings.videos))
    return waiting


def read_results(trials: Sequence[PolicyTrial], folder: Path) -> list[TrialResult]:
    """Read the results of trials that have been played.

    Raises:
        UserError: a file is damaged.
    """
    paths = [path for trial in trials if (path := _result_path(folder, trial)).is_file()]
    return [from_dict(TrialResult, load_json(path), where=str(path)) for path in paths]


def _result_path(folder: Path, trial: PolicyTrial) -> Path:
    return folder / "trials" / f"{trial.name}.json"


def _run_trial(make_policy: PolicyMaker, settings: TrialSettings, folder: Path, item: tuple[PolicyTrial, bool]) -> None:
    trial, with_video = item
    environment = _environment(trial.task, json.dumps(asdict(settings), sort_keys=True))
    policy = make_policy(trial, environment.action_space.shape[0], environment.observation_space.shape[-2])
    start = time.perf_counter()
    observed, info = environment.reset(seed=trial.seed, options=dict(trial.reset_options))
    policy.reset([trial.seed], [str(info.get("instruction", ""))])
    frames, rewards, success, ended = [observed], [], False, False
    while not ended:
        stacked = observed if settings.frame_stack > 1 else observed[None]
        observation = {"frames": stacked[None]}
        if "state" in info:
            observation["state"] = info["state"][None]
        if rewards:
            observation["reward"] = np.array(rewards[-1:], np.float32)
        for action in actions_of_row(policy.act(observation)):
            observed, reward, terminated, truncated, info = environment.step(action)
            frames.append(observed)
            rewards.append(float(reward))
            success, ended = success or info["success"], bool(terminated or truncated)
            if ended:
                break
        if len(rewards) > MOST_STEPS:
            raise UserError(
                f"an episode of {trial.task} is not over after {MOST_STEPS:,} steps; give the environment a limit: "
                'environment_options={"max_episode_steps": 500}'
            )
    seconds = time.perf_counter() - start
    result = TrialResult(
        task=trial.task,
        seed=trial.seed,
        success=bool(success),
        total_reward=float(np.sum(rewards)),
        steps=len(rewards),
        seconds=round(seconds, 3),
        final_reward=rewards[-1],
    )
    pictures = np.stack([frame[-1] if settings.frame_stack > 1 else frame for frame in frames]) if with_video else None
    write_result(folder, trial, result, pictures, float(environment.unwrapped.metadata.get("render_fps", 10)))


def write_result(
    folder: Path, trial: PolicyTrial, result: TrialResult, frames: np.ndarray | None = None, rate: float = 10.0
) -> None:
    """Write the result of a trial, and a video of frames uint8 ``[t h w 3]`` where they are given."""
    if frames is not None:
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        outcome = "success" if result.success else "failure"
        write_mp4(folder / "videos" / f"{trial.name}_{outcome}.mp4", frames, fps=rate)
    path = _result_path(folder, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(asdict(result)))


def actions_of_row(actions: np.ndarray) -> np.ndarray:
    """Return actions ``[1 a]`` or ``[1 chunk a]`` of the one environment as ``[chunk a]``."""
    return actions if actions.ndim == 2 else actions[0]


# Building a simulator takes seconds: a process keeps the one of its last task.
@functools.lru_cache(maxsize=1)
def _environment(task: str, settings: str) -> Any:
    _close_environments()
    values = json.loads(settings)
    made = make_single(
        task,
        frame_stack=values["frame_stack"],
        image_size=values["image_size"],
        **values["environment_options"],
    )
    _OPEN.append(made)
    return made


_OPEN: list[Any] = []


def _close_environments() -> None:
    while _OPEN:
        _OPEN.pop().close()
