"""Open X-Embodiment without TensorFlow: equal to what TensorFlow Datasets reads, and clear where it cannot be read."""

import hashlib
import io
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.catalog import DATASETS, dataset_info
from ivideogpt.data.convert import oxe, rlds_folder
from ivideogpt.data.convert.jpeg import decode_frames
from ivideogpt.data.convert.source_episode import ActionField, JpegFrames, Omission

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
SIZE = (16, 24)


def jpeg(seed, size=SIZE):
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(picture, 90, "RGB", "420")


def png(picture):
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "png")
    return held.getvalue()


def features(made, **observation):
    """Of a dataset like bridge."""
    seen = {"image": made.image(*SIZE, 3), "state": made.tensor("float32", 2)} | observation
    return made.group(
        steps=made.sequence(
            made.group(
                observation=made.group(**seen),
                action=made.group(
                    world_vector=made.tensor("float32", 2), Zoom=made.tensor("float64"), open=made.tensor("bool")
                ),
                reward=made.tensor("float32"),
                is_terminal=made.tensor("bool"),
                language_instruction=made.text(),
            )
        ),
        episode_metadata=made.group(file_path=made.text(), trial=made.tensor("int32")),
    )


def episode(made, number, steps=3, without=(), **more):
    seed = 100 * number
    values = {
        "steps/observation/image": [jpeg(seed + t) for t in range(steps)],
        "steps/observation/state": np.arange(2 * steps, dtype=np.float32) + seed,
        "steps/action/world_vector": np.arange(2 * steps, dtype=np.float32) / 2,
        "steps/action/Zoom": np.full(steps, seed + 0.5, np.float32),
        "steps/action/open": np.arange(steps) % 2,
        "steps/reward": np.eye(1, steps, steps - 1, dtype=np.float32)[0],
        "steps/is_terminal": np.arange(steps) == steps - 1,
        "steps/language_instruction": [f"task {number}".encode()] * steps,
        "episode_metadata/file_path": [f"/robot/{number}".encode()],
        "episode_metadata/trial": np.array([number]),
    } | more
    return made.example({name: value for name, value in values.items() if name not in without})


@pytest.fixture
def bridge(made, tmp_path):
    """``bridge(train=[[...], [...]])``: shards of numbers of episodes become a folder above bridge/0.1.0."""

    def build(name="bridge", seen=None, make=episode, template=None, **splits):
        shards = {split: [[make(made, i) for i in shard] for shard in held] for split, held in splits.items()}
        info = dataset_info(name)
        folder = tmp_path / info.source / info.version
        made.write_dataset(folder, info.source, features(made, **(seen or {})), shards, template)
        return tmp_path

    return build


def read(source, name="bridge", **options):
    return [found for _, task in oxe.oxe_tasks(name, source, **options) for found in task()]


def test_every_episode_equals_what_tensorflow_datasets_reads():
    if not (SHARED / "rlds").exists():
        pytest.skip(f"{SHARED / 'rlds'} is not here")
    reference = np.load(SHARED / "rlds" / "bridge_tfds_reference.npz")
    keys = {name.split("/")[0] for name in reference.files}
    found = {episode.key: episode for episode in read(SHARED / "rlds")}
    assert set(found) == keys and len(keys) == 68
    for key, episode in found.items():
        frames = decode_frames(episode.cameras["image"])
        assert hashlib.sha256(frames.tobytes()).hexdigest() == str(reference[f"{key}/frames_sha256"]), key
        assert len(episode) == reference[f"{key}/num_frames"]
        if f"{key}/frames" in reference.files:
            np.testing.assert_array_equal(frames, reference[f"{key}/frames"])
        actions, reward = reference[f"{key}/actions"], reference[f"{key}/reward"]
        np.testing.assert_array_equal(episode.actions[:-1], actions[:-1])
        assert not episode.actions[-1].any() and not episode.rewards[-1]
        np.testing.assert_array_equal(np.float32(episode.meta["last_action"]), actions[-1])
        np.testing.assert_array_equal([*episode.rewards[:-1], episode.meta["last_reward"]], reward)
        assert (episode.split == "val") == (key == "test_eps_00000000")


