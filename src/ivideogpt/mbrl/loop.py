"""The training loop of reinforcement learning: MBPO around DrQ-v2, or DrQ-v2 alone.

    1) collect: one action in each environment; an episode that is over joins the replay buffer
    2) update the world model on real segments
    3) imagine: the agent acts in the world model, from states of the replay buffer
    4) update the agent on real and imagined transitions
    5) evaluate the agent in the environment

Source: Janner et al. 2019, "When to trust your model"; thuml/iVideoGPT mbrl/train_metaworld_mbpo.py. Differences are
listed in docs/reinforcement-learning.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.envs.collector import Collector, evaluate_policy
from ivideogpt.envs.vector import make_vector
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.imagined_episodes import RolloutBuffer, RolloutPlan, Workers, imagine_episodes
from ivideogpt.mbrl.picture_learner import PictureLearner
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.mbrl.run_records import MetricMeans, Progress, write_evaluation_gif, write_imagination_gif
from ivideogpt.mbrl.world_model_learner import TokenLearner, WorldModelLearner
from ivideogpt.mbrl.world_model_source import load_world_model
from ivideogpt.policies.drqv2 import DrQv2, Transitions
from ivideogpt.worldmodel.world_model import WorldModel

#: Added to the seed of a run for its evaluations: they play other episodes, the same ones each time.
EVALUATION_SEED = 1_000_003


class AgentTrainer:
    """An agent with its environments, its replay buffer, its world model and the episodes imagined in it.

    Attributes:
        agent: the policy that is trained.
        learner: the world model and its optimizers; None: the agent learns from real transitions alone.
        replay: real episodes.
        imagined: imagined episodes.
        progress: counters, random numbers and evaluations.
        metrics: means since the last line of the log.
    """

    def __init__(self, config: MbrlConfig, run: Run, workers: Workers | None = None) -> None:
        """Make the parts.

        Args:
            config: the settings.
            run: its folder, device and precision.
            workers: take environments and imagination; None: this process does.

        Raises:
            UserError: an environment or a checkpoint that does not fit.
        """
        self.config, self.run = config, run
        self.environments, self.test_environments = (
            make_environments(config, config.num_envs, workers) for _ in range(2)
        )
        self._begin = _call_here if workers is None else workers.begin
        self._imagining: Callable[[], list[Any]] | None = None
        *_, image, _, _ = self.environments.single_observation_space.shape  # type: ignore[misc]
        self.action_dim = int(self.environments.single_action_space.shape[0])  # type: ignore[index]
        self.agent = DrQv2(image, config.frame_stack, self.action_dim, config.agent).to(run.device)
        self.learner: WorldModelLearner | None = None
        if config.use_world_model:
            model = _first_model(config, run.folder, self.action_dim, image)
            if model is None or model.has_tokens:
                self.learner = TokenLearner(config.world_model, run, model)
            else:
                self.learner = PictureLearner(config.world_model, run, model)
        self.replay = ReplayBuffer(config.replay_capacity, folder=run.folder / "replay")
        self.imagined = RolloutBuffer(config.replay_capacity, kept_rollouts=config.imagination.kept_rollouts)
        self.collector = Collector(self.environments, seed=config.seed, frame_stack=config.frame_stack)
        self.progress, self.metrics = Progress(np.random.default_rng(config.seed)), MetricMeans()

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by name."""
        parts = {"agent": _AgentState(self.agent), "replay": self.replay, "collector": self.collector}
        parts["progress"] = self.progress
        return parts if self.learner is None else parts | {"world_model": self.learner, "imagined": self.imagined}

    def collect(self, step: int) -> None:
        """Take one action in each environment; episodes that are over join the replay buffer."""
        num_envs, generator = self.config.num_envs, self.run.generator
        with self.progress.timed("environment"):
            if step - num_envs < self.config.random_steps:
                actions = (torch.rand((num_envs, self.action_dim), generator=generator) * 2 - 1).numpy()
            else:
                noise = self.config.agent.exploration_noise(step - num_envs)
                actions = self.agent.explore(self.collector.observation, noise, generator)
            for episode in self.collector.step(actions):
                self.replay.add(episode)
                success = float(episode.meta["success"])
                self.metrics.add(episode_return=episode.meta["return"], episode_success=success)

    def prepare_world_model(self) -> None:
        """Make a new world model of the first episodes, or update that of a checkpoint on them."""
        assert self.learner is not None
        with self.progress.timed("world_model"):
            updates = self.learner.prepare(self.replay, self.progress.random, seed=self.config.seed)
            self.progress.world_model_updates += updates

    def update_world_model(self, *, tokenizer: bool) -> None:
        """Update the world model once, with its tokenizer or without."""
        assert self.learner is not None
        with self.progress.timed("world_model"):
            self.metrics.add(**self.learner.update(self.replay, self.progress.random, tokenizer=tokenizer))
            self.progress.world_model_updates += 1

    def imagine(self, step: int, rollouts: int) -> None:
        """Let the agent act in the world model, from states of the replay buffer.

        With ``overlap`` all rollouts but the first join the imagined episodes in the next call, or in
        ``finish_imagination``.
        """
        config, imagination, random = self.config, self.config.imagination, self.progress.random
        assert self.learner is not None and self.learner.model is not None
        self.finish_imagination()
        with self.progress.timed("imagination"):
            frames = max(config.frame_stack, self.learner.model.context_frames)
            raw_actions = not config.world_model.actions_in_model_units
            self._imagining = self._begin(
                partial(imagine_episodes, self.learner.model, self.agent, imagination, config.frame_stack, raw_actions),
                [
                    RolloutPlan(
                        starts=self.replay.starts(imagination.parallel_episodes, frames, random),
                        horizon=imagination.horizon_at(step),
                        noise=config.agent.exploration_noise(step),
                        seed=int(random.integers(2**31)),
                    )
                    for _ in range(rollouts)
                ],
            )
        if not imagination.overlap or self.progress.imagined_transitions == 0:
            self.finish_imagination()

    def finish_imagination(self) -> None:
        """Add the rollouts that are on their way to the imagined episodes."""
        if self._imagining is not None:
            with self.progress.timed("imagination"):
                for episodes in self._imagining():
                    self.progress.imagined_transitions += self.imagined.add_rollout(episodes)
            self._imagining = None

    def update_agent(self, step: int, updates: int) -> None:
        """Update the agent on real and imagined transitions."""
        config = self.config
        with self.progress.timed("agent"):
            for _ in range(updates):
                batch = _draw_batch(config, self.replay, self.imagined, self.progress.random).to(self.run.device)
                self.metrics.add(**self.agent.learn(batch, config.agent.exploration_noise(step), self.run.generator))
                self.progress.agent_updates += 1

    def evaluate(self, step: int) -> None:
        """Evaluate the agent without exploration; add a line and pictures to the run's folder."""
        config, progress, folder = self.config, self.progress, self.run.folder
        env_frames = step * config.action_repeat
        with progress.timed("evaluation"):
            result = evaluate_policy(
                self.agent,
                self.test_environments,
                config.evaluation_episodes,
                seed=config.seed + EVALUATION_SEED,
                frame_stack=config.frame_stack,
            )
            progress.evaluations.append(
                {
                    "step": step,
                    "env_frames": env_frames,
                    "returns": [round(value, 6) for value in result.returns],
                    "successes": result.successes,
                    "lengths": result.lengths,
                    "seconds": round(self.run.seconds, 3),
                    "imagined_transitions": progress.imagined_transitions,
                    "agent_updates": progress.agent_updates,
                }
            )
            progress.write_evaluations(folder)
            tqdm.write(
                f"{env_frames:,} frames: return {result.mean_return:.4g}, success {result.success:.0%}, "
                f"{progress.imagined_transitions:,} transitions imagined"
            )

            # pictures
            write_evaluation_gif(folder, env_frames, result.frames)
            model = None if self.learner is None else self.learner.model
            if model is not None and self.replay.episodes:
                raw_actions = not config.world_model.actions_in_model_units
                sampling = config.imagination.sampling()
                write_imagination_gif(folder, env_frames, model, self.replay, sampling, raw_actions=raw_actions)

    def close(self) -> None:
        """Close the environments."""
        self.environments.close()
        self.test_environments.close()


