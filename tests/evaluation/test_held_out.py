from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.held_out import read_clips
from ivideogpt.evaluation.protocols import PROTOCOLS, settle


def read(model, store, name="single", **options):
    return read_clips(model, store, settle(PROTOCOLS[name], model), **options)


def test_a_clip_is_the_recorded_frames_and_actions(model_of, store_of) -> None:
    model, store = model_of("conditional"), store_of((9, 8))
    found = read(model, store)
    assert found.clips.frames.shape == (2, 6, 3, 16, 16) and found.split == "test" and found.mismatches == ()
    for index, start in enumerate(found.clips.starts):
        episode = store[index]
        frames = torch.from_numpy(episode.frames[start : start + 6]).permute(0, 3, 1, 2)
        assert torch.equal(found.clips.frames[index], frames)
        assert np.array_equal(found.clips.actions[index, :-1], episode.actions[start : start + 5])
    assert found.clips.keys == ("e0", "e1")


def test_starts_are_a_function_of_seed_and_episode(model_of, store_of) -> None:
    model, store = model_of("conditional"), store_of((40, 40, 40, 40))
    starts = read(model, store).clips.starts
    assert len(set(starts)) > 1 and read(model, store).clips.starts == starts
    assert read(model, store, seed=1).clips.starts != starts
    assert read(model, store, count=2).clips.starts == (starts[0], starts[3]), "fewer clips begin where they did"


def test_published_clips_begin_at_frame_0(build, store_of) -> None:
    model, store = build("conditional", clip_frames=12), store_of((20, 20), name="tfds_robonet", size=(16, 24))
    assert read(model, store, "robonet").clips.starts == (0, 0)


def test_frames_of_robonet_are_cropped_to_a_square_and_resized(model_of, store_of) -> None:
    store = store_of((12,), name="tfds_robonet", size=(32, 48))
    found = read(model_of("conditional"), store, "robonet")
    middle = torch.from_numpy(store[0].frames[0, :, 8:40]).permute(2, 0, 1).float()
    coarse = torch.nn.functional.avg_pool2d(middle[None], 8)
    ours = torch.nn.functional.avg_pool2d(found.clips.frames[:1, 0].float(), 4)
    assert (ours - coarse).abs().mean() < 8


def test_a_goal_conditioned_clip_begins_with_its_last_frame(model_of, store_of) -> None:
    found = read(model_of("goal"), store_of((9,)))
    frames, actions = found.clips.frames[0], found.clips.actions[0]
    assert len(frames) == 6 and torch.equal(frames[0], frames[-1]) and not torch.equal(frames[1], frames[2])
    assert not actions[0].any() and actions[1].any()


def test_episodes_that_are_too_short_are_counted_and_left_out(model_of, store_of) -> None:
    found = read(model_of("conditional"), store_of((9, 3, 8, 5)))
    assert found.clips.keys == ("e0", "e2") and found.too_short == 2
    with pytest.raises(UserError, match="longest episode"):
        read(model_of("conditional"), store_of((5, 3)))


def test_held_out_episodes_are_taken_and_training_ones_only_on_request(model_of, store_of) -> None:
    model = model_of("conditional")
    found = read(model, store_of((8, 8, 8), split=("train", "val", "train")))
    assert found.split == "val" and found.clips.keys == ("e1",)
    store = store_of((8,), split="train")
    with pytest.raises(UserError, match="--split"):
        read(model, store)
    with pytest.raises(UserError, match="no split 'test'"):
        read_clips(model, store, settle(PROTOCOLS["single"], model, split="test"))
    assert read_clips(model, store, settle(PROTOCOLS["single"], model, split="train")).split == "train"


@pytest.mark.parametrize(
    ("kind", "options", "protocol", "word"),
    [
        ("conditional", {"dim": 2}, "single", "2 numbers"),
        ("conditional", {"name": "bair_robot_pushing"}, "bair", "1 context frames"),
        ("conditional", {"name": "kuka"}, "single", "kuka is used at stride 3"),
    ],
)
def test_data_that_differ_from_the_checkpoint_are_refused_unless_told(
    model_of, store_of, kind, options, protocol, word
) -> None:
    model, store = model_of(kind), store_of((20, 20), **options)
    with pytest.raises(UserError, match=word) as raised:
        read(model, store, protocol)
    assert "--allow-mismatch" in str(raised.value) and "\n" not in str(raised.value)
    found = read(model, store, protocol, allow_mismatch=True)
    assert any(word in text for text in found.mismatches)
    assert found.clips.frames.shape[-2:] == (16, 16) and found.clips.actions.shape[-1] == 3


def test_frames_of_another_size_are_resized_where_the_protocol_says_so(model_of, store_of) -> None:
    model, store = model_of("conditional"), store_of((20, 20), size=(24, 24))
    held_out = read(model, store)
    assert held_out.mismatches == () and held_out.clips.frames.shape[-2:] == (16, 16)
    strict = replace(settle(PROTOCOLS["single"], model), resize=False)
    with pytest.raises(UserError, match="24 x 24"):
        read_clips(model, store, strict)


def test_another_stride_than_the_checkpoints_is_refused_unless_told(model_of, store_of) -> None:
    model, store = model_of("plain"), store_of((20,), dim=2)
    assert read(model, store).stride == 2
    with pytest.raises(UserError, match="stride is 1 and the checkpoint's is 2"):
        read(model, store, stride=1)
    assert read(model, store, stride=1, allow_mismatch=True).stride == 1


def test_actions_that_cannot_be_made_to_fit_are_refused_always(model_of, store_of) -> None:
    for options, word in (({"dim": 0}, "has none"), ({"dim": 4}, "4 numbers")):
        with pytest.raises(UserError, match=word):
            read(model_of("conditional"), store_of((9,), **options), allow_mismatch=True)
    assert read(model_of("action_free"), store_of((40,), dim=4)).clips.actions is None


def test_a_camera_that_is_not_there_is_named(model_of, store_of) -> None:
    with pytest.raises(UserError, match="no camera 'wrist'; it has image"):
        read(model_of("conditional"), store_of((9,)), camera="wrist")