def test_steps_become_an_episode(bridge):
    (found,) = read(bridge(train=[[7]]))
    assert (found.key, found.split, found.camera) == ("train_eps_00000000", "val", "image")
    assert found.action_fields == (
        ActionField(name="action/Zoom", size=1),
        ActionField(name="action/open", size=1),
        ActionField(name="action/world_vector", size=2),
    )
    np.testing.assert_array_equal(found.actions, [[700.5, 0, 0, 0.5], [700.5, 1, 1, 1.5], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.rewards, [0, 0, 0])
    np.testing.assert_array_equal(found.terminated, [False, True, False])
    np.testing.assert_array_equal(found.state, [[700, 701], [702, 703], [704, 705]])
    assert {value.dtype.name for value in (found.actions, found.rewards, found.state)} == {"float32"}
    assert (found.text, found.fps) == ("task 7", None)
    assert found.meta == {
        "number": 0,
        "file": "bridge-train.tfrecord-00000-of-00001",
        "record": 0,
        "last_action": [700.5, 0, 2, 2.5],
        "last_reward": 1,
        "episode_metadata": {"file_path": "/robot/7", "trial": 7},
    }


def test_jpeg_files_are_kept_as_they_are(bridge):
    (found,) = read(bridge(train=[[7]]))
    frames = found.cameras["image"]
    assert isinstance(frames, JpegFrames) and frames.fast and (frames.height, frames.width) == SIZE
    assert list(frames.files) == [jpeg(700), jpeg(701), jpeg(702)]


def test_pictures_that_are_no_jpeg_are_decoded(bridge):
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)

    def mixed(made, number):
        return episode(made, number, 2, **{"steps/observation/image": [png(picture), jpeg(1)]})

    (found,) = read(bridge(train=[[0]], make=mixed))
    np.testing.assert_array_equal(found.cameras["image"][0], picture)
    np.testing.assert_array_equal(found.cameras["image"][1], simplejpeg.decode_jpeg(jpeg(1), fastdct=True))


def test_names_and_splits_follow_the_official_order(bridge):
    # 18 shards: the first is read in two turns, the last two come after the other fifteen have ended.
    lengths = [20, *[1] * 15, 2, 1]
    bounds = np.cumsum([0, *lengths])
    shards = [list(range(low, high)) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]

    def tiny(made, number):
        return episode(made, number, 1)

    found = {e.key: e for e in read(bridge(train=shards, val=[[0, 1]], make=tiny))}
    told = [found[f"train_eps_{i:08d}"].meta["episode_metadata"]["trial"] for i in range(38)]
    assert told == [*range(16), *range(20, 35), *range(16, 20), 35, 36, 37]
    assert [key for key, e in found.items() if e.split == "val"] == ["train_eps_00000000"]
    assert found["val_eps_00000001"].meta["number"] == 39
    assert sorted(e.meta["number"] for e in found.values()) == list(range(40))


def test_episodes_of_the_test_set_of_robonet_are_for_neither_split(bridge, monkeypatch):
    monkeypatch.setattr(oxe, "tested_elsewhere", lambda: frozenset({"train_eps_00000000", "train_eps_00000002"}))
    source = bridge("robo_net", train=[[0, 1, 2, 3]])
    assert [found.split for found in read(source, "robo_net")] == ["test", "train", "test", "train"]


def test_a_task_is_a_group_of_files_and_can_be_sent_to_another_process(bridge):
    source = bridge(train=[[0], [1], [2]], val=[[3]])
    together = oxe.oxe_tasks("bridge", source)
    assert [name for name, _ in together] == ["train-00000-00002", "val-00000"]
    alone = oxe.oxe_tasks("bridge", source, task_bytes=1)
    assert [name for name, _ in alone] == ["train-00000", "train-00001", "train-00002", "val-00000"]
    name, task = pickle.loads(pickle.dumps(alone[1]))
    assert [found.key for found in task()] == ["train_eps_00000001"]
    assert [(task.name, len(list(task.read()))) for task in oxe.tasks(source, name="bridge")] == [
        ("train-00000-00002", 3),
        ("val-00000", 1),
    ]


def test_the_facts_name_source_and_fields(bridge):
    facts = oxe.facts(bridge(train=[[0]]), name="bridge")
    assert (facts.name, facts.url, facts.base_stride) == ("bridge", "gs://gresearch/robotics/bridge/0.1.0", 5)
    assert facts.notes["state_fields"] == [["steps/observation/state", 2]]
    assert facts.notes["text_field"] == "steps/language_instruction"
    assert facts.notes["cameras"] == ["image"]


