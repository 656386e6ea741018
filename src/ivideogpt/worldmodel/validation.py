"""Checks of the inputs of a world model: frames, actions and ids, once before anything is computed.

The results share no memory with the inputs: callers may reuse their buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import TokenLayout
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.worldmodel.interfaces import SessionModel

# Rounding may leave a pixel this far outside [0, 1].
_TOLERANCE = 1e-3


def check_frames(model: SessionModel, frames: Tensor, name: str = "frames") -> Tensor:
    """Return frames ``[b t c h w]`` as float32 in [0, 1] on the model's device.

    Raises:
        UserError: no tensor, wrong shape, type or range.
    """
    height, width = model.frame_size
    pixels = f"{height} px" if height == width else f"{width} x {height} px"
    expected = f"[b t 3 {height} {width}] (resize the frames to {pixels})"
    _check_shape(frames, (None, None, 3, height, width), expected, name)
    return _in_range(model, frames, name)


def check_frame(model: SessionModel, frame: Tensor, rows: int) -> Tensor:
    """Return one frame a row, ``[rows c h w]``; see `check_frames`."""
    height, width = model.frame_size
    _check_shape(frame, (rows, 3, height, width), f"[{rows} 3 {height} {width}], one frame for each row", "frame")
    return _in_range(model, frame, "frame")


def check_context(model: SessionModel, context: Tensor) -> Tensor:
    """Return context frames ``[b c_frames c h w]`` as float32 in [0, 1] on the model's device.

    Raises:
        UserError: see `check_frames`; or another number of frames.
    """
    if isinstance(context, Tensor) and context.ndim == 5 and context.shape[1] != model.context_frames:
        order = " (goal, last frame)" if model.config.goal_conditioned else ""
        raise UserError(
            f"context has {context.shape[1]} frames; this model takes exactly {model.context_frames}{order}"
        )
    return check_frames(model, context, "context")


def check_actions(
    model: SessionModel, actions: Tensor | None, rows: int, horizon: int, name: str = "actions"
) -> Tensor | None:
    """Return actions ``[rows horizon a]`` as float32 on the model's device, or None for an action-free model.

    Raises:
        UserError: missing, not wanted, no tensor, of another shape, or not finite.
    """
    if not _are_wanted(model, actions, f"[{rows} {horizon} {model.action_dim}]", name):
        return None
    _check_shape(actions, (rows, horizon, model.action_dim), f"[{rows} {horizon} {model.action_dim}]", name)
    return _finite(model, actions, name)


def check_past_actions(model: SessionModel, actions: Tensor | None, rows: int) -> Tensor | None:
    """Return the actions ``[rows p a]`` between the context frames as float32, or None for a model that reads none.

    Raises:
        UserError: see `check_actions`.
    """
    if not model.past_actions:
        if actions is not None:
            raise UserError("past_actions came, but this model reads no actions between its context frames")
        return None
    if actions is None:
        raise UserError(
            f"no past_actions came; this model reads the {model.past_actions} actions between its context frames: "
            f"[{rows} {model.past_actions} {model.action_dim}]"
        )
    return check_actions(model, actions, rows, model.past_actions, "past_actions")


def check_action(model: SessionModel, action: Tensor | None, rows: int) -> Tensor | None:
    """Return one action a row, ``[rows a]``; see `check_actions`."""
    if not _are_wanted(model, action, f"[{rows} {model.action_dim}]", "action"):
        return None
    _check_shape(action, (rows, model.action_dim), f"[{rows} {model.action_dim}]", "action")
    return _finite(model, action, "action")


def check_rewards(model: SessionModel, rewards: Tensor | None, rows: int, name: str = "last_rewards") -> Tensor | None:
    """Return one reward a row, ``[rows]`` float32 on the model's device, NaN where it is unknown; None stays None.

    Raises:
        UserError: no tensor, another shape, or infinity.
    """
    if rewards is None:
        return None
    _check_shape(rewards, (rows,), f"[{rows}], one reward for each row", name)
    if rewards.isinf().any():
        raise UserError(f"{name} came with infinity; expected finite numbers, or NaN where a reward is unknown")
    return rewards.to(model.device, torch.float32, copy=True)


def check_ids(layout: TokenLayout, ids: Tensor, rows: int, sampling: Sampling, device: torch.device) -> Tensor:
    """Return ids ``[rows horizon m]`` of dynamics tokens, in the full vocabulary, as int64 on ``device``.

    Raises:
        UserError: wrong shape or type, or ids that ``sampling`` cannot draw.
    """
    tokens = layout.dynamics_tokens
    legal = layout.dynamics_ids if sampling.legal_only else range(layout.vocab_size)
    _check_shape(ids, (rows, None, tokens), f"[{rows} horizon {tokens}]", "ids")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise UserError(f"ids came with type {ids.dtype}; expected whole numbers (int64)")
    low, high = ids.min().item(), ids.max().item()
    if low < legal.start or high >= legal.stop:
        raise UserError(
            f"ids range from {low} to {high}; expected {legal.start} to {legal.stop - 1}"
            + (", or use Sampling(legal_only=False) if they were drawn so" if sampling.legal_only else "")
        )
    return ids.to(device, torch.int64)


def _check_shape(value: Tensor | None, shape: tuple[int | None, ...], expected: str, name: str) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{name} came as {type(value).__name__}; expected a torch tensor {expected}")
    fits = value.ndim == len(shape) and all(
        expected_size in (None, size) for expected_size, size in zip(shape, value.shape, strict=True)
    )
    if not fits or value.numel() == 0:
        raise UserError(f"{name} came with shape {list(value.shape)}; expected {expected}")


def _in_range(model: SessionModel, frames: Tensor, name: str) -> Tensor:
    if frames.dtype == torch.uint8:
        return frames.to(model.device).float() / 255
    if not frames.is_floating_point():
        raise UserError(f"{name} came with type {frames.dtype}; expected uint8, or floating point in [0, 1]")
    low, high = frames.min().item(), frames.max().item()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise UserError(
            f"{name} came with values from {low:.4g} to {high:.4g}; expected numbers in [0, 1], none of them NaN"
        )
    return frames.to(model.device, torch.float32, copy=True)


def _are_wanted(model: SessionModel, actions: Tensor | None, expected: str, name: str) -> bool:
    if actions is None and model.action_dim:
        raise UserError(f"no {name} came, but this model needs them: {expected}")
    if actions is not None and not model.action_dim:
        raise UserError(f"{name} came, but this model is action-free; leave them out")
    return actions is not None


def _finite(model: SessionModel, actions: Tensor | None, name: str) -> Tensor:
    assert actions is not None
    if not torch.isfinite(actions).all():
        raise UserError(f"{name} came with NaN or infinity; expected finite numbers")
    return actions.to(model.device, torch.float32, copy=True)
