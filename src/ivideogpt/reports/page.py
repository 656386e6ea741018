"""One HTML page with its style, pictures and script inside, and the parts that all reports are made of.

    html_page(kind="iVideoGPT gallery", title=name, lead=..., main=[section("clips", "Clips", ...)])

`tag` escapes every text that is not `Html`, so that no name from a file becomes markup. The content policy of the page
allows no request and no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image
from torch import Tensor

from ivideogpt import __version__
from ivideogpt.data.data_uri import png_uri, sprite_sheet
from ivideogpt.data.render import to_uint8
from ivideogpt.worldmodel.shipped import ASSETS

#: Frames side by side in a sheet; every browser can draw a picture of this width.
SHEET_COLUMNS = 16
# Larger frames are written as JPEG: dozens of them in one page would be a hundred megabytes.
_LARGEST_PNG, _JPEG_QUALITY = 96, 90
# Elements without content, of HTML and of SVG.
_VOID = frozenset(("meta", "img", "input", "path", "polyline", "polygon", "line", "circle"))
_SPEEDS = (2, 4, 8, 16)


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Playback:
    """Playback of all pictures of a page in step.

    Attributes:
        frames: of each clip, context included.
        context_frames: of each clip.
        size: side of a frame in pixels.
        goal_conditioned: the first context frame is the goal.
    """

    frames: int
    context_frames: int
    size: int
    goal_conditioned: bool = False


def html_page(
    *,
    kind: str,
    title: str,
    lead: str,
    main: Iterable[str],
    header: Iterable[str] = (),
    footer: str = "",
    player: Playback | None = None,
) -> str:
    """Write a whole page.

    Args:
        kind: of the report, in small type above the title.
        title: of the page.
        lead: one or two sentences under the title.
        main: the sections.
        header: more of the header, under the lead.
        footer: sentences after the version.
        player: playback of the pictures; None: the page has no script.
    """
    script = Html("\n" + _asset("player.js") + "\n") if player else Html()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'" + (
        f"; script-src 'sha256-{digest}'" if player else ""
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=Html(policy)),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {kind}"),
        tag("style", Html("\n" + _asset("page.css") + "\n")),
    )
    more = " Space plays and pauses, the arrow keys go from frame to frame." if player else ""
    body = [
        tag("header", tag("p", kind, class_="kind"), tag("h1", title), tag("p", lead, class_="lead"), *header),
        tag("main", *main),
        tag("footer", tag("p", f"Made by ivideogpt {__version__}.{more} {footer}".strip())),
    ]
    data: dict[str, str | int] = {}
    if player:
        body += [_controls(player), tag("script", script)]
        data = {"data_frames": player.frames, "data_context": player.context_frames, "data_size": player.size}
        data |= {"data_columns": min(SHEET_COLUMNS, player.frames), "data_goal": int(player.goal_conditioned)}
    return f"<!doctype html>\n{tag('html', head, tag('body', *body, **data), lang='en')}\n"


def tag(element: str, /, *content: str, **attributes: str | int | float | bool | None) -> Html:
    """Write one element.

    Args:
        element: its name.
        content: what is inside; text that is not `Html` is escaped.
        attributes: by name, escaped likewise; a trailing underscore is dropped, other underscores become dashes; True
            writes the name alone, False and None nothing.
    """
    words = [element]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(label)
        elif value is not None and value is not False:
            text = value if isinstance(value, Html) else escape(str(value))
            words.append(f'{label}="{text}"')
    if element in _VOID:
        return Html(f"<{' '.join(words)}{'/' if element not in ('meta', 'img', 'input') else ''}>")
    between = "\n" if element in ("html", "head", "body", "header", "main", "section", "div", "tbody") else ""
    return Html(f"<{' '.join(words)}>{between}{join(content, between)}{between}</{element}>")


def join(content: Iterable[str], separator: str = "") -> Html:
    """Join texts, each escaped where it is not `Html`; empty ones are left out."""
    return Html(separator.join(text if isinstance(text, Html) else escape(text) for text in content if text))


def section(identifier: str, heading: str, *content: str) -> Html:
    """Write a section with a heading that can be linked."""
    return tag("section", tag("h2", heading, id=identifier), *content, aria_labelledby=identifier)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, strong: Sequence[str] = ()) -> Html:
    """Write a table that scrolls sideways where it is too wide.

    Args:
        headings: of the columns.
        rows: cells of each row; the first one is the heading of the row.
        strong: headings of the rows that are emphasised.
    """
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = [
        tag(
            "tr",
            tag("th", first, scope="row"),
            *(tag("td", cell) for cell in cells),
            class_="own" if first in strong else None,
        )
        for first, *cells in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def with_note(text: str, note: str) -> Html:
    """Write a text with a note in small type below it."""
    return join([text, tag("small", note) if note else ""])


def definitions(values: Mapping[str, str], class_: str | None = None) -> Html:
    """Write names and their texts as a list."""
    parts = [part for name, text in values.items() for part in (tag("dt", name), tag("dd", text))]
    return tag("dl", *parts, class_=class_)


def notice(title: str, texts: Sequence[str]) -> Html:
    """Write remarks that a reader must see first; empty without any."""
    items = [tag("li", text) for text in texts]
    return tag("div", tag("strong", title), tag("ul", *items), class_="notice") if items else Html()


def folded(summary: str, *content: str) -> Html:
    """Write content that is shown on demand."""
    return tag("details", tag("summary", summary), *content)


def clip_figure(kind: str, label: str, note: str, frames: Tensor) -> Html:
    """Write one clip: a sheet of all frames, and the canvas on which the player draws one of them.

    Args:
        kind: CSS class: "true", "imagined" or "varied".
        label: of the clip.
        note: below the label.
        frames: ``[t c h w]``, uint8, or floating in [0, 1].
    """
    size = frames.shape[-1]
    sheet = tag("img", class_="sheet", src=_sheet_uri(frames), alt=f"{label}: all {len(frames)} frames")
    return tag(
        "figure",
        tag("canvas", width=size, height=size, role="img", aria_label=label),
        tag("div", sheet, class_="scroll"),
        tag("figcaption", with_note(label, note)),
        class_=kind,
    )


def fixed(value: float, digits: int) -> str:
    """Format a number with so many decimals, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _controls(player: Playback) -> Html:
    speeds = [
        tag("option", f"{speed} a second", value=speed, selected=speed == _SPEEDS[1] or None) for speed in _SPEEDS
    ]
    return tag(
        "div",
        tag("button", "Play", id="play", type="button", title="Space"),
        tag(
            "input",
            id="frame",
            type="range",
            min=0,
            max=player.frames - 1,
            value=0,
            step=1,
            aria_label="Frame",
            title="Arrow keys",
        ),
        tag("output", id="where", for_="frame"),
        tag("label", tag("span", "Speed ", class_="wide"), tag("select", *speeds, id="speed", aria_label="Speed")),
        tag("label", tag("input", id="every", type="checkbox"), " Every frame"),
        id="controls",
        role="group",
        aria_label="Playback of all pictures",
        hidden=True,
    )


def _sheet_uri(frames: Tensor) -> str:
    pixels = to_uint8(frames if frames.is_floating_point() else frames.float() / 255)
    sheet = sprite_sheet(pixels, min(SHEET_COLUMNS, len(pixels)))
    if frames.shape[-1] <= _LARGEST_PNG:
        return png_uri(sheet)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _asset(name: str) -> str:
    return (ASSETS / "reports" / name).read_text(encoding="utf-8").rstrip("\n")
