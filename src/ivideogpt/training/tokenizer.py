"""Trains a compressive tokenizer.

Phases: first no codes at all (the networks learn to draw), then k-means places the codes and they follow the running
mean of what they stand for. The official way has one phase, and gradients move the codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from tqdm import tqdm

from ivideogpt.core.config import check_at_least
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.episode import Clip
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import Schedule, ScheduleName, adamw, check_descent, named_schedule
from ivideogpt.core.run import Run
from ivideogpt.metrics.perceptual import load_perceptual
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.accumulator import add_discriminator_gradients, add_gradients, descend
from ivideogpt.training.codebook_ema import Codebooks
from ivideogpt.training.codebook_usage import CodebookUsage, freeze_codebooks
from ivideogpt.training.color_weights import RareColours
from ivideogpt.training.distributed_forward import check_parts, forward_pass
from ivideogpt.training.tokenizer_loss import TokenizerLoss, TokenizerLossConfig, last_layer_of
from ivideogpt.training.weight_average import ExponentialAverage


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Training settings of a tokenizer.

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
        discriminator_learning_rate: peak, after a warm-up; None: the tokenizer's.
        discriminator_schedule: see ``schedule``; None: the tokenizer's. It counts the discriminator's own updates,
            which warm up again.
        average_decay: of running averages of all weights, which are then what is measured and saved; 0: none.
        gradient_accumulation: parts of a batch that are computed one after the other, for less memory; each part
            weighs the same, and has an adaptive weight of its own where there is a discriminator.
        compile: the tokenizer by ``torch.compile``; only without a discriminator.
        log_every, save_every: in updates.
        seed: of weights, data order and restarts.

    Source: official flags of train_tokenizer.py. ``discriminator_schedule`` is the same there: a scheduler of its own
    that begins with the discriminator.
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
    discriminator_learning_rate: float | None = None
    discriminator_schedule: ScheduleName | None = None
    average_decay: float = 0.0
    gradient_accumulation: int = 1
    compile: bool = False
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_descent(self)
        check_at_least(self, steps=1, batch_size=1, future_frames=1, horizon=1)
        check_at_least(self, continuous_steps=0, codebook_decay=0, average_decay=0, rare_colour_weight=1, seed=0)
        check_at_least(self, gradient_accumulation=1)
        for name in ("codebook_decay", "average_decay"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most 1")
        if self.discriminator_learning_rate is not None:
            check_at_least(self, discriminator_learning_rate=0)


#: Frames whose colours are counted, and batches whose vectors the codes are placed on.
SAMPLE, START_BATCHES = 1001, 20

Evaluate = Callable[[CompressiveTokenizer, int], dict[str, float]]


class Clips(Protocol):
    """Endless batches of clips that know where they stand.

    Attributes:
        step: batches given so far.
        clip_frames: frames of a clip.
    """

    step: int

    @property
    def clip_frames(self) -> int: ...  # noqa: D102

    def __iter__(self) -> Iterator[Clip]:
        """Iterate from the next batch on."""
        ...

    def clips(self, numbers: range) -> Clip:
        """Any clips by their numbers."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the batches."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


