"""Training of a picture model: the forecast on crops, the textures of rigid objects and the reward on whole frames.

One loop trains all parts. Where the world has a simulator, the model is stepped in a closed loop between updates (a
round), and the simulator's frames after its own ones join the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, check_descent, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.training.correction_rounds import CorrectionRounds
from ivideogpt.training.picture_crops import CropConfig, CropSampler, PictureClips, PictureCrops, PictureStills
from ivideogpt.training.weight_average import ExponentialAverage

#: A pixel that differs from the background by more than this shows something.
_SHOWN = 0.03
#: Errors of a reward up to this size count squared, larger ones absolutely.
_REWARD_BETA = 0.1
#: The same of a change of the reward. Smaller, so that rewards that hardly change are learned beside large jumps.
_CHANGE_BETA = 0.02


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
        moving: added within ``reach`` of what differs from the last frame.
        reach: px.
    """

    shown: float = 6.0
    marked: float = 20.0
    moving: float = 0.0
    mark: tuple[float, ...] = (-1.0, 0.0, 1.0)
    mark_floor: float = 0.25
    reach: int = 2

    def __call__(self, true: Tensor, drawn: Tensor, background: Tensor, last: Tensor | None = None) -> Tensor:
        """Weigh pictures ``[b c h w]`` after the true ``last`` ones: float32 ``[b 1 h w]``, without a gradient."""
        drawn = drawn.detach().clamp(0, 1)
        mark = torch.tensor(self.mark, device=true.device)[:, None, None]
        shown, marked, moving = (torch.zeros_like(true[:, :1]) for _ in range(3))
        for picture in (true, drawn):
            shown = torch.maximum(shown, (picture - background).abs().amax(1, keepdim=True))
            marked = torch.maximum(marked, (picture * mark).sum(1, keepdim=True))
            if last is not None:
                moving = torch.maximum(moving, (picture - last).abs().amax(1, keepdim=True))
        heavy = torch.cat([shown > _SHOWN, marked > self.mark_floor, moving > _SHOWN], dim=1).float()
        near = F.max_pool2d(heavy, 2 * self.reach + 1, 1, self.reach)
        return 1 + self.shown * near[:, :1] + self.marked * near[:, 1:2] + self.moving * near[:, 2:]


@dataclass(frozen=True, kw_only=True)
class RoundSchedule:
    """Updates at which the model is corrected by the simulator.

    Attributes:
        first: updates before the first round; the model must be worth correcting by then.
        every: updates between rounds; 0: no rounds.
        transitions: of a round.
        kept: latest rounds that are trained on.
        share: of the updates that train on corrections, relative to 1 for recorded episodes.
    """

    first: int = 0
    every: int = 0
    transitions: int = 3_200
    kept: int = 4
    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, first=0, every=0, transitions=1, kept=1, share=0)

    def at(self, step: int) -> bool:
        """Return whether a round comes before update ``step``."""
        return self.every > 0 and step >= self.first and (step - self.first) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class PictureTraining:
    """Settings of the training of a picture model.

    Attributes:
        dynamics: the networks.
        steps: updates.
        crops: how the forecast's crops are cut.
        weights: of the pixels.
        square_weight: of the squared error beside the absolute one, which commits to one of several outcomes.
        history_noise: most standard deviation of noise on the frames that are read, in [0, 1]; drawn for each row.
        unroll: most frames of its own that the forecast draws before the last one of a clip; the loss is of all of
            them, and its gradient goes through them.
        unroll_after: updates before it reads own frames.
        unroll_growth: updates in which their number then grows to ``unroll``.
        rounds: when the simulator corrects the model.
        stills: whole frames of an update, for the objects' textures and the reward.
        sprite_weight, reward_weight: of the losses of textures and of rewards, beside 1 for the forecast.
        rewarded_share: of the whole frames have a reward above 0.
        learning_rate: peak; warms up, then follows ``schedule``, to ``final_ratio`` of it.
        schedule: "cosine" or "constant".
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices and kernels.
        betas: of AdamW.
        clip_norm: largest gradient norm of each network.
        average_decay: of the running average of the weights, which is what is stored as the model.
        log_every, save_every: in updates.
        seed: of weights, crops and rounds.
    """

    dynamics: PictureDynamicsConfig = field(default_factory=PictureDynamicsConfig)
    steps: int = 20_000
    crops: CropConfig = field(default_factory=CropConfig)
    weights: PictureWeights = field(default_factory=PictureWeights)
    square_weight: float = 4.0
    history_noise: float = 0.0
    unroll: int = 0
    unroll_after: int = 0
    unroll_growth: int = 0
    rounds: RoundSchedule = field(default_factory=RoundSchedule)
    stills: int = 8
    sprite_weight: float = 1.0
    reward_weight: float = 1.0
    rewarded_share: float = 0.7
    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 50
    final_ratio: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    average_decay: float = 0.998
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0

    def unroll_at(self, step: int) -> int:
        """Return the most own frames of update ``step``."""
        if step < self.unroll_after:
            return 0
        grown = (step - self.unroll_after + 1) / max(self.unroll_growth, 1)
        return min(math.ceil(self.unroll * grown), self.unroll)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_descent(self)
        check_at_least(
            self, steps=1, history_noise=0, square_weight=0, unroll=0, unroll_after=0, unroll_growth=0, stills=1
        )
        check_at_least(self, sprite_weight=0, reward_weight=0, rewarded_share=0, seed=0)
        if self.dynamics.forecast.action == "numbers" and self.crops.symmetry != "none":
            raise UserError(
                f"crops.symmetry is {self.crops.symmetry} and forecast.action is numbers, which do not turn with a "
                "mirrored picture as a pointer does; set crops.symmetry to none"
            )


