"""Where the numbers of an evaluation gather: of each batch of futures only numbers and a few pictures stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ivideogpt.evaluation.frame_errors import FrameScores, Metric
from ivideogpt.evaluation.rollouts import Clips, Futures
from ivideogpt.evaluation.token_accuracy import frozen_frames, repetition
from ivideogpt.evaluation.video_distances import VideoDistances
from ivideogpt.worldmodel.world_model import WorldModel

# Clips measured at once where a row comes as one tensor of all clips.
_TOGETHER = 25


class Tally:
    """The numbers of all clips, filled in batch by batch; every one of them is known in the end.

    Attributes:
        entropies, disagreement, repetition, pictures: as in `evaluate.Evaluation`.
        rewards: row -> imagined rewards ``[n k f]``; empty for a model without them.
    """

    def __init__(
        self,
        model: WorldModel,
        clips: Clips,
        samples: int,
        metrics: Sequence[Metric],
        video: VideoDistances | None,
        keep_all: bool,
    ) -> None:
        """Makes room.

        Args:
            model: the world model.
            clips: what is measured.
            samples: futures of each clip.
            metrics: numbers a frame, "psnr" among them.
            video: distances of videos, or None.
            keep_all: keep pictures of every row, not only of those that are shown.
        """
        self.model, self.clips, self.metrics, self.video, self.keep_all = model, clips, metrics, video, keep_all
        n, t = clips.frames.shape[:2]
        self.count, horizon = model.context_frames, t - model.context_frames
        self.context = torch.empty(n, self.count, *clips.frames.shape[2:])
        self.context_scores = {metric.key: torch.empty(n, self.count) for metric in metrics}
        self.rows: dict[str, dict[str, Tensor]] = {}
        self.samples, self.horizon = samples, horizon
        self.entropies = torch.empty(n, samples, horizon)
        self.disagreement = torch.empty(n, horizon)
        self.repetition = {
            name: torch.empty(n, samples) if name.startswith("imagined") else torch.empty(n)
            for name in ("imagined", "imagined_frames", "true", "true_frames")
        }
        self.pictures: dict[str, Tensor] = {}
        self.rewards: dict[str, Tensor] = {}
        self._best = torch.full((n,), -torch.inf)
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def true(self, clips: range) -> Tensor:
        """Whole clips ``[n t c h w]`` in [0, 1] on the model's device."""
        return self.clips.frames[clips.start : clips.stop].to(self.model.device).float() / 255

    def known(self, clips: range, found: Tensor, ids: Tensor) -> None:
        """Takes in clips as the tokenizer shows them, ``[n t c h w]``, and their tokens."""
        rows, true = slice(clips.start, clips.stop), self.true(clips)
        self.context[rows] = found[:, : self.count].cpu()
        for metric in self.metrics:
            score = metric.measure(found[:, : self.count], true[:, : self.count])
            self.context_scores[metric.key][rows] = score.cpu()
        _, codes = self.model.layout.split(ids, self.count)
        self.repetition["true"][rows] = repetition(codes).cpu()
        self.repetition["true_frames"][rows] = frozen_frames(codes).cpu()
        copy = true[:, self.count - 1 : self.count].expand(-1, self.horizon, -1, -1, -1)
        if self.video is not None:
            self.video.add("true", true, self.count)
        for row, frames in (("reconstruction", found[:, self.count :]), ("copy_last", copy)):
            self.add_row(row, frames, clips, keep=self.keep_all)
            self._add_video(row, frames[:, None], rows)

    def add(self, futures: Futures) -> None:
        """Takes in some futures of some clips."""
        rows = slice(futures.clips.start, futures.clips.stop)
        columns = slice(futures.samples.start, futures.samples.stop)
        k = len(futures.samples)
        scores = self._measure(rearrange(futures.frames, "n k ... -> (n k) ..."), futures.clips, k)
        for key, score in scores.items():
            self._table("imagined", key, self.samples)[rows, columns] = rearrange(score, "(n k) f -> n k f", k=k)
        self.entropies[rows, columns] = futures.entropies.cpu()
        if futures.rewards is not None:
            table = self.rewards.setdefault("imagined", torch.full_like(self.entropies, torch.nan))
            table[rows, columns] = futures.rewards.float().cpu()
        self.repetition["imagined"][rows, columns] = repetition(futures.ids).cpu()
        self.repetition["imagined_frames"][rows, columns] = frozen_frames(futures.ids).cpu()
        if futures.samples.start == 0:
            self._keep("imagined", futures.frames[:, 0], rows)
            if self.samples > 1:
                self._add_video("imagined_first", futures.frames[:, :1], rows)
        self._add_video("imagined", futures.frames, rows)
        if self.samples > 1:
            self._keep_best(futures.frames, rearrange(scores["psnr"], "(n k) f -> n k f", k=k).mean(dim=-1), rows)
            self._disagree(futures, rows)

    def add_row(self, row: str, frames: Tensor, clips: range, *, keep: bool = True) -> None:
        """Takes in one future of each clip, ``[n f c h w]``, of another row than "imagined"."""
        rows = slice(clips.start, clips.stop)
        if keep:
            self._keep(row, frames, rows)
        for start in range(0, len(frames), _TOGETHER):
            piece = range(clips.start + start, min(clips.start + start + _TOGETHER, clips.stop))
            scores = self._measure(frames[start : start + _TOGETHER].to(self.model.device), piece, 1)
            for key, score in scores.items():
                self._table(row, key, 1)[piece.start : piece.stop, 0] = score

    def scores(self) -> dict[str, dict[str, FrameScores]]:
        """What was measured so far."""
        return {
            row: {key: FrameScores(self.context_scores[key], table) for key, table in tables.items()}
            for row, tables in self.rows.items()
        }

    def _measure(self, frames: Tensor, clips: range, k: int) -> dict[str, Tensor]:
        """Every metric of futures ``[(n k) f c h w]``, on the CPU: ``[(n k) f]``."""
        true = repeat(self.true(clips)[:, self.count :], "n ... -> (n k) ...", k=k)
        return {metric.key: metric.measure(frames, true).cpu() for metric in self.metrics}

    def _table(self, row: str, key: str, samples: int) -> Tensor:
        tables = self.rows.setdefault(row, {})
        if key not in tables:
            tables[key] = torch.full((len(self.clips), samples, self.horizon), torch.nan)
        return tables[key]

    def _keep(self, row: str, frames: Tensor, rows: slice) -> None:
        if row not in self.pictures:
            self.pictures[row] = torch.zeros_like(self.clips.frames[:, self.count :])
        self.pictures[row][rows] = _pixels(frames)

    def _keep_best(self, frames: Tensor, ratios: Tensor, rows: slice) -> None:
        found, places = ratios.max(dim=1)
        for offset, clip in enumerate(range(rows.start, rows.stop)):
            if found[offset] > self._best[clip]:
                self._best[clip] = found[offset]
                self._keep("best", frames[offset : offset + 1, places[offset]], slice(clip, clip + 1))

    def _disagree(self, futures: Futures, rows: slice) -> None:
        """Variance of the pixels over all futures, which may come in several batches of the same clips."""
        if futures.samples.start == 0:
            self._sum = self._squares = None
        frames = futures.frames.double()
        total, squares = frames.sum(dim=1), frames.square().sum(dim=1)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
        if futures.samples.stop == self.samples:
            variance = (self._squares / self.samples - (self._sum / self.samples) ** 2).clamp(min=0)
            self.disagreement[rows] = variance.mean(dim=(-3, -2, -1)).sqrt().float().cpu()

    def _add_video(self, row: str, futures: Tensor, rows: slice) -> None:
        """Futures ``[n k f c h w]`` behind their contexts as the tokenizer shows them."""
        if self.video is None:
            return
        context = repeat(self.context[rows].to(futures.device), "n ... -> n k ...", k=futures.shape[1])
        self.video.add(row, rearrange(torch.cat([context, futures], dim=2), "n k ... -> (n k) ..."), self.count)


def _pixels(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8 on the CPU."""
    return (frames.clamp(0, 1) * 255).round().byte().cpu()
