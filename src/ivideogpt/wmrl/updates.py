"""Updates of a flow policy on episodes that it played: GRPO, PPO, and imitation of the episodes that succeeded.

The probability of a chunk is that of its stochastic step of the flow, so there is one ratio a chunk: the sum of the
log-probabilities over its actions and their numbers.

Source: RLinf's piRL (ratio of a chunk, one stochastic step), Shao et al. 2024 (GRPO), Schulman et al. 2017 (PPO).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.policies.vla.flow import normal_divergence, normal_log_prob, step_distribution
from ivideogpt.policies.vla.tiny_flow import FlowObservation, TinyFlow
from ivideogpt.posttrain.grpo import clipped_surrogate, group_advantages, probability_ratio
from ivideogpt.training.imitation import ChunkDataset
from ivideogpt.training.weight_average import ExponentialAverage
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.rollouts import PlayedEpisodes

#: Most that a chunk with a negative advantage counts, however likely it has become.
_DUAL_CLIP = 3.0


class ChunkValue(nn.Module):
    """Value of a state, read from the mean of what the policy's encoder returns; the encoder gets no gradient."""

    def __init__(self, width: int) -> None:
        """Create the layers for an encoder of ``width``."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 1))

    def forward(self, context: Tensor) -> Tensor:
        """Return values ``[b]`` for a context ``[b n d]``."""
        return self.layers(context.detach().mean(dim=1))[:, 0]


def episode_returns(rollouts: PlayedEpisodes, discount: float) -> Tensor:
    """Return the reward of each episode, float32 ``[n]``: ``discount`` to the power of its steps, 0 for a failure."""
    return rollouts.succeeded * discount ** rollouts.steps.float()


def grpo_advantages(rollouts: PlayedEpisodes, config: WmRlConfig) -> Tensor:
    """Return the advantage of each chunk, ``[m n]``: by how many deviations its episode is better than its group."""
    returns = episode_returns(rollouts, config.discount).view(-1, config.group)
    return group_advantages(returns).flatten().expand(len(rollouts.alive), -1)


@torch.no_grad()
def ppo_advantages(
    rollouts: PlayedEpisodes, policy: TinyFlow, value: ChunkValue, config: WmRlConfig
) -> tuple[Tensor, Tensor]:
    """Return normalised advantages and returns of chunks, ``[m n]``, by generalised advantage estimation.

    A success has the reward 1 and ends an episode; after the horizon the value of the last state counts.
    """
    count, rows = rollouts.alive.shape
    values = torch.cat([value(policy.encode(rollouts.observations.to(policy.device))).cpu()]).view(count, rows)
    next_value = value(policy.encode(rollouts.last.to(policy.device))).cpu()
    discount = config.discount**policy.config.chunk
    advantages, following = torch.zeros(count, rows), torch.zeros(rows)
    for number in reversed(range(count)):
        goes_on = (~rollouts.success[number]).float()
        delta = rollouts.success[number].float() + discount * goes_on * next_value - values[number]
        following = torch.where(
            rollouts.alive[number], delta + discount * config.gae_lambda * goes_on * following, torch.zeros(rows)
        )
        advantages[number] = following
        next_value = torch.where(rollouts.alive[number], values[number], next_value)
    returns, chosen = advantages + values, advantages[rollouts.alive]
    return (advantages - chosen.mean()) / (chosen.std() + 1e-6), returns


class FlowLearner:
    """Policy gradients of a flow policy, with a penalty on its divergence from the policy at the start."""

    def __init__(self, config: WmRlConfig, policy: TinyFlow, reference: TinyFlow, value: ChunkValue) -> None:
        """Take the networks; ``policy`` and ``value`` are changed by ``update``, ``reference`` is not."""
        self.config, self.policy, self.reference, self.value = config, policy, reference, value

    def update(
        self, rollouts: PlayedEpisodes, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, float]:
        """Make the updates of an iteration; return the means of their figures.

        Args:
            rollouts: of the present policy, with a stochastic step in each chunk.
            optimizer: of policy and value.
            generator: of the order of the chunks, on the CPU.
        """
        config, is_ppo = self.config, self.config.algorithm == "ppo_flow"
        if is_ppo:
            advantages, returns = ppo_advantages(rollouts, self.policy, self.value, config)
        else:
            advantages = grpo_advantages(rollouts, config)
            returns = torch.zeros_like(advantages)
        chosen = torch.nonzero((rollouts.alive & (advantages != 0)).flatten())[:, 0]
        if not len(chosen):  # all episodes of every group ended alike
            return {"chunks": 0.0}
        before, after = rollouts.before.flatten(0, 1), rollouts.after.flatten(0, 1)
        flat = (x.flatten() for x in (rollouts.indices, advantages, returns))
        indices, advantages, returns = flat
        with torch.no_grad():
            old, means = self._before_update(rollouts.observations, before, after, indices, chosen)
        figures: list[dict[str, float]] = []
        for _ in range(config.epochs):
            for part in torch.randperm(len(chosen), generator=generator).split(config.minibatch):
                rows = chosen[part]
                context, mean, deviation = self._distribution(self.policy, rollouts.observations, before, indices, rows)
                log_probs = normal_log_prob(after[rows].to(mean.device), mean, deviation)
                ratio = probability_ratio(log_probs, old[part])
                surrogate, clipped = clipped_surrogate(
                    ratio, advantages[rows].to(mean.device), config.clip_low, config.clip_high, _DUAL_CLIP
                )
                divergence = normal_divergence(mean, means[part], deviation).mean()
                loss = surrogate.mean() + config.kl_weight * divergence
                if is_ppo:
                    error = self.value(context) - returns[rows].to(mean.device)
                    loss = loss + nn.functional.huber_loss(error, torch.zeros_like(error))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), config.clip_norm)
                optimizer.step()
                figures.append(
                    {
                        "loss": loss.item(),
                        "ratio": ratio.mean().item(),
                        "clipped": clipped.float().mean().item(),
                        "kl": divergence.item(),
                    }
                )
        means_of = {name: float(np.mean([x[name] for x in figures])) for name in figures[0]}
        return means_of | {"first_ratio": figures[0]["ratio"], "chunks": float(len(chosen))}

    def _distribution(
        self, policy: TinyFlow, seen: FlowObservation, before: Tensor, indices: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        device, config = policy.device, self.config
        context = policy.encode(seen.rows(rows).to(device))
        mean, deviation = step_distribution(
            policy.velocity_of(context),
            before[rows].to(device),
            indices[rows].to(device),
            policy.config.denoise_steps,
            config.noise_level,
        )
        return context, mean, deviation

    def _before_update(
        self, seen: FlowObservation, before: Tensor, after: Tensor, indices: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities by the present policy and the means by the policy at the start."""
        old, means = [], []
        for rows in chosen.split(self.config.minibatch):
            _, mean, deviation = self._distribution(self.policy, seen, before, indices, rows)
            old.append(normal_log_prob(after[rows].to(mean.device), mean, deviation))
            means.append(self._distribution(self.reference, seen, before, indices, rows)[1])
        return torch.cat(old), torch.cat(means)


