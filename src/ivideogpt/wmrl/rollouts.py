"""Episodes of a policy that acts in chunks, in rows of a world model or of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.start_states import StartBatch
from ivideogpt.envs.vector import make_single
from ivideogpt.models.success_classifier import SuccessClassifier
from ivideogpt.policies.vla.tiny_flow import FlowObservation, SizedPolicy, TinyFlow, hash_words
from ivideogpt.worldmodel.world_model import WorldModel


class Outcome(NamedTuple):
    """Result of a chunk of actions.

    Attributes:
        frames: uint8 ``[c n k h w 3]`` after each of the c actions.
        success: bool ``[n]``, in this chunk.
        over: bool ``[n]``: by success or by the horizon.
        steps: int64 ``[n]`` that were taken.
    """

    frames: np.ndarray
    success: np.ndarray
    over: np.ndarray
    steps: np.ndarray


class Rows(Protocol):
    """Episodes side by side, in a world model or in an environment.

    Attributes:
        count: rows n.
        steps: so far, in all rows together; saved with a run.
    """

    count: int
    steps: int

    def state_dict(self) -> dict[str, int]:
        """Return the number of steps."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Load what ``state_dict`` returned."""
        self.steps = state_dict["steps"]

    def begin(self, random: np.random.Generator, group: int) -> tuple[np.ndarray, list[str]]:
        """Begin episodes, ``group`` neighbouring ones alike; return frames uint8 ``[n k h w 3]`` and instructions."""
        ...

    def play_chunk(self, actions: np.ndarray) -> Outcome:
        """Take actions float32 ``[n c a]`` in -1 to 1; rows that are over rest."""
        ...


class InstructedStarts:
    """Recorded frames that episodes begin at, each with the instruction of its recording."""

    def __init__(self, episodes: Sequence[Episode], instructions: Sequence[str], *, frames: int, latest: int) -> None:
        """Take the frames 0 to ``latest`` of each recording that come before its success, with ``frames - 1`` before.

        The first frame of a recording stands for those before it.
        """
        self.frames, self._episodes = frames, list(episodes)
        self._places: list[tuple[int, int]] = []
        for number, episode in enumerate(self._episodes):
            done = np.flatnonzero(episode.terminated) if episode.terminated is not None else []
            last = min(latest, int(done[0]) if len(done) else len(episode) - 2)
            self._places += [(number, frame) for frame in range(last + 1)]
        #: The task of each start in words.
        self.instructions = [instructions[number] for number, _ in self._places]

    def __len__(self) -> int:
        """Return the number of starts."""
        return len(self._places)

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> StartBatch:
        """Return start states; see `StartStates`."""
        chosen = random.integers(0, len(self), count) if indices is None else indices
        states = []
        for index in np.asarray(chosen).tolist():
            number, frame = self._places[index]
            states.append(self._episodes[number].frames[np.maximum(np.arange(frame + 1 - self.frames, frame + 1), 0)])
        return StartBatch(np.stack(states))


