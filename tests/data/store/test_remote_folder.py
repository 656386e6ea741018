"""Stores and tokens on a real S3 server that runs here: the clips of the disk, a bounded cache, clear errors."""

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.remote_folder import BLOCK, RemoteFolder
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.data.tokens import TokenLoader, TokenStore
from ivideogpt.training.tokenize_store import tokenize_stores

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="S3 needs the extra s3")
    moto = pytest.importorskip("moto.server", reason="the S3 server of the tests is moto")
    with pytest.MonkeyPatch.context() as patch:
        for name in CREDENTIALS:
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = moto.ThreadedMotoServer("127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IVIDEOGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blocks"


def make_episodes() -> Any:
    """The module that makes episodes for tests of stores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        return importlib.import_module("store_episodes")


@pytest.fixture(scope="module")
def folders(server: str, tmp_path_factory: pytest.TempPathFactory, build: Callable) -> Path:
    """A store of small and of large frames and tokens of the small one, here and on the server."""
    import s3fs

    root = tmp_path_factory.mktemp("stores")
    make = make_episodes()
    for name, read in (("small", make.read), ("large", make.read_large)):
        tasks = [ShardTask(f"part-{k}", partial(read, 4 * k, 4)) for k in range(2)]
        convert_to_store(tasks, root / name, facts=StoreFacts(name=name), workers=0)
    build("conditional").tokenizer.save_pretrained(root / "tokenizer")
    mixture = Mixture(sources=(MixtureSource(path=str(root / "small"), stride=1),))
    tokenize_stores(root / "tokenizer", mixture, root / "tokens", frames=3, workers=0)
    files = s3fs.S3FileSystem()
    files.mkdir("robots")
    for name in ("small", "large", "tokens"):
        files.put(str(root / name), f"robots/{name}", recursive=True)
    return root


@pytest.mark.parametrize("name", ["small", "large"])
def test_clips_are_those_of_the_disk_and_come_from_the_cache_later(
    folders: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(path: str) -> list[torch.Tensor]:
        loader = ClipLoader(MixtureSource(path=path, stride=1), ClipSpec(frames=3, size=16), batch_size=4)
        clips = iter(loader)
        return [next(clips).frames for _ in range(3)]

    near, far = batches(str(folders / name)), batches(f"s3://robots/{name}")
    assert all((ours == theirs).all() for ours, theirs in zip(far, near, strict=True))

    import s3fs

    def no_requests(*args: object, **options: object) -> None:
        raise AssertionError("a block in the cache was fetched again")

    monkeypatch.setattr(s3fs.S3FileSystem, "cat_ranges", no_requests)
    assert all((ours == theirs).all() for ours, theirs in zip(batches(f"s3://robots/{name}"), near, strict=True))


def test_worker_processes_read_from_the_server(folders: Path) -> None:
    source, spec = MixtureSource(path="s3://robots/small", stride=1), ClipSpec(frames=3, size=16)
    alone, helped = (ClipLoader(source, spec, batch_size=4, workers=workers) for workers in (0, 1))
    assert (next(iter(alone)).frames == next(iter(helped)).frames).all()


def test_tokens_are_read_from_the_server(folders: Path) -> None:
    near, far = (
        iter(TokenLoader(TokenStore(path), batch_size=3, frames=3))
        for path in (folders / "tokens", "s3://robots/tokens")
    )
    for _ in range(6):
        ours, theirs = next(far), next(near)
        assert (ours.context == theirs.context).all() and (ours.dynamics == theirs.dynamics).all()
        assert (ours.actions == theirs.actions).all() and (ours.action_mask == theirs.action_mask).all()


def test_a_store_says_whether_its_bytes_are_right(folders: Path) -> None:
    EpisodeStore("s3://robots/large").verify()


def test_the_cache_stays_within_its_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    most = 20 * BLOCK
    monkeypatch.setenv("IVIDEOGPT_CACHE_GB", str(most / 1e9))
    content = np.random.default_rng(0).integers(0, 256, 60 * BLOCK + 5, dtype=np.uint8).tobytes()
    fsspec.filesystem("memory").pipe("/far/file", content)
    folder = RemoteFolder("memory://far")
    for start in range(0, len(content), 3 * BLOCK):
        (part,) = folder.ranges("file", [(start + 7, start + 2 * BLOCK)])
        assert part.tobytes() == content[start + 7 : start + 2 * BLOCK]
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= most + 3 * BLOCK
    monkeypatch.setenv("IVIDEOGPT_CACHE_GB", "0")
    monkeypatch.setenv("IVIDEOGPT_CACHE", str(cache.parent / "none"))
    assert RemoteFolder("memory://far").ranges("file", [(5, 9)])[0].tobytes() == content[5:9]
    assert not (cache.parent / "none").exists()


def test_a_file_that_changed_is_fetched_again(cache: Path) -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    for content in (b"first", b"other"):
        files.pipe("/far/changing", content)
        assert RemoteFolder("memory://far").open("changing").read() == content


def test_a_size_of_the_cache_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("IVIDEOGPT_CACHE_GB", "much")
    with pytest.raises(UserError, match="IVIDEOGPT_CACHE_GB is 'much'; expected a number from 0 on"):
        RemoteFolder("memory://far")


def test_a_missing_store_is_one_sentence(folders: Path) -> None:
    with pytest.raises(UserError, match="s3://robots/absent has no index.parquet; expected a store whose conversion"):
        EpisodeStore("s3://robots/absent")


def test_missing_credentials_are_one_sentence(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="s3://robots/small/index.parquet needs credentials .*AWS_ACCESS_KEY_ID"):
        EpisodeStore("s3://robots/small")


def test_an_unreachable_server_is_one_sentence(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="s3://robots/small cannot be reached .*; check the network, the address"):
        EpisodeStore("s3://robots/small")


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")

    def no_client(url: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", no_client)
    with pytest.raises(UserError, match=r"s3fs is not installed; run: pip install 'ivideogpt\[s3\]'"):
        RemoteFolder("s3://robots/small")


class Hub(BaseHTTPRequestHandler):
    """The answers of the Hub for one dataset repository, owner/robots, whose files are in a folder here."""

    folder: Path

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0].removeprefix("/api").removeprefix("/datasets/owner/robots")
        kind, _, place = path.removeprefix("/").partition("/")
        place = self.folder / place.partition("/")[2]
        if path == "" or kind == "revision":
            self.answer(json.dumps({"id": "owner/robots", "sha": "a" * 40}).encode())
        elif kind == "tree" and place.is_dir():
            self.answer(json.dumps([self.entry(path) for path in sorted(place.iterdir())]).encode())
        elif kind == "resolve" and place.is_file():
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(place.read_bytes()[first : last + 1], 206, "")
        else:
            self.answer(b"{}", 404, "EntryNotFound" if "robots" in self.path else "RepoNotFound")

    def do_POST(self) -> None:
        wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        paths = [path for name in wanted if (path := self.folder / name).exists()]
        self.answer(json.dumps([self.entry(path) for path in paths]).encode())

    def entry(self, path: Path) -> dict:
        size = {} if path.is_dir() else {"size": path.stat().st_size}
        kind = "directory" if path.is_dir() else "file"
        return {"type": kind, "path": str(path.relative_to(self.folder)), "oid": "0" * 40} | size

    def answer(self, content: bytes, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(content))), ("X-Error-Code", error)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a repository on a server that answers as the Hub does."""
    fsspec = pytest.importorskip("huggingface_hub.hf_file_system")
    (tmp_path / "hub").mkdir()
    handler = type("Handler", (Hub,), {"folder": tmp_path / "hub"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    fsspec.HfFileSystem.clear_instance_cache()
    original = fsspec.HfFileSystem.__init__
    monkeypatch.setattr(
        fsspec.HfFileSystem, "__init__", lambda self, **options: original(self, **options | {"endpoint": address})
    )
    yield tmp_path / "hub"
    server.shutdown()
    fsspec.HfFileSystem.clear_instance_cache()


def test_a_store_is_read_from_the_hub(hub: Path) -> None:
    """Its client is the real one, and the server stands here."""
    tasks = [ShardTask("part", partial(make_episodes().read, 0, 4))]
    convert_to_store(tasks, hub / "stores" / "bridge", facts=StoreFacts(name="bridge"), workers=0)
    local = EpisodeStore(hub / "stores" / "bridge")
    for revision in (None, "v1"):
        store = EpisodeStore.from_hub("owner/robots/stores/bridge", revision=revision)
        store.verify()
        assert len(store) == 4 and np.array_equal(store[2].frames, local[2].frames)
    for repository in ("owner/robots/none", "owner/absent"):
        with pytest.raises(UserError, match=f"{repository} has no index.parquet; .* private repository needs HF_TOKEN"):
            EpisodeStore.from_hub(repository)
