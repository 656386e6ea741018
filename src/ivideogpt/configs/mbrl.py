"""Presets of reinforcement learning; `ivideogpt mbrl PRESET`."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.configs.pusht import pusht_tokenizer
from ivideogpt.configs.robot import debug_recipe, robot_quick_recipe
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.imagined_episodes import ImaginationConfig
from ivideogpt.mbrl.world_model_source import ScratchTraining, WorldModelTraining
from ivideogpt.models.dynamics import HeadsConfig
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
    """Return the settings of thuml/iVideoGPT mbrl/cfgs; imagined episodes are never evicted, as there."""
    return MbrlConfig(
        environment_options={"action_repeat": 2},
        world_model=WorldModelTraining(checkpoint=OFFICIAL_CHECKPOINT, new_heads=True),
        imagination=ImaginationConfig(kept_rollouts=0),
    )


def metaworld_agent() -> MbrlConfig:
    """Return Meta-World for two processor cores: a small world model, half the agent's batch, an update a step."""
    recipe = official()
    return replace(
        recipe,
        agent=replace(recipe.agent, batch_size=128, hidden_size=512),
        agent_updates_per_step=1,
        world_model=WorldModelTraining(
            checkpoint="metaworld-64",
            new_heads=True,
            initial_updates=200,
            update_every_steps=10,
            tokenizer_update_every_steps=0,
            batch_size=8,
            segment_frames=10,
        ),
        imagination=ImaginationConfig(initial_rollouts=5, temperature=0.5, kept_rollouts=20),
        evaluation_episodes=20,
    )


def pusht() -> MbrlConfig:
    """Return PushT with the shipped model, whose actions are those of the environment."""
    recipe = metaworld_agent()
    return replace(
        recipe,
        task="pusht",
        environment_options={},
        action_repeat=1,
        total_env_steps=50_000,
        random_steps=2_000,
        evaluate_every_steps=5_000,
        agent=replace(recipe.agent, exploration_decay_steps=30_000),
        world_model=replace(
            recipe.world_model, checkpoint="pusht-64-tokens", actions_in_model_units=True, segment_frames=16
        ),
        imagination=replace(recipe.imagination, temperature=0.85),
    )


def _reacher_model() -> ScratchTraining:
    """Return the training of a small world model of the reacher."""
    tokenizer = replace(
        pusht_tokenizer(),
        block_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        context_codes=128,
        dynamics_codes=128,
        pixel_unshuffle=8,
    )
    transformer = TransformerConfig(
        vocab_size=tokenizer.layout.vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_layers=2,
        num_heads=2,
        max_positions=tokenizer.layout.length(2, 8),
    )
    heads = HeadsConfig(
        action_frequencies=2,
        slots=tokenizer.layout.slot_count,
        forecast_grid=tokenizer.dynamics_grid,
        forecast_width=64,
        reward=True,
        termination=True,
    )
    return ScratchTraining(
        tokenizer=TokenizerTraining(
            tokenizer=tokenizer,
            steps=400,
            batch_size=8,
            horizon=6,
            warmup_steps=20,
            continuous_steps=100,
            learning_rate=1e-3,
        ),
        # Convolutions generalise from one place of the picture to all others.
        forecasts=(ForecastTraining(steps=400, batch_size=32),),
        model=ModelShape(transformer=transformer, heads=heads),
        transformer=TransformerTraining(steps=250, batch_size=8, clip_frames=8, warmup_steps=20, reward_weight=20.0),
    )


