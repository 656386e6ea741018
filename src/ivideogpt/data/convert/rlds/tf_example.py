"""``tf.train.Example`` messages without TensorFlow; only the wanted keys are read, numbers as views of the bytes.

An Example is a map from names to lists: of byte strings, of float32 or of int64. Source: the proto3 wire format and
tensorflow/core/example/feature.proto; both packed and unpacked lists are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

#: Byte strings, or numbers (float32 or int64, ``[n]``). An empty list of byte strings may be an empty list of numbers.
Values = list[memoryview] | np.ndarray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10  # bytes of a 64-bit number


class MalformedError(ValueError):
    """The bytes are no ``tf.train.Example``."""


def parse_example(data: bytes, keys: Collection[str] | None = None) -> dict[str, Values]:
    """Return the lists of an Example by name.

    Args:
        data: the serialized message.
        keys: names to read, the others are skipped; None: all.

    Returns:
        The available ``keys``. Numbers are read-only views of ``data`` where the format allows it.

    Raises:
        MalformedError: ``data`` is no such message.
    """
    wanted = None if keys is None else {key.encode() for key in keys}
    lists: dict[str, Values] = {}
    try:
        for name, start, stop in _entries(data):
            if wanted is None or name in wanted:
                lists[name.decode()] = _values(data, start, stop)
    except IndexError as error:  # a number that goes on behind the end
        raise MalformedError("a number is cut off") from error
    return lists


def example_keys(data: bytes) -> list[str]:
    """Return the sorted names in an Example.

    Raises:
        MalformedError: ``data`` is no such message.
    """
    try:
        return sorted(name.decode() for name, _, _ in _entries(data))
    except IndexError as error:
        raise MalformedError("a number is cut off") from error


def _entries(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each list, and start and end of its ``Feature`` message."""
    for field, wire, start, stop in _fields(data, 0, len(data)):
        if (field, wire) != (1, _BYTES):
            continue
        for inner, inner_wire, entry_start, entry_stop in _fields(data, start, stop):
            if (inner, inner_wire) != (1, _BYTES):
                continue
            name, value = b"", (entry_stop, entry_stop)
            for part, part_wire, part_start, part_stop in _fields(data, entry_start, entry_stop):
                if part_wire != _BYTES:
                    continue
                if part == 1:
                    name = data[part_start:part_stop]
                elif part == 2:
                    value = (part_start, part_stop)
            yield name, *value


def _fields(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number and wire type of each field of a message, and start and end of its content."""
    while at < stop:
        tag = data[at]
        if tag < 0x80:
            at += 1
        else:
            tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            size, start = _varint(data, at)
            at = start + size
        elif wire == _VARINT:
            start = at
            _, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            start = at
            at += 4 if wire == _FIXED32 else 8
        else:
            raise MalformedError(f"unknown wire type {wire}")
        if at > stop or tag < 8:
            raise MalformedError("a part is longer than the whole" if at > stop else "a part has the number 0")
        yield tag >> 3, wire, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and its end."""
    byte = data[at]
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 7 * _LONGEST_VARINT:
            raise MalformedError("a number is longer than 64 bits")
    return value, at + 1


def _values(data: bytes, start: int, stop: int) -> Values:
    """Return the list in a ``Feature`` message; of several, the last one."""
    values: Values = []
    for field, wire, first, last in _fields(data, start, stop):
        if wire != _BYTES:
            continue
        if field == 1:
            values = _byte_strings(data, first, last)
        elif field == 2:
            values = _floats(data, first, last)
        elif field == 3:
            values = _integers(data, first, last)
    return values


def _byte_strings(data: bytes, at: int, stop: int) -> list[memoryview]:
    view, strings = memoryview(data), []
    for field, wire, first, last in _fields(data, at, stop):
        if (field, wire) == (1, _BYTES):
            strings.append(view[first:last])
    return strings


def _floats(data: bytes, at: int, stop: int) -> np.ndarray:
    parts = []
    for field, wire, first, last in _fields(data, at, stop):
        if field == 1 and wire in (_BYTES, _FIXED32):
            if (last - first) % 4:
                raise MalformedError("a list of float32 does not have 4 bytes a number")
            parts.append(np.frombuffer(data, "<f4", (last - first) // 4, first))
    return _joined(parts, np.float32)


def _integers(data: bytes, at: int, stop: int) -> np.ndarray:
    parts = []
    for field, wire, first, last in _fields(data, at, stop):
        if field == 1 and wire in (_BYTES, _VARINT):
            parts.append(_varints(np.frombuffer(data, np.uint8, last - first, first)))
    return _joined(parts, np.int64)


def _varints(content: np.ndarray) -> np.ndarray:
    """Return all numbers of variable length in ``content`` as int64."""
    last = content < 0x80
    if last.all():
        return content.astype(np.int64)
    ends = np.flatnonzero(last)
    if not len(ends) or ends[-1] != len(content) - 1:
        raise MalformedError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_VARINT:
        raise MalformedError("a number is longer than 64 bits")
    place = np.arange(len(content)) - np.repeat(starts, lengths)
    bits = (content & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, starts).view(np.int64)


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
