"""The discriminator: the official shape, spectral norms that hold, and what it refuses."""

import pytest
import torch
from torch import nn

from ivideogpt import UserError
from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.models.discriminator import Discriminator, DiscriminatorConfig

# hidden, depth, channels after each layer, parameters: weights and biases of the convolutions, counted by hand
OFFICIAL = {
    "depth 4, the flag's default": (4, (64, 128, 256, 512), 1_792 + 73_856 + 295_168 + 1_180_160 + 513),
    "depth 6, the class's default": (
        6,
        (64, 128, 256, 512, 512, 512),
        1_792 + 73_856 + 295_168 + 1_180_160 + 2 * 2_359_808 + 513,
    ),
    "depth 7": (
        7,
        (32, 64, 128, 256, 512, 512, 512),
        896 + 18_496 + 73_856 + 295_168 + 1_180_160 + 2 * 2_359_808 + 513,
    ),
}


def convolutions(discriminator):
    return [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OFFICIAL)
def test_channels_and_parameters_are_the_official_ones(name):
    depth, widths, parameters = OFFICIAL[name]
    discriminator = Discriminator(DiscriminatorConfig(depth=depth))
    assert discriminator.config.widths == widths
    assert [layer.out_channels for layer in convolutions(discriminator)] == [*widths, 1]
    assert sum(weight.numel() for weight in discriminator.parameters()) == parameters
    norms = [layer for layer in discriminator.modules() if isinstance(layer, nn.InstanceNorm2d)]
    assert len(norms) == depth - 1 and not any(norm.affine for norm in norms)


@torch.no_grad()
@pytest.mark.parametrize(("size", "grid"), [(64, 4), (100, 7), (256, 16)])
def test_a_frame_gets_a_logit_for_each_place(size, grid):
    discriminator = Discriminator(DiscriminatorConfig(hidden=32))
    assert discriminator(noise(2, 3, size, size)).shape == (2, 1, grid, grid)


@torch.no_grad()
def test_logits_are_those_of_the_layers_written_out():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(hidden=16, depth=2)).eval()
    x = frames = noise(2, 3, 16, 16)
    first, second, last = convolutions(discriminator)
    for layer in (first, second):
        x = nn.functional.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
        if layer is second:
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
            x = (x - mean) / (variance + 1e-5).sqrt()
        x = torch.where(x > 0, x, 0.2 * x)
    expected = torch.einsum("nchw,c->nhw", x, last.weight[0, :, 0, 0]) + last.bias
    torch.testing.assert_close(discriminator(frames)[:, 0], expected)


@torch.no_grad()
def test_a_frame_is_judged_alone():
    discriminator = Discriminator(DiscriminatorConfig(hidden=32)).eval()
    frames = noise(5, 3, 64, 64)
    torch.testing.assert_close(discriminator(frames)[2:3], discriminator(frames[2:3]))


def spectral_norms(discriminator):
    return [torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() for layer in convolutions(discriminator)]


@torch.no_grad()
def test_spectral_norms_of_new_weights_are_1_after_some_passes():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(hidden=32))
    for layer in convolutions(discriminator)[:-1]:
        nn.init.normal_(layer.parametrizations.weight.original, std=3.0)
    assert min(spectral_norms(discriminator.eval())[:-1]) > 1.2
    discriminator.train()
    for _ in range(50):
        discriminator(noise(1, 3, 64, 64))
    *strided, last = spectral_norms(discriminator.eval())
    assert strided == pytest.approx([1.0] * 4, abs=0.02)
    assert last < 0.9  # the logits are not held


def test_spectral_norms_stay_1_while_it_learns():
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(hidden=32))
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        (-discriminator(noise(4, 3, 64, 64)).square().mean()).backward()
        optimizer.step()
    with torch.no_grad():
        assert spectral_norms(discriminator.eval())[:-1] == pytest.approx([1.0] * 4, abs=0.1)


def test_an_evaluation_leaves_the_estimates_as_they_are():
    discriminator = Discriminator(DiscriminatorConfig(hidden=32)).eval()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator(noise(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    discriminator.train()(noise(2, 3, 64, 64))
    assert not all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_a_saved_discriminator_goes_on_as_it_was():
    first, second = (Discriminator(DiscriminatorConfig(hidden=32)) for _ in range(2))
    frames = noise(2, 3, 64, 64)
    first(frames)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert torch.equal(first(frames), second(frames))


def test_its_configuration_is_plain_json():
    config = DiscriminatorConfig(hidden=64, depth=5)
    assert from_dict(DiscriminatorConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 0}, "depth is 0; expected at least 1"),
        ({"hidden": -1}, "hidden is -1"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"hidden": 20}, "hidden 20 is not a multiple of 8"),
        ({"hidden": 24, "depth": 7}, "hidden 24 is not a multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        DiscriminatorConfig(**changes)


def test_frames_that_are_too_small_are_refused():
    discriminator = Discriminator(DiscriminatorConfig(hidden=32))
    assert discriminator(noise(1, 3, 17, 17)).shape == (1, 1, 2, 2)
    with pytest.raises(UserError, match="16 x 16 pixels are too small for a discriminator of depth 4; expected at le"):
        discriminator(noise(1, 3, 16, 16))
