"""Reader of a run folder of reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.config import from_dict, load_json
from ivideogpt.core.errors import UserError

SETTINGS, EVALUATIONS = "settings.json", "evaluations.jsonl"
# Settings of a run's length and output, and those that repeat its task, method and seed.
_NOT_COMPARED = {"seed", "task", "use_world_model", "total_env_steps", "env_processes", "cpu_threads"}
_NOT_COMPARED |= {"evaluate_every_steps", "save_every_steps", "log_every_steps"}
# The same in runs of version 0.1.
_NOT_COMPARED |= {"imagine", "frames", "workers", "evaluate_every", "save_every", "log_every"}
#: Prefixes of settings that a run without a world model does not use.
WORLD_MODEL_SETTINGS = ("world_model.", "imagination.")


@dataclass(frozen=True, kw_only=True)
class RecordedEvaluation:
    """An evaluation in the real environment, as a run wrote it.

    Attributes:
        env_frames: simulator frames of the run until then, random ones included.
        returns: sum of rewards of each episode.
        successes: True where a step of the episode succeeded.
        seconds: wall-clock of the run until then.
        imagined_transitions: until then.
    """

    env_frames: int
    returns: tuple[float, ...]
    successes: tuple[bool, ...]
    seconds: float
    imagined_transitions: int

    @property
    def mean_return(self) -> float:
        """Mean over the episodes."""
        return float(np.mean(self.returns))

    @property
    def success(self) -> float:
        """Share of the episodes with success."""
        return float(np.mean(self.successes))


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run.

    Attributes:
        folder: where it is.
        task, method, preset: names; a method is "mbpo" or "model-free".
        seed: of the run.
        settings: other settings that affect learning, by dotted name.
        evaluations: by ascending frames, at least one.
    """

    folder: Path
    task: str
    method: str
    preset: str
    seed: int
    settings: Mapping[str, Any]
    evaluations: tuple[RecordedEvaluation, ...]

    def at(self, env_frames: int) -> RecordedEvaluation:
        """Return the evaluation after so many frames, which must exist."""
        return next(evaluation for evaluation in self.evaluations if evaluation.env_frames == env_frames)


def read_run(folder: Path) -> RecordedRun:
    """Read a folder that ``ivideogpt mbrl`` wrote or is still writing.

    Raises:
        UserError: the folder is no such run, has no evaluation yet, or a line cannot be read.
    """
    refusal = f"'{folder}' is no run of reinforcement learning; expected a folder that ivideogpt mbrl wrote"
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{refusal} ({SETTINGS} is not there)")
    about: dict[str, Any] = {"settings": {}} | load_json(folder / SETTINGS)
    for name, kind in {"task": str, "method": str, "preset": str, "seed": int, "settings": dict}.items():
        if type(about.get(name)) is not kind:
            raise UserError(f"{refusal} ({SETTINGS} has no {name!r})")
    evaluations = _read_evaluations(folder / EVALUATIONS)
    if not evaluations:
        raise UserError(f"'{folder}' has no evaluation yet; wait for its first one, or leave the run out")
    settings = {
        name: value
        for name, value in _flat(about["settings"]).items()
        if name not in _NOT_COMPARED and not (about["method"] == "model-free" and name.startswith(WORLD_MODEL_SETTINGS))
    }
    # The number of updates with imagination replaces the number without; version 0.1 had other names.
    for prefix, name in (("", "agent_updates_per_step"), ("agent.", "updates")):
        number = settings.pop(f"imagination.{name}", 0) or settings.get(prefix + name)
        if number is not None:
            settings[prefix + name] = number
    identity = {name: about[name] for name in ("task", "method", "preset", "seed")}
    return RecordedRun(folder=folder, settings=settings, evaluations=evaluations, **identity)


def _read_evaluations(path: Path) -> tuple[RecordedEvaluation, ...]:
    """Read the lines of a run; where a resumed run repeated evaluations, the later ones count."""
    if not path.is_file():
        return ()
    evaluations: list[RecordedEvaluation] = []
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # an incomplete last line: the run was killed while it wrote
            raise UserError(f"line {number} of {path} is no JSON; delete it to leave that evaluation out") from None
        where = f"line {number} of {path}"
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name in RecordedEvaluation.__dataclass_fields__}
        evaluation = from_dict(RecordedEvaluation, values, where=where)
        if not evaluation.returns or len(evaluation.returns) != len(evaluation.successes):
            raise UserError(
                f"{where} has {len(evaluation.returns)} returns and {len(evaluation.successes)} successes; expected "
                "one of each an episode: delete the line to leave that evaluation out"
            )
        if not np.isfinite(evaluation.returns).all():
            raise UserError(f"{where} has a return that is not finite; delete the line to leave that evaluation out")
        evaluations = [*(earlier for earlier in evaluations if earlier.env_frames < evaluation.env_frames), evaluation]
    return tuple(evaluations)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat
