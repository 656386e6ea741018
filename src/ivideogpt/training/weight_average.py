"""A running average of a model's weights, which is often better than the weights themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ivideogpt.core.errors import UserError

ModelT = TypeVar("ModelT", bound=nn.Module)


class ExponentialAverage(nn.Module, Generic[ModelT]):
    """A copy of a model whose weights follow it slowly.

        average = ExponentialAverage(tokenizer)
        ...
        average.update(tokenizer)                       # after each update of the optimizer
        evaluate(average.model)                         # in evaluation mode, without gradients
        average.model.save_pretrained(folder)

    The decay warms up as ``(1 + n) / (10 + n)`` after n updates, so that random first weights are soon forgotten.
    Frozen weights and codebooks that follow running means are averaged like all others; buffers are copied.

    Source: diffusers ``EMAModel``, which official ``--use_ema`` keeps. Differs: there the first update copies the
    model, steps of the discriminator count too, and the average is neither evaluated nor saved.
    """

    model: ModelT

    def __init__(self, model: ModelT, decay: float = 0.9999) -> None:
        """Begin with the present weights of ``model``.

        Raises:
            UserError: ``decay`` is not from 0 to below 1.
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"the decay of the averaged weights is {decay}; expected from 0 to below 1, usually 0.9999")
        self.decay, self.updates = decay, 0
        self.model = deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: ModelT) -> None:
        """Move every weight a little towards that of ``model``."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.model.parameters()), list(model.parameters()), self.updates)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def copy_to(self, model: ModelT) -> None:
        """Copy the averaged weights into ``model``."""
        model.load_state_dict(self.model.state_dict())

    def get_extra_state(self) -> int:
        """Return the number of updates so far, which `state_dict` holds beside the averaged weights."""
        return self.updates

    def set_extra_state(self, state: int) -> None:
        """Restore the number of updates."""
        self.updates = state
