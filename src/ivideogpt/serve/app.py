"""The application: the page, the HTTP interface and the websocket, behind the guard. See docs/serving.md."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.render import write_mp4
from ivideogpt.evaluation.calibration import METADATA_KEY
from ivideogpt.serve.guard import Access, Guard, Limits
from ivideogpt.serve.library import Library, fitted, png
from ivideogpt.serve.players import Players
from ivideogpt.serve.protocol import Refused, Settings
from ivideogpt.serve.uploads import kind_of, read_upload
from ivideogpt.serve.worlds import Actions
from ivideogpt.worldmodel.world_model import WorldModel

_STATIC = Path(__file__).parent / "static"
# Time of an upload: so many seconds at most, and so many before its rate counts.
_UPLOAD_SECONDS, _UPLOAD_GRACE = 120.0, 10.0
# Frames a second of a video, and its enlargement: to this shortest side, as far as the bytes of frames allow.
_FPS, _SHORTEST_SIDE, _VIDEO_BYTES = 10.0, 256, 128 * 2**20
# Downloads at a time.
_MOST_DOWNLOADS = 4


def create_app(
    model: WorldModel,
    episodes: Iterable[Episode] = (),
    *,
    name: str = "",
    limits: Limits | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Create the server.

    Args:
        model: in evaluation mode.
        episodes: recordings from which worlds begin, beside uploads.
        name: of the model, if its configuration has none.
        limits: of one player and of all; default: `Limits()`.
        access: rules of access; default: this machine, without a token.

    Raises:
        UserError: an episode does not fit the model.
    """
    limits = limits or Limits()
    server = _Server(model, episodes, name or "world model", limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(server.players.watch())
        try:
            yield
        finally:
            watching.cancel()
            server.players.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, access=access or Access())
    app.state.players, app.state.limits = server.players, limits
    app.get("/healthz")(server.health)
    app.get("/api/world")(server.world)
    app.get("/api/episodes/{identity}/picture")(server.picture)
    app.post("/api/episodes", status_code=201)(server.upload)
    app.get("/api/sessions/{session}/download")(server.download)
    app.get("/", include_in_schema=False)(server.page)
    app.websocket("/ws")(server.talk)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False))
    app.exception_handler(UserError)(_refused)
    app.exception_handler(HTTPException)(_unknown)
    app.exception_handler(RequestValidationError)(_invalid)
    return app


