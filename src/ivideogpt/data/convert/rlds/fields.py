"""Fields of a ``features.json`` of TensorFlow Datasets, and decoding of their values.

Names of fields are paths, "steps/observation/image". A field inside ``steps`` has one value a step. Lists of varying
length inside a step are *ragged*: their numbers lie end to end, with the length of each list beside them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.rlds.tf_example import Values
from ivideogpt.data.convert.rlds.tfrecord import Record

STEPS = "steps"
# Compressed numbers of a list without a fixed length may grow this many times.
_MOST_INFLATED = 200


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of an episode, or of each of its steps.

    Attributes:
        path: its name in the records, for example "steps/observation/image".
        kind: "image", "text", "number", "label" (the number of a class) or another that is not read.
        dtype: name of the number type, for example "float32"; "string" for text.
        shape: of one value; None where it varies.
        encoding: of an image "jpeg", "png" or ""; of numbers "", "bytes" or "zlib".
        lists: length of each list around the value within its step; None where it varies.
    """

    path: str
    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    encoding: str = ""
    lists: tuple[int | None, ...] = ()

    @property
    def in_steps(self) -> bool:
        """Return True where there is a value a step."""
        return self.path.startswith(f"{STEPS}/")

    @property
    def size(self) -> int | None:
        """Return the count of numbers of a step; None where it varies or there are none."""
        dimensions = (*self.lists, *self.shape)
        if self.kind not in ("number", "label") or None in dimensions:
            return None
        return math.prod(dimension for dimension in dimensions if dimension is not None)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the names that its values may have in a record."""
        lengths = (f"{self.path}/ragged_row_lengths_{depth}" for depth in range(len(self.lists)))
        return (self.path, f"{self.path}/ragged_flat_values", *lengths) if self.lists else (self.path,)


def parse_features(features: Mapping[str, Any], source: str) -> dict[str, Field]:
    """Return the fields of a ``features.json`` by path.

    Args:
        features: its content.
        source: its name, for errors.

    Raises:
        UserError: it has another form, or describes no episodes with steps.
    """
    top = features.get("featuresDict")
    if not isinstance(top, Mapping) or not isinstance(top.get("features"), Mapping):
        raise UserError(
            f"{source} has no 'featuresDict'; it has {_listed(features)}; expected one of TensorFlow Datasets"
        )
    steps = top["features"].get(STEPS)
    if not isinstance(steps, Mapping) or "sequence" not in steps:
        raise UserError(
            f"{source} has no sequence {STEPS!r}; it has {_listed(top['features'])}; expected episodes (RLDS)"
        )
    return {field.path: field for field in _walk(top["features"], "", ())}


def _walk(features: Mapping[str, Any], prefix: str, lists: tuple[int | None, ...]) -> Iterator[Field]:
    for name, feature in features.items():
        path = prefix + name
        inner, around = feature, lists
        while "sequence" in inner:
            if path != STEPS:
                around = (*around, _dimension(_part(inner, "sequence").get("length", "-1")))
            inner = _part(_part(inner, "sequence"), "feature")
        if "featuresDict" in inner:
            yield from _walk(_part(_part(inner, "featuresDict"), "features"), f"{path}/", around)
        else:
            yield _field(path, inner, around)


def _part(feature: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a feature, {} where there is none.

    Raises:
        ValueError: it is no object.
    """
    part = feature.get(name, {})
    if not isinstance(part, Mapping):
        raise ValueError(f"{name!r} is {part!r}; expected an object")
    return part


def _field(path: str, feature: Mapping[str, Any], lists: tuple[int | None, ...]) -> Field:
    if "image" in feature:
        image = _part(feature, "image")
        encoding = str(image.get("encodingFormat", ""))
        return Field(
            path=path,
            kind="image",
            dtype=str(image.get("dtype", "uint8")),
            shape=_shape(image),
            encoding=encoding,
            lists=lists,
        )
    if "text" in feature:
        return Field(path=path, kind="text", dtype="string", lists=lists)
    if "classLabel" in feature:
        return Field(path=path, kind="label", dtype="int64", lists=lists)
    if "tensor" in feature:
        tensor = _part(feature, "tensor")
        dtype, encoding = str(tensor.get("dtype", "")), str(tensor.get("encoding", "none"))
        if dtype in ("string", "object"):
            return Field(path=path, kind="text", dtype="string", shape=_shape(tensor), lists=lists)
        encoding = "" if encoding in ("none", "") else encoding
        return Field(path=path, kind="number", dtype=dtype, shape=_shape(tensor), encoding=encoding, lists=lists)
    return Field(path=path, kind=str(feature.get("pythonClassName", "unknown")).rpartition(".")[2])


