"""Training of a compressive tokenizer.

A training has two phases. In the first one there are no codes: the networks learn to draw. Then k-means places the
codes, and they follow the running mean of the vectors that they stand for. The official training has one phase, and
gradients move the codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm import tqdm

from ivideogpt.core.config import check_at_least
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.episode import Clip
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, check_descent, clip_gradients, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.core.training_state import Stateful
from ivideogpt.metrics.perceptual import load_perceptual
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.codebooks import CodebookAverages, CodebookUsage, freeze_codebooks
from ivideogpt.training.distributed_forward import (
    check_parts,
    fill_copy,
    forward_pass,
    gradients_meet,
    in_parts,
    whole_copy,
)
from ivideogpt.training.tokenizer_loss import RareColours, TokenizerLoss, TokenizerLossConfig, last_layer_of
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
        """Check the numbers.

        Raises:
            UserError: a number is out of range; the message names it.
        """
        check_descent(self)
        check_at_least(self, steps=1, batch_size=1, future_frames=1, horizon=1)
        check_at_least(self, continuous_steps=0, codebook_decay=0, average_decay=0, rare_colour_weight=1, seed=0)
        check_at_least(self, gradient_accumulation=1)
        for name in ("codebook_decay", "average_decay"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most 1")
        if self.discriminator_learning_rate is not None:
            check_at_least(self, discriminator_learning_rate=0)


#: Frames whose colours are counted.
SAMPLE = 1001
#: Batches whose vectors the codes are placed on.
START_BATCHES = 20

Evaluate = Callable[[CompressiveTokenizer, int], dict[str, float]]


class ClipBatches(Protocol):
    """Endless batches of clips with a position.

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
        """Return any clips by their numbers."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the batches."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from that position."""
        ...


