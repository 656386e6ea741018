"""The stages of training that commands are made of: which data, which run folder, what is measured on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ivideogpt.commands.inputs import check_is_store
from ivideogpt.commands.run_settings import data_facts, keep_settings, run_settings
from ivideogpt.commands.training_samples import imagination_figures, reconstruction_figures
from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run, choose_precision
from ivideogpt.core.trackers import open_tracker
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.episode_files import HELD_OUT
from ivideogpt.data.lerobot_episodes import open_source
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixture_reader import OpenMixture, action_ranges, as_mixture, pooled_actions
from ivideogpt.data.mixtures import Mixture, load_mixture, named_mixture
from ivideogpt.data.tokens import TokenLoader, TokenStore
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.tokenizer import CONFIG_FILE, WEIGHTS_FILE, CompressiveTokenizer
from ivideogpt.training.init_weights import new_world_model, start_from
from ivideogpt.training.token_batches import LiveTokens, StoredTokens, TokenBatches
from ivideogpt.training.token_forecast import train_forecast
from ivideogpt.training.tokenizer import train_tokenizer
from ivideogpt.training.transformer import train_transformer
from ivideogpt.worldmodel.config import ActionSpace, WorldModelConfig
from ivideogpt.worldmodel.shipped import SHIPPED
from ivideogpt.worldmodel.world_model import WorldModel

_VALIDATION_SIZE = 8
#: Mean and standard deviation of actions by dataset, where the units of its environment are those of the model.
ACTION_UNITS = {"pusht": ((256.0, 256.0), (256.0, 256.0))}


class TrainingSettings(Protocol):
    """Settings that every training has."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def log_every(self) -> int: ...  # noqa: D102
    @property
    def save_every(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and processes of a training stage.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "float32" or "bfloat16".
        workers: processes that read clips; 0: the one that trains.
        ranks: the processes that train together.
        tracker: "tensorboard", "wandb", "trackio" or "none".
    """

    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    tracker: str = "none"

    def run(
        self,
        folder: Path,
        config: TrainingSettings,
        settings: dict[str, object],
        part: str = "",
    ) -> Run:
        """Open a run in ``folder``, or in its folder ``part``; the tracker shows ``settings``."""
        title = "-".join(name for name in (folder.resolve().name, part) if name)
        tracker = open_tracker(self.tracker, folder / part, settings, title)
        return Run(
            folder / part,
            seed=config.seed,
            device=self.device,
            precision=choose_precision(self.precision, self.device),
            log_every=config.log_every,
            save_every=config.save_every,
            ranks=self.ranks,
            trackers=() if tracker is None else (tracker,),
        )


def read_mixture(data: str, mixture: str | None = None) -> Mixture:
    """Return the stores of ``--data`` and ``--mixture``: a mixture file, a store, or a folder of stores.

    Raises:
        UserError: there is no such file or mixture.
    """
    if mixture is not None:
        return named_mixture(mixture, data)
    if data.endswith((".toml", ".json")):
        return load_mixture(data)
    check_is_store(data)
    return as_mixture(data)


def held_out(mixture: Mixture) -> Mixture | None:
    """Return the held-out episodes of the stores that have some, or None."""
    sources = []
    for source in mixture.sources:
        there = set(open_source(source.path).splits)
        others = [name for name in HELD_OUT if name in there and name != source.split]
        split = others[0] if others and source.split is not None else None
        sources += [] if split is None else [replace(source, split=split)]
    return replace(mixture, sources=tuple(sources)) if sources else None


def find_tokenizer(name: str) -> Path:
    """Return the folder of a tokenizer: itself, or in a checkpoint, the newest of a run, or a shipped model.

    Raises:
        UserError: there is none.
    """
    folder = SHIPPED.get(name, Path(name))
    for place in (folder, folder / "tokenizer", *(step / "tokenizer" for _, step in reversed(step_folders(folder)))):
        if (place / WEIGHTS_FILE).is_file():
            return place
    raise UserError(f"{name} holds no tokenizer; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a run")


def tokenizer_stage(
    recipe: Recipe,
    mixture: Mixture,
    folder: Path,
    machine: Machine,
    *,
    initial: CompressiveTokenizer | None = None,
    until: int | None = None,
    preset: str | None = None,
) -> CompressiveTokenizer:
    """Train a tokenizer in a run folder, or resume its run.

    Args:
        recipe: the settings.
        mixture: the stores.
        folder: of the run.
        machine: where it runs.
        initial: weights to start from.
        until: stops after this many updates without changing the schedule.
        preset: name of the preset, for the run's settings.json.

    Raises:
        UserError: the data or the folder does not fit.
    """
    config = recipe.tokenizer
    facts = data_facts(OpenMixture(mixture, recipe.tokenizer_clips()))
    run = machine.run(folder, config, run_settings(recipe, "tokenizer", facts, preset))
    train = ClipLoader(
        mixture,
        recipe.tokenizer_clips(),
        batch_size=machine.ranks.share(config.batch_size),
        seed=config.seed,
        augmentation=recipe.augmentation_of("tokenizer"),
        workers=machine.workers,
        rank=machine.ranks.rank,
        ranks=machine.ranks.ranks,
        device=run.device,
    )
    apart = held_out(mixture)
    measured = (
        None
        if apart is None
        else ClipLoader(apart, recipe.tokenizer_clips(), batch_size=_VALIDATION_SIZE, device=run.device)
    )

    def evaluate(tokenizer: CompressiveTokenizer, step: int) -> dict[str, float]:
        return {} if measured is None else reconstruction_figures(tokenizer, measured, run, step)

    keep_settings(folder, recipe, "tokenizer", facts, machine.ranks, preset)
    return train_tokenizer(config, train, run, initial=initial, evaluate=evaluate, until=until)


def transformer_stage(
    recipe: Recipe,
    data: Mixture | TokenStore,
    tokenizer: CompressiveTokenizer,
    folder: Path,
    machine: Machine,
    *,
    about: WorldModelConfig | None = None,
    initial: WorldModel | None = None,
    until: int | None = None,
    preset: str | None = None,
) -> WorldModel:
    """Train the transformer of a world model in a run folder, or resume its run; a forecast is trained before it.

    Args:
        recipe: the settings.
        data: the stores, or their tokens.
        tokenizer: trained.
        folder: of the run; forecasts have folders of their own inside.
        machine: where it runs.
        about: what the checkpoint says of itself beside what follows from recipe and data.
        initial: a world model whose weights it starts from, wherever they fit.
        until: stops after this many updates of the transformer without changing the schedule.
        preset: name of the preset, for the run's settings.json.

    Raises:
        UserError: the data, the tokenizer or the folder does not fit; adapters have no model to start from.
    """
    tokens = data if isinstance(data, TokenStore) else None
    mixture = data if isinstance(data, Mixture) else data.facts.mixture
    _check_fit(recipe, tokens, initial)
    config, context = recipe.transformer, recipe.model.context_frames(tokenizer.config)
    spec = recipe.transformer_clips(
        config.clip_frames, context_frames=context, size=tokenizer.config.frame_size, rewards=False
    )
    opened = OpenMixture(mixture, spec)
    paid = recipe.model.heads.reward and opened.has_rewards
    # A head that a model starts from stays, also where these data teach it nothing.
    rewards = paid or (recipe.model.heads.reward and initial is not None and initial.config.heads.reward)
    model = _model(recipe, about or WorldModelConfig(), opened, tokenizer, rewards, initial)
    if initial is not None:
        fresh = start_from(model, initial)
        if fresh and machine.ranks.is_first:
            print(f"new, as the model to start from has none of that shape: {', '.join(fresh)}")

    def batches(frames: int, size: int, seed: int) -> TokenBatches:
        clips = replace(spec, frames=frames, rewards=paid)
        return _token_batches(
            recipe, model, mixture if tokens is None else tokens, clips, machine, batch_size=size, seed=seed
        )

    facts = data_facts(opened, tokens=tokens, tokenizer=tokenizer)
    keep_settings(folder, recipe, "transformer", facts, machine.ranks, preset)
    settings = run_settings(recipe, "transformer", facts, preset)
    for number, forecast in enumerate(recipe.forecasts, 1):
        run = machine.run(folder, forecast, settings, part=f"forecast-{number}")
        frames = forecast.clip_frames(context)
        model = train_forecast(forecast, model, batches(frames, forecast.batch_size, forecast.seed), run)
    run = machine.run(folder, config, settings)
    model.to(run.device)
    apart = held_out(mixture)
    measured = None
    if apart is not None:
        apart = replace(apart, action_width=opened.action_width or None)
        measured = LiveTokens(model, ClipLoader(apart, spec, batch_size=_VALIDATION_SIZE, device=run.device))

    def evaluate(trained: WorldModel, step: int) -> dict[str, float]:
        return {} if measured is None else imagination_figures(trained, measured, run, step)

    train = batches(config.clip_frames, config.batch_size, config.seed)
    return train_transformer(config, model, train, run, evaluate=evaluate, until=until)


def _token_batches(
    recipe: Recipe,
    model: WorldModel,
    data: Mixture | TokenStore,
    clips: ClipSpec,
    machine: Machine,
    *,
    batch_size: int,
    seed: int,
) -> TokenBatches:
    """Return batches of tokens for this process, stored ones or of clips as they are read."""
    share = {"batch_size": machine.ranks.share(batch_size), "rank": machine.ranks.rank, "ranks": machine.ranks.ranks}
    if isinstance(data, TokenStore):
        return StoredTokens(model, TokenLoader(data, frames=clips.frames, seed=seed, **share))
    loader = ClipLoader(
        data,
        clips,
        seed=seed,
        augmentation=recipe.augmentation_of("transformer"),
        workers=machine.workers,
        device=model.device,
        **share,
    )
    return LiveTokens(model, loader)


def _check_fit(recipe: Recipe, tokens: TokenStore | None, initial: WorldModel | None) -> None:
    """Check that settings, tokens and initial model fit each other."""
    if recipe.transformer.lora.rank and initial is None:
        raise UserError(
            f"transformer.lora.rank is {recipe.transformer.lora.rank}, but adapters need trained weights beside them; "
            "give a model to start from as --init, or set it to 0"
        )
    if tokens is not None and recipe.stride is not None and set(tokens.facts.strides) != {recipe.stride}:
        raise UserError(
            f"stride is {recipe.stride}, but {tokens.folder} holds tokens of stride "
            f"{', '.join(map(str, sorted(set(tokens.facts.strides))))}; tokenize again, or set it to null"
        )


def _action_units(opened: OpenMixture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that actions are normalized by: the dataset's own units, else the data's."""
    datasets = {source.store.facts.dataset.name for source in opened.sources}
    units = ACTION_UNITS.get(datasets.pop()) if len(datasets) == 1 else None
    return units or pooled_actions(opened)


def _model(
    recipe: Recipe,
    about: WorldModelConfig,
    opened: OpenMixture,
    tokenizer: CompressiveTokenizer,
    rewards: bool,
    initial: WorldModel | None,
) -> WorldModel:
    heads = recipe.model.fitted_heads(tokenizer, opened.action_width, rewards)
    mean, std = _action_units(opened) if heads.action_dim else ((), ())
    if initial is not None and initial.action_dim == heads.action_dim:
        # An action layer that is taken over keeps the units that it was trained on.
        mean, std = initial.config.action_mean, initial.config.action_std
    if heads.action_tokens and not heads.action_low:
        low, high = (_in_units(limits, mean, std) for limits in action_ranges(opened))
        heads = replace(heads, action_low=low, action_high=high)
    strides = {source.stride for source in opened.sources}
    config = replace(
        about,
        context_frames=recipe.model.context_frames(tokenizer.config),
        clip_frames=recipe.transformer.clip_frames,
        goal_conditioned=recipe.model.goal_conditioned,
        symlog_rewards=recipe.model.symlog_rewards,
        action_mean=about.action_mean or mean,
        action_std=about.action_std or std,
        action_space=_space(opened) if heads.action_dim and not about.action_space.low else about.action_space,
        sampling=Sampling(temperature=recipe.temperature),
        frame_stride=strides.pop() if len(strides) == 1 else 1,
        heads=heads,
    )
    return new_world_model(recipe.model, config, tokenizer, seed=recipe.transformer.seed)


def _in_units(raw: Sequence[float], mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
    """Convert raw numbers of an action to model units."""
    return tuple((number - m) / s for number, m, s in zip(raw, mean, std, strict=True))


def _space(opened: OpenMixture) -> ActionSpace:
    """Return the meaning of the numbers of an action, where one robot defines it."""
    space = opened.sources[0].store.facts.actions
    if len(opened.sources) > 1 or space is None or not all(a < b for a, b in zip(space.low, space.high, strict=True)):
        return ActionSpace()
    return ActionSpace(names=space.names, low=space.low, high=space.high)
