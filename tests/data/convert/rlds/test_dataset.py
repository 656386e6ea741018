"""Folders of TensorFlow Datasets: found, described, and their episodes numbered as the official converter does."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.rlds import dataset
from ivideogpt.data.convert.rlds.fields import Field, decode_numbers, decode_text, parse_features
from ivideogpt.data.convert.rlds.tfrecord import read_records

# The order in which tf.data 2.21 interleaves shards of these lengths (16 at a time, 16 records each): (shard, records).
LENGTHS = [40, 3, 16, 17, 33, 1, 32, 5, 48, 16, 2, 64, 7, 15, 31, 20, 19, 4, 50, 16]
RUNS = (
    [(0, 16), (1, 3), (2, 16), (3, 16), (4, 16), (5, 1), (6, 16), (7, 5), (8, 16), (9, 16), (10, 2), (11, 16), (12, 7)]
    + [(13, 15), (14, 16), (15, 16), (0, 16), (16, 16), (3, 1), (4, 16), (17, 4), (6, 16), (18, 16), (8, 16), (19, 16)]
    + [(11, 16), (14, 15), (15, 4), (0, 8), (16, 3), (4, 1), (18, 16), (8, 16), (11, 16), (18, 16), (11, 16), (18, 2)]
)


def order(numbers):
    """Of the shard of each episode, by official number."""
    shards = {number: shard for shard, own in enumerate(numbers) for number in own}
    return [shards[number] for number in range(len(shards))]


def test_uneven_shards_are_numbered_as_tf_data_reads_them():
    assert order(dataset.official_numbers(LENGTHS)) == [shard for shard, count in RUNS for _ in range(count)]


def test_each_shard_is_read_forwards_and_every_number_is_given_once():
    numbers = dataset.official_numbers(LENGTHS)
    assert [len(own) for own in numbers] == LENGTHS
    assert all(own == sorted(own) for own in numbers)
    assert sorted(number for own in numbers for number in own) == list(range(sum(LENGTHS)))


def test_empty_shards_are_left_out_before_the_files_are_dealt():
    full = dataset.official_numbers(LENGTHS)
    assert dataset.official_numbers([0, *LENGTHS[:3], 0, *LENGTHS[3:]]) == [[], *full[:3], [], *full[3:]]
    assert dataset.official_numbers([]) == []


def test_a_dataset_written_in_order_is_numbered_in_order():
    assert order(dataset.official_numbers([40, 3, 20], in_order=True)) == [0] * 40 + [1] * 3 + [2] * 20


def test_every_hundredth_of_all_names_is_for_validation():
    lengths = {"train": 250, "test": 130, "val": 5}
    names = sorted(dataset.official_key(split, i) for split, count in lengths.items() for i in range(count))
    validation = {name for place, name in enumerate(names) if place % 100 == 0}
    for split, count in lengths.items():
        for number in range(count):
            name = dataset.official_key(split, number)
            got, place = dataset.official_split(split, number, lengths)
            assert (got, names[place]) == ("val" if name in validation else "train", name)
    assert dataset.official_key("train", 12) == "train_eps_00000012"
    assert dataset.official_split("test", 0, lengths, {"test_eps_00000000"}) == ("test", 0)
    assert dataset.official_split("test", 100, lengths, {"test_eps_00000000"}) == ("val", 100)


@pytest.fixture
def folder(made, tmp_path):
    features = made.group(steps=made.sequence(made.group(x=made.tensor())))
    splits = {"train": [[b""] * 2, [b""] * 3], "empty": []}
    return made.write_dataset(tmp_path / "bridge" / "0.1.0", "bridge", features, splits)


def test_a_folder_is_found_from_above_beside_and_within(folder):
    for source in (folder, folder.parent, folder.parents[1]):
        assert dataset.find_folder(source, "bridge", "0.1.0") == folder


def test_a_folder_that_is_not_there_is_asked_for(folder, tmp_path):
    with pytest.raises(UserError, match=r"no features\.json in .*kuka/0\.1\.0, .*download the dataset first"):
        dataset.find_folder(tmp_path, "kuka", "0.1.0")
    with pytest.raises(UserError, match=r"name the folder .*bridge/0\.1\.0 itself"):
        dataset.find_folder(tmp_path, "bridge", "1.0.0")


def test_a_folder_says_its_splits_and_shards(folder):
    opened = dataset.open_rlds_folder(folder)
    assert (opened.name, opened.version, opened.in_order) == ("bridge", "0.1.0", False)
    assert [shard.length for shard in opened.splits["train"]] == [2, 3]
    assert opened.splits["empty"] == ()
    assert [shard.path.name for shard in opened.splits["train"]] == [
        "bridge-train.tfrecord-00000-of-00002",
        "bridge-train.tfrecord-00001-of-00002",
    ]


def test_the_template_of_the_file_names_is_honoured(made, tmp_path):
    features = made.group(steps=made.sequence(made.group(x=made.tensor())))
    template = "{SPLIT}/{DATASET}.{FILEFORMAT}.{SHARD_INDEX}"
    folder = made.write_dataset(tmp_path, "b", features, {"train": [[b""]]}, template, disableShuffling=True)
    opened = dataset.open_rlds_folder(folder)
    assert opened.splits["train"][0].path == folder / "train" / "b.tfrecord.00000"
    assert opened.splits["train"][0].path.is_file() and opened.in_order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fileFormat": "array_record"}, "fileFormat 'array_record'; only 'tfrecord'"),
        ({"splits": None}, "no list 'splits'; it has 'fileFormat', 'name', 'splits', 'version'"),
        ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, "split 'train' that is no number"),
        (
            {"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{A}"}]},
            "filepathTemplate in .* is '{A}'; it may use",
        ),
    ],
)
def test_a_dataset_info_that_is_not_understood_is_named(folder, change, message):
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        dataset.open_rlds_folder(folder)
    assert "dataset_info.json" in str(caught.value)


def test_files_that_are_no_json_are_named(folder):
    (folder / "features.json").write_text("[1]")
    with pytest.raises(UserError, match=r"features\.json holds a list; expected a JSON object"):
        dataset.open_rlds_folder(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"features\.json is not a readable JSON file"):
        dataset.open_rlds_folder(folder)
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match=r"there is no JSON file .*features\.json"):
        dataset.open_rlds_folder(folder)


def test_features_without_steps_say_what_is_there(made):
    with pytest.raises(UserError, match="no 'featuresDict'; it has 'type'"):
        parse_features({"type": "x"}, "features.json")
    with pytest.raises(UserError, match="no sequence 'steps'; it has 'image', 'label'"):
        parse_features(made.group(image=made.image(8, 8, 3), label=made.label(3)), "features.json")


def record(made, tmp_path, **values):
    features = {name.replace("__", "/"): value for name, value in values.items()}
    return next(read_records(made.write_records(tmp_path / "x.tfrecord", [made.example(features)])))


def test_numbers_come_back_in_the_type_that_features_json_names(made, tmp_path):
    inner = made.group(
        double=made.tensor("float64", 2),
        flag=made.tensor("bool"),
        kind=made.label(5),
        small=made.tensor("uint8", 2),
        zipped=made.tensor("float64", 1, 2, encoding="zlib"),
        raw=made.tensor("int16", 2, encoding="bytes"),
        none=made.tensor("float32", 0),
    )
    fields = parse_features(made.group(steps=made.sequence(inner)), "features.json")
    zipped, raw = np.arange(6.0).reshape(3, 1, 2) / 3, np.array([[1, -2], [3, 4], [5, 6]], np.int16)
    held = record(
        made,
        tmp_path,
        steps__double=np.arange(6, dtype=np.float32) / 3,
        steps__flag=np.array([1, 0, 1]),
        steps__kind=np.array([4, 0, 1]),
        steps__small=np.array([255, 0, 1, 2, 3, 4]),
        steps__zipped=[zlib.compress(part.tobytes()) for part in zipped],
        steps__raw=[part.tobytes() for part in raw],
        steps__none=np.empty(0, np.float32),
    )
    values = held.values()
    got = {path[6:]: decode_numbers(field, values, held, 3) for path, field in fields.items()}
    assert {name: value.dtype.name for name, value in got.items()} == {
        "double": "float64",
        "flag": "bool",
        "kind": "int64",
        "small": "uint8",
        "zipped": "float64",
        "raw": "int16",
        "none": "float32",
    }
    np.testing.assert_array_equal(got["double"], (np.arange(6, dtype=np.float32) / 3).astype(float).reshape(3, 2))
    np.testing.assert_array_equal(got["flag"], [True, False, True])
    np.testing.assert_array_equal(got["zipped"], zipped)
    np.testing.assert_array_equal(got["raw"], raw)
    assert got["none"].shape == (3, 0)


def test_ragged_lists_of_a_fixed_length_come_back(made, tmp_path):
    inner = made.group(
        cloud=made.sequence(made.tensor("float32", 2)),
        deep=made.sequence(made.sequence(made.tensor("int32"))),
        fixed=made.sequence(made.tensor("float32"), length=2),
    )
    fields = parse_features(made.group(steps=made.sequence(inner)), "features.json")
    assert fields["steps/deep"].lists == (None, None) and fields["steps/deep"].size is None
    assert fields["steps/fixed"].size == 2
    held = record(
        made,
        tmp_path,
        steps__cloud__ragged_flat_values=np.arange(6, dtype=np.float32),
        steps__cloud__ragged_row_lengths_0=np.array([2, 0, 1]),
        steps__deep__ragged_flat_values=np.array([1, 2, 3]),
        steps__deep__ragged_row_lengths_0=np.array([2, 0, 1]),
        steps__deep__ragged_row_lengths_1=np.array([1, 0, 2]),
        steps__fixed__ragged_flat_values=np.arange(6, dtype=np.float32),
        steps__fixed__ragged_row_lengths_0=np.array([2, 2, 2]),
    )
    values = held.values([key for field in fields.values() for key in field.keys])
    np.testing.assert_array_equal(decode_numbers(fields["steps/fixed"], values, held, 3), np.arange(6).reshape(3, 2))


def test_values_that_do_not_fit_are_named(made, tmp_path):
    held = record(made, tmp_path, steps__x=np.zeros(5, np.float32), steps__y=[b"text", b"\xff"])
    values = held.values()
    number, words = (
        Field(path="steps/x", kind="number", dtype="float32", shape=(2,)),
        Field(path="steps/y", kind="text"),
    )
    with pytest.raises(
        UserError, match=r"record at byte 0 of .*x\.tfrecord has 5 numbers in 'steps/x'; expected 2 for e"
    ):
        decode_numbers(number, values, held, 3)
    with pytest.raises(UserError, match="no 'steps/z'; it has: steps/x, steps/y"):
        decode_numbers(Field(path="steps/z", kind="number", dtype="float32"), values, held, 3)
    with pytest.raises(UserError, match="numbers in 'steps/x'; expected encoded images"):
        decode_text(Field(path="steps/x", kind="text"), values, held)
    with pytest.raises(UserError, match="byte strings in 'steps/y'; features.json says float32"):
        decode_numbers(Field(path="steps/y", kind="number", dtype="float32"), values, held, 2)
    zipped = Field(path="steps/y", kind="number", dtype="float32", shape=(1,), encoding="zlib")
    with pytest.raises(UserError, match="damaged array in 'steps/y'"):
        decode_numbers(zipped, values, held, 2)
    assert decode_text(words, values, held) == ["text", "\ufffd"]


def test_the_list_of_episodes_that_are_tested_elsewhere_is_the_official_one():
    from ivideogpt.data.convert.oxe import tested_elsewhere

    official = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "oxe_robonet_testset_filenames.txt"
    names = tested_elsewhere()
    assert len(names) == 126 and "train_eps_00000626" in names
    if official.exists():
        assert names == {line.split()[1].removesuffix(".npz") for line in official.read_text().splitlines()}


GOOD = {"featuresDict": {"features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": {"x": {}}}}}}}}}
STEPS = ("featuresDict", "features", "steps")
FIELD = (*STEPS, "sequence", "feature", "featuresDict", "features", "x")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("dataset_info.json", ("splits", 0), 2),
        ("dataset_info.json", ("splits",), [{"name": "train", "shardLengths": ["-4"]}]),
        (
            "dataset_info.json",
            ("splits",),
            [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "../{SPLIT}"}],
        ),
        (
            "dataset_info.json",
            ("splits",),
            [{"name": "a", "shardLengths": [1], "filepathTemplate": "{SPLIT:999999999}"}],
        ),
        ("features.json", FIELD, 7),
        ("features.json", FIELD, {"tensor": "a"}),
        ("features.json", FIELD, {"tensor": {"dtype": "float32", "shape": 7}}),
        ("features.json", FIELD, {"tensor": {"dtype": "float32", "shape": {"dimensions": ["a"]}}}),
        ("features.json", (*STEPS, "sequence"), 7.5),
        ("features.json", STEPS, 7),
    ],
)
def test_descriptions_of_other_types_are_one_sentence(tmp_path, name, path, value):
    contents = {
        "features.json": json.loads(json.dumps(GOOD)),
        "dataset_info.json": {"name": "bridge", "splits": [{"name": "train", "shardLengths": ["1"]}]},
    }
    place = contents[name]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    for file, content in contents.items():
        (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{name}|lies outside"):
        dataset.open_rlds_folder(tmp_path)
