"""All rows of the benchmark imagine the same, and it says what it found; how fast anything is, is no matter here."""

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt import UserError
from ivideogpt.bench import long, rollout
from ivideogpt.bench import subject as bench_subject
from ivideogpt.bench.limits import Machine, limit_seconds, weights_read
from ivideogpt.bench.measuring import in_new_process, in_turns, process_memory, timed_methods, use_threads
from ivideogpt.bench.rollout import CACHED, OFFICIAL, OURS, memory_of, runners, score_gap
from ivideogpt.bench.subject import RECIPES, RolloutOptions, Subject, new_subject, sampling_for
from ivideogpt.configs.official import oxe_64_act_free
from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import load_episodes, save_episodes
from ivideogpt.models.cpu_linear import Projection

HORIZON = 3
CPU = torch.device("cpu")
SINGLE, WATCHED = replace(OURS, drafts=False), replace(OURS, frame_by_frame=True)
needs_transformers = pytest.mark.usefixtures("transformers")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the baseline comes with: pip install 'ivideogpt[dev]'")


@pytest.fixture
def subject_of(build, frames_for, actions_for):
    """``subject_of(kind, rows)``: a model of its own, a context and actions."""

    def make(kind, rows=2):
        model = build(kind)
        return Subject(model, frames_for(model, rows), actions_for(model, rows, HORIZON), noise=True)

    return make


def likeliest(runner):
    return runner.clip(sampling_for(runner.subject.model, greedy=True))


@needs_transformers
@pytest.mark.parametrize("kind", ["conditional", "action_free", "plain", "goal", "official"])
def test_the_official_way_one_generate_and_ours_imagine_the_same(subject_of, kind):
    subject = subject_of(kind)
    rows = (OFFICIAL, CACHED, OURS, SINGLE, WATCHED)
    first, *others = (likeliest(runner) for runner in runners(rows, subject, HORIZON).values())
    assert first.ids.shape == (2, HORIZON, subject.model.layout.dynamics_tokens)
    assert len(first.ids.unique()) > 5, "a model that says one thing proves nothing"
    for clip in others:
        assert torch.equal(clip.ids, first.ids)
        torch.testing.assert_close(clip.frames, first.frames, atol=1e-4, rtol=0)


@needs_transformers
def test_all_ids_are_drawn_from_as_in_the_official_code_where_it_could_load_the_model(subject_of):
    legal = subject_of("conditional").model.layout.dynamics_ids
    first = likeliest(runners([OFFICIAL], subject_of("conditional"), HORIZON)[OFFICIAL])
    assert not torch.isin(first.ids, torch.tensor(legal)).all()
    ours = likeliest(runners([OURS], subject_of("plain"), HORIZON)[OURS])
    assert torch.isin(ours.ids, torch.tensor(subject_of("plain").model.layout.dynamics_ids)).all()


@needs_transformers
def test_the_official_way_reads_the_prefix_again_for_each_frame_and_one_generate_does_not(subject_of):
    subject, read = subject_of("conditional"), []
    working = runners([OFFICIAL, CACHED], subject, HORIZON)
    llama = working[OFFICIAL].way.llama
    llama.model.register_forward_hook(lambda _, args, found: read.append(found.last_hidden_state.shape[1]))
    layout, prompt = subject.model.layout, subject.model.layout.prompt_length(2)
    likeliest(working[OFFICIAL])
    frames = [prompt + index * layout.frame_length for index in range(HORIZON)]
    assert read == [count for length in frames for count in [length, *[1] * (layout.dynamics_tokens - 1)]]
    read.clear()
    likeliest(working[CACHED])
    assert read == [prompt, *[1] * (HORIZON * layout.frame_length - 2)]


@needs_transformers
def test_draws_are_a_function_of_the_turn_and_differ_between_turns(subject_of):
    working = runners([OFFICIAL, OURS], subject_of("conditional"), HORIZON)
    sampling = sampling_for(working[OURS].subject.model)
    for runner in working.values():
        some, again, other = (runner.clip(sampling, seed=seed).ids for seed in (0, 0, 1))
        assert torch.equal(some, again)
        assert not torch.equal(some, other)


