"""The sections of a report: tables and charts, each with what its numbers mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ivideogpt.evaluation.evaluate import Evaluation
from ivideogpt.evaluation.frame_errors import Metric
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.evaluation.intervals import FEWER_RESAMPLES, RESAMPLES, Estimate
from ivideogpt.evaluation.video_distances import Span
from ivideogpt.reports.charts import line_chart, scatter_chart
from ivideogpt.reports.evaluation_report import About, TableRow, perplexity, table_rows

# Rows of the charts: row -> CSS class and name.
_LINES = {
    "reconstruction": ("reconstruction", "reconstruction: the tokenizer alone"),
    "imagined": ("imagined", "imagined, mean of its futures"),
    "copy_last": ("copy", "copy of the last frame"),
}
_STEERED = {
    "imagined": ("imagined", "the true actions"),
    "permuted_actions": ("varied", "another clip's actions"),
    "zero_actions": ("zero", "zero actions"),
    "copy_last": ("copy", "copy of the last frame"),
}


def figure(value: float, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def interval(estimate: Estimate, digits: int) -> str:
    """An estimate's 95 % interval in words."""
    if not math.isfinite(estimate.low):
        return "no interval"
    return f"95 %: {estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def figures_section(found: Evaluation) -> str:
    """How close the pictures are, over the future alone and over whole clips."""
    tables = "\n".join(
        f"<div><h3>{title}</h3>\n{_table(table_rows(found, whole=whole), found.metrics)}\n"
        f'<p class="note">{note}</p></div>'
        for whole, title, note in (
            (False, "Future frames alone", "Only what was imagined."),
            (
                True,
                "Whole clip, as papers report it",
                "The context frames count too, as the tokenizer shows them; they are the same in all rows.",
            ),
        )
    )
    return (
        '<section aria-labelledby="figures">\n<h2 id="figures">How close to what happened</h2>\n<p>Mean over frames, '
        "then over futures as the row says, then over clips; small: 95 % interval over clips. PSNR and SSIM: higher is "
        f'closer. The others: lower is closer.</p>\n<div class="tables">{tables}</div>\n{_videos(found)}\n</section>'
    )


def curves_section(found: Evaluation) -> str:
    """Every metric frame by frame."""
    charts = "\n".join(
        f"<div><h3>{escape(metric.label)} ({'higher' if metric.higher else 'lower'} is closer)</h3>"
        + line_chart(
            {kind: found.curve(row, metric.key) for row, (kind, _) in _LINES.items()}, f"{metric.label} by frame"
        )
        + "</div>"
        for metric in found.metrics
    )
    return (
        '<section aria-labelledby="curves">\n<h2 id="curves">Frame by frame</h2>\n<p>How the distance from the truth '
        f"grows. Bands: 95 % interval over clips.</p>\n{_legend(_LINES)}\n"
        f'<div class="charts">{charts}</div>\n</section>'
    )


def actions_section(found: Evaluation, about: About) -> str:
    """What the actions are good for; empty for an action-free model."""
    if found.following is None:
        return ""
    rows = {row: line for row, line in _STEERED.items() if row in found.scores}
    chart = line_chart({kind: found.curve_first(row, "psnr") for row, (kind, _) in rows.items()}, "PSNR by frame")
    cells = "".join(
        f'<tr><th scope="row">{_STEERED[name][1]}</th>{_cell(score, 2)}{_cell(found.following.gap[name], 2)}</tr>'
        for name, score in found.following.score.items()
    )
    zeros = " Zero is a place here, not a standstill: the picture's corner." if about.pointer else " Zero in raw units."
    motion = found.following.motion
    return (
        '<section aria-labelledby="actions">\n<h2 id="actions">Does it follow the actions?</h2>\n<p>Each clip is '
        "imagined again from the same random numbers, with the actions of the next clip and with zeros. The score is "
        "the share of the avoidable error under wrong actions that the true ones take away: 1 is as close as the "
        f"tokenizer can show, 0 no closer than with wrong actions.{zeros}</p>\n"
        f'<div class="tables"><div><h3>PSNR, dB</h3>{_legend(rows)}<div class="charts">{chart}</div></div>\n'
        '<div><div class="scroll"><table><thead><tr><th scope="col">compared with</th><th scope="col">following score'
        f'</th><th scope="col">gap in PSNR, dB</th></tr></thead><tbody>{cells}</tbody></table></div>\n'
        "<p>Share of the motion that is right (1: all, 0: no better than standing still): "
        f"<b>{figure(motion.value, 2)}</b> ({interval(motion, 2)}).</p></div></div>\n{_objects(found)}\n</section>"
    )


