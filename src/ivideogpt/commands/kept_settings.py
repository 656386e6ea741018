"""Settings of a run in settings.json: a resumed run has those that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ivideogpt.configs.registry import PRESETS, PresetKind, find_preset
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError

_SETTINGS = "settings.json"
RecipeT = TypeVar("RecipeT")


def kept_values(run: Path, kind: str) -> dict[str, Any] | None:
    """Read what a run of a kind was begun with; None for a new folder.

    Raises:
        UserError: the folder holds another kind of run.
    """
    path = run / _SETTINGS
    if not path.is_file():
        return None
    kept = load_json(path)
    if kept.get("kind") != kind or not {"preset", "settings"} <= kept.keys():
        raise UserError(f"'{run}' holds another kind of run; choose another folder")
    return kept


def load_settings(typed: Mapping[str, str], kind: PresetKind, recipe: type[RecipeT], run: str = "run") -> RecipeT:
    """Load the settings that options change: those of the resumed run, else those of the preset.

    Args:
        typed: options of the command line.
        kind: of the preset and of the run.
        recipe: class of the settings.
        run: option that names the folder of the run.

    Raises:
        UserError: there is no such preset, or the run was begun with another one.
    """
    preset, kept = typed.get("preset"), kept_values(Path(typed[run]), kind) if run in typed else None
    if kept is None:
        if preset is None:
            raise UserError(f"a new run needs a preset; expected one of {', '.join(PRESETS[kind])}")
        return find_preset(preset, kind)
    if preset not in (None, kept["preset"]):
        raise UserError(
            f"'{typed[run]}' was begun with the preset {kept['preset']}, not {preset}; choose another run folder"
        )
    return from_dict(recipe, kept["settings"], where=str(Path(typed[run]) / _SETTINGS))


def keep_values(run: Path, kind: str, preset: str | None, settings: Any, **inputs: Any) -> None:
    """Write settings and inputs of a new run into its folder, or check that a resumed run has the same.

    Raises:
        UserError: one differs; the first is named.
    """
    kept = kept_values(run, kind)
    values = {"kind": kind, "preset": preset, "settings": to_dict(settings), **inputs}
    if kept is None:
        run.mkdir(parents=True, exist_ok=True)
        save_json(run / _SETTINGS, values)
        return
    before, now = (_flat({name: x for name, x in tree.items() if name != "preset"}) for tree in (kept, values))
    for name, value in now.items():
        if before.get(name) != value:
            shown = name.removeprefix("settings.")
            raise UserError(
                f"'{run}' was begun with {shown} {before.get(name)!r}, not {value!r}; give the same, or choose another "
                "run folder"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, object]:
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
