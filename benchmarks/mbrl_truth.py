"""Measure which part of imagination fails in reinforcement learning, by putting the truth in its place.

    python benchmarks/mbrl_truth.py runs/mbrl/plate-slide-mbpo-0 runs/mbrl/plate-slide-model-free-0

Windows of the real episodes that the agents of finished runs played, demonstrations left out. The world model is given
the first frames, the last reward and the actions. For each horizon: mean error of the return, divided by the horizon,
mean bias of it and correlation, once imagined, once with rewards read from the simulator's frames, once with the last
reward repeated. Then the frames: PSNR, and the distance between the agent's actions at imagined and at true frames. At
last the critics: their mean value at the first steps of an episode, and what followed: discounted rewards and the
value of the last frame.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.evaluation.intervals import Bootstrap, Estimate
from ivideogpt.evaluation.trust_signals import correlation
from ivideogpt.mbrl.agents import load_agent, newest_checkpoint
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.policies.drqv2 import DrQv2
from ivideogpt.worldmodel.world_model import WorldModel

HORIZONS = (1, 3, 5, 10)
STRIDE = 3
#: Steps of an episode at which a value is compared with the rewards that follow.
EARLY = 10


def real_episodes(run: Path) -> list[Episode]:
    """Read the episodes that the agent of a run played."""
    episodes = [load_episodes(path)[0] for path in sorted((run / "replay").glob("*.safetensors"))]
    return [episode for episode in episodes if episode.key.startswith("real-")]


def windows(episodes: list[Episode], context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames ``[n t c h w]`` in [0, 1], actions ``[n h a]`` and rewards ``[n h+1]``, the known one first."""
    frames, actions, rewards = [], [], []
    length = context + max(HORIZONS)
    for episode in episodes:
        assert episode.actions is not None and episode.rewards is not None
        for first in range(0, len(episode) - length, STRIDE):
            state = first + context - 1
            frames.append(rearrange(episode.frames[first : first + length], "t h w c -> t c h w"))
            actions.append(np.clip(episode.actions[state : first + length - 1], -1, 1))
            rewards.append(episode.rewards[state - 1 : first + length - 1])
    stacked = [torch.from_numpy(np.stack(part)).float() for part in (frames, actions, rewards)]
    return stacked[0] / 255, stacked[1], stacked[2]


@torch.inference_mode()
def policy_actions(agent: DrQv2, frames: Tensor) -> Tensor:
    """Return the agent's actions ``[n h a]`` at frames ``[n h c h w]``."""
    pixels = rearrange((frames * 255).round().to(torch.uint8), "n t c h w -> (n t) 1 h w c").numpy()
    return rearrange(torch.from_numpy(agent.act({"frames": pixels})), "(n t) a -> n t a", n=len(frames))


@torch.inference_mode()
def values_and_returns(agent: DrQv2, episodes: list[Episode]) -> tuple[Tensor, Tensor]:
    """Return the critics' values in reward units and what followed, discounted, ``[n]`` early states."""
    values, returns, config = [], [], agent.config
    for episode in episodes:
        assert episode.actions is not None and episode.rewards is not None
        pixels = torch.from_numpy(episode.frames[:EARLY])
        actions = torch.from_numpy(episode.actions[:EARLY]).clamp(-1, 1)
        values.append(torch.minimum(*agent.critic(agent.encoder(pixels), actions)) / config.reward_scale)
        last = torch.from_numpy(episode.frames[-1:])  # the episode is cut, not over: with the value of its last frame
        features = agent.encoder(last)
        tail = float(torch.minimum(*agent.critic(features, agent.actor(features)))) / config.reward_scale
        powers = config.discount ** np.arange(len(episode))
        received = np.append(episode.rewards[:-1], tail)
        ahead = [float(powers[: len(received) - t] @ received[t:]) for t in range(EARLY)]
        returns.append(torch.tensor(ahead))
    return torch.cat(values), torch.cat(returns)


def read_rewards(pictures: PictureDynamics, frames: Tensor, earlier: KnownReward | None) -> Tensor:
    """Read the rewards ``[n h]`` of frames ``[n h c h w]``."""
    rewards = [pictures.read_reward(frame, earlier=earlier)[0] for frame in frames.unbind(1)]
    return torch.stack([row for row in rewards if row is not None], dim=1)


def shown(estimate: Estimate) -> str:
    """Return a figure with its 95 % interval."""
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def main() -> None:
    """Print the tables of all runs together."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", default="metaworld-64", help="a picture model")
    options = parser.parse_args()
    model = WorldModel.from_pretrained(options.model)
    pictures, context, farthest = model.pictures, model.context_frames, max(HORIZONS)
    assert pictures is not None, "expected a picture model"
    distances, values, returns, parts = [], [], [], []
    for run in options.runs:
        # imagined and true frames, and rewards read from them
        episodes = real_episodes(run)
        frames, actions, rewards = windows(episodes, context)
        before, known, future = frames[:, :context], rewards[:, 0], frames[:, context:]
        with torch.inference_mode():
            imagined = model.imagine(before, model.normalize_actions(actions), last_rewards=known)
            earlier = KnownReward(before[:, -1], known)
            drawn = imagined.frames[:, -farthest:]
            read = read_rewards(pictures, future, earlier)
            alone = read_rewards(pictures, drawn, None)
        parts.append((drawn, future, before[:, -1:].expand_as(future), imagined.rewards, read, alone, rewards))

        # the agent at both
        checkpoint = newest_checkpoint(run)
        agent = load_agent(run, checkpoint, action_dim=actions.shape[-1], image=frames.shape[-1])
        true_actions = policy_actions(agent, future)
        pair = [(policy_actions(agent, frames) - true_actions).square().mean(dim=2) for frames in parts[-1][:3:2]]
        distances.append(torch.stack(pair))
        for total, part in zip((values, returns), values_and_returns(agent, episodes), strict=True):
            total.append(part)

    drawn, future, copied, imagined_rewards, read, alone, rewards = map(torch.cat, zip(*parts, strict=True))
    bootstrap, true = Bootstrap(len(rewards)), rewards[:, 1:]
    sources = {
        "imagined": imagined_rewards,
        "true frames": read,
        "imagined, last reward not given": alone,
        "last reward repeated": rewards[:, :1].expand_as(true),
    }
    print(f"{len(rewards)} windows, mean reward {true.mean():.2f}")
    for horizon in HORIZONS:
        for name, source in sources.items():
            a, b = (x[:, :horizon].double().sum(dim=1) / horizon for x in (source, true))
            error, bias, together = (
                bootstrap.mean((a - b).abs()),
                bootstrap.mean(a - b),
                correlation(a.numpy(), b.numpy()),
            )
            print(f"h={horizon} {name}: error {shown(error)}, bias {shown(bias)}, correlation {together:.2f}")
    squares = torch.cat(distances, dim=1)
    for step in HORIZONS:
        psnr = [-10 * (x[:, step - 1] - future[:, step - 1]).square().mean().log10().item() for x in (drawn, copied)]
        rms = squares[:, :, step - 1].mean(dim=1).sqrt().tolist()
        print(
            f"frame {step}: {psnr[0]:.1f} dB, copy {psnr[1]:.1f}; distance of actions {rms[0]:.3f}, copy {rms[1]:.3f}"
        )
    print(f"critics: mean value {torch.cat(values).mean():.0f}, what followed {torch.cat(returns).mean():.0f}")


if __name__ == "__main__":
    main()
