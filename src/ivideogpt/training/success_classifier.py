"""Training of a success classifier on recorded frames, its threshold, and its scores on real and imagined frames.

    frames = label_frames(episodes, config)
    classifier = train_classifier(config, SuccessClassifier(config.network), frames, run)
    calibrate(classifier, *halves(label_frames(held_out, config)), config.precision)
    score(classifier, imagine_frames(world, held_out, config))

A frame is labelled by the array ``success`` of its episode where there is one, else by the reward of the transition
that led to it, else it is one of the last frames of an episode that succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName, adamw, check_descent, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.evaluation.intervals import LEVEL, RESAMPLES
from ivideogpt.models.success_classifier import (
    ClassifierConfig,
    ClassifierScore,
    SuccessClassifier,
)
from ivideogpt.training.weight_average import ExponentialAverage
from ivideogpt.worldmodel.world_model import WorldModel

# Thresholds that are compared, at most.
_MOST_THRESHOLDS = 1_000
#: Array of an episode, bool ``[t]``, True where the transition from frame t to t + 1 succeeds.
SUCCESS = "success"


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Settings of a success classifier.

    Attributes:
        network: its sizes.
        reward_above: a frame that a transition with a reward above this led to is a success; None: rewards are not
            read.
        last_frames: of an episode that succeeded, these last frames are successes where nothing else says so.
        precision: least precision of the threshold: the lower end of its 95 % interval on held-out episodes.
        horizon: frames that the world model imagines from a recorded start, for the score on imagined frames.
        imagined_starts: most of these starts.
        steps: updates.
        batch_size: frames of an update, half of them successes.
        noise: most standard deviation of noise on a frame, in [0, 1], so that imagined frames are judged too.
        shift: most shift of a frame in px; 0 where the place decides.
        learning_rate: peak; warms up, then follows ``schedule``.
        schedule: "cosine" or "constant".
        warmup_steps: updates of the warm-up.
        weight_decay: of matrices and kernels.
        betas: of AdamW.
        clip_norm: largest gradient norm.
        average_decay: of the running average of the weights, which is the classifier.
        log_every, save_every: in updates.
        seed: of weights and batches.
    """

    network: ClassifierConfig = field(default_factory=ClassifierConfig)
    reward_above: float | None = None
    last_frames: int = 5
    precision: float = 0.95
    horizon: int = 14
    imagined_starts: int = 400
    steps: int = 2_000
    batch_size: int = 64
    noise: float = 0.03
    shift: int = 0
    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    average_decay: float = 0.995
    log_every: int = 100
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_descent(self)
        check_at_least(self, last_frames=1, precision=0, horizon=1, imagined_starts=1, steps=1, batch_size=2, noise=0)
        check_at_least(self, shift=0, seed=0)
        if self.precision > 1:
            raise UserError(f"precision is {self.precision}; expected at most 1")


@dataclass(frozen=True)
class LabelledFrames:
    """Frames with labels.

    Attributes:
        frames: uint8 ``[n h w 3]``.
        labels: bool ``[n]``, True for a success.
        episodes: int64 ``[n]``, number of the episode of each.
        instructions: one a frame, for classifiers that read them.
    """

    frames: np.ndarray
    labels: np.ndarray
    episodes: np.ndarray
    instructions: tuple[str, ...]

    def chosen(self, rows: np.ndarray) -> LabelledFrames:
        """Return some of the frames: bool ``[n]``, or numbers."""
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        words = tuple(self.instructions[int(row)] for row in numbers)
        return LabelledFrames(self.frames[numbers], self.labels[numbers], self.episodes[numbers], words)


