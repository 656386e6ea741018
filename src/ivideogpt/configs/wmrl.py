"""Policies that are improved in a world model; `ivideogpt wm-rl PRESET`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.wmrl.config import WmRlConfig

#: Names of configurations of WM-RL forks of the official repository, such as
#: "libero_spatial_mbpo_openpi_pi05_config", which name the suite.
_CONFIG_NAME = re.compile(r"(libero_(?:spatial|object|goal|10|90))_mbpo_openpi(?:_pi05?)?(?:_config)?")


@dataclass(frozen=True, kw_only=True)
class WmRlRecipe:
    """Improvement of a policy, and how its inputs are made where they are not given.

    Attributes:
        rl: the improvement.
        demonstrations: episodes of the script that the policy imitates.
        demonstration_options: of their recording; see ``ivideogpt collect ENV --help``.
        recordings: episodes that world model and classifier learn from.
        recording_options: of their recording.
        held_out: further such episodes, for the threshold of the classifier and the check of both.
        policy, policy_steps: preset of ``train-policy``, and updates; None: those of the preset.
        world, world_steps: of ``train-pictures``; or, with the prefix "tokens:", of ``train-tokenizer`` and
            ``train-transformer``.
        classifier, classifier_steps: of ``train-classifier``.
    """

    rl: WmRlConfig = field(default_factory=WmRlConfig)
    demonstrations: int = 100
    demonstration_options: dict[str, Any] = field(default_factory=dict)
    recordings: int = 500
    recording_options: dict[str, Any] = field(default_factory=dict)
    held_out: int = 100
    policy: str = "toy"
    policy_steps: int | None = None
    world: str = "toy-push"
    world_steps: int | None = None
    classifier: str = "toy-push"
    classifier_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, demonstrations=1, recordings=1, held_out=2)


def toy_push_improvement() -> WmRlRecipe:
    """Return the experiment of docs/results.md: a policy that solves half of toy push, which imitates its successes."""
    return WmRlRecipe(
        rl=WmRlConfig(
            algorithm="filtered_bc",
            iterations=40,
            prompts=64,
            group=1,
            bc_updates=30,
            minibatch=64,
            learning_rate=1e-3,
            demo_share=0.3,
            evaluation_episodes=400,
        ),
        policy_steps=1_500,
        recording_options={"noise": 0.5, "random_share": 0.7, "other_share": 0.5},
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
        recordings=60,
        held_out=20,
        policy_steps=200,
        world_steps=100,
        classifier_steps=60,
    )


def libero_improvement() -> WmRlRecipe:
    """Return LIBERO: a policy of 64 px pictures without state, a token model, and a classifier of instructed tasks."""
    return WmRlRecipe(
        rl=WmRlConfig(
            task="libero_spatial",
            algorithm="grpo_flow",
            iterations=200,
            prompts=8,
            group=8,
            horizon=240,
            reanchor_every=10,
            discount=0.995,
            learning_rate=5e-6,
            trusted_psnr=18.0,
            evaluation_episodes=100,
            evaluation_rows=1,
            evaluation_seed=0,
        ),
        demonstrations=20,
        recordings=40,
        recording_options={"noise": 0.3},
        held_out=10,
        policy="libero",
        world="tokens:robot-64-quick",
        classifier="robot",
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
