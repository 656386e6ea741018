"""The recipe of the shipped model, from simulator to world model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ivideogpt.commands.training_stages import Machine, find_tokenizer, tokenizer_stage, transformer_stage
from ivideogpt.configs.pusht import PushTTraining
from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.config import load_json
from ivideogpt.core.episode import Episode
from ivideogpt.data.mixture_reader import as_mixture
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.tokens import TokenStore
from ivideogpt.envs.pusht import ACTION_MEAN, ACTION_STD, SIDE
from ivideogpt.envs.record.pusht_episodes import collect
from ivideogpt.models.heads import HeadsConfig
from ivideogpt.training.tokenize_store import tokenize
from ivideogpt.worldmodel.config import ActionSpace, WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel


def train_pusht(
    training: PushTTraining, folder: Path, data: Path, machine: Machine
) -> tuple[WorldModel, list[Episode]]:
    """Trains the PushT model; what is collected, tokenised or trained already is not done again.

    Args:
        training: the settings.
        folder: of the runs.
        data: where episodes are kept.
        machine: where it runs.

    Returns:
        The trained model and the held-out episodes.
    """
    recipe, length = training.recipe, training.episode_frames
    collect(training.train_seeds, data / "pusht", length=length)
    collect(training.test_seeds, data / "pusht-test", length=length)
    episodes = as_mixture(str(data / "pusht"))
    tokenizer = tokenizer_stage(recipe, episodes, folder / "tokenizer", machine)
    tokens = folder / "tokens"
    tokenize(find_tokenizer(str(folder / "tokenizer")), episodes, tokens, frames=length, device=machine.device)
    about = WorldModelConfig(
        name="pusht-64",
        heads=HeadsConfig(action_dim=len(ACTION_MEAN)),
        action_mean=tuple(map(float, ACTION_MEAN)),
        action_std=tuple(map(float, ACTION_STD)),
        action_space=ActionSpace(names=("x", "y"), low=(0.0, 0.0), high=(SIDE, SIDE), units=("px", "px"), pointer=True),
    )
    run = folder / "transformer"
    model = transformer_stage(recipe, TokenStore(tokens), tokenizer, run, machine, about=about)
    stages = {"tokenizer": (recipe.tokenizer.steps, folder / "tokenizer")}
    stages |= {f"forecast {k}": (one.steps, run / f"forecast-{k}") for k, one in enumerate(recipe.forecasts, 1)}
    stages |= {"transformer": (recipe.transformer.steps, run)}
    metadata = {
        "license": "mit",
        "data": f"PushT episodes of {length} frames, seeds {training.train_seeds}; held out: {training.test_seeds}",
        "training": {name: f"{steps} updates, {_seconds(run):.0f} s" for name, (steps, run) in stages.items()},
    }
    model.config = replace(model.config, metadata=metadata)
    return model, list(EpisodeStore(data / "pusht-test"))


def _seconds(run: Path) -> float:
    """How long a finished run trained."""
    return load_json(step_folders(run)[-1][1] / "training" / "state.json")["seconds"]