def test_all_cameras_of_the_catalogue_are_read_the_models_first(made, bridge):
    views = {"agentview_rgb": made.image(*SIZE, 3), "eye_in_hand_rgb": made.image(8, 8, 3)}

    def two(made, number):
        pictures = {"steps/observation/agentview_rgb": [jpeg(1)] * 3}
        return episode(made, number, **pictures, **{"steps/observation/eye_in_hand_rgb": [jpeg(2, (8, 8))] * 3})

    source = bridge("viola", seen=views, make=two, train=[[0]])
    (found,) = read(source, "viola")
    assert found.camera == "agentview_rgb" and list(found.cameras) == ["agentview_rgb", "eye_in_hand_rgb"]
    (found,) = read(source, "viola", cameras=("eye_in_hand_rgb",))
    assert list(found.cameras) == ["eye_in_hand_rgb"]
    with pytest.raises(UserError, match="no camera 'top'.*it has agentview_rgb, eye_in_hand_rgb, image"):
        read(source, "viola", cameras=("top",))


@pytest.mark.parametrize("view", [1, 4])
def test_numbered_views_read_one_source_with_another_camera(made, bridge, view):
    views = {f"image_{number}": made.image(*SIZE, 3) for number in (1, 2, 3, 4)}
    views["depth_1"] = made.image(*SIZE, 1, dtype="uint16")

    def four(made, number):
        return episode(made, number, **{f"steps/observation/image_{i}": [jpeg(i)] * 3 for i in (1, 2, 3, 4)})

    (found,) = read(bridge(f"uiuc_d3field{view}", seen=views, make=four, train=[[0]]), f"uiuc_d3field{view}")
    assert list(found.cameras) == [f"image_{view}"] and found.cameras[found.camera].files[0] == jpeg(view)


@pytest.mark.parametrize("name", sorted(name for name, row in DATASETS.items() if row.source))
def test_every_dataset_of_the_official_mixtures_can_be_read(made, tmp_path, name):
    info = dataset_info(name)
    only = info.converter_camera_key
    if name in ("stanford_robocook_converted_externally_to_rlds", "uiuc_d3field"):
        only = "image_1"  # the official converter asks for a camera that these do not have
    elif name.startswith(("berkeley_mvp", "berkeley_rpt")):
        only = "hand_image"
    tree = made.group(steps=made.sequence(made.group(observation=made.group(**{only: made.image(*SIZE, 3)}))))
    record = made.example({f"steps/observation/{only}": [jpeg(0)]})
    folder = made.write_dataset(tmp_path / info.source / info.version, info.source, tree, {"train": [[record]]})
    for source in (tmp_path, folder.parent, folder):
        (found,) = read(source, name)
        assert found.camera == only and found.actions is None and found.rewards is None and found.state is None


def test_an_instruction_held_as_numbers_is_text(made, bridge):
    codes = np.zeros(8, np.int64)
    codes[:3] = list("é!".encode())

    def coded(made, number):
        more = {"steps/observation/instruction": np.tile(codes, 3)}
        return episode(made, number, without=("steps/language_instruction",), **more)

    source = bridge(seen={"instruction": made.tensor("int32", 8)}, make=coded, train=[[0]])
    file = source / "bridge" / "0.1.0" / "features.json"
    file.write_text(file.read_text().replace("language_instruction", "unused"))
    assert read(source)[0].text == "é!"


def test_large_observations_and_embeddings_are_no_state(made, bridge):
    seen = {
        "a_matrix": made.tensor("float32", 2, 2),
        "cloud": made.sequence(made.tensor("float32", 3)),
        "natural_language_embedding": made.tensor("float32", 4),
        "big": made.tensor("float32", 129),
    }

    def rich(made, number):
        return episode(made, number, **{"steps/observation/a_matrix": np.arange(12, dtype=np.float32)})

    source = bridge(seen=seen, make=rich, train=[[0]])
    assert read(source)[0].state[1].tolist() == [4, 5, 6, 7, 2, 3]
    assert set(oxe.facts(source, name="bridge").notes["fields_left_out"]) == {
        "steps/observation/big",
        "steps/observation/cloud",
        "steps/observation/natural_language_embedding",
    }


