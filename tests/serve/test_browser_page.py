"""The page in a real browser: keys, small screens, themes, speed and how it looks."""

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from . import browser as shared
from .browser import PHONE, playwright, until_past, until_step

pytestmark = shared.NEEDED
server, browser, visit = shared.server, shared.browser, shared.visit

#: Names or ids of controls that Tab reaches.
CONTROLS = {
    *("help-open", "theme", "episode", "start-frame", "open", "files", "picture-0", "timeline"),
    *("play", "step", "fork", "compare", "replay", "speed", "smooth", "hold", "save-mp4", "save-npz"),
}


def test_everything_can_be_done_with_the_keyboard(visit):
    page = visit()
    reached, ringed = set(), set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, ring = page.evaluate("""() => {
            const at = document.activeElement;
            const ring = (one) => one && getComputedStyle(one).outlineStyle === "solid";
            const drawn = ring(at) || ring(at.nextElementSibling);
            return [at.id || at.name || at.className, drawn];
        }""")
        reached.add(name)
        if ring:
            ringed.add(name)
    assert reached >= CONTROLS
    assert ringed >= CONTROLS  # a ring shows where the focus is

    page.focus("#picture-0")
    page.keyboard.press("s")
    until_step(page, 1)
    page.keyboard.press(".")
    until_step(page, 2)
    page.keyboard.press("r")
    until_step(page, 1)
    target = page.locator("#target").inner_text()
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#target")).not_to_have_text(target)
    page.keyboard.press("Space")
    until_past(page, 4)
    playwright.expect(page.locator("#play")).to_have_text("Pause")
    page.keyboard.press("Space")
    playwright.expect(page.locator("#play")).to_have_text("Play")
    page.keyboard.press("f")
    playwright.expect(page.locator("#picture-1")).to_be_visible()
    page.keyboard.press("c")
    playwright.expect(page.locator("#comparison")).to_be_visible()
    page.keyboard.press("?")
    playwright.expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("k")
    playwright.expect(page.locator("#picture-1")).to_be_hidden()


def test_the_expected_error_was_measured_and_a_picture_model_has_no_sampling_settings(visit):
    page = visit()
    playwright.expect(page.locator("#error-note")).to_have_text("Context frames are the recorded ones")
    page.click("#step")
    until_step(page, 1)
    playwright.expect(page.locator("#error-word")).to_have_text("small")
    note = page.locator("#error-note").inner_text()
    assert re.fullmatch(r"At least \d\d dB in \d\d % of such frames, measured on \d+ held-out clips", note)
    playwright.expect(page.locator("[data-world='0'] .at")).to_contain_text("small error expected")
    playwright.expect(page.locator("#sampling")).to_be_hidden()
    playwright.expect(page.locator("#entropy-reading")).to_be_hidden()


def test_space_plays_after_a_start_was_chosen_with_the_mouse(visit):
    page = visit()
    page.locator(".episode").nth(1).click()
    until_step(page, 0)
    page.keyboard.press("Space")
    until_past(page, 2)
    page.keyboard.press("Space")
    playwright.expect(page.locator("#play")).to_have_text("Play")
    page.keyboard.press("ArrowRight")  # among the starts, as before
    assert page.locator(".episode input").nth(2).is_checked()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    box = page.locator("#picture-0 canvas").bounding_box()
    assert box["width"] >= 355  # from edge to edge of 360
    page.touchscreen.tap(box["x"] + 200, box["y"] + 100)
    until_past(page, 1)
    page.click("#compare")
    page.click("#fork")
    playwright.expect(page.locator("#picture-1")).to_be_visible()
    width = "[document.documentElement.scrollWidth, document.body.scrollWidth].map((w) => w <= innerWidth)"
    assert page.evaluate(width) == [True, True]
    small = page.evaluate("""() => [...document.querySelectorAll("button, input[type=range], .segments span, .check")]
        .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 40)
        .map((one) => one.id || one.textContent)""")
    assert small == []


def test_light_and_dark_follow_the_system_until_somebody_chooses(visit):
    page = visit()
    for scheme, is_light in (("light", True), ("dark", False)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        page.wait_for_function("() => document.getAnimations().every((one) => one.playState !== 'running')")  # faded
        assert (_luminance(page, "backgroundColor") > 0.5) == is_light
        assert _contrast(page) >= 4.5
    page.click("#theme")
    assert _luminance(page, "backgroundColor") > 0.5
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "light"


def _luminance(page, what: str, of: str = "body") -> float:
    colour = page.locator(of).first.evaluate("(element, what) => getComputedStyle(element)[what]", what)
    values = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values < 0.04, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def _contrast(page) -> float:
    """The least of the texts' contrasts on the page's ground."""
    ground = _luminance(page, "backgroundColor")
    texts = [_luminance(page, "color", of) for of in ("body", "#hint", ".error", "#error-word")]
    return min((max(text, ground) + 0.05) / (min(text, ground) + 0.05) for text in texts)


def test_frames_come_in_real_time(visit):
    page = visit()
    page.locator("#speed").fill("31")
    playwright.expect(page.locator("#speed-value")).to_have_text("as fast as it can")
    seconds = page.evaluate("""() => new Promise((done) => {
        const timeline = document.querySelector("#timeline");
        let began = null;
        const look = () => {
            if (began === null && timeline.max >= 5) began = { time: performance.now(), step: Number(timeline.max) };
            if (began === null || timeline.max - began.step < 30) return requestAnimationFrame(look);
            return done((performance.now() - began.time) / 1000 / (timeline.max - began.step));
        };
        document.querySelector("#play").click();
        look();
    })""")
    page.click("#play")
    print(f"{1 / seconds:.1f} newly imagined frames a second, from the request to the picture")
    # How fast is for a machine that does nothing else; here, that they come and that the page says so.
    assert 0 < seconds < math.inf
    assert float(page.locator("#rate").inner_text()) > 0


@pytest.mark.skipif("IVIDEOGPT_SCREENSHOTS" not in os.environ, reason="IVIDEOGPT_SCREENSHOTS names no folder")
def test_screenshots_are_taken(visit):
    folder = Path(os.environ["IVIDEOGPT_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)

    def drag(page):
        box = page.locator("#picture-0 canvas").bounding_box()
        page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.6 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"], steps=10)
        until_past(page, 14)
        page.mouse.up()
        page.wait_for_timeout(400)

    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        drag(page)
        page.screenshot(path=folder / f"desktop-{scheme}.png")
    page.click("#compare")
    page.click("#replay-start")
    until_past(page, 20)
    page.click("#play")
    page.wait_for_timeout(400)
    page.screenshot(path=folder / "compare-dark.png")
    page = visit()
    page.click("#compare")
    page.click("#replay-start")
    until_past(page, 12)
    page.click("#play")
    page.click("#fork")
    page.click("#replay")
    page.focus("#picture-1")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowUp")
    page.click("#play")
    until_past(page, 24)
    page.click("#play")
    page.wait_for_timeout(400)
    page.screenshot(path=folder / "fork-compare.png")
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.screenshot(path=folder / "phone.png")
    page.screenshot(path=folder / "phone-whole.png", full_page=True)
