"""Keys and values of the positions that a transformer has read; forked rows share those that they have in common."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Cache = TypeVar("Cache", bound="KVCache")

#: Most prefixes of a cache: that of the context, and one of everything forked since. Each costs some products.
_MOST_PREFIXES = 2


class Prefix:
    """Positions that several caches share and none changes.

    Attributes:
        keys, values: ``[layers b heads n head_dim]``; consecutive rows of a cache that reads it share a row of it.
    """

    def __init__(self, keys: Tensor, values: Tensor, whole: Prefix | None = None) -> None:
        """Wrap tensors; ``whole``: the prefix that they are a part of, which is kept alive."""
        self.keys, self.values, self._whole = keys, values, whole

    def __len__(self) -> int:
        """Return the number n of positions."""
        return self.keys.shape[3]

    def first(self, count: int) -> Prefix:
        """Return the first ``count`` positions."""
        if count >= len(self):
            return self
        whole = self if self._whole is None else self._whole
        return Prefix(self.keys[:, :, :, :count], self.values[:, :, :, :count], whole)


class KVCache:
    """Keys and values of every layer, allocated once.

    A fork reads the positions of its parent in place (``prefixes``) and owns only the later ones. The parent goes on in
    its own memory: it writes behind the prefix, and before it overwrites a part of the prefix that is still shared it
    moves to new memory.

    Attributes:
        keys, values: ``[layers b heads positions head_dim]`` of the positions after the prefixes.
        ids: int64 ``[b positions]``: the tokens that were read, from the first on, for forecasts.
        length: positions filled so far, prefixes included, the same for all rows.
        passes: number of times that positions were added; while it stays the same, so do the positions before
            ``length``.
        prefixes: the first positions, in order; each has at least as many rows as the one before.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, ids: Tensor, length: int = 0, prefixes: Sequence[Prefix] = ()
    ) -> None:
        """Wrap allocated tensors."""
        self.keys, self.values, self.ids, self.length = keys, values, ids, length
        self.prefixes, self.passes = tuple(prefixes), 0
        self._start = sum(map(len, self.prefixes))
        self._lent: weakref.WeakSet[Prefix] = weakref.WeakSet()

    @classmethod
    def allocate(cls: type[Cache], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Cache:
        """Allocate an empty cache of ``shape`` (layers, b, heads, positions, head_dim)."""
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.zeros(shape[1], shape[3], device=device, dtype=torch.long))

    @property
    def positions(self) -> int:
        """Positions that fit into the cache."""
        return self._start + self.keys.shape[3]

    def repeat(self, k: int) -> KVCache:
        """Return an independent cache with each row k times.

        Several children share the positions of this cache; a single one copies them, which is faster to read.
        """
        ids = self.ids.repeat_interleave(k, dim=0)
        if k == 1:
            keys, values = (_copy(x, self.length - self._start) for x in (self.keys, self.values))
            return KVCache(keys, values, ids, self.length, self.prefixes)
        layers, rows, heads, _, head_dim = self.keys.shape
        shape = (layers, rows * k, heads, self.positions - self.length, head_dim)
        keys, values = (self.keys.new_empty(shape) for _ in range(2))
        return KVCache(keys, values, ids, self.length, self._lend())

    def select(self, rows: Tensor) -> KVCache:
        """Return an independent cache of the rows int64 ``[k]``, on its device; it shares nothing."""
        layers, _, heads, _, head_dim = self.keys.shape
        shape = (layers, self.ids.shape[0], heads, self.length, head_dim)
        keys, values = (x.new_empty(shape) for x in (self.keys, self.values))
        self.copy_to(keys, values)
        room = (0, 0, 0, self.positions - self.length)
        return KVCache(F.pad(keys[:, rows], room), F.pad(values[:, rows], room), self.ids[rows], self.length)

    def remember(self, ids: Tensor) -> None:
        """Store the ids ``[b n]`` of the next n positions."""
        self.ids[:, self.length : self.length + ids.shape[1]] = ids

    def last_ids(self, count: int) -> Tensor:
        """Return the ids int64 ``[b count]`` of the last positions."""
        return self.ids[:, self.length - count : self.length]

    def rotary(self, table: Tensor, count: int) -> Tensor:
        """Return the part ``[2 count head_dim]`` of ``table`` ``[2 positions head_dim]`` for the next positions."""
        return table[:, self.length : self.length + count]

    def causal_mask(self, count: int) -> Tensor | None:
        """Return the mask bool ``[count total]`` of the next positions; None: a single one, which sees everything."""
        if count == 1:
            return None
        return torch.ones(count, self.length + count, dtype=torch.bool, device=self.ids.device).tril(self.length)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[b heads n head_dim]`` after the filled positions; return all own keys and values up to there.

        The length grows only when the whole network has run (`advance`).
        """
        start = self.length - self._start
        stop = start + keys.shape[2]
        self.keys[layer, :, :, start:stop] = keys
        self.values[layer, :, :, start:stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0
    ) -> Tensor:
        """Add keys and values of the next n positions and attend from there to all positions.

        Args:
            layer: number of the layer.
            queries: ``[b heads n head_dim]``.
            keys: the same.
            values: the same.
            mask: bool ``[n total]``; None: each query attends to everything.
            dropout: share of the attention that is dropped.

        Returns:
            ``[b heads n head_dim]``, of the dtype of the queries; computed in that of the cache.
        """
        dtype, queries = queries.dtype, queries.to(self.keys.dtype)
        parts = [(prefix.keys[layer], prefix.values[layer]) for prefix in self.prefixes]
        parts.append(self.append(layer, keys, values))
        if len(parts) > 1 or (queries.shape[2] == 1 and queries.device.type == "cpu"):
            # The fused kernel is made for many queries; for one it is five times slower than three products.
            return attend_to_parts(queries, parts, None if mask is None else ~mask, dropout).to(dtype)
        return F.scaled_dot_product_attention(queries, *parts[0], attn_mask=mask, dropout_p=dropout).to(dtype)

    def advance(self, count: int) -> None:
        """Count ``count`` new positions as filled."""
        self.length += count
        self.passes += 1

    def extend(self, keys: Tensor, values: Tensor, ids: Tensor) -> None:
        """Add n positions in all layers: ``[layers b heads n head_dim]`` and int64 ``[b n]``."""
        self.remember(ids)
        new = slice(self.length - self._start, self.length - self._start + ids.shape[1])
        self.keys[:, :, :, new], self.values[:, :, :, new] = keys, values
        self.advance(ids.shape[1])

    def copy_to(self, keys: Tensor, values: Tensor) -> None:
        """Write all filled positions, prefixes too, to the first ones of ``[layers b heads positions head_dim]``."""
        own, stop = self.length - self._start, 0
        for part in (*self.prefixes, Prefix(self.keys[:, :, :, :own], self.values[:, :, :, :own])):
            start, stop = stop, stop + len(part)
            for source, target in ((part.keys, keys), (part.values, values)):
                families = target[:, :, :, start:stop].unflatten(1, (source.shape[1], -1))
                families.copy_(source[:, :, None].expand_as(families))

    def truncate(self, length: int) -> None:
        """Drop all positions from ``length`` on."""
        assert length <= self.length
        self.length = length
        if length < self._start:
            self._shorten()
        elif any(len(prefix) > length - self._start for prefix in self._lent):
            self.keys, self.values = (_copy(x, length - self._start) for x in (self.keys, self.values))
            self._lent.clear()

    def _lend(self) -> tuple[Prefix, ...]:
        """Return the filled positions as prefixes of another cache."""
        filled = self.length - self._start
        if not filled:
            return self.prefixes
        own = Prefix(self.keys[:, :, :, :filled], self.values[:, :, :, :filled])
        if len(self.prefixes) < _MOST_PREFIXES:
            self._lent.add(own)
            return *self.prefixes, own
        later = [*self.prefixes[_MOST_PREFIXES - 1 :], own]
        rows = self.keys.shape[1]
        keys, values = (
            torch.cat([x.repeat_interleave(rows // x.shape[1], dim=1) for x in parts], dim=3)
            for parts in ([part.keys for part in later], [part.values for part in later])
        )
        return *self.prefixes[: _MOST_PREFIXES - 1], Prefix(keys, values)

    def _shorten(self) -> None:
        """Drop the prefixes, or the part of one, beyond the length, and all own positions."""
        layers, rows, heads, _, head_dim = self.keys.shape
        shape = (layers, rows, heads, self.positions - self.length, head_dim)
        self.keys, self.values = (self.keys.new_empty(shape) for _ in range(2))
        kept, left = [], self.length
        for prefix in self.prefixes:
            if left > 0:
                kept.append(prefix.first(left))
            left -= len(prefix)
        self.prefixes, self._start = tuple(kept), self.length
        self._lent.clear()


def attend_to_parts(
    queries: Tensor, parts: Sequence[tuple[Tensor, Tensor]], unseen: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attend to keys and values in several tensors.

    Args:
        queries: ``[b heads n head_dim]``.
        parts: keys and values ``[b / k heads positions head_dim]``; each row of them belongs to k consecutive queries,
            which are multiplied with it as one matrix. The first part has the fewest rows.
        unseen: bool, True for masked positions, broadcast to ``[n positions]`` over all parts; None: no mask.
        dropout: share of the attention that is dropped.

    Returns:
        ``[b heads n head_dim]``.
    """
    count, groups = queries.shape[2], len(parts[0][0])
    queries = queries * queries.shape[-1] ** -0.5
    scores = [
        _grouped(torch.matmul(_grouped(queries, len(keys), count), keys.transpose(-1, -2)), groups, count)
        for keys, _ in parts
    ]
    joined = (torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0]).float()
    if unseen is not None:
        joined = joined.unflatten(2, (-1, count)).masked_fill(unseen, -torch.inf).flatten(2, 3)
    joined = joined.softmax(dim=-1).to(queries.dtype)
    if dropout:
        joined = F.dropout(joined, dropout)
    shares = joined.split([keys.shape[2] for keys, _ in parts], dim=-1) if len(parts) > 1 else (joined,)
    outputs = [
        _grouped(torch.matmul(_grouped(share, len(values), count), values), len(queries), count)
        for share, (_, values) in zip(shares, parts, strict=True)
    ]
    return sum(outputs[1:], start=outputs[0])


def _grouped(x: Tensor, groups: int, count: int) -> Tensor:
    """Regroup ``[b heads k*n e]``, k rows of n = ``count`` queries in each of b groups, into ``groups`` groups."""
    before, heads, _, width = x.shape
    if before == groups:
        return x
    x = x.view(before, heads, -1, count, width).transpose(1, 2).reshape(groups, -1, heads, count, width)
    return x.transpose(1, 2).flatten(2, 3)


def _copy(x: Tensor, count: int) -> Tensor:
    """Copy the first ``count`` positions of ``x`` to new memory of the same shape."""
    copied = torch.empty_like(x)
    copied[:, :, :, :count] = x[:, :, :, :count]
    return copied
