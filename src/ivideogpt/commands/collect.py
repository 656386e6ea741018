"""``ivideogpt collect``: record episodes in a simulator."""

from __future__ import annotations

from ivideogpt.envs.record.pusht_episodes import collect

__all__ = ["collect"]
