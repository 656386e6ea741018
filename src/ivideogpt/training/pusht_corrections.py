"""Clips of recorded PushT episodes, and what should have followed the frames that a picture model imagined.

In a closed loop the model reads its own frames, and what it draws differs a little from every recorded frame. The
recorded clip does not say what follows *them*; the simulator does. Many imagined sessions run beside one simulator
each. After every step the simulator takes over the poses that the drawn frame shows, so its next frame is the correct
continuation of what was imagined.

Source: DAgger (Ross et al. 2011), with the simulator as the expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.envs.pusht import PushT, normalised_action
from ivideogpt.envs.record.pusht_person import PersonPolicy
from ivideogpt.evaluation.pusht_shape import CENTRE_OFFSET, PLANE_SCALE
from ivideogpt.models.picture_dynamics import PictureDynamics
from ivideogpt.policies.scripted import DragScript, Script
from ivideogpt.training.picture_crops import PictureClips
from ivideogpt.training.picture_data import frame_rewards

#: px from the block's centre of mass within which most of it lies: a turn moves its edge by so many px for each rad.
_RADIUS = 6.0
#: How often a transition is trained on: this, and for each px that the block moves, up to a limit, and for a target
#: far from the agent.
_BASE_CHANCE, _MOTION_CHANCE, _MOST_MOTION, _FAR_CHANCE, _FAR = 0.15, 1.0, 3.0, 0.6, 30.0
#: A block that moves less, in px, is at rest; and what any push adds.
_REST, _PUSH_CHANCE = 0.05, 0.3


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Settings of imagined sessions and of the simulator that corrects them.

    Attributes:
        sessions: that run at once.
        lengths, length_shares: steps after which a session begins anew: uniform in one of these ranges, each drawn in
            proportion to its share.
        person_share: of the sessions are played by `PersonPolicy`, the others by `DragScript`.
        follow_px, follow_rad: the simulator takes the imagined pose of the block where it differs by more: a smaller
            difference is an error to be corrected.
        follow_agent_px: the simulator takes the agent's imagined place where it is further off.
        jump_px: an agent that is further off than this stands still there; else it keeps its velocity.
        seed: of starts and behaviour.
    """

    sessions: int = 64
    lengths: tuple[tuple[int, int], ...] = ((6, 16), (16, 40), (40, 120))
    length_shares: tuple[float, ...] = (0.5, 0.3, 0.2)
    person_share: float = 0.7
    follow_px: float = 0.25
    follow_rad: float = 0.03
    follow_agent_px: float = 0.25
    jump_px: float = 4.0
    seed: int = 0


