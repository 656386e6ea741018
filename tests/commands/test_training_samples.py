"""Pictures of a training: a video and a strip of the same clips, the truth above what the model made of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt.commands.training_samples import reconstruction_figures, write_samples
from ivideogpt.core.run import Run
from ivideogpt.data.media import read_episode

TRUE, OURS = (0, 0, 1), (1, 0, 0)


class Pictures:
    """A tracker that keeps the pictures it is given."""

    def __init__(self):
        self.given = []

    def image(self, name, path, step):
        self.given.append((name, path, step))


@pytest.fixture
def samples(tmp_path):
    """Three blue clips that were taken for red ones, and the tracker of their run."""
    tracker = Pictures()
    run = Run(tmp_path, device="cpu", trackers=[tracker])
    clips = {
        label: torch.tensor(colour).float()[:, None, None].expand(3, 5, 3, 16, 16)
        for label, colour in (("true", TRUE), ("imagined", OURS))
    }
    write_samples(run, 7, clips, context_frames=2)
    return tmp_path / "samples", tracker


def places(picture, colour):
    """Where pixels of a colour are, ``[n 2]``; videos are not exact."""
    distance = np.abs(picture.astype(int) - np.array(colour) * 255).max(axis=-1)
    return np.argwhere(distance < 40)


def test_a_video_shows_every_clip_with_the_truth_above_ours(samples):
    video = read_episode(samples[0] / "step-00000007.mp4").frames
    assert len(video) == 5
    for frame in video:
        true, ours = places(frame, TRUE), places(frame, OURS)
        assert true[:, 0].max() < ours[:, 0].min()  # rows of the picture
        for found in (true, ours):
            columns = np.unique(found[:, 1])
            assert (np.diff(columns) > 1).sum() == 2  # three clips, apart from each other
            assert len(columns) == pytest.approx(3 * 256, abs=12)


def test_a_strip_has_a_row_for_each_clip_and_trackers_are_given_it(samples):
    folder, tracker = samples
    path = folder / "step-00000007.png"
    strip = np.asarray(Image.open(path).convert("RGB"))
    kinds = [
        "true" if len(places(row[None], TRUE)) else "ours" if len(places(row[None], OURS)) else "" for row in strip
    ]
    bands = [kind for kind, before in zip(kinds[1:], kinds, strict=False) if kind and kind != before]
    assert bands == ["true", "ours"] * 3
    assert tracker.given == [("samples", path, 7)]


def test_figures_of_reconstruction_tell_context_from_future(tmp_path):
    class Shifting:
        """A tokenizer whose context is .1 off and whose future is .01 off."""

        config = SimpleNamespace(context_frames=2)

        def tokenize(self, frames):
            return frames, None

        def detokenize(self, frames):
            return frames + torch.tensor([0.1, 0.1, 0.01, 0.01, 0.01])[:, None, None, None]

    frames = torch.rand(8, 5, 3, 16, 16) * 0.5
    clips = SimpleNamespace(numbers=lambda number: range(8), clips=lambda numbers: SimpleNamespace(frames=frames))
    run = Run(tmp_path, device="cpu")
    found = reconstruction_figures(Shifting(), clips, run, 3)
    assert found["validation_psnr_context"] == pytest.approx(20, abs=0.01)
    assert found["validation_psnr_future"] == pytest.approx(40, abs=0.01)
    assert (tmp_path / "samples" / "step-00000003.mp4").is_file()
