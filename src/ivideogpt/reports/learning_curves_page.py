"""The page of learning curves: the drawing, and tables of the returns, the successes and the cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.mbrl.results import Group, differing_settings, first_reached, over_tasks
from ivideogpt.reports.learning_curves import colours, curves_svg
from ivideogpt.reports.page import Html, html_page, join, notice, section, table, tag, with_note

# Below this many seeds an interval over them says little.
_FEW_SEEDS = 5


def curves_page(groups: Sequence[Group], *, threshold: float | None = None) -> str:
    """Write the whole page.

    Args:
        groups: as ``grouped`` gives them, at least one.
        threshold: a return; a table gives the frames after which each seed first reached it.
    """
    sections = [_reached(groups), _across_tasks(groups), _threshold(groups, threshold), _cost(groups)]
    return html_page(
        kind="iVideoGPT reinforcement learning",
        title=", ".join(dict.fromkeys(group.task for group in groups)),
        lead="Return and success of agents in the real simulator, over the simulator frames of their training.",
        header=[notice("Before comparing", notes(groups))],
        main=[
            tag("section", Html(curves_svg(groups, threshold=threshold)), class_="curves"),
            *sections,
            *_settings(groups),
            _runs(groups),
        ],
    )


def number(value: float) -> str:
    """Format a return with about four digits, or a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """Format a share as per cent without decimals, or a dash where there is none."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Format seconds as "1 h 02 min", "3 min" or "8 s"."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def notes(groups: Sequence[Group]) -> list[str]:
    """Return remarks that a reader needs before comparing the groups, a sentence each."""
    labels: dict[str, list[str]] = {}
    for group in groups:
        count = len(group.runs)
        if count == 1:
            text = "one seed; the interval is over the episodes of an evaluation and says nothing of other seeds"
            labels.setdefault(text, []).append(group.label)
        elif count < _FEW_SEEDS:
            trimmed = ", and the interquartile mean of so few is the mean" if count < 4 else ""
            text = f"{count} seeds; an interval over so few is too narrow{trimmed}"
            labels.setdefault(text, []).append(group.label)
        if group.left_out:
            text = f"evaluations that only some of the seeds have, in the thin lines alone: {group.left_out}"
            labels.setdefault(text, []).append(group.label)
    remarks = [f"{'; '.join(names)}: {text}." for text, names in labels.items()]
    for task in dict.fromkeys(group.task for group in groups):
        remarks += _unequal([group for group in groups if group.task == task])
    return remarks


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Return a remark where groups of a task end after different numbers of frames, with their returns at the same."""
    if len({group.frames[-1] for group in groups}) == 1:
        return []
    ends = ", ".join(f"{group.name} {group.frames[-1]:,}" for group in groups)
    text = f"{groups[0].task}: the last evaluations are after different numbers of frames: {ends}."
    shared = set.intersection(*(set(group.frames) for group in groups)) - {0}
    if shared:
        points = {group.name: group.points[group.frames.index(max(shared))] for group in groups}
        listed = (f"{name} {number(p.returns.value)} ({percent(p.success.value)})" for name, p in points.items())
        text += f" Return (success) after {max(shared):,}, which all have: {', '.join(listed)}."
    return [text]


def _name(group: Group, groups: Sequence[Group]) -> Html:
    colour, _ = colours(groups)[group.name]
    return join([tag("span", class_="key", style=f"background:{colour}"), group.label])


def _return(estimate: Estimate) -> Html:
    return _with_interval(estimate, *map(number, (estimate.value, estimate.low, estimate.high)))


def _success(estimate: Estimate) -> Html:
    return _with_interval(estimate, *map(percent, (estimate.value, estimate.low, estimate.high)))


def _with_interval(estimate: Estimate, text: str, low: str, high: str) -> Html:
    return with_note(text, f"{low} to {high}" if math.isfinite(estimate.low) else "no interval")


def _table_section(title: str, note: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    identifier = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    return section(identifier, title, tag("p", note, class_="note"), table(headings, rows))


def _reached(groups: Sequence[Group]) -> Html:
    rows = []
    for group in groups:
        last, best = group.points[-1], group.best
        texts = [str(len(group.runs)), f"{last.env_frames:,}", _return(last.returns), _success(last.success)]
        texts += [f"{best.env_frames:,}", _return(best.returns), _success(best.success)]
        rows.append([_name(group, groups), *texts])
    return _table_section(
        "Results",
        "Last: the last evaluation that all seeds of a group have. Best: the one with the highest return; it is too "
        "optimistic, because it is chosen afterwards. Small: 95 % bootstrap interval.",
        ["", "seeds", "frames, last", "return", "success", "frames, best", "return", "success"],
        rows,
    )


def _across_tasks(groups: Sequence[Group]) -> Html:
    rows = [[name, _success(estimate)] for name, estimate in over_tasks(groups).items()]
    note = (
        "Success at the last evaluation of each task: interquartile mean over all seeds of all tasks; the interval "
        "resamples seeds within each task."
    )
    return _table_section("All tasks together", note, ["", "success"], rows) if rows else Html()


def _threshold(groups: Sequence[Group], threshold: float | None) -> Html:
    if threshold is None:
        return Html()
    rows = []
    for group in groups:
        reached = first_reached(group, threshold)
        texts = [f"seed {seed}: {'never' if frames is None else f'{frames:,}'}" for seed, frames in reached.items()]
        rows.append([_name(group, groups), ", ".join(texts)])
    note = "Simulator frames after which an evaluation's mean return first was as high."
    return _table_section(f"Return of {threshold:g} first reached", note, ["", "frames"], rows)


def _cost(groups: Sequence[Group]) -> Html:
    rows = [
        [_name(group, groups), duration(group.seconds), f"{group.imagined_transitions:,}", f"{group.frames[-1]:,}"]
        for group in groups
    ]
    note = "Until the last evaluation that all seeds have, median over seeds; evaluations count in the time."
    return _table_section("Cost", note, ["", "wall-clock", "imagined transitions", "simulator frames"], rows)


def _settings(groups: Sequence[Group]) -> list[Html]:
    """Write the settings in which the groups of a task differ, apart from the method."""
    parts = []
    for task in dict.fromkeys(group.task for group in groups):
        task_groups = [group for group in groups if group.task == task]
        first = [group.runs[0] for group in task_groups]
        rows = [["preset", *(run.preset for run in first)]] if len({run.preset for run in first}) > 1 else []
        for name in differing_settings(first):
            values = (json.dumps(run.settings[name]) if name in run.settings else "-" for run in first)
            rows.append([name, *values])
        if rows:
            note = "A dash: the group has no such setting."
            headings = ["", *(group.name for group in task_groups)]
            parts.append(_table_section(f"Settings that differ: {task}", note, headings, rows))
    return parts


def _runs(groups: Sequence[Group]) -> Html:
    rows = []
    for group in groups:
        for run in group.runs:
            last = run.evaluations[-1]
            texts = [str(run.seed), f"{last.env_frames:,}", number(last.mean_return), percent(last.success)]
            texts += [str(len(last.returns)), duration(last.seconds), f"{last.imagined_transitions:,}"]
            rows.append([_name(group, groups), *texts, str(run.folder)])
    headings = ["", "seed", "frames", "mean return", "success", "episodes", "wall-clock", "imagined transitions", "run"]
    return _table_section("Every run", "At its own last evaluation.", headings, rows)
