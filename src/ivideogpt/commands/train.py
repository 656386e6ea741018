"""``ivideogpt train-tokenizer``, ``tokenize`` and ``train-transformer``: from episode stores to a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.configs.recipe import Recipe, changed
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError

_Preset = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]


def train_tokenizer(
    preset: _Preset,
    *,
    data: str | None = None,
    mixture: str | None = None,
    run: Path,
    init: str | None = None,
    vqgan: str | None = None,
    steps: int | None = None,
    set: tuple[str, ...] = (),  # noqa: A002  the name of the option
    seed: int | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Train a tokenizer on episode stores; the same command again goes on where a stopped run ended.

    Args:
        preset: debug, pusht-64, robot-64, metaworld-64, or official-... (docs/migrating.md lists them).
        data: a store, a mixture file (.toml, .json), or with --mixture a folder of stores; debug makes its own.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        run: folder for checkpoints, metrics.jsonl, curves and samples.
        init: a tokenizer to start from: a folder, a run, or a shipped model; its shape replaces the preset's.
        vqgan: an image model's VQGAN to start from, as official-oxe-256-act-free does: amused/amused-256, or a folder
            with config.json and diffusion_pytorch_model.safetensors; what it lacks is new.
        steps: stop after this many updates, without changing the schedule.
        set: settings to change, such as tokenizer.batch_size=16; the run folder's settings.json lists all.
        seed: of weights, data order and everything else that is random.
        workers: processes that read clips.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.commands.training_stages import Machine, find_tokenizer, read_mixture, tokenizer_stage
    from ivideogpt.core.trackers import choose_tracker
    from ivideogpt.models.tokenizer import CompressiveTokenizer
    from ivideogpt.training.vqgan_weights import tokenizer_from_vqgan

    check_folder(run)
    _check(steps, seed)
    if init is not None and vqgan is not None:
        raise UserError(f"init is {init} and vqgan is {vqgan}; a tokenizer starts from one of them: leave one out")
    tracker, ranks = choose_tracker(tracker), Ranks.join(device)
    recipe, stores = _recipe(preset, set, seed), read_mixture(_data(preset, data, run, ranks), mixture)
    initial = None if init is None else CompressiveTokenizer.from_pretrained(find_tokenizer(init))
    if initial is not None:
        wanted = recipe.tokenizer.tokenizer.context_frames
        initial.set_context_frames(min(initial.config.context_frames, wanted))
        recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, tokenizer=initial.config, continuous_steps=0))
    if vqgan is not None:
        initial, fresh = tokenizer_from_vqgan(recipe.tokenizer.tokenizer, vqgan, seed=recipe.tokenizer.seed)
        recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, continuous_steps=0))
        if ranks.is_first:
            print(f"new, as the VQGAN has none of that shape: {', '.join(fresh)}")
    machine = Machine(device=device, precision=precision, workers=workers, ranks=ranks, tracker=tracker)
    tokenizer_stage(recipe, stores, run, machine, initial=initial, until=steps)
    if machine.ranks.is_first:
        _report(run)


def tokenize(
    tokenizer: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")],
    *,
    data: str,
    mixture: str | None = None,
    out: Path,
    frames: int = 16,
    hop: int | None = None,
    goal_first: bool = False,
    stride: int | None = None,
    video_stepsize: float = 1.0,
    workers: int | None = None,
    device: str = "auto",
) -> None:
    """Keep the tokens of all episodes, for train-transformer --data; the same command again goes on.

    Args:
        tokenizer: a tokenizer's folder, a run, a checkpoint or a shipped model.
        data: a store, a mixture file (.toml, .json), or with --mixture a folder of stores.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        out: folder for the tokens.
        frames: of a clip, context and goal included: at least as many as will be trained on.
        hop: recorded frames from the start of one clip to that of the next, where later frames depend on the context.
        goal_first: clips begin with their last frame.
        stride: distance between used frames; default: each dataset's own.
        video_stepsize: of each dataset's own stride; 1 is about three frames a second.
        workers: processes; default: one for each processor, or this one where a GPU works.
        device: auto, cpu or cuda.
    """
    from ivideogpt.commands.training_stages import find_tokenizer, read_mixture
    from ivideogpt.data.tokens import TokenStore
    from ivideogpt.training import tokenize_store

    check_folder(out)
    tokenize_store.tokenize(
        find_tokenizer(tokenizer),
        read_mixture(data, mixture),
        out,
        frames=frames,
        hop=hop,
        goal_first=goal_first,
        stride=stride,
        video_stepsize=video_stepsize,
        workers=workers,
        device=device,
    )
    store = TokenStore(out)
    kind = "episodes" if store.facts.whole else "clips"
    print(f"{len(store):,} {kind} of tokens in {out}")
    print_json({"takes": len(store), "frames": int(store.length.sum()), "whole": store.facts.whole, "output": out})


def train_transformer(
    preset: _Preset,
    *,
    data: str | None = None,
    mixture: str | None = None,
    tokenizer: str | None = None,
    run: Path,
    init: str | None = None,
    steps: int | None = None,
    set: tuple[str, ...] = (),  # noqa: A002  the name of the option
    seed: int | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Train a world model around a trained tokenizer; the same command again goes on where a stopped run ended.

    Args:
        preset: debug, pusht-64, robot-64, metaworld-64, or official-... (docs/migrating.md lists them).
        data: what `ivideogpt tokenize` wrote, a store, a mixture file (.toml, .json), or with --mixture a folder of
            stores; debug makes its own.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        tokenizer: a tokenizer's folder, a run, a checkpoint or a shipped model; default: that of --init.
        run: folder for checkpoints (each a whole model), metrics.jsonl, curves and samples.
        init: a world model to start from: a folder, a run, a Hub id or a shipped model; its shape replaces the
            preset's, and heads that it lacks are new.
        steps: stop after this many updates, without changing the schedule.
        set: settings to change, such as transformer.learning_rate=1e-4; the run folder's settings.json lists all.
        seed: of weights, data order and everything else that is random.
        workers: processes that read clips.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.commands.training_stages import Machine, find_tokenizer, read_mixture, transformer_stage
    from ivideogpt.core.trackers import choose_tracker
    from ivideogpt.data.tokens import FACTS, TokenStore
    from ivideogpt.models.tokenizer import CompressiveTokenizer
    from ivideogpt.worldmodel.config import WorldModelConfig
    from ivideogpt.worldmodel.world_model import WorldModel

    check_folder(run)
    _check(steps, seed)
    tracker, ranks = choose_tracker(tracker), Ranks.join(device)
    recipe = _recipe(preset, set, seed)
    where = _data(preset, data, run, ranks)
    kept = (Path(where) / FACTS).is_file()
    if kept and mixture is not None:
        raise UserError(f"mixture is {mixture!r}, but {where} holds tokens, whose stores are settled; leave it out")
    if kept and recipe.augmentation_of("transformer") is not None and ranks.is_first:
        print(f"{where} holds tokens of frames that are not augmented; give the stores as --data to augment them")
    stores = TokenStore(where) if kept else read_mixture(where, mixture)
    initial = None if init is None else WorldModel.from_pretrained(init)
    if initial is not None:
        recipe = replace(recipe, model=recipe.model.like(initial), forecasts=())
    if tokenizer is not None:
        network = CompressiveTokenizer.from_pretrained(find_tokenizer(tokenizer))
    elif initial is not None:
        network = initial.tokenizer
    else:
        raise UserError("a transformer needs a trained tokenizer; give --tokenizer, or a model to start from as --init")
    machine = Machine(device=device, precision=precision, workers=workers, ranks=ranks, tracker=tracker)
    about = WorldModelConfig(name=run.name)
    transformer_stage(recipe, stores, network, run, machine, about=about, initial=initial, until=steps)
    if machine.ranks.is_first:
        _report(run)


def _recipe(preset: str, settings: tuple[str, ...], seed: int | None) -> Recipe:
    recipe = changed(find_preset(preset), settings)
    if seed is None:
        return recipe
    return replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, seed=seed),
        forecasts=tuple(replace(stage, seed=seed) for stage in recipe.forecasts),
        transformer=replace(recipe.transformer, seed=seed),
    )


def _check(steps: int | None, seed: int | None) -> None:
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; expected at least 1")
    if seed is not None and seed < 0:
        raise UserError(f"seed is {seed}; expected at least 0")


def _data(preset: str, data: str | None, run: Path, ranks: Ranks) -> str:
    """What to train on; the preset debug makes its own."""
    if data is not None:
        return data
    if preset != "debug":
        raise UserError(f"preset {preset} needs data; give --data, a folder that `ivideogpt convert` wrote")
    from ivideogpt.envs.record.moving_square import collect_squares

    folder = run.parent / f"{run.name}-data"
    if ranks.is_first:
        collect_squares(folder)
    ranks.wait()
    return str(folder)


def _report(run: Path) -> None:
    steps, checkpoint = step_folders(run)[-1]
    print(f"after {steps} updates: {checkpoint}")
    print_json({"steps": steps, "metrics": run / "metrics.jsonl", "output": checkpoint})
