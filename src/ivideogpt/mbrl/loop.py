"""Reinforcement learning on real and imagined episodes: MBPO around DrQ-v2, or without imagination DrQ-v2 alone.

    step the environments; an episode that is over joins the replay buffer
    every few steps:   the world model learns from real segments
    every so often:    the agent acts in the world model, from states that were; what it lives through is kept a while
    every step:        the agent learns from real and imagined transitions

Source: Janner et al. 2019, "When to trust your model"; thuml/iVideoGPT mbrl/train_metaworld_mbpo.py. What differs is in
docs/reinforcement-learning.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.core.checkpoint import step_folders
from ivideogpt.core.episode import Episode
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.run import Run
from ivideogpt.envs.vector import make_vector
from ivideogpt.mbrl.agent_evaluation import Evaluated, evaluate
from ivideogpt.mbrl.collector import Collector
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.imagined_episodes import imagine_episodes
from ivideogpt.mbrl.official_bugs import named_compat
from ivideogpt.mbrl.replay_buffer import Replay
from ivideogpt.mbrl.run_reader import EVALUATIONS
from ivideogpt.mbrl.samples import show_evaluation, show_imagination
from ivideogpt.mbrl.world_model_learner import WorldLearner
from ivideogpt.mbrl.world_model_source import load_world_model, new_model_from
from ivideogpt.policies.drqv2 import DrQv2, Transitions
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass
class Progress:
    """What is counted. All of it is saved with a checkpoint.

    Attributes:
        agent_updates, world_updates, imagined: updates of the agent and of the world model; imagined transitions.
        seconds: spent on each part: environment, agent, world_model, imagination, evaluation.
        evaluations: lines of evaluations.jsonl.
        random: of every choice that is not PyTorch's.
    """

    random: np.random.Generator
    agent_updates: int = 0
    world_updates: int = 0
    imagined: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time that passes inside."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {name: value for name, value in vars(self).items() if name != "random"}
        return {"plain": json.dumps(plain), "random": json.dumps(self.random.bit_generator.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        vars(self).update(json.loads(state["plain"]))
        self.random.bit_generator.state = json.loads(state["random"])


class Imagined:
    """A world model that learns on, and what the agent lived through in it."""

    def __init__(self, config: MbrlConfig, run: Run, model: WorldModel | None) -> None:
        """Without a model until the first episodes are there to make one of."""
        self.config, self.run, self.compat = config, run, named_compat(config.compat)
        self.learner = None if model is None else WorldLearner(model, config.world_model, self.compat, run)
        self.replay = Replay(config.capacity)
        self._sizes: list[int] = []

    @property
    def model(self) -> WorldModel | None:
        """The world model, or None."""
        return None if self.learner is None else self.learner.model

    def begin(self, replay: Replay, progress: Progress) -> None:
        """What comes before the first imagination: a new model, or updates of the checkpoint's."""
        world = self.config.world_model
        if self.learner is None:
            model = new_model_from(replay, world.scratch, self.run, seed=self.config.seed)
            self.learner = WorldLearner(model, world, self.compat, self.run)
            return
        updates = range(world.initial_updates)
        for _ in tqdm(updates, desc="world model", dynamic_ncols=True, disable=not updates, leave=False):
            self.learner.update(replay, progress.random, tokenizer=True)
            progress.world_updates += 1

    def imagine(self, agent: DrQv2, replay: Replay, progress: Progress, frames: int) -> None:
        """Lets the agent act in the world model and keeps what it lived through; the oldest goes."""
        assert self.learner is not None
        config, compat = self.config.imagination, self.compat
        found = imagine_episodes(
            self.learner.model,
            agent,
            replay,
            config,
            stack=self.config.stack,
            horizon=config.horizon_at(frames),
            noise=self.config.agent.noise(frames),
            seed=int(progress.random.integers(2**31)),
            generator=self.run.generator,
            model_units=self.config.world_model.model_units,
            brightness=1 / 255 if compat.black_images else 1.0,
        )
        for episode, first in found:
            self.replay.add(episode, first=first)
            progress.imagined += len(episode) - 1 - first
        self._sizes.append(len(found))
        if config.retained and not compat.imagined_forever:
            self._sizes = self._sizes[-config.retained :]
            self.replay.keep_newest(sum(self._sizes))

    def state_dict(self) -> dict[str, Any]:
        """Both; nothing of a model that is still to be made."""
        learner = {} if self.learner is None else self.learner.state_dict()
        return {"learner": learner, "replay": self.replay.state_dict(), "sizes": list(self._sizes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        if self.learner is not None and state["learner"]:
            self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self._sizes = list(state["sizes"])


class _Agent:
    """The agent as ``Run`` saves it."""

    def __init__(self, agent: DrQv2) -> None:
        self.state_dict, self.load_state_dict = agent.training_state, agent.load_training_state


def train_agent(config: MbrlConfig, run: Run, demos: Sequence[Episode] = ()) -> Progress:
    """Trains, or goes on where ``run`` stopped.

    Args:
        config: every setting.
        run: its folder, device and precision.
        demos: joined to the replay buffer at the start and kept there; they are copied, not touched.

    Returns:
        What was counted; the last of its evaluations is that of the end.

    Raises:
        UserError: an environment or a checkpoint that does not fit; a loss is not finite.
    """
    options = {"frame_stack": config.stack, "workers": config.workers, **config.environment}
    environments, tests = (make_vector(config.task, config.environments, **options) for _ in range(2))
    *_, image, _, _ = environments.single_observation_space.shape  # type: ignore[misc]
    action_dim = int(environments.single_action_space.shape[0])  # type: ignore[index]
    agent = DrQv2(image, config.stack, action_dim, config.agent).to(run.device)
    imagined = Imagined(config, run, _world_model(config, run, action_dim, image)) if config.imagine else None
    replay = Replay(config.capacity, folder=run.folder / "replay")
    collector = Collector(environments, seed=config.seed, stack=config.stack)
    progress = Progress(np.random.default_rng(config.seed))
    parts: dict[str, Any] = {"agent": _Agent(agent), "replay": replay, "collector": collector, "progress": progress}
    parts |= {"imagined": imagined} if imagined else {}
    done, count = run.resume(**parts), config.environments
    if done:
        _write_evaluations(run, progress)  # lines beyond the checkpoint go
    else:
        for demo in demos:
            replay.add(demo, permanent=True)
    last, figures = -(-config.steps // count), _Figures()
    every = _Cadences(count)

    def measure(step: int) -> None:
        with progress.timed("evaluation"):
            found = evaluate(agent, tests, config.evaluation_episodes, seed=config.seed, stack=config.stack)
            _note(config, run, progress, found, step)
            frames, model = step * config.action_repeat, imagined.model if imagined else None
            show_evaluation(run.folder, frames, found)
            if model is not None and replay.episodes:
                units = config.world_model.model_units
                show_imagination(run.folder, frames, model, replay, config.imagination.sampling(), model_units=units)

    if not done:
        measure(0)
    for now in run.updates("steps", done, last, clips=count):
        step, frames = (now + 1) * count, (now + 1) * count * config.action_repeat
        random_phase = now * count < config.random_steps
        with progress.timed("environment"):
            noise = config.agent.noise(now * count * config.action_repeat)
            for episode in collector.step(_actions(agent, collector, noise, run, random_phase)):
                replay.add(episode)
                figures.add(episode_return=episode.meta["return"], episode_success=float(episode.meta["success"]))
        if step >= config.random_steps and len(replay):
            if imagined:
                _learn_and_imagine(imagined, agent, replay, progress, figures, every, config, step)
            with progress.timed("agent"):
                for _ in range(config.updates * count):
                    batch = _batch(config, replay, imagined, progress.random).to(run.device)
                    figures.add(**agent.learn(batch, config.agent.noise(frames), run.generator))
                    progress.agent_updates += 1
        if every(step, max(config.evaluate_every // config.action_repeat, 1)) or now + 1 == last:
            measure(step)
        saves = run.is_save_step(now + 1, last=last)
        if every(step, config.log_every) or saves:
            run.log(now + 1, env_frames=frames, imagined=progress.imagined, **figures.means())
        if saves:
            run.save(now + 1, also=imagined.model.save_pretrained if imagined and imagined.model else None, **parts)
            replay.forget_files(replay.state_dict())
    environments.close()
    tests.close()
    return progress


def _learn_and_imagine(
    imagined: Imagined,
    agent: DrQv2,
    replay: Replay,
    progress: Progress,
    figures: _Figures,
    every: _Cadences,
    config: MbrlConfig,
    step: int,
) -> None:
    """The part of a step that model-free learning has not."""
    world, frames = config.world_model, step * config.action_repeat
    begins = not progress.imagined
    with progress.timed("world_model"):
        if begins:
            imagined.begin(replay, progress)
        elif every(step, world.update_every):
            assert imagined.learner is not None
            found = imagined.learner.update(replay, progress.random, tokenizer=every(step, world.tokenizer_every))
            figures.add(**found)
            progress.world_updates += 1
    with progress.timed("imagination"):
        if begins or every(step, config.imagination.every):
            for _ in range(max(config.imagination.initial, 1) if begins else 1):
                imagined.imagine(agent, replay, progress, frames)


def _world_model(config: MbrlConfig, run: Run, action_dim: int, image: int) -> WorldModel | None:
    """That of the run's newest checkpoint, else the one asked for, or None where it is still to be made."""
    saved = [folder for _, folder in step_folders(run.folder) if (folder / "config.json").is_file()]
    if saved:
        return WorldModel.from_pretrained(saved[-1])
    if config.world_model.checkpoint is None:
        return None
    return load_world_model(config.world_model, action_dim=action_dim, image=image, rewards=True)


def _actions(agent: DrQv2, collector: Collector, noise: float, run: Run, at_random: bool) -> np.ndarray:
    if at_random:
        shape = (len(collector.observations), agent.action_dim)
        return (torch.rand(shape, generator=run.generator) * 2 - 1).numpy()
    return agent.act(collector.observations, noise, run.generator)


def _batch(config: MbrlConfig, replay: Replay, imagined: Imagined | None, random: np.random.Generator) -> Transitions:
    agent = config.agent
    there = imagined is not None and len(imagined.replay) > 0
    real = round(agent.batch_size * config.imagination.real_share) if there else agent.batch_size
    kinds = [(replay, real)] + ([(imagined.replay, agent.batch_size - real)] if imagined is not None and there else [])
    parts = [
        kept.transitions(count, stack=config.stack, steps=agent.return_steps, discount=agent.discount, random=random)
        for kept, count in kinds
        if count
    ]
    return parts[0] if len(parts) == 1 else Transitions(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


def _note(config: MbrlConfig, run: Run, progress: Progress, found: Evaluated, step: int) -> None:
    """Adds a line to the evaluations."""
    line = {
        "step": step,
        "env_frames": step * config.action_repeat,
        "returns": [round(value, 6) for value in found.returns],
        "successes": found.successes,
        "lengths": found.lengths,
        "seconds": round(run.seconds, 3),
        "imagined_transitions": progress.imagined,
        "agent_updates": progress.agent_updates,
    }
    progress.evaluations.append(line)
    _write_evaluations(run, progress)
    tqdm.write(
        f"{line['env_frames']:,} frames: return {found.mean_return:.4g}, success {found.success:.0%}, "
        f"{progress.imagined:,} transitions imagined"
    )


def _write_evaluations(run: Run, progress: Progress) -> None:
    lines = "".join(json.dumps(evaluation) + "\n" for evaluation in progress.evaluations)
    write_text_atomic(run.folder / EVALUATIONS, lines)


class _Cadences:
    """Whether something that happens every so many steps happens now, where several steps are made at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, step: int, every: int) -> bool:
        return every > 0 and step // every > (step - self.count) // every


class _Figures:
    """Means of what was reported since the last line."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor | float]] = {}

    def add(self, **figures: Tensor | float) -> None:
        for name, value in figures.items():
            self._found.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        found = {name: float(np.mean([float(one) for one in values])) for name, values in self._found.items()}
        self._found.clear()
        return found
