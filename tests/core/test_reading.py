"""Damaged and hostile files end in one sentence that names them, before memory is taken."""

import json
import os
import subprocess

import pytest
import torch

from ivideogpt.core.checkpoint import load_tensors, resolve_checkpoint, save_tensors
from ivideogpt.core.config import load_json
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder, write_text_atomic
from ivideogpt.core.reading import check_is_file, check_unpacked_size, local_path, path_inside, reading


@pytest.mark.parametrize(
    "error",
    [KeyError("rows"), RecursionError(), MemoryError(), TypeError("no len()"), OSError(5, "Input/output error")],
)
def test_every_exception_of_a_damaged_file_names_the_file_and_the_advice(error):
    with (
        pytest.raises(UserError, match=r"^a\.bin is damaged \(.+\); copy it again$"),
        reading("a.bin", "copy it again"),
    ):
        raise error


def test_a_sentence_that_is_already_there_is_kept():
    with pytest.raises(UserError, match="^three frames$"), reading("a.bin", "copy it again"):
        raise UserError("three frames")


def test_an_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt), reading("a.bin", "copy it again"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "/".join(["y" * 200] * 30)])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot be used as a path"):
        local_path(name)
    with pytest.raises(UserError, match="cannot be used as a path"):
        resolve_checkpoint(name, shipped={})
    for write in (write_text_atomic, lambda path, text: replace_folder(path, lambda folder: None)):
        with pytest.raises(UserError, match="cannot be used as a path"):
            write(name if name[0] == "~" else f"{tmp_path}/{name}", "text")


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs") == tmp_path / "runs"


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are POSIX")
@pytest.mark.timeout(20)
def test_a_fifo_and_a_device_are_refused_and_never_opened(tmp_path):
    for suffix in (".json", ".safetensors"):
        os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(UserError, match="a FIFO, a socket or a device; expected a JSON file"):
        load_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="a FIFO, a socket or a device; expected a safetensors file"):
        load_tensors(tmp_path / "a.safetensors")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a FIFO, a socket or a device"):
        check_is_file(tmp_path / "zero")


def test_a_folder_where_a_file_is_expected_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match="is a folder; expected a JSON file"):
        load_json(tmp_path / "a.json")


def test_deep_json_is_one_sentence(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON \(it is nested too deeply\)"):
        load_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": 3},
        [],
    ],
)
def test_damaged_safetensors_headers_are_one_sentence(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        load_tensors(tmp_path / "a.safetensors")


def test_data_far_larger_than_its_file_is_refused_before_it_is_read():
    check_unpacked_size("a", unpacked=100 * 2**20, stored=1)
    check_unpacked_size("a", unpacked=100 * 2**30, stored=2**30)
    with pytest.raises(UserError, match="a says that its 1,000 bytes hold 1,000,000,000,000 bytes"):
        check_unpacked_size("a", unpacked=10**12, stored=1000)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "b/../../a.png", "", "a\0.png"])
def test_names_in_a_dataset_stay_inside_it(tmp_path, name):
    with pytest.raises(UserError, match="lies outside of it"):
        path_inside(tmp_path, name)
    assert path_inside(tmp_path, "b/a.png") == tmp_path / "b" / "a.png"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        save_tensors(disk / "small.safetensors", {"a": torch.zeros(10)})
        with pytest.raises(UserError, match=r"a\.safetensors cannot be written: .*No space left on device"):
            save_tensors(disk / "a.safetensors", {"a": torch.zeros(250_000)})
        assert [path.name for path in disk.iterdir()] == ["small.safetensors"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
