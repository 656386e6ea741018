"""Finite scalar quantisation: codes by hand, the round trip and the gradient."""

import math

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.models.quantizer import FiniteScalarQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig


def test_every_code_comes_back_from_its_vector():
    quantizer = FiniteScalarQuantizer((7, 5, 5, 5, 5))
    codes = torch.arange(4375)
    vectors = quantizer.decode(codes)
    assert vectors.shape == (4375, 5) and vectors.unique(dim=0).shape == (4375, 5)
    assert vectors.min() == -1 and vectors.max() == 1
    # tanh stretched by 1.001 reaches a level at atanh(level / 1.001)
    assert torch.equal(quantizer.encode((vectors / 1.001).atanh()), codes)


def test_codes_and_vectors_by_hand():
    quantizer = FiniteScalarQuantizer((3, 4))
    # first number: round(1.001 tanh z) + 1; second: round(1.5015 tanh(z + .3464) - .5) + 2
    z = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, -5.0], [0.54, -1.0], [0.56, 0.1]])
    assert quantizer.encode(z).tolist() == [1 + 3 * 2, 2 + 3 * 3, 0, 1 + 3 * 1, 2 + 3 * 2]
    assert quantizer.decode(torch.tensor([0, 4, 7, 11])).tolist() == [[-1.0, -1.0], [0.0, -0.5], [0.0, 0.0], [1.0, 0.5]]


def test_the_gradient_passes_the_rounding():
    quantizer = FiniteScalarQuantizer((5, 7))
    z = torch.tensor([[0.3, -0.2]], requires_grad=True)
    quantized, loss, codes = quantizer(z)
    assert torch.equal(quantized.detach(), quantizer.decode(codes)) and float(loss) == 0
    quantized.sum().backward()
    expected = [1.001 * (levels - 1) / 2 / (levels // 2) / math.cosh(x) ** 2 for levels, x in ((5, 0.3), (7, -0.2))]
    assert z.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_tokenizer_learns_with_fixed_codes_and_rectangular_frames():
    config = TokenizerConfig(
        resolution=8, width=16, block_channels=(16, 16), layers_per_block=1, latent_channels=8, norm_groups=8,
        patch_size=1, conditional=False, context_frames=1, levels=(5, 5, 3), context_codes=75, dynamics_codes=75,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer(config)
    frames = torch.rand(4, 2, 3, 1, 2).repeat_interleave(8, -1).repeat_interleave(8, -2)
    optimizer, losses = torch.optim.Adam(tokenizer.parameters(), lr=3e-3), []
    for _ in range(60):
        made = tokenizer(frames)
        loss = (torch.cat([made.context, made.future], dim=1) - frames).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    decoded = tokenizer.detokenize(tokenizer.tokenize(frames)[0])
    assert decoded.shape == frames.shape
    assert (decoded - frames).square().mean().item() == pytest.approx(losses[-1], abs=0.02)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": (5, 1)}, "levels are"),
        ({"levels": (5, 5)}, "expected 25, the product of the levels"),
        ({"width": 30}, "width 30 is not a multiple"),
        ({"levels": (8, 8, 8, 16), "code_channels": 3}, "code_channels is 3; expected 4"),
        ({"width": 72, "patch_size": 8}, "does not divide the 16 x 18 latent map"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        TokenizerConfig(**changes)
