"""Image files as RGB frames: the images of a folder in their order, and the pixels of one.

A folder of images is one recording. Its order is read from the numbers in the names; where the names leave a doubt
(masks beside colour images, two cameras, names without numbers), the folder is refused.
"""

from __future__ import annotations

import io
import mimetypes
import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, check_unpacked_size, reading

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_OTHER_IMAGE_SUFFIXES = (".avif", ".heic", ".heif", ".exr", ".hdr", ".dng", ".jp2", ".jxl", ".pgm", ".ppm", ".tga")
_RGB_MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "PA", "YCbCr")
_RAW_16_BIT = re.compile(r"(RGB[AX]?|LA?);16[BLN]")
# A number with a fraction, such as 1700000000.25, or a whole number.
_NUMBER = re.compile(r"(?<![\d.])(\d+\.\d+)(?![\d.])|(\d+)")


def is_image_name(path: Path) -> bool:
    """Return whether a file's name is that of an image which is read here; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of the numbers in their names.

    Numbers count as numbers: 2 comes before 10, -1 before 0, and 0.03 before 0.1. Files that are no images, and hidden
    files, are ignored.

    Raises:
        UserError: there are no images, some are of a kind that is not read here, or the order is in doubt.
    """
    with reading(folder, "check the folder", fault="cannot be listed"):
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    unknown = sorted(path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES and _may_be_image(path))
    images = [path for path in files if is_image_name(path)]
    kinds = ", ".join(IMAGE_SUFFIXES)
    if unknown:
        raise UserError(f"{folder} holds {unknown[0]}, an image of a kind that is not read; expected {kinds}")
    if not images:
        raise UserError(f"the folder {folder} has no images ({kinds}); give a folder with one image a frame")
    return _in_order(folder, images)


def read_image(source: Path | bytes, name: str = "") -> np.ndarray:
    """Return the pixels of an image file, uint8 ``[h w 3]``, upright.

    Args:
        source: the file or its content.
        name: for errors; default: the path.

    Raises:
        UserError: the file is damaged, or would change by becoming 8-bit RGB (see ``upright_rgb``).
    """
    name = name or str(source)
    if isinstance(source, Path):
        check_is_file(source, "image file")
    with reading(name, "copy or remove it", fault="is not a readable image"):
        stored = len(source) if isinstance(source, bytes) else source.stat().st_size
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            check_unpacked_size(name, unpacked=image.width * image.height * 3, stored=stored)
            return upright_rgb(image, name)


def upright_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Return an opened image as uint8 ``[h w 3]``, rotated and mirrored as its EXIF orientation says.

    Raises:
        UserError: it has more than 8 bits a channel, colours that are not RGB or grey, or transparent pixels, or it is
            animated.
    """
    if image.mode.startswith(("I", "F")) or _has_16_bit_colour(image):
        raise UserError(f"{name} has more than 8 bits a channel ({image.mode}); convert it to 8-bit RGB")
    if image.mode not in _RGB_MODES:
        raise UserError(f"{name} has colours of the kind {image.mode}; convert it to RGB")
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "GIF"):
        raise UserError(f"{name} holds {getattr(image, 'n_frames', 1)} images; save each as a file of its own")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{name} is partly transparent; put it on a background and save it as RGB")
    return np.asarray(upright.convert("RGB"))


def _has_16_bit_colour(image: Image.Image) -> bool:
    """Return whether the file has 16 bits a channel, which Pillow would reduce to 8 without a word."""
    return any(_RAW_16_BIT.search(str(tile[3])) for tile in getattr(image, "tile", ()) or ())


def _may_be_image(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in _OTHER_IMAGE_SUFFIXES or (kind.startswith("image/") and kind != "image/gif")


def _in_order(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Sort images of one series by the numbers in their names.

    Raises:
        UserError: two files differ in their suffix only, belong to different series, or have the same numbers.
    """
    by_stem: dict[str, Path] = {}
    for path in sorted(images):
        twin = by_stem.setdefault(path.stem, path)
        if twin is not path:
            raise UserError(
                f"{folder} holds {twin.name} and {path.name}, which differ in their endings only; put images and masks "
                "into folders of their own"
            )
    stems = sorted(by_stem)
    if len(stems) == 1:
        return [by_stem[stems[0]]]
    if not any(_NUMBER.search(stem) for stem in stems) and len({len(stem) for stem in stems}) == 1:
        return [by_stem[stem] for stem in stems]  # a, b, c
    names = [_parsed(stem, signs=False) for stem in stems]
    if len({text for text, _ in names}) > 1:
        names = [_parsed(stem, signs=True) for stem in stems]
    series = {text: stem for (text, _), stem in zip(names, stems, strict=True)}
    if len(series) > 1 or not names[0][1]:
        first, second = sorted(series.values())[:2] if len(series) > 1 else stems[:2]
        raise UserError(
            f"the order of {by_stem[first].name} and {by_stem[second].name} in {folder} is in doubt; expected one "
            "series of images whose names differ in numbers only: rename them, or put each series into its own folder"
        )
    keys = [_order_key(numbers) for numbers in _decimals_or_counters(folder, [numbers for _, numbers in names])]
    _check_keys(folder, keys, [by_stem[stem].name for stem in stems])
    return [by_stem[stem] for _, stem in sorted(zip(keys, stems, strict=True))]


