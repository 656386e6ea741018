"""The report of an evaluation as one HTML page."""

from __future__ import annotations

import torch

from ivideogpt.evaluation.evaluate import Evaluation, Of
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.reports.evaluation_report import About, chosen_clips, enough_clips
from ivideogpt.reports.evaluation_sections import (
    actions_section,
    curves_section,
    domain_section,
    figures_section,
    interval,
    rewards_section,
    terms_section,
    tokens_section,
    trust_section,
)
from ivideogpt.reports.page import Html, Playback, clip_figure, fixed, html_page, join, notice, section, tag

_NOTES = {
    "Not chosen by result": "Spread evenly over all clips.",
    "Worst": "The lowest PSNR of the first future.",
    "Best": "The highest. Often clips in which little moves: look at the copy's PSNR.",
}


def report_page(evaluation: Evaluation, held_out: HeldOut, about: About) -> str:
    """Write the whole page.

    Args:
        evaluation: the figures.
        held_out: the clips that were measured.
        about: names, and what was left out.
    """
    clips = evaluation.clips.frames
    return html_page(
        kind="iVideoGPT evaluation",
        title=f"{about.model} on {held_out.dataset}",
        lead=_lead(evaluation, held_out, about),
        header=[*_notices(evaluation, held_out, about), *_tiles(evaluation)],
        main=[
            figures_section(evaluation),
            curves_section(evaluation),
            clips_section(evaluation, held_out),
            actions_section(evaluation, about),
            domain_section(evaluation, held_out.dataset),
            rewards_section(evaluation),
            trust_section(evaluation),
            tokens_section(evaluation),
            terms_section(evaluation, held_out, about),
        ],
        footer="All numbers, with those of each clip, are in results.json beside this page.",
        player=Playback(
            frames=clips.shape[1],
            context_frames=clips.shape[1] - evaluation.protocol.horizon,
            size=clips.shape[-1],
            goal_conditioned=about.goal_conditioned,
        ),
    )


def clips_section(evaluation: Evaluation, held_out: HeldOut) -> Html:
    """Write some clips, as videos that play in step."""
    parts = []
    for title, numbers in chosen_clips(evaluation).items():
        parts += [tag("h3", title), tag("p", _NOTES[title], class_="note")]
        parts += [_clip(evaluation, held_out, index) for index in numbers]
    lead = tag(
        "p",
        "All pictures play in step: the ",
        tag("span", "context", class_="mark context"),
        " that the model was given, then the imagined frames. The slider below stops at any frame and moves the line "
        "in the charts.",
    )
    return section("clips", "Clips", lead, *parts)


def _clip(evaluation: Evaluation, held_out: HeldOut, index: int) -> Html:
    """Write one clip: the truth, the first and the best future, and the future under another clip's actions."""
    clips, pictures, samples = evaluation.clips, evaluation.pictures, evaluation.protocol.samples
    count = clips.frames.shape[1] - evaluation.protocol.horizon
    context, true = clips.frames[index, :count], clips.frames[index, count:]

    def ratio(row: str, of: Of = "first") -> str:
        return f"PSNR {float(evaluation.clip_values(row, 'psnr', of=of)[index]):.1f} dB"

    rows = [("true", "what happened", f"copy of the last frame: {ratio('copy_last')}", true)]
    rows.append(("imagined", "imagined", ratio("imagined"), pictures["imagined"][index]))
    if samples > 1:
        rows.append(("imagined", f"imagined, best of {samples}", ratio("imagined", "best"), pictures["best"][index]))
    if "permuted_actions" in pictures:
        frames = pictures["permuted_actions"][index]
        rows.append(("varied", "with another clip's actions", ratio("permuted_actions"), frames))
    figures = [clip_figure(kind, label, note, torch.cat([context, x])) for kind, label, note, x in rows]
    start = clips.starts[index] if clips.starts else 0
    place = f"clip {index + 1}, from recorded frame {start}"
    place += f", one of every {held_out.stride}" if held_out.stride > 1 else ""
    key = clips.keys[index] if clips.keys else ""
    return tag(
        "div",
        tag("h4", key or "recording"),
        tag("p", place, class_="where"),
        tag("div", *figures, class_="rows"),
        class_="case",
    )


