"""The websocket on a real server: order, fairness, limits, and what one player's trouble means for others."""

import contextlib
import gc
import threading
import time
import weakref

import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed

from ivideogpt.serve.guard import Limits
from ivideogpt.serve.worlds import Worlds
from ivideogpt.worldmodel.session import Session


@pytest.fixture
def gate(monkeypatch):
    """A gate before each imagined frame: ``gate.clear()`` closes it. ``gate.log`` holds who stepped, and the thread."""
    opened, step = threading.Event(), Session.step
    opened.set()
    opened.log = []

    def wait(session, action=None):
        opened.log.append((id(session), threading.get_ident()))
        assert opened.wait(600)
        return step(session, action)

    monkeypatch.setattr(Session, "step", wait)
    yield opened
    opened.set()


def eventually(condition, seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


# What is said


def test_the_messages_of_a_game(served):
    player = served.player()
    assert player.hello["resumed"] is False and player.hello["state"] is None
    state = player.open(start=1, settings={"seed": 5})
    settings = {"temperature": 1.0, "top_k": 100, "greedy": False, "seed": 5}
    assert state == {"episode": "0", "start": 1, "true_steps": 21, "settings": settings, "worlds": [{"steps": 0}]}
    frame = player.step(request=7)
    assert {key: frame[key] for key in ("type", "kind", "world", "step", "request", "height", "width")} == {
        "type": "frame",
        "kind": "step",
        "world": 0,
        "step": 1,
        "request": 7,
        "height": 16,
        "width": 16,
    }
    assert len(frame["picture"]) == 16 * 16 * 3 and len(frame["action"]) == 2
    assert all(isinstance(frame[key], float) for key in ("entropy", "reward", "psnr", "milliseconds"))
    assert player.ask("fork")["state"]["worlds"] == [{"steps": 1}, {"steps": 1}]
    player.tell("step", world="all", action=[0.5, -1], request=8)
    both = [player.hear(), player.hear()]
    assert [(frame["world"], frame["step"], frame["request"]) for frame in both] == [(0, 2, 8), (1, 2, 8)]
    assert player.step(world=1)["step"] == 3
    assert player.ask("rewind", world="all", step=1)["state"]["worlds"] == [{"steps": 1}, {"steps": 1}]
    shown = player.ask("show", world=1, first=1, count=1)
    assert (shown["kind"], shown["world"], shown["picture"]) == ("show", 1, frame["picture"])
    assert (shown["psnr"], shown["action"]) == (frame["psnr"], frame["action"])
    true = player.ask("truth", first=2, count=1)
    assert (true["kind"], true["step"], true["psnr"], true["world"]) == ("truth", 2, None, None)
    assert player.ask("join", keep=1)["state"]["worlds"] == [{"steps": 1}]
    assert player.ask("settings", settings={"greedy": False, "top_k": 5})["state"]["settings"]["top_k"] == 5
    assert player.open()["settings"] == settings | {"greedy": False, "top_k": 5}


def test_what_cannot_be_followed_changes_nothing(served):
    player = served.player()
    player_state = player.open()
    player.step()
    for kind, fields, sentence in [
        ("open", {"episode": "nowhere"}, "there is no episode 'nowhere'"),
        ("open", {"episode": "0", "start": 23}, "start is 23; expected 0 to 22"),
        ("open", {"episode": "0", "settings": {"temperature": 0}}, "temperature is 0; expected 0.01 to 10"),
        ("step", {"action": [1]}, "action has 1 numbers"),
        ("step", {"action": [1, 1e300 / 2]}, "action 2 of the action is 5e+299"),
        ("step", {"action": None}, "action is null"),
        ("step", {"world": 1, "action": "episode"}, "world is 1; expected 0"),
        ("rewind", {"step": 2}, "step is 2; expected 0 to 1"),
        ("rewind", {"step": -1}, "step is -1"),
        ("rewind", {"step": 0, "world": -1}, "world is -1"),
        ("join", {"keep": 1}, "world is 1"),
        ("settings", {"settings": {"seed": -1}}, "seed is -1"),
        ("show", {"first": 5, "count": 1}, "no step 5"),
        ("show", {"first": 0, "count": 0}, "count is 0"),
        ("truth", {"first": 0, "count": 65}, "count is 65"),
    ]:
        answer = player.ask(kind, request=3, **fields)
        assert answer["type"] == "error" and answer["request"] == 3 and "fatal" not in answer, answer
        assert sentence in answer["message"]
    player.tell("settings", settings={})
    assert player.hear()["state"] == player_state | {"worlds": [{"steps": 1}]}


def test_nothing_is_open_at_first(served):
    player = served.player()
    for kind, fields in [
        ("step", {}),
        ("rewind", {"step": 0}),
        ("fork", {}),
        ("join", {}),
        ("show", {"first": 0, "count": 1}),
        ("truth", {"first": 1, "count": 1}),
    ]:
        assert player.ask(kind, **fields) == {"type": "error", "message": "no world is open; send open first"}
    assert player.ask("settings", settings={"seed": 2}) == {"type": "state", "state": None}
    assert player.open()["settings"]["seed"] == 2


def test_a_new_world_takes_the_place_of_the_old(served, monkeypatch):
    player = served.player()
    player.open()
    worlds = served.players.get(player.hello["session"]).worlds
    old = weakref.ref(worlds.worlds[0].session)
    player.open(start=3)
    assert worlds.worlds == []
    eventually(lambda: old() is None)


# Bad clients

BAD = {
    "malformed JSON": ("{", 4400, "no JSON"),
    "an unknown type": ('{"type": "stop"}', 4400, "type is 'stop'"),
    "wrong types": ('{"type": "step", "action": "left"}', 4400, "action of step is 'left'"),
    "NaN": ('{"type": "step", "action": [NaN, 0]}', 4400, "NaN"),
    "infinity": ('{"type": "step", "action": [1e400, 0]}', 4400, "finite number"),
    "huge numbers": ('{"type": "rewind", "step": ' + "9" * 1000 + "}", 4400, "whole number"),
    "deep nesting": ("[" * 8000, 4400, "nested too deeply"),
    "too large": ('{"type": "fork"' + " " * 9000 + "}", 4400, "more than 8192 bytes"),
    "lone surrogates": ('{"type": "\\ud800"}', 4400, "type is"),
    "binary": (b"\x00\x01", 4400, "binary"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_ends_that_connection_and_no_other(served, name):
    message, code, sentence = BAD[name]
    bystander, bad = served.player(), served.player()
    bystander.open()
    bystander.tell("step", action="episode")
    bad.socket.send(message)
    closed, said = bad.farewell()
    assert closed == code and sentence in said and "\n" not in said
    assert [bystander.hear()["step"], bystander.step()["step"]] == [1, 2]


def test_a_message_far_too_large_ends_that_connection_and_no_other(served):
    bystander, bad = served.player(), served.player()
    bystander.open()
    with contextlib.suppress(ConnectionClosed):
        bad.socket.send("x" * 8 * 2**20)
    # Still sending, it may find the connection reset before it reads why.
    assert bad.farewell()[0] in (1009, 1006)
    assert bystander.step()["step"] == 1


def test_a_flood_ends_that_connection_and_no_other(start, clock):
    served = start(limits=Limits(messages_per_second=20))
    bystander, bad = served.player(), served.player()
    bystander.open()
    with contextlib.suppress(ConnectionClosed):
        for _ in range(200):
            bad.tell("settings", settings={})
    code, said = bad.farewell()
    assert code == 4429 and said == "more than 20 messages a second came; send fewer"
    assert bystander.step()["step"] == 1


def test_a_failure_while_computing_ends_that_session_and_no_other(served, monkeypatch, caplog):
    bystander, unlucky = served.player(), served.player()
    bystander.open()
    unlucky.open()
    poor = served.players.get(unlucky.hello["session"]).worlds.worlds[0].session
    step = Session.step

    def fail(session, action=None):
        if session is poor:
            raise RuntimeError("a bug")
        return step(session, action)

    monkeypatch.setattr(Session, "step", fail)
    unlucky.tell("step", action="episode")
    code, said = unlucky.farewell()
    assert code == 1011 and "the server failed while computing" in said and "a bug" not in said
    assert "RuntimeError: a bug" in caplog.text and "Traceback" in caplog.text
    assert bystander.step()["step"] == 1
    assert served.player(unlucky.hello["session"]).hello["resumed"] is False


def test_a_failure_outside_computing_ends_that_session_and_no_other(served, monkeypatch, caplog):
    bystander, unlucky = served.player(), served.player()
    bystander.open()
    unlucky.open()
    monkeypatch.setattr(Worlds, "show", lambda *_: 1 / 0)
    unlucky.tell("show", first=0, count=1)
    code, said = unlucky.farewell()
    assert code == 1011 and said == "the server failed, and this session is lost; open another"
    assert "ZeroDivisionError" in caplog.text
    assert bystander.step()["step"] == 1


def test_a_client_that_does_not_read_is_waited_for(start, monkeypatch):
    served = start(limits=Limits(messages_per_second=10**6))
    made, show = [], Worlds.show
    monkeypatch.setattr(Worlds, "show", lambda *given: made.append(1) or show(*given))
    lazy, other = served.dial(max_queue=1), served.player()
    mine = served.players.get(lazy.hear()["session"])
    lazy.open()
    for _ in range(30):
        lazy.step(action=[0.5, -1])
    other.open()
    most = 600  # 32 frames each: 17 MB in all, more than the sockets hold
    for request in range(most):
        lazy.tell("show", first=-1, count=32, request=request)
    eventually(lambda: mine.connection.waiting.full())
    time.sleep(0.5)
    assert other.step()["step"] == 1
    assert mine.connection.waiting.full() and len(made) < most - 16
    heard = [lazy.hear()["request"] for _ in range(32 * most)]
    assert heard == [request for request in range(most) for _ in range(32)] and len(made) == most


# Computing


def test_no_frame_is_computed_that_was_not_asked_for(served, gate):
    player = served.player()
    player.open()
    gate.clear()
    for request in range(4):
        player.tell("step", action="episode", request=request)
    for request in (2, 3):
        answer = player.hear()
        assert answer["request"] == request and "2 steps are not answered yet" in answer["message"]
    gate.set()
    assert [player.hear()["request"] for _ in range(2)] == [0, 1]
    assert player.step(request=4)["step"] == 3
    time.sleep(0.2)
    assert len(gate.log) == 3


def test_the_server_answers_while_a_frame_is_computed(served, gate):
    player, other = served.player(), served.player()
    player.open()
    gate.clear()
    player.tell("step", action="episode")
    eventually(lambda: gate.log)
    # All of it while the frame waits: a server that did not answer would wait until the gate opens, below.
    assert served.get("/healthz").status_code == 200
    assert served.get("/api/world").status_code == 200
    assert other.ask("settings", settings={})["type"] == "state"
    gate.set()
    assert player.hear()["step"] == 1


def test_players_take_turns_on_one_thread(served, gate):
    first, second = served.player(), served.player()
    for player in (first, second):
        player.open()
    gate.clear()
    for player in (first, second):
        player.tell("step", action="episode")
        player.tell("step", action="episode")
        eventually(lambda: gate.log)
    time.sleep(0.2)
    gate.set()
    for player in (first, second):
        assert [player.hear()["step"] for _ in range(2)] == [1, 2]
    who = [session for session, _ in gate.log]
    assert who == [who[0], who[1]] * 2 and who[0] != who[1]
    assert len({thread for _, thread in gate.log}) == 1
    assert gate.log[0][1] != threading.get_ident()


def test_a_world_has_an_end(start):
    served = start(limits=Limits(steps=2))
    player = served.player()
    player.open()
    player.step()
    player.step()
    assert "2 steps, as many as it may have" in player.ask("step", action="episode")["message"]
    assert player.ask("rewind", step=1)["state"]["worlds"] == [{"steps": 1}]
    assert player.step()["step"] == 2


# Sessions


def test_a_lost_connection_comes_back_into_its_session(served):
    player = served.player()
    player.open()
    frame = player.step()
    player.socket.close()
    again = served.player(player.hello["session"])
    assert again.hello["resumed"] and again.hello["session"] == player.hello["session"]
    assert again.hello["state"]["worlds"] == [{"steps": 1}]
    assert again.ask("show", first=1, count=1)["picture"] == frame["picture"]
    assert again.step()["step"] == 2


def test_a_connection_that_the_server_gave_up_comes_back_too(served, monkeypatch, caplog):
    player = served.player()
    player.open()
    with monkeypatch.context() as patch:

        async def fail(self, message):
            raise RuntimeError("Unexpected ASGI message 'websocket.send', after sending 'websocket.close'.")

        patch.setattr(WebSocket, "send", fail)
        player.tell("step", action="episode")
        eventually(lambda: served.players.get(player.hello["session"]).connection is None)
    again = served.player(player.hello["session"])
    assert again.hello["resumed"] and again.hello["state"]["worlds"] == [{"steps": 1}]
    assert not caplog.records


def test_a_session_that_is_not_there_becomes_a_new_one(served):
    player = served.player("nowhere")
    assert player.hello["resumed"] is False and player.hello["session"] != "nowhere"


def test_a_second_connection_takes_over(served, gate):
    first = served.player()
    first.open()
    gate.clear()
    first.tell("step", action="episode")
    eventually(lambda: gate.log)
    second = served.dial(first.hello["session"])
    assert first.farewell() == (4409, "this session was opened elsewhere")
    gate.set()
    # What was being computed is complete before the state is told.
    hello = second.hear()
    assert hello["resumed"] and hello["state"]["worlds"] == [{"steps": 1}]
    assert second.step()["step"] == 2


def test_idle_sessions_expire_and_free_their_memory(start, clock):
    served = start(limits=Limits(idle_seconds=2.0))
    idle, busy = served.player(), served.player()
    idle.open()
    idle.step()
    busy.open()
    worlds = served.players.get(idle.hello["session"]).worlds
    session, cache = (weakref.ref(x) for x in (worlds.worlds[0].session, worlds.worlds[0].session._segment.cache))
    for _ in range(12):
        clock.now += 0.25
        busy.step()
    code, said = idle.farewell()
    assert code == 4408 and "nothing came for a while" in said
    del worlds
    gc.collect()
    assert session() is None and cache() is None
    assert served.player(idle.hello["session"]).hello["resumed"] is False
    assert busy.step()["step"] == 13


def test_a_session_without_a_connection_expires_too(start, clock):
    served = start(limits=Limits(idle_seconds=0.4))
    player = served.player()
    player.open()
    session = weakref.ref(served.players.get(player.hello["session"]).worlds.worlds[0].session)
    player.socket.close()
    eventually(lambda: served.players.get(player.hello["session"]).connection is None)
    clock.now += 0.5
    eventually(lambda: len(served.players) == 0)
    gc.collect()
    assert session() is None


def test_more_players_than_there_is_room_for_are_turned_away(start):
    served = start(limits=Limits(sessions=2))
    first, second = served.player(), served.player()
    first.open()
    second.open()
    code, said = served.dial().farewell()
    assert code == 4429 and said == "2 sessions are open already; try again later"
    assert first.step()["step"] == second.step()["step"] == 1
    # A session that lost its connection makes room.
    first.socket.close()
    eventually(lambda: served.players.get(first.hello["session"]).connection is None)
    assert served.player().hello["resumed"] is False
    assert served.player(second.hello["session"]).hello["resumed"]


def test_a_session_in_which_nothing_was_opened_is_forgotten_at_once(start):
    served = start()
    served.player().socket.close()
    eventually(lambda: len(served.players) == 0)
