"""``ivideogpt plan``: reach goal pictures in a simulator by planning in a world model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.inputs import check_numbers, choose_pool
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.core.protocols import Policy
    from ivideogpt.data.process_pool import TaskPool
    from ivideogpt.planning.config import PlanningConfig
    from ivideogpt.planning.models import ImaginedFutures
    from ivideogpt.planning.pusht_benchmark import Instance, InstanceResult, PushTControl, Recording
    from ivideogpt.planning.results import AgentSummary, PlanningResults

_DEFAULT_PRESET = "pusht"
_VIDEO_FPS = 10
#: Added to the seeds of agents that would otherwise draw what the recorded script drew.
_OWN_SEEDS = {"random": 10**6, "script": 10**6}


def load_planning_settings(typed: Mapping[str, str]) -> PlanningConfig:
    """Load the settings that options change: those of the preset with the budget.

    Raises:
        UserError: there is no such preset or budget.
    """
    from ivideogpt.configs.planning import find_budget

    config: PlanningConfig = find_preset(typed.get("preset", _DEFAULT_PRESET), "planning")
    return config.with_budget(*find_budget(typed["budget"])) if "budget" in typed else config


def plan(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: PlanningConfig,
    agents: str = "model",
    instances: int = 10,
    budget: str | None = None,
    pictures: int = 4,
    output: Path = Path("outputs/plan"),
    device: str = "auto",
    ray: str | None = None,
) -> None:
    """Reach goal pictures in a simulator by planning in a world model; the same command continues after a stop.

    Args:
        preset: pusht (default); its settings are options too, which `PRESET --help` lists.
        settings: the settings of the preset.
        agents: with commas between them: model (plans in the world model), simulator (plans in the simulator itself),
            repeat-last-frame (plans in a world that stands still), random, script.
        instances: starts with a goal picture each, of held-out episodes.
        budget: size of a search: small, medium or large; default: the preset's.
        pictures: instances of each agent that the page and the videos show.
        output: folder of results, page and videos. Finished instances in it are kept.
        device: auto, cpu or cuda.
        ray: run the instances on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or
            ray://HOST:PORT.
    """
    from ivideogpt.core.files import write_text_atomic
    from ivideogpt.core.folder_lock import lock_folder
    from ivideogpt.data.process_pool import as_pool
    from ivideogpt.planning.config import AGENTS
    from ivideogpt.planning.results import PlanningResults
    from ivideogpt.reports.planning_page import HEADINGS, audit, planning_page, summary_rows

    # options
    names = [name.strip() for name in agents.split(",")]
    for name in names:
        if name not in AGENTS:
            raise UserError(f"there is no agent {name!r}; {suggestion(name, AGENTS)}")
    check_numbers(instances=(instances, 1, 100_000), pictures=(pictures, 0, 1000))
    check_folder(output)
    futures = _world_model(settings, device) if "model" in names else None
    runner = _InstanceRunner(settings, futures, pictures)
    for name in names:
        runner.policy(name)  # a wrong objective is reported before the first episode
    results = PlanningResults(output, settings)
    lock_folder(output, activity="planning benchmark")

    # instances
    pool, _ = choose_pool(ray, None, device="cpu" if futures is None else futures.model.device.type)
    summaries = _run(names, runner, as_pool(pool or 0), results, instances)
    print_table(HEADINGS, summary_rows(summaries))
    print(audit(summaries[0]))

    # page and videos
    records = {
        name: [record for number in range(min(pictures, instances)) if (record := results.pictures(name, number))]
        for name in names
    }
    _write_videos(output, records)
    page = output / "report.html"
    title = f"{preset or _DEFAULT_PRESET}: {instances} goal{'s' * (instances > 1)}"
    write_text_atomic(page, planning_page(title, _facts(settings), summaries, records))
    print(page)
    first = summaries[0]
    print_json(
        {
            "success": first.success.value,
            "interval": [round(first.success.low, 4), round(first.success.high, 4)],
            "instances": first.instances,
            "seconds_per_decision": first.seconds_per_decision,
            "block_success": first.block_success.value,
            "coverage": first.coverage.value,
            "agents": {summary.agent: summary.success.value for summary in summaries},
            "report": page,
        }
    )


def _world_model(settings: PlanningConfig, device: str) -> ImaginedFutures:
    from ivideogpt.planning.models import ImaginedFutures
    from ivideogpt.planning.pusht_benchmark import ACTION_DIM, IMAGE_SIZE
    from ivideogpt.worldmodel.world_model import WorldModel

    model = WorldModel.from_pretrained(settings.checkpoint, device=device)
    if model.action_dim != ACTION_DIM or model.resolution != IMAGE_SIZE:
        raise UserError(
            f"{settings.checkpoint} has frames of {model.resolution} px and actions of {model.action_dim} numbers; "
            f"PushT needs {IMAGE_SIZE} px and {ACTION_DIM}: use pusht-64, or a model that was trained on PushT"
        )
    return ImaginedFutures(model, seed=settings.seed)


class _InstanceRunner:
    """Lets agents act in instances, in this process or another: each makes its own simulator and agents."""

    def __init__(self, settings: PlanningConfig, futures: ImaginedFutures | None, pictures: int) -> None:
        self.settings, self._futures, self._pictures = settings, futures, pictures
        self._policies: dict[str, Policy] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _InstanceRunner, (self.settings, self._futures, self._pictures)

    @cached_property
    def _control(self) -> PushTControl:
        from ivideogpt.planning.pusht_benchmark import PushTControl

        return PushTControl(self.settings.goals)

    def policy(self, name: str) -> Policy:
        """Return an agent by its name; it is made once."""
        from ivideogpt.planning.objectives import make_objective
        from ivideogpt.planning.planner import Planner
        from ivideogpt.planning.pusht_benchmark import agent_place, baseline_policy, planning_model

        if name not in self._policies and name in ("random", "script"):
            self._policies[name] = baseline_policy(name)
        elif name not in self._policies:
            model = planning_model(name, self._control, self._futures)
            world = self._futures.model if name == "model" and self._futures else None
            objective = make_objective(self.settings.objective, world)
            self._policies[name] = Planner(model, objective, self.settings.planner, first_action=agent_place)
        return self._policies[name]

    def __call__(self, item: tuple[str, Instance]) -> tuple[InstanceResult, Recording | None, float]:
        """Return the result of an agent in an instance, its pictures where they are shown, and the seconds."""
        name, instance = item
        start = time.perf_counter()
        is_shown, seed = instance.number < self._pictures, self.settings.seed + _OWN_SEEDS.get(name, 0)
        result, recording = self._control.run(instance, self.policy(name), seed, pictures=is_shown)
        return result, recording if is_shown else None, time.perf_counter() - start


def _run(
    names: Sequence[str], runner: _InstanceRunner, pool: TaskPool, results: PlanningResults, count: int
) -> list[AgentSummary]:
    """Run every agent in the instances that it has not finished yet; return the figures of each."""
    from ivideogpt.planning.pusht_benchmark import pusht_instances
    from ivideogpt.planning.results import summarise

    kept = {name: results.read(name) for name in names}
    instances = []
    if any(number not in done for done in kept.values() for number in range(count)):
        instances = pusht_instances(runner.settings.goals, count)
    waiting = [(name, instance) for name in names for instance in instances if instance.number not in kept[name]]
    for position, (result, recording, seconds) in pool.run(runner, waiting):
        name, instance = waiting[position]
        results.append(name, instance, result, recording)
        kept[name][instance.number] = result
        reached = sum(done.success for done in kept[name].values())
        print(
            f"{name} {len(kept[name])}/{count}: {'reached' if result.success else 'missed'} after {result.steps} "
            f"steps, {seconds:.1f} s; {reached} reached so far",
            flush=True,
        )
    return [summarise(name, [kept[name][number] for number in range(count)]) for name in names]


def _write_videos(folder: Path, records: Mapping[str, Sequence]) -> None:
    from ivideogpt.data.render import side_by_side, write_mp4

    for name, rows in records.items():
        for record in rows:
            path = folder / "videos" / f"{name}-{record.number:04d}.mp4"
            if path.is_file():
                continue
            goal = record.goal[None].repeat(len(record.frames), axis=0)
            panels = {"goal": goal, "what happened": record.frames, "the plan": record.planned}
            write_mp4(path, side_by_side(panels, context_frames=1), fps=_VIDEO_FPS)


def _facts(settings: PlanningConfig) -> dict[str, str]:
    planner, goals = settings.planner, settings.goals
    optimizer = planner.optimizer
    return {
        "world model": settings.checkpoint,
        "objective": json.dumps(settings.objective),
        "search": f"{optimizer.name}, candidates: {optimizer.candidates}, iterations: {optimizer.iterations}, speed: "
        f"{planner.speed}",
        "plan": f"{planner.horizon} steps, searched again every {planner.replan_every}",
        "goals": f"{goals.goal_steps} steps ahead in recorded episodes from seed {goals.first_seed} on, "
        + ("in which the block moves 64 px or more" if goals.moving else "of any kind"),
        "most steps": str(goals.max_steps),
    }
