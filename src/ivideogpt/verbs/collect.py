"""``ivideogpt collect``: record episodes in a simulator."""

from __future__ import annotations

from ivideogpt.collect.episodes import collect

__all__ = ["collect"]
