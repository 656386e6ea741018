"""What an evaluation says: every number as JSON values, the tables of its page, and which clips to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch

from ivideogpt.evaluation.evaluate import Evaluation, Of
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.evaluation.intervals import Estimate

FORMAT = "ivideogpt-evaluation-1"


@dataclass(frozen=True, kw_only=True)
class About:
    """What an evaluation does not know of itself.

    Attributes:
        model: its name.
        checkpoint, data: as the user gave them.
        facts: of the model's card: name -> text.
        left_out: sentences on what was not measured.
        pointer: actions are places in the picture, so that zeros are a place too.
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
        note: what the row is, in a few words.
        figures: key of a metric -> its estimate.
    """

    key: str
    label: str
    note: str
    figures: dict[str, Estimate]


def table_rows(found: Evaluation, *, whole: bool) -> list[TableRow]:
    """The table of figures: what was imagined, and what it must be compared with.

    Args:
        found: what was measured.
        whole: over whole clips or over the future alone.
    """
    futures = found.protocol.samples
    kinds: list[tuple[Of, str, str]] = [("first", "imagined", "one future of each clip")]
    if futures > 1:
        kinds = [
            ("best", f"imagined, best of {futures}", "the future nearest to the truth, by each metric its own"),
            ("mean", f"imagined, mean of {futures}", "what one future is worth on average"),
            ("first", "imagined, first", "one future of each clip, not chosen"),
        ]
    rows = [
        TableRow(of, label, note, {x.key: found.estimate("imagined", x.key, of=of, whole=whole) for x in found.metrics})
        for of, label, note in kinds
    ]
    for row, label, note in (
        ("reconstruction", "reconstruction", "the tokenizer alone: the most its tokens can show"),
        ("copy_last", "copy of the last frame", "nothing moves: what must be beaten"),
    ):
        figures = {metric.key: found.estimate(row, metric.key, whole=whole) for metric in found.metrics}
        rows.append(TableRow(row, label, note, figures))
    return rows


def perplexity(loss: Estimate) -> Estimate:
    """Exp of a loss in nats, and of the ends of its interval."""
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high))


def summary(found: Evaluation, held_out: HeldOut, about: About) -> dict[str, Any]:
    """Every figure as JSON values, without what is known of single frames and clips; NaN is null."""
    protocol = found.protocol
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
        "clips": len(found.clips),
        "too_short": held_out.too_short,
        "samples": protocol.samples,
        "temperature": protocol.temperature,
        "top_k": protocol.top_k,
        "seed": found.seed,
        "deviations": list(protocol.deviations(clips=len(found.clips), dataset=held_out.dataset)),
        "mismatches": list(held_out.mismatches),
        "left_out": list(about.left_out),
        "frames_per_second": len(found.clips) * protocol.samples * protocol.horizon / found.seconds,
    }
    for span, whole in (("whole_clip", True), ("future", False)):
        rows = table_rows(found, whole=whole)
        values[span] = {metric.key: {row.key: row.figures[metric.key] for row in rows} for metric in found.metrics}
    mean = found.bootstrap.mean
    repeated = {name: mean(x.mean(dim=1) if x.ndim == 2 else x) for name, x in found.repetition.items()}
    tokens: dict[str, Any] = {"repetition": repeated}
    if found.tokens is not None:
        loss = mean(found.tokens.loss)
        tokens |= {"accuracy": mean(found.tokens.accuracy), "loss": loss, "perplexity": perplexity(loss)}
        tokens["frames"] = found.tokens.frames
    values["tokens"] = tokens
    if found.video_name:
        values["video"] = {"name": found.video_name} | found.video
    if found.following is not None:
        values["following"] = asdict(found.following)
    values["trust"] = found.trust
    if found.reward_scores:
        values["rewards"] = found.reward_scores
    if found.objects:
        values["objects"] = found.objects
    return _plain(values)


def results(found: Evaluation, held_out: HeldOut, about: About) -> dict[str, Any]:
    """`summary` with the curves over time and the figures of each clip."""
    curves = {x.key: {row: found.curve(row, x.key) for row in found.scores} for x in found.metrics}
    clips = []
    for index, (key, start) in enumerate(zip(found.clips.keys, found.clips.starts, strict=True)):
        figures = {
            f"{metric.key}_{of}": float(found.clip_values("imagined", metric.key, of=of)[index])
            for metric in found.metrics
            for of in ("best", "mean", "first")
        }
        clips.append({"episode": key, "start": start} | figures)
    more = _plain({"future_curves": curves, "future_of_each_clip": clips})
    return {"format": FORMAT} | summary(found, held_out, about) | more


def chosen_clips(found: Evaluation, each: int = 3) -> dict[str, list[int]]:
    """Which clips to look at: title -> their numbers, none of them twice.

    First some that are spread evenly over all clips, then those whose first future has the lowest PSNR over the future,
    and the highest.

    Args:
        found: what was measured.
        each: how many of each kind, at most.
    """
    ratios = found.clip_values("imagined", "psnr")
    order = torch.argsort(ratios).tolist()
    spread = [round(place) for place in torch.linspace(0, len(ratios) - 1, min(each, len(ratios))).tolist()]
    spread = list(dict.fromkeys(spread))
    worst = [index for index in order if index not in spread][:each]
    best = [index for index in reversed(order) if index not in spread + worst][:each]
    titles = {"Not chosen by result": spread, "Worst": worst, "Best": best}
    return {title: numbers for title, numbers in titles.items() if numbers}


def _plain(value: Any) -> Any:
    """JSON values: dataclasses as objects, NaN and infinity as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return _plain(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value
