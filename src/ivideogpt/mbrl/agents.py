"""Agents of finished or stopped runs, as policies."""

from __future__ import annotations

from pathlib import Path

from ivideogpt.core.checkpoint import load_tensors, step_folders
from ivideogpt.core.config import from_dict, load_json
from ivideogpt.core.errors import UserError
from ivideogpt.core.training_state import unflatten
from ivideogpt.evaluation.policy_trials import PolicyTrial
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.run_reader import SETTINGS
from ivideogpt.policies.drqv2 import DrQv2


def agent_policy(trial: PolicyTrial, action_dim: int, *, run: Path, image: int) -> DrQv2:
    """Make the policy of a trial: the agent of a run.

    Args:
        trial: any.
        action_dim: numbers of an action of the environment.
        run: the folder.
        image: side of the pictures in pixels.
    """
    return load_agent(run, action_dim=action_dim, image=image)


def read_agent_config(run: Path) -> MbrlConfig:
    """Read the settings of a run.

    Raises:
        UserError: the folder is none of a run of reinforcement learning.
    """
    path = run / SETTINGS
    if not path.is_file():
        raise UserError(f"there is no run of reinforcement learning in {run}; give the folder of ivideogpt mbrl --run")
    tree = load_json(path)
    if "settings" not in tree:
        raise UserError(f"{run} holds another kind of run; give the folder of ivideogpt mbrl --run")
    return from_dict(MbrlConfig, tree["settings"], where=str(path))


def load_agent(run: Path, *, action_dim: int, image: int) -> DrQv2:
    """Load the agent of a run's newest checkpoint.

    Args:
        run: the folder.
        action_dim: numbers of an action of the environment.
        image: side of its pictures in pixels.

    Raises:
        UserError: there is no checkpoint, or the agent was trained for other actions or pictures.
    """
    config = read_agent_config(run)
    folders = [folder for _, folder in step_folders(run) if (folder / "training" / "state.json").is_file()]
    if not folders:
        raise UserError(f"the run {run} has no checkpoint yet; let it go on until its first")
    folder = folders[-1] / "training"
    state = unflatten(load_json(folder / "state.json")["parts"]["agent"], load_tensors(folder / "agent.safetensors"))
    agent = DrQv2(image, config.frame_stack, action_dim, config.agent)
    try:
        agent.load_state_dict(state["weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the agent of {run} was trained in {config.task} and does not fit actions of {action_dim} numbers and "
            f"pictures of {image} pixels ({reason}); give its own environment"
        ) from error
    return agent.eval()