class ImaginedRows(Rows):
    """Episodes in a world model, which a success classifier ends."""

    def __init__(
        self,
        model: WorldModel,
        starts: InstructedStarts,
        classifier: SuccessClassifier,
        policy: SizedPolicy,
        *,
        count: int,
        horizon: int,
        reanchor_every: int | None = None,
    ) -> None:
        """Make ``count`` rows.

        Args:
            model: conditioned on actions.
            starts: with as many frames as the model's context and the policy's pictures.
            classifier: of the task; where it reads instructions, each row is judged by its own.
            policy: knows the range of the actions.
            count: rows n.
            horizon: most steps of an episode.
            reanchor_every: see ``WorldModel.segment_frames``.

        Raises:
            UserError: policy or classifier read frames of another size than the model draws.
        """
        for name, side in (("policy", policy.config.resolution), ("classifier", classifier.config.resolution)):
            if side != model.resolution:
                raise UserError(f"the {name} reads frames of {side} px and the world model draws {model.resolution} px")
        self.count, self.steps = count, 0
        self._starts, self._classifier, self._policy = starts, classifier, policy
        self._instructions: list[str] = [""] * count
        self._succeeded, self._over = np.zeros(count, bool), np.ones(count, bool)
        self._stack = policy.config.images
        self._rows = ImaginedVectorEnv(
            model,
            starts,
            num_envs=count,
            horizon=horizon,
            frame_stack=self._stack,
            autoreset_mode="disabled",
            reward=self._reward,
            terminate=lambda frames, actions, after: self._succeeded,
            reanchor_every=reanchor_every,
        )

    def begin(self, random: np.random.Generator, group: int) -> tuple[np.ndarray, list[str]]:
        """Begin episodes; see `Rows`."""
        indices = random.integers(0, len(self._starts), self.count // group)
        self._instructions = [self._starts.instructions[index] for index in indices.tolist() for _ in range(group)]
        seed = int(random.integers(2**31))
        frames, _ = self._rows.reset(seed=seed, options={"indices": indices, "group_size": group})
        self._over = np.zeros(self.count, bool)
        return self._stacked(frames), list(self._instructions)

    def play_chunk(self, actions: np.ndarray) -> Outcome:
        """Imagine a chunk; see `Rows`."""
        frames, _, terminated, truncated, _ = self._rows.chunk_step(self._policy.config.to_raw(actions), may_rest=True)
        ends = terminated | truncated
        taken = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, actions.shape[1])
        steps = np.where(self._over, 0, taken)
        self._over |= ends.any(axis=1)
        self.steps += int(steps.sum())
        pictures = np.stack([self._stacked(x) for x in frames])
        return Outcome(pictures, np.asarray(terminated.any(axis=1)), self._over.copy(), steps)

    def _reward(self, frames: np.ndarray, actions: np.ndarray, after: np.ndarray) -> np.ndarray:
        words = self._instructions if self._classifier.config.words else None
        self._succeeded = self._classifier.succeeds(np.ascontiguousarray(after), words)
        return self._succeeded.astype(np.float64)

    def _stacked(self, frames: np.ndarray) -> np.ndarray:
        return frames if self._stack > 1 else frames[:, None]


