"""``ivideogpt demo``, ``train-demo`` and ``eval-demo``: the shipped PushT model, used, made and measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from ivideogpt.commands.output import check_folder, print_json, print_table, write_pictures
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes, save_episodes
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.evaluation.pusht_metrics import pusht_measures
from ivideogpt.evaluation.rollouts import Clips, imagine_with_progress, rollout_figures
from ivideogpt.metrics.image import psnr, ssim
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED
from ivideogpt.worldmodel.world_model import WorldModel

DEMO = "pusht-64"
HORIZON = 14
#: px of 512 that the block must travel in a clip for it to count as moved (8 px of 64).
MOVED = 64.0


def demo(
    checkpoint: Annotated[str, tyro.conf.Positional] = DEMO,
    *,
    episode: int = 3,
    horizon: int = HORIZON,
    seed: int = 0,
    temperature: float | None = None,
    greedy: bool = False,
    output: Path = Path("outputs/demo"),
) -> None:
    """Imagine the future of a held-out PushT episode from two frames and its actions, beside the truth.

    Args:
        checkpoint: a PushT model.
        episode: which of the shipped held-out episodes; the default's gain over a copy is the median of theirs.
        horizon: frames to imagine.
        seed: of the draw.
        temperature: of the draw; default: the checkpoint's.
        greedy: take the likeliest token.
        output: folder for the video and the strip.
    """
    check_folder(output)
    model = WorldModel.from_pretrained(checkpoint)
    episodes = load_episodes(SHIPPED[DEMO] / EPISODES_FILE)
    if not 0 <= episode < len(episodes):
        raise UserError(f"episode is {episode}; expected 0 to {len(episodes) - 1}, those that come with the model")
    recorded = episodes[episode]
    count = model.context_frames
    if not 1 <= horizon <= len(recorded) - count:
        raise UserError(f"horizon is {horizon}; episode {episode} has actions for 1 to {len(recorded) - count} frames")
    start = min(int(recorded.meta.get("start", 0)), len(recorded) - count - horizon)
    clips = Clips.from_episodes([recorded.window(start, count + horizon)])
    frames = clips.frames.float() / 255
    assert clips.actions is not None
    actions = model.normalize_actions(clips.actions[:, count - 1 : -1])
    sampling = shown_sampling(model, temperature, greedy)
    imagined, seconds = imagine_with_progress(model, frames[:, :count], actions, horizon, sampling=sampling, seed=seed)
    true, copy = frames[:, count:], frames[:, count - 1 : count].expand(-1, horizon, -1, -1, -1)
    rows = {"true": frames[0], "imagined": torch.cat([frames[0, :count], imagined.frames[0]])}
    paths = write_pictures(output, "demo", rows, count, fps=5, gif=False)
    figures = {
        name: (float(psnr(x, true).mean()), float(psnr(x, true)[:, -1].mean()), float(ssim(x, true).mean()))
        for name, x in (("imagined", imagined.frames), ("copy of the last frame", copy))
    }
    headings = [f"{recorded.key}, {horizon} frames", "PSNR (dB)", f"at frame {horizon}", "SSIM"]
    print_table(headings, [[name, *values] for name, values in figures.items()])
    print(f"{horizon / seconds:.1f} frames/s")
    for path in paths:
        print(path)
    print_json(
        {
            "psnr": figures["imagined"][0],
            "psnr_copy_last": figures["copy of the last frame"][0],
            "ssim": figures["imagined"][2],
            "frames_per_second": horizon / seconds,
            "output": output,
        }
    )


def train_demo(
    *,
    folder: Path = Path("runs/pusht-64"),
    data: Path = Path("datasets"),
    tokenizer_steps: int | None = None,
    forecast_steps: int | None = None,
    transformer_steps: int | None = None,
    train_seeds: str | None = None,
    test_seeds: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Train the shipped model again, from simulator to checkpoint; go on where a stopped run ended.

    Args:
        folder: of the run; the finished model is in its "checkpoint" folder.
        data: where collected episodes are kept.
        tokenizer_steps: another number of updates than the recipe's.
        forecast_steps: another number of updates for each training of the forecast.
        transformer_steps: another number of updates than the recipe's.
        train_seeds: other episodes than the recipe's, as first:stop.
        test_seeds: other held-out episodes than the recipe's, as first:stop.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16.
    """
    from ivideogpt.commands.pusht_pipeline import train_pusht
    from ivideogpt.commands.training_stages import Machine
    from ivideogpt.configs.pusht import PushTTraining

    training = PushTTraining()
    training = replace(
        training, train_seeds=train_seeds or training.train_seeds, test_seeds=test_seeds or training.test_seeds
    )
    recipe, stages = training.recipe, training.recipe.forecasts
    if tokenizer_steps is not None:
        continuous = min(recipe.tokenizer.continuous_steps, tokenizer_steps // 2)
        tokenizer = replace(recipe.tokenizer, steps=tokenizer_steps, continuous_steps=continuous)
        recipe = replace(recipe, tokenizer=tokenizer)
    if forecast_steps is not None:
        recipe = replace(recipe, forecasts=tuple(replace(stage, steps=forecast_steps) for stage in stages))
    if transformer_steps is not None:
        recipe = replace(recipe, transformer=replace(recipe.transformer, steps=transformer_steps))
    machine = Machine(device=device, precision=precision)
    model, test = train_pusht(replace(training, recipe=recipe), folder, data, machine)
    figures = publish(model, test, folder / "checkpoint")
    print_figures(figures)
    print_json({**summary(figures), "output": folder / "checkpoint"})


def publish(model: WorldModel, test: Sequence[Episode], folder: Path) -> dict[str, dict[str, float]]:
    """Writes a checkpoint as it ships: in bfloat16, measured as stored, with a few held-out episodes in it."""

    def save(what: WorldModel) -> None:
        episodes = shipped_episodes(test)
        what.save_pretrained(
            folder, dtype=torch.bfloat16, also=lambda inside: save_episodes(inside / EPISODES_FILE, episodes)
        )

    save(model)
    stored = WorldModel.from_pretrained(folder)
    figures = held_out_figures(stored, test)
    about = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "held_out_results": {f"{name}: {key}": round(x, 3) for name, row in figures.items() for key, x in row.items()},
    }
    stored.config = replace(stored.config, metadata={**stored.config.metadata, **about})
    save(stored)
    return figures


