"""Measurement of a model on held-out clips: all figures that ``ivideogpt evaluate`` reports.

evaluation = evaluate(model, clips, settle(PROTOCOLS["single"], model))
evaluation.estimate("imagined", "psnr", of="best", whole=True)     # as papers report it, with a 95 % interval
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.errors import UserError
from ivideogpt.data.process_pool import TaskPool, as_pool
from ivideogpt.evaluation.accumulators import Columns, FutureAccumulator, ScoreTable, to_pixels
from ivideogpt.evaluation.action_following import Following, measure_following, wrong_actions
from ivideogpt.evaluation.calibration import Calibration, fit_calibration, frame_changes
from ivideogpt.evaluation.domains import Domain
from ivideogpt.evaluation.frame_errors import FRAME_METRICS, FrameScores, Metric, best_of
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.intervals import Bootstrap, Estimate
from ivideogpt.evaluation.protocols import Protocol
from ivideogpt.evaluation.reward_accuracy import RewardScores, last_reward, measure_rewards, reward_rows
from ivideogpt.evaluation.rollouts import clip_seeds, imagine_futures
from ivideogpt.evaluation.token_accuracy import TokenScores, frozen_frames, repetition, score_tokens
from ivideogpt.evaluation.trust_signals import Trust, measure_trust
from ivideogpt.evaluation.video_distances import Span, VideoDistances
from ivideogpt.metrics.video import FeatureStatistics
from ivideogpt.worldmodel.world_model import WorldModel

#: Reduction of the futures of a clip to one number.
Of = Literal["best", "mean", "first"]


@dataclass
class Evaluation:
    """Figures of n clips with k futures of f frames each.

    Attributes:
        protocol: settled.
        clips: the clips.
        seed: of the futures.
        metrics: numbers a frame.
        scores: row -> key of a metric -> its scores. Rows: "imagined" (k futures), "reconstruction" (the tokenizer
            alone, a bound for every model that draws its tokens), "copy_last" (the last context frame, standing still),
            and one future each under `action_following.wrong_actions`.
        entropies: float32 ``[n k f]`` of the tokens in nats, mean over a frame; None for a model that draws no tokens.
        disagreement: float32 ``[n f]``: standard deviation of a pixel over the futures of a clip, root mean square over
            the frame, 0 to 1; None for a single future.
        repetition: share of repeated tokens, see `token_accuracy.repetition`: "imagined" ``[n k]``, "true" ``[n]``, and
            of whole frames, "imagined_frames" and "true_frames".
        tokens: scores of the true tokens, or None.
        video_name: name of the distance of videos; "": not measured.
        video: span ("whole_clip", "future") -> row -> distance from the true videos.
        objects: row -> figures of the domain; empty: it has none.
        objects_by_frame: row -> name -> figure of the domain at each future frame.
        model_figures: figures of the domain for the model itself, as JSON values.
        rewards: row -> imagined rewards ``[n k f]``; empty: the model has none, or the clips have none to compare with.
        goal_conditioned: the first context frame is the goal, which no transition leaves.
        pictures: row -> uint8 ``[n f c h w]``: the first future ("imagined"), the best by PSNR ("best"), and others.
        seconds: of the imagination of the futures.
    """

    protocol: Protocol
    clips: Clips
    seed: int
    metrics: Sequence[Metric]
    scores: dict[str, dict[str, FrameScores]]
    entropies: Tensor | None
    disagreement: Tensor | None
    repetition: dict[str, Tensor]
    tokens: TokenScores | None
    video_name: str = ""
    video: dict[Span, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, dict[str, float]] = field(default_factory=dict)
    objects_by_frame: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    model_figures: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    goal_conditioned: bool = False
    pictures: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples of the clips for all intervals."""
        return Bootstrap(len(self.clips))

    def clip_values(self, row: str, key: str, *, of: Of = "first", whole: bool = False) -> Tensor:
        """Return one number a clip, ``[n]``: mean over time, then the best, the mean or the first of its futures.

        Args:
            row: of ``scores``.
            key: of a metric.
            of: reduction of the futures.
            whole: over the whole clip, as in the official evaluation, or over the future alone.
        """
        values = self.scores[row][key].over_time(whole)
        if of == "best":
            return best_of(values, next(metric.higher for metric in self.metrics if metric.key == key))
        return values.mean(dim=1) if of == "mean" else values[:, 0]

    def estimate(self, row: str, key: str, *, of: Of = "first", whole: bool = False) -> Estimate:
        """Return the mean of `clip_values` over the clips, with its interval."""
        return self.bootstrap.mean(self.clip_values(row, key, of=of, whole=whole))

    def curve(self, row: str, key: str) -> list[Estimate]:
        """Return the mean over clips and futures at each future frame."""
        return [self.bootstrap.mean(values) for values in self.scores[row][key].future.mean(dim=1).T]

    def curve_first(self, row: str, key: str) -> list[Estimate]:
        """Return `curve` of the first futures alone, to compare with a row under wrong actions."""
        return [self.bootstrap.mean(values) for values in self.scores[row][key].future[:, 0].T]

    def figures(self, row: str) -> dict[str, float]:
        """Return the plain means of a row over its first futures, and its figures of the domain."""
        ratios = self.scores[row]["psnr"].future[:, 0]
        values = {"psnr": float(ratios.mean()), "psnr_last": float(ratios[:, -1].mean())}
        values["ssim"] = float(self.scores[row]["ssim"].future[:, 0].mean())
        return values | self.objects.get(row, {})

    @property
    def frames_per_second(self) -> float:
        """Imagined frames a second, all futures of all clips."""
        return len(self.clips) * self.protocol.samples * self.protocol.horizon / self.seconds

    @cached_property
    def following(self) -> Following | None:
        """The effect of the actions; None for an action-free model."""
        rows = [row for row in self.scores if row.endswith("_actions")]
        if not rows:
            return None
        rows += [row for row in ("imagined", "reconstruction", "copy_last") if row in self.scores]
        errors, ratios = ({row: self.clip_values(row, key) for row in rows} for key in ("mse", "psnr"))
        return measure_following(errors, ratios, self.bootstrap)

    @cached_property
    def reward_rows(self) -> dict[str, Tensor]:
        """See `reward_accuracy.reward_rows`, and "true": the recorded rewards ``[n f]``; empty without any."""
        true, count = self.clips.rewards, self.protocol.context_frames
        if not self.rewards or true is None or count is None:
            return {}
        return {"true": true[:, count - 1 : -1]} | reward_rows(
            self.rewards, true, count, goal_conditioned=self.goal_conditioned
        )

    @cached_property
    def reward_scores(self) -> dict[str, RewardScores]:
        """The accuracy of the rewards of each row."""
        rows = self.reward_rows
        return {row: measure_rewards(rows[row], rows["true"], self.bootstrap) for row in rows if row != "true"}

    @cached_property
    def trust(self) -> dict[str, Trust]:
        """The relation of "entropy" and, with several futures, "disagreement" to the error of the first future."""
        signals = {} if self.entropies is None else {"entropy": self.entropies[:, 0]}
        if self.disagreement is not None:
            signals["disagreement"] = self.disagreement
        return {name: measure_trust(signal, self.frame_errors, self.bootstrap) for name, signal in signals.items()}

    @cached_property
    def calibration(self) -> Calibration | None:
        """The expected error of a frame; None for too few clips."""
        psnr = self.scores["imagined"]["psnr"].future[:, 0]
        if self.entropies is not None:
            return fit_calibration(psnr, "entropy", self.entropies[:, 0])
        last = self.clips.frames[:, self.clips.frames.shape[1] - psnr.shape[1] - 1]
        return fit_calibration(psnr, "change", frame_changes(self.pictures["imagined"], last))

    @property
    def frame_errors(self) -> Tensor:
        """Root mean squared error of each frame of the first future, 0 to 1, ``[n f]``."""
        return self.scores["imagined"]["mse"].future[:, 0].sqrt()


