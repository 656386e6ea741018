"""``ivideogpt demo``: imagine a held-out episode with the shipped PushT model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table, write_pictures
from ivideogpt.core.errors import UserError

DEMO = "pusht-64"


def demo(
    checkpoint: Annotated[str, tyro.conf.Positional] = DEMO,
    *,
    episode: int = 3,
    horizon: int = 14,
    seed: int = 0,
    temperature: float | None = None,
    greedy: bool = False,
    output: Path = Path("outputs/demo"),
) -> None:
    """Imagine the future of a held-out PushT episode from two frames and its actions, beside the truth.

    Args:
        checkpoint: a PushT model.
        episode: number of a held-out episode that comes with the model.
        horizon: frames to imagine.
        seed: of the sampled tokens.
        temperature: of sampling; default: the checkpoint's.
        greedy: take the likeliest token instead of sampling.
        output: folder for the video and the strip.
    """
    import torch

    from ivideogpt.commands.inputs import choose_sampling
    from ivideogpt.data.episode_files import load_episodes
    from ivideogpt.evaluation.held_out import Clips
    from ivideogpt.evaluation.rollouts import imagine_with_progress
    from ivideogpt.metrics.image import psnr, ssim
    from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED
    from ivideogpt.worldmodel.world_model import WorldModel

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
    sampling = choose_sampling(model, temperature=temperature, greedy=greedy)
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
