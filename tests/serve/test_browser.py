"""The page in a real browser, on the real server with the shipped model: what a player sees and does."""

import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt.evaluation.pusht import locate_agent

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Names or ids of controls that Tab reaches.
CONTROLS = {
    *("help-open", "theme", "episode", "start-frame", "open", "files", "picture-0", "timeline"),
    *("play", "step", "fork", "compare", "replay", "speed", "greedy", "seed", "hold", "save-mp4", "save-npz"),
}
# Keeps the sockets of the page where a test can cut them.
SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket { constructor(...all) { super(...all); window.sockets.push(this); } };
"""
CUT = "window.sockets.at(-1).close()"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a running ``ivideogpt serve``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "ivideogpt", "serve", "--no-browser", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        launched = tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def visit(server, browser):
    """``visit(**options of the context)``: a page whose first world is open; nothing may go wrong on it unseen."""
    contexts, wrong = [], []

    def call(**options):
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light"} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.add_init_script(SOCKETS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.goto(server)
        _until_step(page, 0)
        return page

    yield call
    for context in contexts:
        context.close()
    assert not [text for text in wrong if "400 (Bad Request)" not in text]


def _until_step(page, step: int) -> None:
    page.wait_for_function("step => document.querySelector('#timeline').max === String(step)", arg=step)
    text = f"step {step}" if step else "given frame 2"
    playwright.expect(page.locator("#picture-0 >> xpath=.. >> css=.at")).to_contain_text(text)


def _until_past(page, step: int) -> None:
    # A function, not an expression: the page's policy forbids to evaluate strings.
    page.wait_for_function("step => Number(document.querySelector('#timeline').max) >= step", arg=step)


def _newest(page) -> int:
    return int(page.locator("#timeline").get_attribute("max"))


def _pixels(page, canvas: str = "#picture-0 canvas") -> np.ndarray:
    """uint8 ``[h w 3]`` as the canvas shows it."""
    read = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    rgba = np.array(page.locator(canvas).evaluate(read), dtype=np.uint8)
    side = math.isqrt(len(rgba) // 4)
    return rgba.reshape(side, side, 4)[..., :3]


def _agent(page, canvas: str = "#picture-0 canvas") -> np.ndarray:
    """Where the blue disc is, as a share of the picture's sides."""
    found = locate_agent(torch.from_numpy(_pixels(page, canvas)).permute(2, 0, 1)[None])
    assert found.present.all()
    return found.xy[0].double().numpy() / 64


def _steps(page, count: int) -> list[np.ndarray]:
    """Presses Step that often; the pictures after each."""
    seen = []
    for step in range(_newest(page) + 1, _newest(page) + 1 + count):
        page.click("#step")
        _until_step(page, step)
        seen.append(_pixels(page))
    return seen


def _scrub(page, step: int) -> None:
    page.locator("#timeline").fill(str(step))


def _png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 200, 90)).save(file, "PNG")
    return file.getvalue()


def test_the_page_opens_a_world_and_asks_nobody_else(visit, server, browser):
    context = browser.new_context()
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url.replace("ws:", "http:")))
    page.goto(server)
    _until_step(page, 0)
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
    start = _agent(page)
    target = np.where(start < 0.5, 0.8, 0.2)
    box = page.locator("#picture-0 canvas").bounding_box()
    corner = np.array([box["x"], box["y"]])
    x, y = (corner + target * box["width"]).tolist()
    page.mouse.move(*(corner + start * box["width"]).tolist())
    page.mouse.down()
    page.mouse.move(x, y, steps=8)
    _until_past(page, 12)
    page.mouse.up()
    page.wait_for_timeout(500)
    newest = _newest(page)
    page.wait_for_timeout(500)
    assert _newest(page) == newest  # let go: nothing moves any more
    ring = page.locator("#picture-0 .target").bounding_box()
    assert abs(ring["x"] + 16 - x) < 3 and abs(ring["y"] + 16 - y) < 3
    before, after = np.linalg.norm(start - target), np.linalg.norm(_agent(page) - target)
    print(f"distance to the target: {64 * before:.1f} px, after {newest} steps {64 * after:.1f} px")
    assert after < before - 4 / 64


