"""Augmentation: Pillow's numbers where they are wanted, one matrix where they are not."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import (
    Augmentation,
    AugmentationDraw,
    augment,
    augment_clips,
    centre_square,
    colour_matrices,
    draw_augmentation,
    resize,
    whole_frame,
)
from ivideogpt.data.color_jitter import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, jitter_frames

ENHANCE = {BRIGHTNESS: ImageEnhance.Brightness, CONTRAST: ImageEnhance.Contrast, SATURATION: ImageEnhance.Color}
NONE = (1.0, 1.0, 1.0, 0.0)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def smooth(seed=0, length=2, side=32):
    """Frames uint8 ``[t h w 3]`` with the colours of a picture rather than of noise."""
    coarse = Image.fromarray(noise(5, 5, 3, seed=seed).numpy()).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.stack([np.roll(np.asarray(coarse), 3 * t, axis=1) for t in range(length)]))


def pillow_hue(image, turns):
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(int) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), saturation, value)).convert("RGB")


def pillow(frames, order, factors):
    """The official jitter of frames uint8 ``[t h w 3]``."""
    changed = []
    for frame in frames.numpy():
        image = Image.fromarray(frame)
        for kind in order:
            enhance = ENHANCE.get(kind)
            image = enhance(image).enhance(factors[kind]) if enhance else pillow_hue(image, factors[kind])
        changed.append(np.asarray(image))
    return torch.from_numpy(np.stack(changed))


def only(kind, factor):
    return (kind,), tuple(factor if place == kind else none for place, none in enumerate(NONE))


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.93, 1.0, 1.08, 1.4])
@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_each_exact_step_is_pillows(kind, factor):
    frames = noise(2, 40, 40, 3)
    ours = jitter_frames(frames.permute(0, 3, 1, 2), *only(kind, factor)).permute(0, 2, 3, 1)
    gap = (ours.int() - pillow(frames, *only(kind, factor)).int()).abs()
    assert gap.max() <= 1 and (gap > 0).float().mean() < 0.001


@pytest.mark.parametrize("turns", [-0.5, -0.05, -0.001, 0.0, 0.02, 0.05, 0.3, 0.5])
def test_the_exact_hue_is_pillows(turns):
    frames = torch.cat([noise(1, 64, 64, 3), smooth(length=1, side=64)])
    ours = jitter_frames(frames.permute(0, 3, 1, 2), *only(HUE, turns)).permute(0, 2, 3, 1)
    gap = (ours.int() - pillow(frames, *only(HUE, turns)).int()).abs()
    assert gap.max() <= 6 and (gap > 0).float().mean() < 0.001


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 99), strong=st.booleans())
def test_all_exact_steps_are_pillows_in_any_order(order, seed, strong):
    kind = Augmentation.strong() if strong else Augmentation()
    factors = draw_augmentation(kind, 32, 32, np.random.default_rng(seed)).factors
    frames = smooth(seed)
    ours = jitter_frames(frames.permute(0, 3, 1, 2), tuple(order), factors).permute(0, 2, 3, 1)
    assert (ours.int() - pillow(frames, order, factors).int()).abs().float().mean() < 0.05


def matrix_of(frames, order, factors):
    _, height, width, _ = frames.shape
    drawn = AugmentationDraw(top=0, left=0, height=height, width=width, order=tuple(order), factors=factors)
    return (augment(frames, drawn, height) * 255).round().byte().permute(0, 2, 3, 1)


def test_one_matrix_is_close_to_pillow():
    gaps = []
    for seed in range(10):
        drawn = draw_augmentation(Augmentation(), 32, 32, np.random.default_rng(seed))
        frames = smooth(seed)
        frames = (frames // 3) + (
            frames.float().mean(dim=3, keepdim=True) / 1.5
        ).byte()  # about as dull as a photograph
        ours = matrix_of(frames, drawn.order, drawn.factors)
        gaps.append((ours.int() - pillow(frames, drawn.order, drawn.factors).int()).abs().float().mean())
    assert np.mean(gaps) < 3.5  # of 255


@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_without_clipping_the_matrix_is_pillow_up_to_rounding(kind):
    frames = (smooth() // 2 + 60).repeat(1, 1, 1, 1)
    frames[1] = frames[0]  # the mean of the clip is that of its frames
    ours = matrix_of(frames, *only(kind, 0.9))
    assert (ours.int() - pillow(frames, *only(kind, 0.9)).int()).abs().max() <= 1


def test_hue_turns_the_same_way_as_pillows():
    frames = smooth()
    for turns in (0.05, -0.05):
        target = pillow(frames, *only(HUE, turns)).float()
        right, wrong = (matrix_of(frames, *only(HUE, sign * turns)).float() for sign in (1, -1))
        assert (right - target).abs().mean() < 0.6 * (wrong - target).abs().mean()


def test_nothing_drawn_changes_nothing():
    product, offset = colour_matrices(np.array([NONE]))
    np.testing.assert_allclose(product, np.eye(3)[None], atol=1e-12)
    np.testing.assert_allclose(offset, 0, atol=1e-12)
    frames = noise(2, 16, 16, 3)
    assert torch.equal(matrix_of(frames, range(4), NONE), frames)


def stepwise(colours, order, factors):
    """Colours float64 ``[n 3]`` changed a step at a time, nothing clipped; hue by its definition in YIQ."""
    to_yiq = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
    for kind in order:
        factor, luma = factors[kind], (colours @ np.array(LUMA))[:, None]
        if kind == BRIGHTNESS:
            colours = factor * colours
        elif kind == HUE:
            luma, blue, red = (colours @ to_yiq.T).T
            turned = (blue + 1j * red) * np.exp(-2j * np.pi * factor)
            colours = np.stack([luma, turned.real, turned.imag], axis=1) @ np.linalg.inv(to_yiq).T
        else:
            grey = luma.mean() if kind == CONTRAST else luma
            colours = factor * colours + (1 - factor) * grey
    return colours


def test_the_matrices_are_the_four_steps_in_any_order():
    colours, factors = np.random.default_rng(0).uniform(0, 255, (50, 3)), (0.7, 1.3, 0.6, 0.12)
    product, offset = (both[1] for both in colour_matrices(np.array([NONE, factors])))
    for order in permutations(range(4)):
        expected = stepwise(colours, order, factors)
        np.testing.assert_allclose(colours @ product.T + offset @ colours.mean(0), expected, atol=1e-9)


def test_a_clip_is_augmented_alike_in_any_batch():
    frames = [smooth(seed, side=32 + 8 * seed) for seed in range(3)]
    draws = [
        draw_augmentation(Augmentation.strong(), 32, 32, np.random.default_rng(0)),
        whole_frame(40, 40),
        draw_augmentation(Augmentation(exact=True), 48, 48, np.random.default_rng(2)),
    ]
    together = torch.empty(3, 2, 3, 24, 24)
    augment_clips(frames, draws, together)
    for clip, drawn, found in zip(frames, draws, together, strict=True):
        assert torch.equal(augment(clip, drawn, 24), found)
    assert torch.equal((together[1] * 255).round().byte(), resize(frames[1], 24))


def test_a_clip_has_one_crop_and_one_change_of_colour():
    frame = smooth(length=1)
    frames = frame.expand(5, -1, -1, -1)
    for exact in (False, True):
        drawn = draw_augmentation(Augmentation(exact=exact), 32, 32, np.random.default_rng(3))
        changed = augment(frames, drawn, 24)
        assert changed.shape == (5, 3, 24, 24) and changed.dtype == torch.float32
        assert all(torch.equal(changed[0], other) for other in changed[1:])


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 300), width=st.integers(2, 300), strong=st.booleans(), seed=st.integers(0, 99))
def test_a_crop_stays_inside_the_frame(height, width, strong, seed):
    kind = Augmentation.strong() if strong else Augmentation()
    drawn = draw_augmentation(kind, height, width, np.random.default_rng(seed))
    assert drawn.top >= 0 and drawn.height > 0 and drawn.top + drawn.height <= height
    assert drawn.left >= 0 and drawn.width > 0 and drawn.left + drawn.width <= width
    assert sorted(drawn.order) == [0, 1, 2, 3]
    assert all(abs(factor - 1) <= kind.brightness for factor in drawn.factors[:3])
    assert abs(drawn.factors[3]) <= kind.hue


def test_crops_have_the_official_area():
    crops = [draw_augmentation(Augmentation(), 256, 320, np.random.default_rng(seed)) for seed in range(300)]
    areas = np.array([crop.height * crop.width for crop in crops]) / 256**2
    assert areas.min() > 0.79 and areas.max() < 1.01 and 0.88 < areas.mean() < 0.92


def test_resizing_is_antialiased_and_keeps_the_size_it_has():
    frames = smooth(side=64)
    floats = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), (20, 20), mode="bilinear", antialias=True
    )
    assert (resize(frames, 20).float() - floats).abs().max() <= 1
    assert torch.equal(resize(frames, 64), frames.permute(0, 3, 1, 2))
    assert centre_square(10, 30) == AugmentationDraw(top=0, left=10, height=10, width=10)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_to_a_rounding():
    frames = smooth(side=96)
    for exact in (False, True):
        drawn = draw_augmentation(Augmentation(exact=exact), 96, 96, np.random.default_rng(1))
        here, there = augment(frames, drawn, 64), augment(frames.cuda(), drawn, 64).cpu()
        assert (here - there).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("fields", [{"scale": (1.0, 0.5)}, {"hue": 0.6}, {"brightness": -0.1}])
def test_impossible_augmentations_are_refused(fields):
    with pytest.raises(UserError, match="expected"):
        Augmentation(**fields)
