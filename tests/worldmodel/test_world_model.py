"""Checkpoints: what is saved is loaded, official folders are read, and what does not fit is one sentence."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivideogpt import Sampling, UserError, WorldModel
from ivideogpt.core.checkpoint import step_folder
from ivideogpt.core.config import load_json, save_json
from ivideogpt.models.dynamics import Heads
from ivideogpt.worldmodel import checkpoint
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.model_card import model_card, token_facts
from ivideogpt.worldmodel.shipped import SHIPPED

TOKENIZER, TRANSFORMER = Path("tokenizer/diffusion_pytorch_model.safetensors"), Path("transformer/model.safetensors")


@pytest.fixture
def saved(model_of, tmp_path):
    """``saved(kind, name)``: the folder of a checkpoint that the test may change."""

    def save(kind="conditional", name="model"):
        model_of(kind).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def change(path, **changes):
    """Replaces tensors of a safetensors file; None removes one."""
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Out and in


def test_a_saved_model_is_loaded_exactly(any_model, frames_for, actions_for, tmp_path):
    any_model.save_pretrained(tmp_path / "model")
    loaded = WorldModel.from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert loaded.config == any_model.config
    assert loaded.tokenizer.config == any_model.tokenizer.config
    assert loaded.transformer.config == any_model.transformer.config
    expected = any_model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    context, actions = frames_for(any_model), actions_for(any_model)
    one, other = (model.imagine(context, actions, horizon=3) for model in (any_model, loaded))
    assert torch.equal(one.ids, other.ids) and torch.equal(one.frames, other.frames)


def test_saving_twice_gives_the_same_files(saved):
    one, other = saved(name="a"), saved(name="b")
    assert files(one) == files(other)
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files(one))


def test_only_what_the_official_format_does_not_know_lies_outside_it(any_model, tmp_path):
    any_model.save_pretrained(tmp_path / "model")
    names = set(load_file(tmp_path / "model" / TRANSFORMER))
    ours = any_model.config.name == "plain"
    assert (tmp_path / "model" / "heads.safetensors").exists() == ours
    heads = set(any_model.heads.state_dict())
    if ours:
        assert set(load_file(tmp_path / "model" / "heads.safetensors")) == heads
    assert (names & heads) == (set() if ours else heads)
    assert any(name.startswith("llm.") for name in names) == bool(heads and not ours)
    assert {"config.json", "README.md", "tokenizer/config.json", "transformer/config.json"} <= files(tmp_path / "model")


def test_the_official_folders_alone_say_what_the_heads_are(model_of, saved):
    for kind in ("conditional", "action_free", "official"):
        folder = saved(kind, kind)
        (folder / "config.json").unlink()
        loaded, model = WorldModel.from_pretrained(folder), model_of(kind)
        assert loaded.config.heads == model.config.heads
        assert loaded.context_frames == 2 and loaded.layout == model.layout
        assert loaded.config.clip_frames is None and loaded.config.name == kind


def test_another_config_json_beside_the_official_folders_is_passed_over(saved):
    folder = saved()
    save_json(folder / "config.json", {"model_type": "something"})
    assert WorldModel.from_pretrained(folder).action_dim == 3


def test_older_files_may_hold_rotary_frequencies(saved):
    folder = saved()
    change(folder / TRANSFORMER, **{"llm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert WorldModel.from_pretrained(folder).action_dim == 3


def test_newer_transformers_keep_theta_elsewhere(saved):
    folder = saved()
    values = load_json(folder / "transformer/config.json")
    del values["rope_theta"]
    save_json(
        folder / "transformer/config.json", values | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
    )
    assert WorldModel.from_pretrained(folder).transformer.config.rope_theta == 500.0


def test_a_run_folder_is_its_newest_checkpoint(build, tmp_path):
    for step in (5, 20, 10):
        build("conditional", name=f"step {step}").save_pretrained(step_folder(tmp_path, step))
    assert WorldModel.from_pretrained(tmp_path).config.name == "step 20"


def test_bfloat16_files_load_as_float32_and_the_other_way_round(build, tmp_path):
    for kind in ("conditional", "plain"):
        model, folder = build(kind), tmp_path / kind
        model.save_pretrained(folder, dtype=torch.bfloat16)
        loaded = WorldModel.from_pretrained(folder)
        assert loaded.dtype == torch.float32
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[name].to(torch.bfloat16).float()), name
        for file in (TOKENIZER, TRANSFORMER, Path("heads.safetensors")):
            if (folder / file).exists():
                assert {value.dtype for value in load_file(folder / file).values()} == {torch.bfloat16}
        assert WorldModel.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_saving_replaces_an_older_checkpoint_and_nothing_else(build, saved, tmp_path):
    folder = saved()
    build("conditional", name="newer").save_pretrained(folder)
    assert WorldModel.from_pretrained(folder).config.name == "newer"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', which would be lost"):
        build("conditional", name="newest").save_pretrained(folder)
    assert (folder / "notes.txt").exists() and WorldModel.from_pretrained(folder).config.name == "newer"


def test_a_save_that_fails_leaves_nothing(model_of, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ivideogpt.worldmodel.checkpoint.model_card", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        model_of("conditional").save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# Context frames


def test_fewer_context_frames_keep_the_last_position_embeddings(model_of, saved, frames_for, actions_for):
    model, fewer = model_of("conditional"), WorldModel.from_pretrained(saved(), context_frames=1)
    assert fewer.context_frames == fewer.tokenizer.config.context_frames == 1
    for name, value in fewer.state_dict().items():
        old = model.state_dict()[name]
        assert torch.equal(value, old[len(old) // 2 :] if name.endswith("kv_pos_emb") else old), name
    imagined = fewer.imagine(frames_for(fewer), actions_for(fewer))
    assert imagined.frames.shape[:2] == (2, 3)
    assert fewer.segment_frames() == 5, "clips of 6 frames have one more future frame now"


def test_a_model_with_fewer_context_frames_is_saved_as_such(saved, tmp_path):
    fewer = WorldModel.from_pretrained(saved(), context_frames=1)
    fewer.save_pretrained(tmp_path / "fewer")
    again = WorldModel.from_pretrained(tmp_path / "fewer")
    assert again.context_frames == 1 and again.config == fewer.config


@pytest.mark.parametrize("kind", ["conditional", "plain"])
def test_as_many_context_frames_as_trained_change_nothing(saved, kind):
    assert WorldModel.from_pretrained(saved(kind), context_frames=2).context_frames == 2


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_other_context_frames_are_refused(saved, count):
    with pytest.raises(UserError, match=f"context_frames is {count}; expected 1 to 2"):
        WorldModel.from_pretrained(saved(), context_frames=count)


def test_a_goal_and_the_last_frame_are_two(saved):
    with pytest.raises(UserError, match=r"2 context frames \(goal, last\); got 1"):
        WorldModel.from_pretrained(saved("goal"), context_frames=1)


# Released models and the Hub


@pytest.mark.parametrize(
    ("name", "clip_frames", "goal_conditioned"),
    [
        ("ivideogpt-oxe-64-goal-cond", 17, True),
        ("ivideogpt-robonet-64-act-cond", 12, False),
        ("my-goal-cond", None, True),
    ],
)
def test_a_released_model_is_known_by_its_name(saved, monkeypatch, tmp_path, name, clip_frames, goal_conditioned):
    folder = saved(name=name)
    (folder / "config.json").unlink()
    cached = tmp_path / "hub" / f"models--thuml--{name}" / "snapshots" / "abc123"
    shutil.copytree(folder, cached)
    hub = SimpleNamespace(snapshot_download=lambda *_, **__: str(cached))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for source in (folder, f"{folder}/", cached, f"thuml/{name}"):
        config = WorldModel.from_pretrained(source).config
        assert (config.name, config.clip_frames, config.goal_conditioned) == (name, clip_frames, goal_conditioned)


def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="'thuml/ivideogpt-nothing' is no folder here and did not come from") as caught:
        WorldModel.from_pretrained("thuml/ivideogpt-nothing")
    assert len(str(caught.value).splitlines()) == 1


def test_push_to_hub_uploads_the_checkpoint_with_its_card(model_of, monkeypatch):
    calls = []

    class FakeApi:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repository, *, private, exist_ok):
            calls.append(("create", repository, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path):
            card = (Path(folder_path) / "README.md").read_text()
            calls.append(("upload", repo_id, files(Path(folder_path)), card))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=FakeApi))
    address = model_of("plain").push_to_hub("me/robot", token="secret", private=False)
    assert address == "https://huggingface.co/me/robot"
    assert calls[0] == ("token", "secret") and calls[1] == ("create", "me/robot", False, True)
    action, repository, uploaded, card = calls[2]
    assert (action, repository) == ("upload", "me/robot")
    assert {"config.json", "README.md", "heads.safetensors", str(TOKENIZER), str(TRANSFORMER)} <= uploaded
    assert 'WorldModel.from_pretrained("me/robot")' in card


def card_of(model):
    return model_card(model.config, model.facts())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("official", "reads this folder"),
        ("conditional", "cannot read this folder; its tokenizer has grids of"),
        (
            "plain",
            "cannot read this folder; its tokenizer has grids of 4 x 4 and 4 x 4 tokens, one network for all frames",
        ),
    ],
)
def test_a_card_says_whether_the_official_code_reads_the_folder(model_of, kind, expected):
    assert f"| official code | {expected}" in card_of(model_of(kind))


def test_a_card_names_heads_that_the_official_code_does_not_know(model_of):
    model = model_of("official")
    config = replace(model.config, heads=replace(model.config.heads, termination=True))
    assert (
        model_card(config, token_facts(config, model.tokenizer, model.dynamics)).count("reads the tokenizer only") == 1
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_cards_of_shipped_models_say_it_too(name):
    model = WorldModel.from_pretrained(name, device="cpu")
    assert model.facts()["official code"].startswith("cannot read this folder")
    assert f"| official code | {model.facts()['official code']} |" in (SHIPPED[name] / "README.md").read_text()


def test_a_card_says_what_the_model_is_and_how_to_load_it(model_of):
    card = card_of(model_of("plain"))
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: ivideogpt" in front and "tags: [" in front and "license" not in front
    for said in (
        "# plain",
        "16 x 16",
        "2 numbers",
        "rewards | yes",
        "6 frames",
        "## Data",
        "train_seeds | 0:10",
        "3.5",
    ):
        assert said in text, said
    assert 'WorldModel.from_pretrained("plain")' in text
    licensed = WorldModelConfig(metadata={"license": "mit"})
    parts = (model_of("action_free").tokenizer, model_of("action_free").transformer, model_of("action_free").heads)
    assert "license: mit" in card_of(WorldModel(licensed, *parts)).partition("\n---\n")[0]


def test_a_saved_folder_describes_itself(saved):
    values = load_json(saved("plain") / "config.json")
    assert values["format"] == "ivideogpt" and values["resolution"] == 16 and values["frame_size"] == [16, 16]
    sizes = {"context_tokens": 16, "dynamics_tokens": 16, "context_codes": 24, "dynamics_codes": 24, "action_tokens": 0}
    assert values["layout"].items() >= sizes.items()
    assert values["world_model"]["action_mean"] == [0.5, -1.0] and values["world_model"]["frame_stride"] == 2


# Actions


def test_actions_are_normalised_with_the_statistics_of_the_checkpoint(model_of):
    raw = torch.tensor([[2.5, -0.75], [0.5, -1.0]])
    expected = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    model = model_of("plain")
    assert torch.equal(model.normalize_actions(raw), expected)
    assert torch.equal(model.normalize_actions(raw.expand(3, 2, 2)), expected.expand(3, 2, 2))
    assert torch.equal(model.normalize_actions(torch.tensor([3, -1])), torch.tensor([1.25, 0.0]))


def test_without_statistics_raw_actions_are_model_units(model_of):
    raw = torch.randn(2, 3)
    assert torch.equal(model_of("conditional").normalize_actions(raw), raw)


def test_actions_of_another_dimension_are_not_normalised(model_of):
    with pytest.raises(UserError, match=r"actions came with shape \[4, 3\]; expected \[... 2\]"):
        model_of("plain").normalize_actions(torch.zeros(4, 3))
    with pytest.raises(UserError, match=r"shape \[\]"):
        model_of("plain").normalize_actions(torch.tensor(1.0))


def test_a_forecast_reads_the_last_frames_and_the_action_and_joins_the_position_before(model_of, frames_for):
    model = model_of("plain")
    layout = model.layout
    ids, _ = model.tokenizer.tokenize(frames_for(model, count=5))
    actions = torch.randn(len(ids), 3, 2)
    guesses = model.dynamics.hidden_states(ids, actions)[1]
    assert guesses.shape == (len(ids), 3, 16, 32)
    for frame in range(3):
        history = model.dynamics.history(ids[:, : layout.length(2, frame)], 2)
        frames = torch.cat(layout.split(ids, 2), dim=1)
        assert torch.equal(history, frames[:, frame : frame + 2])
        alone = model.dynamics.forecast(history, actions[:, frame])
        torch.testing.assert_close(alone, guesses[:, frame], atol=1e-5, rtol=0)
        assert not torch.allclose(model.dynamics.forecast(history, actions[:, frame] + 1), alone, atol=1e-3)
        added = model.dynamics.frame_inputs(alone, None)
        assert torch.equal(added[:, :-1], alone)
        assert not added[:, -1].any()


# What does not fit


def fewer_codes(folder):
    other = load_file(folder / TRANSFORMER)
    for name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
        other[name] = other[name][:-3].clone()
    save_file(other, folder / TRANSFORMER)


def edit(name, **changes):
    def apply(folder):
        save_json(folder / name, load_json(folder / name) | changes)

    return apply


def describe(**changes):
    def apply(folder):
        values = load_json(folder / "config.json")
        values["world_model"] |= changes
        save_json(folder / "config.json", values)

    return apply


def pickled(folder):
    (folder / TRANSFORMER).unlink()
    torch.save({"x": torch.zeros(1)}, folder / "transformer" / "pytorch_model.bin")


def truncated(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


def without(name):
    def apply(folder):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return apply


def language_model(folder):
    for name in ("tokenizer", "config.json"):
        without(name)(folder)
    save_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


WEIGHT = "llm.model.layers.0.mlp.up_proj.weight"
BROKEN = {
    "a pickle": (pickled, r"model\.safetensors does not exist"),
    "a truncated transformer": (truncated(TRANSFORMER), r"model\.safetensors is damaged"),
    "a truncated tokenizer": (truncated(TOKENIZER), "diffusion_pytorch_model.safetensors is damaged"),
    "an empty file": (lambda f: (f / TRANSFORMER).write_bytes(b""), "is damaged"),
    "no tokenizer": (without("tokenizer"), r"tokenizer has no config\.json"),
    "no transformer": (without("transformer"), "does not exist; expected a JSON file there"),
    "no tokenizer weights": (without(TOKENIZER), "does not exist; expected the tensors"),
    "a language model": (language_model, r"tokenizer has no config\.json"),
    "another kind of transformer": (edit("transformer/config.json", model_type="gpt2"), "describes 'gpt2'; expected"),
    "fewer codes": (fewer_codes, "the transformer has 43 ids and the tokenizer 46"),
    "no weight": (
        lambda f: change(f / TRANSFORMER, **{WEIGHT: None}),
        "has no tensor model.layers.0.mlp.up_proj.weight",
    ),
    "a weight of another shape": (lambda f: change(f / TRANSFORMER, **{WEIGHT: torch.zeros(3, 32)}), "has shape"),
    "an unknown weight": (
        lambda f: change(f / TRANSFORMER, **{"llm.model.layers.9.x": torch.zeros(1)}),
        r"holds model\.layers\.9\.x, which no world model has",
    ),
    "an unknown head": (
        lambda f: change(f / TRANSFORMER, **{"reward_linear.scale": torch.zeros(1)}),
        r"unknown reward_linear\.scale",
    ),
    "no head": (lambda f: change(f / TRANSFORMER, **{"reward_linear.bias": None}), r"missing reward_linear\.bias"),
    "a head of another shape": (
        lambda f: change(f / TRANSFORMER, **{"action_linear.weight": torch.zeros(32, 5)}),
        r"action_linear\.weight has shape \[32, 5\], expected \[32, 3\]",
    ),
    "grouped heads": (edit("transformer/config.json", num_key_value_heads=1), "num_key_value_heads=1 is not supported"),
    "scaled positions": (edit("transformer/config.json", rope_scaling={"type": "linear"}), "rope_scaling="),
    "no layers": (edit("transformer/config.json", num_hidden_layers=None), "num_hidden_layers=None; expected"),
    "no heads": (edit("transformer/config.json", num_attention_heads=0), "num_attention_heads=0; expected"),
    "positions of text": (edit("transformer/config.json", max_position_embeddings="many"), "max_positions is 'many'"),
    "too few positions": (edit("transformer/config.json", max_position_embeddings=130), "130 positions hold no future"),
    "a transformer config that is no JSON": (
        lambda f: (f / "transformer/config.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "another kind of tokenizer": (
        lambda f: save_json(f / "tokenizer/config.json", {"_class_name": "VQModel"}),
        "describes VQModel",
    ),
    "an unknown option": (describe(contex_frames=2), "unknown key 'contex_frames'; did you mean 'context_frames'"),
    "an option of another type": (describe(context_frames="two"), "context_frames is 'two'; expected int"),
    "a description that is none": (lambda f: save_json(f / "config.json", {"world_model": [1]}), "expected an object"),
    "context frames that contradict": (describe(context_frames=1), "1 context frames and its tokenizer 2"),
    "statistics of another dimension": (describe(action_mean=[1.0]), "action_mean has 1 numbers; expected 3"),
    "statistics out of range": (describe(action_std=[1.0, 0.0, 1.0]), "expected only finite numbers above 0"),
    "a weight that is NaN": (
        lambda f: change(f / TRANSFORMER, **{WEIGHT: torch.full((48, 32), torch.nan)}),
        "has NaN or infinity in layers.0.feed_forward.gate_up.weight",
    ),
    "no theta": (edit("transformer/config.json", rope_theta=0.0), "rope_theta is 0.0; expected a finite number above"),
    "a negative epsilon": (edit("transformer/config.json", rms_norm_eps=-1.0), "rms_norm_eps is -1.0; expected"),
    "negative positions": (edit("transformer/config.json", max_position_embeddings=-5), "max_positions is -5"),
    "more positions than memory": (edit("transformer/config.json", max_position_embeddings=2**40), "at most 1048576"),
    "a width that no weight has": (edit("transformer/config.json", intermediate_size=2**40), "has shape"),
    "a dropout of 7": (edit("tokenizer/config.json", dropout=7.0), "dropout is 7.0; expected 0 to below 1"),
    "a negative code": (edit("tokenizer/config.json", vq_embed_dim=-1), "code_channels is -1; expected at least 1"),
    "huge frames": (edit("tokenizer/config.json", resolution=2**20), "resolution is 1048576; expected at most"),
    "negative slots": (describe(heads={"slots": -1}), "slots is -1; expected at least 0"),
    "no temperature": (describe(sampling={"temperature": 0.0}), "temperature is 0.0; expected more than 0, and finite"),
    "no frames at all": (describe(clip_frames=0), "clip_frames is 0; expected at least 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_one_sentence(saved, name):
    folder = saved()
    spoil, sentence = BROKEN[name]
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        WorldModel.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


BROKEN_HEADS = {
    "no heads": (without("heads.safetensors"), r"heads\.safetensors does not exist"),
    "truncated heads": (truncated("heads.safetensors"), r"heads\.safetensors is damaged"),
    "an unknown head": (lambda f: change(f / "heads.safetensors", extra=torch.zeros(1)), "unknown extra"),
    "a missing head": (
        lambda f: change(f / "heads.safetensors", **{"slot_embedding.weight": None}),
        "missing slot_embedding",
    ),
    "fewer slots": (
        describe(
            heads={
                "action_dim": 2,
                "action_frequencies": 2,
                "slots": 5,
                "forecast_grid": 4,
                "forecast_width": 16,
                "forecast_blocks": 1,
                "reward": True,
            }
        ),
        r"slot_embedding\.weight has shape \[17, 32\], expected \[5, 32\]",
    ),
    "NaN in the statistics": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("0.25", "NaN")),
        "action_std is .*nan.*; expected only finite numbers",
    ),
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
def test_heads_of_ours_that_do_not_fit_are_one_sentence(saved, name):
    folder = saved("plain")
    spoil, sentence = BROKEN_HEADS[name]
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        WorldModel.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


def with_heads(model, **changes):
    heads = replace(model.config.heads, **changes)
    new_heads = Heads(heads, model.transformer.config.hidden_size, model.layout.dynamics_codes)
    return WorldModel(replace(model.config, heads=heads), model.tokenizer, model.transformer, new_heads)


def test_parts_that_do_not_fit_each_other_are_refused(build):
    one, other = build("conditional"), build("plain")
    with pytest.raises(UserError, match="the transformer has 50 ids and the tokenizer 46"):
        WorldModel(one.config, one.tokenizer, other.transformer, one.heads)
    with pytest.raises(UserError, match="config.heads are not those of the heads"):
        WorldModel(replace(one.config, heads=other.config.heads), one.tokenizer, one.transformer, one.heads)
    with pytest.raises(UserError, match="slots is 9; expected 0, or 17"):
        with_heads(other, slots=9)
    with pytest.raises(UserError, match="a forecast needs a tokenizer with one codebook for all frames"):
        with_heads(one, forecast_grid=4)
    with pytest.raises(UserError, match="forecast_grid is 8; expected 0, or the side of a grid of 16 tokens"):
        with_heads(other, forecast_grid=8)
    with pytest.raises(UserError, match="forecast_frames is 3; expected 1 to 2"):
        with_heads(other, forecast_frames=3)


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "too/many/parts"])
def test_an_unknown_checkpoint_is_one_sentence(name):
    with pytest.raises(UserError, match="is no folder, no Hub id") as caught:
        WorldModel.from_pretrained(name)
    assert len(str(caught.value).splitlines()) == 1


def test_names_of_released_models_are_unique_and_known():
    assert all(name.startswith("ivideogpt-") for name in checkpoint.RELEASED)
    assert {frames for frames, _ in checkpoint.RELEASED.values()} == {12, 16, 17}


def test_json_of_a_checkpoint_is_strict(saved):
    text = (saved("plain") / "config.json").read_text()
    assert json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_greedy_imagination_survives_half_precision_files(model_of, frames_for, actions_for, tmp_path):
    model = model_of("official")
    model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    loaded = WorldModel.from_pretrained(tmp_path / "half")
    context, actions = frames_for(model), actions_for(model)
    imagined = loaded.imagine(context, actions, sampling=Sampling(greedy=True))
    torch.testing.assert_close(imagined.log_probs, loaded.log_prob(context, actions, imagined.ids), atol=1e-4, rtol=0)


# Sampling


def test_a_model_samples_as_its_checkpoint_says_unless_told_otherwise(build, frames_for, actions_for):
    sampling = Sampling(temperature=0.3, top_k=4)
    model, context = build("plain", sampling=sampling), frames_for(build("plain"))
    actions = actions_for(model)
    expected = model.imagine(context, actions, sampling=sampling)
    imagined = model.imagine(context, actions)
    assert torch.equal(imagined.ids, expected.ids) and torch.equal(imagined.log_probs, expected.log_probs)
    assert model.session(context).sampling == sampling
    torch.testing.assert_close(model.log_prob(context, actions, imagined.ids), imagined.log_probs, atol=1e-4, rtol=0)
    assert not torch.equal(model.imagine(context, actions, sampling=Sampling()).ids, expected.ids)


def test_a_checkpoint_keeps_its_sampling_and_an_older_one_its_temperature(saved, build, tmp_path):
    model = build("plain", sampling=Sampling(temperature=0.3, top_k=None))
    model.save_pretrained(tmp_path / "new")
    assert WorldModel.from_pretrained(tmp_path / "new").config.sampling == Sampling(temperature=0.3, top_k=None)
    folder = saved("plain")
    values = load_json(folder / "config.json")
    del values["world_model"]["sampling"]
    values["world_model"]["temperature"] = 0.85
    save_json(folder / "config.json", values)
    assert WorldModel.from_pretrained(folder).config.sampling == Sampling(temperature=0.85)
