"""Imitation learning of a vision-language-action policy: flow matching on the action chunks of demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, check_descent, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.policies.vla.tiny_flow import FlowObservation, TinyFlow, TinyFlowConfig, hash_words
from ivideogpt.training.weight_average import ExponentialAverage


@dataclass(frozen=True, kw_only=True)
class ImitationTraining:
    """Settings of imitation learning.

    Attributes:
        steps: updates.
        batch_size: chunks of an update.
        learning_rate: peak; warms up, then follows ``schedule``.
        schedule: "cosine" or "constant".
        warmup_steps, weight_decay, betas: of AdamW.
        clip_norm: largest gradient norm; None: gradients are left as they are.
        average_decay: of the running average of the weights, which is what is stored as the policy.
        log_every, save_every: in updates.
        keep_last: newest checkpoints that are kept; 0: all, to compare them.
        seed: of weights and batches.
    """

    steps: int = 20_000
    batch_size: int = 64
    learning_rate: float = 3e-4
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float | None = 1.0
    average_decay: float = 0.999
    log_every: int = 100
    save_every: int = 1_000
    keep_last: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_descent(self)
        check_at_least(self, steps=1, batch_size=1, average_decay=0, keep_last=0, seed=0)


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """A policy and its training: everything but data and folder.

    Attributes:
        policy: the networks.
        training: by imitation.
    """

    policy: TinyFlowConfig
    training: ImitationTraining


class ChunkDataset:
    """Action chunks of demonstrations, held in memory, each with the observation before it.

    Actions after the end of a task (``terminated``) are not imitated.
    """

    def __init__(self, episodes: Sequence[Episode], instructions: Sequence[str], config: TinyFlowConfig) -> None:
        """Take the chunks of recorded episodes with actions in -1 to 1.

        Raises:
            UserError: there are none, or frames, actions or states have another size than the policy's.
        """
        self.config = config
        self._episodes = list(episodes)
        self._words = hash_words(instructions, config)
        self._starts: list[tuple[int, int, int]] = []
        for number, episode in enumerate(self._episodes):
            _check_episode(episode, config)
            done = np.flatnonzero(episode.terminated) if episode.terminated is not None else []
            last = int(done[0]) + 1 if len(done) else len(episode) - 1
            self._starts += [(number, start, last) for start in range(last)]
        if not self._starts:
            raise UserError("there is no demonstration with an action; give episodes of at least two frames")

    def __len__(self) -> int:
        """Return the number of chunks; they overlap."""
        return len(self._starts)

    def draw(self, count: int, random: np.random.Generator) -> tuple[FlowObservation, Tensor, Tensor]:
        """Draw chunks: the observation, actions float32 ``[b h a]``, and which of them count, float32 ``[b h]``."""
        config = self.config
        frames, states, numbers = [], [], []
        actions = np.zeros((count, config.chunk, config.action_dim), np.float32)
        counts = np.zeros((count, config.chunk), np.float32)
        for row, index in enumerate(random.integers(0, len(self), count)):
            number, start, last = self._starts[index]
            episode, stop = self._episodes[number], min(start + config.chunk, last)
            assert episode.actions is not None
            frames.append(episode.frames[np.maximum(np.arange(start + 1 - config.images, start + 1), 0)])
            actions[row, : stop - start] = config.from_raw(episode.actions[start:stop])
            counts[row, : stop - start] = 1
            numbers.append(number)
            if config.state_dim and episode.state is not None:
                states.append(episode.state[start])
        state = torch.from_numpy(np.stack(states).astype(np.float32)) if config.state_dim else None
        seen = FlowObservation(torch.from_numpy(np.stack(frames)), self._words[numbers], state)
        return seen, torch.from_numpy(actions), torch.from_numpy(counts)


def _check_episode(episode: Episode, config: TinyFlowConfig) -> None:
    size, actions = episode.frames.shape[1:3], episode.actions
    if size != (config.resolution, config.resolution):
        raise UserError(
            f"episode {episode.key!r} has frames of {size[1]} x {size[0]} px and the policy reads "
            f"{config.resolution} x {config.resolution}; record them so, or change policy.resolution"
        )
    width = 0 if actions is None else actions.shape[1]
    if actions is None or width != config.action_dim:
        raise UserError(
            f"episode {episode.key!r} has actions of {width} numbers and the policy gives {config.action_dim}; change "
            "policy.action_dim"
        )
    largest = np.abs(config.from_raw(actions[:-1])).max(initial=0)
    if largest > 1 + 1e-3:
        raise UserError(
            f"episode {episode.key!r} has actions up to {largest:.3g} times the range that the policy gives; set "
            "policy.action_low and policy.action_high to the range of the demonstrations"
        )
    states = 0 if episode.state is None else episode.state.shape[1]
    if config.state_dim not in (0, states):
        raise UserError(
            f"episode {episode.key!r} has a state of {states} numbers and the policy reads {config.state_dim}; change "
            "policy.state_dim, 0 for none"
        )


def train_imitation(
    config: ImitationTraining,
    policy: TinyFlow,
    data: ChunkDataset,
    run: Run,
    *,
    save: Callable[[TinyFlow, Path], object] = TinyFlow.save_pretrained,
    until: int | None = None,
) -> TinyFlow:
    """Train a policy by flow matching, or go on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        policy: the networks, changed in place.
        data: chunks of demonstrations.
        run: its folder, device and precision.
        save: writes the policy into a checkpoint folder.
        until: stop after this many updates without changing the schedule.

    Returns:
        The running average of the policy, in evaluation mode.
    """
    policy.to(run.device).train()
    average = ExponentialAverage(policy, decay=config.average_decay)
    optimizer = adamw(policy, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas)
    schedule = named_schedule(
        config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps
    )
    parts = {"policy": policy, "average": average, "optimizer": optimizer}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    for step in run.updates("policy", done, last, unit="update"):
        set_learning_rate(optimizer, schedule(step))
        seen, actions, counts = data.draw(config.batch_size, np.random.default_rng([config.seed, step]))
        with run.autocast():
            device = run.device
            loss = policy.loss(seen.to(device), actions.to(device), counts.to(device), run.generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
        optimizer.step()
        average.update(policy)
        run.log(step + 1, loss=loss)
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, also=lambda folder: save(average.model, folder), **parts)
    return average.model.eval()
