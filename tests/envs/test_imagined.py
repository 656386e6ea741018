"""The imagined world as gymnasium sees it: resets, autoreset, seeds, states, and what it is paid by."""

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402

from ivideogpt import UserError, WorldModel  # noqa: E402
from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.envs.imagined import ImaginedEnv, ImaginedVectorEnv, as_bytes  # noqa: E402
from ivideogpt.envs.start_states import EpisodeStarts, GivenStarts  # noqa: E402
from ivideogpt.mbrl.world_model_source import with_new_heads  # noqa: E402


@pytest.fixture(scope="module")
def starts(frames_for, model_of) -> EpisodeStarts:
    frames = as_bytes(frames_for(model_of("plain"), rows=1, count=12)[0])
    return EpisodeStarts([Episode(frames=frames), Episode(frames=frames[::-1].copy())], 3)


def rows(model, starts, count=3, **options):
    options = {"horizon": 4, "raw_actions": False, "seed": 7} | options
    return ImaginedVectorEnv(model, starts, num_envs=count, **options)


def moves(count=3, steps=12, size=2):
    return np.random.default_rng(0).uniform(-1, 1, (steps, count, size)).astype(np.float32)


def lived(environments, steps, actions=None):
    """Everything that ``steps`` steps after a reset say."""
    actions = moves(environments.num_envs) if actions is None else actions
    found = [environments.reset()[0]]
    for number in range(steps):
        found.append(environments.step(actions[number]))
    return found


def test_spaces_shapes_and_types_are_those_of_gymnasium(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts, frame_stack=3)
    observations, info = environments.reset(seed=0)
    assert environments.observation_space.contains(observations) and info == {}
    assert observations.shape == (3, 3, 16, 16, 3) and environments.single_action_space.shape == (2,)
    after, rewards, terminated, truncated, _ = environments.step(moves()[0])
    assert environments.observation_space.contains(after)
    assert (after[:, :2] == observations[:, 1:]).all()
    assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == bool
    assert rewards.shape == terminated.shape == truncated.shape == (3,)


def test_what_is_imagined_is_what_the_session_imagines(model_of, starts) -> None:
    model = model_of("plain")
    environments = rows(model, starts, raw_actions=True, horizon=9)  # beyond a segment of 4: a new context is encoded
    environments.reset(options={"indices": [0, 3, 5]})
    from ivideogpt.envs.imagined import episode_seed

    context = torch.from_numpy(starts(3, np.random.default_rng(0), np.array([0, 3, 5])).frames)[
        :, -model.context_frames :
    ]
    seeds = [episode_seed(7 + row, 0) for row in range(3)]
    session = model.session(context.permute(0, 1, 4, 2, 3), seed=seeds)
    for actions in moves(steps=9):
        observations, rewards, _, truncated, _ = environments.step(actions)
        step = session.step(model.normalize_actions(torch.from_numpy(actions)))
        assert np.array_equal(observations, as_bytes(step.frames))
        np.testing.assert_allclose(rewards, step.rewards.numpy(), rtol=1e-6)
    assert truncated.all()


def test_next_step_rows_begin_again_in_the_step_after_their_last(model_of, starts) -> None:
    steps = lived(rows(model_of("plain"), starts, horizon=2), 6)
    cut = [step[3].tolist() for step in steps[1:]]
    assert cut == [[False] * 3, [True] * 3, [False] * 3] * 2
    assert (steps[3][1] == 0).all()  # a step that only begins pays nothing
    assert steps[2][1].any()


def test_same_step_rows_begin_again_at_once_and_tell_what_they_ended_with(model_of, starts) -> None:
    model = model_of("plain")
    same_step = lived(rows(model, starts, horizon=2, autoreset_mode=AutoresetMode.SAME_STEP), 2)
    disabled = lived(rows(model, starts, horizon=2, autoreset_mode=AutoresetMode.DISABLED), 2)
    assert np.array_equal(same_step[2][4]["final_obs"], disabled[2][0]) and same_step[2][4]["_final_obs"].all()
    assert np.array_equal(same_step[2][1], disabled[2][1]) and same_step[2][3].all()
    assert not np.array_equal(same_step[2][0], disabled[2][0])
    assert "final_obs" not in same_step[1][4]


