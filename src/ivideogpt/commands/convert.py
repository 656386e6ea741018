"""``ivideogpt convert``: turn a dataset, as its authors publish it, into an episode store."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.inputs import choose_pool
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import suggestion, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.importers import IMPORTERS, command_options

if TYPE_CHECKING:
    from ivideogpt.data.store.metadata import StoreFacts
    from ivideogpt.data.store.writer import ConversionSummary


def convert(
    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")],
    words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME] SRC DST")],
    *,
    workers: int | None = None,
    ray: str | None = None,
    size: int | None = None,
    quality: int | None = None,
    cameras: str = "",
    partial: bool = False,
    camera: str | None = None,
    camera_key: str | None = None,
    all_cameras: bool = True,
    labels: str | None = None,
    fps: float | None = None,
    val_every: int | None = None,
    revision: str | None = None,
    split: str | None = None,
    alignment: str | None = None,
    rotate_180: bool = False,
    image_size: int | None = None,
    max_demos: int | None = None,
) -> None:
    """Convert a dataset into an episode store; the same command continues after a stop.

    Args:
        kind: lerobot, video, rlds, robomimic, libero, minari, oxe, bair, robonet, vp2, ssv2 or metaworld-npz.
        words: SRC is the downloaded dataset, DST the folder of the store. Before them oxe needs the name of the dataset
            (bridge), vp2 that of the benchmark (robodesk or robosuite).
        workers: processes; 0: this one; default: one for each processor.
        ray: work on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or ray://HOST:PORT;
            every machine must have the same folders.
        size: store frames of so many pixels a side, resized as in training; default: as the source has them.
        quality: with --size: JPEG quality of the stored frames, 1 to 100; 0: unchanged pixels of frames up to 96 px, in
            three times the bytes; default: 98 up to 96 px, 95 above.
        cameras: oxe, rlds, lerobot, robomimic, minari: cameras to store, with commas between them, the model's first.
        partial: oxe, rlds: leave out files that are not there.
        camera: lerobot, robomimic, libero, minari: the model's camera.
        camera_key: video: array of the .npz files that holds the frames.
        all_cameras: robonet: store every camera, not the first one only.
        labels: ssv2: selected (what the official training uses) or all.
        fps: video: frames a second, where it is not what the videos say.
        val_every: video, lerobot, rlds, robomimic, libero, minari: every so many episodes one is for validation.
        revision: lerobot: of the dataset on the Hub.
        split: metaworld-npz: of all episodes: train (default), val, or test where they are to be held out.
        alignment: libero: after (default; official files) or before (copies that were drawn anew): where a picture
            stands to the action of its row.
        rotate_180: libero: turn the pictures of the official files, which are upside down.
        image_size: libero: side that pictures are resized to; default: as they are.
        max_demos: libero: episodes of each file at most.
    """
    from ivideogpt.data.catalog import DATASETS
    from ivideogpt.data.convert.smaller_frames import SMALL_FRAME_QUALITY, with_frame_size
    from ivideogpt.data.store.format import LARGEST_RAW_SIDE
    from ivideogpt.data.store.writer import convert_to_store

    if quality is not None and size is None:
        raise UserError(f"quality is {quality}, but there is no size: it is of frames that --size makes smaller")
    if kind not in IMPORTERS:
        raise UserError(f"there is no kind {kind!r} of source; {suggestion(kind, IMPORTERS)}")
    given: dict[str, Any] = {
        "cameras": tuple(name.strip() for name in cameras.split(",")) if cameras else None,
        "partial": partial or None,
        "camera": camera,
        "camera_key": camera_key,
        "all_cameras": None if all_cameras else False,
        "labels": labels,
        "fps": fps,
        "val_every": val_every,
        "revision": revision,
        "split": split,
        "alignment": alignment,
        "rotate_180": rotate_180 or None,
        "image_size": image_size,
        "max_demos": max_demos,
    }
    source, target, options = _read_words(kind, words)
    options |= {name: value for name, value in given.items() if value is not None}
    module = IMPORTERS[kind].load()
    _check_options(kind, module.tasks, options)
    check_folder(Path(target))
    start = time.perf_counter()
    tasks = module.tasks(source, **options)
    facts = _facts(kind, module, source, options)
    if size is not None:
        if quality is None:
            quality = SMALL_FRAME_QUALITY if size <= LARGEST_RAW_SIDE else 0
        centre_crop = facts.name in DATASETS and DATASETS[facts.name].centre_crop
        tasks = with_frame_size(tasks, size, centre_crop=centre_crop, quality=quality)
        options |= {"size": size} | ({"quality": quality} if quality else {})
    # The available files may change from one call to the next; everything else must stay.
    lasting = command_options(IMPORTERS[kind], options)
    facts = replace(facts, options={name: _plain(value) for name, value in lasting.items()})
    needs = [target, *([source] if isinstance(source, Path) else [])]
    pool, _ = choose_pool(ray, workers, needs=needs)
    summary = convert_to_store(tasks, target, facts=facts, workers=pool)
    _print_store(kind, target, summary, time.perf_counter() - start)


def _read_words(kind: str, words: tuple[str, ...]) -> tuple[Any, str, dict[str, Any]]:
    """Return source, target and the option that stands before them."""
    word = IMPORTERS[kind].positional
    expected = [*([word.upper()] if word else []), "SRC", "DST"]
    if len(words) != len(expected):
        raise UserError(f"convert {kind} got {len(words)} words after it; expected {' '.join(expected)}")
    *before, source, target = words
    # A source that is no folder may be the id of a dataset on the Hub; a reader of folders says what is wrong.
    place = source if IMPORTERS[kind].from_hub and not Path(source).exists() else Path(source)
    return place, target, {word: before[0]} if word else {}


def _check_options(kind: str, tasks: Callable[..., Any], options: Mapping[str, Any]) -> None:
    accepted = [name for name in inspect.signature(tasks).parameters if name != "source"]
    for name in options:
        if name not in accepted:
            shown = ", ".join(
                f"--{other.replace('_', '-')}" for other in accepted if other != IMPORTERS[kind].positional
            )
            raise UserError(f"convert {kind} has no option --{name.replace('_', '-')}; it has {shown or 'none'}")


def _facts(kind: str, module: Any, source: Any, options: Mapping[str, Any]) -> StoreFacts:
    """Describe the dataset, by its reader and, where that is silent, by the catalogue."""
    from ivideogpt.data.catalog import DATASETS
    from ivideogpt.data.store.metadata import StoreFacts

    if hasattr(module, "facts"):
        accepted = inspect.signature(module.facts).parameters
        facts = module.facts(source, **{name: value for name, value in options.items() if name in accepted})
    else:
        facts = getattr(module, "FACTS", None) or StoreFacts(name=Path(source).absolute().name)
        facts = facts[options[IMPORTERS[kind].positional]] if isinstance(facts, Mapping) else facts
    if facts.name not in DATASETS:
        return facts
    row = DATASETS[facts.name]
    return replace(facts, url=facts.url or row.url, licence=facts.licence or row.licence, base_stride=row.base_stride)


def _print_store(kind: str, target: str, summary: ConversionSummary, seconds: float) -> None:
    from ivideogpt.data.store.reader import EpisodeStore

    store = EpisodeStore(target)
    episodes, frames = Counter(store.splits), Counter[str]()
    for split, length in zip(store.splits, store.lengths.tolist(), strict=True):
        frames[split] += length
    rows = [(split, f"{episodes[split]:,}", f"{frames[split]:,}") for split in sorted(episodes)]
    print_table(("split", "episodes", "frames"), rows)
    dataset = store.facts.dataset
    values = {"kind": kind, "dataset": dataset.name, "store": target, "episodes": episodes, "frames": frames}
    print(summary)
    values["left_out"] = [to_dict(entry) for entry in summary.omissions]
    print_json(values | {"bytes": store.num_bytes, "licence": dataset.licence, "seconds": seconds})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
