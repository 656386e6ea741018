"""Recordings, episode stores, clips and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.store import EpisodeStore

# Loaded when first used: converting needs no torch.
_HOMES = {"EpisodeStore": "store"}

__all__ = ["EpisodeStore"]


def __getattr__(name: str) -> Any:
    """Finds a public name in the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ivideogpt.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ivideogpt.data.{_HOMES[name]}"), name)
