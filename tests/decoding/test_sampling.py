"""Drawing tokens: the right frequencies, and random numbers that depend on nothing but row and step."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ivideogpt import Sampling, UserError
from ivideogpt.decoding.sampling import FILTERS, RandomStreams

LAST = 1 - 2**-24  # the largest float32 below 1
LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0, 0.0, 1.0, -0.5])


def drawn(sampling, count=20_000, logits=LOGITS, seed=0):
    """How often each id is drawn."""
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    index, *_ = sampling.choose(logits.expand(count, -1), uniforms)
    return torch.bincount(index, minlength=len(logits)).double()


def assert_frequencies(counts, probabilities):
    """A chi-square test; the bound is passed by chance once in 100,000."""
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = probabilities[possible].double() * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 4.3 * (2 * freedom) ** 0.5 + 16, statistic


@dataclass(frozen=True, kw_only=True)
class MinP(Sampling):
    """Only ids with at least this share of the likeliest id's probability."""

    min_p: float | None = None


def test_a_new_sampling_rule_is_a_field_a_function_and_a_row(monkeypatch):
    def keep_min_p(scores, p):
        return scores.masked_fill(scores < scores.amax(dim=-1, keepdim=True) + math.log(p), -torch.inf)

    monkeypatch.setitem(FILTERS, "min_p", keep_min_p)
    probabilities = LOGITS.softmax(dim=0)
    kept = torch.where(probabilities >= 0.2 * probabilities.max(), probabilities, 0)
    assert 1 < (kept > 0).sum() < len(LOGITS)
    assert_frequencies(drawn(MinP(top_k=None, min_p=0.2)), kept / kept.sum())
    both = torch.where(probabilities >= probabilities.topk(2).values[-1], probabilities, 0)
    assert_frequencies(drawn(MinP(top_k=2, min_p=0.2)), both / both.sum())


# Frequencies


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ids_are_drawn_as_often_as_softmax_says(temperature):
    sampling = Sampling(temperature=temperature, top_k=None)
    assert_frequencies(drawn(sampling), (LOGITS / temperature).softmax(dim=0))


def test_the_frequency_test_finds_a_wrong_temperature():
    with pytest.raises(AssertionError):
        assert_frequencies(drawn(Sampling(temperature=1.05, top_k=None)), LOGITS.softmax(dim=0))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_leaves_the_k_likeliest_in_proportion(k):
    likeliest = LOGITS.topk(k)
    kept = torch.full((8,), -torch.inf).scatter(0, likeliest.indices, likeliest.values)
    assert_frequencies(drawn(Sampling(top_k=k)), kept.softmax(dim=0))


@pytest.mark.parametrize(("p", "count"), [(0.01, 1), (0.4, 1), (0.6, 2), (0.85, 4), (1.0, 8)])
def test_top_p_leaves_the_fewest_that_hold_p(p, count):
    probabilities = LOGITS.softmax(dim=0)
    ordered = probabilities.sort(descending=True)
    assert count == 8 or ordered.values[: count - 1].sum() < p <= ordered.values[:count].sum()
    kept = torch.zeros(8).scatter(0, ordered.indices[:count], ordered.values[:count])
    assert_frequencies(drawn(Sampling(top_k=None, top_p=p)), kept / kept.sum())


def test_top_p_stops_where_p_is_reached_exactly():
    assert (drawn(Sampling(top_k=None, top_p=0.5), logits=torch.zeros(4)) > 0).sum() == 2


def test_top_k_comes_before_top_p():
    # Of the two likeliest alone the first holds .62.
    assert drawn(Sampling(top_k=2, top_p=0.6)).nonzero().flatten().tolist() == [0]


def test_a_large_vocabulary_is_drawn_rightly():
    logits = 3 * torch.randn(8192, generator=torch.Generator().manual_seed(1))
    counts = drawn(Sampling(top_k=None), count=4_000, logits=logits)
    order = logits.argsort(descending=True)
    tenths = [part.tolist() for part in order.split([3, 10, 50, 200, 1000, 6929])]
    probabilities = logits.double().softmax(dim=0)
    assert_frequencies(
        torch.stack([counts[part].sum() for part in tenths]),
        torch.stack([probabilities[part].sum() for part in tenths]),
    )


# One draw


