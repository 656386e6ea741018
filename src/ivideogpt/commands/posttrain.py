"""``ivideogpt posttrain``: improve a world model by reinforcement learning on its own metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from ivideogpt.core.distributed import Ranks
    from ivideogpt.core.run import Run
    from ivideogpt.data.mixtures import Mixture
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.evaluation.domains import Domain
    from ivideogpt.evaluation.frame_errors import Metric
    from ivideogpt.evaluation.held_out import HeldOut
    from ivideogpt.evaluation.protocols import Protocol
    from ivideogpt.models.dynamics import Dynamics
    from ivideogpt.posttrain.grpo import GrpoTraining
    from ivideogpt.posttrain.rewards import RewardSum
    from ivideogpt.worldmodel.world_model import WorldModel

SETTINGS_FILE = "settings.json"
#: Futures of each held-out clip whose rewards are averaged.
_HELD_OUT_GROUP = 4
#: Held-out clips of a store of any dataset but those with a protocol of their own.
_HELD_OUT_CLIPS = 16
#: Parts of a checkpoint's metadata that were measured on its weights, and say nothing of others.
_MEASURED = ("held_out_results", "expected_error")


def load_posttrain_settings(typed: Mapping[str, str]) -> GrpoTraining:
    """Load the settings that options change: those of the resumed run, else those of the preset.

    Raises:
        UserError: there is no such preset, or the run was begun with another one.
    """
    from ivideogpt.posttrain.grpo import GrpoTraining

    preset, kept = typed.get("preset"), _kept(Path(typed["run"])) if "run" in typed else None
    if kept is not None:
        if preset not in (None, kept["preset"]):
            raise UserError(f"{typed['run']} was begun with the preset {kept['preset']}, not {preset}; choose another")
        return from_dict(GrpoTraining, kept["settings"], where=SETTINGS_FILE)
    if preset is None:
        raise UserError(f"a new run needs a preset; expected one of {', '.join(PRESETS['posttrain'])}")
    return find_preset(preset, "posttrain")


def posttrain(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    checkpoint: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT", help_behavior_hint="")
    ] = None,
    *,
    settings: GrpoTraining,
    data: str | None = None,
    mixture: str | None = None,
    held_out: str | None = None,
    run: Path | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Improve a world model by GRPO on rewards of its own futures; the same command continues after a stop.

    Args:
        preset: rlvr-world (the published settings; -single and -multi for RLVR-World's own models), cpu, or debug
            (seconds); its settings are options too, which `PRESET --help` lists. Default: the preset of the resumed
            run.
        checkpoint: a token model to improve: a folder, a run, a Hub id or a shipped model; debug trains its own.
        settings: the settings of the preset.
        data: an episode store, a mixture file (.toml, .json), or with --mixture a folder of stores; debug makes its
            own.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        held_out: a store whose split test or val is measured before, during and after; default: the held-out split of
            the data, if there is one.
        run: folder for checkpoints (each a whole model), metrics.jsonl, curves and samples; default:
            runs/posttrain/CHECKPOINT.
        workers: processes that read clips.
        device: auto, cpu or cuda.
        precision: of the updates: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.commands.training_stages import Machine
    from ivideogpt.core.distributed import Ranks
    from ivideogpt.core.run import choose_device
    from ivideogpt.core.trackers import choose_tracker
    from ivideogpt.posttrain.grpo import frozen_dynamics, train_grpo
    from ivideogpt.posttrain.rewards import RewardSum, parse_reward
    from ivideogpt.worldmodel.world_model import WorldModel

    # options
    tracker, ranks = choose_tracker(tracker), Ranks.join(device)
    terms, reward_device = parse_reward(settings.reward), ranks.device or choose_device(device)
    reward = RewardSum(terms, network=settings.perceptual_network, device=reward_device)
    folder = run or Path("runs/posttrain") / Path(checkpoint or preset or "run").name
    check_folder(folder)
    kept = _kept(folder)
    preset = preset or (kept["preset"] if kept else None)
    checkpoint = checkpoint or (kept["checkpoint"] if kept else None)
    data, mixture, held_out = (
        given or (kept[name] if kept else None)
        for name, given in (("data", data), ("mixture", mixture), ("held_out", held_out))
    )
    if preset == "debug" and (checkpoint is None or data is None):
        checkpoint, data = _debug_inputs(checkpoint, data, folder, ranks)
    if checkpoint is None or data is None:
        raise UserError(f"preset {preset} needs a CHECKPOINT and episodes; give both, the episodes as --data")

    # model, data and reward
    model = WorldModel.from_pretrained(checkpoint)
    model.require_tokens("post-training")
    clip_frames = _clip_frames(settings, model)
    machine = Machine(device=device, precision=precision, workers=workers, ranks=ranks, tracker=tracker)
    values = {"preset": preset, "checkpoint": checkpoint, "start": _fingerprint(model), "clip_frames": clip_frames}
    values |= {"data": data, "mixture": mixture, "held_out": held_out, "settings": to_dict(settings)}
    stores, content, loader_of = _open_clips(data, mixture, model, settings, clip_frames, machine)
    values["content"] = content
    _keep_settings(folder, kept, values, ranks)
    running = machine.run(folder, settings, values)
    reference, loader = frozen_dynamics(model), loader_of(running)
    model.config = replace(model.config, metadata=_lineage(model, values))
    model.to(running.device)
    evaluate = _held_out_measure(model, reference, stores, held_out, settings, clip_frames, reward, running)
    if evaluate is None and ranks.is_first:
        print("there are no held-out episodes, so nothing is measured on the way; give a store with some as --held-out")

    # training
    train_grpo(settings, model, reference, loader, reward, running, evaluate=evaluate)
    if ranks.is_first:
        _report(folder, running)


def _report(folder: Path, run: Run) -> None:
    """Print the rewards before and after, the last line as JSON."""
    from ivideogpt.core.checkpoint import step_folders

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [line for line in lines if "validation_reward" in line]
    before, after = (measured[0], measured[-1]) if measured else ({}, {})
    names = [name for name in before if name.startswith("validation_") and after.get(name) is not None]
    for name in names:
        print(
            f"{name.removeprefix('validation_').replace('_', ' ')}: {before[name]:.4f} before, {after[name]:.4f} after"
        )
    steps, checkpoint = step_folders(folder)[-1]
    print_json(
        {
            "steps": steps,
            "reward_before": before.get("validation_reward"),
            "reward_after": after.get("validation_reward"),
            "metrics": folder / "metrics.jsonl",
            "output": checkpoint,
            "seconds": round(run.seconds, 1),
        }
    )


# Settings


def _kept(folder: Path) -> dict[str, Any] | None:
    """Read what an earlier run in the folder was begun with; None for a new run."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    kept = load_json(path)
    if not {"preset", "checkpoint", "start", "data", "content", "clip_frames", "settings"} <= kept.keys():
        raise UserError(f"{folder} holds another kind of run; choose another folder")
    return kept


