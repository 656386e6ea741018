"""The shipped PushT model: shapes and training settings."""

from __future__ import annotations

from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.train.tokenizer import TokenizerTraining


def pusht_tokenizer() -> TokenizerConfig:
    """8x8 codes a frame, one network for all frames, a learned background."""
    return TokenizerConfig(
        resolution=64,
        block_channels=(64, 128),
        layers_per_block=2,
        latent_channels=16,
        norm_groups=0,
        context_codes=512,
        dynamics_codes=512,
        max_attention_resolution=0,
        patch_size=1,
        pixel_unshuffle=4,
        conditional=False,
        background=True,
    )


def pusht_tokenizer_training() -> TokenizerTraining:
    """About 20 minutes on 2 cores with bfloat16 units."""
    return TokenizerTraining(tokenizer=pusht_tokenizer(), steps=5_500, batch_size=12, future_frames=2, learning_rate=8e-4, continuous_steps=500, save_every=500)
