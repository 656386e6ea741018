"""Batches in parts, layers that run twice, compiled passes: the losses stay what they were."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.training.distributed_forward import check_parts, forward_pass, gradients_meet, in_parts
from ivideogpt.training.token_batches import TokenBatch
from ivideogpt.training.tokenizer import TokenizerTraining, train_tokenizer
from ivideogpt.training.transformer import TransformerTraining, train_transformer
from ivideogpt.worldmodel.world_model import WorldModel


class Batches:
    """The same few batches of tokens of noise, over and over."""

    def __init__(self, model: WorldModel, frames: Tensor, actions: Tensor) -> None:
        with torch.inference_mode():
            ids = model.tokenizer.tokenize(frames)[0]
        self.batch = TokenBatch(ids.clone(), actions, actions[..., 0].clone())

    def __iter__(self):
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


@pytest.fixture
def train(build, frames_for, actions_for, tmp_path):
    """``train(kind, **settings)``: a few updates; each line of the log, and the weights."""

    def go(kind: str = "plain", *, device: str = "cpu", precision: str = "float32", **settings: object):
        model = build(kind)
        batches = Batches(model, frames_for(model, 4, 5), actions_for(model, 4, 3))
        batches.batch = TokenBatch(*(None if x is None else x.to(device) for x in batches.batch))
        config = replace(
            TransformerTraining(steps=3, batch_size=4, clip_frames=5, warmup_steps=0, log_every=0),
            **settings,
        )
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run = Run(folder, device=device, precision=precision, log_every=0, save_every=0)  # type: ignore[arg-type]
        trained = train_transformer(config, model, batches, run)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: x for name, x in line.items() if name != "seconds"} for line in lines], trained.state_dict()

    return go


def assert_same(one, other, *, atol: float) -> None:
    for line, again in zip(one[0], other[0], strict=True):
        assert line == pytest.approx(again, abs=atol, rel=atol)


@pytest.mark.parametrize("kind", ["plain", "conditional"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_losses_of_the_whole(train, kind, parts) -> None:
    whole = train(kind)
    assert {"loss", "tokens", "rewards"} <= whole[0][0].keys() and whole[0][0]["loss"] != whole[0][2]["loss"]
    assert_same(train(kind, gradient_accumulation=parts), whole, atol=1e-5)


def test_parts_of_a_partly_imagined_batch_read_what_the_whole_does(train) -> None:
    whole, parts = (train("plain", imagined_share=0.5, gradient_accumulation=count) for count in (1, 2))
    assert parts[0][0]["forecast"] == pytest.approx(whole[0][0]["forecast"], abs=1e-5)
    assert parts[0][0]["tokens"] == pytest.approx(whole[0][0]["tokens"], rel=0.2)  # parts weigh alike, not targets


def test_layers_that_run_twice_give_the_same_losses_and_weights(train) -> None:
    plain, twice = train("conditional"), train("conditional", gradient_checkpointing=True)
    assert plain[0] == twice[0]
    assert all(torch.equal(value, twice[1][name]) for name, value in plain[1].items())


@pytest.mark.parametrize(
    ("parts", "said"), [(3, "is 3 and batch_size 4;"), (0, "is 0; expected at least 1"), (8, "whole clips")]
)
def test_a_batch_that_cannot_be_divided_is_refused(train, parts, said) -> None:
    with pytest.raises(UserError, match=said):
        train(gradient_accumulation=parts)


def test_the_share_of_a_process_must_be_divisible() -> None:
    check_parts(2, 8, 4)
    with pytest.raises(UserError, match="batch_size 8 on 4 processes"):
        check_parts(4, 8, 4)


def test_rows_are_divided_in_order() -> None:
    rows = torch.arange(6)
    parts = list(in_parts((rows, None), 3))
    assert [part[0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]] and all(part[1] is None for part in parts)


def test_gradients_meet_once_an_update() -> None:
    class Wrapped(nn.Module):
        entered = 0

        def no_sync(self):
            self.entered += 1
            return torch.no_grad()  # any context

    wrapped = Wrapped()
    with gradients_meet(wrapped, now=False):
        assert not torch.is_grad_enabled()
    with gradients_meet(wrapped, now=True), gradients_meet(nn.Linear(1, 1), now=False):
        assert torch.is_grad_enabled()
    assert wrapped.entered == 1


def test_a_machine_that_cannot_compile_is_said_in_one_sentence(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand a page of more")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    with pytest.raises(UserError, match="cannot compile here .No working C.. compiler found.; set it to false$"):
        forward_pass(nn.Linear(1, 1), Run(tmp_path, device="cpu"), compile=True)


def test_only_what_is_asked_to_be_is_compiled(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function if function is torch.square else "compiled")
    module, run = nn.Linear(1, 1), Run(tmp_path, device="cpu")
    assert forward_pass(module, run, compile=False) is module
    assert forward_pass(module, run, compile=True) == "compiled"


def test_a_discriminator_cannot_be_compiled_with(tmp_path) -> None:
    config = TokenizerTraining(compile=True)
    config = replace(config, loss=replace(config.loss, discriminator_weight=0.8))
    with pytest.raises(UserError, match="set compile to false, or loss.discriminator_weight to 0"):
        train_tokenizer(config, None, Run(tmp_path, device="cpu"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_compiled_transformer_has_the_same_losses(train, monkeypatch) -> None:
    # Traced and differentiated as for any backend; what the default one generates takes a minute to build.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert_same(train("conditional", compile=True, gradient_checkpointing=True), train("conditional"), atol=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_everything_that_saves_time_or_memory_works_together(train) -> None:
    fast = {"compile": True, "gradient_checkpointing": True, "gradient_accumulation": 2}
    plain = train("conditional", device="cuda")
    together = train("conditional", device="cuda", precision="bfloat16", **fast)
    for line, again in zip(plain[0], together[0], strict=True):
        assert again["loss"] == pytest.approx(line["loss"], rel=0.05)
