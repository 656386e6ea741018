"""The simulator goes on from what a picture model imagined."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from ivideogpt import UserError, WorldModel  # noqa: E402
from ivideogpt.envs.record.pusht_episodes import collect_pusht  # noqa: E402
from ivideogpt.envs.record.pusht_person import PersonPolicy  # noqa: E402
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureStep  # noqa: E402
from ivideogpt.training.pusht_corrections import (  # noqa: E402
    CorrectionConfig,
    collect_corrections,
    object_poses,
    pusht_clips,
)

CONFIG = CorrectionConfig(sessions=2, lengths=((4, 5),), length_shares=(1.0,), seed=1)


def still(random: np.random.Generator):
    """A policy that leaves the agent where it is."""
    return lambda state: state[:2]


@pytest.fixture(scope="module")
def shipped() -> PictureDynamics:
    pictures = WorldModel.from_pretrained("pusht-64").pictures
    assert pictures is not None
    return pictures


class Shifted(torch.nn.Module):
    """A model that moves the block by a fixed amount in each step, and leaves the agent."""

    def __init__(self, pictures: PictureDynamics, shift: tuple[float, float, float]) -> None:
        super().__init__()
        self.config, self.sprites, self.background = pictures.config, pictures.sprites, pictures.background
        self.shift = torch.tensor([shift, (0.0, 0.0, 0.0)])

    def forward(self, frames: torch.Tensor, actions: torch.Tensor, poses: torch.Tensor) -> PictureStep:
        moved = poses + self.shift
        assert self.sprites is not None
        return PictureStep(self.sprites.draw(moved.unbind(1), self.background), None, None, moved)


def test_the_same_seed_gives_the_same_corrections(shipped: PictureDynamics) -> None:
    first, again = (collect_corrections(shipped, CONFIG, 6) for _ in range(2))
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.actions, again.actions)
    assert first.frames.shape == (6, 3, 64, 64, 3) and first.places.shape == (6, 3, 2, 2)
    other = collect_corrections(shipped, replace(CONFIG, seed=2), 6)
    assert not np.array_equal(first.frames, other.frames)


def test_small_errors_are_corrected_and_not_followed(shipped: PictureDynamics) -> None:
    result = collect_corrections(Shifted(shipped, (0.1, 0.0, 0.0)), CONFIG, 4, still)  # type: ignore[arg-type]
    assert np.abs(result.places[2:, 0, 1] - result.places[:2, 0, 1]).max() < 0.02


def test_the_simulator_takes_the_pose_that_is_imagined(shipped: PictureDynamics) -> None:
    result = collect_corrections(Shifted(shipped, (1.0, 0.5, 0.2)), CONFIG, 6, still)  # type: ignore[arg-type]
    moved = result.places[2:4, 0, 1] - result.places[:2, 0, 1]
    assert np.abs(moved - [1.0, 0.5]).max() < 0.1
    # what the model read last and what the simulator draws next show the block at one place
    read, true = result.frames[2:4, 1].astype(int), result.frames[2:4, 2].astype(int)
    assert np.abs(read - true).mean() < 1 < np.abs(read - result.frames[2:4, 0]).mean()


def test_only_the_transition_to_the_true_frame_is_trained_on(shipped: PictureDynamics) -> None:
    result = collect_corrections(shipped, CONFIG, 4, PersonPolicy)
    assert (result.chances[:, 1] > 0).all() and not result.chances[:, [0, 2]].any()
    assert result.actions is not None and 0 <= result.actions.min() <= result.actions.max() <= 64


def test_pushes_and_far_targets_are_drawn_more_often() -> None:
    clips = pusht_clips(list(collect_pusht(range(3), 24, "person")))
    assert clips.poses is not None and clips.actions is not None and clips.rewards is not None
    moved = np.linalg.norm(np.diff(clips.poses[:, :, 0, :2], axis=1), axis=-1)
    assert clips.chances[:, :-1][moved > 1].min() > 2 * np.median(clips.chances[:, :-1][moved < 0.01])
    assert np.isnan(clips.rewards[:, 0]).all() and not np.isnan(clips.rewards[:, 1:]).any()


def test_the_pose_of_a_state_is_its_centre_of_mass() -> None:
    block, agent = object_poses(np.array([40.0, 80.0, 256.0, 128.0, np.pi / 2]))
    assert block == pytest.approx([32 - 45 / 8, 16, np.pi / 2]) and agent == pytest.approx([5, 10, 0])


def test_the_sprites_of_the_shipped_model_are_where_the_simulator_has_its_objects(shipped: PictureDynamics) -> None:
    (episode,) = collect_pusht([7], 8)
    frames = torch.from_numpy(episode.frames).permute(0, 3, 1, 2) / 255
    assert shipped.sprites is not None and episode.state is not None
    read, _ = shipped.sprites.read(frames, shipped.background)
    difference = torch.stack(read, dim=1).numpy()[..., :2] - object_poses(episode.state)[..., :2]
    assert np.abs(difference).max() < 0.4


def test_a_model_without_objects_cannot_be_corrected(shipped: PictureDynamics) -> None:
    plain = PictureDynamics(replace(shipped.config, sprites=None))
    with pytest.raises(UserError, match="no rigid objects"):
        collect_corrections(plain, CONFIG, 2)


@pytest.mark.parametrize("seed", range(6))
def test_a_person_points_inside_the_plane(seed: int) -> None:
    policy = PersonPolicy(np.random.default_rng(seed))
    targets = np.stack([policy(np.array([100.0, 100.0, 250.0, 250.0, 0.3])) for _ in range(80)])
    assert targets.dtype == np.float32 and targets.min() >= 0 and targets.max() <= 512
    assert len(np.unique(targets, axis=0)) > 3
