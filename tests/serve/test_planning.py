"""Plans for a player: found in pieces, shown frame by frame, cancelled at once, and what cannot be planned."""

import threading
import time

import numpy as np
import pytest
import torch

from ivideogpt.serve.planning import PIECE_ROWS, Cancelled, PlayerPlanner
from ivideogpt.worldmodel.session import Session

HORIZON = 15


@pytest.fixture
def gate(monkeypatch):
    """A gate before each rollout of candidates: ``gate.clear()`` closes it. ``gate.log`` holds rows and threads."""
    opened, rollout = threading.Event(), Session.rollout
    opened.set()
    opened.log = []

    def wait(session, *arguments, **named):
        opened.log.append((session.rows, threading.get_ident()))
        assert opened.wait(600)
        return rollout(session, *arguments, **named)

    monkeypatch.setattr(Session, "rollout", wait)
    yield opened
    opened.set()


def eventually(condition):
    until = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def test_a_plan_comes_as_frames_and_then_as_actions_that_the_world_can_take(served, gate):
    player = served.player()
    player.open()
    player.step()
    player.tell("plan", episode="0", frame=9, request=5)
    frames = [player.hear() for _ in range(HORIZON)]
    assert [(frame["kind"], frame["step"], frame["request"]) for frame in frames] == [
        ("plan", step, 5) for step in range(2, 2 + HORIZON)
    ]
    answer = player.hear()
    assert answer["type"] == "plan" and answer["cancelled"] is False and answer["request"] == 5
    actions = np.array(answer["actions"])
    assert actions.shape == (HORIZON, 2) and np.isfinite(actions).all()
    assert player.ask("settings", settings={})["state"]["worlds"] == [{"steps": 1}]  # the world has not moved
    assert player.step(action=answer["actions"][0])["step"] == 2
    assert max(rows for rows, _ in gate.log) <= PIECE_ROWS
    assert len({thread for _, thread in gate.log}) == 1  # all of it on the thread that computes


def test_a_cancelled_search_ends_at_the_next_piece_and_the_player_goes_on(served, gate):
    player = served.player()
    player.open()
    gate.clear()
    player.tell("plan", episode="0", frame=9, request=1)
    eventually(lambda: gate.log)
    player.tell("plan", episode="0", frame=9, request=2)
    assert "a plan is being searched already" in player.hear()["message"]
    player.tell("cancel")
    time.sleep(0.2)
    gate.set()
    assert player.hear() == {"type": "plan", "cancelled": True, "actions": [], "request": 1}
    assert len(gate.log) == 1
    assert player.step()["step"] == 1


def test_a_plan_asked_for_just_after_a_cancel_is_searched_next(served, gate):
    player = served.player()
    player.open()
    gate.clear()
    player.tell("plan", episode="0", frame=9, request=1)
    eventually(lambda: gate.log)
    player.tell("cancel")
    player.tell("plan", episode="0", frame=9, request=2)
    time.sleep(0.2)
    gate.set()
    assert player.hear() == {"type": "plan", "cancelled": True, "actions": [], "request": 1}
    assert [player.hear()["request"] for _ in range(HORIZON)] == [2] * HORIZON
    answer = player.hear()
    assert answer["request"] == 2 and answer["cancelled"] is False and len(answer["actions"]) == HORIZON


def test_others_play_while_a_plan_is_searched(served, gate):
    planner, other = served.player(), served.player()
    for player in (planner, other):
        player.open()
    gate.clear()
    planner.tell("plan", episode="0", frame=9)
    eventually(lambda: gate.log)
    other.tell("step", action="episode")
    gate.set()
    assert other.hear(timeout=600)["step"] == 1
    assert len(gate.log) < 12  # a piece or two of the search, not all of it
    planner.tell("cancel")


def test_what_cannot_be_planned_is_refused_in_a_sentence(served, start, build):
    player = served.player()
    assert player.ask("plan", episode="0", frame=0)["message"].startswith("no world is open")
    player.open()
    assert "frame is 99; expected 0 to" in player.ask("plan", episode="0", frame=99)["message"]
    assert "there is no episode" in player.ask("plan", episode="no", frame=0)["message"]
    assert "world is 1" in player.ask("plan", episode="0", frame=0, world=1)["message"]
    assert player.step()["step"] == 1
    free = start(model=build("action_free")).player()
    free.open()
    assert "takes no actions" in free.ask("plan", episode="0", frame=0)["message"]


def test_a_search_works_in_pieces_and_leaves_the_world_as_it_is(model_of, frames_for):
    from ivideogpt.core.episode import Episode
    from ivideogpt.serve.protocol import Open, Settings
    from ivideogpt.serve.worlds import Worlds

    model = model_of("plain")
    frames = (frames_for(model, 1, 4)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    episode = Episode(frames=frames, actions=np.zeros((4, 2), np.float32))
    worlds = Worlds.open(model, Open(episode="0"), episode, Settings.of(model), 100)
    pieces = []

    def piece(function):
        pieces.append(1)
        return function()

    plan = PlayerPlanner(model).search(worlds, 0, frames[3], piece, threading.Event())
    assert len(pieces) == 2 * 24 / PIECE_ROWS + 2  # the fork, the candidates and the frames of the plan
    assert len(plan.pictures) == HORIZON and len(plan.pictures[0]) == 16 * 16 * 3
    assert torch.tensor(plan.actions).shape == (HORIZON, 2) and worlds.worlds[0].steps == 0
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        PlayerPlanner(model).search(worlds, 0, frames[3], piece, stop)
