"""Train a whole world model on a CPU in seconds: in a 12 px world, actions move a bright square from cell to cell.

python examples/train_tiny.py
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from ivideogpt import Sampling, WorldModel
from ivideogpt.core.run import Run
from ivideogpt.data import ClipLoader, ClipSpec
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.training.token_batches import LiveTokens
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.config import WorldModelConfig

CELL, CELLS, CLIP, WIDTH = 4, 3, 6, 64
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # cells down and to the right; walls stop the square
# Tiles of different dark colours, so that a token says where its cell is.
FLOOR = np.random.default_rng(0).integers(0, 128, (3, CELLS, CELLS), np.uint8).repeat(CELL, 1).repeat(CELL, 2)
# fmt: off
SHAPE = TokenizerConfig(  # one token a cell, the same networks and codes for context and future frames
    resolution=CELL * CELLS, block_channels=(48,), layers_per_block=1, latent_channels=8, norm_groups=0, patch_size=1,
    pixel_unshuffle=CELL, context_codes=32, dynamics_codes=32, context_frames=1, conditional=False,
)
LAYERS = TransformerConfig(
    vocab_size=SHAPE.layout.vocab_size, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_layers=2, num_heads=2,
    max_positions=SHAPE.layout.length(1, CLIP - 1),
)
# fmt: on
HEADS = HeadsConfig(action_dim=2, slots=SHAPE.layout.frame_length)


def record(seed: int, length: int = 12) -> SourceEpisode:
    random = np.random.default_rng(seed)
    place, frames = random.integers(0, CELLS, 2), np.repeat(FLOOR[None], length, axis=0)
    actions = np.zeros((length, 2), np.float32)  # row t leads from frame t to t + 1; the last row is padding
    for t in range(length):
        y, x = CELL * place
        frames[t, :2, y : y + CELL, x : x + CELL] = 250
        if t + 1 < length:
            actions[t] = random.choice(MOVES)
            place = np.clip(place + actions[t].astype(int), 0, CELLS - 1)
    return SourceEpisode(key=f"square_{seed}", cameras={"image": frames.transpose(0, 2, 3, 1)}, actions=actions)


def record_all(seeds: range):
    return (record(seed) for seed in seeds)


def cell(frames: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(frames.mean(dim=2), CELL).flatten(-2).argmax(dim=-1)


def main(tokenizer_steps: int = 100, transformer_steps: int = 200) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, seeds in (("train", range(200)), ("held-out", range(1000, 1050))):
            task = ShardTask(name, partial(record_all, seeds))
            convert_to_store([task], folder / name, facts=StoreFacts(name="squares"), workers=0)
        spec = ClipSpec(context_frames=1, frames=CLIP, stride=1, size=CELL * CELLS)
        runs = {name: Run(folder / name, device="cpu", log_every=50) for name in ("tokenizer", "transformer")}
        shared = {"warmup_steps": 20, "learning_rate": 3e-3}
        first = TokenizerTraining(tokenizer=SHAPE, steps=tokenizer_steps, continuous_steps=25, **shared)
        frames = ClipLoader(str(folder / "train"), spec, batch_size=8)
        tokenizer = train_tokenizer(first, frames, runs["tokenizer"])
        config = WorldModelConfig(name="tiny", context_frames=1, clip_frames=CLIP, heads=HEADS)
        model = WorldModel(config, tokenizer, Transformer(LAYERS), Heads(HEADS, WIDTH))
        second = TransformerTraining(steps=transformer_steps, batch_size=32, clip_frames=CLIP, **shared)
        tokens = LiveTokens(model, ClipLoader(str(folder / "train"), spec, batch_size=32))
        model = train_transformer(second, model, tokens, runs["transformer"])
        clip = ClipLoader(str(folder / "held-out"), spec, batch_size=1).clips(range(50))

    imagined = model.imagine(clip.frames[:, :1], clip.actions[:, :-1], sampling=Sampling(greedy=True))
    true = cell(clip.frames[:, 1:])
    print("held-out frames with the square in the right cell:")
    for name, predicted in (("imagined", imagined.frames), ("copy of the last frame", clip.frames[:, :1])):
        print(f"{name}: {(cell(predicted) == true).float().mean():.0%}")


if __name__ == "__main__":
    main()
