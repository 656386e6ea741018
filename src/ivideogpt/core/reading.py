"""Reading files that may be damaged or hostile: every failure becomes one sentence that names the file.

path = local_path(text)                        # a path that a file can have, "~" resolved
check_is_file(path)                            # neither missing nor a folder, FIFO or device
with reading(path, "copy it again"):           # every exception of a damaged file becomes a UserError
    header = json.loads(path.read_text())
check_unpacked_size(path, unpacked=n, stored=m)  # before n bytes are taken from memory
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.core.errors import UserError

#: Data may take this many bytes in memory whatever the size of its file.
SMALL = 128 * 2**20
#: Larger data may take at most this many times the bytes of its file: compressed frames seldom reach 50.
LARGEST_RATIO = 200
_LONGEST_REASON = 200


def local_path(name: str | Path) -> Path:
    """Return the path that ``name`` means; a leading ``~`` is the home folder.

    Raises:
        UserError: no file can have this name: it is too long, has a NUL, or names an unknown user.
    """
    shown = repr(str(name)) if len(str(name)) <= 80 else f"{str(name)[:77]!r}..."
    try:
        path = Path(name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{shown} cannot be used as a path ({reason(error)}); check the path") from error
    return path


def check_is_file(path: Path, kind: str = "file") -> None:
    """Check that ``path`` is a regular file, or a link to one.

    Args:
        path: the file.
        kind: the expected content, for the error, such as "episode file".

    Raises:
        UserError: it is missing, a folder, a FIFO, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no {kind} {path}; check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check the path") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; expected a {kind}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a FIFO, a socket or a device; expected a {kind}")


@contextmanager
def reading(path: Path | str, advice: str, *, fault: str = "is damaged") -> Iterator[None]:
    """Turn every exception of the block into a ``UserError`` that names ``path``; a ``UserError`` passes unchanged.

    Args:
        path: file, or member of a file, that the block reads.
        advice: what to do, for example "copy it again".
        fault: what the sentence says of it.

    Raises:
        UserError: the block failed, because the content is damaged or takes more memory than there is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} {fault} ({reason(error)}); {advice}") from error


def reason(error: BaseException) -> str:
    """Return the first words of an exception on one line, or the name of its class where it has none."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def check_unpacked_size(name: Path | str, *, unpacked: int, stored: int) -> None:
    """Check, before memory is taken, that data is not far larger than the file it comes from.

    Args:
        name: of the file or of its part, for the error.
        unpacked: bytes that the data takes in memory.
        stored: bytes of the file, or of its part.

    Raises:
        UserError: it takes more than 128 MiB and more than 200 times the stored bytes.
    """
    if unpacked > max(SMALL, LARGEST_RATIO * stored):
        raise UserError(
            f"{name} says that its {stored:,} bytes hold {unpacked:,} bytes of data, more than {LARGEST_RATIO} times "
            "as much; it is damaged, or made to fill the memory"
        )


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of ``name``, which a file of the dataset in ``folder`` mentions.

    Raises:
        UserError: the name is absolute or leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise UserError(f"{folder} names the file {name[:80]!r}, which lies outside of it; expected a path inside")
    return folder / path
