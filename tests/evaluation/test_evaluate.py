from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ivideogpt import WorldModel
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.domains import Domain
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import Clips, HeldOut
from ivideogpt.evaluation.protocols import PROTOCOLS, settle
from ivideogpt.evaluation.rollouts import clip_seeds, imagine_futures
from ivideogpt.evaluation.video_distances import VideoDistances
from ivideogpt.metrics.image import mse, psnr
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.reports.evaluation_page import report_page
from ivideogpt.reports.evaluation_report import About, summary
from ivideogpt.worldmodel.config import WorldModelConfig

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "golden"


def clips_for(model, count=3, length=6):
    random, size = np.random.default_rng(0), model.resolution
    frames = torch.from_numpy(random.integers(0, 256, (count, length, 3, size, size), dtype=np.uint8))
    actions = torch.from_numpy(random.normal(size=(count, length, model.action_dim)).astype(np.float32))
    names = tuple(f"e{index}" for index in range(count))
    return Clips(frames, actions if model.action_dim else None, names, (0,) * count)


def protocol_for(model, **changes):
    return settle(replace(PROTOCOLS["single"], clip_frames=6), model, **changes)


def futures_of(model, clips, samples, batch_size, seed=0):
    """Ids ``[n k f m]`` of all futures, imagined in batches."""
    count = model.context_frames
    actions = None if clips.actions is None else model.normalize_actions(clips.actions[:, count - 1 : -1])
    horizon, together, parts = clips.frames.shape[1] - count, max(batch_size // samples, 1), []
    for start in range(0, len(clips), together):
        rows = slice(start, start + together)
        context = clips.frames[rows, :count]
        options = {"seeds": clip_seeds(seed, range(start, start + len(context)))}
        chunks = imagine_futures(
            model,
            context,
            None if actions is None else actions[rows],
            horizon,
            samples=samples,
            batch_size=batch_size,
            **options,
        )
        parts.append(torch.cat([futures.ids for futures in chunks], dim=1))
    return torch.cat(parts)


def test_futures_on_a_shared_prefill_are_those_of_separate_imaginations(any_model) -> None:
    clips = clips_for(any_model)
    count = any_model.context_frames
    together = futures_of(any_model, clips, samples=3, batch_size=9)
    for clip in range(len(clips)):
        actions = None
        if any_model.action_dim:
            actions = any_model.normalize_actions(clips.actions[clip : clip + 1, count - 1 : -1])
        context = clips.frames[clip : clip + 1, :count]
        alone = any_model.imagine(context, actions, 6 - count, seed=[clip])
        assert torch.equal(together[clip, 0], alone.ids[0]), "the first future is that of the clip's seed"
        for sample in range(1, 3):
            child = any_model.session(context, seed=[clip]).fork(1, first=sample)
            ids = child.rollout(actions, 6 - count).ids
            assert torch.equal(together[clip, sample], ids[0])
    assert not torch.equal(together[:, 0], together[:, 1])


def test_a_future_is_the_same_whatever_the_batch_and_the_number_of_futures(model_of) -> None:
    model = model_of("plain")
    clips = clips_for(model, count=2)
    expected = futures_of(model, clips, samples=5, batch_size=32)
    for batch_size in (2, 10):
        assert torch.equal(futures_of(model, clips, 5, batch_size), expected)
    assert torch.equal(futures_of(model, clips, 2, 3), expected[:, :2])
    assert not torch.equal(futures_of(model, clips, 5, 32, seed=1), expected)


def test_figures_are_those_of_the_pictures(model_of) -> None:
    model = model_of("conditional")
    clips = clips_for(model)
    found = evaluate(model, clips, protocol_for(model, samples=2), batch_size=4)
    frames = clips.frames.float() / 255
    true, first = frames[:, 2:], found.pictures["imagined"].float() / 255
    near = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.clip_values("imagined", "mse"), mse(first, true).mean(dim=1), **near)
    copy = psnr(frames[:, 1:2].expand_as(true), true).mean(dim=1)
    torch.testing.assert_close(found.clip_values("copy_last", "psnr"), copy)
    with torch.no_grad():
        ids, _ = model.tokenizer.tokenize(frames)
        shown = psnr(model.tokenizer.detokenize(ids).clamp(0, 1)[:, 2:], true).mean(dim=1)
    torch.testing.assert_close(found.clip_values("reconstruction", "psnr"), shown, **near)
    with torch.no_grad():
        ids, _ = model.tokenizer.tokenize(frames)
        whole = psnr(model.tokenizer.detokenize(ids).clamp(0, 1), frames).mean(dim=1)
    torch.testing.assert_close(found.clip_values("reconstruction", "psnr", whole=True), whole, **near)
    best = found.clip_values("imagined", "psnr", of="best")
    assert (best >= found.clip_values("imagined", "psnr", of="mean")).all()
    shown = psnr(found.pictures["best"].float() / 255, true).mean(dim=1)
    torch.testing.assert_close(best, shown, **near)
    assert found.estimate("imagined", "psnr", of="best").value == pytest.approx(best.mean().item())


