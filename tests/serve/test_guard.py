"""Who may ask: hosts, origins, the token, rates; and the headers of every answer."""

import socket

import pytest
from websockets.sync.client import connect

from ivideogpt.serve.guard import Access, Rate, is_loopback
from ivideogpt.serve.library import Library

TOKEN = "a-token-of-the-test"
HEADERS = {
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-resource-policy",
    "cache-control",
}


def guarded(start):
    return start(access=Access(token=TOKEN))


# Addresses


@pytest.mark.parametrize(
    ("listens_on", "host", "ours"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:1234", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "evil.example:7860", False),
        ("127.0.0.1", "192.168.1.5:7860", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "localhost; script-src *", False),
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("192.168.1.5", "192.168.1.6:7860", False),
        ("robot.local", "robot.local:7860", True),
    ],
)
def test_a_host_is_ours_or_foreign(listens_on, host, ours):
    assert Access.of(listens_on).is_ours(host) is ours


def test_only_this_machine_needs_no_token():
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.5") and not is_loopback("")
    assert Access.of("127.0.0.1").token is None
    tokens = {Access.of("0.0.0.0").token for _ in range(3)}
    assert len(tokens) == 3 and all(len(token) >= 40 for token in tokens)


def test_a_foreign_host_is_refused(served):
    for path in ("/", "/api/world", "/healthz", "/static/app.js"):
        answer = served.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 403
        assert "Host is 'evil.example', which is not served here" in answer.json()["error"]
        assert "evil" not in answer.headers["content-security-policy"]


def test_a_post_from_another_page_is_refused(served):
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:1",
        f"ftp://127.0.0.1:{served.port}",
        "http://[::1",
    ):
        answer = served.request("POST", "/api/episodes?name=a.gif", headers={"Origin": origin}, content=b"1")
        assert answer.status_code == 403 and answer.json()["error"].startswith("Origin is ")
    own = served.request("POST", "/api/episodes?name=a.gif", headers={"Origin": served.address}, content=b"1")
    assert own.status_code == 400 and "cannot be read" in own.json()["error"]


def test_a_websocket_from_another_page_is_refused(served):
    bystander = served.player()
    bystander.open()
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        code, said = served.dial(origin=origin).farewell()
        assert code == 4403 and said == f"Origin is {origin!r}; expected a page of this server"
    assert served.dial(origin=served.address).hear()["type"] == "hello"
    assert bystander.step()["step"] == 1


def test_a_websocket_under_a_foreign_host_is_refused(served):
    sock = socket.create_connection(("127.0.0.1", served.port))
    client = served.stack.enter_context(connect("ws://evil.example/ws", sock=sock))
    said = client.recv()
    assert '"fatal": true' in said and "Host is 'evil.example'" in said
    with pytest.raises(Exception, match="4403"):
        client.recv()


# The token


def test_nothing_is_told_without_the_token(start):
    served = guarded(start)
    for path in (
        "/",
        "/api/world",
        "/api/episodes/0/picture",
        "/api/sessions/x/download",
        "/static/app.js",
        "/nowhere",
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "ivideogpt-00000000=wrong"}):
            answer = served.get(path, headers=headers)
            assert answer.status_code == 401 and "no valid token came" in answer.json()["error"]
    assert served.get("/?token=wrong").status_code == 401
    assert served.get(f"/api/world?token={TOKEN}").status_code == 401
    assert served.request("POST", "/api/episodes?name=a.gif", content=b"1").status_code == 401
    assert served.get("/healthz").json() == {"status": "ok"}
    code, said = served.dial().farewell()
    assert code == 4401 and "no valid token came" in said


def test_the_token_becomes_a_cookie(start):
    served = guarded(start)
    answer = served.get(f"/?token={TOKEN}")
    assert answer.status_code == 200 and "url=/" in answer.text and TOKEN not in answer.text
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert answer.headers["cache-control"] == "no-store" and answer.headers["referrer-policy"] == "no-referrer"
    header = {"Cookie": cookie.partition(";")[0]}
    assert served.get("/api/world", headers=header).status_code == 200
    assert served.dial(additional_headers=header).hear()["type"] == "hello"


def test_programs_may_send_the_token_as_a_header(start):
    served = guarded(start)
    header = {"Authorization": f"Bearer {TOKEN}"}
    assert served.get("/api/world", headers=header).status_code == 200
    player = served.dial(additional_headers=header)
    player.hear()
    player.open()
    # Others are turned away meanwhile.
    assert served.dial(additional_headers={"Authorization": "Bearer x"}).farewell()[0] == 4401
    assert player.step()["step"] == 1


# Rates and headers


def test_a_rate_lets_so_many_through_in_a_second():
    rate = Rate(0.001, at_once=3)
    assert [rate.allows() for _ in range(5)] == [True, True, True, False, False]


def test_too_many_requests_are_refused(served, monkeypatch):
    monkeypatch.setattr(Rate, "allows", lambda self: False)
    answer = served.get("/api/world")
    assert answer.status_code == 429 and answer.json()["error"] == "too many requests came; wait a second"
    assert served.get("/healthz").status_code == 200


def test_every_answer_has_the_headers(served, monkeypatch, caplog):
    answers = [served.get(path) for path in ("/", "/healthz", "/api/world", "/nowhere", "/static/nowhere.js")]
    answers += [served.get("/", headers={"Host": "evil.example"}), served.request("DELETE", "/api/world")]
    monkeypatch.setattr(Library, "about", lambda self: 1 / 0)
    answers.append(served.get("/api/world"))
    assert [answer.status_code for answer in answers[1:]] == [200, 200, 404, 404, 403, 405, 500]
    assert answers[-1].json() == {"error": "the server failed; its terminal says why"}
    assert "ZeroDivisionError" in caplog.text
    for answer in answers:
        assert set(answer.headers) >= HEADERS
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert answers[2].headers["cache-control"] == "no-store"
    assert f"ws://127.0.0.1:{served.port}" in answers[2].headers["content-security-policy"]
    assert "server" not in answers[2].headers
