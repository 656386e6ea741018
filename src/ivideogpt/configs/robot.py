"""Presets of a small world model of one scene for your own data, and of a tiny one that tests the installation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ivideogpt.configs.pusht import pusht_recipe, pusht_tokenizer
from ivideogpt.configs.recipe import Recipe
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.token_forecast import ForecastTraining
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.transformer import TransformerTraining


def robot_recipe() -> Recipe:
    """Return the shape of the shipped model, for one scene that a camera sees from a fixed place."""
    recipe = pusht_recipe()
    tokenizer = replace(pusht_tokenizer(), context_codes=1024, dynamics_codes=1024)
    transformer = replace(recipe.model.transformer, vocab_size=tokenizer.layout.vocab_size)
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, tokenizer=tokenizer),
        model=replace(recipe.model, transformer=transformer),
        stride=None,
        temperature=1.0,
    )


def robot_quick_recipe() -> Recipe:
    """Return `robot_recipe` with a tenth of the updates: a first look at your own data."""
    recipe = robot_recipe()

    def shortened(training: Any) -> Any:
        tenths = {name: getattr(training, name) // 10 for name in ("steps", "warmup_steps", "save_every")}
        if isinstance(training, TokenizerTraining):
            tenths["continuous_steps"] = training.continuous_steps // 10
        return replace(training, **tenths)

    return replace(
        recipe,
        tokenizer=shortened(recipe.tokenizer),
        forecasts=tuple(shortened(forecast) for forecast in recipe.forecasts),
        transformer=shortened(recipe.transformer),
    )


def debug_recipe() -> Recipe:
    """Return a training of seconds; the model is of no use."""
    tokenizer = TokenizerConfig(
        resolution=16,
        block_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_groups=0,
        context_codes=16,
        dynamics_codes=16,
        max_attention_resolution=0,
        patch_size=1,
        pixel_unshuffle=2,
        conditional=False,
        background=True,
    )
    transformer = TransformerConfig(
        vocab_size=tokenizer.layout.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        max_positions=tokenizer.layout.length(2, 6),
    )
    return Recipe(
        tokenizer=TokenizerTraining(
            tokenizer=tokenizer, steps=20, batch_size=4, horizon=4, warmup_steps=2, continuous_steps=4, save_every=10
        ),
        model=ModelShape(
            transformer=transformer,
            heads=HeadsConfig(
                slots=tokenizer.layout.slot_count,
                forecast_grid=tokenizer.dynamics_grid,
                forecast_width=16,
                forecast_blocks=1,
                reward=True,
            ),
        ),
        forecasts=(ForecastTraining(steps=4, batch_size=4, unroll=1, save_every=10),),
        transformer=TransformerTraining(
            steps=20, batch_size=4, clip_frames=6, warmup_steps=2, imagined_share=0.15, imagined_run=1.2, save_every=10
        ),
        stride=1,
    )
