"""Records of a run: counters, evaluations, metrics and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.files import write_text_atomic
from ivideogpt.data.render import side_by_side, to_uint8, write_gif
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.mbrl.run_reader import EVALUATIONS
from ivideogpt.mbrl.world_model_batches import as_floats
from ivideogpt.worldmodel.world_model import WorldModel

#: Frames a second of the pictures.
FRAME_RATE = 10


@dataclass
class Progress:
    """Counters of a run, saved with each checkpoint.

    Attributes:
        random: generator of every draw that is not PyTorch's.
        agent_updates, world_model_updates: updates so far.
        imagined_transitions: so far.
        seconds: spent on each part: environment, agent, world_model, imagination, evaluation.
        evaluations: lines of evaluations.jsonl.
    """

    random: np.random.Generator
    agent_updates: int = 0
    world_model_updates: int = 0
    imagined_transitions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time that passes inside to ``seconds[part]``."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def write_evaluations(self, folder: Path) -> None:
        """Write all evaluations so far; lines beyond a resumed checkpoint disappear."""
        lines = "".join(json.dumps(evaluation) + "\n" for evaluation in self.evaluations)
        write_text_atomic(folder / EVALUATIONS, lines)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        counters = {name: value for name, value in vars(self).items() if name != "random"}
        return {"counters": json.dumps(counters), "random": json.dumps(self.random.bit_generator.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        vars(self).update(json.loads(state["counters"]))
        self.random.bit_generator.state = json.loads(state["random"])


class MetricMeans:
    """Means of the metrics since the last logged line."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, **metrics: Tensor | float) -> None:
        """Add one value of each."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the means and begin again."""
        means = {name: float(np.mean([float(value) for value in values])) for name, values in self._values.items()}
        self._values.clear()
        return means


def write_evaluation_gif(folder: Path, env_frames: int, frames: np.ndarray) -> Path:
    """Write the first episode of an evaluation, uint8 ``[t h w 3]``, into a run's folder."""
    path = folder / "pictures" / f"evaluation-{env_frames:09d}.gif"
    write_gif(path, frames, fps=FRAME_RATE)
    return path


def write_imagination_gif(
    folder: Path, env_frames: int, model: WorldModel, replay: ReplayBuffer, sampling: Sampling, *, raw_actions: bool
) -> Path:
    """Write the end of the newest real episode beside the world model's forecast for the same actions.

    Args:
        folder: of the run.
        env_frames: simulator frames so far.
        model: the world model.
        replay: real episodes.
        sampling: of the forecast.
        raw_actions: see ``ImaginedVectorEnv``.
    """
    episode = max(replay, key=lambda stored: stored.number).episode
    context, actions = model.context_frames, episode.actions
    assert actions is not None
    length = min(len(episode), context + 2 * model.segment_frames())
    start = len(episode) - length
    real = as_floats(episode.frames[None, start:])
    chosen = torch.from_numpy(actions[start + context - 1 : -1])[None].to(model.device)
    if raw_actions:
        chosen = model.normalize_actions(chosen)
    imagined = model.imagine(real[:, :context].to(model.device), chosen, sampling=sampling).frames.cpu()
    rows = {"real": real[0], "imagined": torch.cat([real[0, :context], imagined[0]])}
    path = folder / "pictures" / f"imagined-{env_frames:09d}.gif"
    pictures = {name: to_uint8(row) for name, row in rows.items()}
    write_gif(path, side_by_side(pictures, context_frames=context), fps=FRAME_RATE)
    return path
