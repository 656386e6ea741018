"""Policies as they are named on the command line.

random                              a policy of the registry
pusht-goal:noise=20                 with options, as key=value,key=value
planner:world=pusht-64,horizon=10    a search for reward in a world model
replay                              the actions of demonstrations
ws://HOST:PORT                      a policy server of the openpi protocol
runs/agent                          the folder of an agent, a flow policy or a corrected policy, or one of its
                                    checkpoints/step-...
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.core.protocols import Policy
    from ivideogpt.evaluation.policy_trials import PolicyMaker, PolicyTrial, TrialSettings
    from ivideogpt.worldmodel.world_model import WorldModel

#: Policies that are made in other ways than by their name and options alone.
_NO_SCRIPTS = ("random", "drqv2", "planner", "openpi")


@dataclass(frozen=True)
class PolicyChoice:
    """A policy for the trials of an environment.

    Attributes:
        label: short name, for folders and tables.
        make: makes the policy of a trial.
        settings: what the policy sees.
        facts: which checkpoint it is of, if any.
        trials: those that the policy needs; None: any.
    """

    label: str
    make: PolicyMaker
    settings: TrialSettings
    facts: Mapping[str, str] = field(default_factory=dict)
    trials: list[PolicyTrial] | None = None


def choose_policy(
    text: str, name: str, *, trials: int, demos: Path | None = None, image_size: int | None = None
) -> PolicyChoice:
    """Return the policy that ``text`` means.

    Args:
        text: see the head of this file.
        name: of the environment.
        trials: of each task, for a replay of demonstrations.
        demos: their store.
        image_size: side that pictures are resized to.

    Raises:
        UserError: there is no such policy, its options are wrong, or its checkpoint is missing.
    """
    from ivideogpt.evaluation.policy_trials import TrialSettings, random_policy, tasks_of
    from ivideogpt.policies.registry import POLICIES

    settings = TrialSettings(image_size=image_size)
    if text == "replay":
        return _replay(name, demos, settings, trials)
    if demos is not None:
        raise UserError(f"demos is for the policy replay, and the policy is {text!r}; leave it out")
    if text == "random":
        return PolicyChoice(text, random_policy, settings)
    if text.startswith(("ws://", "wss://")):
        from ivideogpt.policies.vla.openpi import parse_address

        address, _ = parse_address(text)
        label = address.partition("//")[2].replace(":", "-").replace("/", "-")
        return PolicyChoice(label, partial(_remote, text), settings)
    key, colon, options = text.partition(":")
    label = re.sub(r"[^\w.+-]+", "-", text.replace("=", ""))
    if key == "planner":
        return PolicyChoice(label, partial(_planner, _planner_options(options, text)), settings)
    scripts = [other for other in POLICIES if other not in _NO_SCRIPTS]
    if key in scripts:
        values = _policy_options(options, text) if colon else {}
        if key.startswith("metaworld"):
            values = {"task": tasks_of(name)[0].partition("/")[2]} | values
        return PolicyChoice(label, partial(_scripted, key, values), settings)
    if Path(text).is_dir():
        for kind in FOLDER_POLICIES:
            if (choice := kind(Path(text), name, settings)) is not None:
                return choice
    expected = ", ".join(sorted([*scripts, "random", "replay"]))
    raise UserError(
        f"there is no policy {text!r}; expected one of {expected}, the folder of a run of ivideogpt "
        "train-policy, wm-rl or mbrl, or the address ws://HOST:PORT of a policy server"
    )


def _replay(name: str, demos: Path | None, settings: TrialSettings, trials: int) -> PolicyChoice:
    from ivideogpt.evaluation.policy_trials import TrialSettings, replay_policy, replay_trials

    episodes = read_demos(name, demos)
    chosen = replay_trials(name, episodes, per_task=trials)
    numbers = [trial.episode for trial in chosen if trial.episode is not None]
    actions = {number: episodes[number].actions[:-1] for number in numbers}
    control_modes = {episodes[number].meta.get("control_mode") for number in numbers} - {None}
    options = {"control_mode": control_modes.pop()} if len(control_modes) == 1 else {}
    settings = TrialSettings(image_size=settings.image_size, environment_options=options)
    return PolicyChoice("replay", partial(replay_policy, actions=actions), settings, trials=chosen)


def _flow(folder: Path, name: str, settings: TrialSettings) -> PolicyChoice | None:
    """Return the flow policy of a run of imitation or improvement, or of one of its checkpoints."""
    from ivideogpt.evaluation.policy_trials import TrialSettings
    from ivideogpt.policies.vla.tiny_flow import policy_checkpoint, read_flow_config

    checkpoint = policy_checkpoint(folder)
    if checkpoint is None:
        return None
    config = read_flow_config(checkpoint)
    settings = TrialSettings(frame_stack=config.images, image_size=config.resolution)
    facts = {"checkpoint": checkpoint.name}
    return PolicyChoice(_label(folder, checkpoint), partial(_flow_policy, checkpoint), settings, facts)


def _flow_policy(folder: Path, trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    from ivideogpt.policies.vla.tiny_flow import FlowPolicy, TinyFlow

    network = TinyFlow.from_pretrained(folder)
    if network.config.action_dim != action_dim:
        raise UserError(
            f"{folder} gives actions of {network.config.action_dim} numbers and {trial.task} takes {action_dim}; "
            "give its own environment"
        )
    return FlowPolicy(network)


def _residual(folder: Path, name: str, settings: TrialSettings) -> PolicyChoice | None:
    """Return the corrected policy of a run of improvement, or of one of its checkpoints."""
    from ivideogpt.evaluation.policy_trials import TrialSettings
    from ivideogpt.policies.vla.residual import BASE, read_residual, residual_checkpoint

    checkpoint = residual_checkpoint(folder)
    if checkpoint is None:
        return None
    config, _ = read_residual(checkpoint)
    base = str(checkpoint / BASE) if config.base == BASE else config.base
    choice = choose_policy(base, name, trials=1, image_size=config.resolution)
    settings = TrialSettings(
        frame_stack=config.images,
        image_size=config.resolution,
        environment_options=choice.settings.environment_options,
    )
    facts = {"checkpoint": checkpoint.name, "frozen": config.base}
    return PolicyChoice(_label(folder, checkpoint), partial(_corrected, checkpoint, choice.make), settings, facts)


def _corrected(folder: Path, make_base: PolicyMaker, trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    from ivideogpt.policies.vla.residual import ResidualPolicy, read_residual

    config, agent = read_residual(folder)
    if config.action_dim != action_dim:
        raise UserError(
            f"{folder} corrects actions of {config.action_dim} numbers and {trial.task} takes {action_dim}; give its "
            "own environment"
        )
    return ResidualPolicy(config, make_base(trial, action_dim, image), agent)


def _label(folder: Path, checkpoint: Path) -> str:
    """Return the label of a policy in a run, or in the folder of a checkpoint."""
    return folder.name if checkpoint != folder else f"{folder.parents[1].name}-{folder.name}"


def _agent(folder: Path, name: str, settings: TrialSettings) -> PolicyChoice | None:
    """Return the agent of a run of reinforcement learning, or of one of its checkpoints."""
    from ivideogpt.envs.registry import find_environment
    from ivideogpt.evaluation.policy_trials import TrialSettings
    from ivideogpt.mbrl.agents import agent_policy, newest_checkpoint, read_agent_config

    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    config = read_agent_config(run)
    checkpoint = newest_checkpoint(run) if run == folder else folder
    own, this = find_environment(config.task), find_environment(name)
    is_same = own is not None and this is not None and own[1].id == this[1].id
    settings = TrialSettings(
        frame_stack=config.frame_stack,
        image_size=settings.image_size or config.image_size,
        environment_options=dict(config.environment_options) if is_same else {},
    )
    # Results of an agent that has learned on since are those of another policy.
    make = partial(agent_policy, run=run, checkpoint=checkpoint)
    label = run.name if run == folder else f"{run.name}-{checkpoint.name}"
    return PolicyChoice(label, make, settings, {"checkpoint": checkpoint.name})


#: Kinds of folders with a policy: each returns the policy of a folder, or None where the folder is of another kind. The
#: last one says what is wrong.
FOLDER_POLICIES: list[Callable[[Path, str, TrialSettings], PolicyChoice | None]] = [_flow, _residual, _agent]


def read_demos(name: str, demos: Path | None) -> list[Any]:
    """Read the demonstrations of an environment from a store.

    Raises:
        UserError: there is no store, or episodes have no actions.
    """
    from ivideogpt.data.episode_files import is_store
    from ivideogpt.mbrl.demonstrations import demonstration_folder, read_stored

    folder = demonstration_folder(name) if demos is None else demos
    if not is_store(folder):
        raise UserError(f"{folder} is no episode store; give demonstrations of {name} with --demos STORE")
    episodes = list(read_stored(folder))
    if any(episode.actions is None for episode in episodes):
        raise UserError(f"{folder} holds episodes without actions; give demonstrations with actions")
    return episodes


def _scripted(policy: str, options: Mapping[str, Any], trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    from ivideogpt.policies.registry import make_policy

    return make_policy(policy, **options)


def _remote(address: str, trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    from ivideogpt.policies.vla.openpi import OpenPIPolicy

    return OpenPIPolicy(address)


@dataclass(frozen=True, kw_only=True)
class _PlannerOptions:
    """Options of a planner: the world model, steps ahead and between searches, and the size of a search."""

    world: str
    horizon: int = 10
    replan: int = 2
    candidates: int = 32
    iterations: int = 2
    noise: float = 0.5


def _planner_options(options: str, text: str) -> _PlannerOptions:
    from ivideogpt.core.config import from_dict
    from ivideogpt.worldmodel.world_model import WorldModel

    values = from_dict(_PlannerOptions, _policy_options(options, text) if options else {}, where=f"the policy {text!r}")
    WorldModel.from_pretrained(values.world)  # an error shows here, not in another process
    return values


def _planner(options: _PlannerOptions, trial: PolicyTrial, action_dim: int, image: int) -> Policy:
    """Make a planner that maximises the reward that the world model predicts."""
    import numpy as np
    import torch

    from ivideogpt.planning.models import ImaginedFutures
    from ivideogpt.planning.objectives import make_objective
    from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig
    from ivideogpt.planning.planner import Planner, PlannerConfig

    model = _world_model(options.world)
    if (model.resolution, model.action_dim) != (image, action_dim):
        raise UserError(
            f"{options.world} has frames of {model.resolution} px and actions of {model.action_dim} numbers; "
            f"{trial.task} shows {image} px and takes {action_dim}: give a world model of it"
        )
    space = model.config.action_space
    ends = (torch.tensor(space.low), torch.tensor(space.high)) if space.low else None
    settings = PlannerConfig(
        horizon=options.horizon,
        replan_every=options.replan,
        optimizer=OptimizerConfig(
            candidates=options.candidates, iterations=options.iterations, elites=max(options.candidates // 8, 1)
        ),
        noise=ActionNoise(std=(options.noise,) * action_dim),
    )
    futures = ImaginedFutures(model, raw_actions=True, raw_range=ends, seed=trial.seed)
    no_goal = [np.zeros((image, image, 3), np.uint8)]  # the reward reads none
    return Planner(futures, make_objective({"reward": 1.0}, model), settings, goals=no_goal)


@functools.lru_cache(maxsize=1)
def _world_model(checkpoint: str) -> WorldModel:
    from ivideogpt.worldmodel.world_model import WorldModel

    return WorldModel.from_pretrained(checkpoint)


def _policy_options(text: str, policy: str) -> dict[str, Any]:
    """Read ``key=value,key=value``; values are JSON, or words."""
    options: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(f"the policy is {policy!r}; expected options such as pusht-goal:noise=20")
        try:
            options[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[key.replace("-", "_")] = value
    return options
