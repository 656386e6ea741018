"""Low-rank adapters: what they change, what is saved, going on, and what they refuse."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ivideogpt.core.checkpoint import load_tensors
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.optim import adamw
from ivideogpt.core.run import Run
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.training.lora import LoraTraining, adapters, merged_model, trained_share
from ivideogpt.training.token_batches import TokenBatch
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.world_model import WorldModel

pytest.importorskip("peft", reason="adapters need the extra train")

LAYER = {"q_proj": 64, "k_proj": 64, "v_proj": 64, "o_proj": 64, "gate_proj": 80, "up_proj": 80, "down_proj": 80}
KINDS = pytest.mark.parametrize("kind", ["plain", "conditional"])


class Batches:
    """Batches of tokens of noise that know their place."""

    def __init__(self, model: WorldModel, frames_for: Callable, actions_for: Callable) -> None:
        with torch.inference_mode():
            ids = model.tokenizer.tokenize(frames_for(model, 12, 5))[0]
        actions = actions_for(model, 12, 3)
        self.all, self.number = TokenBatch(ids.clone(), actions, actions[..., 0].clone()), 0

    def __iter__(self) -> Iterator[TokenBatch]:
        while True:
            rows = slice(4 * (self.number % 3), 4 * (self.number % 3) + 4)
            self.number += 1
            yield TokenBatch(*(None if x is None else x[rows] for x in self.all))

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


@pytest.fixture
def train(build, frames_for, actions_for, tmp_path):
    """``train(folder, kind, **settings)``: a few updates with adapters of rank 2; the model that comes out."""

    def go(
        folder: str, kind: str = "plain", *, save_every: int = 0, until: int | None = None, evaluate=None, **settings
    ) -> WorldModel:
        model = build(kind)
        config = TransformerTraining(steps=4, batch_size=4, clip_frames=5, warmup_steps=0, learning_rate=1e-2)
        config = replace(config, **{"lora": LoraTraining(rank=2), **settings})
        run = Run(tmp_path / folder, log_every=0, save_every=save_every)
        batches = Batches(model, frames_for, actions_for)
        return train_transformer(config, model, batches, run, evaluate=evaluate, until=until)

    return go


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def shake(transformer: Transformer) -> None:
    """Gives every adapter an effect."""
    for weight in transformer.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.1)


@KINDS
def test_only_adapters_and_heads_are_trained(build, train, tmp_path, kind) -> None:
    before, after = build(kind), train("a", kind)
    saved = load_tensors(tmp_path / "a" / "checkpoints" / "step-00000004" / "training" / "learner.safetensors")
    kept = {name.removeprefix("transformer."): x for name, x in saved.items() if name.startswith("transformer.")}
    frozen = {name.replace("layer.base_layer.", "").replace("base_layer.", "") for name in kept if "lora_" not in name}
    moved = [x.abs().max() for name, x in kept.items() if "lora_B" in name or "embedding_A" in name]
    assert len(frozen) == 2 * 9 + 3 and len(moved) == 2 * 7 + 2 and all(moved)  # they begin as zeros
    for name, value in before.transformer.state_dict().items():
        place, _, _ = name.rpartition(".")
        parts = {part: x for part, x in kept.items() if part.startswith(f"{place}.") and "lora_" not in part}
        in_order = sorted(parts, key=lambda part: [layer in part for layer in LAYER], reverse=True)
        assert torch.equal(torch.cat([parts[part] for part in in_order]), value), name
    for name, weight in before.heads.named_parameters():
        assert not torch.equal(weight, after.heads.get_parameter(name)), name
    changed = [name for name, x in before.transformer.named_parameters() if x.ndim > 1]
    assert all(
        not torch.equal(before.transformer.get_parameter(n), after.transformer.get_parameter(n)) for n in changed
    )


def test_an_optimizer_of_a_model_with_adapters_holds_what_is_trained_and_nothing_else(build) -> None:
    model = build("conditional")
    heads = sum(weight.numel() for weight in model.heads.parameters())
    with adapters(model.transformer, LoraTraining(rank=3)):
        groups = adamw(model.dynamics, learning_rate=1e-3, weight_decay=0.1).param_groups
        held = [weight for group in groups for weight in group["params"]]
        assert all(weight.requires_grad for weight in held)
        ends = 2 * (model.layout.vocab_size + 32)
        assert sum(weight.numel() for weight in held) == heads + 3 * (ends + 2 * sum(LAYER.values()))


@pytest.mark.parametrize("name", LAYER)
def test_an_adapter_changes_its_own_part_of_a_fused_layer_by_its_product(build, name) -> None:
    model, before = build("plain"), build("plain").transformer.state_dict()
    with adapters(model.transformer, LoraTraining(rank=2, alpha=6.0, targets=(name,))):
        shake(model.transformer)
        trained = {n: x.detach().clone() for n, x in model.transformer.named_parameters() if x.requires_grad}
    assert len(trained) == 4
    places = {"o_proj": "attention.out", "down_proj": "feed_forward.down"}
    fused = {"attention.qkv": ("q_proj", "k_proj", "v_proj"), "feed_forward.gate_up": ("gate_proj", "up_proj")}
    for where, value in model.transformer.state_dict().items():
        index, _, place = where.removeprefix("layers.").removesuffix(".weight").partition(".")
        names = fused.get(place, (name,) if places.get(name) == place else ())
        for part, now, then in (
            zip(names, value.chunk(len(names)), before[where].chunk(len(names)), strict=True) if names else ()
        ):
            mine = {n: x for n, x in trained.items() if n.startswith(f"layers.{index}.") and part == name}
            product = torch.zeros_like(then)
            if mine:
                (down,), (up,) = ([x for n, x in mine.items() if kind in n] for kind in ("lora_A", "lora_B"))
                product = 3.0 * up @ down
            assert torch.allclose(now, then + product, atol=1e-6), where
        assert names or torch.equal(value, before[where]), where


@KINDS
def test_a_model_with_adapters_begins_as_it_was_and_imagines_what_the_merged_one_does(
    build, frames_for, actions_for, kind
) -> None:
    model, before = build(kind), build(kind)
    context, actions = frames_for(model, 2, 2), actions_for(model, 2, 4)
    ids = torch.randint(model.layout.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))

    def logits(of: WorldModel) -> torch.Tensor:
        return of.transformer.logits(of.transformer(of.transformer.embed(ids)))

    with adapters(model.transformer, LoraTraining(rank=4)), torch.no_grad():
        model.eval()
        assert torch.allclose(logits(model), logits(before), atol=1e-5)
        shake(model.transformer)
        merged = merged_model(model)
        assert (logits(model) - logits(before)).abs().max() > 0.1
        assert (logits(model) - logits(merged)).abs().max() < 1e-5 * logits(merged).abs().max()
        assert merged.heads is model.heads and merged.tokenizer is model.tokenizer
        assert merged.transformer.state_dict().keys() == before.transformer.state_dict().keys()
        found, same = (x.imagine(context, actions, sampling=Sampling(greedy=True)) for x in (model, merged))
        assert torch.equal(found.ids, same.ids) and torch.allclose(found.frames, same.frames, atol=1e-5)
    for name, value in merged.transformer.state_dict().items():
        assert torch.equal(model.transformer.state_dict()[name], value), name
    assert all(weight.requires_grad for weight in model.transformer.parameters())
    assert merged_model(model) is model


@KINDS
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(train, tmp_path, kind) -> None:
    settings = {"lora": LoraTraining(rank=2, dropout=0.3), "gradient_accumulation": 2, "gradient_checkpointing": True}
    straight = train("a", kind, **settings)
    train("b", kind, until=2, **settings)
    resumed = train("b", kind, **settings)
    assert log(tmp_path / "a") == log(tmp_path / "b") and len(log(tmp_path / "a")) == 4
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again = train("b", kind, **settings)  # nothing is left to do
    assert torch.equal(again.transformer.head.weight, straight.transformer.head.weight)


def test_more_checkpoints_leave_the_training_as_it_is(train, tmp_path) -> None:
    settings = {"lora": LoraTraining(rank=2, dropout=0.3)}
    train("a", save_every=1, **settings)
    train("b", save_every=0, **settings)
    assert log(tmp_path / "a") == log(tmp_path / "b")


def test_parts_of_a_batch_and_layers_that_run_twice_give_the_same_gradients(train, tmp_path, monkeypatch) -> None:
    found: list[torch.Tensor] = []

    # Plain descent in short steps: AdamW divides a gradient by its own size, so rounding of one near zero becomes a
    # whole step.
    @torch.no_grad()
    def descend(optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        found.append(torch.cat([weight.grad.flatten() for weight in weights]))
        for weight in weights:
            weight.sub_(1e-4 * weight.grad)

    monkeypatch.setattr(torch.optim.AdamW, "step", descend)
    settings = {"clip_norm": None}  # which would hide a gradient of the wrong length
    train("a", "conditional", **settings)
    train("b", "conditional", gradient_accumulation=2, gradient_checkpointing=True, **settings)
    assert len(found) == 8
    for whole, parts in zip(found[:4], found[4:], strict=True):
        # Sums of float32 in another order: 2.6e-7 of the norm for the same weights (4 roundings of 6e-8), and up to
        # 1.8e-6 once the weights have moved apart by rounding as well (measured, AVX2).
        assert (parts - whole).norm() < 1e-5 * whole.norm()
    for line, again in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert again == pytest.approx(line, abs=1e-5, rel=1e-5)


def test_adapters_learn(train, tmp_path) -> None:
    train("a", "conditional", steps=30)
    found = log(tmp_path / "a")
    assert found[-1]["tokens"] < 0.7 * found[0]["tokens"]


@KINDS
def test_a_checkpoint_is_the_measured_model_and_loads_without_peft(train, tmp_path, monkeypatch, kind) -> None:
    measured = []
    trained = train("a", kind, evaluate=lambda model, step: measured.append(model) or {"seen": float(step)})
    assert log(tmp_path / "a")[-1]["seen"] == 4
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = WorldModel.from_pretrained(tmp_path / "a")
    assert loaded.state_dict().keys() == trained.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    for name, value in measured[0].transformer.state_dict().items():
        assert torch.equal(value, loaded.transformer.state_dict()[name]), name


def test_how_much_is_trained_is_said_once(train, capsys) -> None:
    train("a", "conditional")
    said = [line for line in capsys.readouterr().err.splitlines() if "parameters" in line]
    assert len(said) == 1 and said[0].startswith("adapters of rank 2: ") and said[0].endswith("are trained")
    assert trained_share(nn.Linear(9, 200)) == "2,000 of 2,000 parameters are trained"


def test_without_adapters_all_weights_are_trained_and_peft_is_not_needed(build, train, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    before, after = build("plain").transformer, train("a", lora=LoraTraining()).transformer
    assert all(not torch.equal(x, after.get_parameter(name)) for name, x in before.named_parameters())


def test_adapters_without_peft_name_the_extra_and_leave_the_model_as_it_is(train, build, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft is not installed; run: pip install 'ivideogpt\[train\]'"):
        train("a")
    transformer = build("plain").transformer
    with pytest.raises(MissingExtraError), adapters(transformer, LoraTraining(rank=1)):
        pass
    assert all(weight.requires_grad for weight in transformer.parameters())


def test_a_training_that_fails_leaves_an_ordinary_model(build) -> None:
    transformer, names = build("plain").transformer, build("plain").transformer.state_dict().keys()
    with pytest.raises(KeyboardInterrupt), adapters(transformer, LoraTraining(rank=1)):
        raise KeyboardInterrupt
    assert transformer.state_dict().keys() == names


def test_a_run_with_adapters_of_another_rank_is_refused(train) -> None:
    train("a", until=1)
    with pytest.raises(UserError, match="does not fit this configuration"):
        train("a", lora=LoraTraining(rank=3))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": -1}, "rank is -1; expected at least 0"),
        ({"alpha": 0.0}, "alpha is 0.0; expected above 0"),
        ({"dropout": 1.0}, "dropout of adapters is 1.0; expected from 0 to below 1"),
        ({"targets": ()}, "targets is empty; expected some of q_proj, k_proj"),
        ({"targets": ("q_prj",)}, "no layer 'q_prj' for an adapter; did you mean 'q_proj'"),
        ({"targets": ("qkv",)}, "no layer 'qkv' for an adapter; expected one of: down_proj, embed_tokens, gate_proj"),
    ],
)
def test_adapters_that_cannot_be_are_refused(settings, said) -> None:
    with pytest.raises(UserError, match=said):
        LoraTraining(**settings)


def test_every_official_layer_has_an_adapter_unless_told_otherwise() -> None:
    transformer = Transformer(
        TransformerConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2)
    )
    with adapters(transformer, LoraTraining(rank=8)):
        said = trained_share(transformer)
    assert said.startswith(f"{8 * (2 * sum(LAYER.values()) + 2 * (50 + 32)):,} of ")


@pytest.mark.slow
def test_a_compiled_transformer_with_adapters_has_the_same_losses(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    train("a", "conditional")
    train("b", "conditional", compile=True, gradient_checkpointing=True)
    for line, again in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert again == pytest.approx(line, abs=1e-3, rel=1e-3)
