"""Access to the server: Host and Origin, the token, rates and limits; security headers on every answer."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from ivideogpt.core.errors import UserError
from ivideogpt.serve.protocol import FOREIGN, NO_TOKEN, HangUp, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# A host and a port as they stand in a header: nothing that could end the header or a policy.
_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")
_LOGGER = logging.getLogger("ivideogpt.serve")
MOST_SESSIONS = 256
# Requests of a page that loads its files and pictures of all episodes.
_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE = 50.0, 500.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one player and of all players together.

    Attributes:
        steps: frames of one world.
        upload_bytes: of one file.
        upload_frames: of one file, as recorded.
        message_bytes: of one message.
        steps_in_flight: step messages not yet answered.
        worlds: of one player.
        messages_per_second: of one player.
        sessions: players at a time.
        idle_seconds: until a session without messages, or an unused upload, is dropped.
        uploads: episodes kept at a time.
        upload_memory: bytes of frames of all uploads.
        session_memory: bytes of frames of one player; it may lower ``steps``.
        decoded_bytes: of one uploaded archive, unpacked.
        picture_pixels: of one uploaded picture.
        total_pixels: of all pictures of one upload.
        uploads_arriving: uploads in progress at a time.
        uploads_of_address: the same of one address.
        upload_bytes_per_second: least rate of an upload, after the first ten seconds.
        header_bytes: of one request.
        header_seconds: from the start of a connection, or the answer before, to the end of a request's header.
        request_seconds: from there to the end of the answer.
        connections: at a time.
        connections_of_address: the same of one address.
    """

    steps: int = 2000
    upload_bytes: int = 32 * 2**20
    upload_frames: int = 2000
    message_bytes: int = 8192
    steps_in_flight: int = 2
    worlds: int = 2
    messages_per_second: int = 200
    sessions: int = 8
    idle_seconds: float = 600.0
    uploads: int = 16
    upload_memory: int = 256 * 2**20
    session_memory: int = 256 * 2**20
    decoded_bytes: int = 128 * 2**20
    picture_pixels: int = 10_000_000
    total_pixels: int = 2_000_000_000
    uploads_arriving: int = 16
    uploads_of_address: int = 8
    upload_bytes_per_second: int = 16 * 2**10
    header_bytes: int = 32 * 2**10
    header_seconds: float = 10.0
    request_seconds: float = 300.0
    connections: int = 128
    connections_of_address: int = 64

    def __post_init__(self) -> None:
        """Check the number of sessions.

        Raises:
            UserError: it is out of range.
        """
        if not 1 <= self.sessions <= MOST_SESSIONS:
            raise UserError(f"sessions is {self.sessions}; expected 1 to {MOST_SESSIONS}")

    @classmethod
    def of(cls, sessions: int) -> Limits:
        """Return the limits of a server for so many players; a browser opens up to seven connections for each.

        Raises:
            UserError: ``sessions`` is out of range.
        """
        return cls(sessions=sessions, connections=max(128, 16 * sessions), connections_of_address=max(64, 8 * sessions))


