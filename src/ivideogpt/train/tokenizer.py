"""Trains a compressive tokenizer.

Phases: first no codes at all (the networks learn to draw), then k-means places the codes and they follow the running
mean of what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ivideogpt.core.clock import Until
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.data.sampler import ClipLoader
from ivideogpt.models.quantizer import CodebookAverage, VectorQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.models.tokenizer_config import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """How a tokenizer is trained.

    Attributes:
        tokenizer: its shape.
        steps: updates.
        batch_size: clips an update.
        future_frames: frames after the context in a clip, drawn from ``horizon`` frames.
        horizon: how far after the context they may lie, in frames one stride apart.
        learning_rate: peak; warms up, then falls along a cosine to 0.
        warmup_steps: updates of the warm-up.
        clip_norm: largest gradient norm.
        continuous_steps: updates without codes at the start; 0: the codes are those that the tokenizer has.
        l1_weight, l2_weight: of absolute and squared error.
        rare_colour_weight: largest weight of a pixel, against 1 for the commonest colour.
        commitment_weight: of the distance between vectors and their codes.
        codebook_decay: of the running mean that codes follow.
        log_every, save_every: in updates.
        seed: of weights, data order and restarts.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    steps: int = 20_000
    batch_size: int = 16
    future_frames: int = 2
    horizon: int = 14
    learning_rate: float = 6e-4
    warmup_steps: int = 200
    clip_norm: float = 1.0
    continuous_steps: int = 1_000
    l1_weight: float = 1.0
    l2_weight: float = 4.0
    rare_colour_weight: float = 25.0
    commitment_weight: float = 0.5
    codebook_decay: float = 0.99
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0


#: Frames whose colours are counted, and batches whose vectors the codes are placed on.
SAMPLE, START_BATCHES = 1001, 20

Evaluate = Callable[[CompressiveTokenizer, int], dict[str, float]]


class PixelLoss(nn.Module):
    """Absolute and squared error, in which pixels of rare colours count more.

    A small thing (a gripper, PushT's agent) is a few pixels of thousands: with equal weights it is never drawn.
    """

    LEVELS = 8
    weight: Tensor

    def __init__(self, config: TokenizerTraining, frames: Tensor) -> None:
        """Counts the colours of ``frames`` ``[n c h w]`` in [0, 1]."""
        super().__init__()
        self.config = config
        colours = self._colours(frames)
        share = torch.bincount(colours.flatten(), minlength=self.LEVELS**3) / colours.numel()
        weight = (share.max() / share.clamp(min=1e-9)).sqrt().clamp(max=config.rare_colour_weight)
        self.register_buffer("weight", weight)

    def forward(self, found: Tensor, true: Tensor) -> Tensor:
        """Scalar loss of ``[b t c h w]`` frames in [0, 1]."""
        weight = self.weight[self._colours(true)][:, :, None]
        error = found - true
        return (weight * (self.config.l1_weight * error.abs() + self.config.l2_weight * error.square())).mean()

    def _colours(self, frames: Tensor) -> Tensor:
        red, green, blue = (frames * (self.LEVELS - 1e-3)).long().unbind(dim=-3)
        return (red * self.LEVELS + green) * self.LEVELS + blue


