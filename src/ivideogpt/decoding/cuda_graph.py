"""Decoding of a whole frame as one CUDA graph.

One position of a small transformer is hundreds of short kernels, and the host takes longer to start them than a GPU to
run them. Here a frame is decoded with a static cache: the position of the frame is a number on the device, keys and
values are written by index into memory that stays in place, and attention goes over all of that memory under a mask.
The host reads no number, so that `decode_frame` can be captured once for each shape of a batch and then be replayed.

The computation is tested on a CPU, without capturing it. Capturing and replaying have not been run on a GPU yet.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from ivideogpt.decoding.decode import FrameInputs, FrameTokens, decode_frame
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.kv_cache import KVCache, attend_to_parts

#: Batches up to this size are decoded by a graph; 0: none is. Each graph holds a cache of its own for all its rows, and
#: many rows keep a GPU busy without. The number is a guess until a GPU was measured.
GRAPH_ROWS = 128
#: Graphs kept for each network: those of the batches and samplings that were used last.
_MOST_GRAPHS = 4
#: Runs before a capture: libraries choose their kernels and allocate their work space.
_WARMUP_RUNS = 3
#: Tolerance between the log-probabilities of a captured and of a plain run.
_TOLERANCE = 1e-3


class StaticCache(KVCache):
    """A cache that stays in its memory; the next position, int64 ``[1]``, is a number on the device."""

    def go_to(self, position: Tensor) -> None:
        """Set the next position."""
        self._position = position
        self._unseen = torch.arange(self.positions, device=position.device) > position

    def advance(self, count: int) -> None:
        """Move the next position on."""
        self.go_to(self._position + count)

    def remember(self, ids: Tensor) -> None:
        """Store the ids ``[b 1]`` of the next position."""
        self.ids.index_copy_(1, self._position, ids)

    def last_ids(self, count: int) -> Tensor:
        """Return the ids int64 ``[b count]`` of the last positions."""
        return self.ids.index_select(1, self._position + torch.arange(-count, 0, device=self._position.device))

    def rotary(self, table: Tensor, count: int) -> Tensor:
        """Return the part ``[2 1 head_dim]`` of a rotary table for the next position."""
        return table.index_select(1, self._position)

    def causal_mask(self, count: int) -> Tensor | None:
        """Return None: `attend` masks the memory after the next position."""
        return None

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0
    ) -> Tensor:
        """Add keys and values of one position and attend to all positions; see `KVCache.attend`."""
        parts = self.keys[layer], self.values[layer]
        for part, new in zip(parts, (keys, values), strict=True):
            part.index_copy_(2, self._position, new)
        return attend_to_parts(queries, [parts], self._unseen, dropout)


class StaticFrame:
    """A decoder of frames of one shape of batch, always in the same memory.

    Attributes:
        cache: a copy of the cache that is decoded with; of one session after the other.
        position: int64 ``[1]``: the first position of the frame.
        separators: int64 ``[b]``, as in `FrameInputs`.
        action: ``[b a]`` or None.
        uniforms: float32 ``[b m]``.
    """

    def __init__(self, dynamics: Dynamics, cache: KVCache, action: Tensor | None, sampling: Sampling) -> None:
        """Allocate memory for batches like that of ``cache`` and ``action``."""
        rows, device = len(cache.ids), cache.keys.device
        layers, _, heads, _, head_dim = cache.keys.shape
        shape = (layers, rows, heads, cache.positions, head_dim)
        self.cache = StaticCache.allocate(shape, device, cache.keys.dtype)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.separators = self.position.new_zeros(rows)
        self.action = None if action is None else torch.zeros_like(action)
        self.uniforms = torch.zeros(rows, dynamics.layout.dynamics_tokens, device=device)
        self._dynamics, self._sampling = weakref.ref(dynamics), sampling
        self._copied: tuple[weakref.ref[KVCache], int] | None = None
        self._replay: Callable[[], FrameTokens] | None = None

    def decode(self, cache: KVCache, separators: Tensor, action: Tensor | None, uniforms: Tensor) -> FrameTokens:
        """Sample the tokens of the next frame; see `decode_frame`."""
        start, count = cache.length, self.uniforms.shape[1] + 1

        # Copy the cache, unless it is the one of the last call and nothing else was added to it.
        if self._copied is None or self._copied[0]() is not cache or self._copied[1] != cache.passes:
            cache.copy_to(self.cache.keys, self.cache.values)
            self.cache.values[:, :, :, start:] = 0  # NaN in unused memory would pass the mask
            self.cache.ids.copy_(cache.ids)
        self._copied = None

        # Fill the inputs and run.
        self.position.fill_(start)
        self.separators.copy_(separators)
        self.uniforms.copy_(uniforms)
        if self.action is not None and action is not None:
            self.action.copy_(action)
        if self._replay is None:
            self._replay = checked_capture(self.run, self.position.device) if self.position.is_cuda else self.run
        tokens = FrameTokens(*(x.clone() for x in self._replay()))  # the next frame overwrites this memory

        # Append the frame to the cache of the caller.
        new = slice(start, start + count)
        cache.extend(self.cache.keys[:, :, :, new], self.cache.values[:, :, :, new], self.cache.ids[:, new])
        self._copied = weakref.ref(cache), cache.passes
        return tokens

    def run(self) -> FrameTokens:
        """Decode the frame from the static memory; the same again when called again."""
        dynamics = self._dynamics()
        assert dynamics is not None
        self.cache.go_to(self.position)
        inputs = self.separators, self.action, self._sampling, self.uniforms
        return decode_frame(FrameInputs(dynamics, self.cache, *inputs))


class _Graphs:
    """The static frames of one network; none of them outlives a move of its weights."""

    def __init__(self) -> None:
        self.frames: OrderedDict[Hashable, StaticFrame] = OrderedDict()
        self.failed: set[Hashable] = set()
        self.warned: set[str] = set()
        self.weights: tuple[int, ...] = ()

    def check_weights(self, dynamics: Dynamics) -> None:
        """Drop all frames when the weights were moved; weights that were changed in place are read there."""
        addresses = tuple(x.data_ptr() for x in (*dynamics.parameters(), *dynamics.buffers()))
        if addresses != self.weights:
            self._wait()
            self.frames.clear()
            self.failed.clear()
            self.weights = addresses

    def add(self, key: Hashable, frame: StaticFrame) -> None:
        """Keep a frame, and drop the one that was not used for longest."""
        self.frames[key] = frame
        if len(self.frames) > _MOST_GRAPHS:
            self._wait()
            self.frames.popitem(last=False)

    def warn(self, reason: str) -> None:
        """Warn of a reason once."""
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(f"frames are imagined without a CUDA graph: {reason}", stacklevel=4)

    def _wait(self) -> None:
        """Wait for graphs that may still be running in memory that is about to be freed."""
        if any(frame.position.is_cuda for frame in self.frames.values()):
            torch.cuda.synchronize()


_graphs: weakref.WeakKeyDictionary[Dynamics, _Graphs] = weakref.WeakKeyDictionary()


def decode_frame_by_graph(inputs: FrameInputs) -> FrameTokens | None:
    """Sample the tokens of the next frame by a graph, which is captured for the first batch of a shape.

    Returns:
        See `decode_frame`; None, with ``cache`` unchanged, where no graph can be used. A warning gives the reason once.
    """
    dynamics, cache, separators, action, sampling, uniforms = inputs
    room = min(cache.positions, dynamics.transformer.config.max_positions)
    if not GRAPH_ROWS or cache.length + dynamics.layout.dynamics_tokens >= room:  # `decode_frame` raises the error
        return None
    graphs = _graphs.setdefault(dynamics, _Graphs())
    if reason := why_no_graph(dynamics, len(uniforms)):
        graphs.warn(reason)
        return None
    with torch.inference_mode():
        graphs.check_weights(dynamics)
        key = len(uniforms), cache.positions, cache.keys.dtype, action is None, sampling
        if key in graphs.failed:
            return None
        frame = graphs.frames.pop(key, None)
        try:
            frame = frame or StaticFrame(dynamics, cache, action, sampling)
            tokens = frame.decode(cache, separators, action, uniforms)
        except RuntimeError as error:
            graphs.failed.add(key)
            graphs.warn(f"capturing it failed ({str(error).strip().splitlines()[0]})")
            return None
        graphs.add(key, frame)
        return tokens


def why_no_graph(dynamics: Dynamics, rows: int) -> str | None:
    """Return the reason why frames of ``rows`` rows cannot be decoded by a graph, or None where they can."""
    if dynamics.device.type != "cuda":
        return f"the model is on {dynamics.device.type}"
    if rows > GRAPH_ROWS:
        return f"{rows} rows are more than the {GRAPH_ROWS} that it pays for"
    if torch.is_grad_enabled():
        return "gradients are being recorded; imagine in torch.inference_mode()"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on, which keeps copies of weights; use a bfloat16 model instead"
    return None


def checked_capture(run: Callable[[], FrameTokens], device: torch.device) -> Callable[[], FrameTokens]:
    """Capture a function and compare its first replay with a plain run.

    Raises:
        RuntimeError: the results differ, or the function cannot be captured.
    """
    ids, log_probs, *_ = (x.clone() for x in run())
    replay = capture(run, device)
    replayed = replay()
    if not (torch.equal(replayed[0], ids) and torch.allclose(replayed[1], log_probs, atol=_TOLERANCE, rtol=0)):
        raise RuntimeError("the captured frame is another one than without capturing")
    return replay


def capture(run: Callable[[], FrameTokens], device: torch.device) -> Callable[[], FrameTokens]:
    """Capture a function of the device alone; return a function that replays it into the same memory.

    Raises:
        RuntimeError: the function does something that cannot be captured, or memory ran out.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those of a server or of a loader, may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            tokens = run()

    def replay() -> FrameTokens:
        with torch.cuda.device(device):
            graph.replay()
        return tokens

    return replay
