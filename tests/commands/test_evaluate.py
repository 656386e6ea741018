"""``ivideogpt evaluate`` on tiny checkpoints: what it prints and writes, and what a user can get wrong."""

import json

import numpy as np
import pytest

from ivideogpt.core.errors import MissingExtraError
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

QUICK = ("--metrics", "tokens,following")


@pytest.fixture
def store(tmp_path):
    """A folder with four episodes of 12 frames, 16 px, three numbers an action, and one that is too short."""

    def read():
        for index, length in enumerate((12, 12, 12, 12, 3)):
            random = np.random.default_rng(index)
            frames = random.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
            actions = random.normal(size=(length, 3)).astype(np.float32)
            actions[-1] = 0
            yield SourceEpisode(key=f"e{index}", split="test", cameras={"image": frames}, actions=actions)

    convert_to_store([ShardTask("all", read)], tmp_path / "store", facts=StoreFacts(name="mine"), workers=0)
    return "store"


def test_it_writes_a_report_and_results_and_ends_with_a_json_line(run, checkpoints, store, tmp_path):
    done = run("evaluate", checkpoints["conditional"], "--data", store, "--samples", 2, *QUICK)
    assert done.code == 0 and done.err == "", done.err
    folder = tmp_path / "outputs" / "evaluate" / "conditional-mine-single"
    assert {path.name for path in folder.iterdir()} == {"report.html", "results.json"}
    line = done.json
    assert line["report"] == "outputs/evaluate/conditional-mine-single/report.html"
    assert (line["clips"], line["too_short"], line["samples"], line["clip_frames"]) == (4, 1, 2, 6)
    assert {"whole_clip", "future", "tokens", "following", "trust", "frames_per_second"} <= set(line)
    assert set(line["future"]) == {"psnr", "ssim", "mse"}
    assert line["future"]["psnr"]["best"]["value"] >= line["future"]["psnr"]["mean"]["value"]
    stored = json.loads((folder / "results.json").read_text())
    assert stored["future"]["mse"]["first"]["value"] == pytest.approx(line["future"]["mse"]["first"]["value"], rel=1e-5)
    assert len(stored["future_of_each_clip"]) == 4
    for words in ("imagined, best of 2", "reconstruction", "copy of the last frame", "action following", "whole clip"):
        assert words in done.out
    json.loads(done.out.splitlines()[-1], parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_a_seed_makes_a_measurement_repeatable_whatever_the_batch(run, checkpoints, store):
    def found(*options):
        words = (checkpoints["conditional"], "--data", store, "--samples", 2, "--metrics", "none", *options)
        line = run("evaluate", *words).json
        return {key: line[key] for key in ("whole_clip", "future")}

    first = found()
    other = found("--batch-size", 1)
    for metric in ("psnr", "mse"):
        assert other["future"][metric]["best"]["value"] == pytest.approx(
            first["future"][metric]["best"]["value"], rel=1e-4
        )
    assert found("--seed", 1) != first


def test_flags_override_the_protocol(run, checkpoints, store):
    words = ("--clips", 2, "--horizon", 3, "--temperature", 0.5, "--top-k", 0, "--output", "out", "--metrics", "none")
    line = run("evaluate", checkpoints["conditional"], "--data", store, *words).json
    assert (line["clips"], line["clip_frames"], line["temperature"], line["top_k"]) == (2, 5, 0.5, None)
    assert line["report"] == "out/report.html" and "following" not in line


def test_what_is_not_as_published_is_said(run, checkpoints, store):
    words = ("--protocol", "bair", "--samples", 2, "--horizon", 4, "--allow-mismatch", "--metrics", "none")
    done = run("evaluate", checkpoints["conditional"], "--data", store, *words)
    assert done.code == 0, done.err
    assert "samples: 2 instead of 100" in done.json["deviations"] and done.json["start"] == "first"
    assert "not as published: samples: 2 instead of 100" in done.out and "overlooked: protocol bair" in done.out


def test_pictures_too_small_for_a_network_are_left_out_unless_asked_for(run, checkpoints, store):
    pytest.importorskip("stlpips_pytorch")
    words = ("evaluate", checkpoints["action_free"], "--data", store, "--horizon", 4)
    done = run(*words)
    assert done.code == 0 and "needs 18 pixels a side, not 16" in " ".join(done.json["left_out"])
    asked = run(*words, "--metrics", "perceptual")
    assert asked.code == 2 and "at least 18 x 18" in asked.err


def test_without_the_extra_some_rows_are_left_out_and_named(run, checkpoints, store, monkeypatch):
    def missing(*_, **__):
        raise MissingExtraError("weights", "evaluation")

    monkeypatch.setattr("ivideogpt.metrics.perceptual.load_perceptual", missing)
    monkeypatch.setattr("ivideogpt.metrics.video.load_video_features", missing)
    done = run("evaluate", checkpoints["action_free"], "--data", store, "--horizon", 4)
    assert done.code == 0, done.err
    assert len(done.json["left_out"]) == 2 and "ivideogpt[evaluation]" in done.json["left_out"][0]
    assert done.out.count("left out: ") == 2 and set(done.json["future"]) == {"psnr", "ssim", "mse"}
    for part in ("perceptual", "video"):
        done = run("evaluate", checkpoints["action_free"], "--data", store, "--horizon", 4, "--metrics", part)
        assert done.code == 2 and "ivideogpt[evaluation]" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--protocol", "bear"), "did you mean 'bair'?"),
        (("--protocol", "bair"), "1 context frames"),
        (("--metrics", "fvd"), "'fvd'"),
        (("--network", "resnet"), "vgg"),
        (("--samples", 0), "samples is 0"),
        (("--clips", 0), "clips is 0"),
        (("--batch-size", 0, "--metrics", "none"), "batch_size is 0"),
        (("--horizon", 40), "longest episode"),
        (("--split", "val"), "no split 'val'"),
        (("--stride", 2), "--allow-mismatch"),
        (("--camera", "wrist"), "no camera 'wrist'"),
        (("--top-k", -1), "top_k is -1"),
        (("--data", "nowhere"), "nowhere"),
        (("--i3d", "missing.pt"), "missing.pt"),
        (("--lpips", "missing"), "missing"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_nothing_is_written(run, checkpoints, store, tmp_path, options, words):
    before = sorted(tmp_path.rglob("*"))
    done = run("evaluate", checkpoints["conditional"], "--data", store, *options)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and words in done.err, done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_data_of_another_kind_are_refused(run, checkpoints, store, tmp_path):
    done = run("evaluate", checkpoints["plain"], "--data", store)
    assert done.code == 2 and "3 numbers and the checkpoint takes 2" in done.err
    (tmp_path / "file").write_text("x")
    done = run("evaluate", checkpoints["conditional"], "--data", store, "--output", "file")
    assert done.code == 2 and "is a file" in done.err
