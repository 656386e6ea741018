"""The report of an evaluation: one HTML file with its pictures, style and script inside, which fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape

from ivideogpt import __version__
from ivideogpt.evaluation.evaluate import Evaluation
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.reports.evaluation_clips import COLUMNS, clips_section
from ivideogpt.reports.evaluation_report import About
from ivideogpt.reports.evaluation_sections import (
    actions_section,
    curves_section,
    figure,
    figures_section,
    interval,
    rewards_section,
    terms_section,
    tokens_section,
    trust_section,
)
from ivideogpt.worldmodel.shipped import ASSETS


def report_page(found: Evaluation, held_out: HeldOut, about: About) -> str:
    """The whole page.

    Args:
        found: what was measured.
        held_out: what it was measured on.
        about: names, and what was left out.
    """
    protocol = found.protocol
    frames = found.clips.frames.shape[1]
    style = _asset("gallery/page.css") + "\n" + _asset("evaluation/report.css")
    script = _asset("gallery/page.js")
    sections = [
        figures_section(found),
        curves_section(found),
        clips_section(found, held_out, about),
        actions_section(found, about),
        rewards_section(found),
        trust_section(found),
        tokens_section(found),
        terms_section(found, held_out, about),
    ]
    values = {
        "title": escape(f"{about.model} on {held_out.dataset}"),
        "style": style,
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "frames": str(frames),
        "last": str(frames - 1),
        "context": str(protocol.context_frames),
        "columns": str(min(COLUMNS, frames)),
        "size": str(found.clips.frames.shape[-1]),
        "goal": str(int(about.goal_conditioned)),
        "lead": _lead(found, held_out, about),
        "notices": _notices(found, held_out, about),
        "tiles": "\n".join(_tiles(found)),
        "sections": "\n".join(sections),
        "footer": f"Made by ivideogpt {__version__}. Space plays and pauses, the arrow keys go from frame to frame. "
        "All numbers, with those of each clip, are in results.json beside this page.",
    }
    # One pass: what a file put into a value is never filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("evaluation/report.html"))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip("\n")


def _lead(found: Evaluation, held_out: HeldOut, about: About) -> str:
    protocol, many = found.protocol, found.protocol.samples > 1
    known = protocol.context_frames
    given = "the goal and the last frame" if about.goal_conditioned else f"{known} frame{'' if known == 1 else 's'}"
    steered = "" if found.clips.actions is None else " with the recorded actions"
    futures = f"{protocol.samples} times, each with random numbers of its own" if many else "once"
    split = escape(repr(held_out.split))
    return (
        f"From {given} of each of {len(found.clips)} clips (split {split}) the model imagines the next "
        f"{protocol.horizon}{steered}, {futures}. Protocol <b>{escape(protocol.name)}</b>."
    )


def _notices(found: Evaluation, held_out: HeldOut, about: About) -> str:
    """What a reader must know before comparing numbers."""
    deviations = found.protocol.deviations(clips=len(found.clips), dataset=held_out.dataset)
    short = ""
    if held_out.too_short:
        many = "episodes were" if held_out.too_short > 1 else "episode was"
        short = f"{held_out.too_short} {many} shorter than a clip"
    lists = {
        "Not comparable with published numbers of this protocol": deviations,
        "The data differ from what the checkpoint says; they were measured as asked for": held_out.mismatches,
        "Left out": [*about.left_out, *([short] if short else [])],
    }
    if held_out.split == "train":
        lists["These are training episodes"] = ["the model may have seen them: the figures say nothing of new ones"]
    return "\n".join(
        f'<div class="notice"><strong>{title}</strong><ul>{"".join(f"<li>{escape(x)}</li>" for x in texts)}</ul></div>'
        for title, texts in lists.items()
        if texts
    )


def _tiles(found: Evaluation) -> list[str]:
    """The few numbers that a reader looks for first."""
    own, copied = found.estimate("imagined", "psnr", of="mean"), found.estimate("copy_last", "psnr")
    texts = [
        (
            f"{own.value:.1f} dB",
            "PSNR of one future",
            f"{interval(own, 1)}; a copy of the last frame has {copied.value:.1f}, the tokenizer alone "
            f"{found.estimate('reconstruction', 'psnr').value:.1f}",
        )
    ]
    if found.protocol.samples > 1:
        best = found.estimate("imagined", "psnr", of="best", whole=True)
        note = (
            f"{interval(best, 1)}; whole clip with its context, best of {found.protocol.samples}, as papers report it"
        )
        texts.append((f"{best.value:.1f} dB", "PSNR, best future", note))
    if found.following is not None:
        name = next(iter(found.following.score))
        score = found.following.score[name]
        kind = "another clip's" if name.startswith("permuted") else "zero"
        note = f"{interval(score, 2)}; 0: {kind} actions serve as well, 1: all that the tokenizer can show"
        texts.append((figure(score.value, 2), "action following", note))
    if found.video:
        distances = found.video["whole_clip"]
        note = f"one future a clip; a copy of the last frame has {distances['copy_last']:.3g}"
        own_videos = distances.get("imagined_first", distances["imagined"])
        texts.append((f"{own_videos:.3g}", found.video_name, note))
    told = found.trust["entropy"].spearman
    note = f"{interval(told, 2)}; 1: token entropy tells exactly which frames are wrong, 0: it tells nothing"
    texts.append((figure(told.value, 2), "trust signal", note))
    return [
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(label)}</span><small>{escape(note)}</small></div>'
        for number, label, note in texts
    ]
