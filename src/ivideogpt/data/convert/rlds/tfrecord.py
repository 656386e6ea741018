"""TFRecord files without TensorFlow; every checksum is compared, and an error names file and byte.

A record is its length (uint64), the masked CRC-32C of these 8 bytes, its data, and their masked CRC-32C, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import check_is_file
from ivideogpt.data.convert.rlds.tf_example import MalformedError, Values, example_keys, parse_example
from ivideogpt.data.convert.source_files import name_list, reading_file

_HEAD, _SUM = struct.Struct("<QI"), struct.Struct("<I")
_MASK = 0xA282EAD8


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a file.

    Attributes:
        path: the file.
        offset: byte where the record begins, its length included.
        data: a serialized ``tf.train.Example``.
    """

    path: Path
    offset: int
    data: bytes = field(repr=False)

    @property
    def place(self) -> str:
        """Return the position of the record, for errors."""
        return f"the record at byte {self.offset} of {self.path}"

    def values(self, keys: Collection[str] | None = None) -> dict[str, Values]:
        """Return the available lists of ``keys`` in the Example, or all, by name.

        Raises:
            UserError: the data are no Example.
        """
        try:
            return parse_example(self.data, keys)
        except (ValueError, ArithmeticError) as error:  # MalformedError, or numpy's of a wrong length
            raise self._malformed(error) from error

    def keys(self) -> list[str]:
        """Return the sorted names in the Example.

        Raises:
            UserError: the data are no Example.
        """
        try:
            return example_keys(self.data)
        except (MalformedError, UnicodeDecodeError) as error:
            raise self._malformed(error) from error

    def missing(self, wanted: Sequence[str]) -> UserError:
        """Return the error that lists the missing and the available names."""
        available = name_list(self.keys(), most=40)
        return UserError(f"{self.place} has no {' and no '.join(map(repr, wanted))}; it has: {available}")

    def _malformed(self, error: Exception) -> UserError:
        return UserError(f"{self.place} is no tf.train.Example ({error}); expected a file of TensorFlow Datasets")


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of TFRecord files.

    Raises:
        MissingExtraError: google-crc32c is not installed.
    """
    return _masked(_crc32c()(data))


def read_records(path: Path | str, *, check: bool = True) -> Iterator[Record]:
    """Yield the records of a file in order; one is in memory at a time.

    Args:
        path: the file.
        check: compare the checksums of the data; those of the lengths are always compared.

    Raises:
        UserError: the file cannot be read, ends within a record, or a checksum does not match.
        MissingExtraError: google-crc32c is not installed.
    """
    path = Path(path)
    check_is_file(path, "TFRecord file")
    with reading_file(path, "TFRecord file"), path.open("rb") as file:
        yield from _read(path, file, path.stat().st_size, check)


def _read(path: Path, file: BinaryIO, size: int, check: bool) -> Iterator[Record]:
    crc32c = _crc32c()

    def cut_off(record: int, needed: int) -> NoReturn:
        raise UserError(
            f"{path} ends within the record at byte {record}: it has {size} bytes and needs {needed}; download it again"
        )

    offset = 0
    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size:
            cut_off(offset, offset + _HEAD.size)
        length, checksum = _HEAD.unpack(head)
        if _masked(crc32c(head[:8])) != checksum:
            raise UserError(
                f"{path} is damaged at byte {offset}: the checksum of the record's length is wrong; download it again"
            )
        end = offset + _HEAD.size + length + _SUM.size
        if end > size:
            cut_off(offset, end)
        data, tail = file.read(length), file.read(_SUM.size)
        if len(data) < length or len(tail) < _SUM.size:
            cut_off(offset, end)
        if check and _masked(crc32c(data)) != _SUM.unpack(tail)[0]:
            raise UserError(
                f"{path} is damaged between bytes {offset + _HEAD.size} and {end}: the checksum of the record at byte "
                f"{offset} is wrong; download it again"
            )
        yield Record(path=path, offset=offset, data=data)
        offset = end


def _masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + _MASK) & 0xFFFFFFFF


def _crc32c() -> Callable[[bytes], int]:
    try:
        from google_crc32c import value
    except ModuleNotFoundError as error:
        raise MissingExtraError("google-crc32c", "data") from error
    return value
