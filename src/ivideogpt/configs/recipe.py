"""Recipe of a preset: all settings for training a world model, except its data and its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ivideogpt.data.augment import Augmentation
from ivideogpt.data.clips import ClipSpec
from ivideogpt.training.init_weights import ModelShape
from ivideogpt.training.token_forecast import ForecastTraining
from ivideogpt.training.tokenizer import TokenizerTraining
from ivideogpt.training.transformer import TransformerTraining


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A tokenizer and a world model, and how they are trained.

    Attributes:
        tokenizer: the first training.
        model: the shape of the world model around the tokenizer.
        forecasts: the forecast alone, one training after the other; none where the model has none.
        transformer: the last training, of transformer and heads together.
        stride: distance between used frames, where the mixture does not say it; None: each dataset's own.
        video_stepsize: of that rule; see ``ClipSpec``.
        augmentation: of the clips, in both trainings.
        augment_only: the only training whose clips are augmented; None: both.
        temperature: that the finished model is shown at.
        reference_distance: strides from the first context frame of a clip to the second, drawn from 1 to this; only
            where the second is a lead frame (see ``TokenLayout``).
    """

    tokenizer: TokenizerTraining = field(default_factory=TokenizerTraining)
    model: ModelShape = field(default_factory=ModelShape)
    forecasts: tuple[ForecastTraining, ...] = ()
    transformer: TransformerTraining = field(default_factory=TransformerTraining)
    stride: int | None = None
    video_stepsize: float = 1.0
    augmentation: Augmentation | None = None
    augment_only: Literal["tokenizer", "transformer"] | None = None
    temperature: float = 1.0
    reference_distance: int = 1

    def augmentation_of(self, training: Literal["tokenizer", "transformer"]) -> Augmentation | None:
        """Return the augmentation of one training; a forecast has that of the transformer."""
        return self.augmentation if self.augment_only in (None, training) else None

    def tokenizer_clips(self) -> ClipSpec:
        """Return the clips for training the tokenizer."""
        training = self.tokenizer
        context = training.tokenizer.context_frames
        return ClipSpec(
            context_frames=context,
            frames=context + training.future_frames,
            mode="random_order" if self.model.goal_conditioned else "random_after_context",
            horizon=context + training.horizon,
            stride=self.stride,
            video_stepsize=self.video_stepsize,
            size=training.tokenizer.frame_size,
            actions=False,
        )

    def transformer_clips(
        self, frames: int, *, context_frames: int, size: int | tuple[int, int], rewards: bool
    ) -> ClipSpec:
        """Return the clips of ``frames`` for training transformer or forecast."""
        shape, mode, horizon = self.tokenizer.tokenizer, "contiguous", None
        if self.model.goal_conditioned:
            mode = "goal_first"
        elif self.reference_distance > 1 and self.model.context_frames(shape) > shape.context_frames:
            mode, horizon = "reference_first", frames - 1 + self.reference_distance
        return ClipSpec(
            context_frames=context_frames,
            frames=frames,
            mode=mode,
            horizon=horizon,
            stride=self.stride,
            video_stepsize=self.video_stepsize,
            size=size,
            actions=self.model.actions,
            rewards=rewards,
        )