def eval_demo(
    checkpoint: Annotated[str, tyro.conf.Positional] = DEMO,
    *,
    seeds: str = "20000:20020",
    temperature: float | None = None,
    greedy: bool = False,
    seed: int = 0,
    output: Path = Path("outputs/eval-demo"),
) -> None:
    """Measure a PushT model on fresh episodes from the simulator, beside what each figure must be compared with.

    Args:
        checkpoint: a PushT model.
        seeds: of the episodes to collect, first:last; from 10000 on they were never trained on.
        temperature: of the draw; default: the checkpoint's.
        greedy: take the likeliest token.
        seed: of the draw.
        output: folder for strips of the first clips.
    """
    from ivideogpt.envs.record.pusht_episodes import collect_pusht, parse_seeds

    check_folder(output)
    model = WorldModel.from_pretrained(checkpoint)
    windows = contact_windows(list(collect_pusht(range(*parse_seeds(seeds)))), model.context_frames + HORIZON)
    clips = Clips.from_episodes(windows)
    sampling = shown_sampling(model, temperature, greedy)
    figures = rollout_figures(model, clips, sampling=sampling, seed=seed, measures=demo_measures)
    count = model.context_frames
    for index in range(min(4, len(windows))):
        frames = clips.frames[index : index + 1].float() / 255
        assert clips.actions is not None
        actions = model.normalize_actions(clips.actions[index : index + 1, count - 1 : -1])
        imagined = model.imagine(frames[:, :count], actions, sampling=sampling, seed=seed)
        rows = {"true": frames[0], "imagined": torch.cat([frames[0, :count], imagined.frames[0]])}
        write_pictures(output, windows[index].key, rows, count, fps=5, gif=False)
    print_figures(figures)
    print(f"strips of the first clips: {output}")
    print_json({**summary(figures), "clips": len(windows), "figures": figures, "output": output})


def shown_sampling(model: WorldModel, temperature: float | None = None, greedy: bool = False) -> Sampling:
    """How the demo draws: at the checkpoint's temperature unless told otherwise."""
    return Sampling(temperature=model.config.temperature if temperature is None else temperature, greedy=greedy)


def demo_measures(true: Tensor, imagined: Tensor, context_frame: Tensor) -> dict[str, float]:
    """The PushT measures, read from the pictures."""
    return pusht_measures(true, imagined, context_frame=context_frame)


def held_out_figures(model: WorldModel, episodes: Sequence[Episode], count: int = 50) -> dict[str, dict[str, float]]:
    """The figures of the first ``count`` held-out episodes."""
    windows = contact_windows(episodes[:count], model.context_frames + HORIZON)
    return rollout_figures(model, Clips.from_episodes(windows), sampling=shown_sampling(model), measures=demo_measures)


def contact_windows(episodes: Sequence[Episode], length: int) -> list[Episode]:
    """One window of each episode: the first in which the block moves 8 px of 64, else the middle one."""
    windows = []
    for episode in episodes:
        moved = moving_starts(episode, length)
        windows.append(episode.window(moved[0] if moved else (len(episode) - length) // 2, length))
    return windows


def moving_starts(episode: Episode, length: int) -> list[int]:
    """Every fourth first frame of ``length`` frames during whose future the block moves 8 px of 64."""
    starts = range(0, len(episode) - length + 1, 4)
    return [start for start in starts if block_travel(episode, start + 1, start + length - 1) >= MOVED]


def shipped_episodes(episodes: Sequence[Episode], count: int = 8) -> list[Episode]:
    """The first ``count`` episodes in which the block moves; ``meta["start"]`` tells where."""
    found = [(episode, moving_starts(episode, 2 + HORIZON)) for episode in episodes]
    return [replace(x, meta={**x.meta, "start": starts[0]}) for x, starts in found if starts][:count]


def block_travel(episode: Episode, first: int, last: int) -> float:
    """Distance in px of 512 between the block's positions at two frames."""
    assert episode.state is not None
    return float(np.linalg.norm(episode.state[last, 2:4] - episode.state[first, 2:4]))


COLUMNS = {
    "psnr": "PSNR",
    "psnr_last": "at last",
    "ssim": "SSIM",
    "changed_psnr": "changed px",
    "agent_near": "agent 2 px",
    "agent_near_last": "at last",
    "agent_missing": "missing",
    "block_error_moved": "block px",
}


def print_figures(figures: dict[str, dict[str, float]]) -> None:
    """One row a method."""
    headings = ["held-out clips", *COLUMNS.values()]
    print_table(headings, [[name.replace("_", " "), *(v[key] for key in COLUMNS)] for name, v in figures.items()])


def summary(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures a reader looks for first."""
    imagined = figures["imagined"]
    return {
        "psnr": imagined["psnr"],
        "psnr_copy_last": figures["copy_last"]["psnr"],
        "ssim": imagined["ssim"],
        "frames_per_second": imagined["frames_per_second"],
    }
