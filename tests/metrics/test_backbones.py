"""The networks under perceptual distances: their shapes, and the blur pool from its definition."""

import pytest
import torch

from ivideogpt.metrics.backbones import BlurPool, build_trunk

KINDS = [(network, shift_tolerant) for network in ("vgg", "alex") for shift_tolerant in (False, True)]


def on_meta(network, shift_tolerant):
    with torch.device("meta"):
        return build_trunk(network, shift_tolerant=shift_tolerant)


@pytest.mark.parametrize("size", [5, 6, 9])
def test_a_blur_pool_is_the_binomial_mean_of_every_second_place(size):
    x = torch.randn(2, 3, size, size + 2, generator=torch.Generator().manual_seed(0))
    found = BlurPool(3)(x)

    def mirrored(place, length):
        place = abs(place)
        return place if place < length else 2 * (length - 1) - place

    assert found.shape == (2, 3, (size + 3) // 2, (size + 5) // 2)
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            total = torch.zeros(2, 3)
            for down, a in enumerate((0.25, 0.5, 0.25)):
                for right, b in enumerate((0.25, 0.5, 0.25)):
                    y, z = mirrored(2 * row - 2 + down, size), mirrored(2 * column - 2 + right, size + 2)
                    total += a * b * x[:, :, y, z]
            torch.testing.assert_close(found[:, :, row, column], total)


@pytest.mark.parametrize(("network", "shift_tolerant"), KINDS)
def test_a_trunk_gives_five_maps_of_the_channels_it_names(network, shift_tolerant):
    trunk = on_meta(network, shift_tolerant)
    maps = trunk(torch.empty(2, 3, 64, 64, device="meta"))
    assert tuple(x.shape[1] for x in maps) == trunk.channels
    assert len(maps) == 5 and [x.shape[-1] for x in maps] == sorted((x.shape[-1] for x in maps), reverse=True)


@pytest.mark.parametrize(("network", "shift_tolerant"), KINDS)
def test_the_smallest_size_works_and_one_pixel_less_does_not(network, shift_tolerant):
    trunk = on_meta(network, shift_tolerant)
    trunk(torch.empty(1, 3, trunk.smallest, trunk.smallest, device="meta"))
    with pytest.raises(RuntimeError):
        trunk(torch.empty(1, 3, 64, trunk.smallest - 1, device="meta"))


@pytest.mark.parametrize(("network", "parameters"), [("vgg", 14_714_688), ("alex", 2_469_696)])
@pytest.mark.parametrize("shift_tolerant", [False, True])
def test_a_trunk_has_the_published_number_of_weights(network, parameters, shift_tolerant):
    assert sum(weight.numel() for weight in on_meta(network, shift_tolerant).parameters()) == parameters