def test_without_drafts_every_token_is_read_alone(subject_of):
    subject, read = subject_of("plain", rows=1), []
    subject.model.transformer.register_forward_hook(lambda _, args, found: read.append(found.shape[1]))
    working = runners([OURS, SINGLE], subject, HORIZON)
    likeliest(working[SINGLE])
    assert read[1:] == [1] * (HORIZON * subject.model.layout.frame_length)
    read.clear()
    likeliest(working[OURS])
    assert max(read[1:]) > 1


@needs_transformers
def test_rows_that_imagine_something_else_are_refused(subject_of):
    subject = subject_of("conditional")
    working = runners([OFFICIAL, OURS], subject, HORIZON)
    assert rollout.check(list(working.values())) == 0
    working[OURS].subject = subject._replace(actions=-subject.actions)
    with pytest.raises(ArithmeticError, match="ours, float32 chose another token than official"):
        rollout.check(list(working.values()))
    working[OURS].subject = subject
    with torch.no_grad():
        working[OFFICIAL].way.tokenizer.cond_decoder.conv_out.bias.add_(0.05)
    with pytest.raises(ArithmeticError, match="frames of ours"):
        rollout.check(list(working.values()))
    with torch.no_grad():
        working[OFFICIAL].way.tokenizer.quantize.embedding.weight.copy_(
            working[OFFICIAL].way.tokenizer.quantize.embedding.weight.flip(0)
        )
    with pytest.raises(ArithmeticError, match="official, float32 has other codes"):
        rollout.check(list(working.values()))


@needs_transformers
def test_clips_may_part_where_rounding_decides_and_are_counted(subject_of, monkeypatch):
    subject = subject_of("conditional")
    working = runners([OFFICIAL, OURS], subject, HORIZON)
    working[OURS].subject = subject._replace(actions=-subject.actions)
    monkeypatch.setattr(rollout, "TIE", math.inf)
    assert rollout.check(list(working.values())) == 2


@needs_transformers
@pytest.mark.parametrize("kind", ["conditional", "action_free"])
def test_the_gap_between_two_tokens_is_that_of_the_official_scores(subject_of, kind):
    subject = subject_of(kind)
    runner = runners([OFFICIAL], subject, HORIZON)[OFFICIAL]
    first = likeliest(runner)
    changed = first.ids.clone()
    changed[1, 1, 2] = (changed[1, 1, 2] + 1) % subject.model.layout.vocab_size
    changed[1, 2] = 0  # what comes after the first other token is no matter
    gap = score_gap(subject, first.context_codes, first, first._replace(ids=changed), 1)
    scores = []
    runner.way.llama.lm_head.register_forward_hook(lambda _, args, found: scores.append(found[:, -1]))
    assert torch.equal(likeliest(runner).ids, first.ids)
    # One call a frame gives scores for its tokens alone; one call for all also for the separators in between.
    place = 1 * (subject.model.layout.frame_length - bool(subject.model.action_dim)) + 2
    row = scores[place][1]
    assert row.argmax() == first.ids[1, 1, 2]
    assert gap == pytest.approx(float(row.max() - row[changed[1, 1, 2]]), abs=1e-4)


ROW_KEYS = {
    "frames_per_second",
    "ms_per_frame",
    "encoder_ms",
    "transformer_ms",
    "decoder_ms",
    "ratio_to_official",
    "ratio_to_cached_generate",
    "limit_share",
    "peak_memory_mb",
    "same_tokens",
}


@needs_transformers
def test_the_last_line_is_json_and_is_kept_where_asked(run, checkpoints, tmp_path):
    words = ["--horizon", "2", "--rounds", "2", "--device", "cpu", "--threads", "1", "--no-memory"]
    done = run("bench", "rollout", checkpoints["plain"], *words, "--out", tmp_path / "kept")
    assert done.code == 0, done.err
    found, rows = done.json, done.json["rows"]
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name.startswith("rollout-20")
    assert json.loads(file.read_text(encoding="utf-8")).keys() == found.keys()
    ours = rows["ours, float32"]
    for name in ("frames_per_second", "ratio_to_official", "ratio_to_cached_generate", "peak_memory_mb"):
        assert found[name] == ours[name]
    assert found["peak_memory_mb"] is None
    assert found["ratio_to_official"] > 0 and found["ratio_to_official_transformer"] > 0
    assert rows["official, float32"]["ratio_to_official"] == 1
    assert rows["cached generate, float32"]["ratio_to_cached_generate"] == 1
    assert {"ours, float32, without drafts", "ours, float32, frame by frame"} < rows.keys()
    for name, row in rows.items():
        assert row.keys() == ROW_KEYS
        parts = [row[f"{part}_ms"] for part in ("encoder", "transformer", "decoder")]
        assert min(parts) > 0
        assert row["frames_per_second"] == pytest.approx(1e3 / row["ms_per_frame"], rel=1e-2)
        assert row["limit_share"] > 0
        assert any(line.startswith(name) for line in done.out.splitlines())
    assert (found["horizon"], found["context_frames"], found["batch"], found["threads"]) == (2, 2, 1, 1)
    assert ours["same_tokens"] == 1 >= rows["ours, int8"]["same_tokens"] > 0.5
    assert found["cache_mb"] > 0
    assert found["ties"] == 0 and found["noise"] and found["left_out"] is None


