"""Importers that are fuzzed: each writes a small good source, and reads all episodes of it."""

import importlib
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from ivideogpt.data.convert.importers import IMPORTERS
from ivideogpt.data.render import write_mp4

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "convert"))
tfrecord_files = importlib.import_module("tfrecord_files")

COUNT = 4
FRAMES = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 24, 3), dtype=np.uint8)


def _encoded(frame: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def _lerobot_table(**more: list) -> dict[str, list]:
    rows = list(range(COUNT))
    return {
        "action": [[float(row), 1.0] for row in rows],
        "next.reward": [0.0] * COUNT,
        "next.done": [row == COUNT - 1 for row in rows],
        "timestamp": [row / 10 for row in rows],
        "frame_index": rows,
        "episode_index": [0] * COUNT,
        "task_index": [0] * COUNT,
    } | more


def _lerobot_info(version: str, data_path: str, video_path: str, camera: str) -> dict:
    numbers = {name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "task_index")}
    features = {
        "cam": {"dtype": camera, "shape": [16, 24, 3]},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
        "timestamp": {"dtype": "float32", "shape": [1]},
    } | numbers
    paths = {"data_path": data_path, "video_path": video_path}
    return {"codebase_version": version, "fps": 10, "splits": {"train": "0:1"}, "features": features} | paths


def _lerobot_v2(folder: Path) -> None:
    (folder / "meta").mkdir()
    (folder / "data").mkdir()
    info = _lerobot_info("v2.1", "data/{episode_index:06d}.parquet", "v/{episode_index}.mp4", "image")
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    (folder / "meta" / "episodes.jsonl").write_text(json.dumps({"episode_index": 0, "tasks": ["a"], "length": COUNT}))
    (folder / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "a"}))
    cells = [{"bytes": _encoded(frame, "PNG"), "path": "x.png"} for frame in FRAMES]
    pyarrow.parquet.write_table(pyarrow.table(_lerobot_table(cam=cells)), folder / "data" / "000000.parquet")


def _lerobot_v3(folder: Path) -> None:
    for name in ("meta/episodes", "data", "videos"):
        (folder / name).mkdir(parents=True)
    info = _lerobot_info("v3.0", "data/{file_index}.parquet", "videos/{video_key}-{file_index}.mp4", "video")
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    row = {"episode_index": 0, "tasks": ["a"], "length": COUNT, "data/chunk_index": 0, "data/file_index": 0}
    window = {"chunk_index": 0, "file_index": 0, "from_timestamp": 0.0, "to_timestamp": COUNT / 10}
    row |= {f"videos/cam/{name}": value for name, value in window.items()}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "meta" / "episodes" / "0.parquet")
    pyarrow.parquet.write_table(pyarrow.table(_lerobot_table()), folder / "data" / "0.parquet")
    write_mp4(folder / "videos" / "cam-0.mp4", FRAMES, fps=10, shortest_side=16)


def _rlds(folder: Path) -> None:
    tf = tfrecord_files
    observation = tf.group(image=tf.image(16, 24, 3), wrist=tf.image(16, 24, 3, encoding="png"))
    steps = tf.group(
        observation=observation,
        action=tf.tensor("float32", 2, encoding="zlib"),
        is_terminal=tf.tensor("bool"),
        language_instruction=tf.text(),
    )
    record = tf.example(
        {
            "steps/observation/image": [_encoded(frame, "JPEG") for frame in FRAMES],
            "steps/observation/wrist": [_encoded(frame, "PNG") for frame in FRAMES],
            "steps/action": [zlib.compress(np.ones(2, np.float32).tobytes())] * COUNT,
            "steps/is_terminal": np.arange(COUNT) == COUNT - 1,
            "steps/language_instruction": [b"push"] * COUNT,
        }
    )
    tf.write_dataset(folder / "1.0.0", "mine", tf.group(steps=tf.sequence(steps)), {"train": [[record], [record]]})


def _robomimic(folder: Path) -> None:
    with h5py.File(folder / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/image"], demo["obs/joints"] = FRAMES, np.ones((COUNT, 3))
        demo["next_obs/image"], demo["next_obs/joints"] = FRAMES, np.ones((COUNT, 3))
        demo["actions"], demo["rewards"], demo["dones"] = np.ones((COUNT, 2)), np.ones(COUNT), np.eye(COUNT)[-1]
        file["mask/train"] = np.array([b"demo_0"])


def _minari(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "metadata.json").write_text('{"dataset_id": "a-v0", "data_format": "hdf5"}')
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        files = episode.create_dataset("observations/image", (COUNT,), h5py.vlen_dtype(np.uint8))
        for index, frame in enumerate(FRAMES):
            files[index] = np.frombuffer(_encoded(frame, "JPEG"), np.uint8)
        episode["actions"], episode["rewards"] = np.ones((COUNT - 1, 2)), np.ones(COUNT - 1)
        episode["terminations"] = np.zeros(COUNT - 1, bool)


def _folder(folder: Path) -> None:
    write_mp4(folder / "a.mp4", FRAMES, fps=10, shortest_side=16)
    (folder / "a.csv").write_text(",x,y\n" + "".join(f"{row},0.{row},1.5\n" for row in range(COUNT)))
    (folder / "b").mkdir()
    for index, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / "b" / f"{index}.jpg")
    np.save(folder / "b.npy", np.ones((COUNT, 2)))


