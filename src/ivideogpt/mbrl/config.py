"""Every setting of a run of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.imagined_episodes import ImaginationConfig
from ivideogpt.mbrl.official_bugs import named_compat
from ivideogpt.mbrl.world_model_source import WorldConfig
from ivideogpt.policies.drqv2 import AgentConfig


@dataclass(frozen=True, kw_only=True)
class MbrlConfig:
    """A run. A step is an action of one environment; a frame a step of its simulator.

    Attributes:
        task: name of the environment: "pusht", "reacher", "metaworld/plate-slide", or an id that gymnasium knows.
        environment: options of the environment.
        action_repeat: simulator frames a step takes; only for counting, the environment does it.
        frames: simulator frames of the run, those at random included.
        random_frames: of them at the start, with actions at random.
        stack: frames of an observation.
        environments: stepped together.
        workers: each in a process of its own.
        demos: episodes shown before the start, of what was recorded; -1: all there are.
        demo_folder: an episode store, or a folder of official .npz files; None: scripted ones are recorded.
        capacity: transitions of the replay buffer, 12 KB each at 64 px, in memory.
        imagine: False: without a world model, on real transitions alone.
        compat: mistakes of the official code, see ``Compat``: "none" or "official".
        agent, world_model, imagination: settings of these.
        evaluate_every: frames between two evaluations; there is one at the start and one at the end.
        evaluation_episodes: of each.
        save_every: steps between two checkpoints.
        log_every: steps between two lines of figures.
        seed: of everything.
    """

    task: str = "metaworld/plate-slide"
    environment: dict[str, Any] = field(default_factory=dict)
    action_repeat: int = 2
    frames: int = 100_002
    random_frames: int = 4_000
    stack: int = 3
    environments: int = 1
    workers: bool = False
    demos: int = 0
    demo_folder: str | None = None
    capacity: int = 1_000_000
    imagine: bool = True
    compat: str = "none"
    agent: AgentConfig = field(default_factory=AgentConfig)
    world_model: WorldConfig = field(default_factory=WorldConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    evaluate_every: int = 2_000
    evaluation_episodes: int = 20
    save_every: int = 5_000
    log_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, action_repeat=1, frames=1, random_frames=0, stack=1, environments=1, demos=-1, capacity=1)
        check_at_least(self, evaluate_every=1, evaluation_episodes=1, save_every=1, log_every=1, seed=0)
        named_compat(self.compat)
        if self.random_frames >= self.frames:
            raise UserError(
                f"random_frames is {self.random_frames} of {self.frames} frames; nothing would ever be learned: "
                "give fewer, or more frames"
            )
        if self.imagine and self.world_model.checkpoint is None and self.world_model.scratch.tokenizer.steps < 1:
            raise UserError("a new world model needs settings in world_model.scratch")

    @property
    def method(self) -> str:
        """What is done: "mbpo" or "model-free"."""
        return "mbpo" if self.imagine else "model-free"

    @property
    def updates(self) -> int:
        """Of the agent a step."""
        return (self.imagine and self.imagination.updates) or self.agent.updates

    @property
    def steps(self) -> int:
        """Of all environments together."""
        return -(-self.frames // self.action_repeat)

    @property
    def random_steps(self) -> int:
        """Of all environments together."""
        return -(-self.random_frames // self.action_repeat)