class _Session:
    """A simulator beside an imagined session."""

    def __init__(
        self, config: CorrectionConfig, number: int, history: int, new_script: Callable[[np.random.Generator], Script]
    ) -> None:
        """Begin the session ``number``, which reads ``history`` frames."""
        self._config, self._history, self._new_script = config, history, new_script
        self._random = np.random.default_rng([config.seed, number])
        self._environment = PushT(terminate_on_success=False)
        self.begin()

    def begin(self) -> None:
        """Draw a start, a behaviour and a length; play some true steps to have a history."""
        random, config = self._random, self._config
        kind = int(random.choice(len(config.lengths), p=np.array(config.length_shares) / sum(config.length_shares)))
        self.left = int(random.integers(*config.lengths[kind]))
        self._script = self._new_script(np.random.default_rng(int(random.integers(2**31))))
        first, info = self._environment.reset(seed=int(random.integers(2**31)))
        self.state, true = info["state"], [first]
        for _ in range(int(random.integers(20))):  # unseen steps need no picture
            self._environment._simulator.step(self._script(self.state).astype(np.float64))
            self.state = self._environment._with_state({"is_success": False}, 0.0)["state"]
        for _ in range(self._history):
            frame, _, _, _, info = self._environment.step(normalised_action(self._script(self.state)))
            self.state, true = info["state"], [*true, frame][-self._history :]
        self.frames = torch.from_numpy(np.stack(true)).permute(0, 3, 1, 2).float() / 255
        self.poses = torch.from_numpy(object_poses(self.state))

    def target(self) -> np.ndarray:
        """Return the next action, in px of the plane."""
        return self._script(self.state)

    def step(self, target: np.ndarray) -> np.ndarray:
        """Play the true step and return its frame."""
        frame, _, _, _, info = self._environment.step(normalised_action(target))
        self.state = info["state"]
        return frame

    def follow(self, frame: Tensor, poses: Tensor) -> None:
        """Take over the imagined frame ``[c h w]``, and its poses ``[2 3]`` where they differ from the true ones."""
        config = self._config
        self.frames, self.poses = torch.cat([self.frames[1:], frame[None]]), poses
        (block, agent), (true_block, true_agent) = poses.double().numpy(), object_poses(self.state)
        turn = np.arctan2(np.sin(block[2] - true_block[2]), np.cos(block[2] - true_block[2]))
        if np.linalg.norm((block - true_block)[:2]) > config.follow_px or abs(turn) > config.follow_rad:
            self._place_block(block)
        off = float(np.linalg.norm((agent - true_agent)[:2]))
        if off > config.follow_agent_px:
            self._place_agent(agent[:2], stands=off > config.jump_px)

    def _place_agent(self, place: np.ndarray, stands: bool) -> None:
        """Put the simulator's agent at a place in px of the picture, with its velocity or without."""
        simulator = self._environment._simulator
        simulator.agent.position = tuple(float(x) for x in place * PLANE_SCALE)
        if stands:
            simulator.agent.velocity = (0.0, 0.0)
        simulator.space.reindex_shapes_for_body(simulator.agent)
        self.state = np.array([*simulator.agent.position, *self.state[2:]], np.float32)

    def _place_block(self, pose: np.ndarray) -> None:
        """Put the simulator's block at a pose."""
        simulator = self._environment._simulator
        block, angle = simulator.block, float(pose[2])
        offset = CENTRE_OFFSET * np.array([-np.sin(angle), np.cos(angle)])
        position = (pose[:2] - offset) * PLANE_SCALE
        block.angle = angle  # turns about the centre of mass, so the position comes after it
        block.position = (float(position[0]), float(position[1]))
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        simulator.space.reindex_shapes_for_body(block)
        self.state = np.array([*self.state[:2], *position, angle], np.float32)


def object_poses(state: np.ndarray) -> np.ndarray:
    """Return the poses of block and agent, float32 ``[.. 2 3]``, of states ``[.. 5]``.

    A pose is the centre (px of the picture) and the angle (rad) of the block, and the place of the agent and 0.
    """
    state = np.asarray(state, np.float64)
    angle = state[..., 4]
    centre = state[..., 2:4] / PLANE_SCALE + CENTRE_OFFSET * np.stack([-np.sin(angle), np.cos(angle)], -1)
    block = np.concatenate([centre, angle[..., None]], -1)
    agent = np.concatenate([state[..., :2] / PLANE_SCALE, np.zeros_like(angle)[..., None]], -1)
    return np.stack([block, agent], -2).astype(np.float32)


def pusht_clips(episodes: Sequence[Episode]) -> PictureClips:
    """Make clips of recorded PushT episodes of one length; pushes and far targets are drawn more often.

    Raises:
        UserError: an episode has no state or no actions.
    """
    if any(episode.state is None or episode.actions is None for episode in episodes):
        raise UserError("an episode has no state or no actions; expected those of `ivideogpt collect pusht`")
    states = np.stack([episode.state for episode in episodes])  # type: ignore[arg-type]
    targets = np.stack([episode.actions for episode in episodes]).astype(np.float32) / PLANE_SCALE  # type: ignore[arg-type]
    poses = object_poses(states)
    return PictureClips(
        frames=np.stack([episode.frames for episode in episodes]),
        actions=targets,
        places=poses[..., ::-1, :2].copy(),
        chances=np.pad(_chances(poses[:, :-1], poses[:, 1:], targets[:, :-1]), ((0, 0), (0, 1))),
        poses=poses,
        rewards=frame_rewards(episodes),
    )


