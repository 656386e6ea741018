"""Caches that share what they have in common say the same as caches of their own, whatever is done to either."""

import random

import pytest
import torch

from ivideogpt.models.kv_cache import KVCache, attend_to_parts
from ivideogpt.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, max_positions=64
)


def cache_shape(config, rows, positions):
    return config.num_layers, rows, config.num_heads, positions, config.hidden_size // config.num_heads


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    made = Transformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 32**-0.5 + (1.0 if parameter.ndim == 1 else 0.0))
    return made


class Reader:
    """A cache, and beside it everything that it has read."""

    def __init__(self, transformer, cache, seen):
        self.transformer, self.cache, self.seen = transformer, cache, seen

    @classmethod
    def new(cls, transformer, rows, positions=CONFIG.max_positions):
        cache = KVCache.allocate(cache_shape(CONFIG, rows, positions), torch.device("cpu"), torch.float32)
        return cls(transformer, cache, torch.empty(rows, 0, CONFIG.hidden_size))

    def read(self, count):
        """Reads new positions, other ones in each row; what comes out is as if all had been read at once."""
        start = self.cache.length
        self.seen = torch.cat([self.seen, torch.randn(len(self.seen), count, CONFIG.hidden_size)], dim=1)
        self.cache.remember(self.seen[:, start:, 0].mul(100).long())
        found = self.transformer(self.seen[:, start:], self.cache)
        torch.testing.assert_close(found, self.transformer(self.seen)[:, start:], atol=2e-5, rtol=1e-4)
        assert self.cache.length == self.seen.shape[1]
        assert torch.equal(self.cache.ids[:, : self.cache.length], self.seen[:, :, 0].mul(100).long())
        return self

    def fork(self, k):
        return Reader(self.transformer, self.cache.repeat(k), self.seen.repeat_interleave(k, dim=0))

    def back(self, length):
        self.cache.truncate(length)
        self.seen = self.seen[:, :length]
        return self


@pytest.fixture
def reader(transformer):
    """``reader(rows)`` that has read ten positions."""
    torch.manual_seed(1)
    with torch.inference_mode():
        yield lambda rows=2: Reader.new(transformer, rows).read(10)


def held(*readers):
    """Bytes of keys and values that the caches hold together."""
    caches = [reader.cache for reader in readers]
    tensors = [x for cache in caches for part in (cache, *cache.prefixes) for x in (part.keys, part.values)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_reading_forking_and_going_back_equals_reading_at_once(reader, seed):
    chance = random.Random(seed)
    readers = [reader(chance.choice([1, 2, 3]))]
    for _ in range(40):
        one = chance.choice(readers)
        room, rows = CONFIG.max_positions - one.cache.length, len(one.seen)
        what = chance.choice(["read", "read", "read", "fork", "back"])
        if what == "read" and room:
            one.read(chance.choice([1, 1, min(4, room)]))
        elif what == "fork" and rows <= 12:
            readers.append(one.fork(chance.choice([1, 2, 3])))
        elif what == "back":
            one.back(chance.randint(1, one.cache.length))
        if len(readers) > 5:
            readers.pop(chance.randrange(5))
    for one in readers:
        if one.cache.length < CONFIG.max_positions:
            one.read(1)


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("count", [1, 5])
def test_children_read_the_positions_of_their_parent_in_place(reader, k, count):
    parent = reader()
    child = parent.fork(k)
    assert child.cache.prefixes[0].keys.data_ptr() == parent.cache.keys.data_ptr()
    child.read(count).read(1)
    room = CONFIG.max_positions - 10
    assert child.cache.keys.shape == (2, 2 * k, 2, room, 16)
    assert held(parent, child) == held(parent) + 2 * child.cache.keys.nbytes
    assert child.cache.positions == CONFIG.max_positions


def test_an_only_child_is_a_copy(reader):
    parent = reader()
    child = parent.fork(1)
    assert not child.cache.prefixes
    child.read(2)
    parent.back(4).read(8)
    child.back(8).read(1)


def test_neither_sees_what_the_other_reads_later(reader):
    parent = reader()
    child, other = parent.fork(3), parent.fork(2)
    parent.read(4)
    child.read(2)
    other.read(1)
    parent.read(1)
    child.read(3)


@pytest.mark.parametrize("length", [9, 3, 0])
def test_a_parent_that_goes_back_and_on_leaves_its_children_what_they_read(reader, length):
    parent = reader()
    parent.read(3)
    child = parent.fork(3)
    before = child.read(1).cache.prefixes[0].keys.clone()
    parent.back(length).read(10)
    assert torch.equal(child.cache.prefixes[0].keys, before)
    child.read(1)
    parent.read(1)


def test_a_child_that_went_back_still_keeps_its_part_from_being_overwritten(reader):
    parent = reader()
    child = parent.fork(3).back(6)
    parent.back(2).read(8)
    child.read(2)


def test_a_parent_moves_to_new_memory_only_where_somebody_reads_the_old(reader):
    parent = reader()
    where = parent.cache.keys.data_ptr()
    child = parent.fork(2)
    parent.read(5).back(10).read(1)
    assert parent.cache.keys.data_ptr() == where, "what lies behind the fork is the parent's own"
    del child
    parent.back(4).read(1)
    assert parent.cache.keys.data_ptr() == where, "nobody is left who reads it"
    child = parent.fork(2)
    parent.back(4)
    assert parent.cache.keys.data_ptr() != where
    child.read(1)


@pytest.mark.parametrize("length", [11, 10, 7, 1, 0])
def test_a_child_that_goes_back_before_its_birth_goes_on_in_each_row_alone(reader, length):
    parent = reader()
    child = parent.fork(3).read(4).back(length).read(5)
    rows = child.seen.view(2, 3, -1, CONFIG.hidden_size)
    assert (rows[:, 0, length:] != rows[:, 1, length:]).any()
    parent.read(2)
    assert child.cache.positions == CONFIG.max_positions and sum(map(len, child.cache.prefixes)) <= length


@pytest.mark.parametrize("length", [17, 15, 13, 11, 4])
def test_forks_of_forks_go_back_over_each_others_birth(reader, length):
    grandparent = reader()
    parent = grandparent.fork(2).read(3)
    child = parent.fork(2).read(3)
    grandchild = child.fork(2).read(2)
    for one in (grandchild, child, parent, grandparent):
        if length < one.cache.length:
            one.back(length).read(3)
        else:
            one.read(1)
    for one in (grandchild, child, parent, grandparent):
        one.read(1)


def test_however_often_it_is_forked_a_cache_reads_few_parts(reader):
    one = reader(1)
    context = one.cache.keys.data_ptr()
    for _ in range(5):
        one = one.fork(2).read(1)
        assert len(one.cache.prefixes) <= 2 and one.cache.prefixes[0].keys.data_ptr() == context
    assert len(one.seen) == 32
    twice = one.fork(2).fork(2)
    assert len(twice.cache.prefixes) == 2, "nothing was read in between"
    twice.read(1)


def test_parts_are_attended_to_as_one():
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 3, 9, 8)
    own_keys, own_values = torch.randn(2, 8, 3, 5, 8)
    queries, mask = torch.randn(8, 3, 4, 8), torch.ones(4, 14, dtype=torch.bool).tril(10)
    whole = (torch.cat([x.repeat_interleave(4, 0), own], dim=2) for x, own in ((keys, own_keys), (values, own_values)))
    expected = torch.nn.functional.scaled_dot_product_attention(queries, *whole, attn_mask=mask)
    found = attend_to_parts(queries, [(keys, values), (own_keys, own_values)], ~mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