def _keep_settings(folder: Path, kept: dict[str, Any] | None, values: dict[str, Any], ranks: Ranks) -> None:
    """Write the settings of a new run into its folder, or check that a resumed run has the same.

    Raises:
        UserError: another start model, other held-out episodes or other settings; only more steps are allowed.
    """
    if kept is not None:
        before, now = (x.get("held_out") for x in (kept, values))
        if (before and Path(before).resolve()) != (now and Path(now).resolve()):
            measured = f"on {before}" if before else "on the held-out split of its data"
            raise UserError(
                f"{folder} measured {measured} so far, and figures on {now} cannot be compared with those; leave "
                "--held-out out, or choose another run folder"
            )
        if kept["start"] != values["start"]:
            raise UserError(
                f"{folder} was begun with the model {kept['checkpoint']}, and {values['checkpoint']} has other "
                "weights; give the same model, or choose another run folder"
            )
        before, now = (x["settings"] | {name: x[name] for name in ("clip_frames", "content")} for x in (kept, values))
        for name, value in now.items():
            extends = name == "steps" and values["settings"]["schedule"] == "constant"
            if before.get(name) != value and not extends:
                raise UserError(
                    f"{folder} was begun with {name} {before.get(name)!r}, not {value!r}; give the same settings, or "
                    "choose another run folder"
                )
    ranks.wait()  # every process checks before the first one writes
    if ranks.is_first:
        save_json(folder / SETTINGS_FILE, values)


