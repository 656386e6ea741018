"""Trains the transformer of a world model on clips held in memory, on one device.

A tokenizer that is not conditional gives a frame the same codes wherever it stands, so all frames are encoded once;
otherwise each clip is encoded when it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from ivideogpt.core.clock import Until
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.data.frames import EpisodeArrays, contiguous
from ivideogpt.models.heads import HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.losses import transformer_losses
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """How a transformer is trained.

    Attributes:
        transformer: its shape.
        heads: what stands around it.
        steps: updates.
        batch_size: clips an update.
        clip_frames: frames of a clip, context included.
        learning_rate: peak; warms up, then falls along a cosine to ``final_ratio`` of it.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices; embeddings, biases and norms have none.
        clip_norm: largest gradient norm.
        reward_weight, action_reconstruction_weight, forecast_weight: of these losses.
        imagined_share: share of future frames that are read as the forecast guesses them, so that the model learns to
            go on from its own mistakes; their own tokens are no targets. Needs a forecast.
        log_every, save_every: in updates.
        seed: of weights, data order and corruption.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    steps: int = 20_000
    batch_size: int = 8
    clip_frames: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_ratio: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    reward_weight: float = 1.0
    action_reconstruction_weight: float = 0.1
    forecast_weight: float = 0.5
    imagined_share: float = 0.0
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0


class ClipTokens:
    """Token sequences of random clips."""

    def __init__(self, model: WorldModel, data: EpisodeArrays, clip_frames: int) -> None:
        """Encodes all frames at once where the tokenizer allows it."""
        self.model, self.data, self.clip_frames = model, data, clip_frames
        self.codes = None if model.tokenizer.config.conditional else frame_codes(model.tokenizer, data)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Ids ``[b length]``, actions ``[b f a]`` in model units or None, rewards ``[b f]`` or None, on the device."""
        model, count = self.model, self.model.context_frames
        rows = contiguous(self.data.draw(batch_size, self.clip_frames, generator), self.clip_frames)
        if self.codes is None:
            with torch.no_grad():
                ids, _ = model.tokenizer.tokenize(self.data.clips(rows, count).frames.to(model.device))
        else:
            codes = self.codes[rows].long()
            ids = model.layout.join(codes[:, :count], codes[:, count:]).to(model.device)
        actions = rewards = None
        if model.action_dim and self.data.actions is not None:
            actions = model.normalize_actions(self.data.actions[rows[:, count - 1 : -1]]).to(model.device)
        if self.data.rewards is not None:
            rewards = self.data.rewards[rows[:, count - 1 : -1]].to(model.device)
        return ids, actions, rewards


@torch.inference_mode()
def frame_codes(tokenizer: CompressiveTokenizer, data: EpisodeArrays, batch_size: int = 256) -> Tensor:
    """Codes int16 ``[total n]`` of every frame, for a tokenizer that is not conditional."""
    device = tokenizer.quantize.embedding.weight.device
    codes = [
        tokenizer.encode_context(data.frames[start : start + batch_size].to(device)[:, None].float() / 255)[0][:, 0]
        for start in tqdm(range(0, len(data.frames), batch_size), desc="encoding", unit="batch")
    ]
    return torch.cat(codes).to(torch.int16).cpu().clone()


def train_transformer(
    config: TransformerTraining,
    model: WorldModel,
    data: EpisodeArrays,
    run: Run,
    *,
    evaluate: Callable[[WorldModel], dict[str, float]] | None = None,
    until: int | None = None,
) -> WorldModel:
    """Trains, or goes on where ``run`` stopped; the tokenizer stays as it is.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: a trained tokenizer with a transformer to train.
        data: raw frames, actions and rewards.
        run: its folder, device and precision; each checkpoint in it is a whole world model.
        evaluate: measures the model at each checkpoint; its figures join the log.
        until: stops after this many updates without changing the schedule.

    Returns:
        The same model, trained, in evaluation mode.
    """
    model.to(run.device)
    model.tokenizer.requires_grad_(False)
    clips = ClipTokens(model, data, config.clip_frames)
    learner = nn.ModuleDict({"transformer": model.transformer, "heads": model.heads})
    optimizer = adamw(learner, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    schedule = cosine(
        config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps, final_ratio=config.final_ratio
    )
    parts = {"learner": learner, "optimizer": optimizer}
    step, last = run.resume(**parts), min(until or config.steps, config.steps)
    learner.train()
    with tqdm(total=last, initial=step, desc="transformer", unit="step") as bar:
        while Until(last)(step):
            ids, actions, rewards = clips.draw(config.batch_size, run.generator)
            set_learning_rate(optimizer, schedule(step))
            with run.autocast():
                inputs = partly_imagined(model, ids, actions, config.imagined_share, run.generator)
                losses = transformer_losses(model, ids, actions, rewards, inputs)
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
            step += 1
            bar.update()
            figures = {"loss": loss, "tokens": losses.tokens, "accuracy": losses.accuracy}
            figures |= {"rewards": losses.rewards} if losses.rewards is not None else {}
            figures |= {"forecast": losses.forecast} if losses.forecast is not None else {}
            if run.is_save_step(step, last=last):
                if evaluate is not None:
                    learner.eval()
                    figures |= evaluate(model)
                    learner.train()
                run.log(step, **figures)
                run.save(step, also=lambda folder: save_model(model, folder), **parts)
            else:
                run.log(step, **figures)
    return model.eval()


def save_model(model: WorldModel, folder: Path) -> None:
    """Writes the whole world model into a checkpoint of a run."""
    model.save_pretrained(folder)


@torch.no_grad()
def partly_imagined(
    model: WorldModel, ids: Tensor, actions: Tensor | None, share: float, generator: torch.Generator
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
    hit = (torch.rand(likeliest.shape[:2], generator=generator) < share).to(ids.device)
    start = layout.context_length(model.context_frames)
    frames = rearrange(ids[:, start:], "b (f m) -> b f m", m=layout.frame_length)
    frames = torch.cat([frames[:, :, :1], torch.where(hit[:, :, None], likeliest, frames[:, :, 1:])], dim=2)
    return torch.cat([ids[:, :start], rearrange(frames, "b f m -> b (f m)")], dim=1)
