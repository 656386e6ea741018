"""A server with a tiny model on a free port, and a client that speaks the protocol."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ivideogpt.core.episode import Episode
from ivideogpt.serve import guard, library, players
from ivideogpt.serve.app import create_app
from ivideogpt.serve.connections import server_of
from ivideogpt.serve.players import Players
from ivideogpt.serve.protocol import unpack_frame
from ivideogpt.worldmodel.world_model import WorldModel


class Client:
    """One player."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.errors: list[str] = []

    def tell(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def hear(self, timeout: float = 600) -> dict[str, Any]:
        """The next message; of a frame its header with its ``picture``."""
        received = self.socket.recv(timeout=timeout)
        if isinstance(received, str):
            return json.loads(received)
        header, picture = unpack_frame(received)
        return header | {"picture": picture}

    def ask(self, kind: str, **fields: object) -> dict[str, Any]:
        self.tell(kind, **fields)
        return self.hear()

    def open(self, episode: str = "0", **fields: object) -> dict[str, Any]:
        answer = self.ask("open", episode=episode, **fields)
        assert answer["type"] == "state", answer
        return answer["state"]

    def step(self, **fields: object) -> dict[str, Any]:
        answer = self.ask("step", **({"action": "episode"} | fields))
        assert answer["type"] == "frame", answer
        return answer

    def farewell(self) -> tuple[int, str]:
        """Close code and sentence; messages before it are passed over."""
        said = ""
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = self.hear()
                said = message["message"] if message.get("fatal") else said
        return self.socket.protocol.close_code, said


@dataclass
class Served:
    """A running server."""

    port: int
    players: Players
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.address + path, timeout=600, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def upload(self, name: str, body: object) -> httpx.Response:
        return self.request("POST", "/api/episodes", params={"name": name}, content=body)

    def dial(self, session: str | None = None, **options: Any) -> Client:
        """A connection; its hello is not read yet."""
        query = f"?session={session}" if session else ""
        return Client(self.stack.enter_context(connect(f"ws://127.0.0.1:{self.port}/ws{query}", **options)))

    def player(self, session: str | None = None) -> Client:
        """A player that has been greeted; ``.hello`` is what was said."""
        client = self.dial(session)
        client.hello = client.hear()
        assert client.hello["type"] == "hello"
        return client


@contextlib.contextmanager
def serving(model: WorldModel, episodes: list[Episode], **options: Any) -> Iterator[Served]:
    app = create_app(model, episodes, **options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        served = Served(listening.getsockname()[1], app.state.players)
        try:
            with served.stack:
                yield served
        finally:
            server.should_exit = True
            thread.join(600)


@dataclass
class Clock:
    """What the server takes for seconds since some moment; it stands still."""

    now: float


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of what expires and of what comes too often: only the test moves it, so that load cannot."""
    made = Clock(time.monotonic())
    for module in (guard, library, players):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture(scope="session")
def recorded(frames_for: Callable, build: Callable) -> Episode:
    """24 frames of 16 px with two actions."""
    model = build("plain")
    frames = (frames_for(model, 1, 24)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    actions = np.random.default_rng(0).uniform(-1, 1, (24, 2)).astype(np.float32)
    return Episode(frames=frames, actions=actions, key="noise")


@pytest.fixture(scope="session")
def model(build: Callable) -> WorldModel:
    """A model of 16 px with two actions, a reward and segments of four frames; tests leave it as it is."""
    return build("plain", frame_stride=1)


@pytest.fixture
def start(model: WorldModel, recorded: Episode) -> Iterator[Callable[..., Served]]:
    """``start(**options of create_app)``: a server of its own."""
    with contextlib.ExitStack() as stack:

        def call(model: WorldModel = model, episodes: list[Episode] | None = None, **options: Any) -> Served:
            given = [recorded] if episodes is None else episodes
            return stack.enter_context(serving(model, given, **options))

        yield call


@pytest.fixture(scope="module")
def running(model: WorldModel, recorded: Episode) -> Iterator[Served]:
    """A server that the tests of a file share."""
    with serving(model, [recorded]) as server:
        yield server


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    """The same; each test hangs up at its end."""
    yield running
    running.stack.close()
