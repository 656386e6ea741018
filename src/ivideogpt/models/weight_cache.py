"""What is computed once from a weight and used as long as the weight stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Copies(Generic[Made]):
    """Things made from one weight, by name; made again when the weight has changed.

    A copy of this, as of the module that holds it, starts empty.
    """

    def __init__(self) -> None:
        """Empty."""
        self._made: dict[Hashable, Made] = {}
        self._origin: tuple[int, int] | None = None

    def get(self, weight: Tensor, name: Hashable, make: Callable[[Tensor], Made]) -> Made:
        """What ``make`` gave, or gives now, for ``weight``; nothing of it has gradients.

        Args:
            weight: always the same parameter.
            name: tells apart what is made from it.
            make: is called at most once for each name while the weight stays.
        """
        # Updates in place raise the version; `.to()` and loading by assignment move the data.
        origin = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if origin != self._origin:
            self._made, self._origin = {}, origin
        if name not in self._made:
            self._made[name] = make(weight.detach())
        return self._made[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Kept out of copies and files."""
        return Copies, ()
