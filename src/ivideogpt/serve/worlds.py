"""The worlds of a player, each with a `Session`. Functions that call the model run on the compute thread only."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.calibration import frame_changes, read_calibration
from ivideogpt.metrics.image import psnr
from ivideogpt.serve.protocol import Open, Settings, Show, StepRequest, Truth, finite
from ivideogpt.worldmodel.session import Session
from ivideogpt.worldmodel.world_model import WorldModel

#: Widths of its range by which an action may lie outside it.
BEYOND = 10
MOST_SHOWN = 64
# float32 in the session, and uint8 as it is sent
_BYTES_A_VALUE = 5


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Meaning of a model's actions to a person, from the checkpoint or estimated from its statistics."""

    dim: int
    pointer: bool
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: tuple[str, ...]

    @classmethod
    def of(cls, model: WorldModel) -> Actions:
        """Return the actions of ``model``."""
        config, dim = model.config, model.action_dim
        space, mean, std = config.action_space, config.action_mean, config.action_std
        if len(mean) == len(std) == dim:
            low = tuple(m - 3 * s for m, s in zip(mean, std, strict=True))
            high = tuple(m + 3 * s for m, s in zip(mean, std, strict=True))
        else:
            low, high = (-1.0,) * dim, (1.0,) * dim
        return cls(
            dim=dim,
            pointer=space.pointer,
            names=space.names or tuple(f"action {index + 1}" for index in range(dim)),
            low=space.low or low,
            high=space.high or high,
            units=space.units or ("",) * dim,
        )

    def check(self, action: tuple[float, ...] | None) -> None:
        """Check an action in raw units.

        Raises:
            UserError: the model does not take it.
        """
        if action is None:
            if self.dim:
                raise UserError(f"action is null; this model needs {self.dim} numbers")
            return
        if len(action) != self.dim:
            takes = f"takes {self.dim}" if self.dim else "is action-free: give null"
            raise UserError(f"action has {len(action)} numbers; this model {takes}")
        for name, value, low, high in zip(self.names, action, self.low, self.high, strict=True):
            room = BEYOND * (high - low)
            if not low - room <= value <= high + room:
                raise UserError(f"{name} of the action is {value:g}; expected {low:g} to {high:g}, or not far from it")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One frame that was sent: its picture ``[h w 3]`` as bytes, and the values of its header.

    Attributes:
        picture: bytes of uint8 ``[h w 3]``.
        action: in raw units, or None.
        entropy: mean entropy of the tokens in bits, or None.
        expected_error: the level of `Calibration` as JSON values, or None: not calibrated, or beyond what was measured.
        reward: expected reward of the action, or None.
        psnr: against the recorded frame of the same step in dB, or None.
        milliseconds: computing time of the model, or None.
    """

    picture: bytes
    action: tuple[float, ...] | None = None
    entropy: float | None = None
    expected_error: dict[str, Any] | None = None
    reward: float | None = None
    psnr: float | None = None
    milliseconds: float | None = None


@dataclass
class World:
    """A session of one row, and all its frames as they were sent; ``seen`` begins with the context."""

    session: Session
    seen: list[Seen]

    @property
    def steps(self) -> int:
        """Frames imagined so far."""
        return self.session.steps


@dataclass
class Worlds:
    """Open worlds of a player: one or two that began with the same frames of an episode."""

    model: WorldModel
    actions: Actions
    episode_id: str
    episode: Episode
    start: int
    settings: Settings
    most_steps: int
    worlds: list[World] = field(default_factory=list)
    forks: int = 0

    def __post_init__(self) -> None:
        """Read the calibration of the model.

        Raises:
            UserError: it cannot be read.
        """
        self.calibration = read_calibration(self.model.config.metadata)

    @classmethod
    def open(cls, model: WorldModel, message: Open, episode: Episode, settings: Settings, most_steps: int) -> Worlds:
        """Open a world: encode its context.

        Args:
            model: the world model.
            message: the request.
            episode: at the model's size.
            settings: of sampling.
            most_steps: of each world.

        Raises:
            UserError: the episode has not enough frames after ``start``.
        """
        count = known_frames(model)
        if not 0 <= message.start <= len(episode) - count:
            raise UserError(f"start is {message.start}; expected 0 to {len(episode) - count} in this episode")
        frames = episode.frames[message.start : message.start + count]
        if model.config.goal_conditioned:
            frames = np.concatenate([episode.frames[-1:], frames])
        worlds = cls(model, Actions.of(model), message.episode, episode, message.start, settings, most_steps)
        reward = torch.tensor([episode.reward_before(message.start + count - 1)])
        session = model.session(_pixels(frames), sampling=settings.sampling, seed=settings.seed, last_rewards=reward)
        worlds.worlds.append(World(session, [Seen(picture=frame.tobytes()) for frame in frames]))
        return worlds

    def state(self) -> dict[str, Any]:
        """Return STATE of the protocol."""
        return {
            "episode": self.episode_id,
            "start": self.start,
            "true_steps": self.true_steps,
            "settings": vars(self.settings),
            "worlds": [{"steps": world.steps} for world in self.worlds],
        }

    def close(self) -> None:
        """Free all memory, also if this object is still referenced."""
        self.worlds.clear()

    # The recording

    @property
    def true_steps(self) -> int:
        """True frames after the context."""
        return len(self.episode) - self.start - known_frames(self.model)

    def true_index(self, step: int) -> int:
        """Return the index of the true frame of ``step``; step 0 is the last context frame."""
        return self.start + known_frames(self.model) - 1 + step

    def true_action(self, step: int) -> tuple[float, ...] | None:
        """Return the action of the episode that led to ``step``, or None."""
        index = self.true_index(step) - 1
        if self.episode.actions is None or not self.model.action_dim or index < 0:
            return None
        return tuple(self.episode.actions[index].tolist())

    def truth(self, message: Truth) -> list[tuple[int, Seen]]:
        """Return true frames with their steps.

        Raises:
            UserError: none of them exists, or too many were asked for.
        """
        first = 1 - known_frames(self.model)
        steps = _asked(message.first, message.count, first, self.true_steps)
        if not steps:
            raise UserError(
                f"the episode has no true frame of step {message.first}; it has steps up to {self.true_steps}"
            )
        frames = self.episode.frames
        return [
            (step, Seen(picture=frames[self.true_index(step)].tobytes(), action=self.true_action(step)))
            for step in steps
        ]

    # Worlds

    def chosen(self, world: int | str) -> list[int]:
        """Return the indices of the worlds that a message names.

        Raises:
            UserError: there is no such world.
        """
        if world == "all":
            return list(range(len(self.worlds)))
        if not isinstance(world, int) or not 0 <= world < len(self.worlds):
            raise UserError(f"world is {world}; expected {'0 or 1' if len(self.worlds) > 1 else 0}")
        return [world]

    def show(self, message: Show) -> list[tuple[int, Seen]]:
        """Return existing frames of a world with their steps.

        Raises:
            UserError: there is no such world or frame, or too many were asked for.
        """
        (index,) = self.chosen(message.world)
        world = self.worlds[index]
        context = len(world.seen) - world.steps
        steps = _asked(message.first, message.count, 1 - context, world.steps)
        if not steps:
            raise UserError(f"world {index} has no step {message.first}; expected {1 - context} to {world.steps}")
        return [(step, world.seen[step + context - 1]) for step in steps]

    def action_for(self, message: StepRequest, index: int) -> tuple[float, ...] | None:
        """Return the action of the next step of world ``index``, in raw units.

        Raises:
            UserError: the world is at its end, or there is no such action.
        """
        world = self.worlds[index]
        if world.steps >= self.most_steps:
            raise UserError(f"world {index} has {world.steps} steps, as many as it may have; rewind or open another")
        action = message.action
        if action == "episode":
            if world.steps >= self.true_steps and self.model.action_dim:
                raise UserError(f"the episode ends at step {self.true_steps}; give an action of your own, or rewind")
            action = self.true_action(world.steps + 1)
            if action is None and self.model.action_dim:
                raise UserError("this episode was recorded without actions; give one of your own")
        assert not isinstance(action, str)
        self.actions.check(action)
        return action

    def step(self, index: int, action: tuple[float, ...] | None) -> Seen:
        """Imagine one frame of world ``index``.

        Raises:
            UserError: the frame is not finite; the world does not change.
        """
        began = time.perf_counter()
        world = self.worlds[index]
        given = None
        if action is not None:
            given = self.model.normalize_actions(torch.tensor([action], dtype=torch.float32))
        step = world.session.step(given)
        if not torch.isfinite(step.frames).all():
            world.session.rewind(1)
            raise UserError("the model's numbers overflowed; give an action nearer to its range")
        frame = step.frames[0].cpu()
        similarity = None
        if world.steps <= self.true_steps:
            true = _pixels(self.episode.frames[self.true_index(world.steps)][None])
            similarity = float(psnr(frame[None, None], true))
        entropy = finite(float(step.entropies.mean()))
        picture = (frame * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        seen = Seen(
            picture=picture.tobytes(),
            action=action,
            entropy=None if entropy is None else entropy / math.log(2),
            expected_error=self._expected_error(world, entropy, picture),
            reward=None if step.rewards is None else finite(float(step.rewards[0])),
            psnr=similarity,
            milliseconds=round(1000 * (time.perf_counter() - began), 2),
        )
        world.seen.append(seen)
        return seen

    def _expected_error(self, world: World, entropy: float | None, picture: np.ndarray) -> dict[str, Any] | None:
        """Return the expected error of the newest frame, uint8 ``[h w 3]`` with an entropy in nats, as JSON values."""
        if self.calibration is None:
            return None
        value = entropy
        if self.calibration.signal == "change":
            given = np.frombuffer(world.seen[self.model.context_frames - 1].picture, np.uint8).reshape(picture.shape)
            value = float(frame_changes(*(torch.from_numpy(x.copy())[None] for x in (picture[None], given)))[0, 0])
        level = self.calibration.level(value, frame=world.steps)
        return None if level is None else {"name": level.name, "psnr": level.psnr, "hit_rate": level.hit_rate}

    def check_rewind(self, indices: list[int], step: int) -> None:
        """Check that one of the worlds has reached ``step``.

        Raises:
            UserError: none has.
        """
        most = max(self.worlds[index].steps for index in indices)
        if not 0 <= step <= most:
            raise UserError(f"step is {step}; expected 0 to {most}, the steps made so far")

    def rewind(self, index: int, step: int) -> None:
        """Remove the steps of world ``index`` after ``step``."""
        world = self.worlds[index]
        back = world.steps - step
        if back > 0:
            world.session.rewind(back)
            del world.seen[-back:]

    def fork(self, most: int) -> None:
        """Open a second world that begins like the first, with its own random numbers.

        Raises:
            UserError: there are ``most`` worlds already.
        """
        if len(self.worlds) >= most:
            raise UserError(f"there are {len(self.worlds)} worlds already, as many as there may be; join them first")
        parent = self.worlds[0]
        self.forks += 1
        self.worlds.append(World(parent.session.fork(1, first=self.forks), list(parent.seen)))

    def join(self, keep: int) -> None:
        """Close all worlds but ``keep``.

        Raises:
            UserError: there is no such world.
        """
        self.worlds[:] = [self.worlds[index] for index in self.chosen(keep)]

    def change(self, settings: Settings) -> None:
        """Change the sampling of the next steps."""
        self.settings = settings
        for world in self.worlds:
            world.session.sampling = settings.sampling

    def recording(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return all frames of world ``index``, uint8 ``[t h w 3]``, their actions, float32 ``[t a]``, and c.

        As in an episode: row i of the actions leads from frame i to i + 1, and the last row is padding. Rows within the
        context are the recorded ones, or zero.

        Raises:
            UserError: there is no such world.
        """
        (index,) = self.chosen(index)
        seen = list(self.worlds[index].seen)
        count = self.model.context_frames
        shape = (len(seen), *self.episode.frames.shape[1:])
        frames = np.frombuffer(b"".join(frame.picture for frame in seen), np.uint8).reshape(shape)
        actions = np.zeros((len(seen), self.model.action_dim), np.float32)
        if self.model.action_dim:
            # A goal is followed by a frame that no action led to.
            goal = self.model.config.goal_conditioned
            before = [None if goal else self.true_action(step) for step in range(2 - count, 1)]
            given = [*before, *(frame.action for frame in seen[count:])]
            for row, action in enumerate(given):
                actions[row] = 0.0 if action is None else action
        return frames, actions, count


def known_frames(model: WorldModel) -> int:
    """Return the number of recorded frames before the first imagined one; a goal is the last frame of the episode."""
    return model.context_frames - 1 if model.config.goal_conditioned else model.context_frames


def steps_within(model: WorldModel, budget: int) -> int:
    """Return the number of steps of a world of ``model`` whose frames fit into ``budget`` bytes."""
    values = 3 * model.resolution**2
    return max(budget // (values * _BYTES_A_VALUE) - model.context_frames, 1)


def changed(settings: Settings, changes: Any) -> Settings:
    """Return the settings with changes.

    Raises:
        UserError: a value is out of range.
    """
    return replace(settings, **changes)


def _asked(first: int, count: int, low: int, high: int) -> range:
    """Select the steps from ``low`` to ``high`` of ``count`` steps from ``first`` on."""
    if not 1 <= count <= MOST_SHOWN:
        raise UserError(f"count is {count}; expected 1 to {MOST_SHOWN} frames at a time")
    return range(max(first, low), min(first + count, high + 1))


def _pixels(frames: np.ndarray) -> Tensor:
    """Return frames uint8 ``[t h w 3]`` as float ``[1 t c h w]`` in [0, 1]."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)[None].float() / 255
