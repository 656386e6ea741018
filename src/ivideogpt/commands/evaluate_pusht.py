"""``ivideogpt evaluate --protocol pusht``: measure a PushT model on fresh episodes from the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ivideogpt.commands.inputs import choose_sampling
from ivideogpt.commands.output import check_folder, print_json, print_table, write_pictures
from ivideogpt.core.config import save_json
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.envs.record.pusht_episodes import collect_pusht, parse_seeds
from ivideogpt.evaluation.pusht_protocol import HORIZON, SEEDS, contact_windows, measure_pusht
from ivideogpt.evaluation.rollouts import Clips
from ivideogpt.worldmodel.world_model import WorldModel

_PICTURES = 4
#: Heading of each figure in the table.
_COLUMNS = {
    "psnr": "PSNR",
    "psnr_last": "at last",
    "ssim": "SSIM",
    "changed_psnr": "changed px",
    "agent_near": "agent 2 px",
    "agent_near_last": "at last",
    "agent_missing": "missing",
    "block_error_moved": "block px",
}


def evaluate_pusht(
    checkpoint: str,
    *,
    data: str | None,
    seeds: str | None,
    temperature: float | None,
    top_k: int | None,
    seed: int,
    output: Path | None,
    device: str,
    int8: bool,
) -> None:
    """Measure a PushT model beside a copy of the last frame, the tokenizer alone and permuted actions.

    Raises:
        UserError: see `contact_windows`; both data and seeds were given.
    """
    if data is not None and seeds is not None:
        raise UserError(f"data is {data} and seeds is {seeds}; give a store, or the seeds of episodes to record")
    folder = output or Path("outputs") / "evaluate" / f"{Path(checkpoint).name}-pusht"
    check_folder(folder)
    model = WorldModel.from_pretrained(checkpoint, device=device, int8=int8)
    if data is None:
        episodes = list(collect_pusht(range(*parse_seeds(seeds or SEEDS))))
    else:
        episodes = [episode for episode in EpisodeStore(data) if episode.split == "test"]
    windows = contact_windows(episodes, model.context_frames + HORIZON)
    if not windows:
        raise UserError(f"{data} has no episodes of the split test; record some with seeds from 10000 on")
    sampling = choose_sampling(model, temperature=temperature, top_k=top_k)
    figures = measure_pusht(model, windows, sampling=sampling, seed=seed)
    _write_strips(folder, model, windows[:_PICTURES], sampling, seed)
    save_json(folder / "results.json", {"clips": len(windows), "figures": _finite(figures)})
    headings = ["held-out clips", *_COLUMNS.values()]
    print_table(headings, [[name.replace("_", " "), *(row[key] for key in _COLUMNS)] for name, row in figures.items()])
    print(f"strips of the first clips: {folder}")
    imagined = figures["imagined"]
    print_json(
        {
            "psnr": imagined["psnr"],
            "psnr_copy_last": figures["copy_last"]["psnr"],
            "ssim": imagined["ssim"],
            "frames_per_second": imagined["frames_per_second"],
            "clips": len(windows),
            "figures": figures,
            "output": folder,
        }
    )


def _write_strips(folder: Path, model: WorldModel, windows: Sequence[Episode], sampling: Sampling, seed: int) -> None:
    count = model.context_frames
    for window in windows:
        clips = Clips.from_episodes([window])
        frames = clips.frames.float() / 255
        actions = None if clips.actions is None else model.normalize_actions(clips.actions[:, count - 1 : -1])
        imagined = model.imagine(frames[:, :count], actions, sampling=sampling, seed=seed)
        rows = {"true": frames[0], "imagined": torch.cat([frames[0, :count], imagined.frames[0].cpu()])}
        write_pictures(folder, window.key, rows, count, fps=5, gif=False)


def _finite(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return the figures with null in the place of NaN."""
    return {
        row: {name: value if value == value else None for name, value in values.items()}
        for row, values in figures.items()
    }