def frame_labels(episode: Episode, success: np.ndarray | None, config: ClassifierTraining) -> np.ndarray:
    """Return a label a frame, float32 ``[t]``: 1 for success, 0 for none, NaN where nothing says so.

    Args:
        episode: with rewards or ``meta["success"]``.
        success: the array of that name, bool ``[t]``, of transitions; None: there is none.
        config: the rule.

    Raises:
        UserError: nothing in the episode tells a success.
    """
    labels = np.full(len(episode), np.nan, np.float32)
    if success is not None:
        labels[1:] = success[:-1]
        return labels
    if config.reward_above is not None and episode.rewards is not None:
        labels[1:] = episode.rewards[:-1] > config.reward_above
        return labels
    if "success" not in episode.meta:
        raise UserError(
            f"episode {episode.key!r} says nothing of success: it has no array 'success' and no meta 'success', and "
            f"{'no rewards' if episode.rewards is None else 'reward_above is not set'}; give --reward-above, or record "
            "episodes with success"
        )
    labels[:] = 0
    if episode.meta["success"]:
        labels[-config.last_frames :] = 1
    return labels


def label_frames(episodes: Sequence[tuple[Episode, np.ndarray | None]], config: ClassifierTraining) -> LabelledFrames:
    """Return all labelled frames of episodes, each with its array ``success`` or None.

    Raises:
        UserError: there are none, frames have another size, or an episode says nothing of success.
    """
    side = config.network.resolution
    frames, labels, numbers, words = [], [], [], []
    for number, (episode, success) in enumerate(episodes):
        if episode.frames.shape[1:3] != (side, side):
            height, width = episode.frames.shape[1:3]
            raise UserError(
                f"episode {episode.key!r} has frames of {width} x {height} px and the classifier takes {side} x "
                f"{side}; set --network.resolution, or record episodes of that size"
            )
        label = frame_labels(episode, success, config)
        rows = np.flatnonzero(np.isfinite(label))
        frames.append(episode.frames[rows])
        labels.append(label[rows] > 0)
        numbers.append(np.full(len(rows), number))
        words += [episode.instruction] * len(rows)
    if not frames:
        raise UserError("there are no episodes to label; give a store with some")
    return LabelledFrames(np.concatenate(frames), np.concatenate(labels), np.concatenate(numbers), tuple(words))


def train_classifier(
    config: ClassifierTraining,
    classifier: SuccessClassifier,
    data: LabelledFrames,
    run: Run,
    *,
    until: int | None = None,
) -> SuccessClassifier:
    """Train a classifier by binary cross-entropy on balanced batches, or go on where ``run`` stopped.

    Args:
        config: the settings; the schedule spans ``config.steps``.
        classifier: new.
        data: frames for training.
        run: its folder and device.
        until: stop after this many updates without changing the schedule.

    Returns:
        The running average of the classifier, in evaluation mode.

    Raises:
        UserError: all frames have the same label.
    """
    pools = [np.flatnonzero(data.labels), np.flatnonzero(~data.labels)]
    if not all(map(len, pools)):
        share = "none is" if not len(pools[0]) else "all are"
        raise UserError(
            f"of {len(data.labels):,} frames {share} a success; a classifier needs both: give other episodes, or "
            "another --reward-above"
        )
    classifier.to(run.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = ExponentialAverage(classifier, decay=config.average_decay)
    optimizer = adamw(
        classifier, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas
    )
    schedule = named_schedule(
        config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps
    )
    parts = {"classifier": classifier, "average": average, "optimizer": optimizer}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    classifier.train()
    for step in run.updates("classifier", done, last, clips=config.batch_size, unit="frame"):
        set_learning_rate(optimizer, schedule(step))
        # A batch depends on seed and step alone, so that a resumed run draws the same.
        random = np.random.default_rng([config.seed, step])
        half = config.batch_size // 2
        batch = data.chosen(np.concatenate([random.choice(pool, half) for pool in pools]))
        frames = augmented(batch.frames, config, random).to(run.device)
        labels = torch.from_numpy(batch.labels).to(run.device).float()
        with run.autocast():
            logits = classifier(frames, batch.instructions if config.network.words else None)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), config.clip_norm)
        optimizer.step()
        average.update(classifier)
        accuracy = ((logits > 0) == (labels > 0)).float().mean()
        run.log(step + 1, loss=loss.detach(), accuracy=accuracy)
        if run.is_save_step(step + 1, last=last):
            run.save(step + 1, **parts)
    return average.model.eval()