def train_pictures(
    config: PictureTraining,
    model: PictureDynamics,
    clips: PictureClips,
    run: Run,
    *,
    correct: Callable[[PictureDynamics, int, int], PictureClips] | None = None,
    save: Callable[[PictureDynamics, Path], object] | None = None,
    until: int | None = None,
) -> PictureDynamics:
    """Train a picture model, or go on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: the networks and the background.
        clips: of recorded episodes.
        run: its folder, device and precision.
        correct: plays a round of the model in a closed loop with the simulator: (model, transitions, seed) to clips of
            one transition each.
        save: writes the model into a checkpoint folder.
        until: stop after this many updates without changing the schedule.

    Returns:
        The running average of the model, in evaluation mode.
    """
    model.to(run.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = ExponentialAverage(model, decay=config.average_decay)
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas)
    schedule = named_schedule(
        config.schedule,
        config.learning_rate,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        final_ratio=config.final_ratio,
    )
    parts = {"model": model, "average": average, "optimizer": optimizer}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    rounds = CorrectionRounds(run.folder / "rounds", kept=config.rounds.kept)
    if correct is not None:
        rounds.resume([step for step in range(done) if config.rounds.at(step)])
    sampler: CropSampler | None = None
    model.train()
    for step in run.updates("pictures", done, last, unit="update"):
        if correct is not None and config.rounds.at(step):
            if not rounds.has(step):
                rounds.write(step, correct(average.model, config.rounds.transitions, config.seed + step))
            rounds.add(step)
            sampler = None
        if sampler is None or config.unroll_at(step) != config.unroll_at(step - 1):
            sampler = _sampler(config, model, clips, rounds.clips, step)
        set_learning_rate(optimizer, schedule(step))
        crops, stills = sampler.draw(step), sampler.draw_stills(step, config.stills, config.rewarded_share)
        losses = update_pictures(config, model, optimizer, crops, stills, run)
        average.update(model)
        run.log(step + 1, **losses)
        if run.is_save_step(step + 1, last=last):
            write = None if save is None else (lambda folder, write=save: write(average.model, folder))
            run.save(step + 1, also=write, **parts)
            rounds.forget(step_folders(run.folder)[0][0])
    return average.model.eval()


def update_pictures(
    config: PictureTraining,
    model: PictureDynamics,
    optimizer: torch.optim.Optimizer,
    crops: PictureCrops,
    stills: PictureStills,
    run: Run,
) -> dict[str, Tensor]:
    """Make one update of a picture model.

    Args:
        config: the weights of the losses.
        model: in training mode.
        optimizer: of its weights.
        crops: for the forecast.
        stills: whole frames for objects and reward.
        run: device, precision and random numbers.

    Returns:
        Scalar losses by name; "loss" is their weighted sum.
    """
    crops, stills = _on_device(crops, run.device), _on_device(stills, run.device)
    with run.autocast():
        forecast, drawn = forecast_loss(config, model, crops, run.generator)
        losses = {"forecast": forecast} | still_losses(config, model, stills, crops, drawn)
    weights = dict.fromkeys(("reward", "reward_change"), config.reward_weight) | {"sprites": config.sprite_weight}
    loss = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for network in model.children():  # each alone: a large gradient of the reward must not slow the forecast
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimizer.step()
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}


