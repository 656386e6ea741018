"""Runs of reinforcement learning, summed up over seeds.

    groups = grouped([read_run(folder) for folder in folders])
    groups[0].points[-1].returns        # an Estimate

Runs that differ in nothing but the seed are a group. Only evaluations after a number of frames that all its seeds have
reached are summed up: nothing is interpolated.
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
from ivideogpt.mbrl.run_reader import OF_IMAGINATION, RecordedRun

# More differing settings than these are counted in a name, not named.
_MOST_NAMED = 2


@dataclass(frozen=True)
class Point:
    """What the seeds of a group reached.

    Attributes:
        env_frames: after so many simulator frames.
        returns: of an episode.
        success: share of the episodes, 0 to 1.
    """

    env_frames: int
    returns: Estimate
    success: Estimate


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only.

    Attributes:
        task: of all.
        name: method and what else tells the group from the task's others.
        label: the name, after the task where there are several.
        runs: by ascending seed.
    """

    task: str
    name: str
    label: str
    runs: tuple[RecordedRun, ...]

    @cached_property
    def frames(self) -> list[int]:
        """Simulator frames after which every seed was evaluated, ascending, at least one number."""
        return sorted(set.intersection(*({one.env_frames for one in run.evaluations} for run in self.runs)))

    @property
    def left_out(self) -> int:
        """Evaluations of some seeds that others do not have; no point is made of them."""
        return len({one.env_frames for run in self.runs for one in run.evaluations} - set(self.frames))

    @cached_property
    def points(self) -> list[Point]:
        """A point for each of ``frames``.

        Each is the IQM over seeds of a seed's mean over episodes, with the interval of seeds drawn again. Of one seed
        it is that mean, with the interval of its episodes drawn again, which says nothing of other seeds.
        """
        points = []
        for frames in self.frames:
            found = [run.at(frames) for run in self.runs]
            if len(found) == 1:
                both = [_over_episodes(x) for x in (found[0].returns, found[0].successes)]
            else:
                both = [over_seeds([np.array(x)]) for x in ([f.mean_return for f in found], [f.success for f in found])]
            points.append(Point(frames, *both))
        return points

    @property
    def best(self) -> Point:
        """The point with the highest return, the first of equals."""
        return max(self.points, key=lambda point: point.returns.value)

    @property
    def seconds(self) -> float:
        """Wall-clock until the last point, median over seeds."""
        return float(np.median([run.at(self.frames[-1]).seconds for run in self.runs]))

    @property
    def imagined_transitions(self) -> int:
        """Until the last point, median over seeds."""
        return round(np.median([run.at(self.frames[-1]).imagined_transitions for run in self.runs]))


def grouped(runs: Sequence[RecordedRun]) -> list[Group]:
    """Puts runs together that differ in their seeds only; groups and their tasks in the order of their first run.

    Raises:
        UserError: no run; two with the same seed in a group; seeds of a group without an evaluation in common.
    """
    if not runs:
        raise UserError("there is no run to sum up; give the folders of one or more runs of ivideogpt mbrl")
    together: dict[str, dict[str, list[RecordedRun]]] = {}
    for run in runs:
        key = json.dumps([run.method, run.preset, run.settings], sort_keys=True)
        together.setdefault(run.task, {}).setdefault(key, []).append(run)
    groups = []
    for task, found in together.items():
        members = [_by_seed(group) for group in found.values()]
        for name, group in zip(_names([group[0] for group in members]), members, strict=True):
            groups.append(Group(task, name, f"{task}, {name}" if len(together) > 1 else name, tuple(group)))
    for group in groups:
        if not group.frames:
            raise UserError(
                f"the seeds of '{group.label}' were never evaluated after the same number of frames; "
                "plot them one by one, or run them with the same evaluate_every"
            )
    return groups


def differing_settings(runs: Sequence[RecordedRun]) -> list[str]:
    """Names of the settings in which ``runs`` differ; those of imagination are compared where they are used."""
    names = dict.fromkeys(name for run in runs for name in run.settings)

    def differs(name: str) -> bool:
        users = [run for run in runs if run.method != "model-free" or not name.startswith(OF_IMAGINATION)]
        return len({json.dumps(run.settings.get(name), sort_keys=True) for run in users}) > 1

    return [name for name in names if differs(name)]


def iqm(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean: what remains of n scores without the n // 4 lowest and the n // 4 highest, averaged.

    Of fewer than four scores it is the mean.

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
    """The IQM of the scores of all tasks and its interval, a stratified bootstrap: each task's seeds are drawn again.

    With few seeds such an interval is too narrow.

    Source: Agarwal et al. 2021; same.

    Args:
        tasks: for each task, a score a seed, float ``[n]``.
        seed: of the draws.

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
    """Success after the last shared evaluation over all tasks, for names that several tasks have.

    Returns are no measure here: tasks pay differently.
    """
    together: dict[str, list[np.ndarray]] = {}
    for group in groups:
        scores = np.array([run.at(group.frames[-1]).success for run in group.runs])
        together.setdefault(group.name, []).append(scores)
    return {name: over_seeds(tasks) for name, tasks in together.items() if len(tasks) > 1}


def first_reached(group: Group, threshold: float) -> dict[int, int | None]:
    """For each seed, the simulator frames after which an evaluation's mean return first was ``threshold`` or more.

    Returns:
        seed -> frames, or None where that never happened.
    """

    def first(run: RecordedRun) -> int | None:
        return next((one.env_frames for one in run.evaluations if one.mean_return >= threshold), None)

    return {run.seed: first(run) for run in group.runs}


def _by_seed(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """In ascending order; the same seed twice would make an interval look surer than it is."""
    found: dict[int, RecordedRun] = {}
    for run in runs:
        if run.seed in found:
            raise UserError(
                f"'{found[run.seed].folder}' and '{run.folder}' are runs with the same settings and the same seed, "
                f"{run.seed}; give one of them"
            )
        found[run.seed] = run
    return [found[seed] for seed in sorted(found)]


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """A short name for each group of a task, given its first run; no two are the same."""
    presets = {run.preset for run in runs}
    names: list[str] = []
    for run in runs:
        differing = differing_settings([other for other in runs if other.preset == run.preset])
        mine = [name for name in differing if name in run.settings]
        words = [run.method, *([run.preset] if len(presets) > 1 else [])]
        words += [f"{name} {run.settings[name]}" for name in mine[:_MOST_NAMED]]
        words += [f"{len(mine) - _MOST_NAMED} more"] if len(mine) > _MOST_NAMED else []
        name, again = ", ".join(words), 2
        while name in names:
            name, again = f"{', '.join(words)} ({again})", again + 1
        names.append(name)
    return names


def _over_episodes(values: Sequence[float]) -> Estimate:
    """The mean of one seed, and its interval over episodes."""
    return Bootstrap(len(values)).mean(torch.tensor(values, dtype=torch.float64))
