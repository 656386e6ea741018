"""Models to plan in: one prefill and the same random numbers for all candidates, drafts, and the lower bound."""

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.decoding import decode
from ivideogpt.planning import models
from ivideogpt.planning.models import ImaginedFutures, RepeatedFrame
from ivideogpt.worldmodel import memory


def observation(model, count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"frames": random.integers(0, 256, (count, model.resolution, model.resolution, 3), dtype=np.uint8)}


def test_candidates_share_one_prefill(model_of, monkeypatch) -> None:
    prefills, original = [], decode.prefill

    def counted(dynamics, codes, *others):
        prefills.append(len(codes))
        return original(dynamics, codes, *others)

    monkeypatch.setattr(decode, "prefill", counted)
    root = ImaginedFutures(model_of("conditional")).root(observation(model_of("conditional")))
    for _ in range(3):
        root.rollout(torch.randn(8, 2, 3)).frames_at([-1])
    assert prefills == [1]


def test_candidates_share_their_random_numbers(model_of) -> None:
    root = ImaginedFutures(model_of("conditional")).root(observation(model_of("conditional")))
    actions = torch.randn(1, 3, 3).expand(4, -1, -1)
    rollout = root.rollout(actions)
    assert (rollout.ids == rollout.ids[:1]).all()
    torch.testing.assert_close(root.rollout(actions).frames, rollout.frames)


def test_chunks_that_fit_memory_do_not_change_the_futures(model_of, monkeypatch) -> None:
    model = model_of("plain")
    root, actions = ImaginedFutures(model).root(observation(model)), torch.randn(7, 2, 2)
    whole = root.rollout(actions)
    sizes, fork = [], root.session.fork
    monkeypatch.setattr(root.session, "fork", lambda k, **named: (sizes.append(k), fork(k, **named))[1])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * model.row_bytes(2) / memory.FREE_SHARE)
    parts = root.rollout(actions)
    assert max(sizes) == 2 and sum(sizes) == 7
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    monkeypatch.setattr(models, "BATCH_ROWS", 3)
    batches = root.rollout(actions)
    assert sizes[-3:] == [3, 3, 1] and torch.equal(batches.ids, whole.ids)
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.frames_at([0, -1]), whole.frames[:, [0, -1]])


def test_a_short_history_begins_with_its_first_frame_repeated(model_of) -> None:
    model = model_of("plain")
    frame = observation(model, 1)["frames"]
    twice = {"frames": np.concatenate([frame, frame])}
    actions = torch.randn(2, 2, 2)
    futures = ImaginedFutures(model)
    assert torch.equal(futures.root({"frames": frame}).rollout(actions).ids, futures.root(twice).rollout(actions).ids)


def test_raw_actions_are_converted_with_the_statistics_of_the_checkpoint(model_of) -> None:
    model = model_of("plain")
    raw = torch.randn(2, 2, 2)
    one = ImaginedFutures(model, raw_actions=True).root(observation(model)).rollout(raw)
    other = ImaginedFutures(model).root(observation(model)).rollout(model.normalize_actions(raw))
    assert torch.equal(one.ids, other.ids)


def test_a_draft_is_the_likeliest_forecast_and_runs_no_transformer(model_of, monkeypatch) -> None:
    model = model_of("plain")
    root, actions = ImaginedFutures(model).root(observation(model)), torch.randn(3, 4, 2)
    before = root.rollout(actions).ids
    with monkeypatch.context() as patch:
        patch.setattr(model.dynamics, "append", lambda *_: pytest.fail("the transformer was run"))
        draft = root.draft(actions)
    codes, _ = model.tokenizer.encode_context(root.session.frames)
    history = codes.expand(3, -1, -1)
    for step in range(4):
        logits = model.dynamics.forecast_logits(
            model.dynamics.forecast(history, actions[:, step]), model.layout.dynamics_ids
        )
        codes = logits.argmax(dim=-1)
        assert torch.equal(draft.ids[:, step], codes + model.layout.dynamics_ids.start)
        history = torch.cat([history[:, 1:], codes[:, None]], dim=1)
    assert draft.frames_at([-1]).shape == (3, 1, 3, 16, 16) and draft.rewards is None
    assert root.session.steps == 0 and torch.equal(root.rollout(actions).ids, before)
    monkeypatch.setattr(models, "BATCH_ROWS", 2)
    assert torch.equal(root.draft(actions).ids, draft.ids)


def test_what_cannot_plan_is_refused_in_one_sentence(model_of) -> None:
    with pytest.raises(UserError, match="the world model action_free takes no actions"):
        ImaginedFutures(model_of("action_free"))
    with pytest.raises(UserError, match="the world model goal is conditioned on a goal"):
        ImaginedFutures(model_of("goal"))
    root = ImaginedFutures(model_of("conditional")).root(observation(model_of("conditional")))
    with pytest.raises(UserError, match="an action has 2 numbers; the world model conditional takes 3"):
        root.rollout(torch.zeros(1, 2, 2))
    with pytest.raises(UserError, match="conditional has no forecast of tokens"):
        root.draft(torch.zeros(1, 2, 3))


def test_the_repeated_frame_shows_the_last_frame_whatever_is_done() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    rollout = RepeatedFrame(2, 8).root({"frames": frames}).rollout(torch.randn(5, 3, 2))
    shown = (rollout.frames_at([0, -1]) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    assert shown.shape == (5, 2, 8, 8, 3) and (shown == frames[-1]).all() and rollout.horizon == 3
