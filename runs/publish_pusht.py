"""Write the checkpoint of a PushT run as it ships, measured as stored, with a few held-out episodes.

A token model is stored in bfloat16, a picture model in float32: its forecast reads its own frames for ever.

python runs/publish_pusht.py runs/pusht-64/training --test datasets/pusht-test --out runs/pusht-64/checkpoint
"""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import tyro

from ivideogpt import Episode, WorldModel
from ivideogpt.core.config import load_json, to_dict
from ivideogpt.data.episode_files import save_episodes
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.evaluation.calibration import METADATA_KEY
from ivideogpt.evaluation.domains import DOMAINS
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.protocols import PROTOCOLS, settle
from ivideogpt.evaluation.pusht_protocol import HORIZON, contact_windows, moving_starts
from ivideogpt.worldmodel.config import ActionSpace
from ivideogpt.worldmodel.shipped import EPISODES_FILE

SIDE = 512.0


def publish(
    run: tyro.conf.Positional[Path],
    *,
    test: Path,
    out: Path,
    name: str = "pusht-64",
    facts: Path | None = None,
    measured: int = 64,
    shipped: int = 8,
) -> None:
    """Write the checkpoint.

    Args:
        run: folder of the run, or a checkpoint.
        test: store of held-out episodes.
        out: folder of the checkpoint.
        name: of the model.
        facts: JSON file with more metadata for the model card, such as the hours and what the model cannot do.
        measured: held-out episodes that are measured.
        shipped: episodes with a moving block that lie in the checkpoint.
    """
    episodes = list(EpisodeStore(test))
    model = WorldModel.from_pretrained(run)
    space = ActionSpace(names=("x", "y"), low=(0.0, 0.0), high=(SIDE, SIDE), units=("px", "px"), pointer=True)
    metadata: dict[str, object] = {"license": "mit", "data": f"PushT episodes; held out: {len(episodes)}"}
    metadata |= {} if facts is None else load_json(facts)
    model.config = replace(model.config, name=name, action_space=space, metadata=metadata)
    save(model, episodes, out, shipped)
    # measure what was stored, then store the figures
    stored = WorldModel.from_pretrained(out)
    windows = contact_windows(episodes[:measured], stored.context_frames + HORIZON)
    protocol = settle(PROTOCOLS["pusht"], stored, horizon=HORIZON)
    evaluation = evaluate(stored, Clips.from_episodes(windows), protocol, domain=DOMAINS["pusht"], tokens=False)
    figures = {row: evaluation.figures(row) for row in evaluation.scores}
    metadata |= {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "held_out_results": {f"{name}: {key}": round(x, 3) for name, row in figures.items() for key, x in row.items()},
    }
    if evaluation.calibration is not None:
        metadata[METADATA_KEY] = to_dict(evaluation.calibration)
    stored.config = replace(stored.config, metadata=metadata)
    save(stored, episodes, out, shipped)
    print(f"{out}: {figures['imagined']['psnr']:.2f} dB, copy of the last frame {figures['copy_last']['psnr']:.2f} dB")


def save(model: WorldModel, episodes: Sequence[Episode], folder: Path, count: int) -> None:
    """Save the model with the first ``count`` episodes in which the block moves; ``meta["start"]`` tells where."""
    moving = [(episode, moving_starts(episode, model.context_frames + HORIZON)) for episode in episodes]
    chosen = [replace(x, meta={**x.meta, "start": starts[0]}) for x, starts in moving if starts][:count]
    dtype = torch.bfloat16 if model.has_tokens else torch.float32
    model.save_pretrained(folder, dtype=dtype, also=lambda inside: save_episodes(inside / EPISODES_FILE, chosen))


if __name__ == "__main__":
    tyro.cli(publish)
