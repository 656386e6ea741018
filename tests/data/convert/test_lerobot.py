"""LeRobot datasets of versions 2.1 and 3.0, written here: the right frame of the right file, rows, names, errors."""

import io
import json
import os
import pickle
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import frame_files, lerobot
from ivideogpt.data.convert.frame_files import frames_at
from ivideogpt.data.convert.lerobot_metadata import describe
from ivideogpt.data.convert.source_episode import JpegFrames
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.shard import encode_frames
from ivideogpt.data.store.writer import convert_to_store

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
FPS, HEIGHT, WIDTH = 10, 48, 64
LENGTHS = (7, 14, 5)
TASKS = ("push the cube", "open the drawer")
EXACT = ("libx264rgb", {"qp": "0", "g": "8", "bf": "3"}, "rgb24")
LOSSY = ("libsvtav1", {"crf": "30", "g": "2", "preset": "12"}, "yuv420p")


def brightness(episode, count):
    """Of each frame of an episode: no two frames of the dataset have the same."""
    return 9 * (np.arange(count) + sum(LENGTHS[:episode])) + 10


def drawn(episode):
    values = brightness(episode, LENGTHS[episode]).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(values), HEIGHT, WIDTH, 3)).copy()


def encode(path, frames, kind=EXACT, first=0):
    codec, options, pixels = kind
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = index + first
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    if codec == "libsvtav1" and sys.platform == "linux":
        # Where it may, as root, this encoder gives the process real-time priority, which starves everything else.
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def image(frame, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def feature(dtype, *shape, names=None, **more):
    return {"dtype": dtype, "shape": list(shape), "names": names, **more}


FEATURES = {
    TOP: feature("video", HEIGHT, WIDTH, 3, names=["height", "width", "channels"]),
    WRIST: feature("image", HEIGHT, WIDTH, 3, names=["height", "width", "channels"]),
    "observation.images.depth": feature("video", HEIGHT, WIDTH, 1, info={"video.is_depth_map": True}),
    "observation.state": feature("float32", 3, names=["x", "y", "z"]),
    "observation.effort": feature("float32", 2, 2),
    "action": feature("float32", 2, names={"motors": ["shoulder", "elbow"]}),
    "next.reward": feature("float32", 1),
    "next.done": feature("bool", 1),
    "note": feature("string", 1),
    **{name: feature("int64", 1) for name in ("frame_index", "episode_index", "index", "task_index")},
    "timestamp": feature("float32", 1),
}

COUNTERS = {name: FEATURES[name] for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")}
LIBERO = ("image", "wrist_image")


def rows(episode, image_kind="PNG"):
    """The columns of one episode."""
    random, count = np.random.default_rng(episode), LENGTHS[episode]
    return {
        WRIST: [{"bytes": image(255 - frame, image_kind), "path": "x.png"} for frame in drawn(episode)],
        "observation.state": random.normal(size=(count, 3)).astype(np.float32).tolist(),
        "observation.effort": random.normal(size=(count, 2, 2)).astype(np.float32).tolist(),
        "action": random.normal(size=(count, 2)).astype(np.float32).tolist(),
        "next.reward": np.arange(count, dtype=np.float32).tolist(),
        "next.done": [index == count - 2 for index in range(count)],
        "note": ["words"] * count,
        "frame_index": list(range(count)),
        "episode_index": [episode] * count,
        "index": [sum(LENGTHS[:episode]) + index for index in range(count)],
        "task_index": [episode % 2] * count,
        "timestamp": arrow.array(np.arange(count, dtype=np.float32) / np.float32(FPS)),
    }


def info(version, **changes):
    newest = version.startswith("v3")
    chunk = "chunk-{chunk_index:03d}/file-{file_index:03d}" if newest else "chunk-{episode_chunk:03d}"
    last = "" if newest else "/episode_{episode_index:06d}"
    video = f"videos/{{video_key}}/{chunk}.mp4" if newest else f"videos/{chunk}/{{video_key}}{last}.mp4"
    return {
        "codebase_version": version,
        "robot_type": "so101",
        "fps": FPS,
        "chunks_size": 2,
        "splits": {"train": "0:2", "validation": "2:3"},
        "data_path": f"data/{chunk}{last}.parquet",
        "video_path": video,
        "features": FEATURES,
    } | changes


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_rows(path, *tables):
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [arrow.table(table) for table in tables]
    with parquet.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def write_v2(root, kind=EXACT, version="v2.1", image_kind="PNG", **changes):
    write_json(root / "meta" / "info.json", info(version, **changes))
    lines = [
        {"episode_index": index, "tasks": [TASKS[index % 2]], "length": count} for index, count in enumerate(LENGTHS)
    ]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(TASKS)]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n")
    for index in range(len(LENGTHS)):
        chunk = f"chunk-{index // 2:03d}"
        write_rows(root / "data" / chunk / f"episode_{index:06d}.parquet", rows(index, image_kind))
        encode(root / "videos" / chunk / TOP / f"episode_{index:06d}.mp4", drawn(index), kind)
    return root


def write_v3(root, kind=EXACT, version="v3.0", image_kind="PNG", **changes):
    """Episodes 0 and 1 lie in one video, 2 in another; all rows in one file."""
    write_json(root / "meta" / "info.json", info(version, **changes))
    tables = [rows(index, image_kind) for index in range(len(LENGTHS))]
    write_rows(root / "data" / "chunk-000" / "file-000.parquet", *tables)
    encode(root / "videos" / TOP / "chunk-000" / "file-000.mp4", np.concatenate([drawn(0), drawn(1)]), kind)
    encode(root / "videos" / TOP / "chunk-000" / "file-001.mp4", drawn(2), kind)
    seconds = [0, LENGTHS[0] / FPS, 0]
    listing = {
        "episode_index": [0, 1, 2],
        "tasks": [[TASKS[index % 2]] for index in range(3)],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 0],
        "dataset_from_index": [0, 7, 21],
        "dataset_to_index": [7, 21, 26],
        f"videos/{TOP}/chunk_index": [0, 0, 0],
        f"videos/{TOP}/file_index": [0, 0, 1],
        f"videos/{TOP}/from_timestamp": seconds,
        f"videos/{TOP}/to_timestamp": [start + count / FPS for start, count in zip(seconds, LENGTHS, strict=True)],
        "stats/action/min": [[0.0, 0.0]] * 3,
    }
    write_rows(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", listing)
    write_rows(root / "meta" / "tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TASKS)})
    write_json(root / "meta" / "stats.json", {"action": {"min": [-2, -3], "max": [2, float("nan")], "mean": [0, 0]}})
    return root


WRITERS = {"v2.0": write_v2, "v2.1": write_v2, "v3.0": write_v3}
both = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def episodes(source, **options):
    return [episode for task in lerobot.tasks(source, **options) for episode in task.read()]


# Rows and frames


@pytest.mark.parametrize("version", WRITERS)
def test_every_row_and_every_frame_is_the_right_one(tmp_path, version):
    found = episodes(WRITERS[version](tmp_path, version=version))
    assert [(episode.key, episode.split) for episode in found] == [
        ("episode_000000", "train"),
        ("episode_000001", "train"),
        ("episode_000002", "val"),
    ]
    for index, episode in enumerate(found):
        true = rows(index)
        assert np.array_equal(episode.cameras[TOP], drawn(index))
        assert np.array_equal(episode.cameras[WRIST], 255 - drawn(index))
        assert np.array_equal(episode.actions[:-1], np.float32(true["action"])[:-1]) and not episode.actions[-1].any()
        assert np.array_equal(episode.state, np.float32(true["observation.state"]))
        assert np.array_equal(episode.arrays["observation.effort"], np.float32(true["observation.effort"]))
        assert list(episode.arrays) == ["observation.effort"]
        assert episode.rewards.tolist() == [*range(LENGTHS[index] - 1), 0]
        assert episode.terminated.tolist() == true["next.done"] and episode.terminated.dtype == bool
        assert episode.text == TASKS[index % 2] and episode.fps == FPS and episode.camera == TOP


@pytest.mark.parametrize("version", WRITERS)
def test_the_end_of_an_episode_that_the_last_row_holds_is_kept(tmp_path, version, monkeypatch):
    """A row's reward and end follow its action, and the last action leads to no recorded frame."""
    recorded = rows

    def rows_with_a_late_end(episode, image_kind="PNG"):
        count = LENGTHS[episode]
        ends = {"next.done": np.arange(count) == count - 1, "next.reward": np.eye(count, dtype=np.float32)[-1]}
        return recorded(episode, image_kind) | ends

    monkeypatch.setitem(globals(), "rows", rows_with_a_late_end)
    root = WRITERS[version](tmp_path / "data", version=version)
    for index, episode in enumerate(episodes(root)):
        assert episode.terminated.tolist() == [False] * (LENGTHS[index] - 2) + [True, False]
        assert episode.rewards.tolist() == [0] * (LENGTHS[index] - 2) + [1, 0]
        assert episode.meta["last_reward"] == 1 and episode.meta["replaced_reward"] == 0
        assert episode.meta["last_action"] == recorded(index)["action"][-1]
    summary = convert_to_store(lerobot.tasks(root), tmp_path / "store", facts=StoreFacts(name="cubes"), workers=0)
    assert "3 ends of episodes (moved to the last recorded transition)" in str(summary)


@both
def test_an_end_before_the_last_row_stays_where_it_is(tmp_path, version):
    episode = episodes(WRITERS[version](tmp_path))[0]  # the last row repeats the one before
    assert episode.terminated.tolist() == [False] * 5 + [True, False]
    assert episode.rewards[-2] == LENGTHS[0] - 2 and episode.meta["last_reward"] == LENGTHS[0] - 1
    assert "replaced_reward" not in episode.meta


@both
def test_names_and_ranges_of_the_numbers_are_kept(tmp_path, version):
    episode = episodes(WRITERS[version](tmp_path))[0]
    assert [(field.name, field.size) for field in episode.action_fields] == [
        ("action/shoulder", 1),
        ("action/elbow", 1),
    ]
    assert episode.meta["state_names"] == [f"observation.state/{name}" for name in "xyz"]
    assert episode.meta["robot"] == "so101" and episode.meta["left_out"] == ["observation.images.depth", "note"]
    assert episode.meta["ranges"] == ({"action": {"min": [-2, -3], "max": [2, None]}} if version == "v3.0" else {})


@both
def test_frames_of_a_lossy_video_are_the_right_ones(tmp_path, version):
    if LOSSY[0] not in av.codecs_available:
        pytest.skip(f"PyAV has no {LOSSY[0]} here")
    for index, episode in enumerate(episodes(WRITERS[version](tmp_path, LOSSY))):
        seen = episode.cameras[TOP].mean(axis=(1, 2, 3))
        assert np.abs(seen - brightness(index, LENGTHS[index])).max() < 4  # frames are 9 apart


def test_jpeg_cells_are_kept_and_paths_are_followed(tmp_path):
    root = write_v2(tmp_path, image_kind="JPEG")
    stored = episodes(root)[0].cameras[WRIST]
    assert isinstance(stored, JpegFrames) and stored.files[3] == image(255 - drawn(0)[3], "JPEG")
    cells = [{"bytes": None, "path": f"images/{index}.png"} for index in range(LENGTHS[0])]
    (root / "images").mkdir()
    for cell, frame in zip(cells, drawn(0), strict=True):
        (root / cell["path"]).write_bytes(image(frame))
    write_rows(root / "data" / "chunk-000" / "episode_000000.parquet", rows(0) | {WRIST: cells})
    assert np.array_equal(episodes(root)[0].cameras[WRIST], drawn(0))
    (root / "images" / "2.png").unlink()
    with pytest.raises(UserError, match="images/2.png, row 2 of observation.images.wrist of episode 0, is not there"):
        episodes(root)


def test_a_video_that_starts_late_is_counted_from_its_first_frame(tmp_path):
    root = write_v3(tmp_path)
    encode(root / "videos" / TOP / "chunk-000" / "file-001.mp4", drawn(2), first=4)
    assert np.array_equal(episodes(root)[2].cameras[TOP], drawn(2))


def test_an_episode_deep_in_a_long_video_is_found(tmp_path):
    root = write_v3(tmp_path)
    grey = np.full((90, HEIGHT, WIDTH, 3), 255, np.uint8)
    encode(root / "videos" / TOP / "chunk-000" / "file-001.mp4", np.concatenate([grey, drawn(2), grey]))
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    listing = parquet.read_table(path).to_pydict()
    listing[f"videos/{TOP}/from_timestamp"][2] = 9.0001  # a rounded sum of durations
    listing[f"videos/{TOP}/to_timestamp"][2] = 9.5001
    write_rows(path, listing)
    assert np.array_equal(episodes(root)[2].cameras[TOP], drawn(2))


@pytest.mark.parametrize("first", [0, 5, 17, 18, 31, 100, 271, 299])
def test_frames_that_are_stored_in_another_order_than_shown_are_found(tmp_path, first):
    frames = np.zeros((300, HEIGHT, WIDTH, 3), np.uint8)
    frames += (np.arange(300) * 37 % 200 + 20).astype(np.uint8)[:, None, None, None]
    encode(tmp_path / "a.mp4", frames, ("libx264", {"crf": "18", "g": "12", "bf": "3"}, "yuv420p"))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    numbers = list(range(first, min(first + 25, 300)))
    found = frames_at(tmp_path / "a.mp4", [number / FPS for number in numbers], FPS)
    assert np.abs(found.astype(int) - frames[numbers]).max() < 5


def test_many_large_frames_become_the_jpeg_files_that_a_store_would_keep(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 3), np.uint8).repeat(64, axis=1).repeat(64, axis=2)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 128, 192, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert np.array_equal(frames_at(tmp_path / "a.mp4", np.arange(9) / FPS, FPS), frames)
    monkeypatch.setattr(frame_files, "LARGEST_ARRAY", 4 * frames[0].nbytes)
    files = [image(frame) for frame in frames]
    for found in (
        frames_at(tmp_path / "a.mp4", np.arange(9) / FPS, FPS),
        frame_files.whole_video(tmp_path / "a.mp4")[0],
        frame_files.image_frames(((str(i), file) for i, file in enumerate(files)), "images"),
    ):
        assert isinstance(found, JpegFrames) and (found.height, found.width, found.fast) == (128, 192, False)
        assert found.files == encode_frames(frames)


def test_columns_of_other_names_are_understood(tmp_path):
    names = {"action": "actions", "observation.state": "observation.state.arm", "next.done": "done"}
    features = {names.get(name, name): value for name, value in FEATURES.items()}
    features["observation.state.hand"] = feature("float32", 1)
    root = write_v2(tmp_path, features=features)
    for index in range(3):
        table = {names.get(name, name): value for name, value in rows(index).items()}
        table["observation.state.hand"] = np.arange(LENGTHS[index], dtype=np.float32)
        write_rows(root / "data" / f"chunk-{index // 2:03d}" / f"episode_{index:06d}.parquet", table)
    episode = episodes(root)[0]
    assert episode.actions.shape == (7, 2) and episode.state.shape == (7, 4) and episode.terminated[-2]
    assert episode.state[:, 3].tolist() == list(range(7))
    assert episode.meta["state_names"][-1] == "observation.state.hand"


def test_the_columns_of_copies_of_libero_are_understood(tmp_path):
    pictures = {name: feature("image", HEIGHT, WIDTH, 3, names=["height", "width", "channel"]) for name in LIBERO}
    numbers = {"state": feature("float32", 8, names=["state"]), "actions": feature("float32", 7, names=["actions"])}
    root = write_v2(tmp_path, version="v2.0", features=pictures | numbers | COUNTERS)
    tables = []
    for index, count in enumerate(LENGTHS):
        random, table = np.random.default_rng(index), rows(index)
        columns = {name: table[name] for name in COUNTERS}
        columns |= {name: random.normal(size=(count, width)).tolist() for name, width in (("state", 8), ("actions", 7))}
        columns |= {
            name: [{"bytes": image(frame + place)} for frame in drawn(index)] for place, name in enumerate(LIBERO)
        }
        write_rows(root / "data" / f"chunk-{index // 2:03d}" / f"episode_{index:06d}.parquet", columns)
        tables.append(columns)
    for episode, columns in zip(episodes(root), tables, strict=True):
        assert episode.camera == "image" and sorted(episode.cameras) == list(LIBERO)
        assert np.allclose(episode.actions[:-1], columns["actions"][:-1])  # beside the picture that it was taken at
        assert np.allclose(episode.state, columns["state"]) and episode.rewards is None


def test_an_instruction_that_changes_is_kept_whole(tmp_path):
    root = write_v2(tmp_path)
    write_rows(root / "data/chunk-000/episode_000000.parquet", rows(0) | {"task_index": [1, 1, 1, 0, 0, 0, 1]})
    assert episodes(root)[0].text == "open the drawer; push the cube"
    assert episodes(root)[0].meta["tasks"] == ["open the drawer", "push the cube"]


# Options


@both
def test_cameras_can_be_chosen(tmp_path, version):
    root = WRITERS[version](tmp_path)
    assert episodes(root, camera=WRIST)[0].camera == WRIST
    assert list(episodes(root, cameras=[WRIST])[0].cameras) == [WRIST]
    assert list(episodes(root, cameras=["wrist"], camera="wrist")[0].cameras) == [WRIST]
    with pytest.raises(
        UserError, match="has no camera 'front'; it has observation.images.top, observation.images.wrist"
    ):
        lerobot.tasks(root, camera="front")
    with pytest.raises(UserError, match="has no camera 'observation.images.top'"):
        lerobot.tasks(root, cameras=[WRIST], camera=TOP)


def test_shards_have_about_as_many_pictures_and_can_be_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "PICTURES_A_SHARD", 14)
    tasks = pickle.loads(pickle.dumps(lerobot.tasks(write_v3(tmp_path))))
    assert [task.name for task in tasks] == ["train-00000", "train-00001", "val-00000"]
    assert [episode.key for episode in tasks[1].read()] == ["episode_000001"]


