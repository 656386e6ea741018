"""Reads one recording into an Episode: an .npz file, a video, a GIF or a folder of images.

Three kinds of ``.npz`` are known by the array that holds their frames:

- ``frames``: our own; the other arrays are named as the fields of ``Episode`` and follow its time convention.
- ``observation`` with stacked frames ``[t 9 h w]``: an official replay file. Row t of ``action`` and ``reward``
  leads *into* frame t and row 0 is a dummy, so they move up by one row here.
- any other name, such as ``image``: an official demonstration. Row t of ``action`` leads from frame t to t + 1 as
  in ``Episode``; there may be one row less than frames.
"""

from __future__ import annotations

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from einops import rearrange
from PIL import Image, ImageSequence

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import DatasetInfo, dataset_info
from ivideogpt.data.image_file import upright_rgb

_VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
_IMAGES = (".png", ".jpg", ".jpeg")
_OWN_KEY, _REPLAY_KEY = "frames", "observation"
# Fields of Episode that belong to transitions, by their names in our own files and in official ones.
_ROWS = {"actions": ("actions", "action"), "rewards": ("rewards", "reward"), "terminated": ("terminated",)}
_STACKED_CHANNELS = 9
# What numpy raises where a file is damaged: found by giving it thousands of damaged ones.
_DAMAGED_ARCHIVE = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, LookupError, MemoryError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
_DAMAGED_IMAGE = (OSError, ValueError, EOFError, SyntaxError, struct.error, Image.DecompressionBombError)


def read_episode(
    path: str | Path,
    *,
    dataset_name: str | None = None,
    camera_key: str | None = None,
    size: int | None = None,
) -> Episode:
    """Reads one recording.

    Args:
        path: ``.npz``, a video (``.mp4`` and others), ``.gif``, or a folder of ``.png`` / ``.jpg`` images, which
            are taken in natural order (2 before 10).
        dataset_name: a name of the catalog; it says which array of an ``.npz`` is the camera and how far the
            environment clipped the actions.
        camera_key: array of an ``.npz`` that holds the frames; it wins over the dataset's. With neither, the
            only array that looks like frames is taken.
        size: frames are resized to size x size pixels (bilinear, antialiased, without a crop: the aspect ratio is
            not kept), as the official predict.py does; None keeps them as they are.

    Returns:
        The episode: frames uint8 ``[t h w 3]``; from an ``.npz`` also what else it holds. ``key`` is the name of
        the file without its ending; ``meta`` holds the source, dataset, camera and frames a second where known.

    Raises:
        UserError: the file is missing, damaged, of an unknown kind, or its arrays are not what is expected.
    """
    path = Path(path)
    if size is not None and size < 1:
        raise UserError(f"size is {size}; expected at least 1 pixel, for example 64")
    dataset = dataset_info(dataset_name) if dataset_name is not None else None
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; check the path")
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind != ".npz" and camera_key is not None:
        raise UserError(f"camera_key is {camera_key!r}, but {path} is no .npz and has no named arrays; leave it out")
    meta = {"source": str(path), "dataset": dataset_name}
    if kind == ".npz":
        return _read_npz(path, dataset, camera_key, size, meta)
    if kind == "folder":
        frames, rate = _read_folder(path, size), None
    elif kind == ".gif":
        frames, rate = _read_gif(path, size)
    elif kind in _VIDEOS:
        frames, rate = _read_video(path, size)
    else:
        known = ", ".join((".npz", ".gif", *_VIDEOS))
        raise UserError(f"{path} ends in {path.suffix!r}; expected {known} or a folder of png or jpg images")
    return Episode(frames=frames, key=path.stem, meta=meta | {"fps": rate})


