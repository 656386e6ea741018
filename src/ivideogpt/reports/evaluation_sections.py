"""Sections of the evaluation report: tables and charts, each with the meaning of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ivideogpt.evaluation.calibration import Calibration
from ivideogpt.evaluation.evaluate import Evaluation
from ivideogpt.evaluation.frame_errors import Metric
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.evaluation.intervals import FEWER_RESAMPLES, RESAMPLES, Estimate
from ivideogpt.evaluation.video_distances import Span
from ivideogpt.reports.charts import Line, estimate_line, legend, line_chart, scatter_chart
from ivideogpt.reports.evaluation_report import About, TableRow, perplexity, table_rows
from ivideogpt.reports.page import Html, definitions, fixed, section, table, tag, with_note

# Lines of the charts: row of the evaluation -> CSS class and name.
_LINES = {
    "reconstruction": ("reconstruction", "reconstruction: the tokenizer alone"),
    "imagined": ("imagined", "imagined, mean of its futures"),
    "copy_last": ("copy", "copy of the last frame"),
}
_ACTION_LINES = {
    "imagined": ("imagined", "the true actions"),
    "permuted_actions": ("varied", "another clip's actions"),
    "zero_actions": ("zero", "zero actions"),
    "copy_last": ("copy", "copy of the last frame"),
}


def interval(estimate: Estimate, digits: int) -> str:
    """Return the 95 % interval of an estimate in words."""
    if not math.isfinite(estimate.low):
        return "no interval"
    return f"95 %: {estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def _lines(evaluation: Evaluation) -> dict[str, tuple[str, str]]:
    """Return the lines of the charts over time that there are figures for."""
    return {row: line for row, line in _LINES.items() if row in evaluation.scores}


def figures_section(evaluation: Evaluation) -> Html:
    """Write the figures of the pictures, over the future alone and over whole clips."""
    blocks, shown = [], ", reconstructed by the tokenizer" if "reconstruction" in evaluation.scores else ""
    for whole, title, note in (
        (False, "Future frames alone", "Only the imagined frames."),
        (
            True,
            "Whole clip, as papers report it",
            f"The context frames count too{shown}; they are the same in all rows.",
        ),
    ):
        rows = _metric_table(table_rows(evaluation, whole=whole), evaluation.metrics)
        blocks.append(tag("div", tag("h3", title), rows, tag("p", note, class_="note")))
    lead = (
        "Mean over frames, then over futures as the row says, then over clips; small: 95 % interval over clips. "
        "PSNR and SSIM: higher is closer. The others: lower is closer."
    )
    return section(
        "figures",
        "How close to what happened",
        tag("p", lead),
        tag("div", *blocks, class_="tables wide-head"),
        *_video_table(evaluation),
    )


def curves_section(evaluation: Evaluation) -> Html:
    """Write every metric frame by frame."""
    charts = []
    for metric in evaluation.metrics:
        lines = [
            estimate_line(kind, evaluation.curve(row, metric.key)) for row, (kind, _) in _lines(evaluation).items()
        ]
        title = f"{metric.label} ({'higher' if metric.higher else 'lower'} is closer)"
        charts.append(tag("div", tag("h3", title), line_chart(lines, f"{metric.label} by frame")))
    return section(
        "curves",
        "Frame by frame",
        tag("p", "Growth of the distance from the truth. Bands: 95 % interval over clips."),
        legend(list(_lines(evaluation).values())),
        tag("div", *charts, class_="charts"),
    )


def actions_section(evaluation: Evaluation, about: About) -> Html:
    """Write the effect of the actions; empty for an action-free model."""
    following = evaluation.following
    if following is None:
        return Html()
    lines = {row: line for row, line in _ACTION_LINES.items() if row in evaluation.scores}
    chart = line_chart(
        [estimate_line(kind, evaluation.curve_first(row, "psnr")) for row, (kind, _) in lines.items()],
        "PSNR by frame",
    )
    rows = [
        (_ACTION_LINES[name][1], estimate_cell(score, 2), estimate_cell(following.gap[name], 2))
        for name, score in following.score.items()
    ]
    zeros = (
        "Zero is a position here, the corner of the picture, not a standstill."
        if about.pointer
        else ("Zeros are in raw units.")
    )
    best = "as close as the tokenizer can draw" if "reconstruction" in evaluation.scores else "no error"
    lead = (
        "Each clip is imagined again from the same random numbers, with the actions of the next clip and with zeros. "
        f"The score is the share of the avoidable error under wrong actions that the true ones remove: 1 is {best}, "
        f"0 no closer than with wrong actions. {zeros}"
    )
    motion = tag(
        "p",
        "Share of the motion that is right (1: all, 0: no better than standing still): ",
        tag("b", fixed(following.motion.value, 2)),
        f" ({interval(following.motion, 2)}).",
    )
    left = tag("div", tag("h3", "PSNR, dB"), legend(list(lines.values())), tag("div", chart, class_="charts"))
    right = tag("div", table(("compared with", "action-following score", "gap in PSNR, dB"), rows), motion)
    return section(
        "actions",
        "Does it follow the actions?",
        tag("p", lead),
        tag("div", left, right, class_="tables"),
    )


def domain_section(evaluation: Evaluation, dataset: str) -> Html:
    """Write the measures of the world that the clips show; empty where it has none."""
    if not evaluation.objects:
        return Html()
    columns = [row for row in (*_ACTION_LINES, "reconstruction") if row in evaluation.objects]
    headings = [_ACTION_LINES[row][1] if row in _ACTION_LINES else row for row in columns]
    rows = [
        (key.replace("_", " "), *(fixed(evaluation.objects[row][key], 2) for row in columns))
        for key in evaluation.objects["imagined"]
    ]
    charts = []
    for key in evaluation.objects_by_frame.get("imagined", {}):
        lines = [Line(kind, evaluation.objects_by_frame[row][key]) for row, (kind, _) in _lines(evaluation).items()]
        charts.append(tag("div", tag("h3", key.replace("_", " ")), line_chart(lines, f"{key} by frame")))
    model = [(name.replace("_", " "), text) for name, text in _flat(evaluation.model_figures)]
    also = " and for the tokenizer alone" if "reconstruction" in evaluation.scores else ""
    return section(
        "domain",
        f"Measures of {dataset}",
        tag("p", "Read from the pictures, for each kind of actions" + also + "."),
        table(("", *headings), rows),
        *([legend(list(_lines(evaluation).values())), tag("div", *charts, class_="charts")] if charts else []),
        *([tag("h3", "The model itself"), table(("", "value"), model)] if model else []),
    )


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested figures to names and texts."""
    rows = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}, ")
        else:
            rows.append((f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def rewards_section(evaluation: Evaluation) -> Html:
    """Write imagined beside recorded rewards; empty where there is nothing to compare."""
    if not evaluation.reward_scores:
        return Html()
    names = {
        "imagined": "imagined, first future",
        "mean": f"imagined, mean of {evaluation.protocol.samples}",
        "permuted_actions": "with another clip's actions",
        "zero_actions": "with zero actions",
        "last_known": "the last known reward, unchanged",
    }
    rows = []
    for row, name in names.items():
        if row in evaluation.reward_scores:
            scores = evaluation.reward_scores[row]
            correlations = (estimate_cell(x, 2) for x in (scores.pearson, scores.spearman, scores.sums))
            rows.append((name, *correlations, estimate_cell(scores.error, 3)))
    headings = ("", "linear correlation", "rank correlation", "linear, of the sums over a clip", "mean absolute error")
    imagined, true = (evaluation.reward_rows[row].flatten().numpy() for row in ("imagined", "true"))
    chart = scatter_chart(imagined, true, "Recorded reward by imagined reward", "imagined reward")
    lead = (
        "Imagined rewards beside recorded ones, in reward units; over all recorded ones the mean is "
        f"{true.mean():.3g} and the standard deviation {true.std():.3g}. A point is a frame of a first future; the "
        "line is the mean of each tenth of the frames. Sums: correlation of the sums over clips. Futures of one start, "
        "as a planner compares them, are not compared."
    )
    return section(
        "rewards",
        "Does it predict the rewards?",
        tag("p", lead),
        tag("div", tag("div", tag("h3", "Recorded by imagined reward"), chart), class_="charts"),
        table(headings, rows),
    )


def trust_section(evaluation: Evaluation) -> Html:
    """Write the signals that tell the error without the truth, and the expected error at each level of trust."""
    error, charts, rows = evaluation.frame_errors * 255, [], []
    signals = {}
    if "entropy" in evaluation.trust:
        assert evaluation.entropies is not None
        signals["entropy"] = (evaluation.entropies[:, 0] / math.log(2), "token entropy, bits")
    if evaluation.disagreement is not None:
        signals["disagreement"] = (evaluation.disagreement * 255, "disagreement of the futures, of 255")
    for name, (signal, label) in signals.items():
        chart = scatter_chart(signal.flatten().numpy(), error.flatten().numpy(), f"Error by {label}", label)
        charts.append(tag("div", tag("h3", f"Error of a frame (of 255) by {label}"), chart))
        trust = evaluation.trust[name]
        figures = (trust.spearman, trust.pearson, trust.same_frame, trust.tail_ratio)
        rows.append((label, *(estimate_cell(x, 2) for x in figures)))
    headings = (
        "signal",
        "rank correlation",
        "linear",
        "at the same frame number",
        "error: least / most certain quarter",
    )
    lead = (
        "Two signals need no truth: the entropy of the tokens, and the distance between several "
        "futures. A point is a frame of a first future; the line is the mean error of each tenth of the frames. Later "
        "frames are worse and less certain, so the third column compares clips at the same frame number."
    )
    more = "" if len(signals) > 1 else " With --samples 2 or more the disagreement of the futures is a second signal."
    parts = [tag("p", lead + more)]
    if signals:
        parts += [tag("div", *charts, class_="charts"), table(headings, rows)]
    if evaluation.calibration is not None:
        parts += _calibration_table(evaluation.calibration)
    return section("trust", "Which frames can be trusted?", *parts)


def tokens_section(evaluation: Evaluation) -> Html:
    """Write the scores of the true tokens, and the repetition of imagined tokens."""
    mean = evaluation.bootstrap.mean
    rows: list[tuple[str, str, str]] = []
    if evaluation.tokens is not None:
        rows += [
            ("likeliest token is the true one", estimate_cell(mean(evaluation.tokens.accuracy), 3), "-"),
            ("perplexity", estimate_cell(perplexity(mean(evaluation.tokens.loss)), 3), "-"),
        ]
    for suffix, label in (("", "tokens as in the frame before"), ("_frames", "frames wholly as the one before")):
        imagined = mean(evaluation.repetition[f"imagined{suffix}"].mean(dim=1))
        true = mean(evaluation.repetition[f"true{suffix}"])
        rows.append((label, estimate_cell(imagined, 3), fixed(true.value, 3)))
    note = (
        "Repetition is counted from the second imagined frame on; a model that only copies repeats far more than the "
        "recording."
    )
    if evaluation.tokens is not None:
        frames = evaluation.tokens.frames
        note = f"Accuracy and perplexity: first {frames} future frames, all true tokens before each given. {note}"
    return section("tokens", "Tokens", table(("", "model", "recording"), rows), tag("p", note, class_="note"))


def terms_section(evaluation: Evaluation, held_out: HeldOut, about: About) -> Html:
    """Explain the terms, the settings of the measurement, and the model."""
    protocol = evaluation.protocol
    terms = {
        "best of k": "The best of k futures, chosen by comparison with the truth. It shows whether the truth is among "
        "the futures that the model considers possible. It grows with k and is no forecast.",
        **({"reconstruction": _RECONSTRUCTION_TERM} if "reconstruction" in evaluation.scores else {}),
        "95 % interval": f"Clips resampled with replacement, {RESAMPLES:,} times ({FEWER_RESAMPLES} times for "
        "correlations). It covers the choice of the clips, not the chance in training.",
        **({evaluation.video_name: _VIDEO_TERM} if evaluation.video_name else {}),
    }
    terms |= {metric.label: _PERCEPTUAL_TERM for metric in evaluation.metrics if "LPIPS" in metric.label}
    starts = {"first": "from frame 0", "random": "from a random frame", "contact": "from the first contact"}
    settings = {
        "checkpoint": about.checkpoint,
        "data": f"{about.data} ({held_out.dataset}), split {held_out.split}",
        "clips": f"{len(evaluation.clips)}, one an episode, of {protocol.clip_frames} frames at stride "
        f"{held_out.stride}, {starts[protocol.start]}",
        "futures": f"{protocol.samples} a clip, temperature {protocol.temperature:g}, top-k {protocol.top_k}, seed "
        f"{evaluation.seed}",
        "speed": f"{evaluation.frames_per_second:.1f} imagined frames/s",
        **about.facts,
    }
    return section(
        "terms",
        "Terms and settings",
        definitions(terms, class_="terms"),
        tag("h3", "Settings of the measurement"),
        definitions(settings),
    )


_RECONSTRUCTION_TERM = "The true frames as tokens and back. No sampled tokens can be expected to be closer."
_VIDEO_TERM = (
    "Distance of the imagined videos as a set from the true ones, in the features of a network. It falls as more "
    "videos are measured, so only scores of equal numbers of videos compare. Only FVD compares with published FVD."
)
_PERCEPTUAL_TERM = (
    "Difference of two frames by a network that was trained on judgements of people. Only the score that is called "
    "LPIPS, without another word before it, compares with published LPIPS."
)


def estimate_cell(estimate: Estimate, digits: int) -> Html:
    """Write an estimate with its interval below."""
    ends = f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}" if math.isfinite(estimate.low) else ""
    return with_note(fixed(estimate.value, digits), ends)


def _calibration_table(calibration: Calibration) -> list[Html]:
    """Write the expected error of a frame at each level of the signal."""
    bits = calibration.signal == "entropy"
    scale, digits = (1 / math.log(2), 2) if bits else (255.0, 1)
    rows, low = [], 0.0
    for level in calibration.levels:
        high = math.inf if level.limit is None else level.limit * scale
        values = f"{low:.{digits}f} to {high:.{digits}f}" if math.isfinite(high) else f"from {low:.{digits}f}"
        rows.append((level.name, values, fixed(level.psnr, 1), f"{100 * level.hit_rate:.0f} %"))
        low = high
    signal = "token entropy, bits" if bits else "change since the last given frame, of 255"
    note = (
        f"Frames in three groups of equal size by the {signal.split(',')[0]}. {calibration.share:.0%} of the frames of "
        "a group reach its PSNR. Hits: the same share on other clips than those of the fit."
    )
    return [
        tag("h3", "Expected error of a frame"),
        table(("expected error", signal, "PSNR, at least, dB", "hits"), rows),
        tag("p", note, class_="note"),
    ]


def _metric_table(rows: Sequence[TableRow], metrics: Sequence[Metric]) -> Html:
    labels = {row.key: with_note(row.label, row.note) for row in rows}
    cells = [(labels[row.key], *(estimate_cell(row.figures[m.key], m.digits) for m in metrics)) for row in rows]
    imagined = [labels[row.key] for row in rows if row.label.startswith("imagined")]
    return table(("", *(metric.label for metric in metrics)), cells, strong=imagined)


def _video_table(evaluation: Evaluation) -> list[Html]:
    if not evaluation.video:
        return []
    many = evaluation.protocol.samples > 1
    names = {
        "imagined": f"imagined, all {evaluation.protocol.samples} futures" if many else "imagined",
        **({"imagined_first": "imagined, first"} if many else {}),
        **({"reconstruction": "reconstruction"} if "reconstruction" in evaluation.scores else {}),
        "copy_last": "copy of the last frame",
    }
    spans: dict[Span, str] = {"whole_clip": "whole clip", "future": "future alone"}
    measured: list[Span] = [span for span in spans if span in evaluation.video]
    rows = [(name, *(f"{evaluation.video[span][row]:.4g}" for span in measured)) for row, name in names.items()]
    return [
        tag("h3", f"{evaluation.video_name} (lower is closer)"),
        table(("", *(spans[span] for span in measured)), rows),
    ]
