"""Policies that are improved in a world model; `ivideogpt wm-rl PRESET`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.own_episodes import OwnRecording

#: Names of configurations of WM-RL forks of the official repository, such as
#: "libero_spatial_mbpo_openpi_pi05_config", which name the suite.
_CONFIG_NAME = re.compile(r"(libero_(?:spatial|object|goal|10|90))_mbpo_openpi(?:_pi05?)?(?:_config)?")


@dataclass(frozen=True, kw_only=True)
class WmRlRecipe:
    """Improvement of a policy, and how its inputs are made where they are not given.

    Attributes:
        rl: the improvement.
        demonstrations: episodes of the script that the policy imitates; of a suite, of each task.
        demonstration_seeds: the seeds 0 to this are for demonstrations; the run's seed chooses among them.
        demonstration_options: of their recording; see ``ivideogpt collect ENV --help``.
        recording_episodes: episodes that world model and classifier learn from; of a suite, of each task.
        recording_options: of their recording.
        held_out_episodes: further such episodes, for the threshold of the classifier and the check of both.
        held_out_seed: of the first of them.
        own: episodes that the policy itself plays in the environment, recorded before the world model is trained, which
            learns from them too; none for residual_drq.
        policy_preset: of ``train-policy``.
        policy_steps: updates; null: those of the preset, as in the following two.
        world_preset: of ``train-pictures``; with "tokens:" before it, of ``train-tokenizer`` and ``train-transformer``.
        world_steps: updates.
        classifier_preset: of ``train-classifier``.
        classifier_steps: updates.
    """

    rl: WmRlConfig = field(default_factory=WmRlConfig)
    demonstrations: int = 100
    demonstration_seeds: int = 1_000
    demonstration_options: dict[str, Any] = field(default_factory=dict)
    recording_episodes: int = 500
    recording_options: dict[str, Any] = field(default_factory=dict)
    held_out_episodes: int = 100
    held_out_seed: int = 10_000
    own: OwnRecording = field(default_factory=OwnRecording)
    policy_preset: str = "toy"
    policy_steps: int | None = None
    world_preset: str = "toy-push"
    world_steps: int | None = None
    classifier_preset: str = "toy-push"
    classifier_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, demonstrations=1, demonstration_seeds=1, recording_episodes=1, held_out_episodes=2)


def toy_push_improvement() -> WmRlRecipe:
    """Return the experiment of docs/results.md: a policy that solves half of toy push, which imitates its successes."""
    return WmRlRecipe(
        rl=WmRlConfig(
            algorithm="filtered_bc",
            iterations=45,
            prompts=128,
            group=8,
            bc_updates=200,
            minibatch=128,
            learning_rate=1e-3,
            schedule="constant",
            demo_share=0.3,
            evaluation_episodes=400,
            log_every=1,
        ),
        recording_episodes=300,
        recording_options={"noise": 0.5, "random_share": 0.7, "other_share": 0.5},
        held_out_episodes=50,
        own=OwnRecording(
            episodes=300, held_out=50, noise=0.5, random_share=0.5, environment_options={"terminate": False}
        ),
        policy_steps=1_500,
    )


def debug_improvement() -> WmRlRecipe:
    """Return the whole pipeline in less than a minute; the policy improves little or not at all."""
    recipe = toy_push_improvement()
    return replace(
        recipe,
        rl=WmRlConfig(
            iterations=3,
            prompts=4,
            group=4,
            trusted_psnr=0.0,
            least_agreement=0.0,
            evaluation_episodes=40,
            log_every=1,
            save_every=0,
        ),
        demonstrations=40,
        recording_episodes=60,
        held_out_episodes=20,
        own=replace(recipe.own, episodes=20, held_out=0),
        policy_steps=200,
        world_steps=100,
        classifier_steps=60,
    )


def libero_improvement() -> WmRlRecipe:
    """Return LIBERO: a policy of 64 px pictures without state, a token model, and a classifier of instructed tasks.

    Of the 50 start states of a task, demonstrations and recordings begin at the first 40; the last 10 are held out, and
    the policy is measured there.
    """
    return WmRlRecipe(
        rl=WmRlConfig(
            task="libero_spatial",
            algorithm="grpo_flow",
            iterations=200,
            prompts=8,
            group=8,
            horizon=240,
            latest_start=240,
            reanchor_every=10,
            discount=0.995,
            learning_rate=5e-6,
            trusted_psnr=18.0,
            evaluation_episodes=100,
            evaluation_rows=1,
            evaluation_seed=40,
        ),
        demonstrations=20,
        demonstration_seeds=40,
        recording_episodes=40,
        recording_options={"noise": 0.3},
        held_out_episodes=10,
        held_out_seed=10_040,
        policy_preset="libero",
        world_preset="tokens:robot-64-quick",
        classifier_preset="robot",
    )


def quick_libero_improvement() -> WmRlRecipe:
    """Return everything once on one task of LIBERO, in half an hour of a processor core; it proves nothing."""
    recipe = libero_improvement()
    return replace(
        recipe,
        rl=replace(
            recipe.rl, task="libero_spatial/0", iterations=4, prompts=4, group=4, horizon=24, evaluation_episodes=10
        ),
        demonstrations=10,
        recording_episodes=10,
        held_out_episodes=4,
        policy_preset="libero-quick",
        world_preset="robot-64",
        world_steps=600,
        classifier_steps=200,
    )


def suite_of_config(name: str) -> str:
    """Return the suite of LIBERO that a configuration of a WM-RL fork is for.

    Raises:
        UserError: it is none.
    """
    match = _CONFIG_NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"there is no configuration {name!r}; expected one such as libero_spatial_mbpo_openpi_pi05_config, or a "
            "preset: ivideogpt wm-rl toy-push"
        )
    return match[1]
