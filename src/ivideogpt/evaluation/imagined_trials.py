"""Success of a policy in a world model: trials from given start frames, with a classifier or the model as the judge.

    starts = simulated_starts(model, trials, settings)          # or recorded_starts(model, episodes, settings, ...)
    run_imagined_trials(model, judge, trials, starts, make_policy, settings, folder, steps=100)
    read_results(trials, folder)

An episode ends at a success, or after ``steps``. The judge sees frames alone: a success classifier, or the success
head of the model.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy, StateEstimator
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.start_states import GivenStarts
from ivideogpt.envs.vector import make_single
from ivideogpt.evaluation.calibration import frame_changes
from ivideogpt.evaluation.policy_trials import (
    PolicyMaker,
    PolicyTrial,
    TrialResult,
    TrialSettings,
    actions_of_row,
    waiting_trials,
    write_result,
)
from ivideogpt.models.success_classifier import SuccessClassifier
from ivideogpt.policies.scripted import ScriptedPolicy
from ivideogpt.worldmodel.world_model import WorldModel

#: Estimator of the simulator's state from pictures for scripts in the imagination, "module:function" that makes it.
STATE_ESTIMATORS: dict[str, str] = {"pusht": "ivideogpt.evaluation.pusht_state:pusht_state_estimator"}
#: Episodes that are imagined together.
ROWS = 32


@dataclass(frozen=True, kw_only=True)
class ImaginationSettings:
    """Settings of imagined trials beside `TrialSettings`.

    Attributes:
        steps: of an episode.
        reanchor_every: imagined frames between two encodings of the context; None: as the model was trained.
        rows: episodes that are imagined together.
        sampling: of the tokens; None: the checkpoint's.
    """

    steps: int
    reanchor_every: int | None = None
    rows: int = ROWS
    sampling: Sampling | None = None


@dataclass(frozen=True)
class TrialStart:
    """Start of an imagined trial.

    Attributes:
        frames: uint8 ``[f h w 3]``, the last is the first that the policy acts on.
        instruction: the task in words, or "".
        reward: of the transition to the last frame; NaN: unknown.
    """

    frames: np.ndarray
    instruction: str = ""
    reward: float = float("nan")


def simulated_starts(model: WorldModel, trials: Sequence[PolicyTrial], settings: TrialSettings) -> list[TrialStart]:
    """Return the starts of trials as the simulator shows them; the first frame is repeated as the past.

    Raises:
        UserError: the simulator cannot be made.
        MissingExtraError: it is not installed.
    """
    starts, task, environment = [], None, None
    for trial in trials:
        if trial.task != task:
            if environment is not None:
                environment.close()
            task = trial.task
            environment = make_single(task, image_size=model.resolution, **settings.environment_options)
        assert environment is not None
        frame, info = environment.reset(seed=trial.seed, options=dict(trial.reset_options))
        frames = np.repeat(frame[None], max(model.context_frames, settings.frame_stack), axis=0)
        starts.append(TrialStart(frames, str(info.get("instruction", ""))))
    if environment is not None:
        environment.close()
    return starts


def recorded_starts(
    model: WorldModel, episodes: Sequence[Episode], name: str, settings: TrialSettings, *, count: int
) -> tuple[list[PolicyTrial], list[TrialStart]]:
    """Return trials that begin with the first frames of recorded episodes.

    Raises:
        UserError: there are no episodes of enough frames, or their frames have another size than the model's.
    """
    needed, trials, starts = max(model.context_frames, settings.frame_stack), [], []
    for number, episode in enumerate(episodes):
        if len(episode) < needed or len(trials) == count:
            continue
        if episode.frames.shape[1] != model.resolution:
            raise UserError(
                f"episode {episode.key!r} has frames of {episode.frames.shape[1]} px and {model.config.name} imagines "
                f"{model.resolution} px; record or convert episodes of that size"
            )
        trials.append(PolicyTrial(task=name, seed=int(episode.meta.get("seed", number)), episode=number))
        starts.append(TrialStart(episode.frames[:needed], episode.instruction, episode.reward_before(needed - 1)))
    if not trials:
        raise UserError(f"none of the {len(episodes)} recorded episodes has {needed} frames; give longer ones")
    return trials, starts


def check_judge(model: WorldModel, classifier: SuccessClassifier | None) -> str:
    """Return the name of the judge of success.

    Raises:
        UserError: there is no classifier, and the model predicts no success.
    """
    if classifier is not None:
        return "classifier"
    reward = None if model.pictures is None else model.pictures.config.reward
    if not model.config.heads.termination and (reward is None or reward.success_above is None):
        raise UserError(
            f"the world model {model.config.name} predicts no success; give a success classifier with --classifier DIR "
            "(ivideogpt train-classifier)"
        )
    return "success head"


def state_estimator(task: str) -> StateEstimator | None:
    """Return the estimator of a simulator's state from pictures; None where there is none."""
    if task not in STATE_ESTIMATORS:
        return None
    module, _, function = STATE_ESTIMATORS[task].partition(":")
    return getattr(importlib.import_module(module), function)()


