"""The command that trains a success classifier: from a store to measured files, going on, and what it refuses."""

import json

import pytest

from ivideogpt.models.success_classifier import SuccessClassifier

pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(run, tmp_path, checkpoints) -> None:
    whole = run("train-classifier", "debug", "--out", "a")
    assert whole.code == 0, whole.err
    assert whole.json["task"] == "squares" and whole.json["real"]["frames"] == 22 and whole.json["imagined"] is None
    assert "threshold" in whole.out and "frames after a reward above 0.75" in whole.out

    stopped = run("train-classifier", "debug", "--data", "a-data", "--out", "b", "--steps", 7)
    assert stopped.code == 0, stopped.err
    assert run("train-classifier", "--out", "b").code == 0
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    first, second = (SuccessClassifier.from_pretrained(tmp_path / name) for name in ("a", "b"))
    assert first.facts == second.facts
    assert all((first.state_dict()[name] == value).all() for name, value in second.state_dict().items())

    other = run("train-classifier", "debug", "--out", "b", "--learning-rate", 0.5)
    assert other.code == 2 and "was begun with learning_rate 0.001, not 0.5" in other.err
    # squares have one number an action, and the model takes three
    model = run("train-classifier", "debug", "--out", "c", "--world", checkpoints["action_free"])
    assert model.code == 0 and model.json["imagined"]["frames"] > 0 and model.json["world"] == "action_free"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("pusht --out new", "preset pusht needs data; give --data"),
        ("--out new", "a new run needs a preset; expected one of pusht, robot,"),
        ("push --out new", "there is no preset 'push' for train-classifier; did you mean 'pusht'?"),
        ("pusht --data d --out new", "expected"),
        ("debug --out new --steps 0", "steps is 0; expected at least 1"),
        ("debug --out new --network.resolution 21", "resolution is 21"),
        ("debug --out new --network.resolution 32", "has frames of 16 x 16 px and the classifier takes 32 x 32"),
        ("debug --out new --reward-above 9", "none is a success; a classifier needs both"),
        ("debug --out new --held-out nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(run, words, sentence) -> None:
    done = run("train-classifier", *words.split())
    assert done.code == 2 and done.err.splitlines()[-1].startswith("ivideogpt: "), done.err
    assert sentence in done.err
