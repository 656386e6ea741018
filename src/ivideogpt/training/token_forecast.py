"""Training of the forecast of a world model alone: one frame costs a fraction of a transformer's clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.training.token_batches import TokenBatches
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class ForecastTraining:
    """Settings of training a forecast before the transformer joins it.

    Attributes:
        steps: updates.
        batch_size: frames an update, on all ranks together.
        unroll: most frames of its own (the likeliest tokens) that the forecast reads before the one it is trained on;
            each update draws a number up to it. It learns to go on from its own mistakes.
        learning_rate: peak; warms up, then falls along a cosine to ``final_ratio`` of it.
        warmup_steps: updates of the warm-up.
        final_ratio: of the peak, at the end.
        weight_decay: of matrices; embeddings, biases and norms have none.
        clip_norm: largest gradient norm.
        log_every, save_every: in updates.
        seed: of the data order.
    """

    steps: int = 5_000
    batch_size: int = 64
    unroll: int = 0
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_ratio: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    log_every: int = 100
    save_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range; the message names it.
        """
        check_at_least(self, steps=1, batch_size=1, unroll=0, learning_rate=0, warmup_steps=0, seed=0)

    def clip_frames(self, context_frames: int) -> int:
        """Return the number of frames of the clips it trains on."""
        return context_frames + 1 + self.unroll


def train_forecast(
    config: ForecastTraining, model: WorldModel, batches: TokenBatches, run: Run, *, until: int | None = None
) -> WorldModel:
    """Train a forecast, or continue where ``run`` stopped; tokenizer and layers of the transformer stay as they are.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        model: has a forecast and a tokenizer with one codebook for all frames.
        batches: tokens of clips of ``config.clip_frames(model.context_frames)``, ``config.batch_size`` at once.
        run: its folder, device and precision; each checkpoint in it is a whole world model.
        until: stops after this many updates without changing the schedule.

    Returns:
        The same model, in evaluation mode.
    """
    # networks
    model.to(run.device)
    model.tokenizer.requires_grad_(False)
    dynamics, back = model.dynamics, model.config.heads.forecast_frames
    network = ForecastNetwork(dynamics)
    optimizer = adamw(network, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    schedule = cosine(
        config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps, final_ratio=config.final_ratio
    )

    # training state
    parts = {"learner": network, "optimizer": optimizer, "batches": batches}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    forward = run.ranks.wrap(network)
    network.train()
    stream = iter(batches)
    for step in run.updates("forecast", done, last, clips=config.batch_size):
        # true frames, then a number of its own guesses
        ids, actions, *_ = next(stream)
        codes = dynamics.history(ids, back + 1 + config.unroll)
        features = None if actions is None else dynamics.heads.action_features(actions.to(dynamics.dtype))
        guesses = int(torch.randint(config.unroll + 1, (), generator=run.generator))
        history = codes[:, :back]
        with torch.no_grad(), run.autocast():
            for frame in range(guesses):
                guess = network(history, None if features is None else features[:, frame]).argmax(dim=-1)
                history = torch.cat([history, guess[:, None]], dim=1)

        # loss
        with run.autocast():
            logits = forward(history, None if features is None else features[:, guesses])
        target = codes[:, back + guesses]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())

        # update
        set_learning_rate(optimizer, schedule(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()

        # log and checkpoint
        run.log(step + 1, loss=loss, accuracy=(logits.argmax(dim=-1) == target).float().mean())
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, also=model.save_pretrained, **parts)
    return model.eval()


class ForecastNetwork(nn.Module):
    """A forecast with the norm and the head that it shares with the transformer."""

    def __init__(self, dynamics: Dynamics) -> None:
        """Join the three layers of ``dynamics``."""
        super().__init__()
        self.forecast, self.norm, self.head = (
            dynamics.heads.forecast,
            dynamics.transformer.norm,
            dynamics.transformer.head,
        )
        self.frames, self.ids = dynamics.heads.config.forecast_frames, dynamics.layout.dynamics_ids

    def forward(self, history: Tensor, action_features: Tensor | None) -> Tensor:
        """Return the logits of the next frame.

        Args:
            history: codes int64 ``[b k m]`` of the frames before it.
            action_features: ``[b a]``, as `Heads.action_features` returns them, or None.

        Returns:
            float32 ``[b m codes]``.
        """
        return self.head(self.norm(self.forecast(history[:, -self.frames :], action_features)), self.ids).float()
