"""Charts of a page as inline SVG: lines over the imagined frames, and points of one quantity by another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.reports.page import Html, tag

# More points than this are a blot: some are left out, evenly.
_MAX_POINTS = 500
_GROUPS = 10


class Plot(NamedTuple):
    """Size of a chart and margins of its plot, in the units of the SVG."""

    width: int = 420
    height: int = 210
    left: int = 52
    bottom: int = 38
    right: int = 12
    top: int = 10

    def x(self, share: float) -> float:
        """Return the horizontal position of a share of the axis, 0 to 1."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float, ticks: Sequence[float]) -> float:
        """Return the vertical position of a value between the first and the last tick."""
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)


#: A chart of its own, and a chart beside a clip.
LARGE_PLOT = Plot()
SMALL_PLOT = Plot(width=320, height=132, left=34, bottom=32, right=14, top=8)


class Line(NamedTuple):
    """One line over the imagined frames.

    Attributes:
        kind: CSS class, which decides on colour and dashes.
        values: one a frame; what is not finite is not drawn.
        low, high: ends of the band around it; empty: no band.
    """

    kind: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def estimate_line(kind: str, estimates: Sequence[Estimate]) -> Line:
    """Make a line with a band of the estimates of each frame."""
    return Line(kind, *([getattr(x, end) for x in estimates] for end in ("value", "low", "high")))


def line_chart(
    lines: Sequence[Line], label: str, *, plot: Plot = LARGE_PLOT, ticks: Sequence[float] | None = None
) -> Html:
    """Draw lines over the imagined frames, with a cursor at the frame that the player shows.

    Args:
        lines: of one length.
        label: description for people who cannot see the chart.
        plot: size.
        ticks: of the vertical axis; None: round numbers around the values.
    """
    values = [x for line in lines for row in line[1:] for x in row if math.isfinite(x)]
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0)) if ticks is None else ticks
    count = len(lines[0].values)
    last = max(count - 1, 1)

    def point(index: int, value: float) -> str:
        return f"{plot.x(index / last):.1f},{plot.y(min(max(value, ticks[0]), ticks[-1]), ticks):.1f}"

    drawn = []
    for line in lines:
        ends = [(i, low, high) for i, (low, high) in enumerate(zip(line.low, line.high, strict=True))]
        ends = [(i, low, high) for i, low, high in ends if math.isfinite(low) and math.isfinite(high)]
        if len(ends) > 1:
            edge = [point(i, high) for i, _, high in ends] + [point(i, low) for i, low, _ in reversed(ends)]
            drawn.append(tag("polygon", class_=line.kind, points=" ".join(edge)))
    for line in lines:
        points = [point(i, value) for i, value in enumerate(line.values) if math.isfinite(value)]
        if len(points) == 1:  # a line of one point would be invisible
            points.append(f"{plot.x(1):.1f},{points[0].split(',')[1]}")
        drawn.append(tag("polyline", class_=line.kind, points=" ".join(points)))
    marks = sorted({0, count - 1, *(range(4, count - 1, 5) if count > 6 else ())})
    cursor = tag(
        "line",
        class_="cursor",
        data_left=f"{plot.x(0):.1f}",
        data_step=f"{(plot.x(1) - plot.x(0)) / last:.3f}",
        x1=f"{plot.x(0):.1f}",
        x2=f"{plot.x(0):.1f}",
        y1=plot.top,
        y2=plot.height - plot.bottom,
        visibility="hidden",
    )
    axes = _axes(plot, ticks, [(plot.x(index / last), f"+{index + 1}") for index in marks], "imagined frame")
    return _svg(plot, label, *axes, *drawn, cursor)


def scatter_chart(x: np.ndarray, y: np.ndarray, label: str, x_name: str) -> Html:
    """Draw a point a frame, and the mean of each tenth of the frames in the order of ``x``.

    Args:
        x: float ``[n]``, drawn from left to right.
        y: float ``[n]``, drawn upwards; 0 is on the axis.
        label: description for people who cannot see the chart.
        x_name: name of the horizontal axis.
    """
    plot = LARGE_PLOT
    ticks = nice_ticks(min(0.0, float(y.min())), max(0.0, float(y.max())))
    marks = nice_ticks(float(x.min()), float(x.max()))

    def position(value: float) -> float:
        return plot.x((value - marks[0]) / (marks[-1] - marks[0]))

    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS)).astype(int))
    points = [
        tag("circle", class_="point", r=2.2, cx=f"{position(float(x[i])):.1f}", cy=f"{plot.y(float(y[i]), ticks):.1f}")
        for i in shown
    ]
    order = np.argsort(x, kind="stable")
    groups = [rows for rows in np.array_split(order, min(_GROUPS, len(order))) if len(rows)]
    trend = [f"{position(float(x[rows].mean())):.1f},{plot.y(float(y[rows].mean()), ticks):.1f}" for rows in groups]
    axes = _axes(plot, ticks, [(position(mark), tick_text(mark, marks)) for mark in marks], x_name)
    return _svg(plot, label, *axes, *points, tag("polyline", class_="trend", points=" ".join(trend)))


def legend(names: Sequence[tuple[str, str]]) -> Html:
    """List the lines of a chart: CSS class and name of each."""
    items = []
    for kind, name in names:
        line = tag("polyline", class_=kind, points="0,4 26,4")
        items.append(tag("li", tag("svg", line, class_="chart", viewBox="0 0 26 8", aria_hidden="true"), name))
    return tag("ul", *items, class_="legend")


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers in ascending order that enclose ``low`` and ``high``."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with as many decimals as distinguish it from the next."""
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits + (abs(step * 10**digits - round(step * 10**digits)) > 1e-6)}f}"


def _axes(plot: Plot, ticks: Sequence[float], marks: Sequence[tuple[float, str]], name: str) -> list[Html]:
    parts = []
    for tick in ticks:
        y = plot.y(tick, ticks)
        parts.append(tag("path", d=f"M{plot.left} {y:.1f}H{plot.x(1):.1f}"))
        parts.append(tag("text", tick_text(tick, ticks), x=plot.left - 7, y=f"{y + 4:.1f}", text_anchor="end"))
    below = plot.height - plot.bottom + 15
    parts += [tag("text", text, x=f"{x:.1f}", y=below, text_anchor="middle") for x, text in marks]
    return [*parts, tag("text", name, x=f"{plot.x(0.5):.1f}", y=plot.height - 4, text_anchor="middle")]


def _svg(plot: Plot, label: str, *content: Html) -> Html:
    return tag("svg", *content, class_="chart", viewBox=f"0 0 {plot.width} {plot.height}", role="img", aria_label=label)