def test_disabled_rows_wait_for_a_reset_of_their_own(model_of, starts) -> None:
    environments = rows(
        model_of("plain"),
        starts,
        horizon=9,
        autoreset_mode=AutoresetMode.DISABLED,
        terminate=lambda frames, actions, after: actions[:, 0] > 0,
    )
    environments.reset()
    actions = np.array([[0.5, 0], [-0.5, 0], [-0.5, 0]], np.float32)
    before, _, terminated, _, _ = environments.step(actions)
    assert terminated.tolist() == [True, False, False]
    with pytest.raises(UserError, match=r"rows \[0\] are over"):
        environments.step(actions)
    after, _ = environments.reset(options={"reset_mask": terminated})
    assert not np.array_equal(after[0], before[0]) and np.array_equal(after[1:], before[1:])
    environments.step(-np.abs(actions))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_row_does_not_depend_on_the_rows_around_it(model_of, starts, mode) -> None:
    """Also where the others end at other times."""

    def ends(frames, actions, after):
        return actions[:, 0] > 0.6

    def run(count, chosen):
        environments = rows(
            model_of("plain"), starts, count, seed=7 + chosen[0], terminate=ends, autoreset_mode=mode, horizon=5
        )
        told, actions = [environments.reset()[0]], moves(4)[:, chosen]
        for number in range(10):
            told.append(environments.step(actions[number]))
            over = told[-1][2] | told[-1][3]
            if mode == AutoresetMode.DISABLED and over.any():
                told.append(environments.reset(options={"reset_mask": over})[0])
        return told

    if mode == AutoresetMode.DISABLED:  # lists differ in length where others end: compare the frames of each step
        together = [x[0] for x in run(4, [0, 1, 2, 3]) if isinstance(x, tuple)]
        alone = [x[0] for x in run(1, [2]) if isinstance(x, tuple)]
        pairs = [(a[2], b[0]) for a, b in zip(together, alone, strict=True)]
    else:
        together, alone = run(4, [0, 1, 2, 3]), run(1, [2])
        pairs = [(a[0][2], b[0][0]) for a, b in zip(together[1:], alone[1:], strict=True)]
        assert [float(a[1][2]) for a in together[1:]] == pytest.approx([float(b[1][0]) for b in alone[1:]], rel=1e-4)
    for one, other in pairs:
        assert np.abs(one.astype(int) - other).max() <= 1


def test_the_same_seed_gives_the_same_world_and_each_episode_another(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts, 1, horizon=3)
    actions = np.zeros((8, 1, 2), np.float32)

    def episode(**options):
        environments.reset(**options)
        return np.stack([environments.step(action)[0] for action in actions[:3]])

    first = episode(seed=3)
    assert not np.array_equal(first, episode())
    assert np.array_equal(first, episode(seed=3)) and np.array_equal(first, episode(seed=[3]))


def test_rows_of_a_group_begin_alike_and_go_on_apart(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts, 4)
    observations, _ = environments.reset(options={"group_size": 2, "indices": [1, 6]})
    assert (observations[0] == observations[1]).all() and (observations[2] == observations[3]).all()
    assert not (observations[0] == observations[2]).all()
    after = environments.step(np.zeros((4, 2), np.float32))[0]
    assert not (after[0] == after[1]).all()
    drawn, _ = environments.reset(options={"group_size": 4})
    assert (drawn == drawn[:1]).all()


