"""A player's worlds beside the sessions they stand for, without a server."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.calibration import METADATA_KEY
from ivideogpt.metrics.image import psnr
from ivideogpt.serve.protocol import Open, Settings, Show, StepRequest, Truth
from ivideogpt.serve.worlds import Actions, Worlds, changed, steps_within
from ivideogpt.worldmodel.config import ActionSpace

DRAWN = Settings(greedy=False, seed=3)


def opened(model, episode, start=0, settings=DRAWN, most_steps=100):
    return Worlds.open(model, Open(episode="0", start=start), episode, settings, most_steps)


def tensor(frames):
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)[None].float() / 255


def replay(worlds, steps, index=0):
    return [worlds.step(index, worlds.action_for(StepRequest(action="episode"), index)) for _ in range(steps)]


def test_a_world_is_the_session_it_stands_for(model, recorded):
    worlds = opened(model, recorded, start=2)
    seen = replay(worlds, 7)
    session = model.session(tensor(recorded.frames[2:4]), sampling=DRAWN.sampling, seed=3)
    for index, frame in enumerate(seen):
        action = torch.from_numpy(recorded.actions[3 + index][None])
        step = session.step(model.normalize_actions(action))
        assert frame.picture == (step.frames[0] * 255).round().byte().permute(1, 2, 0).numpy().tobytes()
        assert frame.action == tuple(recorded.actions[3 + index].tolist())
        assert frame.reward == pytest.approx(float(step.rewards))
        assert frame.entropy == pytest.approx(float(step.entropies.mean()) / math.log(2))
        assert frame.psnr == pytest.approx(float(psnr(step.frames[:, None], tensor(recorded.frames[4 + index][None]))))
        assert frame.milliseconds > 0
    assert worlds.state()["true_steps"] == 24 - 2 - 2
    assert worlds.state()["worlds"] == [{"steps": 7}]


def calibrated(model, recorded, steps, **calibration):
    """Frames of a world of the model with a calibration."""
    before = model.config
    model.config = replace(before, metadata={METADATA_KEY: {"share": 0.8, "clips": 64, "frames": 5} | calibration})
    try:
        return replay(opened(model, recorded), steps)
    finally:
        model.config = before


def test_the_expected_error_is_that_of_the_calibration(model, recorded):
    plain = replay(opened(model, recorded), 6)
    assert plain[0].expected_error is None  # never calibrated
    entropies = sorted(frame.entropy * math.log(2) for frame in plain[:5])
    limits = ("small", entropies[1], 39.0), ("medium", entropies[3], 33.0), ("large", None, 28.0)
    levels = [{"name": n, "limit": limit, "psnr": p, "hit_rate": 0.8} for n, limit, p in limits]
    seen = calibrated(model, recorded, 6, signal="entropy", levels=levels)
    names = [frame.expected_error and frame.expected_error["name"] for frame in seen]
    assert sorted(names[:5]) == ["large", "medium", "medium", "small", "small"]
    assert names[5] is None  # later than any frame that was measured
    assert {"name": "medium", "psnr": 33.0, "hit_rate": 0.8} in [frame.expected_error for frame in seen]


def test_the_expected_error_of_a_changed_frame(model, recorded):
    given = recorded.frames[1].astype(float)
    frames = [
        np.frombuffer(frame.picture, np.uint8).reshape(given.shape) for frame in replay(opened(model, recorded), 4)
    ]
    changes = [np.abs(frame - given).mean() / 255 for frame in frames]
    middle = float(np.median(changes))
    levels = [{"name": n, "limit": x, "psnr": 30.0, "hit_rate": 0.8} for n, x in (("small", middle), ("large", None))]
    seen = calibrated(model, recorded, 4, signal="change", levels=levels)
    assert [x.expected_error["name"] for x in seen] == ["small" if c <= middle else "large" for c in changes]


def test_rewinding_across_segments_leads_to_the_same_frames_again(model, recorded):
    assert model.segment_frames() == 4
    worlds = opened(model, recorded)
    first = [seen.picture for seen in replay(worlds, 11)]
    for step in (9, 4, 3, 0):
        worlds.check_rewind([0], step)
        worlds.rewind(0, step)
        assert worlds.worlds[0].steps == step and len(worlds.worlds[0].seen) == step + 2
        assert [seen.picture for seen in replay(worlds, 11 - step)] == first[step:]
    with pytest.raises(UserError, match="step is 12; expected 0 to 11"):
        worlds.check_rewind([0], 12)


def test_a_fork_goes_on_with_random_numbers_of_its_own(model, recorded):
    worlds = opened(model, recorded)
    replay(worlds, 3)
    both = worlds.worlds[0].session.fork(2)
    worlds.fork(2)
    action = (0.5, -0.5)
    step = both.step(model.normalize_actions(torch.tensor([action, action])))
    expected = (step.frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for index in (0, 1):
        assert worlds.step(index, action).picture == expected[index].tobytes()
    assert not np.array_equal(expected[0], expected[1])
    with pytest.raises(UserError, match="there are 2 worlds already"):
        worlds.fork(2)
    kept = worlds.worlds[1]
    worlds.join(1)
    assert worlds.worlds == [kept]
    with pytest.raises(UserError, match="world is 1; expected 0"):
        worlds.chosen(1)


def test_worlds_of_a_fork_share_no_future(model, recorded):
    worlds = opened(model, recorded)
    replay(worlds, 5)
    worlds.fork(2)
    worlds.rewind(1, 1)
    assert [world.steps for world in worlds.worlds] == [5, 1]
    assert len(worlds.worlds[0].seen) == 7
    replay(worlds, 2, index=1)
    assert worlds.state()["worlds"] == [{"steps": 5}, {"steps": 3}]


def test_frames_come_again_by_step(model, recorded):
    worlds = opened(model, recorded, start=4)
    seen = replay(worlds, 3)
    shown = dict(worlds.show(Show(first=-1, count=64)))
    assert list(shown) == [-1, 0, 1, 2, 3]
    assert [shown[step].picture for step in (-1, 0)] == [recorded.frames[i].tobytes() for i in (4, 5)]
    assert [shown[step] for step in (1, 2, 3)] == seen
    for first in (-2, 4):
        with pytest.raises(UserError, match="no step"):
            worlds.show(Show(first=first, count=1 if first > 0 else 1))
    with pytest.raises(UserError, match="count is 65"):
        worlds.show(Show(first=0, count=65))


def test_true_frames_are_those_of_the_episode(model, recorded):
    worlds = opened(model, recorded, start=4)
    true = dict(worlds.truth(Truth(first=-1, count=64)))
    assert list(true) == list(range(-1, 19)) and worlds.true_steps == 18
    assert all(true[step].picture == recorded.frames[5 + step].tobytes() for step in true)
    assert true[1].action == tuple(recorded.actions[5].tolist())
    assert all(seen.psnr is None and seen.entropy is None for seen in true.values())
    with pytest.raises(UserError, match="the episode has no true frame of step 19"):
        worlds.truth(Truth(first=19, count=3))


def test_psnr_ends_where_the_episode_does(model, recorded):
    worlds = opened(model, recorded, start=21)
    first = replay(worlds, 1)[0]
    assert first.psnr is not None and worlds.step(0, (0.0, 0.0)).psnr is None
    with pytest.raises(UserError, match="the episode ends at step 1"):
        worlds.action_for(StepRequest(action="episode"), 0)


@pytest.mark.parametrize("start", [-1, 23, 2**40])
def test_a_start_without_enough_frames_is_one_sentence(model, recorded, start):
    with pytest.raises(UserError, match=f"start is {start}; expected 0 to 22"):
        opened(model, recorded, start=start)


def test_the_last_start_has_no_true_steps(model, recorded):
    worlds = opened(model, recorded, start=22)
    assert worlds.true_steps == 0 and worlds.step(0, (0.0, 0.0)).psnr is None


def test_settings_take_effect_with_the_next_step(model, recorded):
    worlds = opened(model, recorded)
    replay(worlds, 1)
    worlds.change(changed(DRAWN, {"greedy": True}))
    drawn = replay(worlds, 1)[0].picture
    session = model.session(tensor(recorded.frames[:2]), sampling=DRAWN.sampling, seed=3)
    session.step(model.normalize_actions(torch.from_numpy(recorded.actions[1][None])))
    session.sampling = replace(DRAWN.sampling, greedy=True)
    step = session.step(model.normalize_actions(torch.from_numpy(recorded.actions[2][None])))
    assert drawn == (step.frames[0] * 255).round().byte().permute(1, 2, 0).numpy().tobytes()


def test_actions_that_do_not_fit_are_one_sentence(model, recorded):
    worlds = opened(model, recorded, most_steps=1)
    for action, sentence in [
        (None, "action is null; this model needs 2 numbers"),
        ((1.0,), "action has 1 numbers; this model takes 2"),
        ((1.0, 2.0, 3.0), "action has 3 numbers"),
        ((0.0, 100.0), "action 2 of the action is 100; expected -1.75 to -0.25"),
        ((-1e200, 0.0), "action 1 of the action is -1e"),
    ]:
        with pytest.raises(UserError, match=sentence):
            worlds.action_for(StepRequest(action=action), 0)
    replay(worlds, 1)
    with pytest.raises(UserError, match="world 0 has 1 steps, as many as it may have"):
        worlds.action_for(StepRequest(action=(0.0, 0.0)), 0)
    bare = opened(model, replace(recorded, actions=None))
    with pytest.raises(UserError, match="recorded without actions"):
        bare.action_for(StepRequest(action="episode"), 0)


def test_an_overflow_inside_the_model_leaves_the_world_as_it_was(build, recorded):
    model = build("plain", frame_stride=1)
    worlds = opened(model, recorded)
    good = replay(worlds, 2)[-1]
    worlds.rewind(0, 1)
    bias = model.tokenizer.decoder.conv_out.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(math.nan)
    with pytest.raises(UserError, match="overflowed"):
        replay(worlds, 1)
    with torch.no_grad():
        bias.copy_(before)
    assert worlds.worlds[0].steps == 1
    assert replay(worlds, 1)[0].picture == good.picture


def test_an_action_free_model_takes_no_action(model_of, recorded):
    model = model_of("action_free")
    worlds = opened(model, recorded)
    assert Actions.of(model).dim == 0 and Actions.of(model).names == ()
    assert worlds.step(0, worlds.action_for(StepRequest(), 0)).action is None
    assert worlds.step(0, worlds.action_for(StepRequest(action="episode"), 0)).reward is None
    with pytest.raises(UserError, match="this model is action-free: give null"):
        worlds.action_for(StepRequest(action=(1.0,)), 0)
    frames, actions, context = worlds.recording(0)
    assert frames.shape == (4, 16, 16, 3) and actions.shape == (4, 0) and context == 2


def test_a_goal_conditioned_model_gets_the_end_of_the_episode_as_its_goal(model_of, recorded):
    actions = np.zeros((24, 3), np.float32)
    worlds = opened(model_of("goal"), replace(recorded, actions=actions), start=5)
    shown = dict(worlds.show(Show(first=-1, count=2)))
    assert shown[-1].picture == recorded.frames[-1].tobytes() and shown[0].picture == recorded.frames[5].tobytes()
    assert worlds.true_steps == 18
    assert dict(worlds.truth(Truth(first=1, count=1)))[1].picture == recorded.frames[6].tobytes()
    assert worlds.step(0, worlds.action_for(StepRequest(action="episode"), 0)).psnr is not None


def test_what_actions_mean_is_taken_from_the_checkpoint_or_guessed(build):
    guessed = Actions.of(build("plain"))
    assert guessed.names == ("action 1", "action 2") and guessed.units == ("", "") and not guessed.pointer
    assert guessed.low == (-5.5, -1.75) and guessed.high == (6.5, -0.25)
    unknown = Actions.of(build("conditional"))
    assert unknown.low == (-1.0,) * 3 and unknown.high == (1.0,) * 3
    space = ActionSpace(names=("x", "y"), low=(0.0, 0.0), high=(512.0, 512.0), units=("px", "px"), pointer=True)
    said = Actions.of(build("plain", action_space=space))
    assert (said.names, said.low, said.high, said.units, said.pointer) == (*vars(space).values(),)[:4] + (True,)


def test_a_recording_holds_frames_and_raw_actions(model, recorded):
    worlds = opened(model, recorded)
    seen = replay(worlds, 2)
    frames, actions, context = worlds.recording(0)
    assert context == 2 and frames.shape == (4, 16, 16, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[:2], recorded.frames[:2]) and frames[3].tobytes() == seen[1].picture
    assert np.array_equal(actions[:3], recorded.actions[:3]) and not actions[3].any()
    assert actions.dtype == np.float32


def test_memory_limits_the_steps(model):
    assert steps_within(model, 16 * 16 * 3 * 5 * 10) == 8
    assert steps_within(model, 0) == 1
