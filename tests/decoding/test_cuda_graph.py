"""A frame without a look at the device's numbers is the frame that the engine draws; what cannot be captured says why.

Captures themselves need a GPU and carry its marker.
"""

import gc
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ivideogpt import Sampling
from ivideogpt.decoding import cuda_graph, decode, speculative
from ivideogpt.decoding.cuda_graph import StaticFrame
from ivideogpt.models.dynamics import Dynamics

SAMPLINGS = {
    "greedy": Sampling(greedy=True),
    "drawn": Sampling(top_k=None),
    "top-k": Sampling(top_k=5, temperature=0.8),
    "top-p": Sampling(top_k=None, top_p=0.7),
    "official": Sampling(legal_only=False),
}


class Batch:
    """Caches of a model, and the same frames drawn for them in one way or the other."""

    def __init__(self, model, frames_for, actions_for, rows=1, seed=0, device="cpu"):
        self.model, self.rows = model, rows
        self.context = frames_for(model, rows=rows, seed=seed).to(model.dtype).to(device)
        actions = actions_for(model, rows=rows, horizon=8, seed=seed)
        self.actions = None if actions is None else actions.to(device)
        self.uniforms = torch.rand(8, rows, model.layout.dynamics_tokens, generator=torch.Generator().manual_seed(seed))
        self.uniforms = self.uniforms.to(device)

    @torch.inference_mode()
    def cache(self, frames=4):
        return decode.prefill(self.model.dynamics, self.model.tokenizer.encode_context(self.context)[0], frames)

    def given(self, index):
        separators = torch.full((self.rows,), self.model.layout.dynamics_separator, device=self.context.device)
        return separators, None if self.actions is None else self.actions[:, index], self.uniforms[index]

    @torch.inference_mode()
    def plain(self, cache, index, sampling):
        separators, action, uniforms = self.given(index)
        return decode.decode_frame(
            decode.FrameInputs(self.model.dynamics, cache, separators, action, sampling, uniforms)
        )

    @torch.inference_mode()
    def static(self, frame, cache, index):
        return frame.decode(cache, *self.given(index))

    def frame(self, cache, sampling):
        with torch.inference_mode():
            return StaticFrame(self.model.dynamics, cache, self.given(0)[1], sampling)

    def by_graph(self, cache, index, sampling):
        separators, action, uniforms = self.given(index)
        with torch.inference_mode():
            return cuda_graph.decode_frame_by_graph(
                decode.FrameInputs(self.model.dynamics, cache, separators, action, sampling, uniforms)
            )


def assert_same(found, expected):
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropies, expected.entropies, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-4, rtol=1e-4)


def assert_same_caches(found, expected):
    length = expected.length
    assert found.length == length and torch.equal(found.ids[:, :length], expected.ids[:, :length])
    for one, other in ((found.keys, expected.keys), (found.values, expected.values)):
        torch.testing.assert_close(one[:, :, :, :length], other[:, :, :, :length], atol=1e-4, rtol=1e-4)


@pytest.fixture
def batch(frames_for, actions_for):
    return lambda model, **options: Batch(model, frames_for, actions_for, **options)


@pytest.fixture
def anywhere(monkeypatch):
    """Frames are kept on a CPU too: computed where a GPU would replay them."""
    monkeypatch.setattr(cuda_graph, "why_no_graph", lambda dynamics, rows: None)


# The frame


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("plain", name) for name in SAMPLINGS), ("official", "greedy"), ("official", "top-k"), ("action_free", "drawn")],
)
def test_a_frame_is_the_one_that_the_engine_draws_frame_after_frame(model_of, batch, kind, name, rows):
    some, sampling = batch(model_of(kind), rows=rows), SAMPLINGS[name]
    cache, other = some.cache(), some.cache()
    frame = some.frame(cache, sampling)
    for index in range(3):
        assert_same(some.static(frame, cache, index), some.plain(other, index, sampling))
        assert_same_caches(cache, other)