def _metaworld(folder: Path) -> None:
    frames = np.zeros((COUNT, 9, 16, 16), np.uint8)
    rows = {"action": np.zeros((COUNT, 2), np.float32), "reward": np.zeros((COUNT, 1), np.float32)}
    (folder / "task").mkdir()
    np.savez(folder / "task" / "a.npz", observation=frames, discount=np.ones((COUNT, 1)), **rows)


def _bair(folder: Path) -> None:
    random = np.random.default_rng(0)
    trajectory = {name: random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8) for name in ("image", "aux1_image")}
    trajectory |= {"action": random.normal(size=(30, 4)), "position": random.normal(size=(30, 3))}
    for split in ("train", "test"):
        tfrecord_files.write_bair(folder, [trajectory], split=split)


def _robonet(folder: Path) -> None:
    (folder / "hdf5").mkdir()
    write_mp4(folder / "a.mp4", FRAMES, fps=5, shortest_side=16)
    video = np.frombuffer((folder / "a.mp4").read_bytes(), np.uint8)
    (folder / "a.mp4").unlink()
    pictures = [np.frombuffer(_encoded(frame, "JPEG"), np.uint8) for frame in FRAMES]
    for encoding, parts in (("mp4", [video]), ("jpg", pictures)):
        with h5py.File(folder / "hdf5" / f"kuka_{encoding}.hdf5", "w") as file:
            env = file.create_group("env")
            env.attrs["n_cams"], env.attrs["cam_encoding"] = 1, encoding
            env["state"] = np.ones((COUNT, 5))
            env["low_bound"], env["high_bound"] = -np.ones((2, 5)), np.ones((2, 5))
            camera = env.create_group("cam0_video")
            for index, content in enumerate(parts):
                data = camera.create_dataset("frames" if encoding == "mp4" else f"frame{index}", data=content)
                data.attrs["shape"], data.attrs["T"], data.attrs["image_format"] = FRAMES.shape[1:], COUNT, "RGB"
            file["policy/actions"] = np.ones((COUNT - 1, 5))
            file.create_group("misc")["run"] = 3
            about = file.create_group("metadata")
            about.attrs["robot"], about.attrs["primitives"] = "kuka", "autograsp"
            about.attrs["object_classes"] = np.array([b"cups"])


def _ssv2(folder: Path) -> None:
    for split, line in (("train", f"30 {COUNT} 5"), ("val", f"55 {COUNT} 5")):
        (folder / f"{split}_video_folder.txt").write_text(line + "\n")
        frames = folder / "20bn-something-something-v2-frames" / line.split()[0]
        frames.mkdir(parents=True)
        for index, frame in enumerate(FRAMES):
            (frames / f"{index + 1:06d}.jpg").write_bytes(_encoded(frame, "JPEG"))


def _vp2(folder: Path) -> None:
    (folder / "push_red").mkdir()
    with h5py.File(folder / "push_red" / "noise_0.1.hdf5", "w") as file:
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0"]), np.array([b"demo_1"])
        for index in range(2):
            demo = file.create_group(f"data/demo_{index}")
            demo["obs/camera_image"], demo["obs/gripper"] = FRAMES, np.ones((COUNT, 2))
            demo["actions"], demo["rewards"] = np.ones((COUNT, 5)), np.ones(COUNT)
            demo["states"], demo["dones"] = np.ones((COUNT, 9)), np.zeros(COUNT)


def _reader(name: str, **options: object) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        importer = IMPORTERS[name].load()
        if hasattr(importer, "facts"):
            importer.facts(folder)
        for task in importer.tasks(folder, **options):
            for _ in task.read():
                pass

    return read


#: Of each importer: what writes a good source, and what reads it.
IMPORTED = {
    "lerobot_v2": (_lerobot_v2, _reader("lerobot")),
    "lerobot_v3": (_lerobot_v3, _reader("lerobot")),
    "rlds": (_rlds, _reader("rlds")),
    "robomimic": (_robomimic, _reader("robomimic")),
    "minari": (_minari, _reader("minari")),
    "recordings": (_folder, _reader("video")),
    "metaworld": (_metaworld, _reader("metaworld-npz")),
    "bair": (_bair, _reader("bair")),
    "robonet": (_robonet, _reader("robonet")),
    "ssv2": (_ssv2, _reader("ssv2")),
    "vp2": (_vp2, _reader("vp2", benchmark="robodesk")),
}
