"""Sessions of players, which outlive a connection, the messages of a connection, and the thread that computes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from ivideogpt.core.errors import UserError
from ivideogpt.serve import protocol
from ivideogpt.serve.guard import Limits, Rate, hang_up
from ivideogpt.serve.library import Library
from ivideogpt.serve.planning import Cancelled, PlayerPlanner
from ivideogpt.serve.protocol import HangUp, Message, Refused, Settings
from ivideogpt.serve.worlds import Seen, Worlds, changed, steps_within
from ivideogpt.worldmodel.world_model import WorldModel

T = TypeVar("T")
_LOGGER = logging.getLogger("ivideogpt.serve")
# Messages that were read and not yet handled; more wait in the socket.
_MOST_WAITING = 16
# Seconds to wait for a client that does not read the closing message.
_GOODBYE_SECONDS = 2.0


class Compute:
    """The one thread that computes, one job after the other.

    A player has at most one job here at a time, so players take turns.
    """

    def __init__(self) -> None:
        """Prepare the pool; the thread starts with the first job."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a job and return its result.

        If the caller is cancelled, a waiting job is dropped and a running one completes. Later jobs run after it.

        Raises:
            UserError: raised by the job.
            HangUp: the job failed in another way; the traceback is logged.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, _logged, function, *arguments)

    def piece(self, function: Callable[[], T]) -> T:
        """Run a job for another thread, which waits for its result; see `run`."""
        return self._executor.submit(_logged, function).result()

    def close(self) -> None:
        """Drop the waiting jobs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _logged(function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception:
        _LOGGER.exception("computing failed; the session ends")
    raise HangUp(protocol.FAILED, "the server failed while computing, and this session is lost; open another")


class Connection:
    """One websocket of a player."""

    def __init__(self, websocket: WebSocket) -> None:
        """Begin without waiting messages."""
        self.websocket = websocket
        self.waiting: asyncio.Queue[Message] = asyncio.Queue(_MOST_WAITING)
        self.steps_in_flight = 0
        #: One for each unanswered plan, in their order; set: its search was given up. At most the last is not set.
        self.searches: deque[threading.Event] = deque()
        self.greeted, self.gone = asyncio.Event(), asyncio.Event()
        self.ended: asyncio.Future[HangUp | None] = asyncio.get_running_loop().create_future()

    @property
    def is_busy(self) -> bool:
        """Return True while the player waits for an answer."""
        return self.steps_in_flight > 0 or len(self.searches) > 0 or not self.waiting.empty()

    def cancel_search(self) -> None:
        """Give up the search of a plan, waiting or running."""
        for search in self.searches:
            search.set()

    def end(self, why: HangUp) -> None:
        """End the connection with this reason, unless it has one already."""
        if not self.ended.done():
            self.ended.set_result(why)

    async def say(self, **message: object) -> None:
        """Send a text message."""
        await self._send(text=json.dumps(message, allow_nan=False))

    async def refuse(self, why: UserError, request: int | None) -> None:
        """Send an error; nothing else changes."""
        await self.answer(request, type="error", message=str(why))

    async def answer(self, request: int | None, **message: object) -> None:
        """Send a text message that repeats the request number of the message that it answers, if it had one."""
        await self.say(**message, **({} if request is None else {"request": request}))

    async def show(self, kind: str, step: int, seen: Seen, side: int, world: int | None, request: int | None) -> None:
        """Send a frame; wait for a client that does not read."""
        header = {"type": "frame", "kind": kind, "world": world, "step": step, "request": request}
        header |= {"height": side, "width": side}
        header |= {key: value for key, value in vars(seen).items() if key != "picture"}
        await asyncio.sleep(0)  # Sending does not wait while the socket has room, but other players need their turn.
        await self._send(bytes=protocol.encode_frame(header, seen.picture))

    async def _send(self, **content: str | bytes) -> None:
        try:
            await self.websocket.send({"type": "websocket.send", **content})
        except RuntimeError as error:
            # uvicorn has given up the connection, for example because its pings are not answered.
            raise WebSocketDisconnect(1006) from error


@dataclass(eq=False)
class Player:
    """State of a player that is kept between connections."""

    id: str
    settings: Settings
    worlds: Worlds | None = None
    connection: Connection | None = None
    last_used: float = field(default_factory=time.monotonic)

    def state(self) -> dict[str, Any] | None:
        """Return STATE of the protocol, or None where nothing is open."""
        return None if self.worlds is None else self.worlds.state()

    def opened(self) -> Worlds:
        """Return the open worlds.

        Raises:
            UserError: nothing is open.
        """
        if self.worlds is None:
            raise UserError("no world is open; send open first")
        return self.worlds

    def close(self) -> None:
        """Free the worlds."""
        if self.worlds is not None:
            self.worlds.close()
        self.worlds = None


class Players:
    """All players."""

    def __init__(self, model: WorldModel, library: Library, limits: Limits) -> None:
        """Begin without players."""
        self._model, self._library, self._limits = model, library, limits
        self._players: dict[str, Player] = {}
        self._compute = Compute()
        self._planner = PlayerPlanner(model)
        self._side = model.resolution
        self.most_steps = min(limits.steps, steps_within(model, limits.session_memory // limits.worlds))

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self._players)

    def get(self, identity: str) -> Player:
        """Return the player of a session.

        Raises:
            Refused: with status 404; there is no session of this id.
        """
        if identity not in self._players:
            raise Refused(404, "there is no such session; it may have expired")
        return self._players[identity]

    def close(self) -> None:
        """Close all sessions."""
        for player in list(self._players.values()):
            self._forget(player)
        self._compute.close()

    async def watch(self) -> None:
        """Close idle sessions and drop old uploads, until cancelled."""
        while True:
            await asyncio.sleep(min(self._limits.idle_seconds / 4, 15))
            now = time.monotonic()
            for player in list(self._players.values()):
                connection = player.connection
                if connection is not None and connection.is_busy:
                    continue
                if now - player.last_used > self._limits.idle_seconds:
                    if connection is not None:
                        connection.end(HangUp(protocol.IDLE, "nothing came for a while; the session is closed"))
                    self._forget(player)
            self._library.sweep({player.worlds.episode_id for player in self._players.values() if player.worlds})

    async def talk(self, websocket: WebSocket, session: str | None) -> None:
        """Serve one connection until it ends."""
        await websocket.accept()
        try:
            player, resumed = self._admitted(session)
        except HangUp as why:
            await hang_up(websocket.send, why)
            return
        connection = Connection(websocket)
        before, player.connection = player.connection, connection
        if before is not None:
            before.end(HangUp(protocol.OPENED_ELSEWHERE, "this session was opened elsewhere"))
            await before.gone.wait()
        tasks = [
            asyncio.create_task(self._answer(player, connection, resumed)),
            asyncio.create_task(self._listen(player, connection)),
        ]
        why: BaseException | None = None
        try:
            await asyncio.wait({*tasks, connection.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            failures = [result for result in results if isinstance(result, Exception)]
            why = connection.ended.result() if connection.ended.done() else next(iter(failures), None)
            await self._leave(player, connection, why)

    # Parts

    def _admitted(self, session: str | None) -> tuple[Player, bool]:
        if session in self._players:
            player = self._players[session]
            player.last_used = time.monotonic()
            return player, True
        if len(self._players) >= self._limits.sessions:
            lost = [player for player in self._players.values() if player.connection is None]
            if not lost:
                raise HangUp(protocol.TOO_MUCH, f"{len(self._players)} sessions are open already; try again later")
            self._forget(min(lost, key=lambda player: player.last_used))
        player = Player(secrets.token_urlsafe(16), Settings.of(self._model))
        self._players[player.id] = player
        return player, False

    async def _leave(self, player: Player, connection: Connection, why: BaseException | None) -> None:
        if why is not None and not isinstance(why, (HangUp, WebSocketDisconnect)):
            _LOGGER.error("a connection failed; its session ends", exc_info=why)
            why = HangUp(protocol.FAILED, "the server failed, and this session is lost; open another")
        if player.connection is connection:
            player.connection, player.last_used = None, time.monotonic()
            if player.worlds is None or (isinstance(why, HangUp) and why.code == protocol.FAILED):
                self._forget(player)
        # Errors of a connection that ends anyway do not matter.
        with contextlib.suppress(Exception):
            if isinstance(why, HangUp):
                await asyncio.wait_for(hang_up(connection.websocket.send, why), _GOODBYE_SECONDS)
        connection.gone.set()

    def _forget(self, player: Player) -> None:
        player.close()
        self._players.pop(player.id, None)

    async def _listen(self, player: Player, connection: Connection) -> None:
        """Read messages until the client has gone."""
        await connection.greeted.wait()
        rate = Rate(self._limits.messages_per_second)
        while True:
            received = await connection.websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            if not rate.allows():
                most = self._limits.messages_per_second
                raise HangUp(protocol.TOO_MUCH, f"more than {most} messages a second came; send fewer")
            message = protocol.parse(received.get("text"), self._limits.message_bytes)
            player.last_used = time.monotonic()
            if isinstance(message, protocol.StepRequest):
                if connection.steps_in_flight >= self._limits.steps_in_flight:
                    most = self._limits.steps_in_flight
                    why = UserError(f"{most} steps are not answered yet, as many as may be; wait for a frame")
                    await connection.refuse(why, message.request)
                    continue
                connection.steps_in_flight += 1
            elif isinstance(message, protocol.Cancel):  # at once: it does not wait behind the plan
                connection.cancel_search()
                continue
            elif isinstance(message, protocol.Plan):
                if not all(search.is_set() for search in connection.searches):
                    why = UserError("a plan is being searched already; wait for it, or cancel it")
                    await connection.refuse(why, message.request)
                    continue
                connection.searches.append(threading.Event())
            await connection.waiting.put(message)

    async def _answer(self, player: Player, connection: Connection, resumed: bool) -> None:
        """Handle messages in their order."""
        # As a job, so that it comes after running jobs of an earlier connection.
        state = await self._compute.run(player.state)
        await connection.say(type="hello", session=player.id, resumed=resumed, state=state)
        connection.greeted.set()
        while True:
            message = await connection.waiting.get()
            try:
                await self._follow(player, connection, message)
            except HangUp:
                raise
            except UserError as error:
                await connection.refuse(error, message.request)
            finally:
                connection.steps_in_flight -= isinstance(message, protocol.StepRequest)
            player.last_used = time.monotonic()

    async def _follow(self, player: Player, connection: Connection, message: Message) -> None:
        if isinstance(message, protocol.StepRequest):
            await self._step(player.opened(), connection, message)
            return
        if isinstance(message, (protocol.Show, protocol.Truth)):
            worlds = player.opened()
            shown = isinstance(message, protocol.Show)
            frames = worlds.show(message) if shown else worlds.truth(message)
            for step, seen in frames:
                kind, world = ("show", message.world) if shown else ("truth", None)
                await connection.show(kind, step, seen, self._side, world, message.request)
            return
        if isinstance(message, protocol.Plan):
            await self._plan(player, connection, message)
            return
        if isinstance(message, protocol.Open):
            await self._open(player, message)
        elif isinstance(message, protocol.ChangeSettings):
            player.settings = changed(player.settings, message.settings)
            if player.worlds is not None:
                player.worlds.change(player.settings)
        elif isinstance(message, protocol.Rewind):
            worlds = player.opened()
            chosen = worlds.chosen(message.world)
            worlds.check_rewind(chosen, message.step)
            for index in chosen:
                await self._compute.run(worlds.rewind, index, message.step)
        elif isinstance(message, protocol.Fork):
            await self._compute.run(player.opened().fork, self._limits.worlds)
        elif isinstance(message, protocol.Join):
            player.opened().join(message.keep)
        await connection.answer(message.request, type="state", state=player.state())

    async def _open(self, player: Player, message: protocol.Open) -> None:
        episode = self._library.get(message.episode)
        settings = changed(player.settings, message.settings)
        worlds = await self._compute.run(Worlds.open, self._model, message, episode, settings, self.most_steps)
        player.close()
        player.settings, player.worlds = settings, worlds

    async def _plan(self, player: Player, connection: Connection, message: protocol.Plan) -> None:
        """Search a plan; answer with its frames and then with its actions, or that it was cancelled."""
        stop = connection.searches[0]
        try:
            worlds = player.opened()
            (index,) = worlds.chosen(message.world)
            frames = self._library.get(message.episode).frames
            if not 0 <= message.frame < len(frames):
                raise UserError(f"frame is {message.frame}; expected 0 to {len(frames) - 1} in this episode")
            self._planner.check()
            search = self._planner.search, worlds, index, frames[message.frame], self._compute.piece, stop
            plan = await asyncio.to_thread(*search)
        except Cancelled:
            await connection.answer(message.request, type="plan", cancelled=True, actions=[])
            return
        finally:
            stop.set()  # where this task was cancelled, the thread ends soon
            connection.searches.popleft()
        first = worlds.worlds[index].steps + 1
        for step, picture in enumerate(plan.pictures, first):
            await connection.show("plan", step, Seen(picture=picture), self._side, index, message.request)
        await connection.answer(message.request, type="plan", cancelled=False, actions=plan.actions)

    async def _step(self, worlds: Worlds, connection: Connection, message: protocol.StepRequest) -> None:
        # Check all actions before the first frame: a refused message changes nothing.
        actions = {index: worlds.action_for(message, index) for index in worlds.chosen(message.world)}
        for index, action in actions.items():
            seen = await self._compute.run(worlds.step, index, action)
            await connection.show("step", worlds.worlds[index].steps, seen, self._side, index, message.request)