def forecast_loss(
    config: PictureTraining, model: PictureDynamics, crops: PictureCrops, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the weighted error of all frames that the forecast draws, and these frames ``[b n c s s]``.

    It reads the true history first and then its own frames.
    """
    count = model.config.forecast.frames
    history = _noisy(crops.frames[:, :count], config.history_noise, generator)
    losses, frames = [], []
    for step in range(count, count + crops.unroll + 1):
        action = None if crops.actions is None else crops.actions[:, step - 1]
        drawn = model.forecast(history, crops.background, action)
        true, last = crops.frames[:, step], crops.frames[:, step - 1]
        losses.append(_picture_loss(config, drawn, true, crops.background, crops.counts, last))
        frames.append(drawn.clamp(0, 1))
        history = torch.cat([history[:, 1:], frames[-1][:, None]], dim=1)
    return torch.stack(losses).mean(), torch.stack(frames, dim=1).detach()


def still_losses(
    config: PictureTraining, model: PictureDynamics, stills: PictureStills, crops: PictureCrops, drawn: Tensor
) -> dict[str, Tensor]:
    """Compute the errors of objects drawn at their true poses ("sprites") and of rewards ("reward", "reward_change").

    The reward is read from true frames and from drawn ones, which is what the model shows: objects at their true poses,
    or the last ones of ``drawn`` [b n c s s], the frames of the forecast on ``crops``.
    """
    losses, shown, background = {}, [stills.frames], model.background_of(stills.frames)
    if model.sprites is not None and stills.poses is not None:
        clean = model.sprites.draw(stills.poses.unbind(dim=1), background).float()
        everywhere = torch.ones_like(clean[:, :1])
        losses["sprites"] = _picture_loss(config, clean, stills.frames, background.expand_as(clean), everywhere)
        shown.append(clean.detach().clamp(0, 1))
    if model.reward is None or stills.rewards is None:
        return losses

    # rewards of frames, and frames before them whose rewards are known
    frames, rewards = [*shown], [stills.rewards] * len(shown)
    before = stills.earlier or KnownReward(stills.frames, torch.full_like(stills.rewards, torch.nan))
    earlier = [before] * len(shown)
    if crops.rewards is not None and model.sprites is None:
        last = model.config.forecast.frames - 1
        frames.append(drawn[:, -1])
        rewards.append(crops.rewards[:, -1])
        earlier.append(KnownReward(crops.frames[:, last], crops.rewards[:, last]))
    before = KnownReward(*(torch.cat(parts) for parts in zip(*earlier, strict=True)))
    return losses | _reward_losses(model, torch.cat(frames), torch.cat(rewards), before)


def _reward_losses(model: PictureDynamics, frames: Tensor, rewards: Tensor, earlier: KnownReward) -> dict[str, Tensor]:
    """Return the errors of rewards read from frames ``[b c h w]``, and of their changes since earlier frames."""
    assert model.reward is not None
    losses, labelled = {}, ~rewards.isnan()
    background = model.background_of(frames).expand(len(frames), -1, -1, -1)
    if labelled.any():
        read = model.reward.value(frames[labelled], background[labelled])
        losses["reward"] = F.smooth_l1_loss(read, model.reward.target(rewards[labelled]), beta=_REWARD_BETA)
    pairs = labelled & ~earlier.rewards.isnan()
    if model.reward_change is not None and pairs.any():
        before = earlier.select(pairs.nonzero()[:, 0])
        change = model.reward_change(frames[pairs], before, background[pairs])
        losses["reward_change"] = F.smooth_l1_loss(change, rewards[pairs] - before.rewards, beta=_CHANGE_BETA)
    return losses


def _picture_loss(
    config: PictureTraining,
    drawn: Tensor,
    true: Tensor,
    background: Tensor,
    counts: Tensor,
    last: Tensor | None = None,
) -> Tensor:
    error, weight = drawn - true, config.weights(true, drawn, background, last) * counts
    total = weight.sum() * error.shape[1]
    return (weight * (error.abs() + config.square_weight * error**2)).sum() / total


def _sampler(
    config: PictureTraining, model: PictureDynamics, clips: PictureClips, rounds: list[PictureClips], step: int
) -> CropSampler:
    """Return the sampler of the updates from ``step`` on."""
    recorded = replace(clips, share=1.0, unroll=config.unroll_at(step))
    corrections = [replace(part, share=config.rounds.share / len(rounds)) for part in rounds]
    forecast = model.config.forecast
    return CropSampler(
        [recorded, *corrections],
        model.background.cpu(),
        replace(config.crops, seed=config.seed),
        history=forecast.frames,
        pointer=forecast.action == "pointer",
        scenes=[_scenes(model, part) for part in (recorded, *corrections)],
    )


def _scenes(model: PictureDynamics, clips: PictureClips) -> np.ndarray:
    """Return the number of the scene of each clip, read from its first frame."""
    first = torch.from_numpy(clips.frames[:, 0]).permute(0, 3, 1, 2).split(64)
    device = model.background.device
    return torch.cat([model.scene_of(part.to(device).float() / 255).cpu() for part in first]).numpy()


def _noisy(frames: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Add to each row noise of a standard deviation drawn up to ``most``."""
    if most == 0:
        return frames
    scale = torch.rand(len(frames), *(1,) * (frames.ndim - 1), generator=generator) * most
    return (frames + (scale * torch.randn(frames.shape, generator=generator)).to(frames.device)).clamp(0, 1)


def _on_device(value: Any, device: torch.device) -> Any:
    """Move a tensor, or the tensors of a named tuple and of those in it, to a device; leave everything else."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(*(_on_device(x, device) for x in value)) if isinstance(value, tuple) else value