class TokenizerTrainer:
    """A tokenizer and its discriminator with the losses and optimizers that update them.

        metrics, reconstruction = trainer.generator_step(frames, step)
        if trainer.loss.is_adversarial(step):
            metrics |= trainer.discriminator_step(frames, reconstruction, step)

    A batch may be computed in equal parts. Losses and gradients are then those of the whole batch, up to rounding, with
    two exceptions: with a discriminator each part has its own adaptive weight and refines the spectral norms, and with
    ``still_weight`` each part has its own share of unchanged patches.

    Attributes:
        tokenizer: the network that is trained.
        loss: the losses; ``loss.network`` is the discriminator, or None.
        codebooks: running means that the codes follow, or None.
        average: running average of the tokenizer's weights, or None.
        usage: counts of the codes since the last checkpoint.
    """

    def __init__(
        self, config: TokenizerTraining, tokenizer: CompressiveTokenizer, loss: TokenizerLoss, run: Run
    ) -> None:
        """Make the optimizers.

        Args:
            config: the settings.
            tokenizer: on the device of the run; trained in place.
            loss: the losses, with a discriminator where it is trained too.
            run: its device, precision and processes.
        """
        self.config, self.tokenizer, self.loss, self.run = config, tokenizer, loss.to(run.device), run
        self._last_layer = last_layer_of(tokenizer)

        # codes
        self.codebooks: CodebookAverages | None = None
        if config.codes == "averages":
            self.codebooks = CodebookAverages(tokenizer, config.codebook_decay, run.ranks).to(run.device)
        elif config.codes == "frozen":
            freeze_codebooks(tokenizer)
        self.usage = CodebookUsage(config.tokenizer.context_codes, config.tokenizer.dynamics_codes).to(run.device)

        # the forward pass, on all processes; the gradients of the last layer are compared before they are averaged
        self._whole = [self._last_layer] if run.ranks.divides_weights else []
        self._forward = forward_pass(tokenizer, run, compile=config.compile, whole=self._whole)

        # optimizers; the discriminator's schedule counts its own updates
        rate, options = config.learning_rate, {"betas": config.betas, "weight_decay": config.weight_decay}
        self._optimizer = adamw(tokenizer, learning_rate=rate, **options)
        self._schedule = named_schedule(config.schedule, rate, steps=config.steps, warmup_steps=config.warmup_steps)
        self._discriminator_optimizer: Optimizer | None = None
        if loss.network is not None:
            rate = rate if config.discriminator_learning_rate is None else config.discriminator_learning_rate
            self._discriminator_optimizer = adamw(loss.network, learning_rate=rate, **options)
            self._discriminator_schedule = named_schedule(
                config.discriminator_schedule or config.schedule,
                rate,
                steps=config.steps - config.loss.discriminator_start,
                warmup_steps=config.warmup_steps,
            )
        self.average = ExponentialAverage(tokenizer, config.average_decay) if config.average_decay > 0 else None

    def parts(self) -> dict[str, Stateful]:
        """Return what a checkpoint holds, by name."""
        parts = {
            "tokenizer": self.tokenizer,
            "optimizer": self._optimizer,
            "usage": self.usage,
            "codebooks": self.codebooks,
            "average": self.average,
            "discriminator": self.loss.network,
            "discriminator_optimizer": self._discriminator_optimizer,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def generator_step(self, frames: Tensor, step: int) -> tuple[dict[str, float | Tensor], Reconstruction]:
        """Update the tokenizer once.

        Args:
            frames: ``[b t c h w]`` in [0, 1], the rows of this process.
            step: updates already made.

        Returns:
            The losses by name, the means over the parts of the batch, and the reconstruction of the whole batch without
            gradients.
        """
        config, context = self.config, self.config.tokenizer.context_frames
        quantized = step >= config.continuous_steps

        # gradients of the losses
        self._optimizer.zero_grad(set_to_none=True)
        metrics: list[dict[str, Tensor]] = []
        reconstructions: list[Reconstruction] = []
        for number, (part,) in enumerate(in_parts((frames,), config.gradient_accumulation), 1):
            with gradients_meet(self._forward, now=number == config.gradient_accumulation):
                with self.run.autocast():
                    made: Reconstruction = self._forward(part, quantized=quantized)
                    losses = self.loss.generator(
                        made,
                        part[:, :context],
                        part[:, context:],
                        step=step,
                        last_layer=self._last_layer,
                        quantized=quantized,
                    )
                (losses.total / config.gradient_accumulation).backward()
            metrics.append({"loss": losses.total.detach(), **losses.figures()})
            reconstructions.append(Reconstruction(**{name: value.detach() for name, value in vars(made).items()}))

        # update
        self.run.ranks.average_gradients(self._whole)
        rate = self._schedule(step)
        self._descend(self._optimizer, self.tokenizer, rate)
        return {**_means(metrics), "learning_rate": rate}, _joined(reconstructions)

    def discriminator_step(
        self, frames: Tensor, reconstruction: Reconstruction, step: int
    ) -> dict[str, float | Tensor]:
        """Update the discriminator once.

        Args:
            frames: ``[b t c h w]`` in [0, 1], the rows of this process.
            reconstruction: of these frames, as `generator_step` returns it.
            step: updates of the tokenizer already made.

        Returns:
            ``discriminator_loss`` and the mean logits, the means over the parts of the batch.
        """
        discriminator, optimizer = self.loss.network, self._discriminator_optimizer
        assert discriminator is not None and optimizer is not None
        config = self.config

        # gradients of the losses
        optimizer.zero_grad(set_to_none=True)
        metrics: list[dict[str, Tensor]] = []
        drawn = torch.cat([reconstruction.context, reconstruction.future], dim=1)
        for fake, real in in_parts((drawn, frames), config.gradient_accumulation):
            with self.run.autocast():
                losses = self.loss.discriminator(fake, real)
            (losses.loss / config.gradient_accumulation).backward()
            metrics.append({f"discriminator_{name}": value.detach() for name, value in losses._asdict().items()})

        # update; nothing else averages these gradients over the processes
        self.run.ranks.average_gradients(discriminator.parameters())
        rate = self._discriminator_schedule(step - config.loss.discriminator_start)
        self._descend(optimizer, discriminator, rate)
        return {**_means(metrics), "discriminator_learning_rate": rate}

    def _descend(self, optimizer: Optimizer, module: nn.Module, rate: float) -> None:
        """Make one step down the gradients, clipped."""
        set_learning_rate(optimizer, rate)
        if self.config.clip_norm is not None:
            clip_gradients(module, self.config.clip_norm)
        optimizer.step()


def train_tokenizer(
    config: TokenizerTraining,
    loader: ClipBatches,
    run: Run,
    *,
    initial: CompressiveTokenizer | None = None,
    evaluate: Evaluate | None = None,
    until: int | None = None,
) -> CompressiveTokenizer:
    """Train a tokenizer, or continue where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        loader: clips of the tokenizer's context and ``config.future_frames``, ``config.batch_size`` at once on all
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
    # networks
    _check(config, run.ranks)
    tokenizer = CompressiveTokenizer(config.tokenizer) if initial is None else initial
    tokenizer.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = loader.clips(range(-(-SAMPLE // loader.clip_frames))).frames.flatten(0, 1)
    if config.tokenizer.background and initial is None:
        tokenizer.background.copy_(sample.median(dim=0).values)  # the usual picture
    whole = whole_copy(tokenizer, run)
    trainer = TokenizerTrainer(config, tokenizer, new_loss(config, sample, run.ranks), run)
    codebooks, average, usage = trainer.codebooks, trainer.average, trainer.usage
    finished = tokenizer if average is None else average.model  # what is measured and saved
    finished = finished if whole is None else whole

    # training state
    parts = {**trainer.parts(), "batches": loader}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    tokenizer.train()
    batches, context = iter(loader), config.tokenizer.context_frames
    for step in run.updates("tokenizer", done, last, clips=config.batch_size):
        # codes, placed at the end of the first phase
        if codebooks is not None and 0 < step == config.continuous_steps:
            codebooks.start(tokenizer, _next_batches(loader, config.batch_size, run.device), run.generator)

        # networks
        frames = next(batches).frames.to(run.device)
        metrics, reconstruction = trainer.generator_step(frames, step)
        if trainer.loss.is_adversarial(step):
            metrics |= trainer.discriminator_step(frames, reconstruction, step)

        # codes and averages
        if codebooks is not None and step >= config.continuous_steps:
            metrics["restarted"] = codebooks.update(tokenizer, reconstruction, run.generator)
        usage.add(reconstruction.context_codes, "context")
        usage.add(reconstruction.dynamics_codes, "dynamics")
        if average is not None:
            average.update(tokenizer)

        # log and checkpoint
        metrics["psnr"] = -10 * torch.log10(F.mse_loss(reconstruction.future.float(), frames[:, context:]))
        save = run.is_save_step(step + 1, last=last)
        if save:
            metrics |= usage.figures()
            usage.reset()
            if run.ranks.divides_weights:
                fill_copy(whole, tokenizer)
            if evaluate is not None and run.ranks.is_first:
                metrics |= evaluate(finished.to(run.device).eval(), step + 1)
                tokenizer.train()
        run.log(step + 1, **metrics)
        if save:
            run.save(step + 1, also=lambda folder: finished.save_pretrained(folder / "tokenizer"), **parts)
    return finished.eval()


def _check(config: TokenizerTraining, ranks: Ranks) -> None:
    check_parts(config.gradient_accumulation, config.batch_size, ranks.ranks)
    if config.average_decay and ranks.divides_weights:
        raise UserError(
            f"average_decay is {config.average_decay} and parallel is fsdp; averages of weights need ddp: use it, or "
            "set average_decay to 0"
        )
    if config.compile and config.loss.discriminator_weight:
        # Compiled, the backward pass is one piece: a gradient of the last layer alone cannot be had first.
        raise UserError(
            "compile is true, but the discriminator's weight needs gradients of one layer alone; set compile to false, "
            "or loss.discriminator_weight to 0"
        )
    check_code_steps(config)


def check_code_steps(config: TokenizerTraining) -> None:
    """Check that the updates without codes end, and that codes are placed after them.

    Raises:
        UserError: they do not.
    """
    if config.tokenizer.levels and config.codes == "averages":
        raise UserError("codes is 'averages', but codes with levels are fixed; set codes to 'gradient'")
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


def new_loss(config: TokenizerTraining, sample: Tensor, ranks: Ranks) -> TokenizerLoss:
    """Make the losses of a training, with a new discriminator.

    Args:
        config: the settings.
        sample: frames ``[n c h w]`` in [0, 1] whose colours are counted.
        ranks: the processes; the first one prints the name of the perceptual distance.
    """
    perceptual = load_perceptual(network=config.perceptual) if config.loss.perceptual_weight > 0 else None
    if perceptual is not None and ranks.is_first:
        tqdm.write(f"perceptual distance: {perceptual.name}", file=sys.stderr)
    discriminator = Discriminator(config.discriminator) if config.loss.discriminator_weight > 0 else None
    rare = RareColours(sample, config.rare_colour_weight) if config.rare_colour_weight > 1 else None
    return TokenizerLoss(config.loss, perceptual, discriminator, rare, conditional=config.tokenizer.conditional)


def _next_batches(loader: ClipBatches, size: int, device: torch.device) -> list[Tensor]:
    """Return the frames of the next batches, those of all ranks."""
    first = loader.step * size
    numbers = [range(first + k * size, first + (k + 1) * size) for k in range(START_BATCHES)]
    return [loader.clips(batch).frames.to(device) for batch in numbers]


def _joined(parts: list[Reconstruction]) -> Reconstruction:
    """Return the rows of all parts; of scalars the mean."""
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        joined[name] = torch.cat(values) if values[0].ndim > 0 else torch.stack(values).mean()
    return Reconstruction(**joined)


def _means(metrics: list[dict[str, Tensor]]) -> dict[str, float | Tensor]:
    return {name: torch.stack([part[name] for part in metrics]).mean() for name in metrics[0]}
