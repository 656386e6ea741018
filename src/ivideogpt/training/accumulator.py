"""The gradients of one update of a tokenizer and of its discriminator, a batch in equal parts.

    figures, found = add_gradients(forward, objective, run, frames, ..., parts=4)
    descend(optimizer, tokenizer, rate, clip_norm)
    if objective.is_adversarial(step):
        figures |= add_discriminator_gradients(objective, run, found, frames, parts=4)
        descend(critic, objective.network, rate, clip_norm, run.ranks)

All parts of the tokenizer come first, then those of the discriminator. Each part weighs the same, so losses and
gradients are those of the whole batch, rounding apart. Two things differ a little: with a discriminator the adaptive
weight is that of each part, and each pass refines the spectral norms; with ``still_weight`` each part has its own share
of patches that stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ivideogpt.core.distributed import Ranks
from ivideogpt.core.optim import set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.tokenizer import Reconstruction
from ivideogpt.training.distributed_forward import gradients_meet, in_parts
from ivideogpt.training.tokenizer_loss import TokenizerLoss


def add_gradients(
    forward: nn.Module,
    objective: TokenizerLoss,
    run: Run,
    frames: Tensor,
    context_frames: int,
    last_layer: Tensor,
    *,
    step: int,
    quantized: bool,
    parts: int,
) -> tuple[dict[str, float | Tensor], Reconstruction]:
    """Adds the gradients of one batch to those of the tokenizer's weights, part by part.

    Args:
        forward: of the tokenizer.
        objective: its loss.
        run: its precision.
        frames: ``[b t c h w]`` in [0, 1], the rows of this rank.
        context_frames: how many of the frames are the context.
        last_layer: see ``TokenizerLoss.generator``.
        step: updates already made.
        quantized: whether there are codes.
        parts: equal ones, one after the other.

    Returns:
        The loss and what it is made of, the means over the parts; and what the tokenizer made of the whole batch,
        without gradients.
    """
    figures, made = [], []
    for number, (part,) in enumerate(in_parts((frames,), parts), 1):
        with gradients_meet(forward, now=number == parts):
            with run.autocast():
                found: Reconstruction = forward(part, quantized=quantized)
                true = part[:, :context_frames], part[:, context_frames:]
                losses = objective.generator(found, *true, step=step, last_layer=last_layer, quantized=quantized)
            (losses.total / parts).backward()
        figures.append({"loss": losses.total.detach(), **losses.figures()})
        made.append({name: value.detach() for name, value in vars(found).items()})
    whole = Reconstruction(**{name: _joined([one[name] for one in made]) for name in made[0]})
    return _means(figures), whole


def add_discriminator_gradients(
    objective: TokenizerLoss, run: Run, found: Reconstruction, frames: Tensor, *, parts: int
) -> dict[str, float | Tensor]:
    """Adds the gradients of one batch to those of the discriminator's weights, part by part.

    Args:
        objective: with a discriminator.
        run: its precision.
        found: what the tokenizer made of ``frames``.
        frames: ``[b t c h w]`` in [0, 1], the rows of this rank.
        parts: equal ones, one after the other.

    Returns:
        ``discriminator_loss`` and the mean logits, the means over the parts.
    """
    figures = []
    for fake, real in in_parts((torch.cat([found.context, found.future], dim=1), frames), parts):
        with run.autocast():
            judged = objective.discriminator(fake, real)
        (judged.loss / parts).backward()
        figures.append({f"discriminator_{name}": value.detach() for name, value in judged._asdict().items()})
    return _means(figures)


def descend(
    optimizer: Optimizer, module: nn.Module, rate: float, clip_norm: float | None, ranks: Ranks | None = None
) -> float:
    """Makes one step down the gradients that were added up; returns its learning rate.

    Args:
        optimizer: of the weights of ``module``.
        module: what learns.
        rate: learning rate.
        clip_norm: largest gradient norm; None: gradients are left as they are.
        ranks: where nothing else averages the gradients over them.
    """
    set_learning_rate(optimizer, rate)
    for parameter in module.parameters() if ranks else ():
        if parameter.grad is not None:
            parameter.grad.copy_(ranks.mean(parameter.grad))  # type: ignore[union-attr]
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()
    return rate


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows one after the other; of scalars the mean."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts[0].ndim else torch.stack(parts).mean()


def _means(figures: Sequence[dict[str, Tensor]]) -> dict[str, float | Tensor]:
    return {name: torch.stack([one[name] for one in figures]).mean() for name in figures[0]}
