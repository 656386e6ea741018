"""Tasks on a Ray cluster of this machine: results, retries, errors."""

import functools
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data.process_pool import ProcessPool
from ivideogpt.scaling import ray_pool
from ivideogpt.scaling.ray_pool import RayPool, connect


def square(number: int) -> int:
    return number * number


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise UserError(f"item {number} is bad; leave it out")
    return number


def die_once(marks: Path, number: int) -> int:
    mark = marks / f"{number}"
    if not mark.exists():
        mark.write_text("killed")
        os.kill(os.getpid(), 9)
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), 9)


def read_text(path: str) -> str:
    return Path(path).read_text()


def test_results_are_those_of_one_process(cluster: RayPool) -> None:
    items = list(range(40))
    assert dict(cluster.run(square, items)) == dict(ProcessPool(0).run(square, items))


def test_a_relative_path_means_the_same_on_a_worker(
    cluster: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("seen")
    assert dict(cluster.run(read_text, ["here.txt"])) == {0: "seen"}


def test_an_error_of_a_task_is_raised_as_it_is(cluster: RayPool) -> None:
    with pytest.raises(UserError, match="^item 3 is bad; leave it out$"):
        list(cluster.run(functools.partial(fail_at, 3), range(8)))


def test_a_killed_task_runs_again(cluster: RayPool, tmp_path: Path) -> None:
    assert dict(cluster.run(functools.partial(die_once, tmp_path), [0, 1, 2])) == {0: 0, 1: 1, 2: 2}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_that_always_dies_is_reported(cluster: RayPool) -> None:
    with pytest.raises(UserError, match="a task died 4 times on the Ray cluster"):
        list(cluster.run(die, [0]))


def test_a_worker_without_the_data_is_named(cluster: RayPool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{socket.gethostname()} has no {tmp_path}/absent; use a folder that all"):
        list(RayPool(needs=[tmp_path / "absent"]).run(square, [1]))


def test_a_worker_with_another_version_is_named(cluster: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "__version__", "0.0.0")
    with pytest.raises(UserError, match="and this machine 0.0.0; install the same version on every machine"):
        list(cluster.run(square, [1]))


OTHER_VERSION = """
import sys, ray
ray.__version__ = "0.0.1"
from ivideogpt.core.errors import UserError
from ivideogpt.scaling.ray_pool import connect
try:
    connect(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_a_machine_with_another_version_of_ray_is_told_to_install_the_same(cluster: RayPool) -> None:
    command = [sys.executable, "-c", OTHER_VERSION, cluster.ray.get_runtime_context().gcs_address]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert printed.startswith("the Ray cluster has another version of Ray or Python than this machine (Ray 0.0.1, ")


def test_a_cluster_without_gpus_refuses_cuda(cluster: RayPool) -> None:
    assert RayPool(device="auto").device == "cpu"
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        RayPool(device="cuda")


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:99999", "ray://host"])
def test_a_wrong_address_says_what_is_expected(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="expected auto, local, HOST:PORT"):
        connect(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_unreachable_address_is_reported_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"no Ray cluster answers at {scheme}127.0.0.1:{port}"):
        connect(f"{scheme}127.0.0.1:{port}")


def test_a_machine_without_a_cluster_is_told_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")

    def no_cluster(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_cluster)
    with pytest.raises(UserError, match="no Ray cluster answers on this machine; start one with `ray start --head`"):
        connect("auto")


def test_another_server_at_the_address_is_reported_at_once(cluster: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_pool._check_answers(cluster.ray.get_runtime_context().gcs_address)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="no Ray cluster answers at .*, but another server; check the port"):
        connect(f"127.0.0.1:{server.server_port}")
    server.shutdown()


def test_the_last_cluster_of_a_machine_that_died_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(UserError, match="no Ray cluster answers on this machine; start one with `ray start --head`"):
        connect("auto")


def test_a_worker_without_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setitem(sys.modules, "ivideogpt", None)
    kind, message = ray_pool._work(("1.0", ".", []), [], b"")
    assert kind == "error" and f"ivideogpt cannot be imported on {socket.gethostname()}" in message


def test_a_command_without_its_cluster_ends_with_2_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "0.npz", image=np.zeros((4, 16, 16, 3), np.uint8))
    words = ["convert", "video", str(tmp_path / "source"), str(tmp_path / "store"), "--fps", "10"]
    assert main([*words, "--ray", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert main([*words, "--ray", "auto", "--workers", "2"]) == 2
    assert "a Ray cluster has its own workers: give one of them" in capsys.readouterr().err
