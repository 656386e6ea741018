"""``ivideogpt evaluate``: measure a checkpoint on held-out episodes by a protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from ivideogpt.commands.inputs import check_is_store, choose_pool
from ivideogpt.commands.output import check_folder, print_table
from ivideogpt.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from ivideogpt.data.process_pool import TaskPool
    from ivideogpt.evaluation.evaluate import Evaluation
    from ivideogpt.evaluation.frame_errors import Metric
    from ivideogpt.evaluation.held_out import HeldOut
    from ivideogpt.evaluation.protocols import Protocol
    from ivideogpt.evaluation.video_distances import VideoDistances
    from ivideogpt.reports.evaluation_report import About
    from ivideogpt.worldmodel.world_model import WorldModel

#: What can be left out or asked for; PSNR, SSIM, MSE and the trust signal are always measured.
PARTS = ("perceptual", "video", "tokens", "following")
NETWORKS = ("auto", "vgg", "alex")
#: On a CPU, beyond so many frames the perceptual distance takes the smaller network, unless one is named.
MOST_VGG_FRAMES = 8000


def evaluate(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    *,
    data: str | None = None,
    protocol: str = "single",
    seeds: str | None = None,
    samples: int | None = None,
    clips: int | None = None,
    horizon: int | None = None,
    split: str | None = None,
    stride: int | None = None,
    camera: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    calibrate: bool = False,
    metrics: str = "",
    network: str = "auto",
    lpips: Path | None = None,
    i3d: Path | None = None,
    batch_size: int = 32,
    allow_mismatch: bool = False,
    output: Path | None = None,
    device: str = "auto",
    int8: bool = False,
    ray: str | None = None,
) -> None:
    """Measure a checkpoint on held-out episodes: how close, how sure, and whether it follows the actions.

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        data: an episode store, as ivideogpt convert writes it: a folder, or a URL that fsspec knows.
        protocol: bair, robonet, vp2, single (the checkpoint's own context and clip length, one future), or pusht (where
            agent and block are, in clips in which the block moves; episodes are recorded in the simulator).
        seeds: pusht: of the recorded episodes, first:stop; from 10000 on they were never trained on. Default:
            20000:20020.
        samples: futures of each clip; default: the protocol's.
        clips: how many, of episodes spread evenly over the split; default: one of every episode.
        horizon: frames to imagine; default: the protocol's.
        split: of the episodes; default: the protocol's, else test, else val.
        stride: recorded frames from one frame of a clip to the next; default: the checkpoint's.
        camera: of the store; default: the one that the dataset table names.
        temperature: of the draw; default: the protocol's, else the checkpoint's.
        top_k: draw only from this many likeliest tokens; 0: all; default: 100.
        seed: of starts and draws.
        calibrate: write the expected error of a frame into the checkpoint, for the page; needs 10 clips or more.
        metrics: with commas between them, what to measure beside PSNR, SSIM and MSE: perceptual, video, tokens,
            following; none: nothing; default: all that is installed.
        network: of the perceptual distance: vgg, alex, or auto (vgg unless that is slow here).
        lpips: folder or file with LPIPS weights; without them the distance is ST-LPIPS.
        i3d: the TorchScript file of I3D, which is run; without it the distance of videos is no FVD.
        batch_size: rows imagined together.
        allow_mismatch: measure on data that differ from what the checkpoint says of itself.
        output: folder for report and results; default: outputs/evaluate/MODEL-DATASET-PROTOCOL.
        device: auto, cpu or cuda.
        int8: on a CPU, imagine with weights of 8 bits: faster, a little less exact.
        ray: work on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or ray://HOST:PORT.
    """
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.evaluation.held_out import read_clips, record_clips
    from ivideogpt.evaluation.protocols import find_protocol, settle
    from ivideogpt.worldmodel.world_model import WorldModel

    # options
    chosen = find_protocol(protocol)
    _check_source(chosen, data, seeds)
    parts, explicit = _parts(metrics)
    if network not in NETWORKS:
        raise UserError(f"network is {network!r}; expected one of {', '.join(NETWORKS)}")
    if output is not None:
        check_folder(output)

    # model and clips
    store = None if data is None else EpisodeStore(data)
    model = WorldModel.from_pretrained(checkpoint, device=device, int8=int8)
    calibrated = _own_folder(checkpoint) if calibrate else None
    changes: dict[str, Any] = {"samples": samples, "split": split, "temperature": temperature, "top_k": top_k}
    settled = settle(chosen, model, horizon=horizon, **changes)
    options: dict[str, Any] = {"count": clips, "stride": stride, "camera": camera, "seed": seed}
    if settled.simulator is not None:
        if stride is not None or camera is not None:
            raise UserError(f"--protocol {settled.name} records its own clips; leave out --stride and --camera")
        held_out = record_clips(model, settled, seeds=seeds, store=store, count=clips)
    else:
        assert store is not None
        held_out = read_clips(model, store, settled, allow_mismatch=allow_mismatch, **options)
    name = model.config.name or Path(checkpoint).name or checkpoint
    folder = output or Path("outputs") / "evaluate" / f"{name}-{held_out.dataset}-{settled.name}"
    check_folder(folder)

    # measurement
    if network == "auto":
        frames = len(held_out.clips) * (settled.samples + 4) * settled.horizon
        network = _fast_network(model, frames, lpips)
    networks = _networks(model, parts, explicit, network, lpips, i3d)
    pool, _ = choose_pool(ray, None, device=model.device.type)
    options = {"seed": seed, "batch_size": batch_size, "workers": pool or 0}
    evaluation = _measure(model, held_out, settled, parts, networks, **options)

    # report
    about = _about(model, name, checkpoint, data or f"fresh episodes of {held_out.dataset}", held_out, networks)
    _print(evaluation, held_out, about, settled)
    _write_report(folder, evaluation, held_out, about, calibrated)


def _fast_network(model: WorldModel, frames: int, lpips: Path | None) -> str:
    """Return "vgg", or "alex" for so many ``frames`` that a processor would be slow with the other."""
    return "vgg" if model.device.type != "cpu" or lpips is not None or frames <= MOST_VGG_FRAMES else "alex"


def _measure(
    model: WorldModel,
    held_out: HeldOut,
    protocol: Protocol,
    parts: tuple[str, ...],
    networks: Networks,
    *,
    seed: int,
    batch_size: int,
    workers: int | TaskPool,
) -> Evaluation:
    from ivideogpt.evaluation.domains import find_domain
    from ivideogpt.evaluation.evaluate import evaluate as measure
    from ivideogpt.evaluation.frame_errors import FRAME_METRICS

    return measure(
        model,
        held_out.clips,
        protocol,
        seed=seed,
        batch_size=batch_size,
        metrics=(*FRAME_METRICS.values(), *networks.metrics),
        video=networks.video,
        domain=find_domain(held_out.dataset, model.resolution),
        tokens="tokens" in parts,
        follow="following" in parts,
        workers=workers,
    )


def _about(model: WorldModel, name: str, checkpoint: str, data: str, held_out: HeldOut, networks: Networks) -> About:
    """Describe what was measured, for the report."""
    from ivideogpt.reports.evaluation_report import About

    left_out = networks.left_out
    if model.config.heads.reward and held_out.clips.rewards is None:
        left_out += ("rewards: the episodes have none",)
    return About(
        model=name,
        checkpoint=checkpoint,
        data=data,
        facts=model.facts(),
        left_out=left_out,
        pointer=model.config.action_space.pointer,
        goal_conditioned=model.config.goal_conditioned,
    )


def _write_report(
    folder: Path, evaluation: Evaluation, held_out: HeldOut, about: About, calibrated: Path | None
) -> None:
    """Write page and results into ``folder`` and, where asked for, the expected error into a checkpoint."""
    from ivideogpt.core.files import write_text_atomic
    from ivideogpt.reports.evaluation_page import report_page
    from ivideogpt.reports.evaluation_report import results, summary

    report = folder / "report.html"
    write_text_atomic(folder / "results.json", json.dumps(results(evaluation, held_out, about), indent=1) + "\n")
    write_text_atomic(report, report_page(evaluation, held_out, about))
    print(report)
    if calibrated is not None:
        _store_expected_error(calibrated, evaluation)
    # Four decimals, as other commands print, would leave nothing of an MSE.
    print(json.dumps(_short({**summary(evaluation, held_out, about), "report": str(report)})))


def _check_source(protocol: Protocol, data: str | None, seeds: str | None) -> None:
    """Check that there is one source of episodes."""
    if protocol.simulator is None:
        if seeds is not None:
            raise UserError(
                f"seeds is {seeds}, but protocol {protocol.name} reads a store; leave it out, or give --protocol pusht"
            )
        if data is None:
            raise UserError(
                f"protocol {protocol.name} needs episodes; give a store as --data, or --protocol pusht for PushT"
            )
    elif data is not None and seeds is not None:
        raise UserError(f"data is {data} and seeds is {seeds}; give a store, or the seeds of episodes to record")
    if data is not None:
        check_is_store(data)


def _own_folder(checkpoint: str) -> Path:
    """Return the folder of a checkpoint of ours, to which the expected error is written."""
    from ivideogpt.core.checkpoint import resolve_checkpoint
    from ivideogpt.worldmodel.shipped import SHIPPED

    if not Path(checkpoint).exists():
        raise UserError(f"calibrate writes into the checkpoint, and {checkpoint!r} is no local folder; give a folder")
    return resolve_checkpoint(checkpoint, shipped=SHIPPED)


def _store_expected_error(folder: Path, evaluation: Evaluation) -> None:
    from ivideogpt.evaluation.calibration import MIN_CALIBRATION_CLIPS, store_calibration

    if evaluation.calibration is None:
        raise UserError(
            f"there are {len(evaluation.clips)} clips; the expected error needs at least {MIN_CALIBRATION_CLIPS}"
        )
    store_calibration(folder, evaluation.calibration)
    print(f"expected error written to {folder}")


def _parts(metrics: str) -> tuple[tuple[str, ...], bool]:
    """Return the parts to measure, and whether the user named them."""
    if not metrics:
        return PARTS, False
    parts = tuple(part.strip() for part in metrics.split(",")) if metrics != "none" else ()
    for part in parts:
        if part not in PARTS:
            raise UserError(f"metrics has {part!r}; expected some of {', '.join(PARTS)}, or none")
    return parts, True


class Networks(NamedTuple):
    """Metrics that need downloaded weights, and a sentence for each that is left out."""

    metrics: list[Metric]
    video: VideoDistances | None
    left_out: tuple[str, ...]


def _networks(
    model: WorldModel, parts: tuple[str, ...], explicit: bool, network: str, lpips: Path | None, i3d: Path | None
) -> Networks:
    """Load metrics that need downloaded weights; those that are missing and not asked for are left out."""
    from ivideogpt.evaluation.frame_errors import perceptual_metric
    from ivideogpt.evaluation.video_distances import VideoDistances

    extra: list[Metric] = []
    video, left_out = None, []
    if "perceptual" in parts:
        try:
            from ivideogpt.metrics.perceptual import load_perceptual

            distance = load_perceptual(lpips, network=network).to(model.device)  # type: ignore[arg-type]
            size, least = model.resolution, distance.trunk.smallest
            if size < least and not explicit and lpips is None:
                left_out.append(f"the perceptual distance: {distance.name} needs {least} pixels a side, not {size}")
            else:
                extra.append(perceptual_metric(distance, distance.name))
        except MissingExtraError as error:
            if explicit or lpips is not None:
                raise
            left_out.append(f"the perceptual distance: {error}")
    if "video" in parts:
        try:
            from ivideogpt.metrics.video import load_video_features

            video = VideoDistances(load_video_features(i3d).to(model.device))
        except MissingExtraError as error:
            if explicit or i3d is not None:
                raise
            left_out.append(f"the distance of videos: {error}")
    return Networks(extra, video, tuple(left_out))


def _print(evaluation: Evaluation, held_out: HeldOut, about: About, protocol: Protocol) -> None:
    from ivideogpt.reports.evaluation_report import table_rows
    from ivideogpt.reports.page import fixed

    print(
        f"{about.model} on {held_out.dataset}, split {held_out.split}: {len(evaluation.clips)} clips, protocol "
        f"{protocol.name}, {protocol.samples} future{'s' * (protocol.samples > 1)} of {protocol.horizon} frames each"
    )
    for whole, title in ((False, "future frames"), (True, "whole clip")):
        rows = [
            [row.label, *(f"{row.figures[x.key].value:.{x.digits}f}" for x in evaluation.metrics)]
            for row in table_rows(evaluation, whole=whole)
        ]
        print_table([title, *(metric.label for metric in evaluation.metrics)], rows)
    for span, distances in evaluation.video.items():
        listed = ", ".join(f"{row.replace('_', ' ')} {value:.4g}" for row, value in distances.items())
        print(f"{evaluation.video_name}, {span.replace('_', ' ')}: {listed}")
    if evaluation.following is not None:
        scores = (f"{row.replace('_', ' ')} {fixed(x.value, 2)}" for row, x in evaluation.following.score.items())
        print(f"action following, 0 to 1, against {', '.join(scores)}")
    if evaluation.reward_scores:
        rewards = (
            f"{row.replace('_', ' ')} {fixed(x.pearson.value, 2)}" for row, x in evaluation.reward_scores.items()
        )
        print(f"correlation with the recorded rewards: {', '.join(rewards)}")
    _print_domain(evaluation, held_out.dataset)
    if evaluation.trust:
        signals = (f"{name} {fixed(x.spearman.value, 2)}" for name, x in evaluation.trust.items())
        print(f"rank correlation with the error of a frame: {', '.join(signals)}")
    if evaluation.calibration is not None:
        for level in evaluation.calibration.levels:
            print(f"expected error {level.name}: at least {level.psnr:.1f} dB in {level.hit_rate:.0%} of other frames")
    for label, texts in (
        ("left out", about.left_out),
        ("not as published", protocol.deviations(clips=len(evaluation.clips), dataset=held_out.dataset)),
        ("overlooked", held_out.mismatches),
    ):
        for text in texts:
            print(f"{label}: {text}")


def _print_domain(evaluation: Evaluation, dataset: str) -> None:
    """Print the measures of the world that the clips show."""
    if evaluation.objects:
        rows = [row for row in evaluation.objects if row != "zero_actions"]
        names = list(evaluation.objects["imagined"])
        cells: list[list[str | float]] = [
            [name.replace("_", " "), *(evaluation.objects[row][name] for row in rows)] for name in names
        ]
        print_table([f"measures of {dataset}", *(row.replace("_", " ") for row in rows)], cells)
    if evaluation.objects_by_frame:
        curves = evaluation.objects_by_frame
        cells = [[name.replace("_", " "), *(row[name][-1] for row in curves.values())] for name in curves["imagined"]]
        print_table([f"frame {evaluation.protocol.horizon}", *(row.replace("_", " ") for row in curves)], cells)
    for name, value in evaluation.model_figures.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, figures in parts:
            numbers = figures.items() if isinstance(figures, Mapping) else [("", figures)]
            listed = ", ".join(f"{label.replace('_', ' ')} {number:.3g}".strip() for label, number in numbers)
            print(f"{name} {part}".replace("_", " ").strip() + f": {listed}")


def _short(value: Any) -> Any:
    """JSON values with floats of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