def correct_pusht(model: PictureDynamics, transitions: int, seed: int) -> PictureClips:
    """Play a round of corrections with the default settings; see `collect_corrections`."""
    return collect_corrections(model, CorrectionConfig(seed=seed), transitions)


@torch.no_grad()
def collect_corrections(
    model: PictureDynamics,
    config: CorrectionConfig,
    count: int,
    new_script: Callable[[np.random.Generator], Script] | None = None,
) -> PictureClips:
    """Run imagined sessions beside simulators until ``count`` transitions are recorded.

    Args:
        model: with the sprites block and agent.
        config: how sessions run.
        count: transitions to record; rounded up to a multiple of ``config.sessions``.
        new_script: makes the behaviour of a session; None: as ``config.person_share`` says.

    Returns:
        Clips of the frames that the model read and the simulator's next one.

    Raises:
        UserError: the model has no sprites.
    """
    if model.sprites is None:
        raise UserError("the model has no rigid objects; expected sprites, whose poses the simulator takes over")
    history, person_sessions = model.config.forecast.frames, round(config.person_share * config.sessions)
    sessions = [
        _Session(config, number, history, new_script or (PersonPolicy if number < person_sessions else DragScript))
        for number in range(config.sessions)
    ]
    frames, targets, before, after = [], [], [], []
    for _ in range(-(-count // config.sessions)):
        aimed = np.stack([session.target() for session in sessions]).astype(np.float32)
        read = torch.stack([session.frames for session in sessions])
        before.append(np.stack([object_poses(session.state) for session in sessions]))
        true = np.stack([session.step(target) for session, target in zip(sessions, aimed, strict=True)])
        after.append(np.stack([object_poses(session.state) for session in sessions]))
        frames.append(np.concatenate([_bytes(read), true[:, None]], axis=1))
        targets.append(aimed / PLANE_SCALE)

        poses = torch.stack([session.poses for session in sessions])
        step = model(read, torch.from_numpy(normalised_action(aimed)), poses)
        assert step.poses is not None
        for session, frame, pose in zip(sessions, step.frames, step.poses, strict=True):
            session.left -= 1
            if session.left > 0:
                session.follow(frame, pose)
            else:
                session.begin()
    return _transitions(*map(np.concatenate, (frames, targets, before, after)), history=history)


def _transitions(
    frames: np.ndarray, targets: np.ndarray, before: np.ndarray, after: np.ndarray, *, history: int
) -> PictureClips:
    """Make clips of single transitions: frames ``[n history+1 h w c]``, targets ``[n 2]``, poses ``[n 2 3]``."""
    count, last = len(frames), history - 1  # the row of the action to the last frame
    poses = np.concatenate([np.repeat(before[:, None], history, axis=1), after[:, None]], axis=1)
    actions, chances = np.zeros((count, history + 1, 2), np.float32), np.zeros((count, history + 1), np.float32)
    actions[:, last] = targets
    chances[:, last] = _chances(before, after, targets)
    return PictureClips(frames=frames, actions=actions, places=poses[..., ::-1, :2].copy(), chances=chances)


def _chances(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return how often transitions are trained on, float32 ``[..]``, of poses ``[.. 2 3]`` and targets ``[.. 2]``."""
    change = after[..., 0, :] - before[..., 0, :]
    motion = np.linalg.norm(change[..., :2], axis=-1) + _RADIUS * np.abs(np.sin(change[..., 2]))
    far = np.linalg.norm(targets - before[..., 1, :2], axis=-1) / _FAR
    pushed = _PUSH_CHANCE * (motion > _REST) + _MOTION_CHANCE * np.minimum(motion, _MOST_MOTION)
    return (_BASE_CHANCE + pushed + _FAR_CHANCE * np.minimum(far, 1)).astype(np.float32)


def _bytes(frames: Tensor) -> np.ndarray:
    """Convert frames ``[.. c h w]`` in [0, 1] to uint8 ``[.. h w c]``."""
    return (frames * 255).round().to(torch.uint8).movedim(-3, -1).numpy()
