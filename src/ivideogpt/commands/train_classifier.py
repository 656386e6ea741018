"""``ivideogpt train-classifier``: from episode stores to a success classifier with a measured threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.kept_settings import keep_values, kept_values, load_settings
from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ivideogpt.core.episode import Episode
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.training.success_classifier import ClassifierTraining

_KIND = "classifiers"


def load_classifier_settings(typed: Mapping[str, str]) -> ClassifierTraining:
    """Load the settings that options change; see `load_settings`."""
    from ivideogpt.training.success_classifier import ClassifierTraining

    return load_settings(typed, _KIND, ClassifierTraining, run="out")


def train_success_classifier(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: ClassifierTraining,
    data: str | None = None,
    held_out: str | None = None,
    out: Path,
    world: str | None = None,
    task: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "auto",
) -> None:
    """Train a classifier of success on recorded frames; the same command resumes a stopped training.

    Its threshold is chosen on half of the held-out episodes, and precision and recall are measured on the other half.

    Args:
        preset: pusht, robot or debug; its settings are options too, which `PRESET --help` lists. Default: that of the
            resumed training.
        settings: the settings of the preset.
        data: an episode store or a mixture file (.toml, .json); debug makes its own.
        held_out: a store with episodes for threshold and scores; default: the splits val and test of the data.
        out: folder of checkpoints and metrics, and of the classifier, `classifier/`.
        world: a world model that imagines the held-out episodes again, to measure the classifier on imagined frames.
        task: name of the task; default: that of the episodes.
        steps: stop after this many updates, without changing the schedule.
        seed: of weights and batches.
        device: auto, cpu or cuda.
    """
    import torch

    from ivideogpt.core.run import Run, choose_device
    from ivideogpt.models.success_classifier import CLASSIFIER_FOLDER, SuccessClassifier
    from ivideogpt.training.success_classifier import label_frames, train_classifier

    check_folder(out)
    choose_device(device)
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; expected at least 1")
    config = settings if seed is None else replace(settings, seed=seed)
    kept = kept_values(out, _KIND)
    data = _find_data(preset, data, out, kept)
    model = _load_world(world, config)
    training, test = read_labelled(data, held_out)
    frames = label_frames(training, config)
    label_frames(test, config)  # refused before the training, not after it
    keep_values(out, _KIND, preset or (kept["preset"] if kept else None), config, data=data)
    run = Run(out, seed=config.seed, device=device, log_every=config.log_every, save_every=config.save_every)
    torch.manual_seed(config.seed)
    classifier = train_classifier(config, SuccessClassifier(config.network), frames, run, until=steps)
    classifier.with_facts(
        task=task or task_of([episode for episode, _ in training]),
        labels=describe_labels(training, config),
        data=f"{len(training)} episodes of {training[0][0].meta.get('dataset', 'the store')}",
        held_out=f"{len(test)} episodes",
    )
    measure(classifier, test, config, model)
    folder = out / CLASSIFIER_FOLDER
    classifier.save_pretrained(folder)
    print(classifier.summary())
    facts = to_dict(classifier.facts)
    print_json({"output": folder, "metrics": out / "metrics.jsonl", "seconds": round(run.seconds, 1)} | facts)


def measure(classifier: SuccessClassifier, test: list[Any], config: ClassifierTraining, model: Any) -> None:
    """Choose the threshold and measure the classifier on held-out frames, and on imagined ones given a model."""
    from ivideogpt.training.success_classifier import calibrate, halves, imagine_frames, label_frames, score

    calibration, measured = halves(label_frames(test, config))
    calibrate(classifier, calibration, measured, config.precision)
    if model is not None:
        # the episodes that did not choose the threshold
        others = [pair for number, pair in enumerate(test) if number in set(measured.episodes.tolist())]
        imagined = score(classifier, imagine_frames(model, others, config))
        classifier.with_facts(imagined=imagined, world=model.config.name or "the world model")


def read_labelled(data: str, held_out: str | None) -> tuple[list[Any], list[Any]]:
    """Read episodes for training and held-out ones, each with its array ``success`` or None.

    Raises:
        UserError: there are no held-out episodes, or only some episodes have such an array.
    """
    from ivideogpt.commands.training_stages import held_out as held_out_of
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.episode_files import HELD_OUT

    mixture = read_mixture(data)
    if held_out is None:
        others = held_out_of(mixture)
        if others is None:
            raise UserError(f"{data} has no held-out episodes (split val or test); give some with --held-out STORE")
        test = [pair for source in others.sources for pair in _episodes(source.path, (source.split,))]
    else:
        sources = read_mixture(held_out).sources
        test = [pair for source in sources for pair in _episodes(source.path, HELD_OUT)]
        test = test or [pair for source in sources for pair in _episodes(source.path, (source.split,))]
    training = [pair for source in mixture.sources for pair in _episodes(source.path, (source.split,))]
    if not training or not test:
        raise UserError(f"{data} has {len(training)} episodes for training and {len(test)} held out; expected both")
    overlap = {x.key for x, _ in training} & {x.key for x, _ in test} if held_out else set()
    if overlap:
        raise UserError(f"{len(overlap)} held-out episodes, such as {min(overlap)!r}, are trained on; give others")
    return training, test


def _episodes(folder: str, splits: tuple[str | None, ...]) -> list[tuple[Episode, np.ndarray | None]]:
    from ivideogpt.data.store.format import array_name
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.training.success_classifier import SUCCESS

    store = EpisodeStore(folder)
    rows = [index for index, split in enumerate(store.splits) if split in splits or None in splits]
    return [
        (store[index], store.array(index, SUCCESS) if store.has(index, array_name(SUCCESS)) else None) for index in rows
    ]


def task_of(episodes: list[Episode]) -> str:
    """Return the task that all episodes are of, else the name of their dataset."""
    from ivideogpt.envs.registry import find_environment

    for key in ("task", "suite", "dataset"):
        names = {str(episode.meta.get(key) or "") for episode in episodes}
        if len(names) == 1 and (name := names.pop()):
            row = find_environment(name)
            return row[0] if row else name
    return "several tasks"


def describe_labels(episodes: list[tuple[Episode, Any]], config: ClassifierTraining) -> str:
    """Return the rule of the labels in words."""
    if episodes[0][1] is not None:
        return "frames that the simulator counts as success"
    if config.reward_above is not None and episodes[0][0].rewards is not None:
        return f"frames after a reward above {config.reward_above:.4g}"
    return f"the last {config.last_frames} frames of episodes that succeeded"


def _load_world(world: str | None, config: ClassifierTraining) -> Any:
    from ivideogpt.worldmodel.world_model import WorldModel

    if world is None:
        return None
    model = WorldModel.from_pretrained(world)
    if model.resolution != config.network.resolution:
        raise UserError(
            f"{world} imagines frames of {model.resolution} px and the classifier takes {config.network.resolution}; "
            f"set --network.resolution {model.resolution}"
        )
    return model


def _find_data(preset: str | None, data: str | None, out: Path, kept: Mapping[str, Any] | None) -> str:
    """Return the store to train on; a resumed training keeps its own, the preset debug records one."""
    from ivideogpt.envs.record.moving_square import collect_squares

    if data is None and kept is not None:
        return kept["data"]
    if data is None and preset == "debug":
        data = str(out.parent / f"{out.name}-data")
        collect_squares(data)
    if data is None:
        raise UserError(f"preset {preset} needs data; give --data, an episode store with successes")
    return str(Path(data).absolute())