def test_a_camera_that_is_not_there_is_named_with_those_that_are(bridge):
    source = bridge("taco_play", train=[[0]])
    message = r"features\.json has no camera 'rgb_static' \(expected steps/observation/rgb_static\); it has image"
    with pytest.raises(UserError, match=message):
        read(source, "taco_play")


def test_a_record_without_a_promised_field_says_what_it_has(bridge):
    def poor(made, number):
        return episode(made, number, without=("steps/action/world_vector",))

    with pytest.raises(UserError, match="no 'steps/action/world_vector'; it has: .*steps/action/Zoom, .*steps/reward"):
        read(bridge(make=poor, train=[[0]]))


def test_an_episode_without_steps_is_left_out_and_reported(bridge):
    def some(made, number):
        return episode(made, number, steps=number)

    first, empty, last = read(bridge(make=some, train=[[1, 0, 2]]))
    assert [first.key, last.key] == ["train_eps_00000000", "train_eps_00000002"]
    assert empty == Omission(items="episodes", reason="they have no steps", names=("train_eps_00000001",))


def test_a_missing_file_is_named_and_may_be_left_out(bridge):
    source = bridge(train=[[0], [1], [2]])
    (source / "bridge" / "0.1.0" / "bridge-train.tfrecord-00001-of-00003").unlink()
    with pytest.raises(UserError, match=r"1 of 3 files are missing, such as .*00001-of-00003; .*--partial"):
        read(source)
    assert [e.key for e in read(source, partial=True)] == ["train_eps_00000000", "train_eps_00000002"]
    assert [name for name, _ in oxe.oxe_tasks("bridge", source, partial=True)] == ["train-00000", "train-00002"]


@pytest.mark.parametrize("held", [[0], [0, 1, 2]])
def test_a_file_with_another_number_of_records_is_named(made, bridge, held):
    source = bridge(train=[[0, 1]])
    file = source / "bridge" / "0.1.0" / "bridge-train.tfrecord-00000-of-00001"
    made.write_records(file, [episode(made, i) for i in held])
    with pytest.raises(UserError, match=rf"holds {len(held)} records; dataset_info\.json says 2"):
        read(source)


def test_a_damaged_file_is_named(bridge):
    source = bridge(train=[[0, 1]])
    file = source / "bridge" / "0.1.0" / "bridge-train.tfrecord-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"00000-of-00001 is damaged between bytes \d+ and \d+"):
        read(source)
    file.write_bytes(content[:-200])
    with pytest.raises(UserError, match="00000-of-00001 ends within the record at byte"):
        read(source)


def test_a_picture_that_cannot_be_decoded_is_named(bridge):
    def broken(made, number):
        return episode(made, number, **{"steps/observation/image": [b"\x89PNG nothing"] * 3})

    with pytest.raises(
        UserError, match="a picture in 'steps/observation/image' of the record at byte 0 .* is not a readable image"
    ):
        read(bridge(make=broken, train=[[0]]))


def test_a_picture_of_gigapixels_is_refused(bridge):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")

    def huge(made, number):
        return episode(made, number, **{"steps/observation/image": [content] * 3})

    with pytest.raises(UserError, match="a picture in 'steps/observation/image'"):
        read(bridge(make=huge, train=[[0]]))


@pytest.fixture
def own_folder(made, tmp_path):
    """A dataset that the catalogue lacks, above ``my_robot/1.2.0``: two cameras, a split for validation."""

    def both(number):
        return episode(made, number, **{"steps/observation/wrist": [jpeg(number + t) for t in range(3)]})

    shards = {"train": [[both(0), both(1)], [both(2)]], "validation": [[both(3)]]}
    made.write_dataset(tmp_path / "my_robot" / "1.2.0", "my_robot", features(made, wrist=made.image(*SIZE, 3)), shards)
    return tmp_path


@pytest.mark.parametrize("place", [".", "my_robot", "my_robot/1.2.0"])
def test_a_dataset_of_any_name_keeps_its_cameras_and_splits(own_folder, place):
    tasks = rlds_folder.tasks(own_folder / place)
    episodes = [episode for task in tasks for episode in task.read()]
    assert [(e.key, e.split) for e in episodes] == [
        *((f"train_eps_{number:08d}", "train") for number in range(3)),
        ("validation_eps_00000000", "val"),
    ]
    assert list(episodes[0].cameras) == ["image", "wrist"] and episodes[0].camera == "image"
    assert rlds_folder.facts(own_folder / place).name == "my_robot"
    held_out = [e.split for task in rlds_folder.tasks(own_folder, val_every=3) for e in task.read()]
    assert held_out == ["val", "train", "train", "val"]
    chosen = rlds_folder.tasks(own_folder, cameras=("wrist",))
    assert next(chosen[0].read()).camera == "wrist" and "steps/observation/image" in str(chosen.omissions)


