"""Imagined environments for the agents of stable-baselines3: its ``VecEnv`` over an `ImaginedVectorEnv`.

agent = PPO("CnnPolicy", ImaginedVecEnv(model, starts, num_envs=8, horizon=10, frame_stack=3))
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from einops import rearrange

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.imagined import AutoresetMode, ImaginedVectorEnv
from ivideogpt.envs.start_states import StartStates
from ivideogpt.worldmodel.world_model import WorldModel

try:
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise MissingExtraError("stable-baselines3", "sb3") from error


class ImaginedVecEnv(VecEnv):
    """Rows of imagined episodes that begin again by themselves.

    Observation: uint8 ``[h w 3*k]``, a picture as ``CnnPolicy`` takes it; the k frames of a stack are its channels.
    """

    def __init__(self, model: WorldModel, starts: StartStates, **options: Any) -> None:
        """Take the arguments of `ImaginedVectorEnv`, except ``autoreset_mode``."""
        self.rows = ImaginedVectorEnv(model, starts, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        side, channels = model.resolution, 3 * self.rows.stack
        self.render_mode = self.rows.render_mode
        self._reset_with: dict[str, Any] = {}
        picture = gymnasium.spaces.Box(0, 255, (side, side, channels), np.uint8)
        super().__init__(self.rows.num_envs, picture, self.rows.single_action_space)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Give options to the next ``reset``.

        Args:
            options: those of ``ImaginedVectorEnv.reset``, for all rows together; or a list of one dict a row, each with
                the ``indices`` of that row alone.

        Raises:
            UserError: a list that does not give one start state a row.
        """
        if isinstance(options, list):
            if [list(row) for row in options] == [[] for _ in range(self.num_envs)]:
                options = {}
            elif [list(row) for row in options] != [["indices"]] * self.num_envs:
                raise UserError(f"options are {options}; expected a dict, or one {{'indices': i}} a row")
            else:
                options = {"indices": [int(np.ravel(row["indices"])[0]) for row in options]}
        self._reset_with = deepcopy(options or {})

    def reset(self) -> np.ndarray:
        """Begin new episodes, with the seed of ``seed`` and the options of ``set_options`` where those were called."""
        seeds = list(self._seeds)
        observations, info = self.rows.reset(
            seed=None if seeds.count(None) == len(seeds) else seeds, options=self._reset_with
        )
        self._reset_seeds()
        self._reset_with = {}
        self.reset_infos = [{"state": info["state"][row]} if "state" in info else {} for row in range(self.num_envs)]
        return self._pictures(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions ``[n a]`` for ``step_wait``."""
        self._actions = np.asarray(actions, np.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Imagine the next frame; the last observation of an episode is in ``terminal_observation`` of its row."""
        observations, rewards, terminated, truncated, info = self.rows.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = terminated | truncated
        for row in range(self.num_envs):
            infos[row] = {name: info[name][row] for name in ("success", "termination", "state") if name in info}
            infos[row]["TimeLimit.truncated"] = bool(truncated[row])
            if over[row]:
                infos[row]["terminal_observation"] = self._pictures(info["final_obs"][row : row + 1])[0]
        return self._pictures(observations), rewards.astype(np.float32), over, infos

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the newest frame of each row, or None without a render mode."""
        return self.rows.render() or [None] * self.num_envs

    def close(self) -> None:
        """Free the caches."""
        self.rows.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the rows ``indices``."""
        if attr_name == "render_mode":
            return [self.render_mode] * len(list(self._get_indices(indices)))
        values = self.rows.get_attr(attr_name)
        return [values[row] for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the rows ``indices``; see ``ImaginedVectorEnv.set_attr``.

        Raises:
            UserError: all rows share the attribute, and these are not all.
        """
        rows = set(self._get_indices(indices))
        before = self.rows.get_attr(attr_name) if self.has_attr(attr_name) else (None,) * self.num_envs
        self.rows.set_attr(attr_name, [value if row in rows else old for row, old in enumerate(before)])

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Call a method of all rows together, once; return its result for the rows ``indices``."""
        results = self.rows.call(method_name, *arguments, **named)
        return [results[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """Return False for each row: rows have no wrappers."""
        return [False] * len(list(self._get_indices(indices)))

    def _pictures(self, observations: np.ndarray) -> np.ndarray:
        return rearrange(observations, "n k h w c -> n h w (k c)") if self.rows.stack > 1 else observations