def test_a_state_is_gone_back_to_any_number_of_times_bitwise(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts, horizon=3)
    actions = moves()
    environments.reset()
    environments.step(actions[0])
    state, replays = environments.get_state(), []
    for _ in range(3):
        environments.set_state(state)
        replays.append([environments.step(action)[:2] for action in actions[1:8]])  # past a reset
    for replay in replays[1:]:
        for (frames, rewards), (frames_again, rewards_again) in zip(replays[0], replay, strict=True):
            assert np.array_equal(frames, frames_again) and np.array_equal(rewards, rewards_again)


def test_several_actions_at_once_are_those_one_by_one_and_a_row_that_is_over_rests(model_of, starts) -> None:
    def ends(frames, actions, after):
        return actions[:, 0] > 0.9

    options = {"autoreset_mode": AutoresetMode.DISABLED, "terminate": ends, "horizon": 9}
    chunked, stepped = (rows(model_of("plain"), starts, **options) for _ in range(2))
    chunked.reset()
    stepped.reset()
    actions = np.clip(moves(steps=4), -0.8, 0.8)
    actions[1, 0, 0] = 1.0
    observations, rewards, terminated, truncated, infos = chunked.chunk_step(actions.transpose(1, 0, 2))
    assert terminated[0].tolist() == [False, True, False, False] and not truncated.any() and len(infos) == 4
    assert (observations[1][0] == observations[3][0]).all() and (rewards[0, 2:] == 0).all()
    for number in range(2):
        single = stepped.step(actions[number])
        assert np.array_equal(single[0], observations[number])
        np.testing.assert_allclose(single[1], rewards[:, number])


def test_rows_that_are_over_may_rest_through_later_chunks(model_of, starts) -> None:
    environments = rows(
        model_of("plain"),
        starts,
        autoreset_mode="disabled",
        horizon=9,
        terminate=lambda frames, actions, after: actions[:, 0] > 0.9,
    )
    environments.reset()
    actions = np.clip(moves(steps=4), -0.8, 0.8).transpose(1, 0, 2)
    actions[1, 0, 0] = 1.0
    environments.chunk_step(actions[:, :2])
    with pytest.raises(UserError, match=r"rows \[1\] are over"):
        environments.chunk_step(actions[:, 2:])
    before = environments.get_state()
    observations, rewards, terminated, _, _ = environments.chunk_step(actions[:, 2:], may_rest=True)
    assert (rewards[1] == 0).all() and (rewards[[0, 2]] != 0).all() and not terminated.any()
    assert np.array_equal(observations[-1][1], before["arrays"][0][1, -1])


def test_instructions_stay_with_their_start_frames(model_of, frames_for) -> None:
    frames = as_bytes(frames_for(model_of("plain"), rows=1, count=12)[0])
    tasks = [frames, frames[::-1].copy()]
    paired = EpisodeStarts([Episode(frames=x, meta={"text": f"task {n}"}) for n, x in enumerate(tasks)], 3)
    environments = rows(model_of("plain"), paired, count=4, autoreset_mode="disabled")
    shown, info = environments.reset(options={"group_size": 2})
    for row in range(4):
        task = tasks[int(info["instruction"][row].removeprefix("task "))]
        assert (task == shown[row]).all(axis=(1, 2, 3)).any()
    assert info["instruction"][0] == info["instruction"][1]
    _, info = environments.reset(options={"indices": [0, 9, 17, 3], "reset_mask": np.array([True, True, True, False])})
    assert info["instruction"].tolist()[:3] == ["task 0", "task 1", "task 1"] and not info["_instruction"][3]
    given = GivenStarts(np.stack([frames[:3], frames[3:6]]), ["a", "b"])
    _, info = rows(model_of("plain"), given, count=2).reset(options={"indices": [1, 0]})
    assert info["instruction"].tolist() == ["b", "a"]


