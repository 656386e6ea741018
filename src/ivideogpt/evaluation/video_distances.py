"""Distances between sets of videos, accumulated batch by batch: whole clips, and futures alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from ivideogpt.metrics.video import FeatureStatistics, VideoFeatures

Span = Literal["whole_clip", "future"]

#: Shorter videos have no distance: I3D halves their length several times.
MIN_FRAMES = 10


class VideoDistances:
    """Statistics of the features of the videos of each row; every row is compared with the row "true".

    Source: thuml/iVideoGPT: clips with their context as the tokenizer shows it, all futures together; same.
    """

    def __init__(self, features: VideoFeatures) -> None:
        """Begin without any video.

        Args:
            features: the network, on the device of the videos.
        """
        self.name = features.name
        self._features = features
        self._statistics: dict[tuple[Span, str], FeatureStatistics] = defaultdict(FeatureStatistics)

    def fresh(self) -> VideoDistances:
        """Return distances with the same network and without any video."""
        return VideoDistances(self._features)

    @property
    def statistics(self) -> dict[tuple[Span, str], FeatureStatistics]:
        """The statistics by span and row; they leave the network behind."""
        return dict(self._statistics)

    def join(self, statistics: dict[tuple[Span, str], FeatureStatistics]) -> None:
        """Take in the statistics of other videos."""
        for key, others in statistics.items():
            self._statistics[key].join(others)

    def add(self, row: str, videos: Tensor, context_frames: int) -> None:
        """Take in whole clips ``[b t c h w]`` in [0, 1] of one row."""
        spans: dict[Span, Tensor] = {"whole_clip": videos, "future": videos[:, context_frames:]}
        for span, part in spans.items():
            if part.shape[1] >= MIN_FRAMES:
                self._statistics[span, row].update(self._features(part))

    def add_futures(self, row: str, context: Tensor, futures: Tensor) -> None:
        """Take in futures ``[n k f c h w]`` of one row, each after its context ``[n c_frames c h w]``."""
        repeated = repeat(context, "n ... -> n k ...", k=futures.shape[1])
        clips = rearrange(torch.cat([repeated, futures], dim=2), "n k ... -> (n k) ...")
        self.add(row, clips, context.shape[1])

    def distances(self) -> dict[Span, dict[str, float]]:
        """Return span -> row -> distance from "true"; spans that are too short are left out."""
        distances: dict[Span, dict[str, float]] = {}
        for (span, row), statistics in self._statistics.items():
            if row != "true":
                distances.setdefault(span, {})[row] = statistics.distance(self._statistics[span, "true"])
        return distances
