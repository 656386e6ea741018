"""Many rows run in bounded memory: some after the others, with what they would have given together."""

import warnings
import weakref

import pytest
import torch

from ivideogpt import Sampling, UserError
from ivideogpt.decoding import decode, speculative
from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel import memory

ROWS, HORIZON = 7, 6
KINDS = ["conditional", "plain", "goal", "action_free"]


@pytest.fixture(params=KINDS)
def model(request, model_of):
    return model_of(request.param)


@pytest.fixture
def chunks(monkeypatch):
    """Rows of each cache that was filled."""
    found, prefill = [], decode.prefill

    def recording(model, codes, *others):
        found.append(len(codes))
        return prefill(model, codes, *others)

    monkeypatch.setattr(decode, "prefill", recording)
    return found


def room_for(monkeypatch, model, rows):
    """As much free memory as so many rows may take."""
    free = int(
        (rows + 0.5)
        * memory.row_bytes(model.dynamics, model.tokenizer.config, model.segment_frames())
        / memory.FREE_SHARE
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)


def no_room_for(monkeypatch, rows, error):
    """Memory runs out where a context of ``rows`` rows or more is read."""
    prefill = decode.prefill

    def full(model, codes, *others):
        if len(codes) >= rows:
            raise error
        return prefill(model, codes, *others)

    monkeypatch.setattr(decode, "prefill", full)


def assert_same(found, expected):
    assert torch.equal(found.ids, expected.ids)
    for name in ("log_probs", "rewards", "frames"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropies, expected.entropies, atol=1e-3, rtol=0)


