"""Our numbers beside those of the official code (thuml/iVideoGPT, CPU, fp32) on two tiny models.

Ids are equal, numbers are within 1e-4. What each stored output is: docs/parity.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file

from ivideogpt import Sampling, WorldModel
from ivideogpt.core.config import load_json

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "golden"
FORCED = Sampling(greedy=True, legal_only=False)
FREE = Sampling(greedy=True, legal_only=False, free_separators=True)


@dataclass(frozen=True)
class Golden:
    """One of the two models: its folder, what went in, and what came out."""

    folder: Path
    inputs: dict
    outputs: dict
    free: WorldModel
    action: WorldModel

    @property
    def video(self):
        return self.inputs["video_uint8"].float() / 255

    @property
    def context_frames(self):
        return self.free.context_frames

    @property
    def actions(self):
        """``[b f a]``: the action of each future frame."""
        return self.inputs["actions"][:, self.context_frames - 1 : -1]

    @property
    def context(self):
        return self.inputs["video_uint8"][:, : self.context_frames]

    def future_ids(self, ids):
        """``[b f m]`` of a whole official sequence."""
        future = ids[:, self.free.layout.context_length(self.context_frames) :]
        return rearrange(future, "b (f m) -> b f m", m=self.free.layout.frame_length)[:, :, 1:]


def checkpoint(folder, transformer, target):
    """A checkpoint in the official layout: ``tokenizer/`` beside one of the golden transformers."""
    target.mkdir()
    (target / "tokenizer").symlink_to(folder / "tokenizer")
    (target / "transformer").symlink_to(folder / transformer)
    return target


@pytest.fixture(scope="module", params=["small", "ctx1"])
def golden(request, tmp_path_factory):
    folder = GOLDEN / request.param
    if not folder.is_dir():
        pytest.skip(f"the golden outputs of the official code are not here ({folder})")
    temporary = tmp_path_factory.mktemp(request.param)
    free, action = (
        WorldModel.from_pretrained(checkpoint(folder, name, temporary / name))
        for name in ("transformer", "transformer_action")
    )
    return Golden(
        folder, load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors"), free, action
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# Tokenizer


@torch.no_grad()
def test_ids_and_labels_are_equal(golden):
    ids, labels = golden.free.tokenizer.tokenize(golden.video)
    assert torch.equal(ids, golden.outputs["tokens"])
    assert torch.equal(labels, golden.outputs["labels"])


@torch.no_grad()
def test_the_encoders_are_equal_at_every_level(golden):
    tokenizer, out, count = golden.free.tokenizer, golden.outputs, golden.context_frames
    context, future = golden.video[:, :count], golden.video[:, count:]
    first = rearrange(context, "b c d h w -> (b c) d h w")
    latents, levels = tokenizer.encoder(first)
    close(latents, out["encoder_out"])
    close(tokenizer.quant_conv(latents), out["quant_conv_out"])
    if "encoder_feature_0" in out:
        close(tokenizer.encoder.conv_in(first[:1]), out["encoder_feature_0"])
        for index, level in enumerate(levels):
            close(level[:1], out[f"encoder_feature_{index + 1}"])
        close(tokenizer.encoder.mid_block(levels[-1][:1]), out["encoder_feature_4"])
    _, features = tokenizer.encode_context(context)
    latents, _ = tokenizer.cond_encoder(rearrange(future, "b f d h w -> (b f) d h w"), features.levels)
    close(latents, out["cond_encoder_out"])
    vectors = tokenizer(golden.video).dynamics_vectors
    close(rearrange(vectors, "b f m d -> (b f) m d"), out["quant_linear_out"])


@torch.no_grad()
def test_what_the_decoders_read_is_equal(golden):
    tokenizer, out = golden.free.tokenizer, golden.outputs
    context, future = golden.free.layout.split(out["tokens"], golden.context_frames)
    maps = rearrange(tokenizer.quantize.decode(context), "b c (h w) d -> (b c) d h w", h=16)
    close(tokenizer.post_quant_conv(maps), out["post_quant_conv_out"])
    patches = tokenizer.post_quant_linear(tokenizer.dynamics_quantize.decode(future))
    close(rearrange(patches, "b f m d -> (b f) m d"), out["post_quant_linear_out"])


@torch.no_grad()
def test_decoded_frames_are_equal(golden):
    close(golden.free.tokenizer.detokenize(golden.outputs["tokens"]), golden.outputs["detok_frames"])


@torch.no_grad()
def test_garbage_in_separators_and_out_of_range_ids_decode_as_officially(golden):
    frames = golden.free.tokenizer.detokenize(golden.outputs["bad_tokens"])
    close(frames[..., ::2, ::2], golden.outputs["bad_detok_frames"])


@torch.no_grad()
def test_a_training_pass_of_the_tokenizer_is_equal(golden):
    seen, out = golden.free.tokenizer(golden.video), golden.outputs
    close(seen.context_loss, out["forward_commit_loss"])
    close(seen.dynamics_loss, out["forward_dyn_commit_loss"])
    close(rearrange(seen.future, "b f d h w -> (b f) d h w")[..., ::2, ::2], out["forward_dec"])
    close(rearrange(seen.context, "b c d h w -> (b c) d h w")[..., ::2, ::2], out["forward_ref_dec"])


# Transformer and heads


@torch.no_grad()
def test_logits_are_equal_with_and_without_actions(golden):
    for model, actions, name in (
        (golden.free, None, "free_logits"),
        (golden.action, golden.actions, "act_logits"),
    ):
        expected = golden.outputs[name]
        hidden, _ = model.dynamics.hidden_states(golden.outputs["tokens"], actions)
        close(model.transformer.logits(hidden[:, -expected.shape[1] :]), expected)


@torch.no_grad()
def test_losses_are_equal(golden):
    tokens, out = golden.outputs["tokens"], golden.outputs
    free = golden.free.dynamics.losses(tokens)
    close(free.tokens, out["free_loss"])
    assert free.rewards is None and free.actions is None
    action = golden.action.dynamics.losses(tokens, golden.actions)
    close(action.tokens, out["act_loss"])
    close(action.actions, out["action_recon_loss"])
    close(action.tokens + 0.1 * action.actions, out["act_loss_with_action_recon"])


@torch.no_grad()
def test_the_reward_is_read_off_the_last_token_of_each_frame(golden):
    model, expected = golden.action, golden.outputs["act_reward_pred"][..., 0]
    hidden, _ = model.dynamics.hidden_states(golden.outputs["tokens"], golden.actions)
    future = hidden[:, model.layout.context_length(model.context_frames) :]
    close(
        model.dynamics.rewards(rearrange(future, "b (f m) d -> b f m d", m=model.layout.frame_length)[:, :, -1]),
        expected,
    )
    wanted = expected + 0.5
    losses = model.dynamics.losses(golden.outputs["tokens"], golden.actions, rewards=wanted)
    close(losses.rewards, torch.tensor(0.25))


# Generation


def test_action_free_generation_is_equal(golden):
    horizon = golden.actions.shape[1]
    imagined = golden.free.imagine(golden.context, horizon=horizon, sampling=FREE, reanchor_every=horizon)
    assert torch.equal(imagined.ids, golden.future_ids(golden.outputs["free_generate"]))


def test_generation_with_forced_separators_is_equal_and_another(golden):
    horizon = golden.actions.shape[1]
    imagined = golden.free.imagine(golden.context, horizon=horizon, sampling=FORCED)
    assert torch.equal(imagined.ids, golden.future_ids(golden.outputs["noact_forced_sdf_generate"]))
    assert not torch.equal(imagined.ids, golden.future_ids(golden.outputs["free_generate"]))


def test_action_conditioned_generation_is_equal_to_its_frames(golden):
    imagined = golden.action.imagine(golden.context, golden.actions, sampling=FORCED)
    assert torch.equal(imagined.ids, golden.future_ids(golden.outputs["act_generate"]))
    frames = golden.outputs["act_generate_frames"][:, golden.context_frames :]
    close(imagined.frames[..., ::2, ::2], frames)


def test_context_frames_of_a_session_decode_as_the_official_ones(golden):
    # The official generate shows reconstructions of the context; a session shows the context itself.
    with torch.no_grad():
        codes, _ = golden.free.tokenizer.encode_context(golden.context.float() / 255)
        frames, _ = golden.free.tokenizer.decode_context(codes)
    close(frames.clamp(0, 1)[..., ::2, ::2], golden.outputs["act_generate_frames"][:, : golden.context_frames])


@pytest.mark.parametrize("symlog", [False, True])
def test_a_rollout_has_the_official_frames_and_rewards(golden, symlog):
    out, model = golden.outputs, golden.action
    model = WorldModel(replace(model.config, symlog_rewards=symlog), model.tokenizer, model.transformer, model.heads)
    stacked = rearrange(out["rollout_first_obs"], "b (t d) h w -> b t d h w", t=3)
    actions = golden.inputs["actions"][:, 2:5]
    assert torch.equal(out["rollout_actions"][:, 1:], actions)
    session = model.session(stacked[:, -golden.context_frames :], sampling=FORCED)
    rewards = out["rollout_rewards_symlog" if symlog else "rollout_rewards"][..., 0]
    # The official rollout begins with a dummy step.
    for index in range(3):
        step = session.step(actions[:, index])
        close(step.frames, out["rollout_obs_last3"][:, index + 1])
        close(step.rewards, rewards[:, index + 1])


# Files


def contents(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  safe_open is no mapping


@pytest.mark.parametrize("kind", ["transformer", "transformer_action"])
def test_what_we_save_has_the_official_keys_shapes_and_fields(golden, kind, tmp_path):
    model = golden.free if kind == "transformer" else golden.action
    model.save_pretrained(tmp_path / "saved")
    weights = {"tokenizer": "diffusion_pytorch_model.safetensors", "transformer": "model.safetensors"}
    for part, source in (("tokenizer", "tokenizer"), ("transformer", kind)):
        saved, official = tmp_path / "saved" / part, golden.folder / source
        assert contents(saved / weights[part]) == contents(official / weights[part])
        expected = load_json(official / "config.json")
        expected.pop("_name_or_path", None)  # where the official code had read its own configuration
        assert load_json(saved / "config.json") == expected
        assert {file.name for file in saved.iterdir()} == {file.name for file in official.iterdir()}
        stored, found = load_file(official / weights[part]), load_file(saved / weights[part])
        assert all(torch.equal(stored[name], found[name]) for name in stored)
    assert not (tmp_path / "saved" / "heads.safetensors").exists()


def test_bfloat16_halves_the_files_and_loses_nothing(golden, tmp_path):
    golden.action.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    weights = "transformer/model.safetensors"
    half, whole = (
        (tmp_path / "half" / weights).stat().st_size,
        (golden.folder / "transformer_action/model.safetensors").stat().st_size,
    )
    assert half < 0.55 * whole
    loaded = WorldModel.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.float32
    expected = golden.action.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_what_no_official_file_says_is_unknown(golden):
    assert golden.free.config.clip_frames is None and not golden.free.config.goal_conditioned
    assert golden.free.action_dim == 0 and golden.action.action_dim == 4
    assert golden.action.config.heads.reward and golden.action.config.heads.action_reconstruction
