"""The models of the paper, trained as the official scripts do: ``official-`` and the name of the script.

    ivideogpt train-tokenizer official-bair-64-act-cond --data stores/bair --run runs/bair-tokenizer --init FOLDER

Batches are those of the scripts' four GPUs, gradient accumulation included. ``steps`` are our updates. For a tokenizer
they are half of ``--max_train_steps``, because the official counter alternates between generator and discriminator,
also before the discriminator takes part; for a transformer they are the same. The paper stopped some runs earlier
(Open X-Embodiment: the transformer at 700,000; at 256 px the tokenizer at 250,000 steps of that counter and the
transformer at 350,000; RoboNet at 256 px at 150,000 and 500,000): ``--steps`` does it without changing the schedule.

Source: thuml/iVideoGPT ``scripts/``, ``configs/`` and the defaults of train_tokenizer.py and train_gpt.py; same.
Differs: a preset has no weights. The official fine-tuning and the goal-conditioned tokenizer start from released ones
(give ``--init``), and the 256 px tokenizer from aMUSEd's VQGAN (give ``--vqgan amused/amused-256``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from ivideogpt.configs.recipe import Recipe
from ivideogpt.data.augment import Augmentation
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining

#: GPUs that the official scripts were run on; their batch sizes are of one.
GPUS = 4
#: Frames of the tokenizer's clips in every script, context included.
_TOKENIZER_FRAMES = 8


def tokenizer_updates(official_steps: int) -> int:
    """Return the updates of the tokenizer in so many steps of the official counter, which counts every second step."""
    return (official_steps + 1) // 2


def small_transformer() -> TransformerConfig:
    """Official ``configs/llama/config.json`` with ``--llama_attn_drop 0.1``."""
    return TransformerConfig(attention_dropout=0.1)


def medium_transformer() -> TransformerConfig:
    """Official ``configs/llama/config_medium.json`` with ``--llama_attn_drop 0.1``."""
    return replace(small_transformer(), hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16)


def oxe_64_act_free() -> Recipe:
    """Pre-training on Open X-Embodiment, without actions; the tokenizer also on Something-Something."""
    recipe = Recipe(
        tokenizer=TokenizerTraining(
            tokenizer=TokenizerConfig(),
            steps=tokenizer_updates(1_000_000),
            batch_size=16 * GPUS,
            learning_rate=5e-4,
            schedule="constant",
            warmup_steps=500,
            betas=(0.9, 0.999),
            continuous_steps=0,
            codes="gradient",
            loss=TokenizerLossConfig(discriminator_weight=0.0),  # it would start after the last step
            rare_colour_weight=1.0,
            log_every=tokenizer_updates(50),
            save_every=tokenizer_updates(5_000),
        ),
        model=ModelShape(transformer=small_transformer(), actions=False),
        transformer=TransformerTraining(
            steps=1_000_000,
            batch_size=16 * GPUS,
            learning_rate=1e-4,
            warmup_steps=5_000,
            betas=(0.9, 0.999),
            clip_norm=None,
            log_every=100,
            save_every=5_000,
        ),
        augmentation=Augmentation(),
    )
    return _framed(recipe, context_frames=2, clip_frames=16)


def oxe_64_act_free_medium() -> Recipe:
    """Return `oxe_64_act_free` with the larger transformer and clipped gradients."""
    recipe = oxe_64_act_free()
    return replace(
        recipe,
        model=replace(recipe.model, transformer=medium_transformer()),
        transformer=replace(recipe.transformer, gradient_accumulation=2, clip_norm=1.0),
    )


def oxe_64_goal_cond() -> Recipe:
    """Pre-training with the last frame of a clip before the first; the tokenizer starts from the act-free one."""
    recipe = oxe_64_act_free()
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, learning_rate=1e-4),
        model=replace(recipe.model, goal_conditioned=True),
        transformer=replace(recipe.transformer, clip_frames=17),
    )


def oxe_256_act_free() -> Recipe:
    """Pre-training at 256 px; the tokenizer has a discriminator from the official step 250,000 on.

    The official tokenizer starts from aMUSEd's VQGAN: ``--vqgan amused/amused-256``.
    """
    recipe = oxe_64_act_free()
    shape = replace(
        recipe.tokenizer.tokenizer,
        resolution=256,
        block_channels=(128, 256, 256, 512, 768),
        max_attention_resolution=32,
    )
    loss = TokenizerLossConfig(discriminator_start=tokenizer_updates(250_000))
    return replace(
        recipe,
        tokenizer=replace(
            recipe.tokenizer, tokenizer=shape, batch_size=2 * 4 * GPUS, gradient_accumulation=4, loss=loss
        ),
        transformer=replace(recipe.transformer, batch_size=4 * GPUS),
    )


def bair_64_act_free() -> Recipe:
    """Fine-tuning on BAIR, without actions: one context frame."""
    recipe = _fine_tuned(oxe_64_act_free(), tokenizer_steps=200_005, steps=70_005, actions=False)
    return _framed(recipe, context_frames=1, clip_frames=16)


def bair_64_act_cond() -> Recipe:
    """Fine-tuning on BAIR with its actions: one context frame."""
    recipe = _fine_tuned(oxe_64_act_free(), tokenizer_steps=200_005, steps=100_005)
    return _framed(recipe, context_frames=1, clip_frames=16)


def robonet_64_act_cond() -> Recipe:
    """Fine-tuning on RoboNet with its actions."""
    recipe = _fine_tuned(oxe_64_act_free(), tokenizer_steps=600_005, steps=600_005)
    return _framed(recipe, context_frames=2, clip_frames=12)


def robonet_256_act_cond() -> Recipe:
    """Fine-tuning on RoboNet at 256 px; the tokenizer's clips are not augmented, the transformer's are."""
    recipe = _fine_tuned(oxe_256_act_free(), tokenizer_steps=200_005, steps=600_005)
    recipe = replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, loss=TokenizerLossConfig(discriminator_weight=0.0)),
        transformer=replace(recipe.transformer, batch_size=4 * 2 * GPUS, gradient_accumulation=2),
        augment_only="transformer",
    )
    return _framed(recipe, context_frames=2, clip_frames=12)


def vp2_64_act_cond() -> Recipe:
    """Fine-tuning on one of VP2's two benchmarks with its actions."""
    recipe = _fine_tuned(oxe_64_act_free(), tokenizer_steps=200_005, steps=200_005)
    return _framed(recipe, context_frames=2, clip_frames=12)


