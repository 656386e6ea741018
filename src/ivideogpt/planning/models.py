"""Models that a planner searches in: a world model, the simulator itself, and "nothing moves".

They share one interface. `PlanningModel.root` takes what is known now; `Root.rollout` tells what would come of each
candidate. The simulator is the upper bound of a benchmark, the repeated last frame its lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.worldmodel import memory
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.session import Session
from ivideogpt.worldmodel.world_model import WorldModel

#: Most candidates that are imagined together: more are no faster, and need more memory.
BATCH_ROWS = 256


class Rollout(Protocol):
    """The futures of k candidates; an `Imagination` is one."""

    @property
    def horizon(self) -> int:
        """Number of frames of a future."""
        ...

    @property
    def rewards(self) -> Tensor | None:
        """Rewards ``[k horizon]``, or None where the model predicts none."""
        ...

    def frames_at(self, steps: Sequence[int]) -> Tensor:
        """Return frames float32 ``[k n c h w]`` in [0, 1] of steps, from 0 on or from the end (-1)."""
        ...


class RolloutStart:
    """The first steps of a rollout; a `Rollout` too."""

    def __init__(self, rollout: Rollout, horizon: int) -> None:
        """Cut ``rollout`` after ``horizon`` steps."""
        self.whole, self.horizon = rollout, horizon

    @property
    def rewards(self) -> Tensor | None:
        """Rewards ``[k horizon]``, or None."""
        return None if self.whole.rewards is None else self.whole.rewards[:, : self.horizon]

    def frames_at(self, steps: Sequence[int]) -> Tensor:
        """Return frames; see `Rollout`."""
        return self.whole.frames_at([step % self.horizon for step in steps])


class Root(Protocol):
    """The moment at which candidates begin."""

    def rollout(self, actions: Tensor) -> Rollout:
        """Predict the futures of candidates float32 ``[k horizon a]`` in units of the environment."""
        ...

    def draft(self, actions: Tensor) -> Rollout:
        """Predict them cheaply; raises UserError where the model cannot."""
        ...


class PlanningModel(Protocol):
    """A model of an environment that a planner searches in."""

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        ...

    @property
    def resolution(self) -> int:
        """Height and width of a frame in pixels."""
        ...

    def root(self, observation: Mapping[str, np.ndarray]) -> Root:
        """Begin at ``observation``: ``frames`` uint8 ``[k h w 3]``, the newest last, and its ``reward`` if known."""
        ...


class ImaginedFutures:
    """A world model as a `PlanningModel`: all candidates are children of one session, encoded once.

    They share their random numbers, so that the scores of two candidates differ by their actions alone.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        raw_actions: bool = False,
        raw_range: tuple[Tensor, Tensor] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        """Plan with ``model``.

        Args:
            model: conditioned on actions.
            raw_actions: actions of the environment are in raw units, and the checkpoint's statistics are applied;
                False: they are in model units.
            raw_range: lower and upper end ``[a]`` in raw units of what actions -1 to 1 span, or None.
            sampling: of the tokens; None: the checkpoint's.
            seed: of the tokens.

        Raises:
            UserError: the model takes no actions, or a goal.
        """
        if not model.action_dim or model.config.goal_conditioned:
            kind = "is conditioned on a goal" if model.config.goal_conditioned else "takes no actions"
            raise UserError(f"the world model {model.config.name} {kind}; a planner needs one that takes actions")
        model.require_square("a planner")
        self.model, self.raw_actions, self.raw_range = model, raw_actions, raw_range
        self.sampling, self.seed = sampling, seed

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.model.action_dim

    @property
    def resolution(self) -> int:
        """Height and width of a frame in pixels."""
        return self.model.resolution

    def root(self, observation: Mapping[str, np.ndarray]) -> ImaginedRoot:
        """Encode the last frames; where there are fewer than the context has, the first one is repeated."""
        frames, count = observation["frames"][-self.model.context_frames :], self.model.context_frames
        frames = np.concatenate([frames[:1]] * (count - len(frames)) + [frames])
        reward = torch.tensor([float(observation.get("reward", np.nan))])
        return self.root_of(rearrange(torch.from_numpy(frames), "t h w c -> 1 t c h w"), reward)

    def root_of(self, context: Tensor, last_rewards: Tensor | None = None) -> ImaginedRoot:
        """Encode context frames ``[1 c_frames c h w]``, float in [0, 1] or uint8; rewards as in `Session`."""
        session = self.model.session(context, sampling=self.sampling, seed=self.seed, last_rewards=last_rewards)
        return ImaginedRoot(self, session)


