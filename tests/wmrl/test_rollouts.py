"""Episodes in a world model and in environments, and the check of a world model on held-out recordings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.data.store.reader import EpisodeStore  # noqa: E402
from ivideogpt.envs.toys import ToyPush  # noqa: E402
from ivideogpt.models.dynamics import HeadsConfig  # noqa: E402
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig  # noqa: E402
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig  # noqa: E402
from ivideogpt.models.success_classifier import (  # noqa: E402
    ClassifierConfig,
    ClassifierFacts,
    SuccessClassifier,
)
from ivideogpt.policies.vla.tiny_flow import TinyFlow, TinyFlowConfig  # noqa: E402
from ivideogpt.wmrl.config import WmRlConfig  # noqa: E402
from ivideogpt.wmrl.loop import check_held_out  # noqa: E402
from ivideogpt.wmrl.own_episodes import OwnRecording, record_own_episodes  # noqa: E402
from ivideogpt.wmrl.rollouts import ImaginedRows, InstructedStarts, RealRows, evaluate_flow, play_episodes  # noqa: E402
from ivideogpt.worldmodel.config import WorldModelConfig  # noqa: E402
from ivideogpt.worldmodel.world_model import WorldModel  # noqa: E402

SIZES = TinyFlowConfig(
    resolution=16, width=16, heads=2, halvings=0, points=2, encoder_layers=1, expert_layers=1, words=8, denoise_steps=2
)


@pytest.fixture(scope="module")
def policy() -> TinyFlow:
    torch.manual_seed(0)
    return TinyFlow(SIZES).eval()


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    forecast = PictureForecastConfig(
        net=PictureNetConfig(width=8, deep_width=8, blocks_deep=1, copies=True), action="numbers", action_dim=2
    )
    pictures = PictureDynamics(PictureDynamicsConfig(resolution=16, forecast=forecast)).eval()
    config = WorldModelConfig(
        name="tiny",
        context_frames=2,
        clip_frames=8,
        action_mean=(0.0, 0.0),
        action_std=(1.0, 1.0),
        heads=HeadsConfig(action_dim=2),
    )
    return WorldModel.from_pictures(config, pictures)


def classifier(threshold: float, words: int = 32) -> SuccessClassifier:
    torch.manual_seed(1)
    facts = ClassifierFacts(threshold=threshold)
    return SuccessClassifier(ClassifierConfig(resolution=16, width=8, hidden=8, words=words), facts).eval()


def recordings(count: int = 4, length: int = 9, success_at: int | None = None) -> list[Episode]:
    episodes = []
    for number in range(count):
        random = np.random.default_rng(number)
        terminated = np.zeros(length, bool)
        if success_at is not None:
            terminated[success_at] = True
        still = random.integers(0, 255, (1, 16, 16, 3)).astype(np.uint8)
        actions = random.uniform(-1, 1, (length, 2)).astype(np.float32)
        episodes.append(
            Episode(frames=still.repeat(length, 0), actions=actions, terminated=terminated, key=str(number))
        )
    return episodes


def imagined(model: WorldModel, policy: TinyFlow, judge: SuccessClassifier, latest: int = 0, **options) -> ImaginedRows:
    words = [f"task {number}" for number in range(4)]
    starts = InstructedStarts(recordings(), words, frames=2, latest=latest)
    return ImaginedRows(model, starts, judge, policy, **{"count": 8, "horizon": 6} | options)


@pytest.mark.parametrize("latest", [0, 3])
def test_episodes_of_a_group_begin_alike_and_with_the_instruction_of_their_recording(latest, model, policy) -> None:
    rows = imagined(model, policy, classifier(2.0), latest=latest)
    frames, words = rows.begin(np.random.default_rng(0), 4)
    assert frames.shape == (8, 1, 16, 16, 3)
    for first in (0, 4):
        assert (frames[first : first + 4] == frames[first]).all() and len(set(words[first : first + 4])) == 1
        number = int(words[first].split()[1])
        begins = recordings()[number].frames[: latest + 1]
        assert any(np.array_equal(frames[first, 0], frame) for frame in begins)


def test_starts_come_before_the_success_of_a_recording_and_not_after_the_latest() -> None:
    words = ["a", "b", "c", "d"]
    assert len(InstructedStarts(recordings(), words, frames=2, latest=3)) == 4 * 4
    assert len(InstructedStarts(recordings(success_at=1), words, frames=2, latest=3)) == 4 * 2
    starts = InstructedStarts(recordings(), words, frames=3, latest=3)
    first = starts(1, np.random.default_rng(0), np.array([0])).frames[0]
    assert first.shape == (3, 16, 16, 3) and (first == first[-1]).all() and starts.instructions[5] == "b"


def test_the_classifier_ends_episodes_and_without_success_the_horizon_does(model, policy) -> None:
    for threshold, success, steps in ((0.0, True, 1), (2.0, False, 6)):
        rows = imagined(model, policy, classifier(threshold))
        frames, words = rows.begin(np.random.default_rng(0), 2)
        played = play_episodes(
            policy, rows, frames, words, torch.Generator().manual_seed(0), horizon=6, noise_level=0.5
        )
        assert played.succeeded.tolist() == [success] * 8 and played.steps.tolist() == [steps] * 8
        assert rows.steps == 8 * steps
        assert played.alive.sum(dim=0).tolist() == [1 if success else 2] * 8  # chunks of four


def test_the_same_seed_gives_the_same_imagined_episodes(model, policy) -> None:
    def actions() -> torch.Tensor:
        rows = imagined(model, policy, classifier(2.0))
        frames, words = rows.begin(np.random.default_rng(3), 2)
        return play_episodes(policy, rows, frames, words, torch.Generator().manual_seed(1), horizon=6).actions

    assert torch.equal(actions(), actions())


def test_frames_of_another_size_are_refused(model) -> None:
    other = TinyFlow(replace(SIZES, resolution=32))
    with pytest.raises(UserError, match="the policy reads frames of 32 px and the world model draws 16"):
        imagined(model, other, classifier(0.5))


def test_real_episodes_depend_on_their_seed_alone_and_every_success_is_counted(policy) -> None:
    torch.manual_seed(0)
    narrow = RealRows("toy-push", policy, count=2, options={"size": 16, "steps": 6})
    frames, words = narrow.begin_at([4, 5])
    again, same_words = narrow.begin_at([4])
    assert np.array_equal(frames[0], again[0]) and words[0] == same_words[0] and words[0].startswith("push the")
    successes = evaluate_flow(policy, narrow, range(5), horizon=6)
    assert len(successes) == 5
    assert successes == evaluate_flow(policy, narrow, range(5), horizon=6)
    assert narrow.steps <= 2 * 5 * 6
    frames, words = narrow.begin(np.random.default_rng(0), 2)
    assert np.array_equal(frames[0], frames[1]) and words[0] == words[1]
    narrow.close()


def test_recorded_episodes_of_a_policy_are_what_the_environment_shows_for_their_actions(policy, tmp_path) -> None:
    settings = OwnRecording(
        episodes=3, horizon=5, noise=0.5, random_share=0.5, environment_options={"terminate": False, "size": 16}
    )
    record_own_episodes(policy, "toy-push", range(3), tmp_path / "own", settings, {}, split="test")
    store = EpisodeStore(tmp_path / "own")
    assert store.splits == ["test"] * 3
    seen = set()
    for index in range(3):
        episode, environment = store[index], ToyPush(size=16, terminate=False)
        frame, info = environment.reset(seed=index)
        assert len(episode) == 6 and store.info(index)["text"] == info["instruction"]
        assert episode.actions is not None and episode.rewards is not None
        seen.add(episode.actions.tobytes())
        for step in range(5):
            assert np.array_equal(episode.frames[step], frame)
            frame, reward, *_ = environment.step(episode.actions[step])
            assert episode.rewards[step] == reward
        assert np.array_equal(episode.frames[5], frame)
    assert len(seen) == 3


def test_a_world_model_is_trusted_as_far_as_held_out_recordings_allow(model) -> None:
    config = WmRlConfig(horizon=6, trusted_psnr=0.0, least_agreement=0.0)
    words = ["a"] * 4
    check = check_held_out(config, model, classifier(2.0), recordings(), words)
    assert check.episodes == 4 and check.trusted_steps == 6 and len(check.psnr) == 6
    assert check.agreement == 1 and check.real_success == check.imagined_success == 0
    limit = (check.psnr[0] + check.psnr[2]) / 2
    assert check.psnr[0] > limit > check.psnr[2]  # frames of noise get worse
    assert (
        check_held_out(replace(config, trusted_psnr=limit), model, classifier(2.0), recordings(), words).trusted_steps
        <= 2
    )
    with pytest.raises(UserError, match="below trusted_psnr"):
        check_held_out(replace(config, trusted_psnr=99.0), model, classifier(2.0), recordings(), words)


def test_a_world_that_disagrees_with_held_out_recordings_is_refused(model) -> None:
    config = WmRlConfig(horizon=6, trusted_psnr=0.0, least_agreement=0.5)
    with pytest.raises(UserError, match="agree on the success of 0%"):
        check_held_out(config, model, classifier(0.0), recordings(), ["a"] * 4)
