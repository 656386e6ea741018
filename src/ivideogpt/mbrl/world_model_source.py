"""The world model that a run begins with: a checkpoint, or a new one trained on the first episodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.mbrl.world_model_batches import ReplayClips, ReplayTokens
from ivideogpt.training.init_weights import ModelShape, new_world_model, start_from
from ivideogpt.training.pictures import PictureWeights
from ivideogpt.training.token_forecast import ForecastTraining, train_forecast
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

_NEW_HEADS = "set world_model.new_heads=true to train one on the first episodes, "


@dataclass(frozen=True, kw_only=True)
class ScratchTraining:
    """Training of a world model on the first episodes alone: tokenizer, forecast, transformer, one after the other.

    Attributes:
        tokenizer, forecasts, model, transformer: as in a preset for training.
    """

    tokenizer: TokenizerTraining = field(default_factory=TokenizerTraining)
    forecasts: tuple[ForecastTraining, ...] = ()
    model: ModelShape = field(default_factory=ModelShape)
    transformer: TransformerTraining = field(default_factory=TransformerTraining)


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """Choice of a world model, and its further training. The defaults are those of the official experiments.

    Attributes:
        checkpoint: a folder, a run, a shipped model's name or a Hub id; None: a new one, see ``scratch``.
        new_heads: add heads for reward and termination where the checkpoint has none.
        actions_in_model_units: actions of the environment are in the units of the action layer; False: they are in the
            robot's units, and the checkpoint's statistics are applied.
        initial_updates: of a checkpoint's transformer on the first episodes.
        update_every_steps: environment steps between two updates of the transformer; 0: none.
        tokenizer_update_every_steps: between two updates of the tokenizer, whose codebooks are kept; 0: none.
        batch_size: segments of an update.
        segment_frames: frames of a segment, context included; at most the clip length of the checkpoint.
        tokenizer_future_frames: most frames after the context that the tokenizer reconstructs in an update.
        learning_rate, tokenizer_learning_rate: of AdamW, constant.
        weight_decay: of both.
        max_grad_norm: of both.
        reward_weight, termination_weight, action_reconstruction_weight, forecast_weight: of their losses; that of the
            tokens is 1.
        picture_weights: of the pixels, where the checkpoint is a picture model.
        tokenizer_loss: weights of its parts.
        scratch: training of a new model.
    """

    checkpoint: str | None = "metaworld-64"
    new_heads: bool = False
    actions_in_model_units: bool = False
    initial_updates: int = 1000
    update_every_steps: int = 5
    tokenizer_update_every_steps: int = 20
    batch_size: int = 16
    segment_frames: int = 12
    tokenizer_future_frames: int = 5
    learning_rate: float = 1e-4
    tokenizer_learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    reward_weight: float = 1.0
    termination_weight: float = 1.0
    action_reconstruction_weight: float = 0.1
    forecast_weight: float = 0.5
    picture_weights: PictureWeights = PictureWeights(shown=2.0, marked=0.0, moving=4.0)
    tokenizer_loss: TokenizerLossConfig = field(default_factory=lambda: TokenizerLossConfig(discriminator_weight=0.0))
    scratch: ScratchTraining = field(default_factory=ScratchTraining)

    def __post_init__(self) -> None:
        """Check the range of every number."""
        check_at_least(self, initial_updates=0, update_every_steps=0, tokenizer_update_every_steps=0, batch_size=1)
        check_at_least(self, segment_frames=3, tokenizer_future_frames=1, learning_rate=0, tokenizer_learning_rate=0)
        check_at_least(self, weight_decay=0, max_grad_norm=0, reward_weight=0, termination_weight=0)
        check_at_least(self, action_reconstruction_weight=0, forecast_weight=0)


def load_world_model(config: WorldModelTraining, *, action_dim: int, image: int, rewards: bool) -> WorldModel:
    """Load the checkpoint and check that it fits the environment.

    Args:
        config: names it.
        action_dim: numbers of an action of the environment.
        image: side of its frames in pixels.
        rewards: require a reward head.

    Raises:
        UserError: the model takes other actions or frames, or has no reward head.
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
            f"{name} sees frames of {model.resolution} pixels a side and the environment shows {image}; resize them: "
            f"image_size={model.resolution}, or use a checkpoint of that size"
        )
    if config.new_heads and model.has_tokens:
        model = with_new_heads(model, action_dim, rewards=rewards)
    if rewards and not model.config.heads.reward:
        raise UserError(
            f"{name} has no reward head; {_NEW_HEADS if model.has_tokens else ''}use a checkpoint with one, or none "
            "(world_model.checkpoint=null) for a new model"
        )
    return model


def with_new_heads(model: WorldModel, action_dim: int, *, rewards: bool) -> WorldModel:
    """Return the same networks with the heads that reinforcement learning needs; existing heads are kept.

    Args:
        model: any world model.
        action_dim: of a new action layer, which begins at zero: at first nothing changes.
        rewards: add a reward head too, beside the one for termination.
    """
    heads = model.config.heads
    needed = replace(heads, action_dim=action_dim, reward=heads.reward or rewards, termination=True)
    if needed == heads:
        return model
    shape = ModelShape(transformer=model.transformer.config)
    config = replace(model.config, heads=needed)
    if not heads.reward:
        config = replace(config, symlog_rewards=True)
    new_model = new_world_model(shape, config, model.tokenizer)
    start_from(new_model, model)
    if not heads.action_dim:
        nn.init.zeros_(new_model.heads.action_linear.weight)
        nn.init.zeros_(new_model.heads.action_linear.bias)
    return new_model.eval()


def train_from_scratch(replay: ReplayBuffer, config: ScratchTraining, run: Run, *, seed: int) -> WorldModel:
    """Train a new world model on the episodes of a buffer; the same call again resumes a stopped training.

    Args:
        replay: must not change between a stop and the next call.
        config: the settings.
        run: its folder takes the three trainings, in ``world-model/``.
        seed: of weights and draws.
    """

    def stage(name: str, training: TokenizerTraining | ForecastTraining | TransformerTraining) -> Run:
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
    tokenizer = train_tokenizer(training, clips, stage("tokenizer", training))
    first = next(iter(replay)).episode
    assert first.actions is not None
    about = WorldModelConfig(
        context_frames=tokenizer.config.context_frames,
        clip_frames=config.transformer.clip_frames,
        symlog_rewards=config.model.symlog_rewards,
        heads=config.model.fitted_heads(tokenizer, first.actions.shape[1], rewards=True),
        metadata={"made_from": f"{replay.episodes} first episodes"},
    )
    model = new_world_model(config.model, about, tokenizer, seed=config.transformer.seed)
    model.to(run.device)

    def tokens(size: int, frames: int) -> ReplayTokens:
        return ReplayTokens(model, replay, size, frames, seed=seed + 1)

    for number, forecast in enumerate(config.forecasts):
        frames = forecast.clip_frames(model.context_frames)
        train_forecast(forecast, model, tokens(forecast.batch_size, frames), stage(f"forecast-{number}", forecast))
    transformer = config.transformer
    batches = tokens(transformer.batch_size, transformer.clip_frames)
    return train_transformer(transformer, model, batches, stage("transformer", transformer))