def test_the_features_of_copies_of_libero_are_understood(made, tmp_path):
    seen = {name: made.image(*SIZE, 3) for name in ("image", "wrist_image")}
    seen |= {"state": made.tensor("float32", 8), "joint_state": made.tensor("float32", 7)}
    ends = {name: made.tensor("bool") for name in ("is_first", "is_last", "is_terminal")}
    numbers = {"reward": made.tensor("float32"), "discount": made.tensor("float32")}
    words = {"language_instruction": made.text(), "observation": made.group(**seen)}
    steps = made.sequence(made.group(action=made.tensor("float32", 7), **numbers, **ends, **words))
    actions = np.arange(21, dtype=np.float32).reshape(3, 7)
    last = np.arange(3) == 2
    record = made.example(
        {
            "steps/observation/image": [jpeg(t) for t in range(3)],
            "steps/observation/wrist_image": [jpeg(10 + t) for t in range(3)],
            "steps/observation/state": np.arange(24, dtype=np.float32),
            "steps/observation/joint_state": np.arange(21, dtype=np.float32),
            "steps/action": actions.ravel(),
            "steps/reward": last.astype(np.float32),
            "steps/discount": np.ones(3, np.float32),
            "steps/is_first": np.arange(3) == 0,
            "steps/is_last": last,
            "steps/is_terminal": last,
            "steps/language_instruction": [b"pick up the bowl"] * 3,
            "episode_metadata/file_path": [b"a.hdf5"],
        }
    )
    described = made.group(steps=steps, episode_metadata=made.group(file_path=made.text()))
    made.write_dataset(
        tmp_path / "libero_spatial_no_noops" / "1.0.0", "libero_spatial", described, {"train": [[record]]}
    )
    (task,) = rlds_folder.tasks(tmp_path)
    (found,) = task.read()
    assert found.camera == "image" and list(found.cameras) == ["image", "wrist_image"]
    assert np.array_equal(found.actions[:-1], actions[:-1]) and found.text == "pick up the bowl"
    assert not found.rewards.any() and found.meta["last_reward"] == 1  # no frame follows the last step
    assert found.terminated.tolist() == [False, True, False]


def test_the_command_of_open_x_embodiment_takes_other_names_too(own_folder, capsys):
    target = str(own_folder / "store")
    assert main(["convert", "oxe", "my_robot", str(own_folder), target, "--workers", "0"]) == 0
    assert "stored 4 episodes with 12 frames" in capsys.readouterr().out
    assert main(["convert", "rlds", str(own_folder / "my_robot"), f"{target}-2", "--workers", "0"]) == 0
    first, second = EpisodeStore(target), EpisodeStore(f"{target}-2")
    assert first.keys == second.keys and first.facts.dataset.name == second.facts.dataset.name == "my_robot"


def test_several_datasets_in_a_folder_are_not_guessed(own_folder):
    shutil.copytree(own_folder / "my_robot", own_folder / "another")
    with pytest.raises(UserError, match="holds 2 datasets with a features.json"):
        rlds_folder.tasks(own_folder)


def test_another_dataset_is_not_taken_for_this_one(bridge):
    folder = bridge(train=[[0]]) / "bridge" / "0.1.0"
    with pytest.raises(UserError, match="holds 'bridge'; expected 'kuka'"):
        read(folder, "kuka")
    with pytest.raises(UserError, match="'bair_robot_pushing' is not in Open X-Embodiment"):
        read(folder, "bair_robot_pushing")


def test_the_catalogue_says_where_each_dataset_lies():
    for name, row in DATASETS.items():
        if row.source:
            assert re.fullmatch(rf"gs://gresearch/robotics/{row.source}/\d+\.\d+\.\d+", row.url), name
            assert row.camera_key not in row.further_cameras
        if row.source != name:
            assert not row.further_cameras or name == "bair_robot_pushing"