def _framed(recipe: Recipe, *, context_frames: int, clip_frames: int) -> Recipe:
    """Both trainings look at clips of ``clip_frames``, of which the tokenizer sees the context and some."""
    tokenizer = replace(
        recipe.tokenizer,
        tokenizer=replace(recipe.tokenizer.tokenizer, context_frames=context_frames),
        future_frames=_TOKENIZER_FRAMES - context_frames,
        horizon=clip_frames - context_frames,
    )
    return replace(recipe, tokenizer=tokenizer, transformer=replace(recipe.transformer, clip_frames=clip_frames))


def _fine_tuned(recipe: Recipe, *, tokenizer_steps: int, steps: int, actions: bool = True) -> Recipe:
    """Return a recipe for fine-tuning; steps are those of the official counter."""
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, steps=tokenizer_updates(tokenizer_steps), learning_rate=1e-4),
        model=replace(recipe.model, actions=actions),
        transformer=replace(recipe.transformer, steps=steps),
    )


class Official(NamedTuple):
    """One official model.

    Attributes:
        recipe: makes its preset.
        stage: the folder of its script.
        tokenizer_data, transformer_data: the mixtures, as ``--mixture`` and the official ``--oxe_data_mixes_type``
            call them.
    """

    recipe: Callable[[], Recipe]
    stage: Literal["pretrain", "finetune"]
    tokenizer_data: str
    transformer_data: str


#: Every official model by the name of its preset.
OFFICIAL: Mapping[str, Official] = {
    "official-oxe-64-act-free": Official(oxe_64_act_free, "pretrain", "select_sthsth", "select"),
    "official-oxe-64-act-free-medium": Official(oxe_64_act_free_medium, "pretrain", "select_sthsth", "select"),
    "official-oxe-64-goal-cond": Official(oxe_64_goal_cond, "pretrain", "select_sthsth", "select"),
    "official-oxe-256-act-free": Official(oxe_256_act_free, "pretrain", "select", "select"),
    "official-bair-64-act-free": Official(bair_64_act_free, "finetune", "bair", "bair"),
    "official-bair-64-act-cond": Official(bair_64_act_cond, "finetune", "bair", "bair"),
    "official-robonet-64-act-cond": Official(robonet_64_act_cond, "finetune", "tfds_robonet", "tfds_robonet"),
    "official-robonet-256-act-cond": Official(robonet_256_act_cond, "finetune", "tfds_robonet", "tfds_robonet"),
    "official-vp2-robosuite-64-act-cond": Official(vp2_64_act_cond, "finetune", "vp2_robosuite", "vp2_robosuite"),
    "official-vp2-robodesk-64-act-cond": Official(vp2_64_act_cond, "finetune", "vp2_robodesk", "vp2_robodesk"),
}


def official_script(preset: str) -> str:
    """Return the official script of a preset of this table."""
    return f"scripts/{OFFICIAL[preset].stage}/{preset.removeprefix('official-')}.sh"