def test_without_transformers_ours_alone_is_measured_and_the_table_says_so(run, checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = run("bench", "rollout", checkpoints["conditional"], "--horizon", "1", "--rounds", "1", "--no-memory")
    assert done.code == 0, done.err
    assert all(name.startswith("ours") for name in done.json["rows"])
    assert done.json["ratio_to_official"] is None and done.json["ratio_to_cached_generate"] is None
    assert done.json["frames_per_second"] > 0
    assert "left out: official, cached generate (transformers is not installed; run: pip install" in done.out


def test_baselines_can_be_left_out(run, checkpoints):
    words = ["--horizon", "1", "--rounds", "1", "--no-memory", "--no-baselines"]
    done = run("bench", "rollout", checkpoints["conditional"], *words)
    assert done.code == 0, done.err
    assert all(name.startswith("ours") for name in done.json["rows"])
    assert "left out: official, cached generate (as asked)" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "unknown command 'bench'; expected one of: bench rollout, bench long"),
        (["training"], "unknown command 'bench training'; expected one of: bench rollout, bench long"),
        (["rollout", "pusht-64", "--size", "demo"], "both a checkpoint, 'pusht-64', and --size demo were given"),
        (["rollout", "medium"], "checkpoint is 'medium', a size; use --size medium"),
        (["rollout", "--size", "large"], "invalid choice 'large'"),
        (["rollout", "--batch", "0"], "batch is 0; expected at least 1"),
        (["rollout", "--rounds", "0"], "rounds is 0; expected at least 1"),
        (["rollout", "--threads", "0"], "threads is 0; expected at least 1"),
        (["rollout", "--context-frames", "0"], "context_frames is 0; expected at least 1"),
        (["rollout", "--size", "demo", "--horizon", "15"], "horizon is 15; expected 1 to 14"),
        (["rollout", "--size", "demo", "--context-frames", "3"], "context_frames is 3; expected 1 to 2"),
        (["rollout", "--size", "demo", "--device", "nothing"], "device 'nothing' cannot be used here"),
        (["rollout", "no-such-folder"], "no-such-folder"),
        (["long", "--steps", "1"], "steps is 1; expected at least 2"),
        (["long", "--episodes", "0"], "episodes is 0; expected at least 1"),
        (["long", "--threads", "0"], "threads is 0; expected at least 1"),
        (["long", "--reanchor-every", "4", "99"], "reanchor_every is 99; expected 1 to 14"),
        (["long", "no-such-folder"], "no-such-folder"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run, words, sentence):
    done = run("bench", *words)
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_results_are_not_measured_where_they_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("bench", "rollout", "--out", tmp_path / "file")
    assert done.code == 2 and "is a file" in done.err


# Long imaginations


@pytest.fixture
def long_episodes(tmp_path):
    """``long_episodes(count, frames, meta)``: a file of pictures of 16 px that move."""

    def make(count, frames, meta=None):
        random = np.random.default_rng(0)
        made = [
            Episode(
                frames=random.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
                actions=random.standard_normal((frames, 3)).astype(np.float32),
                meta=meta or {},
            )
            for _ in range(count)
        ]
        save_episodes(tmp_path / "long.safetensors", made)
        return tmp_path / "long.safetensors"

    return make


