"""The optimizer of all training loops, and learning rates as pure functions of the step.

    optimizer = adamw(model, learning_rate=5e-4, weight_decay=0.01)
    learning_rate = cosine(5e-4, steps=100_000, warmup_steps=1_000)
    while step < 100_000:
        set_learning_rate(optimizer, learning_rate(step))   # step = updates already made, from 0
        ...

A schedule has no state: a resumed run evaluates it at its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError

Schedule = Callable[[int], float]
ScheduleName = Literal["cosine", "constant"]


def check_descent(config: Any) -> None:
    """Check the settings of the optimizer of a training.

    Raises:
        UserError: a number is out of range; the message names it.
    """
    check_at_least(config, learning_rate=0, warmup_steps=0, weight_decay=0, log_every=0, save_every=0)
    if config.clip_norm is not None and not config.clip_norm > 0:
        raise UserError(f"clip_norm is {config.clip_norm}; expected more than 0, or null to leave gradients unclipped")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"betas is {list(config.betas)}; expected two numbers from 0 to below 1")


def adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    no_decay_embeddings: bool = True,
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of ``module``.

    Weights of two or more axes decay; biases and norms (one axis) do not, and neither do embedding tables unless
    ``no_decay_embeddings`` is False. Where all of them are on a CUDA device, one fused kernel updates them.

    Source: official ``train_gpt.py``, ``embed_no_wd``; same.
    """
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or (no_decay_embeddings and id(parameter) in embeddings)
        (no_decay if exempt else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    trained = (*decay, *no_decay)
    fused = True if all(parameter.is_cuda for parameter in trained) else None
    # No kernel updates whole and divided weights (FSDP2) together.
    is_mixed = len({hasattr(parameter, "full_tensor") for parameter in trained}) > 1
    kernel: dict[str, Any] = {"foreach": False} if is_mixed else {"fused": fused}
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, **kernel)
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep the kernel of the current device and weights in place of that of the process that saved."""
    kernel = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    return {**state, "param_groups": [{**group, **kernel} for group in state["param_groups"]]}


def clip_gradients(module: nn.Module, norm: float) -> None:
    """Scale the gradients of a module so that their norm together is at most ``norm``; weights may be divided."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    divided = [gradient for gradient in gradients if hasattr(gradient, "full_tensor")]
    if len(divided) in (0, len(gradients)):
        nn.utils.clip_grad_norm_(module.parameters(), norm)
        return
    whole = [gradient for gradient in gradients if not hasattr(gradient, "full_tensor")]
    totals = [nn.utils.get_total_norm(divided).full_tensor(), nn.utils.get_total_norm(whole)]  # type: ignore[attr-defined]
    scale = min(1.0, norm / (torch.stack(totals).norm().item() + 1e-6))
    for gradient in gradients:
        gradient.mul_(scale)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def constant(peak: float, *, warmup_steps: int = 0) -> Schedule:
    """Return a schedule that rises linearly to ``peak`` during ``warmup_steps`` updates, then stays there."""

    def learning_rate(step: int) -> float:
        return peak * _warmup(step, warmup_steps)

    return learning_rate


def cosine(peak: float, *, steps: int, warmup_steps: int = 0, final_ratio: float = 0.0) -> Schedule:
    """Return a schedule that rises linearly to ``peak``, then falls along half a cosine.

    Args:
        peak: the highest learning rate.
        steps: updates in the whole run, warm-up included.
        warmup_steps: updates before the peak.
        final_ratio: learning rate at update ``steps`` and later, as a share of the peak.
    """

    def learning_rate(step: int) -> float:
        progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return peak * _warmup(step, warmup_steps) * (final_ratio + (1.0 - final_ratio) * half_cosine)

    return learning_rate


def named_schedule(
    name: ScheduleName, peak: float, *, steps: int, warmup_steps: int = 0, final_ratio: float = 0.0
) -> Schedule:
    """Return the schedule that a setting names; a constant one ignores ``steps`` and ``final_ratio``."""
    if name == "constant":
        return constant(peak, warmup_steps=warmup_steps)
    return cosine(peak, steps=steps, warmup_steps=warmup_steps, final_ratio=final_ratio)


def _warmup(step: int, warmup_steps: int) -> float:
    # The first update (step 0) already learns: a rate of exactly zero would waste it.
    return min(1.0, (step + 1) / (warmup_steps + 1))
