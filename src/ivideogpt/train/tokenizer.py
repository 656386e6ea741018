"""Trains a compressive tokenizer.

Phases: first no codes at all (the networks learn to draw), then k-means places the codes and they follow the running
mean of what they stand for. The official way has one phase, and gradients move the codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, named_schedule, set_learning_rate
from ivideogpt.core.ranks import Ranks
from ivideogpt.core.run import Run
from ivideogpt.data.sampler import ClipLoader
from ivideogpt.metrics.perceptual import load_perceptual
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig
from ivideogpt.models.quantizer import CodebookAverage, VectorQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.train.average import ExponentialAverage
from ivideogpt.train.forward import forward_pass
from ivideogpt.train.tokenizer_loss import TokenizerLoss, TokenizerLossConfig, last_layer_of
from ivideogpt.train.usage import CodebookUsage, freeze_codebooks


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """How a tokenizer is trained.

    Attributes:
        tokenizer: its shape.
        steps: updates.
        batch_size: clips an update, on all ranks together.
        future_frames: frames after the context in a clip, drawn from ``horizon`` frames.
        horizon: how far after the context they may lie, in frames one stride apart.
        learning_rate: peak, after a warm-up.
        schedule: "cosine" falls to 0 at the end, "constant" stays at the peak.
        warmup_steps: updates of the warm-up.
        betas: of AdamW, the discriminator's too.
        weight_decay: of matrices, the discriminator's too; embeddings, biases and norms have none.
        clip_norm: largest gradient norm; None: gradients are left as they are.
        continuous_steps: updates without codes at the start; 0: the codes are those that the tokenizer has.
        codes: "averages": codes follow the running mean of their vectors, and unused ones restart. "gradient": the
            optimizer moves them (the official way). "frozen": they stay as they are (the official fine-tuning).
        codebook_decay: of the running mean.
        loss: how its parts are weighed.
        rare_colour_weight: largest weight of a pixel, against 1 for the commonest colour; 1: all alike.
        perceptual: the network of the perceptual distance: real LPIPS where IVIDEOGPT_LPIPS names its weights, else
            ST-LPIPS; a line at the start says which.
        discriminator: its shape, where ``loss`` gives it a weight.
        average_decay: of running averages of all weights, which are then what is measured and saved; 0: none.
        compile: the tokenizer by ``torch.compile``; only without a discriminator.
        log_every, save_every: in updates.
        seed: of weights, data order and restarts.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    steps: int = 20_000
    batch_size: int = 16
    future_frames: int = 2
    horizon: int = 14
    learning_rate: float = 6e-4
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    continuous_steps: int = 1_000
    codes: Literal["averages", "gradient", "frozen"] = "averages"
    codebook_decay: float = 0.99
    loss: TokenizerLossConfig = field(
        default_factory=lambda: TokenizerLossConfig(
            l2_weight=4.0, perceptual_weight=0.0, commitment_weight=0.25, discriminator_weight=0.0, balanced=True
        )
    )
    rare_colour_weight: float = 25.0
    perceptual: Literal["vgg", "alex"] = "vgg"
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    average_decay: float = 0.0
    compile: bool = False
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, steps=1, batch_size=1, future_frames=1, horizon=1, learning_rate=0, warmup_steps=0)
        check_at_least(self, continuous_steps=0, codebook_decay=0, average_decay=0, rare_colour_weight=1, seed=0)


#: Frames whose colours are counted, and batches whose vectors the codes are placed on.
SAMPLE, START_BATCHES = 1001, 20

Evaluate = Callable[[CompressiveTokenizer, int], dict[str, float]]


