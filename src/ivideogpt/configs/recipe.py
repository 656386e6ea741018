"""What a preset is: everything about training a world model but its data and its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ivideogpt.core.config import from_dict, suggestion, to_dict
from ivideogpt.core.errors import UserError
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

    def augmentation_of(self, training: Literal["tokenizer", "transformer"]) -> Augmentation | None:
        """What the clips of one training are changed by; those of a forecast are the transformer's."""
        return self.augmentation if self.augment_only in (None, training) else None

    def tokenizer_clips(self) -> ClipSpec:
        """The clips that the tokenizer trains on."""
        training = self.tokenizer
        context = training.tokenizer.context_frames
        return ClipSpec(
            context_frames=context,
            frames=context + training.future_frames,
            mode="random_order" if self.model.goal_conditioned else "random_after_context",
            horizon=context + training.horizon,
            stride=self.stride,
            video_stepsize=self.video_stepsize,
            size=training.tokenizer.resolution,
            actions=False,
        )

    def transformer_clips(self, frames: int, *, context_frames: int, size: int, rewards: bool) -> ClipSpec:
        """The clips of ``frames`` that transformer or forecast train on."""
        return ClipSpec(
            context_frames=context_frames,
            frames=frames,
            mode="goal_first" if self.model.goal_conditioned else "contiguous",
            stride=self.stride,
            video_stepsize=self.video_stepsize,
            size=size,
            actions=self.model.actions,
            rewards=rewards,
        )


Config = TypeVar("Config")


def changed(config: Config, settings: Sequence[str]) -> Config:
    """A configuration with some settings changed.

    Args:
        config: what to change, a recipe for example.
        settings: such as "transformer.learning_rate=1e-4"; a value is JSON, or text where it is none.

    Raises:
        UserError: there is no such setting (the message names the closest one), or the value does not fit it.
    """
    values = to_dict(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} is no setting; expected name=value, such as transformer.batch_size=16")
        *outer, last = path.split(".")
        place: Any = values
        for name in outer:
            place = _inside(place, name, path)
        _inside(place, last, path)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place[int(last) if isinstance(place, list) else last] = value
    return from_dict(type(config), values, where="the preset with your settings")


def _inside(place: Any, name: str, path: str) -> Any:
    if isinstance(place, list):
        if name.isdigit() and int(name) < len(place):
            return place[int(name)]
        raise UserError(f"there is no setting {path!r}; {name!r} is none of 0 to {len(place) - 1}")
    if not isinstance(place, dict) or name not in place:
        raise UserError(f"there is no setting {path!r}; {suggestion(name, place if isinstance(place, dict) else ())}")
    return place[name]
