"""DrQ-v2: an actor and two critics on pixels, trained off-policy on randomly shifted frames.

Source: Yarats et al. 2021, "Mastering visual continuous control"; thuml/iVideoGPT mbrl/drqv2.py, same except for what
docs/parity.md lists. Cloning of demonstrations: Fujimoto and Gu 2021, "A minimalist approach to offline reinforcement
learning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    """Settings of the agent. The defaults are those of the official experiments.

    Attributes:
        encoder_channels: of each of the four convolutions.
        feature_size: width of the features that actor and critics read.
        hidden_size: of the two hidden layers of actor and critics.
        learning_rate: of Adam.
        weight_decay: of Adam, added to the gradient.
        batch_size: transitions an update.
        target_update_rate: share of the critic that its target network takes over in an update.
        exploration_noise_start, exploration_noise_end: standard deviation of the noise on actions, before and after
            its decay.
        exploration_decay_steps: environment steps of the linear decay.
        learning_noise_clip: largest noise on an action in an update.
        n_step: rewards of a return before the critic's estimate.
        discount: of a step.
        random_shift: largest shift of the frames in pixels, as augmentation.
        encoder_strides: of the four convolutions; larger ones make an update cheaper.
        bfloat16: compute the features of an update in bfloat16; weights and losses stay float32.
        reward_scale: factor on rewards in an update. Values far from 1 take the critics many updates to reach.
        cloning_weight: of the squared distance between the policy and the actions of demonstrations. Above 0, the
            values in the actor's loss are divided by their mean size, as in TD3+BC; 0: the published loss.
    """

    encoder_channels: int = 32
    feature_size: int = 50
    hidden_size: int = 1024
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    batch_size: int = 256
    target_update_rate: float = 0.01
    exploration_noise_start: float = 1.0
    exploration_noise_end: float = 0.1
    exploration_decay_steps: int = 50_000
    learning_noise_clip: float = 0.3
    n_step: int = 3
    discount: float = 0.99
    random_shift: int = 4
    encoder_strides: tuple[int, ...] = (2, 1, 1, 1)
    bfloat16: bool = False
    reward_scale: float = 1.0
    cloning_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the range of every number."""
        check_at_least(self, encoder_channels=1, feature_size=1, hidden_size=1, batch_size=2, n_step=1, random_shift=0)
        check_at_least(self, exploration_noise_start=0, exploration_noise_end=0, exploration_decay_steps=1)
        check_at_least(self, learning_rate=0, weight_decay=0, learning_noise_clip=0, target_update_rate=0, discount=0)
        check_at_least(self, reward_scale=0, cloning_weight=0)
        for name in ("target_update_rate", "discount"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most 1")
        if len(self.encoder_strides) != _ENCODER_LAYERS or min(self.encoder_strides) < 1:
            raise UserError(f"encoder_strides is {list(self.encoder_strides)}; expected four numbers of at least 1")

    def exploration_noise(self, steps: int) -> float:
        """Return the standard deviation of the noise after so many environment steps."""
        share = min(max(steps / self.exploration_decay_steps, 0.0), 1.0)
        return (1 - share) * self.exploration_noise_start + share * self.exploration_noise_end


class Transitions(NamedTuple):
    """A batch of n-step transitions.

    Attributes:
        observations: uint8 ``[b h w k*c]``, stacked frames, oldest first.
        actions: float32 ``[b a]``.
        rewards: float32 ``[b]``, discounted sums.
        discounts: float32 ``[b]``, of the value of the next observation; 0 where the episode terminated.
        next_observations: uint8 ``[b h w k*c]``.
        demonstrated: bool ``[b]``, True where a demonstration acted.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: Tensor
    demonstrated: Tensor

    def to(self, device: torch.device) -> Transitions:
        """Copy to a device."""
        return Transitions(*(x.to(device, non_blocking=True) for x in self))


class PixelEncoder(nn.Module):
    """Four convolutions."""

    def __init__(self, image: int, stacked_channels: int, channels: int, strides: Sequence[int]) -> None:
        """Build it for pictures of ``image`` pixels a side.

        Raises:
            UserError: the pictures are too small.
        """
        super().__init__()
        widths = [stacked_channels, *[channels] * _ENCODER_LAYERS]
        layers: list[nn.Module] = []
        side, least = image, 1
        for index, stride in enumerate(strides):
            layers += [nn.Conv2d(widths[index], widths[index + 1], 3, stride=stride), nn.ReLU(inplace=True)]
            side = (side - 3) // stride + 1
        self.layers = nn.Sequential(*layers)
        if side < 1:
            for stride in reversed(strides):
                least = (least - 1) * stride + 3
            raise UserError(f"frames have {image} pixels a side; the agent's encoder needs at least {least}")
        self.features = channels * side**2

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``[b h w c]`` in 0 to 255 to ``[b features]``."""
        # In place: on a CPU, fresh memory costs more than the arithmetic.
        x = self.layers(rearrange(pixels.to(torch.float32, copy=True).div_(255).sub_(0.5), "b h w c -> b c h w"))
        return rearrange(x, "b c h w -> b (h w c)")  # the order in memory


def _trunk(features: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, size), nn.LayerNorm(size), nn.Tanh())


