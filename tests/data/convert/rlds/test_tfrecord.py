"""TFRecord files and the Examples in them: read as TensorFlow wrote them, and never read wrong."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.convert.rlds.tf_example import MalformedError, example_keys, parse_example
from ivideogpt.data.convert.rlds.tfrecord import masked_crc32c, read_records

# Written by TensorFlow 2.21: an Example with a = [-1, 0, 300], b = [1.5, -2.0], c = ["x", "", "yz"]; an empty record.
BY_TENSORFLOW = bytes.fromhex(
    "3f00000000000000516576610a3d0a160a016112111a0f0a0dffffffffffffffffff0100ac020a110a0162120c120a0a080000c03f000000c00a10"
    "0a0163120b0a090a01780a000a02797a713cd7ac000000000000000029039807d8ea82a2"
)
VALUES = {"a": np.array([-1, 0, 300]), "b": np.array([1.5, -2.0]), "c": [b"x", b"", b"yz"]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "one.tfrecord"
    path.write_bytes(BY_TENSORFLOW)
    return path


def test_a_file_of_tensorflow_is_read(file):
    first, second = read_records(file)
    assert (first.offset, second.offset, second.data) == (0, 79, b"")
    values = first.values()
    assert values["a"].dtype == np.int64 and values["a"].tolist() == [-1, 0, 300]
    assert values["b"].dtype == np.float32 and values["b"].tolist() == [1.5, -2.0]
    assert [bytes(value) for value in values["c"]] == [b"x", b"", b"yz"]
    assert first.keys() == ["a", "b", "c"]


def test_the_fixtures_are_written_byte_for_byte_as_tensorflow_writes(made, tmp_path):
    path = made.write_records(tmp_path / "ours.tfrecord", [made.example(VALUES), b""])
    assert path.read_bytes() == BY_TENSORFLOW


def test_the_checksum_is_that_of_the_format():
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_only_what_is_asked_for_is_read_and_numbers_are_not_copied(file):
    record = next(read_records(file))
    assert set(record.values(["b", "nothing"])) == {"b"}
    assert record.values(["b"])["b"].base is not None


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_whole_numbers_come_back(made, numbers):
    data = made.example({"n": np.array(numbers, np.int64)})
    assert parse_example(data)["n"].tolist() == numbers


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20), st.lists(st.binary(max_size=300), max_size=5))
def test_floats_and_byte_strings_come_back(made, floats, strings):
    values = parse_example(made.example({"f": np.array(floats, np.float32), "s": strings, "é": [b"1"]}))
    assert values["f"].tolist() == floats
    assert [bytes(value) for value in values["s"]] == strings
    assert "é" in values


def test_unpacked_lists_and_unknown_fields_are_read(made):
    floats = b"".join(made.varint(1 << 3 | 5) + np.float32(x).tobytes() for x in (1, 2))
    numbers = b"".join(made.varint(1 << 3) + made.varint(x) for x in (-3, 500))
    strange = made.varint(9 << 3 | 1) + bytes(8)
    entries = [part(made, "f", made.part(2, floats)), part(made, "n", made.part(3, numbers) + strange), strange]
    values = parse_example(made.part(1, b"".join(entries)) + strange)
    assert values["f"].tolist() == [1, 2] and values["n"].tolist() == [-3, 500]


def part(made, name, feature):
    return made.part(1, made.part(1, name.encode()) + made.part(2, feature))


def test_an_empty_feature_is_an_empty_list(made):
    assert len(parse_example(made.part(1, part(made, "x", b"")))["x"]) == 0


@pytest.mark.parametrize(
    "data", [b"\x0a\x05\x0a", b"\x0a", b"\xff" * 12, b"\x0b\x00", b"\x02\x00", b"\x0a\x04\x0a\x02\x12\x63"]
)
def test_what_is_no_example_is_refused(data):
    with pytest.raises(MalformedError):
        parse_example(data)
    with pytest.raises(MalformedError):
        example_keys(data)


def test_a_number_of_more_than_64_bits_is_refused(made):
    broken = made.part(1, part(made, "n", made.part(3, made.part(1, b"\xff" * 11 + b"\x01"))))
    with pytest.raises(MalformedError, match="64 bits"):
        parse_example(broken)
    cut = made.part(1, part(made, "n", made.part(3, made.part(1, b"\x01\xff"))))
    with pytest.raises(MalformedError, match="cut off"):
        parse_example(cut)


def test_a_record_that_is_no_example_is_named(made, tmp_path):
    path = made.write_records(tmp_path / "x.tfrecord", [b"\x0a", b"\x0a\x05\x0a"])
    records = list(read_records(path))
    with pytest.raises(UserError, match=r"record at byte 17 of .*x\.tfrecord is no tf\.train\.Example"):
        records[1].values()


@pytest.mark.parametrize("length", [5, 11, 12, 40, 77, 78, 80, 94])
def test_a_file_that_is_cut_off_is_named(file, length):
    file.write_bytes(BY_TENSORFLOW[:length])
    start = 0 if length < 79 else 79
    with pytest.raises(
        UserError, match=rf"one\.tfrecord ends within the record at byte {start}: it has {length} bytes"
    ):
        list(read_records(file))


def test_no_flipped_bit_goes_unnoticed(file):
    for place in range(len(BY_TENSORFLOW)):
        content = bytearray(BY_TENSORFLOW)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"one\.tfrecord (is damaged|ends within)"):
            list(read_records(file))


def test_the_place_of_the_damage_is_named(file):
    content = bytearray(BY_TENSORFLOW)
    content[30] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged between bytes 12 and 79: the checksum of the record at byte 0"):
        list(read_records(file))
    assert len(list(read_records(file, check=False))) == 2


def test_a_missing_file_and_a_missing_package_are_named(tmp_path, file, monkeypatch):
    with pytest.raises(UserError, match=r"there is no TFRecord file .*none\.tfrecord"):
        list(read_records(tmp_path / "none.tfrecord"))
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(MissingExtraError, match=r"ivideogpt\[data\]"):
        list(read_records(file))
