import os
import sys
from types import SimpleNamespace

import pytest
import torch

from ivideogpt.core.checkpoint import load_tensors, resolve_checkpoint, save_tensors, step_folder
from ivideogpt.core.errors import UserError


def test_tensors_come_back_with_values_shapes_and_types(tmp_path):
    tensors = {
        "float": torch.randn(2, 3),
        "scalar": torch.tensor(3.0),
        "half": torch.randn(4).to(torch.bfloat16),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(2, 3).T,
    }
    save_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tied_weights_can_be_saved(tmp_path):
    weight = torch.randn(3, 3, requires_grad=True)
    save_tensors(tmp_path / "a.safetensors", {"in": weight, "out": weight, "row": weight[0]})
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["row"], weight[0])


def test_no_tensors_at_all_can_be_saved(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {})
    assert load_tensors(tmp_path / "a.safetensors") == {}


def test_missing_tensors_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "[:12]])
def test_damaged_tensors_are_a_user_error(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_tensors(tmp_path / "a.safetensors")


def test_truncated_tensors_are_a_user_error(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.randn(100)})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="damaged"):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickled_weights_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="never opened"):
        load_tensors(path)


def make_checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_checkpoint_folder_is_itself(tmp_path):
    folder = make_checkpoint(tmp_path / "model")
    assert resolve_checkpoint(str(folder), shipped={}) == folder


def test_an_official_folder_is_a_checkpoint(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "transformer").mkdir()
    assert resolve_checkpoint(str(tmp_path), shipped={}) == tmp_path


def test_a_run_folder_is_its_newest_complete_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    make_checkpoint(step_folder(tmp_path, 2))
    newest = make_checkpoint(step_folder(tmp_path, 10))
    step_folder(tmp_path, 20).mkdir()
    make_checkpoint(tmp_path / "checkpoints" / ".a1b2.step-00000030")
    assert resolve_checkpoint(str(tmp_path), shipped={}) == newest


def test_a_run_folder_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint yet"):
        resolve_checkpoint(str(tmp_path), shipped={})


def test_a_shipped_name_is_its_folder(tmp_path):
    assert resolve_checkpoint("pusht", shipped={"pusht": tmp_path}) == tmp_path


def test_an_unknown_name_suggests_the_closest_shipped_one(tmp_path):
    with pytest.raises(UserError, match="'pushtt'.*did you mean 'pusht'"):
        resolve_checkpoint("pushtt", shipped={"pusht": tmp_path, "other": tmp_path})


def test_an_unknown_name_lists_the_shipped_ones(tmp_path):
    with pytest.raises(UserError, match="expected one of: other, pusht"):
        resolve_checkpoint("zzz", shipped={"pusht": tmp_path, "other": tmp_path})


def test_another_kind_of_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint"):
        resolve_checkpoint(str(tmp_path), shipped={})


def test_a_file_is_a_user_error(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve_checkpoint(str(tmp_path / "model.safetensors"), shipped={})


def test_a_missing_path_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        resolve_checkpoint(str(tmp_path / "nowhere"), shipped={})


def fake_hub(monkeypatch, download):
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))


def test_a_hub_id_is_downloaded_at_its_revision_without_pickles(tmp_path, monkeypatch):
    folder, asked = make_checkpoint(tmp_path / "snapshot"), {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    fake_hub(monkeypatch, download)
    assert resolve_checkpoint("thuml/model", revision="v1", shipped={}) == folder
    assert asked == {"name": "thuml/model", "revision": "v1", "allow_patterns": ["*.json", "*.safetensors"]}


def test_a_hub_that_cannot_be_reached_is_a_user_error_that_says_what_to_do(monkeypatch):
    def download(name, **options):
        raise ConnectionError("no route\nto host")

    fake_hub(monkeypatch, download)
    with pytest.raises(UserError, match=r"no folder here.*\(no route\).*check the name and the network"):
        resolve_checkpoint("thuml/model", shipped={})


def test_a_hub_repository_of_another_kind_is_a_user_error(tmp_path, monkeypatch):
    fake_hub(monkeypatch, lambda name, **options: str(tmp_path))
    with pytest.raises(UserError, match="is no checkpoint"):
        resolve_checkpoint("thuml/data", shipped={})


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_a_tensor_file_may_be_read_by_whom_the_user_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
