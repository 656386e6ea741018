"""The settings and the data of a training run, in settings.json in its folder: a resumed run keeps to them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivideogpt.configs.recipe import Recipe
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.data.mixture_reader import OpenMixture, OpenSource
from ivideogpt.data.mixtures import Mixture, MixtureSource, absolute_path
from ivideogpt.data.tokens import TokenStore
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer

SETTINGS = "settings.json"
_DATA, _PRESET = "data", "preset"
#: Names of settings in runs of older versions, with the names that they have now.
_RENAMED = {
    "model.action_frequencies": "model.heads.action_frequencies",
    "model.action_conditioning": "model.heads.action_conditioning",
    "model.slots": "model.heads.slots",
    "model.action_reconstruction": "model.heads.action_reconstruction",
    "model.forecast_width": "model.heads.forecast_width",
    "model.forecast_blocks": "model.heads.forecast_blocks",
    "model.rewards": "model.heads.reward",
    "model.terminations": "model.heads.termination",
}


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """A store that a run was trained on.

    Attributes:
        path: its folder then; a store may move.
        dataset: name of the dataset.
        split, camera: of the mixture.
        stride: distance between used frames.
        weight: of the mixture.
        episodes, frames: numbers of them in the split.
        content: digest of names and lengths of these episodes, sizes of the frames and statistics of the actions.
    """

    path: str
    dataset: str
    split: str | None
    camera: str | None
    stride: int
    weight: float
    episodes: int
    frames: int
    content: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data of a run.

    Attributes:
        sources: the stores, in the order of the mixture.
        tokens: the folder of their tokens, where these were read; it may move. "": frames were read.
        takes: the clips that were tokenised; "": whole episodes, from which any clip can be drawn; None: unknown, in
            settings of an older version.
        tokenizer: fingerprint of the tokenizer that a transformer was trained for; "": none.
    """

    sources: tuple[SourceFacts, ...]
    tokens: str = ""
    takes: str | None = None
    tokenizer: str = ""


def data_facts(
    opened: OpenMixture, *, tokens: TokenStore | None = None, tokenizer: CompressiveTokenizer | None = None
) -> DataFacts:
    """Describe data by the indices of its stores alone.

    Args:
        opened: the stores.
        tokens: the tokens of their episodes, where these are read instead.
        tokenizer: of a transformer.
    """
    return DataFacts(
        sources=tuple(map(_source_facts, opened.sources)),
        tokens="" if tokens is None else absolute_path(tokens.folder),
        takes="" if tokens is None else _takes(tokens),
        tokenizer="" if tokenizer is None else tokenizer.fingerprint(),
    )


def _takes(tokens: TokenStore) -> str:
    facts = tokens.facts
    if facts.whole:
        return ""
    goal = ", goal first" if facts.goal_first else ""
    return f"{len(tokens)} clips of {facts.frames} frames, one every {facts.hop}{goal}"


def _source_facts(opened: OpenSource) -> SourceFacts:
    source, store = opened.source, opened.store
    facts, lengths = store.facts, store.lengths[opened.episodes].tolist()
    content = {
        "keys": [store.keys[episode] for episode in opened.episodes],
        "lengths": lengths,
        "cameras": facts.cameras,
        "actions": None if facts.actions is None else asdict(facts.actions),
    }
    return SourceFacts(
        path=absolute_path(source.path),
        dataset=facts.dataset.name,
        split=source.split,
        camera=source.camera,
        stride=opened.stride,
        weight=source.weight,
        episodes=len(lengths),
        frames=sum(lengths),
        content=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16],
    )


def run_settings(recipe: Recipe, part: str, data: DataFacts, preset: str | None = None) -> dict[str, object]:
    """Return every setting of a run by its whole name, its data and its preset.

    Args:
        recipe: the settings.
        part: "tokenizer" or "transformer": the settings of this training and those that both share are returned.
        data: what it is trained on.
        preset: its name; None: unknown.
    """
    return ({} if preset is None else {_PRESET: preset}) | _settings(recipe, part) | {_DATA: to_dict(data)}


def kept_recipe(folder: Path | None, preset: str | None) -> Recipe:
    """Load the settings that a run begins with: those in its folder, else those of the preset.

    Args:
        folder: of the run, which need not exist; None: unknown.
        preset: name of the preset; None: the one that the run began with.

    Raises:
        UserError: there is no preset of that name, or the run began with another one.
    """
    path = None if folder is None else folder / SETTINGS
    if path is None or not path.is_file():
        if preset is None:
            raise UserError(f"a new run needs a preset; expected one of {', '.join(PRESETS['training'])}")
        return find_preset(preset)
    kept = _load_settings(path)
    earlier = kept.get(_PRESET, preset)
    if earlier is None:
        raise UserError(f"{path} does not name the preset of the run; give the preset")
    if preset not in (None, earlier):
        raise UserError(f"{folder} was begun with the preset {earlier}, not {preset}; choose another run folder")
    recipe = find_preset(earlier)
    tree = to_dict(recipe)
    for name, value in kept.items():
        if name not in (_DATA, _PRESET):
            _set_path(tree, name, value)
    return from_dict(Recipe, tree, where=str(path))


