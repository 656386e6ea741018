"""Pictures of a run: what the agent does, and what it would have imagined of it."""

from __future__ import annotations

from pathlib import Path

import torch

from ivideogpt.data.render import side_by_side, to_uint8, write_gif
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.mbrl.agent_evaluation import Evaluated
from ivideogpt.mbrl.replay_buffer import Replay
from ivideogpt.mbrl.world_model_batches import as_floats
from ivideogpt.worldmodel.world_model import WorldModel

#: Frames a second of the pictures.
RATE = 10


def show_evaluation(folder: Path, frames: int, found: Evaluated) -> Path:
    """Writes the first episode of an evaluation as a GIF; ``frames`` were trained on before."""
    path = folder / "pictures" / f"evaluation-{frames:09d}.gif"
    write_gif(path, found.frames, fps=RATE)
    return path


def show_imagination(
    folder: Path, frames: int, model: WorldModel, replay: Replay, sampling: Sampling, *, model_units: bool
) -> Path:
    """Writes the newest real episode's last steps beside what the world model imagines of the same actions, as a GIF.

    Args:
        folder: of the run.
        frames: trained on before.
        model: the world model.
        replay: of real episodes.
        sampling: how tokens are drawn.
        model_units: see ``WorldConfig``.
    """
    episode = max(replay, key=lambda kept: kept.number).episode
    context, done = model.context_frames, episode.actions
    assert done is not None
    length = min(len(episode), context + 2 * model.segment_frames())
    start = len(episode) - length
    real = as_floats(episode.frames[None, start:])
    actions = torch.from_numpy(done[start + context - 1 : -1])[None].to(model.device)
    if not model_units:
        actions = model.normalize_actions(actions)
    imagined = model.imagine(real[:, :context].to(model.device), actions, sampling=sampling).frames.cpu()
    rows = {"real": real[0], "imagined": torch.cat([real[0, :context], imagined[0]])}
    path = folder / "pictures" / f"imagined-{frames:09d}.gif"
    write_gif(path, side_by_side({name: to_uint8(row) for name, row in rows.items()}, context_frames=context), fps=RATE)
    return path
