"""Tiny flow: a vision-language-action policy of a few million parameters or less, trained by flow matching.

Convolutions turn one or two pictures into tokens: their patches, and the mean places of a few maps. Words of the
instruction are hashed into a table of embeddings. A transformer reads pictures, words and state once for each chunk of
actions. An expert, a second transformer conditioned on the time of the flow, denoises the chunk in a few steps.

    policy = FlowPolicy(TinyFlow.from_pretrained("runs/policy"))
    policy.reset([0], ["push the red square to the left"])
    actions = policy.act({"frames": frames})            # float32 [1 chunk a] in -1 to 1
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.checkpoint import load_tensors, save_tensors, step_folders
from ivideogpt.core.config import check_at_least, from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.policies.vla.flow import Chain, Velocity, noisy_actions, sample_chunk, training_times

#: Files of a checkpoint, and the word in the first that says what it is.
CONFIG, WEIGHTS, KIND = "config.json", "policy.safetensors", "tiny-flow"
_MOST_PARAMETERS = 10_000_000
# Factor of the maps of points before their softmax; a flat softmax tells no place.
_SHARPNESS = 10.0


@dataclass(frozen=True, kw_only=True)
class PolicySizes:
    """Pictures and actions of a policy.

    Attributes:
        resolution: height and width of a picture in pixels.
        images: pictures of an observation: the last frames.
        action_dim: numbers of an action, -1 to 1.
        action_low, action_high: range of the actions in recorded data, which -1 to 1 stands for; empty: -1 to 1.
    """

    resolution: int = 32
    images: int = 1
    action_dim: int = 2
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range, or the range of the actions has another width.
        """
        check_at_least(self, resolution=8, images=1, action_dim=1)
        if not len(self.action_low) == len(self.action_high) or len(self.action_low) not in (0, self.action_dim):
            raise UserError(
                f"action_low is {self.action_low} and action_high {self.action_high}; expected {self.action_dim} "
                "numbers each, or none"
            )

    def to_raw(self, actions: np.ndarray) -> np.ndarray:
        """Return actions ``[.. a]`` in -1 to 1 in the units of the recorded data, float32."""
        if not self.action_low:
            return actions
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return low + (actions + 1) / 2 * (high - low)

    def from_raw(self, actions: np.ndarray) -> np.ndarray:
        """Return actions of recorded data in -1 to 1, float32."""
        if not self.action_low:
            return actions
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return (actions - low) / (high - low) * 2 - 1


class SizedPolicy(Protocol):
    """A policy, or its networks, with the sizes of its pictures and actions."""

    @property
    def config(self) -> PolicySizes:
        """Sizes."""
        ...


