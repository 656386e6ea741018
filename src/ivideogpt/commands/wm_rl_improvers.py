"""Policies that ``ivideogpt wm-rl`` improves: networks of ours, or a correction of any policy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ivideogpt.envs.registry import LIBERO_START_STATES, LIBERO_SUITES, find_environment

if TYPE_CHECKING:
    from ivideogpt.configs.wmrl import WmRlRecipe
    from ivideogpt.core.episode import Episode
    from ivideogpt.core.run import Run
    from ivideogpt.policies.vla.residual import ResidualConfig
    from ivideogpt.policies.vla.tiny_flow import SizedPolicy
    from ivideogpt.wmrl.config import WmRlConfig
    from ivideogpt.wmrl.loop import HeldOutCheck
    from ivideogpt.wmrl.rollouts import RealRows, Rows


class Improver(Protocol):
    """A policy that is improved.

    Attributes:
        policy: with its sizes.
    """

    policy: SizedPolicy

    def measure(self) -> list[bool]:
        """Play the episodes of an evaluation in the environment; return the success of each."""
        ...

    def improve(self, config: WmRlConfig, rows: Rows, run: Run) -> None:
        """Improve the policy, or go on where ``run`` stopped."""
        ...


class FlowImprover(Improver):
    """A flow policy of ours, whose weights are changed."""

    def __init__(self, recipe: WmRlRecipe, inputs: Mapping[str, str]) -> None:
        """Load the policy."""
        from ivideogpt.policies.vla.tiny_flow import TinyFlow

        self._config, self._inputs = recipe.rl, inputs
        self._network = self.policy = TinyFlow.from_pretrained(inputs["policy"])

    def measure(self) -> list[bool]:
        """See `Improver`."""
        from ivideogpt.envs.collector import MOST_STEPS
        from ivideogpt.wmrl.rollouts import evaluate_flow

        rows = real_rows(self._config, self.policy, min(self._config.evaluation_rows, self._config.evaluation_episodes))
        try:
            return evaluate_flow(self._network, rows, evaluation_seeds(self._config), horizon=MOST_STEPS)
        finally:
            rows.close()

    def improve(self, config: WmRlConfig, rows: Rows, run: Run) -> None:
        """See `Improver`."""
        from ivideogpt.commands.train_policy import read_instructed
        from ivideogpt.training.imitation import ChunkDataset
        from ivideogpt.wmrl.loop import improve_policy

        demonstrations = None
        if config.algorithm == "filtered_bc" and config.demo_share:
            demonstrations = ChunkDataset(*read_instructed(Path(self._inputs["demos"])), self._network.config)
        improve_policy(
            config,
            self._network,
            rows,
            run,
            demonstrations=demonstrations,
            evaluate=lambda _: sum(self.measure()) / config.evaluation_episodes,
        )


class ResidualImprover(Improver):
    """A correction of a policy that stays as it is: one of ours, of a run, or of a server."""

    def __init__(self, recipe: WmRlRecipe, inputs: Mapping[str, str], device: str) -> None:
        """Make the policy and draw the weights of its correction."""
        import torch

        from ivideogpt.commands.policy_choice import choose_policy
        from ivideogpt.core.run import choose_device
        from ivideogpt.evaluation.policy_trials import PolicyTrial
        from ivideogpt.policies.vla.residual import ResidualPolicy, new_residual_agent
        from ivideogpt.policies.vla.tiny_flow import policy_checkpoint
        from ivideogpt.wmrl.residual import ResidualAgent

        config, name = recipe.rl, inputs["policy"]
        self._config, self._copied = config, policy_checkpoint(Path(name))
        settings = residual_config(recipe, name, inputs.get("world"))
        choice = choose_policy(name, config.task, trials=1, image_size=settings.resolution)
        trial = PolicyTrial(task=config.task, seed=config.seed)
        base = choice.make(trial, settings.action_dim, settings.resolution)
        torch.manual_seed(config.seed)
        agent = new_residual_agent(settings).to(choose_device(device))
        self.policy = ResidualPolicy(settings, base, agent)
        self._agent = ResidualAgent(config, self.policy)

    def measure(self) -> list[bool]:
        """See `Improver`."""
        from ivideogpt.envs.collector import MOST_STEPS

        config, seeds, successes = self._config, evaluation_seeds(self._config), []
        count = max(n for n in range(1, min(config.evaluation_rows, len(seeds)) + 1) if len(seeds) % n == 0)
        rows = real_rows(config, self.policy, count)
        try:
            for first in range(0, len(seeds), count):
                started = rows.begin_at(seeds[first : first + count])
                _, success = self._agent.play(rows, started, seeds[first], noise=0.0, horizon=MOST_STEPS)
                successes += success.tolist()
        finally:
            rows.close()
        return successes

    def improve(self, config: WmRlConfig, rows: Rows, run: Run) -> None:
        """See `Improver`."""
        from ivideogpt.wmrl.residual import improve_residual

        improve_residual(
            config,
            self._agent,
            rows,
            run,
            base=self._copied,
            evaluate=lambda: sum(self.measure()) / config.evaluation_episodes,
        )


def residual_config(recipe: WmRlRecipe, name: str, world: str | None) -> ResidualConfig:
    """Return the settings of a correction of the policy that ``name`` means.

    Raises:
        UserError: there is no such policy, or environment and world model show pictures of different sizes.
    """
    from ivideogpt.commands.policy_choice import choose_policy
    from ivideogpt.envs.vector import environment_sizes
    from ivideogpt.policies.vla.residual import BASE, ResidualConfig
    from ivideogpt.policies.vla.tiny_flow import PolicySizes, policy_checkpoint, read_flow_config
    from ivideogpt.wmrl.residual import residual_agent_config
    from ivideogpt.worldmodel.world_model import WorldModel

    config, own = recipe.rl, policy_checkpoint(Path(name))
    if own is not None:
        base, sizes = BASE, read_flow_config(own)
    else:
        base = str(Path(name).absolute()) if Path(name).exists() else name
        settings = choose_policy(name, config.task, trials=1).settings
        width, side = environment_sizes(config.task, image_size=settings.image_size, **config.environment_options)
        sizes = PolicySizes(resolution=side, images=settings.frame_stack, action_dim=width)
        if config.imagination and world is not None:
            model = WorldModel.from_pretrained(world)
            space, side = model.config.action_space, settings.image_size or model.resolution
            sizes = replace(sizes, resolution=side, action_low=tuple(space.low), action_high=tuple(space.high))
    return ResidualConfig(
        resolution=sizes.resolution,
        images=sizes.images,
        action_dim=sizes.action_dim,
        action_low=sizes.action_low,
        action_high=sizes.action_high,
        base=base,
        scale=config.residual_scale,
        agent=residual_agent_config(config),
    )


def new_improver(recipe: WmRlRecipe, inputs: Mapping[str, str], device: str) -> Improver:
    """Make the improver for the recipe's algorithm."""
    if recipe.rl.algorithm == "residual_drq":
        return ResidualImprover(recipe, inputs, device)
    return FlowImprover(recipe, inputs)


