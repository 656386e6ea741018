"""The page in a real browser: worlds are opened, driven, forked, compared, saved and found again."""

import math
import re

import av
import numpy as np

from . import browser as shared
from .browser import (
    CUT,
    agent,
    newest,
    pixels,
    playwright,
    png,
    scrub,
    settled,
    steps,
    until_past,
    until_shown,
    until_step,
)

pytestmark = shared.NEEDED
server, browser, visit = shared.server, shared.browser, shared.visit


def test_the_page_opens_a_world_and_asks_nobody_else(visit, server, browser):
    context = browser.new_context()
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url.replace("ws:", "http:")))
    page.goto(server)
    until_step(page, 0)
    context.close()
    assert len(asked) > 8
    assert not [url for url in asked if not url.startswith((f"{server}/", "blob:", "data:"))]
    page = visit()
    assert page.locator(".episode").count() >= 1
    assert page.locator("#context img").count() == 2
    assert page.locator("#empty").is_hidden() and page.locator("#toast").is_hidden()
    side = page.locator("#picture-0 canvas").bounding_box()["width"]
    assert side >= 320 and side % 64 == 0  # sharp: whole screen px for each of the picture's


def test_the_agent_follows_a_drag(visit):
    page = visit()
    start = agent(page)
    target = np.where(start < 0.5, 0.8, 0.2)
    box = page.locator("#picture-0 canvas").bounding_box()
    corner = np.array([box["x"], box["y"]])
    x, y = (corner + target * box["width"]).tolist()
    page.mouse.move(*(corner + start * box["width"]).tolist())
    page.mouse.down()
    page.mouse.move(x, y, steps=8)
    until_past(page, 12)
    page.mouse.up()
    last = settled(page)  # let go: nothing moves any more
    ring = page.locator("#picture-0 .target").bounding_box()
    assert abs(ring["x"] + 16 - x) < 3 and abs(ring["y"] + 16 - y) < 3
    before, after = np.linalg.norm(start - target), np.linalg.norm(agent(page) - target)
    print(f"distance to the target: {64 * before:.1f} px, after {last} steps {64 * after:.1f} px")
    assert after < before - 4 / 64


def test_steps_can_be_looked_at_again_taken_back_and_made_again(visit):
    page = visit()
    seen = steps(page, 4)
    sent = page.evaluate("""() => {
        const socket = window.sockets.at(-1), send = socket.send.bind(socket);
        window.sent = [];
        socket.send = (text) => { window.sent.push(JSON.parse(text).type); send(text); };
    }""")
    scrub(page, 2)
    playwright.expect(page.locator("#timeline-value")).to_have_text("step 2 of 4")
    assert np.array_equal(pixels(page), seen[1])
    scrub(page, -1)
    playwright.expect(page.locator("#timeline-value")).to_have_text("context 1 of 2")
    page.click("#newest")
    playwright.expect(page.locator("#timeline-value")).to_have_text("step 4 of 4")
    sent = page.evaluate("window.sent")
    assert sent == []  # from what the page keeps

    scrub(page, 2)
    page.click("#continue")
    until_step(page, 2)
    again = steps(page, 2)
    assert np.array_equal(again[1], seen[3])
    page.click("#back")
    until_step(page, 3)
    assert np.array_equal(pixels(page), seen[2])


def test_a_world_forks_and_either_side_can_be_kept(visit):
    page = visit()
    steps(page, 2)
    page.click("#fork")
    playwright.expect(page.locator("#picture-1")).to_be_visible()
    playwright.expect(page.locator("#drive input:checked")).to_have_value("1")
    page.focus("#picture-1")
    for _ in range(6):
        page.keyboard.press("Shift+ArrowLeft")
    page.click("#step")
    b, a = page.locator("[data-world='1'] .at"), page.locator("[data-world='0'] .at")
    playwright.expect(b).to_contain_text("step 3")
    playwright.expect(a).to_contain_text("step 2")
    page.check("#drive input[value=all]", force=True)
    page.click("#step")
    playwright.expect(b).to_contain_text("step 4")
    playwright.expect(a).to_contain_text("step 3")
    kept = pixels(page, "#picture-1 canvas")
    page.click("[data-world='1'] .keep")
    playwright.expect(page.locator("#picture-1")).to_be_hidden()
    until_step(page, 4)
    assert np.array_equal(pixels(page), kept)