def test_every_so_many_episodes_may_be_held_out(tmp_path):
    found = [(episode.split, episode.key[-1]) for episode in episodes(write_v2(tmp_path), val_every=2)]
    assert found == [("train", "1"), ("val", "0"), ("val", "2")]
    with pytest.raises(UserError, match="val_every is 1"):
        lerobot.tasks(tmp_path, val_every=1)


# The Hub


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    root, asked = write_v3(tmp_path / "snapshot"), []

    def download(name, **options):
        asked.append((name, options))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (root / "README.md").write_text("---\ntags:\n- LeRobot\nlicense: apache-2.0\n---\nlicense: other\n")
    assert len(episodes(Path("owner/cubes"), revision="v3.0")) == 3
    name, options = asked[0]
    assert name == "owner/cubes" and options["repo_type"] == "dataset" and options["revision"] == "v3.0"
    assert {"meta/**", "data/**", "videos/**"} <= set(options["allow_patterns"])
    facts = lerobot.facts("owner/cubes")
    assert (facts.name, facts.licence) == ("cubes", "apache-2.0")
    assert facts.url == "https://huggingface.co/datasets/owner/cubes"
    lerobot.tasks("owner/cubes", cameras=[TOP])
    assert [pattern for pattern in asked[-1][1]["allow_patterns"] if "video" in pattern] == [f"videos/*{TOP}/**"]


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    def download(*_, **__):
        raise OSError("404 Not Found\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'owner/none' is no folder here .* at revision 'x' \(404 Not Found\)"):
        lerobot.tasks("owner/none", revision="x")
    with pytest.raises(UserError, match="no folder nowhere; give one with a LeRobot dataset, or a Hub id"):
        lerobot.tasks("nowhere")


