"""A whole frame as one piece of work for the device, so that CUDA can replay it as a graph.

One position of a small transformer is hundreds of short kernels, and the host takes longer to start them than a GPU to
run them. Here all 1 + m positions of a frame are computed without a look at any number on the host: where the frame
begins is a number on the device, keys and values are written by index into memory that stays in place, and attention
goes over all of that memory under a mask. On CUDA the frame is captured once for each shape of a batch and from then on
started at once.

What is computed is tested on a CPU, without capturing it. Capturing and replaying have never run: there was no GPU.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.kv_cache import KVCache, attend_to_parts
from ivideogpt.worldmodel import embeddings

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel

#: ids, log_probs, entropies and hidden of `engine.FrameTokens`.
Drawn = tuple[Tensor, Tensor, Tensor, Tensor]

#: A batch up to this size is decoded by a graph; 0: none is. Each graph holds a cache of its own for all its rows, and
#: many rows keep a GPU busy without. The number is a guess until a GPU was measured.
GRAPH_ROWS = 128
#: Graphs that a model keeps: of the batches and samplings that were used last.
_MOST_GRAPHS = 4
#: Runs before a capture: libraries choose their kernels and allocate what they work in.
_WARMUP_RUNS = 3
#: How far log-probabilities of the same kernels may lie apart.
_SAME = 1e-3


class StaticCache(KVCache):
    """A cache that stays in its place and is written and read at a position that only the device knows."""

    def go_to(self, place: Tensor) -> None:
        """The next position is ``place``, int64 ``[1]``."""
        self._place = place
        self._unseen = torch.arange(self.positions, device=place.device) > place

    def remember(self, ids: Tensor) -> None:
        """Notes the ids ``[b 1]`` of the position."""
        self.ids.index_copy_(1, self._place, ids)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """As `KVCache.attend`, for one position; ``mask`` is not used."""
        parts = self.keys[layer], self.values[layer]
        for part, new in zip(parts, (keys, values), strict=True):
            part.index_copy_(2, self._place, new)
        return attend_to_parts(queries, [parts], self._unseen)


class StaticFrame:
    """Decodes frames of one shape of batch, always in the same memory.

    Attributes:
        cache: a copy of the cache that is decoded for; of one session after the other.
        position: int64 ``[1]``: where the frame begins.
        separators, action, uniforms: as `engine.decode_frame` gets them.
    """

    def __init__(self, model: WorldModel, cache: KVCache, action: Tensor | None, sampling: Sampling) -> None:
        """Allocates memory for batches like that of ``cache`` and ``action``."""
        rows, device, config = len(cache.ids), cache.keys.device, model.transformer.config
        self.cache = StaticCache.allocate(config, rows, cache.positions, device, cache.keys.dtype)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.separators = self.position.new_zeros(rows)
        self.action = None if action is None else torch.zeros_like(action)
        self.uniforms = torch.zeros(rows, model.layout.dynamics_tokens, device=device)
        self._model, self._sampling = weakref.ref(model), sampling
        self._held: tuple[weakref.ref[KVCache], int] | None = None
        self._replay: Callable[[], Drawn] | None = None

    def decode(self, cache: KVCache, separators: Tensor, action: Tensor | None, uniforms: Tensor) -> Drawn:
        """As `engine.decode_frame`."""
        start, count = cache.length, self.uniforms.shape[1] + 1
        if self._held is None or self._held[0]() is not cache or self._held[1] != cache.passes:
            cache.copy_to(self.cache.keys, self.cache.values)
            self.cache.values[:, :, :, start:] = 0  # a number left behind that is none would pass the mask
            self.cache.ids.copy_(cache.ids)
        self._held = None
        self.position.fill_(start)
        self.separators.copy_(separators)
        self.uniforms.copy_(uniforms)
        if self.action is not None and action is not None:
            self.action.copy_(action)
        if self._replay is None:
            self._replay = checked(self.draw, self.position.device) if self.position.is_cuda else self.draw
        # The memory of what was drawn is written again by the next frame.
        drawn = tuple(x.clone() for x in self._replay())
        new = slice(start, start + count)
        cache.extend(self.cache.keys[:, :, :, new], self.cache.values[:, :, :, new], self.cache.ids[:, new])
        self._held = weakref.ref(cache), cache.passes
        return drawn  # type: ignore[return-value]

    def draw(self) -> Drawn:
        """Draws the frame; the same again when called again."""
        model = self._model()
        assert model is not None
        layout, transformer = model.layout, model.transformer
        legal = layout.dynamics_ids if self._sampling.legal_only else range(layout.vocab_size)
        added = embeddings.frame_inputs(model, self._guess(model), self.action)
        slots = torch.arange(layout.frame_length, device=self.position.device)
        places, ids, choices = self.position + slots, self.separators, []
        for index in range(layout.frame_length):
            here = slice(index, index + 1)
            self.cache.go_to(places[here])
            self.cache.remember(ids[:, None])
            x = embeddings.embed(model, ids[:, None], slots[here])
            x = x if added is None else x + added[:, here]
            rope = transformer.rope.index_select(1, places[here])
            for number, layer in enumerate(transformer.layers):
                x = layer(x, rope, None, self.cache, number)
            hidden = transformer.norm(x)[:, 0]
            if index < layout.dynamics_tokens:
                choices.append(self._sampling.choose(transformer.logits(hidden, legal), self.uniforms[:, index]))
                ids = legal.start + choices[-1].index
        chosen, log_probs, entropies = (torch.stack(parts, dim=1) for parts in zip(*choices, strict=True))
        return legal.start + chosen, log_probs, entropies, hidden

    def _guess(self, model: WorldModel) -> Tensor | None:
        """The forecast ``[b m d]`` of the frame, or None where the model has none."""
        heads = model.config.heads
        if not heads.forecast_grid:
            return None
        count = heads.forecast_frames * model.layout.frame_length - 1
        window = self.position + torch.arange(-count, 0, device=self.position.device)
        history = embeddings.history(model, self.cache.ids.index_select(1, window), heads.forecast_frames)
        return embeddings.forecast(model, history, self.action)


class _Graphs:
    """The frames that a model keeps; none of them outlives a move of its weights."""

    def __init__(self) -> None:
        self.frames: OrderedDict[Hashable, StaticFrame] = OrderedDict()
        self.failed: set[Hashable] = set()
        self.said: set[str] = set()
        self.weights: tuple[int, ...] = ()

    def check(self, model: WorldModel) -> None:
        """Forgets all frames when weights lie elsewhere; what changed in its place is read there."""
        parts = (model.transformer, model.heads)
        where = tuple(x.data_ptr() for part in parts for x in (*part.parameters(), *part.buffers()))
        if where != self.weights:
            self._wait()
            self.frames.clear()
            self.failed.clear()
            self.weights = where

    def add(self, key: Hashable, frame: StaticFrame) -> None:
        """Keeps a frame in place of the one that was not used for longest."""
        self.frames[key] = frame
        if len(self.frames) > _MOST_GRAPHS:
            self._wait()
            self.frames.popitem(last=False)

    def say(self, reason: str) -> None:
        """Warns of a reason once."""
        if reason not in self.said:
            self.said.add(reason)
            warnings.warn(f"frames are imagined without a CUDA graph: {reason}", stacklevel=4)

    def _wait(self) -> None:
        """A graph may be at work still in the memory that it is about to lose."""
        if any(frame.position.is_cuda for frame in self.frames.values()):
            torch.cuda.synchronize()


_kept: weakref.WeakKeyDictionary[WorldModel, _Graphs] = weakref.WeakKeyDictionary()


def decode_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor
) -> Drawn | None:
    """As `engine.decode_frame`, by a graph that is captured when a batch like this comes for the first time.

    Returns:
        ids, log_probs, entropies and hidden; None, and ``cache`` as it was, where no graph can be used. A warning says
        why, each reason once.
    """
    room = min(cache.positions, model.transformer.config.max_positions)
    if not GRAPH_ROWS or cache.length + model.layout.frame_length > room:  # then the usual way says what is wrong
        return None
    graphs = _kept.setdefault(model, _Graphs())
    if reason := why_not(model, len(uniforms)):
        graphs.say(reason)
        return None
    with torch.inference_mode():
        graphs.check(model)
        key = len(uniforms), cache.positions, cache.keys.dtype, action is None, sampling
        if key in graphs.failed:
            return None
        frame = graphs.frames.pop(key, None)
        try:
            frame = frame or StaticFrame(model, cache, action, sampling)
            drawn = frame.decode(cache, separators, action, uniforms)
        except RuntimeError as error:
            graphs.failed.add(key)
            graphs.say(f"capturing it failed ({str(error).strip().splitlines()[0]})")
            return None
        graphs.add(key, frame)
        return drawn


def why_not(model: WorldModel, rows: int) -> str | None:
    """The reason why frames of ``rows`` rows cannot be decoded by a graph; None: they can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if rows > GRAPH_ROWS:
        return f"{rows} rows are more than the {GRAPH_ROWS} that it pays for"
    if torch.is_grad_enabled():
        return "gradients are being recorded; imagine in torch.inference_mode()"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on, which keeps copies of weights; use a bfloat16 model instead"
    return None


def checked(draw: Callable[[], Drawn], device: torch.device) -> Callable[[], Drawn]:
    """What `capture` gives, once its first frame has been found to be that of ``draw``.

    Raises:
        RuntimeError: it is another one, or it cannot be captured.
    """
    ids, log_probs, *_ = (x.clone() for x in draw())
    replay = capture(draw, device)
    found = replay()
    if not (torch.equal(found[0], ids) and torch.allclose(found[1], log_probs, atol=_SAME, rtol=0)):
        raise RuntimeError("the captured frame is another one than without capturing")
    return replay


def capture(draw: Callable[[], Drawn], device: torch.device) -> Callable[[], Drawn]:
    """Captures a function of the device alone; what is returned replays it into the same memory.

    Raises:
        RuntimeError: it does something that cannot be captured, or memory ran out.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):
                draw()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, as those of a server or of a loader do.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            drawn = draw()

    def replay() -> Drawn:
        with torch.cuda.device(device):
            graph.replay()
        return drawn

    return replay
