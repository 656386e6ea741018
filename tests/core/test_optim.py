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


def test_the_fused_kernel_is_chosen_by_the_device_that_goes_on():
    optimizer = adamw(nn.Linear(4, 1), learning_rate=0.1)
    state = optimizer.state_dict()
    assert {group["fused"] for group in state["param_groups"]} == {None}
    for group in state["param_groups"]:
        group.update(fused=True, lr=0.5)  # as a run on a GPU saves it
    optimizer.load_state_dict(state)
    assert {(group["fused"], group["lr"]) for group in optimizer.param_groups} == {(None, 0.5)}
    assert {group["fused"] for group in state["param_groups"]} == {True}, "the state of the caller was changed"


@pytest.mark.gpu
def test_on_a_gpu_one_fused_kernel_makes_the_same_step():
    torch.manual_seed(0)
    weights, inputs = nn.Linear(8, 8).state_dict(), torch.randn(16, 8)
    found = []
    for device in ("cpu", "cuda"):
        module = nn.Linear(8, 8).to(device)
        module.load_state_dict(weights)
        optimizer = adamw(module, learning_rate=0.05, weight_decay=0.1)
        assert optimizer.defaults["fused"] is (True if device == "cuda" else None)
        module(inputs.to(device)).square().mean().backward()
        optimizer.step()
        found.append(module.weight.detach().cpu())
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
