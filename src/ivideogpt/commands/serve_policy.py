"""``ivideogpt serve-policy``: a policy for other programs, by the openpi protocol."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import canonical_name

if TYPE_CHECKING:
    from ivideogpt.commands.policy_choice import PolicyChoice
    from ivideogpt.core.protocols import Policy


def serve_policy(
    policy: Annotated[str, tyro.conf.Positional],
    *,
    environment: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    demos: Path | None = None,
    image_size: int | None = None,
) -> int:
    """Serve a policy by the openpi websocket protocol, which openpi's clients and `evaluate-policy` speak.

    Clients send `observation/image` (uint8), `observation/state` and `prompt`, and get `actions` in -1 to 1. Each
    connection is an episode. With the environment variable OPENPI_API_KEY set, clients must send that key.

    Args:
        policy: as for `ivideogpt evaluate-policy`: random, a script, the folder of an agent, ...
        environment: that the policy is for, such as pusht.
        port: to listen on; 0: any free one.
        host: address to listen on; any other than 127.0.0.1 admits other machines.
        demos: for replay: an episode store.
        image_size: side that pictures are resized to for the policy.

    Returns:
        0, after Ctrl-C.
    """
    from ivideogpt.commands.policy_choice import choose_policy
    from ivideogpt.commands.policy_runs import check_policy
    from ivideogpt.evaluation.policy_trials import PolicyTrial
    from ivideogpt.policies.vla.openpi import API_KEY
    from ivideogpt.policies.vla.openpi_server import PolicyServer

    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; expected 0 to 65535")
    name = canonical_name(environment)
    choice = choose_policy(policy, name, trials=1, demos=demos, image_size=image_size)
    trial = choice.trials[0] if choice.trials else PolicyTrial(task=name, seed=0)
    action_dim, image = check_policy(choice, trial)  # an error shows here, not at the first connection
    server = PolicyServer(
        partial(_served, choice, name, action_dim, image),
        metadata={"policy": policy, "environment": name, "action_dim": action_dim, "image_size": image},
        image_size=image,
        frame_stack=choice.settings.frame_stack,
        host=host,
        port=port,
        api_key=os.environ.get(API_KEY) or None,
    )
    print(f"{policy} for {name} at ws://{host}:{server.port}", flush=True)
    print("Ctrl-C ends it", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        server.shutdown()
    return 0


def _served(choice: PolicyChoice, name: str, action_dim: int, image: int, seed: int) -> Policy:
    from ivideogpt.evaluation.policy_trials import PolicyTrial

    trial = choice.trials[seed % len(choice.trials)] if choice.trials else PolicyTrial(task=name, seed=seed)
    return choice.make(trial, action_dim, image)
