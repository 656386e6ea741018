"""Results of reinforcement learning runs, aggregated over seeds.

    groups = grouped([read_run(folder) for folder in folders])
    groups[0].points[-1].returns        # an Estimate

Runs that differ only in the seed are a group. Only evaluations after a number of frames that all its seeds have
reached are aggregated: nothing is interpolated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import LEVEL, RESAMPLES, Bootstrap, Estimate
from ivideogpt.mbrl.run_reader import WORLD_MODEL_SETTINGS, RecordedRun

# Differing settings that a name lists; the rest are counted.
_MOST_NAMED = 2


@dataclass(frozen=True)
class Point:
    """Result of a group after a number of frames.

    Attributes:
        env_frames: simulator frames.
        returns: of an episode.
        success: share of the episodes, 0 to 1.
    """

    env_frames: int
    returns: Estimate
    success: Estimate


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    Attributes:
        task: of all runs.
        name: method, and the settings that distinguish the group from others of the task.
        label: the name, after the task where there are several tasks.
        runs: by ascending seed.
    """

    task: str
    name: str
    label: str
    runs: tuple[RecordedRun, ...]

    @cached_property
    def frames(self) -> list[int]:
        """Simulator frames after which every seed was evaluated, ascending, at least one number."""
        return sorted(set.intersection(*map(_evaluated_frames, self.runs)))

    @property
    def left_out(self) -> int:
        """Number of evaluations that some seeds lack; they make no point."""
        return len(set.union(*map(_evaluated_frames, self.runs)) - set(self.frames))

    @cached_property
    def points(self) -> list[Point]:
        """A point for each of ``frames``.

        A point is the IQM over seeds of each seed's mean over episodes, with a bootstrap interval over seeds. For one
        seed it is that mean, with a bootstrap interval over its episodes, which says nothing about other seeds.
        """
        points = []
        for frames in self.frames:
            evaluations = [run.at(frames) for run in self.runs]
            if len(evaluations) == 1:
                returns, success = map(_over_episodes, (evaluations[0].returns, evaluations[0].successes))
            else:
                returns = over_seeds([np.array([evaluation.mean_return for evaluation in evaluations])])
                success = over_seeds([np.array([evaluation.success for evaluation in evaluations])])
            points.append(Point(frames, returns, success))
        return points

    @property
    def best(self) -> Point:
        """Point with the highest return; the first of equals."""
        return max(self.points, key=lambda point: point.returns.value)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds until the last point, median over seeds."""
        return float(np.median([run.at(self.frames[-1]).seconds for run in self.runs]))

    @property
    def imagined_transitions(self) -> int:
        """Imagined transitions until the last point, median over seeds."""
        return round(np.median([run.at(self.frames[-1]).imagined_transitions for run in self.runs]))


def _evaluated_frames(run: RecordedRun) -> set[int]:
    return {evaluation.env_frames for evaluation in run.evaluations}


def grouped(runs: Sequence[RecordedRun]) -> list[Group]:
    """Group runs that differ only in their seeds; groups and tasks are in the order of their first run.

    Raises:
        UserError: no run; two with the same seed in a group; seeds of a group without an evaluation in common.
    """
    if not runs:
        raise UserError("there is no run to sum up; give the folders of one or more runs of ivideogpt mbrl")
    by_task: dict[str, dict[str, list[RecordedRun]]] = {}
    for run in runs:
        key = json.dumps([run.method, run.preset, run.settings], sort_keys=True)
        by_task.setdefault(run.task, {}).setdefault(key, []).append(run)
    groups = []
    for task, runs_by_settings in by_task.items():
        members = [_by_seed(group) for group in runs_by_settings.values()]
        for name, group in zip(_names([group[0] for group in members]), members, strict=True):
            groups.append(Group(task, name, f"{task}, {name}" if len(by_task) > 1 else name, tuple(group)))
    for group in groups:
        if not group.frames:
            raise UserError(
                f"the seeds of '{group.label}' were never evaluated after the same number of frames; "
                "plot them one by one, or run them with the same evaluate_every_steps"
            )
    return groups


def differing_settings(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the names of settings that differ between ``runs``; unused world-model settings do not count."""
    names = dict.fromkeys(name for run in runs for name in run.settings)

    def differs(name: str) -> bool:
        users = [run for run in runs if run.method != "model-free" or not name.startswith(WORLD_MODEL_SETTINGS)]
        return len({json.dumps(run.settings.get(name), sort_keys=True) for run in users}) > 1

    return [name for name in names if differs(name)]


