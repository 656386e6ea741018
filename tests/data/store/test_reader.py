"""A store gives back what was put in, reads no more than it must, and says where it is damaged."""

import importlib
import json
import pickle
import re
import zlib
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as parquet
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.store.byte_ranges import Shards
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

FACTS = StoreFacts(name="toy", url="https://example.org/toy", licence="CC-BY 4.0", base_stride=5)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("store_episodes")


def build(folder, *shards, facts=FACTS):
    """A store with one shard for each list of episodes."""
    tasks = [ShardTask(f"train-{i:05d}", partial(iter, shard)) for i, shard in enumerate(shards)]
    convert_to_store(tasks, folder, facts=facts, workers=0)
    return EpisodeStore(folder)


def same(read, source, frames):
    np.testing.assert_array_equal(read.frames, frames)
    assert read.frames.dtype == np.uint8 and read.frames.flags.writeable
    for label in ("actions", "rewards", "terminated", "state"):
        np.testing.assert_array_equal(getattr(read, label), getattr(source, label))
        assert getattr(source, label) is None or getattr(read, label).dtype == getattr(source, label).dtype
    assert (read.key, read.split) == (source.key, source.split)
    assert source.meta.items() <= read.meta.items()


def accurate(files):
    return np.stack([simplejpeg.decode_jpeg(file, "RGB") for file in files])


def test_small_frames_come_back_exactly(make, tmp_path):
    shards = [[make.episode(i, length=3 + i) for i in range(3)], [make.episode(7, split="test")]]
    store = build(tmp_path / "new" / "toy", *shards)
    sources = [*shards[0], *shards[1]]
    assert len(store) == 4 and store.keys == [one.key for one in sources]
    assert store.splits == ["train", "train", "train", "test"]
    assert store.lengths.tolist() == [3, 4, 5, 6]
    for index, source in enumerate(sources):
        same(store[index], source, source.cameras["image"])
    same(store[-1], sources[-1], sources[-1].cameras["image"])
    assert [one.key for one in store] == store.keys
    assert store[1].meta["text"] == "push 1" and store[1].meta["fps"] == 5 and store[1].meta["dataset"] == "toy"
    for outside in (4, -5):
        with pytest.raises(IndexError):
            store[outside]
    store.verify()


def test_large_frames_become_good_jpeg_files(make, tmp_path):
    source = make.episode(0, height=128, width=160)
    store = build(tmp_path, [source])
    frames = source.cameras["image"]
    expected = accurate([simplejpeg.encode_jpeg(frame, 95, "RGB", "444", fastdct=False) for frame in frames])
    np.testing.assert_array_equal(store[0].frames, expected)
    assert np.abs(expected.astype(int) - frames).mean() < 2
    store.verify()


@pytest.mark.parametrize("fast", [True, False])
def test_jpeg_files_of_the_source_are_kept_bit_for_bit(make, tmp_path, fast):
    cameras = {f"camera/{i}.x": make.jpegs(make.pictures(5, 100, 120, i), fast) for i in range(2)}
    store = build(tmp_path, [make.episode(0, length=5, cameras=cameras, camera="camera/1.x")] * 1)
    for name, files in cameras.items():
        expected = [simplejpeg.decode_jpeg(file, "RGB", fastdct=fast) for file in files.files]
        np.testing.assert_array_equal(store.camera(0, name), expected)
        np.testing.assert_array_equal(store.camera(0, name, [3, 1]), [expected[3], expected[1]])
    np.testing.assert_array_equal(store[0].frames, store.camera(0, "camera/1.x"))
    with safe_open(tmp_path / "shards" / "train-00000.safetensors", "numpy") as shard:
        assert shard.get_tensor("0.jpeg.camera/0.x").tobytes() == b"".join(cameras["camera/0.x"].files)
    with pytest.raises(UserError, match=r"has no camera 'wrist'; it has camera/0.x, camera/1.x"):
        store.camera(0, "wrist")


def test_small_jpeg_files_of_the_source_are_decoded_as_they_ask(make, tmp_path):
    files = make.jpegs(make.pictures(4, 48, 64, 0), fast=True)
    store = build(tmp_path, [make.episode(0, length=4, cameras={"image": files})])
    assert store.info(0)["cameras"][0]["encoding"] == "raw"
    np.testing.assert_array_equal(
        store[0].frames, [simplejpeg.decode_jpeg(file, "RGB", fastdct=True) for file in files.files]
    )