def augmented(frames: np.ndarray, config: ClassifierTraining, random: np.random.Generator) -> Tensor:
    """Return frames uint8 ``[b h w 3]`` as float ``[b c h w]`` in [0, 1], shifted and with noise."""
    if config.shift:
        padded = np.pad(frames, ((0, 0), *[(config.shift, config.shift)] * 2, (0, 0)), mode="edge")
        rows, columns = random.integers(0, 2 * config.shift + 1, (2, len(frames)))
        side = frames.shape[1]
        frames = np.stack([x[r : r + side, c : c + side] for x, r, c in zip(padded, rows, columns, strict=True)])
    pixels = rearrange(torch.from_numpy(frames), "b h w c -> b c h w").float() / 255
    if not config.noise:
        return pixels
    scale = config.noise * random.random((len(frames), 1, 1, 1), np.float32)
    return (pixels + torch.from_numpy(scale * random.standard_normal(pixels.shape, np.float32))).clamp(0, 1)


# Threshold and scores


def halves(data: LabelledFrames) -> tuple[LabelledFrames, LabelledFrames]:
    """Split frames into those of every second episode with a success and of every second without, and the rest."""
    first: list[int] = []
    succeeded = {int(number) for number in np.unique(data.episodes[data.labels])}
    for with_success in (True, False):
        numbers = [number for number in np.unique(data.episodes).tolist() if (number in succeeded) == with_success]
        first += numbers[::2]
    rows = np.isin(data.episodes, first)
    return data.chosen(rows), data.chosen(~rows)


def choose_threshold(
    probabilities: np.ndarray, labels: np.ndarray, episodes: np.ndarray, precision: float
) -> tuple[float, bool]:
    """Choose the threshold with the highest recall among those that have the precision in other episodes too.

    A threshold at which these frames alone just reach the precision misses it on half of all other episodes. So the
    lower end of the 95 % interval of the precision, over episodes, must reach it.

    Args:
        probabilities: float ``[n]`` of frames.
        labels: bool ``[n]``.
        episodes: int64 ``[n]``, number of the episode of each.
        precision: to reach.

    Returns:
        The threshold, and True; where no threshold reaches it, that of the highest lower end, and False.

    Raises:
        UserError: no frame is a success.
    """
    if not labels.any():
        raise UserError(
            "no held-out frame of the calibration half is a success, so there is no threshold to choose; give more "
            "held-out episodes with --held-out"
        )
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order].astype(np.float64)
    # frames with equal probabilities are counted together
    ends = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, _MOST_THRESHOLDS).round().astype(int))]
    _, numbers = np.unique(episodes[order], return_inverse=True)
    columns = np.searchsorted(ends, np.arange(len(order)))
    hits, counted = (np.zeros((numbers.max() + 1, len(ends))) for _ in range(2))
    np.add.at(hits, (numbers, columns), labels[order])
    np.add.at(counted, (numbers, columns), 1)
    hits, counted = hits.cumsum(axis=1), counted.cumsum(axis=1)
    count = len(hits)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    reached = (drawn @ hits) / np.maximum(drawn @ counted, 1)
    low = np.quantile(np.where(drawn @ counted > 0, reached, 1.0), (1 - LEVEL) / 2, axis=0)
    good = np.flatnonzero(low >= precision)
    column = good[-1] if len(good) else max(range(len(ends)), key=lambda index: (low[index], hits[:, index].sum()))
    end = ends[column]
    below = ordered[end + 1] if end + 1 < len(ordered) else 0.0
    return float((ordered[end] + below) / 2), bool(len(good))