def run_imagined_trials(
    model: WorldModel,
    classifier: SuccessClassifier | None,
    trials: Sequence[PolicyTrial],
    starts: Sequence[TrialStart],
    make_policy: PolicyMaker,
    settings: TrialSettings,
    folder: Path,
    imagination: ImaginationSettings,
) -> Iterator[int]:
    """Imagine the trials that have no result yet; yield the number of finished ones after each group.

    Args:
        model: takes actions.
        classifier: judge of success; None: the success head of the model.
        trials: to play.
        starts: one a trial.
        make_policy: makes the policy of one trial.
        settings: what the policy sees, and the number of videos.
        folder: of ``trials/*.json`` and ``videos/*.mp4``.
        imagination: length of the episodes, and so on.

    Raises:
        UserError: the policy does not fit the frames or actions, or there is no judge.
    """
    check_judge(model, classifier)
    if settings.image_size not in (None, model.resolution):
        raise UserError(
            f"the policy sees pictures of {settings.image_size} px and {model.config.name} imagines "
            f"{model.resolution} px; give a policy for that size"
        )
    by_name = {trial.name: start for trial, start in zip(trials, starts, strict=True)}
    waiting = waiting_trials(trials, settings, folder)
    for first in range(0, len(waiting), imagination.rows):
        group = waiting[first : first + imagination.rows]
        chosen = [trial for trial, _ in group]
        given = [by_name[trial.name] for trial in chosen]
        policies = [make_policy(trial, model.action_dim, model.resolution) for trial in chosen]
        played = _Group(model, classifier, chosen, given, policies, settings, imagination).play()
        for (trial, with_video), (result, frames) in zip(group, played, strict=True):
            write_result(folder, trial, result, frames if with_video else None)
        yield len(group)


