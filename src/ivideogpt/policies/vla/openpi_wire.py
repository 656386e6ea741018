"""Messages of the openpi policy protocol: msgpack with NumPy arrays.

An array is a map with the byte keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``, a NumPy number one with
``__npgeneric__``, ``data`` and ``dtype``. No object is ever unpickled: dtypes of objects, records and complex numbers
are refused.

Source: Physical-Intelligence/openpi, openpi-client 0.1.2; the same bytes, with checks of what comes in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import reason

try:
    import msgpack
except ModuleNotFoundError as error:
    raise MissingExtraError("msgpack", "openpi") from error

#: Bytes of a message that are read at most.
MOST_BYTES = 256 * 2**20
# Kinds of NumPy types that are sent: truth values, numbers, bytes and text.
_KINDS = "biufSU"


def pack(value: Any) -> bytes:
    """Return a tree of dicts, lists, numbers, text and arrays as one message.

    Raises:
        UserError: it holds something that a message cannot.
    """
    try:
        return bytes(msgpack.packb(value, default=_packed) or b"")
    except (TypeError, ValueError, OverflowError) as error:
        why = reason(error)
        raise UserError(f"an openpi message cannot hold this ({why}); give arrays, numbers and text") from error


def unpack(message: bytes) -> Any:
    """Return the tree of a message; its arrays can be written.

    Raises:
        UserError: the message is damaged, or has an array whose bytes do not fit its shape.
    """
    try:
        return msgpack.unpackb(message, object_hook=_unpacked, strict_map_key=False)
    except UserError:
        raise
    except Exception as error:  # of many kinds, for damaged bytes
        raise UserError(
            f"an openpi message of {len(message):,} bytes cannot be read ({reason(error)}); the other side speaks "
            "another protocol"
        ) from error


def _packed(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in _KINDS:
        raise ValueError(f"type {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__}")


def _unpacked(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in _KINDS:
        raise UserError(f"an openpi message has an array of type {dtype}, which is refused; expected numbers or text")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    shape, data = tuple(value[b"shape"]), value[b"data"]
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise UserError(
            f"an openpi message has an array {dtype} of shape {list(shape)} with {len(data):,} bytes, which do not fit"
        )
    return np.frombuffer(data, dtype).reshape(shape).copy()
