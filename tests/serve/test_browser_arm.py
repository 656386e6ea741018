"""The page with an arm and with uploads: names of starts, letters, a gamepad, the first Play, smooth pictures."""

import io

import numpy as np

from . import browser as shared
from .browser import PHONE, newest, playwright, settled, until_past, until_step

pytestmark = shared.NEEDED
server, arm, browser, visit = shared.server, shared.arm, shared.browser, shared.visit

# A gamepad that the test moves: window.pad.axes and window.pad.buttons.
PAD = """
window.pad = { connected: true, axes: [0, 0, 0, 0],
  buttons: Array.from({ length: 16 }, () => ({ value: 0, pressed: false })) };
navigator.getGamepads = () => [window.pad];
"""


def values(page):
    """What stands beside the sliders."""
    return [float(text) for text in page.locator("#actions output").all_inner_texts()]


def until_values(page, expected):
    page.wait_for_function(
        "expected => [...document.querySelectorAll('#actions output')].map((each) => Number(each.textContent)).join()"
        " === expected.join()",
        arg=expected,
    )


def test_starts_of_an_arm_are_named_by_task_and_seed(visit, arm):
    page = visit(arm)
    names = page.locator(".episode span").all_inner_texts()
    assert len(set(names)) == len(names) == 6
    assert "hammer, seed 10000" in names and "button press topdown wall, seed 10000" in names


def test_letters_move_an_arm_while_they_are_held(visit, arm):
    page = visit(arm)
    rest = values(page)
    assert len(rest) == 4 and page.locator("#actions kbd").all_inner_texts() == list("ADWXQZTG")
    page.keyboard.down("d")
    until_values(page, [1, *rest[1:]])
    until_past(page, 2)
    page.keyboard.down("t")
    until_values(page, [1, *rest[1:3], -1])
    page.keyboard.up("d")
    until_values(page, [0, *rest[1:3], -1])
    page.keyboard.up("t")
    until_values(page, [0, *rest[1:3], 0])
    last = settled(page)
    page.wait_for_timeout(300)
    assert newest(page) == last, "let go: nothing moves"


def test_a_gamepad_moves_an_arm(visit, arm):
    page = visit(arm, init=PAD)
    page.evaluate("window.pad.axes = [0.5, -1, 0.05, 0]; window.pad.buttons[7].value = 1")
    until_values(page, [0.5, 1, 0, 1])
    until_past(page, 1)
    page.evaluate("window.pad.axes = [0, 0, 0, 0]; window.pad.buttons[7].value = 0")
    until_values(page, [0, 0, 0, 0])
    last = settled(page)
    page.evaluate("window.pad.buttons[2].pressed = true")
    until_step(page, last + 1)
    page.evaluate("window.pad.buttons[2].pressed = false; window.pad.buttons[1].pressed = true")
    until_step(page, last)


def test_a_gamepad_moves_the_target_of_a_pointer(visit):
    page = visit(init=PAD)
    settled(page)
    x, y = (int(text) for text in page.locator("#target").inner_text().split(", "))
    page.evaluate("window.pad.axes = [1, -1, 0, 0]")
    until_past(page, 2)
    page.evaluate("window.pad.axes = [0, 0, 0, 0]")
    settled(page)
    moved = [int(text) for text in page.locator("#target").inner_text().split(", ")]
    assert moved[0] > x and moved[1] < y


def test_the_first_play_shows_the_recording_and_a_slider_takes_over(visit, arm):
    page = visit(arm)
    page.click("#play")
    playwright.expect(page.locator("#replay")).to_have_attribute("aria-pressed", "true")
    playwright.expect(page.locator("#hint")).to_contain_text("The recorded actions drive")
    until_past(page, 2)
    page.locator("#action-0").fill("0.5")
    playwright.expect(page.locator("#replay")).to_have_attribute("aria-pressed", "false")
    page.click("#play")


def test_the_end_of_the_recording_hands_over(visit):
    page = visit()
    page.locator("#start-frame").fill("44")
    page.click("#open")
    until_step(page, 0)
    page.click("#play")
    playwright.expect(page.locator("#toast-text")).to_contain_text("The recording ends here. Now you drive.")
    playwright.expect(page.locator("#replay")).to_have_attribute("aria-pressed", "false")
    page.click("#play")
    until_past(page, 3)
    page.click("#play")


def test_an_upload_of_another_world_says_so(visit):
    page = visit()
    buffer = io.BytesIO()
    np.savez(buffer, frames=np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    page.set_input_files("#files", {"name": "other.npz", "mimeType": "", "buffer": buffer.getvalue()})
    playwright.expect(page.locator("#upload-status")).to_contain_text("Not this model's world")
    assert "not this model's world" in page.locator(".episode span").last.get_attribute("title")


def test_pictures_are_smooth_where_somebody_wants_it(visit):
    page = visit()
    rendering = "canvas => getComputedStyle(canvas).imageRendering"
    canvas = page.locator("#picture-0 canvas")
    assert canvas.evaluate(rendering) == "pixelated"
    page.check("#smooth")
    assert canvas.evaluate(rendering) == "auto"
    page.reload()
    until_step(page, 0)
    assert canvas.evaluate(rendering) == "auto"
    page.uncheck("#smooth")
    assert canvas.evaluate(rendering) == "pixelated"


def test_the_line_of_the_chosen_action_does_not_touch_its_label(visit, arm):
    page = visit(arm, viewport=PHONE)
    page.focus("#action-1")
    assert page.locator("#actions .selected").count() == 1
    shadow = page.locator("#actions .selected label").evaluate("label => getComputedStyle(label).boxShadow")
    border = page.locator("#actions .selected").evaluate("field => getComputedStyle(field).borderLeftWidth")
    assert (shadow, border) == ("none", "2px")
    page.keyboard.press("ArrowRight")  # from the keyboard: a ring around the slider
    label, ring = (page.locator(f"#actions .selected {part}").bounding_box() for part in ("label", "input"))
    offset = page.locator("#action-1").evaluate("input => parseFloat(getComputedStyle(input).outlineOffset)")
    assert ring["y"] - offset - 2 >= label["y"] + label["height"]
