"""Imagined environments for the agents of stable-baselines3: its ``VecEnv`` over an `ImaginedVectorEnv`.

agent = PPO("CnnPolicy", ImaginedVecEnv(model, starts, num_envs=8, horizon=10, frame_stack=3))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from einops import rearrange

from ivideogpt.core.errors import MissingExtraError
from ivideogpt.envs.imagined import AutoresetMode, ImaginedVectorEnv
from ivideogpt.envs.start_states import Starts
from ivideogpt.worldmodel.world_model import WorldModel

try:
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise MissingExtraError("stable-baselines3", "sb3") from error


class ImaginedVecEnv(VecEnv):
    """Rows of imagined episodes that begin again by themselves.

    Observation: uint8 ``[h w 3*k]``, a picture as ``CnnPolicy`` takes it; the k frames of a stack are its channels.
    """

    def __init__(self, model: WorldModel, starts: Starts, **options: Any) -> None:
        """See `ImaginedVectorEnv` for everything but ``autoreset_mode``."""
        self.rows = ImaginedVectorEnv(model, starts, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        side, channels = model.resolution, 3 * self.rows.stack
        self.render_mode = self.rows.render_mode
        self._options: dict[str, Any] | None = None
        picture = gymnasium.spaces.Box(0, 255, (side, side, channels), np.uint8)
        super().__init__(self.rows.num_envs, picture, self.rows.single_action_space)

    def reset(self) -> np.ndarray:
        """Begins new episodes, with the seed of ``seed`` where that was called."""
        seeds = [given for given in self._seeds]
        observations, _ = self.rows.reset(seed=None if seeds.count(None) == len(seeds) else seeds)
        self._reset_seeds()
        return self._pictures(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Notes the actions ``[n a]``."""
        self._wanted = np.asarray(actions, np.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Imagines the next frame; what an episode ended with is in ``terminal_observation`` of its row."""
        observations, rewards, terminated, truncated, info = self.rows.step(self._wanted)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = terminated | truncated
        for row in range(self.num_envs):
            infos[row] = {name: info[name][row] for name in ("success", "termination") if name in info}
            infos[row]["TimeLimit.truncated"] = bool(truncated[row])
            if over[row]:
                infos[row]["terminal_observation"] = self._pictures(info["final_obs"][row : row + 1])[0]
        return self._pictures(observations), rewards.astype(np.float32), over, infos

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of each row, or None without a render mode."""
        return self.rows.render() or [None] * self.num_envs

    def close(self) -> None:
        """Gives the caches back."""
        self.rows.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for each row asked for."""
        return [getattr(self if attr_name == "render_mode" else self.rows, attr_name)] * len(
            list(self._get_indices(indices))
        )

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of all rows."""
        setattr(self.rows, attr_name, value)

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Calls a method of all rows together, once."""
        return [getattr(self.rows, method_name)(*arguments, **named)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """Rows have no wrappers."""
        return [False] * len(list(self._get_indices(indices)))

    def _pictures(self, observations: np.ndarray) -> np.ndarray:
        return rearrange(observations, "n k h w c -> n h w (k c)") if self.rows.stack > 1 else observations
