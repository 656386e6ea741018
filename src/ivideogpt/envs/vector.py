"""Several environments that step together, in this process or in one of their own each.

environments = make_vector("metaworld/plate-slide", 4, frame_stack=3, workers=True)
observations, info = environments.reset(seed=[0, 1, 2, 3])  # uint8 [4 3 64 64 3]
observations, rewards, terminated, truncated, info = environments.step(actions)  # float32 [4 a] in -1 to 1
environments.reset(options={"reset_mask": terminated | truncated})

The vectors, the frame stack and the processes are gymnasium's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation, RescaleAction

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import ENVIRONMENTS, is_ours, make


class Success(gymnasium.Wrapper):
    """``info["success"]`` for every environment: its own, else ``is_success``, else whether it terminated."""

    def reset(self, **options: Any) -> tuple[Any, dict]:
        """As the environment does it."""
        observation, info = self.env.reset(**options)
        return observation, info | {"success": _success(info, terminated=False)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """As the environment does it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {"success": _success(info, terminated)}


def make_vector(name: str, count: int = 1, *, frame_stack: int = 1, workers: bool = False, **options: Any) -> VectorEnv:
    """Environments that are reset by ``reset(options={"reset_mask": ...})`` alone.

    Args:
        name: a short name of ours, or an id that gymnasium knows.
        count: how many.
        frame_stack: frames k of an observation, uint8 ``[n k h w 3]``, oldest first; before there are as many the first
            one is repeated. 1: no stack, ``[n h w 3]``.
        workers: a process for each, started anew (OpenGL and threads do not survive a fork).
        **options: of the environment.

    Returns:
        Actions are float32 ``[n a]`` in -1 to 1; info of a step has ``success``, bool ``[n]``, alone.

    Raises:
        UserError: there is no such environment, or it shows no pictures or takes no numbers.
        MissingExtraError: its package is not installed.
    """
    if count < 1 or frame_stack < 1:
        raise UserError(f"{count} environments with {frame_stack} frames were asked for; expected at least 1 of each")
    one = partial(_made, name, frame_stack, options)
    one().close()  # what is wrong is said here, not in another process
    if workers:
        return AsyncVectorEnv([one] * count, autoreset_mode=AutoresetMode.DISABLED, context="spawn")
    return SyncVectorEnv([one] * count, autoreset_mode=AutoresetMode.DISABLED)


def _made(name: str, frame_stack: int, options: dict[str, Any]) -> gymnasium.Env:
    environment = _found(name, options)
    seen, actions = environment.observation_space, environment.action_space
    if not (isinstance(seen, gymnasium.spaces.Box) and seen.dtype == np.uint8 and len(seen.shape) == 3):
        raise UserError(f"environment {name} shows {seen}; expected pictures, uint8 [h w 3]")
    if seen.shape[2] != 3 or seen.shape[0] != seen.shape[1]:
        raise UserError(f"environment {name} shows pictures of shape {list(seen.shape)}; expected square ones, [h h 3]")
    if not (isinstance(actions, gymnasium.spaces.Box) and np.issubdtype(actions.dtype, np.floating)):
        raise UserError(f"environment {name} takes {actions}; expected a box of numbers")
    if len(actions.shape) != 1 or not actions.is_bounded():
        raise UserError(f"environment {name} takes {actions}; expected one row of numbers with bounds")
    if (actions.low != -1).any() or (actions.high != 1).any():
        environment = RescaleAction(environment, np.float32(-1.0), np.float32(1.0))
    environment = Success(environment)
    return FrameStackObservation(environment, frame_stack, padding_type="reset") if frame_stack > 1 else environment


def _found(name: str, options: dict[str, Any]) -> gymnasium.Env:
    if is_ours(name):
        try:
            return make(name, **options)
        except TypeError as error:
            raise UserError(f"environment {name} does not take the options {sorted(options)} ({error})") from error
    try:
        return gymnasium.make(name, **options)
    except gymnasium.error.UnregisteredEnv as error:
        known = [*ENVIRONMENTS, *gymnasium.registry]
        raise UserError(f"there is no environment {name!r}; {suggestion(name, known)}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"environment {name!r} cannot be made: {' '.join(str(error).split())}") from error


def _success(info: dict, terminated: bool) -> bool:
    return bool(info.get("success", info.get("is_success", terminated)))
