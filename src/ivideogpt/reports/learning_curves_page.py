"""The page of learning curves: one HTML file with the drawing and tables of what was reached, which fetches nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

from ivideogpt import __version__
from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.mbrl.results import Group, differing_settings, first_reached, over_tasks
from ivideogpt.reports.learning_curves import colours, curves_svg
from ivideogpt.worldmodel.shipped import ASSETS

# Below this many seeds an interval over them says little.
_FEW_SEEDS = 5
_STYLE = """
.curves svg { display: block; width: 100%; height: auto; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
"""


def curves_page(groups: Sequence[Group], *, threshold: float | None = None) -> str:
    """The whole page.

    Args:
        groups: as ``grouped`` gives them, at least one.
        threshold: a return; a table says when each seed first reached it.
    """
    tasks = list(dict.fromkeys(group.task for group in groups))
    title = escape(", ".join(tasks))
    style = (ASSETS / "gallery" / "page.css").read_text(encoding="utf-8")
    style += (ASSETS / "evaluation" / "report.css").read_text(encoding="utf-8") + _STYLE
    tables = [_reached(groups), _across_tasks(groups), _threshold(groups, threshold), _cost(groups)]
    sections = "\n".join(
        f"<section>\n{table}\n</section>" for table in [*tables, _settings(groups), _runs(groups)] if table
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}: learning curves</title>
<style>
{style}
</style>
</head>
<body>
<header>
<p class="kind">iVideoGPT reinforcement learning</p>
<h1>{title}</h1>
<p class="lead">What agents reach in the real simulator, by the simulator frames that they have seen.</p>
{_notices(groups)}
</header>
<main>
<section class="curves">
{curves_svg(groups, threshold=threshold)}
</section>
{sections}
</main>
<footer><p>Made by ivideogpt {__version__}.</p></footer>
</body>
</html>
"""


def number(value: float) -> str:
    """A return of about four digits, or a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share as per cent without decimals, or a dash where there is none."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "3 min" or "8 s"."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def notes(groups: Sequence[Group]) -> list[str]:
    """What must be known before the groups are compared, a sentence each."""
    said: dict[str, list[str]] = {}
    for group in groups:
        count = len(group.runs)
        if count == 1:
            text = "one seed; the interval is over the episodes of an evaluation and says nothing of other seeds"
            said.setdefault(text, []).append(group.label)
        elif count < _FEW_SEEDS:
            trimmed = ", and the interquartile mean of so few is the mean" if count < 4 else ""
            text = f"{count} seeds; an interval over so few is too narrow{trimmed}"
            said.setdefault(text, []).append(group.label)
        if group.left_out:
            text = f"evaluations that only some of the seeds have, in the thin lines alone: {group.left_out}"
            said.setdefault(text, []).append(group.label)
    found = [f"{'; '.join(labels)}: {text}." for text, labels in said.items()]
    for task in dict.fromkeys(group.task for group in groups):
        found += _unequal([group for group in groups if group.task == task])
    return found


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Where groups of a task end after different numbers of frames: that, and what they had reached by the same."""
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


def _notices(groups: Sequence[Group]) -> str:
    listed = "".join(f"<li>{escape(text)}</li>" for text in notes(groups))
    return f'<div class="notice"><strong>Before comparing</strong><ul>{listed}</ul></div>' if listed else ""


def _table(title: str, note: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section's table; cells are HTML, of a row the first is its heading."""
    head = "".join(f'<th scope="col">{text}</th>' for text in headings)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<h2>{title}</h2>\n<p class="note">{note}</p>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _named(group: Group, groups: Sequence[Group]) -> str:
    colour, _ = colours(groups)[group.name]
    return f'<span class="key" style="background:{colour}"></span>{escape(group.label)}'


def _figure(estimate: Estimate, text: str, low: str, high: str) -> str:
    known = math.isfinite(estimate.low)
    return f"{text}<small>{f'{low} to {high}' if known else 'no interval'}</small>"


def _return(estimate: Estimate) -> str:
    return _figure(estimate, *map(number, (estimate.value, estimate.low, estimate.high)))


def _success(estimate: Estimate) -> str:
    return _figure(estimate, *map(percent, (estimate.value, estimate.low, estimate.high)))


def _reached(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        last, best = group.points[-1], group.best
        texts = [str(len(group.runs)), f"{last.env_frames:,}", _return(last.returns), _success(last.success)]
        texts += [f"{best.env_frames:,}", _return(best.returns), _success(best.success)]
        rows.append([_named(group, groups), *texts])
    return _table(
        "What was reached",
        "Last: the last evaluation that all seeds of a group have. Best: the one with the highest return; chosen after "
        "the fact, it flatters. Small: 95 % bootstrap interval.",
        ["", "seeds", "frames, last", "return", "success", "frames, best", "return", "success"],
        rows,
    )


def _across_tasks(groups: Sequence[Group]) -> str:
    rows = [[escape(name), _success(found)] for name, found in over_tasks(groups).items()]
    note = (
        "Success at each task's last evaluation: interquartile mean over all seeds of all tasks; each task's seeds are "
    )
    return _table("All tasks together", note + "drawn again among themselves.", ["", "success"], rows) if rows else ""


def _threshold(groups: Sequence[Group], threshold: float | None) -> str:
    if threshold is None:
        return ""
    rows = []
    for group in groups:
        found = first_reached(group, threshold)
        texts = [f"seed {seed}: {'never' if frames is None else f'{frames:,}'}" for seed, frames in found.items()]
        rows.append([_named(group, groups), ", ".join(texts)])
    note = "Simulator frames after which an evaluation's mean return first was as high."
    return _table(f"Return of {threshold:g} first reached", note, ["", "frames"], rows)


def _cost(groups: Sequence[Group]) -> str:
    rows = [
        [_named(group, groups), duration(group.seconds), f"{group.imagined_transitions:,}", f"{group.frames[-1]:,}"]
        for group in groups
    ]
    note = "Until the last evaluation that all seeds have, median over seeds; evaluations count in the time."
    return _table("What it cost", note, ["", "wall-clock", "imagined transitions", "simulator frames"], rows)


def _settings(groups: Sequence[Group]) -> str:
    """What tells the groups of a task apart; empty where that is the method alone."""
    parts = []
    for task in dict.fromkeys(group.task for group in groups):
        here = [group for group in groups if group.task == task]
        first = [group.runs[0] for group in here]
        rows = [["preset", *(escape(run.preset) for run in first)]] if len({run.preset for run in first}) > 1 else []
        for name in differing_settings(first):
            values = (json.dumps(run.settings[name]) if name in run.settings else "-" for run in first)
            rows.append([escape(name), *map(escape, values)])
        if rows:
            note = "A dash: the group has no such setting."
            headings = ["", *(escape(group.name) for group in here)]
            parts.append(_table(f"Settings that differ: {escape(task)}", note, headings, rows))
    return "\n".join(parts)


def _runs(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        for run in group.runs:
            last = run.evaluations[-1]
            texts = [str(run.seed), f"{last.env_frames:,}", number(last.mean_return), percent(last.success)]
            texts += [str(len(last.returns)), duration(last.seconds), f"{last.imagined_transitions:,}"]
            rows.append([_named(group, groups), *texts, escape(str(run.folder))])
    headings = ["", "seed", "frames", "mean return", "success", "episodes", "wall-clock", "imagined transitions", "run"]
    return _table("Every run", "At its own last evaluation.", headings, rows)
