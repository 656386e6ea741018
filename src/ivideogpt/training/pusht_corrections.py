"""What should have followed the pictures that a network imagined: PushT goes on from the state that they show.

A network that imagines meets its own pictures, which differ from all recorded ones: edges are soft, the block is a
little off. The true clip does not say what follows *them*; the simulator does. Here many imagined sessions run beside
one simulator each. After every step the block's pose is read from the imagined picture and given to the simulator, so
that its next picture is the clean continuation of what was imagined; so is the agent's place, where one is seen.

Source: DAgger (Ross et al. 2011), with the simulator as the expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.envs.pusht import PushT, normalised_action
from ivideogpt.evaluation.pusht_metrics import locate_agent
from ivideogpt.evaluation.pusht_shape import CENTRE_OFFSET, PLANE_SCALE, fit_block

#: A target position in px of the plane for a state [5].
Policy = Callable[[np.ndarray], np.ndarray]
#: The next pictures float ``[n 3 64 64]`` in [0, 1] of histories ``[n k 3 64 64]`` and targets ``[n 2]`` in px of 64.
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Settings of imagined sessions and of the simulator that corrects them.

    Attributes:
        sessions: that run at once.
        lengths, length_shares: steps after which a session begins anew: uniform in one of these ranges, each drawn in
            proportion to its share.
        history: pictures that the network reads.
        follow_px, follow_rad: the simulator takes the imagined pose where it differs by more: a smaller difference is
            an error to be corrected, and is less than what can be read from the picture.
        lost_px, lost_overlap: a block this far off, or that overlaps less with a T at its best pose, is no longer one
            that can be followed: the simulator's clean picture is what should be drawn.
        follow_agent_px: the simulator takes the agent's imagined place where it is further off; beyond ``lost_px`` the
            agent stands still there.
        patience: steps in a row that the block may be lost before the session begins anew: nothing is learned from
            pictures in which nothing is left.
        seed: of starts and behaviour.
    """

    sessions: int = 64
    lengths: tuple[tuple[int, int], ...] = ((6, 16), (16, 40), (40, 120))
    length_shares: tuple[float, ...] = (0.5, 0.3, 0.2)
    history: int = 2
    follow_px: float = 0.25
    follow_rad: float = 0.03
    lost_px: float = 4.0
    lost_overlap: float = 0.5
    follow_agent_px: float = 0.5
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Corrections:
    """Imagined frames and the simulator's correct ones, step by step.

    Attributes:
        history: uint8 ``[n k 64 64 3]``, pictures that the network read.
        imagined: uint8 ``[n 64 64 3]``, what it drew.
        clean: uint8 ``[n 64 64 3]``, what follows the history.
        shown: uint8 ``[n 64 64 3]``, what was drawn, made clean: the block whole at the pose that it has there, the
            agent where it should be; where the block is lost, the same as ``clean``.
        targets: float32 ``[n 2]``, the action in px of the picture.
        agent: float32 ``[n 2 2]``, the agent before and after the step, in px.
        block: float32 ``[n 2 3]``, the block's centre (px) and angle (rad) before and after the step.
        age: int64 ``[n]``, steps that the session had imagined before.
        coverage: float32 ``[n]``, covered share of the goal after the step.
    """

    history: np.ndarray
    imagined: np.ndarray
    clean: np.ndarray
    shown: np.ndarray
    targets: np.ndarray
    agent: np.ndarray
    block: np.ndarray
    age: np.ndarray
    coverage: np.ndarray


class _Session:
    """A simulator beside an imagined session."""

    def __init__(self, config: CorrectionConfig, number: int, make_policy: Callable[[np.random.Generator], Policy]):
        self._config, self._make_policy = config, make_policy
        self._random = np.random.default_rng([config.seed, number])
        self._environment = PushT(terminate_on_success=False)
        self.begin()

    def begin(self) -> None:
        """Draws a start, a behaviour and a length; plays some true steps to have a history."""
        random, config = self._random, self._config
        kind = int(random.choice(len(config.lengths), p=np.array(config.length_shares) / sum(config.length_shares)))
        self.left, self.age, self.lost = int(random.integers(*config.lengths[kind])), 0, 0
        self._policy = self._make_policy(np.random.default_rng(int(random.integers(2**31))))
        first, info = self._environment.reset(seed=int(random.integers(2**31)))
        self.state, true = info["state"], [first]
        for _ in range(int(random.integers(20))):  # unseen steps need no picture
            self._environment._simulator.step(self._policy(self.state).astype(np.float64))
            self.state = self._environment._with_state({"is_success": False}, 0.0)["state"]
        for _ in range(config.history):
            frame, _, _, _, info = self._environment.step(normalised_action(self._policy(self.state)))
            self.state, true = info["state"], [*true, frame][-config.history :]
        self.history = torch.from_numpy(np.stack(true)).permute(0, 3, 1, 2).float() / 255

    def target(self) -> np.ndarray:
        """The next action, in px of the plane."""
        return self._policy(self.state)

    def step(self, target: np.ndarray) -> tuple[np.ndarray, float]:
        """Plays the true step; gives its picture and the coverage."""
        frame, _, _, _, info = self._environment.step(normalised_action(target))
        self.state = info["state"]
        return frame, float(info["coverage"])

    def block(self) -> np.ndarray:
        """Centre (px of the picture) and angle of the simulator's block."""
        return block_pose(self.state)

    def look(self, pose: np.ndarray) -> np.ndarray:
        """The picture with the block at a pose; the simulator stays as it is."""
        block, state = self._environment._simulator.block, self.state
        place, angle = tuple(block.position), block.angle
        self.follow(pose)
        frame = self._environment._observe()
        block.angle, block.position = angle, place
        self._environment._simulator.space.reindex_shapes_for_body(block)
        self.state = state
        return frame

    def follow_agent(self, place: np.ndarray, stands: bool) -> None:
        """Puts the simulator's agent at a place in px of the picture, with its velocity or without."""
        simulator = self._environment._simulator
        simulator.agent.position = tuple(float(x) for x in place * PLANE_SCALE)
        if stands:
            simulator.agent.velocity = (0.0, 0.0)
        simulator.space.reindex_shapes_for_body(simulator.agent)
        self.state = np.array([*simulator.agent.position, *self.state[2:]], np.float32)

    def follow(self, pose: np.ndarray) -> None:
        """Puts the simulator's block where the picture shows it."""
        simulator = self._environment._simulator
        block, angle = simulator.block, float(pose[2])
        offset = CENTRE_OFFSET * np.array([-np.sin(angle), np.cos(angle)])
        position = (pose[:2] - offset) * PLANE_SCALE
        block.angle = angle  # turns about the centre of mass, so the position comes after it
        block.position = (float(position[0]), float(position[1]))
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        simulator.space.reindex_shapes_for_body(block)
        self.state = np.array([*self.state[:2], *position, angle], np.float32)


def block_pose(state: np.ndarray) -> np.ndarray:
    """Centre of the block (px of the picture) and its angle: float64 ``[.. 3]`` of states ``[.. 5]``."""
    angle = np.asarray(state[..., 4], np.float64)
    centre = state[..., 2:4] / PLANE_SCALE + CENTRE_OFFSET * np.stack([-np.sin(angle), np.cos(angle)], -1)
    return np.concatenate([centre, angle[..., None]], -1)


@torch.no_grad()
def collect_corrections(
    draw: Step, make_policy: Callable[[np.random.Generator], Policy], config: CorrectionConfig, count: int
) -> Corrections:
    """Runs imagined sessions beside simulators until ``count`` steps are recorded.

    Args:
        draw: one step of the network.
        make_policy: the behaviour of a session, drawn from a generator.
        config: how sessions run.
        count: steps to record; rounded up to a multiple of ``config.sessions``.

    Returns:
        The recorded steps.
    """
    sessions = [_Session(config, number, make_policy) for number in range(config.sessions)]
    rows: list[tuple[np.ndarray | np.generic, ...]] = []
    while len(rows) < count:
        history = torch.stack([session.history for session in sessions])
        targets = [session.target() for session in sessions]
        before = [(session.state[:2] / PLANE_SCALE, session.block()) for session in sessions]
        true = [session.step(target) for session, target in zip(sessions, targets, strict=True)]
        aimed = torch.from_numpy(np.stack(targets).astype(np.float32)) / PLANE_SCALE
        drawn = draw(history, aimed).clamp(0, 1)
        expected = torch.from_numpy(np.stack([session.block() for session in sessions])).float()
        shown, agents = fit_block(drawn, expected[:, :2], expected[:, 2]), locate_agent(drawn)
        read, now = _bytes(history), _bytes(drawn)
        for k, session in enumerate(sessions):
            (agent, block), (frame, coverage), after = before[k], true[k], session.block()
            moved = float((shown.centre[k] - expected[k, :2]).norm())
            turn = float(shown.angle[k] - expected[k, 2])
            turn = abs(np.arctan2(np.sin(turn), np.cos(turn)))
            lost = moved > config.lost_px or float(shown.overlap[k]) < config.lost_overlap
            pose = np.array([*shown.centre[k].tolist(), float(shown.angle[k])])
            rows.append(
                (
                    read[k],
                    now[k],
                    frame,
                    frame if lost else session.look(pose),
                    aimed[k].numpy(),
                    np.stack([agent, session.state[:2] / PLANE_SCALE]),
                    np.stack([block, after]),
                    np.int64(session.age),
                    np.float32(coverage),
                )
            )
            if not lost and (moved > config.follow_px or turn > config.follow_rad):
                session.follow(pose)
            off = float(np.linalg.norm(agents.xy[k].numpy() - session.state[:2] / PLANE_SCALE))
            if agents.present[k] and off > config.follow_agent_px:
                session.follow_agent(agents.xy[k].numpy(), stands=off > config.lost_px)
            session.history = torch.cat([session.history[1:], drawn[k : k + 1]])
            session.age += 1
            session.left -= 1
            session.lost = session.lost + 1 if lost else 0
            if session.left <= 0 or session.lost >= config.patience:
                session.begin()
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    kinds = (np.uint8, np.uint8, np.uint8, np.uint8, np.float32, np.float32, np.float32, np.int64, np.float32)
    return Corrections(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))


def _bytes(frames: Tensor) -> np.ndarray:
    """Frames ``[.. c h w]`` in [0, 1] as uint8 ``[.. h w c]``."""
    return (frames * 255).round().to(torch.uint8).movedim(-3, -1).numpy()
