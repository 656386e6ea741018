"""Options that several commands share: sampling, ranges of numbers, and folders of episodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.data.process_pool import TaskPool
    from ivideogpt.decoding.sampling import Sampling
    from ivideogpt.worldmodel.world_model import WorldModel

_MOST_INSPECTED = 1000


def choose_sampling(
    model: WorldModel, *, temperature: float | None = None, top_k: int | None = None, greedy: bool = False
) -> Sampling:
    """Return the checkpoint's sampling with the options that were given.

    Args:
        model: its checkpoint has a sampling rule.
        temperature: of sampling; None: the checkpoint's.
        top_k: sample from this many likeliest tokens; 0: from all; None: the checkpoint's.
        greedy: take the likeliest token.

    Raises:
        UserError: a number is out of range.
    """
    return model.config.sampling.override(temperature=temperature, top_k=top_k, greedy=greedy)


def check_numbers(**options: tuple[int | None, int, int]) -> None:
    """Check numbers, each with the least and the most that it may be; None is not checked.

    Raises:
        UserError: a number is out of range; it is named.
    """
    for name, (value, least, most) in options.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
        if value is not None and value > most:
            raise UserError(f"{name} is {value}; expected at most {most}")


def choose_pool(
    ray: str | None, workers: int | None, *, needs: Sequence[str | Path] = (), device: str = "cpu"
) -> tuple[int | TaskPool | None, str]:
    """Return the processes of a command, a Ray cluster with --ray, else the number of local ones; and their device.

    Args:
        ray: address of a Ray cluster; None: none.
        workers: local processes, or None for the default of the command.
        needs: paths that every machine of the cluster must have.
        device: of the tasks: "auto", "cpu" or "cuda".

    Raises:
        UserError: both are given, or there is no cluster.
    """
    if ray is None:
        return workers, device
    if workers is not None:
        raise UserError(f"workers is {workers} and ray is {ray!r}; a Ray cluster has its own workers: give one of them")
    from ivideogpt.scaling.ray_pool import RayPool

    pool = RayPool(ray, needs=needs, device=device)
    return pool, pool.device


def check_is_store(path: str | Path) -> None:
    """Check that a folder is not a dataset that must be converted first, or something else than episodes.

    Raises:
        UserError: it is; the message says what the folder holds and which command converts it.
    """
    folder = Path(path)
    try:
        if "://" in str(path) or not folder.is_dir() or (folder / "index.parquet").is_file():
            return
        names = {entry.name for entry, _ in zip(folder.iterdir(), range(_MOST_INSPECTED), strict=False)}
    except (OSError, ValueError):
        return
    kind, advice = _describe(folder, names)
    if kind:
        raise UserError(f"{path} is {kind}, not an episode store; {advice}")


def _describe(folder: Path, names: set[str]) -> tuple[str, str]:
    """Return the kind of a folder and what to do with it; ("", "") where it is unknown."""
    convert = "convert it first: ivideogpt convert"
    suffixes = {name.rpartition(".")[2].lower() for name in names if "." in name}
    if "meta" in names and (folder / "meta" / "info.json").is_file():
        return "a LeRobot dataset", f"{convert} lerobot {folder} STORE; training also takes lerobot:{folder}"
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    tfds = [folder, *(folder / name for name in versions)]
    is_tfds = any((place / "features.json").is_file() or (place / "dataset_info.json").is_file() for place in tfds)
    if is_tfds or any(".tfrecord" in name for name in names):
        name = folder.parent.name if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) else folder.name
        from ivideogpt.data.catalog import DATASETS

        kind = f"oxe {name}" if name in DATASETS else "rlds"
        return "an RLDS dataset", f"{convert} {kind} {folder} STORE"
    if "tokens.json" in names:
        return "a folder of tokens", "give the store that they were made from"
    if "checkpoints" in names and "settings.json" in names:
        return "the folder of a run", "give the store that it was trained on"
    if "config.json" in names or {"tokenizer", "transformer"} <= names:
        return "a checkpoint", "give episodes"
    if suffixes & {"hdf5", "h5"}:
        return "a folder of HDF5 files", f"{convert} robomimic {folder} STORE, or robonet or vp2 where it is theirs"
    if suffixes & {"mp4", "npz", "webm", "avi", "mkv", "mov"}:
        return "a folder of recordings", f"{convert} video {folder} STORE"
    return "", ""
