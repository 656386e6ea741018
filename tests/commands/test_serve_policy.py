"""A served policy, measured through the protocol as if it ran here."""

import threading

import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("websockets", reason="policy servers need websockets: pip install 'ivideogpt[openpi]'")
pytest.importorskip("msgpack", reason="policy servers need msgpack: pip install 'ivideogpt[openpi]'")

from ivideogpt.policies.vla.openpi_server import PolicyServer  # noqa: E402

OPTIONS = ("--environment-options", '{"size": 16}', "--workers", 0, "--videos", 0, "--trials", 4)


def test_a_served_script_plays_as_the_script_itself(run, monkeypatch) -> None:
    measured = []
    answer = PolicyServer.run

    def measure_while_running(server: PolicyServer) -> None:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        address = f"ws://127.0.0.1:{server.port}"
        measured.append(run("evaluate-policy", "reacher", "--policy", address, "--out", "remote", *OPTIONS))
        server.shutdown()
        thread.join()

    monkeypatch.setattr(PolicyServer, "run", measure_while_running)
    served = run("serve-policy", "reacher-script", "--environment", "reacher", "--port", 0)
    assert served.code == 0, served.err
    (remote,) = measured
    assert remote.code == 0, remote.err
    local = run("evaluate-policy", "reacher", "--policy", "reacher-script", "--out", "local", *OPTIONS)
    assert remote.json["success"] == local.json["success"] == 1.0
    assert remote.json["return"] == pytest.approx(local.json["return"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("serve-policy magic --environment reacher", "there is no policy 'magic'"),
        ("serve-policy random --environment nowhere", "there is no environment 'nowhere'"),
        ("serve-policy random --environment reacher --port 70000", "port is 70000; expected 0 to 65535"),
        (
            "evaluate-policy reacher --policy ws://127.0.0.1:9?wait=0 --workers 0",
            "no policy server at ws://127.0.0.1:9",
        ),
        ("evaluate-policy reacher --policy ws://127.0.0.1:9?weit=0", "unknown option 'weit'; did you mean 'wait'?"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, words, sentence) -> None:
    done = run(*words.split())
    assert done.code == 2 and sentence in done.err.splitlines()[-1]
