"""The forward pass of training: on all ranks, compiled, and of a batch in parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ivideogpt.core.distributed import whole_state
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def forward_pass(
    module: nn.Module,
    run: Run,
    *,
    compile: bool,
    blocks: Iterable[nn.Module] = (),
    whole: Iterable[nn.Parameter] = (),
    methods: Iterable[str] = (),
) -> nn.Module:
    """Return the callable that training uses instead of ``module``, whose weights and names stay as they are.

    Call it before an optimizer is made: with FSDP2 the weights are divided in place.

    Args:
        module: on the device of the run.
        run: with the processes that train together.
        compile: by ``torch.compile``: the first updates are slow, the others faster.
        blocks: submodules of divided weights, see ``Ranks.shard``.
        whole: weights that are not divided.
        methods: that need the weights, beside ``forward``.

    Raises:
        UserError: PyTorch cannot compile on this machine.
    """
    if run.ranks.divides_weights:
        run.ranks.shard(module, blocks=blocks, whole=whole, methods=methods)
        forward = module
    else:
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
    """Return the context of a part whose gradients, with all before them, are averaged over the ranks only ``now``."""
    if hasattr(forward, "set_requires_gradient_sync"):  # FSDP2
        forward.set_requires_gradient_sync(now)  # pyright: ignore[reportCallIssue]
        return nullcontext()
    return nullcontext() if now else getattr(forward, "no_sync", nullcontext)()


def whole_copy(model: ModuleT, run: Run) -> ModuleT | None:
    """Return a copy on the CPU that `fill_copy` fills, on the first of ranks that divide the weights; else None."""
    return copy.deepcopy(model).cpu() if run.ranks.divides_weights and run.ranks.is_first else None


def fill_copy(copied: nn.Module | None, module: nn.Module) -> None:
    """Copy divided weights into the whole copy of a module. Every rank must call this, with None but for the first."""
    weights = whole_state(module.state_dict())
    if copied is not None:
        copied.load_state_dict(weights)
