"""The imagined world as a gymnasium environment: many rows of one `Session` after the other, reset row by row.

environments = ImaginedVectorEnv(model, EpisodeStarts(episodes, model.context_frames), num_envs=32, horizon=10)
observations, info = environments.reset(seed=0)  # uint8 [32 h w 3]
observations, rewards, terminated, truncated, info = environments.step(actions)  # float32 [32 a]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.start_states import Starts
from ivideogpt.worldmodel.session import Session
from ivideogpt.worldmodel.world_model import WorldModel

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except (ModuleNotFoundError, ImportError) as error:
    raise MissingExtraError("gymnasium 1.1 or newer", "rl") from error

#: What is said of a transition: (frames, actions, next frames), uint8 ``[n h w 3]`` and float32 ``[n a]``, to ``[n]``.
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
#: Probability from which on the termination head ends an episode.
_ENDS = 0.5


@dataclass
class _Cohort:
    """Rows that started together, and the session they live in."""

    session: Session
    rows: np.ndarray

    def without(self, gone: np.ndarray) -> _Cohort | None:
        """The rows that stay, where there are any."""
        stay = np.flatnonzero(~gone[self.rows])
        if not len(stay):
            return None
        return self if len(stay) == len(self.rows) else _Cohort(self.session.select(stay.tolist()), self.rows[stay])


class ImaginedVectorEnv(VectorEnv):
    """Rows of imagined episodes.

    Observation: uint8 ``[h w 3]``, or ``[k h w 3]`` with a frame stack, oldest first.
    Reward: float64, by the model's reward head or by a function.
    Terminated: by the termination head, or by a function; truncated after ``horizon`` steps.
    Info: ``termination`` float ``[n]`` where there is such a head; ``success`` where there is a function for it.

    What happens in a row depends on its seed, its episodes so far and its actions, and on no other row. Row i of seed s
    has the seed s + i, as in gymnasium.
    """

    def __init__(
        self,
        model: WorldModel,
        starts: Starts,
        *,
        num_envs: int,
        horizon: int,
        frame_stack: int = 1,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        reward: Judge | None = None,
        terminate: Judge | None = None,
        success: Judge | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        reanchor_every: int | None = None,
        raw_actions: bool = True,
        render_mode: str | None = None,
    ) -> None:
        """Nothing is imagined before ``reset``.

        Args:
            model: conditioned on actions. Its mode, training or not, is left as it is.
            starts: gives at least as many frames as the model's context and the stack have.
            num_envs: rows n.
            horizon: steps of an episode; the model encodes a new context where its positions run out.
            frame_stack: frames k of an observation.
            autoreset_mode: as in gymnasium: rows that are over begin again in the next step, in the same, or when
                ``reset(options={"reset_mask": ...})`` says so.
            reward: instead of the reward head.
            terminate: bool, instead of the termination head.
            success: bool.
            sampling: how tokens are drawn.
            seed: of all rows, until ``reset`` gives another.
            reanchor_every: see ``WorldModel.segment_frames``.
            raw_actions: actions are in the units of the robot, and the statistics in the checkpoint are applied; False:
                they are what the action layer was trained on.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: the model takes no actions, or a goal; it has no reward head and there is no function; a number
                is out of range.
        """
        for name, value in {"num_envs": num_envs, "horizon": horizon, "frame_stack": frame_stack}.items():
            if value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        if not model.action_dim or model.config.goal_conditioned:
            kind = "is conditioned on a goal" if model.config.goal_conditioned else "takes no actions"
            raise UserError(f"the world model {model.config.name} {kind}; an environment needs one that takes actions")
        if reward is None and not model.config.heads.reward:
            raise UserError(
                f"the world model {model.config.name} has no reward head; give a reward function, a checkpoint with "
                "such a head, or train one onto it (ivideogpt mbrl with world_model.new_heads=true)"
            )
        self.model, self.starts, self.horizon, self.stack = model, starts, horizon, frame_stack
        self.num_envs, self.render_mode = num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"], "render_fps": 10}
        self._judges = {"reward": reward, "terminate": terminate, "success": success}
        self._sampling, self._reanchor_every, self._raw_actions = sampling, reanchor_every, raw_actions
        side = model.resolution
        shape = (side, side, 3) if frame_stack == 1 else (frame_stack, side, side, 3)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = self._actions()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeds = [seed + row for row in range(num_envs)]
        self._frames = np.zeros((num_envs, frame_stack, side, side, 3), np.uint8)
        self._ages, self._episodes = np.zeros(num_envs, np.int64), np.full(num_envs, -1)
        self._over, self._began = np.zeros(num_envs, bool), False
        self._cohorts: list[_Cohort] = []

    # gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins new episodes.

        Args:
            seed: one number (row i gets seed + i), one a row, or None: the rows go on with their own.
            options: ``reset_mask`` bool ``[n]``: only these rows; ``indices``: which start state, one a row or one a
                group; ``group_size``: so many rows after one another begin alike.

        Returns:
            Observations of all rows, and an empty info.

        Raises:
            UserError: options that do not fit the rows.
        """
        options = options or {}
        rows = np.asarray(options.get("reset_mask", np.ones(self.num_envs, bool)))
        if rows.shape != (self.num_envs,) or rows.dtype != bool or not rows.any():
            raise UserError(f"reset_mask is {rows.tolist()}; expected {self.num_envs} booleans, one of them true")
        if unknown := options.keys() - {"reset_mask", "indices", "group_size"}:
            raise UserError(f"reset knows no option {sorted(unknown)}; expected reset_mask, indices or group_size")
        if not self._began and not rows.all():
            raise UserError("reset_mask was given before all rows were reset once; reset them all first")
        if isinstance(seed, (int, np.integer)):
            seed = [int(seed) + row for row in range(self.num_envs)]
        if seed is not None and len(seed) != self.num_envs:
            raise UserError(f"{len(seed)} seeds were given for {self.num_envs} rows; expected one number, or one a row")
        for row, given in enumerate(seed or ()):
            if given is not None and rows[row]:
                self._seeds[row], self._episodes[row] = int(given), -1
        self._begin(rows, options.get("indices"), int(options.get("group_size", 1)))
        return self._observed(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagines the next frame of each row.

        Args:
            actions: float32 ``[n a]``, see ``raw_actions``.

        Returns:
            Observations, rewards float64 ``[n]``, terminated and truncated bool ``[n]``, info.

        Raises:
            UserError: there was no reset, a row that is over was not reset, or actions of another shape.
        """
        again = self._over.copy()
        if again.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise UserError(f"rows {np.flatnonzero(again).tolist()} are over; reset them with a reset_mask first")
        rewards, terminated, truncated, info = self._advance(actions, ~again)
        if again.any():
            self._begin(again)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._over.any():
            over, last = self._over.copy(), self._observed()
            ends = {name: value for name, value in info.items() if not name.startswith("_")}
            info |= {"final_obs": last, "_final_obs": over, "final_info": ends, "_final_info": over}
            self._begin(over)
        return self._observed(), rewards, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The newest frame of each row, uint8 ``[h w 3]``, or None without a render mode."""
        return tuple(self._frames[:, -1].copy()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        """Gives the caches back."""
        self._cohorts, self._began = [], False

    # Beyond gymnasium

    def chunk_step(
        self, actions: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Takes several actions one after the other; a row that is over rests until the end of the chunk.

        Args:
            actions: float32 ``[n c a]``.

        Returns:
            Observations and infos of each step; rewards (0 at rest), terminated and truncated ``[n c]``.

        Raises:
            UserError: rows reset themselves (``autoreset_mode`` is not DISABLED); see ``step``.
        """
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise UserError("chunk_step needs autoreset_mode DISABLED; rows that are over are reset between chunks")
        if self._over.any():
            raise UserError(f"rows {np.flatnonzero(self._over).tolist()} are over; reset them with a reset_mask first")
        seen, rest, infos = [], [], []
        for number in range(actions.shape[1]):
            *flags, info = self._advance(actions[:, number], ~self._over)
            seen.append(self._observed())
            rest.append(flags)
            infos.append(info)
        rewards, terminated, truncated = (np.stack(part, axis=1) for part in zip(*rest, strict=True))
        return seen, rewards, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Everything that what comes depends on, in memory: for ``set_state``, any number of times."""
        return {
            "cohorts": [_Cohort(one.session.fork(), one.rows.copy()) for one in self._cohorts],
            "arrays": [x.copy() for x in (self._frames, self._ages, self._episodes, self._over)],
            "seeds": list(self._seeds),
            "began": self._began,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes back to where ``get_state`` was called: the same actions lead to the same frames."""
        self._cohorts = [_Cohort(one.session.fork(), one.rows.copy()) for one in state["cohorts"]]
        self._frames, self._ages, self._episodes, self._over = (x.copy() for x in state["arrays"])
        self._seeds, self._began = list(state["seeds"]), state["began"]

    # Parts

    def _actions(self) -> gymnasium.spaces.Box:
        size, space = self.model.action_dim, self.model.config.action_space
        if self._raw_actions and space.low:
            return gymnasium.spaces.Box(
                np.array(space.low, np.float32), np.array(space.high, np.float32), (size,), np.float32
            )
        return gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)

    def _observed(self) -> np.ndarray:
        return (self._frames if self.stack > 1 else self._frames[:, 0]).copy()

    def _begin(self, rows: np.ndarray, indices: Any = None, group_size: int = 1) -> None:
        """Starts new episodes in these rows, as one cohort."""
        if group_size < 1 or self.num_envs % group_size:
            raise UserError(f"group_size is {group_size}; expected a number that divides {self.num_envs} rows")
        if indices is not None:
            indices = np.asarray(indices, np.int64)
            if indices.shape not in ((self.num_envs,), (self.num_envs // group_size,)):
                raise UserError(f"indices has shape {list(indices.shape)}; expected one a row, or one a group")
            indices = indices.repeat(self.num_envs // len(indices))
        chosen, found, episodes = np.flatnonzero(rows), [], self._episodes + rows
        for row in chosen:
            alike = row - row % group_size
            random = np.random.default_rng([self._seeds[alike], int(episodes[alike])])
            found.append(self.starts(1, random, None if indices is None else indices[row : row + 1])[0])
        frames = np.stack(found)
        needed = max(self.model.context_frames, self.stack)
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < needed:
            raise UserError(
                f"start states are {frames.dtype} of shape {list(frames.shape[1:])}; expected uint8 [f h w 3] with at "
                f"least {needed} frames f"
            )
        context = torch.from_numpy(frames[:, -self.model.context_frames :])
        seeds = [episode_seed(self._seeds[row], int(episodes[row])) for row in chosen]
        self._cohorts = [left for one in self._cohorts if (left := one.without(rows)) is not None]
        session = self.model.session(
            rearrange(context, "n t h w c -> n t c h w"),
            sampling=self._sampling,
            seed=seeds,
            reanchor_every=self._reanchor_every,
        )
        self._cohorts.append(_Cohort(session, chosen))
        self._episodes = episodes
        self._frames[rows], self._ages[rows], self._over[rows] = frames[:, -self.stack :], 0, False
        self._began = True

    def _advance(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of the active rows; the others stay as they are, without reward."""
        if not self._began:
            raise UserError("step was called before reset; call reset first")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise UserError(f"actions have shape {list(actions.shape)}; expected {list(self.action_space.shape or ())}")
        count, before = self.num_envs, self._frames[:, -1].copy()
        rewards, ends, info = np.zeros(count), np.zeros(count, np.float32), {}
        if not active.all():
            self._cohorts = [left for one in self._cohorts if (left := one.without(~active)) is not None]
        for one in self._cohorts:
            wanted = torch.from_numpy(actions[one.rows]).to(self.model.device)
            step = one.session.step(self.model.normalize_actions(wanted) if self._raw_actions else wanted)
            shown = as_bytes(step.frames)
            self._frames[one.rows] = np.concatenate([self._frames[one.rows, 1:], shown[:, None]], axis=1)
            if step.rewards is not None:
                rewards[one.rows] = step.rewards.double().cpu().numpy()
            if step.terminations is not None:
                ends[one.rows] = step.terminations.cpu().numpy()
        now = self._frames[:, -1]
        if (judge := self._judges["reward"]) is not None:
            rewards = np.where(active, np.asarray(judge(before, actions, now), np.float64), 0.0)
        if (judge := self._judges["terminate"]) is not None:
            terminated = active & np.asarray(judge(before, actions, now), bool)
        else:
            terminated = active & (ends > _ENDS)
        if self.model.config.heads.termination:
            info |= {"termination": ends, "_termination": active}
        if (judge := self._judges["success"]) is not None:
            info |= {"success": active & np.asarray(judge(before, actions, now), bool), "_success": active}
        self._ages[active] += 1
        truncated = active & ~terminated & (self._ages >= self.horizon)
        self._over = np.where(active, terminated | truncated, self._over)
        return np.asarray(rewards), terminated, np.asarray(truncated), info


class ImaginedEnv(gymnasium.Env):
    """One row of `ImaginedVectorEnv` as an ordinary environment."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, model: WorldModel, starts: Starts, *, horizon: int, **options: Any) -> None:
        """See `ImaginedVectorEnv`; rows and autoreset are not asked for."""
        mode = AutoresetMode.DISABLED
        self._rows = ImaginedVectorEnv(model, starts, num_envs=1, horizon=horizon, autoreset_mode=mode, **options)
        self.render_mode = self._rows.render_mode
        self.observation_space = self._rows.single_observation_space
        self.action_space = self._rows.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode; ``options["indices"]``: at this start state."""
        super().reset(seed=seed)
        observations, _ = self._rows.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagines the next frame."""
        observations, rewards, terminated, truncated, info = self._rows.step(np.asarray(action, np.float32)[None])
        plain = {name: value[0].item() for name, value in info.items() if not name.startswith("_")}
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), plain

    def render(self) -> np.ndarray | None:
        """The newest frame, uint8 ``[h w 3]``, or None without a render mode."""
        shown = self._rows.render()
        return None if shown is None else shown[0]

    def close(self) -> None:
        """Gives the cache back."""
        self._rows.close()


def episode_seed(seed: int, episode: int) -> int:
    """Seed of the tokens of a row's episode."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


def as_bytes(frames: torch.Tensor) -> np.ndarray:
    """Frames ``[n c h w]`` in [0, 1] as uint8 ``[n h w c]``, rounded."""
    return rearrange((frames.clamp(0, 1) * 255).round().byte().cpu(), "n c h w -> n h w c").numpy()
