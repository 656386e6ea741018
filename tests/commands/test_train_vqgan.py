"""``ivideogpt train-tokenizer --vqgan``: a tokenizer begins with an image model's weights and says what is new."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ivideogpt.cli import main
from ivideogpt.commands.arguments import assign
from ivideogpt.configs.registry import find_preset
from ivideogpt.models.tokenizer import CompressiveTokenizer

# A tokenizer with plain and conditional networks for the little data of the preset debug.
SETTINGS = (
    "tokenizer.tokenizer.conditional=true",
    "tokenizer.tokenizer.background=false",
    "tokenizer.tokenizer.block_channels=[32,32]",
    "tokenizer.tokenizer.norm_groups=4",
    "tokenizer.tokenizer.pixel_unshuffle=1",
    "tokenizer.tokenizer.max_attention_resolution=8",
    "tokenizer.tokenizer.patch_size=4",
    "tokenizer.codes=frozen",
    "tokenizer.continuous_steps=0",
    "tokenizer.learning_rate=0",
)


@pytest.fixture
def vqgan(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    tokenizer = CompressiveTokenizer(
        assign(find_preset("debug"), dict(setting.split("=", 1) for setting in SETTINGS)).tokenizer.tokenizer
    )
    parts = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
    found = {name: value for name, value in tokenizer.state_dict().items() if name.split(".")[0] in parts}
    folder = tmp_path / "vqgan"
    folder.mkdir()
    save_file(found, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "VQModel", "norm_num_groups": 4}))
    return folder, found


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_tokenizer_starts_from_a_vqgan_and_says_what_is_new(vqgan, tmp_path, capsys) -> None:
    folder, found = vqgan
    words = ("train-tokenizer", "debug", "--run", tmp_path / "run", "--vqgan", folder, "--steps", 1)
    assert run(*words, *SETTINGS) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("new, "))
    assert "cond_encoder.cross_att_blocks" in said and "quant_linear" in said and "conv_in" not in said
    (folder,) = (tmp_path / "run" / "checkpoints").glob("*/tokenizer")
    state = CompressiveTokenizer.from_pretrained(folder).state_dict()
    for name, value in found.items():
        assert torch.equal(state[name], value), name
    assert torch.equal(state["cond_decoder.conv_out.weight"], found["decoder.conv_out.weight"])


def test_it_starts_from_one_thing_only(tmp_path, capsys) -> None:
    words = ("train-tokenizer", "debug", "--run", tmp_path / "run", "--vqgan", "a", "--init", "pusht-64-tokens")
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "init is pusht-64-tokens and vqgan is a; a tokenizer starts from one of them" in line
    assert not (tmp_path / "run").exists()


def test_networks_of_another_shape_are_one_sentence(vqgan, tmp_path, capsys) -> None:
    words = ("train-tokenizer", "debug", "--run", tmp_path / "run", "--vqgan", vqgan[0])
    assert run(*words, *SETTINGS, "tokenizer.tokenizer.layers_per_block=2") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has no encoder.down_blocks.0.resnets.1" in line
