import pytest
import torch
from torch import nn

from ivideogpt.core.optim import adamw, constant, cosine, set_learning_rate


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def decayed(optimizer, module):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}


def test_only_matrices_decay():
    module = Tiny()
    optimizer = adamw(module, learning_rate=0.1, weight_decay=0.01)
    assert decayed(optimizer, module) == {"head.weight"}


def test_embeddings_decay_when_asked():
    module = Tiny()
    optimizer = adamw(module, learning_rate=0.1, weight_decay=0.01, no_decay_embeddings=False)
    assert decayed(optimizer, module) == {"head.weight", "embedding.weight"}


def test_every_trainable_parameter_is_optimized_once_and_frozen_ones_never():
    module = Tiny()
    module.head.weight = module.embedding.weight
    optimizer = adamw(module, learning_rate=0.1)
    optimized = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_set_learning_rate_reaches_every_group():
    optimizer = adamw(Tiny(), learning_rate=0.1)
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_constant_warms_up_then_stays():
    learning_rate = constant(1.0, warmup_steps=3)
    assert [learning_rate(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_starts_learning_at_once_peaks_after_warmup_and_ends_at_the_final_ratio():
    learning_rate = cosine(2.0, steps=110, warmup_steps=10, final_ratio=0.1)
    assert learning_rate(0) > 0
    assert learning_rate(10) == pytest.approx(2.0)
    assert learning_rate(60) == pytest.approx(2.0 * 0.55)
    assert learning_rate(110) == learning_rate(1000) == pytest.approx(0.2)
    assert all(learning_rate(step) >= learning_rate(step + 1) for step in range(10, 120))


def test_a_step_of_adamw_lowers_the_loss():
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 1), torch.randn(16, 4)
    optimizer = adamw(module, learning_rate=0.05)
    before = module(inputs).square().mean()
    before.backward()
    optimizer.step()
    assert module(inputs).square().mean() < before