def train_tokenizer(
    config: TokenizerTraining,
    loader: ClipLoader,
    run: Run,
    *,
    initial: CompressiveTokenizer | None = None,
    evaluate: Evaluate | None = None,
    until: int | None = None,
) -> CompressiveTokenizer:
    """Trains, or goes on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        loader: of clips of the tokenizer's context and ``config.future_frames``, ``config.batch_size`` at once.
        run: its folder, device and precision; each checkpoint in it has a ``tokenizer/`` folder.
        initial: weights to start from, of the same shape (it is trained in place).
        evaluate: measures the model at each checkpoint, given the number of updates; its figures join the log.
        until: stops after this many updates without changing the schedule.

    Returns:
        The trained tokenizer in evaluation mode.
    """
    tokenizer = initial or CompressiveTokenizer(config.tokenizer)
    tokenizer.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = loader.clips(range(-(-SAMPLE // loader.mixture.spec.frames))).frames.flatten(0, 1)
    if config.tokenizer.background:
        tokenizer.background.copy_(sample.median(dim=0).values)  # the usual picture
    pixel_loss = PixelLoss(config, sample).to(run.device)
    averages = Codebooks(tokenizer, config.codebook_decay).to(run.device)
    optimizer = adamw(tokenizer, learning_rate=config.learning_rate, betas=(0.9, 0.99))
    schedule = cosine(config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps)
    parts = {"tokenizer": tokenizer, "averages": averages, "optimizer": optimizer, "batches": loader}
    step, last = run.resume(**parts), min(until or config.steps, config.steps)
    tokenizer.train()
    stream = iter(loader)
    with tqdm(total=last, initial=step, desc="tokenizer", unit="step") as bar:
        while Until(last)(step):
            if step == config.continuous_steps and step:
                coming = [loader.clips(loader.numbers(loader.step + ahead)).frames for ahead in range(START_BATCHES)]
                averages.start(tokenizer, [frames.to(run.device) for frames in coming], run.generator)
            frames = next(stream).frames.to(run.device)
            quantized = step >= config.continuous_steps
            set_learning_rate(optimizer, schedule(step))
            with run.autocast():
                found = tokenizer(frames, quantized=quantized)
            pixels = pixel_loss(torch.cat([found.context, found.future], dim=1).float(), frames)
            commitment = (found.context_loss + found.dynamics_loss).float() / 2
            loss = pixels + config.commitment_weight * commitment * quantized
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(tokenizer.parameters(), config.clip_norm)
            optimizer.step()
            restarted = averages.update(tokenizer, found, run.generator) if quantized else 0
            step += 1
            bar.update()
            figures = {"loss": loss, "pixels": pixels, "commitment": commitment, "restarted": restarted}
            error = F.mse_loss(found.future.detach().float(), frames[:, -config.future_frames :])
            figures["psnr"] = -10 * torch.log10(error)
            figures["codes_used"] = found.dynamics_codes.unique().numel()
            if run.is_save_step(step, last=last):
                if evaluate is not None:
                    figures |= evaluate(tokenizer.eval(), step)
                    tokenizer.train()
                run.log(step, **figures)
                run.save(step, also=lambda folder: tokenizer.save_pretrained(folder / "tokenizer"), **parts)
            else:
                run.log(step, **figures)
    return tokenizer.eval()


class Codebooks(nn.Module):
    """The running means of all codebooks of a tokenizer."""

    def __init__(self, tokenizer: CompressiveTokenizer, decay: float) -> None:
        """Takes the codebooks out of the optimizer's hands."""
        super().__init__()
        self.conditional = tokenizer.config.conditional
        for quantizer in self._quantizers(tokenizer):
            quantizer.embedding.weight.requires_grad_(False)
        self.averages = nn.ModuleList(CodebookAverage(q, decay) for q in self._quantizers(tokenizer))

    @torch.no_grad()
    def start(self, tokenizer: CompressiveTokenizer, batches: list[Tensor], generator: torch.Generator) -> None:
        """Places all codes by k-means on the vectors of some ``batches`` of frames ``[b t c h w]``."""
        found = [self._vectors(tokenizer(frames, quantized=False)) for frames in batches]
        for index, quantizer in enumerate(self._quantizers(tokenizer)):
            vectors = torch.cat([vectors[index][0].flatten(0, -2) for vectors in found])
            self._codebooks[index].start(quantizer, vectors, generator)

    def update(self, tokenizer: CompressiveTokenizer, found: Reconstruction, generator: torch.Generator) -> int:
        """Follows the vectors of one batch; returns how many codes restarted."""
        pairs = zip(self._codebooks, self._quantizers(tokenizer), self._vectors(found), strict=True)
        return sum(average.update(q, vectors, codes, generator) for average, q, (vectors, codes) in pairs)

    @property
    def _codebooks(self) -> list[CodebookAverage]:
        return [average for average in self.averages if isinstance(average, CodebookAverage)]

    def _quantizers(self, tokenizer: CompressiveTokenizer) -> list[VectorQuantizer]:
        return [tokenizer.quantize, tokenizer.dynamics_quantize] if self.conditional else [tokenizer.quantize]

    def _vectors(self, found: Reconstruction) -> list[tuple[Tensor, Tensor]]:
        context = (found.context_vectors, found.context_codes)
        dynamics = (found.dynamics_vectors, found.dynamics_codes)
        if self.conditional:
            return [context, dynamics]
        return [tuple(torch.cat(pair, dim=1) for pair in zip(context, dynamics, strict=True))]  # type: ignore[misc]
