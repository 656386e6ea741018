"""Training of the transformer of a world model with its heads and its forecast; the tokenizer stays as it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ivideogpt.core.config import check_at_least, suggestion
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, check_descent, clip_gradients, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.dynamics import EXTRA_LOSSES, DynamicsLosses
from ivideogpt.training.distributed_forward import (
    check_parts,
    fill_copy,
    forward_pass,
    gradients_meet,
    in_parts,
    whole_copy,
)
from ivideogpt.training.lora import LoraTraining, adapters, merged_model, trained_share
from ivideogpt.training.token_batches import TokenBatch, TokenBatches
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """Training settings of a transformer.

    Attributes:
        steps: updates.
        batch_size: clips an update, on all ranks together.
        clip_frames: frames of a clip, context included.
        learning_rate: peak, after a warm-up.
        schedule: "cosine" falls to ``final_ratio`` of the peak, "constant" stays there.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices; embeddings, biases and norms have none.
        betas: of AdamW.
        clip_norm: largest gradient norm; None: gradients are left as they are.
        reward_weight, termination_weight, action_reconstruction_weight, forecast_weight: of these losses.
        extra_losses: names of ``EXTRA_LOSSES`` with their weights, such as {"z": 1e-4}.
        imagined_share: share of future frames that are read as the forecast guesses them, so that the model learns to
            go on from its own mistakes; their own tokens are no targets. Needs a forecast.
        imagined_run: mean number of such frames in a row, each guessed from those before it.
        lora: adapters that are trained in place of the transformer's weights; rank 0: none.
        gradient_accumulation: parts of a batch that are computed one after the other, for less memory; each part
            weighs the same.
        gradient_checkpointing: layers run a second time for their gradients: less memory, more time.
        compile: by ``torch.compile``.
        log_every, save_every: in updates.
        seed: of weights, data order and corruption.
    """

    steps: int = 20_000
    batch_size: int = 8
    clip_frames: int = 16
    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 200
    final_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = 1.0
    reward_weight: float = 1.0
    termination_weight: float = 1.0
    action_reconstruction_weight: float = 0.1
    forecast_weight: float = 0.5
    extra_losses: dict[str, float] = field(default_factory=dict)
    imagined_share: float = 0.0
    imagined_run: float = 1.0
    lora: LoraTraining = field(default_factory=LoraTraining)
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range; the message names it.
        """
        check_descent(self)
        check_at_least(self, steps=1, batch_size=1, clip_frames=2, final_ratio=0, seed=0)
        check_at_least(self, gradient_accumulation=1, imagined_share=0, imagined_run=1)
        for name in self.extra_losses:
            if name not in EXTRA_LOSSES:
                raise UserError(f"extra_losses has {name!r}; {suggestion(name, EXTRA_LOSSES)}")
        most = _most_imagined(self.imagined_run)
        if self.imagined_share > most:
            raise UserError(
                f"imagined_share is {self.imagined_share}, but a true frame stands between runs of {self.imagined_run} "
                f"imagined ones; expected at most {math.floor(most * 1000) / 1000}, or a longer imagined_run"
            )


def train_transformer(
    config: TransformerTraining,
    model: WorldModel,
    batches: TokenBatches,
    run: Run,
    *,
    evaluate: Callable[[WorldModel, int], dict[str, float]] | None = None,
    until: int | None = None,
) -> WorldModel:
    """Train a transformer, or continue where ``run`` stopped; the tokenizer stays as it is.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: a trained tokenizer with a transformer to train.
        batches: tokens of clips of ``config.clip_frames``, ``config.batch_size`` at once on all ranks together.
        run: its folder, device and precision; each checkpoint in it is a whole world model, adapters merged.
        evaluate: measures the model at each checkpoint, given the number of updates; its figures join the log.
        until: stops after this many updates without changing the schedule.

    Returns:
        The same model, trained, in evaluation mode.

    Raises:
        UserError: a batch cannot be divided; PyTorch cannot compile here; a loss is not finite.
        MissingExtraError: there are to be adapters, and peft is not installed.
    """
    check_parts(config.gradient_accumulation, config.batch_size, run.ranks.ranks)
    if config.lora.rank and run.ranks.divides_weights:
        raise UserError(f"lora.rank is {config.lora.rank} and parallel is fsdp; adapters are trained with ddp")
    model.to(run.device)
    model.tokenizer.requires_grad_(False)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    with adapters(model.transformer, config.lora):
        # networks
        dynamics = model.dynamics
        if config.lora.rank and run.ranks.is_first:
            tqdm.write(f"adapters of rank {config.lora.rank}: {trained_share(dynamics)}", file=sys.stderr)
        whole = whole_copy(model, run)
        methods = ("forecast", "forecast_logits")
        layers = model.transformer.layers
        forward = forward_pass(dynamics, run, compile=config.compile, blocks=layers, methods=methods)
        optimizer = adamw(
            dynamics, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas
        )
        schedule = named_schedule(
            config.schedule,
            config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            final_ratio=config.final_ratio,
        )

        # training state
        parts = {"learner": dynamics, "optimizer": optimizer, "batches": batches}
        done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
        dynamics.train()
        stream = iter(batches)
        for step in run.updates("transformer", done, last, clips=config.batch_size):
            # inputs
            batch = next(stream)
            with run.autocast():
                share, length = config.imagined_share, config.imagined_run
                inputs = partly_imagined(model, batch.ids, batch.actions, share, length, run.generator, run.ranks)

            # update
            set_learning_rate(optimizer, schedule(step))
            optimizer.zero_grad(set_to_none=True)
            metrics = accumulate_gradients(config, forward, run, batch, inputs)
            if config.clip_norm is not None:
                clip_gradients(dynamics, config.clip_norm)
            optimizer.step()
            metrics["learning_rate"] = schedule(step)

            # log and checkpoint
            save = run.is_save_step(step + 1, last=last)
            finished = merged_model(model) if save and run.ranks.is_first else model
            if save and run.ranks.divides_weights:
                fill_copy(None if whole is None else whole.dynamics, dynamics)
                finished = model if whole is None else whole
            if save and evaluate is not None and run.ranks.is_first:
                dynamics.eval()
                metrics |= evaluate(finished.to(run.device), step + 1)
                dynamics.train()
            run.log(step + 1, **metrics)
            if save:
                run.save(step + 1, also=finished.save_pretrained, **parts)
    return model.eval()