def test_what_was_drawn_stays_when_the_next_frame_is(model_of, batch):
    some, sampling = batch(model_of("plain")), Sampling()
    cache = some.cache()
    frame = some.frame(cache, sampling)
    first = some.static(frame, cache, 0)
    kept = [x.clone() for x in first]
    second = some.static(frame, cache, 1)
    assert all(torch.equal(x, y) for x, y in zip(first, kept, strict=True)) and not torch.equal(first.ids, second.ids)


def test_one_frame_serves_caches_that_rewind_observe_and_fork_in_any_order(model_of, batch):
    model, sampling = model_of("plain"), Sampling()
    some, others = batch(model, rows=2), batch(model, rows=2, seed=1)
    root = batch(model, rows=1, seed=2)
    pairs = [(some.cache(), some.cache()), (others.cache(), others.cache())]
    with torch.inference_mode():
        trunk = root.cache()
        pairs.append((trunk.repeat(2), trunk.repeat(2)))
    frame = some.frame(pairs[0][0], sampling)
    context = pairs[0][0].length

    def check(pair, index, which=some):
        assert_same(which.static(frame, pairs[pair][0], index), which.plain(pairs[pair][1], index, sampling))

    check(0, 0)
    check(0, 1)
    check(1, 0, others)
    check(2, 3, others)
    check(0, 2)
    for cache in pairs[0]:
        cache.truncate(context + model.layout.frame_length)
    check(0, 4)
    for cache in pairs[0]:
        cache.truncate(context)
        separators, action, _ = some.given(0)
        with torch.inference_mode():
            ids = torch.arange(2 * model.layout.dynamics_tokens).view(2, -1) % 20 + model.layout.dynamics_ids.start
            decode.read_frame(model.dynamics, cache, separators, ids, action, sampling)
    check(0, 5)
    check(2, 6, others)
    for cache in pairs[2]:
        cache.truncate(context)
    check(2, 7, others)


def test_numbers_that_are_none_in_memory_used_before_do_no_harm(model_of, batch):
    some, sampling = batch(model_of("conditional")), Sampling()
    cache, other = some.cache(), some.cache()
    frame = some.frame(cache, sampling)
    with torch.inference_mode():
        frame.cache.keys.fill_(torch.nan)
        frame.cache.values.fill_(torch.nan)
    assert_same(some.static(frame, cache, 0), some.plain(other, 0, sampling))


def test_a_held_cache_is_not_copied_again(model_of, batch, monkeypatch):
    some, sampling = batch(model_of("conditional")), Sampling()
    cache = some.cache()
    copies, copy_to = [], type(cache).copy_to
    monkeypatch.setattr(type(cache), "copy_to", lambda *given: (copies.append(1), copy_to(*given))[1])
    frame = some.frame(cache, sampling)
    for index in range(3):
        some.static(frame, cache, index)
    assert len(copies) == 1


@pytest.mark.parametrize("kind", ["plain", "conditional", "action_free"])
def test_sessions_imagine_the_same_by_kept_frames(model_of, frames_for, actions_for, anywhere, monkeypatch, kind):
    model = model_of(kind)
    frames, actions = frames_for(model, count=3), actions_for(model, horizon=7)

    def play():
        def at(index, k=1):
            return None if actions is None else actions[:, index].repeat_interleave(k, dim=0)

        session = model.session(frames[:, :2], seed=4, reanchor_every=3)
        yield session.step(at(0))
        yield session.observe(frames[:, 2], at(1))
        child = session.fork(2)
        yield child.step(at(2, 2))
        yield session.step(at(2))
        child.rewind(2)
        for index in range(1, 5):
            yield child.step(at(index, 2))
        session.rewind(1)
        for index in range(2, 6):
            yield session.step(at(index))

    expected, by_frames = list(play()), []

    def decode_frame(inputs, statistics):
        by_frames.append(cuda_graph.decode_frame_by_graph(inputs))
        return by_frames[-1]

    monkeypatch.setattr(speculative, "decode_frame_speculatively", decode_frame)
    for one, other in zip(play(), expected, strict=True):
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.frames, other.frames, atol=1e-4, rtol=0)
    assert len(by_frames) == len(expected) - 1


# What a capture would refuse