def train_agent(
    config: MbrlConfig, run: Run, demos: Sequence[Episode] = (), *, workers: Workers | None = None
) -> Progress:
    """Train an agent; the same call again resumes a stopped run exactly.

    Args:
        config: the settings.
        run: its folder, device and precision.
        demos: demonstrations that join the replay buffer at the start and are never evicted.
        workers: take environments and imagination; None: this process does. The result is the same.

    Returns:
        Counters and evaluations; the last evaluation is that of the end.

    Raises:
        UserError: an environment or a checkpoint that does not fit; a loss is not finite.
    """
    trainer = AgentTrainer(config, run, workers)
    learner, replay, progress, parts = trainer.learner, trainer.replay, trainer.progress, trainer.parts()

    # resume, or begin with demonstrations and an evaluation
    updates_done, num_envs = run.resume(**parts), config.num_envs
    last_update = -(-config.total_env_steps // num_envs)
    if updates_done:
        progress.write_evaluations(run.folder)
    else:
        for demo in demos:
            replay.add(demo, permanent=True)
        # Nothing is explored yet: with the noise of the end.
        trainer.update_agent(config.agent.exploration_decay_steps, config.demonstration_updates)
        trainer.evaluate(step=0)

    for update in run.updates("steps", updates_done, last_update, clips=num_envs, unit="step"):
        step = (update + 1) * num_envs

        def is_due(every_steps: int, step: int = step) -> bool:
            """Return True if a multiple of ``every_steps`` was passed in this update."""
            return is_passed(step, every_steps, num_envs)

        # 1) collect
        trainer.collect(step)

        is_learning = step >= config.random_steps and len(replay) > 0
        if is_learning and learner is not None:
            # 2) update the world model
            is_first = progress.imagined_transitions == 0
            if is_first:
                trainer.prepare_world_model()
            elif is_due(config.world_model.update_every_steps):
                trainer.update_world_model(tokenizer=is_due(config.world_model.tokenizer_update_every_steps))

            # 3) imagine
            if is_first or is_due(config.imagination.every_steps):
                trainer.imagine(step, max(config.imagination.initial_rollouts, 1) if is_first else 1)

        # 4) update the agent
        if is_learning:
            trainer.update_agent(step, config.updates_per_step * num_envs)

        # 5) evaluate
        saves = run.is_save_step(update + 1, last=last_update)
        if saves:
            trainer.finish_imagination()
        if is_due(config.evaluate_every_steps) or update + 1 == last_update:
            trainer.evaluate(step)

        # log and save
        if is_due(config.log_every_steps) or saves:
            env_frames, transitions = step * config.action_repeat, progress.imagined_transitions
            run.log(update + 1, env_frames=env_frames, imagined=transitions, **trainer.metrics.take())
        if saves:
            model = None if learner is None else learner.model
            run.save(update + 1, also=model.save_pretrained if model else None, **parts)
            replay.forget_files(replay.state_dict())
    trainer.close()
    return progress


def make_environments(config: MbrlConfig, count: int, workers: Workers | None = None) -> VectorEnv:
    """Make ``count`` environments as the settings say, in ``workers`` where there are some."""
    return make_vector(
        config.task,
        count,
        frame_stack=config.frame_stack,
        image_size=config.image_size,
        workers=config.env_processes if workers is None else workers.environments,
        **config.environment_options,
    )


def check_environment(config: MbrlConfig, folder: Path) -> tuple[int, int]:
    """Make an environment and load the world model, before anything of the run is written.

    Args:
        config: the settings.
        folder: of the run; a resumed run has a world model of its own.

    Returns:
        Numbers of an action, and the side of the pictures in pixels.

    Raises:
        UserError: one cannot be made, or they do not fit each other.
        MissingExtraError: the environment's package is not installed.
    """
    environment = make_environments(config, 1)
    image = int(environment.single_observation_space.shape[-2])  # type: ignore[index]
    action_dim = int(environment.single_action_space.shape[0])  # type: ignore[index]
    environment.close()
    if config.use_world_model:
        _first_model(config, folder, action_dim, image)
    return action_dim, image


def _call_here(function: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], list[Any]]:
    """Call ``function`` with each of ``items``; as ``Workers.begin``."""
    results = [function(item) for item in items]
    return lambda: results