class SuccessBuffer:
    """Chunks of the latest episodes that succeeded; of more than ``capacity`` chunks the oldest are dropped.

    A chunk begins at every step of an episode, as in demonstrations, so that the policy learns from frames between its
    own decisions too. Of the episodes that begin alike, only the shortest success is kept: easy starts do not outweigh
    those that succeed once, and detours are not learned.
    """

    _FIELDS = ("frames", "words", "actions", "counts")

    def __init__(self, policy: TinyFlow, capacity: int = 50_000) -> None:
        """Make an empty buffer for chunks of a policy."""
        config = policy.config
        self.capacity = capacity
        self.frames = torch.zeros(0, config.images, config.resolution, config.resolution, 3, dtype=torch.uint8)
        self.words = torch.zeros(0, config.words, dtype=torch.long)
        self.actions = torch.zeros(0, config.chunk, config.action_dim)
        self.counts = torch.zeros(0, config.chunk)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.frames)

    def add(self, episodes: PlayedEpisodes, group: int = 1) -> None:
        """Add the shortest success of each ``group`` of neighbouring episodes."""
        never = torch.iinfo(torch.int64).max
        steps = torch.where(episodes.succeeded, episodes.steps, never).view(-1, group)
        best = steps.argmin(dim=1) + group * torch.arange(len(steps))
        parts = {name: [getattr(self, name)] for name in self._FIELDS}
        for row in best[steps.amin(dim=1) < never].tolist():
            length, chunk = int(episodes.steps[row]), self.actions.shape[1]
            actions = episodes.actions[:, row].flatten(0, 1)[:length]
            padded = nn.functional.pad(actions, (0, 0, 0, chunk - 1))
            left = length - torch.arange(length)[:, None]
            new = {
                "frames": episodes.frames[:, :, row].flatten(0, 1)[:length],
                "words": episodes.last.words[row].expand(length, -1),
                "actions": rearrange(padded.unfold(0, chunk, 1), "t a h -> t h a"),
                "counts": (torch.arange(chunk) < left).float(),
            }
            for name, value in new.items():
                parts[name].append(value)
        for name, values in parts.items():
            setattr(self, name, torch.cat(values)[-self.capacity :])

    def draw(self, count: int, random: np.random.Generator) -> tuple[FlowObservation, Tensor, Tensor]:
        """Draw chunks; see ``ChunkDataset.draw``."""
        rows = torch.from_numpy(random.integers(0, len(self), count))
        return FlowObservation(self.frames[rows], self.words[rows]), self.actions[rows], self.counts[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the chunks."""
        return {name: getattr(self, name) for name in self._FIELDS}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load what ``state_dict`` returned."""
        for name in self._FIELDS:
            setattr(self, name, state_dict[name])


def imitate_successes(
    config: WmRlConfig,
    policy: TinyFlow,
    average: ExponentialAverage[TinyFlow],
    successes: SuccessBuffer,
    demonstrations: ChunkDataset | None,
    optimizer: torch.optim.Optimizer,
    random: np.random.Generator,
    generator: torch.Generator,
) -> dict[str, float]:
    """Imitate the chunks of episodes that succeeded, and demonstrations in a share of each batch.

    Args:
        config: the settings.
        policy: changed in place.
        average: of its weights.
        successes: where it is empty, demonstrations are imitated alone.
        demonstrations: None: successes alone.
        optimizer: of the policy.
        random: draws chunks.
        generator: of times and noise of the flow.
    """
    demos = 0 if demonstrations is None else round(config.minibatch * config.demo_share)
    demos = config.minibatch if demonstrations is not None and not len(successes) else demos
    losses = []
    for _ in range(config.bc_updates if demos or len(successes) else 0):
        parts = []
        if demos and demonstrations is not None:
            parts.append(demonstrations.draw(demos, random))
        if demos < config.minibatch:
            parts.append(successes.draw(config.minibatch - demos, random))
        seen = FlowObservation(*(torch.cat([part[0][field] for part in parts]) for field in range(2)))  # type: ignore[arg-type]
        actions, counts = (torch.cat([part[field] for part in parts]).to(policy.device) for field in (1, 2))
        loss = policy.loss(seen.to(policy.device), actions, counts, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
        optimizer.step()
        average.update(policy)
        losses.append(loss.item())
    return {"loss": float(np.mean(losses)) if losses else 0.0, "chunks": float(len(successes))}
