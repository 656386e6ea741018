"""``ivideogpt serve``: play a world in a browser."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.commands.inputs import check_is_store
from ivideogpt.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from ivideogpt.core.episode import Episode
    from ivideogpt.serve.guard import Access

_MOST_EPISODES = 200


def serve(
    checkpoint: Annotated[str, tyro.conf.Positional] = "pusht-64",
    *,
    port: int = 7860,
    host: str = "127.0.0.1",
    data: Path | None = None,
    browser: bool = True,
    device: str = "auto",
    int8: bool = False,
    sessions: int = 8,
) -> int:
    """Play a world in the browser: choose an episode, act, and see what the model imagines, frame by frame.

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        port: port to listen on; 0: any free one.
        host: address to listen on. Any other than 127.0.0.1 admits other machines, which need the token in the printed
            address.
        data: episodes to start from: a .safetensors file, an episode store, or one recording; default: those that
            come with the checkpoint.
        browser: open the page.
        device: auto, cpu or cuda.
        int8: on a CPU, imagine with weights of 8 bits: faster, a little less exact.
        sessions: players at a time, 1 to 256. They share one thread that computes; each may take 256 MiB of frames.

    Returns:
        0, after Ctrl-C.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error
    from ivideogpt.core.checkpoint import resolve_checkpoint
    from ivideogpt.serve.app import create_app
    from ivideogpt.serve.connections import server_of
    from ivideogpt.serve.guard import Access, Limits
    from ivideogpt.worldmodel.shipped import SHIPPED
    from ivideogpt.worldmodel.world_model import WorldModel

    limits = Limits.of(sessions)
    # First: report a taken port before a model is loaded.
    listening = _listening(host, port)
    with listening:
        folder = resolve_checkpoint(checkpoint, shipped=SHIPPED)
        model = WorldModel.from_pretrained(folder, device=device, int8=int8)
        model.require_square("the page")
        episodes = _episodes(data, folder, model.resolution)
        access = Access.of(host)
        app = create_app(model, episodes, name=Path(checkpoint).name, access=access, limits=limits)
        address = _address(host, listening.getsockname()[1], access)
        print(f"{model.config.name or checkpoint} with {len(episodes)} episodes to start from: {address}", flush=True)
        print("Ctrl-C ends it", flush=True)
        if browser:
            _open_browser(address)
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
            server_of(app).run(sockets=[listening])
        print("stopped")
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UserError: it cannot.
    """
    if not host:
        raise UserError("host is empty; use 127.0.0.1, or 0.0.0.0 for all addresses")
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; expected 0 to 65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host is {host!r}, which is no address; use 127.0.0.1, or 0.0.0.0 for all") from error
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is taken; end the other program, or choose a --port") from error
        raise UserError(f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another") from error
    return listening


def _episodes(data: Path | None, checkpoint: Path, size: int) -> list[Episode]:
    from ivideogpt.data.episode_files import is_store, load_episodes, open_episodes
    from ivideogpt.data.media import read_episode
    from ivideogpt.worldmodel.shipped import EPISODES_FILE

    if data is not None:
        check_is_store(data)
    if data is None:
        shipped = checkpoint / EPISODES_FILE
        episodes = load_episodes(shipped) if shipped.is_file() else []
    elif data.suffix == ".safetensors" or is_store(data):
        episodes = open_episodes(data, most=_MOST_EPISODES, size=size)
    else:
        episodes = [read_episode(data, size=size)]
    if len(episodes) > _MOST_EPISODES:
        print(f"of {len(episodes)} episodes, the first {_MOST_EPISODES} can be started from")
    return episodes[:_MOST_EPISODES]


def _address(host: str, port: int, access: Access) -> str:
    """Return the address for a browser on this machine."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname(), "": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={access.token}" if access.token else "")


def _open_browser(address: str) -> None:
    # Without a screen, a browser in the terminal might come up instead.
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
