"""Success classifiers: labels, threshold, scores on real and imagined frames, files and what they refuse."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.models.success_classifier import ClassifierConfig, SuccessClassifier
from ivideogpt.training.success_classifier import (
    ClassifierTraining,
    area_under_curve,
    augmented,
    calibrate,
    choose_threshold,
    frame_labels,
    halves,
    imagine_frames,
    label_frames,
    train_classifier,
)

NETWORK = ClassifierConfig(resolution=16, width=8, hidden=16)
CONFIG = ClassifierTraining(
    network=NETWORK, reward_above=0.5, horizon=3, steps=40, batch_size=16, warmup_steps=2, average_decay=0.9
)


def episode(number: int, length: int = 8, instruction: str = "", **changes) -> Episode:
    """A noisy picture; a bright square goes right, and its steps from the middle on are rewarded."""
    random = np.random.default_rng(number)
    frames = random.integers(0, 90, (length, 16, 16, 3), dtype=np.uint8)
    for t in range(length):
        frames[t, 4:10, t * 2 % 12 : t * 2 % 12 + 4] = 250
    places = np.arange(length) * 2 % 12
    rewards = np.append(places[1:] >= 6, 0).astype(np.float32)
    values = {"frames": frames, "rewards": rewards, "actions": random.normal(size=(length, 3)).astype(np.float32)}
    return Episode(**values | {"key": f"e{number}", "meta": {"instruction": instruction}} | changes)


def test_the_label_of_a_frame_is_that_of_the_transition_that_led_to_it() -> None:
    rewards = np.array([0, 1, 0, 0], np.float32)
    recorded = Episode(frames=np.zeros((4, 16, 16, 3), np.uint8), rewards=rewards, meta={"success": True})
    nan = np.nan
    np.testing.assert_equal(frame_labels(recorded, None, CONFIG), np.array([nan, 0, 1, 0], np.float32))
    success = np.array([True, False, False, True])
    np.testing.assert_equal(frame_labels(recorded, success, CONFIG), np.array([nan, 1, 0, 0], np.float32))
    flag = replace(CONFIG, reward_above=None, last_frames=2)
    np.testing.assert_equal(frame_labels(recorded, None, flag), np.array([0, 0, 1, 1], np.float32))
    failed = replace(recorded, meta={"success": False})
    np.testing.assert_equal(frame_labels(failed, None, flag), np.zeros(4, np.float32))
    with pytest.raises(UserError, match="says nothing of success: .* reward_above is not set; give --reward-above"):
        frame_labels(replace(recorded, meta={}), None, flag)


def test_the_threshold_has_the_precision_and_the_highest_recall() -> None:
    scores, episodes = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.zeros(6, int)
    labels = np.array([True, True, False, True, True, False])
    assert choose_threshold(scores, labels, episodes, 1.0) == (pytest.approx(0.75), True)
    assert choose_threshold(scores, labels, episodes, 0.8) == (pytest.approx(0.45), True)
    # ties are counted together: the highest precision that can be had is a half
    tied = choose_threshold(np.array([0.9, 0.9]), np.array([True, False]), np.zeros(2, int), 0.95)
    assert tied == (pytest.approx(0.45), False)
    with pytest.raises(UserError, match="no held-out frame of the calibration half is a success"):
        choose_threshold(scores, np.zeros(6, bool), episodes, 0.9)


def test_a_precision_that_other_episodes_would_miss_is_not_enough() -> None:
    # each of 20 episodes has a success at 0.9; one has another frame at 0.6 and a success at 0.5 too
    scores = np.array([0.9] * 20 + [0.6, 0.5])
    labels, episodes = np.array([True] * 20 + [False, True]), np.array([*range(20), 0, 0])
    at_half = labels[scores >= 0.5].mean()
    assert at_half > 0.95 and choose_threshold(scores, labels, episodes, 0.95) == (pytest.approx(0.75), True)
    assert choose_threshold(scores, labels, episodes, 0.8) == (pytest.approx(0.25), True)


def test_the_area_under_the_curve_counts_pairs() -> None:
    assert area_under_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == 0.875
    assert area_under_curve(np.array([0.9]), np.array([True])) is None


def test_halves_share_the_episodes_with_a_success() -> None:
    failures = [(episode(n, rewards=np.zeros(8, np.float32)), None) for n in range(4, 8)]
    first, second = halves(label_frames([*((episode(n), None) for n in range(4)), *failures], CONFIG))
    assert not set(first.episodes) & set(second.episodes)
    assert {tuple(np.unique(half.episodes[half.labels])) for half in (first, second)} == {(0, 2), (1, 3)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SuccessClassifier:
    torch.manual_seed(0)
    data = label_frames([(episode(n), None) for n in range(8)], CONFIG)
    run = Run(tmp_path_factory.mktemp("classifier"), log_every=0)
    classifier = train_classifier(CONFIG, SuccessClassifier(NETWORK), data, run)
    return calibrate(classifier, *halves(label_frames([(episode(n), None) for n in range(20, 28)], CONFIG)), 0.95)


def test_a_visible_success_is_learned_and_counted_on_held_out_frames(trained) -> None:
    real = trained.facts.real
    assert trained.facts.reached_precision and real.precision == 1.0 and real.recall == 1.0 and real.frames == 28
    unseen = episode(99)
    assert trained.succeeds(unseen.frames[1:]).tolist() == (unseen.rewards[:-1] > 0.5).tolist()
    counted = trained.condition(unseen.frames[:-1], unseen.actions[:-1], unseen.frames[1:])
    assert counted.tolist() == (unseen.rewards[:-1] > 0.5).tolist()


def test_imagined_frames_have_the_labels_of_the_real_ones(model_of) -> None:
    model, held_out = model_of("conditional"), [(episode(n, length=9), None) for n in range(2)]
    imagined = imagine_frames(model, held_out, CONFIG)
    context = model.context_frames
    windows = [(n, start) for n in range(2) for start in range(0, 9 - context - 2, 3)]
    expected = [frame_labels(held_out[n][0], None, CONFIG)[s + context : s + context + 3] > 0 for n, s in windows]
    assert imagined.labels.tolist() == np.concatenate(expected).tolist()
    assert imagined.frames.shape == (3 * len(windows), 16, 16, 3) and imagined.frames.dtype == np.uint8
    with pytest.raises(UserError, match="no held-out episode has so many; choose another --world or --horizon"):
        imagine_frames(model, held_out, replace(CONFIG, horizon=20))


def test_a_classifier_comes_back_from_its_files_and_refuses_other_tasks_and_sizes(trained, tmp_path) -> None:
    trained.with_facts(task="squares").save_pretrained(tmp_path / "run" / "classifier")
    again = SuccessClassifier.from_pretrained(tmp_path / "run", task="squares", resolution=16)
    frames = episode(5).frames
    assert again.facts == trained.facts and np.array_equal(again.probability(frames), trained.probability(frames))
    assert "precision 1.000, recall 1.000" in again.summary() and "threshold" in again.summary()
    with pytest.raises(UserError, match="is of the task 'squares', not 'pusht'"):
        SuccessClassifier.from_pretrained(tmp_path / "run", task="pusht")
    with pytest.raises(UserError, match="takes frames of 16 px, and these have 64"):
        SuccessClassifier.from_pretrained(tmp_path / "run", resolution=64)
    with pytest.raises(UserError, match="holds no success classifier; train one"):
        SuccessClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"takes \[b 3 16 16\]: resize them"):
        again.probability(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("readout", ["whole", "places"])
def test_instructions_decide_where_frames_are_alike(readout: Literal["whole", "places"], tmp_path) -> None:
    """The same pictures are a success for one instruction and none for the other."""
    config = replace(CONFIG, network=replace(NETWORK, words=64, readout=readout), steps=100, learning_rate=5e-3)
    one, other = "move to the RIGHT", "stay on the left"
    episodes = [(episode(n, instruction=one), None) for n in range(4)]
    episodes += [(episode(n, instruction=other, rewards=1 - episode(n).rewards), None) for n in range(4)]
    torch.manual_seed(0)
    data = label_frames(episodes, config)
    classifier = train_classifier(config, SuccessClassifier(config.network), data, Run(tmp_path, log_every=0))
    frames, right = episode(50).frames[1:], episode(50).rewards[:-1] > 0.5
    assert (classifier.probability(frames, [one] * 7) > 0.5).tolist() == right.tolist()
    assert (classifier.probability(frames, [other] * 7) > 0.5).tolist() == (~right).tolist()
    with pytest.raises(UserError, match="got 0 instructions for 7 frames; expected 7 instructions"):
        classifier.probability(frames)


def test_shifts_move_frames_by_whole_pixels() -> None:
    frames = np.zeros((64, 16, 16, 3), np.uint8)
    frames[:, 8, 8] = 255
    moved = augmented(frames, replace(CONFIG, shift=2, noise=0.0), np.random.default_rng(0))
    places = {tuple(place[1:].tolist()) for place in (moved[:, 0] == 1).nonzero()}
    assert len(places) > 15 and all(6 <= row <= 10 and 6 <= column <= 10 for row, column in places)


def test_frames_of_one_label_are_refused(tmp_path) -> None:
    data = label_frames([(episode(0), None)], replace(CONFIG, reward_above=2.0))
    with pytest.raises(UserError, match="of 7 frames none is a success; a classifier needs both"):
        train_classifier(CONFIG, SuccessClassifier(NETWORK), data, Run(tmp_path))
    with pytest.raises(UserError, match="has frames of 16 x 16 px and the classifier takes 32 x 32"):
        label_frames([(episode(0), None)], replace(CONFIG, network=replace(NETWORK, resolution=32)))
