"""Runs of reinforcement learning by name; `ivideogpt mbrl NAME`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.configs.robot import debug_recipe
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.imagined_episodes import ImaginationConfig
from ivideogpt.mbrl.world_model_source import Scratch, WorldConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.policies.drqv2 import AgentConfig
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.token_forecast import ForecastTraining
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining

#: What an official checkpoint is continued from; a Hub id.
OFFICIAL_CHECKPOINT = "thuml/ivideogpt-oxe-64-act-free"


def official() -> MbrlConfig:
    """The settings of thuml/iVideoGPT mbrl/cfgs, the pool of imagined episodes included, which never expires.

    Differs: no mistake is repeated (``compat=official`` does), so ``retained`` alone says that nothing expires.
    """
    return MbrlConfig(
        environment={"action_repeat": 2},
        world_model=WorldConfig(checkpoint=OFFICIAL_CHECKPOINT, new_heads=True),
        imagination=ImaginationConfig(retained=0),
    )


def metaworld() -> MbrlConfig:
    """Meta-World for two processor cores: the small world model, half the agent's batch, an update a step."""
    recipe = official()
    return replace(
        recipe,
        agent=replace(recipe.agent, batch_size=128, updates=1, hidden_size=512),
        world_model=WorldConfig(
            checkpoint="metaworld-64",
            new_heads=True,
            initial_updates=200,
            update_every=10,
            tokenizer_every=0,
            batch_size=8,
            segment_frames=10,
        ),
        imagination=ImaginationConfig(initial=5, temperature=0.5, retained=20),
        evaluation_episodes=20,
    )


def pusht() -> MbrlConfig:
    """PushT in the shipped model, whose actions are those of the environment."""
    recipe = metaworld()
    return replace(
        recipe,
        task="pusht",
        environment={},
        action_repeat=1,
        frames=50_000,
        random_frames=2_000,
        evaluate_every=5_000,
        agent=replace(recipe.agent, noise_frames=30_000),
        world_model=replace(recipe.world_model, checkpoint="pusht-64", model_units=True, segment_frames=16),
        imagination=replace(recipe.imagination, temperature=0.85),
    )


def reacher() -> MbrlConfig:
    """A disc that is to reach another; a world model made of the first episodes, in minutes on two cores."""
    tokenizer = TokenizerConfig(
        resolution=64,
        block_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_groups=0,
        context_codes=128,
        dynamics_codes=128,
        context_frames=2,
        max_attention_resolution=0,
        patch_size=1,
        pixel_unshuffle=8,
        conditional=False,
        background=True,
    )
    transformer = TransformerConfig(
        vocab_size=tokenizer.layout.vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_layers=2,
        num_heads=2,
        max_positions=tokenizer.layout.length(2, 8),
    )
    scratch = Scratch(
        tokenizer=TokenizerTraining(
            tokenizer=tokenizer,
            steps=400,
            batch_size=8,
            horizon=6,
            warmup_steps=20,
            continuous_steps=100,
            learning_rate=1e-3,
        ),
        # Convolutions: what they learn in one place of the picture holds in all others.
        forecasts=(ForecastTraining(steps=400, batch_size=32),),
        model=ModelShape(
            transformer=transformer,
            action_frequencies=2,
            slots=True,
            forecast_width=64,
            rewards=True,
            terminations=True,
        ),
        transformer=TransformerTraining(steps=250, batch_size=8, clip_frames=8, warmup_steps=20, reward_weight=20.0),
    )
    return MbrlConfig(
        task="reacher",
        environment={"steps": 15, "goal": [0.25, 0.25]},
        action_repeat=1,
        frames=1_500,
        random_frames=150,
        stack=1,
        agent=AgentConfig(
            channels=16,
            hidden_size=256,
            learning_rate=5e-4,
            batch_size=32,
            updates=1,
            target_rate=0.05,
            noise_start=0.5,
            noise_frames=600,
            discount=0.9,
        ),
        world_model=WorldConfig(
            checkpoint=None,
            update_every=2,
            tokenizer_every=0,
            batch_size=8,
            segment_frames=8,
            learning_rate=1e-4,
            reward_weight=20.0,
            scratch=scratch,
        ),
        # Short: what is imagined from states that were is right for a few steps.
        imagination=ImaginationConfig(
            rows=128, horizon=3, first_horizon=3, every=10, initial=4, retained=10, updates=8, temperature=0.5
        ),
        evaluate_every=50,
        save_every=500,
    )


def debug() -> MbrlConfig:
    """Seconds for everything; what it learns is of no use."""
    recipe = debug_recipe()
    model = replace(recipe.model, rewards=True, terminations=True)
    return MbrlConfig(
        task="reacher",
        environment={"size": 16, "steps": 10},
        action_repeat=1,
        frames=80,
        random_frames=40,
        stack=2,
        agent=AgentConfig(channels=4, hidden_size=16, feature_size=8, batch_size=8, updates=1, shift=1),
        world_model=WorldConfig(
            checkpoint=None,
            update_every=5,
            tokenizer_every=10,
            batch_size=4,
            segment_frames=6,
            tokenizer_loss=TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0),
            scratch=Scratch(
                tokenizer=recipe.tokenizer,
                forecasts=recipe.forecasts,
                model=model,
                transformer=replace(recipe.transformer, imagined_share=0.0),
            ),
        ),
        imagination=ImaginationConfig(rows=4, horizon=4, first_horizon=2, horizon_frames=80, every=10, initial=2),
        evaluate_every=80,
        evaluation_episodes=2,
        save_every=20,
        log_every=10,
    )
