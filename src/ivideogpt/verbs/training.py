"""The recipe of the shipped model: collect, train the tokenizer, train the transformer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ivideogpt.collect.episodes import collect
from ivideogpt.core.episode import Episode
from ivideogpt.core.run import Run, choose_precision
from ivideogpt.data.episodes import load_folder
from ivideogpt.data.frames import EpisodeArrays
from ivideogpt.envs.pusht import ACTION_MEAN, ACTION_STD, SIDE
from ivideogpt.models.heads import Heads
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import Transformer
from ivideogpt.presets.pusht import CONTEXT_FRAMES, TEMPERATURE, PushTTraining
from ivideogpt.train.forecast import train_forecast
from ivideogpt.train.tokenizer import train_tokenizer
from ivideogpt.train.transformer import train_transformer
from ivideogpt.worldmodel.config import ActionSpace, WorldModelConfig
from ivideogpt.worldmodel.losses import transformer_losses
from ivideogpt.worldmodel.world_model import WorldModel

EMBEDDING_STD = 0.3
HEAD_STD = 0.05
QUIET = 0.3


def train_pusht(
    recipe: PushTTraining, folder: Path, data: Path, *, device: str = "auto", precision: str = "auto"
) -> tuple[WorldModel, list[Episode]]:
    """Trains the PushT model; what is collected or trained already is not done again.

    Args:
        recipe: the settings.
        folder: of the two runs.
        data: where episodes are kept.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "float32" or "bfloat16".

    Returns:
        The trained model and the held-out episodes.
    """
    collect(recipe.train_seeds, data / "pusht", shard=100, length=recipe.episode_frames)
    collect(recipe.test_seeds, data / "pusht-test", shard=100, length=recipe.episode_frames)
    train = EpisodeArrays.from_episodes(load_folder(data / "pusht"))
    test = load_folder(data / "pusht-test")
    forecasts = {f"forecast-{index + 1}": config for index, config in enumerate(recipe.forecasts)}
    runs = {
        name: Run(
            folder / name,
            seed=config.seed,
            device=device,
            precision=choose_precision(precision, device),
            log_every=config.log_every,
            save_every=config.save_every,
        )
        for name, config in {
            "tokenizer": recipe.tokenizer,
            **forecasts,
            "transformer": recipe.transformer,
        }.items()
    }
    tokenizer = train_tokenizer(recipe.tokenizer, train, runs["tokenizer"])
    model = new_pusht_model(recipe, tokenizer)
    for name, config in forecasts.items():
        model = train_forecast(config, model, train, runs[name])
    clips = EpisodeArrays.from_episodes(test)

    def validate(trained: WorldModel) -> dict[str, float]:
        return validation(trained, clips, recipe.transformer.clip_frames)

    model = train_transformer(recipe.transformer, model, train, runs["transformer"], evaluate=validate)
    about = {
        "license": "mit",
        "data": f"PushT episodes of {recipe.episode_frames} frames, seeds {recipe.train_seeds}; "
        f"held out: {recipe.test_seeds}",
        "training": {
            "tokenizer": f"{recipe.tokenizer.steps} updates, {runs['tokenizer'].seconds:.0f} s",
            **{name: f"{config.steps} updates, {runs[name].seconds:.0f} s" for name, config in forecasts.items()},
            "transformer": f"{recipe.transformer.steps} updates, {runs['transformer'].seconds:.0f} s",
        },
    }
    model.config = replace(model.config, metadata=about)
    return model, test


def new_pusht_model(recipe: PushTTraining, tokenizer: CompressiveTokenizer) -> WorldModel:
    """A world model around a trained tokenizer, with a new transformer.

    Nothing about the tokens is left for it to find out that the tokenizer knows already: embeddings start as a random
    projection of the codes' vectors, so that codes that look alike are alike; they are the same for a code in a context
    frame and in a future frame; and looking back starts in the directions of the head. Layers start almost silent
    beside the embeddings, so that the first guess is "as before" and everything learned is a change.
    """
    torch.manual_seed(recipe.transformer.seed)
    config = WorldModelConfig(
        name="pusht-64",
        context_frames=CONTEXT_FRAMES,
        clip_frames=recipe.transformer.clip_frames,
        action_mean=tuple(map(float, ACTION_MEAN)),
        action_std=tuple(map(float, ACTION_STD)),
        action_space=ActionSpace(names=("x", "y"), low=(0.0, 0.0), high=(SIDE, SIDE), units=("px", "px"), pointer=True),
        temperature=TEMPERATURE,
        heads=recipe.transformer.heads,
    )
    transformer = Transformer(recipe.transformer.transformer)
    heads = Heads(config.heads, transformer.config.hidden_size, tokenizer.layout.dynamics_codes)
    vectors = tokenizer.quantize.embedding.weight.detach().cpu()
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0).clamp(min=1e-6)
    codes = len(vectors)
    with torch.no_grad():
        for weight, std in ((transformer.embed.weight, EMBEDDING_STD), (transformer.head.weight, HEAD_STD)):
            alike = vectors @ torch.randn(vectors.shape[1], weight.shape[1]) * (vectors.shape[1] ** -0.5)
            weight[: 2 * codes] = std * (alike + 0.25 * torch.randn_like(alike)).repeat(2, 1)
        same = transformer.head.weight[codes : 2 * codes] * (EMBEDDING_STD / HEAD_STD)
        for frame, weight in enumerate(heads.forecast.seen.parameters()):
            weight.copy_(same * QUIET**frame)
        seen = heads.forecast.codes.weight
        seen.copy_(vectors @ torch.randn(vectors.shape[1], seen.shape[1]) * vectors.shape[1] ** -0.5)
        for name, weight in heads.forecast.named_parameters():
            if name == "out.weight" or name.endswith("conv2.weight"):
                weight.mul_(QUIET)
        heads.slot_embedding.weight.mul_(EMBEDDING_STD / heads.slot_embedding.weight.std())
        heads.action_linear.weight.normal_(std=EMBEDDING_STD / heads.config.action_features**0.5)
        for layer in transformer.layers:
            for name, weight in layer.named_parameters():
                if name in ("attention.out.weight", "feed_forward.down.weight"):
                    weight.mul_((2 * len(transformer.layers)) ** -0.5)
    return WorldModel(config, tokenizer, transformer, heads)


@torch.inference_mode()
def validation(model: WorldModel, clips: EpisodeArrays, clip_frames: int, batch_size: int = 10) -> dict[str, float]:
    """Mean token loss and accuracy on the clips in the middle of held-out episodes."""
    starts = clips.starts + (clips.lengths - clip_frames) // 2
    count, sums = model.context_frames, {"validation_tokens": 0.0, "validation_accuracy": 0.0}
    batches = starts.split(batch_size)
    for rows in tqdm(batches, desc="validation", leave=False):
        clip = clips.clips(rows[:, None] + torch.arange(clip_frames), count)
        ids, _ = model.tokenizer.tokenize(clip.frames.to(model.device))
        assert clip.actions is not None
        actions = model.normalize_actions(clip.actions[:, count - 1 : -1]).to(model.device)
        losses = transformer_losses(model, ids, actions)
        sums["validation_tokens"] += float(losses.tokens) / len(batches)
        sums["validation_accuracy"] += float(losses.accuracy) / len(batches)
    return sums
