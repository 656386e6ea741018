"""iVideoGPT: an interactive world model for robots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ivideogpt.envs.registry import register_with_gymnasium

if TYPE_CHECKING:
    from ivideogpt.core.episode import Clip, Episode
    from ivideogpt.core.errors import UserError
    from ivideogpt.core.layout import TokenLayout
    from ivideogpt.decoding.sampling import Sampling
    from ivideogpt.models.tokenizer import CompressiveTokenizer
    from ivideogpt.worldmodel.imagination import Imagination
    from ivideogpt.worldmodel.session import Session, Step
    from ivideogpt.worldmodel.world_model import WorldModel

__version__ = "0.1.0"

# Loaded when first used, so that the command line answers --help without importing torch.
_HOMES = {
    "Clip": "core.episode",
    "CompressiveTokenizer": "models.tokenizer",
    "Episode": "core.episode",
    "Imagination": "worldmodel.imagination",
    "Sampling": "decoding.sampling",
    "Session": "worldmodel.session",
    "Step": "worldmodel.session",
    "TokenLayout": "core.layout",
    "UserError": "core.errors",
    "WorldModel": "worldmodel.world_model",
}

__all__ = [
    "Clip",
    "CompressiveTokenizer",
    "Episode",
    "Imagination",
    "Sampling",
    "Session",
    "Step",
    "TokenLayout",
    "UserError",
    "WorldModel",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ivideogpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ivideogpt.{_HOMES[name]}"), name)


# gymnasium.make("ivideogpt/PushT-v0") works wherever this package is imported.
register_with_gymnasium()
