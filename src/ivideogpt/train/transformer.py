"""Trains the transformer of a world model, and the heads and the forecast around it; the tokenizer stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.ranks import Ranks
from ivideogpt.core.run import Run
from ivideogpt.train.batches import TokenBatch, TokenBatches
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.losses import TransformerLosses, transformer_losses
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """How a transformer is trained.

    Attributes:
        steps: updates.
        batch_size: clips an update, on all ranks together.
        clip_frames: frames of a clip, context included.
        learning_rate: peak; warms up, then falls along a cosine to ``final_ratio`` of it.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices; embeddings, biases and norms have none.
        betas: of AdamW.
        clip_norm: largest gradient norm.
        reward_weight, action_reconstruction_weight, forecast_weight: of these losses.
        imagined_share: share of future frames that are read as the forecast guesses them, so that the model learns to
            go on from its own mistakes; their own tokens are no targets. Needs a forecast.
        log_every, save_every: in updates.
        seed: of weights, data order and corruption.
    """

    steps: int = 20_000
    batch_size: int = 8
    clip_frames: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    reward_weight: float = 1.0
    action_reconstruction_weight: float = 0.1
    forecast_weight: float = 0.5
    imagined_share: float = 0.0
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0


def train_transformer(
    config: TransformerTraining,
    model: WorldModel,
    batches: TokenBatches,
    run: Run,
    *,
    evaluate: Callable[[WorldModel, int], dict[str, float]] | None = None,
    until: int | None = None,
) -> WorldModel:
    """Trains, or goes on where ``run`` stopped; the tokenizer stays as it is.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: a trained tokenizer with a transformer to train.
        batches: tokens of clips of ``config.clip_frames``, ``config.batch_size`` at once on all ranks together.
        run: its folder, device and precision; each checkpoint in it is a whole world model.
        evaluate: measures the model at each checkpoint, given the number of updates; its figures join the log.
        until: stops after this many updates without changing the schedule.

    Returns:
        The same model, trained, in evaluation mode.
    """
    model.to(run.device)
    model.tokenizer.requires_grad_(False)
    learner = Learner(model)
    optimizer = adamw(learner, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas)
    schedule = cosine(
        config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps, final_ratio=config.final_ratio
    )
    parts = {"learner": learner, "optimizer": optimizer, "batches": batches}
    done, last = run.resume(**parts), min(until or config.steps, config.steps)
    forward = run.ranks.wrap(learner)
    learner.train()
    stream = iter(batches)
    for step in run.updates("transformer", done, last, clips=config.batch_size):
        batch = next(stream)
        set_learning_rate(optimizer, schedule(step))
        with run.autocast():
            inputs = partly_imagined(model, batch.ids, batch.actions, config.imagined_share, run.generator, run.ranks)
            losses = forward(batch, inputs)
        loss = losses.tokens
        if losses.rewards is not None:
            loss = loss + config.reward_weight * losses.rewards
        if losses.actions is not None:
            loss = loss + config.action_reconstruction_weight * losses.actions
        if losses.forecast is not None:
            loss = loss + config.forecast_weight * losses.forecast
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
        optimizer.step()
        figures = {"loss": loss, "learning_rate": schedule(step)}
        figures |= {name: value for name, value in losses._asdict().items() if value is not None}
        if run.is_save_step(step + 1, last=last):
            if evaluate is not None and run.ranks.is_first:
                learner.eval()
                figures |= evaluate(model, step + 1)
                learner.train()
            run.log(step + 1, **figures)
            run.save(step + 1, also=lambda folder: save_model(model, folder), **parts)
        else:
            run.log(step + 1, **figures)
    return model.eval()


class Learner(nn.Module):
    """What is trained of a world model, as one module whose forward pass gives the losses."""

    def __init__(self, model: WorldModel) -> None:
        """Takes transformer and heads; the tokenizer is no part of it."""
        super().__init__()
        self.transformer, self.heads = model.transformer, model.heads
        self._model = (model,)  # in a tuple, it is no part

    def forward(self, batch: TokenBatch, inputs: Tensor | None) -> TransformerLosses:
        """See ``transformer_losses``."""
        return transformer_losses(self._model[0], batch.ids, batch.actions, batch.rewards, inputs)


def save_model(model: WorldModel, folder: Path) -> None:
    """Writes the whole world model into a checkpoint of a run."""
    model.save_pretrained(folder)


@torch.no_grad()
def partly_imagined(
    model: WorldModel,
    ids: Tensor,
    actions: Tensor | None,
    share: float,
    generator: torch.Generator,
    ranks: Ranks | None = None,
) -> Tensor | None:
    """``ids`` with a random ``share`` of the future frames as the forecast guesses them; None where the share is 0."""
    if not 0 <= share < 1:
        raise UserError(f"imagined_share is {share}; expected at least 0 and less than 1")
    if share == 0:
        return None
    _, guess = embeddings.frame_embeddings(model, ids, actions)
    if guess is None:
        raise UserError(f"imagined_share is {share}, but this model has no forecast; set it to 0")
    layout = model.layout
    likeliest = layout.dynamics_ids.start + model.transformer.guess_logits(guess, layout.dynamics_ids).argmax(dim=-1)
    ranks = ranks or Ranks()
    rows, count = likeliest.shape[:2]
    hit = ranks.mine(torch.rand((rows * ranks.ranks, count), generator=generator) < share).to(ids.device)
    start = layout.context_length(model.context_frames)
    frames = rearrange(ids[:, start:], "b (f m) -> b f m", m=layout.frame_length)
    frames = torch.cat([frames[:, :, :1], torch.where(hit[:, :, None], likeliest, frames[:, :, 1:])], dim=2)
    return torch.cat([ids[:, :start], rearrange(frames, "b f m -> b (f m)")], dim=1)
