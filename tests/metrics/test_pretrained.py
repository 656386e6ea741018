"""Finding and reading weights that come from elsewhere."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.metrics.pretrained import fill, packaged_file, read_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}


def layer():
    with torch.device("meta"):
        return nn.Linear(3, 2)


class Trap:
    """Its pickle makes a file when it is opened freely."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_both_kinds_of_file_give_the_same_tensors(tmp_path):
    torch.save(STATE, tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "a.safetensors")
    for name in ("a.pth", "old.pth", "a.safetensors"):
        found = read_weights(tmp_path / name)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_a_pickle_that_could_run_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth is damaged or holds more than tensors"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut off", b"<html>not found</html>", pickle.dumps({"a": {1}}, protocol=2)]
)
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="copy or download it again"):
        read_weights(tmp_path / "a.pth")


def test_a_file_without_named_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    with pytest.raises(UserError, match="no table of named tensors"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} does not exist"):
        read_weights(tmp_path / name)


def test_a_filled_network_is_frozen_and_computes_in_float32(tmp_path):
    network = layer()
    fill(network, {name: tensor.half() for name, tensor in STATE.items()}, origin=tmp_path, title="a layer")
    assert torch.equal(network(torch.ones(1, 3)), torch.tensor([[4.0, 14.0]]))
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": STATE["weight"]}, "a.pth lacks bias; expected the weights of a layer"),
        ({**STATE, "gain": torch.ones(2)}, "a.pth also holds gain"),
        ({**STATE, "bias": torch.ones(3)}, r"a.pth holds bias of shape \[3\]; expected \[2\] as in a layer"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, state, message):
    with pytest.raises(UserError, match=message):
        fill(layer(), state, origin=tmp_path / "a.pth", title="a layer")


def test_a_package_that_is_not_installed_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_package.*ivideogpt\[evaluation\]"):
        packaged_file("no_such_package", "weights.pth")


def test_a_package_without_its_weights_is_to_be_installed_again():
    with pytest.raises(UserError, match="weights.pth is missing, though einops is installed"):
        packaged_file("einops", "weights.pth")
