"""Limits of a connection: size and time of its headers, time of a request, a share of each address."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ivideogpt.serve.guard import Limits

# Of a websocket message that is not even read; the protocol's own limit is far below.
_MESSAGE_BYTES = 2**20


def server_of(app: Any) -> uvicorn.Server:
    """Make the server that runs an application of `create_app`; give its ``run`` a listening socket."""
    limits: Limits = app.state.limits
    config = uvicorn.Config(
        app,
        http=partial(LimitedProtocol, limits=limits),  # type: ignore[arg-type]  # called as a class is
        # Of the parsers of uvicorn, h11 alone has a limit on what it keeps of an unfinished header.
        h11_max_incomplete_event_size=limits.header_bytes,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # pictures of noise hardly shrink, and it takes time of the one loop
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


class LimitedProtocol(H11Protocol):
    """HTTP of uvicorn with deadlines.

    ``header_seconds`` from the start of a connection, or the end of an answer, to the end of the next header, whether
    bytes arrive or not. ``request_seconds`` from there to the end of the answer. A websocket has its pings instead.
    """

    def __init__(self, *arguments: Any, limits: Limits, **options: Any) -> None:
        """Take the ``limits`` beside the arguments of uvicorn."""
        super().__init__(*arguments, **options)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._in_request: bool | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or refuse an address that has its share of connections."""
        super().connection_made(transport)
        same = sum(1 for other in self.connections if _address(other) == _address(self))
        if same > self._limits.connections_of_address:
            most = self._limits.connections_of_address
            self._refuse("429 Too Many Requests", f"{most} connections of this address are open; close some")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse ``data``, and start the clock of the request when a header is complete."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next header."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed header with an error in the form of all others."""
        buffered = len(self.conn.trailing_data[0])
        if buffered > self._limits.header_bytes:
            most = self._limits.header_bytes
            self._refuse("431 Request Header Fields Too Large", f"the header has more than {most} bytes; send less")
        else:
            self._refuse("400 Bad Request", "the request is no HTTP; open the address in a browser")

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Continue as a websocket, without a deadline."""
        self._stop_watch()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_watch()
        super().connection_lost(exc)

    # Parts

    def _watch(self) -> None:
        """Set the deadline of the current phase, unless it is set already."""
        in_request = self.cycle is not None and not self.cycle.response_complete
        if in_request is self._in_request or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        self._stop_watch()
        self._in_request = in_request
        seconds = self._limits.request_seconds if in_request else self._limits.header_seconds
        self._deadline = self.loop.call_later(seconds, self._expired)

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline, self._in_request = None, None

    def _expired(self) -> None:
        if self._in_request:
            self.transport.abort()
            return
        begun = self.conn.trailing_data[0]
        if begun:
            seconds = self._limits.header_seconds
            self._refuse("408 Request Timeout", f"the header took more than {seconds:g} s; send it at once")
        else:
            self._close()

    def _refuse(self, status: str, sentence: str) -> None:
        body = json.dumps({"error": sentence}).encode()
        header = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{header}connection: close\r\n\r\n".encode() + body)
        self._close()

    def _close(self) -> None:
        """Close once the last answer is sent, and in any case after the time of a request."""
        self._stop_watch()
        self.transport.close()
        self._deadline = self.loop.call_later(self._limits.request_seconds, self.transport.abort)


def _address(protocol: Any) -> str:
    """Return the address of the other end of a connection of HTTP or a websocket; empty once it is gone."""
    peer = protocol.transport.get_extra_info("peername") if protocol.transport is not None else None
    return str(peer[0]) if peer else ""
