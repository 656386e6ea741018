"""GRPO on tiny world models: the sanity list of the method, a toy with a known optimum, and exact resuming."""

import json
from pathlib import Path

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.posttrain.grpo import (
    GrpoTraining,
    TokenPolicy,
    add_policy_gradients,
    clipped_surrogate,
    collect_experience,
    frame_returns,
    frozen_dynamics,
    group_advantages,
    k3_divergence,
    prompt_seeds,
    select_prompts,
    train_grpo,
)
from ivideogpt.posttrain.rewards import RewardSum, parse_reward
from ivideogpt.posttrain.rollouts import FutureSampler, Prompts

HORIZON = 2
SMALL = {
    "prompts": 4,
    "group": 4,
    "minibatch_prompts": 2,
    "gradient_accumulation": 2,
    "rows_at_once": 8,
    "learning_rate": 2e-3,
    "save_every": 100,
    "log_every": 0,
}


class FixedPrompts:
    """The same prompts in every batch, with a position."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.step = prompts, 0

    def __iter__(self):
        while True:
            self.step += 1
            yield Prompts(
                self.prompts.frames.roll(self.step, dims=0),
                None if self.prompts.actions is None else self.prompts.actions.roll(self.step, dims=0),
            )

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def reward_of_code(target: int):
    """Reward the share of tokens that are one code; the optimum is 1."""

    def reward(rollouts):
        share = (rollouts.ids == target).float().mean(dim=2)
        return share, {"share": share}

    return reward


@pytest.fixture
def prompts_for(frames_for, actions_for):
    def make(model, rows: int = 4) -> Prompts:
        frames = frames_for(model, rows, model.context_frames + HORIZON)
        return Prompts(frames, actions_for(model, rows, HORIZON))

    return make


@pytest.fixture
def experience_of(prompts_for, tmp_path):
    """Experience of one batch, and what its updates need."""

    def make(model, reward=None, precision="float32", **changes):
        config = GrpoTraining(**{**SMALL, **changes})
        run = Run(tmp_path / "experience", device="cpu", precision=precision, log_every=0)
        sampler = FutureSampler(model, config.sampling, config.group, config.rows_at_once)
        reference = frozen_dynamics(model)
        reward = reward or reward_of_code(model.layout.dynamics_ids.start)
        batch = prompts_for(model)
        experience = collect_experience(config, sampler, reference, batch, [7, 8, 9, 10], reward, run)
        return config, run, experience

    return make


@pytest.mark.parametrize("kind", ["plain", "conditional", "action_free", "goal"])
def test_captured_log_probabilities_equal_those_of_training(kind, build, experience_of) -> None:
    model = build(kind)
    config, _, experience = experience_of(model)
    minibatch = select_prompts(experience, torch.zeros(4, 4, HORIZON), torch.arange(4))
    policy = TokenPolicy(model.dynamics, config.temperature)
    computed = policy(minibatch.context, minibatch.ids, minibatch.actions)
    assert (computed - minibatch.old).abs().max() < 1e-4
    assert (minibatch.reference - minibatch.old).abs().max() < 1e-4  # the reference is the start model
    assert minibatch.old.shape == (16, HORIZON, model.layout.dynamics_tokens)


def test_the_first_minibatch_has_ratio_1_and_no_divergence(build, experience_of) -> None:
    model = build("plain")
    config, run, experience = experience_of(model)
    advantages = group_advantages(experience.rewards)
    policy = TokenPolicy(model.dynamics, config.temperature)
    figures = add_policy_gradients(config, policy, run, select_prompts(experience, advantages, torch.arange(2)))
    assert float(figures["ratio"]) == pytest.approx(1, abs=1e-5)
    assert float(figures["kl"]) == pytest.approx(0, abs=1e-6) and float(figures["clipped"]) == 0


def test_in_bfloat16_the_first_ratio_is_1_too(build, experience_of) -> None:
    """Rounding differs between sampling and training, so the old log-probabilities are those of training."""
    model = build("plain")
    config, run, experience = experience_of(model, precision="bfloat16", gradient_accumulation=1)
    assert (experience.old - experience.sample.log_probs).abs().max() > 1e-4
    policy = TokenPolicy(model.dynamics, config.temperature)
    minibatch = select_prompts(experience, group_advantages(experience.rewards), torch.arange(4))
    figures = add_policy_gradients(config, policy, run, minibatch)
    assert float(figures["ratio"]) == pytest.approx(1, abs=1e-5)


def test_following_compares_the_actions_of_a_future_with_those_of_another_prompt(build, experience_of) -> None:
    model = build("plain")
    _, _, experience = experience_of(model, RewardSum(parse_reward("following")))
    sample = experience.sample
    other = model.dynamics.log_prob(
        sample.context.repeat_interleave(4, 0), sample.ids, sample.actions.roll(1, 0).repeat_interleave(4, 0)
    )
    expected = (sample.log_probs - other).mean(dim=-1).unflatten(0, (4, 4))
    assert torch.allclose(experience.rewards, expected, atol=1e-4) and expected.mean() > 0.01
    with pytest.raises(UserError, match="needs a model with actions"):
        experience_of(build("action_free"), RewardSum(parse_reward("following")))


@pytest.mark.parametrize("group", [4, 5])
def test_equal_rewards_of_a_group_give_exactly_no_gradient(group, build, experience_of) -> None:
    model = build("plain")

    def constant(rollouts):
        rewards = torch.full(rollouts.ids.shape[:2], 0.1)
        return rewards, {"constant": rewards}

    config, run, experience = experience_of(model, constant, group=group, kl_weight=0.0, gradient_accumulation=1)
    advantages = group_advantages(experience.rewards)
    assert not advantages.any()
    add_policy_gradients(
        config, TokenPolicy(model.dynamics, 1.0), run, select_prompts(experience, advantages, torch.arange(4))
    )
    gradients = [x.grad for x in model.dynamics.parameters() if x.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_inserted_tokens_get_exactly_no_gradient(build, experience_of) -> None:
    """Only dynamics tokens are predicted: no output row of another id is touched."""
    model = build("conditional")
    config, run, experience = experience_of(model)
    advantages = group_advantages(experience.rewards + torch.rand(4, 4, HORIZON))
    policy = TokenPolicy(model.dynamics, 1.0)
    add_policy_gradients(config, policy, run, select_prompts(experience, advantages, torch.arange(4)))
    gradient = model.transformer.head.weight.grad
    layout = model.layout
    assert gradient[layout.dynamics_ids.start : layout.dynamics_ids.stop].any()
    assert not gradient[: layout.context_codes].any()
    assert not gradient[layout.context_separator].any() and not gradient[layout.dynamics_separator].any()


def test_the_gradient_reaches_only_positions_before_sampled_tokens(build, experience_of, monkeypatch) -> None:
    """The hidden state after a frame's last token would predict a separator, and gets no gradient of its own."""
    model = build("plain")
    config, _, experience = experience_of(model)
    minibatch = select_prompts(experience, torch.ones(4, 4, HORIZON), torch.arange(1))
    seen = []
    original = model.dynamics.hidden_states

    def recorded(ids, actions):
        hidden, forecasts = original(ids, actions)
        hidden.retain_grad()
        seen.append(hidden)
        return hidden, forecasts

    monkeypatch.setattr(model.dynamics, "hidden_states", recorded)
    TokenPolicy(model.dynamics, config.temperature)(
        minibatch.context, minibatch.ids, minibatch.actions
    ).sum().backward()
    touched = seen[0].grad.abs().sum(dim=(0, 2)) > 0
    layout, start = model.layout, model.layout.context_length(model.context_frames)
    frames = touched[start:].unflatten(0, (-1, layout.frame_length))
    assert frames[:, :-1].all() and not frames[:, -1].any() and not touched[:start].any()


