"""Checks of the pictures that go into a network."""

from __future__ import annotations

from torch import Tensor

from ivideogpt.core.errors import UserError

# Rounding may leave a decoded pixel this far outside [0, 1].
_TOLERANCE = 1e-3


def check_floats(frames: Tensor, what: str) -> None:
    """Check that frames are of a floating type; ``what`` is their name in the error.

    Raises:
        UserError: they are not.
    """
    if not frames.is_floating_point():
        raise UserError(f"{what} have type {frames.dtype}; expected floats in [0, 1]: divide whole numbers by 255")


def check_unit_range(frames: Tensor, what: str) -> None:
    """Check that frames are floats in [0, 1]; ``what`` is their name in the error. Waits for their device.

    Raises:
        UserError: they are not.
    """
    check_floats(frames, what)
    low, high = (value.item() for value in frames.detach().aminmax())
    # Written so that NaN fails too.
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise UserError(f"{what} have values from {low:g} to {high:g}; expected [0, 1]: clamp or divide by 255")