def test_facts_of_a_folder_are_its_name(tmp_path):
    facts = lerobot.facts(write_v2(tmp_path / "cubes"))
    assert (facts.name, facts.url, facts.licence) == ("cubes", "", "")


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version 'v1.6'; expected v2.0, v2.1, v3.0"),
        ({"codebase_version": "v4.0"}, "codebase_version 'v4.0'"),
        ({"fps": 0}, "says fps 0; expected a number above 0"),
        ({"fps": None}, "info.json has no 'fps'; it has codebase_version"),
        ({"fps": True}, "says fps True"),
        ({"splits": [1]}, r"says splits \[1\]"),
        ({"chunks_size": "many"}, "chunks_size is 'many'"),
        ({"total_episodes": 4}, "total_episodes 4, but 3 are listed"),
        ({"data_path": "data/{episode_index:999999999d}.parquet"}, "data_path in .*; it may use"),
        ({"data_path": "data/{episode_index.__class__}.parquet"}, "data_path in .*; it may use"),
        ({"features": {"observation.images.top": feature("video", 8, 8, 3, info=[1])}}, "LeRobot description"),
        ({"features": ["action"]}, "expected an entry for each column"),
        ({"data_path": "data/{chunk}.parquet"}, "data_path .*; it may use"),
        ({"data_path": "../{episode_index}.parquet", "video_path": None}, "lies outside of it"),
        ({"splits": {"train": "all"}}, "split 'train' is 'all'; expected numbers of episodes"),
        ({"features": {"action": feature("float32", 2)}}, "has no camera; expected a feature of dtype video or image"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        lerobot.tasks(write_v2(tmp_path, **changes))


@both
@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes", "data", "videos"])
def test_a_missing_part_is_named(tmp_path, version, name):
    root = WRITERS[version](tmp_path)
    parts = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).as_posix().startswith(name)]
    parts[0].unlink()
    with pytest.raises(
        UserError, match=str(parts[0].name) if version == "v2.1" or name != "meta/episodes" else "lists no"
    ):
        episodes(root)


