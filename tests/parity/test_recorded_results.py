"""Results that a redesign must not change: tokens of the shipped models, and losses of 20 updates of each training.

The numbers in ``recorded_tokens.npz`` and ``recorded_losses.json`` were recorded before the redesign of November 2026.
To record them again, after a change that is meant to change them: ``python tests/parity/test_recorded_results.py``.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from ivideogpt import Sampling, WorldModel
from ivideogpt.core.run import Run
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.data.loader import ClipLoader
from ivideogpt.envs.record.moving_square import collect_squares
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.init_weights import ModelShape, new_world_model
from ivideogpt.training.token_batches import LiveTokens
from ivideogpt.training.token_forecast import ForecastTraining, train_forecast
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.shipped import ASSETS

pytestmark = pytest.mark.parity

TOKENS, LOSSES = (Path(__file__).parent / name for name in ("recorded_tokens.npz", "recorded_losses.json"))
#: Temperature of the checkpoint when the tokens were recorded, and frames imagined. The horizon of pusht-64 crosses the
#: end of its segment.
SHIPPED_MODELS = {"pusht-64-tokens": (0.85, 14)}
DRAWS = [(seed, greedy) for seed in (0, 1) for greedy in (True, False)]
#: Share of sampled ids that may differ: products round differently from processor to processor, so that a number drawn
#: near the border between two ids chooses the other one, and everything after it differs.
DIFFERENT_IDS = 0.01
RELATIVE = 1e-4

SHAPES = {
    "plain": TokenizerConfig(
        resolution=16,
        block_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_groups=0,
        context_codes=8,
        dynamics_codes=8,
        patch_size=1,
        pixel_unshuffle=2,
        conditional=False,
        background=True,
    )
}
SHAPES["conditional"] = replace(
    SHAPES["plain"],
    block_channels=(32, 32),
    norm_groups=8,
    patch_size=2,
    conditional=True,
    background=False,
    dropout=0.0,
)


def imagined(model: WorldModel, seed: int, greedy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids ``[2 horizon m]`` and rewards ``[2 horizon]`` of two clips of the model's own held-out episodes."""
    temperature, horizon = SHIPPED_MODELS[model.config.name]
    count, clips = model.context_frames, []
    for episode in load_episodes(ASSETS / model.config.name / "episodes.safetensors"):
        if len(episode) >= count + horizon:
            clips.append(episode.window(0, count + horizon))
    frames = torch.stack([torch.from_numpy(clip.frames[:count]) for clip in clips[:2]]).permute(0, 1, 4, 2, 3)
    actions = torch.stack([torch.from_numpy(clip.actions[count - 1 : -1]) for clip in clips[:2]])
    sampling = Sampling(greedy=True) if greedy else Sampling(temperature=temperature)
    found = model.imagine(frames, model.normalize_actions(actions), sampling=sampling, seed=seed)
    return found.ids.numpy().astype(np.int16), found.rewards.numpy()


def training_losses(folder: Path) -> dict[str, list[float]]:
    """The losses of 20 updates of each training."""
    store = folder / "store"
    collect_squares(store, episodes=6)
    losses = {}
    for name, shape in SHAPES.items():
        config = TokenizerTraining(
            tokenizer=shape, steps=20, batch_size=2, horizon=4, continuous_steps=10, log_every=0, warmup_steps=1
        )
        frames = ClipSpec(
            frames=2 + config.future_frames, mode="random_after_context", horizon=2 + config.horizon, size=16, stride=1
        )
        loader = ClipLoader(str(store), replace(frames, actions=False), batch_size=config.batch_size)
        train_tokenizer(config, loader, Run(folder / f"tokenizer-{name}", save_every=0, log_every=0))
        losses[f"tokenizer {name}"] = logged(folder / f"tokenizer-{name}")

        model = new_model(shape)
        training = TransformerTraining(
            steps=20,
            batch_size=2,
            clip_frames=5,
            log_every=0,
            warmup_steps=1,
            imagined_share=0.0 if shape.conditional else 0.25,
        )
        train_transformer(training, model, tokens(model, store, 5, 2), Run(folder / name, save_every=0, log_every=0))
        losses[f"transformer {name}"] = logged(folder / name)
    model, forecast = new_model(SHAPES["plain"]), ForecastTraining(steps=20, batch_size=8, unroll=1, warmup_steps=1)
    batches = tokens(model, store, forecast.clip_frames(2), 8)
    train_forecast(forecast, model, batches, Run(folder / "forecast", save_every=0, log_every=0))
    return losses | {"forecast": logged(folder / "forecast")}


def new_model(shape: TokenizerConfig) -> WorldModel:
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer(shape).eval()
    transformer = TransformerConfig(
        hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, max_positions=tokenizer.layout.length(2, 3)
    )
    heads = HeadsConfig(
        forecast_grid=0 if shape.conditional else shape.dynamics_grid,
        forecast_width=16,
        forecast_blocks=1,
        reward=True,
        action_reconstruction=True,
        termination=True,
    )
    model_shape = ModelShape(transformer=transformer, heads=heads)
    config = WorldModelConfig(
        context_frames=2,
        clip_frames=5,
        heads=model_shape.fitted_heads(tokenizer, action_dim=1, rewards=True),
        action_mean=(1.5,),
        action_std=(0.5,),
    )
    return new_world_model(model_shape, config, tokenizer)


def tokens(model: WorldModel, store: Path, frames: int, size: int) -> LiveTokens:
    spec = ClipSpec(frames=frames, size=16, stride=1, rewards=True)
    return LiveTokens(model, ClipLoader(str(store), spec, batch_size=size, seed=0))


def logged(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record() -> None:
    arrays = {}
    for name in SHIPPED_MODELS:
        model = WorldModel.from_pretrained(name)
        for seed, greedy in DRAWS:
            label = f"{name} {seed} {greedy}"
            arrays[f"{label} ids"], arrays[f"{label} rewards"] = imagined(model, seed, greedy)
    np.savez_compressed(TOKENS, **arrays)
    with TemporaryDirectory() as folder:
        LOSSES.write_text(json.dumps(training_losses(Path(folder)), indent=1) + "\n")


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_shipped_models_draw_the_recorded_tokens(name: str) -> None:
    recorded, model = np.load(TOKENS), WorldModel.from_pretrained(name)
    for seed, greedy in DRAWS:
        label = f"{name} {seed} {greedy}"
        ids, rewards = imagined(model, seed, greedy)
        different = ids != recorded[f"{label} ids"]
        assert different.mean() <= DIFFERENT_IDS, label
        same = ~different.any(axis=-1).cumsum(axis=-1).astype(bool)  # frames before the first difference
        np.testing.assert_allclose(rewards[same], recorded[f"{label} rewards"][same], atol=1e-3, err_msg=label)


def test_trainings_have_the_recorded_losses(tmp_path: Path) -> None:
    losses = training_losses(tmp_path)
    recorded = json.loads(LOSSES.read_text())
    assert losses.keys() == recorded.keys()
    for name, values in recorded.items():
        np.testing.assert_allclose(losses[name], values, rtol=RELATIVE, err_msg=name)


if __name__ == "__main__":
    record()