def _fingerprint(model: WorldModel) -> str:
    """Return a digest of the weights of a token model."""
    digest = hashlib.sha256(model.tokenizer.fingerprint().encode())
    for name, value in sorted(model.dynamics.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _lineage(model: WorldModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the result: those of the start model that still hold, and how it was post-trained."""
    settings = values["settings"]
    names = (
        "reward",
        "reward_frames",
        "credit",
        "discount",
        "prompts",
        "group",
        "epochs",
        "learning_rate",
        "kl_weight",
        "temperature",
    )
    kept = {name: value for name, value in model.config.metadata.items() if name not in _MEASURED}
    return kept | {
        "post_training": {
            "method": "GRPO",
            "started_from": model.config.name or values["checkpoint"],
            "start_weights": values["start"],
            "clip_frames": values["clip_frames"],
            **{name: settings[name] for name in names},
        }
    }


def _clip_frames(settings: GrpoTraining, model: WorldModel) -> int:
    """Return the frames of a clip, context included.

    Raises:
        UserError: the clip has no future, or one that does not fit into one pass of the transformer.
    """
    count, limit = model.context_frames, model.segment_limit
    frames = settings.clip_frames or count + model.segment_frames()
    if not count < frames <= count + limit:
        raise UserError(
            f"clip_frames is {frames}; expected {count + 1} to {count + limit}: {count} context frames and as many "
            "future frames as the model's positions have room for"
        )
    return frames


# Data


def _debug_inputs(checkpoint: str | None, data: str | None, folder: Path, ranks: Ranks) -> tuple[str, str]:
    """Make what the preset debug is not given: episodes of a moving square, and a world model of seconds."""
    from ivideogpt.commands.training_stages import Machine, read_mixture, tokenizer_stage, transformer_stage
    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.distributed import Ranks as OneProcess
    from ivideogpt.envs.record.moving_square import collect_squares

    data = data or str(folder.parent / f"{folder.name}-data")
    start = folder.parent / f"{folder.name}-start"
    if ranks.is_first:
        collect_squares(data)
        if checkpoint is None and not step_folders(start):
            recipe, stores = find_preset("debug"), read_mixture(data)
            machine = Machine(device="cpu", precision="float32", ranks=OneProcess())
            tokenizer = tokenizer_stage(recipe, stores, start.with_name(f"{start.name}-tokenizer"), machine)
            transformer_stage(recipe, stores, tokenizer, start, machine)
    ranks.wait()
    return checkpoint or str(start), data


def _open_clips(
    data: str, mixture: str | None, model: WorldModel, settings: GrpoTraining, clip_frames: int, machine: Any
) -> tuple[Mixture, list[str], Callable[[Run], Any]]:
    """Open the stores; return them, a digest of each, and a function that makes the prompts of a run."""
    from ivideogpt.commands.run_settings import data_facts
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.clips import ClipSpec
    from ivideogpt.data.loader import ClipLoader
    from ivideogpt.data.mixture_reader import OpenMixture
    from ivideogpt.posttrain.rollouts import ClipPrompts

    stores = read_mixture(data, mixture)
    spec = ClipSpec(
        context_frames=model.context_frames,
        frames=clip_frames,
        mode="goal_first" if model.config.goal_conditioned else "contiguous",
        stride=model.config.frame_stride,
        size=model.frame_size,
        actions=bool(model.action_dim),
    )

    def prompts(run: Run) -> ClipPrompts:
        loader = ClipLoader(
            stores,
            spec,
            batch_size=run.ranks.share(settings.prompts),
            seed=settings.seed,
            workers=machine.workers,
            rank=run.ranks.rank,
            ranks=run.ranks.ranks,
            device=run.device,
        )
        return ClipPrompts(model, loader)

    return stores, [source.content for source in data_facts(OpenMixture(stores, spec)).sources], prompts


# Held-out episodes


def _held_out_measure(
    model: WorldModel,
    reference: Dynamics,
    stores: Mixture,
    held_out: str | None,
    settings: GrpoTraining,
    clip_frames: int,
    reward: RewardSum,
    run: Run,
) -> HeldOutMeasure | None:
    """Return the measurement of held-out clips; None where there are no held-out episodes."""
    from ivideogpt.commands.training_stages import held_out as held_out_of
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.evaluation.domains import find_domain

    if held_out is None:
        apart = held_out_of(stores)
        if apart is None:
            return None
        held_out = apart.sources[0].path
    clips, protocol = _held_out_clips(model, EpisodeStore(held_out))
    domain = find_domain(clips.dataset, model.resolution)
    return HeldOutMeasure(
        clips, protocol, _metrics(model, settings), domain, settings, clip_frames, reward, reference, run
    )


def _held_out_clips(model: WorldModel, store: EpisodeStore) -> tuple[HeldOut, Protocol]:
    """Cut the clips by the protocol of the store's dataset, or one of each of some episodes."""
    from ivideogpt.evaluation.held_out import SIMULATORS, read_clips, record_clips
    from ivideogpt.evaluation.protocols import find_protocol, settle

    name = store.facts.dataset.name
    protocol = settle(find_protocol(name if name in SIMULATORS else "single"), model)
    if name in SIMULATORS:
        return record_clips(model, protocol, store=store), protocol
    return read_clips(model, store, protocol, count=_HELD_OUT_CLIPS), protocol


def _metrics(model: WorldModel, settings: GrpoTraining) -> list[Metric]:
    """Return the metrics of a frame, with the perceptual distance where it is installed and can read the frames."""
    from ivideogpt.evaluation.frame_errors import FRAME_METRICS, perceptual_metric
    from ivideogpt.metrics.perceptual import load_perceptual

    metrics = list(FRAME_METRICS.values())
    try:
        distance = load_perceptual(network=settings.perceptual_network).to(model.device)
    except MissingExtraError:
        return metrics
    return (
        metrics if model.resolution < distance.trunk.smallest else [*metrics, perceptual_metric(distance, "perceptual")]
    )


@dataclass(frozen=True)
class HeldOutMeasure:
    """Measure a model on held-out clips: the reward, and the figures of ``ivideogpt evaluate``.

    Attributes:
        held_out: the clips.
        protocol: settled.
        metrics: numbers a frame.
        domain: measures of the world that the clips show, or None.
        settings: of the post-training; futures whose reward is measured are sampled in the same way.
        clip_frames: frames of a clip whose reward is measured, context included.
        reward: see above.
        reference: dynamics of the start model, which the reward "following" is measured by.
        run: receives the pictures.
    """

    held_out: HeldOut
    protocol: Protocol
    metrics: list[Metric]
    domain: Domain | None
    settings: GrpoTraining
    clip_frames: int
    reward: RewardSum
    reference: Dynamics
    run: Run

    def __call__(self, model: WorldModel, step: int) -> dict[str, float]:
        """Return the figures after ``step`` batches, and write pictures of some clips."""
        import torch

        from ivideogpt.commands.training_samples import write_samples
        from ivideogpt.evaluation.evaluate import evaluate

        clips, count, rows = self.held_out.clips, model.context_frames, self.settings.rows_at_once
        evaluation = evaluate(
            model, clips, self.protocol, batch_size=rows, metrics=self.metrics, domain=self.domain, follow=False
        )
        figures = {"validation_reward": self._mean_reward(model)}
        figures |= {f"validation_{x.key}": evaluation.estimate("imagined", x.key).value for x in self.metrics}
        for name in ("imagined", "true"):
            figures[f"validation_repetition_{name}"] = float(evaluation.repetition[name].nanmean())
        assert evaluation.tokens is not None
        figures["validation_tokens"] = float(evaluation.tokens.loss.mean())
        figures |= {f"validation_{name}": value for name, value in evaluation.objects.get("imagined", {}).items()}
        for name, values in evaluation.objects_by_frame.get("imagined", {}).items():
            figures[f"validation_{name}"] = float(torch.tensor(values).nanmean())

        true = clips.frames[:4]
        imagined = torch.cat([true[:, :count], evaluation.pictures["imagined"][:4]], dim=1)
        shown = {"true": true.float() / 255, "imagined": imagined.float() / 255}
        write_samples(self.run, step, shown, context_frames=count)
        return figures

    def _mean_reward(self, model: WorldModel) -> float:
        """Return the mean reward of some futures of each clip, from the same random numbers whenever it is called."""
        import torch

        from ivideogpt.posttrain.rollouts import FutureSampler, Prompts, following_reward, score_sample

        clips, count = self.held_out.clips, model.context_frames
        frames = clips.frames[:, : self.clip_frames].to(self.run.device).float() / 255
        actions = None
        if clips.actions is not None and model.action_dim:
            used = slice(count - 1 - model.past_actions, self.clip_frames - 1)
            actions = model.normalize_actions(clips.actions[:, used].to(self.run.device))
        settings, prompts = self.settings, Prompts(frames, actions)
        sampler = FutureSampler(model, settings.sampling, _HELD_OUT_GROUP, settings.rows_at_once)
        others = prompts.other_actions() if self.reward.needs_following and actions is not None else None
        rewards: list[torch.Tensor] = []
        done = 0
        for sample, rollouts in sampler(prompts, range(len(clips))):
            if others is not None:
                part, scoring = others[done : done + len(sample.context)], (settings.temperature, settings.rows_at_once)
                scores = score_sample(self.reference, sample, *scoring)
                rollouts = replace(rollouts, following=following_reward(self.reference, sample, part, scores, *scoring))
            done += len(sample.context)
            rewards.append(self.reward(rollouts)[0])
        return float(torch.cat(rewards).mean())
