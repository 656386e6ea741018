"""Vision-language-action policies that are trained by imitation; `ivideogpt train-policy PRESET`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.policies.vla.tiny_flow import TinyFlowConfig
from ivideogpt.training.imitation import ImitationTraining, PolicyRecipe


def toy_policy() -> PolicyRecipe:
    """Return a policy of 0.15 million parameters for toy push, trained in a minute on a processor core."""
    return PolicyRecipe(
        policy=TinyFlowConfig(halvings=0, width=48, encoder_layers=1, expert_layers=1, words=8),
        training=ImitationTraining(steps=2_000, learning_rate=2e-3, save_every=500, average_decay=0.99),
    )


def debug_policy() -> PolicyRecipe:
    """Seconds for everything; what it learns is of no use."""
    recipe = toy_policy()
    return replace(
        recipe,
        policy=replace(recipe.policy, width=16, heads=2, points=4, denoise_steps=2),
        training=replace(recipe.training, steps=20, batch_size=8, warmup_steps=2, log_every=10, save_every=10),
    )


def pusht_policy() -> PolicyRecipe:
    """Return a policy for PushT from its last two frames, in chunks of 8 actions."""
    return PolicyRecipe(
        policy=TinyFlowConfig(
            resolution=64,
            images=2,
            action_low=(0.0, 0.0),
            action_high=(512.0, 512.0),
            chunk=8,
            width=128,
            encoder_layers=3,
            expert_layers=3,
        ),
        training=ImitationTraining(steps=30_000),
    )


def libero_policy() -> PolicyRecipe:
    """Return a policy for LIBERO at 64 px from its last two frames; it reads no state, so it acts in a world model."""
    return PolicyRecipe(
        policy=TinyFlowConfig(
            resolution=64,
            images=2,
            action_dim=7,
            chunk=8,
            width=256,
            heads=8,
            encoder_layers=4,
            expert_layers=4,
            words=24,
        ),
        training=ImitationTraining(steps=60_000, batch_size=128),
    )


def quick_libero_policy() -> PolicyRecipe:
    """Return a policy for LIBERO that a processor core trains in minutes: it reads mean places alone, no patches."""
    recipe = libero_policy()
    return replace(
        recipe,
        policy=replace(recipe.policy, halvings=0, points=32, width=64, heads=4, encoder_layers=1, expert_layers=2),
        training=ImitationTraining(steps=1_500, batch_size=64, learning_rate=2e-3, save_every=500, average_decay=0.99),
    )