def test_steps_can_be_looked_at_again_taken_back_and_made_again(visit):
    page = visit()
    seen = _steps(page, 4)
    sent = page.evaluate("""() => {
        const socket = window.sockets.at(-1), send = socket.send.bind(socket);
        window.sent = [];
        socket.send = (text) => { window.sent.push(JSON.parse(text).type); send(text); };
    }""")
    _scrub(page, 2)
    playwright.expect(page.locator("#timeline-value")).to_have_text("step 2 of 4")
    assert np.array_equal(_pixels(page), seen[1])
    _scrub(page, -1)
    playwright.expect(page.locator("#timeline-value")).to_have_text("given frame 1")
    page.click("#newest")
    playwright.expect(page.locator("#timeline-value")).to_have_text("step 4 of 4")
    sent = page.evaluate("window.sent")
    assert sent == []  # from what the page keeps

    _scrub(page, 2)
    page.click("#continue")
    _until_step(page, 2)
    again = _steps(page, 2)
    assert np.array_equal(again[1], seen[3])
    page.click("#back")
    _until_step(page, 3)
    assert np.array_equal(_pixels(page), seen[2])


def test_a_world_forks_and_either_side_can_be_kept(visit):
    page = visit()
    _steps(page, 2)
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
    kept = _pixels(page, "#picture-1 canvas")
    page.click("[data-world='1'] .keep")
    playwright.expect(page.locator("#picture-1")).to_be_hidden()
    _until_step(page, 4)
    assert np.array_equal(_pixels(page), kept)


def test_the_recording_is_compared_frame_by_frame(visit):
    page = visit()
    page.locator("#speed").fill("31")
    page.click("#compare")
    page.click("#replay-start")
    _until_past(page, 6)
    page.click("#play")
    for canvas in ("#truth", "#difference", "#legend", "#psnr"):
        playwright.expect(page.locator(canvas)).to_be_visible()
    playwright.expect(page.locator("#psnr polyline")).to_be_visible()
    _scrub(page, 5)
    playwright.expect(page.locator("#truth-at")).to_have_text("step 5")
    playwright.expect(page.locator("#psnr-value")).to_contain_text("at step 5")
    said = float(re.match(r"[\d.]+", page.locator("#psnr-value").inner_text())[0])
    true, imagined = _pixels(page, "#truth").astype(float), _pixels(page).astype(float)
    measured = 10 * math.log10(255**2 / np.mean((true - imagined) ** 2))
    assert math.isfinite(said) and abs(said - measured) < 0.5
    page.hover("#psnr", position={"x": 32, "y": 60})
    playwright.expect(page.locator("#psnr-value")).to_contain_text("at step 1")


