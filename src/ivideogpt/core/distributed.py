"""The processes that train together: one, or several started by ``torchrun`` or ``accelerate launch``.

    ranks = Ranks.join("auto")
    learner = ranks.wrap(module)            # its gradients are the mean over all ranks
    loss = ranks.mean(loss)                 # for the log

Every rank runs the same program on its own clips; only the first one writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ivideogpt.core.errors import MissingExtraError, UserError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Ranks:
    """This process among those that train together.

    Attributes:
        rank: from 0.
        ranks: number of processes.
        device: of this process, or None if it is free to choose.
    """

    def __init__(
        self, rank: int = 0, ranks: int = 1, device: torch.device | None = None, accelerator: Any = None
    ) -> None:
        """Describe one process alone by default; ``join`` reads the launcher's numbers."""
        self.rank, self.ranks, self.device, self._accelerator = rank, ranks, device, accelerator

    @classmethod
    def join(cls, device: str = "auto") -> Ranks:
        """Join the other processes of this launch, if there are any.

        Args:
            device: "auto", "cpu" or "cuda"; each process uses its own GPU.

        Raises:
            UserError: the package for several processes is not installed, they cannot use the device, or the launcher's
                environment variables are no numbers.
        """
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
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)

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
