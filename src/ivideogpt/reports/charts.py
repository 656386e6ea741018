"""The charts of a report as inline SVG: a line a row over time, and a signal beside the error it should tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from ivideogpt.evaluation.intervals import Estimate

# Of a chart, in its own units: width, height, and the edges of the plot.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 210, 52, 408, 10, 172
# More points than this are a blot: some are left out, evenly.
_MOST_POINTS = 500
_GROUPS = 10


def line_chart(rows: Mapping[str, Sequence[Estimate]], label: str) -> str:
    """Estimates of each future frame, with their intervals as bands; a cursor follows the frame that is shown.

    Args:
        rows: CSS class -> one estimate a frame, all of one length; NaN is not drawn.
        label: what is drawn, for people who cannot see it.
    """
    values = [x for row in rows.values() for one in row for x in (one.value, one.low, one.high) if math.isfinite(x)]
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0))
    count = len(next(iter(rows.values())))
    step = (_RIGHT - _LEFT) / max(count - 1, 1)

    def at(index: int, value: float) -> str:
        return f"{_LEFT + step * index:.1f},{_height(value, ticks):.1f}"

    drawn = []
    for kind, row in rows.items():
        banded = [(i, one) for i, one in enumerate(row) if math.isfinite(one.low) and math.isfinite(one.high)]
        if len(banded) > 1:
            edge = [at(i, one.high) for i, one in banded] + [at(i, one.low) for i, one in reversed(banded)]
            drawn.append(f'<polygon class="{kind}" points="{" ".join(edge)}"/>')
    for kind, row in rows.items():
        spots = [at(i, one.value) for i, one in enumerate(row) if math.isfinite(one.value)]
        if len(spots) == 1:  # a line of one point would not be seen
            spots.append(f"{_RIGHT},{spots[0].split(',')[1]}")
        drawn.append(f'<polyline class="{kind}" points="{" ".join(spots)}"/>')
    marks = sorted({0, count - 1, *(range(4, count - 1, 5) if count > 6 else ())})
    across = [(_LEFT + step * index, f"+{index + 1}") for index in marks]
    cursor = (
        f'<line class="cursor" data-left="{_LEFT}" data-step="{step:.3f}" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" '
        f'y2="{_BOTTOM}" visibility="hidden"/>'
    )
    return _svg(label, _axes(ticks, across, "imagined frame") + "".join(drawn) + cursor)


def scatter_chart(signal: np.ndarray, error: np.ndarray, label: str, across: str) -> str:
    """A point a frame, and the mean of each tenth of the frames in the order of the signal.

    Args:
        signal: float ``[n]``, drawn from left to right.
        error: float ``[n]``, what it tells, drawn upwards; 0 is on the axis.
        label: what is drawn, for people who cannot see it.
        across: name of the horizontal axis.
    """
    ticks = nice_ticks(min(0.0, float(error.min())), max(0.0, float(error.max())))
    marks = nice_ticks(float(signal.min()), float(signal.max()))

    def at(x: float, y: float) -> tuple[str, str]:
        place = _LEFT + (x - marks[0]) / (marks[-1] - marks[0]) * (_RIGHT - _LEFT)
        return f"{place:.1f}", f"{_height(y, ticks):.1f}"

    shown = np.unique(np.linspace(0, len(signal) - 1, min(len(signal), _MOST_POINTS)).astype(int))
    points = "".join(
        '<circle class="point" r="2.2" cx="{}" cy="{}"/>'.format(*at(float(signal[i]), float(error[i]))) for i in shown
    )
    order = np.argsort(signal, kind="stable")
    groups = [part for part in np.array_split(order, min(_GROUPS, len(order))) if len(part)]
    line = " ".join(",".join(at(float(signal[part].mean()), float(error[part].mean()))) for part in groups)
    below = [(float(at(mark, 0.0)[0]), tick_text(mark, marks)) for mark in marks]
    return _svg(label, _axes(ticks, below, across) + points + f'<polyline class="trend" points="{line}"/>')


def nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers, in ascending order, from at or below ``low`` to at or above ``high``."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many decimals as tell it from the next."""
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits + (abs(step * 10**digits - round(step * 10**digits)) > 1e-6)}f}"


def _height(value: float, ticks: Sequence[float]) -> float:
    return _BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_BOTTOM - _TOP)


def _axes(ticks: Sequence[float], across: Sequence[tuple[float, str]], name: str) -> str:
    lines = "".join(
        f'<path d="M{_LEFT} {_height(tick, ticks):.1f}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 7}" y="{_height(tick, ticks) + 4:.1f}" text-anchor="end">{tick_text(tick, ticks)}</text>'
        for tick in ticks
    )
    marks = "".join(f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{text}</text>' for x, text in across)
    middle = (_LEFT + _RIGHT) / 2
    return f'{lines}{marks}<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(name)}</text>'


def _svg(label: str, content: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'
    )