def test_a_fork_goes_on_where_the_first_world_was_going(visit):
    page = visit()
    playwright.expect(page.locator("#target")).not_to_have_text("256, 256")  # until the recording's action is known
    x, y = map(int, page.locator("#target").inner_text().split(", "))
    page.focus("#picture-0")
    for key in ("Shift+ArrowRight", "Shift+ArrowUp", "Shift+ArrowUp"):
        page.keyboard.press(key)
    target = f"{x + 64}, {y - 128}"
    playwright.expect(page.locator("#target")).to_have_text(target)
    page.evaluate("for (let i = 0; i < 2; i += 1) dispatchEvent(new KeyboardEvent('keydown', { key: 'f' }))")
    tags = page.locator(".tile.driven .tag")
    playwright.expect(tags).to_be_visible()
    assert page.locator("#target").inner_text() == target
    assert tags.count() == 1 and page.locator("[data-world='1'] .tag").is_visible()
    page.keyboard.press("3")
    playwright.expect(tags).to_have_count(2)
    assert page.locator("#target").inner_text() == target
    page.locator("[data-world='1'] .keep").dblclick()
    playwright.expect(page.locator("#picture-1")).to_be_hidden()
    page.wait_for_timeout(300)
    assert page.locator("#target").inner_text() == target
    assert page.locator("#toast").is_hidden()  # the second of two presses means nothing


def test_a_fork_while_the_picture_is_held_lets_go(visit):
    page = visit()
    box = page.locator("#picture-0 canvas").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    until_past(page, 2)
    page.keyboard.press("f")
    playwright.expect(page.locator("#picture-1")).to_be_visible()
    playwright.expect(page.locator("#play")).to_have_text("Play")
    last = settled(page)
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    page.wait_for_timeout(400)
    assert newest(page) == last
    page.mouse.up()


def test_the_recording_is_compared_frame_by_frame(visit):
    page = visit()
    page.locator("#speed").fill("31")
    page.click("#compare")
    page.click("#replay-start")
    until_past(page, 6)
    page.click("#play")
    for canvas in ("#truth", "#difference", "#legend", "#psnr"):
        playwright.expect(page.locator(canvas)).to_be_visible()
    playwright.expect(page.locator("#psnr polyline")).to_be_visible()
    scrub(page, 5)
    playwright.expect(page.locator("#truth-at")).to_have_text("step 5")
    playwright.expect(page.locator("#psnr-value")).to_contain_text("at step 5")
    said = float(re.match(r"[\d.]+", page.locator("#psnr-value").inner_text())[0])
    true, imagined = pixels(page, "#truth").astype(float), pixels(page).astype(float)
    measured = 10 * math.log10(255**2 / np.mean((true - imagined) ** 2))
    assert math.isfinite(said) and abs(said - measured) < 0.5
    page.hover("#psnr", position={"x": 32, "y": 60})
    playwright.expect(page.locator("#psnr-value")).to_contain_text("at step 1")


