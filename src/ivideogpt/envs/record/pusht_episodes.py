"""Recording of PushT episodes: scripted mouse drags, a person's far targets and jumps, or pushes to the goal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.pusht_person import PersonPolicy
from ivideogpt.policies.pusht_goal import PushToGoalScript
from ivideogpt.policies.scripted import DragScript, Script

#: PushT episodes from this seed on are held out.
FIRST_TEST_SEED = 10_000
FRAMES_A_SECOND = 10.0
PUSHT_URL = "https://github.com/huggingface/gym-pusht"

PushTBehaviour = Literal["drag", "person", "mixed", "goal"]
# px of 512: one of these is the noise on the targets of an episode that pushes to the goal.
_GOAL_NOISE = (0.0, 0.0, 4.0, 12.0)
# Each script, and the number that separates its random draws from those of the others.
_SCRIPTS: Mapping[str, tuple[int, Callable[[np.random.Generator], Script]]] = {
    "drag": (1, DragScript),
    "person": (2, PersonPolicy),
    "goal": (3, lambda random: PushToGoalScript(random, noise=random.choice(_GOAL_NOISE))),
}


@dataclass(frozen=True, kw_only=True)
class PushTRecording:
    """Settings of recorded PushT episodes.

    Attributes:
        length: frames of an episode, at 10 a second.
        shard: episodes of a file.
        behaviour: "drag" moves the target at a speed; "person" jumps to far targets and holds them; "mixed" is
            "drag" for even seeds and "person" for odd ones; "goal" pushes the block to its goal, in half of the
            episodes with noise on the targets (give --length 200).
    """

    length: int = 48
    shard: int = 100
    behaviour: PushTBehaviour = "drag"


def collect_pusht(seeds: Iterable[int], length: int = 48, behaviour: PushTBehaviour = "drag") -> Iterator[Episode]:
    """Record one PushT episode a seed; the same seed gives the same episode.

    Args:
        seeds: of the start and the behaviour; from ``FIRST_TEST_SEED`` on the split is "test".
        length: frames an episode, at 10 a second.
        behaviour: see `PushTRecording`.

    Yields:
        Episodes with frames ``[length 64 64 3]``, actions ``[length 2]`` in px (raw target positions, 0 to 512),
        rewards, terminated (never true: episodes run on after a success) and state ``[length 5]``.
    """
    from ivideogpt.envs.pusht import PushT, normalised_action

    environment = PushT(terminate_on_success=False)
    for seed in seeds:
        name = behaviour if behaviour in _SCRIPTS else ("drag", "person")[seed % 2]
        stream, new_script = _SCRIPTS[name]
        script = new_script(np.random.default_rng([seed, stream]))
        frame, info = environment.reset(seed=seed)
        frames, states = [frame], [info["state"]]
        actions, rewards = np.zeros((length, 2), np.float32), np.zeros(length, np.float32)
        contacts, success = 0, False
        for step in range(length - 1):
            actions[step] = script(info["state"])
            frame, rewards[step], _, _, info = environment.step(normalised_action(actions[step]))
            frames.append(frame)
            states.append(info["state"])
            contacts += info["n_contacts"] > 0
            success = success or info["is_success"]
        yield Episode(
            frames=np.stack(frames),
            actions=actions,
            rewards=rewards,
            terminated=np.zeros(length, bool),
            state=np.stack(states),
            key=f"pusht_{seed:08d}" if name == "drag" else f"pusht-{name}_{seed:08d}",
            split="test" if seed >= FIRST_TEST_SEED else "train",
            meta={
                "environment": "ivideogpt/PushT-v0",
                "seed": int(seed),
                "contact_steps": int(contacts),
                "success": success,
            },
        )


def collect_pusht_store(
    seeds: str,
    out: Path,
    shard: int = 100,
    length: int = 48,
    workers: int | None = None,
    behaviour: PushTBehaviour = "drag",
) -> None:
    """Record PushT episodes into an episode store; finished shards are kept, so the command resumes.

    Args:
        seeds: "first:stop", one episode a seed, stop excluded; seeds from 10000 on are held out.
        out: folder of the store.
        shard: episodes a file.
        length: frames an episode, at 10 a second.
        workers: processes; 0: this one; default: one for each processor.
        behaviour: see `PushTRecording`.

    Raises:
        UserError: seeds is not "first:stop", or shard or length is too small.
    """
    first, stop = parse_seeds(seeds)
    if shard < 1 or length < 2:
        raise UserError(f"shard is {shard} and length is {length}; expected at least 1 and 2")
    blocks = [range(start, min(start + shard, stop)) for start in range(first, stop, shard)]
    tasks = [
        ShardTask(f"pusht-{block.start:08d}-{block.stop:08d}", partial(_recorded, block, length, behaviour))
        for block in blocks
    ]
    options = {"length": length, "shard": shard} | ({} if behaviour == "drag" else {"behaviour": behaviour})
    facts = StoreFacts(name="pusht", url=PUSHT_URL, licence="MIT", options=options)
    convert_to_store(tasks, out, facts=facts, workers=workers)


def _recorded(seeds: range, length: int, behaviour: PushTBehaviour) -> Iterator[SourceEpisode]:
    for episode in collect_pusht(seeds, length, behaviour):
        yield SourceEpisode(
            key=episode.key,
            split=episode.split,
            cameras={"image": episode.frames},
            actions=episode.actions,
            action_fields=(ActionField(name="x", size=1), ActionField(name="y", size=1)),
            rewards=episode.rewards,
            terminated=episode.terminated,
            state=episode.state,
            fps=FRAMES_A_SECOND,
            meta=episode.meta,
        )


def parse_seeds(seeds: str) -> tuple[int, int]:
    """Read "first:stop".

    Raises:
        UserError: it is something else.
    """
    try:
        first, stop = (int(part) for part in seeds.split(":"))
    except ValueError:
        raise UserError(f"seeds is {seeds!r}; expected first:stop, for example 0:3000") from None
    if not 0 <= first < stop:
        raise UserError(f"seeds is {seeds!r}; expected 0 <= first < stop")
    return first, stop
