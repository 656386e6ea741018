"""The forward pass of training: on all ranks, compiled, and of a batch in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run


def forward_pass(module: nn.Module, run: Run, *, compile: bool) -> nn.Module:
    """Return the callable that training uses instead of ``module``, whose weights and names stay as they are.

    Args:
        module: on the device of the run.
        run: with the processes that train together.
        compile: by ``torch.compile``: the first updates are slow, the others faster.

    Raises:
        UserError: PyTorch cannot compile on this machine.
    """
    forward = run.ranks.wrap(module)
    if not compile:
        return forward
    _check_compiler(run.device)
    return torch.compile(forward)  # type: ignore[return-value]


def _check_compiler(device: torch.device) -> None:
    """Compiles something small: what is missing, a C++ compiler or Triton, shows at once."""
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # each backend has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(f"compile is true, but PyTorch cannot compile here ({reason}); set it to false") from error


def check_parts(parts: int, batch_size: int, ranks: int) -> None:
    """Refuses to divide the share of a rank into parts that are not equal.

    Raises:
        UserError: ``batch_size`` is no multiple of ``parts * ranks``.
    """
    if parts < 1 or batch_size % (parts * ranks):
        where = f" on {ranks} processes" if ranks > 1 else ""
        raise UserError(
            f"gradient_accumulation is {parts} and batch_size {batch_size}{where}; expected equal parts of whole clips"
        )


def in_parts(tensors: Sequence[Tensor | None], parts: int) -> Iterator[tuple[Any, ...]]:
    """Divides rows into equal parts, in order; None is None in each."""
    return zip(*([None] * parts if x is None else x.chunk(parts) for x in tensors), strict=True)


def gradients_meet(forward: nn.Module, *, now: bool) -> AbstractContextManager[Any]:
    """Return True where the gradients of this part, with all before them, are averaged over the ranks."""
    return nullcontext() if now else getattr(forward, "no_sync", nullcontext)()
