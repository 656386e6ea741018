"""Refinement of a plan by gradient steps through the pictures that a world model draws.

    points = refined(root, expand, points, goal, steps=10, rate=0.02)

Only picture models have such gradients: token models draw tokens at random. The poses of rigid objects are read from a
picture without gradients, so a frame is drawn from the poses and has the gradient of the forecast's picture
(straight through).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.planning.models import ImaginedFutures, ImaginedRoot, PlanningModel, Root
from ivideogpt.planning.objectives import Goal

#: Standard deviation in px of the blur of the frames whose difference is the loss: objects that do not overlap attract.
_BLUR = 3.0


def check_gradients(model: PlanningModel) -> None:
    """Check that plans in ``model`` have gradients.

    Raises:
        UserError: it is no picture model.
    """
    if not isinstance(model, ImaginedFutures) or model.model.pictures is None:
        raise UserError(
            "gradient_steps needs a picture model such as pusht-64; a token model, the simulator and a still world "
            "have no gradients: set it to 0, or plan with the agent model alone"
        )


def refined(
    root: Root, expand: Callable[[Tensor], Tensor], points: Tensor, goal: Goal, *, steps: int, rate: float
) -> Tensor:
    """Return searched actions ``[n a]`` after Adam steps from ``points`` that lower the error of the last frame.

    Args:
        root: of a picture model.
        expand: makes the actions ``[1 t a]`` of all steps of searched actions ``[1 n a]``.
        points: float ``[n a]``.
        goal: the picture to reach.
        steps: of Adam.
        rate: its learning rate, in units of an action.
    """
    assert isinstance(root, ImaginedRoot)
    points = points.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([points], lr=rate)
    wanted = _blurred(goal.frame[None])
    for _ in range(steps):
        frame = last_frame(root, expand(points[None].clamp(-1, 1)))
        loss = ((_blurred(frame) - wanted.to(frame.device)) ** 2).sum()
        # of the points alone: the weights need no gradients
        (points.grad,) = torch.autograd.grad(loss, [points])
        optimizer.step()
    return points.detach().clamp(-1, 1)


def last_frame(root: ImaginedRoot, actions: Tensor) -> Tensor:
    """Return the frame ``[1 c h w]`` after actions ``[1 t a]`` of the environment, with gradients for the actions."""
    dynamics = root.futures.model.pictures
    assert isinstance(dynamics, PictureDynamics)
    history, poses, kept = root.session.frames.clone(), None, dynamics.config.forecast.frames
    for action in root.model_units(actions).to(history.device).unbind(dim=1):
        with torch.no_grad():
            step = dynamics(history, action, poses)
        drawn = dynamics.draw(history[:, -kept:], action)
        frame = step.frames + drawn - drawn.detach()
        history, poses = torch.cat([history[:, 1:], frame[:, None]], dim=1), step.poses
    return history[:, -1]


def _blurred(frames: Tensor) -> Tensor:
    """Blur frames ``[b c h w]``."""
    reach, channels = int(3 * _BLUR), frames.shape[1]
    places = torch.arange(-reach, reach + 1, device=frames.device)
    weights = torch.exp(-(places**2) / (2 * _BLUR**2))
    kernel = (weights / weights.sum()).repeat(channels, 1, 1, 1)
    frames = F.conv2d(frames, kernel, groups=channels, padding=(0, reach))
    return F.conv2d(frames, kernel.transpose(2, 3), groups=channels, padding=(reach, 0))