def test_the_divergence_is_never_negative_and_bounded() -> None:
    new, old = torch.randn(2, 5000) * 4
    divergence = k3_divergence(new, old)
    assert (divergence >= 0).all() and divergence.max() <= 10
    assert float(k3_divergence(new, new).abs().max()) == 0


def test_clipping_bounds_what_a_token_can_gain_and_lose() -> None:
    ratio = torch.tensor([0.5, 1.0, 1.1, 1.5, 5.0], requires_grad=True)
    better, clipped = clipped_surrogate(ratio, torch.ones(5), 0.2, 0.2, 3.0)
    assert better.tolist() == pytest.approx([-0.5, -1.0, -1.1, -1.2, -1.2])
    assert clipped.tolist() == [False, False, False, True, True]
    worse, clipped = clipped_surrogate(ratio, -torch.ones(5), 0.2, 0.2, 3.0)
    assert worse.tolist() == pytest.approx([0.8, 1.0, 1.1, 1.5, 3.0])  # the dual clip bounds the last one
    assert clipped.tolist() == [True, False, False, False, True]
    worse.sum().backward()
    assert ratio.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert float(clipped_surrogate(ratio.detach(), -torch.ones(5), 0.2, 0.2, None)[0][-1]) == 5.0


def test_advantages_compare_a_future_with_its_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 10.0], [0.0, 0.0, 6.0]])
    by_group = group_advantages(rewards)
    assert by_group[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-5) and not by_group[1].any()
    assert by_group[2].std() == pytest.approx(1, abs=1e-5)
    by_batch = group_advantages(rewards, "batch")
    mean = rewards.std(dim=1).mean()
    assert by_batch[0, 2] == pytest.approx(float(1 / mean), rel=1e-4) and by_batch[2, 2] > by_group[2, 2]


