"""The compressive tokenizer: grids from the configuration, codes and frames, files, and what is refused."""

import pytest
import torch

from ivideogpt import CompressiveTokenizer, UserError
from ivideogpt.core.config import load_json, save_json
from ivideogpt.models.tokenizer_config import TokenizerConfig

OFFICIAL_64 = TokenizerConfig()
OFFICIAL_256 = TokenizerConfig(
    resolution=256, block_channels=(128, 256, 256, 512, 768), max_attention_resolution=32, mid_attention=False
)
TINY = {"layers_per_block": 1, "latent_channels": 4, "norm_groups": 8, "context_codes": 12, "dynamics_codes": 10}

GRIDS = {
    "16x16 and 4x4 at 64 px": (TokenizerConfig(resolution=64, block_channels=(8, 32, 32), **TINY), 16, 4),
    "8x8 and 4x4 at 64 px": (
        TokenizerConfig(resolution=64, block_channels=(8, 8, 32, 32), patch_size=2, max_attention_resolution=8, **TINY),
        8,
        4,
    ),
    "8x8 and 4x4 at 128 px": (
        TokenizerConfig(
            resolution=128, block_channels=(8, 8, 8, 32, 32), patch_size=2, max_attention_resolution=8, **TINY
        ),
        8,
        4,
    ),
    "16x16 and 4x4 at 256 px": (
        TokenizerConfig(resolution=256, block_channels=(8, 8, 8, 32, 32), max_attention_resolution=15, **TINY),
        16,
        4,
    ),
    "8x8 and 2x2 with pixels unshuffled": (
        TokenizerConfig(resolution=64, block_channels=(32, 32), pixel_unshuffle=4, max_attention_resolution=8, **TINY),
        8,
        2,
    ),
}


