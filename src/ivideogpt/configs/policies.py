"""Vision-language-action policies that are trained by imitation; `ivideogpt train-policy PRESET`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.policies.vla.tiny_flow import TinyFlowConfig
from ivideogpt.training.imitation import ImitationTraining, PolicyRecipe


def toy_policy() -> PolicyRecipe:
    """Return a policy of 0.3 million parameters for toy push, trained in a few minutes on a processor core."""
    return PolicyRecipe(
        policy=TinyFlowConfig(),
        training=ImitationTraining(steps=6_000, learning_rate=1e-3, save_every=1_000, average_decay=0.995),
    )


def debug_policy() -> PolicyRecipe:
    """Seconds for everything; what it learns is of no use."""
    recipe = toy_policy()
    return replace(
        recipe,
        policy=replace(recipe.policy, width=16, heads=2, encoder_layers=1, expert_layers=1, denoise_steps=2),
        training=replace(recipe.training, steps=20, batch_size=8, warmup_steps=2, log_every=10, save_every=10),
    )


def pusht_policy() -> PolicyRecipe:
    """Return a policy for PushT from its last two frames, in chunks of 8 actions."""
    return PolicyRecipe(
        policy=TinyFlowConfig(resolution=64, images=2, chunk=8, width=128, encoder_layers=3, expert_layers=3),
        training=ImitationTraining(steps=30_000),
    )


def libero_policy() -> PolicyRecipe:
    """Return a policy for LIBERO at 64 px from its last two frames; it reads no state, so it acts in a world model."""
    return PolicyRecipe(
        policy=TinyFlowConfig(
            resolution=64, images=2, action_dim=7, chunk=8, width=256, heads=8, encoder_layers=4, expert_layers=4, words=24
        ),
        training=ImitationTraining(steps=60_000, batch_size=128),
    )
