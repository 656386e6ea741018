"""Tiny checkpoints and recordings on disk, and the command line in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivideogpt.cli import main
from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import save_episodes
from ivideogpt.data.render import write_gif, write_mp4


@dataclass(frozen=True)
class Done:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The last line of what it printed."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session")
def checkpoints(build: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models that take 16 px, by kind; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in ("conditional", "action_free", "plain", "goal"):
        build(kind).save_pretrained(folder / kind)
    return {path.name: str(path) for path in folder.iterdir()}


def recording(length: int = 8, height: int = 16, width: int = 16) -> np.ndarray:
    """uint8 ``[t h w 3]``: a picture that drifts."""
    t, y, x = np.meshgrid(np.arange(length), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([(x * 13 + t * 9) % 256, y * 15 % 256, (x + y) * 7 % 256], axis=-1).astype(np.uint8)


def some_actions(length: int = 8, dim: int = 3, seed: int = 0) -> np.ndarray:
    """float32 ``[t a]``."""
    return np.random.default_rng(seed).normal(size=(length, dim)).astype(np.float32)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings of eight frames, by kind; tests leave them as they are."""
    folder, frames = tmp_path_factory.mktemp("inputs"), recording()
    np.savez(folder / "plain.npz", image=frames)
    np.savez(folder / "wide.npz", image=recording(height=24, width=40))
    for dim in (2, 3):
        np.savez(folder / f"actions{dim}.npz", image=frames, action=some_actions(dim=dim))
    write_mp4(folder / "video.mp4", frames, shortest_side=32)
    write_gif(folder / "video.gif", frames, shortest_side=16)
    (folder / "images").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "images" / f"{index}.png")
    save_episodes(
        folder / "episodes.safetensors",
        [
            Episode(frames=recording(length), actions=some_actions(length, seed=length), key=f"e{length}")
            for length in (6, 9)
        ],
    )
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Done]:
    """``run("predict", ...)``: the command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Done:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