class _Server:
    """The handlers of the routes, and their shared state."""

    def __init__(self, model: WorldModel, episodes: Iterable[Episode], name: str, limits: Limits) -> None:
        self._model, self._name, self._limits = model, model.config.name or name, limits
        self._library = Library(model, episodes, limits)
        self.players = Players(model, self._library, limits)
        # One file is read or written at a time: each may take much memory, and players need the processor too.
        self._turn, self._downloads = asyncio.Lock(), 0
        self._arriving: Counter[str] = Counter()

    # Handlers; FastAPI reads their parameters

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def page(self) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    async def world(self) -> dict[str, Any]:
        model, limits = self._model, self._limits
        public = ("upload_bytes", "message_bytes", "steps_in_flight", "worlds", "messages_per_second")
        return {
            "model": {
                "name": self._name,
                "resolution": model.resolution,
                "context_frames": model.context_frames,
                "segment_frames": model.segment_frames(),
                "tokens": model.has_tokens,
                "reward": model.config.heads.reward,
                "expected_error": model.config.metadata.get(METADATA_KEY),
            },
            "actions": asdict(Actions.of(model)),
            "episodes": self._library.about(),
            "settings": asdict(Settings.of(model)),
            "limits": {
                "steps": self.players.most_steps,
                "upload_frames": limits.upload_frames,
                **{name: getattr(limits, name) for name in public},
            },
        }

    async def picture(self, identity: str, frame: int = 0) -> Response:
        frames = self._library.get(identity).frames
        if not 0 <= frame < len(frames):
            raise Refused(404, f"frame is {frame}; expected 0 to {len(frames) - 1}")
        return Response(await asyncio.to_thread(png, frames[frame]), media_type="image/png")

    async def upload(self, request: Request, name: str = "") -> dict[str, object]:
        with (
            self._arrival(request.client.host if request.client else ""),
            tempfile.TemporaryDirectory(prefix="ivideogpt-", ignore_cleanup_errors=True) as folder,
        ):
            path = Path(folder) / "upload.npz"  # read_episode goes by the ending; the others do not
            await _receive(request, path, self._limits)
            # After the body: a browser that is still sending does not read an answer.
            kind_of(name := _plain_name(name))
            self._library.check_room()
            async with self._turn:
                episode = await asyncio.to_thread(self._read, path, name)
            return self._library.add(name, episode).about()

    async def download(self, session: str, format: str = "mp4", world: int = 0) -> Response:
        if format not in ("mp4", "npz"):
            raise Refused(400, f"format is {format[:20]!r}; expected mp4 or npz")
        worlds = self.players.get(session).worlds
        if worlds is None:
            raise Refused(409, "no world is open in this session; open one first")
        recording = worlds.recording(world)
        with self._waiting():
            async with self._turn:
                body = await asyncio.to_thread(_file, format, *recording)
        disposition = f'attachment; filename="imagined-{world}.{format}"'
        media_type = "video/mp4" if format == "mp4" else "application/octet-stream"
        return Response(body, media_type=media_type, headers={"content-disposition": disposition})

    async def talk(self, websocket: WebSocket, session: str | None = None) -> None:
        await self.players.talk(websocket, session)

    # Parts

    def _read(self, path: Path, name: str) -> Episode:
        """Read an upload; one that is not square is cropped, unless squeezed it is more like the model's recordings."""
        model = self._model
        episode = read_upload(path, name, model.resolution, self._limits)
        if not episode.meta["is_square"]:
            cropped = read_upload(path, name, model.resolution, self._limits, crop=True)
            episode = min(cropped, episode, key=lambda each: self._library.likeness.distance(each.frames))
        return fitted(model, episode, name)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count a download while it is made."""
        if self._downloads >= _MOST_DOWNLOADS:
            raise Refused(429, "several downloads are being made; try again in a while")
        self._downloads += 1
        try:
            yield
        finally:
            self._downloads -= 1

    @contextlib.contextmanager
    def _arrival(self, address: str) -> Iterator[None]:
        """Count an upload while it arrives and is read; one address has a share of all of them."""
        limits = self._limits
        if self._arriving.total() >= limits.uploads_arriving or self._arriving[address] >= limits.uploads_of_address:
            raise Refused(429, "several files are being uploaded; try again in a while")
        self._arriving[address] += 1
        try:
            yield
        finally:
            self._arriving[address] -= 1
            self._arriving += Counter()  # drops the zeros


async def _receive(request: Request, path: Path, limits: Limits) -> None:
    """Write the body into a file.

    No more bytes are written than an upload may have, whatever its headers say.

    Raises:
        Refused: it is too large, empty, broken off, or too slow.
    """
    most = limits.upload_bytes
    too_large = Refused(413, f"the file has more than {most} bytes; upload a part of it")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > 8 * most:
        raise too_large
    length, began = 0, time.monotonic()
    chunks = aiter(request.stream())
    try:
        with path.open("wb") as file:
            while True:
                patience = min(_UPLOAD_SECONDS, _UPLOAD_GRACE + length / limits.upload_bytes_per_second)
                chunk = await asyncio.wait_for(anext(chunks, None), began + patience - time.monotonic())
                if chunk is None:
                    break
                length += len(chunk)
                if length <= most:
                    file.write(chunk)
                elif length > 8 * most:
                    raise too_large
    except asyncio.TimeoutError:
        raise Refused(408, f"the upload is too slow: {length} bytes came in {patience:.0f} s; send less") from None
    except ClientDisconnect:
        raise Refused(400, "the upload was broken off; send it again") from None
    # Read to the end: a browser that is still sending does not read an answer.
    if length > most:
        raise too_large
    if not length:
        raise Refused(400, "the file is empty; choose another")


def _plain_name(name: str) -> str:
    """Return the last part of a file's name, without characters that could disturb a page or a terminal."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(letter for letter in name if letter.isprintable()).strip()
    if not name:
        raise Refused(400, "the upload has no name; send it as ?name=FILE")
    stem, dot, ending = name.rpartition(".")
    return f"{stem[:80]}{dot}{ending[:8]}"


def _file(format: str, frames: np.ndarray, actions: np.ndarray, context: int) -> bytes:
    if format == "npz":
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"frames": frames, "context_frames": np.array(context)}
        if actions.shape[1]:
            arrays["actions"] = actions
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()
    side = min(frames.shape[1:3])
    factor = max(int((_VIDEO_BYTES / frames.nbytes) ** 0.5), 1)
    with tempfile.TemporaryDirectory(prefix="ivideogpt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "imagined.mp4"
        write_mp4(path, frames, fps=_FPS, shortest_side=min(_SHORTEST_SIDE, factor * side))
        return path.read_bytes()


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, Refused) else 400)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = f"there is no {request.method} {request.url.path[:80]!r} here"
    return JSONResponse({"error": sentence}, error.status_code)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]} cannot be read: {first['msg'].lower()}"}, 400)
