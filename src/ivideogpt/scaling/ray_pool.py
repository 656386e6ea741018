"""Independent tasks on a Ray cluster.

pool = RayPool("auto", needs=[folder])           # the cluster of this machine; or HOST:PORT, ray://HOST:PORT, local
convert_to_store(tasks, folder, facts=facts, workers=pool)

The packages below define the tasks; a ``RayPool`` takes the place of their pool of local processes. A task is a process
of its own with one CPU, and one GPU where the work needs it. Ray repeats a task whose process or machine died.
"""

from __future__ import annotations

import functools
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ivideogpt import __version__
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import local_path, reason
from ivideogpt.data.process_pool import ItemT, ResultT, processors

#: Address of a cluster that begins and ends with this process, on this machine.
LOCAL = "local"
#: A task or a call is repeated so often if its process dies.
RETRIES = 3
_SECONDS_TO_CONNECT = 5.0
# The first bytes of a client of HTTP/2, with empty settings, and the kind of frame that a server begins with.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = b"\x04"
_FORMS = "expected auto, local, HOST:PORT of `ray start --head`, or ray://HOST:PORT"


class WorkerDeathError(Exception):
    """The process of a task or of an object died, or its machine."""


class RayPool:
    """The processes of a Ray cluster as a ``TaskPool``.

    Attributes:
        ray: the package, connected to the cluster.
        device: of the tasks: "cpu" or "cuda".
    """

    def __init__(self, address: str = "auto", *, needs: Sequence[str | Path] = (), device: str = "cpu") -> None:
        """Connect to a cluster.

        Args:
            address: "auto": the cluster that this machine belongs to; "local": a new one here; HOST:PORT; ray://...
            needs: files and folders that every machine must have at the same path, such as a shared folder. URLs are
                left to the tasks.
            device: of the tasks: "cpu", "cuda", or "auto": "cuda" if the cluster has GPUs. A task on "cuda" has a GPU
                to itself.

        Raises:
            UserError: there is no cluster at the address, or its versions are others.
        """
        self.ray = connect(address)
        self._needs = [str(local_path(path).absolute()) for path in needs if "://" not in str(path)]
        gpus = self.ray.cluster_resources().get("GPU", 0)
        self.device = ("cuda" if gpus else "cpu") if device == "auto" else device
        if self.device == "cuda" and not gpus:
            raise UserError("device is cuda, but the Ray cluster has no GPU; use cpu or auto")

    def run(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[tuple[int, ResultT]]:
        """Call ``function`` with each of ``items`` on the cluster; see ``TaskPool``.

        Raises:
            UserError: the first error of a call; a machine lacks a needed path or has another version of ivideogpt; or
                a task died more than three times.
        """
        ray, pack = self.ray, self.ray.cloudpickle
        task = ray.remote(num_cpus=1, num_gpus=int(self.device == "cuda"), max_retries=RETRIES)(_work)
        shared = ray.put(pack.dumps(function))  # once a cluster, whatever its size
        context = self.context()
        # A few tasks more than processors: the next ones are there in time, and large items do not pile up.
        most = 2 * int(ray.cluster_resources().get("CPU", 1)) + 8
        waiting, running = iter(enumerate(items)), {}
        try:
            while True:
                while len(running) < most and (entry := next(waiting, None)) is not None:
                    running[task.remote(context, [shared], pack.dumps(entry[1]))] = entry[0]
                if not running:
                    return
                (call,), _ = ray.wait(list(running))
                position = running.pop(call)
                try:
                    result = self.result(call)
                except WorkerDeathError:
                    raise UserError(
                        f"a task died {RETRIES + 1} times on the Ray cluster, perhaps because memory ran out; the same "
                        "command resumes the work"
                    ) from None
                yield position, result
        finally:
            for call in running:
                ray.cancel(call, force=True)

    def context(self) -> tuple[str, str, list[str]]:
        """Return the version, working folder and paths that a worker must have, for ``missing_here``."""
        # A worker without ivideogpt can then say so.
        self.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        return __version__, os.getcwd(), self._needs

    def result(self, call: Any) -> Any:
        """Wait for a call that returns ("result", packed) or ("error", message); return its result.

        Raises:
            UserError: that of the call, or the cluster failed.
            WorkerDeathError: its process or machine died.
        """
        ray, errors = self.ray, self.ray.exceptions
        try:
            kind, value = ray.get(call)
        except (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.RayActorError,
        ) as error:
            raise WorkerDeathError(reason(error)) from error
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except ray.exceptions.RayError as error:
            raise UserError(f"the Ray cluster failed ({reason(error)}); the same command resumes the work") from error
        if kind == "error":
            raise UserError(value)
        return ray.cloudpickle.loads(value)


def connect(address: str) -> Any:
    """Return the package ray, connected to a cluster. A process has one cluster: a later address changes nothing.

    Raises:
        UserError: there is no cluster at the address, or its versions are others.
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker is this Python with what this process can import, not a new environment made by `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "ray") from error
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        ray.init("local", num_cpus=processors(), include_dashboard=False, **options)
        return ray
    nowhere = "no Ray cluster answers on this machine; start one with `ray start --head`, or give --ray local"
    if address != "auto":
        _check_answers(address)
    elif announced := _announced():
        try:
            _check_answers(announced)
        except UserError as error:
            raise UserError(nowhere) from error
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, SystemExit) as error:
        if "ersion mismatch" in str(error):
            raise UserError(
                "the Ray cluster has another version of Ray or Python than this machine (Ray "
                f"{ray.__version__}, Python {platform.python_version()}); install the same ones"
            ) from error
        elsewhere = nowhere.replace("on this machine", f"at {address}")
        raise UserError(nowhere if address == "auto" else elsewhere) from error
    return ray


def _announced() -> str:
    """Return the address that "auto" means to Ray: that of RAY_ADDRESS, or of the last `ray start`; or ""."""
    path = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    written = path.read_text().strip() if path.is_file() else ""  # also of a cluster that died
    address = os.environ.get("RAY_ADDRESS") or written
    return "" if address in ("auto", LOCAL) else address


def _check_answers(address: str) -> None:
    """Raise UserError unless a server of gRPC, as Ray's, answers at the address: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"the address of a Ray cluster is {address!r}; {_FORMS}")
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(9)
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({reason(error)}); check the address, and that the cluster runs"
        ) from error
    if answer[3:4] != _HTTP2_SETTINGS:
        raise UserError(f"no Ray cluster answers at {address}, but another server; check the port")


