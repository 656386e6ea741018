"""Clip k is the same clip, whoever reads it."""

import importlib
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import Augmentation
from ivideogpt.data.clips import MODES, ClipSpec
from ivideogpt.data.convert.source_episode import ActionField
from ivideogpt.data.loader import ClipLoader, ClipRandom, clip_random
from ivideogpt.data.mixtures import Mixture, MixtureSource, load_mixture
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import ShardTask, convert_to_store

LABELS = ("frames", "actions", "rewards", "frame_index", "pad_mask", "action_mask", "embodiment")


@pytest.fixture(scope="module")
def make():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("store_episodes")


def convert(folder, episodes, **facts):
    task = ShardTask("train-00000", partial(iter, episodes))
    convert_to_store([task], folder, facts=StoreFacts(**facts), workers=0)
    return str(folder)


@pytest.fixture(scope="module")
def stores(make, tmp_path_factory):
    """Two datasets: base strides 6 and 3, actions of 3 and of 2 numbers, JPEG and raw; and one without actions."""
    root = tmp_path_factory.mktemp("stores")
    narrow = {"action_fields": (ActionField(name="x", size=2),), "rewards": None}
    large = [make.episode(i, length=10 + 3 * i, height=128, width=112) for i in range(4)]
    large.append(make.episode(9, split="test", height=128, width=112))
    small = [make.episode(i, length=5 + i, actions=np.full((5 + i, 2), i + 1, np.float32), **narrow) for i in range(4)]
    none = {"actions": None, "action_fields": (), "rewards": None}
    without = [make.episode(i, length=8, **none) for i in range(2)]
    return {
        "large": convert(root / "large", large, name="a", base_stride=6),
        "small": convert(root / "small", small, name="b", base_stride=3),
        "without": convert(root / "without", without, name="c"),
    }


@pytest.fixture(scope="module")
def mixture(stores):
    sources = (MixtureSource(path=stores["large"], weight=3), MixtureSource(path=stores["small"], weight=1))
    return Mixture(sources=sources)


SPEC = ClipSpec(frames=4, size=16)


def loader(mixture, spec=SPEC, **options):
    return ClipLoader(mixture, spec, **({"batch_size": 2, "augmentation": Augmentation()} | options))


def take(stream, count):
    return list(islice(stream, count))


def same(one, other):
    for label in LABELS:
        left, right = getattr(one, label), getattr(other, label)
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left, right), label
    assert one.context_frames == other.context_frames


def join(clips):
    return {label: torch.cat([getattr(clip, label) for clip in clips]) for label in LABELS if label != "rewards"}


def test_a_batch_is_a_clip(mixture):
    clip = take(loader(mixture), 1)[0]
    assert clip.frames.shape == (2, 4, 3, 16, 16) and clip.frames.dtype == torch.float32 and clip.frames.is_contiguous()
    assert clip.frames.min() >= 0 and clip.frames.max() <= 1 and clip.frames.std() > 0
    assert clip.actions.shape == clip.action_mask.shape == (2, 4, 3) and clip.rewards is None
    assert clip.frame_index.dtype == torch.int64 and clip.pad_mask.dtype == torch.bool
    assert clip.context_frames == 2 and clip.embodiment.shape == (2,)


def test_workers_do_not_change_what_is_read(mixture):
    alone, helped = take(loader(mixture), 5), take(loader(mixture, workers=2), 5)
    for one, other in zip(alone, helped, strict=True):
        same(one, other)


def test_two_ranks_read_what_one_would(mixture):
    whole = join(take(loader(mixture, batch_size=4), 3))
    ranks = [join(take(loader(mixture, rank=rank, ranks=2), 3)) for rank in range(2)]
    for label, value in whole.items():
        both = torch.stack([part[label] for part in ranks], dim=1).flatten(0, 1)
        assert torch.equal(value, both), label


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_equals_going_on(mixture, workers):
    first = loader(mixture, workers=workers, seed=5)
    stream = iter(first)
    take(stream, 2)
    state = first.state_dict()
    assert state == {"seed": 5, "step": 2, "clips_a_step": 2}
    resumed = loader(mixture, workers=workers)
    resumed.load_state_dict(state)
    for one, other in zip(take(stream, 2), take(resumed, 2), strict=True):
        same(one, other)
    assert first.state_dict() == resumed.state_dict()


def test_a_second_loop_goes_on_where_the_first_ended(mixture):
    reading = loader(mixture, workers=2)
    clips = [*take(reading, 2), *take(reading, 1)]
    for one, other in zip(clips, take(loader(mixture), 3), strict=True):
        same(one, other)


