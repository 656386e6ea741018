"""Settings of the improvement of a policy by reinforcement learning in a world model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import ScheduleName

#: Ways of improving a policy; see ``ivideogpt.wmrl``.
Algorithm = Literal["grpo_flow", "ppo_flow", "filtered_bc", "residual_drq"]


@dataclass(frozen=True, kw_only=True)
class WmRlConfig:
    """Settings of the improvement.

    Attributes:
        task: name of the environment; evaluation is always there.
        environment_options: of it.
        algorithm: "grpo_flow" compares episodes that begin alike; "ppo_flow" learns the value of a state; "filtered_bc"
            imitates the episodes that succeed; "residual_drq" leaves the policy as it is and learns a correction.
        imagination: play in the world model; False: in the environment, to compare with.
        iterations: rollouts of ``prompts`` x ``group`` episodes, each followed by updates.
        prompts: start states of an iteration.
        group: episodes that begin at each of them.
        horizon: most steps of an episode.
        latest_start: imagined episodes begin at one of the recorded frames from 0 to this.
        reanchor_every: steps after which a token model encodes a new context; None: where its positions run out.
        discount: of the reward of a success, for each step before it.
        noise_level: of the stochastic step of the flow in training.
        stochastic_steps: the stochastic step is one of so many first ones; 0: of all. Late noise moves an action
            a little and cannot choose another one.
        epochs: passes over the chunks of an iteration.
        minibatch: chunks of an update.
        clip_low, clip_high: ratios of probabilities beyond 1 - low and 1 + high stop counting.
        kl_weight: of the divergence from the policy at the start.
        gae_lambda: of ppo_flow: weight of longer returns in an advantage.
        demo_share: of filtered_bc: share of a batch that are demonstrations.
        bc_updates: of filtered_bc, in an iteration.
        average_decay: of filtered_bc: of the running average of the weights, which plays and is stored.
        residual_scale: of residual_drq: largest correction of an action.
        learning_rate: of AdamW, at first; see ``schedule``.
        schedule: "cosine", which falls to 0 at the last iteration, or "constant".
        clip_norm: largest gradient norm.
        trusted_psnr: imagined episodes are cut at the step from which held-out recordings, imagined again with their
            actions, differ more than this PSNR in dB says; 0: never.
        least_agreement: share of held-out recordings on whose success their imagination must agree; else the
            improvement does not begin. 0: no check.
        evaluation_episodes: in the environment, before and after.
        evaluate_every: iterations between further evaluations; 0: none.
        evaluation_rows: environments that are stepped together.
        evaluation_seed: of the first episode of an evaluation.
        most_env_steps: with ``imagination=False``: stop after so many steps in the environment; 0: no limit.
        log_every, save_every: in iterations.
        seed: of starts, episodes and updates.
    """

    task: str = "toy-push"
    environment_options: dict[str, Any] = field(default_factory=dict)
    algorithm: Algorithm = "grpo_flow"
    imagination: bool = True
    iterations: int = 100
    prompts: int = 8
    group: int = 8
    horizon: int = 20
    latest_start: int = 0
    reanchor_every: int | None = None
    discount: float = 0.98
    noise_level: float = 0.5
    stochastic_steps: int = 0
    epochs: int = 2
    minibatch: int = 128
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.01
    gae_lambda: float = 0.95
    demo_share: float = 0.5
    bc_updates: int = 20
    average_decay: float = 0.99
    residual_scale: float = 0.2
    learning_rate: float = 1e-4
    schedule: ScheduleName = "cosine"
    clip_norm: float = 1.0
    trusted_psnr: float = 20.0
    least_agreement: float = 0.7
    evaluation_episodes: int = 200
    evaluate_every: int = 0
    evaluation_rows: int = 50
    evaluation_seed: int = 20_000
    most_env_steps: int = 0
    log_every: int = 10
    save_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, iterations=1, prompts=1, group=1, horizon=1, latest_start=0, discount=0, noise_level=0)
        check_at_least(
            self, stochastic_steps=0, epochs=1, minibatch=1, kl_weight=0, gae_lambda=0, bc_updates=1, learning_rate=0
        )
        check_at_least(self, trusted_psnr=0, evaluation_episodes=1, evaluate_every=0, evaluation_rows=1, seed=0)
        check_at_least(self, evaluation_seed=0, most_env_steps=0, log_every=0, save_every=0, residual_scale=0)
        for name in ("discount", "gae_lambda", "demo_share", "least_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if self.algorithm == "grpo_flow" and self.group < 2:
            raise UserError("group is 1 and grpo_flow compares the episodes of a group; expected at least 2")
        if self.algorithm in ("grpo_flow", "ppo_flow") and not self.noise_level > 0:
            raise UserError(f"noise_level is 0 and {self.algorithm} learns from a stochastic step; expected more")