class RareColours(nn.Module):
    """Weights of pixels: those of rare colours count more.

    A small thing (a gripper, PushT's agent) is a few pixels of thousands: with equal weights it is never drawn.
    """

    LEVELS = 8
    weight: Tensor

    def __init__(self, frames: Tensor, most: float) -> None:
        """Counts the colours of ``frames`` ``[n c h w]`` in [0, 1]; ``most`` is the largest weight."""
        super().__init__()
        colours = self._colours(frames)
        share = torch.bincount(colours.flatten(), minlength=self.LEVELS**3) / colours.numel()
        self.register_buffer("weight", (share.max() / share.clamp(min=1e-9)).sqrt().clamp(max=most))

    def forward(self, true: Tensor) -> Tensor:
        """Weights ``[... 1 h w]`` of the pixels of frames ``[... c h w]`` in [0, 1]."""
        return self.weight[self._colours(true)].unsqueeze(-3)

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
        loader: of clips of the tokenizer's context and ``config.future_frames``, ``config.batch_size`` at once on all
            ranks together.
        run: its folder, device and precision; each checkpoint in it has a ``tokenizer/`` folder.
        initial: weights to start from, of the same shape (it is trained in place).
        evaluate: measures the model at each checkpoint, given the number of updates; its figures join the log.
        until: stops after this many updates without changing the schedule.

    Returns:
        The trained tokenizer in evaluation mode.

    Raises:
        UserError: settings that exclude each other; PyTorch cannot compile here; a loss that is not finite.
    """
    if config.compile and config.loss.discriminator_weight:
        # Compiled, the backward pass is one piece: a gradient of the last layer alone cannot be had first.
        raise UserError(
            "compile is true, but the discriminator's weight needs gradients of one layer alone; set compile to false, "
            "or loss.discriminator_weight to 0"
        )
    tokenizer = initial or CompressiveTokenizer(config.tokenizer)
    tokenizer.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = loader.clips(range(-(-SAMPLE // loader.mixture.spec.frames))).frames.flatten(0, 1)
    if config.tokenizer.background and initial is None:
        tokenizer.background.copy_(sample.median(dim=0).values)  # the usual picture
    objective = _objective(config, sample, run.ranks).to(run.device)
    codebooks = _codebooks(config, tokenizer, run)
    rates = {"learning_rate": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    optimizer, critic = adamw(tokenizer, **rates), None
    usage = CodebookUsage(config.tokenizer.context_codes, config.tokenizer.dynamics_codes).to(run.device)
    average = ExponentialAverage(tokenizer, config.average_decay) if config.average_decay else None
    parts = {"tokenizer": tokenizer, "optimizer": optimizer, "batches": loader, "usage": usage}
    parts |= {"codebooks": codebooks} if codebooks else {}
    parts |= {"average": average} if average else {}
    if objective.network is not None:
        critic = adamw(objective.network, **rates)
        parts |= {"discriminator": objective.network, "discriminator_optimizer": critic}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    schedule = named_schedule(
        config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps
    )
    forward = forward_pass(tokenizer, run, compile=config.compile)
    tokenizer.train()
    stream, count = iter(loader), config.tokenizer.context_frames
    shown = average.model if average else tokenizer
    for step in run.updates("tokenizer", done, last, clips=config.batch_size):
        if codebooks and step == config.continuous_steps and step:
            first, size = loader.step * config.batch_size, config.batch_size
            coming = [range(first + k * size, first + (k + 1) * size) for k in range(START_BATCHES)]
            batches = [loader.clips(numbers).frames.to(run.device) for numbers in coming]
            codebooks.start(tokenizer, batches, run.generator)
        frames = next(stream).frames.to(run.device)
        context, future = frames[:, :count], frames[:, count:]
        quantized, rate = step >= config.continuous_steps, schedule(step)
        set_learning_rate(optimizer, rate)
        with run.autocast():
            found = forward(frames, quantized=quantized)
            layer = last_layer_of(tokenizer)
            losses = objective.generator(found, context, future, step=step, last_layer=layer, quantized=quantized)
        _update(optimizer, losses.total, tokenizer, config.clip_norm)
        figures = {"loss": losses.total, "learning_rate": rate, **losses.figures()}
        if critic is not None and objective.network is not None and objective.is_adversarial(step):
            set_learning_rate(critic, rate)
            with run.autocast():
                judged = objective.discriminator(torch.cat([found.context, found.future], dim=1), frames)
            _update(critic, judged.loss, objective.network, config.clip_norm, run.ranks)
            figures |= {f"discriminator_{name}": value for name, value in judged._asdict().items()}
        if codebooks and quantized:
            figures["restarted"] = codebooks.update(tokenizer, found, run.generator)
        usage.add(found.context_codes, "context")
        usage.add(found.dynamics_codes, "dynamics")
        if average:
            average.update(tokenizer)
        figures["psnr"] = -10 * torch.log10(F.mse_loss(found.future.detach().float(), future))
        if run.is_save_step(step + 1, last=last):
            figures |= usage.figures()
            usage.reset()
            if evaluate is not None and run.ranks.is_first:
                figures |= evaluate(shown.eval(), step + 1)
                tokenizer.train()
            run.log(step + 1, **figures)
            run.save(step + 1, also=lambda folder: shown.save_pretrained(folder / "tokenizer"), **parts)
        else:
            run.log(step + 1, **figures)
    return shown.eval()


def _objective(config: TokenizerTraining, sample: Tensor, ranks: Ranks) -> TokenizerLoss:
    weighed = config.loss
    perceptual = load_perceptual(network=config.perceptual) if weighed.perceptual_weight else None
    if perceptual is not None and ranks.is_first:
        tqdm.write(f"perceptual distance: {perceptual.name}", file=sys.stderr)
    discriminator = Discriminator(config.discriminator) if weighed.discriminator_weight else None
    rare = RareColours(sample, config.rare_colour_weight) if config.rare_colour_weight > 1 else None
    return TokenizerLoss(weighed, perceptual, discriminator, rare)


def _codebooks(config: TokenizerTraining, tokenizer: CompressiveTokenizer, run: Run) -> Codebooks | None:
    if config.codes != "averages" and config.continuous_steps:
        raise UserError(
            f"codes is {config.codes!r} and continuous_steps is {config.continuous_steps}; set continuous_steps to 0: "
            "only codes that follow averages are placed later"
        )
    if config.continuous_steps >= config.steps:
        raise UserError(
            f"continuous_steps is {config.continuous_steps} of {config.steps} steps; no code would ever be placed: "
            "give fewer, or more steps"
        )
    if config.codes == "frozen":
        freeze_codebooks(tokenizer)
    return Codebooks(tokenizer, config.codebook_decay, run.ranks).to(run.device) if config.codes == "averages" else None


def _update(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    module: nn.Module,
    clip_norm: float | None,
    ranks: Ranks | None = None,
) -> None:
    """One step down; ``ranks``: where nothing else averages the gradients over them."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for parameter in module.parameters() if ranks else ():
        if parameter.grad is not None:
            parameter.grad.copy_(ranks.mean(parameter.grad))  # type: ignore[union-attr]
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()


