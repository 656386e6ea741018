"""Recordings, episode stores, training clips, and pictures of episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.augment import Augmentation
    from ivideogpt.data.clips import ClipSpec
    from ivideogpt.data.loader import ClipLoader
    from ivideogpt.data.mixtures import Mixture, MixtureSource, load_mixture, named_mixture
    from ivideogpt.data.store.reader import EpisodeStore

# Imported at first use: converting needs no torch.
_MODULES = {
    "Augmentation": "augment",
    "ClipLoader": "loader",
    "ClipSpec": "clips",
    "EpisodeStore": "store.reader",
    "Mixture": "mixtures",
    "MixtureSource": "mixtures",
    "load_mixture": "mixtures",
    "named_mixture": "mixtures",
}

__all__ = [
    "Augmentation",
    "ClipLoader",
    "ClipSpec",
    "EpisodeStore",
    "Mixture",
    "MixtureSource",
    "load_mixture",
    "named_mixture",
]


def __getattr__(name: str) -> Any:
    """Return a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ivideogpt.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ivideogpt.data.{_MODULES[name]}"), name)
