"""The model for the public VP2 code: shapes, the order of frames and actions, one encoding, and VP2's own planner."""

import numpy as np
import pytest
import torch
from einops import rearrange

from ivideogpt.core.errors import UserError
from ivideogpt.decoding import decode
from ivideogpt.planning.vp2 import VP2Model


def batch(model, rows: int = 3, horizon: int = 4, seed: int = 0) -> dict:
    """What VP2 passes: one context for all rows, HWC; the action between the context frames, and the candidates."""
    random, side = np.random.default_rng(seed), model.resolution
    video = np.tile(random.random((1, 2, side, side, 3)), (rows, 1, 1, 1, 1))
    actions = random.uniform(-1, 1, (rows, 1 + horizon, model.action_dim))
    return {"video": video, "actions": actions, "state_obs": random.random((2, 9))}


def test_what_vp2_reads_has_its_shapes_types_and_names(model_of) -> None:
    vp2 = VP2Model(model_of("plain"), planning_modalities=["rgb"], epoch=None)
    assert vp2.num_context == 2 and vp2.base_prediction_modality == "rgb"
    given = batch(vp2.model)
    (name, frames), *rest = vp2(given).items()
    assert name == "rgb" and not rest and isinstance(frames, np.ndarray)
    assert frames.shape == (3, 5, 16, 16, 3) and frames.dtype == np.float32
    assert frames.min() >= 0 and frames.max() <= 1
    np.testing.assert_allclose(frames[:, 0], given["video"][:, 1], atol=1e-6)
    vp2.close()


def test_the_second_action_leads_to_the_first_predicted_frame(model_of) -> None:
    model = model_of("plain")
    given = batch(model)
    frames = VP2Model(model, greedy=True)(given)["rgb"]
    context = rearrange(torch.from_numpy(given["video"]).float(), "n t h w c -> n t c h w")
    actions = model.normalize_actions(torch.from_numpy(given["actions"]).float())[:, 1:]
    greedy = model.config.sampling.override(greedy=True)
    expected = model.imagine(context, actions, sampling=greedy).frames
    np.testing.assert_allclose(frames[:, 1:], rearrange(expected, "n t c h w -> n t h w c"), atol=1e-5)
    changed = {**given, "actions": given["actions"].copy()}
    changed["actions"][:, 0] += 1
    np.testing.assert_array_equal(VP2Model(model, greedy=True)(changed)["rgb"], frames)


def test_one_context_is_encoded_once_and_several_apart(model_of, monkeypatch) -> None:
    model, rows, original = model_of("conditional"), [], decode.prefill
    monkeypatch.setattr(
        decode, "prefill", lambda d, codes, *others: (rows.append(len(codes)), original(d, codes, *others))[1]
    )
    given, vp2 = batch(model, rows=5), VP2Model(model)
    whole = vp2(given)["rgb"]
    assert rows == [1]
    other = {**given, "video": given["video"].copy()}
    other["video"][2] = 1 - other["video"][2]
    apart = vp2(other)["rgb"]
    assert rows == [1] * 6
    np.testing.assert_allclose(apart[[0, 1, 3, 4]], whole[[0, 1, 3, 4]], atol=1e-5)
    assert not np.allclose(apart[2], whole[2])


def test_wrong_shapes_and_gradients_are_refused_in_one_sentence(model_of) -> None:
    vp2 = VP2Model(model_of("plain"))
    given = batch(vp2.model)
    with pytest.raises(UserError, match="not differentiable"):
        vp2(given, grad_enabled=True)
    with pytest.raises(UserError, match=r"video has shape \[3, 1, 16, 16, 3\]; expected \[n 2 16 16 3\]"):
        vp2({**given, "video": given["video"][:, :1]})
    with pytest.raises(UserError, match=r"actions have shape \[3, 1, 2\]; expected \[3 1 \+ t 2\]"):
        vp2({**given, "actions": given["actions"][:, :1]})
    with pytest.raises(UserError, match="action_free takes no actions"):
        VP2Model(model_of("action_free"))
