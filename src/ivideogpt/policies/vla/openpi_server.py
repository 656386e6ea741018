"""Server of the openpi policy protocol for any policy of ours.

    server = PolicyServer(make_policy, metadata={"image_size": 64}, port=8000)
    server.run()                                    # until shutdown()

A connection gets the metadata, then an answer for each observation. An observation that cannot be answered gets a text
frame with the error, and the connection is closed with code 1011. ``GET /healthz`` answers "OK".

Source: Physical-Intelligence/openpi, WebsocketPolicyServer; same frames.
"""

from __future__ import annotations

import hmac
import http
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.protocols import Policy
from ivideogpt.core.reading import reason
from ivideogpt.policies.vla.openpi import resize_with_pad
from ivideogpt.policies.vla.openpi_wire import MOST_BYTES, pack, unpack

try:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import ServerConnection, serve
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "openpi") from error

_INTERNAL_ERROR = 1011
#: Connections that are answered at a time.
MOST_CONNECTIONS = 64


class PolicyServer:
    """A server whose connections each have a policy of their own: an episode is a connection."""

    def __init__(
        self,
        make_policy: Callable[[int], Policy],
        *,
        metadata: Mapping[str, Any],
        image_size: int | None = None,
        frame_stack: int = 1,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
    ) -> None:
        """Listen; `run` answers.

        Args:
            make_policy: makes the policy of a connection from a seed, the number of the connection.
            metadata: sent to each client first.
            image_size: side of the pictures that the policy sees; None: as they come.
            frame_stack: frames that it sees.
            host: address to listen on.
            port: 0: any free one.
            api_key: that clients must send; None: none.

        Raises:
            UserError: the port is taken.
        """
        self._make_policy, self._metadata = make_policy, dict(metadata)
        self._image_size, self._stack, self._api_key = image_size, frame_stack, api_key
        self._lock, self._opened, self._open = threading.Lock(), 0, 0
        try:
            self._server = serve(
                self._handle,
                host,
                port,
                compression=None,
                max_size=MOST_BYTES,
                process_request=self._process_request,
            )
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be used ({reason(error)}); choose another --port") from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.socket.getsockname()[1])

    def run(self) -> None:
        """Answer until `shutdown`."""
        self._server.serve_forever()

    def shutdown(self) -> None:
        """End all connections and stop."""
        self._server.shutdown()

    def _process_request(self, connection: ServerConnection, request: Any) -> Any:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        expected = f"Api-Key {self._api_key}"
        given = request.headers.get("Authorization", "")
        if self._api_key is not None and not hmac.compare_digest(given.encode(), expected.encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "give the key as Authorization: Api-Key KEY\n")
        if self._open >= MOST_CONNECTIONS:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    def _handle(self, connection: ServerConnection) -> None:
        with self._lock:
            number, self._opened, self._open = self._opened, self._opened + 1, self._open + 1
        try:
            episode = _ServedEpisode(self._make_policy(number), number, self._image_size, self._stack)
            connection.send(pack(self._metadata))
            total: float | None = None
            while True:
                message, start = connection.recv(), time.monotonic()
                if isinstance(message, str):
                    raise UserError("a text frame came; expected an observation in msgpack")
                observation = unpack(message)
                with self._lock:  # policies share weights and random numbers
                    began = time.monotonic()
                    actions = episode.act(observation)
                    timing = {"infer_ms": 1000 * (time.monotonic() - began)}
                if total is not None:
                    timing["prev_total_ms"] = 1000 * total
                connection.send(pack({"actions": actions, "server_timing": timing}))
                total = time.monotonic() - start
        except ConnectionClosed:
            pass
        except Exception as error:
            # The text of a user's error says what to do; any other is a bug, whose traceback helps.
            text = str(error) if isinstance(error, UserError) else traceback.format_exc()
            try:
                connection.send(text)
                connection.close(_INTERNAL_ERROR, "the observation could not be answered")
            except ConnectionClosed:
                pass
        finally:
            with self._lock:
                self._open -= 1


class _ServedEpisode:
    """The policy of a connection, and the last frames that it saw."""

    def __init__(self, policy: Policy, seed: int, image_size: int | None, stack: int) -> None:
        self._policy, self._seed, self._image_size = policy, seed, image_size
        self._frames: deque[np.ndarray] = deque(maxlen=stack)
        self._instruction: str | None = None

    def act(self, observation: Any) -> np.ndarray:
        """Return the actions float32 ``[chunk a]`` for an observation of the protocol.

        Raises:
            UserError: it has no picture.
        """
        picture = observation.get("observation/image") if isinstance(observation, dict) else None
        shape = picture.shape if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 else ()
        if not isinstance(picture, np.ndarray) or len(shape) != 3 or shape[2] != 3 or not picture.size:
            raise UserError("the observation has no picture 'observation/image'; expected uint8 [h w 3]")
        prompt = str(observation.get("prompt", ""))
        if prompt != self._instruction:
            self._policy.reset([self._seed], [prompt])
            self._instruction = prompt
            self._frames.clear()
        frame = picture if self._image_size is None else resize_with_pad(picture, self._image_size)
        while len(self._frames) < (self._frames.maxlen or 1) - 1:
            self._frames.append(frame)
        self._frames.append(frame)
        seen = {"frames": np.stack(self._frames)[None]}
        if "observation/state" in observation:
            seen["state"] = np.asarray(observation["observation/state"], np.float64)[None]
        actions = self._policy.act(seen)
        return np.asarray(actions[0] if actions.ndim == 3 else actions, np.float32)
