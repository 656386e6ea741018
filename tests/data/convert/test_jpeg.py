"""JPEG files are decoded with the transform that was asked for."""

import sys

import numpy as np
import pytest
import simplejpeg

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.convert.jpeg import decode_frames, decode_jpeg, is_jpeg, jpeg_size
from ivideogpt.data.convert.source_episode import JpegFrames


@pytest.fixture
def files():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    return [simplejpeg.encode_jpeg(picture, 90, "RGB", "420") for picture in pictures]


def test_fast_and_accurate_are_what_the_library_gives(files):
    fast, accurate = decode_jpeg(files[0], fast=True), decode_jpeg(files[0])
    np.testing.assert_array_equal(fast, simplejpeg.decode_jpeg(files[0], "RGB", fastdct=True))
    np.testing.assert_array_equal(accurate, simplejpeg.decode_jpeg(files[0], "RGB", fastdct=False))
    assert (fast != accurate).any()


def test_sizes_and_kinds_are_read(files):
    assert jpeg_size(files[0]) == (24, 40)
    assert is_jpeg(files[0]) and is_jpeg(memoryview(files[0])) and not is_jpeg(b"\x89PNG")


def test_frames_are_decoded_all_or_some(files):
    frames = JpegFrames(files=files, height=24, width=40, fast=True)
    every = decode_frames(frames)
    assert every.shape == (3, 24, 40, 3)
    for number, file in enumerate(files):
        np.testing.assert_array_equal(every[number], decode_jpeg(file, fast=True))
    np.testing.assert_array_equal(decode_frames(frames, [2, 0]), every[[2, 0]])
    np.testing.assert_array_equal(decode_frames(every, [1]), every[[1]])


def test_a_bad_file_is_named(files):
    with pytest.raises(UserError, match="frame 1: .*no readable JPEG"):
        decode_frames(JpegFrames(files=[files[0], b"\xff\xd8\xff nothing"], height=24, width=40))
    with pytest.raises(UserError, match="frame 0: .*24 x 40 pixels; expected 24 x 41"):
        decode_frames(JpegFrames(files=files, height=24, width=41))
    with pytest.raises(UserError, match="no readable JPEG"):
        decode_jpeg(files[0][:200])


def test_the_missing_package_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(MissingExtraError, match=r"ivideogpt\[data\]"):
        decode_jpeg(files[0])
