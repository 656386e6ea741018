"""Settings of a run of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import canonical_name, find_environment
from ivideogpt.mbrl.imagined_episodes import ImaginationConfig
from ivideogpt.mbrl.world_model_source import WorldModelTraining
from ivideogpt.policies.drqv2 import AgentConfig
from ivideogpt.training.tokenizer import check_code_steps


@dataclass(frozen=True, kw_only=True)
class MbrlConfig:
    """Settings of a run. A step is one action in one environment; a frame is one step of its simulator.

    Attributes:
        task: name of the environment, see ``ivideogpt.envs.registry``.
        environment_options: arguments of the environment.
        action_repeat: frames of a step. The environment repeats the action; this number converts steps to frames.
        total_env_steps: of all environments together, random ones included.
        random_steps: steps with random actions at the start.
        image_size: side that frames are resized to; None: as the environment shows them.
        frame_stack: frames of an observation.
        num_envs: environments stepped together.
        env_processes: run each environment in a process of its own.
        num_demos: demonstrations in the replay buffer at the start; -1: all there are.
        demo_folder: an episode store, or a folder of official .npz files; None: scripted ones are recorded.
        demonstration_share: share of the real transitions of a batch that is drawn from the demonstrations alone.
        demonstration_updates: updates of the agent on demonstrations before the first step.
        replay_capacity: transitions, 12 KB each at 64 px, in memory.
        agent_updates_per_step: updates of the agent for each step.
        use_world_model: False: plain DrQ-v2 on real transitions.
        agent, world_model, imagination: their settings.
        evaluate_every_steps: between two evaluations; there is one at the start and one at the end.
        evaluation_episodes: of each evaluation.
        save_every_steps: between two checkpoints.
        log_every_steps: between two lines of metrics.
        cpu_threads: of PyTorch, set by the command; 0: PyTorch's own choice.
        seed: of all random numbers.
    """

    task: str = "metaworld/plate-slide"
    environment_options: dict[str, Any] = field(default_factory=dict)
    action_repeat: int = 2
    total_env_steps: int = 50_001
    random_steps: int = 2_000
    image_size: int | None = None
    frame_stack: int = 3
    num_envs: int = 1
    env_processes: bool = False
    num_demos: int = 0
    demo_folder: str | None = None
    demonstration_share: float = 0.0
    demonstration_updates: int = 0
    replay_capacity: int = 1_000_000
    agent_updates_per_step: int = 2
    use_world_model: bool = True
    agent: AgentConfig = field(default_factory=AgentConfig)
    world_model: WorldModelTraining = field(default_factory=WorldModelTraining)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    evaluate_every_steps: int = 1_000
    evaluation_episodes: int = 20
    save_every_steps: int = 5_000
    log_every_steps: int = 100
    cpu_threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the range of every number."""
        check_at_least(self, action_repeat=1, total_env_steps=1, random_steps=0, frame_stack=1, num_envs=1)
        check_at_least(self, num_demos=-1, replay_capacity=1, agent_updates_per_step=0, evaluate_every_steps=1)
        check_at_least(self, demonstration_updates=0)
        if self.image_size is not None:
            check_at_least(self, image_size=1)
        if not 0 <= self.demonstration_share <= 1:
            raise UserError(f"demonstration_share is {self.demonstration_share}; expected 0 to 1")
        if not self.num_demos and (self.demonstration_share or self.demonstration_updates or self.agent.cloning_weight):
            raise UserError(
                "demonstration_share, demonstration_updates and agent.cloning_weight need demonstrations: demo=true"
            )
        check_at_least(self, evaluation_episodes=1, save_every_steps=1, log_every_steps=1, cpu_threads=0, seed=0)
        if self.random_steps >= self.total_env_steps:
            raise UserError(
                f"random_steps is {self.random_steps} of {self.total_env_steps} steps; nothing would ever be learned: "
                "give fewer, or a longer run"
            )
        if self.use_world_model and self.world_model.checkpoint is None:
            check_code_steps(self.world_model.scratch.tokenizer)

    @property
    def method(self) -> str:
        """Name of the method: "mbpo" or "model-free"."""
        return "mbpo" if self.use_world_model else "model-free"

    @property
    def updates_per_step(self) -> int:
        """Updates of the agent for each step; imagination can ask for more."""
        return (self.use_world_model and self.imagination.agent_updates_per_step) or self.agent_updates_per_step

    def for_task(self, task: str) -> MbrlConfig:
        """Return the same settings for another environment.

        Options of the environment are kept where both tasks are of one kind, such as two tasks of Meta-World. Another
        environment begins without options, a step of it is one frame, and its frames are resized for a new world model.

        Args:
            task: as people write it, see ``ivideogpt.envs.registry``.

        Raises:
            UserError: there is no such environment.
        """
        task = canonical_name(task)
        before, after = find_environment(self.task), find_environment(task)
        if task == self.task or (before and after and before[1].id == after[1].id):
            return replace(self, task=task)
        is_new_model = self.use_world_model and self.world_model.checkpoint is None
        image_size = self.world_model.scratch.tokenizer.tokenizer.resolution if is_new_model else None
        return replace(self, task=task, environment_options={}, action_repeat=1, image_size=image_size)

    def for_frames(self, frames: int) -> MbrlConfig:
        """Return the same settings for a run of this many simulator frames."""
        return replace(self, total_env_steps=-(-frames // self.action_repeat))