def _perceptron(size_in: int, hidden: int, size_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size_out)
    )


class Actor(nn.Module):
    """The mean of the policy."""

    def __init__(self, features: int, action_dim: int, config: AgentConfig) -> None:
        """Build it for ``features`` numbers from the encoder."""
        super().__init__()
        self.trunk = _trunk(features, config.feature_size)
        self.policy = _perceptron(config.feature_size, config.hidden_size, action_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[b features]`` to actions ``[b a]`` in -1 to 1."""
        return torch.tanh(self.policy(self.trunk(features)))


class Critic(nn.Module):
    """Two independent estimates of the return."""

    def __init__(self, features: int, action_dim: int, config: AgentConfig) -> None:
        """Build it for ``features`` numbers from the encoder, and an action."""
        super().__init__()
        self.trunk = _trunk(features, config.feature_size)
        self.first = _perceptron(config.feature_size + action_dim, config.hidden_size, 1)
        self.second = _perceptron(config.feature_size + action_dim, config.hidden_size, 1)

    def forward(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[b features]`` and actions ``[b a]`` to two estimates ``[b]``."""
        x = torch.cat([self.trunk(features), actions], dim=-1)
        return self.first(x)[:, 0], self.second(x)[:, 0]


class DrQv2(nn.Module):
    """The agent: a `Policy` on pixels that learns from batches of transitions.

    Pixels, real or imagined, are bytes from 0 to 255.
    """

    def __init__(self, image: int, stack: int, action_dim: int, config: AgentConfig | None = None) -> None:
        """Draw new weights from PyTorch's random numbers.

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
        self.encoder = PixelEncoder(image, 3 * stack, self.config.encoder_channels, self.config.encoder_strides)
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
        """Device of the weights."""
        return self.actor.policy[0].weight.device  # type: ignore[union-attr,index,return-value]

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Do nothing: an action depends on the observation alone; see `Policy`."""

    @torch.no_grad()
    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the mean actions, float32 ``[b a]`` in -1 to 1, for ``frames`` uint8 ``[b k h w 3]``."""
        frames = observation["frames"]
        assert frames.dtype == np.uint8, f"frames are {frames.dtype}; expected bytes, 0 to 255"
        pixels = torch.from_numpy(rearrange(frames, "b k h w c -> b h w (k c)")).to(self.device)
        return self.actor(self.encoder(pixels)).cpu().numpy()

    def explore(self, observation: Mapping[str, np.ndarray], noise: float, generator: torch.Generator) -> np.ndarray:
        """Choose the mean actions plus Gaussian noise.

        Args:
            observation: as for ``act``.
            noise: standard deviation.
            generator: of the noise, on the CPU.

        Returns:
            float32 ``[b a]`` in -1 to 1.
        """
        means = torch.from_numpy(self.act(observation))
        if noise:
            means = _clamped(means + noise * torch.randn(means.shape, generator=generator))
        return means.numpy()

    def learn(self, batch: Transitions, noise: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Make one update of encoder, critic, actor and target network.

        Args:
            batch: on the device of the weights.
            noise: standard deviation of the noise on actions.
            generator: of shifts and noise, on the CPU.

        Returns:
            ``critic_loss``, ``value`` (mean estimate), ``target`` (mean), ``batch_reward`` and ``actor_loss``, scalars.
        """
        # targets
        features = self._features(batch.observations, generator)
        with torch.no_grad():
            next_features = self._features(batch.next_observations, generator)
            next_actions = self._noisy(self.actor(next_features), noise, generator)
            next_value = torch.minimum(*self.target(next_features, next_actions))
            target = self.config.reward_scale * batch.rewards + batch.discounts * next_value

        # critic loss and update, encoder included
        first, second = self.critic(features, batch.actions)
        critic_loss = F.mse_loss(first, target) + F.mse_loss(second, target)
        self._descend(critic_loss, "encoder", "critic")

        # actor loss and update
        features = features.detach()
        means = self.actor(features)
        self.critic.requires_grad_(False)
        values = torch.minimum(*self.critic(features, self._noisy(means, noise, generator)))
        self.critic.requires_grad_(True)
        actor_loss = -values.mean()
        if self.config.cloning_weight:
            distances = (means - batch.actions).square().mean(dim=-1) * batch.demonstrated
            cloning_loss = distances.sum() / batch.demonstrated.sum().clamp(min=1)
            actor_loss = actor_loss / values.detach().abs().mean() + self.config.cloning_weight * cloning_loss
        self._descend(actor_loss, "actor")

        # target network
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, self.config.target_update_rate)
        return {
            "critic_loss": critic_loss.detach(),
            "value": first.detach().mean(),
            "target": target.mean(),
            "batch_reward": batch.rewards.mean(),
            "actor_loss": actor_loss.detach(),
        }

    def training_state(self) -> Mapping[str, Any]:
        """Return weights and optimizers, for ``Run.save``."""
        return {"weights": self.state_dict()} | {
            name: optimizer.state_dict() for name, optimizer in self._optimizers.items()
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Load what ``training_state`` returned."""
        self.load_state_dict(state["weights"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

    def _features(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Encode randomly shifted pictures ``[b h w c]`` to float32 ``[b features]``."""
        shifted = random_shift(pixels, self.config.random_shift, generator)
        with torch.autocast(shifted.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            return self.encoder(shifted).float()

    def _noisy(self, means: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        added = noise * torch.randn(means.shape, generator=generator).to(means.device)
        return _clamped(means + added.clamp(-self.config.learning_noise_clip, self.config.learning_noise_clip))

    def _descend(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self._optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self._optimizers[name].step()


def random_shift(pixels: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Shift each picture by up to ``largest`` pixels in each direction; border pixels are repeated.

    Args:
        pixels: ``[b h w c]``, of any type.
        largest: 0 leaves the pictures as they are.
        generator: of the shifts, on the CPU.

    Source: Yarats et al. 2021, random shifts; same result: there by interpolation between whole pixels.
    """
    if not largest:
        return pixels
    rows, height, width = pixels.shape[:3]
    shifts = torch.randint(-largest, largest + 1, (2, rows, 1), generator=generator)
    down = (shifts[0] + torch.arange(height)).clamp(0, height - 1)
    right = (shifts[1] + torch.arange(width)).clamp(0, width - 1)
    places = (down[:, :, None] * width + right[:, None]).flatten(1).to(pixels.device)
    places = places + torch.arange(rows, device=pixels.device)[:, None] * (height * width)
    return pixels.flatten(0, 2).index_select(0, places.flatten()).view_as(pixels)


def _clamped(actions: Tensor) -> Tensor:
    """Clamp to the range of actions with a straight-through gradient."""
    return actions + (actions.clamp(-_ALMOST_ONE, _ALMOST_ONE) - actions).detach()


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(module.weight, math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
