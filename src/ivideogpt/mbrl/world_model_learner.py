"""Learning of the world model from the episodes of its agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ivideogpt.core.optim import adamw
from ivideogpt.core.run import Run
from ivideogpt.mbrl.replay_buffer import ReplayBuffer, Segments
from ivideogpt.mbrl.world_model_batches import as_floats, tokenise_segments
from ivideogpt.mbrl.world_model_source import WorldModelTraining, train_from_scratch
from ivideogpt.metrics.perceptual import load_perceptual
from ivideogpt.training.codebooks import freeze_codebooks
from ivideogpt.training.tokenizer_loss import TokenizerLoss, last_layer_of
from ivideogpt.training.transformer import total_loss
from ivideogpt.worldmodel.world_model import WorldModel


class WorldModelLearner(Protocol):
    """A world model and its optimizers, updated from a replay buffer between the updates of the agent."""

    @property
    def model(self) -> WorldModel | None:
        """World model, or None before ``prepare`` has made one."""
        ...

    def prepare(self, replay: ReplayBuffer, random: np.random.Generator, *, seed: int) -> int:
        """Do what comes before the first imagination: make a new model, or update the checkpoint's.

        Args:
            replay: the first episodes.
            random: generator of the updates' draws.
            seed: of a new model.

        Returns:
            Number of updates of a checkpoint's model.
        """
        ...

    def update(
        self, replay: ReplayBuffer, random: np.random.Generator, *, tokenizer: bool
    ) -> dict[str, Tensor | float]:
        """Make one update.

        Args:
            replay: source of the segments.
            random: generator of the draws.
            tokenizer: update the tokenizer too, if there is one and the settings train it at all.

        Returns:
            Losses by name.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizers; nothing where there is no model yet."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        ...


class TokenLearner:
    """A token model and its optimizers; a `WorldModelLearner`.

    Codebooks are never trained: a token keeps its meaning for the transformer. So they take no part in the gradient
    norm either.
    """

    def __init__(self, config: WorldModelTraining, run: Run, model: WorldModel | None) -> None:
        """Make new optimizers.

        Args:
            config: the settings.
            run: its folder, device and precision.
            model: the world model; None: ``prepare`` makes one of the first episodes.
        """
        self.config, self.run = config, run
        self._model: WorldModel | None = None
        if model is not None:
            self._take(model)

    @property
    def model(self) -> WorldModel | None:
        """World model, or None before ``prepare`` has made one."""
        return self._model

    def _take(self, model: WorldModel) -> None:
        config = self.config
        self._model = model
        self.segment_frames = min(config.segment_frames, model.context_frames + model.segment_frames())
        model.to(self.run.device)
        model.tokenizer.requires_grad_(config.tokenizer_update_every_steps > 0)
        model.zero_grad(set_to_none=True)  # of the training that made the model
        freeze_codebooks(model.tokenizer)

        # transformer and heads
        self._optimizer = adamw(
            model.dynamics, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )

        # tokenizer
        self._tokenizer_loss: TokenizerLoss | None = None
        self._tokenizer_optimizer: torch.optim.Optimizer | None = None
        if config.tokenizer_update_every_steps:
            perceptual = load_perceptual(network="vgg") if config.tokenizer_loss.perceptual_weight else None
            self._tokenizer_loss = TokenizerLoss(
                config.tokenizer_loss, perceptual, None, None, conditional=model.tokenizer.config.conditional
            ).to(self.run.device)
            codebooks = {id(weight) for weight in _codebooks(model)}
            networks = [weight for weight in model.tokenizer.parameters() if id(weight) not in codebooks]
            self._tokenizer_optimizer = torch.optim.AdamW(
                networks, lr=config.tokenizer_learning_rate, weight_decay=config.weight_decay
            )

    def prepare(self, replay: ReplayBuffer, random: np.random.Generator, *, seed: int) -> int:
        """Make a new model, or update the checkpoint's; see `WorldModelLearner`."""
        if self._model is None:
            self._take(train_from_scratch(replay, self.config.scratch, self.run, seed=seed))
            return 0
        updates = range(self.config.initial_updates)
        for _ in tqdm(updates, desc="world model", dynamic_ncols=True, disable=not updates, leave=False):
            self.update(replay, random, tokenizer=True)
        return len(updates)

    def update(
        self, replay: ReplayBuffer, random: np.random.Generator, *, tokenizer: bool
    ) -> dict[str, Tensor | float]:
        """Update transformer and heads, and before them the tokenizer where asked for; see `WorldModelLearner`."""
        assert self._model is not None
        config, model = self.config, self._model
        segments = replay.segments(config.batch_size, self.segment_frames, random)
        metrics: dict[str, Tensor | float] = {}
        if tokenizer and self._tokenizer_loss is not None:
            metrics |= {f"tokenizer_{name}": value for name, value in self._update_tokenizer(segments, random).items()}
        batch = tokenise_segments(model, segments, raw_actions=not config.actions_in_model_units)

        # losses
        model.dynamics.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self.run.autocast():
            losses = model.dynamics(*batch)
        loss = total_loss(losses, config)

        # update
        loss.backward()
        nn.utils.clip_grad_norm_(model.dynamics.parameters(), config.max_grad_norm)
        self._optimizer.step()
        model.eval()  # no dropout while imagining
        parts = {"loss": loss, **losses._asdict()}
        return metrics | {f"world_{name}": value.detach() for name, value in parts.items() if value is not None}

    def _update_tokenizer(self, segments: Segments, random: np.random.Generator) -> dict[str, Tensor | float]:
        assert self._model is not None and self._tokenizer_loss is not None and self._tokenizer_optimizer is not None
        config, tokenizer, context = self.config, self._model.tokenizer, self._model.context_frames

        # frames: the context, and some of the future
        future = np.arange(context, self.segment_frames)
        chosen = np.sort(random.choice(future, min(config.tokenizer_future_frames, len(future)), replace=False))
        frames = as_floats(segments.frames[:, [*range(context), *chosen]]).to(self.run.device)

        # loss and update
        tokenizer.train()
        true = frames[:, :context], frames[:, context:]
        with self.run.autocast():
            reconstruction = tokenizer(frames)
            losses = self._tokenizer_loss.generator(reconstruction, *true, step=0, last_layer=last_layer_of(tokenizer))
        losses.total.backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), config.max_grad_norm)
        self._tokenizer_optimizer.step()
        self._tokenizer_optimizer.zero_grad(set_to_none=True)
        return {"loss": losses.total.detach(), **losses.figures()}

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizers; nothing where there is no model yet."""
        if self._model is None:
            return {}
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._tokenizer_optimizer is not None:
            state["tokenizer_optimizer"] = self._tokenizer_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        if self._model is None or not state:
            return
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._tokenizer_optimizer is not None:
            self._tokenizer_optimizer.load_state_dict(state["tokenizer_optimizer"])
        self._model.eval()


def _codebooks(model: WorldModel) -> list[Tensor]:
    tokenizer = model.tokenizer
    quantizers = [tokenizer.quantize, *([tokenizer.dynamics_quantize] if tokenizer.config.conditional else [])]
    return [weight for quantizer in quantizers for weight in quantizer.parameters()]
