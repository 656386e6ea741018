"""Reads one recording into an ``Episode``: an ``.npz`` file, a video, a GIF or a folder of images.

The array that holds the frames decides how an ``.npz`` file is read:

- ``frames``: our own format; the other arrays are named like the fields of ``Episode`` and follow its time convention.
- ``observation`` with stacked frames ``[t 9 h w]``: an official replay file. Row t of ``action`` and ``reward`` leads
  *into* frame t and row 0 is a dummy, so all rows move up by one here.
- any other name, such as ``image``: an official demonstration. Row t of ``action`` leads from frame t to t + 1 as in
  ``Episode``; there may be one row less than frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, local_path
from ivideogpt.data.augment import both_sides
from ivideogpt.data.catalog import DatasetInfo, dataset_info
from ivideogpt.data.image_files import list_images, read_image
from ivideogpt.data.numpy_files import NumpyArchive
from ivideogpt.data.video_files import VIDEO_SUFFIXES, gif_frames, open_video, upright_frame

_OWN_KEY, _REPLAY_KEY = "frames", "observation"
# Fields of Episode that belong to transitions, by their names in our own files and in official ones.
_ROWS = {"actions": ("actions", "action"), "rewards": ("rewards", "reward"), "terminated": ("terminated",)}
_STACKED_CHANNELS = 9


def read_episode(
    path: str | Path,
    *,
    dataset_name: str | None = None,
    camera_key: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Episode:
    """Read one recording.

    Args:
        path: ``.npz``, a video (``.mp4`` and others), ``.gif``, or a folder of images in the order of the numbers in
            their names (2 before 10); see ``list_images``.
        dataset_name: a name of the catalogue; it decides which array of an ``.npz`` is the camera and how far the
            environment clipped the actions.
        camera_key: array of an ``.npz`` that holds the frames, instead of the dataset's. With neither, the only array
            that can be frames is taken.
        size: frames are resized to size x size pixels, or to (height, width): bilinear, antialiased, without a crop,
            so that the aspect ratio is not kept, as the official predict.py does; None keeps their size.

    Returns:
        The episode: frames uint8 ``[t h w 3]``; from an ``.npz`` also actions, rewards, terminated and state. ``key``
        is the name of the file without its suffix; ``meta`` holds the source, dataset, camera and frames a second
        where known.

    Raises:
        UserError: the file is missing, damaged or of an unknown kind, its order of frames is in doubt, or its arrays
            have other shapes or values than expected.
    """
    path = local_path(path)
    if size is not None and min(both_sides(size)) < 1:
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
        frames, rate = _gather((read_image(file) for file in list_images(path)), path, size), None
    elif kind == ".gif":
        pictures, rate = gif_frames(path)
        frames = _gather(pictures, path, size)
    elif kind in VIDEO_SUFFIXES:
        with open_video(path) as (container, stream):
            rate = float(stream.average_rate) if stream.average_rate else None
            pictures = (upright_frame(frame, str(path)) for frame in container.decode(stream))
            frames = _gather(pictures, path, size)
    else:
        check_is_file(path, "recording")
        kinds = ", ".join((".npz", ".gif", *VIDEO_SUFFIXES))
        raise UserError(f"{path} ends in {path.suffix!r}; expected {kinds} or a folder of images")
    return Episode(frames=frames, key=path.stem, meta=meta | {"fps": rate})


def _read_npz(
    path: Path, dataset: DatasetInfo | None, camera_key: str | None, size: int | tuple[int, int] | None, meta: dict
) -> Episode:
    with NumpyArchive(path) as archive:
        camera = camera_key or (dataset.camera_key if dataset else _only_camera(archive))
        stored = archive.read(camera)
        frames = _rgb_frames(stored, f"array {camera!r} of {path}")
        leads_in = camera == _REPLAY_KEY and stored.shape[1] == _STACKED_CHANNELS
        rows = {}
        for field, names in _ROWS.items():
            name = next((name for name in names if name in archive.names), None)
            if name is None or (field == "terminated" and camera != _OWN_KEY):
                continue
            values, label = archive.read(name), f"array {name!r} of {path}"
            if field == "terminated":
                _check_flags(values, label, len(frames))
            rows[field] = _transitions(values, label, len(frames), leads_in)
            if field != "actions":
                rows[field] = _only_column(rows[field], label)
        if camera == _OWN_KEY and "state" in archive.names:
            rows["state"] = _numbers(archive.read("state"), f"array 'state' of {path}")
    if "terminated" in rows:
        rows["terminated"] = rows["terminated"].astype(bool)
    if dataset is not None and dataset.action_limit is not None and "actions" in rows:
        rows["actions"] = np.clip(rows["actions"], -dataset.action_limit, dataset.action_limit)
    return Episode(frames=_resize(frames, size), key=path.stem, meta=meta | {"camera": camera}, **rows)


def _check_flags(values: np.ndarray, label: str, length: int) -> None:
    """Refuse flags that are neither 0 nor 1, such as NaN, and an end of the episode after its last transition."""
    if values.dtype.kind not in "iufb":
        return  # refused later, with its type
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise UserError(f"{label} has {values.reshape(-1)[wrong[0]]} at number {wrong[0]}; expected 0 or 1")
    if len(values) == length and np.any(values[-1:]):
        raise UserError(
            f"{label} is true in the last row, which leads to no frame and is never read; mark the row before it"
        )


def _only_camera(archive: NumpyArchive) -> str:
    """Return the name of the only array that can be frames."""
    shapes = {}
    for name in archive.names:
        try:
            shapes[name], _ = archive.header(name)
        except UserError:
            continue  # reported where it is asked for by name
    cameras = [name for name, shape in shapes.items() if len(shape) == 4 and _layout(shape)]
    if len(cameras) == 1:
        return cameras[0]
    if cameras:
        listed = ", ".join(cameras)
        raise UserError(
            f"{archive.path} has {len(cameras)} arrays of frames: {listed}; give one as camera_key, or dataset_name"
        )
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing readable"
    raise UserError(f"{archive.path} has no array of frames [t h w 3]; it has {listed}; store RGB frames as 'frames'")


def _layout(shape: tuple[int, ...]) -> str | None:
    """Return the einops pattern that turns ``shape`` into frames, channels last, or None where it cannot be frames."""
    if shape[3] == 3:
        return "t h w c -> t h w c"
    if shape[1] in (3, _STACKED_CHANNELS):
        return "t c h w -> t h w c"
    return None


def _rgb_frames(stored: np.ndarray, name: str) -> np.ndarray:
    """Return frames uint8 ``[t h w 3]`` from an array of any supported layout and number type."""
    shape = list(stored.shape)
    if stored.ndim != 4 or (layout := _layout(stored.shape)) is None:
        raise UserError(f"{name} has shape {shape}; expected RGB frames [t h w 3], [t 3 h w] or stacked [t 9 h w]")
    if 0 in stored.shape:
        raise UserError(f"{name} has shape {shape}: no frames; record the episode again")
    # The last three channels of stacked frames are the newest.
    frames = rearrange(stored, layout)[..., -3:]
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind not in "iuf":
        raise UserError(f"{name} has type {frames.dtype}; expected uint8, or floats from 0 to 1")
    low, high, top = frames.min(), frames.max(), 1 if frames.dtype.kind == "f" else 255
    # This form refuses NaN too.
    if not (low >= 0 and high <= top):
        raise UserError(
            f"{name} has {frames.dtype} values from {low:g} to {high:g}; "
            "expected floats from 0 to 1 or integers from 0 to 255"
        )
    return np.rint(frames * (255 / top)).astype(np.uint8)


def _transitions(stored: np.ndarray, name: str, length: int, leads_in: bool) -> np.ndarray:
    """Return float32 ``[length n]`` in the convention of ``Episode``.

    Args:
        stored: one row a frame, or one less.
        name: of the array, for errors.
        length: frames.
        leads_in: row t was stored as leading into frame t.
    """
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
    """Return numbers as float32 ``[t n]``."""
    if stored.dtype.kind not in "iufb" or stored.ndim not in (1, 2):
        raise UserError(f"{name} has type {stored.dtype} and shape {list(stored.shape)}; expected numbers [t n]")
    return stored.astype(np.float32) if stored.ndim == 2 else rearrange(stored.astype(np.float32), "t -> t 1")


def _only_column(rows: np.ndarray, name: str) -> np.ndarray:
    if rows.shape[1] != 1:
        raise UserError(f"{name} has {rows.shape[1]} columns; expected one number a frame")
    return rows[:, 0]


def _gather(pictures: Iterable[np.ndarray], path: Path, size: int | tuple[int, int] | None) -> np.ndarray:
    """Return frames ``[t h w 3]``, resized one by one, so that a long recording is never in memory at full size."""
    frames, shape = [], None
    for index, picture in enumerate(pictures):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise UserError(
                f"frame {index} of {path} is {picture.shape[1]} x {picture.shape[0]} pixels, but the first is "
                f"{shape[1]} x {shape[0]}; make all frames the same size"
            )
        frames.append(_resize(picture[None], size)[0])
    if not frames:
        raise UserError(f"{path} has no frames; record or convert it again")
    return np.stack(frames)


def _resize(frames: np.ndarray, size: int | tuple[int, int] | None) -> np.ndarray:
    """Return frames uint8 ``[t h w 3]`` as ``[t height width 3]``; None: as they are."""
    if size is None or frames.shape[1:3] == (sides := both_sides(size)):
        return np.ascontiguousarray(frames)
    resized = np.empty((len(frames), *sides, 3), np.uint8)
    for index, frame in enumerate(frames):
        pixels = rearrange(torch.tensor(frame, dtype=torch.float32), "h w c -> 1 c h w")
        pixels = torch.nn.functional.interpolate(pixels, sides, mode="bilinear", antialias=True)
        resized[index] = rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "1 c h w -> h w c").numpy()
    return resized
