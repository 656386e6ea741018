"""The processes that train together: one, or several started by ``torchrun`` or ``accelerate launch``.

    ranks = Ranks.join("auto")
    learner = ranks.wrap(module)            # its gradients are the mean over all ranks
    ranks.shard(module, blocks=layers)      # the same with the weights divided among the ranks (FSDP2)
    loss = ranks.mean(loss)                 # for the log

Every rank runs the same program on its own clips; only the first one writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, distributed, nn

from ivideogpt.core.errors import MissingExtraError, UserError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
#: "ddp": every process holds all weights; "fsdp": weights, gradients and optimizer are divided among the processes.
Parallel = Literal["ddp", "fsdp"]


class Ranks:
    """This process among those that train together.

    Attributes:
        rank: from 0.
        ranks: number of processes.
        device: of this process, or None if it is free to choose.
        parallel: "ddp" or "fsdp"; one process alone divides nothing.
    """

    def __init__(
        self,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | None = None,
        accelerator: Any = None,
        parallel: Parallel = "ddp",
    ) -> None:
        """Describe one process alone by default; ``join`` reads the launcher's numbers."""
        self.rank, self.ranks, self.device, self._accelerator = rank, ranks, device, accelerator
        self.parallel: Parallel = parallel

    @classmethod
    def join(cls, device: str = "auto", parallel: str = "ddp") -> Ranks:
        """Join the other processes of this launch, if there are any.

        Args:
            device: "auto", "cpu" or "cuda"; each process uses its own GPU.
            parallel: "ddp" or "fsdp", see ``Parallel``.

        Raises:
            UserError: the package for several processes is not installed, they cannot use the device, or the launcher's
                environment variables are no numbers.
        """
        if parallel not in get_args(Parallel):
            raise UserError(f"parallel is {parallel!r}; expected {' or '.join(get_args(Parallel))}")
        if _launched("WORLD_SIZE", least=1) in (None, 1):
            return cls()
        for name in ("RANK", "LOCAL_RANK"):
            _launched(name, least=0)
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device is {device!r}, but several processes train together; use auto, cpu or cuda")
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as error:
            raise MissingExtraError("accelerate", "train") from error
        # A head without targets in a batch has no gradient.
        options: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=options)
        numbers = accelerator.process_index, accelerator.num_processes
        return cls(*numbers, accelerator.device, accelerator, parallel)  # pyright: ignore[reportArgumentType]

    @property
    def divides_weights(self) -> bool:
        """True where ``shard`` divides the weights among several processes."""
        return self.ranks > 1 and self.parallel == "fsdp"

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Return the number of clips of a batch on each rank.

        Raises:
            UserError: the batch cannot be divided.
        """
        if batch_size % self.ranks:
            raise UserError(
                f"batch_size is {batch_size} and {self.ranks} processes train; expected a multiple of their number"
            )
        return batch_size // self.ranks

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return this rank's rows of a whole batch."""
        return rows[self.rank :: self.ranks]

    def wrap(self, module: ModuleT) -> ModuleT:
        """Return the module for the forward pass of training; weights and their names stay in ``module`` itself."""
        return module if self.ranks == 1 else self._accelerator.prepare_model(module)

    def shard(
        self,
        module: nn.Module,
        *,
        blocks: Iterable[nn.Module] = (),
        whole: Iterable[nn.Parameter] = (),
        methods: Iterable[str] = (),
    ) -> None:
        """Divide the weights of a module among the ranks, in place; call it before an optimizer is made of them.

        Weights are gathered where a forward pass needs them, and gradients are the mean over the ranks.

        Args:
            module: with the same weights on every rank, on the device.
            blocks: submodules that are gathered and freed one after the other.
            whole: weights that stay whole on every rank; `average_gradients` is needed for them.
            methods: of the module, beside ``forward``, that need its weights.

        Raises:
            UserError: PyTorch is too old.
        """
        try:
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
        except ImportError as error:
            raise UserError("parallel is fsdp, which needs PyTorch 2.6 or newer; use ddp") from error
        self.copy_from_first([*module.parameters(), *module.buffers()])
        assert self.device is not None
        mesh = distributed.device_mesh.init_device_mesh(self.device.type, (self.ranks,))
        ignored = set(whole) | {weight for weight in module.parameters() if not weight.requires_grad}
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  no other one can be divided
        for part in (*blocks, module):
            fully_shard(part, mesh=mesh, ignored_params=ignored)
        for name in methods:
            register_fsdp_forward_method(module, name)

    def average_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replace the gradients of weights that no wrapper averages by their mean over the ranks."""
        for weight in weights if self.ranks > 1 else ():
            if weight.grad is not None:
                weight.grad.copy_(self.mean(weight.grad))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all ranks, without gradient."""
        return value.detach() if self.ranks == 1 else self.sum(value.detach()) / self.ranks

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, without gradient."""
        if self.ranks == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> Tensor:
        """Return the tensors of all ranks, each of the same shape and type, as one ``[ranks ...]`` on the CPU."""
        if self.ranks == 1:
            return value.detach().cpu()[None]
        local = value.detach().to(self.device)
        gathered = [torch.empty_like(local) for _ in range(self.ranks)]
        distributed.all_gather(gathered, local)
        return torch.stack(gathered).cpu()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first rank to every rank, in place."""
        if self.ranks > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.ranks == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Wait until all ranks call this."""
        if self.ranks > 1:
            self._accelerator.wait_for_everyone()


def whole_state(state: Any) -> Any:
    """Return a state without divided tensors: each is gathered, on the CPU. Every rank must call this."""
    if isinstance(state, Mapping):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value) for value in state)
    return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state


def load_whole_state(part: Any, state: Any) -> None:
    """Load a whole state into a module, an optimizer or another object, whose tensors may be divided."""
    if isinstance(part, nn.Module):
        own = part.state_dict()
        state = {name: _divided(value, own.get(name)) for name, value in state.items()}
    part.load_state_dict(state)
    if isinstance(part, torch.optim.Optimizer):
        for weight, values in part.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    values[name] = _divided(value, weight)


def _divided(value: Any, like: Any) -> Any:
    """Divide a tensor as another one is; return it unchanged where that is whole."""
    if not hasattr(like, "full_tensor") or hasattr(value, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _launched(name: str, *, least: int) -> int | None:
    """Return a number that a launcher set in the environment; None: it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(
            f"the environment variable {name} is {text!r}; expected a whole number from {least} on, as torchrun sets "
            "it; unset WORLD_SIZE to train in one process"
        )
    return number
