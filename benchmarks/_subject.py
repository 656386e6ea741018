"""Inputs of the benchmarks: a model of a checkpoint, or random weights in a published shape, with its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.configs.official import oxe_64_act_free, oxe_64_act_free_medium
from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.checkpoint import resolve_checkpoint
from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import choose_device
from ivideogpt.data.episode_files import load_episodes, resized
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.init_weights import new_world_model
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.session import DEFAULT_HORIZON
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED
from ivideogpt.worldmodel.world_model import WorldModel

#: Published shapes, to be filled with random weights.
RECIPES: Mapping[str, Callable[[], Recipe]] = {"official-64": oxe_64_act_free, "medium": oxe_64_act_free_medium}
DEMO = "pusht-64-tokens"


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Measures the speed of imagination beside the official way.

    Attributes:
        source: a checkpoint, the name of a shipped model, or official-64 or medium: the published shapes with random
            weights.
        batch: clips that are imagined together.
        horizon: frames to imagine.
        context_frames: frames to start from; default: those of the model.
        action_dim: numbers in an action of a published shape; 0: without actions.
        device: auto, cpu, cuda, ...
        rounds: timed repetitions; the figures are medians.
        threads: of the CPU; default: as PyTorch chooses.
        memory: measure the memory too, in one process for each row.
        baselines: measure the official way and one call of generate too; with many clips they take long.
        out: a folder for a file with the figures, named by the time.
    """

    source: Annotated[str, tyro.conf.Positional] = "official-64"
    batch: int = 1
    horizon: int = DEFAULT_HORIZON
    context_frames: int | None = None
    action_dim: int = 4
    device: str = "auto"
    rounds: int = 3
    threads: int | None = None
    memory: bool = True
    baselines: bool = True
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers; raise UserError where one is too small."""
        check_at_least(self, batch=1, horizon=1, action_dim=0, rounds=1)
        for name in ("context_frames", "threads"):
            if getattr(self, name) is not None:
                check_at_least(self, **{name: 1})


class Subject(NamedTuple):
    """A model with the start of its clips.

    Attributes:
        model: in float32, in evaluation mode.
        context: float ``[b c 3 h w]`` in [0, 1], on the model's device.
        actions: ``[b horizon a]`` in model units, on the model's device, or None.
        noise: context and actions are noise, not recordings.
    """

    model: WorldModel
    context: Tensor
    actions: Tensor | None
    noise: bool


def new_subject(options: RolloutOptions) -> Subject:
    """Load or make the model; the same numbers for the same options.

    Raises:
        UserError: the checkpoint cannot be read, or the horizon does not fit.
    """
    torch.manual_seed(0)
    random = options.source in RECIPES
    model = _random_model(options) if random else _loaded_model(options)
    if options.horizon > model.segment_limit:
        raise UserError(
            f"horizon is {options.horizon}; expected 1 to {model.segment_limit}: the official way goes no further "
            "than the positions of the model"
        )
    recorded = None if random else _recorded(model, options)
    size = model.tokenizer.config.resolution
    context, actions = recorded or (pictures(options.batch, model.context_frames, size), None)
    if model.action_dim and actions is None:
        actions = torch.randn(options.batch, options.horizon, model.action_dim)
    actions = None if actions is None else actions.to(model.device)
    return Subject(model, context.to(model.device), actions, noise=recorded is None)


def sampling_for(model: WorldModel, *, greedy: bool = False) -> Sampling:
    """Return the sampling of all rows: from all ids, as in the official code, where it could load the model.

    Other models draw from the legal ids. Without actions the official code draws the separators too.
    """
    official = model.config.heads.is_official and model.tokenizer.config.conditional
    return Sampling(greedy=greedy, legal_only=not official, free_separators=official and not model.action_dim)


def pictures(rows: int, count: int, size: int) -> Tensor:
    """Make pictures of coarse colours and noise: float ``[rows count 3 size size]`` in [0, 1]."""
    coarse = F.interpolate(torch.rand(rows * count, 3, 5, 5), (size, size), mode="bilinear")
    return (0.8 * coarse + 0.2 * torch.rand(coarse.shape)).unflatten(0, (rows, count))


def new_tokenizer(shape: TokenizerConfig) -> CompressiveTokenizer:
    """Make a tokenizer of random weights whose codes lie near encoded vectors, too far apart for rounding to matter."""
    tokenizer = CompressiveTokenizer(shape).eval()
    with torch.no_grad():
        encoded = tokenizer(pictures(1, shape.context_frames + 1, shape.resolution))
        for quantizer, vectors in (
            (tokenizer.quantize, encoded.context_vectors),
            (tokenizer.dynamics_quantize, encoded.dynamics_vectors),
        ):
            codes, pool = quantizer.embedding.weight, vectors.flatten(0, -2)
            codes.copy_(pool[torch.randint(len(pool), (len(codes),))] + 0.5 * pool.std() * torch.randn(codes.shape))
    return tokenizer


def _random_model(options: RolloutOptions) -> WorldModel:
    recipe = RECIPES[options.source]()
    shape = recipe.tokenizer.tokenizer
    count = options.context_frames or shape.context_frames
    tokenizer = new_tokenizer(replace(shape, context_frames=count))
    parts = replace(recipe.model, actions=options.action_dim > 0)
    heads = parts.fitted_heads(tokenizer, options.action_dim, rewards=False)
    model = new_world_model(parts, WorldModelConfig(context_frames=count, heads=heads), tokenizer)
    return model.to(choose_device(options.device)).eval()


def _loaded_model(options: RolloutOptions) -> WorldModel:
    model = WorldModel.from_pretrained(options.source, device=options.device, context_frames=options.context_frames)
    model.require_tokens("a comparison with the official way")
    return model


def _recorded(model: WorldModel, options: RolloutOptions) -> tuple[Tensor, Tensor | None] | None:
    """Return the start of each episode of the checkpoint in turn; None where none is long enough."""
    file = resolve_checkpoint(options.source, shipped=SHIPPED) / EPISODES_FILE
    if not file.is_file():
        return None
    start, stop = model.context_frames - 1, model.context_frames - 1 + options.horizon
    episodes = [
        episode
        for episode in load_episodes(file)
        if len(episode) > stop and (episode.actions is not None or not model.action_dim)
    ]
    if not episodes:
        return None
    chosen = [resized(episodes[row % len(episodes)], model.tokenizer.config.resolution) for row in range(options.batch)]
    frames = torch.stack([torch.from_numpy(episode.frames[: start + 1].copy()) for episode in chosen])
    context = rearrange(frames, "b t h w c -> b t c h w").float() / 255
    if not model.action_dim:
        return context, None
    actions = [episode.actions[start:stop].copy() for episode in chosen if episode.actions is not None]
    return context, model.normalize_actions(torch.stack([torch.from_numpy(rows) for rows in actions]).float())