def _shape(content: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(map(_dimension, _part(content, "shape").get("dimensions", ())))


def _dimension(value: Any) -> int | None:
    return None if int(value) < 0 else int(value)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"


def decode_images(field: Field, values: Mapping[str, Values], record: Record) -> list[memoryview]:
    """Return the encoded pictures of a field, one a step.

    Raises:
        UserError: the record does not have them.
    """
    files = _present(field, values, record)
    if isinstance(files, np.ndarray):
        raise UserError(f"{record.place} has numbers in {field.path!r}; expected encoded images")
    return files


def decode_text(field: Field, values: Mapping[str, Values], record: Record) -> list[str]:
    """Return the texts of a field; bytes that are no UTF-8 become U+FFFD.

    Raises:
        UserError: the record does not have them.
    """
    return [bytes(text).decode("utf-8", "replace") for text in decode_images(field, values, record)]


def decode_numbers(field: Field, values: Mapping[str, Values], record: Record, steps: int) -> np.ndarray:
    """Return the numbers of a field of fixed shape, ``[steps ...]``, in the type that ``features.json`` names.

    Args:
        field: with a ``size``.
        values: of the record.
        record: for errors.
        steps: expected number of values.

    Raises:
        UserError: the record does not have them, or not as many.
    """
    assert field.size is not None
    shape = tuple(dimension or 0 for dimension in (*field.lists, *field.shape))
    if field.lists and f"{field.path}/ragged_flat_values" in values:
        numbers = _numbers(field, values[f"{field.path}/ragged_flat_values"], record)
    else:
        numbers = _numbers(field, _present(field, values, record), record)
    if numbers.size != steps * field.size:
        raise UserError(
            f"{record.place} has {numbers.size} numbers in {field.path!r}; "
            f"expected {field.size} for each of {steps} steps"
        )
    return numbers.reshape(steps, *shape)


def _present(field: Field, values: Mapping[str, Values], record: Record) -> Values:
    if field.path not in values:
        raise record.missing([field.path])
    return values[field.path]


def _numbers(field: Field, values: Values, record: Record) -> np.ndarray:
    """Return numbers as one array in their type; encoded tensors are unpacked and joined."""
    dtype = _dtype(field, record)
    if isinstance(values, np.ndarray) and not field.encoding:
        return values.astype(dtype, copy=False)
    if isinstance(values, np.ndarray) or (values and not field.encoding):
        kind = "numbers" if isinstance(values, np.ndarray) else "byte strings"
        raise UserError(
            f"{record.place} has {kind} in {field.path!r}; features.json says {field.encoding or field.dtype}"
        )
    if field.encoding not in ("", "bytes", "zlib"):
        raise UserError(f"{field.path!r} is encoded as {field.encoding!r}; expected bytes or zlib")
    try:
        unpacked = [_inflated(value, field, dtype) if field.encoding == "zlib" else value for value in values]
        parts = [np.frombuffer(value, dtype) for value in unpacked]
    except (zlib.error, ValueError) as error:
        raise UserError(f"{record.place} has a damaged array in {field.path!r} ({error})") from error
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _inflated(value: memoryview, field: Field, dtype: np.dtype) -> bytes:
    """Return the bytes of a compressed array, at most as many as its field may have."""
    expected = None if field.size is None or field.lists else field.size * dtype.itemsize
    most = _MOST_INFLATED * max(len(value), 1) if expected is None else expected + 1
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(value, most)
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise ValueError(f"it is cut short, or unpacks to more than {most - 1:,} bytes")
    return content


def _dtype(field: Field, record: Record) -> np.dtype:
    try:
        return np.dtype("float32" if field.dtype == "bfloat16" and not field.encoding else field.dtype)
    except TypeError as error:
        raise UserError(
            f"{record.place} has numbers of type {field.dtype!r} in {field.path!r}; that is not read"
        ) from error
