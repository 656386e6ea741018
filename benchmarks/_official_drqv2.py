"""One update of DrQ-v2 as the official code computes it, written again: the baseline of benchmarks/mbrl.py.

What differs from ours: pictures are moved by bilinear interpolation on a grid, channels come first in memory, nothing
is written in place, and each figure is read from the device at once.

Source: thuml/iVideoGPT mbrl/drqv2.py (after facebookresearch/drqv2): shapes, order of the steps, settings.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ivideogpt.policies.drqv2 import Actor, AgentConfig, Critic, Transitions


class RandomShifts(nn.Module):
    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, _, height, _ = x.shape
        x = F.pad(x, (self.pad,) * 4, "replicate")
        full = height + 2 * self.pad
        line = torch.linspace(-1 + 1 / full, 1 - 1 / full, full, device=x.device, dtype=x.dtype)[:height]
        across = line[None].repeat(height, 1)[..., None]
        grid = torch.cat([across, across.transpose(1, 0)], dim=2)[None].repeat(rows, 1, 1, 1)
        moved = torch.randint(0, 2 * self.pad + 1, (rows, 1, 1, 2), device=x.device, dtype=x.dtype) * (2 / full)
        return F.grid_sample(x, grid + moved, padding_mode="zeros", align_corners=False)


class Pictures(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels_in, channels, 3, stride=2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x / 255.0 - 0.5).flatten(1)


class OfficialDrQv2:
    def __init__(self, image: int, stack: int, action_dim: int, config: AgentConfig) -> None:
        self.config = config
        self.encoder = Pictures(3 * stack, config.channels)
        features = config.channels * ((image - 3) // 2 + 1 - 6) ** 2
        self.actor = Actor(features, action_dim, config)
        self.critic, self.target = (Critic(features, action_dim, config) for _ in range(2))
        self.target.load_state_dict(self.critic.state_dict())
        self.shifts = RandomShifts(config.shift)
        self.optimizers = {
            name: torch.optim.Adam(
                getattr(self, name).parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
            )
            for name in ("encoder", "actor", "critic")
        }

    def learn(self, batch: Transitions, noise: float) -> dict[str, float]:
        pixels, coming = (
            x.permute(0, 3, 1, 2).contiguous().float() for x in (batch.observations, batch.next_observations)
        )
        pixels = self.encoder(self.shifts(pixels))
        with torch.no_grad():
            coming = self.encoder(self.shifts(coming))
            mean = self.actor(coming)
            drawn = (torch.randn_like(mean) * noise).clamp(-self.config.noise_clip, self.config.noise_clip)
            target = batch.rewards + batch.discounts * torch.min(*self.target(coming, (mean + drawn).clamp(-1, 1)))
        first, second = self.critic(pixels, batch.actions)
        loss = F.mse_loss(first, target) + F.mse_loss(second, target)
        figures = {"target": target.mean().item(), "value": first.mean().item(), "critic_loss": loss.item()}
        self.optimizers["encoder"].zero_grad(set_to_none=True)
        self.optimizers["critic"].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers["critic"].step()
        self.optimizers["encoder"].step()
        pixels = pixels.detach()
        mean = self.actor(pixels)
        drawn = (torch.randn_like(mean) * noise).clamp(-self.config.noise_clip, self.config.noise_clip)
        action = mean + drawn
        action = action - action.detach() + action.detach().clamp(-1 + 1e-6, 1 - 1e-6)
        actor_loss = -torch.min(*self.critic(pixels, action)).mean()
        self.optimizers["actor"].zero_grad(set_to_none=True)
        actor_loss.backward()
        self.optimizers["actor"].step()
        figures["actor_loss"] = actor_loss.item()
        for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            slow.data.copy_(self.config.target_rate * fast.data + (1 - self.config.target_rate) * slow.data)
        return figures