def test_one_future_gives_the_figures_of_an_imagination(model_of) -> None:
    model = model_of("plain")
    clips, protocol = clips_for(model), protocol_for(model)
    found = evaluate(model, clips, protocol)
    actions = model.normalize_actions(clips.actions[:, 1:-1])
    true = clips.frames[:, 2:].float() / 255
    for row, steer in (("imagined", actions), ("permuted_actions", actions.roll(1, dims=0))):
        imagined = model.imagine(clips.frames[:, :2], steer, sampling=protocol.sampling, seed=[0, 1, 2]).frames
        ratios = psnr(imagined, true)
        figures = found.figures(row)
        assert figures["psnr"] == pytest.approx(float(ratios.mean()), abs=1e-3)
        assert figures["psnr_last"] == pytest.approx(float(ratios[:, -1].mean()), abs=1e-3)
        assert found.curve(row, "psnr")[-1].value == pytest.approx(float(ratios[:, -1].mean()), abs=1e-3)
    assert found.disagreement is None and list(found.trust) == ["entropy"] and "best" not in found.pictures


def test_disagreement_is_the_spread_of_the_futures(model_of) -> None:
    model = model_of("action_free")
    clips, protocol = clips_for(model), protocol_for(model, samples=4)
    found = evaluate(model, clips, protocol, batch_size=3)
    (futures,) = imagine_futures(
        model, clips.frames[:, :2], None, 4, seeds=[0, 1, 2], samples=4, sampling=protocol.sampling
    )
    frames = futures.frames
    spread = frames.var(dim=1, unbiased=False).mean(dim=(-3, -2, -1)).sqrt()
    torch.testing.assert_close(found.disagreement, spread, atol=1e-4, rtol=1e-3)
    greedy = evaluate(model, clips, replace(protocol, top_k=1))
    assert greedy.disagreement.abs().max() < 1e-6
    assert found.following is None and set(found.scores) == {"imagined", "copy_last", "reconstruction"}


class MeanColours:
    """Features that can be checked by hand: the mean of each channel."""

    name = "mean colours"

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        assert videos.min() >= 0 and videos.max() <= 1
        return videos.double().mean(dim=(1, 3, 4)).cpu()


def test_distances_of_videos_are_of_all_futures_and_of_the_first(model_of) -> None:
    model = model_of("action_free")
    clips = clips_for(model, length=13)
    found = evaluate(model, clips, protocol_for(model, samples=2, horizon=11), video=VideoDistances(MeanColours()))
    rows = {"imagined", "imagined_first", "reconstruction", "copy_last"}
    assert set(found.video) == {"whole_clip", "future"} and set(found.video["future"]) == rows
    assert found.video_name == "mean colours" and found.video["future"]["imagined"] > 0
    short = evaluate(model, clips_for(model), protocol_for(model), video=VideoDistances(MeanColours()))
    assert short.video == {}, "6 frames are too short"


