"""Measures a model on held-out clips: everything that ``ivideogpt evaluate`` reports.

    found = evaluate(model, clips, settle(PROTOCOLS["single"], model))
    found.estimate("imagined", "psnr", of="best", whole=True)     # as papers report it, with a 95 % interval

Two passes and a few short ones: the clips as the tokenizer shows them; then every future, from which only numbers and a
few pictures are kept; then, for a model with actions, one future of each clip under wrong actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.accumulators import Tally
from ivideogpt.evaluation.action_following import Following, measure_following, wrong_actions
from ivideogpt.evaluation.frame_errors import IMAGE_METRICS, FrameScores, Metric, best_of
from ivideogpt.evaluation.intervals import Bootstrap, Estimate
from ivideogpt.evaluation.protocols import Protocol
from ivideogpt.evaluation.reward_accuracy import RewardScores, measure_rewards, reward_rows
from ivideogpt.evaluation.rollouts import Clips, Measures, imagine_clips, imagine_futures
from ivideogpt.evaluation.token_accuracy import TokenScores, score_tokens
from ivideogpt.evaluation.trust_signals import Trust, measure_trust
from ivideogpt.evaluation.video_distances import Span, VideoDistances
from ivideogpt.worldmodel.world_model import WorldModel

#: How the futures of a clip become one number.
Of = Literal["best", "mean", "first"]

# Clips encoded at once.
_TOGETHER = 25


@dataclass
class Evaluation:
    """What was measured on n clips with k futures of f frames each.

    Attributes:
        protocol: settled.
        clips: what it was measured on.
        seed: of the futures.
        metrics: numbers a frame.
        scores: row -> key of a metric -> its scores. Rows: "imagined" (k futures), "reconstruction" (the tokenizer
            alone: nobody can be better who draws its tokens), "copy_last" (the last context frame, standing still), and
            one future each under `following.wrong_actions`.
        entropies: float32 ``[n k f]``: of the choice of a token, nats, mean over the tokens of a frame.
        disagreement: float32 ``[n f]``: how far the futures of a clip are from their mean, root mean square of a
            pixel, 0 to 1; None for a single future.
        repetition: share of repeated tokens, see `tokens.repetition`: "imagined" ``[n k]``, "true" ``[n]``, and of
            whole frames, "imagined_frames" and "true_frames".
        tokens: of the true tokens, or None.
        video_name: what the distances of videos are called; "": not measured.
        video: span ("whole_clip", "future") -> row -> distance from the true videos.
        objects: row -> figures of the domain; empty: it has none.
        rewards: row -> imagined rewards ``[n k f]``; empty: the model has none, or the clips have none to compare with.
        goal_conditioned: the first context frame is the goal, which no transition leaves.
        pictures: row -> uint8 ``[n f c h w]``: first future ("imagined"), the best by PSNR ("best") and others.
        seconds: what imagining the futures took.
    """

    protocol: Protocol
    clips: Clips
    seed: int
    metrics: Sequence[Metric]
    scores: dict[str, dict[str, FrameScores]]
    entropies: Tensor
    disagreement: Tensor | None
    repetition: dict[str, Tensor]
    tokens: TokenScores | None
    video_name: str = ""
    video: dict[Span, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, dict[str, float]] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    goal_conditioned: bool = False
    pictures: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples of the clips that all intervals are from."""
        return Bootstrap(len(self.clips))

    def clip_values(self, row: str, key: str, *, of: Of = "first", whole: bool = False) -> Tensor:
        """One number a clip, ``[n]``: mean over time, then the best, the mean or the first of its futures.

        Args:
            row: of ``scores``.
            key: of a metric.
            of: how the futures become one number.
            whole: over the whole clip, as the official evaluation does it, or over the future alone.
        """
        values = self.scores[row][key].over_time(whole)
        if of == "best":
            return best_of(values, next(metric.higher for metric in self.metrics if metric.key == key))
        return values.mean(dim=1) if of == "mean" else values[:, 0]

    def estimate(self, row: str, key: str, *, of: Of = "first", whole: bool = False) -> Estimate:
        """The mean of `clip_values` over the clips, with its interval."""
        return self.bootstrap.mean(self.clip_values(row, key, of=of, whole=whole))

    def curve(self, row: str, key: str) -> list[Estimate]:
        """The mean over clips and futures at each future frame."""
        return [self.bootstrap.mean(values) for values in self.scores[row][key].future.mean(dim=1).T]

    def curve_first(self, row: str, key: str) -> list[Estimate]:
        """As `curve`, of the first futures alone: what a row under wrong actions is compared with."""
        return [self.bootstrap.mean(values) for values in self.scores[row][key].future[:, 0].T]

    @cached_property
    def following(self) -> Following | None:
        """What the actions are good for; None for an action-free model."""
        rows = [row for row in self.scores if row.endswith("_actions")]
        if not rows:
            return None
        rows += ["imagined", "reconstruction", "copy_last"]
        errors, ratios = ({row: self.clip_values(row, key) for row in rows} for key in ("mse", "psnr"))
        return measure_following(errors, ratios, self.bootstrap)

    @cached_property
    def reward_rows(self) -> dict[str, Tensor]:
        """See `rewards.reward_rows`, and "true": the recorded rewards ``[n f]``; empty where nothing is compared."""
        true, count = self.clips.rewards, self.protocol.context_frames
        if not self.rewards or true is None or count is None:
            return {}
        return {"true": true[:, count - 1 : -1]} | reward_rows(
            self.rewards, true, count, goal_conditioned=self.goal_conditioned
        )

    @cached_property
    def reward_scores(self) -> dict[str, RewardScores]:
        """How near the rewards of each row are to the recorded ones."""
        rows = self.reward_rows
        return {row: measure_rewards(rows[row], rows["true"], self.bootstrap) for row in rows if row != "true"}

    @cached_property
    def trust(self) -> dict[str, Trust]:
        """How well "entropy" and, with several futures, "disagreement" tell the error of the first future."""
        error = self.frame_errors
        found = {"entropy": measure_trust(self.entropies[:, 0], error, self.bootstrap)}
        if self.disagreement is not None:
            found["disagreement"] = measure_trust(self.disagreement, error, self.bootstrap)
        return found

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
    metrics: Sequence[Metric] = IMAGE_METRICS,
    video: VideoDistances | None = None,
    measures: Measures | None = None,
    tokens: bool = True,
    follow: bool = True,
) -> Evaluation:
    """Measures a model.

    Args:
        model: the world model.
        clips: what it is measured on, of the length of the protocol.
        protocol: settled for this model; says how many futures there are and how they are drawn.
        seed: future j of clip i draws the same whatever the number of clips, futures and rows in a batch.
        batch_size: rows imagined together.
        metrics: numbers a frame; PSNR, SSIM and MSE must be among them.
        video: distances of videos, without any video yet; None: none.
        measures: more figures, of the domain.
        tokens: score the true tokens.
        follow: imagine under wrong actions too, where the model takes actions.

    Raises:
        UserError: batch_size is less than 1, or clips, protocol and model do not fit each other.
    """
    count = model.context_frames
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    if not len(clips) or clips.frames.shape[1] != protocol.clip_frames:
        raise UserError(
            f"{len(clips)} clips of {clips.frames.shape[1]} frames came; expected clips of {protocol.clip_frames}"
        )
    actions = None
    if model.action_dim:
        if clips.actions is None:
            raise UserError(f"this model needs actions of {model.action_dim} numbers, and the clips have none")
        actions = model.normalize_actions(clips.actions[:, count - 1 : -1])
    tally = Tally(model, clips, protocol.samples, metrics, video, keep_all=measures is not None)
    scored = _read_known(tally, actions if tokens else None, batch_size, tokens)
    options = {"sampling": protocol.sampling, "seed": seed, "batch_size": batch_size}
    context, seconds = clips.frames[:, :count], 0.0
    for futures in imagine_futures(model, context, actions, protocol.horizon, samples=protocol.samples, **options):
        tally.add(futures)
        seconds += futures.seconds
    if actions is not None and follow:
        for row, steer in wrong_actions(model, actions).items():
            label = f"with {row.replace('_', ' ')}"
            found = imagine_clips(model, context, steer, protocol.horizon, label=label, **options)
            tally.add_row(row, found.frames, range(len(clips)))
            if found.rewards is not None:
                tally.rewards[row] = found.rewards[:, None].float()
    return Evaluation(
        protocol=protocol,
        clips=clips,
        seed=seed,
        metrics=metrics,
        scores=tally.scores(),
        entropies=tally.entropies,
        disagreement=tally.disagreement if protocol.samples > 1 else None,
        repetition=tally.repetition,
        tokens=scored,
        video_name=video.name if video is not None else "",
        video=video.distances() if video is not None else {},
        objects=_measure_objects(clips.frames[:, count:], clips.frames[:, count - 1], tally.pictures, measures),
        rewards={} if clips.rewards is None else tally.rewards,
        goal_conditioned=model.config.goal_conditioned,
        pictures=tally.pictures,
        seconds=seconds,
    )


