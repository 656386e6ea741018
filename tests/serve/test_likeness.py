"""Uploads of another world are recognized, and frames that are not square keep their aspect ratio."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.episode import Episode
from ivideogpt.serve.guard import Limits
from ivideogpt.serve.library import Library, Likeness


def world(seed, side=16, count=6):
    """Frames uint8 of a dark square that moves over a ground of two halves."""
    random = np.random.default_rng(seed)
    frames = np.zeros((count, side, side, 3), np.uint8)
    frames[:, :, :8] = 200
    for frame in frames:
        x, y = random.integers(0, side - 4, 2)
        frame[y : y + 4, x : x + 4] = (20, 90, 60)
    return frames


def upload(served, frames):
    buffer = io.BytesIO()
    np.savez(buffer, frames=frames, actions=np.zeros((len(frames), 2), np.float32))
    return served.upload("mine.npz", buffer.getvalue()).json()


def test_recordings_of_the_same_world_are_familiar_and_others_are_not():
    likeness = Likeness([world(seed) for seed in range(5)])
    assert all(likeness.is_familiar(world(seed)) for seed in range(5, 25))
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for frames in (noise, np.zeros_like(noise), 255 - world(0), world(0)[:, :, ::-1].transpose(0, 2, 1, 3)):
        assert not likeness.is_familiar(frames)
    assert likeness.distance(world(0)) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_recordings_tell_nothing(count):
    assert Likeness([world(0)][:count]).is_familiar(255 - world(1))


def test_an_upload_of_another_world_says_so(start):
    served = start(episodes=[Episode(frames=world(seed), key=f"{seed}") for seed in range(3)])
    assert upload(served, world(7))["familiar"] is True
    assert upload(served, 255 - world(7))["familiar"] is False
    assert [entry["familiar"] for entry in served.get("/api/world").json()["episodes"]] == [True] * 4 + [False]


def wide(frames):
    """The frames with as much of nothing on both sides as they are wide."""
    return np.pad(frames, ((0, 0), (0, 0), (16, 16), (0, 0)), constant_values=128)


def squeezed(frames):
    return np.stack([np.asarray(Image.fromarray(frame).resize((48, 16), Image.Resampling.NEAREST)) for frame in frames])


def test_a_wide_upload_is_cropped_unless_the_recordings_were_squeezed(start):
    served = start(episodes=[Episode(frames=world(seed), key=f"{seed}") for seed in range(3)])
    first = served.get(f"/api/episodes/{upload(served, wide(world(7)))['id']}/picture")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first.content))), world(7)[0])
    entry = upload(served, squeezed(world(7)))
    assert entry["familiar"] is True
    second = np.asarray(Image.open(io.BytesIO(served.get(f"/api/episodes/{entry['id']}/picture").content)))
    assert np.abs(second.astype(int) - world(7)[0]).mean() < 12


def test_without_recordings_a_wide_upload_is_cropped(start):
    served = start(episodes=[])
    entry = upload(served, wide(world(7)))
    picture = np.asarray(Image.open(io.BytesIO(served.get(f"/api/episodes/{entry['id']}/picture").content)))
    assert np.array_equal(picture, world(7)[0])


def test_starts_are_named_by_task_and_seed(model, recorded):
    metas = [{"task": "door-lock", "seed": 10000}, {"seed": 3}, {"task": "", "seed": "x"}, {}]
    episodes = [replace(recorded, key=key, meta=meta) for key, meta in zip(("a", "b", "c", ""), metas, strict=True)]
    names = [entry["name"] for entry in Library(model, episodes, Limits()).about()]
    assert names == ["door lock, seed 10000", "seed 3", "c", "episode 3"]
