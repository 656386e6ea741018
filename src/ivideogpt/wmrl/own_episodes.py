"""Recording of a policy's own episodes: a world model must be right in the states that the policy visits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import in_groups
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.vector import make_single
from ivideogpt.policies.vla.tiny_flow import FlowPolicy, TinyFlow

_EPISODES_A_SHARD = 50


@dataclass(frozen=True, kw_only=True)
class OwnRecording:
    """Settings of the recording of a policy's own episodes.

    Attributes:
        episodes: for training; 0: none are recorded.
        held_out: further ones, for the threshold of the classifier and the check of the world model.
        horizon: most steps of an episode.
        noise: largest standard deviation of what is added to the actions; each episode draws its own up to this.
        random_share: largest share of steps with a random action, drawn for each episode too.
        environment_options: of the recording, such as ``{"terminate": False}``, so that episodes run on after success.
    """

    episodes: int = 0
    held_out: int = 0
    horizon: int = 20
    noise: float = 0.0
    random_share: float = 0.0
    environment_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, episodes=0, held_out=0, horizon=1, noise=0, random_share=0)
        if self.random_share > 1:
            raise UserError(f"random_share is {self.random_share}; expected at most 1")


def record_own_episodes(
    policy: TinyFlow,
    task: str,
    seeds: Sequence[int],
    out: Path,
    settings: OwnRecording,
    options: dict[str, Any],
    *,
    split: str = "train",
) -> None:
    """Record one episode a seed into the store ``out``; the same call again resumes a stopped one.

    Args:
        policy: in evaluation mode.
        task: name of the environment.
        seeds: of start, noise and policy.
        out: a new or empty folder, or that of an earlier call.
        settings: the settings.
        options: of the environment.
        split: "train" or "test".
    """
    options = options | settings.environment_options
    shards = [
        ShardTask(
            name=f"own-{group[0]:08d}-{group[-1] + 1:08d}",
            read=partial(_play, policy, task, tuple(group), settings, options, split),
        )
        for group in in_groups(seeds, _EPISODES_A_SHARD)
    ]
    convert_to_store(shards, out, facts=StoreFacts(name=f"{task}, policy"), workers=0)


def _play(
    network: TinyFlow, task: str, seeds: Sequence[int], settings: OwnRecording, options: dict[str, Any], split: str
) -> Iterator[SourceEpisode]:
    """Play the episodes of some seeds side by side, so that the policy acts for all at once."""
    config, count = network.config, len(seeds)
    policy, randoms = FlowPolicy(network), [np.random.default_rng([seed, 2]) for seed in seeds]
    noise = np.array([[settings.noise * random.random()] for random in randoms])
    shares = np.array([settings.random_share * random.random() for random in randoms])
    environments = [
        make_single(task, frame_stack=config.images, image_size=config.resolution, **options) for _ in seeds
    ]
    starts = [environment.reset(seed=seed) for environment, seed in zip(environments, seeds, strict=True)]
    instructions = [info.get("instruction", "") for _, info in starts]
    frames = [[frame if frame.ndim == 4 else frame[None]] for frame, _ in starts]
    taken: list[list[tuple[np.ndarray, bool]]] = [[] for _ in seeds]
    policy.reset(seeds, instructions)
    is_over, chunk = np.zeros(count, bool), np.zeros((count, 0, config.action_dim), np.float32)
    for _ in range(settings.horizon):
        if not chunk.shape[1]:
            chunk = policy.act({"frames": np.stack([pictures[-1] for pictures in frames])})
        draws = np.stack([random.standard_normal(config.action_dim) for random in randoms])
        others = np.stack([random.uniform(-1, 1, config.action_dim) for random in randoms])
        is_random = np.array([random.random() for random in randoms]) < shares
        actions = np.where(is_random[:, None], others, (chunk[:, 0] + noise * draws).clip(-1, 1)).astype(np.float32)
        for row in np.flatnonzero(~is_over):
            frame, _, terminated, truncated, info = environments[row].step(actions[row])
            frames[row].append(frame if frame.ndim == 4 else frame[None])
            taken[row].append((config.to_raw(actions[row]), bool(info["success"])))
            is_over[row] = terminated or truncated
        chunk = chunk[:, 1:]
    for environment in environments:
        environment.close()
    for row, seed in enumerate(seeds):
        raw, success = (np.array(part) for part in zip(*taken[row], strict=True))
        success = np.append(success, False)
        terminated = success & (np.cumsum(success) == 1)
        yield SourceEpisode(
            key=f"{task}_policy_{seed:08d}",
            split=split,
            cameras={"image": np.stack([pictures[-1] for pictures in frames[row]])},
            actions=np.concatenate([raw, np.zeros_like(raw[:1])]).astype(np.float32),
            action_fields=(ActionField(name="action", size=config.action_dim),),
            rewards=success.astype(np.float32),
            terminated=terminated,
            text=instructions[row],
            meta={"task": task, "seed": int(seed), "success": bool(terminated.any())},
        )
