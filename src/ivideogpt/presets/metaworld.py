"""Six tasks of Meta-World in one small model, with rewards; for `ivideogpt demos collect all`."""

from __future__ import annotations

from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.presets.recipe import Recipe
from ivideogpt.train.forecast import ForecastTraining
from ivideogpt.train.start import ModelShape
from ivideogpt.train.tokenizer import TokenizerTraining
from ivideogpt.train.transformer import TransformerTraining


def metaworld_recipe() -> Recipe:
    """64 px, 8x8 codes a frame from one codebook; no background, as each task has a scene of its own."""
    tokenizer = TokenizerConfig(
        resolution=64,
        block_channels=(96, 192),
        layers_per_block=2,
        latent_channels=16,
        norm_groups=0,
        context_codes=1024,
        dynamics_codes=1024,
        context_frames=2,
        max_attention_resolution=0,
        patch_size=1,
        pixel_unshuffle=4,
        conditional=False,
    )
    layout = tokenizer.layout
    return Recipe(
        tokenizer=TokenizerTraining(
            tokenizer=tokenizer,
            steps=6_000,
            batch_size=12,
            learning_rate=8e-4,
            continuous_steps=400,
            rare_colour_weight=5.0,
            save_every=500,
        ),
        model=ModelShape(
            transformer=TransformerConfig(
                vocab_size=layout.vocab_size,
                hidden_size=256,
                intermediate_size=704,
                num_layers=4,
                num_heads=2,
                max_positions=layout.length(2, 14),
            ),
            action_frequencies=2,
            slots=True,
            forecast_width=128,
            forecast_blocks=4,
            rewards=True,
            symlog_rewards=True,
        ),
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
    )