def iqm(scores: np.ndarray) -> np.ndarray:
    """Return the interquartile mean: the mean without the n // 4 lowest and the n // 4 highest of n scores.

    For fewer than four scores it is the mean.

    Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"; same, as a
    trimmed mean that leaves out whole scores.

    Args:
        scores: float ``[... n]``.

    Returns:
        float ``[...]``.
    """
    count = scores.shape[-1]
    return np.sort(scores, axis=-1)[..., count // 4 : count - count // 4].mean(axis=-1)


def over_seeds(tasks: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Return the IQM of the scores of all tasks with an interval by stratified bootstrap: seeds are resampled per task.

    With few seeds such an interval is too narrow.

    Source: Agarwal et al. 2021; same.

    Args:
        tasks: for each task, one score for each seed, float ``[n]``.
        seed: of the resampling.

    Returns:
        IQM and interval; the ends are NaN where a task has one seed.
    """
    random = np.random.default_rng(seed)
    value = float(iqm(np.concatenate(tasks)))
    if min(map(len, tasks)) < 2:
        return Estimate(value, math.nan, math.nan)
    drawn = [scores[random.integers(len(scores), size=(RESAMPLES, len(scores)))] for scores in tasks]
    low, high = np.quantile(iqm(np.concatenate(drawn, axis=-1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def over_tasks(groups: Sequence[Group]) -> dict[str, Estimate]:
    """Return the success after the last shared evaluation over all tasks, for names that several tasks have.

    Returns cannot be averaged: rewards differ between tasks.
    """
    scores_by_name: dict[str, list[np.ndarray]] = {}
    for group in groups:
        scores = np.array([run.at(group.frames[-1]).success for run in group.runs])
        scores_by_name.setdefault(group.name, []).append(scores)
    return {name: over_seeds(tasks) for name, tasks in scores_by_name.items() if len(tasks) > 1}


def first_reached(group: Group, threshold: float) -> dict[int, int | None]:
    """Return for each seed the simulator frames after which the mean return first was at least ``threshold``.

    Returns:
        seed -> frames, or None where that never happened.
    """

    def first(run: RecordedRun) -> int | None:
        reached = (point.env_frames for point in run.evaluations if point.mean_return >= threshold)
        return next(reached, None)

    return {run.seed: first(run) for run in group.runs}


def _by_seed(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Sort runs by seed; the same seed twice would make an interval too narrow."""
    by_seed: dict[int, RecordedRun] = {}
    for run in runs:
        if run.seed in by_seed:
            raise UserError(
                f"'{by_seed[run.seed].folder}' and '{run.folder}' are runs with the same settings and the same seed, "
                f"{run.seed}; give one of them"
            )
        by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed)]


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """Return a short, unique name for each group of a task, given its first run."""
    presets = {run.preset for run in runs}
    names: list[str] = []
    for run in runs:
        differing = differing_settings([peer for peer in runs if peer.preset == run.preset])
        listed = [name for name in differing if name in run.settings]
        words = [run.method, *([run.preset] if len(presets) > 1 else [])]
        words += [f"{name} {run.settings[name]}" for name in listed[:_MOST_NAMED]]
        words += [f"{len(listed) - _MOST_NAMED} more"] if len(listed) > _MOST_NAMED else []
        name, number = ", ".join(words), 2
        while name in names:
            name, number = f"{', '.join(words)} ({number})", number + 1
        names.append(name)
    return names


def _over_episodes(values: Sequence[float]) -> Estimate:
    """Return the mean of one seed with its interval over episodes."""
    return Bootstrap(len(values)).mean(torch.tensor(values, dtype=torch.float64))