def test_what_was_seen_is_saved_as_a_video_and_as_arrays(visit, tmp_path):
    page = visit()
    steps(page, 3)
    for kind in ("mp4", "npz"):
        with page.expect_download() as waiting:
            page.click(f"#save-{kind}")
        assert waiting.value.suggested_filename.endswith(kind)
        waiting.value.save_as(tmp_path / f"seen.{kind}")
    with np.load(tmp_path / "seen.npz", allow_pickle=False) as arrays:
        assert arrays["frames"].dtype == np.uint8 and arrays["frames"].shape == (5, 64, 64, 3)
        assert arrays["actions"].shape == (5, 2) and int(arrays["context_frames"]) == 2
        assert np.array_equal(arrays["frames"][-1], pixels(page))
    with av.open(str(tmp_path / "seen.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5


def test_a_lost_connection_comes_back_into_the_same_world(visit):
    page = visit()
    seen = steps(page, 3)
    session = page.evaluate("sessionStorage.getItem('ivideogpt.session')")
    # A step is under way when the connection is cut: its frame never arrives, and is asked for afterwards.
    page.evaluate(f"document.querySelector('#step').click(); {CUT}")
    playwright.expect(page.locator("#banner")).to_be_visible()
    playwright.expect(page.locator("#banner")).to_contain_text("Connection lost")
    playwright.expect(page.locator("#banner")).to_be_hidden()
    page.wait_for_timeout(300)
    assert newest(page) in (3, 4)
    scrub(page, 3)
    assert np.array_equal(pixels(page), seen[2])

    page.reload()
    until_past(page, 3)
    scrub(page, 2)
    playwright.expect(page.locator("[data-world='0'] .at")).to_contain_text("step 2")
    until_shown(page, seen[1])
    assert page.evaluate("sessionStorage.getItem('ivideogpt.session')") == session
    assert page.locator("#toast").is_hidden()


def test_a_refused_upload_is_answered_with_a_sentence_where_it_was_made(visit):
    page = visit()
    page.set_input_files("#files", {"name": "broken.npz", "mimeType": "", "buffer": b"not an archive" * 9})
    error = page.locator("#upload-error")
    playwright.expect(error).to_be_visible()
    assert len(error.inner_text().split()) > 3 and "Traceback" not in error.inner_text()
    page.set_input_files("#files", {"name": "one.png", "mimeType": "image/png", "buffer": png(10)})
    playwright.expect(error).to_contain_text("2 pictures")
    steps(page, 1)


def test_two_pictures_become_a_world(visit):
    page = visit()
    before = page.locator(".episode").count()
    pair = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": png(100 * i)} for i in (2, 1)]
    page.set_input_files("#files", pair)
    playwright.expect(page.locator("#upload-status")).to_contain_text("2 frames")
    playwright.expect(page.locator("#upload-error")).to_be_hidden()
    assert page.locator(".episode").count() == before + 1
    page.wait_for_function(
        "() => document.querySelector('#picture-0 canvas').getContext('2d').getImageData(9, 9, 1, 1).data[0] === 200"
    )
    steps(page, 1)
    assert page.locator("#replay").is_disabled()


def test_an_ended_session_becomes_a_new_one_with_the_episodes_there_are(visit):
    page = visit()
    steps(page, 1)
    there = page.request.get(page.url + "api/world").json()
    there["episodes"] = there["episodes"][1:]
    page.route("**/api/world", lambda route: route.fulfill(json=there))
    page.evaluate("sessionStorage.setItem('ivideogpt.session', 'gone')")
    page.evaluate(CUT)
    playwright.expect(page.locator("#toast-text")).to_contain_text("has ended")
    playwright.expect(page.locator(".episode")).to_have_count(len(there["episodes"]))
    until_step(page, 0)
    assert page.locator(".episode input:checked").get_attribute("value") == there["episodes"][0]["id"]
    assert page.locator("#empty-text").text_content() == "Choose a start on the left."


def test_a_connection_closed_on_purpose_stays_closed_until_somebody_asks(visit):
    page = visit()
    page.evaluate("window.sockets.at(-1).onclose({ code: 4409 })")
    playwright.expect(page.locator("#banner-text")).to_contain_text("another window")
    page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for_timeout(600)
    assert page.locator("#link").inner_text() == "Closed"
    page.evaluate("document.querySelector('#live').textContent = ''")
    page.click("#open")
    page.click("#fork")
    page.wait_for_timeout(600)
    assert page.locator("#live").text_content() == ""
    page.click("#retry")
    playwright.expect(page.locator("#link")).to_have_text("Connected")
    steps(page, 1)


def set_goal(page, frame: int) -> None:
    """The last frame that a start at ``frame - 1`` shows becomes the goal."""
    page.locator("#start-frame").evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')); }", frame - 1
    )
    page.click("#goal-set")


def test_a_plan_is_cancelled_at_once_shown_and_followed(visit):
    page = visit()
    assert page.locator("#goal-row").is_hidden()
    set_goal(page, 16)
    goal = page.locator("#goal-picture")
    playwright.expect(goal).to_have_attribute("src", re.compile(r"frame=16$"))
    plan, cancel, status = (page.locator(name) for name in ("#plan", "#plan-cancel", "#plan-status"))

    slider = page.locator("#start-frame")
    slider.dispatch_event("change")  # the world begins where the slider is
    playwright.expect(status).to_have_text("The world begins at the goal. Choose another start.")
    slider.evaluate("slider => { slider.value = 0; slider.dispatchEvent(new Event('change')); }")
    playwright.expect(status).to_have_text("")

    plan.click()
    playwright.expect(status).to_have_text("Searching.")
    playwright.expect(plan).to_be_disabled()
    cancel.click()
    playwright.expect(status).to_have_text("", timeout=2_000)
    playwright.expect(plan).to_be_enabled(timeout=2_000)
    page.click("#step")
    until_step(page, 1)  # the world goes on as ever
    assert page.locator("#plan-figure").is_hidden()

    plan.click()
    playwright.expect(page.locator("#plan-figure")).to_be_visible()
    playwright.expect(status).to_have_text("This is the plan.")
    playwright.expect(page.locator("#plan-at")).to_have_text("15 of 15")
    last = pixels(page, "#plan-picture")
    playwright.expect(status).to_have_text("The world follows the plan.")
    until_step(page, 16)
    playwright.expect(status).to_have_text("")
    playwright.expect(page.locator("#play")).to_have_text("Play")
    # the picture model draws nothing at random: the world comes to what the plan showed
    until_shown(page, last)
    assert settled(page) == 16