def _work(
    context: tuple[str, str, list[str]], function: list[Any], item: bytes
) -> tuple[Literal["result", "error"], Any]:
    """Run one task on a worker; return its packed result, or the message of a ``UserError``.

    It is sent by value: all else is imported when the versions have been compared.
    """
    from ray import cloudpickle

    missing = missing_here(context)
    if missing:
        return "error", missing
    from ivideogpt.core.errors import UserError

    try:
        from ivideogpt.scaling.ray_pool import load_function

        result = load_function(function[0])(cloudpickle.loads(item))
        return "result", cloudpickle.dumps(result)  # pyright: ignore[reportPrivateImportUsage]
    except UserError as error:
        return "error", str(error)


def missing_here(context: tuple[str, str, list[str]]) -> str:
    """Return one sentence about what this worker lacks of a ``RayPool.context``, or ""; and enter its folder."""
    import os
    import socket

    version, folder, needs = context
    try:
        import ivideogpt
    except ImportError as error:
        return f"ivideogpt cannot be imported on {socket.gethostname()} ({error}); install it there"
    if ivideogpt.__version__ != version:
        return (
            f"{socket.gethostname()} has ivideogpt {ivideogpt.__version__}, and this machine {version}; install the "
            "same version on every machine"
        )
    for path in needs:
        if not os.path.exists(path):
            return f"{socket.gethostname()} has no {path}; use a folder that all machines share, or copy it there"
    if os.path.isdir(folder):
        os.chdir(folder)  # relative paths mean the same as where the command was given
    return ""


@functools.lru_cache(maxsize=1)
def load_function(reference: Any) -> Callable[[Any], Any]:
    """Load the function of a task on a worker, once a process: it may hold the weights of a model."""
    import ray
    from ray import cloudpickle

    return cloudpickle.loads(ray.get(reference))
