"""Measure whether gradient steps through the forecast of a picture model improve plans of a search, on PushT.

    python benchmarks/plan_gradients.py --goals 10

For each goal: a plan of 15 steps by the usual search and by MPPI, and the same plan after Adam steps on its way points.
Gradients pass through the forecast's pictures; the poses that are read from them pass none, so a frame is drawn from
the poses and has the gradient of the forecast (straight through). The loss is the squared error of the blurred last
frame. Both plans are rated by the objective of the search, in the model and in the simulator; higher is better.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ivideogpt.configs.planning import pusht_planning
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.planning.objectives import Goal, make_objective
from ivideogpt.planning.optimizers import OptimizerConfig
from ivideogpt.planning.planner import Planner
from ivideogpt.planning.pusht_benchmark import PushTBenchmark, agent_place
from ivideogpt.worldmodel.world_model import WorldModel


def imagined_last_frame(model: WorldModel, context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Return the frame ``[1 c h w]`` after actions ``[1 t a]``, with gradients for the actions."""
    dynamics = model.pictures
    history, poses = context, None
    for action in actions.unbind(1):
        step = dynamics(history, action, poses)
        background = dynamics.background_of(history[:, -1])
        pointer = dynamics.config.pointer_offset + dynamics.config.pointer_scale * action
        forecast = dynamics.forecast(history[:, -dynamics.config.forecast.frames :], background, pointer)
        frame = step.frames.detach() + forecast - forecast.detach()
        history, poses = torch.cat([history[:, 1:], frame[:, None]], dim=1), step.poses
    return history[:, -1]


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur frames ``[b c h w]`` with a Gaussian of ``sigma`` px."""
    places = torch.arange(-int(3 * sigma), int(3 * sigma) + 1)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).repeat(3, 1, 1, 1)
    frames = F.conv2d(frames, kernel, groups=3, padding=(0, len(places) // 2))
    return F.conv2d(frames, kernel.transpose(2, 3), groups=3, padding=(len(places) // 2, 0))


def refined(planner: Planner, model, context, goal, plan, last_action, *, steps: int, rate: float, sigma: float):
    """Return way points ``[n a]`` after gradient steps from those of a plan."""
    points = plan.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([points], lr=rate)
    wanted = blurred(goal.frame[None], sigma)
    for _ in range(steps):
        actions = planner.expand(points[None].clamp(-1, 1), last_action)
        loss = ((blurred(imagined_last_frame(model, context, actions), sigma) - wanted) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return points.detach().clamp(-1, 1)


def main() -> None:
    """Print a line for each goal, and the mean improvements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--goals", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--sigma", type=float, default=3.0)
    options = parser.parse_args()
    settings = pusht_planning()
    benchmark = PushTBenchmark(settings.goals)
    model = WorldModel.from_pretrained(settings.checkpoint).eval().requires_grad_(False)
    futures, simulator = benchmark.imagined(model, 0), benchmark.planning_model("simulator")
    objective = make_objective(settings.objective, model)
    mppi = OptimizerConfig(name="mppi", candidates=24, iterations=2, sharpness=1.0)
    gains: dict[str, list[float]] = {}
    for instance in benchmark.instances(options.goals):
        frames, _ = benchmark._begin(instance)
        goal = Goal(torch.from_numpy(instance.goal).permute(2, 0, 1).float() / 255)
        last_action = torch.from_numpy(agent_place(frames[-1]))
        root = futures.root({"frames": np.stack(frames)})
        shown = torch.from_numpy(np.stack(frames[-model.context_frames :])).permute(0, 3, 1, 2).float()[None] / 255
        truth = simulator.root({})
        for name, optimizer in (("cem", settings.planner.optimizer), ("mppi", mppi)):
            planner = Planner(futures, objective, replace(settings.planner, optimizer=optimizer))
            mean = last_action.repeat(3, 1)
            plan = planner.search(root, goal, last_action, mean, torch.Generator().manual_seed(instance.seed))
            better = refined(
                planner, model, shown, goal, plan.actions, last_action,
                steps=options.steps, rate=options.rate, sigma=options.sigma,
            )  # fmt: skip
            both = planner.expand(torch.stack([plan.actions, better]), last_action)
            for where, score in (("model", root), ("simulator", truth)):
                before, after = objective(score.rollout(both), goal).tolist()
                gains.setdefault(f"{name} in the {where}", []).append(after - before)
                print(f"goal {instance.number}, {name} in the {where}: {before:.2f} -> {after:.2f}", flush=True)
    for name, values in gains.items():
        estimate = Bootstrap(len(values)).mean(torch.tensor(values))
        print(json.dumps({"plan": name, "gain": estimate.value, "low": estimate.low, "high": estimate.high}))


if __name__ == "__main__":
    main()
