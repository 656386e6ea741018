"""The models of RLVR-World in miniature: trained, imagined, measured and post-trained by the commands' stages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ivideogpt.cli import main
from ivideogpt.commands.training_stages import Machine, read_mixture, tokenizer_stage, transformer_stage
from ivideogpt.configs.recipe import Recipe
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.errors import UserError
from ivideogpt.data.tokens import TokenLoader, TokenStore
from ivideogpt.envs.record.moving_square import collect_squares
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.transformer import TransformerConfig
from ivideogpt.training.token_batches import StoredTokens
from ivideogpt.training.tokenizer_loss import TokenizerLossConfig
from ivideogpt.worldmodel.world_model import WorldModel


def miniature(kind: str) -> Recipe:
    """Return the preset with tiny networks, few updates and frames of 16 x 24 pixels."""
    recipe = find_preset(f"rlvr-world-{kind}")
    widths = (32, 32) if kind == "multi" else (16, 16, 16)
    tokenizer = replace(
        recipe.tokenizer.tokenizer,
        resolution=16,
        width=24,
        block_channels=widths,
        layers_per_block=1,
        latent_channels=8,
        norm_groups=16,
        max_attention_resolution=8,
        patch_size=4 if kind == "multi" else 1,
        context_frames=1 if kind == "multi" else 2,
        levels=(3, 3),
        context_codes=9,
        dynamics_codes=9,
    )
    loss = TokenizerLossConfig(perceptual_weight=0.0, discriminator_weight=0.0)
    shape = TransformerConfig(
        vocab_size=1, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, max_positions=256
    )
    return replace(
        recipe,
        tokenizer=replace(
            recipe.tokenizer,
            tokenizer=tokenizer,
            steps=6,
            batch_size=4,
            future_frames=2,
            horizon=4,
            warmup_steps=0,
            loss=loss,
            save_every=6,
        ),
        model=replace(recipe.model, transformer=shape, heads=replace(recipe.model.heads, action_bins=4)),
        transformer=replace(
            recipe.transformer, steps=6, batch_size=4, clip_frames=4, learning_rate=1e-2, warmup_steps=0, save_every=6
        ),
        reference_distance=3,
        stride=1,
    )


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_miniature_is_trained_measured_and_post_trained(kind: str, tmp_path: Path, capsys) -> None:
    data, machine, recipe = tmp_path / "data", Machine(device="cpu", precision="float32"), miniature(kind)
    collect_squares(data)
    mixture = read_mixture(str(data))
    tokenizer = tokenizer_stage(recipe, mixture, tmp_path / "tokenizer", machine)
    model = transformer_stage(recipe, mixture, tokenizer, tmp_path / "start", machine)
    heads, layout = model.config.heads, model.layout
    assert (model.frame_size, model.context_frames, model.past_actions) == ((16, 24), 2, int(kind == "single"))
    assert layout.action_ids == range(*{"single": (9, 13), "multi": (18, 22)}[kind]) and heads.action_dim == 1
    raw = torch.tensor([[1.0], [1.6], [2.0]])  # recorded actions are 1 or 2
    assert (model.dynamics.action_ids(model.normalize_actions(raw)) - layout.action_ids.start).tolist() == [
        [0],
        [2],
        [3],
    ]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "start" / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(0 < loss < 4 for loss in losses)

    words = ["evaluate", str(tmp_path / "start"), "--data", str(data), "--split", "val", "--protocol", "single"]
    options = ["--clips", "2", "--metrics", "none", "--device", "cpu", "--output", str(tmp_path / "report")]
    capsys.readouterr()
    assert main(words + options) == 0, capsys.readouterr().err
    words = ["predict", str(tmp_path / "start"), "--input", str(data), "--horizon", "2", "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "pictures")]) == 0
    with pytest.raises(UserError, match="24 x 16 pixels, which an environment cannot give"):
        model.require_square("an environment")

    # tokens on disk are those of clips as they come
    words = ["tokenize", str(tmp_path / "tokenizer"), "--data", str(data), "--out", str(tmp_path / "tokens")]
    assert main([*words, "--frames", "4", "--device", "cpu"]) == 0
    stored = StoredTokens(model, TokenLoader(TokenStore(tmp_path / "tokens"), batch_size=2, frames=4))
    batch = next(iter(stored))
    assert batch.ids.shape == (2, layout.length(2, 2)) and batch.actions.shape == (2, 2 + model.past_actions, 1)
    assert model.dynamics.losses(batch.ids, batch.actions).tokens.isfinite()

    words = ["posttrain", "debug", str(tmp_path / "start"), "--data", str(data), "--run", str(tmp_path / "run")]
    assert main([*words, "--tracker", "none", "--device", "cpu", "--steps", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["reward_before"] < 0 and result["reward_after"] < 0
    after = WorldModel.from_pretrained(tmp_path / "run")
    assert after.layout == layout and after.config.metadata["post_training"]["reward"] == "mae"
    assert not torch.equal(after.transformer.head.weight, model.transformer.head.weight.cpu())


def test_the_presets_have_the_published_sizes() -> None:
    single, multi = (find_preset(f"rlvr-world-{kind}") for kind in ("single", "multi"))
    assert (single.tokenizer.tokenizer.context_shape, single.transformer.clip_frames) == ((16, 20), 5)
    shape = multi.tokenizer.tokenizer
    assert (shape.context_shape, shape.dynamics_shape, multi.transformer.clip_frames) == ((32, 40), (8, 10), 9)
    for recipe in (single, multi):
        training, layers = recipe.transformer, recipe.model.transformer
        assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (5e-5, 5000, 0.0)
        assert (layers.num_layers, layers.hidden_size, layers.intermediate_size, layers.max_positions) == (
            12,
            768,
            3072,
            8192,
        )
        assert training.batch_size == 4 * 8 and recipe.tokenizer.loss.discriminator_weight == 0.1
    with torch.device("meta"):  # shapes alone: nothing is computed
        for recipe, tokens, frames in ((single, [(1, 4, 320), (1, 1, 320)], 5), (multi, [(1, 1, 1280), (1, 8, 80)], 9)):
            network = CompressiveTokenizer(recipe.tokenizer.tokenizer)
            codes = network.encode(torch.empty(1, frames, 3, 256, 320))
            assert [tuple(x.shape) for x in codes] == tokens
            assert network.decode(*codes).shape == (1, frames, 3, 256, 320)
    clips = multi.transformer_clips(9, context_frames=2, size=shape.frame_size, rewards=False)
    assert (clips.mode, clips.horizon, clips.size) == ("reference_first", 8 + 15, (256, 320))
    assert single.transformer_clips(5, context_frames=4, size=8, rewards=False).mode == "contiguous"
    posttraining = find_preset("rlvr-world-multi", "posttrain"), find_preset("rlvr-world-single", "posttrain")
    assert [(x.clip_frames, x.reward, x.group, x.prompts) for x in posttraining] == [
        (9, "perceptual+mae", 16, 128),
        (5, "perceptual+mae", 16, 128),
    ]
