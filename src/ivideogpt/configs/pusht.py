"""The shipped PushT model: its data, shapes and training settings, measured in docs/decisions.md."""

from __future__ import annotations

from ivideogpt.configs.recipe import Recipe
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.token_forecast import ForecastTraining
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.transformer import TransformerTraining

CONTEXT_FRAMES = 2
#: Between the likeliest tokens, which draw nothing where the model is unsure, and draws that scatter.
TEMPERATURE = 0.85


def pusht_tokenizer() -> TokenizerConfig:
    """Return a tokenizer of 8x8 codes a frame, with one network for all frames and a fixed background."""
    return TokenizerConfig(
        resolution=64,
        block_channels=(64, 128),
        layers_per_block=2,
        latent_channels=16,
        norm_groups=0,
        context_codes=512,
        dynamics_codes=512,
        context_frames=CONTEXT_FRAMES,
        max_attention_resolution=0,
        patch_size=1,
        pixel_unshuffle=4,
        conditional=False,
        background=True,
    )


def pusht_model() -> ModelShape:
    """Return a small transformer with a forecast and an embedding of positions in a frame."""
    tokenizer = pusht_tokenizer()
    layout = tokenizer.layout
    return ModelShape(
        transformer=TransformerConfig(
            vocab_size=layout.vocab_size,
            hidden_size=192,
            intermediate_size=512,
            num_layers=4,
            num_heads=2,
            max_positions=layout.length(CONTEXT_FRAMES, 14),
        ),
        heads=HeadsConfig(
            action_frequencies=4,
            slots=layout.slot_count,
            forecast_grid=tokenizer.dynamics_grid,
            forecast_width=96,
            forecast_blocks=4,
            reward=True,
        ),
    )


def pusht_recipe() -> Recipe:
    """Return the settings of the shipped model."""
    return Recipe(
        tokenizer=TokenizerTraining(
            tokenizer=pusht_tokenizer(),
            steps=6_000,
            batch_size=12,
            future_frames=2,
            learning_rate=8e-4,
            continuous_steps=400,
            save_every=500,
        ),
        model=pusht_model(),
        forecasts=(ForecastTraining(steps=6_000), ForecastTraining(steps=4_000, unroll=3, learning_rate=1e-3)),
        transformer=TransformerTraining(
            steps=9_000,
            batch_size=8,
            clip_frames=10,
            learning_rate=1.5e-3,
            warmup_steps=100,
            final_ratio=0.02,
            imagined_share=0.15,
            imagined_run=1.2,
            save_every=500,
        ),
        stride=1,
        temperature=TEMPERATURE,
    )
