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
    frame_changes,
    read_calibration,
    store_calibration,
)


def clips_of(count=60, frames=12, noise=0.5, seed=0):
    """Entropies ``[n f]`` and a PSNR that falls by 10 dB a nat."""
    generator = torch.Generator().manual_seed(seed)
    entropies = torch.rand(count, frames, generator=generator)
    return 35 - 10 * entropies + noise * torch.randn(count, frames, generator=generator), entropies


def test_three_levels_split_the_frames_into_thirds_and_expect_what_most_of_them_reach() -> None:
    psnr, entropies = clips_of()
    calibration = fit_calibration(psnr, "entropy", entropies)
    assert calibration.signal == "entropy" and (calibration.clips, calibration.frames) == (60, 12)
    assert [level.name for level in calibration.levels] == ["small", "medium", "large"]
    first, second, third = calibration.levels
    assert first.limit == pytest.approx(1 / 3, abs=0.05) and second.limit == pytest.approx(2 / 3, abs=0.05)
    assert third.limit is None
    for level, share in zip(calibration.levels, (0.8 / 3, 1.8 / 3, 2.8 / 3), strict=True):
        assert level.psnr == pytest.approx(35 - 10 * share, abs=0.5)  # four of five frames have a smaller entropy


def test_hit_rates_are_those_of_fresh_clips() -> None:
    psnr, entropies = clips_of(noise=2.5)
    calibration = fit_calibration(psnr, "entropy", entropies)
    fresh_psnr, fresh_entropies = clips_of(count=400, noise=2.5, seed=1)
    for level in calibration.levels:
        hits = [
            float(x) >= level.psnr
            for x, entropy in zip(fresh_psnr.flatten(), fresh_entropies.flatten(), strict=True)
            if calibration.level(float(entropy), frame=1) is level
        ]
        assert level.hit_rate == pytest.approx(sum(hits) / len(hits), abs=0.06)
        assert 0.7 < level.hit_rate < 0.9


def test_a_signal_that_says_nothing_gives_levels_that_expect_about_the_same() -> None:
    psnr, entropies = clips_of(noise=1.0)
    levels = fit_calibration(psnr, "entropy", entropies.flip(0).roll(5, dims=1)).levels
    assert levels[0].psnr >= levels[1].psnr >= levels[2].psnr
    assert levels[0].psnr - levels[2].psnr < 1.5
    backwards = fit_calibration(psnr, "entropy", 1 - entropies).levels
    assert backwards[0].psnr == backwards[1].psnr == backwards[2].psnr, "more signal never means less error"


def test_a_model_without_tokens_is_calibrated_by_the_change_of_the_frame() -> None:
    last = torch.zeros(30, 3, 4, 4, dtype=torch.uint8)
    frames = torch.arange(1, 13, dtype=torch.uint8)[None, :, None, None, None].expand(30, -1, 3, 4, 4)
    changes = frame_changes(frames, last)
    assert torch.allclose(changes[0] * 255, torch.arange(1.0, 13))
    assert torch.allclose(changes, frame_changes(frames / 255, last / 255))
    calibration = fit_calibration(40 - changes * 255, "change", changes)
    assert [level.limit and round(255 * level.limit) for level in calibration.levels] == [4, 8, None]
    assert [level.psnr for level in calibration.levels] == [36.0, 32.0, 28.0]
    assert [calibration.level(k / 255, frame=1).name for k in (1, 3.9, 5, 200)] == ["small", "small", "medium", "large"]
    assert calibration.level(0.01, frame=13) is None, "later than what was measured"
    assert calibration.level(None, frame=1) is None


def test_one_future_frame_and_equal_signals_still_give_three_levels() -> None:
    psnr, entropies = clips_of(frames=1)
    for values in (torch.ones_like(entropies), torch.zeros_like(psnr)):
        levels = fit_calibration(psnr, "change", values).levels
        assert len(levels) == 3 and len({level.psnr for level in levels}) == 1


def test_too_few_clips_are_not_calibrated_and_shapes_must_agree() -> None:
    psnr, entropies = clips_of(count=MIN_CALIBRATION_CLIPS - 1)
    assert fit_calibration(psnr, "entropy", entropies) is None
    with pytest.raises(UserError, match=r"expected the same \[n f\]"):
        fit_calibration(psnr, "entropy", entropies[:, :3])


def test_a_checkpoint_keeps_its_calibration(build, tmp_path) -> None:
    build("plain").save_pretrained(tmp_path)
    assert read_calibration(WorldModel.from_pretrained(tmp_path).config.metadata) is None
    psnr, entropies = clips_of()
    calibration = fit_calibration(psnr, "entropy", entropies)
    weights = (tmp_path / "heads.safetensors").read_bytes()
    store_calibration(tmp_path, calibration)
    metadata = WorldModel.from_pretrained(tmp_path).config.metadata
    assert read_calibration(metadata) == calibration
    assert metadata["seconds"] == 3.5, "the rest of the metadata stays"
    assert (tmp_path / "heads.safetensors").read_bytes() == weights


def test_a_checkpoint_of_the_official_code_and_a_damaged_calibration_are_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="official code"):
        store_calibration(tmp_path, fit_calibration(clips_of()[0], "entropy", clips_of()[1]))
    with pytest.raises(UserError, match="unknown key 'level'"):
        read_calibration({METADATA_KEY: {"level": 3}})
