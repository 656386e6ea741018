"""An imagination shows itself in a notebook."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ivideogpt import Imagination
from ivideogpt.data.render import to_uint8


@pytest.fixture
def imagined(model_of, frames_for, actions_for):
    """``imagined(rows, horizon)`` of a tiny model, its frames repeated where it takes more of them than it made."""

    def make(rows=2, horizon=3):
        model = model_of("conditional")
        made = model.imagine(frames_for(model, rows), actions_for(model, rows, min(horizon, 3)))
        if horizon <= 3:
            return made
        frames = made.frames.repeat(1, horizon, 1, 1, 1)[:, :horizon]
        return Imagination(frames, made.ids, made.log_probs, made.entropies, made.rewards)

    return make


def pictures(html):
    return [
        Image.open(io.BytesIO(base64.b64decode(x))) for x in re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    ]


def test_it_is_a_fragment_without_a_script(imagined):
    html = imagined()._repr_html_()
    assert html.startswith("<div>") and html.count("<div>") == html.count("</div>")
    assert "<script" not in html and "http" not in html and html.count("<img") == 2
    assert html.count("image-rendering: pixelated") == 2 and html.count("alt=") == 2
    assert "2 rows, 3 frames<" in html and "+1, +2, +3" in html


def test_the_pictures_are_the_frames(imagined):
    shown = imagined(rows=2, horizon=3)
    moving, strip = pictures(shown._repr_html_())
    for index, frame in enumerate(ImageSequence.Iterator(moving)):
        pixels = np.asarray(frame.convert("RGB"))
        assert pixels.shape == (16, 2 * 16 + 2, 3)
        assert (pixels[:, 18:] == to_uint8(shown.frames[1])[index]).all()
    assert (np.asarray(strip)[18:, 36:] == to_uint8(shown.frames[1])[2]).all()


def test_a_large_imagination_stays_small(imagined):
    html = imagined(rows=6, horizon=100)._repr_html_()
    assert "6 rows, 100 frames, the first 4 rows are shown, 64 of the frames move" in html
    moving, strip = pictures(html)
    assert moving.n_frames <= 64 and moving.width == 4 * 16 + 3 * 2
    assert strip.size == (8 * 18 - 2, 4 * 18 - 2)
    assert "+1, " in html and "+100" in html


def test_one_row_and_one_frame_are_enough(imagined):
    assert "1 row, 1 frame<" in imagined(rows=1, horizon=1)._repr_html_()
