"""``ivideogpt plan goals``: record goals of a planning benchmark into a file in VP2's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ivideogpt.commands.inputs import check_numbers
from ivideogpt.commands.output import print_json
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.errors import UserError


def plan_goals(
    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")],
    *,
    out: Path,
    instances: int = 30,
    first_seed: int = 0,
) -> None:
    """Record goals of a planning benchmark with the script of its task, into a file in VP2's layout.

    Args:
        preset: robodesk/TASK or robosuite/push.
        out: file to write, such as goals.hdf5.
        instances: goals.
        first_seed: of the first episode; seeds whose script misses the goal are left out.
    """
    from ivideogpt.planning.config import VP2Planning
    from ivideogpt.planning.vp2_benchmark import VP2Benchmark
    from ivideogpt.planning.vp2_goals import record_goals, write_goals

    settings = find_preset(preset, "planning")
    if not isinstance(settings, VP2Planning):
        raise UserError(
            f"{preset} has no goal files; expected robosuite/push, or a task of RoboDesk: robodesk/push_red"
        )
    check_numbers(instances=(instances, 1, 100_000), first_seed=(first_seed, 0, 2**31))
    if out.exists():
        raise UserError(f"'{out}' exists; give another --out, or remove it")
    environment = VP2Benchmark(settings).environment
    episodes = []
    for episode in record_goals(environment, first_seed, all_frames=True):
        episodes.append(episode)
        print(f"goal {len(episodes)}/{instances}: {len(episode.states) - 1} steps", flush=True)
        if len(episodes) == instances:
            break
    write_goals(out, episodes, environment.cameras[0])
    print_json({"goals": len(episodes), "out": out})
