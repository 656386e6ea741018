"""The expected error of a frame, fitted on held-out clips and kept in the checkpoint."""

import json

import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.calibration import (
    METADATA_KEY,
    MIN_CALIBRATION_CLIPS,
    fit_calibration,
    read_calibration,
    store_calibration,
)


def clips_of(count=60, frames=12, noise=0.5, seed=0):
    """Entropies ``[n f]`` and a PSNR that falls by 10 dB a nat."""
    generator = torch.Generator().manual_seed(seed)
    entropies = torch.rand(count, frames, generator=generator)
    return 35 - 10 * entropies + noise * torch.randn(count, frames, generator=generator), entropies


def test_three_levels_split_the_frames_into_thirds_and_expect_their_median() -> None:
    psnr, entropies = clips_of()
    calibration = fit_calibration(psnr, entropies)
    assert calibration.signal == "entropy" and (calibration.clips, calibration.frames) == (60, 12)
    assert [level.name for level in calibration.levels] == ["small", "medium", "large"]
    first, second, third = calibration.levels
    assert first.limit == pytest.approx(1 / 3, abs=0.05) and second.limit == pytest.approx(2 / 3, abs=0.05)
    assert third.limit is None
    for level, middle in zip(calibration.levels, (1 / 6, 1 / 2, 5 / 6), strict=True):
        assert level.psnr == pytest.approx(35 - 10 * middle, abs=0.5)


def test_hit_rates_are_those_of_fresh_clips() -> None:
    psnr, entropies = clips_of(noise=2.5)
    calibration = fit_calibration(psnr, entropies)
    fresh_psnr, fresh_entropies = clips_of(count=400, noise=2.5, seed=1)
    for level in calibration.levels:
        hits = [
            abs(float(x) - level.psnr) <= calibration.tolerance
            for x, entropy in zip(fresh_psnr.flatten(), fresh_entropies.flatten(), strict=True)
            if calibration.level(entropy=float(entropy), frame=1) is level
        ]
        assert level.hit_rate == pytest.approx(sum(hits) / len(hits), abs=0.06)
        assert 0.5 < level.hit_rate < 0.9


def test_a_signal_that_says_nothing_gives_levels_that_expect_about_the_same() -> None:
    psnr, entropies = clips_of(noise=1.0)
    levels = fit_calibration(psnr, entropies.flip(0).roll(5, dims=1)).levels
    assert levels[0].psnr >= levels[1].psnr >= levels[2].psnr
    assert levels[0].psnr - levels[2].psnr < 1.5
    backwards = fit_calibration(psnr, 1 - entropies).levels
    assert backwards[0].psnr == backwards[1].psnr == backwards[2].psnr, "more signal never means less error"


def test_a_model_without_entropies_is_calibrated_by_the_number_of_the_frame() -> None:
    frame = torch.arange(1.0, 13)
    psnr = (40 - frame).expand(30, 12)
    calibration = fit_calibration(psnr, None)
    assert calibration.signal == "frame"
    assert [level.limit for level in calibration.levels] == [4.0, 8.0, None]
    assert [level.psnr for level in calibration.levels] == [37.5, 33.5, 29.5]
    assert [calibration.level(entropy=None, frame=i).name for i in (1, 4, 5, 12)] == [
        *("small", "small", "medium", "large")
    ]
    assert all(level.hit_rate == 1.0 for level in calibration.levels)


def test_one_future_frame_and_equal_signals_still_give_three_levels() -> None:
    psnr, _ = clips_of(frames=1)
    for entropies in (None, torch.zeros_like(psnr)):
        levels = fit_calibration(psnr, entropies).levels
        assert len(levels) == 3 and len({level.psnr for level in levels}) == 1


def test_too_few_clips_are_not_calibrated_and_shapes_must_agree() -> None:
    psnr, entropies = clips_of(count=MIN_CALIBRATION_CLIPS - 1)
    assert fit_calibration(psnr, entropies) is None
    with pytest.raises(UserError, match=r"expected the same \[n f\]"):
        fit_calibration(psnr, entropies[:, :3])


def test_a_checkpoint_keeps_its_calibration(build, tmp_path) -> None:
    build("plain").save_pretrained(tmp_path)
    assert read_calibration(WorldModel.from_pretrained(tmp_path).config.metadata) is None
    calibration = fit_calibration(*clips_of())
    weights = (tmp_path / "heads.safetensors").read_bytes()
    store_calibration(tmp_path, calibration)
    metadata = WorldModel.from_pretrained(tmp_path).config.metadata
    assert read_calibration(metadata) == calibration
    assert metadata["seconds"] == 3.5, "the rest of the metadata stays"
    assert (tmp_path / "heads.safetensors").read_bytes() == weights
    assert calibration.level(entropy=0.1, frame=calibration.frames + 1) is None, "later than what was measured"
    with pytest.raises(UserError, match="calibrated by entropy"):
        calibration.level(entropy=None, frame=1)


def test_a_checkpoint_of_the_official_code_and_a_damaged_calibration_are_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="official code"):
        store_calibration(tmp_path, fit_calibration(*clips_of()))
    with pytest.raises(UserError, match="unknown key 'level'"):
        read_calibration({METADATA_KEY: {"level": 3}})
