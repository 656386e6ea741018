"""``ivideogpt data``: print what an episode store holds, and check it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.inputs import check_is_store
from ivideogpt.commands.output import check_folder, print_json, print_table

if TYPE_CHECKING:
    from ivideogpt.data.contact_sheet import SheetRow
    from ivideogpt.data.store.reader import EpisodeStore

_LOOKED_AT, _COLUMNS = 8, 8


def data(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    verify: bool = False,
    sheet: Path | None = None,
    episode: str | None = None,
) -> None:
    """Print what an episode store holds, and check it: all its files are there and some episodes can be read.

    Args:
        folder: the store: a folder, or a URL that fsspec knows.
        verify: read every byte and compare it with what was written.
        sheet: write a PNG with frames of some episodes (of one, with --episode).
        episode: look at the episode of this key only.
    """
    import numpy as np

    from ivideogpt.data.contact_sheet import write_contact_sheet
    from ivideogpt.data.store.reader import EpisodeStore

    if sheet is not None:
        check_folder(sheet.parent)
    check_is_store(folder)
    store = EpisodeStore(folder)
    if episode is None:
        store.check()
        looked_at = np.unique(np.linspace(0, len(store) - 1, _LOOKED_AT).round().astype(int)).tolist()
        rows = [row for index in looked_at for row in _rows(store, index)]  # a damaged episode is named
        _print_store(store)
    else:
        looked_at = [store.find(episode)]
        rows = _print_episode(store, looked_at[0])
    if verify:
        store.verify(None if episode is None else looked_at)
        print(f"verified: every byte of {'all episodes' if episode is None else 'it'} is as it was written")
    if sheet is not None:
        dataset = store.facts.dataset.name
        write_contact_sheet(sheet, rows, title=f"{dataset}: {len(store)} episodes" if episode is None else dataset)
        print(sheet)
    print_json(_summary(store) | {"episode": episode, "verified": verify, "sheet": sheet})


def _rows(store: EpisodeStore, index: int) -> list[SheetRow]:
    """Return the first, middle and last frame of an episode, a row for each camera, the main camera first."""
    from ivideogpt.data.contact_sheet import SheetRow

    info = store.info(index)
    last = info["length"] - 1
    frames = [0, last // 2, last]
    captions = [f"frame {frame}" for frame in frames]
    names = sorted((camera["name"] for camera in info["cameras"]), key=lambda name: name != info["camera"])
    rows = []
    for name in names:
        lines = [info["key"], f"{info['split']}, {info['length']} frames", info["text"]]
        if len(names) > 1:
            lines.insert(1, f"camera {name}")
        rows.append(SheetRow(lines=lines, frames=store.camera(index, name, frames), captions=captions))
    return rows


def _print_episode(store: EpisodeStore, index: int) -> list[SheetRow]:
    """Print one episode, and return a row of its frames for each camera."""
    import numpy as np

    from ivideogpt.data.contact_sheet import SheetRow

    info, whole = store.info(index), store[index]
    print(f"episode {info['key']} ({index} of {len(store)}), split {info['split']}, in {info['shard']}")
    for name in ("length", "fps", "text", "meta"):
        print(f"{name}: {info[name]}")
    ranges: list[list[str | float]] = []
    for label in ("actions", "rewards", "state"):
        value = getattr(whole, label)
        if value is not None:
            columns = value.reshape(len(value), -1)
            names = store.facts.actions.names if label == "actions" and store.facts.actions else ()
            for place, column in enumerate(columns.T):
                ranges.append([label, names[place] if names else str(place), float(column.min()), float(column.max())])
    if ranges:
        print_table(["array", "dimension", "lowest", "highest"], ranges)
    places = np.unique(np.linspace(0, len(whole) - 1, _COLUMNS).round().astype(int))
    rows = []
    for camera in info["cameras"]:
        size = f"{camera['height']} x {camera['width']}, {camera['encoding']}"
        print(f"camera {camera['name']}: {size}")
        frames = store.camera(index, camera["name"], places)
        lines = [info["key"], f"camera {camera['name']}", size]
        rows.append(SheetRow(lines=lines, frames=frames, captions=[f"frame {place}" for place in places]))
    return rows


def _print_store(store: EpisodeStore) -> None:
    import numpy as np

    facts, dataset = store.facts, store.facts.dataset
    hours = _hours(store)
    long = f" ({hours:.2f} hours)" if hours is not None else ""
    print(f"{dataset.name}: {facts.episodes:,} episodes, {facts.frames:,} frames{long}")
    print(f"lengths: {store.lengths.min()} to {store.lengths.max()} frames, median {np.median(store.lengths):g}")
    print(f"splits: {', '.join(f'{split} {count:,}' for split, count in sorted(Counter(store.splits).items()))}")
    for name, sizes in facts.cameras.items():
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:4])
        print(f"camera {name}: {shown}{f' and {len(sizes) - 4} more sizes' if len(sizes) > 4 else ''} (height x width)")
    print(f"licence: {dataset.licence or 'not stated'}")
    print(f"source: {dataset.url or 'not stated'}")
    print(f"on disk: {store.num_bytes / 1e6:,.1f} MB in {len(store.shards)} shards")
    if facts.actions is None:
        print("actions: none")
        return
    print(f"actions: {facts.actions.dim} numbers, {facts.actions.count:,} of them")
    names = facts.actions.names or tuple(map(str, range(facts.actions.dim)))
    numbers = zip(names, facts.actions.low, facts.actions.high, facts.actions.mean, facts.actions.std, strict=True)
    print_table(["dimension", "lowest", "highest", "mean", "std"], [list(row) for row in numbers])


def _hours(store: EpisodeStore) -> float | None:
    """Return the length of all episodes together; None where one has no frame rate."""
    import numpy as np

    rates = store.rates
    return None if np.isnan(rates).any() else float((store.lengths / rates).sum() / 3600)


def _summary(store: EpisodeStore) -> dict[str, Any]:
    facts = store.facts
    return {
        "name": facts.dataset.name,
        "episodes": facts.episodes,
        "frames": facts.frames,
        "hours": _hours(store),
        "bytes": store.num_bytes,
        "shards": len(store.shards),
        "action_dim": facts.actions.dim if facts.actions else None,
        "splits": dict(sorted(Counter(store.splits).items())),
    }
