"""Our training steps as the loops of ``ivideogpt.training`` make them, and the models and clips of `train_step.py`.

Made of the same parts as the loops, without what they do between updates: schedule, checkpoints, measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ivideogpt.configs.official import oxe_64_act_free
from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.episode import Clip
from ivideogpt.core.optim import adamw
from ivideogpt.core.run import Precision, Run
from ivideogpt.metrics.perceptual import PerceptualDistance
from ivideogpt.models.discriminator import DiscriminatorConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.distributed_forward import forward_pass
from ivideogpt.training.token_batches import LiveTokens, TokenBatch
from ivideogpt.training.tokenizer import TokenizerTrainer, TokenizerTraining
from ivideogpt.training.tokenizer_loss import TokenizerLoss, last_layer_of
from ivideogpt.training.transformer import TransformerTraining, accumulate_gradients
from ivideogpt.worldmodel.world_model import WorldModel


def tiny_recipe() -> Recipe:
    """The published networks made small: an update takes less than a second."""
    recipe = oxe_64_act_free()
    tokenizer = TokenizerConfig(
        resolution=32,
        block_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_groups=16,
        context_codes=64,
        dynamics_codes=64,
    )
    transformer = replace(recipe.model.transformer, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
    discriminator = DiscriminatorConfig(hidden=32)
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, tokenizer=tokenizer, future_frames=2, discriminator=discriminator),
        model=replace(recipe.model, transformer=transformer),
        transformer=replace(recipe.transformer, clip_frames=4),
    )


def new_perceptual() -> PerceptualDistance:
    """LPIPS over VGG16 with random weights: as fast as with its own."""
    distance = PerceptualDistance("vgg", shift_tolerant=False).requires_grad_(False)
    distance.get_buffer("shift").zero_()
    distance.get_buffer("scale").fill_(1.0)
    for head in distance.heads.parameters():
        head.abs_()
    return distance


class OneClip:
    """Stands in for a loader that gives the same batch again and again."""

    def __init__(self, clip: Clip, action_dim: int) -> None:
        spec = SimpleNamespace(context_frames=clip.context_frames)
        self.clip, self.mixture = clip, SimpleNamespace(spec=spec, action_width=action_dim)

    def __iter__(self) -> Iterator[Clip]:
        while True:
            yield self.clip


class OurTransformer:
    """Updates as ``train_transformer`` makes them."""

    def __init__(self, model: WorldModel, training: TransformerTraining, clip: Clip, device: str, folder: Path) -> None:
        self.model, self.training, self.device, self.folder = model.to(device), training, device, folder
        model.tokenizer.requires_grad_(False)
        self.learner = model.dynamics
        rates = {"learning_rate": training.learning_rate, "betas": training.betas}
        self.optimizer = adamw(self.learner, weight_decay=training.weight_decay, **rates)
        self.live = iter(LiveTokens(model, OneClip(clip, model.action_dim)))  # type: ignore[arg-type]
        self.first = next(self.live)
        self.codes = model.layout.split(self.first.ids.cpu(), model.context_frames)

    def loss(self) -> float:
        """The loss in float32, without dropout, of live tokens."""
        self.learner.eval()
        with torch.no_grad():
            return self.learner(*next(self.live)).tokens.item()

    def step(self, precision: Precision, *, kept_tokens: bool, compiled: bool) -> Callable[[], None]:
        """One update, on tokens made as they come or kept."""
        folder = self.folder / f"{precision}-{kept_tokens}-{compiled}"
        run = Run(folder, device=self.device, precision=precision, log_every=0)
        forward = forward_pass(self.learner, run, compile=compiled)

        def update() -> None:
            self.learner.train()
            batch = self._kept() if kept_tokens else next(self.live)
            self.optimizer.zero_grad(set_to_none=True)
            figures = accumulate_gradients(self.training, forward, run, batch, None)
            if self.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.learner.parameters(), self.training.clip_norm)
            self.optimizer.step()
            run.log(1, **figures)

        return update

    def _kept(self) -> TokenBatch:
        return self.first._replace(ids=self.model.layout.join(*self.codes).to(self.device))


class OurTokenizer:
    """Updates as ``train_tokenizer`` makes them with an official preset."""

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        objective: TokenizerLoss,
        training: TokenizerTraining,
        frames: Tensor,
        device: str,
        folder: Path,
    ) -> None:
        self.training, self.frames, self.device, self.folder = training, frames, device, folder
        self.tokenizer = tokenizer.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective.to(device)

    def loss(self) -> float:
        """The tokenizer's loss in float32, without dropout."""
        self.tokenizer.eval()
        self.objective.eval()
        frames, count = self.frames.to(self.device), self.tokenizer.config.context_frames
        true = frames[:, :count], frames[:, count:]
        layer = last_layer_of(self.tokenizer)
        return self.objective.generator(self.tokenizer(frames), *true, step=0, last_layer=layer).total.item()

    def step(self, precision: Precision, *, compiled: bool) -> Callable[[], None]:
        """One update of the tokenizer and, where there is one, of the discriminator."""
        run = Run(self.folder / f"{precision}-{compiled}", device=self.device, precision=precision, log_every=0)
        trainer = TokenizerTrainer(replace(self.training, compile=compiled), self.tokenizer, self.objective, run)

        def update() -> None:
            self.tokenizer.train()
            self.objective.train()
            frames = self.frames.to(self.device)
            metrics, reconstruction = trainer.generator_step(frames, 0)
            if self.objective.network is not None:
                metrics |= trainer.discriminator_step(frames, reconstruction, 0)
            run.log(1, **metrics)

        return update