def test_episodes_that_differ_in_what_they_have_share_a_shard(make, tmp_path):
    sources = [
        make.episode(0),
        make.episode(1, rewards=None, state=None, terminated=np.array([0, 0, 0, 0, 0, 1], bool)),
        make.episode(2, height=20),
        make.episode(3),
        make.episode(4, actions=None, action_fields=(), arrays={"mask": np.arange(24, dtype=np.uint16).reshape(6, 4)}),
    ]
    store = build(tmp_path, sources)
    for index, source in enumerate(sources):
        same(store[index], source, source.cameras["image"])
    np.testing.assert_array_equal(store.array(4, "mask"), sources[4].arrays["mask"])
    with pytest.raises(UserError, match="has no array 'mask'; it has none"):
        store.array(0, "mask")
    store.verify()


def test_any_frames_of_an_episode_can_be_asked_for(make, tmp_path):
    sources = [make.episode(0, length=9), make.episode(1, length=9, height=100)]
    store = build(tmp_path, sources[:1], sources[1:])
    for index, rows in (
        (0, range(2, 6)),
        (1, range(2, 6)),
        (0, [7, 0, 3]),
        (1, np.array([7, 0, 3])),
        (0, range(8, 0, -3)),
    ):
        whole, clip, rows_list = store[index], store.clip(index, rows), list(rows)
        np.testing.assert_array_equal(clip.frames, whole.frames[rows_list])
        np.testing.assert_array_equal(clip.actions[:-1], whole.actions[rows_list[:-1]])
        np.testing.assert_array_equal(clip.state, whole.state[rows_list])
        assert not clip.actions[-1].any() and clip.rewards[-1] == 0
    for rows in (range(5, 10), [-1, 2], []):
        with pytest.raises(UserError, match="were asked of episode 'train_eps_00000000'"):
            store.clip(0, rows)


@pytest.mark.parametrize("height", [16, 100])
def test_arrays_are_the_rows_of_a_clip_and_nothing_else_is_read(make, tmp_path, monkeypatch, height):
    store = build(tmp_path, [make.episode(i, length=9, height=height) for i in range(2)])
    clip, rows, asked = store.clip(1, [7, 3, 3]), np.array([7, 3, 3]), []
    read = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, shard, wanted: asked.extend(wanted) or read(self, shard, wanted))
    arrays = store.arrays(1, ["actions", "terminated"], rows)
    assert sorted(arrays) == ["actions", "frames"] and arrays["frames"].flags.writeable
    np.testing.assert_array_equal(arrays["frames"], clip.frames)
    np.testing.assert_array_equal(arrays["actions"], store[1].actions[rows])
    size = {stop - start for start, stop in asked}
    assert 5 * 3 * 4 in size and 5 * 4 not in size  # five actions of 3 numbers, and no rewards


def test_cameras_of_different_sizes_share_a_group(make, tmp_path):
    sources = [
        make.episode(i, cameras={name: make.pictures(6, 100 + 4 * i, width, i) for name, width in cameras.items()})
        for i, cameras in enumerate(({"image": 120}, {"image": 104, "wrist": 20}, {"image": 112}))
    ]
    store = build(tmp_path, sources)
    assert store.info(0)["group"] == store.info(2)["group"]
    assert [store[i].frames.shape[1:3] for i in range(3)] == [(100, 120), (104, 104), (108, 112)]
    assert store.camera(1, "wrist").shape == (6, 104, 20, 3)
    for camera, index in (("wrist", 0), ("left", 1)):
        with pytest.raises(UserError, match=f"has no camera '{camera}'; it has image(, wrist)?$"):
            store.camera(index, camera)


def test_a_changed_clip_changes_nothing_else(make, tmp_path):
    store = build(tmp_path, [make.episode(0)])
    store.clip(0, range(2)).frames[:] = 0
    store.verify()


