"""All rows of the benchmark imagine the same, and it prints its figures; speed itself is not tested."""

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import _subject
import pytest
import rollout
import torch
from _measuring import in_new_process, in_turns, process_memory, timed_methods, use_threads
from _subject import RECIPES, RolloutOptions, Subject, new_subject, sampling_for
from rollout import CACHED, OFFICIAL, OURS, memory_of, runners, score_gap

from ivideogpt import UserError
from ivideogpt.configs.official import oxe_64_act_free
from ivideogpt.models.cpu_linear import Projection

FOLDER = Path(__file__).parents[2] / "benchmarks"
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


@pytest.fixture
def measure(build, tmp_path, capsys):
    """``measure(kind, **options)``: what the script prints, and the JSON of its last line."""

    def call(kind, **options):
        build(kind).save_pretrained(tmp_path / kind)
        rollout.main(RolloutOptions(source=str(tmp_path / kind), device="cpu", memory=False, **options))
        printed = capsys.readouterr().out
        return printed, json.loads(printed.splitlines()[-1])

    return call


@needs_transformers
def test_the_last_line_is_json_and_is_kept_where_asked(measure, tmp_path):
    printed, figures = measure("plain", horizon=2, rounds=2, threads=1, out=tmp_path / "kept")
    rows = figures["rows"]
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name.startswith("rollout-20")
    assert json.loads(file.read_text(encoding="utf-8")).keys() == figures.keys()
    ours = rows["ours, float32"]
    for name in ("frames_per_second", "ratio_to_official", "ratio_to_cached_generate", "peak_memory_mb"):
        assert figures[name] == ours[name]
    assert figures["peak_memory_mb"] is None
    assert figures["ratio_to_official"] > 0 and figures["ratio_to_official_transformer"] > 0
    assert rows["official, float32"]["ratio_to_official"] == 1
    assert rows["cached generate, float32"]["ratio_to_cached_generate"] == 1
    assert {"ours, float32, without drafts", "ours, float32, frame by frame"} < rows.keys()
    for name, row in rows.items():
        assert row.keys() == ROW_KEYS
        parts = [row[f"{part}_ms"] for part in ("encoder", "transformer", "decoder")]
        assert min(parts) > 0
        assert row["frames_per_second"] == pytest.approx(1e3 / row["ms_per_frame"], rel=1e-2)
        assert row["limit_share"] > 0
        assert any(line.startswith(name) for line in printed.splitlines())
    assert [figures[name] for name in ("horizon", "context_frames", "batch", "threads")] == [2, 2, 1, 1]
    assert ours["same_tokens"] == 1 >= rows["ours, int8"]["same_tokens"] > 0.5
    assert figures["cache_mb"] > 0
    assert figures["ties"] == 0 and figures["noise"] and figures["left_out"] is None


def test_without_transformers_ours_alone_is_measured_and_the_table_says_so(measure, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    printed, figures = measure("conditional", horizon=1, rounds=1)
    assert all(name.startswith("ours") for name in figures["rows"])
    assert figures["ratio_to_official"] is None and figures["ratio_to_cached_generate"] is None
    assert figures["frames_per_second"] > 0
    assert "left out: official, cached generate (transformers is not installed; run: pip install" in printed


def test_baselines_can_be_left_out(measure):
    printed, figures = measure("conditional", horizon=1, rounds=1, baselines=False)
    assert all(name.startswith("ours") for name in figures["rows"])
    assert "left out: official, cached generate (as asked)" in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"horizon": 0}, "horizon is 0; expected at least 1"),
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"context_frames": 0}, "context_frames is 0; expected at least 1"),
        ({"source": "pusht-64-tokens", "horizon": 15}, "horizon is 15; expected 1 to 14"),
        ({"source": "pusht-64-tokens", "context_frames": 3}, "context_frames is 3; expected 1 to 2"),
        ({"source": "pusht-64-tokens", "device": "nothing"}, "device 'nothing' cannot be used here"),
        ({"source": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_options_that_cannot_be_measured_are_one_sentence(options, sentence):
    with pytest.raises(UserError) as error:
        rollout.main(RolloutOptions(**options))
    assert sentence in str(error.value)


def test_results_are_not_measured_where_they_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        rollout.main(RolloutOptions(out=tmp_path / "file"))


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
    monkeypatch.setattr(_subject, "RECIPES", {"tiny": lambda: tiny})
    options = RolloutOptions(source="tiny", batch=2, horizon=2, context_frames=1, action_dim=action_dim, device="cpu")
    first, again = new_subject(options), new_subject(options)
    assert first.noise and first.model.action_dim == action_dim
    assert first.context.shape == (2, 1, 3, 16, 16)
    assert (first.actions is None) if not action_dim else first.actions.shape == (2, 2, 3)
    assert torch.equal(first.context, again.context)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_the_shipped_model_starts_from_its_held_out_episodes():
    found = new_subject(RolloutOptions(source="pusht-64-tokens", batch=2, horizon=4, device="cpu"))
    assert not found.noise
    assert found.context.shape == (2, 2, 3, 64, 64) and found.actions.shape == (2, 4, 2)
    assert not torch.equal(found.context[0], found.context[1])
    assert found.actions.abs().max() <= 1, "model units"
    imagined = found.model.imagine(found.context, found.actions)
    assert imagined.frames.shape[1] == 4


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


def test_memory_is_that_of_a_row_in_a_process_of_its_own(build, tmp_path):
    if process_memory("VmRSS") is None:
        pytest.skip("this system does not say how much memory a process holds")
    build("conditional").save_pretrained(tmp_path)
    options = RolloutOptions(source=str(tmp_path), horizon=1, device="cpu")
    assert 10**5 < in_new_process(memory_of, options, OURS) < 10**9


def test_the_script_ends_with_exit_code_2_and_says_what_is_expected(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rollout.py", "--batch", "0"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(FOLDER / "rollout.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "batch is 0; expected at least 1" in capsys.readouterr().err
