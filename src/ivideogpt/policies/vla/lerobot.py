"""LeRobot's policies (ACT, diffusion, pi0.5, SmolVLA, ...) as policies of ours.

    policy = LeRobotPolicy("lerobot/diffusion_pusht", low=0, high=512, state=2)

Weights and normalisation come from a folder or the Hugging Face Hub, in LeRobot's format of safetensors and JSON.

Source: huggingface/lerobot 0.4; its own loading, processors and ``select_action``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import reason
from ivideogpt.core.run import choose_device


class LeRobotPolicy:
    """A `Policy` of LeRobot. Each row has queues of its own; the weights are shared."""

    def __init__(
        self, path: str, *, low: float = -1.0, high: float = 1.0, state: int | None = None, device: str = "auto"
    ) -> None:
        """Load a policy.

        Args:
            path: a folder with config.json and model.safetensors, or a Hub id.
            low: action of the policy that is -1 in the environment.
            high: action of the policy that is 1 there.
            state: numbers at the beginning of the environment's state that the policy reads; None: all.
            device: auto, cpu or cuda.

        Raises:
            UserError: there is no such policy, it is of an unknown kind, or it reads several cameras.
            MissingExtraError: LeRobot is not installed.
        """
        if not low < high:
            raise UserError(f"low is {low} and high is {high}; expected low below high")
        self._path, self._low, self._high, self._state = path, low, high, state
        self._policy, self._before, self._after = _load(path, str(choose_device(device)))
        cameras = list(self._policy.config.image_features)
        if len(cameras) != 1:
            raise UserError(
                f"the policy {path} reads the cameras {cameras}; expected one, the picture of the environment"
            )
        self._camera = cameras[0]
        _, self._height, self._width = self._policy.config.image_features[self._camera].shape
        self._rows: list[Any] = []
        self._instructions: list[str] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`. Policies that draw noise draw it from PyTorch's random numbers."""
        words = list(instructions or [""] * len(seeds))
        rows = []
        for row, seed in enumerate(seeds):
            if seed is None:
                rows.append(self._rows[row])
                words[row] = words[row] or self._instructions[row]
                continue
            rows.append(copy.copy(self._policy))  # the networks are shared, the queues are made by reset
            rows[-1].reset()
        self._rows, self._instructions = rows, words

    @torch.no_grad()
    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next action of each row, float32 ``[b a]`` in -1 to 1.

        Raises:
            UserError: the policy reads a state that is not there, or of another size.
        """
        actions = []
        for row, policy in enumerate(self._rows):
            batch: dict[str, Any] = {self._camera: self._picture(observation["frames"][row, -1])}
            feature = policy.config.robot_state_feature
            if feature is not None:
                batch["observation.state"] = self._read_state(observation, row, feature.shape[0])
            action = self._after(policy.select_action(self._before(batch | {"task": [self._instructions[row]]})))
            actions.append(np.asarray(action.float().cpu().numpy()).reshape(-1))
        share = (np.stack(actions) - self._low) / (self._high - self._low)
        return np.clip(2 * share - 1, -1.0, 1.0).astype(np.float32)

    def _picture(self, frame: np.ndarray) -> torch.Tensor:
        """Return a frame uint8 ``[h w 3]`` as float ``[1 c h w]`` in [0, 1], of the size that the policy reads."""
        if frame.shape[:2] != (self._height, self._width):
            image = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(image.resize((self._width, self._height), Image.Resampling.BILINEAR))
        return torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255

    def _read_state(self, observation: Mapping[str, np.ndarray], row: int, size: int) -> torch.Tensor:
        state = observation["state"][row, : self._state] if "state" in observation else np.zeros(0)
        if len(state) != size:
            raise UserError(
                f"the policy {self._path} reads a state of {size} numbers and the environment gives {len(state)}; give "
                f"another environment, or state={size} for the first ones"
            )
        return torch.from_numpy(np.asarray(state, np.float32))[None]


def _load(path: str, device: str) -> tuple[Any, Any, Any]:
    """Return a policy of LeRobot in evaluation mode, and its processors of observations and actions."""
    try:
        from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
        from lerobot.policies.factory import (  # pyright: ignore[reportMissingImports]
            get_policy_class,
            make_pre_post_processors,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("lerobot", "lerobot") from error
    try:
        config = PreTrainedConfig.from_pretrained(path)
        config.device = device
        policy = get_policy_class(config.type).from_pretrained(path, config=config)
        overrides = {"device_processor": {"device": device}}
        before, after = make_pre_post_processors(config, pretrained_path=path, preprocessor_overrides=overrides)
    except Exception as error:  # of many kinds: network, files, configurations
        raise UserError(
            f"the LeRobot policy {path} cannot be loaded ({reason(error)}); give a folder or a Hub id with "
            "config.json, model.safetensors and the processors that lerobot 0.4 or newer writes"
        ) from error
    return policy, before, after
