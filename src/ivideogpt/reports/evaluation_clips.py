"""The videos of a report: what happened beside what was imagined, for clips not chosen, the worst and the best."""

from __future__ import annotations

import base64
import io
from html import escape

import torch
from PIL import Image

from ivideogpt.data.data_uri import png_uri, sprite_sheet
from ivideogpt.data.render import to_uint8
from ivideogpt.evaluation.evaluate import Evaluation, Of
from ivideogpt.evaluation.held_out import HeldOut
from ivideogpt.reports.evaluation_report import About, chosen_clips

#: Frames side by side in a sheet: short enough for every browser's largest picture.
COLUMNS = 16
# Larger frames are written as JPEG: dozens of them in one page would be a hundred megabytes.
_LARGEST_PNG, _QUALITY = 96, 90


def clips_section(found: Evaluation, held_out: HeldOut, about: About) -> str:
    """Some clips, each as videos that play in step."""
    parts = []
    for title, numbers in chosen_clips(found).items():
        cases = "\n".join(_case(found, held_out, index) for index in numbers)
        parts.append(f"<h3>{title}</h3>\n<p class='note'>{_NOTES[title]}</p>\n{cases}")
    return (
        '<section aria-labelledby="clips">\n<h2 id="clips">Clips</h2>\n<p>All pictures play in step: '
        '<span class="mark context">context</span> that the model was given, then what it imagined. The slider below '
        "stops at any frame, and moves the line in the charts.</p>\n" + "\n".join(parts) + "\n</section>"
    )


_NOTES = {
    "Not chosen by result": "Spread evenly over all clips.",
    "Worst": "The lowest PSNR of the first future.",
    "Best": "The highest. Often clips in which little moves: look at the copy's PSNR.",
}


def _case(found: Evaluation, held_out: HeldOut, index: int) -> str:
    clips, many = found.clips, found.protocol.samples > 1
    count = found.clips.frames.shape[1] - found.protocol.horizon
    context, true = clips.frames[index, :count], clips.frames[index, count:]

    def ratio(row: str, of: Of = "first") -> float:
        return float(found.clip_values(row, "psnr", of=of)[index])

    rows = [("true", "what happened", f"PSNR of a copy of the last frame: {ratio('copy_last'):.1f} dB", true)]
    rows.append(("imagined", "imagined", f"PSNR {ratio('imagined'):.1f} dB", found.pictures["imagined"][index]))
    if many:
        label = f"imagined, best of {found.protocol.samples}"
        rows.append(("imagined", label, f"PSNR {ratio('imagined', 'best'):.1f} dB", found.pictures["best"][index]))
    if "permuted_actions" in found.pictures:
        frames = found.pictures["permuted_actions"][index]
        rows.append(("varied", "with another clip's actions", f"PSNR {ratio('permuted_actions'):.1f} dB", frames))
    pictures = "\n".join(_figure(*row[:3], torch.cat([context, row[3]])) for row in rows)
    start = clips.starts[index] if clips.starts else 0
    key = clips.keys[index] if clips.keys else ""
    where = f"clip {index + 1}, from recorded frame {start}"
    where += f", one of every {held_out.stride}" if held_out.stride > 1 else ""
    return (
        f'<div class="case"><h4>{escape(key) or "recording"}</h4><p class="where">{where}</p>\n'
        f'<div class="rows">\n{pictures}\n</div></div>'
    )


def _figure(kind: str, label: str, note: str, frames: torch.Tensor) -> str:
    """Frames uint8 ``[t c h w]`` as one sheet, which the script of the page plays."""
    size, label = frames.shape[-1], escape(label)
    return (
        f'<figure class="{kind}"><canvas width="{size}" height="{size}" role="img" aria-label="{label}"></canvas>'
        f'<div class="scroll"><img class="sheet" src="{_sheet_uri(frames)}" alt="{label}: all {len(frames)} frames">'
        f"</div><figcaption>{label}<small>{escape(note)}</small></figcaption></figure>"
    )


def _sheet_uri(frames: torch.Tensor) -> str:
    sheet = sprite_sheet(to_uint8(frames.float() / 255), min(COLUMNS, len(frames)))
    if frames.shape[-1] <= _LARGEST_PNG:
        return png_uri(sheet)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
