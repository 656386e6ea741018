"""Post-training of a world model with verifiable rewards by group relative policy optimisation (GRPO).

A clip of recorded episodes is a prompt: its context and actions. The model imagines a group of futures for it, and each
future is scored against the recorded one. Tokens of futures that score better than their group become likelier, those
of worse ones less likely, and a penalty keeps the model near to the one it started from.

Only sampled tokens are scored. Separators and actions are put into the sequence by the layout, and get no gradient.

Source: Shao et al. 2024 (GRPO), Ye et al. 2020 (dual clip), Schulman 2020 (the k3 estimate of the divergence) and
thuml/RLVR-World; the same numbers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, check_descent, named_schedule, set_learning_rate
from ivideogpt.core.run import Run
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.posttrain.rewards import Rollouts, parse_reward
from ivideogpt.posttrain.rollouts import (
    FutureSampler,
    PromptBatches,
    Prompts,
    Sample,
    following_reward,
    repeat_rows,
    score_sample,
    split_groups,
)
from ivideogpt.training.distributed_forward import check_parts, forward_pass, gradients_meet, in_parts
from ivideogpt.worldmodel.world_model import WorldModel

#: Reward of futures: a number a frame ``[b f]``, and the value ``[b f]`` of each term by name.
RewardFunction = Callable[[Rollouts], tuple[Tensor, dict[str, Tensor]]]
#: Largest difference of log-probabilities, and largest divergence of a token, that count; beyond, both are noise.
_MOST_DIFFERENCE, _MOST_DIVERGENCE = 20.0, 10.0


@dataclass(frozen=True, kw_only=True)
class GrpoTraining:
    """Settings of post-training. The defaults are those of RLVR-World.

    Attributes:
        reward: a sum of rewards, such as "perceptual+0.5*mae"; see docs/post-training.md.
        reward_frames: future frames that count: "all", "last", or "discounted", where each weighs ``discount`` times
            as much as the frame before it.
        credit: what the tokens of a frame are judged by: the whole "future", as in RLVR-World, or the "frames" from
            theirs on, each ``discount`` times as much as the frame before it.
        discount: see above.
        perceptual_network: of the perceptual reward: "vgg", or the faster "alex".
        steps: batches of prompts.
        prompts: of a batch, on all ranks together.
        group: futures of each prompt.
        clip_frames: frames of a clip, context included; 0: as in the training of the checkpoint.
        minibatch_prompts: of an update; a batch is divided into so many updates.
        epochs: passes over the futures of a batch.
        gradient_accumulation: parts of a minibatch that are computed one after the other, for less memory.
        advantage: deviation that advantages are divided by: that of each "group", or the mean over the "batch".
        clip_low, clip_high: ratios of probabilities beyond 1 - low and 1 + high stop counting.
        dual_clip: most that a worse future counts, however likely it has become; None: no bound.
        kl_weight: of the divergence from the start model.
        learning_rate: after a warm-up.
        schedule: "constant", or "cosine", which falls to 0.
        warmup_steps, weight_decay, betas: of AdamW.
        clip_norm: largest gradient norm; None: gradients are left as they are.
        temperature: of the sampled futures; all legal tokens can be sampled.
        rows_at_once: futures imagined together; bounds the memory.
        log_every, save_every: in batches.
        seed: of the order of clips and of the futures.
    """

    reward: str = "perceptual+mae"
    reward_frames: Literal["all", "last", "discounted"] = "all"
    credit: Literal["future", "frames"] = "future"
    discount: float = 0.9
    perceptual_network: Literal["vgg", "alex"] = "vgg"
    steps: int = 200
    prompts: int = 128
    group: int = 16
    clip_frames: int = 0
    minibatch_prompts: int = 32
    epochs: int = 1
    gradient_accumulation: int = 16
    advantage: Literal["group", "batch"] = "group"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    kl_weight: float = 1e-3
    learning_rate: float = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    temperature: float = 1.0
    rows_at_once: int = 256
    log_every: int = 1
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: a number is out of range, or batches cannot be divided as asked.
        """
        check_descent(self)
        check_at_least(self, steps=1, prompts=1, clip_frames=0, minibatch_prompts=1, epochs=1, gradient_accumulation=1)
        check_at_least(self, group=2, kl_weight=0, rows_at_once=1, seed=0)
        parse_reward(self.reward)
        if self.credit == "frames" and self.reward_frames != "all":
            raise UserError(f"credit is frames and reward_frames {self.reward_frames}; expected reward_frames all")
        if not 0 < self.discount <= 1:
            raise UserError(f"discount is {self.discount}; expected more than 0 and at most 1")
        if not (0 < self.clip_low < 1 and self.clip_high > 0):
            raise UserError(f"clip_low is {self.clip_low} and clip_high {self.clip_high}; expected 0 to 1, and above 0")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"dual_clip is {self.dual_clip}; expected more than 1, or null for no bound")
        if self.prompts % self.minibatch_prompts:
            raise UserError(
                f"prompts is {self.prompts} and minibatch_prompts {self.minibatch_prompts}; expected a multiple"
            )
        assert self.sampling  # checks the temperature

    @property
    def sampling(self) -> Sampling:
        """The sampling rule; without top-k, so that every log-probability is that of the sampled distribution."""
        return Sampling(temperature=self.temperature, top_k=None)