class Codebooks(nn.Module):
    """The running means of all codebooks of a tokenizer."""

    def __init__(self, tokenizer: CompressiveTokenizer, decay: float, ranks: Ranks) -> None:
        """Takes the codebooks out of the optimizer's hands."""
        super().__init__()
        self.ranks = ranks
        self.conditional = tokenizer.config.conditional
        for quantizer in self._quantizers(tokenizer):
            quantizer.embedding.weight.requires_grad_(False)
        self.averages = nn.ModuleList(CodebookAverage(q, decay, total=ranks.sum) for q in self._quantizers(tokenizer))

    @torch.no_grad()
    def start(self, tokenizer: CompressiveTokenizer, batches: list[Tensor], generator: torch.Generator) -> None:
        """Places all codes by k-means on the vectors of some ``batches`` of frames ``[b t c h w]``."""
        found = [self._vectors(tokenizer(frames, quantized=False)) for frames in batches]
        for index, quantizer in enumerate(self._quantizers(tokenizer)):
            vectors = torch.cat([vectors[index][0].flatten(0, -2) for vectors in found])
            self._codebooks[index].start(quantizer, vectors, generator)
        self._agree(tokenizer)

    def update(self, tokenizer: CompressiveTokenizer, found: Reconstruction, generator: torch.Generator) -> int:
        """Follows the vectors of one batch; returns how many codes restarted."""
        pairs = zip(self._codebooks, self._quantizers(tokenizer), self._vectors(found), strict=True)
        restarted = sum(average.update(q, vectors, codes, generator) for average, q, (vectors, codes) in pairs)
        if restarted:
            self._agree(tokenizer)
        return restarted

    def _agree(self, tokenizer: CompressiveTokenizer) -> None:
        """Codes that were placed at random are those of the first rank."""
        for average, quantizer in zip(self._codebooks, self._quantizers(tokenizer), strict=True):
            self.ranks.copy_from_first([quantizer.embedding.weight, average.counts, average.sums])

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