@dataclass(frozen=True, kw_only=True)
class TinyFlowConfig(PolicySizes):
    """Sizes of the networks.

    Attributes:
        state_dim: numbers of the robot's state; 0: it is not read. In a world model there is no state.
        chunk: actions that are predicted at once.
        halvings: convolutions that halve the picture before its patches are read as tokens; 0: there are none.
        points: maps whose mean places in each picture are read as numbers, which tells places more exactly than tokens
            of patches.
        width, heads: of both transformers.
        encoder_layers, expert_layers: of each.
        vocabulary: rows of the table of hashed words.
        words: most words of an instruction; later ones are not read.
        denoise_steps: steps of the flow.
    """

    state_dim: int = 0
    chunk: int = 4
    halvings: int = 3
    points: int = 16
    width: int = 64
    heads: int = 4
    encoder_layers: int = 2
    expert_layers: int = 2
    vocabulary: int = 512
    words: int = 12
    denoise_steps: int = 4

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range, or sizes do not fit each other.
        """
        super().__post_init__()
        check_at_least(self, state_dim=0, chunk=1, halvings=0, width=8, heads=1)
        check_at_least(self, points=1, encoder_layers=1, expert_layers=1, vocabulary=2, words=1, denoise_steps=1)
        if self.resolution % 2**self.halvings:
            raise UserError(
                f"resolution is {self.resolution} and halvings {self.halvings}; expected a resolution that can be "
                "halved so often"
            )
        if self.width % self.heads:
            raise UserError(f"width is {self.width} and heads {self.heads}; expected a multiple")


class FlowObservation(NamedTuple):
    """Observation of the policy, b rows.

    Attributes:
        frames: uint8 ``[b k h w 3]``, oldest first.
        words: int64 ``[b n]``, see `hash_words`.
        state: float32 ``[b s]``, or None.
    """

    frames: Tensor
    words: Tensor
    state: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> FlowObservation:
        """Return some rows."""
        return FlowObservation(
            self.frames[chosen], self.words[chosen], None if self.state is None else self.state[chosen]
        )

    def to(self, device: torch.device) -> FlowObservation:
        """Copy to a device."""
        return FlowObservation(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


class TinyFlow(nn.Module):
    """The networks of the policy."""

    def __init__(self, config: TinyFlowConfig) -> None:
        """Create the networks with new weights.

        Raises:
            UserError: they have 10 million parameters or more.
        """
        super().__init__()
        self.config, width = config, config.width
        first = max(width >> max(config.halvings - 1, 0), 16) if config.halvings else 16
        self.first = nn.Sequential(nn.Conv2d(3, first, 5, stride=2, padding=2), nn.SiLU())
        self.points = nn.Conv2d(first, config.points, 3, padding=1)
        self.sharpness = nn.Parameter(torch.full((config.points, 1), _SHARPNESS))
        self.read_points = nn.Sequential(
            nn.Linear(2 * config.points * config.images, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        layers: list[nn.Module] = []
        for _ in range(1, config.halvings):
            layers += [nn.Conv2d(first, min(2 * first, width), 3, stride=2, padding=1), nn.SiLU()]
            first = min(2 * first, width)
        self.stem = nn.Sequential(*layers, nn.Conv2d(first, width, 3, padding=1)) if config.halvings else None
        side = config.resolution // 2**config.halvings if config.halvings else 0
        self.places = nn.Parameter(0.02 * torch.randn(config.images * side**2, width))
        self.table = nn.Embedding(config.vocabulary, width)
        self.word_places = nn.Parameter(0.02 * torch.randn(config.words, width))
        self.state = nn.Linear(config.state_dim, width) if config.state_dim else None
        self.encoder = nn.ModuleList(_Block(width, config.heads) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(width)
        # expert
        self.read = nn.Linear(config.action_dim, width)
        self.action_places = nn.Parameter(0.02 * torch.randn(config.chunk, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.expert = nn.ModuleList(_Block(width, config.heads, timed=True) for _ in range(config.expert_layers))
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        count = sum(parameter.numel() for parameter in self.parameters())
        if count >= _MOST_PARAMETERS:
            raise UserError(
                f"the policy has {count:,} parameters; expected less than 10 million: lower width or layers"
            )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.out.weight.device

    def encode(self, observation: FlowObservation) -> Tensor:
        """Read pictures, words and state: float32 ``[b n d]``.

        Raises:
            UserError: pictures or state have another size than the policy was made for.
        """
        config, frames = self.config, observation.frames
        expected = (config.images, config.resolution, config.resolution, 3)
        if frames.shape[1:] != expected:
            raise UserError(f"frames have shape {list(frames.shape)}; this policy expects [b {expected}]")
        pixels = rearrange(frames.float().div(127.5).sub(1), "b k h w c -> (b k) c h w")
        features = self.first(pixels)
        points = rearrange(_mean_places(self.points(features), self.sharpness), "(b k) n -> b (k n)", b=len(frames))
        parts = [self.read_points(points)[:, None], self.table(observation.words) + self.word_places]
        if self.stem is not None:
            patches = rearrange(self.stem(features), "(b k) d h w -> b (k h w) d", b=len(frames))
            parts.append(patches + self.places)
        if self.state is not None:
            if observation.state is None or observation.state.shape[1] != config.state_dim:
                shape = None if observation.state is None else list(observation.state.shape)
                raise UserError(
                    f"the state is {shape} and this policy reads {config.state_dim} numbers; a world model has no "
                    "state: train the policy with state_dim=0"
                )
            parts.append(self.state(observation.state)[:, None])
        x = torch.cat(parts, dim=1)
        for block in self.encoder:
            x = block(x, x)
        return self.norm(x)

    def velocity(self, context: Tensor, x: Tensor, times: Tensor) -> Tensor:
        """Return the velocity ``[b h a]`` of noisy chunks ``x`` at times ``[b]``, given what ``encode`` returned."""
        half = self.config.width // 2
        rates = torch.exp(-6.0 * torch.arange(half, device=x.device) / half)
        angles = 100.0 * times[:, None] * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        y = self.read(x) + self.action_places
        for block in self.expert:
            y = block(y, torch.cat([context, y], dim=1), time)
        return self.out(self.out_norm(y))

    def velocity_of(self, context: Tensor) -> Velocity:
        """Return the velocity as a function of chunk and times, for the samplers."""
        return lambda x, times: self.velocity(context, x, times)

    def loss(self, observation: FlowObservation, actions: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss, a scalar.

        Args:
            observation: of b rows.
            actions: float32 ``[b h a]`` in -1 to 1.
            counts: float32 ``[b h]``, 0 for actions beyond the end of an episode, else 1.
            generator: of times and noise, on the CPU.
        """
        times = training_times(len(actions), generator).to(actions.device)
        noise = torch.randn(actions.shape, generator=generator).to(actions.device)
        velocity = self.velocity(self.encode(observation), noisy_actions(actions, noise, times), times)
        errors = (velocity - (noise - actions)).square().mean(dim=-1)
        return (errors * counts).sum() / counts.sum().clamp(min=1)

    def sample(self, context: Tensor, start: Tensor, **stochastic) -> Chain:
        """Sample chunks from noise ``start`` ``[b h a]``; keyword arguments are those of ``sample_chunk``."""
        return sample_chunk(self.velocity_of(context), start, self.config.denoise_steps, **stochastic)

    def save_pretrained(self, folder: Path) -> None:
        """Write the configuration and the weights into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, self.state_dict())
        save_json(folder / CONFIG, {"kind": KIND, "settings": to_dict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> TinyFlow:
        """Load a policy from its folder, or from the newest checkpoint of a run.

        Raises:
            UserError: there is no such policy, or its files are damaged.
        """
        place = policy_checkpoint(Path(folder))
        if place is None:
            raise UserError(f"{folder} holds no policy; give the folder of a run of ivideogpt train-policy")
        policy = cls(read_flow_config(place))
        try:
            policy.load_state_dict(load_tensors(place / WEIGHTS))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the weights in {place} do not fit its config.json ({reason}); copy it again") from error
        return policy.eval()


class FlowPolicy:
    """A `Policy` that samples the chunks of a `TinyFlow` by the deterministic flow."""

    def __init__(self, network: TinyFlow) -> None:
        """Wrap a network, which stays in its mode and on its device."""
        self.network = network
        self._words = torch.zeros(0, network.config.words, dtype=torch.long)
        self._generators: list[torch.Generator] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`."""
        words = hash_words(instructions or [""] * len(seeds), self.network.config)
        for row, seed in enumerate(seeds):
            if seed is None and row < len(self._words):
                words[row] = self._words[row]
        self._words = words
        self._generators = [
            self._generators[row] if seed is None else torch.Generator().manual_seed(seed)
            for row, seed in enumerate(seeds)
        ]

    @torch.no_grad()
    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose chunks of actions, float32 ``[b chunk a]`` in -1 to 1."""
        config, device = self.network.config, self.network.device
        state = observation.get("state") if config.state_dim else None
        seen = FlowObservation(
            torch.from_numpy(np.ascontiguousarray(observation["frames"])),
            self._words,
            None if state is None else torch.from_numpy(np.asarray(state, np.float32)),
        )
        shape = config.chunk, config.action_dim
        start = torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])
        context = self.network.encode(seen.to(device))
        return self.network.sample(context, start.to(device)).actions.clamp(-1, 1).cpu().numpy()


def hash_words(instructions: Sequence[str], config: TinyFlowConfig) -> Tensor:
    """Return the rows of the table that stand for the words, int64 ``[b n]``; 0 stands for no word."""
    rows = torch.zeros(len(instructions), config.words, dtype=torch.long)
    for row, text in enumerate(instructions):
        for column, word in enumerate(text.lower().split()[: config.words]):
            rows[row, column] = 1 + zlib.crc32(word.encode()) % (config.vocabulary - 1)
    return rows


def read_flow_config(folder: Path) -> TinyFlowConfig:
    """Read the sizes of the policy in a folder that ``policy_checkpoint`` returned.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    path = folder / CONFIG
    tree = load_json(path)
    if tree.get("kind") != KIND or "settings" not in tree:
        raise UserError(f"{path} describes no policy of the kind {KIND}; give the folder of ivideogpt train-policy")
    return from_dict(TinyFlowConfig, tree["settings"], where=str(path))