@settings(max_examples=12, deadline=None)
@given(
    shards=st.lists(
        st.lists(
            st.tuples(st.integers(1, 7), st.sampled_from([1, 5, 96, 97]), st.integers(1, 40), st.booleans()), max_size=4
        ),
        min_size=1,
        max_size=3,
    ).filter(any)
)
def test_all_lengths_and_shapes_come_back(shards, tmp_path_factory):
    make = importlib.import_module("store_episodes")
    number, sources = 0, []
    for shard in shards:
        sources.append([])
        for length, height, width, rewarded in shard:
            changes = {} if rewarded else {"rewards": None}
            sources[-1].append(make.episode(number, length=length, height=height, width=width, **changes))
            number += 1
    store = build(tmp_path_factory.mktemp("store") / "toy", *sources)
    everything = [one for shard in sources for one in shard]
    assert store.keys == [one.key for one in everything]
    for index, source in enumerate(everything):
        frames = source.cameras["image"]
        if max(frames.shape[1:3]) > 96:
            frames = accurate([simplejpeg.encode_jpeg(frame, 95, "RGB", "444", fastdct=False) for frame in frames])
        same(store[index], source, frames)
        same_rows = range(len(source) // 2, len(source))
        np.testing.assert_array_equal(store.clip(index, same_rows).frames, frames[len(source) // 2 :])
    store.verify()


@pytest.fixture(autouse=True)
def _importable(make):
    """Hypothesis takes no fixtures of a single test."""


def test_facts_are_those_of_all_shards_together(make, tmp_path):
    shards = [[make.episode(i, length=2 + i) for i in range(3)], [make.episode(9)], []]
    facts = build(tmp_path, *shards).facts
    actions = np.concatenate([one.actions[:-1] for shard in shards for one in shard]).astype(np.float64)
    assert facts.dataset == FACTS and facts.episodes == 4 and facts.frames == 2 + 3 + 4 + 6
    assert facts.cameras == {"image": ((16, 24),)}
    assert facts.actions.count == len(actions)
    assert facts.actions.names == ("action/open", "action/world_vector[0]", "action/world_vector[1]")
    for found, expected in (
        (facts.actions.low, actions.min(0)),
        (facts.actions.high, actions.max(0)),
        (facts.actions.mean, actions.mean(0)),
        (facts.actions.std, actions.std(0)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_official_numbers_decide_the_order(make, tmp_path):
    shards = [
        [make.episode(i, split=split, meta={"number": i}) for i, split in shard]
        for shard in ([(5, "train"), (0, "train")], [(1, "test"), (3, "train")], [(0, "test")])
    ]
    store = build(tmp_path, *shards)
    assert [store.info(i)["number"] for i in range(5)] == [0, 1, 0, 3, 5]
    assert store.splits == ["test", "test", "train", "train", "train"]
    assert store.find("train_eps_00000003") == 3
    for index in range(5):
        number = store.info(index)["number"]
        np.testing.assert_array_equal(store[index].actions, make.episode(number).actions)
    store.verify()


def test_a_key_of_two_splits_is_found_by_its_split(make, tmp_path):
    store = build(tmp_path, [make.episode(0), make.episode(0, split="val")])
    assert store.find("train_eps_00000000", "val") == 1
    with pytest.raises(UserError, match="in each of train, val; give the split"):
        store.find("train_eps_00000000")
    with pytest.raises(UserError, match="has no episode 'x'"):
        store.find("x")


@pytest.mark.parametrize("size", [16, 128])
def test_a_store_far_away_is_read_in_ranges(make, tmp_path, size, monkeypatch):
    local = build(tmp_path, [make.episode(i, length=40, height=size) for i in range(4)])
    files = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            files.pipe(f"/far/{size}/{path.relative_to(tmp_path)}", path.read_bytes())
    store = EpisodeStore(f"memory://far/{size}")
    store.clip(3, range(4, 12))
    asked = []
    read = type(files).cat_file
    monkeypatch.setattr(
        type(files),
        "cat_file",
        lambda self, path, start=None, end=None, **kw: asked.append(end - start) or read(self, path, start, end, **kw),
    )
    clip = store.clip(2, range(4, 12))
    monkeypatch.undo()
    np.testing.assert_array_equal(clip.frames, local.clip(2, range(4, 12)).frames)
    shard = (tmp_path / "shards" / "train-00000.safetensors").stat().st_size
    assert sum(asked) < 1.4 * shard * 8 / (4 * 40) and len(asked) <= 6
    store.verify()
    assert pickle.loads(pickle.dumps(store))[1].key == store.keys[1]
    with pytest.raises(UserError, match="nowhere has no index.parquet"):
        EpisodeStore("memory://nowhere")


def test_the_page_says_enough_to_read_a_store_without_this_package(make, tmp_path):
    sources = [make.episode(0), make.episode(1, length=4, height=100), make.episode(2, length=5)]
    store = build(tmp_path, sources)
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "data.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    exec(next(text for text in snippets if "safe_open" in text), names)
    for index in range(3):
        actions, frames = names["read_actions_and_frames"](str(tmp_path), index)
        np.testing.assert_array_equal(actions, store[index].actions)
        if isinstance(frames, list):
            frames = accurate(frames)
        np.testing.assert_array_equal(frames, store[index].frames)


def test_the_sums_are_what_the_page_says(make, tmp_path):
    build(tmp_path, [make.episode(0), make.episode(1, height=100)])
    rows = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    with safe_open(tmp_path / "shards" / rows[1]["shard"], "numpy") as shard:
        total = 0
        start, stop = rows[1]["first"], rows[1]["first"] + rows[1]["length"]
        group = f"{rows[1]['group']}."
        for name in sorted(key for key in shard.keys() if key.startswith(group)):  # noqa: SIM118
            tensor = shard.get_tensor(name)
            offsets = shard.get_tensor(f"{group}offsets.image")
            if ".offsets." in name:
                piece = tensor[start : stop + 1] - tensor[start]
            elif ".jpeg." in name:
                piece = tensor[offsets[start] : offsets[stop]]
            else:
                piece = tensor[start:stop]
            total = zlib.crc32(name.removeprefix(group).encode() + piece.tobytes(), total)
    assert total == rows[1]["crc32"]
    facts = json.loads(parquet.read_schema(tmp_path / "index.parquet").metadata[b"ivideogpt"])
    assert facts["format"] == "ivideogpt-store-1" and facts["dataset"]["licence"] == "CC-BY 4.0"


@pytest.mark.parametrize("height", [16, 100])
def test_every_flipped_byte_is_found_and_named(make, tmp_path, height):
    build(tmp_path, [make.episode(i, height=height, length=4) for i in range(3)])
    path = tmp_path / "shards" / "train-00000.safetensors"
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(0).integers(begin, len(whole), 60).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"episode 'train_eps_0000000\d' in .*train-00000.safetensors is damaged"):
            EpisodeStore(tmp_path).verify()
    for place in range(begin):
        damaged = bytearray(whole)
        damaged[place] ^= 0x02
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"episode 'train_eps_0000000\d' .*train-00000.safetensors"):
            EpisodeStore(tmp_path).verify()


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_shard_that_was_cut_off_is_named(make, tmp_path, keep):
    store = build(tmp_path, [make.episode(0)], [make.episode(1), make.episode(2)])
    path = tmp_path / "shards" / "train-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    store = EpisodeStore(tmp_path)
    assert store[0].key == "train_eps_00000000"
    for call in (lambda: store[1], store.verify, store.check):
        with pytest.raises(UserError, match=r"'train_eps_00000001' cannot be read: .*train-00001.safetensors"):
            call()
    path.unlink()
    with pytest.raises(UserError, match=r"'train_eps_00000001' cannot be read: .*train-00001.safetensors"):
        EpisodeStore(tmp_path).verify()


def test_a_picture_that_cannot_be_decoded_is_named(make, tmp_path):
    store = build(tmp_path, [make.episode(0, height=100)])
    path = tmp_path / "shards" / "train-00000.safetensors"
    content = path.read_bytes()
    start = content.rindex(b"\xff\xd8\xff", 0)
    path.write_bytes(content[:start] + b"\0" * (len(content) - start))
    with pytest.raises(UserError, match=r"episode 'train_eps_00000000' in .* is damaged \(frame 5"):
        EpisodeStore(tmp_path)[0]
    del store


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_damaged_index_is_explained(make, tmp_path, content):
    build(tmp_path, [make.episode(0)])
    (tmp_path / "index.parquet").write_bytes(content)
    with pytest.raises(UserError, match="index.parquet cannot be read"):
        EpisodeStore(tmp_path)


def test_another_parquet_file_is_no_index(tmp_path):
    import pyarrow as arrow

    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "index.parquet")
    with pytest.raises(UserError, match="is of format None; expected 'ivideogpt-store-1'"):
        EpisodeStore(tmp_path)
    with pytest.raises(UserError, match="has no index.parquet; expected a store whose conversion is finished"):
        EpisodeStore(tmp_path / "nothing")


@pytest.mark.parametrize("package", ["pyarrow", "fsspec"])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; run: pip install 'ivideogpt\[data\]'"):
        EpisodeStore("memory://far")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_over_two_thousand_clips(make, tmp_path):
    store = build(
        tmp_path,
        [make.episode(i, length=40, height=64, width=64) for i in range(10)],
        [make.episode(10 + i, length=40, height=100, width=100) for i in range(4)],
    )

    def memory():  # of our own, without what the system caches of files
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    random = np.random.default_rng(0)
    before = 0
    for step in range(2200):
        if step == 200:
            before = memory()
        start = int(random.integers(24))
        index = int(random.integers(10) if step % 8 else random.integers(10, 14))
        store.clip(index, range(start, start + 16))
    assert memory() - before < 8_000