def test_a_termination_head_ends_episodes_and_its_probability_is_told(build, starts) -> None:
    model = with_new_heads(build("plain"), 2, rewards=True)
    torch.nn.init.zeros_(model.heads.termination_linear.weight)
    for logit, ended in ((-3.0, False), (3.0, True)):
        torch.nn.init.constant_(model.heads.termination_linear.bias, logit)
        environments = rows(model, starts)
        environments.reset()
        _, _, terminated, truncated, info = environments.step(moves()[0])
        assert (terminated == ended).all() and not truncated.any()
        np.testing.assert_allclose(info["termination"], 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_a_termination_head_is_kept_in_a_checkpoint_beside_the_others(build, tmp_path) -> None:
    old = build("plain")
    model = with_new_heads(old, 2, rewards=True)
    model.save_pretrained(tmp_path / "new")
    again = WorldModel.from_pretrained(tmp_path / "new")
    assert again.config.heads.termination
    assert torch.equal(again.heads.termination_linear.weight, model.heads.termination_linear.weight)
    for name, value in old.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    action_free = with_new_heads(build("action_free"), 4, rewards=True)
    assert action_free.action_dim == 4 and not action_free.heads.action_linear.weight.any()


def test_a_new_reward_is_a_function_and_so_is_success(model_of, starts) -> None:
    environments = rows(
        model_of("plain"),
        starts,
        reward=lambda frames, actions, after: actions[:, 1],
        success=lambda frames, actions, after: after.mean(axis=(1, 2, 3)) > 0,
    )
    environments.reset()
    actions = moves()[0]
    _, rewards, _, _, info = environments.step(actions)
    np.testing.assert_allclose(rewards, actions[:, 1])
    assert info["success"].all() and info["_success"].all()


def test_a_refused_reset_changes_nothing(model_of, starts) -> None:
    environments, untouched = rows(model_of("plain"), starts), rows(model_of("plain"), starts)
    environments.reset(), untouched.reset()
    with pytest.raises(UserError):
        environments.reset(options={"indices": [1, 2, 999]})
    np.testing.assert_array_equal(environments.step(moves()[0])[0], untouched.step(moves()[0])[0])


def test_a_seed_of_numpy_is_a_seed(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts)
    first, _ = environments.reset(seed=np.int64(3))
    np.testing.assert_array_equal(environments.reset(seed=3)[0], first)
    for seeds in (np.array([3, 4, 5]), [np.int64(3), 4, 5], (3, 4, 5), np.array(3)):
        np.testing.assert_array_equal(environments.reset(seed=seeds)[0], first)


@pytest.mark.parametrize("seed", [-1, [1, -2, 3], np.array([1, 2, -3]), 1.5, np.array([0.5, 1.0, 2.0]), "7", True])
def test_what_is_no_seed_is_refused_in_one_sentence(model_of, starts, seed) -> None:
    environments = rows(model_of("plain"), starts)
    with pytest.raises(UserError, match="expected a whole number of at least 0"):
        environments.reset(seed=seed)
    with pytest.raises(UserError, match="seed is -1"):
        rows(model_of("plain"), starts, seed=-1)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_is_named_by_text_as_well(model_of, starts, mode) -> None:
    for text in (mode.value, mode.name, mode.name.lower(), mode.name.lower().replace("_", "-")):
        environments = rows(model_of("plain"), starts, autoreset_mode=text)
        assert environments.autoreset_mode is mode and environments.metadata["autoreset_mode"] is mode
    with pytest.raises(UserError, match="autoreset_mode is 'next'; expected next_step, same_step or disabled"):
        rows(model_of("plain"), starts, autoreset_mode="next")


def test_attributes_are_read_and_set_as_in_gymnasiums_vectors(model_of, starts) -> None:
    environments = rows(model_of("plain"), starts)
    assert environments.get_attr("horizon") == (4, 4, 4) and environments.get_attr("render_mode") == (None,) * 3
    environments.set_attr("horizon", [1, 2, 3])
    environments.set_attr("level", "easy")
    environments.set_attr("reward", lambda frames, actions, after: np.full(len(actions), 7.0))
    assert environments.horizon == 3 and environments.get_attr("level") == ("easy",) * 3
    environments.reset()
    _, rewards, _, truncated, _ = environments.step(moves()[0])
    assert truncated.tolist() == [True, False, False] and (rewards == 7).all()
    environments.horizon = 2
    assert environments.call("get_attr", "horizon") == (2, 2, 2)
    with pytest.raises(UserError, match="2 values of horizon were given for 3 rows"):
        environments.set_attr("horizon", [1, 2])
    with pytest.raises(AttributeError):
        environments.get_attr("nothing")


def test_a_state_is_estimated_from_the_newest_frames(model_of, starts) -> None:
    def brightness(frames):
        return frames.mean(axis=(1, 2))

    for mode in AutoresetMode:
        environments = rows(model_of("plain"), starts, horizon=1, state=brightness, autoreset_mode=mode)
        observations, info = environments.reset()
        np.testing.assert_allclose(info["state"], brightness(observations))
        observations, *_, info = environments.step(moves()[0])
        assert info["state"].shape == (3, 3) and info["_state"].all()
        np.testing.assert_allclose(info["state"], brightness(observations))
        if mode == AutoresetMode.SAME_STEP:
            np.testing.assert_allclose(info["final_info"]["state"], brightness(info["final_obs"]))


@pytest.mark.filterwarnings("ignore:.*render")
def test_one_row_passes_gymnasiums_own_check(model_of, starts) -> None:
    environment = ImaginedEnv(model_of("plain"), starts, horizon=5, raw_actions=False, render_mode="rgb_array")
    check_env(environment)
    environment.reset(seed=0)
    assert environment.render().shape == (16, 16, 3)


def test_what_does_not_fit_is_said_in_one_sentence(model_of, build, starts) -> None:
    with pytest.raises(UserError, match="takes no actions"):
        rows(model_of("action_free"), starts)
    with pytest.raises(UserError, match="conditioned on a goal"):
        rows(model_of("goal"), starts)
    bare = build("plain", heads=model_of("plain").config.heads)
    object.__setattr__(bare.config.heads, "reward", False)
    try:
        with pytest.raises(UserError, match="no reward head; give a reward function"):
            rows(bare, starts)
    finally:
        object.__setattr__(bare.config.heads, "reward", True)
    environments = rows(model_of("plain"), starts)
    with pytest.raises(UserError, match="call reset first"):
        environments.step(moves()[0])
    with pytest.raises(UserError, match="reset them all first"):
        environments.reset(options={"reset_mask": np.array([True, False, False])})
    environments.reset()
    for options, sentence in (
        ({"reset_mask": np.zeros(3, bool)}, "one of them true"),
        ({"index": 3}, "knows no option"),
        ({"group_size": 2}, "divides 3 rows"),
        ({"indices": [1, 2]}, "one a row"),
        ({"indices": [1, 2, 999]}, "expected numbers from 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            environments.reset(options=options)
    with pytest.raises(UserError, match="actions have shape"):
        environments.step(moves()[0][:2])
    with pytest.raises(UserError, match=r"actions of rows \[1\] have NaN"):
        environments.step(np.where(np.arange(3)[:, None] == 1, np.nan, moves()[0]))
    with pytest.raises(UserError, match="2 seeds were given for 3 rows"):
        environments.reset(seed=[1, 2])
    with pytest.raises(UserError, match="needs autoreset_mode DISABLED"):
        environments.chunk_step(moves().transpose(1, 0, 2))
    with pytest.raises(UserError, match="horizon is 0"):
        rows(model_of("plain"), starts, horizon=0)
    with pytest.raises(UserError, match="at least 4 frames"):
        rows(model_of("plain"), starts, frame_stack=4).reset()
    with pytest.raises(UserError, match="no episode has 21 frames"):
        EpisodeStarts([Episode(frames=np.zeros((5, 8, 8, 3), np.uint8))], 20)