class ImaginedRoot:
    """One session, of which every candidate is a child."""

    def __init__(self, futures: ImaginedFutures, session: Session) -> None:
        """Begin at a session of one row."""
        self.futures, self.session = futures, session

    def rollout(self, actions: Tensor) -> Imagination:
        """Imagine all candidates; see `Root`."""
        return self._in_batches(Session.rollout, actions)

    def draft(self, actions: Tensor) -> Imagination:
        """Forecast all candidates by the likeliest tokens, without the transformer; see `Root`."""
        return self._in_batches(Session.draft, actions)

    def _in_batches(self, imagine: Callable[[Session, Tensor], Imagination], actions: Tensor) -> Imagination:
        """Imagine candidates in batches of bounded size that fit into the free memory."""
        model, parts = self.futures.model, []
        row_bytes = model.row_bytes(min(model.segment_frames(), actions.shape[1]))
        for batch in self.model_units(actions).split(BATCH_ROWS):

            def imagine_rows(rows: slice, batch: Tensor = batch) -> Imagination:
                chunk = batch[rows]
                return imagine(self.session.fork(len(chunk), common_random=True), chunk)

            parts += memory.in_chunks(len(batch), row_bytes, model.device, imagine_rows)
        return Imagination.joined(parts)

    def model_units(self, actions: Tensor) -> Tensor:
        """Convert actions ``[k t a]`` of the environment to the model's.

        Raises:
            UserError: they have another number of numbers.
        """
        if actions.shape[-1] != self.futures.action_dim:
            raise UserError(
                f"an action has {actions.shape[-1]} numbers; the world model {self.futures.model.config.name} takes "
                f"{self.futures.action_dim}: use the model of this environment"
            )
        if self.futures.raw_range is not None:
            low, high = self.futures.raw_range
            return self.futures.model.normalize_actions(low + (actions + 1) / 2 * (high - low))
        return self.futures.model.normalize_actions(actions) if self.futures.raw_actions else actions


class CopiedEnvironment(Protocol):
    """An environment whose state can be saved and put into another one of its kind; `PushT` is one."""

    def save_state(self) -> np.ndarray:
        """Return the state."""
        ...

    def restore_state(self, state: np.ndarray) -> None:
        """Go to a state."""
        ...

    def simulate(self, action: np.ndarray) -> float:
        """Make a step without a picture; return the reward."""
        ...

    def picture(self) -> np.ndarray:
        """Return the observation of the present state, uint8 ``[h w 3]``."""
        ...


class SimulatedFutures:
    """The simulator itself as a `PlanningModel`: the upper bound of what a model can know."""

    def __init__(self, environment: CopiedEnvironment, twin: CopiedEnvironment, action_dim: int) -> None:
        """Plan in ``twin`` from wherever ``environment``, which is not changed, is at the time."""
        self.environment, self.twin, self._action_dim = environment, twin, action_dim

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self._action_dim

    @property
    def resolution(self) -> int:
        """Height and width of a frame in pixels."""
        return self.twin.picture().shape[0]

    def root(self, observation: Mapping[str, np.ndarray]) -> SimulatedRoot:
        """Copy the state of the environment; the observation is not read."""
        return SimulatedRoot(self.twin, self.environment.save_state())


class SimulatedRoot:
    """A state of the simulator, from which every candidate begins."""

    def __init__(self, twin: CopiedEnvironment, state: np.ndarray) -> None:
        """Begin at ``state``."""
        self.twin, self.state = twin, state

    def rollout(self, actions: Tensor) -> SimulatedRollout:
        """Simulate one candidate after another; see `Root`."""
        states, rewards = [], torch.zeros(actions.shape[:2])
        for row, candidate in enumerate(actions.numpy()):
            self.twin.restore_state(self.state)
            visited = []
            for step, action in enumerate(candidate):
                rewards[row, step] = self.twin.simulate(action)
                visited.append(self.twin.save_state())
            states.append(np.stack(visited))
        return SimulatedRollout(self.twin, np.stack(states), rewards)

    def draft(self, actions: Tensor) -> Rollout:
        """Raise UserError: there is nothing cheaper."""
        raise UserError("the simulator has no draft; plan with speed full")


class SimulatedRollout:
    """States of the simulator, rendered when they are read."""

    def __init__(self, twin: CopiedEnvironment, states: np.ndarray, rewards: Tensor) -> None:
        """Hold states ``[k horizon s]`` and rewards ``[k horizon]``."""
        self.twin, self.states, self.rewards = twin, states, rewards
        self.horizon = states.shape[1]

    def frames_at(self, steps: Sequence[int]) -> Tensor:
        """Draw frames; see `Rollout`."""
        pictures = []
        for states in self.states[:, list(steps)]:
            for state in states:
                self.twin.restore_state(state)
                pictures.append(self.twin.picture())
        frames = torch.from_numpy(np.stack(pictures)).float() / 255
        return rearrange(frames, "(k n) h w c -> k n c h w", n=len(steps))


class RepeatedFrame:
    """A `PlanningModel` in which nothing moves: the lower bound, as every candidate is as good as any other."""

    def __init__(self, action_dim: int, resolution: int) -> None:
        """Predict frames of ``resolution`` px for actions of ``action_dim`` numbers."""
        self._action_dim, self._resolution = action_dim, resolution

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self._action_dim

    @property
    def resolution(self) -> int:
        """Height and width of a frame in pixels."""
        return self._resolution

    def root(self, observation: Mapping[str, np.ndarray]) -> RepeatedRoot:
        """Keep the last frame."""
        frame = torch.from_numpy(observation["frames"][-1].copy()).float() / 255
        return RepeatedRoot(rearrange(frame, "h w c -> c h w"))


class RepeatedRoot:
    """The frame that every candidate stays at."""

    def __init__(self, frame: Tensor) -> None:
        """Begin at a frame float32 ``[c h w]`` in [0, 1]."""
        self.frame = frame

    def rollout(self, actions: Tensor) -> Imagination:
        """Repeat the frame, with the reward 0; see `Root`."""
        rows, horizon = actions.shape[:2]
        nothing, rewards = torch.empty(rows, horizon, 0), torch.zeros(rows, horizon)
        return Imagination(self.frame.expand(rows, horizon, -1, -1, -1), nothing.long(), nothing, nothing, rewards)

    def draft(self, actions: Tensor) -> Imagination:
        """Repeat the frame; see `Root`."""
        return self.rollout(actions)
