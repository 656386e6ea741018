"""Writes TFRecord files, and folders of TensorFlow Datasets made of them, byte for byte as TensorFlow does.

Shared by tests (through the fixture ``made``) and by ``benchmarks/convert_bair.py``.
"""

import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np

STEP = "steps/"


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def part(field, content):
    """A field of a message whose content has a length."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def feature(values):
    """A ``Feature``: of byte strings, floats or whole numbers, by the type of the values."""
    if isinstance(values, list):
        assert all(isinstance(value, bytes) for value in values)
        return part(1, b"".join(part(1, value) for value in values))
    if values.dtype.kind == "f":
        return part(2, part(1, values.astype("<f4").tobytes()))
    return part(3, part(1, b"".join(varint(int(value)) for value in values.ravel())))


def example(features):
    """A serialized ``tf.train.Example``, names sorted."""
    entries = (part(1, part(1, name.encode()) + part(2, feature(features[name]))) for name in sorted(features))
    return part(1, b"".join(entries))


def masked(data):
    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path, records):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for data in records:
            head = struct.pack("<Q", len(data))
            file.write(head + masked(head) + data + masked(data))
    return path


def group(**features):
    return {"pythonClassName": "tfds.FeaturesDict", "featuresDict": {"features": features}}


def sequence(inner, length=-1):
    return {"pythonClassName": "tfds.Sequence", "sequence": {"feature": inner, "length": str(length)}}


def tensor(dtype="float32", *shape, encoding="none"):
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {"pythonClassName": "tfds.Tensor", "tensor": {"dtype": dtype, "encoding": encoding, "shape": dimensions}}


def image(*shape, encoding="jpeg", dtype="uint8"):
    dimensions = {"dimensions": [str(size) for size in shape]}
    return {"pythonClassName": "tfds.Image", "image": {"dtype": dtype, "encodingFormat": encoding, "shape": dimensions}}


def text():
    return {"pythonClassName": "tfds.Text", "text": {}}


def label(count):
    return {"pythonClassName": "tfds.ClassLabel", "classLabel": {"numClasses": str(count)}}


def write_dataset(folder, name, features, splits, template=None, **info):
    """A folder of one version.

    ``splits`` holds for each split a list of shards, each a list of serialized Examples.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for split, shards in splits.items():
        count = len(shards)
        for number, records in enumerate(shards):
            words = {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{count:05d}"}
            words |= {"DATASET": name, "SPLIT": split, "FILEFORMAT": "tfrecord"}
            words["SHARD_X_OF_Y"] = f"{number:05d}-of-{count:05d}"
            pattern = template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            write_records(folder / pattern.format(**words), records)
        entry = {"name": split, "numBytes": "1", "shardLengths": [str(len(records)) for records in shards]}
        described.append(entry | ({"filepathTemplate": template} if template else {}))
    content = {"fileFormat": "tfrecord", "name": name, "version": folder.name, "splits": described} | info
    (folder / "dataset_info.json").write_text(json.dumps(content))
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def write_bair(folder, trajectories, first=0, split="train"):
    """One BAIR file; ``trajectories`` hold "image" and "aux1_image" uint8 [30 64 64 3], "action" and "position"."""
    records = []
    for trajectory in trajectories:
        features = {}
        for t in range(30):
            features[f"{t}/image_main/encoded"] = [trajectory["image"][t].tobytes()]
            features[f"{t}/image_aux1/encoded"] = [trajectory["aux1_image"][t].tobytes()]
            features[f"{t}/action"] = np.float32(trajectory["action"][t])
            features[f"{t}/endeffector_pos"] = np.float32(trajectory["position"][t])
        records.append(example(features))
    last = first + len(records) - 1
    return write_records(Path(folder) / split / f"traj_{first}_to_{last}.tfrecords", records)
