"""Which world model an agent has: a checkpoint, or a new one made of its first episodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.mbrl.replay_buffer import Replay
from ivideogpt.mbrl.world_model_batches import ReplayClips, ReplayTokens
from ivideogpt.training.init_weights import ModelShape, new_world_model, start_from
from ivideogpt.training.token_forecast import ForecastTraining, train_forecast
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """How a world model is made of the first episodes alone: tokenizer, forecast, transformer, one after the other.

    Attributes:
        tokenizer, forecasts, model, transformer: as in a preset for training.
    """

    tokenizer: TokenizerTraining = field(default_factory=TokenizerTraining)
    forecasts: tuple[ForecastTraining, ...] = ()
    model: ModelShape = field(default_factory=ModelShape)
    transformer: TransformerTraining = field(default_factory=TransformerTraining)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Which world model, and how it learns on. The defaults are those of the official experiments.

    Attributes:
        checkpoint: a folder, a run, a shipped model's name or a Hub id; None: a new one, see ``scratch``.
        new_heads: heads for reward and termination are added where the checkpoint has none.
        model_units: actions of the environment are what the action layer was trained on; False: they are raw, and the
            statistics in the checkpoint are applied.
        initial_updates: of a checkpoint's transformer, once the first episodes are there.
        update_every: steps of the environment between two updates of the transformer; 0: none.
        tokenizer_every: between two of the tokenizer, whose codes stay as they are; 0: it is left as it is.
        batch_size: segments of an update.
        segment_frames: frames of one, context included; at most the clip length of the checkpoint.
        tokenizer_frames: most frames after the context that the tokenizer reconstructs in an update.
        learning_rate, tokenizer_learning_rate: of AdamW, constant.
        weight_decay: of both.
        clip_norm: largest gradient norm of both.
        reward_weight, termination_weight: of their losses, beside the tokens'.
        tokenizer_loss: how its parts are weighed.
        scratch: how a new one is made.
    """

    checkpoint: str | None = "metaworld-64"
    new_heads: bool = False
    model_units: bool = False
    initial_updates: int = 1000
    update_every: int = 5
    tokenizer_every: int = 20
    batch_size: int = 16
    segment_frames: int = 12
    tokenizer_frames: int = 5
    learning_rate: float = 1e-4
    tokenizer_learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    reward_weight: float = 1.0
    termination_weight: float = 1.0
    tokenizer_loss: TokenizerLossConfig = field(default_factory=lambda: TokenizerLossConfig(discriminator_weight=0.0))
    scratch: Scratch = field(default_factory=Scratch)

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, initial_updates=0, update_every=0, tokenizer_every=0, batch_size=1, segment_frames=3)
        check_at_least(self, tokenizer_frames=1, learning_rate=0, tokenizer_learning_rate=0, weight_decay=0)
        check_at_least(self, reward_weight=0, termination_weight=0)


def load_world_model(config: WorldConfig, *, action_dim: int, image: int, rewards: bool) -> WorldModel:
    """The checkpoint, fit for the environment.

    Args:
        config: which.
        action_dim: of the environment.
        image: side of its frames in pixels.
        rewards: whether the model has to tell them.

    Raises:
        UserError: it takes other actions or frames, or tells no rewards.
    """
    assert config.checkpoint is not None
    model = WorldModel.from_pretrained(config.checkpoint)
    name = f"the world model {config.checkpoint}"
    missing = "" if model.action_dim else ", set world_model.new_heads=true to train an action layer"
    if model.action_dim != action_dim and not (config.new_heads and not model.action_dim):
        raise UserError(
            f"{name} takes actions of {model.action_dim} numbers and the environment of {action_dim}; use a checkpoint "
            f"that was trained on such actions{missing}, or none (world_model.checkpoint=null) for a new model"
        )
    if model.resolution != image:
        raise UserError(
            f"{name} sees frames of {model.resolution} pixels a side and the environment shows "
            f"{image}; use a checkpoint of that size"
        )
    if config.new_heads:
        model = with_new_heads(model, action_dim, rewards=rewards)
    if rewards and not model.config.heads.reward:
        raise UserError(
            f"{name} has no reward head; set world_model.new_heads=true to train one on the first episodes, "
            "use a checkpoint with one, or none (world_model.checkpoint=null) for a new model"
        )
    return model


def with_new_heads(model: WorldModel, action_dim: int, *, rewards: bool) -> WorldModel:
    """The same networks with the heads that reinforcement learning needs; those that were there are kept.

    Args:
        model: any.
        action_dim: of a new action layer, which begins silent: at first nothing changes.
        rewards: whether there is to be a reward head beside the one for termination.
    """
    heads = model.config.heads
    wanted = replace(heads, action_dim=action_dim, reward=heads.reward or rewards, termination=True)
    if wanted == heads:
        return model
    shape = ModelShape(transformer=model.transformer.config)
    config = replace(model.config, heads=wanted)
    if not heads.reward:
        config = replace(config, symlog_rewards=True)
    made = new_world_model(shape, config, model.tokenizer)
    start_from(made, model)
    if not heads.action_dim:
        nn.init.zeros_(made.heads.action_linear.weight)
        nn.init.zeros_(made.heads.action_linear.bias)
    return made.eval()


def new_model_from(replay: Replay, config: Scratch, run: Run, *, seed: int) -> WorldModel:
    """Trains a new world model on the episodes of a buffer; a stopped training goes on where it was.

    Args:
        replay: must not change between a stop and the next call.
        config: how.
        run: whose folder holds the three trainings, in ``world-model/``.
        seed: of the weights and the draws.
    """

    def part(name: str, training: TokenizerTraining | ForecastTraining | TransformerTraining) -> Run:
        return Run(
            run.folder / "world-model" / name,
            seed=training.seed,
            device=str(run.device),
            precision=run.precision,  # type: ignore[arg-type]
            log_every=training.log_every,
            save_every=training.save_every,
            keep_last=1,
        )

    shape, training = config.tokenizer.tokenizer, config.tokenizer
    clips = ReplayClips(
        replay,
        training.batch_size,
        context=shape.context_frames,
        frames=shape.context_frames + training.future_frames,
        horizon=shape.context_frames + training.horizon,
        seed=seed,
    )
    tokenizer = train_tokenizer(training, clips, part("tokenizer", training))
    first = next(iter(replay)).episode
    assert first.actions is not None
    about = WorldModelConfig(
        context_frames=tokenizer.config.context_frames,
        clip_frames=config.transformer.clip_frames,
        symlog_rewards=config.model.symlog_rewards,
        heads=config.model.heads(tokenizer, first.actions.shape[1], rewards=True),
        metadata={"made_from": f"{replay.episodes} first episodes"},
    )
    model = new_world_model(config.model, about, tokenizer, seed=config.transformer.seed)
    model.to(run.device)

    def tokens(size: int, frames: int) -> ReplayTokens:
        return ReplayTokens(model, replay, size, frames, seed=seed + 1)

    for number, one in enumerate(config.forecasts):
        frames = one.clip_frames(model.context_frames)
        train_forecast(one, model, tokens(one.batch_size, frames), part(f"forecast-{number}", one))
    last = config.transformer
    return train_transformer(last, model, tokens(last.batch_size, last.clip_frames), part("transformer", last))
