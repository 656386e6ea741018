"""Learning curves of groups of runs: return and success over the frames of the simulator, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ivideogpt.core.errors import MissingExtraError
from ivideogpt.core.files import write_atomic
from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.mbrl.results import Group, Point
from ivideogpt.mbrl.run_reader import RecordedEvaluation

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ModuleNotFoundError as error:
    raise MissingExtraError("matplotlib", "rl") from error

Dashes = Literal["-", "--", ":", "-."]
# Of Okabe and Ito 2008: distinct for every kind of colour vision, and visible on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
# No other text or line has these colours: a page replaces them with its own.
_INK, _FAINT = "#26282d", "#75787f"
PAPER = "#fafaf8"
# In inches; 100 of the PNG's dots are one where it is shown 1000 wide.
_WIDTH, _ROW_HEIGHT, _LEGEND_HEIGHT, _DOTS = 10.0, 3.5, 0.75, 150
# Characters of a legend that fit side by side.
_LEGEND_WIDTH = 105
# With more points than this their marks would hide the line.
_MAX_MARKS = 30
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.2,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "svg.hashsalt": "ivideogpt",
}


def write_png(path: str | Path, groups: Sequence[Group], *, threshold: float | None = None) -> None:
    """Write the curves as a PNG, 1500 pixels wide.

    Args:
        path: file to write; its folder is made.
        groups: as ``grouped`` gives them, at least one; each task has a row of its own.
        threshold: a return to mark, or None.
    """
    with styled():
        figure = _figure(groups, threshold)
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DOTS, facecolor=PAPER))


def curves_svg(groups: Sequence[Group], *, threshold: float | None = None) -> str:
    """Draw the curves as an ``<svg>`` for a page: transparent, in the colour of the page's text.

    Args:
        groups: as for ``write_png``.
        threshold: a return to mark, or None.
    """
    file = io.StringIO()
    with styled():
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        _figure(groups, threshold).savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    # What comes before is for a file of its own.
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "currentColor")
    return text.replace("<svg", '<svg role="img" aria-label="return and success over simulator frames"', 1)


def colours(groups: Sequence[Group]) -> dict[str, tuple[str, Dashes]]:
    """Return colour ("#rrggbb") and dashes of each name; a name has the same for all tasks."""
    names = list(dict.fromkeys(group.name for group in groups))
    count = len(_COLOURS)
    return {name: (_COLOURS[i % count], _DASHES[i // count % len(_DASHES)]) for i, name in enumerate(names)}


@contextmanager
def styled() -> Iterator[None]:
    """Set our style, independent of the user's matplotlibrc."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _figure(groups: Sequence[Group], threshold: float | None) -> Figure:
    tasks = list(dict.fromkeys(group.task for group in groups))
    lines = colours(groups)
    columns = max(_LEGEND_WIDTH // (max(map(len, _entries(groups, lines))) + 8), 1)
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * len(tasks) + _LEGEND_HEIGHT + 0.2 * rows), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for (left, right), task in zip(panels, tasks, strict=True):
        task_groups = [group for group in groups if group.task == task]
        last = max(max(run.evaluations[-1].env_frames for group in task_groups for run in group.runs), 1)
        for axes in (left, right):
            axes.set_xlim(-0.03 * last, 1.03 * last)
            axes.set_xlabel("simulator frames")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _draw(left, task_groups, lines, lambda run: run.mean_return, lambda point: point.returns, 1)
        _draw(right, task_groups, lines, lambda run: run.success, lambda point: point.success, 100)
        left.set_title(task)  # of the row: the axes say what each panel shows
        left.set_ylabel("return of an episode (sum of rewards)")
        right.set_ylabel("episodes with success, %")
        right.set_ylim(-4, 104)
        if threshold is not None:
            left.axhline(threshold, color=_FAINT, linewidth=1, linestyle=(0, (2, 2)))
            left.annotate(f"{threshold:g}", (0, threshold), (4, 3), ("axes fraction", "data"), "offset points")
    handles = [Line2D([], [], color=colour, linestyle=dashes, linewidth=2.4) for colour, dashes in lines.values()]
    figure.legend(handles, _entries(groups, lines), loc="outside upper left", ncols=columns)
    figure.supxlabel(_explained(groups), x=0.01, ha="left", fontsize=9)
    return figure


def _draw(
    axes: Axes,
    groups: Sequence[Group],
    lines: Mapping[str, tuple[str, Dashes]],
    of_seed: Callable[[RecordedEvaluation], float],
    of_point: Callable[[Point], Estimate],
    factor: float,
) -> None:
    """Draw lines and bands of the groups, and thin lines of their seeds; values are multiplied by ``factor``."""
    for group in groups:
        colour, dashes = lines[group.name]
        if len(group.runs) > 1:
            for run in group.runs:
                across = [evaluation.env_frames for evaluation in run.evaluations]
                values = [factor * of_seed(evaluation) for evaluation in run.evaluations]
                axes.plot(across, values, color=colour, linestyle=dashes, linewidth=0.8, alpha=0.45)
        estimates = [of_point(point) for point in group.points]
        values, low, high = ([factor * getattr(x, end) for x in estimates] for end in ("value", "low", "high"))
        marker = "o" if len(estimates) <= _MAX_MARKS else None
        axes.plot(group.frames, values, color=colour, linestyle=dashes, linewidth=2.4, marker=marker, markersize=4)
        axes.fill_between(group.frames, low, high, color=colour, alpha=0.18, linewidth=0)
        if len(estimates) == 1:  # a band of one point would be invisible
            axes.vlines(group.frames, low, high, color=colour, linewidth=1.6)


def _entries(groups: Sequence[Group], lines: Mapping[str, tuple[str, Dashes]]) -> list[str]:
    """Return the entry of the legend for each name."""
    texts = []
    for name in lines:
        counts = {len(group.runs) for group in groups if group.name == name}
        least, most = min(counts), max(counts)
        many = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most > 1)}"
        texts.append(f"{name} ({many})")
    return texts


def _explained(groups: Sequence[Group]) -> str:
    """Explain lines and bands in a sentence."""
    alone = [len(group.runs) == 1 for group in groups]
    of_one = "mean of its episodes and 95 % interval over them"
    if all(alone):
        return f"Line and band: {of_one}; one seed says nothing about others."
    more = f" A single seed: {of_one}." if any(alone) else ""
    return f"Thick line: interquartile mean over seeds. Band: its 95 % interval. Thin lines: seeds.{more}"
