"""What the tests of the page share: a browser on the real server with the shipped model."""

import contextlib
import io
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt.evaluation.pusht_metrics import locate_agent

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
# Guards against hangs: no load of the machine may reach them.
playwright.expect.set_options(timeout=300_000)
CHROMIUM = shutil.which("chromium")
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

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
    with serving(tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """Address of a server of Meta-World, whose actions are four numbers."""
    with serving(tmp_path_factory.mktemp("arm") / "log", "metaworld-64") as address:
        yield address


@contextlib.contextmanager
def serving(log: Path, *words: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ivideogpt", "serve", *words, "--no-browser", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(600)


def _wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(6000):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=60):
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

    def call(address=server, init="", **options):
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light"} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.add_init_script(SOCKETS + init)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.goto(address)
        until_step(page, 0)
        return page

    yield call
    for context in contexts:
        context.close()
    assert not [text for text in wrong if "400 (Bad Request)" not in text]


def until_step(page, step: int) -> None:
    page.wait_for_function("step => document.querySelector('#timeline').max === String(step)", arg=step)
    # the last context frame; before the world opens there is frame 0 of 0
    text = f"step {step}" if step else re.compile(r"context frame ([1-9]\d*) of \1\b")
    playwright.expect(page.locator("#picture-0 >> xpath=.. >> css=.at")).to_contain_text(text)


def until_past(page, step: int) -> None:
    # A function, not an expression: the page's policy forbids to evaluate strings.
    page.wait_for_function("step => Number(document.querySelector('#timeline').max) >= step", arg=step)


def newest(page) -> int:
    return int(page.locator("#timeline").get_attribute("max"))


def settled(page) -> int:
    """The newest step once no other has come for half a second; what moves on and on never settles."""
    last = None
    for _ in range(600):
        if last == (last := newest(page)):
            return last
        page.wait_for_timeout(500)
    pytest.fail("it moves on and on")


def pixels(page, canvas: str = "#picture-0 canvas") -> np.ndarray:
    """uint8 ``[h w 3]`` as the canvas shows it."""
    read = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    rgba = np.array(page.locator(canvas).evaluate(read), dtype=np.uint8)
    side = math.isqrt(len(rgba) // 4)
    return rgba.reshape(side, side, 4)[..., :3]


def until_shown(page, picture: np.ndarray) -> None:
    for _ in range(600):
        if np.array_equal(pixels(page), picture):
            return
        page.wait_for_timeout(100)
    assert np.array_equal(pixels(page), picture)


def agent(page, canvas: str = "#picture-0 canvas") -> np.ndarray:
    """Where the blue disc is, as a share of the picture's sides."""
    found = locate_agent(torch.from_numpy(pixels(page, canvas)).permute(2, 0, 1)[None])
    assert found.present.all()
    return found.xy[0].double().numpy() / 64


def steps(page, count: int) -> list[np.ndarray]:
    """Presses Step that often; the pictures after each."""
    seen = []
    for step in range(newest(page) + 1, newest(page) + 1 + count):
        page.click("#step")
        until_step(page, step)
        seen.append(pixels(page))
    return seen


def scrub(page, step: int) -> None:
    page.locator("#timeline").fill(str(step))


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 200, 90)).save(file, "PNG")
    return file.getvalue()