def test_a_long_imagination_is_told_block_by_block(run, checkpoints, long_episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(long, "BLOCK", 4)
    monkeypatch.setattr(long, "STRETCHES", (3, 5))
    words = ["--data", long_episodes(2, 14), "--steps", "12", "--reanchor-every", "2", "4", "--threads", "1"]
    done = run("bench", "long", checkpoints["conditional"], *words, "--out", tmp_path / "kept")
    assert done.code == 0, done.err
    kept, picture = sorted((tmp_path / "kept").iterdir())
    assert json.loads(kept.read_text(encoding="utf-8")).keys() == done.json.keys()
    assert picture.suffix == ".png" and picture.stat().st_size > 1000
    assert done.json["runs"].keys() == {"2", "4"} and done.json["steps"] == 12
    assert done.json["threads"] == 1 and done.json["device"]
    for one in done.json["runs"].values():
        assert len(one["milliseconds_per_step"]) == 3 and min(one["milliseconds_per_step"]) > 0
        assert one["slowest_to_fastest_block"] >= 1
        assert len(one["growth_mb"]) in (0, 2)
        assert [(x["first"], x["last"]) for x in one["drift"]] == [(1, 3), (4, 5), (6, 12)]
        assert all(x["missing"] is None and 0 < x["psnr"] < 20 for x in one["drift"])


def test_a_long_imagination_is_that_of_a_session(build, long_episodes):
    model = build("conditional")
    options = long.LongOptions(source="mine", data=long_episodes(2, 9), steps=7)
    truth = long.read_truth(model, options)
    found = long.run_long(model, truth, 3, seed=5)
    expected = model.imagine(truth.frames[:, :2], truth.actions, seed=5, reanchor_every=3).frames
    assert len(found.milliseconds) == 1 and found.period == 3
    torch.testing.assert_close(found.frames, expected[0], atol=0.5 / 255 + 1e-6, rtol=0)
    difference = (expected.mul(255).round() - truth.frames[:, 2:]).square().mean(dim=(2, 3, 4)) / 255**2
    assert found.drift[0].psnr == pytest.approx(float(-10 * difference.log10().mean()), abs=1e-3)


@needs_transformers
def test_weights_of_8_bits_are_measured_beside_the_exact_ones(subject_of):
    subject = subject_of("conditional")
    rows = runners([OURS, replace(OURS, precision="int8")], subject, HORIZON)
    exact, rounded = rows.values()
    assert rollout.same_tokens(exact, exact) == 1
    assert rollout.same_tokens(exact, rounded) > 0.5
    with torch.no_grad():
        rounded.way.model.transformer.head.weight.neg_()
    assert rollout.same_tokens(exact, rounded) < 0.5
    assert not any(part.int8 for part in exact.way.model.modules() if isinstance(part, Projection))


def test_drift_knows_where_the_agent_of_pusht_is():
    true = torch.full((1, 6, 3, 64, 64), 255, dtype=torch.uint8)
    for index in range(6):
        true[0, index, :, 30:34, 8 * index + 8 : 8 * index + 12] = torch.tensor([72, 116, 241])[:, None, None]
    imagined = true.clone()
    imagined[0, 2] = 255
    imagined[0, 3] = true[0, 5]
    (found,) = long.drift(true, imagined, true[:, 0], pusht=True)
    assert (found.first, found.last) == (1, 6)
    assert found.missing == pytest.approx(1 / 6) and found.right == pytest.approx(4 / 6)
    (same,) = long.drift(true, true, true[:, 0], pusht=True)
    assert same.missing == 0 and same.right == 1 and same.psnr > same.still


def test_drift_knows_where_the_block_of_pusht_is_and_that_it_vanished():
    true = torch.full((1, 4, 3, 64, 64), 255, dtype=torch.uint8)
    for index in range(4):
        left = 10 + 6 * index
        true[0, index, :, 30:34, left : left + 16] = torch.tensor([135, 154, 173])[:, None, None]
        true[0, index, :, 34:46, left + 6 : left + 10] = torch.tensor([135, 154, 173])[:, None, None]
        true[0, index, :, 5:9, 5:9] = torch.tensor([72, 116, 241])[:, None, None]
    shifted = true.roll(3, dims=-1)
    (found,) = long.drift(true, shifted, true[:, 0], pusht=True)
    assert found.block_missing == 0 and found.block == pytest.approx(3, abs=0.01)
    assert found.block_still == pytest.approx((0 + 6 + 12 + 18) / 4, abs=0.01)
    gone = true.clone()
    gone[0, 2:, :, 20:] = 255
    (found,) = long.drift(true, gone, true[:, 0], pusht=True)
    assert found.block_missing == 0.5 and found.missing == 0 and found.right == 1


def test_the_agent_is_looked_for_in_recorded_episodes_of_pusht_alone(model_of, long_episodes, monkeypatch):
    model, environment = model_of("conditional"), {"environment": "ivideogpt/PushT-v0"}
    monkeypatch.setattr(long, "IMAGE_SIZE", 16)
    for meta, expected in ((environment, True), ({}, False)):
        options = long.LongOptions(source="mine", data=long_episodes(2, 9, meta), steps=7)
        assert long.read_truth(model, options).pusht == expected


@pytest.mark.parametrize(("kind", "stride", "wanted"), [("conditional", 2, 17), ("goal", 1, 8), ("action_free", 1, 9)])
def test_the_truth_has_the_stride_the_goal_and_the_actions_of_the_model(build, long_episodes, kind, stride, wanted):
    model, file = build(kind, frame_stride=stride), long_episodes(2, wanted + 3)
    truth = long.read_truth(model, long.LongOptions(source="mine", data=file, steps=7))
    episode = load_episodes(file)[1]
    frames = torch.from_numpy(episode.frames[:wanted:stride].copy()).permute(0, 3, 1, 2)
    goal = kind == "goal"
    assert truth.frames.shape == (2, 9, 3, 16, 16)
    assert torch.equal(truth.frames[1, goal:], frames)
    if goal:
        assert torch.equal(truth.frames[1, 0], frames[-1])
    if kind == "action_free":
        assert truth.actions is None
    else:
        expected = model.normalize_actions(torch.from_numpy(episode.actions[: wanted - 1 : stride].copy()))
        torch.testing.assert_close(truth.actions[1], expected[1 - goal :])


def test_the_memory_of_each_run_is_its_own(build, long_episodes, monkeypatch):
    held = iter([100, 150, 230])
    monkeypatch.setattr(long, "BLOCK", 2)
    monkeypatch.setattr(long, "process_memory", lambda label: next(held))
    forgotten = []
    monkeypatch.setattr(long, "forget_peak", forgotten.append)
    model, options = build("conditional"), long.LongOptions(source="mine", data=long_episodes(2, 9), steps=7)
    found = long.run_long(model, long.read_truth(model, options), 3, seed=0)
    assert found.growth == (50, 80) and len(found.milliseconds) == 3 and forgotten == [CPU]
    assert found._replace(milliseconds=(2.0, 3.0, 2.5)).slowest == 1.5


def test_episodes_without_actions_are_refused_where_the_model_needs_them(build, long_episodes, tmp_path):
    episodes = [replace(episode, actions=None) for episode in load_episodes(long_episodes(2, 9))]
    save_episodes(tmp_path / "plain.safetensors", episodes)
    options = long.LongOptions(source="mine", data=tmp_path / "plain.safetensors", steps=7)
    with pytest.raises(UserError, match="without actions; the model needs 3 numbers"):
        long.read_truth(build("conditional"), options)


def test_episodes_that_are_too_short_or_missing_are_refused(run, checkpoints, long_episodes):
    data = long_episodes(2, 8)
    done = run("bench", "long", checkpoints["conditional"], "--data", data, "--steps", "7")
    assert done.code == 2 and "has 0 episodes of at least 9 frames; expected 2" in done.err
    done = run("bench", "long", checkpoints["conditional"], "--steps", "7")
    assert done.code == 2 and "add --data with some of 9 frames" in done.err


def test_the_shipped_model_is_measured_on_recorded_episodes(run):
    pytest.importorskip("gym_pusht", reason="PushT comes with: pip install 'ivideogpt[pusht]'")
    done = run("bench", "long", "--steps", "4", "--episodes", "1", "--reanchor-every", "3", "--threads", "1")
    assert done.code == 0, done.err
    (stretch,) = done.json["runs"]["3"]["drift"]
    assert stretch["psnr"] > 25 and stretch["missing"] == stretch["block_missing"] == 0
    assert 0 < stretch["block"] < 5


# What is measured


def test_the_published_shapes_are_those_of_the_paper():
    small, medium = (RECIPES[name]().model.transformer for name in ("official-64", "medium"))
    assert (small.num_layers, small.hidden_size, small.intermediate_size) == (12, 768, 3072)
    assert (medium.num_layers, medium.hidden_size, medium.intermediate_size) == (24, 1024, 4096)
    assert all(make().tokenizer.tokenizer.resolution == 64 for make in RECIPES.values())


@pytest.mark.parametrize("action_dim", [0, 3])
def test_random_weights_are_the_same_again_and_take_the_context_and_the_actions_asked_for(monkeypatch, action_dim):
    recipe = oxe_64_act_free()
    shape = replace(recipe.tokenizer.tokenizer, block_channels=(32, 32), resolution=16, max_attention_resolution=8)
    small = replace(recipe.model.transformer, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=1)
    tiny = replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, tokenizer=shape),
        model=replace(recipe.model, transformer=small),
    )
    monkeypatch.setattr(bench_subject, "RECIPES", {"tiny": lambda: tiny})
    options = RolloutOptions(source="tiny", batch=2, horizon=2, context_frames=1, action_dim=action_dim, device="cpu")
    first, again = new_subject(options), new_subject(options)
    assert first.noise and first.model.action_dim == action_dim
    assert first.context.shape == (2, 1, 3, 16, 16)
    assert (first.actions is None) if not action_dim else first.actions.shape == (2, 2, 3)
    assert torch.equal(first.context, again.context)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_the_shipped_model_starts_from_its_held_out_episodes():
    found = new_subject(RolloutOptions(source="pusht-64", batch=2, horizon=4, device="cpu"))
    assert not found.noise
    assert found.context.shape == (2, 2, 3, 64, 64) and found.actions.shape == (2, 4, 2)
    assert not torch.equal(found.context[0], found.context[1])
    assert found.actions.abs().max() <= 1, "model units"
    imagined = found.model.imagine(found.context, found.actions)
    assert imagined.frames.shape[1] == 4


