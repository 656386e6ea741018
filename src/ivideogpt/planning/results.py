"""Results of a planning benchmark: one line an instance, written as it comes, and pictures of the first ones.

The folder of a benchmark:

    settings.json           the settings; a resumed benchmark has the same
    AGENT.jsonl             one InstanceResult a line
    pictures/AGENT-0003.npz frames of an instance
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic, writing
from ivideogpt.planning.benchmark import InstanceResult, Recording
from ivideogpt.planning.config import PlanningConfig

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

    def __init__(self, folder: Path, settings: PlanningConfig, result_type: type[InstanceResult]) -> None:
        """Open the folder, or make it. Settings are written with the first result, so that a failed start keeps none.

        Args:
            folder: of the benchmark.
            settings: of it.
            result_type: dataclass of its results.

        Raises:
            UserError: it holds a benchmark with other settings, or something else.
        """
        self.folder, self._settings, self._type, path = folder, settings, result_type, folder / SETTINGS
        if path.is_file():
            kept = from_dict(type(settings), load_json(path), where=str(path))
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
                result = from_dict(self._type, json.loads(line), where=f"{path}:{number}")
            except ValueError as error:
                raise UserError(f"{path} is damaged in line {number} ({error}); delete the line") from error
            results[result.number] = result
        return results

    def append(self, agent: str, result: InstanceResult, recording: Recording | None) -> None:
        """Write a result, and its pictures before it where there are some, to the disk at once."""
        if not (self.folder / SETTINGS).is_file():
            save_json(self.folder / SETTINGS, to_dict(self._settings))
        if recording is not None:
            shown, success = recording, np.array(result.success)

            def write(temporary: Path) -> None:
                with temporary.open("wb") as file:
                    np.savez_compressed(
                        file, goal=shown.goal, frames=shown.frames, planned=shown.planned, success=success
                    )

            write_atomic(self._pictures(agent, result.number), write)
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