def test_other_numbers_of_ranks_can_resume(mixture):
    one = loader(mixture, batch_size=4)
    one.load_state_dict({"seed": 0, "step": 6, "clips_a_step": 2})
    assert one.step == 3 and one.numbers(3) == range(12, 16)
    with pytest.raises(UserError, match="no whole number of batches of 4"):
        one.load_state_dict({"seed": 0, "step": 1, "clips_a_step": 2})


def test_a_clip_is_the_same_in_any_batch(mixture):
    reading = loader(mixture)
    together = reading.clips([7, 3, 11])
    for place, number in enumerate([7, 3, 11]):
        torch.testing.assert_close(reading.clips([number]).frames[0], together.frames[place], rtol=0, atol=0)


def test_seeds_differ_and_global_random_numbers_are_left_alone(mixture):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, other = take(loader(mixture, seed=1, workers=1), 1)[0], take(loader(mixture, seed=2), 1)[0]
    assert not torch.equal(one.frames, other.frames)
    assert torch.equal(torch.rand(1), expected)


def test_random_numbers_of_a_clip_are_a_function_of_seed_and_number():
    draws = {
        tuple(clip_random(seed, k, use).integers(2**40, size=3))
        for seed in (0, 1)
        for k in (0, 1, 2**50)
        for use in (0, 1)
    }
    assert len(draws) == 12
    assert clip_random(3, 4).random() == clip_random(3, 4).random()


@given(seed=st.integers(0, 2**70), number=st.integers(0, 2**63), stream=st.integers(0, 1), drawn=st.integers(0, 5))
def test_one_generator_gives_every_clip_what_a_new_one_would(seed, number, stream, drawn):
    random = ClipRandom()
    random.of(1, 2).integers(9, size=drawn)  # leaves half of a number behind where ``drawn`` is odd
    new = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, number]))
    for generator in (random.of(seed, number, stream), clip_random(seed, number, stream)):
        new.bit_generator.state = np.random.Philox(key=seed, counter=[0, 0, stream, number]).state
        assert generator.integers(9, size=3).tolist() == new.integers(9, size=3).tolist()
        assert generator.random() == new.random()


def test_a_batch_keeps_its_memory_while_somebody_holds_it(mixture):
    stream = iter(loader(mixture))
    first = next(stream)
    before = first.frames.clone()
    take(stream, 4)
    assert torch.equal(first.frames, before)


