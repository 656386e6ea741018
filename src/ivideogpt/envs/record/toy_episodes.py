"""Recording of toy push: a script, with noise and random stretches, and instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import in_groups
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED
from ivideogpt.policies.scripted import ToyPushScript

_EPISODES_A_SHARD = 100


@dataclass(frozen=True, kw_only=True)
class ToyRecording:
    """Settings of recorded episodes of toy push.

    Attributes:
        length: frames of an episode; it runs on after success, so that all have one length.
        size: side of a frame in pixels.
        noise: largest standard deviation of what is added to the actions; each episode draws its own up to this.
        random_share: largest share of steps in a random direction, drawn for each episode too.
        other_share: of the episodes in which the script does another task than the instruction says; a world model and
            a classifier need to see such failures.
    """

    length: int = 21
    size: int = 32
    noise: float = 0.0
    random_share: float = 0.0
    other_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, length=2, noise=0, random_share=0, other_share=0)
        for name in ("random_share", "other_share"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at most 1")


def record_toy(seeds: Sequence[int], recording: ToyRecording) -> Iterator[SourceEpisode]:
    """Record one episode a seed; the same seed and recording give the same episode.

    Args:
        seeds: of the start and the script; from ``FIRST_TEST_SEED`` on the split is "test".
        recording: the settings.

    Yields:
        Episodes with actions ``[t 2]``, rewards, the state ``[t 8]`` and the instruction. ``terminated`` is True at the
        first success.
    """
    from ivideogpt.envs.toys import ToyPush

    environment = ToyPush(size=recording.size, steps=recording.length, terminate=False)
    for seed in seeds:
        random = np.random.default_rng([seed, 1])
        noise, share = recording.noise * random.random(), recording.random_share * random.random()
        script = ToyPushScript(random, noise=noise, random_share=share)
        is_other, other = random.random() < recording.other_share, random.integers((2, 4))
        frame, info = environment.reset(seed=seed)
        frames, states = [frame], [info["state"]]
        actions, rewards = np.zeros((recording.length, 2), np.float32), np.zeros(recording.length, np.float32)
        for step in range(recording.length - 1):
            state = info["state"]
            actions[step] = script(np.concatenate([state[:-2], other]) if is_other else state)
            frame, rewards[step], _, _, info = environment.step(actions[step])
            frames.append(frame)
            states.append(info["state"])
        terminated = (rewards > 0) & (np.cumsum(rewards > 0) == 1)
        yield SourceEpisode(
            key=f"toy-push_{seed:08d}",
            split="test" if seed >= FIRST_TEST_SEED else "train",
            cameras={"image": np.stack(frames)},
            actions=actions,
            action_fields=(ActionField(name="x", size=1), ActionField(name="y", size=1)),
            rewards=rewards,
            terminated=terminated,
            state=np.stack(states).astype(np.float32),
            text=environment.instruction,
            fps=float(environment.metadata["render_fps"]),
            meta={
                "task": "toy-push",
                "seed": int(seed),
                "noise": noise,
                "success": bool(terminated.any()),
                "return": float(rewards.sum()),
            },
        )


def collect_toy(seeds: Sequence[int], out: str | Path, recording: ToyRecording, workers: int | None = None) -> None:
    """Record episodes into the store ``out``; the same call again resumes a stopped one.

    Args:
        seeds: one episode each.
        out: a new or empty folder, or that of an earlier call with the same ``recording``.
        recording: the settings.
        workers: processes; 0: this one; None: one for each processor.

    Raises:
        UserError: a number is out of range, or the folder cannot be written or holds something else.
    """
    shards = [
        ShardTask(
            name=f"toy-push-{group[0]:08d}-{group[-1] + 1:08d}",
            read=partial(record_toy, seeds=tuple(group), recording=recording),
        )
        for group in in_groups(seeds, _EPISODES_A_SHARD)
    ]
    facts = StoreFacts(name="toy-push", licence="MIT", options=asdict(recording))
    convert_to_store(shards, out, facts=facts, workers=workers)
