"""Commands with --ray give what they give in one process, and go on after a kill."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.scaling.ray_pool import RayPool


def digest(folder: Path) -> dict[str, str]:
    """The checksum of each file of a folder but its locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "source").mkdir()
    for index in range(6):
        random = np.random.default_rng(index)
        frames = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / "source" / f"{index}.npz", image=frames, action=random.normal(size=(12, 3)))
    words = ["convert", "video", str(folder / "source"), str(folder / "store"), "--fps", "10", "--workers", "0"]
    assert main([*words, "--val-every", "2"]) == 0
    return folder / "store"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_conversion_makes_the_same_store(cluster: RayPool, store: Path, tmp_path: Path) -> None:
    words = ["convert", "video", str(store.parent / "source"), str(tmp_path / "store"), "--fps", "10"]
    assert main([*words, "--val-every", "2", "--ray"]) == 0
    assert digest(tmp_path / "store") == digest(store)


@pytest.mark.slow
def test_tokens_are_the_same(cluster: RayPool, store: Path, tmp_path: Path, build: Callable) -> None:
    build("conditional").save_pretrained(tmp_path / "model")
    for name, options in (("one", ["--workers", "0"]), ("ray", ["--ray", "auto"])):
        words = ["tokenize", str(tmp_path / "model"), "--data", str(store), "--out", str(tmp_path / name)]
        assert main([*words, "--frames", "6", "--stride", "1", *options]) == 0
    assert digest(tmp_path / "ray") == digest(tmp_path / "one")


def test_an_evaluation_prints_the_same_table(
    cluster: RayPool, store: Path, tmp_path: Path, build: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    build("conditional").save_pretrained(tmp_path / "model")
    tables = []
    for name, options in (("one", []), ("ray", ["--ray"])):
        words = ["evaluate", str(tmp_path / "model"), "--data", str(store), "--output", str(tmp_path / name)]
        words += ["--split", "train", "--samples", "2", "--batch-size", "2", "--metrics", "tokens,following"]
        assert main([*words, *options]) == 0
        line = last_line(capsys)
        tables.append({key: value for key, value in line.items() if key not in ("report", "frames_per_second")})
    assert tables[0] == tables[1] and tables[0]["clips"] > 1


def test_trials_and_plans_have_the_same_results(
    cluster: RayPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")
    played, planned = [], []
    for name, options in (("one", []), ("ray", ["--ray"])):
        local = ["--workers", "0"] if name == "one" else options
        words = ["evaluate-policy", "pusht", "--trials", "3", "--videos", "1", "--out", str(tmp_path / name), *local]
        assert main([*words, "--environment-options", '{"max_episode_steps": 20}']) == 0
        played.append({"videos": len(list((tmp_path / name).glob("videos/*")))})
        played[-1]["trials"] = [
            {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
            for path in sorted((tmp_path / name / "trials").iterdir())
        ]
        out = tmp_path / f"plan-{name}"
        words = ["plan", "pusht", "--agents", "random", "--instances", "3", "--pictures", "1", "--output", str(out)]
        assert main([*words, "--goals.max-steps", "6", *options]) == 0
        lines = [json.loads(line) for line in (out / "random.jsonl").read_text().splitlines()]
        planned.append(sorted(({**line, "seconds": 0} for line in lines), key=lambda line: line["number"]))
    assert played[0] == played[1] and len(played[0]["trials"]) == 3
    assert [line["number"] for line in planned[1]] == [0, 1, 2]
    for ours, theirs in zip(*planned, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


DRIVER = """
import sys, time
from functools import partial
import numpy as np
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.scaling.ray_pool import RayPool

def read(index, seconds):
    time.sleep(seconds)
    frames = np.full((4, 16, 16, 3), index, np.uint8)
    yield SourceEpisode(key=f"e{index}", split="train", cameras={"image": frames})

folder, seconds, address = sys.argv[1], float(sys.argv[2]), sys.argv[3]
tasks = [ShardTask(f"part-{index}", partial(read, index, seconds)) for index in range(6)]
convert_to_store(tasks, folder, facts=StoreFacts(name="mine"), workers=RayPool(address) if address else 0)
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(cluster: RayPool, tmp_path: Path) -> None:
    import ray

    script, folder = tmp_path / "driver.py", tmp_path / "store"
    script.write_text(DRIVER)
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen([sys.executable, script, folder, "1", address])
    deadline = time.monotonic() + 120
    while not list(folder.glob("parts/part-*.parquet")) and time.monotonic() < deadline:
        assert driver.poll() is None
        time.sleep(0.1)
    os.kill(driver.pid, 9)
    driver.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("parts/part-*.parquet")}
    assert 1 <= len(finished) < 6 and not (folder / "index.parquet").exists()
    subprocess.run([sys.executable, script, folder, "0", address], check=True, timeout=120)
    assert {name: (folder / "parts" / name).stat().st_mtime_ns for name in finished} == finished
    subprocess.run([sys.executable, script, tmp_path / "whole", "0", ""], check=True, timeout=120)
    assert digest(folder) == digest(tmp_path / "whole")
