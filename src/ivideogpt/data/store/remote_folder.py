"""Folders that fsspec can reach (S3, Google Cloud, the Hub, ...), with a bounded cache on the local disk.

Files are fetched in blocks of 256 KiB. A block stays in the cache folder, which all processes share, until newer ones
need its place. IVIDEOGPT_CACHE is the folder (default: ~/.cache/ivideogpt) and IVIDEOGPT_CACHE_GB its size (default:
20; 0: no cache).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import local_path, reading, reason

BLOCK = 256 * 1024
_DEFAULT_GB = 20.0
# The size of the cache is checked each time that so many blocks were written by this process.
_CHECK_EVERY = 256
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws configure`",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "hf": "HF_TOKEN, or `hf auth login`",
}
# s3fs repeats what failed; botocore would repeat each of these calls again, for more than six minutes in all where a
# server does not answer. A copy is given, because botocore changes it.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}}


class RemoteFolder:
    """A folder that fsspec can reach, for example ``s3://bucket/store``."""

    def __init__(self, url: str) -> None:
        """Find the client of the URL.

        Raises:
            UserError: no installed package can reach it, or the settings of the cache are no numbers.
        """
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise MissingExtraError("fsspec", "data") from error
        self.name = url.rstrip("/")
        self._protocol = self.name.partition("://")[0]
        self._files: Any
        try:
            with reading(url, "install the package that it needs, or copy the store here", fault="cannot be read"):
                self._files, root = fsspec.url_to_fs(self.name, **copy.deepcopy(_OPTIONS.get(self._protocol, {})))
        except UserError as error:
            if isinstance(error.__cause__, ImportError) and self._protocol in _EXTRAS:
                package = {"s3": "s3fs", "gcs": "gcsfs"}[_EXTRAS[self._protocol]]
                raise MissingExtraError(package, _EXTRAS[self._protocol]) from error
            raise
        self._root = str(root).rstrip("/")
        self._facts: dict[str, tuple[int, str]] = {}
        self._cache = _BlockCache.from_environment()

    def open(self, path: str) -> BinaryIO:
        """Load a file."""
        (content,) = self.ranges(path, [(0, self.size(path))])
        return io.BytesIO(content.tobytes())

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return self._about(path)[0]

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return ranges of bytes of a file; blocks that are not in the cache are fetched together."""
        size, key = self._about(path)
        numbers = sorted({n for start, stop in wanted for n in range(start // BLOCK, -(-min(stop, size) // BLOCK))})
        blocks = {number: content for number in numbers if (content := self._cache.read(key, number)) is not None}
        runs: list[list[int]] = []
        for number in (number for number in numbers if number not in blocks):
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        if runs:
            names, starts = [f"{self._root}/{path}"] * len(runs), [run[0] * BLOCK for run in runs]
            stops = [min((run[-1] + 1) * BLOCK, size) for run in runs]
            with self._reaching(path):
                contents = self._files.cat_ranges(names, starts, stops, on_error="raise")
            for run, content in zip(runs, contents, strict=True):
                for place, number in enumerate(run):
                    blocks[number] = content[place * BLOCK : (place + 1) * BLOCK]
                    self._cache.write(key, number, blocks[number])
        return [_joined(blocks, start, min(stop, size)) for start, stop in wanted]

    def _about(self, path: str) -> tuple[int, str]:
        """Return the bytes of a file, and a key that changes with its content."""
        if path not in self._facts:
            name = f"{self._root}/{path}"
            with self._reaching(path):
                size = int(self._files.size(name))
                version = f"{self.name}/{path} {size} {self._files.ukey(name)}"
            self._facts[path] = size, hashlib.sha256(version.encode()).hexdigest()[:40]
        return self._facts[path]

    @contextlib.contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Say in one sentence what credentials or network lack; a missing file stays ``FileNotFoundError``."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            kind, text = type(error).__name__, reason(error)
            words = f"{kind} {text}".lower()
            if isinstance(error, PermissionError) or any(word in words for word in _DENIED):
                needed = _CREDENTIALS.get(self._protocol, "those of its service")
                raise UserError(f"{self.name}/{path} needs credentials ({text}); set {needed}") from error
            if isinstance(error, ConnectionError | TimeoutError) or any(word in words for word in _UNREACHED):
                raise UserError(
                    f"{self.name} cannot be reached ({text}); check the network, the address and its endpoint"
                ) from error
            raise


_DENIED = ("credential", "forbidden", "access denied", "unauthorized", "invalidaccesskeyid", "401", "403")
_UNREACHED = ("connection", "connect", "timeout", "timed out", "endpoint", "resolve")


def _joined(blocks: dict[int, bytes], start: int, stop: int) -> np.ndarray:
    """Return bytes of blocks, uint8 ``[n]``."""
    first, last = start // BLOCK, max(stop - 1, start) // BLOCK
    if stop <= start:
        return np.empty(0, np.uint8)
    content = b"".join(blocks[number] for number in range(first, last + 1)) if last > first else blocks[first]
    return np.frombuffer(content, np.uint8)[start - first * BLOCK : stop - first * BLOCK]


class _BlockCache:
    """Blocks of remote files on the local disk; the ones that were not used for longest make place for new ones."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most, self._written = folder, most, 0

    @classmethod
    def from_environment(cls) -> _BlockCache:
        text = os.environ.get("IVIDEOGPT_CACHE_GB", str(_DEFAULT_GB))
        try:
            size = float(text)
        except ValueError:
            size = -1.0
        if not 0 <= size < float("inf"):
            raise UserError(f"the environment variable IVIDEOGPT_CACHE_GB is {text!r}; expected a number from 0 on")
        folder = local_path(os.environ.get("IVIDEOGPT_CACHE", "~/.cache/ivideogpt"))
        return cls(folder / "blocks", int(size * 1e9))

    def read(self, key: str, number: int) -> bytes | None:
        """Return a block, or None."""
        path = self._path(key, number)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def write(self, key: str, number: int, content: bytes) -> None:
        """Keep a block; a full or read-only disk keeps none."""
        if not self._most:
            return
        path = self._path(key, number)
        temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        self._written += 1
        if self._written % min(_CHECK_EVERY, max(self._most // BLOCK // 8, 1)) == 0:
            self._shrink()

    def _shrink(self) -> None:
        """Delete the blocks that were not used for longest until a tenth of the cache is free."""
        entries = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total <= self._most:
            return
        for _, size, path in sorted(entries):
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
            if total <= 0.9 * self._most:
                return

    def _path(self, key: str, number: int) -> Path:
        return self._folder / key[:2] / f"{key}-{number}"
