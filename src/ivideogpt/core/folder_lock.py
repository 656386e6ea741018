"""A lock on the folder of a run: it lasts as long as its process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import writing

_LOCK = ".lock"
#: File descriptors of the locks that this process holds, by path.
_held: dict[Path, int] = {}


def lock_folder(folder: Path, *, activity: str) -> None:
    """Lock a folder for this process until it ends; a folder that it has locked already stays locked.

    Args:
        folder: exists.
        activity: for the error, such as "training".

    Raises:
        UserError: another process holds the lock.
    """
    path = folder.resolve() / _LOCK
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        identity = os.fstat(descriptor).st_ino
        if path in _held and os.fstat(_held[path]).st_ino == identity:
            os.close(descriptor)
            return
    if not try_lock(descriptor):
        os.close(descriptor)
        raise UserError(f"another {activity} is running in {folder}; wait for it, or choose another folder")
    if path in _held:  # the folder was deleted and made again
        os.close(_held[path])
    _held[path] = descriptor


def try_lock(descriptor: int) -> bool:
    """Lock an open file; return whether this process got the lock."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