# What the machine can do at most


def test_a_token_reads_all_layers_and_the_rows_of_the_head_that_may_be_drawn(model_of):
    for kind in ("conditional", "plain"):
        model = model_of(kind)
        outside = model.transformer.embed.weight.numel() + model.transformer.norm.weight.numel()
        inside = sum(weight.numel() for weight in model.transformer.parameters()) - outside
        unread = model.layout.vocab_size - model.layout.dynamics_codes
        inside -= unread * model.transformer.config.hidden_size
        assert weights_read(model) == inside


def test_the_limit_is_that_of_the_memory_for_one_clip_and_of_the_products_for_many(model_of):
    model, options = model_of("conditional"), RolloutOptions(source="", horizon=2)
    machine, many = Machine(bandwidth=1.0, operations=1e3), replace(options, batch=10**6)
    alone, half = (limit_seconds(model, options, name, machine) for name in ("float32", "bfloat16"))
    assert half == pytest.approx(alone / 2)
    assert limit_seconds(model, options, "float32", machine._replace(operations=1e9)) == alone
    positions = 2 * model.layout.frame_length
    assert alone > 4 * positions * weights_read(model)
    fast = machine._replace(bandwidth=1e12)
    products = limit_seconds(model, many, "float32", fast)
    assert products == pytest.approx(2 * limit_seconds(model, many, "float32", fast._replace(operations=2e3)))
    assert products > 10**6 * 2 * positions * weights_read(model) / 1e3


