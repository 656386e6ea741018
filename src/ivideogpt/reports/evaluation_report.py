"""Content of an evaluation report: every number as JSON values, the rows of its tables, and the clips to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch

from ivideogpt.evaluation.evaluate import Evaluation, Of
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.evaluation.intervals import Estimate

RESULTS_FORMAT = "ivideogpt-evaluation-1"
#: Fewer clips give no headline figure.
MIN_HEADLINE_CLIPS = 10


@dataclass(frozen=True, kw_only=True)
class About:
    """Names and remarks that an evaluation does not hold.

    Attributes:
        model: its name.
        checkpoint, data: as the user gave them.
        facts: of the model's card: name -> text.
        left_out: what was not measured, a sentence each.
        pointer: actions are positions in the picture, so zero is a position too.
        goal_conditioned: the first frame of a clip is the goal.
    """

    model: str
    checkpoint: str
    data: str
    facts: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    pointer: bool = False
    goal_conditioned: bool = False


@dataclass(frozen=True)
class TableRow:
    """One line of the table of figures.

    Attributes:
        key: in JSON.
        label: for people.
        note: meaning of the row, in a few words.
        figures: key of a metric -> its estimate.
    """

    key: str
    label: str
    note: str
    figures: dict[str, Estimate]


def table_rows(evaluation: Evaluation, *, whole: bool) -> list[TableRow]:
    """Return the rows of the table of figures: the imagined futures, then what they must be compared with.

    Args:
        evaluation: the figures.
        whole: over whole clips, or over the future alone.
    """
    futures = evaluation.protocol.samples
    kinds: list[tuple[Of, str, str]] = [("first", "imagined", "one future of each clip")]
    if futures > 1:
        kinds = [
            ("best", f"imagined, best of {futures}", "the best future by each metric"),
            ("mean", f"imagined, mean of {futures}", "one future on average"),
            ("first", "imagined, first", "one future of each clip, not chosen"),
        ]
    rows = [
        TableRow(
            of,
            label,
            note,
            {x.key: evaluation.estimate("imagined", x.key, of=of, whole=whole) for x in evaluation.metrics},
        )
        for of, label, note in kinds
    ]
    for row, label, note in (
        ("reconstruction", "reconstruction", "the tokenizer alone: the upper limit of its tokens"),
        ("copy_last", "copy of the last frame", "nothing moves: the baseline to beat"),
    ):
        if row in evaluation.scores:
            figures = {metric.key: evaluation.estimate(row, metric.key, whole=whole) for metric in evaluation.metrics}
            rows.append(TableRow(row, label, note, figures))
    return rows


def enough_clips(evaluation: Evaluation) -> bool:
    """Return whether there are enough clips for headline figures."""
    return len(evaluation.clips) >= MIN_HEADLINE_CLIPS


def perplexity(loss: Estimate) -> Estimate:
    """Return exp of a loss in nats and of the ends of its interval."""
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high))


def summary(evaluation: Evaluation, held_out: HeldOut, about: About) -> dict[str, Any]:
    """Return every figure as JSON values, without those of single frames and clips; NaN is null."""
    protocol = evaluation.protocol
    values: dict[str, Any] = {
        "model": about.model,
        "checkpoint": about.checkpoint,
        "data": about.data,
        "dataset": held_out.dataset,
        "split": held_out.split,
        "protocol": protocol.name,
        "context_frames": protocol.context_frames,
        "clip_frames": protocol.clip_frames,
        "stride": held_out.stride,
        "start": protocol.start,
        "clips": len(evaluation.clips),
        "too_short": held_out.too_short,
        "samples": protocol.samples,
        "temperature": protocol.temperature,
        "top_k": protocol.top_k,
        "seed": evaluation.seed,
        "deviations": list(protocol.deviations(clips=len(evaluation.clips), dataset=held_out.dataset)),
        "mismatches": list(held_out.mismatches),
        "left_out": list(about.left_out),
        "frames_per_second": evaluation.frames_per_second,
    }
    for span, whole in (("whole_clip", True), ("future", False)):
        rows = table_rows(evaluation, whole=whole)
        values[span] = {metric.key: {row.key: row.figures[metric.key] for row in rows} for metric in evaluation.metrics}
    mean = evaluation.bootstrap.mean
    repeated = {name: mean(x.mean(dim=1) if x.ndim == 2 else x) for name, x in evaluation.repetition.items()}
    tokens: dict[str, Any] = {"repetition": repeated}
    if evaluation.tokens is not None:
        loss = mean(evaluation.tokens.loss)
        tokens |= {"accuracy": mean(evaluation.tokens.accuracy), "loss": loss, "perplexity": perplexity(loss)}
        tokens["frames"] = evaluation.tokens.frames
    values["tokens"] = tokens
    if evaluation.video_name:
        values["video"] = {"name": evaluation.video_name} | evaluation.video
    if evaluation.following is not None:
        values["following"] = asdict(evaluation.following)
    values["trust"] = evaluation.trust
    if evaluation.reward_scores:
        values["rewards"] = evaluation.reward_scores
    if evaluation.objects:
        values["objects"] = evaluation.objects
    if evaluation.model_figures:
        values["model_figures"] = evaluation.model_figures
    if evaluation.calibration is not None:
        values["expected_error"] = evaluation.calibration
    return _plain(values)


def results(evaluation: Evaluation, held_out: HeldOut, about: About) -> dict[str, Any]:
    """Return `summary` with the curves over time and the figures of each clip."""
    curves = {x.key: {row: evaluation.curve(row, x.key) for row in evaluation.scores} for x in evaluation.metrics}
    clips = []
    for index, (key, start) in enumerate(zip(evaluation.clips.keys, evaluation.clips.starts, strict=True)):
        figures = {
            f"{metric.key}_{of}": float(evaluation.clip_values("imagined", metric.key, of=of)[index])
            for metric in evaluation.metrics
            for of in ("best", "mean", "first")
        }
        clips.append({"episode": key, "start": start} | figures)
    more = _plain(
        {
            "future_curves": curves,
            "objects_by_frame": evaluation.objects_by_frame,
            "future_of_each_clip": clips,
        }
    )
    return {"format": RESULTS_FORMAT} | summary(evaluation, held_out, about) | more


def chosen_clips(evaluation: Evaluation, each: int = 3) -> dict[str, list[int]]:
    """Choose the clips to show: title -> their numbers, none of them twice.

    First some that are spread evenly over all clips, then those whose first future has the lowest and the highest PSNR
    over the future.

    Args:
        evaluation: the figures.
        each: most clips of each kind.
    """
    ratios = evaluation.clip_values("imagined", "psnr")
    order = torch.argsort(ratios).tolist()
    spread = [round(index) for index in torch.linspace(0, len(ratios) - 1, min(each, len(ratios))).tolist()]
    spread = list(dict.fromkeys(spread))
    worst = [index for index in order if index not in spread][:each]
    best = [index for index in reversed(order) if index not in spread + worst][:each]
    titles = {"Not chosen by result": spread, "Worst": worst, "Best": best}
    return {title: numbers for title, numbers in titles.items() if numbers}


def _plain(value: Any) -> Any:
    """Return JSON values: dataclasses as objects, NaN and infinity as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return _plain(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value