def is_passed(step: int, every: int, num_envs: int) -> bool:
    """Return True if one of the last ``num_envs`` steps up to ``step`` is a multiple of ``every``; 0: never."""
    return every > 0 and step // every > (step - num_envs) // every


class _AgentState:
    """Weights and optimizers of the agent, as ``Run`` saves them."""

    def __init__(self, agent: DrQv2) -> None:
        self.agent = agent

    def state_dict(self) -> Mapping[str, Any]:
        return self.agent.training_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_training_state(state)


def _first_model(config: MbrlConfig, folder: Path, action_dim: int, image: int) -> WorldModel | None:
    """Load the model of the newest checkpoint, else the one asked for; None where it is trained from scratch."""
    saved = [place for _, place in step_folders(folder) if (place / "config.json").is_file()]
    if saved:
        return WorldModel.from_pretrained(saved[-1])
    if config.world_model.checkpoint is None:
        side = config.world_model.scratch.tokenizer.tokenizer.resolution
        if side != image:
            raise UserError(
                f"the new world model is made for frames of {side} pixels a side and the environment shows {image}; "
                f"resize its frames: image_size={side}"
            )
        return None
    return load_world_model(config.world_model, action_dim=action_dim, image=image, rewards=True)


def _draw_batch(
    config: MbrlConfig, replay: ReplayBuffer, imagined: RolloutBuffer, random: np.random.Generator
) -> Transitions:
    """Draw a batch of real and imagined transitions, with a fixed share of demonstrations."""
    agent, real = config.agent, replay.transitions
    imagined_count = agent.batch_size - round(agent.batch_size * config.imagination.real_share) if len(imagined) else 0
    real_count = agent.batch_size - imagined_count
    demo_count = round(real_count * config.demonstration_share)
    draws = [
        (partial(real, demonstrations=True), demo_count),
        (real, real_count - demo_count),
        (imagined.transitions, imagined_count),
    ]
    parts = [
        draw(count, stack=config.frame_stack, steps=agent.n_step, discount=agent.discount, random=random)
        for draw, count in draws
        if count
    ]
    return parts[0] if len(parts) == 1 else Transitions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