@dataclass(frozen=True, kw_only=True)
class Access:
    """Rules of access to the server: hosts, origins and the token.

    Attributes:
        hosts: names and addresses that a Host header may hold; ``any_address``: also every numeric address.
        any_address: the server listens on all addresses of the machine. A page that lies about its address needs a
            name for that, so numeric addresses are safe.
        token: to be sent as a cookie or as ``Authorization: Bearer``; None: no token is asked for.
    """

    hosts: frozenset[str] = _LOOPBACK
    any_address: bool = False
    token: str | None = None

    @classmethod
    def of(cls, host: str) -> Access:
        """Make the rules of a server that listens on ``host``: beyond this machine it asks for a new token."""
        if is_loopback(host):
            return cls(hosts=_LOOPBACK | {host.lower()})
        names = _LOOPBACK | {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return cls(hosts=names, any_address=host in ("0.0.0.0", "::", ""), token=secrets.token_urlsafe(32))

    @property
    def cookie(self) -> str:
        """Name of the cookie; servers on other ports of the same host have others."""
        assert self.token is not None
        return f"ivideogpt-{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    def is_ours(self, host: str) -> bool:
        """Return True where a Host header names an address that is served."""
        match = _AUTHORITY.fullmatch(host)
        if match is None:
            return False
        name = match["host"].strip("[]").lower()
        return name in self.hosts or (self.any_address and _is_address(name))

    def is_token(self, given: str) -> bool:
        """Compare ``given`` with the token, in constant time."""
        return self.token is not None and secrets.compare_digest(given.encode(), self.token.encode())


class Rate:
    """Limit of events a second; as many as a second's worth, or ``at_once``, may come together."""

    def __init__(self, per_second: float, at_once: float | None = None) -> None:
        """Begin with the full allowance."""
        self._per_second, self._at_once = per_second, at_once or per_second
        self._left, self._before = self._at_once, time.monotonic()

    def allows(self) -> bool:
        """Count one event; return False if it is too much."""
        now = time.monotonic()
        self._left = min(self._at_once, self._left + (now - self._before) * self._per_second)
        self._before = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass
class Guard:
    """The outermost layer of the application: passes allowed requests on and answers the others itself."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    access: Access
    rate: Rate = field(default_factory=lambda: Rate(_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or websocket."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        try:
            self._check_address(headers, origin=True)
            self._check_token(headers)
        except Refused as error:
            code = NO_TOKEN if error.status == 401 else FOREIGN
            await receive()
            # Accepted first: a browser tells a page the close code of an open websocket only.
            await send({"type": "websocket.accept"})
            await hang_up(send, HangUp(code, str(error)))
            return
        await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, started = _headers(scope), False
        host = headers.get("host", "")
        safe = host if self.access.is_ours(host) else ""

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *_security_headers(scope["path"], safe)]
            await send(message)

        try:
            self._check_address(headers, origin=scope["method"] not in ("GET", "HEAD"))
            if scope["path"] != "/healthz":
                given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
                if self.access.token and scope["path"] == "/" and self.access.is_token(given):
                    await _welcome(guarded, self.access)
                    return
                self._check_token(headers)
                if not self.rate.allows():
                    raise Refused(429, "too many requests came; wait a second")
            await self.app(scope, receive, guarded)
        except Refused as error:
            await answer(guarded, error.status, str(error))
        except Exception:
            _LOGGER.exception("a request failed: %s %s", scope["method"], scope["path"])
            if started:
                raise
            await answer(guarded, 500, "the server failed; its terminal says why")

    def _check_address(self, headers: dict[str, str], origin: bool) -> None:
        host = headers.get("host", "")
        if not self.access.is_ours(host):
            raise Refused(403, f"Host is {host[:80]!r}, which is not served here; use the address that was printed")
        if origin and "origin" in headers:
            scheme, _, authority = headers["origin"].partition("://")
            if scheme not in ("http", "https") or authority.lower() != host.lower():
                raise Refused(403, f"Origin is {headers['origin'][:80]!r}; expected a page of this server")

    def _check_token(self, headers: dict[str, str]) -> None:
        if self.access.token is None:
            return
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not self.access.is_token(given) and not self.access.is_token(_cookie(headers, self.access.cookie)):
            raise Refused(401, "no valid token came; open the address that ivideogpt serve printed")


def is_loopback(host: str) -> bool:
    """Return True where only this machine reaches ``host``."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


async def answer(send: Send, status: int, sentence: str) -> None:
    """Send ``{"error": sentence}``."""
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hang_up(send: Send, why: HangUp) -> None:
    """Send the reason over a websocket, and close it."""
    text = json.dumps({"type": "error", "message": str(why), "fatal": True})
    await send({"type": "websocket.send", "text": text})
    reason = str(why).encode("ascii", "replace")[:120].decode()  # a close frame has room for 123 bytes
    await send({"type": "websocket.close", "code": why.code, "reason": reason})


def _headers(scope: Scope) -> dict[str, str]:
    """Return headers by lower-case name; repeated ones are joined, which no check accepts as a host or origin."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}; {value}" if name in headers else value
    return headers


def _cookie(headers: dict[str, str], name: str) -> str:
    """Return the value of a cookie, or an empty text.

    Cookies know no ports: those of other programs on this host come too, in forms that `http.cookies` does not read.
    """
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _security_headers(path: str, host: str) -> list[tuple[bytes, bytes]]:
    # Older browsers do not take a websocket of the same host for 'self'.
    sockets = f" ws://{host} wss://{host}" if host else ""
    policy = (
        f"default-src 'self'; img-src 'self' blob: data:; connect-src 'self'{sockets}; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
        # The page may be kept, but is asked for again: it belongs to one version of the server.
        (b"cache-control", b"no-cache" if path.startswith("/static/") else b"no-store"),
    ]


async def _welcome(send: Send, access: Access) -> None:
    """Change the token of the address into a cookie, and lead on to the page.

    Not as a redirect: a browser that came from another site would not send the cookie along.
    """
    body = b'<!doctype html><meta http-equiv="refresh" content="0; url=/"><title>iVideoGPT</title>'
    cookie = f"{access.cookie}={access.token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"set-cookie", cookie.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
