"""A picture forecast reads pictures, a background and an action, and draws the next picture at any size."""

import pytest
import torch

from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.models.picture_forecast import PictureForecast, PictureForecastConfig, PictureNetConfig, displaced

SMALL = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)


def forecast(**changes) -> PictureForecast:
    torch.manual_seed(0)
    return PictureForecast(PictureForecastConfig(net=SMALL, **changes)).eval()


def frames(rows: int = 2, count: int = 2, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    return torch.rand(rows, count, 3, *size, generator=torch.Generator().manual_seed(1))


def test_config_survives_json() -> None:
    config = PictureForecastConfig(net=SMALL, frames=3, action="numbers", action_dim=4)
    assert from_dict(PictureForecastConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "dim"),
    [
        ({}, 2),
        ({"action": "numbers", "action_dim": 4}, 4),
        ({"action": "none", "action_dim": 0}, 0),
        ({"frames": 3}, 2),
    ],
)
def test_draws_a_picture_of_the_size_that_it_reads(changes: dict, dim: int) -> None:
    model, history = forecast(**changes), frames(count=changes.get("frames", 2))
    actions = torch.rand(2, dim) * 16 if dim else None
    with torch.no_grad():
        assert model(history, history[:, 0], actions).shape == history[:, 0].shape


def test_a_pointer_means_the_same_place_in_a_crop_and_in_the_whole_picture() -> None:
    model = forecast()
    background, pointer = torch.full((1, 3, 160, 160), 0.9), torch.tensor([[82.0, 78.0]])
    history = background[:, None].repeat(1, 2, 1, 1, 1)
    history[:, :, :, 76:84, 76:84] = 0.2
    with torch.no_grad():
        whole = model(history, background, pointer)
        crop = model(history[..., 8:152, 8:152], background[..., 8:152, 8:152], pointer - 8)
    assert torch.allclose(whole[..., 76:84, 76:84], crop[..., 68:76, 68:76], atol=1e-5)


def test_actions_change_what_is_drawn() -> None:
    model, history = forecast(), frames()
    with torch.no_grad():
        a, b = (model(history, history[:, 0], torch.full((2, 2), x)) for x in (2.0, 14.0))
    assert not torch.allclose(a, b)


def test_a_network_that_copies_can_leave_a_picture_as_it_is() -> None:
    model = PictureForecast(PictureForecastConfig(net=PictureNetConfig(width=8, deep_width=8, copies=True))).eval()
    bias = model.net.head.bias
    assert bias is not None
    bias.data[-16:] = 100.0
    with torch.no_grad():
        drawn = model(frames(), frames()[:, 0], torch.zeros(2, 2))
    assert torch.allclose(drawn, frames()[:, -1], atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    model = forecast()
    with pytest.raises(UserError, match="multiples of 8 px"):
        model(frames(size=(16, 20)), frames(size=(16, 20))[:, 0], torch.zeros(2, 2))
    with pytest.raises(UserError, match="one row for each history"):
        model(frames(), frames()[:, 0], torch.zeros(2, 3))
    with pytest.raises(UserError, match="expected 2 for a pointer"):
        PictureForecastConfig(action_dim=3)


def test_a_flow_takes_each_pixel_from_another_place() -> None:
    picture = frames(1, 1)[0]
    flow = torch.zeros(1, 2, 16, 24)
    assert torch.allclose(displaced(picture, flow), picture, atol=1e-5)
    flow[:, 0], flow[:, 1] = 3, -2  # from 3 px to the right and 2 px above
    assert torch.allclose(displaced(picture, flow)[..., 2:, :-3], picture[..., :-2, 3:], atol=1e-5)


def test_a_flow_needs_copies() -> None:
    with pytest.raises(UserError, match="the flow displaces copied pixels: set copies to true"):
        PictureNetConfig(flow=True)
