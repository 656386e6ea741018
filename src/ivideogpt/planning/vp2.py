"""A world model as a model of the public VP2 code (s-tian/vp2), in the place of the official iVideoGPT interface.

In VP2's ``configs/model`` a file ``ivideogpt.yaml``:

    _target_: ivideogpt.planning.vp2.VP2Model
    checkpoint: /path/to/checkpoint

Source: VP2 ``vp2/models/model.py`` and thuml/iVideoGPT ``vp/ivideogpt_interface.py``; same call and shapes. Differs:
the context, which is the same in all rows, is encoded once and not once a row; candidates share their random numbers;
frame 0 of the result is the last context frame itself, not the tokenizer's copy of it, which is the same for all
candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.planning.models import ImaginedFutures
from ivideogpt.worldmodel.world_model import WorldModel


class VP2Model:
    """Interface that the agents of VP2 call.

    Attributes:
        num_context: context frames that VP2 gives.
        base_prediction_modality: name of the pictures in a batch and in a result.
    """

    base_prediction_modality = "rgb"

    def __init__(
        self,
        checkpoint: str | WorldModel,
        *,
        device: str = "auto",
        temperature: float | None = None,
        greedy: bool = False,
        seed: int = 0,
        **ignored: Any,
    ) -> None:
        """Load a world model.

        Args:
            checkpoint: a folder, a run, a shipped model or a Hub id; or a model.
            device: auto, cpu or cuda.
            temperature: of the tokens; None: the checkpoint's.
            greedy: take the likeliest token instead of drawing one.
            seed: of the tokens, the same in every call.
            ignored: further settings of a model in VP2, such as ``planning_modalities`` and ``epoch``.

        Raises:
            UserError: there is no such checkpoint, or it takes no actions.
        """
        model = checkpoint
        if isinstance(model, str):
            model = WorldModel.from_pretrained(model, device=device)
        sampling: Sampling = model.config.sampling.override(temperature=temperature, greedy=greedy)
        self.model = model
        self.num_context = model.context_frames
        self._futures = ImaginedFutures(model, raw_actions=True, sampling=sampling, seed=seed)

    def close(self) -> None:
        """Do nothing; VP2 calls it at the end."""

    def __call__(self, batch: Mapping[str, np.ndarray], grad_enabled: bool = False) -> dict[str, np.ndarray]:
        """Imagine the futures of n candidates.

        Args:
            batch: ``video`` float ``[n c h w 3]`` in [0, 1], c context frames; ``actions`` float ``[n c-1+t a]``, of
                which the first c - 1 led to the later context frames; what else VP2 puts in, such as ``state_obs``, is
                not read.
            grad_enabled: must be False.

        Returns:
            ``rgb`` float32 ``[n 1+t h w 3]`` in [0, 1]: the last context frame, and the t frames after it. Action
            c - 1 leads to the first of them.

        Raises:
            UserError: gradients are wanted, or a shape is wrong.
        """
        if grad_enabled:
            raise UserError("grad_enabled is True, but this model is not differentiable; use VP2's MPPI or CEM")
        video, actions = (torch.from_numpy(np.asarray(batch[name], np.float32)) for name in ("video", "actions"))
        side, count = self.model.resolution, self.num_context
        if video.ndim != 5 or video.shape[1:] != (count, side, side, 3):
            raise UserError(f"video has shape {list(video.shape)}; expected [n {count} {side} {side} 3]")
        if actions.ndim != 3 or len(actions) != len(video) or actions.shape[1] < count:
            raise UserError(
                f"actions have shape {list(actions.shape)}; expected [{len(video)} {count - 1} + t "
                f"{self.model.action_dim}] with t of 1 or more"
            )
        context, candidates = rearrange(video, "n c h w ch -> n c ch h w"), actions[:, count - 1 :]
        frames = torch.empty(len(video), candidates.shape[1] + 1, 3, side, side)
        frames[:, 0] = context[:, -1]
        for rows in self._same_context(context):
            root = self._futures.root_of(context[rows[:1]])
            frames[rows, 1:] = root.rollout(candidates[rows]).frames.cpu()
        return {"rgb": rearrange(frames, "n t c h w -> n t h w c").numpy()}

    def _same_context(self, context: Tensor) -> list[Tensor]:
        """Return the numbers int64 ``[k]`` of rows with the same context; VP2's agents give one context to all."""
        if (context == context[:1]).all():
            return [torch.arange(len(context))]
        return list(torch.arange(len(context)).split(1))
