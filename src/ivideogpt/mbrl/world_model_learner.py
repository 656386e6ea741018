"""How a world model goes on learning from what its agent lives through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ivideogpt.core.optim import adamw
from ivideogpt.core.run import Run
from ivideogpt.mbrl.official_bugs import Compat
from ivideogpt.mbrl.replay_buffer import Replay, Segments
from ivideogpt.mbrl.world_model_batches import as_floats, tokenised
from ivideogpt.mbrl.world_model_source import WorldConfig
from ivideogpt.metrics.perceptual import load_perceptual
from ivideogpt.training.accumulator import add_gradients as add_tokenizer_gradients
from ivideogpt.training.accumulator import descend
from ivideogpt.training.codebook_usage import freeze_codebooks
from ivideogpt.training.tokenizer_loss import TokenizerLoss, last_layer_of
from ivideogpt.training.transformer import Learner, TransformerTraining, add_gradients
from ivideogpt.worldmodel.world_model import WorldModel


class WorldLearner:
    """Updates of a world model from a buffer, in between those of the agent."""

    def __init__(self, model: WorldModel, config: WorldConfig, compat: Compat, run: Run) -> None:
        """New optimizers.

        Raises:
            UserError: the segments are longer than what the model was trained on has positions for.
        """
        self.model, self.config, self.compat, self.run = model, config, compat, run
        limit = model.context_frames + model.segment_frames()
        self.segment_frames = min(config.segment_frames, limit)
        self._training = TransformerTraining(
            batch_size=config.batch_size,
            clip_frames=self.segment_frames,
            clip_norm=config.clip_norm,
            reward_weight=config.reward_weight,
            termination_weight=config.termination_weight,
        )
        model.to(run.device)
        model.tokenizer.requires_grad_(config.tokenizer_every > 0)
        model.zero_grad(set_to_none=True)  # those of the last update that made it are still there
        if not compat.codebook_gradients:
            freeze_codebooks(model.tokenizer)
        codebooks = {id(p) for p in _codebooks(model)}
        self._learner = Learner(model)
        self._optimizer = adamw(
            self._learner, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self._networks = [p for p in model.tokenizer.parameters() if id(p) not in codebooks]
        self._tokenizer_optimizer: torch.optim.Optimizer | None = None
        self._objective: TokenizerLoss | None = None
        if config.tokenizer_every:
            perceptual = load_perceptual(network="vgg") if config.tokenizer_loss.perceptual_weight else None
            self._objective = TokenizerLoss(
                config.tokenizer_loss, perceptual, None, None, conditional=model.tokenizer.config.conditional
            ).to(run.device)
            self._tokenizer_optimizer = torch.optim.AdamW(
                self._networks, lr=config.tokenizer_learning_rate, weight_decay=config.weight_decay
            )

    def update(self, replay: Replay, random: np.random.Generator, *, tokenizer: bool) -> dict[str, Tensor | float]:
        """One update of the transformer, before it one of the tokenizer where asked for.

        Args:
            replay: what is learned from.
            random: of the choice.
            tokenizer: see above; a no where the configuration has none.
        """
        length = self.segment_frames + self.compat.late_rewards
        segments = replay.segments(self.config.batch_size, length, random, official=self.compat.short_segments)
        figures: dict[str, Tensor | float] = {}
        if tokenizer and self._objective is not None:
            figures |= {f"tokenizer_{name}": value for name, value in self._tokenizer_update(segments, random).items()}
        batch = tokenised(
            self.model,
            segments,
            model_units=self.config.model_units,
            late_rewards=self.compat.late_rewards,
        )
        self._learner.train()
        self._optimizer.zero_grad(set_to_none=True)
        found = add_gradients(self._training, self._learner, self.run, batch, None)
        nn.utils.clip_grad_norm_(self._learner.parameters(), self.config.clip_norm)
        self._optimizer.step()
        self._rest()
        return figures | {f"world_{name}": value for name, value in found.items()}

    def _tokenizer_update(self, segments: Segments, random: np.random.Generator) -> dict[str, Tensor | float]:
        assert self._objective is not None and self._tokenizer_optimizer is not None
        context, tokenizer = self.model.context_frames, self.model.tokenizer
        future = np.arange(context, self.segment_frames)
        some = np.sort(random.choice(future, min(self.config.tokenizer_frames, len(future)), replace=False))
        frames = as_floats(segments.frames[:, [*range(context), *some]]).to(self.run.device)
        tokenizer.train()
        held = self._without_codebook_gradients() if self.compat.codebook_gradients else []
        figures, _ = add_tokenizer_gradients(
            tokenizer,
            self._objective,
            self.run,
            frames,
            context,
            last_layer_of(tokenizer),
            step=0,
            quantized=True,
            parts=1,
        )
        if self.compat.codebook_gradients:
            # As there: gradients of the codebooks are scaled, add up for ever and join the norm.
            for weight, before in zip(_codebooks(self.model), held, strict=True):
                assert weight.grad is not None
                weight.grad = before + self.compat.gradient_scale * weight.grad
            nn.utils.clip_grad_norm_(tokenizer.parameters(), self.config.clip_norm)
            self._tokenizer_optimizer.step()
        else:
            descend(self._tokenizer_optimizer, tokenizer, self.config.tokenizer_learning_rate, self.config.clip_norm)
        self._tokenizer_optimizer.zero_grad(set_to_none=True)
        return figures

    def _without_codebook_gradients(self) -> list[Tensor]:
        """Takes the gradients of the codebooks away; returns them."""
        held = []
        for weight in _codebooks(self.model):
            held.append(torch.zeros_like(weight) if weight.grad is None else weight.grad)
            weight.grad = None
        return held

    def _rest(self) -> None:
        """Ready to imagine: without dropout, unless the official mistake is asked for."""
        self.model.eval()
        if self.compat.dropout_in_imagination:
            self.model.transformer.train()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizers."""
        state = {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._tokenizer_optimizer is not None:
            state["tokenizer_optimizer"] = self._tokenizer_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._tokenizer_optimizer is not None:
            self._tokenizer_optimizer.load_state_dict(state["tokenizer_optimizer"])
        self._rest()


def _codebooks(model: WorldModel) -> list[Tensor]:
    tokenizer = model.tokenizer
    quantizers = [tokenizer.quantize, *([tokenizer.dynamics_quantize] if tokenizer.config.conditional else [])]
    return [quantizer.embedding.weight for quantizer in quantizers]
