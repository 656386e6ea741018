"""DrQ-v2: an actor and two critics on pixels, trained off-policy on randomly shifted frames.

Source: Yarats et al. 2021, "Mastering visual continuous control"; thuml/iVideoGPT mbrl/drqv2.py, same but for what
docs/parity.md names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError

_ALMOST_ONE = 1 - 1e-6
_ENCODER_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The agent and how it learns. The defaults are those of the official experiments.

    Attributes:
        channels: of each of the encoder's four convolutions.
        feature_size: what actor and critics see of the encoder.
        hidden_size: of their two hidden layers.
        learning_rate: of Adam.
        weight_decay: of Adam, added to the gradient.
        batch_size: transitions an update.
        updates: of the agent a step of the environment.
        target_rate: share of the critic that its slow copy takes over in an update.
        noise_start, noise_end: standard deviation of the exploration, in units of actions, before and after it fell.
        noise_frames: simulator frames in which it falls, in a straight line.
        noise_clip: most that is added to an action while learning.
        return_steps: rewards summed up before the critic's estimate takes over (n-step).
        discount: of a step.
        shift: frames are moved by up to so many pixels.
    """

    channels: int = 32
    feature_size: int = 50
    hidden_size: int = 1024
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    batch_size: int = 256
    updates: int = 2
    target_rate: float = 0.01
    noise_start: float = 1.0
    noise_end: float = 0.1
    noise_frames: int = 100_000
    noise_clip: float = 0.3
    return_steps: int = 3
    discount: float = 0.99
    shift: int = 4

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, channels=1, feature_size=1, hidden_size=1, batch_size=2, updates=0, return_steps=1)
        check_at_least(self, learning_rate=0, weight_decay=0, noise_start=0, noise_end=0, noise_frames=1, noise_clip=0)
        check_at_least(self, target_rate=0, discount=0, shift=0)
        for name in ("target_rate", "discount"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most 1")

    def noise(self, frames: int) -> float:
        """Standard deviation of the exploration after so many simulator frames."""
        share = min(max(frames / self.noise_frames, 0.0), 1.0)
        return (1 - share) * self.noise_start + share * self.noise_end


class Transitions(NamedTuple):
    """A batch of n-step transitions.

    Attributes:
        observations: uint8 ``[b h w k*c]``, stacked frames, oldest first.
        actions: float32 ``[b a]``.
        rewards: float32 ``[b]``, discounted sums.
        discounts: float32 ``[b]``, of what follows; 0 where the episode terminated.
        next_observations: uint8 ``[b h w k*c]``.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: Tensor

    def to(self, device: torch.device) -> Transitions:
        """The same on a device."""
        return Transitions(*(x.to(device, non_blocking=True) for x in self))


class Encoder(nn.Module):
    """Four convolutions, the first of which halves the picture."""

    def __init__(self, image: int, stacked_channels: int, channels: int) -> None:
        """For pictures of ``image`` pixels a side."""
        super().__init__()
        widths = [stacked_channels, *[channels] * _ENCODER_LAYERS]
        layers: list[nn.Module] = []
        for index in range(_ENCODER_LAYERS):
            layers += [nn.Conv2d(widths[index], widths[index + 1], 3, stride=1 if index else 2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        side = (image - 3) // 2 + 1 - 2 * (_ENCODER_LAYERS - 1)
        if side < 1:
            raise UserError(f"frames have {image} pixels a side; the agent's encoder needs at least 15")
        self.features = channels * side**2

    def forward(self, pixels: Tensor) -> Tensor:
        """``[b h w c]`` in 0 to 255, bytes or floats, to ``[b features]``."""
        # In place: memory that a CPU gets for the first time costs more than the arithmetic.
        x = self.layers(rearrange(pixels.to(torch.float32, copy=True).div_(255).sub_(0.5), "b h w c -> b c h w"))
        return rearrange(x, "b c h w -> b (h w c)")  # in memory they lie like this


def _trunk(features: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, size), nn.LayerNorm(size), nn.Tanh())


def _perceptron(size_in: int, hidden: int, size_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size_out)
    )


class Actor(nn.Module):
    """The mean of the action."""

    def __init__(self, features: int, action_dim: int, config: AgentConfig) -> None:
        """From ``features`` of the encoder."""
        super().__init__()
        self.trunk = _trunk(features, config.feature_size)
        self.policy = _perceptron(config.feature_size, config.hidden_size, action_dim)

    def forward(self, features: Tensor) -> Tensor:
        """``[b features]`` to ``[b a]`` in -1 to 1."""
        return torch.tanh(self.policy(self.trunk(features)))


class Critic(nn.Module):
    """Two estimates of the return."""

    def __init__(self, features: int, action_dim: int, config: AgentConfig) -> None:
        """From ``features`` of the encoder and an action."""
        super().__init__()
        self.trunk = _trunk(features, config.feature_size)
        self.first = _perceptron(config.feature_size + action_dim, config.hidden_size, 1)
        self.second = _perceptron(config.feature_size + action_dim, config.hidden_size, 1)

    def forward(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """``[b features]`` and ``[b a]`` to two times ``[b]``."""
        x = torch.cat([self.trunk(features), actions], dim=-1)
        return self.first(x)[:, 0], self.second(x)[:, 0]


class DrQv2(nn.Module):
    """The agent: acts on pixels, learns from batches of transitions.

    There is one way in for pixels, real or imagined: bytes, 0 to 255.
    """

    def __init__(self, image: int, stack: int, action_dim: int, config: AgentConfig | None = None) -> None:
        """New weights from PyTorch's random numbers.

        Args:
            image: side of a frame in pixels.
            stack: frames of an observation.
            action_dim: numbers in an action.
            config: the settings.

        Raises:
            UserError: frames are too small.
        """
        super().__init__()
        self.config = config or AgentConfig()
        self.action_dim = action_dim
        self.encoder = Encoder(image, 3 * stack, self.config.channels)
        self.actor = Actor(self.encoder.features, action_dim, self.config)
        self.critic = Critic(self.encoder.features, action_dim, self.config)
        self.apply(_orthogonal)
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizers = {
            name: torch.optim.Adam(
                getattr(self, name).parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
            )
            for name in ("encoder", "actor", "critic")
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.actor.policy[0].weight.device  # type: ignore[union-attr,index,return-value]

    @torch.no_grad()
    def act(
        self,
        observations: np.ndarray,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        brightness: float = 1.0,
    ) -> np.ndarray:
        """Actions for what is seen.

        Args:
            observations: uint8 ``[b k h w 3]``, 0 to 255: real frames or imagined ones alike.
            noise: standard deviation of the exploration; 0: the mean action.
            generator: of the exploration, on the CPU.
            brightness: pixels are multiplied by it; 1 / 255 repeats a mistake of the official code.

        Returns:
            float32 ``[b a]`` in -1 to 1.
        """
        assert observations.dtype == np.uint8, f"observations are {observations.dtype}; expected bytes, 0 to 255"
        pixels = torch.from_numpy(rearrange(observations, "b k h w c -> b h w (k c)")).to(self.device)
        means = self.actor(self.encoder(pixels if brightness == 1 else pixels * brightness)).cpu()
        if noise:
            means = _limited(means + noise * torch.randn(means.shape, generator=generator))
        return means.numpy()

    def learn(self, batch: Transitions, noise: float, generator: torch.Generator) -> dict[str, Tensor]:
        """One update of encoder, critic, actor and the critic's slow copy.

        Args:
            batch: on the device of the weights.
            noise: standard deviation of the exploration.
            generator: of shifts and noise, on the CPU.

        Returns:
            ``critic_loss``, ``value`` (mean estimate), ``target`` (mean), ``batch_reward`` and ``actor_loss``, scalars.
        """
        config = self.config
        features = self.encoder(shifted(batch.observations, config.shift, generator))
        with torch.no_grad():
            coming = self.encoder(shifted(batch.next_observations, config.shift, generator))
            actions = self._noisy(self.actor(coming), noise, generator)
            target = batch.rewards + batch.discounts * torch.minimum(*self.target(coming, actions))
        first, second = self.critic(features, batch.actions)
        critic_loss = F.mse_loss(first, target) + F.mse_loss(second, target)
        self._descend(critic_loss, "encoder", "critic")

        features = features.detach()
        actions = self._noisy(self.actor(features), noise, generator)
        self.critic.requires_grad_(False)
        actor_loss = -torch.minimum(*self.critic(features, actions)).mean()
        self.critic.requires_grad_(True)
        self._descend(actor_loss, "actor")
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, config.target_rate)
        return {
            "critic_loss": critic_loss.detach(),
            "value": first.detach().mean(),
            "target": target.mean(),
            "batch_reward": batch.rewards.mean(),
            "actor_loss": actor_loss.detach(),
        }

    def training_state(self) -> Mapping[str, Any]:
        """Weights and optimizers, as ``Run.save`` takes them."""
        return {"weights": self.state_dict()} | {name: one.state_dict() for name, one in self._optimizers.items()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``training_state`` gave."""
        self.load_state_dict(state["weights"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

    def _noisy(self, means: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        drawn = noise * torch.randn(means.shape, generator=generator).to(means.device)
        return _limited(means + drawn.clamp(-self.config.noise_clip, self.config.noise_clip))

    def _descend(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self._optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self._optimizers[name].step()


def shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to ``most`` pixels in each direction; what comes in repeats the border.

    Args:
        pixels: ``[b h w c]``, of any type.
        most: 0 leaves them as they are.
        generator: of the shifts, on the CPU.

    Source: Yarats et al. 2021, random shifts; there by interpolation between whole pixels, which is the same.
    """
    if not most:
        return pixels
    rows, height, width = pixels.shape[:3]
    moves = torch.randint(-most, most + 1, (2, rows, 1), generator=generator)
    down = (moves[0] + torch.arange(height)).clamp(0, height - 1)
    right = (moves[1] + torch.arange(width)).clamp(0, width - 1)
    places = (down[:, :, None] * width + right[:, None]).flatten(1).to(pixels.device)
    places = places + torch.arange(rows, device=pixels.device)[:, None] * (height * width)
    return pixels.flatten(0, 2).index_select(0, places.flatten()).view_as(pixels)


def _limited(actions: Tensor) -> Tensor:
    """Inside the range; the gradient passes as if it were wherever they were."""
    return actions + (actions.clamp(-_ALMOST_ONE, _ALMOST_ONE) - actions).detach()


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(module.weight, math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
