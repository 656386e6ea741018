"""Atomic writes: a file or folder appears whole or not at all.

write_atomic("strip.png", image.save)                 # the writer gets a temporary path in the same folder
write_text_atomic("metrics.json", text)
replace_folder("runs/a/checkpoints/step-00000010", writer)
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import local_path

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")


def write_atomic(path: Path | str, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` fill a temporary file, then move it to ``path`` in one step.

    The temporary file is in the same folder and has the same suffix, for writers that choose a format by it. Missing
    parent folders are created. If the writer fails, nothing is left behind.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = local_path(path)
    temporary = _temporary_beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(temporary)
            _flush_to_disk(temporary)
            os.replace(temporary, path)
            _flush_to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error says more than a failed clean-up
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8; see ``write_atomic``."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_folder(target: Path | str, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` fill a temporary folder, then put it in the place of ``target``.

    A reader sees the old folder, for an instant none, or the new one; never a part of one. A target that holds
    anything that the new folder does not replace by the same name is refused, so that nothing of the user's is lost.

    Raises:
        UserError: ``target`` holds something else, is a file, or cannot be written.
    """
    target = local_path(target)
    temporary, old = _temporary_beside(target), _temporary_beside(target)
    if target.is_file():
        raise UserError(f"{target} is a file; expected a new folder, or a folder to replace")
    try:
        with writing(target):
            temporary.mkdir(parents=True)
            writer(temporary)
            for file in temporary.rglob("*"):
                _flush_to_disk(file)
            if target.exists():
                new_names = {entry.name for entry in temporary.iterdir()}
                lost = sorted(entry.name for entry in target.iterdir() if entry.name not in new_names)
                if lost:
                    raise UserError(f"{target} holds {lost[0]!r}, which would be lost; choose a new or an empty folder")
                target.rename(old)
            temporary.rename(target)
            _flush_to_disk(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn every ``OSError`` of the block, such as a full disk, into a ``UserError`` that names ``path``.

    Raises:
        UserError: the system refused to write.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files and folders that killed processes left in folders; no other process may write there."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if not is_temporary(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def is_temporary(name: str) -> bool:
    """Return whether a file name is that of a file or folder that has not been moved to its place."""
    return _TEMPORARY.fullmatch(name) is not None


def _temporary_beside(path: Path) -> Path:
    # Hidden, so that a listing of runs or checkpoints skips what a killed process left behind.
    return path.parent / f".{uuid.uuid4().hex[:8]}.{path.name}"


def _flush_to_disk(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
