"""The state of PushT read from pictures."""

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from ivideogpt.envs.record.pusht_episodes import collect_pusht  # noqa: E402
from ivideogpt.evaluation.pusht_state import pusht_state_estimator  # noqa: E402


def test_the_state_is_within_a_pixel_of_the_simulators() -> None:
    (episode,) = collect_pusht([507], length=12)
    read = pusht_state_estimator()(episode.frames)
    assert read.shape == (12, 5) and read.dtype == np.float64
    assert np.abs(read[:, :4] - episode.state[:, :4]).max() < 3  # px of 512
    turn = read[:, 4] - episode.state[:, 4]
    assert np.abs(np.arctan2(np.sin(turn), np.cos(turn))).max() < 0.03
