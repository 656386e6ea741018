"""The page of ``ivideogpt gallery``: held-out clips beside imagined futures and other actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ivideogpt.reports.charts import SMALL_PLOT, Line, line_chart, nice_ticks
from ivideogpt.reports.gallery_clips import Showcase
from ivideogpt.reports.page import (
    Html,
    Playback,
    clip_figure,
    definitions,
    folded,
    html_page,
    join,
    section,
    table,
    tag,
)

#: dB; a repeated frame has 100 and would flatten the chart.
_MAX_PSNR = 45.0


def gallery_page(
    title: str,
    facts: Mapping[str, str],
    source: str,
    showcases: Sequence[Showcase],
    *,
    sampling: str | None,
    goal_conditioned: bool = False,
) -> str:
    """Write the whole page: the first clip directly under the title, figures and facts on demand.

    Args:
        title: name of the model.
        facts: of its card: name -> text.
        source: a sentence on the episodes.
        showcases: at least one, all of one length.
        sampling: of the tokens, in words; None: the model draws no random numbers and has one future.
        goal_conditioned: the first context frame is the goal.
    """
    window = showcases[0].window
    count, horizon = len(window.context), len(window.true)
    ticks = _psnr_ticks(showcases), _entropy_ticks(showcases)
    about = tag(
        "div",
        _figures_table(showcases, f"All {_counted(len(showcases), 'clip')}"),
        tag(
            "div",
            tag("p", _explanation(showcases, sampling is not None)),
            tag("p", source, class_="source"),
            definitions(facts),
        ),
        class_="about",
    )
    return html_page(
        kind="iVideoGPT gallery",
        title=title,
        lead=_lead(showcases, goal_conditioned),
        header=[folded("Figures, and about this model", about)],
        main=[
            _section(index, showcase, *ticks, goal_conditioned, sampling is not None)
            for index, showcase in enumerate(showcases)
        ],
        footer=f"Tokens sampled with {sampling}." if sampling else "The model imagines the same every time.",
        player=Playback(
            frames=count + horizon,
            context_frames=count,
            size=window.true.shape[-1],
            goal_conditioned=goal_conditioned,
        ),
    )


def _lead(showcases: Sequence[Showcase], goal_conditioned: bool) -> Html:
    window, futures = showcases[0].window, len(showcases[0].seeds)
    given = "the goal and the last frame" if goal_conditioned else _counted(len(window.context), "frame")
    parts = [
        f"From {given} of ",
        tag("span", "context", class_="mark context"),
        f" the model imagines the next {len(window.true)}: ",
        tag("span", _counted(futures, "future"), class_="mark imagined"),
        " beside the recording",
    ]
    if window.actions is not None:
        parts += [", and ", tag("span", "the same start under other actions", class_="mark varied")]
    return join([*parts, "."])


def _explanation(showcases: Sequence[Showcase], random: bool) -> str:
    if not random:
        return "The future is imagined under the recorded actions. The variations have other actions."
    if showcases[0].window.actions is None:
        return (
            "Each future has its own random numbers. This model takes no actions, so there are no variations under "
            "other actions."
        )
    return (
        "The futures are imagined under the recorded actions, each with its own random numbers. The "
        "variations have the random numbers of the first future: only the actions differ."
    )


def _section(  # noqa: PLR0913
    index: int,
    showcase: Showcase,
    psnr_ticks: Sequence[float],
    entropy_ticks: Sequence[float],
    goal: bool,
    random: bool,
) -> Html:
    window, count = showcase.window, len(showcase.window.context)
    length = (count - goal + len(window.true) - 1) * window.stride
    every = f", one of every {window.stride}" if window.stride > 1 else ""
    place = f"recorded frames {window.start} to {window.start + length}{every}"
    # pictures
    own = [("true", "what happened", "the recording", window.true)]
    for row, seed in enumerate(showcase.seeds):
        note = f"{float(showcase.psnr[row].mean()):.1f} dB, SSIM {float(showcase.ssim[row].mean()):.2f}"
        own.append(("imagined", f"imagined, seed {seed}" if random else "imagined", note, showcase.futures[row]))
    first = f"seed {showcase.seeds[0]}" if random else "that under the true actions"
    varied = [
        ("varied", name, f"differs from {first} by {showcase.change(name):.1f} of 255 a pixel", frames)
        for name, frames in showcase.variations.items()
    ]
    pictures = []
    for title, rows in (("Same actions" if varied else "Futures", own), ("Other actions", varied)):
        figures = [clip_figure(kind, label, note, torch.cat([window.context, x])) for kind, label, note, x in rows]
        pictures += [tag("h3", title), tag("div", *figures, class_="rows")] if figures else []
    # figures and charts
    copy, solid = Line("copy", _clamped(showcase.psnr_copy_last)), "a line a seed" if random else "imagined"
    ratios = [Line("seed", _clamped(row)) for row in showcase.psnr]
    charts = [
        tag("h3", "PSNR a frame, dB"),
        line_chart([copy, *ratios], "PSNR of each imagined frame in dB", plot=SMALL_PLOT, ticks=psnr_ticks),
        tag(
            "p",
            f"Solid: {solid}. Dashed: a copy of the last context frame. Drawn up to {_MAX_PSNR:.0f} dB.",
            class_="note",
        ),
    ]
    if showcase.entropies.numel():
        entropies = [Line("seed", (row / math.log(2)).tolist()) for row in showcase.entropies]
        charts += [
            tag("h3", "Token entropy a frame, bits"),
            line_chart(entropies, "Mean entropy of a token in each frame", plot=SMALL_PLOT, ticks=entropy_ticks),
            tag("p", "Uncertainty of the model: 0 where only one token is likely.", class_="note"),
        ]
    details = tag("div", _figures_table([showcase], "Figures"), *charts)
    return section(
        f"showcase-{index + 1}",
        f"{index + 1}. {window.key or 'recording'}",
        tag("p", place, class_="where"),
        tag("div", tag("div", *pictures), details, class_="parts"),
    )


def _figures_table(showcases: Sequence[Showcase], title: str) -> Html:
    """Write means over showcases and frames; the best future of each showcase is chosen by PSNR."""
    psnr, ssim = (torch.stack([getattr(x, name) for x in showcases]) for name in ("psnr", "ssim"))
    futures, horizon = psnr.shape[1:]
    rows = [("imagined" + (f", mean of {futures}" if futures > 1 else ""), psnr, ssim)]
    if futures > 1:
        best, index = psnr.mean(dim=-1).argmax(dim=1), torch.arange(len(showcases))
        rows.append((f"imagined, best of {futures}", psnr[index, best], ssim[index, best]))
    copy_psnr, copy_ssim = (
        torch.stack([getattr(x, f"{name}_copy_last") for x in showcases]) for name in ("psnr", "ssim")
    )
    rows.append(("copy of the last frame", copy_psnr, copy_ssim))
    cells = [
        (name, f"{float(x.mean()):.1f}", f"{float(x[..., -1].mean()):.1f}", f"{float(y.mean()):.2f}")
        for name, x, y in rows
    ]
    return table((title, "PSNR, dB", f"at +{horizon}", "SSIM"), cells)


def _psnr_ticks(showcases: Sequence[Showcase]) -> list[float]:
    """Return the ticks of all charts of PSNR, the same for all showcases, so that charts can be compared."""
    ratios = torch.cat([torch.cat([x.psnr.flatten(), x.psnr_copy_last]) for x in showcases]).clamp(max=_MAX_PSNR)
    return nice_ticks(float(ratios.min()), float(ratios.max()))


def _entropy_ticks(showcases: Sequence[Showcase]) -> list[float]:
    entropies = [float(x.entropies.max()) / math.log(2) for x in showcases if x.entropies.numel()]
    return nice_ticks(0.0, max([1.0, *entropies]))


def _clamped(ratios: Tensor) -> list[float]:
    return ratios.clamp(max=_MAX_PSNR).tolist()


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
