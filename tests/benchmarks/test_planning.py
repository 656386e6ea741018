"""Both ways of a decision imagine the same candidates, and the script prints its figures; speed is not tested."""

import json
import sys
from dataclasses import replace

import _official_rollout
import planning
import pytest
import torch
from _official_rollout import LlamaRollout
from _subject import Subject
from planning import DecisionOptions

from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.planning.models import ImaginedFutures


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the baseline comes with: pip install 'ivideogpt[dev]'")


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_the_official_way_in_chunks_imagines_what_ours_does(kind, build, frames_for, monkeypatch) -> None:
    model = build(kind)
    context, actions = frames_for(model, 1), torch.randn(7, 3, model.action_dim)
    greedy = Sampling(greedy=True)
    for name, size in (("_TOKENISED_ROWS", 5), ("_DRAWN_ROWS", 3), ("_DECODED_ROWS", 2)):
        monkeypatch.setattr(_official_rollout, name, size)
    official = LlamaRollout(model).planned(context, actions, greedy)
    ours = ImaginedFutures(model, sampling=greedy).root_of(context).rollout(actions).frames
    assert official.shape == ours.shape
    torch.testing.assert_close(official, ours, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("transformers")
def test_the_script_measures_both_ways_and_writes_its_figures(build, frames_for, monkeypatch, capsys, tmp_path) -> None:
    model = build("plain")
    monkeypatch.setattr(planning, "new_subject", lambda options: Subject(model, frames_for(model, 1), None, noise=True))
    planning.main(DecisionOptions(candidates=4, horizon=2, many=0, threads=1, out=tmp_path))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["ratio"] > 0 and figures["candidates"] == 4 and figures["ours_cpu_seconds"] > 0
    (file,) = tmp_path.glob("planning-*.json")
    assert json.loads(file.read_text()).keys() == figures.keys()
    assert (
        planning.memory_of(replace(DecisionOptions(horizon=2), baseline=False), 3) is not None
        or sys.platform != "linux"
    )


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="candidates is 1; expected at least 2"):
        DecisionOptions(candidates=1)