@both
@pytest.mark.parametrize("suffix", [".parquet", ".mp4", ".json"])
def test_damage_is_named(tmp_path, version, suffix):
    root = WRITERS[version](tmp_path)
    path = next(path for path in sorted(root.rglob(f"*{suffix}")) if path.name != "stats.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name} (is|cannot be)"):
        episodes(root)


def test_a_video_that_is_too_short_is_refused(tmp_path):
    root = write_v2(tmp_path)
    encode(root / "videos" / "chunk-000" / TOP / "episode_000001.mp4", drawn(1)[:11])
    with pytest.raises(UserError, match=r"episode_000001.mp4 has no frame at 1.100 s \(11 of 14 frames were found"):
        episodes(root)


def change_listing(root, **columns):
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    write_rows(path, parquet.read_table(path).to_pydict() | columns)


def test_rows_are_found_in_another_file_than_the_list_names(tmp_path):
    root = write_v3(tmp_path / "data")
    tables = [rows(index) for index in range(len(LENGTHS))]
    write_rows(root / "data" / "chunk-000" / "file-000.parquet", tables[0])
    write_rows(root / "data" / "chunk-000" / "file-001.parquet", *tables[1:])  # the list says file 0 for all
    stored = episodes(root)
    assert [np.array_equal(episode.cameras[TOP], drawn(index)) for index, episode in enumerate(stored)] == [True] * 3
    assert [episode.meta["source"][-11:] for episode in stored] == ["000.parquet", "001.parquet", "001.parquet"]
    summary = convert_to_store(lerobot.tasks(root), tmp_path / "store", facts=StoreFacts(name="cubes"), workers=0)
    assert "2 wrong file names" in str(summary)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.arange(14) / 9.3, "episode 1 .* has row 13 at 2.098 s of the video, outside .* 0.700 s to 2.100 s"),
        (0.7 + np.arange(14) / 10, "episode 1 .* has row 7 at 2.100 s of the video, outside"),
        (np.arange(14) / 10 - 0.7, "episode 1 .* has row 0 at 0.000 s of the video, outside"),
        ([float("nan")] * 14, "timestamps that are no number of seconds"),
    ],
)
def test_rows_outside_of_their_window_are_refused(tmp_path, times, message):
    root = write_v3(tmp_path)
    timed = rows(1) | {"timestamp": arrow.array(np.float32(times))}
    write_rows(root / "data" / "chunk-000" / "file-000.parquet", rows(0), timed, rows(2))
    with pytest.raises(UserError, match=message):
        episodes(root)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "to_timestamp",
            [0.9, 2.1, 0.5],
            r"episodes 0 and 1 share frames of .*file-000.mp4: the first ends at 0.900 s",
        ),
        ("to_timestamp", [0.7, 0.7, 0.5], "episode 1 .* from 0.7 s to 0.7 s; expected an end after the start"),
        ("to_timestamp", [0.7, float("nan"), 0.5], "to_timestamp is nan; expected seconds"),
        ("from_timestamp", [0.0, -0.7, 0.0], "from_timestamp is -0.7; expected seconds"),
    ],
)
def test_windows_that_cannot_be_right_are_refused(tmp_path, column, values, message):
    root = write_v3(tmp_path)
    change_listing(root, **{f"videos/{TOP}/{column}": values})
    with pytest.raises(UserError, match=message):
        lerobot.tasks(root)


