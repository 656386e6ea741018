"""Client of the openpi policy protocol: a policy that runs on another machine, such as pi0.5.

    policy = OpenPIPolicy("ws://127.0.0.1:8000")
    policy.reset([0], ["push the T to its goal"])
    policy.act({"frames": frames})              # uint8 [1 k h w 3] -> float32 [1 chunk a]

The server sends its metadata, then answers each observation with a chunk of actions; a text frame is its error. The
protocol has no reset: each episode has a connection of its own.

Source: Physical-Intelligence/openpi; same frames. Differs: connecting is tried again for a limited time, and each reply
has a time limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import numpy as np
from PIL import Image

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import reason
from ivideogpt.policies.vla.openpi_wire import MOST_BYTES, pack, unpack

try:
    from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "openpi") from error

#: Environment variable with the key of a server that asks for one.
API_KEY = "OPENPI_API_KEY"
#: Side of the pictures that servers of openpi expect, unless their metadata say otherwise.
IMAGE_SIZE = 224
# Seconds between two tries to connect, and of the shortest try.
_PAUSE, _LEAST_SECONDS = 1.0, 5.0
_LONGEST_ERROR = 300


@dataclass(frozen=True, kw_only=True)
class OpenPIOptions:
    """Options of a client, also as ``ws://HOST:PORT?replan=5&size=224``.

    Attributes:
        replan: actions of a chunk that are executed before the next request; 0: all.
        size: side of the pictures that are sent, padded with black to a square; 0: as the server's metadata say, else
            224.
        wrist: the server expects a wrist camera; there is none here, so a black picture is sent.
        wait: seconds to try to connect.
        timeout: seconds to wait for a reply.
    """

    replan: int = 0
    size: int = 0
    wrist: int = 0
    wait: float = 30.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        for name, value in vars(self).items():
            if not value >= 0 or (name == "timeout" and value == 0):
                raise UserError(f"{name} of the openpi client is {value}; expected at least 0, and a timeout above 0")


def parse_address(address: str) -> tuple[str, OpenPIOptions]:
    """Split an address into the address without options, and the options.

    Raises:
        UserError: an option is unknown or no number.
    """
    parts, values = urlsplit(address), {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OpenPIOptions.__dataclass_fields__:
            raise UserError(f"{address} has an unknown option {name!r}; {suggestion(name, vars(OpenPIOptions()))}")
        try:
            values[name] = float(text) if name in ("wait", "timeout") else int(text)
        except ValueError:
            raise UserError(f"{address} has {name}={text}; expected a number") from None
    return urlunsplit(parts._replace(query="")), OpenPIOptions(**values)


class OpenPIClient:
    """One connection to a policy server."""

    def __init__(self, address: str, options: OpenPIOptions | None = None, *, api_key: str | None = None) -> None:
        """Connect and read the server's metadata.

        Args:
            address: ``ws://HOST:PORT`` or ``wss://...``.
            options: time limits.
            api_key: sent as ``Authorization: Api-Key ...``; None: that of the environment variable OPENPI_API_KEY.

        Raises:
            UserError: there is no server after ``options.wait`` seconds, it refuses the connection, or it speaks
                another protocol.
        """
        self.address, self.options = address, options or OpenPIOptions()
        key = os.environ.get(API_KEY) if api_key is None else api_key
        self._headers = {"Authorization": f"Api-Key {key}"} if key else None
        self._stack = ExitStack()
        self._connection = self._connect()
        metadata = self._receive()
        if not isinstance(metadata, dict):
            kind = type(metadata).__name__
            raise UserError(f"{address} began with a {kind}, not with its metadata; it is no openpi server")
        self.metadata: dict[str, Any] = metadata

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Send an observation and return the server's answer, which holds ``actions``.

        Raises:
            UserError: the connection ended, the server was too slow, or it reported an error.
        """
        try:
            self._connection.send(pack(dict(observation)))
        except ConnectionClosed as error:
            raise self._ended(error) from error
        answer = self._receive()
        if not isinstance(answer, dict) or "actions" not in answer:
            kind = sorted(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
            raise UserError(f"{self.address} answered with {kind}, without 'actions'; it is no policy server")
        return answer

    def close(self) -> None:
        """End the connection."""
        self._stack.close()

    def _connect(self) -> ClientConnection:
        end = time.monotonic() + self.options.wait
        while True:
            try:
                connection = connect(
                    self.address,
                    compression=None,
                    max_size=MOST_BYTES,
                    additional_headers=self._headers,
                    open_timeout=max(end - time.monotonic(), _LEAST_SECONDS),
                )
                return self._stack.enter_context(connection)
            except InvalidURI as error:
                raise UserError(f"{self.address} is no address of a policy server; give ws://HOST:PORT") from error
            except InvalidStatus as error:
                status = error.response.status_code
                why = f"asks for a key: set {API_KEY}" if status in (401, 403) else f"answers with status {status}"
                raise UserError(f"the policy server {self.address} {why}") from error
            except (OSError, TimeoutError, WebSocketException) as error:
                if time.monotonic() + _PAUSE > end:
                    raise UserError(
                        f"there is no policy server at {self.address} after {self.options.wait:g} s "
                        f"({reason(error)}); start it, or check the address"
                    ) from error
                time.sleep(_PAUSE)

    def _receive(self) -> Any:
        try:
            message = self._connection.recv(timeout=self.options.timeout)
        except TimeoutError as error:
            self.close()
            raise UserError(
                f"the policy server {self.address} sent nothing for {self.options.timeout:g} s; raise timeout=, or "
                "look at the server"
            ) from error
        except ConnectionClosed as error:
            raise self._ended(error) from error
        if isinstance(message, str):
            raise UserError(
                f"the policy server {self.address} reported an error: {_last_line(message)}; its log tells more"
            )
        return unpack(message)

    def _ended(self, error: ConnectionClosed) -> UserError:
        return UserError(f"the policy server {self.address} ended the connection ({reason(error)}); start it again")


class OpenPIPolicy:
    """A `Policy` that runs in a policy server.

    Pictures are sent as ``observation/image``, the state as ``observation/state``, the instruction as ``prompt``.
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        """Take the address of a server, with options as in ``ws://HOST:PORT?replan=5``; `reset` connects.

        Raises:
            UserError: an option is wrong.
        """
        self.address, self.options = parse_address(address)
        self._api_key = api_key
        self._clients: list[OpenPIClient] = []
        self._instructions: list[str] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes with new connections; see `Policy`.

        Raises:
            UserError: there is no server.
        """
        before, self._clients = list(self._clients), []
        words = list(instructions or [""] * len(seeds))
        for row, seed in enumerate(seeds):
            if seed is None:
                self._clients.append(before[row])
                words[row] = words[row] or self._instructions[row]
                continue
            if row < len(before):
                before[row].close()
            self._clients.append(OpenPIClient(self.address, self.options, api_key=self._api_key))
        self._instructions = words

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Ask for the next actions of each row, float32 ``[b chunk a]``.

        Raises:
            UserError: see `OpenPIClient.infer`; or the actions are not finite numbers ``[chunk a]``.
        """
        chunks = []
        for row, client in enumerate(self._clients):
            state = observation["state"][row] if "state" in observation else None
            asked = self.observation(observation["frames"][row, -1], state, self._instructions[row], client.metadata)
            actions = np.asarray(client.infer(asked)["actions"])
            is_chunk = actions.ndim == 2 and len(actions) > 0 and actions.dtype.kind in "fiu"
            if not is_chunk or not np.isfinite(actions).all():
                raise UserError(
                    f"the policy server {self.address} gave actions {actions.dtype} of shape {list(actions.shape)}; "
                    "expected finite numbers [chunk a]"
                )
            chunks.append(actions[: self.options.replan or len(actions)].astype(np.float32))
        return np.stack(chunks)

    def observation(
        self, frame: np.ndarray, state: np.ndarray | None, instruction: str, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the message for a frame uint8 ``[h w 3]``, a state ``[s]`` or None, and the instruction."""
        size = self.options.size or int(metadata.get("image_size") or IMAGE_SIZE)
        message: dict[str, Any] = {"observation/image": resize_with_pad(frame, size), "prompt": instruction}
        if self.options.wrist:
            message["observation/wrist_image"] = np.zeros((size, size, 3), np.uint8)
        if state is not None:
            message["observation/state"] = np.asarray(state, np.float64)
        return message


def resize_with_pad(frame: np.ndarray, size: int) -> np.ndarray:
    """Resize a frame uint8 ``[h w 3]`` to ``[size size 3]``: bilinear, with black borders that keep its shape."""
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(frame)
    ratio = max(width / size, height / size)
    new_height, new_width = max(int(height / ratio), 1), max(int(width / ratio), 1)
    small = Image.fromarray(np.ascontiguousarray(frame)).resize((new_width, new_height), Image.Resampling.BILINEAR)
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    padded[top : top + new_height, left : left + new_width] = np.asarray(small)
    return padded


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "(empty)")[:_LONGEST_ERROR]
