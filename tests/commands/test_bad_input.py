"""What a user can get wrong: exit code 2, one sentence, no traceback, and nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.config import save_json
from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import save_episodes

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
ACTIONS = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)


def npz(path, **arrays):
    np.savez(path, **arrays)


def spoiled(values, place, value):
    values = values.copy()
    values[place] = value
    return values


def truncated_video(path, inputs):
    content = inputs["video.mp4"].read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncated_image(path, inputs):
    shutil.copytree(inputs["images"], path)
    (path / "3.png").write_bytes((path / "3.png").read_bytes()[:60])


def mixed_images(path, inputs):
    from PIL import Image

    shutil.copytree(inputs["images"], path)
    Image.new("RGB", (20, 16)).save(path / "3.png")


#: What is at the input: its file name, how it is made, and what the sentence says.
FILES = {
    "nothing": ("x.npz", lambda p, i: None, "there is no file or folder x.npz"),
    "no episodes": ("x.safetensors", lambda p, i: None, "there is no episode file x.safetensors"),
    "text": ("x.npz", lambda p, i: p.write_text("hello"), "x.npz is not a readable .npz file"),
    "an empty file": ("x.npz", lambda p, i: p.write_bytes(b""), "x.npz is not a readable .npz file"),
    "half an npz": ("x.npz", lambda p, i: p.write_bytes(i["plain.npz"].read_bytes()[:900]), "not a readable .npz"),
    "Python objects": ("x.npz", lambda p, i: npz(p, image=np.array([{}])), "has no array of frames"),
    "one bare array": ("x.npz", lambda p, i: np.save(p.open("wb"), FRAMES), "holds one bare array"),
    "a truncated video": ("x.mp4", truncated_video, "cannot be decoded as a video"),
    "text called a video": ("x.mp4", lambda p, i: p.write_text("hello"), "cannot be decoded as a video"),
    "text called a GIF": ("x.gif", lambda p, i: p.write_text("hello"), "is not a readable GIF"),
    "an empty folder": ("x", lambda p, i: p.mkdir(), "has no images"),
    "a damaged image": ("x", truncated_image, "3.png is not a readable image"),
    "images of two sizes": ("x", mixed_images, "make all frames the same size"),
    "another kind of file": ("x.txt", lambda p, i: p.write_text("hello"), "ends in '.txt'; expected .npz"),
    "a damaged episode file": ("x.safetensors", lambda p, i: p.write_bytes(b"12345"), "x.safetensors is damaged"),
    "no frames": (
        "x.npz",
        lambda p, i: npz(p, action=ACTIONS),
        "has no array of frames [t h w 3]; it has action [8, 3]",
    ),
    "two cameras": (
        "x.npz",
        lambda p, i: npz(p, a=FRAMES, b=FRAMES),
        "2 arrays of frames: a, b; give one as camera_key",
    ),
    "grey frames": ("x.npz", lambda p, i: npz(p, image=FRAMES[..., :1]), "has no array of frames"),
    "four channels": (
        "x.npz",
        lambda p, i: npz(p, frames=np.zeros((8, 16, 16, 4), np.uint8)),
        "has no array of frames",
    ),
    "one frame": (
        "x.npz",
        lambda p, i: npz(p, image=FRAMES[:1]),
        "has 1 frames after start and stride; expected at least 2",
    ),
    "frames of no size": ("x.npz", lambda p, i: npz(p, image=FRAMES[:0]), "no frames"),
    "frames of NaN": ("x.npz", lambda p, i: npz(p, image=FRAMES / np.float32(0) * 0), "values from nan to nan"),
    "frames beyond the range": (
        "x.npz",
        lambda p, i: npz(p, image=FRAMES.astype(np.float32)),
        "expected floats from 0 to 1",
    ),
}

#: The same for a model with three numbers in an action.
ACTION_FILES = {
    "no actions": (
        lambda p: npz(p, image=FRAMES),
        "this model needs actions of 3 numbers, and the input has none; give an episode with actions",
    ),
    "another action dimension": (
        lambda p: npz(p, image=FRAMES, action=ACTIONS[:, :2]),
        "the input's actions have 2 numbers; this model was trained with 3",
    ),
    "too few actions": (lambda p: npz(p, image=FRAMES, action=ACTIONS[:4]), "has 4 rows for 8 frames"),
    "too many actions": (
        lambda p: npz(p, image=FRAMES, action=np.concatenate([ACTIONS, ACTIONS])),
        "has 16 rows for 8",
    ),
    "NaN in the actions": (
        lambda p: npz(p, image=FRAMES, action=spoiled(ACTIONS, (3, 1), np.nan)),
        "NaN or infinity in actions at frame 3",
    ),
    "infinity in the actions": (
        lambda p: npz(p, image=FRAMES, action=spoiled(ACTIONS, (2, 0), np.inf)),
        "NaN or infinity in actions at frame 2",
    ),
    "only context": (lambda p: npz(p, image=FRAMES[:2], action=ACTIONS[:2]), "actions for 0 future frames"),
}

#: Options beside a good input, and what the sentence says.
OPTIONS = {
    "--horizn 3": "unknown option --horizn; did you mean 'horizon'?",
    "--horizon 0": "horizon is 0; expected at least 1",
    "--horizon -3": "horizon is -3; expected at least 1",
    "--horizon many": "'many'",
    "--horizon 7": "horizon is 7, but the input has actions for 6 future frames",
    "--repeat 0": "repeat is 0; expected at least 1",
    "--start 8": "start is 8; the input has 8 frames, so expected 0 to 7",
    "--start -1": "start is -1",
    "--start 7": "has 1 frames after start and stride; expected at least 2",
    "--stride 0": "stride is 0; expected at least 1",
    "--stride 8": "has 1 frames after start and stride",
    "--context-frames 3": "context_frames is 3; expected 1 to 2",
    "--context-frames 0": "context_frames is 0; expected 1 to 2",
    "--temperature 0": "temperature is 0.0; expected more than 0",
    "--temperature nan": "temperature is nan",
    "--top-k -1": "top_k is -1",
    "--fps 0": "fps is 0.0; expected 0.01 to 1000",
    "--fps nan": "fps is nan; expected 0.01 to 1000",
    "--reanchor-every 0": "reanchor_every is 0; expected 1 to 12",
    "--reanchor-every 99": "reanchor_every is 99; expected 1 to 12",
    "--camera-key picture": "has no array 'picture'; it has image, action",
    "--camera-key action": "array 'action'",
    "--dataset-name briddge": "there is no dataset named 'briddge'; did you mean 'bridge'",
    "--episode 1": "episode is 1, but",
    "--device abacus": "device 'abacus' cannot be used here",
    "--seed one": "'one'",
}


@pytest.fixture
def refused(run, tmp_path):
    """``refused(words...)``: runs a command that must fail as promised, and returns its sentence."""

    def call(*words):
        before = sorted(tmp_path.rglob("*"))
        done = run(*words)
        assert done.code == 2, done.out
        assert len(done.err.splitlines()) == 1 and done.err.startswith("ivideogpt: "), done.err
        assert "Traceback" not in done.err + done.out
        assert done.out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return done.err

    return call


@pytest.mark.parametrize("name", FILES)
def test_a_bad_input_file_is_one_sentence(refused, checkpoints, inputs, tmp_path, name):
    file, make, sentence = FILES[name]
    with np.errstate(all="ignore"):
        make(tmp_path / file, inputs)
    assert sentence in refused("predict", checkpoints["action_free"], "--input", file, "--output", "out")


@pytest.mark.parametrize("name", ACTION_FILES)
def test_actions_that_do_not_fit_are_one_sentence(refused, checkpoints, tmp_path, name):
    make, sentence = ACTION_FILES[name]
    make(tmp_path / "x.npz")
    assert sentence in refused("predict", checkpoints["conditional"], "--input", "x.npz", "--output", "out")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bad_option_is_one_sentence(refused, checkpoints, inputs, options):
    words = (
        "predict",
        checkpoints["conditional"],
        "--input",
        inputs["actions3.npz"],
        "--output",
        "out",
        *options.split(),
    )
    assert OPTIONS[options] in refused(*words)


def test_a_camera_of_something_without_named_arrays_is_one_sentence(refused, checkpoints, inputs):
    for name in ("video.mp4", "images", "episodes.safetensors"):
        words = ("predict", checkpoints["conditional"], "--input", inputs[name], "--camera-key", "image")
        assert "is no .npz and has no named arrays; leave it out" in refused(*words)


def test_an_episode_that_is_not_there_is_one_sentence(refused, checkpoints, inputs):
    words = ("predict", checkpoints["conditional"], "--input", inputs["episodes.safetensors"], "--episode", 2)
    assert "episode is 2; " in (said := refused(*words)) and "holds 2, so expected 0 to 1" in said


def test_episodes_of_another_frame_size_are_one_sentence(refused, checkpoints, tmp_path):
    save_episodes(tmp_path / "x.safetensors", [Episode(frames=np.zeros((8, 24, 24, 3), np.uint8), actions=ACTIONS)])
    said = refused("predict", checkpoints["conditional"], "--input", "x.safetensors", "--output", "out")
    assert "shape [1, 2, 3, 24, 24]; expected [b t 3 16 16] (resize the frames to 16 px)" in said


def test_a_goal_conditioned_model_needs_a_goal(refused, checkpoints, inputs, tmp_path):
    npz(tmp_path / "x.npz", image=FRAMES[:1], action=ACTIONS[:1])
    assert "has 1 frames" in refused("predict", checkpoints["goal"], "--input", "x.npz")
    words = ("predict", checkpoints["goal"], "--input", inputs["actions3.npz"], "--context-frames", 1)
    assert "2 context frames (goal, last); got 1" in refused(*words)


def test_a_missing_or_a_surplus_argument_is_one_sentence(refused, checkpoints, inputs):
    assert "--input PATH" in refused("predict", checkpoints["conditional"])
    assert "CHECKPOINT" in refused("predict", "--input", inputs["plain.npz"]).upper()
    words = ("predict", checkpoints["conditional"], inputs["plain.npz"], "--input", inputs["plain.npz"])
    assert "unexpected" in refused(*words)
    assert "unknown command 'predct'; did you mean 'predict'?" in refused("predct")


# Checkpoints


def broken(name, checkpoints, tmp_path):
    shutil.copytree(checkpoints["conditional"], tmp_path / "model")
    model = tmp_path / "model"
    if name == "another kind":
        shutil.rmtree(model / "tokenizer")
        save_json(model / "config.json", {"model_type": "llama"})
    elif name == "damaged":
        weights = model / "transformer" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    elif name == "pickled":
        (model / "transformer" / "model.safetensors").rename(model / "transformer" / "pytorch_model.bin")
    elif name == "no JSON":
        (model / "config.json").write_text("{'a': 1}")
    elif name == "an unknown option":
        values = json.loads((model / "config.json").read_text())
        values["world_model"]["temprature"] = 1
        save_json(model / "config.json", values)
    elif name == "another tokenizer":
        shutil.rmtree(model / "tokenizer")
        shutil.copytree(Path(checkpoints["plain"]) / "tokenizer", model / "tokenizer")
    elif name == "an empty run":
        shutil.rmtree(model)
        (model / "checkpoints").mkdir(parents=True)
    return model


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("another kind", "tokenizer has no config.json; expected a tokenizer folder"),
        ("damaged", "model.safetensors is damaged"),
        ("pickled", "model.safetensors does not exist"),
        ("no JSON", "cannot be read as JSON"),
        ("an unknown option", "unknown key 'temprature'"),
        ("another tokenizer", "the transformer has 46 ids and the tokenizer 50"),
        ("an empty run", "holds no complete checkpoint yet"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(refused, checkpoints, inputs, tmp_path, name, sentence):
    model = broken(name, checkpoints, tmp_path)
    assert sentence in refused("predict", model, "--input", inputs["actions3.npz"], "--output", "out")


@pytest.mark.parametrize("name", ["puscht-64", "./nowhere", "a/b/c"])
def test_an_unknown_checkpoint_is_one_sentence(refused, inputs, name):
    assert f"checkpoint {name!r} is no folder" in refused("predict", name, "--input", inputs["plain.npz"])


def test_a_file_or_an_empty_folder_is_no_checkpoint(refused, inputs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is no checkpoint; expected config.json" in refused("predict", "empty", "--input", inputs["plain.npz"])
    said = refused("predict", inputs["plain.npz"], "--input", inputs["plain.npz"])
    assert "is a file; expected the folder" in said


# Output


def test_an_output_that_is_a_file_is_one_sentence(refused, checkpoints, inputs, tmp_path):
    (tmp_path / "out").write_text("mine")
    for output in ("out", "out/deeper"):
        said = refused("predict", checkpoints["action_free"], "--input", inputs["plain.npz"], "--output", output)
        assert "out is a file; choose a folder" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_earlier_results_survive_a_command_that_fails(run, checkpoints, inputs, tmp_path):
    words = ("predict", checkpoints["conditional"], "--output", "out", "--input")
    assert run(*words, inputs["actions3.npz"]).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*words, inputs["plain.npz"]).code == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