def rewards_section(found: Evaluation) -> str:
    """What the model thinks actions pay; empty where there is nothing to compare."""
    if not found.reward_scores:
        return ""
    named = (
        ("imagined", "imagined, first future"),
        ("mean", f"imagined, mean of {found.protocol.samples}"),
        ("permuted_actions", "with another clip's actions"),
        ("zero_actions", "with zero actions"),
        ("last_known", "the last known reward, unchanged"),
    )
    cells = ""
    for row, label in named:
        if row in found.reward_scores:
            scores = found.reward_scores[row]
            numbers = (scores.pearson, scores.spearman, scores.sums)
            cells += (
                f'<tr><th scope="row">{label}</th>{"".join(_cell(x, 2) for x in numbers)}{_cell(scores.error, 3)}</tr>'
            )
    heads = ("", "linear correlation", "rank correlation", "linear, of the sums over a clip", "mean absolute error")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    imagined, true = (found.reward_rows[row].flatten().numpy() for row in ("imagined", "true"))
    chart = scatter_chart(imagined, true, "Recorded reward by imagined reward", "imagined reward")
    return (
        '<section aria-labelledby="rewards">\n<h2 id="rewards">Does it know what pays?</h2>\n<p>Imagined rewards '
        f"beside recorded ones, in reward units; over all recorded ones the mean is {true.mean():.3g} and the standard "
        f"deviation {true.std():.3g}. A point is a frame of a first future; the line is the mean of each tenth of the "
        "frames. Sums: whether clips that pay more are told from those that pay less; futures of one start, as a "
        "planner compares them, are not compared.</p>\n"
        f'<div class="charts"><div><h3>Recorded by imagined reward</h3>{chart}</div></div>\n'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>\n</section>'
    )


def trust_section(found: Evaluation) -> str:
    """Whether a signal tells the error without the truth."""
    error, charts, rows = found.frame_errors * 255, [], []
    signals = {"entropy": (found.entropies[:, 0] / math.log(2), "token entropy, bits")}
    if found.disagreement is not None:
        signals["disagreement"] = (found.disagreement * 255, "disagreement of the futures, of 255")
    for name, (signal, label) in signals.items():
        chart = scatter_chart(signal.flatten().numpy(), error.flatten().numpy(), f"Error by {label}", label)
        charts.append(f"<div><h3>Error of a frame (of 255) by {label}</h3>{chart}</div>")
        told = found.trust[name]
        cells = "".join(_cell(x, 2) for x in (told.spearman, told.pearson, told.same_frame, told.tail_ratio))
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    names = ("signal", "rank correlation", "linear", "at the same frame number", "error: least sure / surest quarter")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    more = "" if len(signals) > 1 else " With --samples 2 or more the disagreement of the futures is a second signal."
    return (
        '<section aria-labelledby="trust">\n<h2 id="trust">Which frames can be trusted?</h2>\n<p>Two signals are known '
        "without the truth: how unsure the model was of its tokens, and how far several futures are apart. A point is "
        "a frame of a first future; the line is the mean error of each tenth of the frames. Later frames are worse and "
        "less sure, so the third column compares clips at the same frame number: what the signal tells beyond "
        f'that.{more}</p>\n<div class="charts">{"".join(charts)}</div>\n<div class="scroll"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n</section>"
    )


def tokens_section(found: Evaluation) -> str:
    """The transformer on true tokens, and how often it repeats itself."""
    mean = found.bootstrap.mean
    rows = []
    if found.tokens is not None:
        rows += [
            ("likeliest token is the true one", mean(found.tokens.accuracy), "-"),
            ("perplexity", perplexity(mean(found.tokens.loss)), "-"),
        ]
    for name, label in (("", "tokens as in the frame before"), ("_frames", "frames wholly as the one before")):
        imagined = mean(found.repetition[f"imagined{name}"].mean(dim=1))
        true = mean(found.repetition[f"true{name}"])
        rows.append((label, imagined, figure(true.value, 3)))
    cells = "".join(
        f'<tr><th scope="row">{label}</th>{_cell(one, 3)}<td>{other}</td></tr>' for label, one, other in rows
    )
    scored = f"the first {found.tokens.frames} future frames" if found.tokens is not None else ""
    given = f"Accuracy and perplexity: on {scored}, all true tokens before each one given." if scored else ""
    return (
        '<section aria-labelledby="tokens">\n<h2 id="tokens">Tokens</h2>\n<div class="scroll"><table><thead><tr>'
        '<th scope="col"></th><th scope="col">model</th><th scope="col">recording</th></tr></thead><tbody>'
        f"{cells}</tbody></table></div>\n<p class='note'>{given} Repetition is counted from the second imagined frame "
        "on; a model that only copies repeats far more than the recording.</p>\n</section>"
    )


