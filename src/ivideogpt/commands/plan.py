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
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.planning.benchmark import AgentSummary, Benchmark, InstanceResult, Recording
    from ivideogpt.planning.config import PlanningConfig
    from ivideogpt.planning.results import PlanningResults
    from ivideogpt.worldmodel.world_model import WorldModel

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
        preset: pusht (default), robodesk/TASK or robosuite/push; its settings are options too, which `PRESET --help`
            lists.
        settings: the settings of the preset.
        agents: with commas between them: model (plans in the world model), simulator (plans in the simulator itself),
            repeat-last-frame (plans in a world that stands still), random; of PushT also script.
        instances: starts with a goal picture each.
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
    from ivideogpt.planning.results import PlanningResults
    from ivideogpt.reports.planning_page import audit, headings, planning_page, summary_rows

    # options
    check_numbers(instances=(instances, 1, 100_000), pictures=(pictures, 0, 1000))
    check_folder(output)
    names = [name.strip() for name in agents.split(",")]
    world = _world_model(settings, device) if "model" in names else None
    runner = _InstanceRunner(settings, world, _classifier(settings), pictures)
    benchmark = runner.benchmark
    for name in names:
        if name not in benchmark.agents:
            raise UserError(f"there is no agent {name!r}; {suggestion(name, benchmark.agents)}")
        runner.policy(name)  # a wrong model or objective is reported before the first episode
    results = PlanningResults(output, settings, benchmark.result_type)
    lock_folder(output, activity="planning benchmark")

    # instances
    pool, _ = choose_pool(ray, None, device="cpu" if world is None else world.device.type)
    summaries = _run(names, runner, as_pool(pool or 0), results, instances)
    print_table(headings(benchmark.figures), summary_rows(summaries, benchmark.figures))
    print(audit(summaries[0]))

    # page and videos
    records = {
        name: [record for number in range(min(pictures, instances)) if (record := results.pictures(name, number))]
        for name in names
    }
    _write_videos(output, records)
    page = output / "report.html"
    title = f"{preset or _DEFAULT_PRESET}: {instances} goal{'s' * (instances > 1)}"
    facts = _facts(settings, benchmark)
    write_text_atomic(page, planning_page(title, facts, benchmark.success_note, benchmark.figures, summaries, records))
    print(page)
    first = summaries[0]
    print_json(
        {
            "success": first.success.value,
            "interval": [round(first.success.low, 4), round(first.success.high, 4)],
            "instances": first.instances,
            "seconds_per_decision": first.seconds_per_decision,
            **{name: estimate.value for name, estimate in first.figures.items()},
            "agents": {summary.agent: summary.success.value for summary in summaries},
            "report": page,
        }
    )


def _world_model(settings: PlanningConfig, device: str) -> WorldModel:
    from ivideogpt.worldmodel.world_model import WorldModel

    if not settings.checkpoint:
        raise UserError(
            "the agent model needs a world model of this environment; give its checkpoint by --checkpoint, or other "
            "agents, such as --agents simulator,repeat-last-frame"
        )
    return WorldModel.from_pretrained(settings.checkpoint, device=device)


def _classifier(settings: PlanningConfig) -> SuccessClassifier | None:
    from ivideogpt.models.success_classifier import SuccessClassifier

    if not settings.classifier:
        return None
    classifier = SuccessClassifier.from_pretrained(settings.classifier, task=settings.task)
    print(classifier.summary())
    return classifier


class _InstanceRunner:
    """Lets agents act in instances, in this process or another: each makes its own simulator and agents."""

    def __init__(
        self,
        settings: PlanningConfig,
        world: WorldModel | None,
        classifier: SuccessClassifier | None,
        pictures: int,
    ) -> None:
        self.settings, self._world, self._classifier, self._pictures = settings, world, classifier, pictures
        self._policies: dict[str, Policy] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _InstanceRunner, (self.settings, self._world, self._classifier, self._pictures)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The simulator with its instances."""
        from ivideogpt.planning.config import PushTPlanning, VP2Planning

        if isinstance(self.settings, VP2Planning):
            from ivideogpt.planning.vp2_benchmark import VP2Benchmark

            return VP2Benchmark(self.settings)
        assert isinstance(self.settings, PushTPlanning)
        from ivideogpt.planning.pusht_benchmark import PushTBenchmark

        return PushTBenchmark(self.settings.goals)

    def policy(self, name: str) -> Policy:
        """Return an agent by its name; it is made once."""
        from ivideogpt.planning.objectives import make_objective
        from ivideogpt.planning.planner import Planner

        if name not in self._policies and name in ("random", "script"):
            self._policies[name] = self.benchmark.baseline(name)
        elif name not in self._policies:
            world, benchmark = self._world if name == "model" else None, self.benchmark
            model = benchmark.imagined(world, self.settings.seed) if world else benchmark.planning_model(name)
            objective = make_objective(self.settings.objective, world, self._classifier)
            first_action = benchmark.first_action
            self._policies[name] = Planner(model, objective, self.settings.planner, first_action=first_action)
        return self._policies[name]

    def __call__(self, item: tuple[str, Any]) -> tuple[InstanceResult, Recording | None, float]:
        """Return the result of an agent in an instance, its pictures where they are shown, and the seconds."""
        name, instance = item
        start = time.perf_counter()
        is_shown, seed = instance.number < self._pictures, self.settings.seed + _OWN_SEEDS.get(name, 0)
        result, recording = self.benchmark.run(instance, self.policy(name), seed, pictures=is_shown)
        return result, recording if is_shown else None, time.perf_counter() - start


def _run(
    names: Sequence[str], runner: _InstanceRunner, pool: TaskPool, results: PlanningResults, count: int
) -> list[AgentSummary]:
    """Run every agent in the instances that it has not finished yet; return the figures of each."""
    from ivideogpt.planning.benchmark import summarise

    kept = {name: results.read(name) for name in names}
    instances = []
    if any(number not in done for done in kept.values() for number in range(count)):
        instances = runner.benchmark.instances(count)
    waiting = [(name, instance) for name in names for instance in instances if instance.number not in kept[name]]
    for position, (result, recording, seconds) in pool.run(runner, waiting):
        name, instance = waiting[position]
        results.append(name, result, recording)
        kept[name][instance.number] = result
        reached = sum(done.success for done in kept[name].values())
        print(
            f"{name} {len(kept[name])}/{count}: {'reached' if result.success else 'missed'} after {result.steps} "
            f"steps, {seconds:.1f} s; {reached} reached so far",
            flush=True,
        )
    figures = runner.benchmark.figures
    return [summarise(name, [kept[name][number] for number in range(count)], figures) for name in names]


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


def _facts(settings: PlanningConfig, benchmark: Benchmark) -> dict[str, str]:
    planner = settings.planner
    optimizer = planner.optimizer
    return {
        "world model": settings.checkpoint or "none",
        "objective": json.dumps(settings.objective),
        "search": f"{optimizer.name}, candidates: {optimizer.candidates}, iterations: {optimizer.iterations}, speed: "
        f"{planner.speed}",
        "plan": f"{planner.horizon} steps, searched again every {planner.replan_every}",
        **benchmark.facts(),
    }