def reacher() -> MbrlConfig:
    """Return the reacher with a world model trained on the first episodes, in minutes on two cores."""
    return MbrlConfig(
        task="reacher",
        environment_options={"steps": 15, "goal": [0.25, 0.25]},
        action_repeat=1,
        total_env_steps=1_500,
        random_steps=150,
        frame_stack=1,
        agent_updates_per_step=1,
        agent=AgentConfig(
            encoder_channels=16,
            hidden_size=256,
            learning_rate=5e-4,
            batch_size=32,
            target_update_rate=0.05,
            exploration_noise_start=0.5,
            exploration_decay_steps=600,
            discount=0.9,
        ),
        world_model=WorldModelTraining(
            checkpoint=None,
            update_every_steps=2,
            tokenizer_update_every_steps=0,
            batch_size=8,
            segment_frames=8,
            learning_rate=1e-4,
            reward_weight=20.0,
            scratch=_reacher_model(),
        ),
        # Short: the forecast is right for a few steps.
        imagination=ImaginationConfig(
            parallel_episodes=128,
            horizon=3,
            initial_horizon=3,
            every_steps=10,
            initial_rollouts=4,
            kept_rollouts=10,
            agent_updates_per_step=8,
            temperature=0.5,
        ),
        evaluate_every_steps=50,
        save_every_steps=500,
    )


def _robot_model(*, termination: bool) -> ScratchTraining:
    """Return the training of a world model of a robot in one scene, on the first episodes and demonstrations."""
    recipe = robot_quick_recipe()
    heads = replace(recipe.model.heads, reward=True, termination=termination)
    return ScratchTraining(
        tokenizer=recipe.tokenizer,
        forecasts=recipe.forecasts,
        model=replace(recipe.model, heads=heads),
        transformer=replace(recipe.transformer, reward_weight=10.0),
    )


def _robot_agent(task: str, *, termination: bool) -> MbrlConfig:
    recipe = metaworld_agent()
    return replace(
        recipe,
        task=task,
        environment_options={},
        action_repeat=1,
        total_env_steps=1_000_002,
        random_steps=2_000,
        agent=replace(recipe.agent, exploration_noise_end=0.2, exploration_decay_steps=100_000),
        world_model=replace(
            recipe.world_model,
            checkpoint=None,
            segment_frames=12,
            reward_weight=10.0,
            scratch=_robot_model(termination=termination),
        ),
        evaluate_every_steps=5_000,
        evaluation_episodes=10,
    )


def maniskill_agent() -> MbrlConfig:
    """Return ManiSkill with a new world model; dense rewards, and episodes that go on after a success."""
    return _robot_agent("maniskill/pick-cube", termination=False)


def libero_agent() -> MbrlConfig:
    """Return LIBERO with a new world model; the reward is 1 for success, which ends the episode."""
    return _robot_agent("libero_spatial", termination=True)


def debug() -> MbrlConfig:
    """Return a run of seconds that goes through everything; the agent learns nothing useful."""
    recipe = debug_recipe()
    heads = replace(recipe.model.heads, reward=True, termination=True)
    return MbrlConfig(
        task="reacher",
        environment_options={"size": 16, "steps": 10},
        action_repeat=1,
        total_env_steps=80,
        random_steps=40,
        frame_stack=2,
        agent_updates_per_step=1,
        agent=AgentConfig(
            encoder_channels=4,
            hidden_size=16,
            feature_size=8,
            batch_size=8,
            exploration_decay_steps=100_000,
            random_shift=1,
        ),
        world_model=WorldModelTraining(
            checkpoint=None,
            update_every_steps=5,
            tokenizer_update_every_steps=10,
            batch_size=4,
            segment_frames=6,
            tokenizer_loss=TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0),
            scratch=ScratchTraining(
                tokenizer=recipe.tokenizer,
                forecasts=recipe.forecasts,
                model=replace(recipe.model, heads=heads),
                transformer=replace(recipe.transformer, imagined_share=0.0),
            ),
        ),
        imagination=ImaginationConfig(
            parallel_episodes=4,
            horizon=4,
            initial_horizon=2,
            horizon_growth_steps=80,
            every_steps=10,
            initial_rollouts=2,
        ),
        evaluate_every_steps=80,
        evaluation_episodes=2,
        save_every_steps=40,
        log_every_steps=10,
        # On several threads, networks this small only wait for each other.
        cpu_threads=1,
    )