@pytest.mark.parametrize("rate", [20, 30, 60])
def test_of_a_video_with_a_higher_rate_the_nearest_frames_are_taken(tmp_path, rate):
    shades = np.arange(2 * rate, dtype=np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (len(shades), HEIGHT, WIDTH, 3))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    times = np.arange(15) / 10 + 0.4 / rate  # a clock that is a little late
    assert frames_at(tmp_path / "a.mp4", times, 10)[:, 0, 0, 0].tolist() == [row * rate // 10 for row in range(15)]


def test_tasks_that_are_one_text_are_one_instruction(tmp_path):
    root = write_v3(tmp_path)
    change_listing(root, tasks=["pick it"] * 3)
    (root / "meta" / "tasks.parquet").unlink()
    assert episodes(root)[0].text == "pick it"
    change_listing(root, tasks=[0.5] * 3)
    with pytest.raises(UserError, match="file-000.parquet says tasks 0.5; expected a list of texts"):
        lerobot.tasks(root)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname"])
def test_images_outside_of_the_dataset_are_refused(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(image(drawn(0)[0]))
    root = write_v2(tmp_path / "data")
    write_rows(root / "data/chunk-000/episode_000000.parquet", rows(0) | {WRIST: [{"bytes": None, "path": path}] * 7})
    with pytest.raises(UserError, match="lies outside of it"):
        episodes(root)


@pytest.mark.parametrize("line", ['{"length": "text"}', '{"length": [1]}', '{"tasks": 0.5}', '{"episode_index": -1}'])
def test_lists_of_other_types_are_refused(tmp_path, line):
    root = write_v2(tmp_path)
    path = root / "meta" / "episodes.jsonl"
    path.write_text(json.dumps({"episode_index": 0, "length": 7} | json.loads(line)))
    with pytest.raises(UserError, match="episodes.jsonl says"):
        lerobot.tasks(root)


def test_what_is_left_out_is_said(tmp_path):
    omitted = [str(entry) for entry in lerobot.tasks(write_v2(tmp_path), cameras=[TOP]).omissions]
    assert omitted == [
        "1 depth cameras (only RGB pictures are stored: observation.images.depth)",
        f"1 cameras (not chosen: {WRIST})",
        "1 columns (they hold no numbers: note)",
    ]


def change(root, **columns):
    path = root / "data" / "chunk-000" / "episode_000001.parquet"
    table = {**rows(1), **columns}
    write_rows(path, {name: column for name, column in table.items() if column is not None})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"action": None}, "has no column 'action'; it has observation.images.wrist"),
        ({"action": [[0.0, float("nan")]] * 14}, "action of episode 1 of .*episode_000001.parquet has NaN"),
        ({"action": [[0.0, 1.0], [1.0]] * 7}, "action of .* has rows of different lengths"),
        ({"next.reward": [[0.0, 1.0]] * 14}, "reward of episode 1 .* has 2 columns"),
        ({"episode_index": [0] * 14}, "has no rows of episode 1"),
        ({"episode_index": [1] * 13 + [2]}, "has 13 rows; expected 14"),
        ({"frame_index": [*range(12), 13, 12]}, "rows of episode 1 out of order"),
        ({"timestamp": [0.0] * 14}, "two rows for one frame"),
        ({WRIST: [{"bytes": None, "path": None}] * 14}, "row 0 of observation.images.wrist of episode 1 .* no image"),
        ({WRIST: [{"bytes": b"no", "path": ""}] * 14}, "row 0 of .* is not a readable image"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, columns, said):
    root = write_v2(tmp_path)
    change(root, **columns)
    with pytest.raises(UserError, match=said):
        episodes(root)


def test_an_incomplete_list_of_episodes_is_refused(tmp_path):
    root = write_v3(tmp_path)
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    listing = parquet.read_table(path).to_pydict()
    del listing[f"videos/{TOP}/from_timestamp"]
    write_rows(path, listing)
    with pytest.raises(UserError, match=f"file-000.parquet has no 'videos/{TOP}/from_timestamp'; it has episode_index"):
        describe(root)
    (tmp_path / "v2").mkdir()
    root = write_v2(tmp_path / "v2")
    (root / "meta" / "episodes.jsonl").write_text('{"episode_index": 0}\n')
    with pytest.raises(UserError, match="episodes.jsonl has no 'length'; it has episode_index"):
        describe(root)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    root = write_v3(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed; run: pip install 'ivideogpt\[data\]'"):
        lerobot.tasks(root)
