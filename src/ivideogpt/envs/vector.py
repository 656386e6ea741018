"""Several environments that step together, in this process, in one process each, or in workers of a cluster.

environments = make_vector("metaworld/plate-slide", 4, frame_stack=3, workers=True)
observations, info = environments.reset(seed=[0, 1, 2, 3])  # uint8 [4 3 64 64 3]
observations, rewards, terminated, truncated, info = environments.step(actions)  # float32 [4 a] in -1 to 1
environments.reset(options={"reset_mask": terminated | truncated})

Vectors, frame stack and processes are gymnasium's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import find_environment, make


class UniformEnv(gymnasium.Wrapper):
    """An environment with the conventions that policies and learning rely on.

    Action: float32 ``[a]`` in -1 to 1, mapped to the environment's own bounds.
    Reward: a float; an array of one number is taken.
    Info: ``success`` bool (the environment's own ``success`` or ``is_success``; False where it gives neither), and
    ``state`` float64 ``[s]`` and ``instruction`` where the environment gives them.
    """

    def __init__(self, environment: gymnasium.Env, name: str, image_size: int | None = None) -> None:
        """Wrap ``environment``; errors call it ``name``, and pictures are resized to ``image_size`` pixels a side.

        Raises:
            UserError: it shows no square colour pictures, or takes something else than a bounded row of numbers.
        """
        super().__init__(environment)
        self._name = name
        pictures, actions = environment.observation_space, environment.action_space
        if not (isinstance(pictures, gymnasium.spaces.Box) and pictures.dtype == np.uint8 and len(pictures.shape) == 3):
            raise UserError(f"environment {name} shows {pictures}; expected pictures, uint8 [h w 3]")
        if pictures.shape[2] != 3 or pictures.shape[0] != pictures.shape[1]:
            shape = list(pictures.shape)
            raise UserError(f"environment {name} shows pictures of shape {shape}; expected square ones, [h h 3]")
        if not (isinstance(actions, gymnasium.spaces.Box) and np.issubdtype(actions.dtype, np.floating)):
            raise UserError(f"environment {name} takes {actions}; expected a box of numbers")
        if len(actions.shape) != 1 or not actions.is_bounded():
            raise UserError(f"environment {name} takes {actions}; expected one row of numbers with bounds")
        self._is_scaled = bool((actions.low != -1).any() or (actions.high != 1).any())
        self._low, self._high, self._dtype = actions.low, actions.high, actions.dtype
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, actions.shape, np.float32)
        self._image_size = image_size if image_size != pictures.shape[0] else None
        if self._image_size is not None:
            self.observation_space = gymnasium.spaces.Box(0, 255, (self._image_size, self._image_size, 3), np.uint8)

    def reset(self, **options: Any) -> tuple[Any, dict]:
        """Begin an episode."""
        observation, info = self.env.reset(**options)
        return self._resized(observation), self._uniform(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Take one action.

        Raises:
            UserError: the reward is not one finite number.
        """
        if self._is_scaled:
            share = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0) / 2.0
            action = (self._low + share * (self._high - self._low.astype(np.float64))).astype(self._dtype)
        observation, reward, terminated, truncated, info = self.env.step(action)
        numbers = np.asarray(reward)
        is_number = numbers.size == 1 and np.issubdtype(numbers.dtype, np.number) or numbers.dtype == bool
        if not is_number or not np.isfinite(numbers).all():
            raise UserError(f"environment {self._name} gives the reward {reward!r}; expected one finite number")
        ends = bool(np.any(terminated)), bool(np.any(truncated))
        return self._resized(observation), float(numbers.reshape(())), *ends, self._uniform(info)

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        if self._image_size is None:
            return picture
        image = Image.fromarray(np.ascontiguousarray(picture))
        return np.asarray(image.resize((self._image_size, self._image_size), Image.Resampling.BOX))

    def _uniform(self, info: dict) -> dict[str, Any]:
        success = info.get("success", info.get("is_success", False))
        uniform: dict[str, Any] = {"success": bool(np.any(success))}
        state = info.get("state")
        if isinstance(state, np.ndarray) and state.ndim == 1 and np.issubdtype(state.dtype, np.number):
            uniform["state"] = state.astype(np.float64)
        if isinstance(info.get("instruction"), str):
            uniform["instruction"] = info["instruction"]
        return uniform


def make_vector(
    name: str,
    count: int = 1,
    *,
    frame_stack: int = 1,
    image_size: int | None = None,
    workers: bool | Callable[[Sequence[Callable[[], gymnasium.Env]]], VectorEnv] = False,
    **options: Any,
) -> VectorEnv:
    """Make environments that are reset by ``reset(options={"reset_mask": ...})`` alone.

    Args:
        name: see ``ivideogpt.envs.registry``.
        count: number n of environments.
        frame_stack: frames k of an observation, uint8 ``[n k h w 3]``, oldest first; at the start of an episode the
            first frame is repeated. 1: no stack, ``[n h w 3]``.
        image_size: side that pictures are resized to, by averaging; None: as the environment shows them.
        workers: True: one process each, started anew (OpenGL and threads do not survive a fork); or a function that
            makes a vector without autoreset of functions that make one environment each.
        **options: arguments of the environment; ``sim_backend="physx_cuda"`` steps those of ManiSkill together on a
            graphics card.

    Returns:
        Environments as `UniformEnv` describes them: actions float32 ``[n a]`` in -1 to 1, info with ``success`` bool
        ``[n]`` and, where the environment gives one, ``state`` float64 ``[n s]``.

    Raises:
        UserError: there is no such environment, or it shows no pictures or takes no numbers.
        MissingExtraError: its package is not installed.
    """
    if count < 1 or frame_stack < 1:
        raise UserError(f"{count} environments with {frame_stack} frames were asked for; expected at least 1 of each")
    match = find_environment(name)
    if match is not None and match[1].vector_entry_point and options.get("sim_backend") == "physx_cuda":
        module, _, attribute = match[1].vector_entry_point.partition(":")
        size = {} if image_size is None else {"size": image_size}
        vector = getattr(importlib.import_module(module), attribute)
        try:
            return vector(count=count, frame_stack=frame_stack, **dict(match[1].options) | size | options)
        except TypeError as error:
            raise UserError(f"environment {name} does not take the options {sorted(options)} ({error})") from error
    make_row = partial(make_single, name, frame_stack=frame_stack, image_size=image_size, **options)
    make_row().close()  # an error shows here, not in another process
    if callable(workers):
        return workers([make_row] * count)
    if workers:
        return AsyncVectorEnv([make_row] * count, autoreset_mode=AutoresetMode.DISABLED, context="spawn")
    return SyncVectorEnv([make_row] * count, autoreset_mode=AutoresetMode.DISABLED)


def environment_sizes(name: str, **options: Any) -> tuple[int, int]:
    """Make an environment and close it; return the numbers of an action and the side of its pictures in pixels.

    What is wrong with it shows here, before anything is written. The arguments are those of ``make_single``.
    """
    environment: Any = make_single(name, **options)
    environment.close()
    return environment.action_space.shape[0], environment.observation_space.shape[-2]


def make_single(name: str, *, frame_stack: int = 1, image_size: int | None = None, **options: Any) -> gymnasium.Env:
    """Make one environment as `UniformEnv` describes it; the arguments are those of ``make_vector``."""
    environment = UniformEnv(make(name, **options), name, image_size)
    return FrameStackObservation(environment, frame_stack, padding_type="reset") if frame_stack > 1 else environment
