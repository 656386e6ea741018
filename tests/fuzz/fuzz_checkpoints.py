"""Checkpoints and uploads that are fuzzed."""

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ivideogpt.configs.robot import debug_recipe
from ivideogpt.core.errors import UserError
from ivideogpt.data.render import write_gif, write_mp4
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.frame_reward import FrameRewardConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.models.sprites import SpriteConfig, SpriteProjectionConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.serve.guard import Limits
from ivideogpt.serve.uploads import read_upload
from ivideogpt.training.init_weights import new_world_model
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)


def _token_model(folder: Path) -> None:
    recipe = debug_recipe()
    tokenizer = CompressiveTokenizer(recipe.tokenizer.tokenizer)
    heads = recipe.model.fitted_heads(tokenizer, 2, True)
    space = {"action_mean": (0.5, -1.0), "action_std": (2.0, 0.25)}
    config = WorldModelConfig(name="tiny", clip_frames=6, heads=heads, metadata={"data": {"seeds": "0:10"}}, **space)
    new_world_model(recipe.model, config, tokenizer, seed=0).save_pretrained(folder / "model")


def _picture_model(folder: Path) -> None:
    sprites = SpriteProjectionConfig(sprites=(SpriteConfig(size=6, turns=False), SpriteConfig(size=8, angles=8)))
    net = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
    config = PictureDynamicsConfig(
        resolution=16,
        forecast=PictureForecastConfig(net=net),
        pointer_scale=8.0,
        pointer_offset=8.0,
        reward=FrameRewardConfig(success_above=0.5),
        sprites=sprites,
    )
    torch.manual_seed(0)
    settings = WorldModelConfig(name="tiny", clip_frames=5, heads=HeadsConfig(action_dim=2, reward=True))
    WorldModel.from_pictures(settings, PictureDynamics(config)).save_pretrained(folder / "model")


def _imagine(folder: Path) -> None:
    model = WorldModel.from_pretrained(folder / "model", device="cpu")
    side = model.resolution
    actions = torch.zeros(1, 1, model.action_dim) if model.action_dim else None
    model.imagine(torch.zeros(1, model.context_frames, 3, side, side), actions, horizon=None if model.action_dim else 1)


def _npz(folder: Path) -> None:
    np.savez(folder / "a.npz", frames=FRAMES, actions=np.ones((4, 2)))


def _pictures(folder: Path) -> None:
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in sorted(folder.glob("?.???g")) + sorted(folder.glob("?.png")):
            archive.write(path, path.name)
    for path in folder.glob("?.[jp]*"):
        path.unlink()


def _upload(folder: Path, name: str) -> None:
    path = folder / name
    if not path.is_file():  # the server itself wrote the file, so it is one
        raise UserError(f"{name} is no file")
    read_upload(path, name, 16, Limits())


#: Of each row: what writes a good input, and what reads it.
LOADED = {
    "token_model": (_token_model, _imagine),
    "picture_model": (_picture_model, _imagine),
    "upload_npz": (_npz, partial(_upload, name="a.npz")),
    "upload_mp4": (
        lambda folder: write_mp4(folder / "a.mp4", FRAMES, shortest_side=16),
        partial(_upload, name="a.mp4"),
    ),
    "upload_gif": (
        lambda folder: write_gif(folder / "a.gif", FRAMES, shortest_side=16),
        partial(_upload, name="a.gif"),
    ),
    "upload_zip": (_pictures, partial(_upload, name="a.zip")),
}