def noise(config, rows=2, count=4, seed=0):
    size = config.resolution
    return torch.rand(rows, count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Grids


def test_the_official_configurations_have_the_official_grids():
    for config in (OFFICIAL_64, OFFICIAL_256):
        assert (config.context_grid, config.dynamics_grid, config.layout.vocab_size) == (16, 4, 16386)
        assert config.is_official


@torch.no_grad()
@pytest.mark.parametrize("name", GRIDS)
def test_grids_follow_from_the_configuration(name):
    config, context_grid, dynamics_grid = GRIDS[name]
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer(config).eval()
    frames = noise(config, rows=1, count=3)
    ids, labels = tokenizer.tokenize(frames)
    layout = tokenizer.layout
    assert (layout.context_tokens, layout.dynamics_tokens) == (context_grid**2, dynamics_grid**2)
    assert ids.shape == labels.shape == (1, layout.length(2, 1))
    assert tokenizer.detokenize(ids).shape == frames.shape


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resolution": 66}, "resolution 66 is not a multiple of 4"),
        ({"patch_size": 3}, "patch_size 3 does not divide the 16 x 16"),
        ({"conditional": False}, "needs patch_size 1"),
        ({"conditional": False, "patch_size": 1, "dynamics_codes": 5}, "two codebooks of one size"),
        ({"block_channels": ()}, "block_channels is 0; expected at least 1"),
        ({"resolution": 0}, "resolution is 0"),
        ({"context_frames": 0}, "context_frames is 0"),
        ({"norm_groups": 3}, "norm_groups 3 does not divide"),
        ({"norm_groups": -1}, "norm_groups -1 does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        TokenizerConfig(**changes)


def test_a_width_that_cannot_attend_is_refused():
    with pytest.raises(UserError, match="a level of 48 channels attends"):
        CompressiveTokenizer(TokenizerConfig(block_channels=(8, 32, 48), **TINY))


# Frames to codes and back


@torch.no_grad()
def test_future_frames_do_not_depend_on_each_other(any_model, frames_for):
    tokenizer, frames = any_model.tokenizer, frames_for(any_model, count=5)
    layout = tokenizer.layout
    context, future = layout.split(tokenizer.tokenize(frames)[0], 2)
    alone, one = layout.split(tokenizer.tokenize(frames[:, [0, 1, 3]])[0], 2)
    assert torch.equal(alone, context) and torch.equal(one[:, 0], future[:, 1])
    assert torch.equal(layout.split(tokenizer.tokenize(frames[:, :2])[0], 2)[0], context)


@torch.no_grad()
def test_a_row_has_the_same_ids_in_any_batch(any_model, frames_for):
    frames = frames_for(any_model, rows=4, count=4)
    ids = any_model.tokenizer.tokenize(frames)[0]
    for row in range(4):
        assert torch.equal(any_model.tokenizer.tokenize(frames[row : row + 1])[0], ids[row : row + 1])


@torch.no_grad()
def test_parts_and_whole_sequences_agree(any_model, frames_for):
    tokenizer, frames = any_model.tokenizer, frames_for(any_model, count=5)
    codes, features = tokenizer.encode_context(frames[:, :2])
    future = tokenizer.encode_future(frames[:, 2:], features)
    ids, labels = tokenizer.tokenize(frames)
    assert torch.equal(tokenizer.layout.join(codes, future), ids)
    assert torch.equal(labels, tokenizer.layout.labels(ids, 2))
    context, decoded = tokenizer.decode_context(codes)
    whole = tokenizer.detokenize(ids)
    torch.testing.assert_close(whole[:, :2], context)
    torch.testing.assert_close(whole[:, 2:], tokenizer.decode_future(future, decoded))
    alone = tokenizer.decoder_features(codes)
    assert len(alone.levels) == len(decoded.levels)
    for mine, theirs in zip(alone.levels, decoded.levels, strict=True):
        assert torch.equal(mine, theirs)
    trained = tokenizer(frames)
    torch.testing.assert_close(torch.cat([trained.context, trained.future], dim=1), whole, atol=3e-5, rtol=0)
    assert torch.equal(trained.context_codes, codes) and torch.equal(trained.dynamics_codes, future)


@torch.no_grad()
def test_features_alone_are_made_without_the_levels_that_nobody_looks_at(model_of, frames_for, monkeypatch):
    tokenizer, frames = model_of("official").tokenizer, frames_for(model_of("official"), count=2)
    codes, kept = tokenizer.encode_context(frames)
    assert len(kept.levels) == sum(tokenizer.cond_encoder.conditioned) < len(tokenizer.cond_encoder.conditioned)
    monkeypatch.setattr(tokenizer.decoder.up_blocks[-1], "forward", lambda x: pytest.fail("a level too many"))
    assert len(tokenizer.decoder_features(codes).levels) == sum(tokenizer.cond_decoder.conditioned) > 0


@torch.no_grad()
def test_dynamics_codes_look_at_the_context(model_of, frames_for):
    model = model_of("conditional")
    frames = frames_for(model, rows=8, count=3)
    other = torch.cat([frames.roll(1, dims=0)[:, :2], frames[:, 2:]], dim=1)
    assert not torch.equal(*(model.tokenizer.tokenize(x)[0][:, -4:] for x in (frames, other)))


def test_gradients_reach_every_weight_of_a_tokenizer(build, frames_for):
    for kind in ("conditional", "plain"):
        model = build(kind)
        seen = model.tokenizer.train()(frames_for(model, count=4))
        loss = seen.context.square().mean() + seen.future.square().mean() + seen.context_loss + seen.dynamics_loss
        loss.backward()
        without = [name for name, weight in model.tokenizer.named_parameters() if weight.grad is None]
        # What lies beyond the code of the plain codebook's own frames is all there is to miss.
        assert not [name for name in without if name != "background"], without


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x[:, :, :, :10], r"shape \[2, 4, 3, 10, 16\]; expected \[b t 3 16 16\]"),
        (lambda x: x[:, :, :1], "expected"),
        (lambda x: x[0], "expected"),
        (lambda x: x[:, :1], "1 frames were given; expected at least 2"),
        (lambda x: (x * 255).byte(), "type torch.uint8; expected floating point"),
    ],
)
def test_frames_that_do_not_fit_are_refused(model_of, frames_for, change, sentence):
    model = model_of("conditional")
    with pytest.raises(UserError, match=sentence):
        model.tokenizer.tokenize(change(frames_for(model, count=4)))


# Fewer context frames


