"""The two world models of RLVR-World: RT-1 at 256 x 320 pixels, with actions as tokens.

    ivideogpt train-tokenizer rlvr-world-multi --data stores/fractal --run runs/rlvr-tokenizer

Batches are those of the scripts' GPUs together. ``steps`` of a tokenizer are our updates: half of the official counter,
which alternates between generator and discriminator.

Source: thuml/RLVR-World ``vid_wm/ivideogpt/scripts`` and the defaults of its training programs; the same numbers. Its
data loader was not read: the clips of the tokenizers and their 500 updates of warm-up are those of iVideoGPT.
"""

from __future__ import annotations

from ivideogpt.configs.official import tokenizer_updates
from ivideogpt.configs.recipe import Recipe
from ivideogpt.models.discriminator import DiscriminatorConfig
from ivideogpt.models.dynamics import ACTION_TOKENS, HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining

#: GPUs of the scripts: per-frame tokenizer, compressive tokenizer, transformers.
_FRAME_GPUS, _COMPRESSIVE_GPUS, _TRANSFORMER_GPUS = 8, 16, 8
_SEGMENT = 8
_CODES = {"levels": (7, 5, 5, 5, 5), "context_codes": 4375, "dynamics_codes": 4375}


def single_tokenizer() -> TokenizerConfig:
    """Return the per-frame tokenizer: each frame alone, 16 x 20 tokens."""
    return TokenizerConfig(
        resolution=256,
        width=320,
        block_channels=(128, 256, 256, 512, 768),
        patch_size=1,
        mid_attention=True,
        conditional=False,
        context_frames=4,
        **_CODES,
    )


def multi_tokenizer() -> TokenizerConfig:
    """Return the compressive tokenizer: 32 x 40 tokens of a reference frame, 8 x 10 of each later frame."""
    return TokenizerConfig(
        resolution=256,
        width=320,
        block_channels=(128, 256, 256, 512),
        max_attention_resolution=32,
        context_frames=1,
        **_CODES,
    )


def rlvr_single() -> Recipe:
    """Return single-step prediction: four frames with their actions, and the next one."""
    return _recipe(single_tokenizer(), clip_frames=5, batch_size=2 * _FRAME_GPUS)


def rlvr_multi() -> Recipe:
    """Return multi-step prediction: a reference frame and the present one, and seven frames after them."""
    return _recipe(multi_tokenizer(), clip_frames=1 + _SEGMENT, batch_size=_COMPRESSIVE_GPUS)


def _recipe(tokenizer: TokenizerConfig, *, clip_frames: int, batch_size: int) -> Recipe:
    return Recipe(
        tokenizer=TokenizerTraining(
            tokenizer=tokenizer,
            steps=tokenizer_updates(600_000),
            batch_size=batch_size,
            future_frames=_SEGMENT - tokenizer.context_frames,
            horizon=15,
            learning_rate=5e-4,
            schedule="constant",
            warmup_steps=500,
            betas=(0.9, 0.999),
            continuous_steps=0,
            codes="gradient",
            loss=TokenizerLossConfig(discriminator_weight=0.1, discriminator_start=tokenizer_updates(10_000)),
            discriminator=DiscriminatorConfig(depth=6),
            rare_colour_weight=1.0,
            save_every=tokenizer_updates(50_000),
        ),
        model=ModelShape(
            # training adds the tokens of the actions to the vocabulary
            transformer=TransformerConfig(max_positions=8192, vocab_size=tokenizer.layout.vocab_size),
            heads=HeadsConfig(action_conditioning=ACTION_TOKENS),
        ),
        transformer=TransformerTraining(
            steps=1_000_000,
            batch_size=4 * _TRANSFORMER_GPUS,
            clip_frames=clip_frames,
            learning_rate=5e-5,
            schedule="constant",
            warmup_steps=5_000,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            save_every=10_000,
        ),
        reference_distance=15,
    )
