"""What a run of reinforcement learning left behind, read from its folder."""

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
# Settings that say how long a run is and what it writes, or that its task, method and seed say already.
_NOT_COMPARED = {"seed", "task", "imagine", "frames", "workers", "evaluate_every", "save_every", "log_every"}
#: Beginnings of settings that a run without a world model does not use.
OF_IMAGINATION = ("world_model.", "imagination.")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An evaluation in the real environment, as the run wrote it.

    Attributes:
        env_frames: simulator frames that the run had seen, those at random included.
        returns: sum of rewards of each episode.
        successes: whether a step of it succeeded.
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
        folder: that it was read from.
        task, method, preset: what was trained how; a method is "mbpo" or "model-free".
        seed: of the run.
        settings: of the rest, those that could alter what it learns, by dotted name.
        evaluations: by ascending frames, at least one.
    """

    folder: Path
    task: str
    method: str
    preset: str
    seed: int
    settings: Mapping[str, Any]
    evaluations: tuple[Recorded, ...]

    def at(self, env_frames: int) -> Recorded:
        """The evaluation after so many frames, which must be there."""
        return next(one for one in self.evaluations if one.env_frames == env_frames)


def read_run(folder: Path) -> RecordedRun:
    """Reads what ``ivideogpt mbrl`` wrote, also while it is still writing.

    Raises:
        UserError: the folder is no such run, has no evaluation yet, or a line cannot be read.
    """
    other = f"'{folder}' is no run of reinforcement learning; expected a folder that ivideogpt mbrl wrote"
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{other} ({SETTINGS} is not there)")
    about: dict[str, Any] = {"settings": {}} | load_json(folder / SETTINGS)
    for name, kind in {"task": str, "method": str, "preset": str, "seed": int, "settings": dict}.items():
        if type(about.get(name)) is not kind:
            raise UserError(f"{other} ({SETTINGS} has no {name!r})")
    evaluations = _read_evaluations(folder / EVALUATIONS)
    if not evaluations:
        raise UserError(f"'{folder}' has no evaluation yet; wait for its first one, or leave the run out")
    settings = {
        name: value
        for name, value in _flat(about["settings"]).items()
        if name not in _NOT_COMPARED and not (about["method"] == "model-free" and name.startswith(OF_IMAGINATION))
    }
    # What takes the place of the agent's own number of updates is compared with it.
    settings["agent.updates"] = settings.pop("imagination.updates", 0) or settings.get("agent.updates")
    named = {name: about[name] for name in ("task", "method", "preset", "seed")}
    return RecordedRun(folder=folder, settings=settings, evaluations=evaluations, **named)


def _read_evaluations(path: Path) -> tuple[Recorded, ...]:
    """The lines of a run; where a resumed run repeated evaluations, the later ones count."""
    if not path.is_file():
        return ()
    kept: list[Recorded] = []
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # torn: the run was killed while it wrote
            raise UserError(f"line {number} of {path} is no JSON; delete it to leave that evaluation out") from None
        where = f"line {number} of {path}"
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name in Recorded.__dataclass_fields__}
        found = from_dict(Recorded, values, where=where)
        if not found.returns or len(found.returns) != len(found.successes):
            raise UserError(
                f"{where} has {len(found.returns)} returns and {len(found.successes)} successes; expected one of each "
                "an episode: delete the line to leave that evaluation out"
            )
        if not np.isfinite(found.returns).all():
            raise UserError(f"{where} has a return that is not finite; delete the line to leave that evaluation out")
        kept = [*(one for one in kept if one.env_frames < found.env_frames), found]
    return tuple(kept)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat
