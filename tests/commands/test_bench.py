"""``ivideogpt bench`` prints the speed of a model and its share of the least time; speed itself is not tested."""

import pytest
import torch

from ivideogpt.commands.machine_speed import MachineSpeed, bench_inputs, limit_seconds, weights_per_token
from ivideogpt.worldmodel.shipped import SHIPPED


@pytest.mark.parametrize("kind", ["conditional", "action_free"])
def test_the_table_and_the_json_line_have_both_ways_to_imagine(run, checkpoints, kind):
    done = run("bench", checkpoints[kind], "--horizon", "2", "--rounds", "1", "--batch", "2", "--device", "cpu")
    assert done.code == 0, done.err
    for name in ("imagine", "step by step", "this machine, float32"):
        assert any(line.startswith(name) for line in done.out.splitlines())
    assert done.json["frames_per_second"] > 0 and done.json["frames_per_second_step_by_step"] > 0
    assert done.json["limit_share"] > 0
    assert (done.json["batch"], done.json["horizon"], done.json["device"]) == (2, 2, "cpu")


def test_weights_of_8_bits_are_measured_as_such(run, checkpoints):
    done = run("bench", checkpoints["conditional"], "--horizon", "1", "--rounds", "1", "--int8")
    assert done.code == 0, done.err
    assert "this machine, int8" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "0"], "batch is 0; expected at least 1"),
        (["--rounds", "0"], "rounds is 0; expected at least 1"),
        (["--horizon", "0"], "horizon is 0; expected at least 1"),
        (["--device", "nothing"], "device 'nothing' cannot be used here"),
        (["no-such-folder"], "no-such-folder"),
    ],
)
def test_options_that_cannot_be_measured_are_one_sentence(run, words, sentence):
    done = run("bench", *words)
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_inputs_are_the_episodes_of_the_checkpoint_in_turn_else_noise(model_of, build, tmp_path):
    from ivideogpt.worldmodel.world_model import WorldModel

    model = WorldModel.from_pretrained("pusht-64")
    context, actions = bench_inputs(model, SHIPPED["pusht-64"], batch=10, horizon=4)
    assert context.shape == (10, 2, 3, 64, 64) and actions.shape == (10, 4, 2)
    assert not torch.equal(context[0], context[1])
    context, actions = bench_inputs(model_of("conditional"), tmp_path, batch=2, horizon=3)
    assert context.shape == (2, 2, 3, 16, 16) and actions.shape == (2, 3, 3)
    assert bench_inputs(model_of("action_free"), tmp_path, batch=2, horizon=3)[1] is None


def test_a_token_reads_all_layers_and_the_rows_of_the_head_that_may_be_drawn(model_of):
    for kind in ("conditional", "plain"):
        model = model_of(kind)
        outside = model.transformer.embed.weight.numel() + model.transformer.norm.weight.numel()
        inside = sum(weight.numel() for weight in model.transformer.parameters()) - outside
        unread = model.layout.vocab_size - model.layout.dynamics_codes
        inside -= unread * model.transformer.config.hidden_size
        assert weights_per_token(model) == inside


def test_the_limit_is_that_of_the_memory_for_one_clip_and_of_the_products_for_many(model_of):
    model, machine = model_of("conditional"), MachineSpeed(bandwidth=1.0, operations=1e3)
    alone, half = (limit_seconds(model, 1, 2, name, machine) for name in ("float32", "bfloat16"))
    assert half == pytest.approx(alone / 2)
    assert limit_seconds(model, 1, 2, "float32", machine._replace(operations=1e9)) == alone
    positions = 2 * model.layout.frame_length
    assert alone > 4 * positions * weights_per_token(model)
    fast = machine._replace(bandwidth=1e12)
    products = limit_seconds(model, 10**6, 2, "float32", fast)
    assert products == pytest.approx(2 * limit_seconds(model, 10**6, 2, "float32", fast._replace(operations=2e3)))
    assert products > 10**6 * 2 * positions * weights_per_token(model) / 1e3
