"""``ivideogpt train-policy``: a vision-language-action policy that imitates demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.kept_settings import keep_values, kept_values, load_settings
from ivideogpt.commands.output import check_folder, print_json
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.core.episode import Episode
    from ivideogpt.training.imitation import PolicyRecipe

_KIND = "policies"


def load_policy_settings(typed: Mapping[str, str]) -> PolicyRecipe:
    """Load the settings that options change: those of the resumed run, else those of the preset."""
    from ivideogpt.training.imitation import PolicyRecipe

    return load_settings(typed, _KIND, PolicyRecipe, run="out")


def train_policy(
    preset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint="")] = None,
    *,
    settings: PolicyRecipe,
    data: Path | None = None,
    out: Path,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Train a policy on demonstrations with instructions; the same command continues after a stop.

    Args:
        preset: toy, pusht, libero, libero-quick or debug; its settings are options too, which `PRESET --help` lists.
            Default: the settings of the resumed run.
        settings: the settings of the preset.
        data: an episode store with actions, such as `ivideogpt collect` writes. Episodes that are marked as failures
            are left out.
        out: folder for checkpoints (each a whole policy) and metrics.jsonl.
        episodes: the first so many demonstrations only.
        steps: stop after this many updates, without changing the schedule.
        seed: of weights and batches.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16.
    """
    import torch

    from ivideogpt.core.checkpoint import step_folders
    from ivideogpt.core.run import Run, choose_device, choose_precision
    from ivideogpt.policies.vla.tiny_flow import TinyFlow
    from ivideogpt.training.imitation import ChunkDataset, train_imitation

    check_folder(out)
    choose_device(device)
    precision = choose_precision(precision, device)
    for name, value, least in (("episodes", episodes, 1), ("steps", steps, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
    kept = kept_values(out, _KIND)
    if kept is not None:
        data, episodes = data or Path(kept["data"]), episodes or kept["episodes"]
    if data is None:
        raise UserError("a policy needs demonstrations; give --data STORE, such as one that ivideogpt collect wrote")
    training = settings.training if seed is None else replace(settings.training, seed=seed)
    settings = replace(settings, training=training)
    demonstrations, instructions = read_instructed(data, episodes)
    torch.manual_seed(training.seed)
    chunks, policy = ChunkDataset(demonstrations, instructions, settings.policy), TinyFlow(settings.policy)
    keep_values(
        out, _KIND, preset or (kept["preset"] if kept else None), settings, data=str(data.absolute()), episodes=episodes
    )
    run = Run(
        out,
        seed=training.seed,
        device=device,
        precision=precision,
        log_every=training.log_every,
        save_every=training.save_every,
        keep_last=training.keep_last,
    )
    train_imitation(training, policy, chunks, run, until=steps)
    done, checkpoint = step_folders(out)[-1]
    print_json(
        {
            "steps": done,
            "demonstrations": len(demonstrations),
            "parameters": sum(x.numel() for x in policy.parameters()),
            "seconds": round(run.seconds, 1),
            "output": checkpoint,
        }
    )


def read_instructed(folder: Path, count: int | None = None) -> tuple[list[Episode], list[str]]:
    """Read the training episodes of a store that are no failures, and the instruction of each.

    Args:
        folder: of the store.
        count: most episodes; None: all.

    Raises:
        UserError: there are too few.
    """
    from ivideogpt.data.store.reader import EpisodeStore

    store = EpisodeStore(folder)
    episodes, instructions = [], []
    for index, split in enumerate(store.splits):
        info: dict[str, Any] = store.info(index)
        if split == "train" and info["meta"].get("success", True) and len(episodes) != count:
            episodes.append(store[index])
            instructions.append(info["text"])
    if len(episodes) < (count or 1):
        raise UserError(f"{folder} has {len(episodes)} demonstrations that succeed; expected at least {count or 1}")
    return episodes, instructions