# Measuring


def test_turns_are_interleaved(monkeypatch):
    done = []
    seconds = in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 3, CPU)
    assert done == ["a", "b"] * 3
    assert seconds.keys() == {"a", "b"} and min(seconds.values()) >= 0


def test_methods_are_timed_only_while_asked(model_of, frames_for):
    tokenizer = model_of("conditional").tokenizer
    with timed_methods(tokenizer, ("encode_context", "decode_context"), CPU) as seconds:
        codes, _ = tokenizer.encode_context(frames_for(model_of("conditional")))
    assert seconds["encode_context"] > 0 == seconds["decode_context"]
    before = dict(seconds)
    tokenizer.decode_context(codes)
    assert seconds == before


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_memory_is_that_of_a_row_in_a_process_of_its_own(checkpoints):
    if process_memory("VmRSS") is None:
        pytest.skip("this system does not say how much memory a process holds")
    options = RolloutOptions(source=checkpoints["conditional"], horizon=1, device="cpu")
    assert 10**5 < in_new_process(memory_of, options, OURS) < 10**9


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="horizon is 0"):
        RolloutOptions(source="pusht-64", horizon=0)


def test_the_script_is_the_command(monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "rollout.py"
    if not script.is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.setattr(sys, "argv", [str(script), "--batch", "0"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 2
    assert "batch is 0" in capsys.readouterr().err
