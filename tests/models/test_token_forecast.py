"""The first guess at a frame: what it reads, and that "as before" is where it starts."""

import pytest
import torch

from ivideogpt.models.token_forecast import Forecast


@pytest.fixture
def forecast():
    torch.manual_seed(0)
    return Forecast(codes=10, grid=4, frames=2, width=8, blocks=1, action_features=3, hidden_size=6).eval()


def codes(seed=0):
    return torch.randint(0, 10, (2, 2, 16), generator=torch.Generator().manual_seed(seed))


def test_a_silent_network_guesses_what_stood_there_before(forecast):
    torch.nn.init.zeros_(forecast.out.weight)
    torch.nn.init.zeros_(forecast.out.bias)
    seen = codes()
    newest, older = forecast.seen
    expected = newest(seen[:, 1]) + older(seen[:, 0])
    torch.testing.assert_close(forecast(seen, torch.randn(2, 3)), expected)


def test_every_place_hears_of_its_neighbours_and_of_the_action(forecast):
    seen, action = codes(), torch.zeros(2, 3)
    before = forecast(seen, action)
    assert before.shape == (2, 16, 6)
    other = seen.clone()
    other[:, 0, 5] = (other[:, 0, 5] + 1) % 10  # row 1, column 1 of the older frame
    changed = (forecast(other, action) - before).abs().amax(dim=(0, 2)) > 0
    assert changed.all()  # two convolutions of 3 x 3 reach two places away, and so the last row and column
    assert ((forecast(seen, action + 1) - before).abs().amax(dim=(0, 2)) > 0).all()


def test_places_differ_even_where_all_codes_are_the_same(forecast):
    guess = forecast(torch.zeros(1, 2, 16, dtype=torch.long), torch.zeros(1, 3))[0]
    assert len(torch.unique(guess, dim=0)) == 16


def test_without_actions_it_needs_none():
    forecast = Forecast(codes=10, grid=4, frames=1, width=8, blocks=1, action_features=0, hidden_size=6)
    assert forecast(codes()[:, :1], None).shape == (2, 16, 6)
