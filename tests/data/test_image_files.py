"""Folders of images keep their order, and what would change or be lost silently is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.image_files import list_images, read_image


@pytest.fixture
def folder(tmp_path):
    """``folder(names)``: a folder with an image of each name, and its list of names in order."""

    def make(names):
        for name in names:
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        return [path.name for path in list_images(tmp_path)]

    return make


ORDERED = {
    "counters": ["1.png", "2.png", "10.png", "100.png"],
    "text before the number": ["frame-1.jpg", "frame-2.jpg", "frame-10.jpg"],
    "seconds": [f"{1_700_000_000.0 + row / 30}.png" for row in range(10)],
    "short fractions": ["0.0.png", "0.033.png", "0.066.png", "0.1.png", "0.133.png"],
    "whole and broken seconds": ["0.png", "0.5.png", "1.png", "1.25.png"],
    "takes with counters": [f"{take}.{frame}.png" for take, count in ((1, 12), (2, 3)) for frame in range(count)],
    "negative at the beginning": ["-10.png", "-2.png", "-1.png", "0.png", "3.png"],
    "negative after an underscore": ["t_-2.5.png", "t_-1.0.png", "t_0.0.png", "t_1.0.png"],
    "negative after a letter": ["t-2.png", "t-1.png", "t0.png", "t1.png"],
    "dates": ["2024-01-31 23-59-58.png", "2024-01-31 23-59-59.png", "2024-02-01 00-00-00.png"],
    "letters": ["a.png", "b.png", "c.png"],
    "several kinds": ["1.webp", "2.bmp", "3.png", "4.tif", "5.JPG", "6.jpeg", "7.tiff"],
    "one image": ["cover.png"],
}


@pytest.mark.parametrize("kind", ORDERED)
def test_images_come_in_the_order_of_their_numbers(folder, kind):
    names = ORDERED[kind]
    shuffled = [names[k] for k in np.random.default_rng(0).permutation(len(names))]
    assert folder(shuffled) == names


DOUBTFUL = {
    "masks with another ending": (["0001.jpg", "0001.png", "0002.jpg", "0002.png"], "differ in their endings only"),
    "masks with a suffix": (["0001.png", "0001_mask.png", "0002.png", "0002_mask.png"], "is in doubt"),
    "depth beside colour": (["rgb_1.png", "rgb_2.png", "depth_1.png", "depth_2.png"], "is in doubt"),
    "two cameras": (["cam1_1.png", "cam1_2.png", "cam2_1.png", "cam2_2.png"], "2 series with the same numbers"),
    "one number twice": (["1.png", "01.png"], "have the same numbers"),
    "a cover among frames": (["cover.png", "1.png", "2.png"], "is in doubt"),
    "names without an order": (["3fa9.png", "b71c.png", "c0de.png"], "is in doubt"),
    "words": (["rgb.png", "mask.png"], "is in doubt"),
    "fractions or counters": (["1.5.png", "1.25.png", "1.3.png"], "can be fractions or counters"),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_an_order_in_doubt_is_refused(folder, kind):
    names, sentence = DOUBTFUL[kind]
    with pytest.raises(UserError, match=sentence):
        folder(names)


@pytest.mark.parametrize("name", ["2.avif", "2.heic", "2.ppm", "2.jp2", "2.svg", "2.exr"])
def test_images_of_a_kind_that_is_not_read_are_never_skipped(folder, tmp_path, name):
    (tmp_path / name).write_bytes(b"image")
    with pytest.raises(UserError, match=f"holds {name}, an image of a kind that is not read"):
        folder(["1.png", "3.png"])


def test_other_files_and_hidden_files_are_no_images(folder, tmp_path):
    for name in ("notes.txt", "actions.csv", ".hidden.png", "Makefile"):
        (tmp_path / name).write_text("text")
    assert folder(["1.png", "2.png"]) == ["1.png", "2.png"]


def png16(colour_type, channels):
    """A PNG of one pixel with 16 bits a channel, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    pixel = zlib.compress(b"\0" + b"\x12\x34" * channels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_is_refused(colour_type, channels):
    with pytest.raises(UserError, match="more than 8 bits a channel"):
        read_image(png16(colour_type, channels), "deep.png")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_animated_image_and_one_of_print_colours_are_refused():
    frames = [Image.new("RGB", (4, 4), (80 * k, 0, 0)) for k in range(3)]
    for kind in ("PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match="holds 3 images"):
            read_image(content, "a")
    with pytest.raises(UserError, match="colours of the kind CMYK"):
        read_image(encoded(Image.new("CMYK", (4, 4)), "JPEG"), "a")


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, np.rot90),
    ],
)
def test_images_are_turned_and_mirrored_upright(orientation, turned):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(encoded(Image.fromarray(pixels), exif=exif), "a"), turned(pixels))


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded():
    image = Image.new("L", (30_000, 30_000))
    content = encoded(image, "PNG")
    with pytest.raises(UserError, match="bomb|made to fill the memory"):
        read_image(content, "a.png")
