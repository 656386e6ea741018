"""Values that are computed once from a weight and used until the weight changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class WeightCache(Generic[Value]):
    """Values computed from one weight, by name; computed again when the weight has changed.

    A copy of the cache, and of the module that holds it, starts empty.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._values: dict[Hashable, Value] = {}
        self._origin: tuple[int, int] | None = None

    def get(self, weight: Tensor, name: Hashable, compute: Callable[[Tensor], Value]) -> Value:
        """Return ``compute(weight)``, computed at most once for each name while the weight does not change.

        Args:
            weight: always the same parameter; it is detached.
            name: distinguishes the values computed from it.
            compute: the function.
        """
        # Updates in place raise the version; `.to()` and loading by assignment move the data.
        origin = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if origin != self._origin:
            self._values, self._origin = {}, origin
        if name not in self._values:
            self._values[name] = compute(weight.detach())
        return self._values[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty cache."""
        return WeightCache, ()
