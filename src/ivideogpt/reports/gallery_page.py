"""The page of ``ivideogpt gallery``: one HTML file with its pictures, style and script inside.

Every picture row is one sprite sheet; the script draws its frames on a canvas, all rows in step. Without the script the
sheets themselves are seen. The page may fetch nothing, and runs no script but its own: its content policy says so.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import torch
from torch import Tensor

from ivideogpt import __version__
from ivideogpt.data.data_uri import png_uri, sprite_sheet
from ivideogpt.data.render import to_uint8
from ivideogpt.reports.gallery_clips import Showcase
from ivideogpt.worldmodel.shipped import ASSETS

#: Frames side by side in a sheet: short enough for every browser's largest picture.
_COLUMNS = 16
#: dB; a frame that happens to be repeated has 100 and would flatten the chart.
_MOST_PSNR = 45.0
# Of a chart, in its own units: width, height, and the edges of the plot.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 120, 30, 312, 8, 98


def gallery_page(
    title: str,
    facts: Mapping[str, str],
    source: str,
    showcases: Sequence[Showcase],
    *,
    sampling: str,
    goal_conditioned: bool = False,
) -> str:
    """The whole page.

    Args:
        title: the model's name.
        facts: what its card says of it: name -> text.
        source: a sentence on where the episodes come from.
        showcases: at least one, all of one length.
        sampling: how tokens were drawn, in words.
        goal_conditioned: the first context frame is the goal.
    """
    window = showcases[0].window
    known, horizon = len(window.context), len(window.true)
    limits = _Limits(showcases)
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    values = {
        "title": escape(title),
        "style": style,
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "frames": str(known + horizon),
        "last": str(known + horizon - 1),
        "context": str(known),
        "columns": str(min(_COLUMNS, known + horizon)),
        "size": str(window.true.shape[-1]),
        "goal": str(int(goal_conditioned)),
        "lead": _lead(showcases, goal_conditioned),
        "source": escape(source),
        "summary": _figures_table(
            showcases, f"All {len(showcases)} showcases" if len(showcases) > 1 else "The showcase"
        ),
        "facts": _list(facts),
        "showcases": "\n".join(
            _section(index, showcase, limits, goal_conditioned) for index, showcase in enumerate(showcases)
        ),
        "footer": f"Made by ivideogpt {__version__}. Tokens drawn with {escape(sampling)}. Space plays and pauses, the "
        "arrow keys go from frame to frame.",
    }
    # One pass: what a file put into a value is never filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("page.html"))


class _Limits:
    """The ends of the vertical axes, the same for all showcases, so that charts can be compared."""

    def __init__(self, showcases: Sequence[Showcase]) -> None:
        ratios = torch.cat([torch.cat([x.psnr.flatten(), x.psnr_copy_last]) for x in showcases]).clamp(max=_MOST_PSNR)
        entropy = max(float(x.entropies.max()) / math.log(2) for x in showcases)
        self.psnr = (5 * int(float(ratios.min()) // 5), 5 * (int(float(ratios.max()) // 5) + 1))
        self.entropy = (0, max(1, int(entropy) + 1))


def _asset(name: str) -> str:
    return (ASSETS / "gallery" / name).read_text(encoding="utf-8").rstrip("\n")


def _lead(showcases: Sequence[Showcase], goal_conditioned: bool) -> str:
    window, seeds = showcases[0].window, showcases[0].seeds
    known, horizon = len(window.context), len(window.true)
    given = "the goal and the last frame" if goal_conditioned else _counted(known, "frame")
    text = (
        f"The model sees {given} (<span class='mark context'>context</span>) and draws the next {horizon} token by "
        f"token: <span class='mark imagined'>{_counted(len(seeds), 'future')}</span>, each with its own random numbers"
    )
    if window.actions is None:
        return (
            f"{text}, beside what really happened. This model takes no actions, so there are no variations under other "
            "actions."
        )
    return (
        f"{text}, under the actions that were really taken and beside what really happened. Then "
        "<span class='mark varied'>the same start under other actions</span>, with the random numbers of the first "
        "future: only the actions differ."
    )


def _section(index: int, showcase: Showcase, limits: _Limits, goal_conditioned: bool) -> str:
    window, known = showcase.window, len(showcase.window.context)
    length = (known - goal_conditioned + len(window.true) - 1) * window.stride
    every = f", one of every {window.stride}" if window.stride > 1 else ""
    rows = [("true", "what happened", "the recording", window.true)]
    for place, seed in enumerate(showcase.seeds):
        note = f"{float(showcase.psnr[place].mean()):.1f} dB, SSIM {float(showcase.ssim[place].mean()):.2f}"
        rows.append(("imagined", f"imagined, seed {seed}", note, showcase.futures[place]))
    varied = [
        ("varied", name, f"differs from seed {showcase.seeds[0]} by {showcase.change(name):.1f} of 255 a pixel", frames)
        for name, frames in showcase.variations.items()
    ]
    groups = [("Same actions" if varied else "Futures", rows)] + ([("Other actions", varied)] if varied else [])
    pictures = "\n".join(
        f'<h3>{title}</h3>\n<div class="rows">\n'
        + "\n".join(_figure(*row[:3], torch.cat([window.context, row[3]])) for row in group)
        + "\n</div>"
        for title, group in groups
    )
    ratios = [("copy", showcase.psnr_copy_last), *(("", ratio) for ratio in showcase.psnr)]
    charts = [
        "<h3>PSNR a frame, dB</h3>",
        _chart(ratios, limits.psnr, "PSNR of each imagined frame in dB; dashed: copy of the last frame"),
        '<p class="note">Solid: a line a seed. Dashed: the last context frame, standing still.</p>',
        "<h3>Token entropy a frame, bits</h3>",
        _chart(
            [("", row / math.log(2)) for row in showcase.entropies],
            limits.entropy,
            "Mean entropy of a token in each frame",
        ),
        '<p class="note">How undecided the model is: 0 where only one token is likely.</p>',
    ]
    return (
        f'<section aria-labelledby="showcase-{index + 1}">\n<h2 id="showcase-{index + 1}">{index + 1}. '
        f"{escape(window.key) or 'recording'}</h2>\n"
        f'<p class="where">recorded frames {window.start} to {window.start + length}{every}</p>\n<div class="parts">\n'
        f"<div>\n{pictures}\n</div>\n<div>\n{_figures_table([showcase], 'Figures')}\n" + "\n".join(charts) + "\n"
        "</div>\n</div>\n</section>"
    )


def _figure(kind: str, label: str, note: str, frames: Tensor) -> str:
    size, label = frames.shape[-1], escape(label)
    uri = png_uri(sprite_sheet(to_uint8(frames), min(_COLUMNS, len(frames))))
    return (
        f'<figure class="{kind}"><canvas width="{size}" height="{size}" role="img" aria-label="{label}"></canvas>'
        f'<div class="scroll"><img class="sheet" src="{uri}" alt="{label}: all {len(frames)} frames"></div>'
        f"<figcaption>{label}<small>{escape(note)}</small></figcaption></figure>"
    )


def _figures_table(showcases: Sequence[Showcase], title: str) -> str:
    """Mean over showcases and frames; the best future of each showcase by PSNR."""
    ratios = torch.stack([x.psnr for x in showcases])
    similar = torch.stack([x.ssim for x in showcases])
    best = ratios.mean(dim=-1).argmax(dim=1)
    chosen = torch.arange(len(showcases))
    futures = ratios.shape[1]
    rows = [("imagined" + (f", mean of {futures}" if futures > 1 else ""), ratios, similar)]
    if futures > 1:
        rows.append((f"imagined, best of {futures}", ratios[chosen, best], similar[chosen, best]))
    copied = torch.stack([x.psnr_copy_last for x in showcases]), torch.stack([x.ssim_copy_last for x in showcases])
    rows.append(("copy of the last frame", *copied))
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{float(ratio.mean()):.1f}</td><td>{float(ratio[..., -1].mean()):.1f}</td>'
        f"<td>{float(like.mean()):.2f}</td></tr>"
        for name, ratio, like in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in (title, "PSNR, dB", f"at +{ratios.shape[-1]}", "SSIM"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _list(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()) + "</dl>"


def _chart(lines: Sequence[tuple[str, Tensor]], limits: tuple[int, int], label: str) -> str:
    """A chart of one value a future frame; the script moves its cursor to the frame that is shown."""
    low, high = limits
    count = len(lines[0][1])
    step = (_RIGHT - _LEFT) / max(count - 1, 1)

    def points(values: Tensor) -> str:
        heights = _BOTTOM - (values.clamp(low, high) - low) / (high - low) * (_BOTTOM - _TOP)
        spots = [f"{_LEFT + step * i:.1f},{float(y):.1f}" for i, y in enumerate(heights)]
        # A line of one point would not be seen.
        return " ".join(spots if count > 1 else [spots[0], f"{_RIGHT},{spots[0].split(',')[1]}"])

    drawn = "".join(f'<polyline class="{kind}" points="{points(values)}"/>' for kind, values in lines)
    cursor = (
        f'<line class="cursor" data-left="{_LEFT}" data-step="{step:.3f}" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" '
        f'y2="{_BOTTOM}" visibility="hidden"/>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}M{_LEFT} {_TOP}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{high}</text>'
        f'<text x="{_LEFT - 6}" y="{_BOTTOM + 3}" text-anchor="end">{low}</text>'
        f'<text x="{_LEFT}" y="{_BOTTOM + 16}">+1</text>'
        f'<text x="{_RIGHT}" y="{_BOTTOM + 16}" text-anchor="end">+{count}</text>{drawn}{cursor}</svg>'
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
