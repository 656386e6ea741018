"""Endless batches of clips from a mixture of stores, the same for any number of workers and ranks.

    loader = ClipLoader(named_mixture("OXE_SELECT", "stores"), ClipSpec(size=64), batch_size=16, workers=8)
    for clip in loader: ...                 # Clip: frames float32 [b t c h w] in [0, 1]
    saved = loader.state_dict()             # {"seed", "step", "clips_a_step"}; load_state_dict continues from there

Clip k is a pure function of (seed, k): workers, ranks, batch size and resuming decide who reads it, never its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ivideogpt.core.episode import Clip
from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import (
    Augmentation,
    AugmentationDraw,
    augment_clips,
    both_sides,
    centre_square,
    draw_augmentation,
    whole_frame,
)
from ivideogpt.data.clip_order import ClipCursor
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.mixture_reader import ClipArrays, ClipPlace, OpenMixture, as_mixture
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.reader import EpisodeStore

# Streams of a clip's random numbers: one for each use, so that a change of one use does not shift the other.
_PLACE, _AUGMENTATION = range(2)
_ROWS = ("actions", "action_mask", "rewards")
# Clips of remote stores that a worker reads at the same time.
_MOST_REQUESTS = 32


class ClipRandom:
    """The random numbers of clips, from one generator that is set for each clip: creating one takes far longer."""

    def __init__(self) -> None:
        """Create the generator (Philox: its numbers are a function of a key and a counter)."""
        self._generator = np.random.Generator(np.random.Philox(0))
        self._state: Any = self._generator.bit_generator.state

    def of(self, seed: int, number: int, stream: int = _PLACE) -> np.random.Generator:
        """Return the generator of a clip, a pure function of the arguments; valid until the next call.

        The clip is the high word of the counter, so that streams never overlap.
        """
        high, low = divmod(seed, 2**64)
        self._state["state"] = {"key": (low, high), "counter": (0, 0, stream, number)}
        self._generator.bit_generator.state = self._state
        return self._generator


def clip_random(seed: int, number: int, stream: int = _PLACE) -> np.random.Generator:
    """Return a new generator of the random numbers of clip ``number``, equal to that of ``ClipRandom``."""
    return ClipRandom().of(seed, number, stream)


class ClipDataset(Dataset[Any]):
    """The clips of a mixture by seed and number, for the worker processes of the loader."""

    def __init__(self, mixture: OpenMixture, augmentation: Augmentation | None, *, on_device: bool = False) -> None:
        """Prepare reading.

        Args:
            mixture: open stores.
            augmentation: of each clip; None: none.
            on_device: resize and augment in ``finish``, on the device of the batch.
        """
        self.mixture, self.augmentation, self.on_device = mixture, augmentation, on_device

    def reopen(self) -> None:
        """Open the stores again: connections do not survive in another process."""
        self.mixture = self.mixture.reopened()

    def place(self, seed: int, number: int) -> ClipPlace:
        """Return source, episode and frames of clip ``number``."""
        return self.mixture.place(clip_random(seed, number))

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """Return a batch of the one clip (seed, number)."""
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return a batch of clips, each given as (seed, number); a UserError is returned as text for ``finish``."""
        random = ClipRandom()
        try:
            read = self._read([self.mixture.place(random.of(*item)) for item in items])
            draws = [self._draw(clip, random.of(*item, _AUGMENTATION)) for clip, item in zip(read, items, strict=True)]
            return self._batch(read, draws)
        except UserError as error:
            return {"error": str(error)}

    def at(self, places: Sequence[ClipPlace]) -> dict[str, Any]:
        """Return a batch of the clips at ``places``, for ``finish``.

        Raises:
            UserError: a clip cannot be read.
        """
        read = self._read(places)
        return self._batch(read, [self._draw(clip, None) for clip in read])

    def _read(self, places: Sequence[ClipPlace]) -> list[ClipArrays]:
        """Read clips; those of remote stores at the same time, so that a batch waits for the network once."""
        if len(places) < 2 or not self.mixture.is_remote:
            return [self.mixture.read(place) for place in places]
        with ThreadPoolExecutor(min(len(places), _MOST_REQUESTS)) as threads:
            return list(threads.map(self.mixture.read, places))

    def _batch(self, read: list[ClipArrays], draws: list[AugmentationDraw]) -> dict[str, Any]:
        frames: list[Tensor] | Tensor = [torch.from_numpy(clip.frames) for clip in read]
        if not self.on_device:
            frames = self._prepare(frames, draws)
        batch: dict[str, Any] = {
            "frames": frames,
            "draws": draws if self.on_device else [],
            "frame_index": torch.from_numpy(np.stack([clip.place.drawn.rows for clip in read])),
            "pad_mask": torch.from_numpy(np.stack([clip.place.drawn.padding for clip in read])),
            "embodiment": torch.tensor([clip.embodiment for clip in read]),
        }
        for label in _ROWS:
            if getattr(read[0], label) is not None:
                batch[label] = torch.from_numpy(np.stack([getattr(clip, label) for clip in read]))
        return batch

    def _draw(self, clip: ClipArrays, random: np.random.Generator | None) -> AugmentationDraw:
        height, width = clip.frames.shape[1:3]
        if self.augmentation is not None:
            assert random is not None, "a clip at a given place has no augmentation"
            return draw_augmentation(self.augmentation, height, width, random)
        # A square is cut out for square frames alone.
        rows, columns = both_sides(self.mixture.spec.size or 1)
        return centre_square(height, width) if clip.centre_crop and rows == columns else whole_frame(height, width)

    def _prepare(self, frames: Sequence[Tensor], draws: Sequence[AugmentationDraw]) -> Tensor:
        """Return clips uint8 ``[t h w 3]`` as one batch, float32 ``[b t 3 h w]`` in [0, 1], on the same device."""
        size = self.mixture.spec.size
        sizes = {tuple(pixels.shape[1:3]) for pixels in frames}
        if size is None and len(sizes) > 1:
            raise UserError(f"clips have frames of different sizes, {sorted(sizes)}; give ClipSpec a size")
        height, width = both_sides(size) if size else sizes.pop()
        batch = _new_batch((len(frames), len(frames[0]), 3, height, width), frames[0].device)
        if size:
            augment_clips(frames, draws, batch)
            return batch
        for pixels, out in zip(frames, batch, strict=True):
            out.copy_(rearrange(pixels, "t h w c -> t c h w")).div_(255)
        return batch

    def finish(self, batch: dict[str, Any], device: torch.device) -> Clip:
        """Return the batch of a worker as a clip on ``device``.

        Raises:
            UserError: a clip could not be read.
        """
        if "error" in batch:
            raise UserError(batch["error"])
        if self.on_device:
            frames = self._prepare([clip.to(device, non_blocking=True) for clip in batch["frames"]], batch["draws"])
        else:
            frames = batch["frames"].to(device)
        labels = ("frame_index", "pad_mask", "embodiment", *_ROWS)
        arrays = {label: batch[label].to(device, non_blocking=True) for label in labels if label in batch}
        return Clip(frames=frames, context_frames=self.mixture.spec.context_frames, **arrays)


