"""``ivideogpt serve`` as people start it: one sentence where it cannot, the address where it can, a clean end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from websockets.sync.client import connect

from ivideogpt.commands import serve
from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import save_episodes
from ivideogpt.serve.guard import Access
from ivideogpt.serve.protocol import unpack_frame


@pytest.fixture
def refused(run):
    """``refused(words...)``: a command that must fail with one sentence, which it returns."""

    def call(*words):
        done = run("serve", "--no-browser", *words)
        assert done.code == 2, done.out
        assert len(done.err.splitlines()) == 1 and done.err.startswith("ivideogpt: "), done.err
        return done.err

    return call


def test_a_port_that_is_taken_is_one_sentence(refused, checkpoints):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(checkpoints["plain"], "--port", port)
    assert said == f"ivideogpt: port {port} is taken; end the other program, or choose a --port\n"


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets"])
def test_a_missing_extra_is_one_sentence(refused, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert refused() == f"ivideogpt: {package} is not installed; run: pip install 'ivideogpt[serve]'\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "port is 70000; expected 0 to 65535"),
        (["--sessions", "0"], "sessions is 0; expected 1 to 256"),
        (["--host", "no such host"], "host is 'no such host', which is no address"),
        (["--host", "192.0.2.1"], "192.0.2.1:0 cannot be listened on"),
        (["--data", "nowhere.npz"], "there is no file or folder nowhere.npz"),
        (["--data", "nowhere.safetensors"], "there is no episode file nowhere.safetensors"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--prot", "1"], "unknown option --prot; did you mean 'port'?"),
    ],
)
def test_a_bad_option_is_one_sentence(refused, checkpoints, words, sentence):
    assert sentence in refused(checkpoints["plain"], *([] if "--port" in words else ["--port", "0"]), *words)


def test_data_that_does_not_fit_the_model_is_one_sentence(refused, checkpoints, inputs):
    said = refused(checkpoints["plain"], "--port", 0, "--data", inputs["actions3.npz"])
    assert "actions3 has actions of 3 numbers; this model takes 2" in said


def test_an_unknown_checkpoint_is_one_sentence(refused):
    assert "checkpoint 'pushed' is no folder" in refused("pushed", "--port", 0)


def test_other_machines_get_an_address_with_a_token():
    access = Access.of("0.0.0.0")
    address = serve._address("0.0.0.0", 7860, access)
    assert address == f"http://{socket.gethostname()}:7860/?token={access.token}"
    assert serve._address("::1", 80, Access.of("::1")) == "http://[::1]:80/"
    assert serve._address("127.0.0.1", 7860, Access.of("127.0.0.1")) == "http://127.0.0.1:7860/"


def episodes(path, count=3):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 12, 20, 20, 3), dtype=np.uint8)  # another size than the model's
    actions = rng.uniform(-1, 1, (count, 12, 2)).astype(np.float32)
    save_episodes(path, [Episode(frames=frames[i], actions=actions[i], key=f"e{i}") for i in range(count)])


def test_it_plays_and_ends_with_ctrl_c(checkpoints, tmp_path):
    episodes(tmp_path / "some.safetensors")
    command = [sys.executable, "-m", "ivideogpt", "serve", checkpoints["plain"], "--no-browser"]
    command += ["--port", "0", "--data", str(tmp_path / "some.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stdout.readline()
            assert first.startswith("plain with 3 episodes to start from: http://127.0.0.1:")
            address = first.split()[-1]
            with urllib.request.urlopen(f"{address}api/world", timeout=600) as answer:
                assert [entry["name"] for entry in json.load(answer)["episodes"]] == ["e0", "e1", "e2"]
            with connect(address.replace("http", "ws") + "ws") as player:
                assert json.loads(player.recv())["type"] == "hello"
                player.send('{"type": "open", "episode": "1"}')
                assert json.loads(player.recv())["state"]["true_steps"] == 4
                player.send('{"type": "step", "action": "episode"}')
                assert unpack_frame(player.recv())[0]["step"] == 1
                # With a player still there.
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped"
    assert err == ""
