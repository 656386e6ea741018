"""Learning of a picture model from the episodes of its agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.optim import adamw
from ivideogpt.core.run import Run
from ivideogpt.mbrl.replay_buffer import ReplayBuffer, Segments
from ivideogpt.mbrl.world_model_batches import as_floats
from ivideogpt.mbrl.world_model_source import WorldModelTraining
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.training.picture_crops import CropConfig, PictureCrops, PictureStills
from ivideogpt.training.pictures import PictureTraining, update_pictures
from ivideogpt.worldmodel.world_model import WorldModel


class PictureLearner:
    """A picture model and its optimizer; a `WorldModelLearner`."""

    def __init__(self, config: WorldModelTraining, run: Run, model: WorldModel) -> None:
        """Make a new optimizer.

        Args:
            config: the settings.
            run: its folder, device and precision.
            model: a picture model with a reward network.
        """
        assert model.pictures is not None
        self.config, self.run, self.model = config, run, model.to(run.device)
        self._frames = min(config.segment_frames, model.context_frames + model.segment_frames())
        self._training = PictureTraining(
            dynamics=model.pictures.config,
            crops=CropConfig(symmetry="none"),
            weights=config.picture_weights,
            reward_weight=config.reward_weight,
            clip_norm=config.max_grad_norm,
        )
        self._optimizer = adamw(
            model.pictures, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )

    def prepare(self, replay: ReplayBuffer, random: np.random.Generator, *, seed: int) -> int:
        """Update the model on the first episodes; see `WorldModelLearner`."""
        for _ in range(self.config.initial_updates):
            self.update(replay, random, tokenizer=False)
        return self.config.initial_updates

    def update(
        self, replay: ReplayBuffer, random: np.random.Generator, *, tokenizer: bool
    ) -> dict[str, Tensor | float]:
        """Make one update on segments: their first frames are read, all later ones drawn; see `WorldModelLearner`."""
        assert self.model.pictures is not None
        crops, stills = self._batch(replay.segments(self.config.batch_size, self._frames, random), random)
        self.model.train()
        losses = update_pictures(self._training, self.model.pictures, self._optimizer, crops, stills, self.run)
        self.model.eval()
        return {f"world_{name}": value for name, value in losses.items()}

    def _batch(self, segments: Segments, random: np.random.Generator) -> tuple[PictureCrops, PictureStills]:
        """Return segments as whole frames with the rewards of the transitions that led to them.

        The stills are frames after the context, each with the last context frame as the earlier one.
        """
        pictures, context = self.model.pictures, self.model.context_frames
        assert pictures is not None
        frames, actions = as_floats(segments.frames), torch.from_numpy(segments.actions)
        if not self.config.actions_in_model_units:
            actions = self.model.normalize_actions(actions)
        if pictures.config.forecast.action == "pointer":
            actions = pictures.config.pointer_offset + pictures.config.pointer_scale * actions
        rewards = torch.from_numpy(segments.rewards).float()
        background = pictures.background_of(frames[:, 0].to(self.run.device)).expand(len(frames), -1, -1, -1)
        everywhere = torch.ones_like(frames[:, 0, :1])
        unknown = torch.full_like(rewards[:, :1], torch.nan)
        crops = PictureCrops(
            frames, background, actions, everywhere, self._frames - context - 1, torch.cat([unknown, rewards], dim=1)
        )
        rows, later = np.arange(len(frames)), random.integers(context, self._frames, size=len(frames))
        worth = crops.rewards
        assert worth is not None
        earlier = KnownReward(frames[:, context - 1], worth[:, context - 1])
        return crops, PictureStills(frames[rows, later], None, worth[rows, later], earlier)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizer."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