def _read_known(tally: Tally, actions: Tensor | None, batch_size: int, tokens: bool) -> TokenScores | None:
    """The pass over the true frames: reconstruction, copy, and the true tokens."""
    model, parts = tally.model, []
    starts = range(0, len(tally.clips), min(batch_size, _TOGETHER))
    for start in tqdm(starts, desc="reading the clips", unit="batch", leave=False, disable=None):
        clips = range(start, min(start + starts.step, len(tally.clips)))
        ids, _ = model.tokenizer.tokenize(tally.true(clips).to(model.dtype))
        tally.known(clips, model.tokenizer.detokenize(ids).clamp(0, 1).float(), ids)
        if tokens:
            steer = None if actions is None else actions[clips.start : clips.stop].to(model.device)
            parts.append(score_tokens(model, ids, steer))
    if not tokens:
        return None
    loss, accuracy = (torch.cat([getattr(part, name) for part in parts]) for name in ("loss", "accuracy"))
    return TokenScores(loss, accuracy, parts[0].frames)


def _measure_objects(
    true: Tensor, context_frame: Tensor, pictures: dict[str, Tensor], measures: Callable | None
) -> dict[str, dict[str, float]]:
    if measures is None:
        return {}
    return {row: measures(true, found, context_frame) for row, found in pictures.items() if row != "best"}
