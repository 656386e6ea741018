"""Training state on disk without a pickle: a tree of JSON values beside a file of named tensors.

``flatten`` converts the result of ``state_dict()`` (nested dicts with str or int keys, lists, tuples, numbers, strings,
None, tensors and arrays) and ``unflatten`` converts it back, for modules, optimizers and loaders alike.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch


class Stateful(Protocol):
    """An object that a run can save: a module, an optimizer, a loader with its position."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state as nested plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore the state from the result of ``state_dict``."""
        ...


def flatten(state: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """Move the tensors of ``state`` into ``tensors`` and return the other values as JSON values.

    Each container becomes a one-key object that names its kind, so that keys, tuples and tensors are restored exactly:
    {"dict": [[key, value], ...]}, {"tuple": [...]}, {"tensor": "name"}, {"array": "name"}.
    """
    if isinstance(state, torch.Tensor):
        tensors[name] = state
        return {"tensor": name}
    if isinstance(state, np.ndarray):
        tensors[name] = torch.from_numpy(state)
        return {"array": name}
    if isinstance(state, Mapping):
        assert all(isinstance(key, (str, int)) for key in state), f"{name} has keys that JSON cannot hold"
        return {"dict": [[key, flatten(value, tensors, _join(name, key))] for key, value in state.items()]}
    if isinstance(state, (list, tuple)):
        items = [flatten(value, tensors, _join(name, index)) for index, value in enumerate(state)]
        return {"tuple": items} if isinstance(state, tuple) else items
    assert state is None or isinstance(state, (bool, int, float, str)), f"{name} is {state!r}, which JSON cannot hold"
    return state


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the state that ``flatten`` converted."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in value)
    assert kind == "dict", f"unknown kind {kind!r} in a saved state"
    return {key: unflatten(item, tensors) for key, item in value}


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and PyTorch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class RandomState:
    """The global random numbers of Python, NumPy and PyTorch, and given generators, as one ``Stateful``."""

    def __init__(self, *generators: torch.Generator) -> None:
        """Save ``generators`` together with the global states."""
        self.generators = generators

    def state_dict(self) -> dict[str, Any]:
        """Return all states; those of CUDA only if CUDA is in use."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore every state; those of CUDA only if this machine has as many devices."""
        random.setstate(state_dict["python"])
        np.random.set_state(state_dict["numpy"])
        torch.set_rng_state(state_dict["torch"])
        if state_dict["cuda"] and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state_dict["cuda"])
        for generator, state in zip(self.generators, state_dict["generators"], strict=True):
            generator.set_state(state)