@pytest.mark.parametrize("sampling", [Sampling(top_k=3), Sampling(top_k=None, top_p=0.6), Sampling(top_k=None)])
@pytest.mark.parametrize("uniform", [0.0, LAST])
def test_the_ends_of_the_unit_interval_draw_possible_ids(sampling, uniform):
    logits = LOGITS.clone()
    logits[[0, -1]] = -torch.inf
    index, log_probs, _ = sampling.choose(logits[None], torch.tensor([uniform]))
    assert torch.isfinite(log_probs).all() and 0 < index.item() < 7


def test_greedy_takes_the_likeliest_whatever_the_random_numbers():
    assert drawn(Sampling(greedy=True, temperature=5.0)).nonzero().flatten().tolist() == [0]


def test_log_probabilities_are_those_before_top_k_at_the_temperature():
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(temperature=0.7, top_k=2), Sampling(temperature=0.7, top_p=0.5), Sampling(greedy=True)):
        index, log_probs, _ = sampling.choose(LOGITS.expand(50, -1), uniforms)
        expected = (LOGITS / sampling.temperature).log_softmax(dim=0)[index]
        torch.testing.assert_close(log_probs, expected)
    assert sampling.choose(LOGITS.bfloat16().expand(50, -1), uniforms)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf; expected more than 0, and finite"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected more than 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Sampling(**changes)


# Random streams


def test_uniforms_are_uniform_over_rows_steps_and_places():
    streams = RandomStreams.from_seed(3, rows=20)
    numbers = torch.stack([streams.uniforms(step, 50) for step in range(20)])
    assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
    bins = (numbers * 50).long()
    assert_frequencies(torch.bincount(bins.flatten(), minlength=50).double(), torch.full((50,), 1 / 50))
    neighbours = (numbers[:, :, :-1] * 10).long() * 10 + (numbers[:, :, 1:] * 10).long()
    assert_frequencies(torch.bincount(neighbours.flatten(), minlength=100).double(), torch.full((100,), 1 / 100))
    assert len(numbers.unique()) > 0.999 * numbers.numel()


def test_a_step_draws_the_same_again_and_its_first_numbers_do_not_depend_on_how_many():
    streams = RandomStreams.from_seed(3, rows=2)
    first = streams.uniforms(5, 8)
    streams.uniforms(6, 8)
    assert torch.equal(streams.uniforms(5, 8), first) and torch.equal(streams.uniforms(5, 3), first[:, :3])


def test_a_row_does_not_depend_on_the_rows_around_it():
    eight = RandomStreams.from_seed(3, rows=8).uniforms(2, 4)
    assert torch.equal(RandomStreams.from_seed(3, rows=2).uniforms(2, 4), eight[:2])
    many = RandomStreams.from_seed([5, 6, 7], rows=3).uniforms(2, 4)
    assert torch.equal(RandomStreams.from_seed([6], rows=1).uniforms(2, 4), many[1:2])
    assert torch.equal(RandomStreams.from_seed(6, rows=1).uniforms(2, 4), many[1:2])


def test_seeds_differ_and_may_be_numpy_numbers():
    assert not torch.equal(*(RandomStreams.from_seed(seed, rows=1).uniforms(0, 4) for seed in (1, 2)))
    assert RandomStreams.from_seed(np.int64(4), rows=2) == RandomStreams.from_seed(4, rows=2)
    assert RandomStreams.from_seed(np.array([4, 5]), rows=2) == RandomStreams.from_seed([4, 5], rows=2)


def test_another_number_of_seeds_than_rows_is_refused():
    with pytest.raises(UserError, match="2 seeds were given for 3 rows"):
        RandomStreams.from_seed([1, 2], rows=3)


def test_the_first_child_keeps_the_stream_and_the_others_get_new_ones():
    parent = RandomStreams.from_seed(3, rows=2)
    children = parent.fork(3, step=4, common=False)
    assert children.keys[0] == parent.keys[0] and children.keys[3] == parent.keys[1]
    assert len(set(children.keys)) == 6
    assert parent.fork(3, step=4, common=True).keys == tuple(key for key in parent.keys for _ in range(3))
    assert set(parent.fork(3, step=5, common=False).keys) & set(children.keys) == set(parent.keys)


# Entropy


def test_entropy_is_that_of_the_whole_distribution_at_this_temperature():
    for sampling in (Sampling(temperature=2.0, top_k=2), Sampling(temperature=2.0, greedy=True)):
        entropy = sampling.choose(LOGITS[None], torch.tensor([0.3])).entropy
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=LOGITS[None] / 2).entropy())