def _read_npz(path: Path, dataset: DatasetInfo | None, camera_key: str | None, size: int | None, meta: dict) -> Episode:
    try:
        archive = np.load(path, allow_pickle=False)
    except _DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is not a readable .npz file ({error}); save it again with numpy.savez") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds one bare array; expected a .npz of named arrays; save it with numpy.savez")
    with archive:
        camera = camera_key or (dataset.camera_key if dataset else _only_camera(archive, path))
        stored = _array(archive, path, camera)
        frames = _frames_of(stored, f"array {camera!r} of {path}")
        leads_in = camera == _REPLAY_KEY and stored.shape[1] == _STACKED_CHANNELS
        rows = {}
        for field, names in _ROWS.items():
            name = next((name for name in names if name in archive.files), None)
            if name is None or (field == "terminated" and camera != _OWN_KEY):
                continue
            rows[field] = _rows_of(_array(archive, path, name), f"array {name!r} of {path}", len(frames), leads_in)
            if field != "actions":
                rows[field] = _one_column(rows[field], f"array {name!r} of {path}")
        if camera == _OWN_KEY and "state" in archive.files:
            rows["state"] = _numbers(_array(archive, path, "state"), f"array 'state' of {path}")
    if "terminated" in rows:
        rows["terminated"] = rows["terminated"].astype(bool)
    if dataset is not None and dataset.action_limit is not None and "actions" in rows:
        rows["actions"] = np.clip(rows["actions"], -dataset.action_limit, dataset.action_limit)
    return Episode(frames=_resized(frames, size), key=path.stem, meta=meta | {"camera": camera}, **rows)


def _array(archive: np.lib.npyio.NpzFile, path: Path, name: str) -> np.ndarray:
    if name not in archive.files:
        raise UserError(f"{path} has no array {name!r}; it has {_listed(archive.files)}: give one as camera_key")
    try:
        return archive[name]
    except _DAMAGED_ARCHIVE as error:
        if "pickle" in str(error):
            raise UserError(
                f"array {name!r} of {path} holds Python objects, which are never unpickled; save it as plain numbers"
            ) from error
        raise UserError(f"array {name!r} of {path} is damaged ({error}); copy or record the file again") from error


def _only_camera(archive: np.lib.npyio.NpzFile, path: Path) -> str:
    shapes = {}
    for name in archive.files:
        try:
            shapes[name] = archive[name].shape
        except _DAMAGED_ARCHIVE:
            continue  # It is reported if it is asked for by name.
    cameras = [name for name, shape in shapes.items() if len(shape) == 4 and _layout(shape)]
    if len(cameras) == 1:
        return cameras[0]
    if cameras:
        raise UserError(
            f"{path} has {len(cameras)} arrays of frames: {_listed(cameras)}; give one as camera_key, or dataset_name"
        )
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing readable"
    raise UserError(f"{path} has no array of frames [t h w 3]; it has {found}; store RGB frames as 'frames'")


def _layout(shape: tuple[int, ...]) -> str | None:
    """The einops pattern that makes ``shape`` frames of three channels, or None."""
    if shape[3] == 3:
        return "t h w c -> t h w c"
    if shape[1] in (3, _STACKED_CHANNELS):
        return "t c h w -> t h w c"
    return None


def _frames_of(stored: np.ndarray, name: str) -> np.ndarray:
    """Frames uint8 ``[t h w 3]`` from an array of any layout and number type that is understood."""
    shape = list(stored.shape)
    if stored.ndim != 4 or (layout := _layout(stored.shape)) is None:
        raise UserError(f"{name} has shape {shape}; expected RGB frames [t h w 3], [t 3 h w] or stacked [t 9 h w]")
    if 0 in stored.shape:
        raise UserError(f"{name} has shape {shape}: no frames; record the episode again")
    # Of stacked frames the last three channels are the newest.
    frames = rearrange(stored, layout)[..., -3:]
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind not in "iuf":
        raise UserError(f"{name} has type {frames.dtype}; expected uint8, or floats from 0 to 1")
    low, high, top = frames.min(), frames.max(), 1 if frames.dtype.kind == "f" else 255
    # Written so that NaN fails too.
    if not (low >= 0 and high <= top):
        raise UserError(
            f"{name} has {frames.dtype} values from {low:g} to {high:g}; "
            "expected floats from 0 to 1 or integers from 0 to 255"
        )
    return np.rint(frames * (255 / top)).astype(np.uint8)


