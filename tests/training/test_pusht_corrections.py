"""The simulator goes on from what a network imagined."""

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from ivideogpt.envs.record.pusht_person import PersonPolicy  # noqa: E402
from ivideogpt.evaluation.pusht_shape import draw_block  # noqa: E402
from ivideogpt.training.pusht_corrections import CorrectionConfig, block_pose, collect_corrections  # noqa: E402

CONFIG = CorrectionConfig(sessions=2, lengths=((4, 5),), length_shares=(1.0,), seed=1)
BLOCK = torch.tensor([135, 154, 173])[:, None, None] / 255


def still(random: np.random.Generator):
    """A policy that leaves the agent where it is."""
    return lambda state: state[:2]


def test_the_same_seed_gives_the_same_corrections() -> None:
    def draw(history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return history[:, -1]

    first, again = (collect_corrections(draw, PersonPolicy, CONFIG, 4) for _ in range(2))
    assert np.array_equal(first.clean, again.clean) and np.array_equal(first.targets, again.targets)
    assert first.history.shape == (4, 2, 64, 64, 3) and first.imagined.shape == (4, 64, 64, 3)
    assert np.array_equal(first.imagined, first.history[:, -1])


def test_what_is_imagined_well_enough_is_not_followed() -> None:
    result = collect_corrections(lambda history, targets: history[:, -1], still, CONFIG, 8)
    assert np.abs(result.block[2:, 0] - result.block[:-2, 1])[:2].max() < 0.02


def test_the_simulator_takes_the_pose_that_is_imagined() -> None:
    shift = torch.tensor([1.0, 0.0, 0.2])

    def draw(history: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shares = draw_block(torch.from_numpy(poses).float() + shift)[:, None]
        return 1 + shares * (BLOCK - 1)

    start = collect_corrections(lambda history, targets: history[:, -1], still, CONFIG, 2)
    poses = start.block[:, 0]
    result = collect_corrections(draw, still, CONFIG, 4)
    after = result.block[2:, 0]
    assert np.abs(after - (poses + shift.numpy())).max() < 0.3
    assert np.abs(after - poses)[:, 0].min() > 0.7


def test_the_pose_of_a_state_is_its_centre_of_mass() -> None:
    pose = block_pose(np.array([0.0, 0.0, 256.0, 128.0, np.pi / 2]))
    assert pose == pytest.approx([32 - 45 / 8, 16, np.pi / 2])


@pytest.mark.parametrize("seed", range(6))
def test_a_person_points_inside_the_plane(seed: int) -> None:
    policy = PersonPolicy(np.random.default_rng(seed))
    targets = np.stack([policy(np.array([100.0, 100.0, 250.0, 250.0, 0.3])) for _ in range(80)])
    assert targets.dtype == np.float32 and targets.min() >= 0 and targets.max() <= 512
    assert len(np.unique(targets, axis=0)) > 3
