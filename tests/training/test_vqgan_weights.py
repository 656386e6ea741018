"""A tokenizer starts from an image model's VQGAN: what fits is its, what must fit does, and the rest is named."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ivideogpt.configs.registry import find_preset
from ivideogpt.core.errors import UserError
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.training.vqgan_weights import start_from_vqgan, tokenizer_from_vqgan

SHAPE = TokenizerConfig(
    resolution=16,
    block_channels=(32, 64),
    layers_per_block=1,
    latent_channels=4,
    norm_groups=8,
    context_codes=16,
    dynamics_codes=12,
    patch_size=2,
    max_attention_resolution=8,
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OLDER_ATTENTION = ("query", "key", "value", "proj_attn")


def layer(*shape: int) -> dict[str, tuple[int, ...]]:
    return {"weight": shape, "bias": shape[:1]}


def resnet(before: int, after: int) -> dict[str, dict]:
    layers = {"norm1": layer(before), "conv1": layer(after, before, 3, 3)}
    layers |= {"norm2": layer(after), "conv2": layer(after, after, 3, 3)}
    return layers | ({"conv_shortcut": layer(after, before, 1, 1)} if before != after else {})


def blocks(channels: list[int], resnets: int, sampler: str, name: str) -> dict[str, dict]:
    """Levels of an encoder or a decoder, as diffusers nests them; the last one does not change the size."""
    found = {}
    for level, (before, after) in enumerate(zip([channels[0], *channels], channels, strict=False)):
        found[level] = {"resnets": {k: resnet(after if k else before, after) for k in range(resnets)}}
        if level < len(channels) - 1:
            found[level][sampler] = {0: {"conv": layer(after, after, 3, 3)}}
    return {name: found}


def middle(channels: int, attention: tuple[str, ...]) -> dict[str, dict]:
    found = {"resnets": {k: resnet(channels, channels) for k in range(2)}}
    if attention:
        layers = {name: layer(channels, channels) for name in attention}
        found["attentions"] = {0: {"group_norm": layer(channels), **layers}}
    return found


def flat(nested: dict, prefix: str = "") -> dict[str, tuple[int, ...]]:
    names = {}
    for name, value in nested.items():
        names |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return names


def vqgan_shapes(
    channels: tuple[int, ...], resnets: int, latent: int, codes: int, attention: tuple[str, ...] = ()
) -> dict[str, tuple[int, ...]]:
    """The tensors of a ``VQModel`` of diffusers by name."""
    wide, first = channels[-1], channels[0]
    encoder = {
        "conv_in": layer(first, 3, 3, 3),
        **blocks(list(channels), resnets, "downsamplers", "down_blocks"),
        "mid_block": middle(wide, attention),
        "conv_norm_out": layer(wide),
        "conv_out": layer(latent, wide, 3, 3),
    }
    decoder = {
        "conv_in": layer(wide, latent, 3, 3),
        "mid_block": middle(wide, attention),
        **blocks(list(reversed(channels)), resnets + 1, "upsamplers", "up_blocks"),
        "conv_norm_out": layer(first),
        "conv_out": layer(3, first, 3, 3),
    }
    convolution = layer(latent, latent, 1, 1)
    codebook = {"embedding": {"weight": (codes, latent)}}
    return flat(
        {
            "encoder": encoder,
            "decoder": decoder,
            "quantize": codebook,
            "quant_conv": convolution,
            "post_quant_conv": convolution,
        }
    )


@pytest.fixture
def write(tmp_path: Path):
    """``write(folder, attention, dtype, config, **tensors)``: a VQGAN of random numbers, and its tensors."""

    def make(
        folder: str = "vqgan",
        attention: tuple[str, ...] = (),
        dtype: torch.dtype = torch.float32,
        config: dict[str, object] | None = None,
        **tensors: torch.Tensor | None,
    ) -> tuple[Path, dict[str, torch.Tensor]]:
        shapes = vqgan_shapes((32, 64), 1, 4, 16, attention)
        generator = torch.Generator().manual_seed(7)
        found = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        found = {name: value for name, value in (found | tensors).items() if value is not None}
        (tmp_path / folder).mkdir(parents=True)
        save_file(found, tmp_path / folder / WEIGHTS)
        values = {"_class_name": "VQModel", "norm_num_groups": 8, "mid_block_add_attention": bool(attention)}
        (tmp_path / folder / "config.json").write_text(json.dumps(values | (config or {})))
        return tmp_path / folder, found

    return make


def assert_holds(tokenizer: CompressiveTokenizer, expected: dict[str, torch.Tensor]) -> None:
    state = tokenizer.state_dict()
    for name, value in expected.items():
        assert torch.equal(state[name], value.float()), name


def test_everything_of_the_vqgan_is_copied_and_into_the_conditional_networks_too(write) -> None:
    folder, found = write()
    tokenizer = CompressiveTokenizer(SHAPE)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    fresh = start_from_vqgan(tokenizer, folder)
    assert_holds(tokenizer, found)
    copies = {f"cond_{name}": value for name, value in found.items() if name.startswith(("encoder.", "decoder."))}
    assert_holds(tokenizer, copies)
    state = tokenizer.state_dict()
    assert set(fresh) == state.keys() - found.keys() - copies.keys()
    assert all(torch.equal(state[name], before[name]) for name in fresh)
    expected = {
        "dynamics_quantize.embedding.weight",
        "quant_linear.weight",
        "cond_encoder.cross_att_blocks.0.kv_pos_emb",
    }
    assert expected <= set(fresh) and "cond_decoder.mid_block.attentions.0.to_q.weight" in fresh


def test_a_context_frame_is_coded_and_drawn_as_the_vqgan_does(write) -> None:
    folder, found = write()
    tokenizer = tokenizer_from_vqgan(SHAPE, folder)[0].eval()
    alone = CompressiveTokenizer(replace(SHAPE, conditional=False, patch_size=1, dynamics_codes=16)).eval()
    alone.load_state_dict(found)
    frames = torch.rand(1, 2, 3, 16, 16)
    with torch.inference_mode():
        codes = tokenizer.encode_context(frames)[0]
        assert torch.equal(codes, alone.encode_context(frames)[0]) and len(codes.unique()) > 1
        assert torch.equal(tokenizer.decode_context(codes)[0], alone.decode_context(codes)[0])


@pytest.mark.parametrize("names", [ATTENTION, OLDER_ATTENTION], ids=["present", "older"])
def test_attention_is_read_by_its_present_and_its_older_names(write, names) -> None:
    folder, found = write(attention=names)
    tokenizer = CompressiveTokenizer(replace(SHAPE, mid_attention=True))
    fresh = start_from_vqgan(tokenizer, folder)
    assert not [name for name in fresh if "mid_block" in name]
    for theirs, ours in zip(names, ATTENTION, strict=True):
        for network in ("encoder", "decoder"):
            there, here = (f"{network}.mid_block.attentions.0.{name}.weight" for name in (theirs, ours))
            assert_holds(tokenizer, {here: found[there], f"cond_{here}": found[there]})


def test_codes_of_another_size_are_new_and_named(write) -> None:
    folder, found = write()
    tokenizer = CompressiveTokenizer(replace(SHAPE, context_codes=20, code_channels=6))
    fresh = start_from_vqgan(tokenizer, folder)
    assert {"quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.weight"} <= set(fresh)
    assert_holds(tokenizer, {"encoder.conv_out.weight": found["encoder.conv_out.weight"]})


def test_the_official_256_px_networks_are_those_of_amused() -> None:
    shape = find_preset("official-oxe-256-act-free").tokenizer.tokenizer
    with torch.device("meta"):
        state = CompressiveTokenizer(shape).state_dict()
    there = vqgan_shapes((128, 256, 256, 512, 768), 2, 64, 8192)
    assert {name: tuple(state[name].shape) for name in there} == there
    assert {
        name for name in state if name.split(".")[0] in ("encoder", "decoder")
    } < there.keys() and shape.norm_groups == 32


@pytest.mark.parametrize("seed", [0, 3])
def test_what_is_new_is_the_seeds(write, seed) -> None:
    folder, _ = write(dtype=torch.bfloat16)
    torch.rand(3)
    one, layers = tokenizer_from_vqgan(SHAPE, folder, seed=seed)
    torch.rand(5)
    other, _ = tokenizer_from_vqgan(SHAPE, folder, seed=seed)
    torch.manual_seed(seed)
    new = CompressiveTokenizer(SHAPE)
    assert one.fingerprint() == other.fingerprint() and one.encoder.conv_in.weight.dtype == torch.float32
    assert torch.equal(one.quant_linear.weight, new.quant_linear.weight)
    assert layers == [
        "cond_encoder.mid_block.attentions",
        "cond_encoder.cross_att_blocks",
        "cond_decoder.mid_block.attentions",
        "cond_decoder.cross_att_blocks",
        "dynamics_quantize.embedding",
        "quant_linear",
        "post_quant_linear",
    ]


# What cannot be a start


@pytest.mark.parametrize(
    ("written", "shape", "said"),
    [
        ({"encoder.conv_in.weight": None}, {}, "has no encoder.conv_in.weight, which this tokenizer needs"),
        ({"decoder.up_blocks.0.resnets.1.norm1.bias": None}, {}, "has no decoder.up_blocks.0.resnets.1.norm1.bias"),
        ({}, {"block_channels": (32, 32)}, r"encoder.down_blocks.1.resnets.0.conv1.weight of shape \[64, 32, 3, 3\]"),
        ({}, {"latent_channels": 8}, r"encoder.conv_out.weight of shape \[4, 64, 3, 3\], expected \[8, 64, 3, 3\]"),
        ({}, {"layers_per_block": 2}, "has no encoder.down_blocks.0.resnets.1.norm1.weight"),
        ({}, {"mid_attention": True}, "has no encoder.mid_block.attentions.0.group_norm.weight"),
        ({"attention": ATTENTION}, {}, "holds decoder.mid_block.attentions.0.group_norm.bias, which is no part"),
        ({"cond_encoder.conv_in.bias": torch.zeros(32)}, {}, "holds cond_encoder.conv_in.bias, which is no part"),
        ({"config": {"_class_name": "CompressiveVQModel"}}, {}, "describes CompressiveVQModel, expected VQModel"),
        ({"config": {"norm_num_groups": 32}}, {}, "says norm_num_groups is 32, expected 8"),
        ({"config": {"norm_type": "spatial"}}, {}, "says norm_type is 'spatial', expected 'group'"),
    ],
)
def test_other_networks_are_refused_with_the_first_tensor_that_differs(write, written, shape, said) -> None:
    folder, _ = write(**written)
    tokenizer = CompressiveTokenizer(replace(SHAPE, **shape))
    before = tokenizer.fingerprint()
    with pytest.raises(UserError, match=said) as caught:
        start_from_vqgan(tokenizer, folder)
    assert "\n" not in str(caught.value) and tokenizer.fingerprint() == before


def test_pickled_weights_are_never_opened(write) -> None:
    folder, found = write()
    (folder / WEIGHTS).unlink()
    torch.save(found, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="does not exist"):
        start_from_vqgan(CompressiveTokenizer(SHAPE), folder)


# Where it is


def test_the_vqgan_of_a_whole_image_model_is_found(write) -> None:
    folder, found = write("amused/vqvae")
    tokenizer = CompressiveTokenizer(SHAPE)
    start_from_vqgan(tokenizer, folder.parent)
    assert_holds(tokenizer, found)


def test_a_folder_without_one_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="has no config.json, nor one in vqvae/"):
        start_from_vqgan(CompressiveTokenizer(SHAPE), tmp_path)


def test_of_a_hub_repository_only_the_vqgan_is_downloaded(write, monkeypatch) -> None:
    folder, found = write("snapshot/vqvae")
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(folder.parent)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    tokenizer = CompressiveTokenizer(SHAPE)
    start_from_vqgan(tokenizer, "amused/amused-256")
    assert_holds(tokenizer, found)
    ((name, options),) = asked
    files = {"config.json", WEIGHTS, "vqvae/config.json", f"vqvae/{WEIGHTS}"}
    assert name == "amused/amused-256" and set(options["allow_patterns"]) == files


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fail))
    with pytest.raises(UserError, match=r"'nobody/nothing' is no folder here and did not come .* \(no route\)"):
        start_from_vqgan(CompressiveTokenizer(SHAPE), "nobody/nothing")