def test_figures_of_the_domain_see_every_row(model_of) -> None:
    model, clips = model_of("plain"), clips_for(model_of("plain"))
    seen = []

    def measures(true, found, context_frame):
        assert torch.equal(true, clips.frames[:, 2:]) and torch.equal(context_frame, clips.frames[:, 1])
        seen.append(found)
        return {"mine": 1.0}

    domain = Domain(
        size=16,
        pictures=(measures,),
        by_frame=(lambda true, imagined: {"count": [float(len(imagined))] * imagined.shape[1]},),
        model=(lambda model, clips: {"name": model.config.name},),
    )
    found = evaluate(model, clips, protocol_for(model), domain=domain)
    rows = {"imagined", "reconstruction", "copy_last", "permuted_actions", "zero_actions"}
    assert set(found.objects) == rows and len(seen) == 5
    assert set(found.objects_by_frame) == {"imagined", "reconstruction", "copy_last"}
    assert found.objects_by_frame["imagined"] == {"count": [3.0] * 4}
    assert found.model_figures == {"name": "plain"} and found.figures("imagined")["mine"] == 1.0


def test_clips_of_another_length_or_without_actions_are_refused(model_of) -> None:
    model = model_of("plain")
    with pytest.raises(UserError, match="expected clips of 6"):
        evaluate(model, clips_for(model, length=5), protocol_for(model))
    with pytest.raises(UserError, match="needs actions of 2"):
        evaluate(model, replace(clips_for(model), actions=None), protocol_for(model))
    for options in ({"samples": 0}, {"batch_size": 0}):
        with pytest.raises(UserError, match="expected at least 1"):
            context = clips_for(model).frames[:, :2]
            next(imagine_futures(model, context, torch.zeros(3, 4, 2), 4, seeds=[0, 1, 2], **options))


def test_a_model_without_tokens_is_measured_and_calibrated_by_the_change_of_the_frame() -> None:
    torch.manual_seed(0)
    forecast = PictureForecastConfig(net=PictureNetConfig(width=8, deep_width=8, blocks_deep=1))
    config = PictureDynamicsConfig(resolution=16, forecast=forecast, pointer_scale=8.0, pointer_offset=8.0)
    settings = WorldModelConfig(name="tiny", clip_frames=6, heads=HeadsConfig(action_dim=2))
    model = WorldModel.from_pictures(settings, PictureDynamics(config)).eval()
    clips = clips_for(model, count=10)
    found = evaluate(model, clips, protocol_for(model, samples=2), batch_size=4)
    assert found.entropies is None and found.tokens is None and "entropy" not in found.trust
    assert found.calibration.signal == "change" and found.calibration.level(0.0, frame=1).name == "small"
    assert found.repetition["imagined"].isnan().all()
    imagined = model.imagine(clips.frames[:, :2], model.normalize_actions(clips.actions[:, 1:-1])).frames
    true = clips.frames[:, 2:].float() / 255
    assert found.figures("imagined")["psnr"] == pytest.approx(float(psnr(imagined, true).mean()), abs=1e-3)
    held_out = HeldOut(clips, "mine", "test", 1, 0, ())
    about = About(model="m", checkpoint="c", data="d")
    page = report_page(found, held_out, about)
    assert (
        "Expected error of a frame" in page and summary(found, held_out, about)["expected_error"]["signal"] == "change"
    )
    # there is no tokenizer whose reconstruction could be shown
    assert "reconstruction" not in found.scores and 'class="reconstruction"' not in page and "tokenizer" not in page


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["small", "ctx1"])
def test_an_official_checkpoint_has_the_figures_of_the_official_code(kind, tmp_path) -> None:
    folder = GOLDEN / kind
    if not folder.is_dir():
        pytest.skip(f"the golden outputs of the official code are not here ({folder})")
    for part in ("tokenizer", "transformer"):
        (tmp_path / part).symlink_to(folder / part)
    model, out = WorldModel.from_pretrained(tmp_path), load_file(folder / "outputs.safetensors")
    clips = Clips(load_file(folder / "inputs.safetensors")["video_uint8"], None)
    found = evaluate(model, clips, protocol_for(model, samples=2))
    assert found.tokens.loss.mean().item() == pytest.approx(out["free_loss"].item(), abs=1e-4)
    official = psnr(out["detok_frames"].clamp(0, 1), clips.frames.float() / 255).mean(dim=1)
    torch.testing.assert_close(found.clip_values("reconstruction", "psnr", whole=True), official, atol=1e-3, rtol=0)
    assert found.following is None and found.scores["imagined"]["psnr"].future.shape == (2, 2, 6 - model.context_frames)
