"""Tokens of the stores of a mixture, in a folder that transformers train from: one task for each shard of a store.

    tokenize_stores("runs/tokenizer", load_mixture("mixture.toml"), "tokens/mine", frames=16, workers=8)

Finished shards are skipped, so a stopped command continues. A cluster calls ``begin`` once, ``tokenize_shard`` for each
task that it returns, anywhere and as often as it likes, and ``finish`` once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import remove_leftovers
from ivideogpt.core.folder_lock import lock_folder
from ivideogpt.core.run import choose_device
from ivideogpt.data.clips import ClipSpec, DrawnRows, draw_rows, effective_stride
from ivideogpt.data.loader import ClipDataset
from ivideogpt.data.mixture_reader import ClipPlace, OpenMixture, pooled_actions
from ivideogpt.data.mixtures import Mixture, absolute_path
from ivideogpt.data.process_pool import TaskPool, as_pool
from ivideogpt.data.tokens import COLUMNS, FACTS, INDEX, SHARDS, TokenFacts
from ivideogpt.models.tokenizer import CompressiveTokenizer

_BATCH = 16  # clips, or frames of an episode, that the tokenizer sees at once


@dataclass(frozen=True)
class TokenTask:
    """One shard of tokens, independent of all others.

    Attributes:
        name: of the shard.
        source: number of its store in the mixture.
        episodes: in the store.
    """

    name: str
    source: int
    episodes: tuple[int, ...]


def tokenize_stores(
    tokenizer: str | Path,
    mixture: Mixture,
    folder: str | Path,
    *,
    frames: int = 16,
    hop: int | None = None,
    goal_first: bool = False,
    stride: int | None = None,
    video_stepsize: float = 1.0,
    workers: int | TaskPool | None = None,
    device: str = "auto",
) -> None:
    """Write the tokens of every episode of a mixture; the same call continues a stopped one.

    Args:
        tokenizer: its folder.
        mixture: the stores.
        folder: a new or empty folder, or that of an earlier call with the same arguments.
        frames: of a clip, context and goal included. A tokenizer that is not conditional keeps whole episodes, of
            which any clip can be cut; only episodes shorter than this are filled up, by repeating their last frame.
        hop: recorded frames from the start of one clip to that of the next; None: half of what a clip spans.
        goal_first: clips begin with their last frame.
        stride: distance between used frames, where the mixture does not say it; None: each dataset's own.
        video_stepsize: of the rule of ``DatasetInfo.stride``.
        workers: processes; 0: this one; None: one for each processor, or this one where a GPU works. Or a pool.
        device: "auto", "cpu", "cuda", ...

    Raises:
        UserError: a store cannot be read, the folder cannot be written or holds something else.
    """
    if hop is not None and hop < 1:
        raise UserError(f"hop is {hop}; expected at least 1")
    mode = "goal_first" if goal_first else "contiguous"
    spec = ClipSpec(frames=frames, mode=mode, stride=stride, video_stepsize=video_stepsize)
    tasks = begin(tokenizer, mixture, folder, spec, hop)
    lock_folder(Path(folder), activity="ivideogpt tokenize")
    remove_leftovers(Path(folder), Path(folder) / SHARDS)
    waiting = [task for task in tasks if not _shard(folder, task).is_file()]
    # A pool may have devices that this machine does not have.
    where = choose_device(device) if workers is None or isinstance(workers, int) else torch.device(device)
    pool = as_pool(0 if workers is None and where.type != "cpu" else workers)
    with tqdm(
        total=len(tasks), initial=len(tasks) - len(waiting), desc="tokenizing", unit="shard", disable=None
    ) as bar:
        work = functools.partial(tokenize_shard, tokenizer=str(tokenizer), folder=str(folder), device=str(where))
        for _ in pool.run(work, waiting):
            bar.update()
    finish(folder)


def begin(
    tokenizer: str | Path, mixture: Mixture, folder: str | Path, spec: ClipSpec, hop: int | None
) -> list[TokenTask]:
    """Describe the tokens in ``folder`` and return the tasks that are left.

    Raises:
        UserError: see ``tokenize_stores``.
    """
    folder, network = Path(folder), CompressiveTokenizer.from_pretrained(tokenizer)
    shape, whole = network.config, not network.config.conditional and spec.mode == "contiguous"
    spec = replace(spec, context_frames=shape.context_frames, size=shape.frame_size)
    opened = OpenMixture(mixture, spec)
    tasks = [
        TokenTask(f"{number:03d}-{Path(name).stem}", number, tuple(chosen.tolist()))
        for number, source in enumerate(opened.sources)
        for place, name in enumerate(source.store.shards)
        if len(chosen := source.episodes[source.store.shard_numbers[source.episodes] == place])
    ]
    mean, std = pooled_actions(opened)
    facts = TokenFacts(
        tokenizer=network.fingerprint(),
        layout=network.layout,
        context_frames=shape.context_frames,
        frames=spec.frames,
        whole=whole,
        goal_first=spec.mode == "goal_first",
        sources=tuple(absolute_path(source.source.path) for source in opened.sources),
        weights=tuple(source.source.weight for source in opened.sources),
        splits=tuple(source.source.split for source in opened.sources),
        cameras=tuple(source.source.camera for source in opened.sources),
        strides=tuple(source.stride for source in opened.sources),
        embodiments=tuple(opened.embodiments[source.embodiment] for source in opened.sources),
        hop=0 if whole else hop or max(spec.frames * max(source.stride for source in opened.sources) // 2, 1),
        action_width=opened.action_width,
        action_mean=mean,
        action_std=std,
        rewards=opened.has_rewards,
        shards=tuple(task.name for task in tasks),
    )
    if (folder / FACTS).is_file():
        kept = load_json(folder / FACTS)
        if isinstance(kept.get("sources"), list):  # older folders hold the paths as they were typed
            kept["sources"] = [absolute_path(str(path)) for path in kept["sources"]]
        if isinstance(kept.get("layout"), dict):  # and not all fields of the layout
            kept["layout"] = to_dict(network.layout) | kept["layout"]
        for name, value in to_dict(facts).items():
            if kept.get(name) != value:
                raise UserError(f"{folder} holds tokens with another {name}; give the same, or choose another folder")
    elif folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else than tokens; choose a new or an empty folder")
    else:
        save_json(folder / FACTS, to_dict(facts))
    return tasks


def tokenize_shard(task: TokenTask, tokenizer: str, folder: str, device: str = "cpu") -> None:
    """Tokenise one shard, if it is not finished.

    Raises:
        UserError: an episode cannot be read, or the folder cannot be written.
    """
    target = _shard(folder, task)
    if target.is_file():
        return
    facts = from_dict(TokenFacts, load_json(Path(folder) / FACTS))
    network = CompressiveTokenizer.from_pretrained(tokenizer).to(device)
    spec = ClipSpec(
        context_frames=facts.context_frames,
        frames=facts.frames,
        mode="goal_first" if facts.goal_first else "contiguous",
        size=network.config.frame_size,
        actions=facts.action_width > 0,
        rewards=facts.rewards,
    )
    source = facts.mixture.sources[task.source]
    dataset = ClipDataset(OpenMixture(replace(facts.mixture, sources=(source,)), spec), None)
    parts: dict[str, list[torch.Tensor]] = {}
    takes: list[tuple[int, int, int]] = []
    rows = 0
    for episode in task.episodes:
        length = int(dataset.mixture.sources[0].store.lengths[episode])
        stride = dataset.mixture.sources[0].stride
        for group in _groups(list(_takes(facts, spec, length, stride))):
            clip = dataset.finish(dataset.at([ClipPlace(0, episode, drawn) for drawn in group]), torch.device("cpu"))
            for name, value in _codes(network, clip.frames, facts).items():
                parts.setdefault(name, []).append(value)
            for name in ("actions", "action_mask", "rewards"):
                if (value := getattr(clip, name)) is not None:
                    parts.setdefault(name, []).append(value.flatten(0, 1))
            for drawn in group:
                takes.append((rows, len(drawn.rows), episode))
                rows += len(drawn.rows)
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    if "action_mask" in tensors:
        tensors["action_mask"] = tensors["action_mask"].to(torch.uint8)
    save_tensors(target, tensors | {"takes": torch.tensor(takes, dtype=torch.int64)})


def finish(folder: str | Path) -> None:
    """Write the index of all takes; every shard must exist.

    Raises:
        UserError: one is missing.
    """
    folder = Path(folder)
    facts = from_dict(TokenFacts, load_json(folder / FACTS))
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in COLUMNS}
    for number, name in enumerate(facts.shards):
        takes = load_tensors(folder / SHARDS / f"{name}.safetensors")["takes"]
        columns["shard"].append(torch.full((len(takes),), number))
        columns["source"].append(torch.full((len(takes),), int(name.split("-")[0])))
        columns["first"].append(takes[:, 0])
        columns["length"].append(takes[:, 1])
        columns["episode"].append(takes[:, 2])
    save_tensors(folder / INDEX, {name: torch.cat(values) for name, values in columns.items()})


def _shard(folder: str | Path, task: TokenTask) -> Path:
    return Path(folder) / SHARDS / f"{task.name}.safetensors"


def _takes(facts: TokenFacts, spec: ClipSpec, length: int, stride: int) -> Iterator[DrawnRows]:
    """Yield the takes of an episode: rows of frames that are tokenized together."""
    if not facts.whole:
        used = effective_stride(length, spec.span, stride)
        last = max(length - used * spec.span, 0)
        for start in sorted({*range(0, last, facts.hop), last}):
            yield draw_rows(spec, length, stride, np.random.default_rng(0), start)
        return
    stride = effective_stride(length, facts.frames, stride)
    for offset in range(stride):
        wanted = np.arange(offset, max(length, offset + stride * facts.frames), stride)
        if offset and wanted[-1] >= length:
            wanted = wanted[wanted < length]
            if len(wanted) < facts.frames:
                continue
        padding = wanted >= length
        transitions = np.append(~padding[1:], False)
        yield DrawnRows(np.minimum(wanted, length - 1), padding, transitions)


def _groups(takes: list[DrawnRows]) -> Iterator[list[DrawnRows]]:
    """Group takes of one length, as many as the tokenizer reads at once."""
    start = 0
    for stop in range(1, len(takes) + 1):
        full = stop - start == _BATCH
        if stop == len(takes) or full or len(takes[stop].rows) != len(takes[start].rows):
            yield takes[start:stop]
            start = stop


@torch.inference_mode()
def _codes(network: CompressiveTokenizer, frames: torch.Tensor, facts: TokenFacts) -> dict[str, torch.Tensor]:
    """Return the codes of takes ``[k t c h w]``: of all frames end to end, or of context and later frames apart."""
    device = network.device
    kind = torch.int16 if max(facts.layout.context_codes, facts.layout.dynamics_codes) < 2**15 else torch.int32
    if facts.whole:
        chunks = frames.flatten(0, 1)[:, None].split(_BATCH)
        codes = torch.cat([network.encode_context(chunk.to(device))[0][:, 0] for chunk in chunks])
        return {"codes": codes.to("cpu", kind)}
    context, features = network.encode_context(frames[:, : facts.context_frames].to(device))
    dynamics = network.encode_future(frames[:, facts.context_frames :].to(device), features)
    return {"context": context.to("cpu", kind), "dynamics": dynamics.to("cpu", kind)}
