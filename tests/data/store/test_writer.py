"""A conversion is done once, whole, in the given order, whatever happens to it on the way."""

import contextlib
import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.convert.source_episode import ActionField, JpegFrames
from ivideogpt.data.store import shard as store_shard
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, begin_store, convert_to_store, finish_store, run_task

FACTS = StoreFacts(name="toy")


@pytest.fixture(autouse=True)
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("store_episodes")


def tasks_of(make, count=4, size=3):
    return [ShardTask(f"train-{i:05d}", partial(make.read, size * i, size)) for i in range(count)]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_processes_and_schedulers_write_the_same_bytes(make, tmp_path):
    tasks = tasks_of(make)
    convert_to_store(tasks, tmp_path / "here", facts=FACTS, workers=0)
    convert_to_store(tasks, tmp_path / "pool", facts=FACTS, workers=2)
    begin_store(tmp_path / "scheduler", FACTS, [task.name for task in tasks])
    for task in [*reversed(tasks), tasks[0]]:
        run_task(task, tmp_path / "scheduler")
    finish_store(tmp_path / "scheduler", [task.name for task in tasks], FACTS)
    (tmp_path / "scheduler" / "parts" / ".lock").touch()
    assert contents(tmp_path / "here") == contents(tmp_path / "pool") == contents(tmp_path / "scheduler")
    assert EpisodeStore(tmp_path / "here").keys == [f"train_eps_{i:08d}" for i in range(12)]


def test_the_order_is_that_of_the_tasks_not_of_their_names(make, tmp_path):
    tasks = list(reversed(tasks_of(make, 3, 1)))
    convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    assert EpisodeStore(tmp_path).keys == [f"train_eps_{i:08d}" for i in (2, 1, 0)]