def policy_checkpoint(folder: Path) -> Path | None:
    """Return the folder with the newest policy in ``folder``, a checkpoint or a run, or None."""
    for place in (folder, *(path for _, path in reversed(step_folders(folder)))):
        if (place / WEIGHTS).is_file() and (place / CONFIG).is_file():
            return place
    return None


def _mean_places(maps: Tensor, sharpness: Tensor) -> Tensor:
    """Return the mean place, -1 to 1, of the softmax of each map: ``[b k h w]`` to ``[b 2k]``.

    Source: the spatial softmax of Levine et al. 2016, same.
    """
    weights = (sharpness * maps.flatten(2)).softmax(dim=-1).view_as(maps)
    y, x = (torch.linspace(-1, 1, size, device=maps.device) for size in maps.shape[2:])
    return torch.cat([(weights.sum(dim=2) * x).sum(-1), (weights.sum(dim=3) * y).sum(-1)], dim=1)


class _Block(nn.Module):
    """Attention and perceptron; where ``timed``, both are scaled, shifted and gated by the time of the flow."""

    def __init__(self, width: int, heads: int, *, timed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = (nn.LayerNorm(width, elementwise_affine=not timed) for _ in range(2))
        self.query, self.project = nn.Linear(width, width), nn.Linear(width, width)
        self.pair = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width) if timed else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
            self.modulation.bias.data[2 * width : 3 * width] = 1  # gates begin open
            self.modulation.bias.data[5 * width :] = 1

    def forward(self, x: Tensor, context: Tensor, time: Tensor | None = None) -> Tensor:
        """Let ``x`` ``[b n d]`` read ``context`` ``[b m d]``; in an encoder both are the same."""
        if self.modulation is None:
            normed = self.norm(x)
            x = x + self._attend(normed, normed)
            return x + self.mlp(self.norm_mlp(x))
        assert time is not None
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(F.silu(time))[:, None].chunk(6, dim=-1)
        normed = self.norm(x) * (1 + scale) + shift
        x = x + gate * self._attend(normed, context)
        return x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)

    def _attend(self, x: Tensor, context: Tensor) -> Tensor:
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.heads)
        key, value = rearrange(self.pair(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return self.project(rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)"))
