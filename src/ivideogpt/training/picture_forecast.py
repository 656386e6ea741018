"""Trains the picture forecast and the projection onto clean pictures, on crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.picture_forecast import FrameProjection, PictureForecast
from ivideogpt.training.picture_crops import CropSampler, PictureCrops
from ivideogpt.training.weight_average import ExponentialAverage

#: A pixel that differs from the background by more than this shows something.
_SHOWN = 0.03


@dataclass(frozen=True, kw_only=True)
class PictureWeights:
    """Weights of the pixels in the loss.

    The weights are the same for what is there and what is drawn: were only the true picture's pixels heavy, a network
    in doubt would draw too much.

    Attributes:
        shown: added within ``reach`` of what differs from the background.
        marked: added within ``reach`` of the marked colour: a small thing that must never be lost.
        mark: a pixel has the marked colour where its channels times these numbers sum to more than ``mark_floor``;
            the default is blue.
        mark_floor: see above.
        reach: px.
    """

    shown: float = 6.0
    marked: float = 20.0
    mark: tuple[float, ...] = (-1.0, 0.0, 1.0)
    mark_floor: float = 0.25
    reach: int = 2

    def __call__(self, true: Tensor, drawn: Tensor, background: Tensor) -> Tensor:
        """Weighs pictures ``[b c h w]``: float32 ``[b 1 h w]``, without a gradient."""
        drawn = drawn.detach().clamp(0, 1)
        mark = torch.tensor(self.mark, device=true.device)[:, None, None]
        shown, marked = torch.zeros_like(true[:, :1]), torch.zeros_like(true[:, :1])
        for picture in (true, drawn):
            shown = torch.maximum(shown, (picture - background).abs().amax(1, keepdim=True))
            marked = torch.maximum(marked, (picture * mark).sum(1, keepdim=True))
        found = torch.cat([(shown > _SHOWN).float(), (marked > self.mark_floor).float()], dim=1)
        near = F.max_pool2d(found, 2 * self.reach + 1, 1, self.reach)
        return 1 + self.shown * near[:, :1] + self.marked * near[:, 1:]


@dataclass(frozen=True, kw_only=True)
class PictureTraining:
    """Training settings of a network that draws pictures.

    Attributes:
        steps: updates.
        weights: of the pixels.
        square_weight: of the squared error beside the absolute one, which commits to one of several outcomes.
        history_noise: most standard deviation of noise on the frames that are read, in [0, 1]; drawn for each row.
        learning_rate: peak; warms up, then falls along a cosine to ``final_ratio`` of it.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices and kernels.
        clip_norm: largest gradient norm.
        average_decay: of the running average of the weights, which is what is used in the end.
        log_every, save_every: in updates.
    """

    steps: int = 20_000
    weights: PictureWeights = PictureWeights()
    square_weight: float = 4.0
    history_noise: float = 0.0
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_ratio: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.998
    log_every: int = 100
    save_every: int = 1_000

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, steps=1, learning_rate=0, warmup_steps=0, history_noise=0, square_weight=0)


def train_picture_forecast(
    config: PictureTraining, model: PictureForecast, sampler: CropSampler, run: Run, *, until: int | None = None
) -> PictureForecast:
    """Trains a forecast, or goes on where ``run`` stopped.

    Each update draws a number of frames that the network draws and reads itself before the one it is trained on.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: the network.
        sampler: gives the crops of each update.
        run: its folder, device and precision.
        until: stops after this many updates without changing the schedule.

    Returns:
        The running average of the network, in evaluation mode.
    """

    def draw(network: nn.Module, crops: PictureCrops) -> tuple[Tensor, Tensor]:
        count = model.config.frames
        history = _noisy(crops.frames[:, :count], config.history_noise, run.generator)
        actions = crops.actions
        at = [None if actions is None else actions[:, count - 1 + step] for step in range(crops.unroll + 1)]
        with torch.no_grad():
            for action in at[:-1]:
                own = network(history, crops.background, action).clamp(0, 1)
                history = torch.cat([history[:, 1:], own[:, None]], dim=1)
        return network(history, crops.background, at[-1]), crops.frames[:, count + crops.unroll]

    return _train("picture forecast", config, model, sampler, run, draw, until)


def train_frame_projection(
    config: PictureTraining,
    model: FrameProjection,
    sampler: CropSampler,
    run: Run,
    *,
    spoil: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    until: int | None = None,
) -> FrameProjection:
    """Trains a projection, or goes on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: the network.
        sampler: gives crops of two frames: what is shown, and the clean picture of it. Where both are the same picture,
            the first one is spoilt here.
        run: its folder, device and precision.
        spoil: makes clean pictures ``[b c h w]`` before a background imperfect.
        until: stops after this many updates without changing the schedule.

    Returns:
        The running average of the network, in evaluation mode.
    """

    def draw(network: nn.Module, crops: PictureCrops) -> tuple[Tensor, Tensor]:
        shown, clean = crops.frames[:, 0], crops.frames[:, 1]
        same = (shown == clean).flatten(1).all(dim=1)
        spoilt = spoil(clean, crops.background, run.generator)
        shown = torch.where(same[:, None, None, None], spoilt, shown)
        shown = _noisy(shown, config.history_noise, run.generator)
        return network(shown, crops.background), clean

    return _train("frame projection", config, model, sampler, run, draw, until)


def _train(name, config, model, sampler, run, draw, until):  # noqa: PLR0913
    """The loop that both share: ``draw`` gives what the network draws and what is true."""
    model.to(run.device, memory_format=torch.channels_last)
    average = ExponentialAverage(model, decay=config.average_decay)
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    schedule = cosine(
        config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps, final_ratio=config.final_ratio
    )
    parts = {"model": model, "average": average, "optimizer": optimizer}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    network = run.ranks.wrap(model)
    model.train()
    for step in run.updates(name, done, last):
        crops = _on_device(sampler.draw(step), run.device)
        set_learning_rate(optimizer, schedule(step))
        with run.autocast():
            drawn, true = draw(network, crops)
        error = drawn.float() - true
        weight = config.weights(true, drawn, crops.background) * crops.counts
        total = weight.sum() * error.shape[1]
        absolute, squared = (weight * error.abs()).sum() / total, (weight * error**2).sum() / total
        loss = absolute + config.square_weight * squared
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        average.update(model)
        run.log(step + 1, loss=loss, absolute=absolute, squared=squared)
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, **parts)
    return average.model.eval()


def _noisy(frames: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Adds to each row noise of a standard deviation drawn up to ``most``."""
    if most == 0:
        return frames
    scale = torch.rand(len(frames), *(1,) * (frames.ndim - 1), generator=generator) * most
    return (frames + (scale * torch.randn(frames.shape, generator=generator)).to(frames.device)).clamp(0, 1)


def _on_device(crops: PictureCrops, device: torch.device) -> PictureCrops:
    moved = [x.to(device) if isinstance(x, Tensor) else x for x in crops]
    return PictureCrops(*moved)  # type: ignore[arg-type]
