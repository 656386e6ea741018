"""The decoder: equal to transformers' Llama, and to itself with a cache."""

import pytest
import torch

from ivideogpt import UserError
from ivideogpt.models.transformer import KVCache, Transformer, TransformerConfig
from ivideogpt.worldmodel.checkpoint import transformer_from_official, transformer_to_official

CONFIG = TransformerConfig(
    vocab_size=50, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4, max_positions=96, rope_theta=5000.0
)


def cache_shape(config, rows, positions):
    return config.num_layers, rows, config.num_heads, positions, config.hidden_size // config.num_heads


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    made = Transformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 48**-0.5 + (1.0 if parameter.ndim == 1 else 0.0))
    return made


def some_ids(rows=2, count=80):
    return torch.randint(50, (rows, count), generator=torch.Generator().manual_seed(1))


def cached(transformer, x, pieces):
    """Hidden states of ``x`` fed in ``pieces``, with one cache."""
    cache = KVCache.allocate(cache_shape(transformer.config, len(x), CONFIG.max_positions), x.device, x.dtype)
    return torch.cat([transformer(part, cache) for part in x.split(pieces, dim=1)], dim=1), cache


@torch.no_grad()
def test_logits_equal_those_of_transformers_llama(transformer):
    transformers = pytest.importorskip("transformers", reason="the oracle comes with: pip install 'ivideogpt[dev]'")
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=96,
            rms_norm_eps=CONFIG.rms_norm_eps,
            rope_theta=CONFIG.rope_theta,
            tie_word_embeddings=False,
        )
    ).eval()
    llama.load_state_dict(transformer_to_official(dict(transformer.state_dict()), CONFIG.num_layers))
    ids = some_ids()
    expected = llama(ids).logits
    found = transformer.logits(transformer(transformer.embed(ids)))
    assert expected.std() > 0.5, "weights so small prove nothing"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    decoded, _ = cached(transformer, transformer.embed(ids), [40, 20, *[1] * 20])
    torch.testing.assert_close(transformer.logits(decoded), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[80], [1] * 80, [50, *[1] * 30], [30, 17, 17, 1, 15]])
def test_a_cache_changes_nothing(transformer, pieces):
    x = transformer.embed(some_ids())
    found, cache = cached(transformer, x, pieces)
    torch.testing.assert_close(found, transformer(x), atol=1e-5, rtol=1e-4)
    assert cache.length == 80


@torch.no_grad()
def test_a_position_sees_nothing_after_it(transformer):
    ids = some_ids()
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 50
    one, other = (transformer(transformer.embed(x)) for x in (ids, changed))
    torch.testing.assert_close(one[:, :40], other[:, :40], atol=1e-6, rtol=0)
    assert (one[:, 40:] - other[:, 40:]).abs().amax(dim=(0, 2)).min() > 1e-3


@torch.no_grad()
def test_a_truncated_cache_goes_on_as_if_never_longer(transformer):
    x = transformer.embed(some_ids())
    _, cache = cached(transformer, x[:, :60], [60])
    cache.truncate(40)
    torch.testing.assert_close(transformer(x[:, 40:41], cache), transformer(x)[:, 40:41], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_repeated_cache_goes_on_with_each_row_k_times(transformer):
    x = transformer.embed(some_ids())
    _, cache = cached(transformer, x[:, :60], [60])
    twice = cache.repeat(2)
    found = transformer(x[:, 60:61].repeat_interleave(2, dim=0), twice)
    torch.testing.assert_close(found, transformer(x)[:, 60:61].repeat_interleave(2, dim=0), atol=1e-5, rtol=1e-4)
    assert (cache.length, twice.length) == (60, 61) and not cache.keys[:, :, :, 60].any()


@torch.no_grad()
def test_logits_of_some_ids_are_a_part_of_all_in_float32(transformer):
    hidden = transformer(transformer.embed(some_ids()))
    part = transformer.logits(hidden, range(7, 30))
    torch.testing.assert_close(part, transformer.logits(hidden)[..., 7:30], atol=1e-5, rtol=1e-5)
    assert transformer.to(torch.bfloat16).logits(hidden.to(torch.bfloat16), range(7, 30)).dtype == torch.float32


def test_gradients_reach_every_weight(transformer):
    transformer.logits(transformer(transformer.embed(some_ids()))).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in transformer.parameters())


def test_gradient_checkpointing_changes_nothing_but_what_is_kept(transformer):
    def train(checkpointing):
        transformer.train().zero_grad()
        transformer.gradient_checkpointing = checkpointing
        kept = []

        def keep(x):
            kept.append(x.numel())
            return x

        x = transformer.embed(some_ids())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = transformer(x)
        hidden.square().mean().backward()
        return hidden.detach(), [p.grad.clone() for p in transformer.layers.parameters()], sum(kept)

    (hidden, gradients, many), (same, again, few) = train(False), train(True)
    assert torch.equal(hidden, same)
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))
    assert few < many / 4


def test_official_names_and_ours_are_two_ways_to_say_the_same(transformer):
    state = dict(transformer.state_dict())
    official = transformer_to_official(state, CONFIG.num_layers)
    back = transformer_from_official(dict(official), CONFIG.num_layers)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_too_many_positions_are_refused(transformer):
    x = transformer.embed(some_ids(count=97))
    with pytest.raises(UserError, match="position 97 lies beyond the 96"):
        transformer(x)
    cache = KVCache.allocate(cache_shape(CONFIG, 2, 50), x.device, x.dtype)
    with pytest.raises(UserError, match="position 51 lies beyond the 50"):
        transformer(x[:, :51], cache)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="hidden_size 50"):
        TransformerConfig(hidden_size=50, num_heads=4)
