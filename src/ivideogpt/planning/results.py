"""Results of a planning benchmark: one line an instance, written as it comes, and pictures of the first ones.

The folder of a benchmark:

    settings.json           the settings; a resumed benchmark has the same
    AGENT.jsonl             one InstanceResult a line
    pictures/AGENT-0003.npz frames of an instance
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic, writing
from ivideogpt.evaluation.intervals import Bootstrap, Estimate, share_estimate
from ivideogpt.planning.config import PlanningConfig
from ivideogpt.planning.pusht_benchmark import Instance, InstanceResult, Recording

SETTINGS = "settings.json"


@dataclass(frozen=True)
class PlanningRecord:
    """Pictures of an instance: what happened, what the plan expected, and the goal, all uint8.

    Attributes:
        number: of the instance.
        success: the goal was reached.
        goal: ``[h w 3]``.
        frames: ``[t h w 3]``.
        planned: ``[t h w 3]``.
    """

    number: int
    success: bool
    goal: np.ndarray
    frames: np.ndarray
    planned: np.ndarray


class PlanningResults:
    """The folder of a benchmark."""

    def __init__(self, folder: Path, settings: PlanningConfig) -> None:
        """Open the folder, or make it. Settings are written with the first result, so that a failed start keeps none.

        Raises:
            UserError: it holds a benchmark with other settings, or something else.
        """
        self.folder, self._settings, path = folder, settings, folder / SETTINGS
        if path.is_file():
            kept = from_dict(PlanningConfig, load_json(path), where=str(path))
            if kept != settings:
                before, now = to_dict(kept), to_dict(settings)
                names = ", ".join(name for name in now if before[name] != now[name])
                raise UserError(
                    f"'{folder}' holds a benchmark with other settings ({names}); use the same to go on, or give "
                    "another --output"
                )
        elif folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UserError(f"'{folder}' holds something else than a planning benchmark; give another --output")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, agent: str) -> dict[int, InstanceResult]:
        """Read the results of an agent by the number of the instance.

        A last line that a kill cut short is dropped: its instance runs again.

        Raises:
            UserError: another line is no result.
        """
        path, results = self._lines(agent), {}
        if not path.is_file():
            return results
        text = path.read_text(encoding="utf-8")
        whole, _, rest = text.rpartition("\n")
        if rest:
            write_atomic(path, lambda temporary: temporary.write_text(whole + "\n" * bool(whole), encoding="utf-8"))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                result = from_dict(InstanceResult, json.loads(line), where=f"{path}:{number}")
            except ValueError as error:
                raise UserError(f"{path} is damaged in line {number} ({error}); delete the line") from error
            results[result.number] = result
        return results

    def append(self, agent: str, instance: Instance, result: InstanceResult, recording: Recording | None) -> None:
        """Write a result, and its pictures before it where there are some, to the disk at once."""
        if not (self.folder / SETTINGS).is_file():
            save_json(self.folder / SETTINGS, to_dict(self._settings))
        if recording is not None:
            shown, success = recording, np.array(result.success)

            def write(temporary: Path) -> None:
                with temporary.open("wb") as file:
                    np.savez_compressed(
                        file, goal=instance.goal, frames=shown.frames, planned=shown.planned, success=success
                    )

            write_atomic(self._pictures(agent, instance.number), write)
        path = self._lines(agent)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def pictures(self, agent: str, number: int) -> PlanningRecord | None:
        """Read the pictures of an instance, or return None where none were kept."""
        path = self._pictures(agent, number)
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            success = bool(arrays["success"])
            return PlanningRecord(number, success, arrays["goal"], arrays["frames"], arrays["planned"])

    def _lines(self, agent: str) -> Path:
        return self.folder / f"{agent}.jsonl"

    def _pictures(self, agent: str, number: int) -> Path:
        return self.folder / "pictures" / f"{agent}-{number:04d}.npz"


@dataclass(frozen=True)
class AgentSummary:
    """Figures of one agent over its instances.

    Attributes:
        agent: its name.
        instances: their number.
        success: share of successes, with its 95 % interval.
        block_success: share in which the block alone reached the goal.
        covered: share in which the block covered 95 % of the goal.
        not_solved: share of successes among the instances that were not solved at the start.
        solved_at_start: share of instances solved before the first action.
        block_at_start: share in which the block was at its goal before the first action.
        coverage: mean of the largest covered share of the goal.
        seconds_per_decision: of a search; NaN for agents that do not search.
        steps: mean number of steps.
    """

    agent: str
    instances: int
    success: Estimate
    block_success: Estimate
    covered: Estimate
    not_solved: Estimate
    solved_at_start: float
    block_at_start: float
    coverage: Estimate
    seconds_per_decision: float
    steps: float


def summarise(agent: str, results: Sequence[InstanceResult]) -> AgentSummary:
    """Return the figures of an agent."""

    def share(values: Sequence[bool]) -> Estimate:
        return share_estimate(sum(values), len(values))

    count = max(len(results), 1)
    decisions = sum(result.decisions for result in results)
    return AgentSummary(
        agent=agent,
        instances=len(results),
        success=share([result.success for result in results]),
        block_success=share([result.block_success for result in results]),
        covered=share([result.covered_success for result in results]),
        not_solved=share([result.success for result in results if not result.solved_at_start]),
        solved_at_start=sum(result.solved_at_start for result in results) / count,
        block_at_start=sum(result.block_at_start for result in results) / count,
        coverage=Bootstrap(len(results)).mean(torch.tensor([result.coverage for result in results])),
        seconds_per_decision=sum(r.seconds for r in results) / decisions if decisions else float("nan"),
        steps=sum(result.steps for result in results) / count,
    )