def _load_settings(path: Path) -> dict[str, Any]:
    """Load settings.json, with today's names of the settings."""
    kept = load_json(path)
    if not _RENAMED.keys() & kept.keys():
        return kept
    heads = {_RENAMED[name]: kept.pop(name) for name in _RENAMED if name in kept}
    preset = kept.get(_PRESET)
    sizes = find_preset(str(preset)).model.heads if preset in PRESETS["training"] else HeadsConfig()
    # Both were switches; any size above 0 stands for that of the tokenizer.
    heads["model.heads.slots"] = (sizes.slots or 1) if heads.get("model.heads.slots") else 0
    heads["model.heads.forecast_grid"] = (sizes.forecast_grid or 1) if heads.get("model.heads.forecast_width") else 0
    heads["model.heads.forecast_width"] = heads.get("model.heads.forecast_width") or sizes.forecast_width
    return kept | heads


def _set_path(tree: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[last] = value


def kept_data(folder: Path) -> Mixture | TokenStore | None:
    """Open the data that the run in ``folder`` was trained on; None for a new run."""
    path = folder / SETTINGS
    kept = load_json(path).get(_DATA) if path.is_file() else None
    if kept is None:
        return None
    data = from_dict(DataFacts, kept, where=f"{path}: {_DATA}")
    if data.tokens:
        return TokenStore(data.tokens)
    return Mixture(
        sources=tuple(
            MixtureSource(
                path=source.path, split=source.split, camera=source.camera, stride=source.stride, weight=source.weight
            )
            for source in data.sources
        )
    )


def keep_settings(
    folder: Path, recipe: Recipe, part: str, data: DataFacts, ranks: Ranks, preset: str | None = None
) -> None:
    """Write settings and data of a run into its folder, or check that a resumed run has the same.

    Args:
        folder: of the run.
        recipe: the settings.
        part: "tokenizer" or "transformer".
        data: what it is trained on.
        ranks: the processes that train together.
        preset: name of the preset; None: as the run began.

    Raises:
        UserError: the run began with others; the first is named.
    """
    path = folder / SETTINGS
    if path.is_file():
        kept = _load_settings(path)
        preset = preset or kept.get(_PRESET)
        before = _settings(Recipe(), part) | kept  # a setting that did not exist then had today's default
        for name, value in _settings(recipe, part).items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} was begun with {name} {before.get(name)!r}, not {value!r}; give the same settings, or "
                    "choose another run folder"
                )
        if _DATA in kept:  # older runs did not keep it
            _check_data(path, from_dict(DataFacts, kept[_DATA], where=f"{path}: {_DATA}"), data)
    ranks.wait()  # every process checks before the first one writes
    if ranks.is_first:
        save_json(path, run_settings(recipe, part, data, preset))


def _check_data(path: Path, before: DataFacts, now: DataFacts) -> None:
    if before.tokenizer != now.tokenizer:
        raise _different_data(
            path, f"with the tokenizer {before.tokenizer[:12] or None}, not {now.tokenizer[:12] or None}"
        )
    if before.takes not in (None, now.takes):
        kinds = (takes or "any clip of its episodes" for takes in (before.takes, now.takes))
        raise _different_data(path, "on {}, not {}".format(*kinds))
    if len(before.sources) != len(now.sources):
        raise _different_data(path, f"on {len(before.sources)} stores, not {len(now.sources)}")
    for old, new in zip(before.sources, now.sources, strict=True):
        for name, value in asdict(old).items():
            if name != "path" and getattr(new, name) != value:
                raise _different_data(
                    path, f"on {old.path} with {name} {value!r}, and {new.path} has {getattr(new, name)!r}"
                )


def _different_data(path: Path, difference: str) -> UserError:
    return UserError(
        f"{path.parent} was begun {difference}; give the same data, choose another run folder, or resume this one "
        f"by deleting {_DATA!r} from {path}"
    )


def _settings(recipe: Recipe, part: str) -> dict[str, object]:
    """Return the settings of one training and those that both share, by their whole names."""
    excluded = {"tokenizer", "transformer"} - {part}
    return _flat({name: value for name, value in to_dict(recipe).items() if name not in excluded})


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
