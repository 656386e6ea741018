"""MSE, PSNR and SSIM against slow references written from their definitions."""

import math

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.metrics.image import PSNR_LIMIT, mse, psnr, ssim

METRICS = [mse, psnr, ssim]


@pytest.fixture
def videos():
    """Two float32 [2 3 3 16 14] in [0, 1]; the second is the first with more and more noise."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 3, 16, 14, generator=generator)
    noise = torch.randn(a.shape, generator=generator) * torch.tensor([0.02, 0.1, 0.3]).view(1, 3, 1, 1, 1)
    return a, (a + noise).clamp(0, 1)


def slow_ssim(a, b):
    """SSIM of two planes [h w] by the formula of Wang et al. 2004, one window at a time."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = (plane[row : row + 11, column : column + 11] for plane in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
            values.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    return np.mean(values)


def test_ssim_is_the_formula_of_the_paper(videos):
    a, b = videos
    measured = ssim(a, b)
    assert measured.shape == (2, 3)
    for row in range(2):
        for frame in range(3):
            planes = zip(a[row, frame].double().numpy(), b[row, frame].double().numpy(), strict=True)
            assert measured[row, frame].item() == pytest.approx(np.mean([slow_ssim(x, y) for x, y in planes]), abs=1e-5)


def test_ssim_equals_pytorch_msssim(videos):
    reference = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    a, b = (video.flatten(0, 1) for video in videos)
    expected = reference.ssim(a, b, data_range=1, size_average=False)
    torch.testing.assert_close(ssim(*videos).flatten(), expected, atol=1e-6, rtol=0)


def test_psnr_and_mse_are_their_formulas(videos):
    a, b = (video.double().numpy() for video in videos)
    expected = ((a - b) ** 2).mean((2, 3, 4))
    np.testing.assert_allclose(mse(*videos), expected, rtol=1e-5)
    np.testing.assert_allclose(psnr(*videos), 10 * np.log10(1 / expected), rtol=1e-5)


@pytest.mark.parametrize("step", [1, 8, 64])
def test_psnr_of_a_constant_shift_is_known(step):
    a = torch.full((1, 1, 3, 12, 12), 0.5)
    assert psnr(a, a + step / 255).item() == pytest.approx(20 * math.log10(255 / step), abs=1e-3)


def test_identical_frames_score_best(videos):
    a = videos[0]
    assert (mse(a, a) == 0).all()
    assert (psnr(a, a) == PSNR_LIMIT).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(2, 3))


def test_negatives_score_below_zero(videos):
    assert (ssim(videos[0], 1 - videos[0]) < 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_each_frame_is_scored_alone(videos, metric):
    a, b = videos
    torch.testing.assert_close(metric(a, b)[1:, 2:], metric(a[1:, 2:], b[1:, 2:]))


@pytest.mark.parametrize("metric", METRICS)
def test_order_does_not_matter(videos, metric):
    torch.testing.assert_close(metric(*videos), metric(*reversed(videos)))


@pytest.mark.parametrize("metric", METRICS)
def test_mixed_precision_does_not_change_a_score(videos, metric):
    expected = metric(*videos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(metric(*videos), expected)


def test_ssim_can_be_trained_on(videos):
    b = videos[1].clone().requires_grad_()
    ssim(videos[0], b).mean().backward()
    assert b.grad is not None and b.grad.isfinite().all() and b.grad.any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:, :2], "expected .b t c h w. twice"),
        (lambda b: (b * 255).byte(), "divide uint8 by 255"),
        (lambda b: b * 255, r"expected \[0, 1\]"),
        (lambda b: b - 0.5, r"expected \[0, 1\]"),
        (lambda b: b * math.nan, "from nan to nan"),
    ],
)
def test_what_is_no_video_is_refused(videos, metric, change, message):
    with pytest.raises(UserError, match=message):
        metric(videos[0], change(videos[1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 0, 3, 16, 16)])
def test_wrong_dimensions_are_refused(metric, shape):
    with pytest.raises(UserError, match="not empty"):
        metric(torch.zeros(shape), torch.zeros(shape))


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(UserError, match="10 x 12 pixels; SSIM needs at least 11 x 11"):
        ssim(torch.zeros(1, 1, 3, 12, 10), torch.zeros(1, 1, 3, 12, 10))
