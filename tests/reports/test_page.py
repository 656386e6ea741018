"""The parts of a page: whatever a file says, it stays text."""

import base64
import hashlib
import re

import pytest
import torch

from ivideogpt.reports.page import Html, Playback, clip_figure, definitions, fixed, html_page, join, notice, table, tag

NASTY = '</script><b onclick="x()">&\''


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = tag("b", NASTY)
    assert inner == "<b>&lt;/script&gt;&lt;b onclick=&quot;x()&quot;&gt;&amp;&#x27;</b>"
    assert tag("p", inner, " & ", Html("<i></i>")) == f"<p>{inner} &amp; <i></i></p>"
    assert join(["<", Html("<hr>"), ""], "|") == "&lt;|<hr>"


def test_attributes_are_escaped_and_named_as_in_html() -> None:
    drawn = tag("input", type="range", aria_label=NASTY, for_="x", hidden=True, checked=False, title=None)
    assert drawn.startswith('<input type="range" aria-label="&lt;/script&gt;') and drawn.endswith('for="x" hidden>')
    assert tag("line", x1=1, data_step=0.5) == '<line x1="1" data-step="0.5"/>'


@pytest.mark.parametrize("player", [None, Playback(frames=5, context_frames=2, size=8)])
def test_a_page_allows_no_request_and_no_script_but_its_own(player) -> None:
    page = html_page(kind="k", title=NASTY, lead=NASTY, header=[notice(NASTY, [NASTY])], main=[NASTY], player=player)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#x27;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == page.count("<script") == bool(player)
    assert policy.startswith("default-src 'none'; img-src data:; style-src")
    for script in scripts:
        assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert ("script-src" in policy) == bool(player) and "<b onclick" not in page
    assert ('data-frames="5"' in page) == bool(player)


def test_tables_and_lists_hold_their_texts() -> None:
    drawn = table(("", "value"), [(NASTY, "1"), ("own", "2")], strong=["own"])
    assert drawn.count("<tr") == 3 and '<tr class="own"><th scope="row">own</th><td>2</td></tr>' in drawn
    assert definitions({"a": "b"}) == "<dl><dt>a</dt><dd>b</dd></dl>"
    assert notice("empty", []) == "" and fixed(1.234, 1) == "1.2" and fixed(float("nan"), 1) == "-"


@pytest.mark.parametrize(("size", "kind"), [(16, "png"), (128, "jpeg")])
def test_a_clip_is_one_sheet_of_all_frames(size, kind) -> None:
    frames = torch.rand(3, 3, size, size)
    drawn = clip_figure("true", NASTY, "note", frames)
    assert f"data:image/{kind};base64," in drawn and "all 3 frames" in drawn and "<b onclick" not in drawn
    assert drawn.startswith('<figure class="true">') and f'<canvas width="{size}" height="{size}"' in drawn
