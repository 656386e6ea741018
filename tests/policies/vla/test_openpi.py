"""The openpi protocol: its bytes, our client with good and bad servers, our server with good and bad clients."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policy servers need websockets: pip install 'ivideogpt[openpi]'")
pytest.importorskip("msgpack", reason="policy servers need msgpack: pip install 'ivideogpt[openpi]'")

from websockets.exceptions import ConnectionClosedError  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.sync.server import serve  # noqa: E402

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.policies.registry import make_policy  # noqa: E402
from ivideogpt.policies.vla.openpi import OpenPIClient, OpenPIOptions, parse_address, resize_with_pad  # noqa: E402
from ivideogpt.policies.vla.openpi_server import PolicyServer  # noqa: E402
from ivideogpt.policies.vla.openpi_wire import pack, unpack  # noqa: E402

ARRAY = b"\x81\xa1a\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x02\x01\x02\xc4\x05dtype\xa3|u1\xc4\x05shape\x92\x01\x02"
NUMBER = (
    b"\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4"  # 1.5, float32
)


# Bytes


def test_messages_are_the_bytes_of_openpi() -> None:
    assert pack({"a": np.array([[1, 2]], np.uint8)}) == ARRAY
    assert pack(np.float32(1.5)) == NUMBER
    array = unpack(ARRAY)["a"]
    assert array.dtype == np.uint8 and array.tolist() == [[1, 2]]
    array[0, 0] = 7  # a copy, not a view of the message
    number = unpack(NUMBER)
    assert type(number) is np.float32 and number == 1.5


def test_a_tree_survives() -> None:
    tree = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "state": np.array([0.5, -1]),
        "prompt": "to the left",
    }
    tree |= {"state": np.array([0.5, -1]), "list": [1, 2.5, None, True], "text": np.array(["a", "bc"])}
    again = unpack(pack(tree))
    assert again["prompt"] == tree["prompt"] and again["list"] == tree["list"]
    for name in ("image", "state", "text"):
        assert again[name].dtype == tree[name].dtype and np.array_equal(again[name], tree[name])


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"\xc1", "an openpi message of 1 bytes cannot be read"),
        (ARRAY[:-3], "cannot be read"),
        (
            ARRAY.replace(b"\x92\x01\x02", b"\x92\x01\x03"),
            r"of shape \[1, 3\] with 2 bytes, which do not",
        ),
        (ARRAY.replace(b"\x92\x01\x02", b"\x92\xff\xfe"), "which do not fit"),
        (ARRAY.replace(b"\xa3|u1", b"\xa2|O"), "an array of type object, which is refused"),
        (ARRAY.replace(b"\xa3|u1", b"\xa3???"), "cannot be read"),
    ],
)
def test_damaged_messages_are_refused(message, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        unpack(message)


def test_what_a_message_cannot_hold_is_refused() -> None:
    for value in (np.array([object()]), np.array([1j]), {"f": print}):
        with pytest.raises(UserError, match="an openpi message cannot hold this"):
            pack(value)


# Servers


@contextmanager
def server_of(handler: Callable) -> Iterator[str]:
    """A websocket server in a thread; its address."""
    with serve(handler, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def policy_server(**options) -> Iterator[PolicyServer]:
    server = PolicyServer(**{"metadata": {"action_dim": 2}, "port": 0} | options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def replies(*messages):
    """A server that sends each message after the one before was answered."""

    def handle(connection) -> None:
        for message in messages:
            connection.send(message)
            connection.recv()

    return handle


FAST = OpenPIOptions(wait=0.0, timeout=0.3)
FRAMES = {"frames": np.zeros((1, 1, 16, 16, 3), np.uint8)}


def asked(address: str) -> np.ndarray:
    policy = make_policy("openpi", address=f"{address}?wait=0&timeout=0.3&size=16")
    policy.reset([0], ["push"])
    return policy.act(FRAMES)


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (replies("no metadata"), "reported an error: no metadata"),
        (replies(b"\xc1"), "the other side speaks another protocol"),
        (replies(pack([1])), "began with a list, not with its metadata"),
        (
            replies(pack({}), "Traceback\n  File\nValueError: a bad picture\n"),
            "ValueError: a bad picture; its",
        ),
        (replies(pack({}), pack({"action": 1})), r"answered with \['action'\], without 'actions'"),
        (replies(pack({}), pack({"actions": np.zeros(2)})), r"gave actions float64 of shape \[2\]; expected finite"),
        (replies(pack({}), pack({"actions": np.full((1, 2), np.nan)})), "expected finite numbers"),
        (replies(pack({}), pack({"actions": np.zeros((0, 2))})), r"of shape \[0, 2\]"),
        (replies(pack({})), "sent nothing for 0.3 s; raise timeout="),
        (lambda connection: connection.send(pack({})), "ended the connection"),
        (lambda connection: time.sleep(0.6), "sent nothing for 0.3 s"),
    ],
)
def test_a_bad_server_is_one_sentence_in_time(handler, sentence) -> None:
    def slow(connection) -> None:
        handler(connection)
        if sentence.startswith("sent nothing"):
            time.sleep(0.6)

    start = time.monotonic()
    with server_of(slow) as address, pytest.raises(UserError, match=sentence):
        asked(address)
    assert time.monotonic() - start < 5


def test_connecting_is_tried_again_for_a_limited_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match=f"there is no policy server at ws://127.0.0.1:{port} after 0 s"):
        OpenPIClient(f"ws://127.0.0.1:{port}", FAST)
    server = []

    def start_late() -> None:
        time.sleep(0.5)
        late = PolicyServer(lambda seed: make_policy("random", action_dim=2), metadata={"late": True}, port=port)
        server.append(late)
        late.run()

    thread = threading.Thread(target=start_late)
    thread.start()
    client = OpenPIClient(f"ws://127.0.0.1:{port}", OpenPIOptions(wait=20))
    assert client.metadata == {"late": True}
    client.close()
    server[0].shutdown()
    thread.join()
    with pytest.raises(UserError, match="is no address of a policy server; give ws://HOST:PORT"):
        OpenPIClient("http://x", FAST)


def test_options_are_part_of_the_address() -> None:
    assert parse_address("ws://a:1?replan=5&size=64") == ("ws://a:1", OpenPIOptions(replan=5, size=64))
    for options, sentence in (("replan=x", "replan=x; expected a number"), ("replam=5", "did you mean 'replan'")):
        with pytest.raises(UserError, match=sentence):
            parse_address(f"ws://a:1?{options}")
    with pytest.raises(UserError, match="timeout of the openpi client is 0"):
        parse_address("ws://a:1?timeout=0")


def test_pictures_keep_their_shape_between_black_borders() -> None:
    frame = np.full((4, 8, 3), 200, np.uint8)
    resized = resize_with_pad(frame, 16)
    assert resized.shape == (16, 16, 3) and (resized[4:12] == 200).all() and not resized[:4].any()
    assert resize_with_pad(resized, 16).tolist() == resized.tolist()


# Our server


class Counting:
    """A policy that tells what it was given."""

    def reset(self, seeds, instructions=None) -> None:
        self.seed, self.instruction, self.calls = seeds[0], instructions[0], 0

    def act(self, observation) -> np.ndarray:
        self.calls += 1
        frames = observation["frames"]
        if frames.max() == 255:
            raise ValueError("white")
        numbers = [self.calls, len(self.instruction), frames[0, :, 0, 0, 0].mean(), float(observation["state"][0, 0])]
        return np.array([[numbers, numbers]], np.float32)


def test_a_connection_is_an_episode_and_metadata_come_first() -> None:
    with policy_server(make_policy=lambda seed: Counting(), frame_stack=2, image_size=4) as server:
        with connect(f"ws://127.0.0.1:{server.port}/any/path", compression=None) as raw:
            assert unpack(raw.recv()) == {"action_dim": 2}
            observation = {"observation/image": np.full((8, 8, 3), 10, np.uint8), "observation/state": np.array([0.5])}
            raw.send(pack(observation | {"prompt": "push"}))
            first = unpack(raw.recv())
            assert first["actions"].tolist() == [[1, 4, 10, 0.5]] * 2 and first["server_timing"].keys() == {"infer_ms"}
            raw.send(pack(observation | {"prompt": "push", "observation/image": np.full((8, 8, 3), 20, np.uint8)}))
            second = unpack(raw.recv())
            assert second["actions"][0].tolist() == [2, 4, 15, 0.5]  # the mean over the stack
            assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
        client = OpenPIClient(f"ws://127.0.0.1:{server.port}", FAST)
        assert client.infer(observation)["actions"][0, 0] == 1
        client.close()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pack({"observation/image": np.full((8, 8, 3), 255, np.uint8)}), "ValueError: white"),
        (pack({"prompt": "push"}), "no picture 'observation/image'; expected uint8"),
        (pack([1, 2]), "no picture 'observation/image'"),
        (b"\xc1", "another protocol"),
        ("text", "a text frame came"),
    ],
)
def test_an_error_is_a_text_frame_and_code_1011(message, text) -> None:
    with (
        policy_server(make_policy=lambda seed: Counting()) as server,
        connect(f"ws://127.0.0.1:{server.port}", compression=None) as raw,
    ):
        raw.recv()
        raw.send(message)
        error = raw.recv()
        assert isinstance(error, str) and text in error
        with pytest.raises(ConnectionClosedError) as closed:
            raw.recv()
        assert closed.value.rcvd.code == 1011


def test_health_and_keys() -> None:
    with policy_server(make_policy=lambda seed: Counting(), api_key="secret") as server:
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        plain.request("GET", "/healthz")
        response = plain.getresponse()
        assert response.status == 200 and response.read() == b"OK\n"
        address = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(UserError, match="asks for a key: set OPENPI_API_KEY"):
            OpenPIClient(address, FAST, api_key="wrong")
        client = OpenPIClient(address, FAST, api_key="secret")
        client.close()
        with pytest.raises(UserError, match="cannot be used .* choose another --port"):
            PolicyServer(lambda seed: Counting(), metadata={}, port=server.port)


def test_rows_have_connections_of_their_own_and_continue() -> None:
    with policy_server(make_policy=lambda seed: make_policy("random", action_dim=2)) as server:
        policy = make_policy("openpi", address=f"ws://127.0.0.1:{server.port}?size=16")
        policy.reset([3, 4], ["a", "b"])
        frames = {"frames": np.zeros((2, 1, 16, 16, 3), np.uint8)}
        first = policy.act(frames)
        assert first.shape == (2, 1, 2) and first.dtype == np.float32 and not np.array_equal(first[0], first[1])
        kept = policy._clients[1]
        policy.reset([5, None])
        assert policy._clients[1] is kept and policy._instructions == ["", "b"]
        assert not np.array_equal(policy.act(frames)[1], first[1])


_PYPI_CLIENT = """
import sys, numpy as np
from openpi_client import image_tools, websocket_client_policy
policy = websocket_client_policy.WebsocketClientPolicy(host="127.0.0.1", port=int(sys.argv[1]), api_key="secret")
image = image_tools.resize_with_pad(np.full((48, 96, 3), 50, np.uint8), 224, 224)
observation = {"observation/image": image, "observation/state": np.full(8, 0.25), "prompt": "push"}
for _ in range(2):
    answer = policy.infer(observation)
print(policy.get_server_metadata(), answer["actions"].tolist(), sorted(answer["server_timing"]), int(image.sum()))
try:
    policy.infer({"prompt": "push"})
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_client_on_pypi_understands_our_server(tmp_path: Path) -> None:
    """It pins numpy<2, so it has a virtual environment of its own."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    # typing_extensions: imported there, and not named as a requirement
    install = [str(python), "-m", "pip", "install", "-q", "openpi-client==0.1.2", "typing_extensions"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=900)
    if installed.returncode:
        pytest.skip(f"openpi-client cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with policy_server(make_policy=lambda seed: Counting(), api_key="secret") as server:
        words = [str(python), "-c", _PYPI_CLIENT, str(server.port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=clean)
    first, *error = done.stdout.splitlines()
    padded = resize_with_pad(np.full((48, 96, 3), 50, np.uint8), 224)
    expected = [[2.0, 4.0, float(padded[0, 0, 0]), 0.25]] * 2
    assert first == f"{{'action_dim': 2}} {expected} ['infer_ms', 'prev_total_ms'] {int(padded.sum())}", done.stderr
    assert "Error in inference server:" in error[0] and "has no picture" in error[1]
