"""Array files are read as they were saved, and never take more memory than their bytes can justify."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.numpy_files import NumpyArchive, read_npy

ARRAYS = {
    "plain": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
    "big endian": np.arange(5, dtype=">u4"),
    "empty": np.zeros((0, 7)),
    "scalar": np.array(3.5),
    "text": np.array(["a", "bc"]),
    "flags": np.array([True, False]),
}


def header(shape, dtype="<f8", order=False):
    text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    with NumpyArchive(tmp_path / "a.npz") as archive:
        assert archive.names == tuple(ARRAYS)
        for name, value in ARRAYS.items():
            loaded = archive.read(name)
            assert archive.header(name) == (value.shape, value.dtype)
            assert loaded.dtype == value.dtype and np.array_equal(loaded, value)
    for name, value in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", value)
        assert np.array_equal(read_npy(tmp_path / f"{name}.npy"), value)


BAD_MEMBERS = {
    "text": b"hello",
    "pickle": b"\x80\x04.",
    "nothing": b"",
    "16 TB": header((10**12, 2)) + bytes(16),
    "a byte too few": header((2,)) + bytes(15),
    "a byte too many": header((2,)) + bytes(17),
    "a negative shape": header((-2,)) + bytes(16),
    "named columns": header((1,), "[('a', '<f8')]").replace(b"\x01\0", b"\x03\0", 1) + bytes(8),
    "a deep header": header("(" * 90) + bytes(8),
    "objects": header((1,), "|O") + bytes(8),
}


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_a_damaged_array_is_one_sentence(tmp_path, kind):
    (tmp_path / "a.npy").write_bytes(BAD_MEMBERS[kind])
    with pytest.raises(UserError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", BAD_MEMBERS[kind])
    with NumpyArchive(tmp_path / "a.npz") as opened, pytest.raises(UserError, match=r"array 'x' of .*a\.npz"):
        opened.read("x")


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(header((2**28,), "|u1"))
        for _ in range(256):
            file.write(bytes(2**20))
    tracemalloc.start()
    with NumpyArchive(tmp_path / "a.npz") as opened, pytest.raises(UserError, match="made to fill the memory"):
        opened.read("x")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_members_that_numpy_does_not_write_are_refused(tmp_path):
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", content.getvalue())
    with NumpyArchive(tmp_path / "a.npz") as opened, pytest.raises(UserError, match="packed in an unusual way"):
        opened.read("x")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", content.getvalue())
    with pytest.raises(UserError, match="two arrays of one name"):
        NumpyArchive(tmp_path / "b.npz")
