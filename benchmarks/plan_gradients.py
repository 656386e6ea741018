"""Measure whether gradient steps through the forecast of a picture model improve plans of a search, on PushT.

    python benchmarks/plan_gradients.py --goals 10

For each goal: a plan of 15 steps by the usual search and by MPPI, and the same plan after gradient steps on its way
points. Both are rated by the objective of the search, in the model and in the simulator; higher is better. A wider
search, which costs about as much as search and gradient steps together, is rated in the same way.
"""

import argparse
import json
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ivideogpt.configs.planning import pusht_planning
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.planning.gradients import refined
from ivideogpt.planning.models import Root
from ivideogpt.planning.objectives import Goal, make_objective
from ivideogpt.planning.optimizers import OptimizerConfig
from ivideogpt.planning.planner import Planner
from ivideogpt.planning.pusht_benchmark import PushTBenchmark, agent_place
from ivideogpt.worldmodel.world_model import WorldModel


def searched(planner: Planner, root: Root, goal: Goal, last_action: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the way points ``[n a]`` of a search that begins with the last action."""
    generator = torch.Generator().manual_seed(seed)
    return planner.search(root, goal, last_action, last_action.repeat(3, 1), generator).actions


def main() -> None:
    """Print a line for each goal, and the mean improvements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--goals", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first goal")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--candidates", type=int, default=64, help="of a wider search, for comparison")
    options = parser.parse_args()
    settings = pusht_planning()
    benchmark = PushTBenchmark(settings.goals)
    model = WorldModel.from_pretrained(settings.checkpoint).eval().requires_grad_(False)
    futures, simulator = benchmark.imagined(model, 0), benchmark.planning_model("simulator")
    objective = make_objective(settings.objective, model)
    cem = settings.planner.optimizer
    mppi = OptimizerConfig(name="mppi", candidates=24, iterations=2, sharpness=1.0)
    gains: dict[str, list[float]] = {}
    for instance in benchmark.instances(options.first + options.goals)[options.first :]:
        frames, _ = benchmark._begin(instance)
        goal = Goal(torch.from_numpy(instance.goal).permute(2, 0, 1).float() / 255)
        last_action = torch.from_numpy(agent_place(frames[-1]))
        root = futures.root({"frames": np.stack(frames)})
        truth = simulator.root({})
        for name, optimizer in (("cem", cem), ("mppi", mppi)):
            planner = Planner(futures, objective, replace(settings.planner, optimizer=optimizer))
            plan = searched(planner, root, goal, last_action, instance.seed)
            others = {}
            if options.steps:
                expand = partial(planner.expand, last_action=last_action)
                others[f"{name}, gradient steps"] = refined(
                    root, expand, plan, goal, steps=options.steps, rate=options.rate
                )
            if options.candidates and name == "cem":
                wide = replace(planner.settings, optimizer=replace(cem, candidates=options.candidates))
                wider = Planner(futures, objective, wide)
                others[f"cem, {options.candidates} candidates"] = searched(
                    wider, root, goal, last_action, instance.seed
                )
            for change, better in others.items():
                both = planner.expand(torch.stack([plan, better]), last_action)
                for where, score in (("model", root), ("simulator", truth)):
                    before, after = objective(score.rollout(both), goal).tolist()
                    gains.setdefault(f"{change}, in the {where}", []).append(after - before)
                    print(f"goal {instance.number}, {change}, in the {where}: {before:.2f} -> {after:.2f}", flush=True)
    for name, values in gains.items():
        estimate = Bootstrap(len(values)).mean(torch.tensor(values))
        print(json.dumps({"plan": name, "gain": estimate.value, "low": estimate.low, "high": estimate.high}))


if __name__ == "__main__":
    main()