def test_returns_count_the_frames_that_were_asked_for() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 6.0]]])

    def returns(frames="all", credit="future", discount=0.5):
        return frame_returns(rewards, frames, credit, discount)[0, 0].tolist()

    assert returns() == pytest.approx([3, 3, 3]) and returns("last") == pytest.approx([6, 6, 6])
    assert returns("discounted") == pytest.approx([(1 + 1 + 1.5) / 1.75] * 3)
    assert returns(credit="frames") == pytest.approx([(1 + 1 + 1.5) / 1.75, (2 + 3) / 1.5, 6])


def test_rows_at_once_and_other_prompts_do_not_change_a_future(build, experience_of) -> None:
    first, second = (experience_of(build("plain"), rows_at_once=rows)[2] for rows in (4, 64))
    assert torch.equal(first.sample.ids, second.sample.ids)
    assert (first.old - second.old).abs().max() < 1e-5
    groups = first.sample.ids.unflatten(0, (4, 4))
    assert not torch.equal(groups[0, 0], groups[0, 1])  # the futures of a group differ
    assert prompt_seeds(0, 4, 2, 1, 2) == [5, 7] and prompt_seeds(0, 4, 4, 0, 1) == [4, 5, 6, 7]


def trained(model, prompts, folder: Path, *, until=None, reward=None, evaluate=None, **changes):
    config = GrpoTraining(**{**SMALL, **changes})
    run = Run(folder, seed=config.seed, device="cpu", log_every=0, save_every=config.save_every)
    reward = reward or reward_of_code(model.layout.dynamics_ids.start + 3)
    reference = frozen_dynamics(model)
    train_grpo(config, model, reference, FixedPrompts(prompts), reward, run, until=until, evaluate=evaluate)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_toy_world_rises_to_its_known_optimum(build, prompts_for, tmp_path) -> None:
    """The reward is the share of one code among 24: chance is about .04, the optimum 1."""
    model = build("plain")
    options = {"group": 8, "steps": 20, "kl_weight": 0.0, "learning_rate": 5e-3}
    lines = trained(model, prompts_for(model, 4), tmp_path / "run", **options)
    rewards = torch.tensor([line["reward"] for line in lines])
    smooth = rewards.unflatten(0, (-1, 5)).mean(dim=1)
    assert rewards[0] < 0.2 and (smooth.diff() > 0).all() and rewards[-1] > 0.95
    assert (torch.tensor([line["clipped"] for line in lines]) >= 0).all()


def test_the_divergence_weight_keeps_the_policy_near_its_start(build, prompts_for, tmp_path) -> None:
    kl = {}
    for weight in (0.0, 10.0):
        model = build("plain")
        lines = trained(model, prompts_for(model), tmp_path / str(weight), steps=6, kl_weight=weight)
        kl[weight] = lines[-1]["kl"]
    assert 0 <= kl[10.0] < kl[0.0] / 2


def test_a_stopped_run_goes_on_exactly(build, prompts_for, tmp_path) -> None:
    options = {"steps": 4, "epochs": 2, "save_every": 1}
    whole = trained(build("plain"), prompts_for(build("plain")), tmp_path / "whole", **options)
    parts = tmp_path / "parts"
    trained(build("plain"), prompts_for(build("plain")), parts, until=2, **options)
    # what a killed process leaves: a line beyond the last checkpoint
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    model = build("plain")
    config = GrpoTraining(**{**SMALL, **options})
    run = Run(parts, seed=config.seed, device="cpu", log_every=0, save_every=1)
    reward = reward_of_code(model.layout.dynamics_ids.start + 3)
    train_grpo(config, model, frozen_dynamics(build("plain")), FixedPrompts(prompts_for(model)), reward, run)
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    same = [name for name in whole[0] if not name.startswith("seconds")]
    assert [[line[name] for name in same] for line in lines] == [[line[name] for name in same] for line in whole]


def test_the_model_is_measured_before_and_at_checkpoints_once(build, prompts_for, tmp_path) -> None:
    steps = []

    def evaluate(model, step: int) -> dict[str, float]:
        assert not model.training
        steps.append(step)
        return {"validation_reward": float(step)}

    model = build("plain")
    lines = trained(model, prompts_for(model), tmp_path, steps=3, save_every=2, evaluate=evaluate)
    trained(build("plain"), prompts_for(model), tmp_path, steps=3, save_every=2, evaluate=evaluate)
    assert steps == [0, 2, 3] and [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["validation_reward"] for line in lines if "validation_reward" in line] == [0.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group": 1}, "group is 1; expected at least 2"),
        ({"prompts": 5}, "expected a multiple"),
        ({"reward": "lpip"}, "there is no reward 'lpip'"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5; expected more than 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"discount": 2.0}, "discount is 2.0"),
        ({"clip_low": 1.0}, "clip_low is 1.0"),
    ],
)
def test_bad_settings_get_one_sentence(changes, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        GrpoTraining(**{**SMALL, **changes})
