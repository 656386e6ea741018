"""Trains a whole world model in seconds: a 16 px world in which an action moves a bright square.

python examples/train_tiny.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from ivideogpt import Episode, Sampling, WorldModel
from ivideogpt.core.run import Run
from ivideogpt.data.frames import EpisodeArrays
from ivideogpt.metrics.image import psnr
from ivideogpt.models.heads import Heads, HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.train.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.train.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig

# fmt: off
SHAPE = TokenizerConfig(
    resolution=16, block_channels=(32, 32), layers_per_block=1, latent_channels=8, norm_groups=0, pixel_unshuffle=2,
    context_codes=32, dynamics_codes=32, context_frames=1, patch_size=1, conditional=False, background=True,
)
HEADS = HeadsConfig(action_dim=2, action_on_tokens=True, slots=1 + SHAPE.layout.context_tokens)
DECODER = TransformerConfig(
    vocab_size=SHAPE.layout.vocab_size, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2, max_positions=128
)
# fmt: on


def episode(seed: int, length: int = 12) -> Episode:
    random = np.random.default_rng(seed)
    place, frames = random.integers(0, 4, 2), np.full((length, 16, 16, 3), 30, np.uint8)
    actions = np.zeros((length, 2), np.float32)
    for t in range(length):
        y, x = 4 * place
        frames[t, y : y + 4, x : x + 4] = (250, 200, 60)
        if t + 1 < length:  # the last row is padding: there is no next frame
            actions[t] = random.integers(-1, 2, 2)
            place = np.clip(place + actions[t].astype(int), 0, 3)
    return Episode(frames=frames, actions=actions, key=f"square_{seed}")


def main(tokenizer_steps: int = 150, transformer_steps: int = 300) -> float:
    data = EpisodeArrays.from_episodes([episode(seed) for seed in range(200)])
    with tempfile.TemporaryDirectory() as folder:
        first = TokenizerTraining(tokenizer=SHAPE, steps=tokenizer_steps, horizon=4, continuous_steps=tokenizer_steps // 3)
        tokenizer = train_tokenizer(first, data, Run(Path(folder) / "tokenizer", device="cpu", log_every=50))
        model = WorldModel(WorldModelConfig(context_frames=1, clip_frames=6, heads=HEADS), tokenizer, Transformer(DECODER), Heads(HEADS, 64))
        second = TransformerTraining(transformer=DECODER, heads=HEADS, steps=transformer_steps, batch_size=32, clip_frames=6, warmup_steps=20)
        model = train_transformer(second, model, data, Run(Path(folder) / "transformer", device="cpu", log_every=100))

    held_out = EpisodeArrays.from_episodes([episode(seed) for seed in range(1000, 1020)])
    clip = held_out.clips(held_out.starts[:, None] + torch.arange(6), context_frames=1)
    imagined = model.imagine(clip.frames[:, :1], clip.actions[:, :5], sampling=Sampling(greedy=True))
    true, last = clip.frames[:, 1:], clip.frames[:, :1]
    figure = psnr(imagined.frames, true).mean().item()
    print(f"held-out episodes: imagined {figure:.1f} dB, copy of the last frame {psnr(last.expand_as(true), true).mean():.1f} dB")
    return figure


if __name__ == "__main__":
    main()