def terms_section(found: Evaluation, held_out: HeldOut, about: About) -> str:
    """What the words mean, how it was measured, and what the model is."""
    protocol = found.protocol
    terms = {
        "best of k": "Of k futures the one nearest to the truth, chosen with the truth in hand: it tells whether the "
        "truth is among what the model thinks possible. It grows with k and is no forecast.",
        "reconstruction": "The true frames as tokens and back. No draw of tokens can be expected to be closer.",
        "95 % interval": f"Clips drawn again with replacement, {RESAMPLES:,} times ({FEWER_RESAMPLES} times for "
        "correlations). It says how much depends on which clips were measured, not on how the model was trained.",
        **({found.video_name: _VIDEO_TERM} if found.video_name else {}),
    }
    terms |= {metric.label: _PERCEPTUAL_TERM for metric in found.metrics if "LPIPS" in metric.label}
    speed = len(found.clips) * protocol.samples * protocol.horizon / found.seconds
    settings = {
        "checkpoint": about.checkpoint,
        "data": f"{about.data} ({held_out.dataset}), split {held_out.split}",
        "clips": f"{len(found.clips)}, one an episode, of {protocol.clip_frames} frames at stride {held_out.stride}, "
        + ("from frame 0" if protocol.start == "first" else "from a random frame"),
        "futures": f"{protocol.samples} a clip, temperature {protocol.temperature:g}, top-k {protocol.top_k}, seed "
        f"{found.seed}",
        "speed": f"{speed:.1f} imagined frames/s",
        **about.facts,
    }
    return (
        '<section aria-labelledby="terms">\n<h2 id="terms">What the numbers are</h2>\n<dl class="terms">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms.items())
        + "</dl>\n<h3>How it was measured</h3>\n<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in settings.items())
        + "</dl>\n</section>"
    )


_VIDEO_TERM = (
    "How far the imagined videos as a set are from the true ones, as a network sees them. It falls as more videos are "
    "measured, so only scores of equal numbers of videos compare. Only what is called FVD compares with published FVD."
)
_PERCEPTUAL_TERM = (
    "How different two frames look to a network that was fitted to people's judgements. Only the score that is called "
    "LPIPS, without another word before it, compares with published LPIPS."
)


def _table(rows: Sequence[TableRow], metrics: Sequence[Metric]) -> str:
    head = '<th scope="col"></th>' + "".join(f'<th scope="col">{escape(metric.label)}</th>' for metric in metrics)
    lines = "".join(
        f'<tr class="{"own" if row.label.startswith("imagined") else ""}"><th scope="row">{escape(row.label)}<small>'
        f"{escape(row.note)}</small></th>{''.join(_cell(row.figures[m.key], m.digits) for m in metrics)}</tr>"
        for row in rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table class="wide-head">{body}</table></div>'


def _cell(estimate: Estimate, digits: int) -> str:
    if not math.isfinite(estimate.value):
        return '<td class="none">-</td>'
    ends = f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}" if math.isfinite(estimate.low) else ""
    return f"<td>{estimate.value:.{digits}f}<small>{ends}</small></td>"


def _videos(found: Evaluation) -> str:
    """The distances of videos; empty where none were measured."""
    if not found.video:
        return ""
    names = {
        "imagined": f"imagined, all {found.protocol.samples} futures",
        "imagined_first": "imagined, first",
        "reconstruction": "reconstruction",
        "copy_last": "copy of the last frame",
    }
    if found.protocol.samples == 1:
        names = {"imagined": "imagined"} | {row: names[row] for row in ("reconstruction", "copy_last")}
    spans: dict[Span, str] = {"whole_clip": "whole clip", "future": "future alone"}
    head = "".join(f'<th scope="col">{label}</th>' for span, label in spans.items() if span in found.video)
    lines = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(f"<td>{found.video[span][row]:.4g}</td>" for span in spans if span in found.video)
        + "</tr>"
        for row, label in names.items()
    )
    return (
        f"<h3>{escape(found.video_name)} (lower is closer)</h3>\n"
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def _objects(found: Evaluation) -> str:
    """Figures of the domain; empty where it has none."""
    if not found.objects:
        return ""
    rows = [row for row in ("imagined", "permuted_actions", "zero_actions", "reconstruction") if row in found.objects]
    names = [_STEERED.get(row, ("", row))[1] for row in rows]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)

    lines = "".join(
        f'<tr><th scope="row">{escape(key.replace("_", " "))}</th>'
        + "".join(f"<td>{figure(found.objects[row][key], 2)}</td>" for row in rows)
        + "</tr>"
        for key in found.objects["imagined"]
    )
    return (
        "<h3>Where things are, read from the pictures</h3>\n"
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def _legend(rows: Mapping[str, tuple[str, str]]) -> str:
    items = "".join(
        '<li><svg class="chart" viewBox="0 0 26 8" aria-hidden="true">'
        f'<polyline class="{kind}" points="0,4 26,4"/></svg>{escape(name)}</li>'
        for kind, name in rows.values()
    )
    return f'<ul class="legend">{items}</ul>'
