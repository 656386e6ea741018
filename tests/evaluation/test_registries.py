"""A new metric, protocol, simulator or measure of a world is one more entry of a registry."""

import numpy as np
import pytest

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.domains import DOMAINS, Domain, find_domain
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.frame_errors import FRAME_METRICS, Metric
from ivideogpt.evaluation.held_out import SIMULATORS, HeldOut, Simulator, record_clips
from ivideogpt.evaluation.protocols import PROTOCOLS, Protocol, find_protocol, settle
from ivideogpt.reports.evaluation_page import report_page
from ivideogpt.reports.evaluation_report import About, results, summary


def noise(seeds):
    """Episodes of 16 px with actions of three numbers, as many as ``seeds`` says."""
    random = np.random.default_rng(0)
    shape = (9, 16, 16, 3)
    return [
        Episode(
            frames=random.integers(0, 256, shape, dtype=np.uint8),
            actions=random.normal(size=(9, 3)).astype(np.float32),
            key=f"noise{index}",
        )
        for index in range(int(seeds or 2))
    ]


def test_a_dummy_of_each_is_measured_and_reported(model_of, monkeypatch) -> None:
    def brightness(imagined, true):
        return (imagined - true).mean(dim=(-3, -2, -1))

    monkeypatch.setitem(FRAME_METRICS, "brightness", Metric("brightness", "brightness error", False, brightness, 3))
    monkeypatch.setitem(PROTOCOLS, "dummy", Protocol(name="dummy", clip_frames=5, temperature=0.5, simulator="noise"))
    monkeypatch.setitem(SIMULATORS, "noise", Simulator(noise, lambda episode, length: 3))
    monkeypatch.setitem(
        DOMAINS,
        "noise",
        Domain(
            size=16,
            pictures=(lambda true, imagined, last: {"answer": 42.0},),
            by_frame=(lambda true, imagined: {"wobble": [0.5] * imagined.shape[1]},),
            model=(lambda model, clips: {"stability": {"kept": 0.25}},),
        ),
    )
    model = model_of("conditional")
    protocol = settle(find_protocol("dummy"), model)
    held_out = record_clips(model, protocol, seeds="3")
    assert held_out.dataset == "noise" and held_out.clips.starts == (3, 3, 3) and len(held_out.clips) == 3
    every_key = held_out.clips.keys
    assert record_clips(model, protocol, seeds="3", count=2).clips.keys == (every_key[0], every_key[-1])
    with pytest.raises(UserError, match="clips is 0"):
        record_clips(model, protocol, seeds="3", count=0)
    domain = find_domain(held_out.dataset, 16)
    evaluation = evaluate(model, held_out.clips, protocol, domain=domain)
    about = About(model="m", checkpoint="c", data="d")
    values = summary(evaluation, held_out, about)
    assert {"psnr", "ssim", "mse", "brightness"} == set(values["future"])
    assert values["protocol"] == "dummy" and values["temperature"] == 0.5
    assert values["objects"]["imagined"] == {"answer": 42.0}
    page = report_page(evaluation, held_out, about)
    assert "brightness error" in page and "<b>dummy</b>" in page and "answer" in page
    assert "Measures of noise" in page and "wobble" in page and "stability, kept" in page and "0.25" in page
    by_frame = results(evaluation, held_out, about)["objects_by_frame"]
    assert by_frame["imagined"] == {"wobble": [0.5] * 3}
    assert values["model_figures"] == {"stability": {"kept": 0.25}}
    assert isinstance(held_out, HeldOut)


def test_a_simulator_measures_only_models_of_its_world(model_of, monkeypatch) -> None:
    monkeypatch.setitem(SIMULATORS, "noise", Simulator(noise, lambda episode, length: 0))
    monkeypatch.setitem(PROTOCOLS, "dummy", Protocol(name="dummy", clip_frames=5, simulator="noise"))
    for kind in ("plain", "goal", "action_free"):
        model = model_of(kind)
        with pytest.raises(UserError, match="protocol dummy measures models of frames of 16 px, actions of 3 numbers"):
            record_clips(model, settle(find_protocol("dummy"), model))
    assert find_domain("pusht", 64) is DOMAINS["pusht"] and find_domain("pusht", 16) is None
