"""``ivideogpt train-tokenizer``, ``tokenize`` and ``train-transformer``: from episode stores to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.commands.inputs import choose_pool
from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.configs.recipe import Recipe
    from ivideogpt.core.distributed import Ranks
    from ivideogpt.data.mixtures import Mixture
    from ivideogpt.data.tokens import TokenStore

_Preset = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")]


def load_training_settings(typed: Mapping[str, str]) -> Recipe:
    """Load the settings that options change: those of the resumed run, else those of the preset."""
    from ivideogpt.commands.run_settings import kept_recipe

    return kept_recipe(Path(typed["run"]) if "run" in typed else None, typed.get("preset"))


def train_tokenizer(
    preset: _Preset = None,
    *,
    settings: Recipe,
    data: str | None = None,
    mixture: str | None = None,
    run: Path,
    init: str | None = None,
    vqgan: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    workers: int = 0,
    device: str = "auto",
    parallel: str = "ddp",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Train a tokenizer on episode stores; the same command resumes a stopped run.

    Args:
        preset: debug, pusht-64, robot-64, robot-64-quick, metaworld-64, rlvr-world-single, rlvr-world-multi, or
            official-... (docs/migrating.md lists them);
            its settings are options too, which `PRESET --help` lists. Default: the settings of the resumed run.
        settings: the settings of the preset.
        data: a store, lerobot:DATASET (a folder or Hub id, read where it is), a mixture file (.toml, .json), or with
            --mixture a folder of stores; debug makes its own.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        run: folder for checkpoints, metrics.jsonl, curves and samples.
        init: a tokenizer to start from: a folder, a run, or a shipped model; its shape replaces the preset's.
        vqgan: an image model's VQGAN to start from, as official-oxe-256-act-free does: amused/amused-256, or a folder
            with config.json and diffusion_pytorch_model.safetensors; what it lacks is new.
        steps: stop after this many updates, without changing the schedule.
        seed: of weights, data order and everything else that is random.
        workers: processes that read clips.
        device: auto, cpu or cuda.
        parallel: of several processes (torchrun): ddp (each holds all weights), or fsdp (weights, gradients and
            optimizer are divided among them).
        precision: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.commands.training_stages import Machine, find_tokenizer, tokenizer_stage
    from ivideogpt.core.distributed import Ranks
    from ivideogpt.core.trackers import choose_tracker
    from ivideogpt.data.tokens import TokenStore
    from ivideogpt.models.tokenizer import CompressiveTokenizer
    from ivideogpt.training.vqgan_weights import tokenizer_from_vqgan

    check_folder(run)
    _check(steps, seed)
    if init is not None and vqgan is not None:
        raise UserError(f"init is {init} and vqgan is {vqgan}; a tokenizer starts from one of them: leave one out")
    tracker, ranks = choose_tracker(tracker), Ranks.join(device, parallel)
    recipe, stores = _seeded(settings, seed), _open_data(preset, data, mixture, run, ranks)
    if isinstance(stores, TokenStore):
        raise UserError(f"{data} holds tokens; a tokenizer is trained on frames: give an episode store as --data")
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
    tokenizer_stage(recipe, stores, run, machine, initial=initial, until=steps, preset=preset)
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
    ray: str | None = None,
    device: str = "auto",
) -> None:
    """Write the tokens of all episodes, for train-transformer --data; the same command continues after a stop.

    Args:
        tokenizer: a tokenizer's folder, a run, a checkpoint or a shipped model.
        data: a store, lerobot:DATASET (a folder or Hub id, read where it is), a mixture file (.toml, .json), or with
            --mixture a folder of stores.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        out: folder for the tokens.
        frames: of a clip, context and goal included: at least as many as will be trained on.
        hop: recorded frames from the start of one clip to that of the next, where later frames depend on the context.
        goal_first: clips begin with their last frame.
        stride: distance between used frames; default: each dataset's own.
        video_stepsize: of each dataset's own stride; 1 is about three frames a second.
        workers: processes; default: one for each processor, or this one where a GPU works.
        ray: work on a Ray cluster: auto (that of this machine; also --ray alone), local, HOST:PORT or ray://HOST:PORT;
            every machine must have the same folders.
        device: auto, cpu or cuda.
    """
    from ivideogpt.commands.training_stages import find_tokenizer, read_mixture
    from ivideogpt.data.tokens import TokenStore
    from ivideogpt.training import tokenize_store

    check_folder(out)
    network, stores = find_tokenizer(tokenizer), read_mixture(data, mixture)
    needs = [network, out, *(source.path for source in stores.sources)]
    pool, device = choose_pool(ray, workers, needs=needs, device=device)
    tokenize_store.tokenize_stores(
        network,
        stores,
        out,
        frames=frames,
        hop=hop,
        goal_first=goal_first,
        stride=stride,
        video_stepsize=video_stepsize,
        workers=pool,
        device=device,
    )
    store = TokenStore(out)
    kind = "episodes" if store.facts.whole else "clips"
    print(f"{len(store):,} {kind} of tokens in {out}")
    print_json({"takes": len(store), "frames": int(store.length.sum()), "whole": store.facts.whole, "output": out})


def train_transformer(
    preset: _Preset = None,
    *,
    settings: Recipe,
    data: str | None = None,
    mixture: str | None = None,
    tokenizer: str | None = None,
    run: Path,
    init: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    workers: int = 0,
    device: str = "auto",
    parallel: str = "ddp",
    precision: str = "auto",
    tracker: str = "auto",
) -> None:
    """Train a world model around a trained tokenizer; the same command resumes a stopped run.

    Args:
        preset: debug, pusht-64, robot-64, robot-64-quick, metaworld-64, rlvr-world-single, rlvr-world-multi, or
            official-... (docs/migrating.md lists them);
            its settings are options too, which `PRESET --help` lists. Default: the settings of the resumed run.
        settings: the settings of the preset.
        data: what `ivideogpt tokenize` wrote, a store, lerobot:DATASET (a folder or Hub id, read where it is), a
            mixture file (.toml, .json), or with --mixture a folder of stores; debug makes its own.
        mixture: an official mixture, such as OXE_SELECT, of the stores in the folder.
        tokenizer: a tokenizer's folder, a run, a checkpoint or a shipped model; default: that of --init, or
            of the resumed run.
        run: folder for checkpoints (each a whole model), metrics.jsonl, curves and samples.
        init: a world model to start from: a folder, a run, a Hub id or a shipped model; its shape replaces the
            preset's, and heads that it lacks are new.
        steps: stop after this many updates, without changing the schedule.
        seed: of weights, data order and everything else that is random.
        workers: processes that read clips.
        device: auto, cpu or cuda.
        parallel: of several processes (torchrun): ddp (each holds all weights), or fsdp (weights, gradients and
            optimizer are divided among them).
        precision: auto, float32 or bfloat16.
        tracker: draws curves: tensorboard (auto: where it is installed), wandb, trackio or none.
    """
    from ivideogpt.commands.training_stages import Machine, find_tokenizer, transformer_stage
    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.distributed import Ranks
    from ivideogpt.core.trackers import choose_tracker
    from ivideogpt.data.tokens import TokenStore
    from ivideogpt.models.tokenizer import CompressiveTokenizer
    from ivideogpt.worldmodel.config import WorldModelConfig
    from ivideogpt.worldmodel.world_model import WorldModel

    check_folder(run)
    _check(steps, seed)
    tracker, ranks = choose_tracker(tracker), Ranks.join(device, parallel)
    recipe, stores = _seeded(settings, seed), _open_data(preset, data, mixture, run, ranks)
    is_augmented = recipe.augmentation_of("transformer") is not None
    if isinstance(stores, TokenStore) and is_augmented and ranks.is_first:
        print(f"{stores.folder} holds tokens of frames that are not augmented; give the stores as --data instead")
    initial = None if init is None else WorldModel.from_pretrained(init)
    if initial is not None:
        initial.require_tokens("--init")
        recipe = replace(recipe, model=recipe.model.like(initial), forecasts=())
    if tokenizer is not None:
        network = CompressiveTokenizer.from_pretrained(find_tokenizer(tokenizer))
    elif initial is not None:
        network = initial.tokenizer
    elif step_folders(run):
        network = CompressiveTokenizer.from_pretrained(find_tokenizer(str(run)))
    else:
        raise UserError("a transformer needs a trained tokenizer; give --tokenizer, or a model to start from as --init")
    machine = Machine(device=device, precision=precision, workers=workers, ranks=ranks, tracker=tracker)
    about = WorldModelConfig(name=run.name)
    transformer_stage(recipe, stores, network, run, machine, about=about, initial=initial, until=steps, preset=preset)
    if machine.ranks.is_first:
        _report(run)


def _seeded(recipe: Recipe, seed: int | None) -> Recipe:
    """Return the recipe with one seed for all trainings."""
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


def _open_data(
    preset: str | None, data: str | None, mixture: str | None, run: Path, ranks: Ranks
) -> Mixture | TokenStore:
    """Return the stores or the tokens to train on; the preset debug records its own, a resumed run keeps its own.

    Raises:
        UserError: there are none.
    """
    from ivideogpt.commands.run_settings import kept_data
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.tokens import TokenStore
    from ivideogpt.envs.record.moving_square import collect_squares

    if data is None and mixture is None and (kept := kept_data(run)) is not None:
        return kept
    if data is None and preset == "debug":
        data = str(run.parent / f"{run.name}-data")
        if ranks.is_first:
            collect_squares(data)
        ranks.wait()
    if data is None:
        raise UserError(f"preset {preset} needs data; give --data, a folder that `ivideogpt convert` wrote")
    if not _holds_tokens(data):
        return read_mixture(data, mixture)
    if mixture is not None:
        raise UserError(f"mixture is {mixture!r}, but {data} holds tokens, whose stores are known; leave --mixture out")
    return TokenStore(data)


def _holds_tokens(data: str) -> bool:
    from ivideogpt.data.store.byte_ranges import open_folder
    from ivideogpt.data.tokens import FACTS

    if "://" not in data:
        return (Path(data) / FACTS).is_file()
    try:
        return open_folder(data).size(FACTS) > 0
    except FileNotFoundError:
        return False


def _report(run: Path) -> None:
    from ivideogpt.core.checkpoint import step_folders

    steps, checkpoint = step_folders(run)[-1]
    print(f"after {steps} updates: {checkpoint}")
    print_json({"steps": steps, "metrics": run / "metrics.jsonl", "output": checkpoint})
