"""Products with packed weights and weights of 8 bits: when they are used, what they give, when they are made again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ivideogpt import UserError
from ivideogpt.models import cpu_linear
from ivideogpt.models.blocks import Upsample
from ivideogpt.models.cpu_linear import Projection, packed_product, set_int8

LARGE = (640, 512)  # outputs and inputs of a weight that no core's cache holds


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = Projection(LARGE[1], LARGE[0])
    nn.init.normal_(made.weight, std=0.02)
    return made


@pytest.fixture
def packings(monkeypatch):
    """Counts how often weights are packed."""
    seen = []

    def counted(weight):
        seen.append(tuple(weight.shape))
        return packed_product(weight)

    monkeypatch.setattr(cpu_linear, "packed_product", counted)
    cpu_linear._packed_dtypes()
    seen.clear()
    return seen


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 17), (130,)])
def test_a_packed_weight_gives_the_same_numbers(layer, packings, shape):
    x = torch.randn(*shape, LARGE[1])
    expected, some = F.linear(x, layer.weight), F.linear(x, layer.weight[96:480])
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer(x, range(96, 480)), some, atol=1e-5, rtol=0)
    assert packings == [LARGE, (384, LARGE[1])]


def test_a_weight_is_packed_once(layer, packings):
    with torch.inference_mode():
        for _ in range(3):
            layer(torch.randn(1, LARGE[1]))
    assert packings == [LARGE]


def test_training_never_sees_a_copy(layer, packings):
    x = torch.randn(2, LARGE[1])
    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert not packings and layer.weight.grad is not None


@pytest.mark.parametrize("change", ["optimizer", "load", "assign", "type"])
def test_a_changed_weight_is_packed_again(layer, packings, change):
    x = torch.randn(4, LARGE[1])
    with torch.inference_mode():
        before = layer(x)
    if change == "optimizer":
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(x).sum().backward()
        optimizer.step()
    elif change == "load":
        layer.load_state_dict({"weight": torch.randn(*LARGE)})
    elif change == "assign":
        layer.load_state_dict({"weight": torch.randn(*LARGE)}, assign=True)
    else:
        layer.double().float()
        with torch.no_grad():
            layer.weight.mul_(2)
    with torch.inference_mode():
        after = layer(x)
    assert packings == [LARGE, LARGE] and not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, F.linear(x, layer.weight).detach(), atol=1e-3, rtol=1e-5)


def test_a_copied_layer_packs_its_own_weight(layer, packings):
    x = torch.randn(4, LARGE[1])
    with torch.inference_mode():
        layer(x)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.neg_()
    with torch.inference_mode():
        torch.testing.assert_close(other(x), -layer(x), atol=1e-5, rtol=0)
    assert packings == [LARGE, LARGE] and list(other.state_dict()) == ["weight"]


def test_a_small_weight_stays_as_it_is_for_one_position(packings):
    small = Projection(64, 64)
    with torch.inference_mode():
        small(torch.randn(1, 64))
        assert not packings
        small(torch.randn(2, 64))
    assert packings == [(64, 64)]


def test_without_onednn_products_are_plain(layer, monkeypatch):
    def missing(weight):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    x = torch.randn(4, LARGE[1])
    expected = F.linear(x, layer.weight).detach()
    monkeypatch.setattr(cpu_linear, "packed_product", missing)
    cpu_linear._packed_dtypes.cache_clear()
    try:
        with torch.inference_mode():
            assert torch.equal(layer(x), expected)
    finally:
        cpu_linear._packed_dtypes.cache_clear()


def relative_error(layer: Projection, x: torch.Tensor) -> float:
    """Return the relative error of products with 8 bits, against those of the weight in float64."""
    exact = F.linear(x.double(), layer.weight.detach().double())
    with torch.inference_mode():
        return ((layer(x) - exact).norm() / exact.norm()).item()


def without_native_sums(monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    """Use the products of processors without VNNI, which are right on all processors; the others cannot be forced."""
    if forced:
        monkeypatch.setattr(cpu_linear, "_sums_without_overflow", lambda: False)


@pytest.mark.parametrize("forced", [False, True])
def test_weights_of_8_bits_are_close_and_never_used_in_training(layer, monkeypatch, forced):
    without_native_sums(monkeypatch, forced)
    x = torch.randn(5, LARGE[1])
    exact = layer(x).detach()
    set_int8(layer)
    assert torch.equal(layer(x), exact)
    assert 1e-4 < relative_error(layer, x) < 0.015
    with torch.inference_mode():
        rounded = layer(x)
        one = layer(x, range(3, 4))
    torch.testing.assert_close(one[:, 0], rounded[:, 3], atol=1e-4, rtol=0)
    set_int8(layer, on=False)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_the_largest_products_of_8_bits_do_not_overflow(layer, monkeypatch, forced, sign):
    without_native_sums(monkeypatch, forced)
    with torch.no_grad():
        layer.weight.fill_(sign * 0.02)
    set_int8(layer)
    # Weights and inputs are whole steps: only float32 rounds. Sums of pairs that saturate in 16 bits give half of this.
    assert relative_error(layer, torch.ones(3, LARGE[1])) < 1e-5


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("inputs", [torch.relu, lambda x: x**5], ids=["positive", "some much larger"])
def test_without_native_sums_only_the_weight_is_rounded(layer, monkeypatch, rows, inputs):
    without_native_sums(monkeypatch, True)
    set_int8(layer)
    # Its rounding: steps of 1/127 of a row's largest, some 3.2 of its deviations: 3.2 / 127 / sqrt(12) = .0073.
    assert relative_error(layer, inputs(torch.randn(rows, LARGE[1]))) < 0.009


def test_a_row_of_zeros_survives_8_bits(layer):
    with torch.no_grad():
        layer.weight[7] = 0
    set_int8(layer)
    with torch.inference_mode():
        y = layer(torch.randn(3, LARGE[1]))
        assert layer(torch.zeros(0, LARGE[1])).shape == (0, LARGE[0])
    assert torch.isfinite(y).all() and (y[:, 7] == 0).all()


def test_8_bits_are_refused_where_they_cannot_be(layer):
    with pytest.raises(UserError, match="weights of bfloat16 on cpu; expected float32 on a CPU"):
        set_int8(layer.bfloat16())
    assert not layer.int8
    with pytest.raises(UserError, match="on meta"):
        set_int8(layer.float().to("meta"))


def test_8_bits_are_refused_by_a_pytorch_that_cannot(layer, monkeypatch):
    monkeypatch.setattr(torch.ops, "quantized", object())
    with pytest.raises(UserError, match=r"PyTorch .* has no products of 8 bits"):
        set_int8(layer)


@pytest.mark.parametrize("size", [(1, 3, 5), (2, 4, 4)])
def test_pixels_are_doubled_by_quarters_with_the_same_numbers(size):
    torch.manual_seed(0)
    rows, height, width = size
    layer = Upsample(6)
    x = torch.randn(rows, 6, height, width)
    expected = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        layer.conv.weight.neg_()
        layer.conv.bias.neg_()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), -expected, atol=1e-5, rtol=0)