def tensors_in(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


class NothingRead(TorchDispatchMode):
    """Fails where the host would have to wait for a number, or memory would have to come from the host."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique", "_unique2")

    def __init__(self, device):
        super().__init__()
        self.device, self.calls = torch.device(device), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        found = func(*args, **(kwargs or {}))
        for x in tensors_in((args, kwargs, found)):
            assert x.device.type == self.device.type, f"{name} moves numbers between devices"
        if name in ("index", "index_put_"):
            assert all(x.dtype != torch.bool for x in tensors_in(args[1])), "a bool index waits for the device"
        return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "name"), [*(("plain", name) for name in SAMPLINGS), ("conditional", "top-k")])
def test_a_frame_waits_for_nothing_that_the_device_knows(build, batch, kind, name, device):
    # On the meta device there are no numbers: whatever asks for one fails; and layers are computed as on a GPU.
    model, sampling = build(kind), SAMPLINGS[name]
    some = batch(model, rows=3)
    cache = some.cache()
    if device == "meta":
        model.to(device)
        for name in ("keys", "values", "ids"):
            setattr(cache, name, getattr(cache, name).to(device))
    action = some.given(0)[1]
    with torch.inference_mode():
        frame = StaticFrame(model.dynamics, cache, None if action is None else action.to(device), sampling)
        frame.position.fill_(cache.length)
        if device == "cpu":
            frame.cache.ids.copy_(cache.ids)
            frame.run()  # lays out the weights for this processor, once
        with NothingRead(device) as mode:
            ids, *_ = frame.run()
    assert ids.shape == (3, model.layout.dynamics_tokens) and ids.device.type == device
    assert mode.calls > 100


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x.any())]
)
def test_waiting_would_be_noticed(wait):
    with pytest.raises(AssertionError, match="wait"), NothingRead("cpu"):
        wait(torch.ones(3))


# Which frames are kept


def test_a_batch_of_another_kind_has_a_frame_of_its_own(build, batch, anywhere):
    model = build("conditional")
    one, two = batch(model, rows=1), batch(model, rows=2)
    for _ in range(2):
        for some, sampling in ((one, Sampling()), (two, Sampling()), (two, Sampling(top_k=3))):
            cache, other = some.cache(), some.cache()
            assert_same(some.by_graph(cache, 0, sampling), some.plain(other, 0, sampling))
    kept = cuda_graph._graphs[model.dynamics].frames
    assert len(kept) == 3
    one.by_graph(one.cache(frames=2), 0, Sampling())
    assert len(kept) == 4, "a cache of another size"
    first = next(iter(kept.values()))
    two.by_graph(two.cache(frames=3), 0, Sampling())
    assert len(kept) == 4 and first not in kept.values(), "the one that was not used for longest goes"


def test_weights_that_change_in_place_are_read_and_weights_that_move_need_a_new_frame(build, batch, anywhere):
    model, sampling = build("plain"), Sampling()
    some, weight = batch(model), model.transformer.layers[0].feed_forward.down.weight
    some.by_graph(some.cache(), 0, sampling)
    (frame,) = cuda_graph._graphs[model.dynamics].frames.values()
    with torch.no_grad():
        weight.mul_(-1)
    expected = some.plain(some.cache(), 0, sampling)
    found = some.by_graph(some.cache(), 0, sampling)
    assert list(cuda_graph._graphs[model.dynamics].frames.values()) == [frame]
    weight.data = -weight.data
    weight.data.mul_(-1)
    moved = some.by_graph(some.cache(), 0, sampling)
    assert list(cuda_graph._graphs[model.dynamics].frames.values()) != [frame]
    for drawn in (found, moved):
        assert_same(drawn, expected)


def test_frames_go_with_their_model(build, batch, anywhere):
    some = batch(build("conditional"))
    some.by_graph(some.cache(), 0, Sampling())
    model, frame = (
        weakref.ref(some.model),
        weakref.ref(next(iter(cuda_graph._graphs[some.model.dynamics].frames.values()))),
    )
    del some
    gc.collect()
    assert model() is None and frame() is None


# Fallbacks


def test_without_cuda_the_reason_is_told_once(build, batch):
    some = batch(build("conditional"))
    cache = some.cache()
    with pytest.warns(UserWarning, match="without a CUDA graph: the model is on cpu"):
        assert some.by_graph(cache, 0, Sampling()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert some.by_graph(cache, 0, Sampling()) is None
    assert cache.length == some.model.layout.context_length(2)


@pytest.fixture
def on_cuda(monkeypatch):
    """Models say that they are on a GPU."""
    monkeypatch.setattr(Dynamics, "device", property(lambda dynamics: torch.device("cuda")))


def test_each_reason_is_named(build, batch, on_cuda, monkeypatch):
    model = build("conditional")
    with torch.inference_mode():
        assert cuda_graph.why_no_graph(model.dynamics, 128) is None
        assert cuda_graph.why_no_graph(model.dynamics, 129) == "129 rows are more than the 128 that it pays for"
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
        assert "autocast is on" in (cuda_graph.why_no_graph(model.dynamics, 1) or "")
    assert "gradients are being recorded" in (cuda_graph.why_no_graph(model.dynamics, 1) or "")


def test_a_replay_that_draws_something_else_is_not_used(monkeypatch):
    drawn = (torch.tensor([[3, 4]]), torch.tensor([[-1.0, -2.0]]), torch.zeros(1, 2), torch.zeros(1, 8))
    for changed, fits in (({}, True), ({0: torch.tensor([[3, 5]])}, False), ({1: torch.tensor([[-1.0, -2.1]])}, False)):
        replay = tuple(changed.get(index, x) for index, x in enumerate(drawn))
        monkeypatch.setattr(cuda_graph, "capture", lambda run, device, replay=replay: lambda: replay)
        if fits:
            assert cuda_graph.checked_capture(lambda: drawn, torch.device("cpu"))() is replay
            continue
        with pytest.raises(RuntimeError, match="another one than without capturing"):
            cuda_graph.checked_capture(lambda: drawn, torch.device("cpu"))


def test_a_capture_that_fails_is_told_and_not_tried_again(build, batch, anywhere, monkeypatch):
    some, tried = batch(build("conditional")), []

    def fail(frame):
        tried.append(frame)
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors ...")

    monkeypatch.setattr(StaticFrame, "run", fail)
    cache = some.cache()
    with pytest.warns(UserWarning, match=r"capturing it failed \(operation not permitted when stream is capturing\)"):
        assert some.by_graph(cache, 0, Sampling()) is None
    assert some.by_graph(cache, 0, Sampling()) is None and len(tried) == 1
    assert cache.length == some.model.layout.context_length(2)


def test_a_full_cache_and_graphs_turned_off_leave_it_to_the_engine(build, batch, anywhere, monkeypatch):
    some = batch(build("conditional"))
    cache = some.cache(frames=1)
    assert some.by_graph(cache, 0, Sampling()) is not None and some.by_graph(cache, 1, Sampling()) is None
    monkeypatch.setattr(cuda_graph, "GRAPH_ROWS", 0)
    assert some.by_graph(some.cache(), 0, Sampling()) is None


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", ["plain", "official", "action_free"])
def test_on_a_gpu_a_captured_frame_is_the_one_that_the_engine_draws(build, batch, kind, sampling, monkeypatch):
    some = batch(build(kind).to("cuda"), rows=3, device="cuda")
    cache, other = some.cache(), some.cache()
    with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        warnings.simplefilter("error")
        for index in range(3):
            found = some.by_graph(cache, index, sampling)
            assert found is not None
            with monkeypatch.context() as patched:
                patched.setattr(cuda_graph, "GRAPH_ROWS", 0)
                expected = some.plain(other, index, sampling)
            assert torch.equal(found[0], expected.ids)
            torch.testing.assert_close(found[1], expected.log_probs, atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu_a_replay_reads_weights_that_changed_in_place(build, batch):
    model = build("official").to("cuda")
    some = batch(model, device="cuda")
    before = some.by_graph(some.cache(), 0, Sampling(greedy=True))
    with torch.no_grad():
        model.transformer.layers[0].feed_forward.down.weight.mul_(-1)
    after = some.by_graph(some.cache(), 0, Sampling(greedy=True))
    assert before is not None and after is not None and not torch.equal(before[1], after[1])
    assert len(cuda_graph._graphs[model.dynamics].frames) == 1
