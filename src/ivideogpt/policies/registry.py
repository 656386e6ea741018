"""Policies by name. A new policy is one file and one row of ``POLICIES``."""

from __future__ import annotations

import importlib
from typing import Any

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy

#: Name of a policy to "module:class"; the module is imported when the policy is made.
POLICIES: dict[str, str] = {
    "random": "ivideogpt.policies.random:RandomPolicy",
    "pusht-drag": "ivideogpt.policies.scripted:DragPolicy",
    "pusht-goal": "ivideogpt.policies.pusht_goal:PushToGoalPolicy",
    "reacher-script": "ivideogpt.policies.scripted:ReacherPolicy",
    "toy-push-script": "ivideogpt.policies.scripted:ToyPushPolicy",
    "metaworld-script": "ivideogpt.policies.scripted:MetaWorldPolicy",
    "drqv2": "ivideogpt.policies.drqv2:DrQv2",
    "lerobot": "ivideogpt.policies.vla.lerobot:LeRobotPolicy",
    "openpi": "ivideogpt.policies.vla.openpi:OpenPIPolicy",
    "planner": "ivideogpt.planning.planner:Planner",
}


def make_policy(name: str, **options: Any) -> Policy:
    """Make a policy by its name.

    Args:
        name: a key of ``POLICIES``.
        **options: arguments of its class.

    Raises:
        UserError: the name is unknown, or the class does not take the options.
        MissingExtraError: a package that the policy needs is not installed.
    """
    if name not in POLICIES:
        raise UserError(f"there is no policy {name!r}; {suggestion(name, POLICIES)}")
    module, _, attribute = POLICIES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(**options)
    except TypeError as error:
        raise UserError(f"policy {name} does not take the options {sorted(options)} ({error})") from error
