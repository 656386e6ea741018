"""Connections that are slow, silent, too many, or have endless headers, on real sockets."""

import asyncio
import contextlib
import io
import json
import socket
import time

import numpy as np
import pytest
from starlette.responses import StreamingResponse

from ivideogpt.core.errors import UserError
from ivideogpt.serve import app as app_module
from ivideogpt.serve.guard import Access, Limits

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SOON = 30


def dial(served):
    return served.stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=SOON))


def answer_of(connection):
    """Status and sentence of the answer, read to the end of the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert head, "closed without an answer"
    return int(head.split()[1]), json.loads(body).get("error", "")


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, frames=np.zeros((4, 16, 16, 3), np.uint8))
    return buffer.getvalue()


def begin_upload(served, length=1_000_000, name="a.npz"):
    connection = dial(served)
    head = f"POST /api/episodes?name={name} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: {length}"
    connection.sendall(f"{head}\r\n\r\n".encode() + b"P")
    return connection


# Headers


def test_a_header_without_end_is_refused(served):
    connection = dial(served)
    connection.sendall(GET + b"X: ")
    with contextlib.suppress(OSError):
        for _ in range(64):
            connection.sendall(b"a" * 65536)
        pytest.fail("4 MB of header were taken")
    connection = dial(served)
    connection.sendall(GET + b"X: " + b"a" * 40_000)
    assert answer_of(connection) == (431, "the header has more than 32768 bytes; send less")
    assert served.get("/healthz", headers={"X": "a" * 20_000}).status_code == 200


def test_what_is_no_http_is_one_sentence(served):
    connection = dial(served)
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")  # the beginning of TLS
    assert answer_of(connection) == (400, "the request is no HTTP; open the address in a browser")


def test_silent_and_dripping_connections_end(start):
    served = start(limits=Limits(header_seconds=0.6))
    silent, dripping, after_an_answer = dial(served), dial(served), dial(served)
    began = time.monotonic()
    after_an_answer.sendall(GET + b"\r\n")
    assert b"200 OK" in after_an_answer.recv(65536)
    after_an_answer.sendall(GET)
    dripping.sendall(b"GET")
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 0.9:
            dripping.sendall(b"a")
            time.sleep(0.1)
    assert silent.recv(100) == b""
    for connection in (dripping, after_an_answer):
        assert answer_of(connection) == (408, "the header took more than 0.6 s; send it at once")
    assert time.monotonic() - began >= 0.6


def test_an_answer_that_nobody_reads_ends(start, monkeypatch):
    async def endless(self, session):
        async def pieces():
            while True:
                yield b"a" * 2**20
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    monkeypatch.setattr(app_module._Server, "download", endless)
    served = start(limits=Limits(request_seconds=0.5))
    connection = dial(served)
    connection.sendall(b"GET /api/sessions/a/download HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(0.8)
    with pytest.raises(OSError):
        for _ in range(100):
            connection.sendall(b"\r\n")
            time.sleep(0.05)


def test_a_player_has_no_deadline(start):
    served = start(limits=Limits(header_seconds=0.3, request_seconds=0.3))
    player = served.player()
    player.open()
    time.sleep(0.7)
    assert player.step()["step"] == 1


# Shares


def test_one_address_has_a_share_of_the_connections(start):
    served = start(limits=Limits(connections_of_address=3))
    player = served.player()
    first, _ = dial(served), dial(served)
    assert served.get("/healthz").status_code == 429
    assert answer_of(dial(served)) == (429, "3 connections of this address are open; close some")
    first.close()
    deadline = time.monotonic() + SOON
    while served.get("/healthz").status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.get("/healthz").json() == {"status": "ok"}
    player.open()
    assert player.step()["step"] == 1


def test_uploads_that_drip_do_not_stop_others(served):
    for _ in range(4):
        begin_upload(served)
    assert served.upload("good.npz", npz()).status_code == 201
    player = served.player()
    player.open()
    player.step()
    path = f"/api/sessions/{player.hello['session']}/download?format=npz"
    assert served.get(path).status_code == 200


def test_an_upload_that_drips_ends(served, monkeypatch):
    monkeypatch.setattr(app_module, "_UPLOAD_GRACE", 0.4)
    began = time.monotonic()
    status, sentence = answer_of_upload(begin_upload(served))
    assert status == 408 and sentence.startswith("the upload is too slow: 1 bytes came in 0 s; send less")
    assert time.monotonic() - began >= 0.4
    assert served.upload("good.npz", npz()).status_code == 201


def answer_of_upload(connection):
    received = connection.recv(65536)
    while b"}" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_one_address_has_a_share_of_the_uploads(start):
    served = start(limits=Limits(uploads_of_address=2))
    going, _ = begin_upload(served), begin_upload(served)
    assert answer_of_upload(begin_upload(served)) == (429, "several files are being uploaded; try again in a while")
    going.close()
    deadline = time.monotonic() + SOON
    while served.upload("good.npz", npz()).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.upload("good.npz", npz()).status_code == 201


# Cookies and the number of sessions


@pytest.mark.parametrize(
    "cookies",
    [
        'prefs={"a": 1}; {ours}',
        "theme=caf\xe9; {ours}",
        "a b=1; {ours}",
        "=; ;;{ours}",
        "{ours}; {[(<@>)]}",
    ],
)
def test_odd_cookies_of_other_programs_do_not_hide_the_token(start, cookies):
    access = Access(token="a-token-of-the-test")
    served = start(access=access)
    header = cookies.replace("{ours}", f"{access.cookie}={access.token}")
    assert served.get("/api/world", headers={"Cookie": header.encode("latin-1")}).status_code == 200
    wrong = header.replace(str(access.token), "wrong").encode("latin-1")
    assert served.get("/api/world", headers={"Cookie": wrong}).status_code == 401


def test_the_number_of_sessions_is_chosen():
    assert (Limits.of(8), Limits.of(1).sessions) == (Limits(), 1)
    assert Limits.of(100).connections == 1600 and Limits.of(100).connections_of_address == 800
    for sessions in (0, -1, 257):
        with pytest.raises(UserError, match=f"sessions is {sessions}; expected 1 to 256"):
            Limits.of(sessions)


def test_one_more_than_the_sessions_is_turned_away(start):
    served = start(limits=Limits.of(2))
    players = [served.player() for _ in range(2)]
    for player in players:
        player.open()
    assert served.dial().farewell() == (4429, "2 sessions are open already; try again later")
