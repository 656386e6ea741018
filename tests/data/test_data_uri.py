"""Pictures inside a page: what goes in comes out again."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ivideogpt.data.data_uri import animation_uri, png_uri, sprite_sheet

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def opened(uri):
    kind, content = uri.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
@pytest.mark.parametrize("gap", [0, 2])
def test_every_frame_stands_in_its_place_on_a_sheet(columns, gap):
    sheet = sprite_sheet(FRAMES, columns, gap)
    lines = -(-5 // columns)
    assert sheet.shape == (lines * (4 + gap) - gap, columns * (6 + gap) - gap, 3)
    for index, frame in enumerate(FRAMES):
        y, x = index // columns * (4 + gap), index % columns * (6 + gap)
        assert (sheet[y : y + 4, x : x + 6] == frame).all()


def test_places_without_a_frame_are_grey():
    assert (sprite_sheet(FRAMES, 2)[8:, 6:] == 128).all()
    assert (sprite_sheet(FRAMES, 5, gap=1)[:, 6] == 128).all()


def test_a_png_keeps_every_pixel():
    assert (np.asarray(opened(png_uri(FRAMES[0]))) == FRAMES[0]).all()


def test_an_animation_keeps_every_frame_and_its_time_and_never_ends():
    image = opened(animation_uri(FRAMES, fps=4))
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert (np.stack(frames) == FRAMES).all()
    assert image.info["loop"] == 0 and image.info["duration"] == 250
