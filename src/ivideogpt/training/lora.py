"""Low-rank adapters: the weights of a transformer stay as they are, and small matrices beside them are trained.

    with adapters(model.transformer, LoraTraining(rank=8)):
        ...                                 # train what requires gradients
        merged_model(model).save_pretrained(folder)
    # the adapters are now part of the weights, and nothing is left of them

Source: Hu et al. 2021 (LoRA), by the package peft, in the layers of the official ``train_gpt.py --lora``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least, suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.models.cpu_linear import Projection
from ivideogpt.models.transformer import Transformer
from ivideogpt.worldmodel.world_model import WorldModel

_ADAPTER = "default"
# Our fused layers and the official ones that each is made of, in order.
_FUSED = {
    "attention.qkv": ("q_proj", "k_proj", "v_proj"),
    "feed_forward.gate_up": ("gate_proj", "up_proj"),
}
# Official layers by the ends of their names here, once fused layers are apart.
_PLACES = {
    **{name: f"{place}.{name}" for place, names in _FUSED.items() for name in names},
    "o_proj": "attention.out",
    "down_proj": "feed_forward.down",
    "embed_tokens": "embed",
    "lm_head": "head",
}


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Low-rank adapters in place of the weights of a transformer; its heads are trained as ever.

    Attributes:
        rank: of each adapter; 0: there are none, and all weights are trained.
        alpha: an adapter counts ``alpha / rank`` times.
        dropout: of what an adapter reads while training; embeddings and ``lm_head`` have none.
        targets: layers that have an adapter, by their official names.

    Source: official ``--lora`` with ``lora_r`` 8; same. Differs: there ``lm_head`` has dropout too.
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(_PLACES)

    def __post_init__(self) -> None:
        """Check the numbers and the names of the layers.

        Raises:
            UserError: a number is out of range, or there is no such layer.
        """
        check_at_least(self, rank=0)
        if not self.alpha > 0:
            raise UserError(f"alpha is {self.alpha}; expected above 0, usually 32")
        if not 0 <= self.dropout < 1:
            raise UserError(f"the dropout of adapters is {self.dropout}; expected from 0 to below 1")
        if not self.targets:
            raise UserError(f"targets is empty; expected some of {', '.join(_PLACES)}, or rank 0 for no adapters")
        for name in self.targets:
            if name not in _PLACES:
                raise UserError(f"there is no layer {name!r} for an adapter; {suggestion(name, _PLACES)}")


@contextmanager
def adapters(transformer: Transformer, config: LoraTraining) -> Iterator[None]:
    """Inside of the block only adapters are trained, beside frozen weights; after it they are part of the weights.

    With rank 0 nothing changes. Adapters begin without any effect: a model starts as it was.

    Args:
        transformer: changed in place.
        config: which adapters.

    Raises:
        MissingExtraError: peft is not installed.
    """
    if not config.rank:
        yield
        return
    _add(transformer, config)
    try:
        yield
    finally:
        _merge(transformer)


def merged_model(model: WorldModel) -> WorldModel:
    """Return an ordinary model: a copy with its adapters merged into the weights.

    Tokenizer and heads are those of ``model`` itself; without adapters, so is everything.
    """
    if not hasattr(model.transformer, "peft_config"):
        return model
    transformer = deepcopy(model.transformer)
    _merge(transformer)
    return WorldModel(model.config, model.tokenizer, transformer, model.heads)


def trained_share(module: nn.Module) -> str:
    """Describe how many of a module's parameters are trained, for a log."""
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    return f"{trained:,} of {sum(weight.numel() for weight in module.parameters()):,} parameters are trained"


class _Parts(nn.Module):
    """A fused linear layer as the layers that it is made of, so that each can have an adapter of its own."""

    def __init__(self, fused: nn.Linear, names: Sequence[str]) -> None:
        super().__init__()
        for name, weight in zip(names, fused.weight.detach().chunk(len(names)), strict=True):
            self.add_module(name, _linear(weight.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)


class _AdaptedHead(nn.Module):
    """The output layer with its adapter in its weight: often only some rows of it are used."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, rows: range | None = None) -> Tensor:
        weight = self.layer.get_base_layer().weight + self.layer.get_delta_weight(_ADAPTER)
        return F.linear(x, weight if rows is None else weight[rows.start : rows.stop])


def _linear(weight: Tensor) -> nn.Linear:
    """Return a frozen layer with this weight, without drawing random numbers."""
    with torch.device("meta"):
        layer = Projection(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _add(transformer: Transformer, config: LoraTraining) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # slow to import and needed only here
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    transformer.requires_grad_(False)
    for place, names in _FUSED.items():
        for layer in transformer.layers if set(names) & set(config.targets) else ():
            fused = layer.get_submodule(place)
            assert isinstance(fused, nn.Linear)
            _put(layer, place, _Parts(fused, names))
    options = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  it is only divided
        lora_dropout=config.dropout,
        target_modules=[_PLACES[name] for name in config.targets],
    )
    inject_adapter_in_model(options, transformer, _ADAPTER)
    if "lm_head" in config.targets:
        transformer.head = _AdaptedHead(transformer.head)  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def _merge(transformer: Transformer) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(transformer.head, _AdaptedHead):
        transformer.head = transformer.head.layer
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            _put(transformer, name, layer.get_base_layer())
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, _Parts):
            weight = torch.cat([part.weight for part in layer.children()])  # pyright: ignore[reportArgumentType]
            _put(transformer, name, _linear(weight))
    del transformer.peft_config
    transformer.requires_grad_(True)


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Replace the submodule of that name."""
    outer, _, inner = name.rpartition(".")
    setattr(module.get_submodule(outer), inner, part)