class _Group:
    """Episodes that are imagined together."""

    def __init__(
        self,
        model: WorldModel,
        classifier: SuccessClassifier | None,
        trials: Sequence[PolicyTrial],
        starts: Sequence[TrialStart],
        policies: Sequence[Policy],
        settings: TrialSettings,
        imagination: ImaginationSettings,
    ) -> None:
        self.model, self.trials, self.policies, self.stack = model, trials, policies, settings.frame_stack
        needs_state = any(isinstance(policy, ScriptedPolicy) for policy in policies)
        self.environment = ImaginedVectorEnv(
            model,
            GivenStarts(
                np.stack([start.frames for start in starts]),
                [start.instruction for start in starts],
                np.array([start.reward for start in starts], np.float32),
            ),
            num_envs=len(trials),
            horizon=imagination.steps,
            frame_stack=settings.frame_stack,
            autoreset_mode="disabled",
            reward=None if model.config.heads.reward else _no_reward,
            terminate=None if classifier is None else _judge(classifier, [start.instruction for start in starts]),
            state=state_estimator(trials[0].task) if needs_state else None,
            sampling=imagination.sampling,
            reanchor_every=imagination.reanchor_every,
        )

    def play(self) -> list[tuple[TrialResult, np.ndarray]]:
        """Return the result and the frames uint8 ``[t h w 3]`` of each trial."""
        start, environment, count = time.perf_counter(), self.environment, len(self.trials)
        observed, info = environment.reset(
            seed=[trial.seed for trial in self.trials], options={"indices": np.arange(count)}
        )
        words = info.get("instruction", [""] * count)
        for policy, trial, text in zip(self.policies, self.trials, words, strict=True):
            policy.reset([trial.seed], [str(text)])
        frames: list[list[np.ndarray]] = [[frame] for frame in self._newest(observed)]
        rewards: list[list[float]] = [[] for _ in range(count)]
        signals: list[list[float]] = [[] for _ in range(count)]
        success, over = np.zeros(count, bool), np.zeros(count, bool)
        while not over.all():
            actions = self._act(observed, info, over)
            shown, paid, terminated, truncated, infos = environment.chunk_step(actions, may_rest=True)
            for step, (pictures, details) in enumerate(zip(shown, infos, strict=True)):
                newest = self._newest(pictures)
                signal = self._signal(newest, frames, details)
                for row in np.flatnonzero(~over).tolist():
                    frames[row].append(newest[row])
                    rewards[row].append(float(paid[row, step]))
                    signals[row].append(float(signal[row]))
                success |= terminated[:, step] & ~over
                over = over | terminated[:, step] | truncated[:, step]
            observed, info = shown[-1], infos[-1]
        environment.close()
        seconds = (time.perf_counter() - start) / count
        results = [
            TrialResult(
                task=trial.task,
                seed=trial.seed,
                success=bool(success[row]),
                total_reward=float(np.sum(rewards[row])),
                steps=len(rewards[row]),
                seconds=round(seconds, 3),
                final_reward=rewards[row][-1],
                trust=float(np.mean(signals[row])),
            )
            for row, trial in enumerate(self.trials)
        ]
        return [(result, np.stack(frames[row])) for row, result in enumerate(results)]

    def _newest(self, observed: np.ndarray) -> np.ndarray:
        return observed[:, -1] if self.stack > 1 else observed

    def _act(self, observed: np.ndarray, info: dict[str, Any], over: np.ndarray) -> np.ndarray:
        """Return the actions ``[n c a]`` of all rows in units of the world model's data, 0 for rows that are over."""
        stacked = observed if self.stack > 1 else observed[:, None]
        actions: np.ndarray | None = None
        for row in np.flatnonzero(~over).tolist():
            state = {"state": info["state"][row : row + 1]} if "state" in info else {}
            chunk = actions_of_row(self.policies[row].act({"frames": stacked[row : row + 1]} | state))
            if actions is None:
                actions = np.zeros((len(over), *chunk.shape), np.float32)
            if chunk.shape != actions.shape[1:] or chunk.shape[1] != self.model.action_dim:
                raise UserError(
                    f"the policy gives actions of shape {list(chunk.shape)}; expected chunks of one length with "
                    f"{self.model.action_dim} numbers, which {self.model.config.name} takes"
                )
            actions[row] = chunk
        assert actions is not None
        space = self.environment.single_action_space
        share = (np.clip(actions, -1, 1) + 1) / 2
        return (space.low + share * (space.high - space.low)).astype(np.float32)  # type: ignore[attr-defined]

    def _signal(self, newest: np.ndarray, frames: list[list[np.ndarray]], details: dict[str, Any]) -> np.ndarray:
        """Return the signal of each new frame: token entropy, or the change since the start."""
        if "entropy" in details:
            return details["entropy"]
        first = torch.from_numpy(np.stack([row[0] for row in frames]))
        return frame_changes(torch.from_numpy(newest)[:, None], first)[:, 0].numpy()


def _judge(classifier: SuccessClassifier, instructions: Sequence[str]) -> Callable[..., np.ndarray]:
    """Return the condition of success of rows with these instructions."""
    if not classifier.config.words:
        return classifier.condition
    return lambda frames, actions, after: classifier.succeeds(after, instructions)


def _no_reward(frames: np.ndarray, actions: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.zeros(len(frames))
