"""Imagine the future of a held-out PushT episode, and compare it with the recording.

python examples/predict.py
"""

from pathlib import Path

import torch
from einops import rearrange

from ivideogpt import Sampling, WorldModel
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.data.render import side_by_side, write_mp4, write_strip
from ivideogpt.metrics.image import psnr
from ivideogpt.worldmodel.shipped import SHIPPED

HORIZON = 14


def main(output: Path = Path("outputs/example-predict")) -> None:
    model = WorldModel.from_pretrained("pusht-64")
    episode = load_episodes(SHIPPED["pusht-64"] / "episodes.safetensors")[0]
    count = model.context_frames
    clip = episode.window(0, count + HORIZON)

    # Recorded: uint8 [t h w c] and raw actions. The model takes [b t c h w] and normalized actions.
    frames = rearrange(torch.from_numpy(clip.frames).float() / 255, "t h w c -> 1 t c h w")
    actions = model.normalize_actions(torch.from_numpy(clip.actions))[None]
    # actions[t] leads from frame t to t + 1: the first that matters is applied at the last context frame.
    imagined = model.imagine(frames[:, :count], actions[:, count - 1 : -1], sampling=Sampling(greedy=True))

    true, last = frames[:, count:], frames[:, count - 1 : count]
    print(f"imagined  {psnr(imagined.frames, true).mean():.1f} dB")
    print(f"copy last {psnr(last.expand_as(true), true).mean():.1f} dB")

    future = rearrange(imagined.frames[0].mul(255).round().byte(), "t c h w -> t h w c").numpy()
    rows = {"true": clip.frames, "imagined": clip.frames.copy()}
    rows["imagined"][count:] = future
    write_strip(output / "imagined.png", rows, context_frames=count)
    write_mp4(output / "imagined.mp4", side_by_side(rows, context_frames=count), fps=5)
    print(output)


if __name__ == "__main__":
    main()