@torch.no_grad()
def evaluate(
    model: WorldModel,
    clips: Clips,
    protocol: Protocol,
    *,
    seed: int = 0,
    batch_size: int = 32,
    metrics: Sequence[Metric] | None = None,
    video: VideoDistances | None = None,
    domain: Domain | None = None,
    tokens: bool = True,
    follow: bool = True,
    workers: int | TaskPool = 0,
) -> Evaluation:
    """Measure a model.

    Args:
        model: the world model.
        clips: of the length of the protocol.
        protocol: settled for this model.
        seed: future j of clip i draws the same whatever the number of clips, futures and rows in a batch.
        batch_size: rows imagined together.
        metrics: numbers a frame; PSNR, SSIM and MSE must be among them; None: those of `FRAME_METRICS`.
        video: distances of videos, without any video yet; None: none.
        domain: measures of the world that the clips show; None: none.
        tokens: score the true tokens.
        follow: imagine under wrong actions too, where the model takes actions.
        workers: 0: this process; or a pool, whose processes measure a batch of clips each.

    Raises:
        UserError: batch_size is less than 1, or clips, protocol and model do not fit each other.
    """
    actions = _check_inputs(model, clips, protocol, batch_size)
    wrong = wrong_actions(model, actions) if actions is not None and follow else {}
    measurement = _Measurement(
        model,
        protocol,
        tuple(FRAME_METRICS.values()) if metrics is None else tuple(metrics),
        video,
        batch_size=batch_size,
        keep_pictures=domain is not None,
        score_tokens=tokens and model.has_tokens,
    )
    last = last_reward(clips.rewards, model.context_frames, goal_conditioned=model.config.goal_conditioned)
    batches = _batches(clips, actions, wrong, last, seed, max(batch_size // protocol.samples, 1))
    per_clip = (protocol.samples + len(wrong)) * protocol.horizon
    with tqdm(total=len(clips) * per_clip, desc="imagining", unit="frame", leave=False, disable=None) as bar:
        if workers == 0:
            parts = [measurement.measure(batch, on_step=bar.update) for batch in batches]
        else:
            finished: dict[int, _Figures] = {}
            for position, part in as_pool(workers).run(measurement.measure, batches):
                finished[position] = part
                bar.update(len(batches[position].frames) * per_clip)
            parts = [finished[position] for position in range(len(batches))]
    for part in parts[1:]:
        parts[0].join(part)
    evaluation = measurement.evaluation(clips, seed, parts[0])

    # figures of the domain
    if domain is not None:
        count, pictures = model.context_frames, evaluation.pictures
        future, last = clips.frames[:, count:], clips.frames[:, count - 1]
        measured = {row: x for row, x in pictures.items() if row != "best"}
        evaluation.objects = {row: domain.measure(future, x, last) for row, x in measured.items()}
        curves = {row: x for row, x in measured.items() if not row.endswith("_actions")}
        evaluation.objects_by_frame = {row: domain.measure_frames(future, x) for row, x in curves.items()}
        evaluation.model_figures = domain.measure_model(model, clips)
    return evaluation


@dataclass(frozen=True)
class _Batch:
    """Clips that are measured together, on the CPU.

    Attributes:
        frames: uint8 ``[n t c h w]``.
        actions: ``[n p+f a]`` in model units, past ones first, or None.
        wrong: name of a row -> its wrong actions of the same shape.
        seeds: of each clip.
        last_rewards: float32 ``[n]`` of the transition to the last context frame, or None.
    """

    frames: Tensor
    actions: Tensor | None
    wrong: dict[str, Tensor]
    seeds: list[int]
    last_rewards: Tensor | None


def _batches(
    clips: Clips,
    actions: Tensor | None,
    wrong: dict[str, Tensor],
    last_rewards: Tensor | None,
    seed: int,
    together: int,
) -> list[_Batch]:
    batches = []
    for start in range(0, len(clips), together):
        rows = slice(start, min(start + together, len(clips)))
        wrong_rows = {name: values[rows].cpu() for name, values in wrong.items()}
        seeds = clip_seeds(seed, range(rows.start, rows.stop))
        own_actions = None if actions is None else actions[rows].cpu()
        before = None if last_rewards is None else last_rewards[rows].cpu()
        batches.append(_Batch(clips.frames[rows].cpu(), own_actions, wrong_rows, seeds, before))
    return batches


@dataclass
class _Figures:
    """Figures of some clips; they leave the networks behind."""

    scores: ScoreTable = field(default_factory=ScoreTable)
    columns: Columns = field(default_factory=Columns)
    pictures: Columns = field(default_factory=Columns)
    rewards: Columns = field(default_factory=Columns)
    token_scores: list[TokenScores] = field(default_factory=list)
    video: dict[tuple[Span, str], FeatureStatistics] = field(default_factory=dict)
    seconds: float = 0.0

    def join(self, later: _Figures) -> None:
        """Append the figures of later clips."""
        for name in ("scores", "columns", "pictures", "rewards"):
            getattr(self, name).join(getattr(later, name))
        self.token_scores += later.token_scores
        for key, statistics in later.video.items():
            self.video[key].join(statistics)
        self.seconds += later.seconds


class _Measurement:
    """The measurement of a batch of clips."""

    def __init__(
        self,
        model: WorldModel,
        protocol: Protocol,
        metrics: tuple[Metric, ...],
        video: VideoDistances | None,
        *,
        batch_size: int,
        keep_pictures: bool,
        score_tokens: bool,
    ) -> None:
        self.model, self.protocol, self.metrics, self.video = model, protocol, metrics, video
        self.batch_size, self.keep_pictures, self.score_tokens = batch_size, keep_pictures, score_tokens

    @torch.no_grad()
    def measure(self, batch: _Batch, on_step: Any = None) -> _Figures:
        """Measure clips.

        Args:
            batch: the clips.
            on_step: called after each imagined step, with the number of frames.
        """
        model, count, figures = self.model, self.model.context_frames, _Figures()
        video = None if self.video is None else self.video.fresh()
        frames = batch.frames.to(model.device).float() / 255
        actions = None if batch.actions is None else batch.actions.to(model.device)
        context, true = frames[:, :count], frames[:, count:]
        options = {"seeds": batch.seeds, "sampling": self.protocol.sampling, "on_step": on_step}
        options["last_rewards"] = batch.last_rewards

        # reconstruction: the tokenizer alone; a picture model has none and shows its context as it is
        decoded, ids = frames, None
        if model.has_tokens:
            ids = model.tokenize(frames.to(model.dtype))
            decoded = model.detokenize(ids).clamp(0, 1).float()
            figures.scores.add(self.metrics, "reconstruction", decoded[:, None, count:], true)
        figures.scores.add_context(self.metrics, decoded[:, :count], context)

        # copy of the last context frame
        copy = context[:, -1:].expand_as(true)
        figures.scores.add(self.metrics, "copy_last", copy[:, None], true)

        # futures
        self._add_true_tokens(figures, ids, actions, len(true))
        futures = self._add_futures(figures, video, decoded[:, :count], context, true, actions, options)
        self._add_wrong_futures(figures, context, true, batch.wrong, options)

        # videos and pictures of the other rows
        if video is not None:
            video.add("true", frames, count)
            if model.has_tokens:
                video.add("reconstruction", decoded, count)
            video.add_futures("copy_last", decoded[:, :count], copy[:, None])
            if self.protocol.samples > 1:
                video.add_futures("imagined_first", decoded[:, :count], futures.first[:, None])
        if self.keep_pictures:
            if model.has_tokens:
                figures.pictures.add("reconstruction", to_pixels(decoded[:, count:]))
            figures.pictures.add("copy_last", to_pixels(copy))
        figures.video = {} if video is None else video.statistics
        return figures

    def _add_true_tokens(self, figures: _Figures, ids: Tensor | None, actions: Tensor | None, clips: int) -> None:
        """Measure the true tokens: how often they repeat, and how likely they are."""
        if ids is None:
            codes = torch.zeros(clips, self.protocol.horizon, 0, device=self.model.device)
        else:
            layout = self.model.layout
            codes = layout.split(ids, self.model.context_frames)[1][:, layout.lead_frames :]
        figures.columns.add("true", repetition(codes))
        figures.columns.add("true_frames", frozen_frames(codes))
        if self.score_tokens and ids is not None:
            figures.token_scores.append(score_tokens(self.model, ids, actions))

    def _add_futures(
        self,
        figures: _Figures,
        video: VideoDistances | None,
        decoded_context: Tensor,
        context: Tensor,
        true: Tensor,
        actions: Tensor | None,
        options: dict[str, Any],
    ) -> FutureAccumulator:
        """Imagine all futures of the clips and measure them."""
        accumulator, samples = FutureAccumulator(true, self.metrics), self.protocol.samples
        horizon, sizes = self.protocol.horizon, {"samples": samples, "batch_size": self.batch_size}
        for futures in imagine_futures(self.model, context, actions, horizon, **sizes, **options):
            accumulator.add(futures)
            if video is not None:
                video.add_futures("imagined", decoded_context, futures.frames)
        figures.scores.add_scores("imagined", accumulator.scores())
        figures.columns.add("entropies", accumulator.values("entropies"))
        figures.columns.add("imagined", accumulator.values("repetition"))
        figures.columns.add("imagined_frames", accumulator.values("frozen_frames"))
        figures.columns.add("disagreement", accumulator.disagreement())
        if accumulator.has("rewards"):
            figures.rewards.add("imagined", accumulator.values("rewards"))
        figures.pictures.add("imagined", to_pixels(accumulator.first))
        if samples > 1:
            figures.pictures.add("best", to_pixels(accumulator.best))
        figures.seconds += accumulator.seconds
        return accumulator

    def _add_wrong_futures(
        self,
        figures: _Figures,
        context: Tensor,
        true: Tensor,
        wrong: dict[str, Tensor],
        options: dict[str, Any],
    ) -> None:
        """Imagine one future of each clip under each row of wrong actions and measure it."""
        for row, actions in wrong.items():
            (futures,) = imagine_futures(
                self.model, context, actions.to(self.model.device), self.protocol.horizon, **options
            )
            figures.scores.add(self.metrics, row, futures.frames, true)
            figures.pictures.add(row, to_pixels(futures.frames[:, 0]))
            if futures.rewards is not None:
                figures.rewards.add(row, futures.rewards.float())

    def evaluation(self, clips: Clips, seed: int, figures: _Figures) -> Evaluation:
        """Return the figures of all clips."""
        numbers, video = figures.columns.tensors(), self.video
        if video is not None:
            video.join(figures.video)
        entropies = numbers["entropies"]
        return Evaluation(
            protocol=self.protocol,
            clips=clips,
            seed=seed,
            metrics=self.metrics,
            scores=figures.scores.scores(),
            entropies=None if entropies.isnan().all() else entropies,
            disagreement=numbers["disagreement"] if self.protocol.samples > 1 else None,
            repetition={name: numbers[name] for name in ("imagined", "imagined_frames", "true", "true_frames")},
            tokens=TokenScores.joined(figures.token_scores) if self.score_tokens else None,
            video_name=video.name if video is not None else "",
            video=video.distances() if video is not None else {},
            rewards={} if clips.rewards is None else figures.rewards.tensors(),
            goal_conditioned=self.model.config.goal_conditioned,
            pictures=figures.pictures.tensors(),
            seconds=figures.seconds,
        )


def _check_inputs(model: WorldModel, clips: Clips, protocol: Protocol, batch_size: int) -> Tensor | None:
    """Check that the parts fit; return the actions ``[n p+f a]`` in model units, past ones first, or None."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    if not len(clips) or clips.frames.shape[1] != protocol.clip_frames:
        raise UserError(
            f"there are {len(clips)} clips of {clips.frames.shape[1]} frames; expected clips of {protocol.clip_frames}"
        )
    if not model.action_dim:
        return None
    if clips.actions is None:
        raise UserError(f"this model needs actions of {model.action_dim} numbers, and the clips have none")
    return model.normalize_actions(clips.actions[:, model.context_frames - 1 - model.past_actions : -1])
