"""A session steps any model that opens segments, also one that predicts pictures instead of tokens."""

import pytest
import torch

from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.interfaces import StepRecord
from ivideogpt.worldmodel.lazy_frames import Frame
from ivideogpt.worldmodel.session import Session


class PictureSegment:
    """Each frame is the last one moved down by a row and brightened by the action; no tokens, no random numbers."""

    random_numbers = 0

    def __init__(self, frames: list[torch.Tensor]) -> None:
        self.frames = frames

    def step(self, action, uniforms, sampling, previous, earlier):
        assert uniforms.shape == (len(action), 0)
        pixels = (self.frames[-1].roll(1, dims=2) + 0.1 * action[:, :, None, None]).clamp(0, 1)
        return self.observe(pixels, action, uniforms, sampling, previous, earlier)

    def observe(self, pixels, action, uniforms, sampling, previous, earlier):
        record = self.record(action)
        self.replay(record, Frame.shown(pixels), sampling)
        return record, Frame.shown(pixels)

    def record(self, action):
        rows = len(action)
        empty = torch.empty(rows, 0)
        return StepRecord(empty.long(), empty, empty, action, rewards=action[:, 0], terminations=None)

    def replay(self, record, frame, sampling):
        self.frames.append(frame.picture.content.repeat_interleave(frame.share, dim=0))

    def truncate(self, steps):
        del self.frames[1 + steps :]

    def repeat(self, k):
        return PictureSegment([frame.repeat_interleave(k, dim=0) for frame in self.frames])

    def select(self, rows, count):
        return PictureSegment([frame[rows] for frame in self.frames])

    def close(self):
        self.frames = []


class PictureWorld:
    config = WorldModelConfig(context_frames=2)
    context_frames, action_dim, frame_size, past_actions, device = 2, 1, (8, 8), 0, torch.device("cpu")

    def segment_frames(self, reanchor_every=None):
        return reanchor_every or 3

    def check_memory(self, rows, frames):
        pass

    def open_segment(self, context, frames, *, past_actions, speculative):
        return PictureSegment([context[:, -1]])


@pytest.fixture
def session() -> Session:
    return Session(PictureWorld(), torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def actions(horizon: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, horizon, 1, generator=torch.Generator().manual_seed(seed))


def test_a_picture_world_has_frames_and_rewards_and_no_tokens(session: Session) -> None:
    imagined = session.rollout(actions(7))
    assert imagined.frames.shape == (2, 7, 3, 8, 8) and imagined.ids.shape == (2, 7, 0)
    assert imagined.log_probs.shape == imagined.entropies.shape == (2, 7, 0)
    torch.testing.assert_close(imagined.rewards, actions(7)[:, :, 0])
    step = session.step(actions(1)[:, 0])
    assert step.frames.shape == (2, 3, 8, 8) and step.ids.shape == (2, 0) and step.terminations is None


def test_it_is_rewound_forked_selected_and_observed_as_token_worlds_are(session: Session) -> None:
    first = session.rollout(actions(7)).frames
    session.rewind(5)
    assert torch.equal(session.rollout(actions(7)[:, 2:]).frames, first[:, 2:])
    child = session.fork(2)
    frames = child.rollout(actions(2, seed=1).repeat_interleave(2, dim=0)).frames
    single = session.select([1]).rollout(actions(2, seed=1)[1:]).frames
    assert torch.equal(frames[2:3], single) and torch.equal(frames[3:4], single)
    seen = torch.zeros(2, 3, 8, 8)
    assert torch.equal(session.observe(seen, actions(1)[:, 0]).frames, seen)
    assert session.steps == 8 and session.frames.shape == (2, 10, 3, 8, 8)
