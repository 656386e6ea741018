"""Improvement of a policy in a world model: roll out, update, and check against recordings and the environment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.models.success_classifier import SuccessClassifier
from ivideogpt.policies.vla.tiny_flow import TinyFlow
from ivideogpt.training.imitation import ChunkDataset
from ivideogpt.training.weight_average import ExponentialAverage
from ivideogpt.wmrl.config import WmRlConfig
from ivideogpt.wmrl.rollouts import RealRows, Rows, play_episodes
from ivideogpt.wmrl.updates import ChunkValue, FlowLearner, SuccessBuffer, imitate_successes
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class HeldOutCheck:
    """Agreement of a world model and a classifier with held-out recordings.

    Attributes:
        episodes: number of recordings, imagined again from their first frames with their own actions.
        psnr: mean PSNR in dB at each step, ``[t]``.
        trusted_steps: steps before the PSNR falls below the limit.
        agreement: share of the recordings on whose success, in the trusted steps, the classifier agrees in imagination.
        real_success, imagined_success: share of the recordings that succeed.
    """

    episodes: int
    psnr: tuple[float, ...]
    trusted_steps: int
    agreement: float
    real_success: float
    imagined_success: float


@torch.no_grad()
def check_held_out(
    config: WmRlConfig,
    model: WorldModel,
    classifier: SuccessClassifier,
    episodes: Sequence[Episode],
    instructions: Sequence[str],
) -> HeldOutCheck:
    """Imagine held-out recordings again, and compare frames and success.

    Raises:
        UserError: there is no recording that is long enough, or they agree on too few.
    """
    context = model.context_frames
    length = min([config.horizon, *(len(episode) - context for episode in episodes)])
    if not episodes or length < 1:
        raise UserError(f"held-out recordings need {context + 1} frames; give some with actions")
    frames = np.stack([episode.frames[: context + length] for episode in episodes])
    raw = np.stack([episode.actions[context - 1 : context - 1 + length] for episode in episodes])  # type: ignore[index]
    session = model.session(
        rearrange(torch.from_numpy(frames[:, :context]), "n t h w c -> n t c h w"), seed=config.seed
    )
    actions = model.normalize_actions(torch.from_numpy(raw).to(model.device))
    drawn = session.rollout(actions, length).frames.clamp(0, 1)
    true = rearrange(torch.from_numpy(frames[:, context:]), "n t h w c -> n t c h w").to(drawn.device).float() / 255
    error = (drawn - true).square().mean(dim=(0, 2, 3, 4)).clamp(min=1e-10)
    psnr = (-10 * error.log10()).tolist()
    poor = [step for step, value in enumerate(psnr) if value < config.trusted_psnr]
    trusted = poor[0] if poor else length
    pictures = rearrange((drawn * 255).round().byte().cpu(), "n t c h w -> n t h w c").numpy()
    is_solved = np.zeros(len(episodes), bool)
    for step in range(trusted):
        words = list(instructions) if classifier.config.words else None
        is_solved |= classifier.succeeds(np.ascontiguousarray(pictures[:, step]), words)
    real = np.array([_succeeds_within(episode, context - 1, trusted) for episode in episodes])
    check = HeldOutCheck(
        len(episodes),
        tuple(psnr),
        trusted,
        float((real == is_solved).mean()),
        float(real.mean()),
        float(is_solved.mean()),
    )
    if trusted < 1:
        raise UserError(
            f"held-out frames are imagined with {psnr[0]:.1f} dB, below trusted_psnr {config.trusted_psnr}; train the "
            "world model on, or lower trusted_psnr"
        )
    if check.agreement < config.least_agreement:
        raise UserError(
            f"imagination and recording agree on the success of {check.agreement:.0%} of {len(episodes)} held-out "
            f"recordings, and least_agreement is {config.least_agreement:.0%}; improve world model or classifier"
        )
    return check


def _succeeds_within(episode: Episode, first: int, steps: int) -> bool:
    assert episode.terminated is not None
    return bool(episode.terminated[first : first + steps].any())


def improve_policy(
    config: WmRlConfig,
    policy: TinyFlow,
    rows: Rows,
    run: Run,
    *,
    demonstrations: ChunkDataset | None = None,
    evaluate: Callable[[TinyFlow], float] | None = None,
    until: int | None = None,
) -> TinyFlow:
    """Improve a flow policy, or go on where ``run`` stopped; an iteration's random numbers depend on its number alone.

    Args:
        config: the settings; the algorithm is grpo_flow, ppo_flow or filtered_bc.
        policy: changed in place; with filtered_bc it ends as the running average of its weights, which plays and is
            stored.
        rows: episodes of ``config.prompts * config.group`` rows.
        run: folder and device; each of its checkpoints is a whole policy.
        demonstrations: for filtered_bc.
        evaluate: success in the environment, every ``config.evaluate_every`` iterations.
        until: stop after so many iterations.

    Returns:
        The same policy, in evaluation mode.
    """
    policy.to(run.device).eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    value = ChunkValue(policy.config.width).to(run.device)
    learner = FlowLearner(config, policy, reference, value)
    trained = torch.nn.ModuleDict({"policy": policy, "value": value})
    successes = SuccessBuffer(policy)
    average = ExponentialAverage(policy, decay=config.average_decay)
    optimizer = adamw(trained, learning_rate=config.learning_rate)
    parts = {
        "policy": policy,
        "reference": reference,
        "value": value,
        "optimizer": optimizer,
        "rows": rows,
        "successes": successes,
        "average": average,
    }
    done, last = run.resume(**parts), min(config.iterations if until is None else until, config.iterations)
    schedule = named_schedule(config.schedule, config.learning_rate, steps=config.iterations)
    is_flow = config.algorithm in ("grpo_flow", "ppo_flow")
    acting = policy if is_flow else average.model
    for step in run.updates("wm-rl", done, last, clips=rows.count, unit="episode"):
        random = np.random.default_rng([config.seed, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        set_learning_rate(optimizer, schedule(step))
        rollouts = None
        figures = {}
        if is_flow or config.demo_share < 1:
            frames, instructions = rows.begin(random, config.group)
            rollouts = play_episodes(
                acting,
                rows,
                frames,
                instructions,
                generator,
                horizon=config.horizon,
                noise_level=config.noise_level if is_flow else 0.0,
                stochastic_steps=config.stochastic_steps,
            )
            figures = {"success": rollouts.succeeded.float().mean().item(), "steps": rollouts.steps.sum().item()}
        if is_flow and rollouts is not None:
            figures |= learner.update(rollouts, optimizer, generator)
        else:
            if rollouts is not None:
                successes.add(rollouts, config.group)
            figures |= imitate_successes(
                config, policy, average, successes, demonstrations, optimizer, random, generator
            )
        if evaluate is not None and config.evaluate_every and (step + 1) % config.evaluate_every == 0:
            figures["real_success"] = evaluate(acting)
        is_over = config.most_env_steps > 0 and isinstance(rows, RealRows) and rows.steps >= config.most_env_steps
        run.log(step + 1, **figures)
        if run.is_save_step(step + 1, last=last) or is_over:
            run.save(step + 1, also=acting.save_pretrained, **parts)
        if is_over:
            break
    if not is_flow:
        average.copy_to(policy)
    return policy
