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


def agent_policy(trial: PolicyTrial, action_dim: int, image: int, *, run: Path, checkpoint: Path) -> DrQv2:
    """Make the policy of any trial: the agent of a run; see `load_agent`."""
    return load_agent(run, checkpoint, action_dim=action_dim, image=image)


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


def newest_checkpoint(run: Path) -> Path:
    """Return the folder of a run's newest checkpoint.

    Raises:
        UserError: there is none.
    """
    folders = [folder for _, folder in step_folders(run) if (folder / "training" / "state.json").is_file()]
    if not folders:
        raise UserError(f"the run {run} has no checkpoint yet; let it go on until its first")
    return folders[-1]


def load_agent(run: Path, checkpoint: Path, *, action_dim: int, image: int) -> DrQv2:
    """Load the agent of a run.

    Args:
        run: the folder.
        checkpoint: the folder of one of its checkpoints.
        action_dim: numbers of an action of the environment.
        image: side of its pictures in pixels.

    Raises:
        UserError: the checkpoint is gone or damaged, or the agent was trained for other actions or pictures.
    """
    config, folder = read_agent_config(run), checkpoint / "training"
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