def _lead(evaluation: Evaluation, held_out: HeldOut, about: About) -> Html:
    protocol, count = evaluation.protocol, evaluation.protocol.context_frames
    given = "the goal and the last frame" if about.goal_conditioned else f"{count} frame{'' if count == 1 else 's'}"
    actions = "" if evaluation.clips.actions is None else " with the recorded actions"
    futures = f"{protocol.samples} times, each with its own random numbers" if protocol.samples > 1 else "once"
    return join(
        [
            f"From {given} of each of {len(evaluation.clips)} clips (split {held_out.split!r}) the model imagines the "
            f"next {protocol.horizon}{actions}, {futures}. Protocol ",
            tag("b", protocol.name),
            ".",
        ]
    )


def _notices(evaluation: Evaluation, held_out: HeldOut, about: About) -> list[Html]:
    """Write what a reader must know before comparing numbers."""
    deviations = evaluation.protocol.deviations(clips=len(evaluation.clips), dataset=held_out.dataset)
    short = held_out.too_short
    left_out = [*about.left_out]
    if short:
        left_out.append(f"{short} episode{'s were' if short > 1 else ' was'} shorter than a clip")
    notices = [
        notice("Not comparable with published numbers of this protocol", deviations),
        notice("The data do not fit the checkpoint; they were measured anyway, as requested", held_out.mismatches),
        notice("Left out", left_out),
    ]
    if held_out.split == "train":
        text = "the model may have been trained on them: the figures say nothing about new ones"
        notices.append(notice("These are training episodes", [text]))
    return notices


def _tiles(evaluation: Evaluation) -> list[Html]:
    """Write the headline figures, or a remark where there are too few clips for any."""
    if not enough_clips(evaluation):
        text = f"{len(evaluation.clips)} clips were measured; the tables below give the numbers with their intervals"
        return [notice("Too few clips for headline figures", [text])]
    own, copy = evaluation.estimate("imagined", "psnr", of="mean"), evaluation.estimate("copy_last", "psnr")
    note = f"{interval(own, 1)}; a copy of the last frame has {copy.value:.1f}"
    if "reconstruction" in evaluation.scores:
        note += f", the tokenizer alone {evaluation.estimate('reconstruction', 'psnr').value:.1f}"
    tiles = [(f"{own.value:.1f} dB", "PSNR of one future", note)]
    samples = evaluation.protocol.samples
    if samples > 1:
        best = evaluation.estimate("imagined", "psnr", of="best", whole=True)
        note = f"{interval(best, 1)}; whole clip with its context, best of {samples}, as papers report it"
        tiles.append((f"{best.value:.1f} dB", "PSNR, best future", note))
    if evaluation.following is not None:
        name, score = next(iter(evaluation.following.score.items()))
        kind = "another clip's" if name.startswith("permuted") else "zero"
        best = "all that the tokenizer can draw" if "reconstruction" in evaluation.scores else "no error"
        note = f"{interval(score, 2)}; 0: {kind} actions are as good, 1: {best}"
        tiles.append((fixed(score.value, 2), "action following", note))
    if evaluation.video:
        distances = evaluation.video["whole_clip"]
        note = f"one future a clip; a copy of the last frame has {distances['copy_last']:.3g}"
        tiles.append((f"{distances.get('imagined_first', distances['imagined']):.3g}", evaluation.video_name, note))
    if "entropy" in evaluation.trust:
        trust = evaluation.trust["entropy"].spearman
        note = f"{interval(trust, 2)}; 1: token entropy orders frames exactly by their error, 0: it says nothing"
        tiles.append((fixed(trust.value, 2), "trust signal", note))
    boxes = [
        tag("div", tag("b", number), tag("span", label), tag("small", note), class_="tile")
        for number, label, note in tiles
    ]
    return [tag("div", *boxes, class_="tiles")]
