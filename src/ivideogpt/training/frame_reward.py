"""Trains the reward that is read from a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.frame_reward import FrameReward


@dataclass(frozen=True, kw_only=True)
class FrameRewardTraining:
    """Training settings of the reward of pictures.

    Attributes:
        steps: updates.
        batch_size: pictures an update.
        rewarded_share: of each batch are pictures with a reward above 0, which are few.
        learning_rate: peak; warms up, then falls along a cosine to ``final_ratio`` of it.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices and kernels.
        clip_norm: largest gradient norm.
        log_every, save_every: in updates.
    """

    steps: int = 4_000
    batch_size: int = 64
    rewarded_share: float = 0.7
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_ratio: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    log_every: int = 100
    save_every: int = 1_000

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, steps=1, batch_size=1, learning_rate=0, warmup_steps=0, rewarded_share=0)


def train_frame_reward(
    config: FrameRewardTraining,
    model: FrameReward,
    frames: np.ndarray,
    rewards: np.ndarray,
    background: Tensor,
    run: Run,
    *,
    until: int | None = None,
) -> FrameReward:
    """Trains a reward, or goes on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: the network.
        frames: uint8 ``[n h w c]``, true and imagined ones.
        rewards: float32 ``[n]``, what each is worth.
        background: float32 ``[c h w]`` in [0, 1].
        run: its folder, device and precision.
        until: stops after this many updates without changing the schedule.

    Returns:
        The same model, in evaluation mode.

    Raises:
        UserError: there is not one reward for each frame, or none is above 0.
    """
    if len(frames) != len(rewards) or not (rewards > 0).any():
        raise UserError(
            f"{len(frames)} frames have {len(rewards)} rewards, {int((rewards > 0).sum())} of them above 0; "
            "expected one reward for each frame, and some above 0"
        )
    rewarded, rest = np.flatnonzero(rewards > 0), np.flatnonzero(rewards <= 0)
    rest = rest if len(rest) else rewarded
    model.to(run.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    schedule = cosine(
        config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps, final_ratio=config.final_ratio
    )
    parts = {"model": model, "optimizer": optimizer}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    still = background[None].to(run.device)
    network = run.ranks.wrap(model)
    model.train()
    for step in run.updates("frame reward", done, last):
        set_learning_rate(optimizer, schedule(step))
        random = np.random.default_rng([run.seed, step])
        count = round(config.batch_size * config.rewarded_share)
        rows = np.concatenate([random.choice(rewarded, count), random.choice(rest, config.batch_size - count)])
        pictures = torch.from_numpy(frames[rows]).permute(0, 3, 1, 2).to(run.device).float() / 255
        true = torch.from_numpy(rewards[rows]).to(run.device)
        with run.autocast():
            read = network(pictures, still)
        # Absolute beyond a tenth of a unit: an imagined picture may be worth something else than it was meant to be.
        loss = F.smooth_l1_loss(read.float(), true, beta=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        run.log(step + 1, loss=loss, error=(read.float() - true).abs().mean())
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, **parts)
    return model.eval()
