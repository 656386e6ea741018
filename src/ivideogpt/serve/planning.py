"""Planning for a player: a search for actions that bring an open world to a goal picture.

The search runs beside the thread that computes and gives it one small piece at a time, so that other players keep their
turns and a search can be given up between two pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ivideogpt.configs.planning import pusht_planning
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE
from ivideogpt.planning.models import ImaginedFutures, ImaginedRoot
from ivideogpt.planning.objectives import Goal, make_objective
from ivideogpt.planning.optimizers import ActionNoise, Score
from ivideogpt.planning.planner import Planner
from ivideogpt.serve.worlds import Actions, Worlds
from ivideogpt.worldmodel.world_model import WorldModel

T = TypeVar("T")
#: Runs a function in the thread that computes and waits for its result.
RunPiece = Callable[[Callable[[], T]], T]
#: Candidates of a piece: on a CPU it takes about half a second.
PIECE_ROWS = 4


class Cancelled(Exception):
    """The player has given up the search."""


@dataclass(frozen=True)
class FoundPlan:
    """Result of a search.

    Attributes:
        actions: float ``[t a]`` in raw units.
        pictures: of the t frames, ``[h w 3]`` each, as bytes.
    """

    actions: list[list[float]]
    pictures: list[bytes]


class PlayerPlanner:
    """Searches plans in a world model for players."""

    def __init__(self, model: WorldModel) -> None:
        """Prepare a planner for ``model``; nothing is loaded."""
        self.model, actions = model, Actions.of(model)
        is_pusht = actions.pointer and model.resolution == IMAGE_SIZE and "pusht" in model.config.name
        self._low, self._high = (torch.tensor(limit, dtype=torch.float32) for limit in (actions.low, actions.high))
        self._weights = {"pusht-block": 1.0, "pusht-agent": 0.3} if is_pusht else {"last-pixels": 1.0}
        noise = ActionNoise(std=(0.4,) * max(actions.dim, 1), smoothing=0.5)
        self._settings = replace(pusht_planning().planner, noise=noise)

    def check(self) -> None:
        """Check that plans can be made.

        Raises:
            UserError: the model takes no actions, or a goal of its own.
        """
        ImaginedFutures(self.model)

    def search(self, worlds: Worlds, index: int, goal: np.ndarray, piece: RunPiece, stop: threading.Event) -> FoundPlan:
        """Search a plan for world ``index`` from its newest frame.

        Args:
            worlds: of the player.
            index: of the world, which does not change.
            goal: picture uint8 ``[h w 3]`` of the model's size.
            piece: runs a function in the thread that computes.
            stop: set to give up.

        Raises:
            Cancelled: ``stop`` was set.
            UserError: see `check`, or the model's numbers are not finite.
        """

        def work(function: Callable[[], T]) -> T:
            if stop.is_set():
                raise Cancelled
            return piece(function)

        def in_pieces(score: Score) -> Score:
            return lambda actions: torch.cat([work(partial(score, rows)) for rows in actions.split(PIECE_ROWS)])

        session = work(lambda: worlds.worlds[index].session.fork())
        futures = ImaginedFutures(self.model, raw_range=(self._low, self._high), sampling=session.sampling)
        objective = make_objective(self._weights, self.model)
        planner = Planner(futures, objective, self._settings)
        root, last_action = ImaginedRoot(futures, session), self._last_action(worlds, index)
        mean = last_action.repeat(self._settings.horizon // self._settings.action_repeat, 1)
        generator = torch.Generator().manual_seed(worlds.settings.seed + session.steps)
        picture = torch.from_numpy(goal.copy()).permute(2, 0, 1).float() / 255
        plan = planner.search(root, Goal(picture), last_action, mean, generator, wrap=in_pieces)
        actions = planner.expand(plan.actions[None], last_action)
        frames = work(lambda: root.rollout(actions).frames[0])
        pictures = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous().numpy()
        return FoundPlan(self._raw(actions[0]).tolist(), [frame.tobytes() for frame in pictures])

    def _last_action(self, worlds: Worlds, index: int) -> Tensor:
        """Return the action -1 to 1 ``[a]`` that led to the newest frame; 0 where none is known."""
        action = worlds.worlds[index].seen[-1].action or worlds.true_action(worlds.worlds[index].steps)
        if action is None:
            return torch.zeros(len(self._low))
        return (2 * (torch.tensor(action) - self._low) / (self._high - self._low) - 1).clamp(-1, 1)

    def _raw(self, actions: Tensor) -> Tensor:
        return self._low + (actions + 1) / 2 * (self._high - self._low)