def _parsed(stem: str, *, signs: bool) -> tuple[str, tuple[str, ...]]:
    """Split a name into its text, with "#" for each number, and its numbers.

    A "-" at the beginning of the name or after "_", "=" or a space is a sign; with ``signs``, after a letter too.
    """
    signed = r"((?:(?<![\w.)\]])|(?<=[_= ]))-)?" if not signs else r"((?<![\d.)\]])-)?"
    pattern = re.compile(signed + r"(?:" + _NUMBER.pattern + ")")
    numbers = [("-" if match[1] else "") + (match[2] or match[3]) for match in pattern.finditer(stem)]
    return pattern.sub("#", stem), tuple(numbers)


def _decimals_or_counters(folder: Path, names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Decide for each number with a point whether it is a fraction (0.5 s) or two counters (take 0, frame 5).

    Raises:
        UserError: both are possible, and they order the images differently.
    """
    columns = list(zip(*names, strict=True))
    for place, column in enumerate(columns):
        if not all("." in number and number[0] != "-" for number in column):
            continue
        parts = [number.split(".") for number in column]
        as_decimal = sorted(range(len(column)), key=lambda i: Fraction(column[i]))
        as_counter = sorted(range(len(column)), key=lambda i: (int(parts[i][0]), int(parts[i][1])))
        if as_decimal == as_counter:
            continue
        counters: dict[str, list[int]] = defaultdict(list)
        for whole, part in parts:
            counters[whole].append(int(part))
        padded = any(part.startswith("0") and len(part) > 1 for _, part in parts)
        long = any(len(part) > 4 for _, part in parts)
        counted = all(sorted(run) == list(range(min(run), min(run) + len(run))) for run in counters.values())
        repeated = len({Fraction(number) for number in column}) < len(column) and not padded
        if (counted or repeated) and not padded:
            columns[place] = tuple(f"{whole}|{part}" for whole, part in parts)
        elif not (padded or long):
            first = as_decimal[0]
            raise UserError(
                f"the numbers {column[first]} and {column[as_counter[-1]]} in the names of the images in {folder} can "
                "be fractions or counters; rename the images so that the numbers have as many digits"
            )
    return list(zip(*columns, strict=True))


def _order_key(numbers: tuple[str, ...]) -> tuple[Fraction, ...]:
    return tuple(Fraction(part) for number in numbers for part in number.split("|"))


def _check_keys(folder: Path, keys: list[tuple[Fraction, ...]], names: list[str]) -> None:
    """Refuse images with the same numbers, and several cameras or takes whose numbers repeat."""
    seen: dict[tuple[Fraction, ...], str] = {}
    for key, name in zip(keys, names, strict=True):
        if key in seen:
            raise UserError(f"{seen[key]} and {name} in {folder} have the same numbers, so their order is in doubt")
        seen[key] = name
    for split in range(1, len(keys[0])):
        runs: dict[tuple[Fraction, ...], set[tuple[Fraction, ...]]] = defaultdict(set)
        for key in keys:
            runs[key[:split]].add(key[split:])
        first, *later = runs.values()
        if later and len(first) > 1 and all(run == first for run in later):
            raise UserError(
                f"the images of {folder} are {len(runs)} series with the same numbers (such as {names[0]} and "
                f"{names[-1]}), like those of several cameras or takes; put each series into its own folder"
            )
