"""A policy with a learned correction: what a frozen policy does, changed by an agent by at most a given amount.

    policy = ResidualPolicy(config, base, new_residual_agent(config))
    policy.reset([0], ["push the red square to the left"])
    policy.act({"frames": frames})              # float32 [1 a]: base + scale * correction, in -1 to 1

The frozen policy may be any `Policy`, also one of a server: its weights and probabilities are not needed. The agent
acts on single steps. It sees a picture: the frame, and below it a margin whose columns show the frozen policy's action
and hashed words of the instruction as brightness.

Source: Johannink et al. 2019 (residual reinforcement learning) and Yarats et al. 2021 (DrQ-v2).
"""

from __future__ import annotations

import shutil
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ivideogpt.core.checkpoint import load_tensors, save_tensors, step_folders
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy
from ivideogpt.core.reading import reason
from ivideogpt.policies.drqv2 import AgentConfig, DrQv2
from ivideogpt.policies.vla.tiny_flow import PolicySizes

#: Folder of a copy of the frozen policy in the folder of the corrected one.
BASE = "base"
_CONFIG, _WEIGHTS, _KIND = "config.json", "residual.safetensors", "residual"
#: Pixels of the margin, and its columns for words.
_MARGIN, _WORDS = 8, 16


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(PolicySizes):
    """A frozen policy and the agent that corrects it.

    Attributes:
        base: the frozen policy as the command line names it, such as ws://HOST:PORT; "base": the copy in the folder.
        scale: largest change of a number of an action.
        agent: settings of the agent.
    """

    base: str = BASE
    scale: float = 0.2
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range.
        """
        super().__post_init__()
        if not 0 <= self.scale <= 2:
            raise UserError(f"scale of the correction is {self.scale}; expected 0 to 2")


def annotated_frames(frames: np.ndarray, actions: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """Return the pictures of the agent, uint8 ``[n s s 3]`` with s = h + 8.

    Args:
        frames: uint8 ``[n h h 3]``.
        actions: of the policy, float32 ``[n a]`` in -1 to 1.
        instructions: one a row.
    """
    side = frames.shape[1] + _MARGIN
    values = np.zeros((len(frames), actions.shape[1] + _WORDS))
    values[:, : actions.shape[1]] = (actions + 1) / 2
    for row, text in enumerate(instructions):
        for word in text.lower().split():
            values[row, actions.shape[1] + zlib.crc32(word.encode()) % _WORDS] = 1
    pictures = np.zeros((len(frames), side, side, 3), np.uint8)
    pictures[:, :-_MARGIN, :-_MARGIN] = frames
    columns = values[:, np.arange(side) * values.shape[1] // side]
    pictures[:, -_MARGIN:] = (255 * columns).round().astype(np.uint8)[:, None, :, None]
    return pictures


def new_residual_agent(config: ResidualConfig) -> DrQv2:
    """Draw an agent from PyTorch's random numbers; its last layer is 0, so that it begins with no correction."""
    agent = DrQv2(config.resolution + _MARGIN, 1, config.action_dim, config.agent)
    torch.nn.init.zeros_(agent.actor.policy[-1].weight)  # type: ignore[arg-type,index]
    torch.nn.init.zeros_(agent.actor.policy[-1].bias)  # type: ignore[arg-type,index]
    return agent


class ResidualPolicy:
    """A `Policy`: the frozen one's actions, each corrected when it is taken."""

    def __init__(self, config: ResidualConfig, base: Policy, agent: DrQv2) -> None:
        """Take the frozen policy and the agent."""
        self.config, self.base, self.agent = config, base, agent
        self._waiting: list[deque[np.ndarray]] = []
        self._instructions: list[str] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`."""
        words = list(instructions or [""] * len(seeds))
        for row, seed in enumerate(seeds):
            if seed is None and row < len(self._instructions):
                words[row] = words[row] or self._instructions[row]
        self._waiting = [self._waiting[row] if seed is None else deque() for row, seed in enumerate(seeds)]
        self._instructions = words
        self.base.reset(seeds, instructions)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next action of each row, float32 ``[b a]`` in -1 to 1."""
        pictures, actions = self.propose(observation)
        return self.corrected(actions, self.agent.act({"frames": pictures[:, None]}))

    def propose(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Take the next action of the frozen policy; a row whose chunk is used up asks for another.

        Returns:
            The pictures of the agent, uint8 ``[b s s 3]``, and the actions, float32 ``[b a]`` in -1 to 1.

        Raises:
            UserError: the actions have another width than the correction.
        """
        used_up = [row for row, queue in enumerate(self._waiting) if not queue]
        if used_up:
            chosen = self.base.act(observation)
            chunks = chosen if chosen.ndim == 3 else chosen[:, None]
            if chunks.shape[2] != self.config.action_dim:
                raise UserError(
                    f"the frozen policy {self.config.base} gives actions of {chunks.shape[2]} numbers and its "
                    f"correction {self.config.action_dim}; give the policy that the correction was learned for"
                )
            for row in used_up:
                self._waiting[row].extend(np.clip(chunks[row], -1, 1))
        actions = np.stack([queue.popleft() for queue in self._waiting]).astype(np.float32)
        return annotated_frames(observation["frames"][:, -1], actions, self._instructions), actions

    def corrected(self, actions: np.ndarray, correction: np.ndarray) -> np.ndarray:
        """Return corrected actions, float32 ``[b a]`` in -1 to 1, for corrections ``[b a]`` in -1 to 1."""
        return np.clip(actions + self.config.scale * correction, -1, 1).astype(np.float32)

    def save_pretrained(self, folder: Path, base: Path | None = None) -> None:
        """Write the correction into a folder, with a copy of the folder ``base`` of the frozen policy, if given."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / _WEIGHTS, self.agent.state_dict())
        save_json(folder / _CONFIG, {"kind": _KIND, "settings": to_dict(self.config)})
        if base is not None:
            shutil.copytree(base, folder / BASE, ignore=shutil.ignore_patterns("training"))


def residual_checkpoint(folder: Path) -> Path | None:
    """Return the folder with the newest corrected policy in ``folder``, a checkpoint or a run, or None."""
    for place in (folder, *(path for _, path in reversed(step_folders(folder)))):
        if (place / _WEIGHTS).is_file() and (place / _CONFIG).is_file():
            return place
    return None


def read_residual(folder: Path) -> tuple[ResidualConfig, DrQv2]:
    """Read a correction from a folder that ``residual_checkpoint`` returned.

    Raises:
        UserError: a file is damaged or of another kind.
    """
    tree = load_json(folder / _CONFIG)
    if tree.get("kind") != _KIND or "settings" not in tree:
        raise UserError(f"{folder / _CONFIG} describes no correction of a policy; give the folder of ivideogpt wm-rl")
    config = from_dict(ResidualConfig, tree["settings"], where=str(folder / _CONFIG))
    agent = new_residual_agent(config)
    try:
        agent.load_state_dict(load_tensors(folder / _WEIGHTS))
    except RuntimeError as error:
        raise UserError(f"the weights in {folder} do not fit its {_CONFIG} ({reason(error)}); copy it again") from error
    return config, agent.eval()
