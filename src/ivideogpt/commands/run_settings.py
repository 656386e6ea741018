"""What a run began with, kept beside it: every setting, and which data. It goes on with these and refuses others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.data.mixture_reader import OpenMixture, OpenSource
from ivideogpt.data.tokens import TokenStore
from ivideogpt.models.tokenizer import CompressiveTokenizer

SETTINGS = "settings.json"
_DATA = "data"


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a run was trained on, of one store.

    Attributes:
        path: where it was; a store may move.
        dataset: name of the dataset.
        split, camera: as the mixture has them.
        stride: distance between used frames.
        weight: as the mixture has it.
        episodes, frames: how many there are of the split.
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
    """What a run was trained on.

    Attributes:
        sources: the stores, in the order of the mixture.
        tokens: the folder of their tokens, where these were read; it may move.
        takes: how clips were cut out before they were tokenised; "": any clip of an episode can be drawn; None: it was
            not kept once.
        tokenizer: fingerprint of the tokenizer that a transformer was trained for; "": none.
    """

    sources: tuple[SourceFacts, ...]
    tokens: str = ""
    takes: str | None = None
    tokenizer: str = ""


def data_facts(
    opened: OpenMixture, *, tokens: TokenStore | None = None, tokenizer: CompressiveTokenizer | None = None
) -> DataFacts:
    """What identifies data, from the indices of its stores alone.

    Args:
        opened: the stores.
        tokens: of their episodes, where these are read instead.
        tokenizer: of a transformer.
    """
    return DataFacts(
        sources=tuple(map(_source_facts, opened.sources)),
        tokens="" if tokens is None else str(tokens.folder),
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
        path=source.path,
        dataset=facts.dataset.name,
        split=source.split,
        camera=source.camera,
        stride=opened.stride,
        weight=source.weight,
        episodes=len(lengths),
        frames=sum(lengths),
        content=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16],
    )


def run_settings(recipe: Recipe, part: str, data: DataFacts) -> dict[str, object]:
    """Everything that a run is to go on with: the settings by their whole names, and "data".

    Args:
        recipe: the settings.
        part: "tokenizer" or "transformer": its own settings and those that both share.
        data: what it is trained on.
    """
    return _settings(recipe, part) | {_DATA: to_dict(data)}


def settle(folder: Path, recipe: Recipe, part: str, data: DataFacts, ranks: Ranks) -> None:
    """Keeps settings and data of a run beside it; a run goes on with those that it began with.

    Raises:
        UserError: it began with others; the first is named.
    """
    path = folder / SETTINGS
    if path.is_file():
        found = load_json(path)
        before = _settings(Recipe(), part) | found  # what was no setting then was as it is by default now
        for name, value in _settings(recipe, part).items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} was begun with {name} {before.get(name)!r}, not {value!r}; give the same settings, or "
                    "choose another run folder"
                )
        if _DATA in found:  # once it was not kept
            _check_data(path, from_dict(DataFacts, found[_DATA], where=f"{path}: {_DATA}"), data)
    ranks.wait()  # all have looked before the first one writes
    if ranks.is_first:
        save_json(path, run_settings(recipe, part, data))


def _check_data(path: Path, before: DataFacts, now: DataFacts) -> None:
    if before.tokenizer != now.tokenizer:
        raise _other_data(path, f"with the tokenizer {before.tokenizer[:12] or None}, not {now.tokenizer[:12] or None}")
    if before.takes not in (None, now.takes):
        kinds = (takes or "any clip of its episodes" for takes in (before.takes, now.takes))
        raise _other_data(path, "on {}, not {}".format(*kinds))
    if len(before.sources) != len(now.sources):
        raise _other_data(path, f"on {len(before.sources)} stores, not {len(now.sources)}")
    for old, new in zip(before.sources, now.sources, strict=True):
        for name, value in asdict(old).items():
            if name != "path" and getattr(new, name) != value:
                raise _other_data(
                    path, f"on {old.path} with {name} {value!r}, and {new.path} has {getattr(new, name)!r}"
                )


def _other_data(path: Path, how: str) -> UserError:
    return UserError(
        f"{path.parent} was begun {how}; give the same data, choose another run folder, or go on with this one by "
        f"deleting {_DATA!r} from {path}"
    )


def _settings(recipe: Recipe, part: str) -> dict[str, object]:
    """The settings of one training and those that all share, by their whole names."""
    others = {"tokenizer", "transformer"} - {part}
    return _flat({name: value for name, value in to_dict(recipe).items() if name not in others})


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