@pytest.mark.parametrize("label", ["actions", "rewards"])
def test_a_number_that_is_none_is_an_error_of_its_episode(make, tmp_path, label):
    folder = convert(tmp_path / "store", [make.episode(0, length=4)], name="a")
    shard = next((tmp_path / "store" / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    place = content.index(getattr(EpisodeStore(folder)[0], label).tobytes())
    content[place : place + 4] = np.float32(np.nan).tobytes()
    shard.write_bytes(content)
    reading = loader(folder, ClipSpec(frames=4, stride=1, size=16, rewards=True), batch_size=1)
    with pytest.raises(UserError, match=f"^episode 'train_eps_00000000' of .* has NaN or infinity in {label}; remove"):
        reading.clips([0])


def test_frames_and_actions_are_those_of_the_store(stores):
    store = EpisodeStore(stores["small"])
    reading = ClipLoader(stores["small"], ClipSpec(frames=3, stride=2, context_frames=1), batch_size=1)
    for number in range(8):
        clip, place = reading.clips([number]), reading.dataset.place(0, number)
        rows = clip.frame_index[0].numpy()
        episode = store[place.episode]
        pixels = np.transpose(episode.frames[rows], (0, 3, 1, 2)).astype(np.float32) / 255
        np.testing.assert_allclose(clip.frames[0].numpy(), pixels)
        actions = episode.actions[rows].copy()
        actions[~place.drawn.transitions] = 0
        np.testing.assert_array_equal(clip.actions[0].numpy(), actions)
        assert clip.action_mask[0].any(1).tolist() == place.drawn.transitions.tolist()


def test_narrow_actions_are_padded_and_masked(mixture):
    clip = loader(mixture).clips(range(40))
    narrow = clip.embodiment == 1
    assert 4 <= int(narrow.sum()) <= 18  # a quarter
    assert not clip.action_mask[narrow][..., 2].any() and (clip.actions[narrow][..., 2] == 0).all()
    assert clip.action_mask[narrow][:, :2, :2].all() and clip.action_mask[~narrow][:, :3].all()
    assert not clip.action_mask[:, -1].any() and (clip.actions[~clip.action_mask] == 0).all()
    assert loader(mixture).mixture.embodiments == ("a", "b")


def test_sources_without_actions_are_masked_or_give_none(stores):
    both = [MixtureSource(path=stores["without"]), MixtureSource(path=stores["small"])]
    clip = loader(both).clips(range(8))
    assert not clip.action_mask[clip.embodiment == 0].any() and clip.action_mask[clip.embodiment == 1].any()
    assert loader(stores["without"]).clips([0]).actions is None
    assert loader(stores["small"], ClipSpec(frames=4, size=16, actions=False)).clips([0]).actions is None


def test_strides_come_from_the_source_then_the_clips_then_the_dataset(stores):
    def stride(spec, **source):
        return loader([MixtureSource(path=stores["large"], **source)], spec).mixture.sources[0].stride

    assert stride(SPEC) == 2
    assert stride(ClipSpec(frames=4, size=16, video_stepsize=2)) == 4
    assert stride(ClipSpec(frames=4, size=16, stride=3)) == 3
    assert stride(ClipSpec(frames=4, size=16, stride=3), stride=5) == 5


def test_only_the_split_is_drawn_from(stores):
    reading = loader([MixtureSource(path=stores["large"], split="test")])
    assert {reading.dataset.place(0, k).episode for k in range(9)} == {4}
    with pytest.raises(UserError, match="no episode of split 'val'; its splits: test, train"):
        loader([MixtureSource(path=stores["large"], split="val")])


@settings(max_examples=12, deadline=None)
@given(mode=st.sampled_from(MODES), frames=st.integers(2, 12), stride=st.integers(1, 5), seed=st.integers(0, 9))
def test_any_mode_reads_any_episode(mixture, mode, frames, stride, seed):
    spec = ClipSpec(mode=mode, frames=frames, horizon=frames + 3, stride=stride, size=8)
    clip = ClipLoader(mixture, spec, batch_size=3, seed=seed).clips(range(3))
    assert clip.frames.shape == (3, frames, 3, 8, 8)
    assert (clip.actions is None) == (mode == "random_order")


def test_what_cannot_be_read_is_one_sentence_also_from_a_worker(stores):
    spec = ClipSpec(frames=4, size=16, rewards=True)
    assert next(iter(loader(stores["large"], spec))).rewards.shape == (2, 4)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^episode '\w+' of \S+ has no rewards; set rewards=False$"):
            take(loader(stores["small"], spec, workers=workers), 1)
    with pytest.raises(UserError, match="has no camera 'left'"):
        loader([MixtureSource(path=stores["small"], camera="left")]).clips([0])


def test_impossible_loaders_are_refused(mixture, stores):
    with pytest.raises(UserError, match="give ClipSpec a size"):
        ClipLoader(mixture, ClipSpec(frames=4), batch_size=2, augmentation=Augmentation())
    with pytest.raises(UserError, match="frames of different sizes"):
        ClipLoader(mixture, ClipSpec(frames=4), batch_size=2).clips(range(12))
    with pytest.raises(UserError, match="batch_size=0"):
        loader(mixture, batch_size=0)
    with pytest.raises(UserError, match="rank from 0"):
        loader(mixture, rank=2, ranks=2)
    with pytest.raises(UserError, match="have 3 numbers and action_width is 2"):
        loader(Mixture(sources=mixture.sources, action_width=2))


def test_robonet_is_cropped_to_a_square_before_it_is_resized(make, tmp_path):
    folder = convert(tmp_path / "robonet", [make.episode(0, height=16, width=24)], name="tfds_robonet")
    clip = ClipLoader(folder, ClipSpec(frames=4, size=16), batch_size=1).clips([0])
    rows = clip.frame_index[0].numpy()
    middle = EpisodeStore(folder)[0].frames[rows][:, :, 4:20]
    np.testing.assert_allclose(clip.frames[0].permute(0, 2, 3, 1).numpy(), middle.astype(np.float32) / 255)


@pytest.mark.gpu
def test_the_device_augments_nearly_as_the_workers_do(mixture):
    here, there = loader(mixture).clips(range(6)), loader(mixture, device="cuda").clips(range(6))
    assert there.frames.device.type == "cuda"
    assert (here.frames - there.frames.cpu()).abs().max() < 3 / 255


def test_leaving_the_work_to_the_device_changes_nothing_but_where(mixture):
    here = loader(mixture)
    later = loader(mixture)
    later.dataset.on_device = True
    same(here.clips(range(6)), later.clips(range(6)))


def test_the_snippet_of_the_documentation_runs(make, tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split("## From a store to clips")[1].split("\n## ")[0]
    names: dict = {}
    exec(compile(section.split("```python\n")[1].split("```")[0], "docs/data.md", "exec"), names)
    convert(tmp_path / "bridge", [make.episode(0, length=40)], name="bridge", base_stride=5)
    names["train"](str(tmp_path), "BRIDGE_MIX")
    assert "{'seed': 0, 'step': 3, 'clips_a_step': 16}" in capsys.readouterr().out


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_mixture_file_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (tmp_path / "mixture.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert load_mixture(tmp_path / "mixture.toml").probabilities == (0.75, 0.25)
