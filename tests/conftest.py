"""Tiny world models with random weights, the same in every run, and pictures and actions to feed them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

# Each worker of a parallel run takes one thread, and so do the processes that its tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# 8x8 context tokens, 2x2 dynamics tokens
CONDITIONAL = TokenizerConfig(
    resolution=16,
    block_channels=(32, 32),
    layers_per_block=1,
    latent_channels=8,
    norm_groups=16,
    context_codes=24,
    dynamics_codes=20,
    max_attention_resolution=8,
)
# 4x4 tokens a frame, every option that the official format does not know
PLAIN = TokenizerConfig(
    resolution=16,
    block_channels=(16, 32),
    layers_per_block=1,
    latent_channels=8,
    norm_groups=0,
    context_codes=24,
    dynamics_codes=24,
    max_attention_resolution=0,
    patch_size=1,
    pixel_unshuffle=2,
    conditional=False,
    background=True,
)
# 16x16 and 4x4, the official grids
OFFICIAL = replace(
    CONDITIONAL,
    resolution=64,
    block_channels=(32, 32, 64),
    context_codes=40,
    dynamics_codes=32,
    max_attention_resolution=16,
)

PLAIN_HEADS = HeadsConfig(
    action_dim=2, action_frequencies=2, slots=17, forecast_grid=4, forecast_width=16, forecast_blocks=1, reward=True
)
ALL_HEADS = HeadsConfig(action_dim=3, reward=True, action_reconstruction=True)

#: Tokenizer, most positions, and what the checkpoint says of each kind of model.
KINDS: dict[str, tuple[TokenizerConfig, int, WorldModelConfig]] = {
    "conditional": (CONDITIONAL, 192, WorldModelConfig(name="conditional", clip_frames=6, heads=ALL_HEADS)),
    "action_free": (CONDITIONAL, 160, WorldModelConfig(name="action_free")),
    "plain": (
        PLAIN,
        192,
        WorldModelConfig(
            name="plain",
            clip_frames=6,
            symlog_rewards=True,
            action_mean=(0.5, -1.0),
            action_std=(2.0, 0.25),
            frame_stride=2,
            heads=PLAIN_HEADS,
            metadata={"data": {"train_seeds": "0:10"}, "seconds": 3.5},
        ),
    ),
    "goal": (
        CONDITIONAL,
        192,
        WorldModelConfig(name="goal", clip_frames=6, goal_conditioned=True, heads=HeadsConfig(action_dim=3)),
    ),
    "official": (OFFICIAL, 640, WorldModelConfig(name="official", clip_frames=6, heads=ALL_HEADS)),
}


def _build(kind: str, **changes: object) -> WorldModel:
    shape, positions, config = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, kind)))
        tokenizer = _tokenizer(shape)
        transformer = Transformer(
            TransformerConfig(
                vocab_size=shape.layout.vocab_size,
                hidden_size=32,
                intermediate_size=48,
                num_layers=2,
                num_heads=2,
                max_positions=positions,
            )
        )
        heads = Heads(config.heads, 32, shape.layout.dynamics_codes)
        # Wide enough that every token depends on what stands before it.
        for parameter in [*transformer.parameters(), *heads.parameters()]:
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=1.5 * 32**-0.5)
        nn.init.normal_(transformer.embed.weight)
    return WorldModel(replace(config, **changes), tokenizer, transformer, heads).eval()  # type: ignore[arg-type]


@torch.no_grad()
def _tokenizer(shape: TokenizerConfig) -> CompressiveTokenizer:
    tokenizer = CompressiveTokenizer(shape).eval()
    decoders = [tokenizer.decoder, *([tokenizer.cond_decoder] if shape.conditional else [])]
    for decoder in decoders:
        nn.init.constant_(decoder.conv_out.bias, 0.5)  # grey on average: little of a frame is clamped
    # Codes are vectors that frames have, so that many of them are used.
    seen = tokenizer(_frames(12, shape.context_frames + 2, shape.resolution, seed=99))
    for name, vectors in (("quantize", seen.context_vectors), ("dynamics_quantize", seen.dynamics_vectors)):
        if hasattr(tokenizer, name):
            codes, pool = getattr(tokenizer, name).embedding.weight, vectors.flatten(0, -2)
            codes.copy_(pool[torch.randperm(len(pool))[: len(codes)]] + 0.01 * torch.randn(codes.shape))
    return tokenizer


def _frames(rows: int, count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Float ``[rows count 3 size size]`` in [0, 1]: coloured noise that drifts."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows * count, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=generator)).unflatten(0, (rows, count))


@pytest.fixture(scope="session")
def build() -> Callable[..., WorldModel]:
    """``build(kind, **changes of its WorldModelConfig)``: a new model that the test may change."""
    return _build


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], WorldModel]:
    """``model_of(kind)``: a model that tests share and leave as it is."""
    built: dict[str, WorldModel] = {}

    def get(kind: str) -> WorldModel:
        if kind not in built:
            built[kind] = _build(kind)
        return built[kind]

    return get


@pytest.fixture(params=list(KINDS))
def any_model(request: pytest.FixtureRequest, model_of: Callable[[str], WorldModel]) -> WorldModel:
    """Each kind of model, shared."""
    return model_of(request.param)


@pytest.fixture(scope="session")
def frames_for() -> Callable[..., torch.Tensor]:
    """``frames_for(model, rows, count, seed)``: float ``[rows count 3 h w]`` in [0, 1]."""

    def make(model: WorldModel, rows: int = 2, count: int | None = None, seed: int = 0) -> torch.Tensor:
        return _frames(rows, count or model.context_frames, model.tokenizer.config.resolution, seed)

    return make


@pytest.fixture(scope="session")
def actions_for() -> Callable[..., torch.Tensor | None]:
    """``actions_for(model, rows, horizon, seed)``: ``[rows horizon a]``, or None for an action-free model."""

    def make(model: WorldModel, rows: int = 2, horizon: int = 3, seed: int = 0) -> torch.Tensor | None:
        if not model.action_dim:
            return None
        return torch.randn(rows, horizon, model.action_dim, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[..., object]:
    """``store_of(lengths, name=, dim=, size=, split=, rewards=)``: an episode of each length; ``dim`` 0: no actions."""

    from ivideogpt.data.convert.source_episode import SourceEpisode
    from ivideogpt.data.store.metadata import StoreFacts
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.data.store.writer import ShardTask, convert_to_store

    def make(
        lengths: tuple[int, ...],
        *,
        name: str = "mine",
        dim: int = 3,
        size: tuple[int, int] = (16, 16),
        split="test",
        rewards: bool = False,
    ) -> EpisodeStore:
        def read():
            for index, length in enumerate(lengths):
                random = np.random.default_rng(index)
                picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                actions = random.normal(size=(length, max(dim, 1))).astype(np.float32)
                actions[-1] = 0
                yield SourceEpisode(
                    key=f"e{index}",
                    split=split if isinstance(split, str) else split[index],
                    cameras={"image": np.stack([np.roll(picture, t, axis=1) for t in range(length)])},
                    actions=actions if dim else None,
                    rewards=np.arange(length, dtype=np.float32) if rewards else None,
                )

        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        convert_to_store([ShardTask("all", read)], folder, facts=StoreFacts(name=name), workers=0)
        return EpisodeStore(folder)

    return make
