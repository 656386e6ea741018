import pytest
import torch

from ivideogpt.evaluation.frame_errors import FrameScores, best_of, perceptual_metric


def test_time_is_averaged_before_the_best_future_is_taken() -> None:
    # The first future has the best single frame, the second the best mean.
    scores = FrameScores(context=torch.zeros(1, 1), future=torch.tensor([[[9.0, 0.0], [5.0, 5.0], [1.0, 2.0]]]))
    assert best_of(scores.over_time(whole=False), higher=True).tolist() == [5.0]
    assert best_of(scores.over_time(whole=False), higher=False).tolist() == [1.5]


def test_a_whole_clip_counts_its_context_frames_once_each() -> None:
    scores = FrameScores(context=torch.tensor([[30.0, 60.0]]), future=torch.tensor([[[10.0, 20.0], [40.0, 40.0]]]))
    assert scores.over_time(whole=True).tolist() == [[30.0, 42.5]]
    assert scores.over_time(whole=False).tolist() == [[15.0, 40.0]]


def test_each_clip_has_a_best_future_of_its_own() -> None:
    future = torch.tensor([[[1.0], [7.0]], [[6.0], [2.0]]])
    values = FrameScores(torch.zeros(2, 1), future).over_time(whole=False)
    assert best_of(values, higher=True).tolist() == [7.0, 6.0]


def test_a_perceptual_distance_goes_under_its_own_name() -> None:
    metric = perceptual_metric(lambda a, b: (a - b).abs().mean(dim=(-3, -2, -1)), "ST-LPIPS (VGG16)")
    assert (metric.key, metric.label, metric.higher) == ("st_lpips_vgg16", "ST-LPIPS (VGG16)", False)
    a, b = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    assert metric.measure(a, b).shape == (2, 3)
    assert metric.measure(a, b)[1, 2].item() == pytest.approx((a - b)[1, 2].abs().mean().item())
