"""Gradient steps on a plan: through the shipped picture model, and what they need."""

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.planning.gradients import check_gradients, last_frame, refined
from ivideogpt.planning.models import ImaginedFutures, RepeatedFrame
from ivideogpt.planning.objectives import Goal, make_objective
from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig
from ivideogpt.planning.planner import Planner, PlannerConfig
from ivideogpt.worldmodel.world_model import WorldModel


@pytest.fixture(scope="module")
def futures() -> ImaginedFutures:
    return ImaginedFutures(WorldModel.from_pretrained("pusht-64"))


def scene(futures: ImaginedFutures, agent: tuple[float, float]) -> np.ndarray:
    """The background with a blue agent at a place in px and nothing else."""
    frame = (futures.model.pictures.background[0].permute(1, 2, 0) * 255).byte().numpy().copy()
    y, x = np.mgrid[0:64, 0:64] + 0.5
    frame[(x - agent[0]) ** 2 + (y - agent[1]) ** 2 < 1.9**2] = (72, 116, 241)
    return frame


def test_frames_are_those_of_a_rollout_and_have_gradients(futures) -> None:
    frame = scene(futures, (20.0, 20.0))
    root = futures.root({"frames": np.stack([frame, frame])})
    actions = torch.tensor([[[-0.3, -0.3], [-0.2, -0.3], [-0.1, -0.3]]], requires_grad=True)
    last = last_frame(root, actions)
    torch.testing.assert_close(last.detach(), root.rollout(actions.detach()).frames_at([-1])[:, 0], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad((last**2).sum(), [actions])
    assert gradient.isfinite().all() and (gradient.abs().sum(dim=2) > 0).all()
    assert all(weight.grad is None for weight in futures.model.parameters())


def test_gradient_steps_move_the_agent_to_the_goal(futures) -> None:
    frame, picture = scene(futures, (20.0, 20.0)), scene(futures, (30.0, 22.0))
    root = futures.root({"frames": np.stack([frame, frame])})
    goal = Goal(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
    objective = make_objective({"pusht-agent": 1.0}, None)
    still = torch.tensor([[-0.375, -0.375]])
    moved = refined(root, lambda points: points.expand(-1, 4, -1), still, goal, steps=10, rate=0.03)
    before, after = objective(root.rollout(torch.stack([still, moved]).expand(-1, 4, -1)), goal).tolist()
    assert after > before + 2  # px


def test_a_planner_takes_the_refined_plan_where_it_scores_higher(futures) -> None:
    frame, picture = scene(futures, (20.0, 20.0)), scene(futures, (27.0, 22.0))
    objective = make_objective({"pusht-agent": 1.0}, None)
    noise, search = ActionNoise(std=(0.01, 0.01)), OptimizerConfig(candidates=2, iterations=1, elites=1)
    scores = []
    for steps in (0, 10):
        settings = PlannerConfig(
            horizon=4, action_repeat=4, gradient_steps=steps, gradient_rate=0.03, noise=noise, optimizer=search
        )
        planner = Planner(
            futures, objective, settings, goals=[picture], first_action=lambda _: np.array([-0.375, -0.375])
        )
        planner.reset([0])
        planner.act({"frames": np.stack([frame, frame])[None]})
        scores.append(planner.decisions[0].score)
    assert scores[1] > scores[0] + 1


def test_other_models_have_no_gradients(model_of) -> None:
    for model in (ImaginedFutures(model_of("conditional")), RepeatedFrame(2, 64)):
        with pytest.raises(UserError, match="gradient_steps needs a picture model such as pusht-64"):
            check_gradients(model)
    settings = PlannerConfig(gradient_steps=3)
    with pytest.raises(UserError, match="gradient_steps needs a picture model"):
        Planner(RepeatedFrame(2, 64), make_objective({"last-pixels": 1.0}, None), settings)
