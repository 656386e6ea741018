"""``ivideogpt train-pictures``: from episode stores to a picture model."""

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
    from ivideogpt.configs.pictures import PictureRecipe
    from ivideogpt.core.episode import Episode
    from ivideogpt.training.picture_crops import PictureClips
    from ivideogpt.training.picture_worlds import PictureWorld
    from ivideogpt.worldmodel.config import ActionSpace
    from ivideogpt.worldmodel.world_model import WorldModel

_KIND = "pictures"


def load_picture_settings(typed: Mapping[str, str]) -> PictureRecipe:
    """Load the settings that options change; see `load_settings`."""
    from ivideogpt.configs.pictures import PictureRecipe

    return load_settings(typed, _KIND, PictureRecipe)


def train_picture_model(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: PictureRecipe,
    data: str | None = None,
    run: Path,
    init: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Train a picture model on episode stores; the same command resumes a stopped run.

    Args:
        preset: debug, robot-64, pusht-64, metaworld-64 or toy-push; its settings are options too, which `PRESET --help`
            lists. Default: the settings of the resumed run.
        settings: the settings of the preset.
        data: a store or a mixture file (.toml, .json) of a camera that stands still. debug makes its own.
        run: folder for checkpoints (each a whole model), metrics.jsonl, curves and rounds of corrections.
        init: a picture model to start from: a folder, a run, a Hub id or a shipped model; its networks replace the
            preset's.
        steps: stop after this many updates, without changing the schedule.
        seed: of weights, data order and everything else that is random.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.run import Run, choose_device, choose_precision
    from ivideogpt.core.trackers import choose_tracker, open_tracker
    from ivideogpt.training.picture_worlds import find_picture_world
    from ivideogpt.training.pictures import train_pictures

    check_folder(run)
    choose_device(device)
    precision = choose_precision(precision, device)
    for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
    recipe = settings if seed is None else replace(settings, training=replace(settings.training, seed=seed))
    world = find_picture_world(recipe.world)
    tracker, data = choose_tracker(tracker), _find_data(preset, data, run)
    kept = kept_values(run, _KIND)
    # a run that was stopped before its first checkpoint begins again, from the same model
    begins_again = init is None and kept is not None and not step_folders(run)
    initial = _initial(kept.get("init") if begins_again and kept is not None else init)
    if initial is not None and initial.pictures is not None:
        recipe = replace(recipe, training=replace(recipe.training, dynamics=initial.pictures.config))
    model, clips = _prepare(recipe, world, data, run.resolve().name, initial)
    assert model.pictures is not None
    origin = _from_anywhere(init) if init else (kept or {}).get("init")
    # nothing is written before everything fits
    keep_values(run, _KIND, preset or (kept["preset"] if kept else None), recipe, data=data, init=origin)
    training = recipe.training
    drawn = open_tracker(tracker, run, to_dict(training), run.resolve().name)
    running = Run(
        run,
        seed=training.seed,
        device=device,
        precision=precision,
        log_every=training.log_every,
        save_every=training.save_every,
        trackers=() if drawn is None else (drawn,),
    )
    train_pictures(
        training,
        model.pictures,
        clips,
        running,
        correct=world.correction() if training.rounds.every else None,
        save=lambda pictures, folder: type(model).from_pictures(model.config, pictures).save_pretrained(folder),
        until=steps,
    )
    done, checkpoint = step_folders(run)[-1]
    print(f"after {done} updates: {checkpoint}")
    print_json({"steps": done, "metrics": run / "metrics.jsonl", "output": checkpoint})


def _find_data(preset: str | None, data: str | None, run: Path) -> str:
    """Return the store or mixture file to train on; a resumed run keeps its own, the preset debug records one."""
    from ivideogpt.envs.record.moving_square import collect_squares

    kept = kept_values(run, _KIND)
    if data is None and kept is not None:
        return kept["data"]
    if data is None and preset == "debug":
        data = str(run.parent / f"{run.name}-data")
        collect_squares(data)
    if data is None:
        raise UserError(f"preset {preset} needs data; give --data, a store that `ivideogpt collect` wrote")
    return str(Path(data).absolute())


def _prepare(
    recipe: PictureRecipe, world: PictureWorld, data: str, name: str, initial: WorldModel | None
) -> tuple[WorldModel, PictureClips]:
    """Make the model to train, called ``name``, and the clips to train it on; of the episodes nothing else is kept."""
    episodes, dataset, space = _read_episodes(data, recipe)
    clips = world.read_clips(episodes)
    about = {"action_space": world.actions if world.actions.names else space, "metadata": {"data": dataset}}
    model = _new_model(recipe, name, initial, episodes, about)
    return model, _in_model_units(clips, model)


def _read_episodes(data: str, recipe: PictureRecipe) -> tuple[list[Episode], str, ActionSpace]:
    """Read all training episodes, the names of their stores and the ranges of their actions.

    Frames of another size are resized. Episodes of different lengths are cut into windows of ``recipe.clip_frames``.

    Raises:
        UserError: there are none, or all are shorter than a window.
    """
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.episode_files import resized
    from ivideogpt.data.store.reader import EpisodeStore
    from ivideogpt.worldmodel.config import ActionSpace

    episodes, names, space = [], [], ActionSpace()
    for source in read_mixture(data).sources:
        store = EpisodeStore(source.path)
        chosen = [index for index, split in enumerate(store.splits) if source.split in (None, split)]
        episodes += [resized(store[index], recipe.training.dynamics.resolution) for index in chosen]
        names.append(f"{store.facts.dataset.name}, {len(chosen)} episodes")
        actions = store.facts.actions
        if actions is not None and all(a < b for a, b in zip(actions.low, actions.high, strict=True)):
            space = ActionSpace(names=actions.names, low=actions.low, high=actions.high)
    if len({len(episode) for episode in episodes}) > 1:
        episodes = [window for episode in episodes for window in _windows(episode, recipe.clip_frames)]
    if not episodes:
        raise UserError(f"{data} has no episodes of at least {recipe.clip_frames} frames; record longer ones")
    return episodes, "; ".join(names), space


def _windows(episode: Episode, length: int) -> list[Episode]:
    """Cut an episode into windows of ``length`` frames; the last one ends with it. One that is shorter has none."""
    last = len(episode) - length
    starts = sorted({*range(0, last + 1, length), last}) if last >= 0 else []
    return [episode.window(start, length) for start in starts]


def _new_model(
    recipe: PictureRecipe, name: str, initial: WorldModel | None, episodes: list[Episode], about: Any
) -> WorldModel:
    """Make the model to train.

    Args:
        recipe: the settings; its networks are those of ``initial``.
        name: of the model.
        initial: a picture model that weights and background are taken from.
        episodes: give the background and the statistics of the actions.
        about: keyword arguments of `WorldModelConfig`: the action space and the metadata.

    Raises:
        UserError: the actions do not fit the forecast.
    """
    import numpy as np
    import torch

    from ivideogpt.models.dynamics import HeadsConfig
    from ivideogpt.models.picture_dynamics import PictureDynamics
    from ivideogpt.training.picture_data import read_scenes
    from ivideogpt.worldmodel.config import WorldModelConfig
    from ivideogpt.worldmodel.world_model import WorldModel

    shape, actions = recipe.training.dynamics, [x.actions for x in episodes if x.actions is not None]
    if any(x.rewards is None for x in episodes):  # a network that learns nothing would give random rewards
        shape = replace(shape, reward=None)
    width = actions[0].shape[1] if len(actions) == len(episodes) else 0
    if recipe.actions_from_data:
        forecast = replace(shape.forecast, action="numbers" if width else "none", action_dim=width)
        shape = replace(shape, forecast=forecast)
    if shape.forecast.action_dim not in (0, width):
        raise UserError(
            f"actions have {width} numbers and the forecast reads {shape.forecast.action_dim}; set "
            f"training.dynamics.forecast.action_dim={width}, or give other data"
        )
    mean, std, space = (), (), about["action_space"]
    if shape.forecast.action == "pointer":  # -1 to 1 is the whole frame
        low, high = np.array(space.low), np.array(space.high)
        mean, std = tuple(((low + high) / 2).tolist()), tuple(((high - low) / 2).tolist())
    if shape.forecast.action == "numbers":
        numbers = np.concatenate([x[:-1] for x in actions])
        mean, std = tuple(numbers.mean(0).tolist()), tuple(np.maximum(numbers.std(0), 1e-6).tolist())
    torch.manual_seed(recipe.training.seed)
    pictures = PictureDynamics(shape)
    background, steadiness = read_scenes(episodes, shape.scenes)
    pictures.background.copy_(background)
    if shape.scenes > 1:
        pictures.steadiness.copy_(steadiness)
    if initial is not None and initial.pictures is not None:
        pictures.load_state_dict(initial.pictures.state_dict())
    config = WorldModelConfig(
        name=name,
        context_frames=shape.forecast.frames,
        clip_frames=recipe.clip_frames,
        action_mean=mean,
        action_std=std,
        heads=HeadsConfig(action_dim=shape.forecast.action_dim, reward=shape.reward is not None),
        **about,
    )
    return WorldModel.from_pictures(config, pictures)


def _from_anywhere(checkpoint: str) -> str:
    """Return the absolute path of a folder; a name of a shipped model or a Hub id stays."""
    return str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint


def _initial(init: str | None) -> WorldModel | None:
    from ivideogpt.worldmodel.world_model import WorldModel

    initial = None if init is None else WorldModel.from_pretrained(init)
    if initial is not None and initial.pictures is None:
        raise UserError(f"{init} is a token model; expected a picture model to start from")
    return initial


def _in_model_units(clips: PictureClips, model: WorldModel) -> PictureClips:
    """Normalise actions that are numbers; a pointer's stay places of the picture."""
    import numpy as np

    assert model.pictures is not None
    kind = model.pictures.config.forecast.action
    if kind == "pointer" or clips.actions is None:
        return clips
    if kind == "none":
        return replace(clips, actions=None)
    mean, std = np.array(model.config.action_mean), np.array(model.config.action_std)
    return replace(clips, actions=((clips.actions - mean) / std).astype(np.float32))
