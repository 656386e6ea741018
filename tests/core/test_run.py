import json
import platform
import random

import numpy as np
import pytest
import torch
from torch import nn

from ivideogpt.core.checkpoint import resolve_checkpoint, step_folder, step_folders
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, cosine, set_learning_rate
from ivideogpt.core.run import Run, choose_device, keep_freed_memory
from ivideogpt.core.training_state import flatten, unflatten


def train(folder, steps, *, width=4, save_every=0, also=None, precision="float32"):
    """A loop that uses every kind of random number; returns its losses."""
    run = Run(folder, seed=3, device="cpu", precision=precision, log_every=0, save_every=save_every)
    model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 1))
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.01)
    learning_rate = cosine(0.1, steps=4, warmup_steps=1)
    step = run.resume(model=model, optimizer=optimizer)
    losses = []
    while step < steps:
        set_learning_rate(optimizer, learning_rate(step))
        inputs = torch.randn(8, 4, generator=run.generator) + random.random() + float(np.random.rand())
        with run.autocast():
            loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        run.log(step, loss=loss)
        losses.append(loss.item())
        if run.is_save_step(step, last=steps):
            run.save(step, model=model, optimizer=optimizer, also=also)
    return losses


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_steps_and_two_resumed_equal_four_straight(tmp_path, precision):
    straight = train(tmp_path / "a", 4, precision=precision)
    resumed = train(tmp_path / "b", 2, precision=precision) + train(tmp_path / "b", 4, precision=precision)
    assert resumed == straight
    assert [line["loss"] for line in logged(tmp_path / "b")] == straight


def test_a_finished_run_does_nothing_more(tmp_path):
    train(tmp_path, 2)
    assert train(tmp_path, 2) == []


def test_lines_beyond_the_resumed_step_are_dropped(tmp_path):
    train(tmp_path, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    train(tmp_path, 4)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]
    assert logged(tmp_path)[2]["loss"] != 9.0


def test_seconds_go_on_after_a_resume(tmp_path):
    train(tmp_path, 2)
    train(tmp_path, 4)
    seconds = [line["seconds"] for line in logged(tmp_path)]
    assert seconds == sorted(seconds)


def test_only_the_last_checkpoints_stay(tmp_path):
    train(tmp_path, 5, save_every=1)
    assert [step for step, _ in step_folders(tmp_path)] == [4, 5]


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    train(tmp_path, 2)
    step_folder(tmp_path, 7).mkdir()
    assert len(train(tmp_path, 4)) == 2


def test_what_also_writes_makes_the_run_folder_a_checkpoint(tmp_path):
    train(tmp_path, 2, also=lambda folder: (folder / "config.json").write_text("{}"))
    assert resolve_checkpoint(str(tmp_path), shipped={}) == step_folder(tmp_path, 2)


def test_a_failed_save_leaves_no_checkpoint(tmp_path):
    def fail(folder):
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        train(tmp_path, 2, also=fail)
    assert step_folders(tmp_path) == []


def test_another_model_than_the_saved_one_is_a_user_error(tmp_path):
    train(tmp_path, 2)
    with pytest.raises(UserError, match="the model in .* does not fit"):
        train(tmp_path, 4, width=5)


def test_other_parts_than_the_saved_ones_are_a_user_error(tmp_path):
    train(tmp_path, 2)
    with pytest.raises(UserError, match="start in a new folder"):
        Run(tmp_path, device="cpu").resume(critic=nn.Linear(1, 1))


def test_a_damaged_checkpoint_is_a_user_error(tmp_path):
    train(tmp_path, 2)
    (step_folder(tmp_path, 2) / "training" / "optimizer.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="optimizer.safetensors is damaged"):
        train(tmp_path, 4)


@pytest.mark.parametrize(("name", "value"), [("parts", None), ("step", "two"), ("seconds", None)])
def test_a_state_that_lacks_something_is_a_user_error(tmp_path, name, value):
    train(tmp_path, 2)
    path = step_folder(tmp_path, 2) / "training" / "state.json"
    state = json.loads(path.read_text())
    del state[name]
    path.write_text(json.dumps(state if value is None else state | {name: value}))
    with pytest.raises(
        UserError, match=f"state.json has no '{name}' that a run could resume from; restore the file, or"
    ):
        train(tmp_path, 4)


def test_a_rank_that_was_not_there_before_begins_with_numbers_of_its_own(tmp_path):
    train(tmp_path, 2)
    run = Run(tmp_path, seed=3, device="cpu", ranks=Ranks(1, 1))
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    run.resume(model=model, optimizer=adamw(model, learning_rate=0.1, weight_decay=0.01))
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(3 + 1)))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = Run(tmp_path, device="cpu")
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        run.log(1, loss=float("nan"))


def test_another_metric_that_is_not_finite_is_null(tmp_path):
    run = Run(tmp_path, device="cpu")
    run.log(1, loss=1.0, psnr=float("inf"))
    assert logged(tmp_path)[0]["psnr"] is None


def test_progress_is_printed_at_its_cadence(tmp_path, capsys):
    run = Run(tmp_path, device="cpu", log_every=2)
    for step in range(1, 5):
        run.log(step, loss=0.5)
    printed = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in printed] == ["2", "4"]
    assert "loss 0.5" in printed[0]


def test_an_unknown_device_is_a_user_error():
    with pytest.raises(UserError, match="device 'gpu' cannot be used"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_user_error_and_auto_is_the_cpu():
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="use auto or cpu"):
        choose_device("cuda")


def test_a_run_folder_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "run")


def test_any_nested_state_comes_back_as_it_was():
    state = {
        "step": 3,
        "tensor": torch.arange(3),
        0: {"betas": (0.9, 0.999), "groups": [{"params": [0, 1], "lr": None}], "empty": {}, "none": ()},
        "tensor.x": "dict",
        "array": np.arange(4, dtype=np.uint32),
    }
    tensors = {}
    back = unflatten(json.loads(json.dumps(flatten(state, tensors))), tensors)
    assert torch.equal(back.pop("tensor"), state.pop("tensor"))
    assert np.array_equal(back["array"], state["array"])
    assert back.pop("array").dtype == state.pop("array").dtype
    assert back == state


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of the allocator of glibc")
def test_freed_memory_is_used_again_without_new_pages():
    import resource  # of Unix alone

    assert keep_freed_memory()

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.zeros(4_000_000)  # 16 MB: 3,900 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    new_pages()
    assert new_pages() < 4000
