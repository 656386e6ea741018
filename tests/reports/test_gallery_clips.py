"""Clips to look at: where they begin, and what is imagined from them."""

import numpy as np
import pytest
import torch

from ivideogpt import Episode, Sampling
from ivideogpt.metrics.image import psnr
from ivideogpt.reports.gallery_clips import find_windows, imagine_showcase, other_actions


@pytest.fixture
def episodes(model_of, frames_for):
    """``episodes(lengths, meta)``: noise with actions of three numbers."""

    def make(*lengths, **meta):
        model, found = model_of("conditional"), []
        for index, length in enumerate(lengths):
            frames = (frames_for(model, 1, length, seed=index)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
            actions = np.random.default_rng(index).normal(size=(length, 3)).astype(np.float32)
            found.append(Episode(frames=frames, actions=actions, key=f"e{index}", meta=meta))
        return found

    return make


def places(windows):
    return [(window.key, window.start) for window in windows]


def test_each_episode_gives_one_window_and_few_give_more(model_of, episodes):
    model = model_of("conditional")
    assert places(find_windows(model, episodes(10, 10, 10), 2, 4)) == [("e0", 2), ("e1", 2)]
    assert places(find_windows(model, episodes(10), 3, 4)) == [("e0", 0), ("e0", 2), ("e0", 4)]
    assert places(find_windows(model, episodes(10, 8), 3, 4)) == [("e0", 0), ("e0", 4), ("e1", 1)]
    assert places(find_windows(model, episodes(6), 3, 4)) == [("e0", 0)], "no window is shown twice"


def test_episodes_say_where_to_begin_and_short_ones_are_passed_over(model_of, episodes):
    model = model_of("conditional")
    assert places(find_windows(model, episodes(10, start=3), 1, 4)) == [("e0", 3)]
    assert places(find_windows(model, episodes(10, start=9), 1, 4)) == [("e0", 4)], "as late as it can be"
    assert places(find_windows(model, episodes(5, 6), 1, 4)) == [("e1", 0)]


def test_a_window_holds_context_truth_and_the_actions_between(model_of, episodes):
    model, (episode,) = model_of("conditional"), episodes(13)
    (window,) = find_windows(model, [episode], 1, 4, stride=2)
    recorded = torch.from_numpy(episode.frames[1:12:2]).permute(0, 3, 1, 2) / 255
    assert window.start == 1 and torch.equal(torch.cat([window.context, window.true]), recorded)
    assert torch.equal(window.actions, torch.from_numpy(episode.actions[[3, 5, 7, 9]]))


def test_futures_are_those_of_their_seeds(model_of, episodes):
    model = model_of("conditional")
    windows = find_windows(model, episodes(8, 8), 2, 4)
    shown = imagine_showcase(model, windows[0], other_actions(windows, 0), [3, 4], Sampling())
    alone = model.imagine(windows[0].context[None], windows[0].actions[None], seed=[4])
    torch.testing.assert_close(shown.futures[1], alone.frames[0])
    torch.testing.assert_close(shown.entropies[1], alone.entropies[0].mean(dim=-1))
    assert not torch.equal(shown.futures[0], shown.futures[1])
    assert shown.psnr.shape == shown.ssim.shape == shown.entropies.shape == (2, 4)
    torch.testing.assert_close(shown.psnr[1], psnr(alone.frames, windows[0].true[None])[0])
    copy = windows[0].context[-1:].expand(4, -1, -1, -1)
    torch.testing.assert_close(shown.psnr_copy_last, psnr(copy[None], windows[0].true[None])[0])


def test_in_a_variation_only_the_actions_differ(model_of, episodes):
    model = model_of("conditional")
    windows = find_windows(model, episodes(8, 8), 2, 4)
    others = other_actions(windows, 0)
    assert list(others) == ["actions of showcase 2", "first action held", "actions mirrored"]
    assert torch.equal(others["actions of showcase 2"], windows[1].actions)
    assert torch.equal(others["actions mirrored"], -windows[0].actions)
    assert all(torch.equal(row, windows[0].actions[0]) for row in others["first action held"])
    shown = imagine_showcase(model, windows[0], {**others, "the same": windows[0].actions}, [7])
    assert shown.change("the same") == 0 and all(shown.change(name) > 0 for name in others)


def test_an_action_free_model_has_no_variations(model_of, episodes):
    model = model_of("action_free")
    windows = find_windows(model, episodes(8, 8), 2, 4)
    assert other_actions(windows, 0) == {}
    assert imagine_showcase(model, windows[0], {}, [0]).variations == {}
