"""The HTTP interface on a real server: what it tells, pictures, downloads."""

import io
import tempfile

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.serve.app import create_app
from ivideogpt.serve.guard import Limits


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; nothing may be left there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_alive(served):
    assert served.get("/healthz").json() == {"status": "ok"}


def test_what_there_is_to_play(served):
    assert served.get("/api/world").json() == {
        "model": {
            "name": "plain",
            "resolution": 16,
            "context_frames": 2,
            "segment_frames": 4,
            "tokens": True,
            "reward": True,
            "expected_error": None,
        },
        "actions": {
            "dim": 2,
            "pointer": False,
            "names": ["action 1", "action 2"],
            "low": [-5.5, -1.75],
            "high": [6.5, -0.25],
            "units": ["", ""],
        },
        "episodes": [{"id": "0", "name": "noise", "frames": 24, "actions": True, "uploaded": False, "familiar": True}],
        "settings": {"temperature": 1.0, "top_k": 100, "greedy": False, "seed": 0},
        "limits": {
            "steps": 2000,
            "upload_bytes": 33554432,
            "upload_frames": 2000,
            "message_bytes": 8192,
            "steps_in_flight": 2,
            "worlds": 2,
            "messages_per_second": 200,
        },
    }


def test_a_model_of_large_frames_has_fewer_steps(start):
    served = start(limits=Limits(session_memory=2**20))
    assert served.get("/api/world").json()["limits"]["steps"] == 2**19 // (16 * 16 * 3 * 5) - 2


def test_pictures_are_the_frames_of_the_episode(served, recorded):
    answer = served.get("/api/episodes/0/picture?frame=5")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), recorded.frames[5])
    assert served.get("/api/episodes/0/picture").status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/api/episodes/0/picture?frame=24", 404, "frame is 24; expected 0 to 23"),
        ("/api/episodes/0/picture?frame=-1", 404, "frame is -1"),
        ("/api/episodes/0/picture?frame=1e999", 400, "frame cannot be read"),
        ("/api/episodes/9/picture", 404, "there is no episode '9'"),
        ("/api/sessions/nobody/download", 404, "there is no such session"),
        ("/nowhere", 404, "there is no GET '/nowhere' here"),
        ("/static/../app.py", 404, "there is no GET"),
        ("/static/%2e%2e/app.py", 404, "there is no GET"),
        ("/openapi.json", 404, "there is no GET"),
        ("/docs", 404, "there is no GET"),
    ],
)
def test_what_is_not_there_is_one_sentence(served, path, status, sentence):
    answer = served.get(path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and sentence in answer.json()["error"]


def test_a_world_can_be_taken_home(served, recorded, temporary):
    player = served.player()
    path = f"/api/sessions/{player.hello['session']}/download"
    assert served.get(path).status_code == 409
    player.open(start=3)
    frames = [player.step() for _ in range(4)]
    player.ask("fork")
    player.ask("rewind", world=1, step=2)
    answer = served.get(f"{path}?format=npz")
    assert answer.headers["content-disposition"] == 'attachment; filename="imagined-0.npz"'
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as held:
        assert held["context_frames"] == 2
        assert np.array_equal(held["frames"][:2], recorded.frames[3:5])
        assert [frame.tobytes() for frame in held["frames"][2:]] == [frame["picture"] for frame in frames]
        assert np.allclose(held["actions"][1:5], [frame["action"] for frame in frames])
        assert np.allclose(held["actions"][0], recorded.actions[3]) and not held["actions"][5].any()
        assert held["frames"].dtype == np.uint8 and held["actions"].dtype == np.float32
    with np.load(io.BytesIO(served.get(f"{path}?format=npz&world=1").content)) as held:
        assert held["frames"].shape == (4, 16, 16, 3) and held["actions"].shape == (4, 2)
    assert served.upload("imagined.npz", answer.content).json()["actions"]
    answer = served.get(f"{path}?format=mp4")
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 6 and pictures[0].shape == (256, 256, 3)
    small = pictures[-1][8::16, 8::16].astype(int)
    assert np.abs(small - np.frombuffer(frames[-1]["picture"], np.uint8).reshape(16, 16, 3)).mean() < 12
    for query, status in (("format=gif", 400), ("world=2", 400), ("world=-1", 400), ("world=x", 400)):
        assert served.get(f"{path}?{query}").status_code == status
    assert player.step(world=1)["step"] == 3


def test_an_episode_that_does_not_fit_is_told_at_the_start(model, recorded, model_of):
    with pytest.raises(UserError, match="noise has 1 frames; expected at least 2"):
        create_app(model, [recorded.window(0, 1)])
    with pytest.raises(UserError, match="noise has actions of 2 numbers; this model takes 3"):
        create_app(model_of("conditional"), [recorded])


def test_frames_and_actions_are_taken_at_the_stride_of_the_model(start, build, recorded):
    served = start(build("plain"))  # a stride of 2
    assert served.get("/api/world").json()["episodes"][0]["frames"] == 12
    player = served.player()
    assert player.open()["true_steps"] == 10
    assert np.allclose(player.step()["action"], recorded.actions[2])
    assert player.ask("truth", first=1, count=1)["picture"] == recorded.frames[4].tobytes()


def test_without_episodes_there_is_still_a_page(start):
    served = start(episodes=[])
    assert served.get("/api/world").json()["episodes"] == []
    assert "there is no episode" in served.player().ask("open", episode="0")["message"]