@torch.no_grad()
def test_fewer_context_frames_keep_the_embeddings_of_the_last(build, frames_for):
    model = build("conditional")
    tokenizer = model.tokenizer
    blocks = [*tokenizer.cond_encoder.cross_att_blocks, *tokenizer.cond_decoder.cross_att_blocks]
    before = [block.kv_pos_emb.detach().clone() for block in blocks]
    tokenizer.set_context_frames(1)
    assert tokenizer.config.context_frames == 1
    for block, old in zip(blocks, before, strict=True):
        assert torch.equal(block.kv_pos_emb, old[len(old) // 2 :])
    frames = frames_for(model, count=3)
    ids, _ = tokenizer.tokenize(frames)
    assert ids.shape == (2, tokenizer.layout.length(1, 2)) and tokenizer.detokenize(ids).shape == frames.shape


@pytest.mark.parametrize("count", [0, -1, 3])
def test_context_frames_cannot_grow_or_vanish(build, count):
    for kind in ("conditional", "plain"):
        with pytest.raises(UserError, match=f"context_frames is {count}; expected 1 to 2"):
            build(kind).tokenizer.set_context_frames(count)


def test_as_many_context_frames_change_nothing(build):
    tokenizer = build("conditional").tokenizer
    before = tokenizer.cond_encoder.cross_att_blocks[0].kv_pos_emb
    tokenizer.set_context_frames(2)
    assert tokenizer.cond_encoder.cross_att_blocks[0].kv_pos_emb is before


# Files


@pytest.mark.parametrize("config", [OFFICIAL_64, OFFICIAL_256, *(grid[0] for grid in GRIDS.values())])
def test_a_configuration_comes_back_from_the_official_form(config):
    assert TokenizerConfig.from_official(config.to_official()) == config


def test_options_of_ours_are_written_only_where_used(model_of):
    official, ours = OFFICIAL_64.to_official(), model_of("plain").tokenizer.config
    assert not {"dropout", "pixel_unshuffle", "conditional", "background"} & official.keys()
    assert {"pixel_unshuffle", "conditional", "background"} <= ours.to_official().keys()
    assert TokenizerConfig.from_official(ours.to_official()) == ours and not ours.is_official


def test_what_the_official_256_px_file_leaves_out_has_the_official_default():
    values = OFFICIAL_256.to_official()
    for name in ("resolution", "max_att_resolution", "patch_size"):
        del values[name]
    assert TokenizerConfig.from_official(values) == OFFICIAL_256


def test_a_saved_tokenizer_is_the_same(any_model, frames_for, tmp_path):
    any_model.tokenizer.save_pretrained(tmp_path)
    loaded = CompressiveTokenizer.from_pretrained(tmp_path)
    assert loaded.config == any_model.tokenizer.config and not loaded.training
    frames = frames_for(any_model, count=4)
    with torch.no_grad():
        ids, _ = loaded.tokenize(frames)
        assert torch.equal(ids, any_model.tokenizer.tokenize(frames)[0])
        assert torch.equal(loaded.detokenize(ids), any_model.tokenizer.detokenize(ids))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_dyn_embeddings": None}, "dynamics_codes is None; expected int"),
        ({"block_out_channels": "many"}, "block_channels is 'many'; expected a list of int"),
        ({"layers_per_block": 2}, "does not fit its config.json"),
        ({"latent_channels": 16}, "has shape"),
        ({"norm_type": "spatial"}, "norm_type='spatial' is not supported; expected 'group'"),
        ({"patch_size": 0}, "patch_size is 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(model_of, tmp_path, changes, sentence):
    model_of("conditional").tokenizer.save_pretrained(tmp_path)
    save_json(tmp_path / "config.json", load_json(tmp_path / "config.json") | changes)
    with pytest.raises(UserError, match=sentence) as caught:
        CompressiveTokenizer.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_damaged_configuration_is_one_sentence(model_of, tmp_path, content):
    model_of("conditional").tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        CompressiveTokenizer.from_pretrained(tmp_path)


def test_another_kind_of_model_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json; expected a tokenizer folder"):
        CompressiveTokenizer.from_pretrained(tmp_path)
    save_json(tmp_path / "config.json", {"_class_name": "AutoencoderKL"})
    with pytest.raises(UserError, match="describes AutoencoderKL, not a compressive tokenizer"):
        CompressiveTokenizer.from_pretrained(tmp_path)
