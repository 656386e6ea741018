"""Weighted mixtures of episode stores: the official ones by name, and your own from a small file.

    mixture = named_mixture("OXE_SELECT", "stores")     # stores/bridge, stores/kuka, ...
    mixture = load_mixture("mixture.toml")

A file of your own, in TOML (or the same keys in JSON):

    [[sources]]
    path = "stores/bridge"       # as seen from the file; or a URL
    weight = 3.0
    stride = 2                   # this and what follows may be left out
    camera = "wrist_image"
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ivideogpt.core.config import from_dict, load_json, suggestion
from ivideogpt.core.errors import UserError

# The official loader gives Something-Something stride 1 whatever the step size is.
_FIXED_STRIDES = {"sthsth": 1}


@dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """One store of a mixture.

    Attributes:
        path: folder of the store, or a URL that fsspec knows.
        weight: how often clips come from it, relative to the others.
        stride: distance between used frames; None: as the clips or the dataset say.
        camera: None: the one that the catalogue uses.
        split: episodes of this split only; None: all.
        embodiment: sources of one name share an embodiment id; "": the name of the dataset.
    """

    path: str
    weight: float = 1.0
    stride: int | None = None
    camera: str | None = None
    split: str | None = "train"
    embodiment: str = ""

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        if not 0 < self.weight < float("inf"):
            raise UserError(f"the weight of {self.path} is {self.weight}; expected a number above 0")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"the stride of {self.path} is {self.stride}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Stores that clips are drawn from.

    Attributes:
        sources: at least one.
        action_width: numbers of an action in a batch; narrower action spaces are padded with zeros. None: those of the
            widest source.
    """

    sources: tuple[MixtureSource, ...]
    action_width: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError where there is no source."""
        if not self.sources:
            raise UserError("a mixture has no sources; give at least one")

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Share of the clips that comes from each source; they sum to 1."""
        total = sum(source.weight for source in self.sources)
        return tuple(source.weight / total for source in self.sources)


@cache
def _official() -> dict[str, dict[str, Any]]:
    return json.loads((resources.files("ivideogpt") / "assets" / "data" / "mixtures.json").read_text(encoding="utf-8"))


def mixture_names() -> list[str]:
    """The official mixtures, and the names that the official ``--oxe_data_mixes_type`` calls them by."""
    return [*_official()["mixtures"], *_official()["aliases"]]


def mixture_weights(name: str) -> dict[str, float]:
    """The weight of each dataset of an official mixture, as the official table has it.

    Raises:
        UserError: there is no such mixture; the message names the closest one.

    Source: thuml/iVideoGPT ``dataset_mixes.py``; the same, but a dataset that is listed twice is one with both weights.
    """
    table = _official()
    found = table["mixtures"].get(table["aliases"].get(name, name))
    if found is None:
        raise UserError(f"there is no mixture {name!r}; {suggestion(name, mixture_names())}")
    return dict(found)


def named_mixture(name: str, folder: str | Path, *, split: str | None = "train") -> Mixture:
    """An official mixture of the stores in ``folder``, each in a folder with the name of its dataset.

    Args:
        name: such as "OXE_SELECT" or, with Something-Something, "OXE_SELECT_STHSTH"; see ``mixture_names``.
        folder: holds the stores; may be a URL.
        split: of the episodes.

    Raises:
        UserError: there is no such mixture.
    """
    root = str(folder).rstrip("/")
    sources = [
        MixtureSource(path=f"{root}/{dataset}", weight=weight, split=split, stride=_FIXED_STRIDES.get(dataset))
        for dataset, weight in mixture_weights(name).items()
    ]
    return Mixture(sources=tuple(sources))


def load_mixture(path: str | Path) -> Mixture:
    """Reads a mixture from a TOML or JSON file; relative paths in it start at the file's folder.

    Raises:
        UserError: the file is missing or damaged, has an unknown key (the message names the closest one), or is TOML
            and this Python cannot read that.
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise UserError(f"{path} is no mixture file; expected a name that ends in .toml or .json")
    mixture = from_dict(Mixture, _load_toml(path) if path.suffix == ".toml" else load_json(path), where=str(path))
    return replace(mixture, sources=tuple(replace(one, path=_resolve(one.path, path)) for one in mixture.sources))


def _resolve(store: str, file: Path) -> str:
    return store if "://" in store else str(file.parent / store)


def _load_toml(path: Path) -> dict[str, Any]:
    toml = _toml_reader()
    if toml is None:
        raise UserError(f"{path} needs Python 3.11 or the package tomli; install it, or write the mixture as JSON")
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a TOML file there") from None
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError
        raise UserError(f"{path} cannot be read as TOML ({error}); correct it") from error


def _toml_reader() -> Any:
    """``tomllib`` (Python 3.11), ``tomli`` where it is installed, or None."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return None