def _rows_of(stored: np.ndarray, name: str, length: int, leads_in: bool) -> np.ndarray:
    """Float32 ``[length n]`` in the convention of Episode; ``leads_in``: row t was stored as leading into frame t."""
    values = _numbers(stored, name)
    if len(stored) != length and (leads_in or len(stored) != length - 1):
        raise UserError(f"{name} has {len(stored)} rows for {length} frames; expected a row for each, or one less")
    if leads_in:
        if values[0].any():
            raise UserError(
                f"{name} starts with {values[0].tolist()}; a replay file starts with zeros, as its row t leads into "
                "frame t; store frames and actions as 'frames' and 'actions' if row t leads from frame t to t + 1"
            )
        values = values[1:]
    rows = np.zeros((length, values.shape[1]), np.float32)
    rows[:-1] = values[: length - 1]
    return rows


def _numbers(stored: np.ndarray, name: str) -> np.ndarray:
    """Float32 ``[t n]``."""
    if stored.dtype.kind not in "iufb" or stored.ndim not in (1, 2):
        raise UserError(f"{name} has type {stored.dtype} and shape {list(stored.shape)}; expected numbers [t n]")
    return stored.astype(np.float32) if stored.ndim == 2 else rearrange(stored.astype(np.float32), "t -> t 1")


def _one_column(rows: np.ndarray, name: str) -> np.ndarray:
    if rows.shape[1] != 1:
        raise UserError(f"{name} has {rows.shape[1]} columns; expected one number a frame")
    return rows[:, 0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _read_video(path: Path, size: int | None) -> tuple[np.ndarray, float | None]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no pictures, only sound; give a file with a video stream")
            stream = container.streams.video[0]
            # The default threading: with frame threads a truncated file ends early and no error is seen.
            rate = float(stream.average_rate) if stream.average_rate else None
            pictures = (np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(stream))
            return _gathered(pictures, path, size), rate
    except FFmpegError as error:
        raise UserError(f"{path} cannot be decoded as a video ({error}); convert or copy it again") from error


def _read_gif(path: Path, size: int | None) -> tuple[np.ndarray, float | None]:
    try:
        with Image.open(path) as image:
            duration = image.info.get("duration")
            pictures = (np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image))
            return _gathered(pictures, path, size), 1000 / duration if duration else None
    except UserError:
        raise
    except _DAMAGED_IMAGE as error:
        raise UserError(f"{path} is not a readable GIF ({error}); copy or convert it again") from error


def _read_folder(path: Path, size: int | None) -> np.ndarray:
    files = [file for file in path.iterdir() if file.suffix.lower() in _IMAGES and not file.name.startswith(".")]
    if not files:
        raise UserError(f"the folder {path} has no png or jpg images; give a folder with one image a frame")
    # Split into text and numbers, so that 2 comes before 10.
    files.sort(key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)])
    return _gathered((_read_image(file) for file in files), path, size)


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return upright_rgb(image, str(path))
    except UserError:
        raise
    except _DAMAGED_IMAGE as error:
        raise UserError(f"{path} is not a readable image ({error}); copy or remove it") from error


def _gathered(pictures: Iterable[np.ndarray], path: Path, size: int | None) -> np.ndarray:
    """Frames ``[t h w 3]``; resized one by one, so that a long recording never lies in memory at full size."""
    frames, shape = [], None
    for index, picture in enumerate(pictures):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise UserError(
                f"frame {index} of {path} is {picture.shape[1]} x {picture.shape[0]} pixels, but the first is "
                f"{shape[1]} x {shape[0]}; make all frames the same size"
            )
        frames.append(_resized(picture[None], size)[0])
    if not frames:
        raise UserError(f"{path} has no frames; record or convert it again")
    return np.stack(frames)


def _resized(frames: np.ndarray, size: int | None) -> np.ndarray:
    """Frames uint8 ``[t h w 3]`` as ``[t size size 3]``."""
    if size is None or frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    resized = np.empty((len(frames), size, size, 3), np.uint8)
    for index, frame in enumerate(frames):
        pixels = rearrange(torch.tensor(frame, dtype=torch.float32), "h w c -> 1 c h w")
        pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        resized[index] = rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "1 c h w -> h w c").numpy()
    return resized