def test_finished_shards_are_not_read_again_and_new_ones_are_added(make, tmp_path):
    tasks = tasks_of(make)
    convert_to_store(tasks[:2], tmp_path, facts=FACTS, workers=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(EpisodeStore(tmp_path)) == 12
    with pytest.raises(UserError, match="holds the shard 'train-00002', which this conversion does not make"):
        convert_to_store(tasks[:2], tmp_path, facts=FACTS, workers=0)
    assert len(EpisodeStore(tmp_path)) == 12


def test_a_shard_that_was_cut_off_is_converted_again(make, tmp_path):
    tasks = tasks_of(make)
    convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    before, path = contents(tmp_path), tmp_path / "shards" / "train-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    assert contents(tmp_path) == before


SCRIPT = """
import sys
from functools import partial
sys.path.insert(0, sys.argv[1])
import store_episodes as make
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

if __name__ == "__main__":
    tasks = [ShardTask(f"train-{i:05d}", partial(make.read_until_stopped, 4 * i, 4, sys.argv[4] + "x" * (i != 2)))
             for i in range(4)]
    convert_to_store(tasks, sys.argv[2], facts=StoreFacts(name="toy"), workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_killed_conversion_goes_on_and_ends_as_if_nothing_had_happened(make, tmp_path, workers):
    folder, marker = tmp_path / "store", tmp_path / "stop"
    Path(f"{marker}x").touch()  # only the third shard waits to be killed
    script = tmp_path / "convert.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(folder), str(workers), str(marker)]
    process = subprocess.Popen(command)
    wait_for(
        lambda: marker.exists() and marker.read_text() and len(list((folder / "parts").glob("[!.]*.parquet"))) >= 2
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "index.parquet").exists() and not (folder / "shards" / "train-00002.safetensors").exists()
    worker = int(marker.read_text())
    wait_for(lambda: not alive(worker))  # nobody goes on behind our back
    parts = [path.stem for path in (folder / "parts").glob("[!.]*.parquet")]  # a shard without one is not finished
    finished = {path: path.stat().st_mtime_ns for path in (folder / "shards" / f"{name}.safetensors" for name in parts)}
    assert len(finished) >= 2
    (folder / "shards" / ".0123abcd.train-00002.safetensors").write_bytes(b"torn")
    (folder / "parts" / ".0123abcd.train-00002.parquet").write_bytes(b"torn")
    (folder / ".0123abcd.index.parquet").write_bytes(b"torn")
    subprocess.run(command, check=True, timeout=3000)
    assert all(path.stat().st_mtime_ns == moment for path, moment in finished.items())
    assert not hidden(folder)
    convert_to_store(tasks_of(make, 4, 4), tmp_path / "undisturbed", facts=FACTS, workers=0)
    assert contents(folder) == contents(tmp_path / "undisturbed")
    EpisodeStore(folder).verify()


def wait_for(condition, seconds=1200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(process):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
def test_kills_at_any_moment_do_no_harm(make, tmp_path):
    folder, script = tmp_path / "store", tmp_path / "convert.py"
    script.write_text(SCRIPT.replace("range(4)", "range(40)"))
    for name in ("stop", "stopx"):
        (tmp_path / name).touch()
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(folder), "0", str(tmp_path / "stop")]
    for seconds in np.random.default_rng(0).uniform(0.2, 1.5, 8):
        process = subprocess.Popen(command)
        time.sleep(seconds)
        process.kill()
        process.wait()
        if (folder / "index.parquet").exists():
            EpisodeStore(folder).verify()
    subprocess.run(command, check=True, timeout=3000)
    convert_to_store(tasks_of(make, 40, 4), tmp_path / "undisturbed", facts=FACTS, workers=0)
    assert contents(folder) == contents(tmp_path / "undisturbed") and not hidden(folder)


def test_a_worker_that_dies_is_explained_and_the_rest_goes_on(make, tmp_path):
    tasks = [ShardTask("train-00000", partial(make.read_and_die, str(tmp_path / "once")))]
    with pytest.raises(UserError, match="a worker process died"):
        convert_to_store(tasks, tmp_path / "store", facts=FACTS, workers=1)
    convert_to_store(tasks, tmp_path / "store", facts=FACTS, workers=1)
    assert len(EpisodeStore(tmp_path / "store")) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_cannot_read_is_one_sentence(make, tmp_path, workers):
    tasks = [*tasks_of(make, 2), ShardTask("bad", partial(make.read, 90, 2, camera="wrist"))]
    with pytest.raises(UserError, match="episode 'train_eps_00000090' has no camera 'wrist'; it has image"):
        convert_to_store(tasks, tmp_path, facts=FACTS, workers=workers)
    assert not (tmp_path / "shards" / "bad.safetensors").exists() and not hidden(tmp_path)


def test_two_conversions_into_one_folder_are_refused(make, tmp_path):
    said = []

    def read():
        with pytest.raises(UserError) as error:
            convert_to_store(tasks_of(make), tmp_path, facts=FACTS, workers=0)
        said.append(str(error.value))
        yield make.episode(0)

    convert_to_store([ShardTask("only", read)], tmp_path, facts=FACTS, workers=0)
    assert said == [f"another conversion is writing into {tmp_path}; wait for it or choose another folder"]
    assert len(EpisodeStore(tmp_path)) == 1


def test_a_folder_with_something_else_is_refused(make, tmp_path):
    tasks = tasks_of(make, 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UserError, match="holds 'cat.jpg' and is no episode store"):
        convert_to_store(tasks, tmp_path / "photos", facts=FACTS, workers=0)
    with pytest.raises(UserError, match="cat.jpg is a file"):
        convert_to_store(tasks, tmp_path / "photos" / "cat.jpg", facts=FACTS, workers=0)
    convert_to_store(tasks, tmp_path / "toy", facts=FACTS, workers=0)
    other = StoreFacts(name="other")
    with pytest.raises(UserError, match="holds the store of 'toy', not of 'other'"):
        convert_to_store(tasks, tmp_path / "toy", facts=other, workers=0)
    (tmp_path / "toy" / "parts" / "facts.json").unlink()
    with pytest.raises(UserError, match="holds the store of 'toy', not of 'other'"):
        convert_to_store(tasks, tmp_path / "toy", facts=other, workers=0)
    with pytest.raises(UserError, match="write it to a local folder, then copy it"):
        convert_to_store(tasks, "s3://bucket/toy", facts=FACTS, workers=0)


def test_a_folder_that_cannot_be_written_is_one_sentence(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/store cannot be written: Not a directory; choose another place"):
        convert_to_store(tasks_of(make, 1), tmp_path / "file" / "store", facts=FACTS, workers=0)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="Permission denied"):
            convert_to_store(tasks_of(make, 1), tmp_path / "closed" / "store", facts=FACTS, workers=0)


class FullDisk:
    """A file that takes some bytes, and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("where", ["while episodes come in", "at the end"])
def test_a_full_disk_leaves_nothing_torn(make, tmp_path, monkeypatch, where):
    tasks = tasks_of(make)
    convert_to_store(tasks[:1], tmp_path, facts=FACTS, workers=0)
    before = contents(tmp_path)
    if where == "at the end":

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        monkeypatch.setattr("ivideogpt.data.store.writer.save_json", lambda *_: None)  # the first thing that is written
    else:
        make_file = store_shard.tempfile.TemporaryFile
        monkeypatch.setattr(store_shard.tempfile, "TemporaryFile", lambda **kw: FullDisk(make_file(**kw), 9000))
    with pytest.raises(UserError, match=r"train-00001.safetensors cannot be written: No space left on device"):
        convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    assert contents(tmp_path) == before and not hidden(tmp_path)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    convert_to_store(tasks, tmp_path, facts=FACTS, workers=0)
    EpisodeStore(tmp_path).verify()


def test_a_file_that_the_system_stops_leaves_nothing_torn(make, tmp_path):
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = [ShardTask("large", partial(make.read_large, 0, 3))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, old[1]))
    try:
        with pytest.raises(UserError, match="large.safetensors cannot be written: File too large"):
            convert_to_store(large, tmp_path, facts=FACTS, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not hidden(tmp_path) and not list((tmp_path / "shards").iterdir())
    convert_to_store(large, tmp_path, facts=FACTS, workers=0)


def test_a_shard_that_is_missing_at_the_end_is_named(make, tmp_path):
    tasks = tasks_of(make)
    begin_store(tmp_path, FACTS, [task.name for task in tasks])
    run_task(tasks[0], tmp_path)
    with pytest.raises(UserError, match="3 of 4 shards of .* are missing, such as 'train-00001'"):
        finish_store(tmp_path, [task.name for task in tasks], FACTS)


def no_rows(length):
    return np.full((length, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": ""}, "an episode of split 'train' has no key"),
        ({"actions": no_rows(6)}, "has NaN or infinity in actions at frame 0"),
        ({"actions": np.zeros((5, 3), np.float32)}, r"has actions of shape \[5, 3\]; expected a row for each of 6"),
        ({"actions": np.zeros((6, 3))}, "has actions of type float64 and shape .*; expected float32 with 2 axes"),
        ({"actions": np.zeros((6, 4), np.float32)}, "has actions of 4 numbers; its action fields name 3"),
        ({"cameras": {"image": np.zeros((6, 4, 4, 3))}}, "has frames of type float64"),
        ({"cameras": {"image": np.zeros((0, 4, 4, 3), np.uint8)}}, "has no frames"),
        ({"cameras": {"image": np.zeros((6, 0, 4, 3), np.uint8)}}, r"shape \[6, 0, 4, 3\]"),
        ({"arrays": {"name": np.array(["a"] * 6)}}, "has array 'name' of type <U1; expected numbers"),
        ({"meta": {"x": np.zeros(2)}}, "has a meta that is no plain JSON"),
        ({"meta": {"number": "3"}}, "has the number '3' in its meta"),
        (
            {"cameras": {"image": JpegFrames(files=[b"no"] * 6, height=4, width=4)}},
            "frame 0 of camera 'image' of episode 'train_eps_00000007': a picture is no readable JPEG",
        ),
    ],
)
def test_a_bad_episode_is_named(make, tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        convert_to_store(
            [ShardTask("s", partial(iter, [make.episode(1), make.episode(7, **changes)]))],
            tmp_path,
            facts=FACTS,
            workers=0,
        )
    assert "train_eps_00000007" in str(error.value) or not changes.get("key", "x")


def test_jpeg_files_of_another_size_are_refused(make, tmp_path):
    files = make.jpegs(make.pictures(3, 100, 100, 0)).files
    source = make.episode(0, length=3, cameras={"image": JpegFrames(files=files, height=100, width=104)})
    with pytest.raises(UserError, match="has 100 x 100 pixels; expected 100 x 104"):
        convert_to_store([ShardTask("s", partial(iter, [source]))], tmp_path, facts=FACTS, workers=0)


@pytest.mark.parametrize("apart", [True, False])
def test_episodes_that_do_not_belong_together_are_refused(make, tmp_path, apart):
    def convert(name, *episodes):
        shards = [[one] for one in episodes] if apart else [episodes]
        tasks = [ShardTask(f"s-{i}", partial(iter, shard)) for i, shard in enumerate(shards)]
        convert_to_store(tasks, tmp_path / name, facts=FACTS, workers=0)

    one = make.episode(1)
    with pytest.raises(UserError, match="'train_eps_00000001' of split 'train' comes twice"):
        convert("twice", one, one)
    wide = make.episode(2, actions=np.zeros((6, 4), np.float32), action_fields=())
    with pytest.raises(UserError, match="have actions of|has actions of 4 numbers"):
        convert("wide", one, wide)
    fields = (ActionField(name="other", size=3),)
    with pytest.raises(UserError, match="action/open.*other|other.*action/open"):
        convert("named", one, make.episode(2, action_fields=fields))
    with pytest.raises(UserError, match="1 of 2 episodes of .* have no number"):
        convert("numbered", one, make.episode(2, meta={"number": 4}))
    with pytest.raises(UserError, match="the source of toy has no episodes"):
        convert_to_store([ShardTask("s", partial(iter, []))], tmp_path / "none", facts=FACTS, workers=0)


def test_shards_have_names_of_files_and_no_two_the_same(make, tmp_path):
    for name in ("", "a/b", "../up", ".hidden", "a b", "ü"):
        with pytest.raises(UserError, match="a shard is named"):
            ShardTask(name, partial(make.read, 0, 1))
    with pytest.raises(UserError, match="two shards are named 'a'"):
        convert_to_store([ShardTask("a", iter), ShardTask("a", iter)], tmp_path, facts=FACTS, workers=0)
    with pytest.raises(UserError, match="workers is -1"):
        convert_to_store([], tmp_path, facts=FACTS, workers=-1)
