"""Stability of codes and where nats go, on tiny models."""

import math

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.token_stability import (
    PARTS,
    kept_at_rest,
    nats,
    patch_parts,
    patches_changed,
    recoding,
    stability_measures,
)
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED
from ivideogpt.worldmodel.world_model import WorldModel


def test_codes_of_the_first_coding_are_all_kept(any_model, frames_for) -> None:
    frames = frames_for(any_model, 2, any_model.context_frames + 2)
    results = recoding(any_model.tokenizer, frames, times=(1, 3))
    assert results.keys() == {1, 3} and results[1]["kept"] == 1 and 0 <= results[3]["kept"] <= 1
    assert all(math.isfinite(row["psnr"]) for row in results.values())


def test_all_figures_of_a_token_model_and_none_of_a_picture_model() -> None:
    model = WorldModel.from_pretrained("pusht-64-tokens")
    episodes = load_episodes(SHIPPED["pusht-64-tokens"] / EPISODES_FILE)[:1]
    clips = Clips.from_episodes([episodes[0].window(episodes[0].meta["start"], 5)])
    figures = stability_measures(model, clips)
    assert figures.keys() == {f"recoded_{times}_times" for times in (1, 2, 5, 14)} | {"codes_kept_at_rest", "nats"}
    assert figures["recoded_1_times"]["kept"] == 1 > figures["recoded_14_times"]["kept"]
    assert figures["recoded_1_times"]["psnr"] > figures["recoded_14_times"]["psnr"] > 20
    assert figures["nats"].keys() == set(PARTS)
    assert sum(part["share"] for part in figures["nats"].values()) == pytest.approx(1)
    assert stability_measures(WorldModel.from_pretrained("pusht-64"), clips) == {}


def test_times_must_ascend(any_model, frames_for) -> None:
    with pytest.raises(UserError, match="ascending"):
        recoding(any_model.tokenizer, frames_for(any_model, 1, any_model.context_frames + 1), times=(2, 1))


def test_codes_of_a_still_clip_all_stay(any_model, frames_for) -> None:
    frames = frames_for(any_model, 2, 1).expand(-1, any_model.context_frames + 3, -1, -1, -1)
    assert kept_at_rest(any_model.tokenizer, frames) == 1


def test_nats_of_a_frame_depend_on_the_frames_up_to_it(any_model, frames_for, actions_for) -> None:
    frames = frames_for(any_model, 2, any_model.context_frames + 2)
    actions = actions_for(any_model, 2, 2)
    costs = nats(any_model, frames, actions)
    assert costs.shape == (2, 2, any_model.layout.dynamics_tokens) and (costs > 0).all()
    other = frames.clone()
    other[:, -1] = frames[:, -1].flip(-1)
    changed = nats(any_model, other, actions)
    assert torch.allclose(costs[:, 0], changed[:, 0], atol=1e-5) and not torch.allclose(costs[:, 1], changed[:, 1])


def test_only_changed_patches_are_told() -> None:
    frames = torch.zeros(1, 1, 3, 16, 16)
    other = frames.clone()
    other[..., 0, 15] = 1
    assert patches_changed(frames, other, 2).tolist() == [[[False, True, False, False]]]


def test_parts_of_a_pusht_picture() -> None:
    frames = torch.ones(1, 12, 3, 64, 64)
    grey = torch.tensor([135, 154, 173])[:, None, None] / 255
    blue = torch.tensor([72, 116, 241])[:, None, None] / 255
    for t in range(12):
        x = 24 if t < 11 else 26
        frames[0, t, :, 24:36, x : x + 15] = grey
        frames[0, t, :, 4 * t + 4 : 4 * t + 8, 4:8] = blue
    frames[0, 0] = frames[0, 1]
    parts = patch_parts(frames, 8)
    names = [[PARTS[index] for index in row] for row in parts[0].tolist()]
    assert names[-1][7 + 8] == "background" and names[-1][6 * 8] == "agent"
    assert names[-1][3 * 8 + 5] == "block_pushed"
