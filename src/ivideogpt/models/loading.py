"""Creation of a module from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import reading

Module = TypeVar("Module", bound=nn.Module)


def load_module(create: Callable[[], Module], tensors: Mapping[str, Tensor], source: str | Path) -> Module:
    """Create a module and load all of its weights, and nothing else.

    The names, shapes and numbers are checked before memory for the module is allocated.

    Args:
        create: creates the module on the default device.
        tensors: its weights by name.
        source: file or folder of the weights, for errors.

    Raises:
        UserError: names or shapes do not match (the first differences are named), a size cannot be, or a weight is NaN
            or infinite.
    """
    with reading(source, "download it again", fault="has impossible sizes in its config.json"):
        with torch.device("meta"):
            expected = create().state_dict()
        check_weights(expected, tensors, source)
        module = create()
    module.load_state_dict(tensors)
    return module


def check_weights(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that ``tensors`` have the names and shapes of ``expected``, and finite numbers.

    Raises:
        UserError: they do not; the first differences are named.
    """
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        differences = [
            f"{label} {', '.join(names[:3])}" for label, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        raise UserError(
            f"{source} does not fit its config.json: {'; '.join(differences)}; is it a checkpoint of another kind?"
        )
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{source} does not fit its config.json: {name} has shape {list(value.shape)}, "
                f"expected {list(expected[name].shape)}"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{source} has NaN or infinity in {name}; copy or download it again, or train again")
