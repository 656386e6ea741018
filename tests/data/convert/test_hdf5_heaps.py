"""Arrays of variable length in a damaged HDF5 file: one sentence, where the HDF5 library loops for ever."""

import struct

import h5py
import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.hdf5 import open_hdf5


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.attrs["task"] = "push the block"
        rows = file.create_dataset("rows", 300, h5py.vlen_dtype(np.uint8))
        for index in range(300):
            rows[index] = np.full(10 + 7 * index, index % 256, np.uint8)
    return tmp_path / "a.hdf5"


def test_a_good_file_with_many_heaps_is_read(path):
    assert path.read_bytes().count(b"GCOL") > 1
    with open_hdf5(path) as file:
        assert file.attrs["task"] == "push the block"
        assert [len(row) for row in file["rows"][:]] == [10 + 7 * index for index in range(300)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "damage",
    [
        lambda heap: heap[:16] + bytes(200) + heap[216:],  # objects that take no bytes
        lambda heap: heap[:24] + struct.pack("<Q", 2**63) + heap[32:],
        lambda heap: heap[:8] + struct.pack("<Q", 2**40) + heap[16:],
    ],
)
def test_a_damaged_heap_is_one_sentence(path, damage):
    content = path.read_bytes()
    start = content.index(b"GCOL")
    path.write_bytes(content[:start] + damage(content[start:]))
    with pytest.raises(UserError, match=r"a\.hdf5 .*heap"), open_hdf5(path) as file:
        file["rows"][:]