def train_grpo(
    config: GrpoTraining,
    model: WorldModel,
    reference: Dynamics,
    prompts: PromptBatches,
    reward: RewardFunction,
    run: Run,
    *,
    evaluate: Callable[[WorldModel, int], dict[str, float]] | None = None,
    until: int | None = None,
) -> WorldModel:
    """Post-train the transformer and the heads of a world model; the tokenizer stays as it is.

    Args:
        config: the settings.
        model: a trained token model, changed in place.
        reference: the dynamics of the start model, frozen; see `frozen_dynamics`.
        prompts: batches of ``config.prompts`` clips on all ranks together.
        reward: scores futures, higher is better.
        run: folder, device and precision; each of its checkpoints is a whole world model.
        evaluate: measures the model before the first update and at each checkpoint, given the number of batches; its
            figures join the log.
        until: stop after this many batches.

    Returns:
        The same model, in evaluation mode.

    Raises:
        UserError: a batch cannot be divided, a future is longer than the model's positions, or a loss is not finite.
    """
    ranks = run.ranks
    check_parts(config.gradient_accumulation, config.minibatch_prompts * config.group, ranks.ranks)
    model.require_tokens("post-training")
    model.to(run.device).eval().tokenizer.requires_grad_(False)  # no dropout: it would make ratios differ from 1
    reference.to(run.device)
    policy = TokenPolicy(model.dynamics, config.temperature)
    optimizer = adamw(policy, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas)
    schedule = named_schedule(
        config.schedule, config.learning_rate, steps=config.steps, warmup_steps=config.warmup_steps
    )
    parts = {"policy": policy, "optimizer": optimizer, "prompts": prompts}
    done, last = run.resume(**parts), min(config.steps if until is None else until, config.steps)
    forward = forward_pass(policy, run, compile=False)
    sampler = FutureSampler(model, config.sampling, config.group, config.rows_at_once)
    stream = iter(prompts)
    for step in run.updates("posttrain", done, last, clips=config.prompts * config.group):
        if step == 0 and evaluate is not None and ranks.is_first and not has_log(run):
            run.log(0, **evaluate(model, 0))

        # 1) Sample a group of futures for each prompt, and score them.
        start = time.perf_counter()
        batch = next(stream)
        seeds = prompt_seeds(config.seed, step * config.prompts, len(batch.frames), ranks.rank, ranks.ranks)
        experience = collect_experience(config, sampler, reference, batch, seeds, reward, run)
        sampled = time.perf_counter()

        # 2) Compare each future with its group.
        returns = frame_returns(experience.rewards, config.reward_frames, config.credit, config.discount)
        advantages = group_advantages(returns, config.advantage, mean=ranks.mean)

        # 3) Update, one minibatch of whole groups after the other.
        set_learning_rate(optimizer, schedule(step))
        figures, size = [], ranks.share(config.minibatch_prompts)
        for _ in range(config.epochs):
            order = torch.randperm(len(advantages), generator=run.generator)
            for numbers in order.split(size):
                minibatch = select_prompts(experience, advantages, numbers.to(advantages.device))
                optimizer.zero_grad(set_to_none=True)
                figures.append(add_policy_gradients(config, forward, run, minibatch))
                if config.clip_norm is not None:
                    norm = nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
                    figures[-1]["gradient_norm"] = norm
                optimizer.step()

        # 4) Log, measure and save.
        numbers_of_step = {name: torch.stack([x[name] for x in figures]).mean() for name in figures[0]}
        numbers_of_step |= {"reward": returns.mean(), "reward_spread": returns.std(dim=1).mean()}
        numbers_of_step |= {f"reward_{name}": value.mean() for name, value in experience.terms.items()}
        numbers_of_step |= {"entropy": experience.sample.entropies.mean()}
        seconds = {"seconds_sampling": sampled - start, "seconds_updating": time.perf_counter() - sampled}
        measured: dict[str, float] = {}
        is_due = run.is_save_step(step + 1, last=last)
        if is_due and evaluate is not None and ranks.is_first:
            measured = evaluate(model, step + 1)
        run.log(step + 1, **numbers_of_step, **seconds, learning_rate=schedule(step), **measured)
        if is_due:
            run.save(step + 1, also=model.save_pretrained, **parts)
    return model


