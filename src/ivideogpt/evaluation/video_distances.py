"""Distances between sets of videos, gathered batch by batch: whole clips, and futures alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from torch import Tensor

from ivideogpt.metrics.video import FeatureStatistics, VideoFeatures

Span = Literal["whole_clip", "future"]

#: Shorter videos have no distance: I3D halves their length several times.
LEAST_FRAMES = 10


class VideoDistances:
    """The videos of each row, as what a network sees in them; the row "true" is what others are compared with.

    Source: thuml/iVideoGPT: clips with their context as the tokenizer shows it, all futures together; same.
    """

    def __init__(self, features: VideoFeatures) -> None:
        """Without any video yet.

        Args:
            features: the network, on the device where it is to run.
        """
        self.name = features.name
        self._features = features
        self._seen: dict[tuple[Span, str], FeatureStatistics] = defaultdict(FeatureStatistics)

    def add(self, row: str, videos: Tensor, context_frames: int) -> None:
        """Takes in whole clips ``[b t c h w]`` in [0, 1] of one row."""
        spans: dict[Span, Tensor] = {"whole_clip": videos, "future": videos[:, context_frames:]}
        for span, part in spans.items():
            if part.shape[1] >= LEAST_FRAMES:
                self._seen[span, row].update(self._features(part))

    def distances(self) -> dict[Span, dict[str, float]]:
        """Span -> row -> distance from "true"; spans that are too short are left out."""
        found: dict[Span, dict[str, float]] = {}
        for (span, row), seen in self._seen.items():
            if row != "true":
                found.setdefault(span, {})[row] = seen.distance(self._seen[span, "true"])
        return found
