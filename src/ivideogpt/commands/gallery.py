"""``ivideogpt gallery``: write one HTML page of held-out clips beside what the model imagines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.commands.inputs import check_is_store
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.core.episode import Episode
    from ivideogpt.reports.gallery_clips import Showcase
    from ivideogpt.worldmodel.world_model import WorldModel


def gallery(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    *,
    data: Path | None = None,
    output: Path = Path("outputs/gallery.html"),
    count: int = 6,
    futures: int = 3,
    horizon: int = 14,
    seed: int = 0,
    dataset_name: str | None = None,
    camera_key: str | None = None,
    stride: int | None = None,
    device: str = "auto",
) -> None:
    """Write one HTML page of held-out clips: what happened, imagined futures, and the same start under other actions.

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        data: .safetensors episodes, an episode store, .npz, .mp4 (or another video), .gif, or a folder of images;
            default: the episodes that come with the checkpoint.
        output: the page to write, ending in .html.
        count: number of clips.
        futures: how many futures of each; a picture model has one.
        horizon: frames to imagine.
        seed: of the first future; the others follow from it.
        dataset_name: sets camera and frame stride, for example fractal20220817_data or bair_robot_pushing.
        camera_key: the array of an .npz that holds the frames.
        stride: recorded frames from one frame of a clip to the next; default: the dataset's, else the checkpoint's.
        device: auto, cpu or cuda.
    """
    from ivideogpt.core.files import write_text_atomic
    from ivideogpt.data.catalog import dataset_info
    from ivideogpt.reports.gallery_clips import find_windows, imagine_showcase, other_actions
    from ivideogpt.reports.gallery_page import gallery_page
    from ivideogpt.worldmodel.world_model import WorldModel

    if futures < 1:
        raise UserError(f"futures is {futures}; expected at least 1")
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise UserError(f"output is {output}; expected a file that ends in .html, for example gallery.html")
    check_folder(output.parent)
    if stride is None and dataset_name is not None:
        stride = dataset_info(dataset_name).stride()
    model = WorldModel.from_pretrained(checkpoint, device=device)
    model.require_square("the gallery")
    if data is None:
        data = _own_episodes(checkpoint)
    episodes, source = _read(data, dataset_name, camera_key, model.resolution)
    windows = find_windows(model, episodes, count, horizon, stride)
    sampling = model.config.sampling
    # a picture model draws no random numbers: all its futures are the same
    seeds = list(range(seed, seed + (futures if model.has_tokens else 1)))
    showcases = [
        imagine_showcase(
            model, window, other_actions(windows, index), seeds, sampling, f"showcase {index + 1} of {len(windows)}"
        )
        for index, window in enumerate(windows)
    ]
    page = gallery_page(
        model.config.name or Path(checkpoint).name or checkpoint,
        model.facts() | _remarks(model),
        source,
        showcases,
        sampling=f"temperature {sampling.temperature:g} and top-k {sampling.top_k}" if model.has_tokens else None,
        goal_conditioned=model.config.goal_conditioned,
    )
    write_text_atomic(output, page)
    _print(showcases, output)


def _remarks(model: WorldModel) -> dict[str, str]:
    """Return the remarks of the model's makers; tables of figures stay in the card."""
    return {str(k).replace("_", " "): v for k, v in model.config.metadata.items() if isinstance(v, str)}


def _own_episodes(checkpoint: str) -> Path:
    from ivideogpt.core.checkpoint import resolve_checkpoint
    from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED

    path = resolve_checkpoint(checkpoint, shipped=SHIPPED) / EPISODES_FILE
    if not path.is_file():
        raise UserError(f"checkpoint {checkpoint!r} comes without episodes; give some, for example --data FILE.npz")
    return path


def _read(data: Path, dataset_name: str | None, camera_key: str | None, size: int) -> tuple[list[Episode], str]:
    """Read episodes, the held-out ones where there are any, and describe them in a sentence for the page."""
    from ivideogpt.data.episode_files import HELD_OUT, is_store, open_episodes
    from ivideogpt.data.media import read_episode

    check_is_store(data)
    holds_many = data.suffix == ".safetensors" or is_store(data)
    if not holds_many:
        episode = read_episode(data, dataset_name=dataset_name, camera_key=camera_key, size=size)
        return [episode], f"All clips are from {data.name}. Whether the model was trained on it, this page cannot know."
    if camera_key is not None:
        raise UserError(f"camera_key is {camera_key!r}, but {data} holds no .npz with named arrays; leave it out")
    episodes = open_episodes(data, size=size)
    held_out = [episode for episode in episodes if episode.split in HELD_OUT]
    if not held_out:
        return (
            episodes,
            f"Episodes from {data.name}. None is marked as held out: the model may have been trained on them.",
        )
    many = f"Out of {len(held_out)} held-out episodes" if len(held_out) > 1 else "A held-out episode"
    splits = " and ".join(sorted({repr(episode.split) for episode in held_out}))
    where = f"(split {splits}) in {data.name}"
    return held_out, f"{many} {where}, taken in their order; none was chosen by its result."


def _print(showcases: list[Showcase], output: Path) -> None:
    import torch

    ratios, similar = (torch.stack([getattr(x, name) for x in showcases]) for name in ("psnr", "ssim"))
    copied = [torch.stack([getattr(x, f"{name}_copy_last") for x in showcases]) for name in ("psnr", "ssim")]
    headings = [f"{len(showcases)} showcases", "PSNR (dB)", "SSIM"]
    futures = "imagined" + (f", mean of {ratios.shape[1]}" if ratios.shape[1] > 1 else "")
    lines = [[futures, float(ratios.mean()), float(similar.mean())]]
    lines.append(["copy of the last frame", *(float(values.mean()) for values in copied)])
    print_table(headings, lines)
    print(output)
    print_json(
        {
            "psnr": float(ratios.mean()),
            "psnr_copy_last": float(copied[0].mean()),
            "ssim": float(similar.mean()),
            "showcases": len(showcases),
            "output": output,
        }
    )