class ClipLoader(ClipCursor):
    """Endless batches of clips, each a pure function of the seed and its number."""

    def __init__(
        self,
        stores: Mixture | EpisodeStore | MixtureSource | str | Sequence[MixtureSource],
        spec: ClipSpec,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
    ) -> None:
        """Open the stores.

        Args:
            stores: a mixture, a store, or sources.
            spec: of the clips.
            batch_size: clips of a batch, on this rank.
            seed: of all random numbers here, at least 0.
            augmentation: of each clip; needs ``spec.size``. None: frames are only resized.
            workers: processes that read; 0: this one. They live as long as the loader.
            rank: of this process among those that train together; it takes clips rank, rank + ranks and so on.
            ranks: number of processes that train together.
            device: of the batches. A GPU resizes and augments them; for the CPU, the workers do.
            prefetch: batches that each worker reads ahead.

        Raises:
            UserError: an argument is out of range, or a store cannot be used.
        """
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, ranks=ranks)
        if workers < 0 or prefetch < 1:
            raise UserError(f"workers={workers}, prefetch={prefetch}; expected at least 0 and 1")
        if augmentation is not None and spec.size is None:
            raise UserError("augmentation crops frames and resizes them again; give ClipSpec a size")
        self.device = torch.device(device)
        self.mixture = OpenMixture(as_mixture(stores), spec)
        self.dataset = ClipDataset(self.mixture, augmentation, on_device=self.device.type != "cpu")
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=_Batches(self),  # pyright: ignore[reportArgumentType]  items are pairs, not ints
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_reopen,
            generator=torch.Generator(),  # the global one is not touched
        )

    def __iter__(self) -> Iterator[Clip]:
        """Yield batches from ``step`` on, without end; ``step`` counts them.

        Raises:
            UserError: a clip cannot be read.
        """
        for batch in self._loader:
            clip = self.dataset.finish(batch, self.device)
            self.step += 1
            yield clip

    @property
    def clip_frames(self) -> int:
        """Frames of a clip."""
        return self.mixture.spec.frames

    def clips(self, numbers: Sequence[int]) -> Clip:
        """Return a batch of clips by their numbers, read in this process."""
        return self.dataset.finish(self.dataset.__getitems__([(self.seed, k) for k in numbers]), self.device)


class _Batches:
    """The clips of each batch, endless from the loader's step on."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader, step = self._loader, self._loader.step
        while True:
            yield [(loader.seed, number) for number in loader.numbers(step)]
            step += 1


def _new_batch(shape: tuple[int, ...], device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.float32, device=device)
    # numpy reuses the memory of an earlier batch; for torch's aligned memory the system clears new pages each time.
    return torch.from_numpy(np.empty(shape, np.float32))


def _unchanged(batch: Any) -> Any:
    return batch


def _reopen(worker: int) -> None:
    info = get_worker_info()
    assert info is not None and info.id == worker
    info.dataset.reopen()  # pyright: ignore[reportAttributeAccessIssue]
