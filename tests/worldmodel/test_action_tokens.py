"""Models whose actions are tokens, as in RLVR-World: both layouts, rectangular frames, and fixed codes."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Heads, HeadsConfig
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.posttrain.grpo import (
    GrpoTraining,
    TokenPolicy,
    add_policy_gradients,
    collect_experience,
    frozen_dynamics,
    group_advantages,
    select_prompts,
)
from ivideogpt.posttrain.rewards import RewardSum, parse_reward
from ivideogpt.posttrain.rollouts import FutureSampler, Prompts
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel

LEVELS = (3, 3, 2)
SHAPE = {"levels": LEVELS, "context_codes": 18, "dynamics_codes": 18, "layers_per_block": 1, "latent_channels": 8}
# 4x6 tokens of each frame of 16x24 pixels, three context frames
SINGLE = TokenizerConfig(
    resolution=16, width=24, block_channels=(16, 16, 32), norm_groups=16, patch_size=1, conditional=False,
    mid_attention=True, max_attention_resolution=32, context_frames=3, **SHAPE,
)  # fmt: skip
# 8x12 tokens of the reference frame, 2x3 of later frames
MULTI = TokenizerConfig(
    resolution=16, width=24, block_channels=(32, 32), norm_groups=16, max_attention_resolution=8, context_frames=1,
    **SHAPE,
)  # fmt: skip
HEADS = HeadsConfig(
    action_dim=2, action_conditioning="tokens", action_bins=8, action_low=(-1.0, 0.0), action_high=(1.0, 4.0)
)
KINDS = {"single": (SINGLE, 3, 260), "multi": (MULTI, 2, 160)}


def build(kind: str, **heads: object) -> WorldModel:
    shape, frames, positions = KINDS[kind]
    config = WorldModelConfig(name=kind, context_frames=frames, clip_frames=frames + 3, heads=replace(HEADS, **heads))
    torch.manual_seed(0)
    width = TransformerConfig(
        vocab_size=config.layout(shape).vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        max_positions=positions,
    )
    transformer = Transformer(width)
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.5 * 32**-0.5)
    nn.init.normal_(transformer.embed.weight)
    return WorldModel(config, CompressiveTokenizer(shape).eval(), transformer, Heads(config.heads, 32, 18)).eval()


def clips(model: WorldModel, frames: int = 3, rows: int = 2, seed: int = 0):
    """Context, past actions, actions, and the real future."""
    generator = torch.Generator().manual_seed(seed)
    count, past = model.context_frames, model.past_actions
    pixels = torch.rand(rows, count + frames, 3, 16, 24, generator=generator)
    actions = torch.rand(rows, past + frames, 2, generator=generator) * torch.tensor([2.0, 4.0]) - torch.tensor(
        [1.0, 0]
    )
    return pixels[:, :count], actions, pixels[:, count:]


def rollout(model: WorldModel, horizon: int = 3, **options):
    context, actions, _ = clips(model, horizon)
    past, applied = model.split_actions(actions)
    return model.imagine(context, applied, seed=[3, 4], past_actions=past, **options)


def test_bins_of_actions_are_of_one_size_and_bounded():
    model = build("multi")
    first = model.layout.action_ids.start
    actions = torch.tensor([[-1.0, 0.0], [-0.76, 0.49], [-0.74, 0.51], [0.99, 3.99], [1.0, 4.0], [-9.0, 9.0]])
    expected = [[0, 0], [0, 0], [1, 1], [7, 7], [7, 7], [0, 7]]
    assert (model.dynamics.action_ids(actions) - first).tolist() == expected
    with pytest.raises(UserError, match="action_low has 1 numbers and action_high 2; expected 2 each"):
        build("multi", action_low=(0.0,))
    with pytest.raises(UserError, match="no slots, no forecast"):
        build("multi", slots=97)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_probabilities_are_those_of_one_pass(kind):
    model = build(kind)
    context, actions, _ = clips(model)
    past, applied = model.split_actions(actions)
    imagined = rollout(model, sampling=Sampling(top_k=None))
    assert imagined.frames.shape == (2, 3, 3, 16, 24) and imagined.frames.std() > 0
    scored = model.log_prob(context, applied, imagined.ids, Sampling(top_k=None), past_actions=past)
    assert (scored - imagined.log_probs).abs().max() < 1e-4
    ids = model.layout.join(*model.layout.split(model.encode_context(context), model.context_frames))
    sequence = model.dynamics.with_actions(model.layout.extend(ids, imagined.ids), actions)
    for position, column in enumerate(sequence.T.tolist()):
        assert set(column) <= set(model.layout.legal_ids(position, model.context_frames)), position


@pytest.mark.parametrize("kind", KINDS)
def test_every_action_matters_and_those_before_the_context_only_where_they_are_read(kind):
    model = build(kind)
    context, actions, _ = clips(model)
    ids = torch.randint(18, (2, 3, model.layout.dynamics_tokens), generator=torch.Generator().manual_seed(1))
    prompt, scores = model.encode_context(context), []
    for index in range(actions.shape[1]):
        changed = actions.clone()
        changed[:, index] = torch.tensor([1.0, 4.0])
        changed[:, index, 0] -= 2.0 * (actions[:, index, 0] > 0)
        scores.append(model.dynamics.log_prob(prompt, ids, changed) - model.dynamics.log_prob(prompt, ids, actions))
    past = model.past_actions
    assert past == {"single": 2, "multi": 0}[kind]
    for index, difference in enumerate(scores):
        first = max(index - past, 0)
        assert difference[:, first:].abs().max() > 1e-3, index
        assert not difference[:, :first].any(), index


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_forks_rewinds_and_new_contexts_change_nothing(kind):
    model = build(kind)
    context, actions, _ = clips(model, 7)
    past, applied = model.split_actions(actions)
    options = {"seed": [3, 4], "past_actions": past, "reanchor_every": 2}
    sessions = [model.session(context, speculative=on, **options) for on in (True, False)]
    drafted, plain = (session.rollout(applied) for session in sessions)
    assert torch.equal(drafted.ids, plain.ids) and torch.allclose(drafted.log_probs, plain.log_probs, atol=1e-4)
    session = sessions[0]
    session.rewind(4)
    assert torch.equal(session.rollout(applied[:, 3:]).ids, plain.ids[:, 3:])
    session.rewind(5)
    children = session.fork(2).rollout(applied[:, 2:].repeat_interleave(2, dim=0))
    assert torch.equal(children.ids[::2], plain.ids[:, 2:]) and not torch.equal(children.ids[1::2], plain.ids[:, 2:])
    selected = session.select([1]).rollout(applied[1:, 2:])
    assert torch.equal(selected.ids, plain.ids[1:, 2:])
    scored = model.log_prob(context, applied, plain.ids, past_actions=past, reanchor_every=2)
    assert (scored - plain.log_probs).abs().max() < 1e-4


def test_past_actions_are_asked_for_by_the_model_that_reads_them():
    context, actions, _ = clips(build("single"))
    with pytest.raises(UserError, match="no past_actions came; this model reads the 2 actions"):
        build("single").imagine(context, actions[:, 2:])
    context, actions, _ = clips(build("multi"))
    with pytest.raises(UserError, match="reads no actions between its context frames"):
        build("multi").imagine(context, actions, past_actions=actions[:, :1])
    with pytest.raises(UserError, match=r"context came with shape .*resize the frames to 24 x 16 px"):
        build("multi").imagine(torch.rand(2, 2, 3, 16, 16), actions)


@pytest.mark.parametrize("kind", KINDS)
def test_only_tokens_of_frames_are_in_the_loss(kind):
    model = build(kind)
    context, actions, real = clips(model)
    ids = model.tokenize(torch.cat([context, real], dim=1))
    layout = model.layout
    labels = layout.labels(ids, model.context_frames)
    assert (labels != -100).sum(dim=1).tolist() == [3 * layout.dynamics_tokens] * 2
    losses = model.dynamics.losses(ids, actions)
    codes = layout.split(ids, model.context_frames)[1][:, layout.lead_frames :]
    prompt = ids[:, : layout.context_length(model.context_frames)]
    scored = model.dynamics.log_prob(prompt, codes + layout.dynamics_ids.start, actions, legal_only=False)
    assert float(losses.tokens.detach()) == pytest.approx(float(-scored.mean().detach()), rel=1e-5)
    decoded = model.detokenize(ids)
    assert decoded.shape == (2, model.context_frames + 3, 3, 16, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_comes_back(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config and again.layout == model.layout
    assert torch.equal(rollout(again).ids, rollout(model).ids)
    assert "24 x 16" in (tmp_path / "model" / "README.md").read_text()
    rounded = WorldModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert rollout(rounded).frames.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_post_training_leaves_inserted_tokens_alone(kind, tmp_path):
    model = build(kind)
    config = GrpoTraining(reward="mae", prompts=2, group=4, minibatch_prompts=2, gradient_accumulation=2, steps=1)
    run = Run(tmp_path, seed=0, device="cpu", precision="float32")
    sampler = FutureSampler(model, config.sampling, config.group, 8)
    context, actions, real = clips(model)
    prompts = Prompts(torch.cat([context, real], dim=1), actions)
    reward = RewardSum(parse_reward("mae+repetition"))
    experience = collect_experience(config, sampler, frozen_dynamics(model), prompts, [0, 1], reward, run)
    policy = TokenPolicy(model.dynamics, config.temperature)
    minibatch = select_prompts(experience, group_advantages(experience.rewards), torch.arange(2))
    figures = add_policy_gradients(config, policy, run, minibatch)
    assert float(figures["ratio"]) == pytest.approx(1, abs=1e-5)
    gradient, layout = model.transformer.head.weight.grad, model.layout
    assert gradient[layout.dynamics_ids.start : layout.dynamics_ids.stop].any()
    others = torch.ones(layout.vocab_size, dtype=torch.bool)
    others[layout.dynamics_ids.start : layout.dynamics_ids.stop] = False
    assert others.sum() > 8 and not gradient[others].any()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()
    after = policy(minibatch.context, minibatch.ids, minibatch.actions)
    improved = ((after - minibatch.old).mean(dim=-1) * minibatch.advantages).mean()
    assert improved > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_their_tokenizer_and_transformer_is_a_world_model(kind, tmp_path):
    model = build(kind, action_bins=256)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / "tokenizer" / "config.json"
    values = json.loads(path.read_text())
    ours = ("conditional", "num_dyn_embeddings", "num_vq_embeddings")
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in ours}))
    with pytest.raises(UserError, match="put them into action_ranges.json"):
        WorldModel.from_pretrained(tmp_path)
    (tmp_path / "action_ranges.json").write_text('{"low": [-1, 0], "high": [1, 4]}')
    again = WorldModel.from_pretrained(tmp_path)
    assert again.config.heads == model.config.heads and again.layout == model.layout
    assert torch.equal(rollout(again).ids[:, :2], rollout(model).ids[:, :2])


def test_files_of_rlvr_world_load(tmp_path):
    """A folder made in their format: class names, levels as a number, and their names of tensors."""
    levels = {"levels": (7, 5, 5, 5, 5), "context_codes": 4375, "dynamics_codes": 4375}
    tokenizer = CompressiveTokenizer(replace(SINGLE, resolution=16, width=20, block_channels=(32, 32, 32), **levels))
    tokenizer.save_pretrained(tmp_path)
    names = load_tensors(tmp_path / "diffusion_pytorch_model.safetensors").keys()
    assert {"quant_linear.weight", "post_quant_linear.bias"} <= names and not any("quant_conv" in x for x in names)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["_class_name"] == "CNNFSQModel256"
    theirs = ("_class_name", "block_out_channels", "layers_per_block", "latent_channels", "resolution")
    theirs += ("norm_num_groups", "norm_type", "act_fn", "in_channels", "out_channels")
    kept = {name: values[name] for name in theirs} | {"fsq_levels": 12}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    again = CompressiveTokenizer.from_pretrained(tmp_path)
    assert again.config.frame_size == (16, 20) and again.config.levels == (7, 5, 5, 5, 5)
    frames = torch.rand(1, 4, 3, 16, 20)
    codes = again.encode(frames)[0]
    assert codes.shape == (1, 4, 20) and torch.equal(codes, tokenizer.eval().encode_context(frames)[0])

    kept |= {"_class_name": "CompressiveVQModelFSQ", "vq_fsq_levels": 12, "dyn_fsq_levels": 10}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="expected one list of levels for all codes, or 12"):
        CompressiveTokenizer.from_pretrained(tmp_path)


def test_layouts_of_rlvr_world_have_the_published_numbers():
    levels = {"levels": (7, 5, 5, 5, 5), "context_codes": 4375, "dynamics_codes": 4375}
    size = {"resolution": 256, "width": 320, "latent_channels": 64, **levels}
    actions = HeadsConfig(action_dim=13, action_conditioning="tokens", action_low=(0.0,) * 13, action_high=(1.0,) * 13)
    single = TokenizerConfig(
        block_channels=(128, 256, 256, 512, 768), patch_size=1, conditional=False, context_frames=4, **size
    )
    layout = WorldModelConfig(context_frames=4, heads=actions).layout(single)
    assert (layout.vocab_size, layout.action_ids, layout.dynamics_separator) == (4633, range(4375, 4631), 4631)
    assert (layout.dynamics_ids, layout.context_ids) == (range(4375), range(4375))
    assert layout.prompt_length(4) == 1333 and layout.length(4, 1) == 1333 + 320
    assert layout.action_positions(4, 1)[:, 0].tolist() == [320, 653, 986, 1319]
    assert layout.legal_ids(1332, 4) == range(4631, 4632) and layout.legal_ids(1333, 4) == range(4375)

    multi = TokenizerConfig(block_channels=(128, 256, 256, 512), context_frames=1, **size)
    layout = WorldModelConfig(context_frames=2, heads=actions).layout(multi)
    assert (layout.context_tokens, layout.dynamics_tokens) == (1280, 80)
    assert (layout.vocab_size, layout.dynamics_ids, layout.context_ids) == (9008, range(4375), range(4375, 8750))
    assert layout.action_ids == range(8750, 9006) and layout.dynamics_separator == 9006
    assert layout.prompt_length(2) == 1373 and layout.length(2, 7) == 1373 + 80 + 6 * 93
    assert layout.action_positions(2, 7)[:, 0].tolist() == [1360 + 93 * index for index in range(7)]
    with pytest.raises(UserError, match="expected 2 for the model"):
        WorldModelConfig(context_frames=1, heads=actions).layout(multi)


def test_a_file_with_nan_is_refused_for_fixed_codes_too(tmp_path):
    CompressiveTokenizer(MULTI).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_tensors(path)
    tensors["quant_linear.weight"][0, 0] = torch.nan
    save_tensors(path, tensors)
    with pytest.raises(UserError, match="NaN or infinity in quant_linear.weight"):
        CompressiveTokenizer.from_pretrained(tmp_path)
