"""The imagined world as a gymnasium environment: rows of `Session`s, reset one by one.

environments = ImaginedVectorEnv(model, EpisodeStarts(episodes, model.context_frames), num_envs=32, horizon=10)
observations, info = environments.reset(seed=0)  # uint8 [32 h w 3]
observations, rewards, terminated, truncated, info = environments.step(actions)  # float32 [32 a]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.protocols import Condition, Reward, StateEstimator
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.start_states import StartStates
from ivideogpt.worldmodel.session import Session
from ivideogpt.worldmodel.world_model import WorldModel

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except (ModuleNotFoundError, ImportError) as error:
    raise MissingExtraError("gymnasium 1.1 or newer", "rl") from error

#: The termination head ends an episode from this probability on.
_TERMINATION_PROBABILITY = 0.5
_RESET_OPTIONS = {"reset_mask", "indices", "group_size"}


@dataclass
class _Cohort:
    """Rows that started together, and their session."""

    session: Session
    rows: np.ndarray

    def without(self, leaving: np.ndarray) -> _Cohort | None:
        """Return the rows that stay, or None where there are none; ``leaving`` is bool ``[n]``."""
        staying = np.flatnonzero(~leaving[self.rows])
        if not len(staying):
            return None
        if len(staying) == len(self.rows):
            return self
        return _Cohort(self.session.select(staying.tolist()), self.rows[staying])


class ImaginedVectorEnv(VectorEnv):
    """Rows of imagined episodes.

    Observation: uint8 ``[h w 3]``, or ``[k h w 3]`` with a frame stack, oldest first.
    Reward: float64, from the model's reward head or a function.
    Terminated: from the termination head or a function; truncated after ``horizon`` steps.
    Info: ``termination`` float ``[n]`` (probability) where there is such a head; ``entropy`` float ``[n]``, mean of the
    new frame's tokens in nats, of a token model; ``success`` bool ``[n]`` and ``state`` float64 ``[n s]`` where there
    are functions for them; ``instruction`` str ``[n]`` where the start states have one each.

    A row depends on its seed, its episodes so far and its actions, and on no other row. Row i of seed s has the seed
    s + i, as in gymnasium.
    """

    def __init__(
        self,
        model: WorldModel,
        starts: StartStates,
        *,
        num_envs: int,
        horizon: int,
        frame_stack: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        reward: Reward | None = None,
        terminate: Condition | None = None,
        success: Condition | None = None,
        state: StateEstimator | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        reanchor_every: int | None = None,
        raw_actions: bool = True,
        render_mode: str | None = None,
    ) -> None:
        """Prepare the environment; nothing is imagined before ``reset``.

        Args:
            model: conditioned on actions. Its mode, training or not, is left as it is.
            starts: start states with at least as many frames as the model's context and the stack have.
            num_envs: rows n.
            horizon: steps of an episode. Where the model's positions run out, it encodes a new context.
            frame_stack: frames k of an observation.
            autoreset_mode: as in gymnasium: a row that is over begins again in the next step ("next_step"), in the
                same ("same_step"), or on ``reset(options={"reset_mask": ...})`` ("disabled").
            reward: replaces the reward head.
            terminate: replaces the termination head.
            success: marks transitions that reach the goal.
            state: estimates the simulator's state from a frame, for policies that read it.
            sampling: the sampling rule; None: the default of ``WorldModel.session``.
            seed: of all rows, until ``reset`` gives another.
            reanchor_every: see ``WorldModel.segment_frames``.
            raw_actions: actions are in the units of the robot, and the checkpoint's statistics are applied; False: they
                are in the units that the action layer was trained on.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: the model takes no actions, or a goal; it has no reward head and there is no function; an
                argument is out of range.
        """
        for name, value in {"num_envs": num_envs, "horizon": horizon, "frame_stack": frame_stack}.items():
            if value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        if not model.action_dim or model.config.goal_conditioned:
            kind = "is conditioned on a goal" if model.config.goal_conditioned else "takes no actions"
            raise UserError(f"the world model {model.config.name} {kind}; an environment needs one that takes actions")
        model.require_square("an environment")
        if reward is None and not model.config.heads.reward:
            raise UserError(
                f"the world model {model.config.name} has no reward head; give a reward function, a checkpoint with "
                "such a head, or train one onto it (ivideogpt mbrl with world_model.new_heads=true)"
            )
        self.model, self.starts, self.stack = model, starts, frame_stack
        self.num_envs, self.render_mode = num_envs, render_mode
        self.reward, self.terminate, self.success, self.state = reward, terminate, success, state
        self.sampling, self.reanchor_every, self.raw_actions = sampling, reanchor_every, raw_actions
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"], "render_fps": 10}

        # spaces
        side = model.resolution
        shape = (side, side, 3) if frame_stack == 1 else (frame_stack, side, side, 3)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = _action_space(model, raw_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # state of each row
        self._horizons = np.full(num_envs, horizon)
        self._row_attributes: dict[str, list[Any]] = {}
        self._instructions = np.full(num_envs, "", object)
        self._seeds = [first or 0 for first in _seeds_of_rows(seed, num_envs)]
        self._frames = np.zeros((num_envs, frame_stack, side, side, 3), np.uint8)
        self._ages, self._episodes = np.zeros(num_envs, np.int64), np.full(num_envs, -1)
        self._over, self._began = np.zeros(num_envs, bool), False
        self._cohorts: list[_Cohort] = []

    @property
    def horizon(self) -> int:
        """Steps of the longest row's episodes; setting it sets all rows."""
        return int(self._horizons.max())

    @horizon.setter
    def horizon(self, steps: int) -> None:
        self.set_attr("horizon", steps)

    # gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: one number (row i gets seed + i), one a row, or None: the rows continue with their own.
            options: ``reset_mask`` bool ``[n]``: only these rows; ``indices``: which start state, one a row or one a
                group; ``group_size``: so many neighbouring rows begin alike.

        Returns:
            Observations of all rows, and info, which has ``state`` where there is a function for it.

        Raises:
            UserError: a seed or an option does not fit the rows.
        """
        options = options or {}
        rows = np.asarray(options.get("reset_mask", np.ones(self.num_envs, bool)))
        if rows.shape != (self.num_envs,) or rows.dtype != bool or not rows.any():
            raise UserError(f"reset_mask is {rows.tolist()}; expected {self.num_envs} booleans, one of them true")
        if unknown := options.keys() - _RESET_OPTIONS:
            raise UserError(f"reset knows no option {sorted(unknown)}; expected reset_mask, indices or group_size")
        if not self._began and not rows.all():
            raise UserError("reset_mask was given before all rows were reset once; reset them all first")
        seeds, episodes = list(self._seeds), self._episodes.copy()
        for row, given in enumerate(_seeds_of_rows(seed, self.num_envs)):
            if given is not None and rows[row]:
                seeds[row], episodes[row] = given, -1
        self._begin(rows, seeds, episodes, options.get("indices"), int(options.get("group_size", 1)))
        return self._observations(), self._state_info(rows)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagine the next frame of each row.

        Args:
            actions: float32 ``[n a]``, see ``raw_actions``.

        Returns:
            Observations, rewards float64 ``[n]``, terminated and truncated bool ``[n]``, info.

        Raises:
            UserError: there was no reset, a row that is over was not reset, or the actions do not fit.
        """
        ended = self._over.copy()
        if ended.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise UserError(f"rows {np.flatnonzero(ended).tolist()} are over; reset them with a reset_mask first")
        rewards, terminated, truncated, info = self._advance(actions, ~ended)
        if ended.any():
            self._begin(ended, self._seeds, self._episodes)
            info |= self._state_info(np.ones(self.num_envs, bool))
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._over.any():
            over, final = self._over.copy(), self._observations()
            final_info = {name: value for name, value in info.items() if not name.startswith("_")}
            info |= {"final_obs": final, "_final_obs": over, "final_info": final_info, "_final_info": over}
            self._begin(over, self._seeds, self._episodes)
            info |= self._state_info(np.ones(self.num_envs, bool))
        return self._observations(), rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frame of each row, uint8 ``[h w 3]``, or None without a render mode."""
        return tuple(self._frames[:, -1].copy()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Free the caches."""
        self._cohorts, self._began = [], False

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each row."""
        if name == "horizon":
            return tuple(self._horizons.tolist())
        return tuple(self._row_attributes.get(name) or [getattr(self, name)] * self.num_envs)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each row.

        Args:
            name: ``horizon``, or an attribute of the caller's own, may differ between rows; the rest is shared.
            values: a list or tuple of one value a row, or one value for all rows.

        Raises:
            UserError: too few or too many values, different values of a shared attribute, or a horizon below 1.
        """
        rows = list(values) if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(rows) != self.num_envs:
            raise UserError(f"{len(rows)} values of {name} were given for {self.num_envs} rows; expected one a row")
        if name == "horizon":
            if min(rows) < 1:
                raise UserError(f"horizon is {min(rows)}; expected at least 1")
            self._horizons = np.array(rows, np.int64)
        elif all(value is rows[0] for value in rows):
            self._row_attributes.pop(name, None)
            setattr(self, name, rows[0])
        elif hasattr(self, name) and name not in self._row_attributes:
            raise UserError(f"all rows share {name}; set one value for all of them")
        else:
            self._row_attributes[name] = rows

    def call(self, name: str, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        """Call a method once for all rows; return its result for each row."""
        result = getattr(self, name)(*arguments, **named)
        return result if isinstance(result, tuple) and len(result) == self.num_envs else (result,) * self.num_envs

    # beyond gymnasium

    def chunk_step(
        self, actions: np.ndarray, *, may_rest: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take several actions one after the other; a row that is over rests until the end of the chunk.

        Args:
            actions: float32 ``[n c a]``.
            may_rest: rows that were over before the chunk rest too; False: they must be reset first.

        Returns:
            Observations and infos of each step; rewards (0 at rest), terminated and truncated ``[n c]``.

        Raises:
            UserError: rows reset themselves (``autoreset_mode`` is not "disabled"); see ``step``.
        """
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise UserError("chunk_step needs autoreset_mode DISABLED; rows that are over are reset between chunks")
        if self._over.any() and not may_rest:
            raise UserError(f"rows {np.flatnonzero(self._over).tolist()} are over; reset them with a reset_mask first")
        observations, outcomes, infos = [], [], []
        for number in range(actions.shape[1]):
            *outcome, info = self._advance(actions[:, number], ~self._over)
            observations.append(self._observations())
            outcomes.append(outcome)
            infos.append(info)
        rewards, terminated, truncated = (np.stack(part, axis=1) for part in zip(*outcomes, strict=True))
        return observations, rewards, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Return a snapshot in memory for ``set_state``, which takes it any number of times."""
        return {
            "cohorts": [_Cohort(cohort.session.fork(), cohort.rows.copy()) for cohort in self._cohorts],
            "arrays": [array.copy() for array in self._row_arrays()],
            "seeds": list(self._seeds),
            "began": self._began,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to where ``get_state`` was called: the same actions lead to the same frames."""
        self._cohorts = [_Cohort(cohort.session.fork(), cohort.rows.copy()) for cohort in state["cohorts"]]
        copies = [array.copy() for array in state["arrays"]]
        self._frames, self._ages, self._episodes, self._over, self._instructions = copies
        self._seeds, self._began = list(state["seeds"]), state["began"]

    # private

    def _row_arrays(self) -> tuple[np.ndarray, ...]:
        return self._frames, self._ages, self._episodes, self._over, self._instructions

    def _observations(self) -> np.ndarray:
        return (self._frames if self.stack > 1 else self._frames[:, 0]).copy()

    def _state_info(self, rows: np.ndarray) -> dict[str, Any]:
        info: dict[str, Any] = {}
        if getattr(self.starts, "instructions", None):
            info |= {"instruction": self._instructions.copy(), "_instruction": rows}
        if self.state is not None:
            info |= {"state": np.asarray(self.state(self._frames[:, -1]), np.float64), "_state": rows}
        return info

    def _begin(
        self,
        rows: np.ndarray,
        seeds: Sequence[int],
        episodes: np.ndarray,
        indices: Any = None,
        group_size: int = 1,
    ) -> None:
        """Start new episodes in ``rows``, bool ``[n]``, as one cohort; an error leaves everything as it was."""
        if group_size < 1 or self.num_envs % group_size:
            raise UserError(f"group_size is {group_size}; expected a number that divides {self.num_envs} rows")
        if indices is not None:
            indices = np.asarray(indices, np.int64)
            if indices.shape not in ((self.num_envs,), (self.num_envs // group_size,)):
                raise UserError(f"indices has shape {list(indices.shape)}; expected one a row, or one a group")
            indices = indices.repeat(self.num_envs // len(indices))

        # start states: rows of a group take the draw of its first row
        chosen, batches, episodes = np.flatnonzero(rows), [], episodes + rows
        words, instructions = getattr(self.starts, "instructions", None), self._instructions.copy()
        for row in chosen.tolist():
            first = row - row % group_size
            random = np.random.default_rng([seeds[first], int(episodes[first])])
            index = None if indices is None else indices[row : row + 1]
            if words:  # drawn here, so that the task is that of the state
                index = random.integers(0, len(words), 1) if index is None else index
                instructions[row] = words[int(index[0])]
            batches.append(self.starts(1, random, index))
        frames = np.concatenate([batch.frames for batch in batches])
        rewards = [[np.nan] if batch.rewards is None else batch.rewards for batch in batches]
        needed = max(self.model.context_frames, self.stack)
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < needed:
            raise UserError(
                f"start states are {frames.dtype} of shape {list(frames.shape[1:])}; expected uint8 [f h w 3] with at "
                f"least {needed} frames f"
            )

        # session
        context = torch.from_numpy(frames[:, -self.model.context_frames :])
        self._cohorts = [rest for cohort in self._cohorts if (rest := cohort.without(rows)) is not None]
        session = self.model.session(
            rearrange(context, "n t h w c -> n t c h w"),
            sampling=self.sampling,
            seed=[episode_seed(seeds[row], int(episodes[row])) for row in chosen.tolist()],
            last_rewards=torch.from_numpy(np.concatenate(rewards).astype(np.float32)),
            reanchor_every=self.reanchor_every,
        )
        self._cohorts.append(_Cohort(session, chosen))
        self._seeds, self._episodes, self._began = list(seeds), episodes, True
        self._instructions = instructions
        self._frames[rows], self._ages[rows], self._over[rows] = frames[:, -self.stack :], 0, False

    def _advance(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step of the ``active`` rows; the others stay as they are, without reward."""
        if not self._began:
            raise UserError("step was called before reset; call reset first")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise UserError(f"actions have shape {list(actions.shape)}; expected {list(self.action_space.shape or ())}")
        if not np.isfinite(actions).all():
            rows = np.flatnonzero(~np.isfinite(actions).all(axis=1)).tolist()
            raise UserError(f"actions of rows {rows} have NaN or infinity; expected finite numbers")

        # one step of each session
        frames_before = self._frames[:, -1].copy()
        rewards, terminations = np.zeros(self.num_envs), np.zeros(self.num_envs, np.float32)
        entropies = np.zeros(self.num_envs, np.float32)
        if not active.all():
            self._cohorts = [rest for cohort in self._cohorts if (rest := cohort.without(~active)) is not None]
        for cohort in self._cohorts:
            rows = cohort.rows
            chosen = torch.from_numpy(actions[rows]).to(self.model.device)
            step = cohort.session.step(self.model.normalize_actions(chosen) if self.raw_actions else chosen)
            self._frames[rows] = np.concatenate([self._frames[rows, 1:], as_bytes(step.frames)[:, None]], axis=1)
            if step.rewards is not None:
                rewards[rows] = step.rewards.double().cpu().numpy()
            if self.model.has_tokens:
                entropies[rows] = step.entropies.mean(dim=1).cpu().numpy()
            if step.terminations is not None:
                terminations[rows] = step.terminations.cpu().numpy()
        transitions = frames_before, actions, self._frames[:, -1]

        # rewards and ends
        info: dict[str, Any] = {}
        if self.reward is not None:
            rewards = np.where(active, np.asarray(self.reward(*transitions), np.float64), 0.0)
        if self.terminate is not None:
            terminated = active & np.asarray(self.terminate(*transitions), bool)
        else:
            terminated = active & (terminations > _TERMINATION_PROBABILITY)
        if self.model.has_tokens:
            info |= {"entropy": entropies, "_entropy": active}
        if self.model.config.heads.termination:
            info |= {"termination": terminations, "_termination": active}
        if self.success is not None:
            info |= {"success": active & np.asarray(self.success(*transitions), bool), "_success": active}
        info |= self._state_info(active)
        self._ages[active] += 1
        truncated = active & ~terminated & (self._ages >= self._horizons)
        self._over = np.where(active, terminated | truncated, self._over)
        return np.asarray(rewards), terminated, np.asarray(truncated), info


class ImaginedEnv(gymnasium.Env):
    """One row of `ImaginedVectorEnv` as an ordinary environment."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, model: WorldModel, starts: StartStates, *, horizon: int, **options: Any) -> None:
        """Take the arguments of `ImaginedVectorEnv`, except rows and autoreset."""
        mode = AutoresetMode.DISABLED
        self._rows = ImaginedVectorEnv(model, starts, num_envs=1, horizon=horizon, autoreset_mode=mode, **options)
        self.render_mode = self._rows.render_mode
        self.observation_space = self._rows.single_observation_space
        self.action_space = self._rows.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; ``options["indices"]``: at this start state."""
        super().reset(seed=seed)
        observations, info = self._rows.reset(seed=seed, options=options)
        return observations[0], _first_row(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine the next frame."""
        observations, rewards, terminated, truncated, info = self._rows.step(np.asarray(action, np.float32)[None])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first_row(info)

    def render(self) -> np.ndarray | None:
        """Return the newest frame, uint8 ``[h w 3]``, or None without a render mode."""
        frames = self._rows.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Free the cache."""
        self._rows.close()


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of the tokens of a row's episode."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


def as_bytes(frames: torch.Tensor) -> np.ndarray:
    """Convert frames ``[n c h w]`` in [0, 1] to uint8 ``[n h w c]``, rounded."""
    return rearrange((frames.clamp(0, 1) * 255).round().byte().cpu(), "n c h w -> n h w c").numpy()


def _first_row(info: dict[str, Any]) -> dict[str, Any]:
    first = {name: value[0] for name, value in info.items() if not name.startswith("_")}
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in first.items()}


def _action_space(model: WorldModel, raw_actions: bool) -> gymnasium.spaces.Box:
    space = model.config.action_space
    if raw_actions and space.low:
        low, high = np.array(space.low, np.float32), np.array(space.high, np.float32)
        return gymnasium.spaces.Box(low, high, (model.action_dim,), np.float32)
    return gymnasium.spaces.Box(-1.0, 1.0, (model.action_dim,), np.float32)


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """Read "next_step", "NextStep" or "NEXT_STEP" alike."""
    if isinstance(mode, AutoresetMode):
        return mode
    plain = str(mode).lower().replace("_", "").replace("-", "")
    for member in AutoresetMode:
        if plain == member.value.lower():
            return member
    raise UserError(f"autoreset_mode is {mode!r}; expected next_step, same_step or disabled")


def _seeds_of_rows(seed: Any, rows: int) -> list[int | None]:
    """Return a seed a row, as gymnasium understands them; None where a row keeps its own."""
    if isinstance(seed, np.ndarray):
        seed = seed.tolist()
    if seed is None:
        return [None] * rows
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds: list[Any] = [seed] * rows if seed < 0 else [int(seed) + row for row in range(rows)]
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = list(seed)
    else:
        seeds = [seed]
    for given in seeds:
        is_number = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
        if given is not None and not (is_number and given >= 0):
            raise UserError(f"seed is {given!r}; expected a whole number of at least 0")
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds were given for {rows} rows; expected one number, or one a row")
    return [None if given is None else int(given) for given in seeds]