def accumulate_gradients(
    config: TransformerTraining, forward: nn.Module, run: Run, batch: TokenBatch, inputs: Tensor | None
) -> dict[str, float | Tensor]:
    """Add the gradients of one batch to those of the weights, part by part.

    Args:
        config: number of parts, and weights of the losses.
        forward: the dynamics as `forward_pass` returns them.
        run: its precision.
        batch: the rows of this rank.
        inputs: see ``Dynamics.losses``.

    Returns:
        The loss and its terms by name: the means over the parts.
    """
    count, metrics = config.gradient_accumulation, []
    for number, (*part, part_inputs) in enumerate(in_parts((*batch, inputs), count), 1):
        with gradients_meet(forward, now=number == count):
            with run.autocast():
                losses: DynamicsLosses = forward(*part, inputs=part_inputs, extra_losses=config.extra_losses)
            loss = total_loss(losses, config)
            (loss / count).backward()
        terms = {"loss": loss, **losses._asdict()}
        metrics.append({name: value.detach() for name, value in terms.items() if value is not None})
    return {name: torch.stack([part[name] for part in metrics]).mean() for name in metrics[0]}


class LossWeights(Protocol):
    """Settings that weigh the losses of a dynamics network."""

    @property
    def reward_weight(self) -> float: ...  # noqa: D102
    @property
    def termination_weight(self) -> float: ...  # noqa: D102
    @property
    def action_reconstruction_weight(self) -> float: ...  # noqa: D102
    @property
    def forecast_weight(self) -> float: ...  # noqa: D102


def total_loss(losses: DynamicsLosses, weights: LossWeights) -> Tensor:
    """Return the weighted sum of the losses that there are, a scalar."""
    loss = losses.tokens
    if losses.rewards is not None:
        loss = loss + weights.reward_weight * losses.rewards
    if losses.terminations is not None:
        loss = loss + weights.termination_weight * losses.terminations
    if losses.actions is not None:
        loss = loss + weights.action_reconstruction_weight * losses.actions
    if losses.forecast is not None:
        loss = loss + weights.forecast_weight * losses.forecast
    if losses.extra is not None:
        loss = loss + losses.extra
    return loss


@torch.no_grad()
def partly_imagined(
    model: WorldModel,
    ids: Tensor,
    actions: Tensor | None,
    share: float,
    run: float,
    generator: torch.Generator,
    ranks: Ranks | None = None,
) -> Tensor | None:
    """Replace some future frames by the guesses of the forecast from the frames read before them.

    Args:
        model: has a forecast.
        ids: int64 ``[b length]``.
        actions: ``[b f a]`` in model units, or None.
        share: of the future frames but the last, which nothing follows.
        run: mean number of such frames in a row, each guessed from those before it: so far does a guess drift.
        generator: of the choice.
        ranks: whose rows ``ids`` are.

    Returns:
        int64 ``[b length]``; None where ``share`` is 0.

    Raises:
        UserError: the model has no forecast.
    """
    assert run >= 1 and 0 <= share <= _most_imagined(run)
    if share == 0:
        return None
    if not model.config.heads.forecast_grid:
        raise UserError(f"imagined_share is {share}, but this model has no forecast; set it to 0")
    stays = 1 - 1 / run
    begins = share * (1 - stays) / (1 - share)
    layout, count, ranks = model.layout, model.context_frames, ranks or Ranks()
    context, future = layout.split(ids, count)
    codes = torch.cat([context, future], dim=1)
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    for frame in range(future.shape[1] - 1):
        drawn = ranks.own_rows(torch.rand(len(ids) * ranks.ranks, generator=generator))
        chosen = torch.where(chosen, drawn < stays, drawn < begins)
        if chosen.any():
            rows = chosen.to(ids.device)
            guess = model.dynamics.forecast(
                codes[rows][:, : count + frame], None if actions is None else actions[rows][:, frame]
            )
            assert guess is not None
            codes[rows, count + frame] = model.dynamics.forecast_logits(guess, layout.dynamics_ids).argmax(dim=-1)
    return layout.join(codes[:, :count], codes[:, count:])


def _most_imagined(run: float) -> float:
    """Return the largest share of imagined frames that runs of this mean length allow."""
    return run / (run + 1)