class RealRows(Rows):
    """Episodes in environments of one task."""

    def __init__(
        self,
        task: str,
        policy: SizedPolicy,
        *,
        count: int,
        horizon: int | None = None,
        options: dict[str, Any] | None = None,
        seeds: Sequence[int] = range(10**6, 2 * 10**6),
    ) -> None:
        """Make ``count`` environments; episodes are cut after ``horizon`` steps, ``begin`` draws among ``seeds``."""
        config = policy.config
        self.count, self._horizon, self._seeds, self.steps = count, horizon, seeds, 0
        self._environments = [
            make_single(task, frame_stack=config.images, image_size=config.resolution, **(options or {}))
            for _ in range(count)
        ]
        self._over, self._ages = np.ones(count, bool), np.zeros(count, np.int64)
        self._frames: list[np.ndarray] = [np.zeros(0)] * count

    def begin(self, random: np.random.Generator, group: int) -> tuple[np.ndarray, list[str]]:
        """Begin episodes; see `Rows`."""
        drawn = random.integers(0, len(self._seeds), self.count // group)
        return self.begin_at([self._seeds[index] for index in drawn.repeat(group).tolist()])

    def begin_at(self, seeds: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """Begin the episodes of some seeds; with fewer seeds than rows, the other rows are over."""
        instructions = [""] * self.count
        self._over, self._ages = np.arange(self.count) >= len(seeds), np.zeros(self.count, np.int64)
        for row, environment in enumerate(self._environments):
            frame, info = environment.reset(seed=seeds[min(row, len(seeds) - 1)])
            self._frames[row], instructions[row] = self._stacked(frame), info.get("instruction", "")
        return np.stack(self._frames), instructions

    def play_chunk(self, actions: np.ndarray) -> Outcome:
        """Step the environments; see `Rows`."""
        success, steps = np.zeros(self.count, bool), np.zeros(self.count, np.int64)
        frames = []
        for number in range(actions.shape[1]):
            for row in np.flatnonzero(~self._over):
                frame, _, terminated, truncated, info = self._environments[row].step(actions[row, number])
                self._frames[row] = self._stacked(frame)
                success[row] |= info["success"]
                self._ages[row] += 1
                steps[row] += 1
                at_end = self._horizon is not None and self._ages[row] >= self._horizon
                self._over[row] = terminated or truncated or success[row] or at_end
            frames.append(np.stack(self._frames))
        self.steps += int(steps.sum())
        return Outcome(np.stack(frames), success, self._over.copy(), steps)

    def close(self) -> None:
        """Close the environments."""
        for environment in self._environments:
            environment.close()

    def _stacked(self, frame: np.ndarray) -> np.ndarray:
        return np.array(frame if frame.ndim == 4 else frame[None])


@dataclass(frozen=True)
class PlayedEpisodes:
    """Episodes of n rows with up to m chunks; entries after the end of an episode do not count.

    Attributes:
        observations: n * m rows, chunk by chunk.
        frames: uint8 ``[m h n k h w 3]``, before each action of each chunk.
        before, after: float32 ``[m n h a]`` around the stochastic step of the flow.
        actions: float32 ``[m n h a]``, clamped to -1 to 1, as they were taken.
        indices: int64 ``[m n]``, number of the stochastic step.
        alive: bool ``[m n]``: the episode was not over before the chunk.
        success: bool ``[m n]``: the chunk ended it with success.
        last: frames after the last chunk, and the words.
        steps: int64 ``[n]``, of each episode.
    """

    observations: FlowObservation
    frames: Tensor
    before: Tensor
    after: Tensor
    actions: Tensor
    indices: Tensor
    alive: Tensor
    success: Tensor
    last: FlowObservation
    steps: Tensor

    @property
    def succeeded(self) -> Tensor:
        """Success of each episode, bool ``[n]``."""
        return self.success.any(dim=0)


@torch.no_grad()
def play_episodes(
    policy: TinyFlow,
    rows: Rows,
    frames: np.ndarray,
    instructions: Sequence[str],
    generator: torch.Generator,
    *,
    horizon: int,
    noise_level: float = 0.0,
    stochastic_steps: int = 0,
    over: np.ndarray | None = None,
) -> PlayedEpisodes:
    """Play episodes that have begun until all are over.

    Args:
        policy: in evaluation mode.
        rows: of a world model or an environment.
        frames: uint8 ``[n k h w 3]``, and
        instructions: as ``begin`` returned them.
        generator: of the noise of the flow, on the CPU.
        horizon: most steps.
        noise_level: of one random step of the flow of each chunk; 0: the flow is deterministic.
        stochastic_steps: it is one of so many first steps; 0: of all.
        over: bool ``[n]``, rows that are not played; None: none.
    """
    config, device = policy.config, policy.device
    words = hash_words(instructions, config)
    most = min(stochastic_steps or config.denoise_steps, config.denoise_steps)
    done, steps = np.zeros(rows.count, bool) if over is None else over.copy(), np.zeros(rows.count, np.int64)
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("frames", "before", "after", "actions", "indices", "alive", "success")
    }
    for _ in range(-(-horizon // config.chunk)):
        if done.all():
            break
        seen = FlowObservation(torch.from_numpy(frames), words)
        shape = rows.count, config.chunk, config.action_dim
        start, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        index = int(torch.randint(most, (), generator=generator)) if noise_level else -1
        chain = policy.sample(policy.encode(seen.to(device)), start, index=index, level=noise_level, noise=noise)
        actions = chain.actions.clamp(-1, 1).cpu()
        outcome = rows.play_chunk(actions.numpy())
        values = {
            "frames": torch.from_numpy(np.concatenate([frames[None], outcome.frames[:-1]])),
            "before": chain.before.cpu(),
            "after": chain.after.cpu(),
            "actions": actions,
            "indices": torch.full((rows.count,), index),
            "alive": torch.from_numpy(~done),
            "success": torch.from_numpy(outcome.success & ~done),
        }
        for name, value in values.items():
            parts[name].append(value)
        steps += outcome.steps
        done, frames = done | outcome.over, outcome.frames[-1]
    stacked = {name: torch.stack(values) for name, values in parts.items()}
    count = len(stacked["frames"])
    seen = FlowObservation(stacked["frames"][:, 0].flatten(0, 1), words.repeat(count, 1))
    last = FlowObservation(torch.from_numpy(frames), words)
    return PlayedEpisodes(observations=seen, last=last, steps=torch.from_numpy(steps), **stacked)


def evaluate_flow(policy: TinyFlow, rows: RealRows, seeds: Sequence[int], *, horizon: int, seed: int = 0) -> list[bool]:
    """Return the success of the episodes of some seeds in an environment, by the deterministic flow."""
    successes: list[bool] = []
    for first in range(0, len(seeds), rows.count):
        chosen = seeds[first : first + rows.count]
        frames, instructions = rows.begin_at(chosen)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        over = np.arange(rows.count) >= len(chosen)
        played = play_episodes(policy, rows, frames, instructions, generator, horizon=horizon, over=over)
        successes += played.succeeded[: len(chosen)].tolist()
    return successes
