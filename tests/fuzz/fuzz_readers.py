"""Every reader that is fuzzed: how to make a good input, and how to read all of it.

A new reader is one row: ``sample`` writes a small good input into an empty folder, ``read`` reads everything of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fuzz_checkpoints import LOADED
from fuzz_importers import IMPORTED
from PIL import Image

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.episode import Episode
from ivideogpt.core.layout import TokenLayout
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.episode_files import load_episodes, save_episodes
from ivideogpt.data.media import read_episode
from ivideogpt.data.mixtures import Mixture, MixtureSource, load_mixture
from ivideogpt.data.numpy_files import read_npy
from ivideogpt.data.render import write_gif, write_mp4
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.data.tokens import FACTS, INDEX, SHARDS, TokenFacts, TokenLoader, TokenStore
from ivideogpt.models.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class Reader:
    """One row of the table.

    Attributes:
        sample: writes a good input into a folder.
        read: reads everything of the folder; may raise ``UserError`` only.
        writes: what ``read`` may write into the folder, as a pattern of names.
    """

    sample: Callable[[Path], object]
    read: Callable[[Path], object]
    writes: str = ""


def _frames(count: int = 4, height: int = 16, width: int = 24) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _episode() -> Episode:
    return Episode(
        frames=_frames(),
        actions=np.ones((4, 2), np.float32),
        rewards=np.zeros(4, np.float32),
        terminated=np.zeros(4, bool),
        state=np.ones((4, 3), np.float32),
        key="a",
        meta={"seed": 3, "deeper": {"list": [1, 2]}},
    )


def _npz(folder: Path, save: Callable[..., object] = np.savez) -> None:
    rows = {"actions": np.ones((4, 2)), "rewards": np.zeros(4), "terminated": np.zeros(4), "state": np.ones((4, 3))}
    save(folder / "a.npz", frames=_frames(), **rows)


def _images(folder: Path) -> None:
    (folder / "take").mkdir()
    for number, (suffix, frame) in enumerate(zip(("png", "jpg", "webp", "bmp"), _frames(), strict=True)):
        Image.fromarray(frame).save(folder / "take" / f"{number}.{suffix}")


def _source_episodes(side: int):
    for number in range(2):
        frames = _frames(3, side, side)
        yield SourceEpisode(
            key=f"e{number}",
            cameras={"image": frames, "wrist": frames},
            actions=np.zeros((3, 2), np.float32),
            rewards=np.zeros(3, np.float32),
            arrays={"mask": np.ones((3, 2), np.uint16)},
            text="push",
            fps=5.0,
            meta={"source": "a.npz"},
        )


def _store(folder: Path, side: int) -> None:
    task = ShardTask("all", partial(_source_episodes, side))
    convert_to_store([task], folder / "store", facts=StoreFacts(name="toy", options={"size": 3}), workers=0)
    for path in (folder / "store" / "parts").iterdir():
        path.unlink()
    (folder / "store" / "parts").rmdir()


def _read_store(folder: Path) -> None:
    store = EpisodeStore(folder / "store")
    store.check()
    for index in range(min(len(store), 4)):
        info = store.info(index)
        store[index]
        store.clip(index, [0])
        for camera in info["cameras"]:
            store.camera(index, camera["name"])
        store.array(index, "mask")
    store.verify()


def _config(folder: Path) -> None:
    save_json(folder / "a.json", to_dict(TokenizerConfig()))


def _mixture(folder: Path) -> None:
    sources = (MixtureSource(path="a", weight=2.0, stride=3), MixtureSource(path="b", camera="wrist"))
    save_json(folder / "a.json", to_dict(Mixture(sources=sources, action_width=7)))
    (folder / "a.toml").write_text('action_width = 7\n[[sources]]\npath = "a"\nweight = 2.5\nstride = 2\n')


def _read_mixtures(folder: Path) -> None:
    load_mixture(folder / "a.json")
    load_mixture(folder / "a.toml")


def _tensors(folder: Path) -> None:
    save_tensors(folder / "a.safetensors", {"a": torch.ones(3, 2), "b": torch.arange(5), "c": torch.tensor(True)})


def _tokens(folder: Path, whole: bool) -> None:
    layout = TokenLayout(context_tokens=4, dynamics_tokens=4 if whole else 2, context_codes=9, dynamics_codes=9)
    facts = TokenFacts(
        tokenizer="abc",
        layout=layout,
        context_frames=1,
        frames=3,
        whole=whole,
        goal_first=False,
        sources=("stores/a",),
        weights=(1.0,),
        splits=("train",),
        cameras=(None,),
        strides=(1,),
        embodiments=("a",),
        hop=0 if whole else 1,
        action_width=2,
        action_mean=(0.0, 0.5),
        action_std=(1.0, 2.0),
        rewards=True,
        shards=("000-all",),
    )
    save_json(folder / FACTS, to_dict(facts))
    first, length = torch.tensor([0, 3]), torch.tensor([3, 3])
    same = {name: torch.zeros(2, dtype=torch.long) for name in ("shard", "source")}
    save_tensors(folder / INDEX, same | {"first": first, "length": length, "episode": torch.arange(2)})
    shard = {"actions": torch.ones(6, 2), "action_mask": torch.ones(6, 2, dtype=torch.uint8), "rewards": torch.ones(6)}
    if whole:
        shard["codes"] = torch.arange(24, dtype=torch.int16).reshape(6, 4) % 9
    else:
        shard["context"] = torch.ones(2, 1, 4, dtype=torch.int16)
        shard["dynamics"] = torch.ones(2, 2, 2, dtype=torch.int16)
    save_tensors(folder / SHARDS / "000-all.safetensors", shard)


def _read_tokens(folder: Path) -> None:
    loader = TokenLoader(TokenStore(folder), batch_size=2, frames=3)
    clip = loader.clips(range(8))
    assert 0 <= int(clip.context.min()) <= int(clip.context.max()) < 9, "a code beyond the codebook"


READERS: dict[str, Reader] = {
    "npz": Reader(_npz, lambda folder: read_episode(folder / "a.npz")),
    "npz_compressed": Reader(partial(_npz, save=np.savez_compressed), lambda folder: read_episode(folder / "a.npz")),
    "npy": Reader(lambda folder: np.save(folder / "a.npy", np.ones((4, 2))), lambda folder: read_npy(folder / "a.npy")),
    "mp4": Reader(
        lambda folder: write_mp4(folder / "a.mp4", _frames(), shortest_side=16),
        lambda folder: read_episode(folder / "a.mp4"),
    ),
    "gif": Reader(
        lambda folder: write_gif(folder / "a.gif", _frames(), shortest_side=16),
        lambda folder: read_episode(folder / "a.gif"),
    ),
    "images": Reader(_images, lambda folder: read_episode(folder / "take", size=8)),
    "store_raw": Reader(partial(_store, side=16), _read_store),
    "store_jpeg": Reader(partial(_store, side=104), _read_store),
    "episodes": Reader(
        lambda folder: save_episodes(folder / "a.safetensors", [_episode(), _episode()]),
        lambda folder: load_episodes(folder / "a.safetensors"),
    ),
    "tokens_of_episodes": Reader(partial(_tokens, whole=True), _read_tokens),
    "tokens_of_clips": Reader(partial(_tokens, whole=False), _read_tokens),
    "mixtures": Reader(_mixture, _read_mixtures),
    "tensors": Reader(_tensors, lambda folder: load_tensors(folder / "a.safetensors")),
    "config": Reader(_config, lambda folder: from_dict(TokenizerConfig, load_json(folder / "a.json"))),
    **{name: Reader(sample, read) for name, (sample, read) in {**IMPORTED, **LOADED}.items()},
}