class Experience(NamedTuple):
    """Futures of a batch on this rank, with everything that the updates need.

    Attributes:
        sample: tokens and context; p prompts, b = p * g rows.
        old: float32 ``[b f m]``: log-probabilities of the tokens before the first update.
        reference: float32 ``[b f m]``: by the start model.
        rewards: float32 ``[p g f]``.
        terms: the value ``[b f]`` of each term of the reward, by name.
    """

    sample: Sample
    old: Tensor
    reference: Tensor
    rewards: Tensor
    terms: dict[str, Tensor]


@torch.no_grad()
def collect_experience(
    config: GrpoTraining,
    sampler: FutureSampler,
    reference: Dynamics,
    prompts: Prompts,
    seeds: Sequence[int],
    reward: RewardFunction,
    run: Run,
) -> Experience:
    """Sample the futures of a batch, score them, and compute their log-probabilities by the start model.

    Frames are decoded and scored some prompts after the others, and not kept.
    """
    needs_following = getattr(reward, "needs_following", False) and prompts.actions is not None
    others = prompts.other_actions() if needs_following else None
    at_once = max(config.minibatch_prompts * config.group // config.gradient_accumulation, 1)
    samples, references, rewards = [], [], []
    terms: dict[str, list[Tensor]] = {}
    done = 0
    for sample, rollouts in sampler(prompts, seeds):
        with run.autocast():
            scores = score_sample(reference, sample, config.temperature, at_once)
            if others is not None:
                part = others[done : done + len(sample.context)]
                following = following_reward(reference, sample, part, scores, config.temperature, at_once)
                rollouts = replace(rollouts, following=following)
        done += len(sample.context)
        total, values = reward(rollouts)
        samples.append(sample)
        references.append(scores)
        rewards.append(total)
        for name, value in values.items():
            terms.setdefault(name, []).append(value)
    sample = Sample.joined(samples)
    old = sample.log_probs
    if run.precision != "float32":
        # Computed again in the precision of the updates: its rounding would count as a change of the policy.
        with run.autocast():
            old = score_sample(sampler.model.dynamics, sample, config.temperature, at_once)
    joined = {name: torch.cat(values) for name, values in terms.items()}
    return Experience(sample, old, torch.cat(references), split_groups(torch.cat(rewards), config.group), joined)


def frame_returns(
    rewards: Tensor,
    frames: Literal["all", "last", "discounted"],
    credit: Literal["future", "frames"],
    discount: float,
) -> Tensor:
    """Return what the tokens of each frame are judged by, ``[p g f]``; see `GrpoTraining`.

    Args:
        rewards: ``[p g f]`` of each frame.
        frames: frames that count.
        credit: the whole future, the same for all its frames, or the frames from each one on.
        discount: weight of a frame over that of the frame before it.
    """
    count = rewards.shape[-1]
    steps = torch.arange(count, device=rewards.device)
    if credit == "frames":
        ahead = steps[:, None] - steps  # [later frame, frame]
        weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0), 0.0)
        return rewards @ (weights / weights.sum(dim=0)).to(rewards.dtype)
    weights = {
        "all": torch.ones(count, device=rewards.device),
        "last": (steps == count - 1).float(),
        "discounted": discount**steps,
    }[frames]
    return (rewards * weights / weights.sum()).sum(dim=-1, keepdim=True).expand_as(rewards)


def group_advantages(
    returns: Tensor,
    scale: Literal["group", "batch"] = "group",
    *,
    mean: Callable[[Tensor], Tensor] = lambda x: x,
    epsilon: float = 1e-6,
) -> Tensor:
    """Return by how many deviations each future is better than its group, float32 of the shape of ``returns``.

    Args:
        returns: ``[p g ...]``, g futures of each of p prompts.
        scale: the deviation: of each group, or the mean of those over the batch.
        mean: over the ranks.
        epsilon: added to the deviation.
    """
    returns = returns.double()
    centred = returns - returns.mean(dim=1, keepdim=True)
    equal = returns.amax(dim=1, keepdim=True) == returns.amin(dim=1, keepdim=True)
    centred = centred.masked_fill(equal, 0.0)  # without the rounding of the mean, which epsilon would let through
    deviation = returns.std(dim=1, keepdim=True)
    if scale == "batch":
        deviation = mean(deviation.mean())
    return (centred / (deviation + epsilon)).float()


class Minibatch(NamedTuple):
    """Rows of an update; all tensors have b rows.

    Attributes:
        context: int64 ``[b length]``.
        ids: int64 ``[b f m]``.
        actions: ``[b k+f a]``, or None.
        old, reference: float32 ``[b f m]`` log-probabilities.
        advantages: float32 ``[b f]``.
    """

    context: Tensor
    ids: Tensor
    actions: Tensor | None
    old: Tensor
    reference: Tensor
    advantages: Tensor