# Chunks


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("seed", [5, list(range(30, 30 + ROWS))], ids=["one seed", "a seed a row"])
def test_rows_in_chunks_are_the_rows_of_one_batch(model, frames_for, actions_for, monkeypatch, chunks, most, seed):
    context, actions = frames_for(model, ROWS), actions_for(model, ROWS, HORIZON)
    whole = model.imagine(context, actions, horizon=HORIZON, seed=seed)
    assert set(chunks) == {ROWS}
    chunks.clear()
    room_for(monkeypatch, model, most)
    found = model.imagine(context, actions, horizon=HORIZON, seed=seed)
    anchors = -(-HORIZON // model.segment_frames())
    assert max(chunks) <= most and sum(chunks) == anchors * ROWS
    assert len(found.ids.flatten(1).unique(dim=0)) == ROWS
    assert_same(found, whole)


def test_observed_frames_and_their_actions_are_divided_too(model, frames_for, actions_for, monkeypatch, chunks):
    frames, actions = frames_for(model, ROWS, 4), actions_for(model, ROWS, 5)
    split = (None, None) if actions is None else (actions[:, 2:], actions[:, :2])
    given = {"horizon": 3, "observed": frames[:, 2:], "observed_actions": split[1], "seed": 4}
    whole = model.imagine(frames[:, :2], split[0], **given)
    room_for(monkeypatch, model, 2)
    found = model.imagine(frames[:, :2], split[0], **given)
    assert max(chunks[2:]) == 2
    assert_same(found, whole)
    mixed = model.imagine(frames[:, :2], split[0], **{**given, "observed": frames[:, 2:].flip(0)})
    assert not torch.equal(mixed.ids, found.ids), "what was observed counts"


def test_chunks_are_of_one_size_as_far_as_they_can_be(model_of, frames_for, actions_for, monkeypatch, chunks):
    model = model_of("plain")
    room_for(monkeypatch, model, 4)
    model.imagine(frames_for(model, 9), actions_for(model, 9, 2))
    assert chunks == [3, 3, 3]


def test_where_nobody_knows_what_is_free_all_rows_go_together(model_of, frames_for, actions_for, monkeypatch, chunks):
    model = model_of("plain")
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    model.imagine(frames_for(model, ROWS), actions_for(model, ROWS, 2))
    assert chunks == [ROWS]


def test_a_caller_is_refused_alike_in_chunks(model_of, frames_for, actions_for, monkeypatch):
    model = model_of("conditional")
    room_for(monkeypatch, model, 2)
    frames, actions = frames_for(model, 4, 3), actions_for(model, 4)
    for given, sentence in (
        ({"seed": [1, 2, 3]}, "3 seeds were given for 4 rows"),
        ({"observed": frames[:3, 2:], "observed_actions": actions[:, :1]}, "observed has 3 rows and the context 4"),
        (
            {"observed": torch.cat([frames, frames])[:, 2:], "observed_actions": actions[:, :1]},
            "observed has 8 rows and the context 4",
        ),
        ({"observed": frames[:, 2:], "observed_actions": actions[:3, :1]}, r"observed_actions came with shape \[3, 1"),
        ({"reanchor_every": 99}, "reanchor_every is 99"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.imagine(frames[:, :2], actions, **given)


# Memory that runs out

OUT = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("where", OUT)
def test_memory_that_runs_out_halves_the_chunk_once_and_says_so(
    model_of, frames_for, actions_for, monkeypatch, chunks, where
):
    model = model_of("plain")
    context, actions = frames_for(model, ROWS), actions_for(model, ROWS, HORIZON)
    whole = model.imagine(context, actions, seed=3)
    chunks.clear()
    no_room_for(monkeypatch, 5, OUT[where])
    with pytest.warns(
        UserWarning, match="memory ran out on cpu with 7 rows imagined together; going on with 4"
    ) as said:
        found = model.imagine(context, actions, seed=3)
    assert len(said) == 1 and said[0].filename == __file__
    assert chunks == [4, 4, 3, 3]
    assert_same(found, whole)


def test_rows_that_are_done_are_not_made_again(model_of, frames_for, actions_for, monkeypatch, chunks):
    model = model_of("plain")
    context, actions = frames_for(model, 8), actions_for(model, 8, 2)
    whole = model.imagine(context, actions, seed=3)
    chunks.clear()
    room_for(monkeypatch, model, 4)
    tries = iter([True, False, True, True])
    prefill = decode.prefill

    def full_once(*given):
        if next(tries):
            return prefill(*given)
        raise OUT["a GPU"]

    monkeypatch.setattr(decode, "prefill", full_once)
    with pytest.warns(UserWarning, match="with 4 rows imagined together; going on with 2"):
        found = model.imagine(context, actions, seed=3)
    assert chunks == [4, 2, 2]
    assert_same(found, whole)


@pytest.mark.parametrize(("fits", "rows", "tried"), [(2, 8, 4), (0, 1, 1)])
def test_memory_that_runs_out_again_is_one_sentence(model_of, frames_for, actions_for, monkeypatch, fits, rows, tried):
    model = model_of("plain")
    no_room_for(monkeypatch, fits + 1, OUT["a CPU"])
    sentence = f"memory ran out on cpu while {tried} of {rows} rows were imagined; use fewer rows, a shorter horizon"
    with warnings.catch_warnings(), pytest.raises(UserError, match=sentence) as caught:
        warnings.simplefilter("ignore")
        model.imagine(frames_for(model, rows), actions_for(model, rows))
    assert len(str(caught.value).splitlines()) == 1 and caught.value.__cause__ is OUT["a CPU"]


def test_other_errors_are_not_mistaken_for_memory(model_of, frames_for, actions_for, monkeypatch):
    model = model_of("plain")
    no_room_for(monkeypatch, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        warnings.simplefilter("error")
        model.imagine(frames_for(model), actions_for(model))


def test_what_failed_is_freed_before_the_half_is_tried(model_of, frames_for, actions_for, monkeypatch):
    model, read = model_of("plain"), speculative.decode_frame_speculatively
    caches, alive = [], []

    def full(inputs, statistics):
        if not caches:
            caches.append(weakref.ref(inputs.cache))
            raise OUT["a CPU"].__class__(*OUT["a CPU"].args)
        alive.append(caches[0]() is not None)
        return read(inputs, statistics)

    monkeypatch.setattr(speculative, "decode_frame_speculatively", full)
    with pytest.warns(UserWarning, match="going on with 1"):
        model.imagine(frames_for(model), actions_for(model))
    assert alive and not any(alive)


# What rows take


def test_the_cache_is_counted_as_it_is_allocated(any_model, frames_for, build):
    for model in (any_model, build("conditional").to(torch.bfloat16)):
        cache = model.session(frames_for(model, rows=3))._segment.cache
        held = sum(x.nbytes for x in vars(cache).values() if isinstance(x, torch.Tensor))
        assert memory.cache_bytes(model.dynamics, 3, model.segment_frames()) == held
        assert memory.row_bytes(model.dynamics, model.tokenizer.config, model.segment_frames()) > held / 3


def test_a_session_of_more_rows_than_memory_holds_is_refused_before_anything_is_allocated(
    model_of, frames_for, monkeypatch
):
    model = model_of("conditional")
    needed = memory.cache_bytes(model.dynamics, 2, 4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    model.session(frames_for(model))
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    monkeypatch.setattr(KVCache, "allocate", lambda *given, **named: pytest.fail("allocated"))
    monkeypatch.setattr(model.tokenizer, "encode_context", lambda frames: pytest.fail("encoded"))
    with pytest.raises(
        UserError, match=r"the cache of 2 rows with 4 future frames takes .* GB, but cpu has .* GB free"
    ):
        model.session(frames_for(model))


def test_free_memory_of_this_machine_is_known_on_linux():
    free = memory.free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("this system has no /proc/meminfo")
    assert 2**20 < free < 2**50
    assert memory.free_bytes(torch.device("meta")) is None


def test_a_containers_limit_counts_where_it_is_lower(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    machine = memory.free_bytes(cpu)
    for name, text in (("max", "3000000"), ("current", "1000000"), ("stat", "anon 900000\ninactive_file 250000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free_bytes(cpu) == 2250000
    (tmp_path / "memory.max").write_text("max\n")
    after = memory.free_bytes(cpu)
    assert (after is None) == (machine is None) and (after is None or after > 2250000)


def test_a_row_keeps_its_sampling_and_re_anchoring_in_chunks(model_of, frames_for, actions_for, monkeypatch, chunks):
    model = model_of("plain")
    context, actions = frames_for(model, 4), actions_for(model, 4, HORIZON)
    given = {"sampling": Sampling(greedy=True), "reanchor_every": 2}
    whole = model.imagine(context, actions, **given)
    chunks.clear()
    free = int(2.5 * memory.row_bytes(model.dynamics, model.tokenizer.config, 2) / memory.FREE_SHARE)
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert_same(model.imagine(context, actions, **given), whole)
    assert chunks == [2, 2, 2, 2, 2, 2]