def calibrate(
    classifier: SuccessClassifier, calibration: LabelledFrames, measured: LabelledFrames, precision: float
) -> SuccessClassifier:
    """Choose the threshold on some held-out frames, and measure it on others."""
    probabilities = _probabilities(classifier, calibration)
    threshold, reached = choose_threshold(probabilities, calibration.labels, calibration.episodes, precision)
    classifier.with_facts(threshold=threshold, target_precision=precision, reached_precision=reached)
    return classifier.with_facts(real=score(classifier, measured))


def score(classifier: SuccessClassifier, data: LabelledFrames) -> ClassifierScore:
    """Compare the judgement of a classifier with the labels of frames."""
    probabilities, labels = _probabilities(classifier, data), data.labels
    counted = probabilities >= classifier.facts.threshold
    hits, successes = int((counted & labels).sum()), int(labels.sum())
    return ClassifierScore(
        precision=hits / int(counted.sum()) if counted.any() else None,
        recall=hits / successes if successes else None,
        auc=area_under_curve(probabilities, labels),
        frames=len(labels),
        successes=successes,
    )


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of pairs of a success and another frame in which the success scores higher; ties count half."""
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / 2 / len(positive) / len(negative))


def imagine_frames(
    model: WorldModel,
    episodes: Sequence[tuple[Episode, np.ndarray | None]],
    config: ClassifierTraining,
    *,
    batch_size: int = 32,
) -> LabelledFrames:
    """Imagine held-out episodes again, with their own actions; a frame has the label of the real one at its step.

    Each episode is cut into windows of context and ``config.horizon`` frames. A wrong label is possible where the
    imagination has drifted away: it counts against the classifier.

    Args:
        model: the world model.
        episodes: with actions if the model takes some.
        config: horizon, number of starts and the rule of the labels.
        batch_size: windows that are imagined together.

    Raises:
        UserError: frames or actions do not fit the model, or no episode is long enough.
    """
    context, length = model.context_frames, model.context_frames + config.horizon
    windows = [
        (number, start)
        for number, (episode, _) in enumerate(episodes)
        for start in range(0, len(episode) - length + 1, config.horizon)
    ]
    if not windows or model.config.goal_conditioned:
        why = "is conditioned on a goal" if windows else f"needs {length} frames, and no held-out episode has so many"
        raise UserError(f"the world model {model.config.name} {why}; choose another --world or --horizon")
    kept = np.linspace(0, len(windows) - 1, min(len(windows), config.imagined_starts)).round().astype(int)
    frames, labels, numbers, words = [], [], [], []
    for first in range(0, len(kept), batch_size):
        batch = [windows[index] for index in kept[first : first + batch_size]]
        cut = [episodes[number][0].window(start, length) for number, start in batch]
        actions = None
        if model.action_dim:
            if any(episode.actions is None for episode in cut):
                raise UserError(f"{model.config.name} takes actions and held-out episodes have none; give others")
            raw = np.stack([episode.actions[context - 1 : -1] for episode in cut if episode.actions is not None])
            actions = model.normalize_actions(torch.from_numpy(raw).to(model.device))
        shown = rearrange(torch.from_numpy(np.stack([x.frames[:context] for x in cut])), "b t h w c -> b t c h w")
        imagined = model.session(shown, seed=[config.seed + index for index in range(first, first + len(cut))])
        pixels = imagined.rollout(actions, config.horizon).frames
        pixels = rearrange((pixels.clamp(0, 1) * 255).round().byte(), "b t c h w -> b t h w c").cpu().numpy()
        for (number, start), picture in zip(batch, pixels, strict=True):
            episode, success = episodes[number]
            label = frame_labels(episode, success, config)[start + context : start + length]
            usable = np.isfinite(label)
            frames.append(picture[usable])
            labels.append(label[usable] > 0)
            numbers.append(np.full(int(usable.sum()), number))
            words += [episode.instruction] * int(usable.sum())
    return LabelledFrames(np.concatenate(frames), np.concatenate(labels), np.concatenate(numbers), tuple(words))


def _probabilities(classifier: SuccessClassifier, data: LabelledFrames) -> np.ndarray:
    return classifier.probability(data.frames, data.instructions if classifier.config.words else None)
