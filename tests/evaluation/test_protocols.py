from dataclasses import replace

import pytest

from ivideogpt import Sampling
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.protocols import PROTOCOLS, find_protocol, settle


@pytest.mark.parametrize(
    ("name", "context", "frames", "start", "split", "samples", "clips"),
    [("bair", 1, 16, "first", "test", 100, 256), ("robonet", 2, 12, "first", "test", 100, 256)],
)
def test_published_protocols_are_as_published(name, context, frames, start, split, samples, clips) -> None:
    found = find_protocol(name)
    assert (found.context_frames, found.clip_frames, found.start) == (context, frames, start)
    assert (found.split, found.samples, found.clips) == (split, samples, clips)
    assert (found.temperature, found.top_k) == (1.0, 100)


def test_vp2_begins_anywhere() -> None:
    assert PROTOCOLS["vp2"].start == "random" and PROTOCOLS["vp2"].split == "val"


def test_single_is_what_the_checkpoint_says(build) -> None:
    model = build("conditional", sampling=Sampling(temperature=0.7))
    settled = settle(PROTOCOLS["single"], model)
    assert (settled.context_frames, settled.clip_frames, settled.horizon, settled.samples) == (2, 6, 4, 1)
    assert settled.sampling.temperature == 0.7 and settled.sampling.top_k == 100
    unknown = settle(PROTOCOLS["single"], build("action_free"))
    assert unknown.horizon == build("action_free").segment_frames()


def test_flags_override_a_protocol(model_of) -> None:
    settled = settle(PROTOCOLS["bair"], model_of("conditional"), horizon=3, samples=5, top_k=0, temperature=None)
    assert (settled.clip_frames, settled.horizon, settled.samples) == (5, 3, 5)
    assert settled.top_k is None and settled.temperature == 1.0


def test_what_differs_from_the_published_protocol_is_said(model_of) -> None:
    bair = PROTOCOLS["bair"]
    assert bair.deviations(clips=256, dataset="bair_robot_pushing") == ()
    assert replace(bair, samples=3).deviations(clips=8, dataset="bair_robot_pushing") == (
        "samples: 3 instead of 100",
        "clips: 8 instead of 256",
    )
    (said,) = bair.deviations(clips=256, dataset="mine")
    assert "mine" in said and "bair_robot_pushing" in said
    settled = settle(bair, model_of("conditional"))
    assert settled.deviations(clips=256, dataset="bair_robot_pushing") == ("context frames: 2 instead of 1",)
    assert PROTOCOLS["single"].deviations(clips=1, dataset="mine") == ()


@pytest.mark.parametrize("changes", [{"samples": 0}, {"horizon": 0}, {"temperature": 0.0}, {"top_k": -1}])
def test_numbers_without_meaning_are_refused(model_of, changes) -> None:
    with pytest.raises(UserError, match="expected"):
        settle(PROTOCOLS["single"], model_of("conditional"), **changes)


def test_an_unknown_protocol_names_the_closest() -> None:
    with pytest.raises(UserError, match="robonet"):
        find_protocol("robonett")