def test_what_was_seen_is_saved_as_a_video_and_as_arrays(visit, tmp_path):
    page = visit()
    _steps(page, 3)
    for kind in ("mp4", "npz"):
        with page.expect_download() as waiting:
            page.click(f"#save-{kind}")
        assert waiting.value.suggested_filename.endswith(kind)
        waiting.value.save_as(tmp_path / f"seen.{kind}")
    with np.load(tmp_path / "seen.npz", allow_pickle=False) as arrays:
        assert arrays["frames"].dtype == np.uint8 and arrays["frames"].shape == (5, 64, 64, 3)
        assert arrays["actions"].shape == (5, 2) and int(arrays["context_frames"]) == 2
        assert np.array_equal(arrays["frames"][-1], _pixels(page))
    with av.open(str(tmp_path / "seen.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5


def test_a_lost_connection_comes_back_into_the_same_world(visit):
    page = visit()
    seen = _steps(page, 3)
    session = page.evaluate("sessionStorage.getItem('ivideogpt.session')")
    # A step is under way when the connection is cut: its frame never arrives, and is asked for afterwards.
    page.evaluate(f"document.querySelector('#step').click(); {CUT}")
    playwright.expect(page.locator("#banner")).to_be_visible()
    playwright.expect(page.locator("#banner")).to_contain_text("Connection lost")
    playwright.expect(page.locator("#banner")).to_be_hidden()
    page.wait_for_timeout(300)
    assert _newest(page) in (3, 4)
    _scrub(page, 3)
    assert np.array_equal(_pixels(page), seen[2])

    page.reload()
    _until_past(page, 3)
    _scrub(page, 2)
    playwright.expect(page.locator("[data-world='0'] .at")).to_contain_text("step 2")
    page.wait_for_timeout(300)
    assert np.array_equal(_pixels(page), seen[1])
    assert page.evaluate("sessionStorage.getItem('ivideogpt.session')") == session
    assert page.locator("#toast").is_hidden()


def test_a_refused_upload_is_answered_with_a_sentence_where_it_was_made(visit):
    page = visit()
    page.set_input_files("#files", {"name": "broken.npz", "mimeType": "", "buffer": b"not an archive" * 9})
    error = page.locator("#upload-error")
    playwright.expect(error).to_be_visible()
    assert len(error.inner_text().split()) > 3 and "Traceback" not in error.inner_text()
    page.set_input_files("#files", {"name": "one.png", "mimeType": "image/png", "buffer": _png(10)})
    playwright.expect(error).to_contain_text("2 pictures")
    _steps(page, 1)


def test_two_pictures_become_a_world(visit):
    page = visit()
    before = page.locator(".episode").count()
    pair = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": _png(100 * i)} for i in (2, 1)]
    page.set_input_files("#files", pair)
    playwright.expect(page.locator("#upload-status")).to_contain_text("2 frames")
    playwright.expect(page.locator("#upload-error")).to_be_hidden()
    assert page.locator(".episode").count() == before + 1
    page.wait_for_function(
        "() => document.querySelector('#picture-0 canvas').getContext('2d').getImageData(9, 9, 1, 1).data[0] === 200"
    )
    _steps(page, 1)
    assert page.locator("#replay").is_disabled()


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
    _until_step(page, 1)
    page.keyboard.press(".")
    _until_step(page, 2)
    page.keyboard.press("r")
    _until_step(page, 1)
    target = page.locator("#target").inner_text()
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#target")).not_to_have_text(target)
    page.keyboard.press("Space")
    _until_past(page, 4)
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


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    box = page.locator("#picture-0 canvas").bounding_box()
    assert box["width"] >= 300
    page.touchscreen.tap(box["x"] + 200, box["y"] + 100)
    _until_past(page, 1)
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
        page.wait_for_timeout(200)  # colours fade
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
    texts = [_luminance(page, "color", of) for of in ("body", "#hint", ".error", "#trust-word")]
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
    assert 1 / seconds > 2
    assert float(page.locator("#rate").inner_text()) > 2


@pytest.mark.skipif("IVIDEOGPT_SCREENSHOTS" not in os.environ, reason="IVIDEOGPT_SCREENSHOTS names no folder")
def test_screenshots_are_taken(visit):
    folder = Path(os.environ["IVIDEOGPT_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)

    def drag(page):
        box = page.locator("#picture-0 canvas").bounding_box()
        page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.6 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"], steps=10)
        _until_past(page, 14)
        page.mouse.up()
        page.wait_for_timeout(400)

    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        drag(page)
        page.screenshot(path=folder / f"desktop-{scheme}.png")
    page.click("#compare")
    page.click("#replay-start")
    _until_past(page, 20)
    page.click("#play")
    page.wait_for_timeout(400)
    page.screenshot(path=folder / "compare-dark.png")
    page = visit()
    page.click("#compare")
    page.click("#replay-start")
    _until_past(page, 12)
    page.click("#play")
    page.click("#fork")
    page.click("#replay")
    page.focus("#picture-1")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowUp")
    page.click("#play")
    _until_past(page, 24)
    page.click("#play")
    page.wait_for_timeout(400)
    page.screenshot(path=folder / "fork-compare.png")
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.screenshot(path=folder / "phone.png")
    page.screenshot(path=folder / "phone-whole.png", full_page=True)