def evaluation_seeds(config: WmRlConfig) -> list[int]:
    """Return the seeds of the episodes of an evaluation.

    In LIBERO they go round the tasks of a suite and round the start states from ``evaluation_seed`` on; all training is
    at the states before it.
    """
    first, count, tasks = config.evaluation_seed, config.evaluation_episodes, _libero_tasks(config.task)
    if not tasks:
        return list(range(first, first + count))
    first, states = first % LIBERO_START_STATES, LIBERO_START_STATES
    return [states * (n % tasks) + first + n // tasks % (states - first) for n in range(count)]


def training_seeds(config: WmRlConfig) -> Sequence[int]:
    """Return the seeds of episodes that a policy learns from in the environment; none is one of an evaluation."""
    first, tasks = config.evaluation_seed % LIBERO_START_STATES, _libero_tasks(config.task)
    if not tasks or not first:
        return range(10**6, 2 * 10**6)
    return [LIBERO_START_STATES * task + state for task in range(tasks) for state in range(first)]


def _libero_tasks(task: str) -> int:
    """Return the number of tasks of a suite of LIBERO, 1 for one of them, and 0 for other environments."""
    row = find_environment(task)
    return 0 if row is None or row[1].extra != "libero" else LIBERO_SUITES.get(row[0], 1)


def real_rows(config: WmRlConfig, policy: SizedPolicy, count: int, horizon: int | None = None) -> RealRows:
    """Make ``count`` environments of the task; episodes are cut after ``horizon`` steps."""
    from ivideogpt.wmrl.rollouts import RealRows

    seeds, options = training_seeds(config), config.environment_options
    return RealRows(config.task, policy, count=count, horizon=horizon, options=options, seeds=seeds)


def imagined_rows(
    config: WmRlConfig, policy: SizedPolicy, inputs: Mapping[str, str], run: Run
) -> tuple[Rows, HeldOutCheck]:
    """Load world model and classifier, check them on held-out recordings, and make rows of the imagination.

    Raises:
        UserError: they agree with too few recordings.
    """
    from ivideogpt.models.success_classifier import SuccessClassifier
    from ivideogpt.wmrl.loop import check_held_out
    from ivideogpt.wmrl.rollouts import ImaginedRows, InstructedStarts
    from ivideogpt.worldmodel.world_model import WorldModel

    model = WorldModel.from_pretrained(inputs["world"]).to(run.device).eval()
    classifier = SuccessClassifier.from_pretrained(inputs["classifier"]).to(run.device)
    print(classifier.summary(), file=sys.stderr)
    check = check_held_out(config, model, classifier, *_read_all(inputs["held_out"]))
    frames = max(model.context_frames, policy.config.images)
    starts = InstructedStarts(*_read_all(inputs["recordings"]), frames=frames, latest=config.latest_start)
    rows = ImaginedRows(
        model,
        starts,
        classifier,
        policy,
        count=config.prompts * config.group,
        horizon=min(config.horizon, check.trusted_steps),
        reanchor_every=config.reanchor_every,
    )
    return rows, check


def improve(
    recipe: WmRlRecipe, improver: Improver, inputs: Mapping[str, str], folder: Path, device: str
) -> tuple[HeldOutCheck | None, int]:
    """Improve a policy in the world model, or in the environment.

    Returns:
        The check of the world model, and the steps that the policy learned from, imagined or real.
    """
    from ivideogpt.core.run import Run

    config, check = recipe.rl, None
    run = Run(
        folder, seed=config.seed, device=device, log_every=config.log_every, save_every=config.save_every, keep_last=1
    )
    if config.imagination:
        rows, check = imagined_rows(config, improver.policy, inputs, run)
        config = replace(config, horizon=min(config.horizon, check.trusted_steps))
    else:
        rows = real_rows(config, improver.policy, config.prompts * config.group, config.horizon)
    improver.improve(config, rows, run)
    return check, rows.steps


def _read_all(data: str) -> tuple[list[Episode], list[str]]:
    """Read all episodes of a store or of the stores of a mixture file, and the instruction of each."""
    from ivideogpt.commands.training_stages import read_mixture
    from ivideogpt.data.store.reader import EpisodeStore

    stores = [EpisodeStore(source.path) for source in read_mixture(data).sources]
    rows = [(store, index) for store in stores for index in range(len(store))]
    return [store[index] for store, index in rows], [store.info(index)["text"] for store, index in rows]