def train_tokenizer(
    config: TokenizerTraining,
    loader: Clips,
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
        UserError: settings that exclude each other; a batch that cannot be divided; PyTorch cannot compile here; a loss
            that is not finite.
    """
    _check(config, run.ranks)
    tokenizer = initial or CompressiveTokenizer(config.tokenizer)
    tokenizer.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = loader.clips(range(-(-SAMPLE // loader.clip_frames))).frames.flatten(0, 1)
    if config.tokenizer.background and initial is None:
        tokenizer.background.copy_(sample.median(dim=0).values)  # the usual picture
    objective = _objective(config, sample, run.ranks).to(run.device)
    codebooks = _codebooks(config, tokenizer, run)
    optimizer, critic = _optimizers(config, tokenizer, objective.network)
    schedule, critic_schedule = _schedules(config)
    usage = CodebookUsage(config.tokenizer.context_codes, config.tokenizer.dynamics_codes).to(run.device)
    average = ExponentialAverage(tokenizer, config.average_decay) if config.average_decay else None
    state = {"tokenizer": tokenizer, "optimizer": optimizer, "batches": loader, "usage": usage}
    state |= {"codebooks": codebooks} if codebooks else {}
    state |= {"average": average} if average else {}
    state |= {"discriminator": objective.network, "discriminator_optimizer": critic} if critic else {}
    done, last = run.resume(**state), min(config.steps if until is None else until, config.steps)
    forward = forward_pass(tokenizer, run, compile=config.compile)
    tokenizer.train()
    stream, count, parts = iter(loader), config.tokenizer.context_frames, config.gradient_accumulation
    shown, layer = average.model if average else tokenizer, last_layer_of(tokenizer)
    for step in run.updates("tokenizer", done, last, clips=config.batch_size):
        if codebooks and step == config.continuous_steps and step:
            codebooks.start(tokenizer, _coming(loader, config.batch_size, run.device), run.generator)
        frames, quantized = next(stream).frames.to(run.device), step >= config.continuous_steps
        optimizer.zero_grad(set_to_none=True)
        figures, found = add_gradients(
            forward, objective, run, frames, count, layer, step=step, quantized=quantized, parts=parts
        )
        figures["learning_rate"] = descend(optimizer, tokenizer, schedule(step), config.clip_norm)
        if critic and objective.network is not None and objective.is_adversarial(step):
            critic.zero_grad(set_to_none=True)
            figures |= add_discriminator_gradients(objective, run, found, frames, parts=parts)
            rate = critic_schedule(step - config.loss.discriminator_start)
            rate = descend(critic, objective.network, rate, config.clip_norm, run.ranks)
            figures["discriminator_learning_rate"] = rate
        if codebooks and quantized:
            figures["restarted"] = codebooks.update(tokenizer, found, run.generator)
        usage.add(found.context_codes, "context")
        usage.add(found.dynamics_codes, "dynamics")
        if average:
            average.update(tokenizer)
        figures["psnr"] = -10 * torch.log10(F.mse_loss(found.future.float(), frames[:, count:]))
        saves = run.is_save_step(step + 1, last=last)
        if saves:
            figures |= usage.figures()
            usage.reset()
            if evaluate is not None and run.ranks.is_first:
                figures |= evaluate(shown.eval(), step + 1)
                tokenizer.train()
        run.log(step + 1, **figures)
        if saves:
            run.save(step + 1, also=lambda folder: shown.save_pretrained(folder / "tokenizer"), **state)
    return shown.eval()


def _check(config: TokenizerTraining, ranks: Ranks) -> None:
    check_parts(config.gradient_accumulation, config.batch_size, ranks.ranks)
    if config.compile and config.loss.discriminator_weight:
        # Compiled, the backward pass is one piece: a gradient of the last layer alone cannot be had first.
        raise UserError(
            "compile is true, but the discriminator's weight needs gradients of one layer alone; set compile to false, "
            "or loss.discriminator_weight to 0"
        )
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


def _objective(config: TokenizerTraining, sample: Tensor, ranks: Ranks) -> TokenizerLoss:
    weighed = config.loss
    perceptual = load_perceptual(network=config.perceptual) if weighed.perceptual_weight else None
    if perceptual is not None and ranks.is_first:
        tqdm.write(f"perceptual distance: {perceptual.name}", file=sys.stderr)
    discriminator = Discriminator(config.discriminator) if weighed.discriminator_weight else None
    rare = RareColours(sample, config.rare_colour_weight) if config.rare_colour_weight > 1 else None
    return TokenizerLoss(weighed, perceptual, discriminator, rare, conditional=config.tokenizer.conditional)


def _codebooks(config: TokenizerTraining, tokenizer: CompressiveTokenizer, run: Run) -> Codebooks | None:
    if config.codes == "frozen":
        freeze_codebooks(tokenizer)
    return Codebooks(tokenizer, config.codebook_decay, run.ranks).to(run.device) if config.codes == "averages" else None


def _coming(loader: Clips, size: int, device: torch.device) -> list[Tensor]:
    """Frames of the next batches, those of all ranks."""
    first = loader.step * size
    numbers = [range(first + k * size, first + (k + 1) * size) for k in range(START_BATCHES)]
    return [loader.clips(batch).frames.to(device) for batch in numbers]


def _optimizers(
    config: TokenizerTraining, tokenizer: CompressiveTokenizer, discriminator: nn.Module | None
) -> tuple[AdamW, AdamW | None]:
    rest = {"betas": config.betas, "weight_decay": config.weight_decay}
    optimizer = adamw(tokenizer, learning_rate=config.learning_rate, **rest)
    if discriminator is None:
        return optimizer, None
    return optimizer, adamw(discriminator, learning_rate=_discriminator_peak(config), **rest)


def _schedules(config: TokenizerTraining) -> tuple[Schedule, Schedule]:
    """Learning rates of the tokenizer and, by its own updates, of the discriminator."""
    name, steps = config.discriminator_schedule or config.schedule, config.steps - config.loss.discriminator_start
    return (
        named_schedule(config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps),
        named_schedule(name, _discriminator_peak(config), steps=steps, warmup_steps=config.warmup_steps),
    )


def _discriminator_peak(config: TokenizerTraining) -> float:
    peak = config.discriminator_learning_rate
    return config.learning_rate if peak is None else peak