def select_prompts(experience: Experience, advantages: Tensor, numbers: Tensor) -> Minibatch:
    """Return the groups of the prompts with these numbers, int64 ``[k]``."""
    group, sample = advantages.shape[1], experience.sample

    def rows(x: Tensor) -> Tensor:
        return split_groups(x, group)[numbers].flatten(0, 1)

    return Minibatch(
        repeat_rows(sample.context[numbers], group),
        rows(sample.ids),
        None if sample.actions is None else repeat_rows(sample.actions[numbers], group),
        rows(experience.old),
        rows(experience.reference),
        advantages[numbers].flatten(0, 1),
    )


def add_policy_gradients(config: GrpoTraining, forward: nn.Module, run: Run, minibatch: Minibatch) -> dict[str, Tensor]:
    """Add the gradients of a minibatch to those of the weights, part by part.

    Args:
        config: number of parts, clips and weights.
        forward: of a `TokenPolicy`.
        run: its precision.
        minibatch: rows of this rank; all have the same number of tokens, so that the mean of the parts is the mean
            over all tokens.

    Returns:
        Means over the minibatch: the loss and its terms, the ratio, and the share of clipped tokens.
    """
    count, figures = config.gradient_accumulation, []
    for number, values in enumerate(in_parts(minibatch, count), 1):
        part = Minibatch(*values)
        with gradients_meet(forward, now=number == count):
            with run.autocast():
                log_probs = forward(part.context, part.ids, part.actions)
            ratio = probability_ratio(log_probs, part.old)
            surrogate, clipped = clipped_surrogate(
                ratio, part.advantages[..., None], config.clip_low, config.clip_high, config.dual_clip
            )
            divergence = k3_divergence(log_probs, part.reference)
            loss = surrogate.mean() + config.kl_weight * divergence.mean()
            (loss / count).backward()
        figures.append(
            {"loss": loss, "policy_loss": surrogate, "kl": divergence, "ratio": ratio, "clipped": clipped.float()}
        )
    return {name: torch.stack([x[name].detach().mean() for x in figures]).mean() for name in figures[0]}


def probability_ratio(log_probs: Tensor, old: Tensor) -> Tensor:
    """Return the new over the old probability of each token."""
    return (log_probs - old).clamp(-_MOST_DIFFERENCE, _MOST_DIFFERENCE).exp()


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, and whether clipping took its gradient; both of the shape of ``ratio``.

    Args:
        ratio: of the probabilities.
        advantages: broadcast to ``ratio``.
        low: ratios below 1 - low stop counting where they lower the loss.
        high: ratios above 1 + high stop counting where they lower the loss.
        dual_clip: most that a ratio counts where the advantage is negative; None: no bound.
    """
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - low, 1 + high)
    loss, clipped = torch.maximum(plain, bounded), bounded > plain
    if dual_clip is not None:
        most = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > most)
        loss, clipped = torch.where(beyond, most, loss), clipped | beyond
    return loss, clipped


def k3_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return an estimate, 0 or more, of the divergence from the reference at each sampled token, in nats."""
    difference = (reference - log_probs).clamp(-_MOST_DIFFERENCE, _MOST_DIFFERENCE)
    return (difference.exp() - difference - 1).clamp(max=_MOST_DIVERGENCE)


class TokenPolicy(nn.Module):
    """The trained parts of a dynamics network, as one module whose forward pass returns log-probabilities."""

    def __init__(self, dynamics: Dynamics, temperature: float) -> None:
        """Wrap the transformer and the heads of a network; ``temperature`` divides the logits."""
        super().__init__()
        self.dynamics, self.temperature = dynamics, temperature

    def forward(self, context: Tensor, ids: Tensor, actions: Tensor | None) -> Tensor:
        """Return the log-probability float32 ``[b f m]`` of each token; see `Dynamics.log_prob`."""
        return self.dynamics.log_prob(context, ids, actions, temperature=self.temperature)


def has_log(run: Run) -> bool:
    """Return whether an earlier process logged a line that still counts: the measurement before the first update."""
    path = run.folder / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def frozen_dynamics(model: WorldModel) -> Dynamics:
    """Return a frozen copy of the dynamics of a model, in evaluation mode."""
    return copy.deepcopy(model.dynamics).requires_grad_(False).eval()


def prompt_seeds(seed: int, first: int, count: int, rank: int, ranks: int) -> list[int]:
    """Return the seeds of this rank's prompts of a batch whose prompts are numbered from ``first`` on."""
    return [seed * 1_000_003 + first + rank + index * ranks for index in range(count)]
