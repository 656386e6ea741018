"""Weighted mixtures of episode stores: the official mixtures by name, and your own from a small file.

    mixture = named_mixture("OXE_SELECT", "stores")     # stores/bridge, stores/kuka, ...
    mixture = load_mixture("mixture.toml")

A file of your own, in TOML (or the same keys in JSON):

    [[sources]]
    path = "stores/bridge"       # relative to the folder of the file; or a URL
    weight = 3.0
    stride = 2                   # optional, like all that follow
    camera = "wrist_image"
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ivideogpt.core.config import from_dict, load_json, suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, local_path, reading

# The official loader gives Something-Something stride 1 whatever the step size is.
_FIXED_STRIDES = {"sthsth": 1}
LARGEST_ACTION_WIDTH = 4096


#: Before the folder or Hub id of a LeRobot dataset that is read where it is.
LEROBOT = "lerobot:"


def absolute_path(path: str) -> str:
    """Return the path of a store from the root of this machine; a URL or Hub id stays as it is."""
    return _moved(path, Path.cwd())


def _moved(path: str, folder: Path) -> str:
    """Return a path relative to ``folder`` as an absolute one; a URL or Hub id stays as it is."""
    prefix = LEROBOT if path.startswith(LEROBOT) else ""
    if "://" in path:
        return path
    moved = os.path.abspath(folder / path.removeprefix(prefix))
    return path if prefix and not os.path.exists(moved) else prefix + moved


@dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """One store of a mixture.

    Attributes:
        path: folder of the store, or a URL that fsspec knows.
        weight: share of the clips that come from it, relative to the other sources.
        stride: distance between used frames; None: the stride of the clips, or of the dataset.
        camera: None: the main camera of the catalogue.
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
        """Raise UserError if a number is out of range."""
        if not 0 < self.weight < float("inf"):
            raise UserError(f"the weight of {self.path} is {self.weight}; expected a number above 0")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"the stride of {self.path} is {self.stride}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Stores that clips are drawn from.

    Attributes:
        sources: at least one.
        action_width: dimensions of an action in a batch, at most 4096; narrower action spaces are padded with zeros.
            None: those of the widest source.
    """

    sources: tuple[MixtureSource, ...]
    action_width: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError if there is no source, or the width is out of range."""
        if not self.sources:
            raise UserError("a mixture has no sources; give at least one")
        if self.action_width is not None and not 1 <= self.action_width <= LARGEST_ACTION_WIDTH:
            raise UserError(f"action_width is {self.action_width}; expected 1 to {LARGEST_ACTION_WIDTH}")

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Share of the clips that come from each source; the shares sum to 1."""
        total = sum(source.weight for source in self.sources)
        return tuple(source.weight / total for source in self.sources)


@cache
def _official() -> dict[str, dict[str, Any]]:
    return json.loads((resources.files("ivideogpt") / "assets" / "data" / "mixtures.json").read_text(encoding="utf-8"))


def mixture_names() -> list[str]:
    """Return the official mixtures, and their names in the official option ``--oxe_data_mixes_type``."""
    return [*_official()["mixtures"], *_official()["aliases"]]


def mixture_weights(name: str) -> dict[str, float]:
    """Return the weight of each dataset of an official mixture, as the official table has it.

    Raises:
        UserError: there is no such mixture; the message names the closest one.

    Source: thuml/iVideoGPT ``dataset_mixes.py``; the same, but a dataset that is listed twice is one with both weights.
    """
    table = _official()
    weights = table["mixtures"].get(table["aliases"].get(name, name))
    if weights is None:
        raise UserError(f"there is no mixture {name!r}; {suggestion(name, mixture_names())}")
    return dict(weights)


def named_mixture(name: str, folder: str | Path, *, split: str | None = "train") -> Mixture:
    """Return an official mixture of the stores in ``folder``, each in a folder with the name of its dataset.

    Args:
        name: such as "OXE_SELECT" or, with Something-Something, "OXE_SELECT_STHSTH"; see ``mixture_names``.
        folder: of the stores; may be a URL.
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
    """Load a mixture from a TOML or JSON file; relative paths in it are relative to the file's folder.

    Raises:
        UserError: the file is missing or damaged, has an unknown key (the message names the closest one), or is TOML
            and this Python cannot read TOML.
    """
    path = local_path(path)
    if path.suffix not in (".toml", ".json"):
        raise UserError(f"{path} is no mixture file; expected a file name that ends in .toml or .json")
    mixture = from_dict(Mixture, _load_toml(path) if path.suffix == ".toml" else load_json(path), where=str(path))
    sources = (replace(source, path=_moved(source.path, path.parent)) for source in mixture.sources)
    return replace(mixture, sources=tuple(sources))


def _load_toml(path: Path) -> dict[str, Any]:
    toml = _toml_reader()
    if toml is None:
        raise UserError(f"{path} needs Python 3.11 or the package tomli; install it, or write the mixture as JSON")
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a TOML file there")
    check_is_file(path, "TOML file")
    with reading(path, "correct it", fault="cannot be read as TOML"):
        return toml.loads(path.read_text(encoding="utf-8"))


def _toml_reader() -> Any:
    """Return ``tomllib`` (Python 3.11), ``tomli`` if it is installed, or None."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return None
