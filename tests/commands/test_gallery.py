"""``ivideogpt gallery`` on tiny checkpoints: one page that holds everything, and what a user can get wrong."""

import base64
import hashlib
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt import Episode, WorldModel
from ivideogpt.data.episode_files import load_episodes, save_episodes
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.worldmodel.config import WorldModelConfig

KEYS = {"psnr", "psnr_copy_last", "ssim", "showcases", "output"}
NASTY = "</script><img src=https://example.com/x onerror=alert(1)> {{script}} & \"'"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    VOID = {"meta", "img", "input", "path", "polyline", "line"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        found = [attrs for name, attrs in self.tags if name == tag]
        return [attrs for attrs in found if all(attrs.get(key) == value for key, value in wanted.items())]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def pictures(tmp_path_factory):
    """The folder of a tiny picture model of 16 px with actions of three numbers."""
    torch.manual_seed(0)
    net = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
    forecast = PictureForecastConfig(net=net, action="numbers", action_dim=3)
    settings = WorldModelConfig(name="tiny", clip_frames=6, heads=HeadsConfig(action_dim=3))
    dynamics = PictureDynamics(PictureDynamicsConfig(resolution=16, forecast=forecast))
    folder = tmp_path_factory.mktemp("pictures") / "model"
    WorldModel.from_pictures(settings, dynamics).save_pretrained(folder)
    return folder


@pytest.fixture
def page_of(run, tmp_path):
    """``page_of(words...)``: the page that a command wrote, and what the command did."""

    def call(*words):
        done = run("gallery", *words, "--output", "page.html")
        assert done.code == 0, done.err
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == ["page.html"]
        return Page((tmp_path / "page.html").read_text(encoding="utf-8")), done

    return call


@pytest.fixture
def refused(run, tmp_path):
    """``refused(words...)``: the one sentence of a command that must fail and write nothing."""

    def call(*words):
        before = sorted(tmp_path.rglob("*"))
        done = run("gallery", *words)
        assert done.code == 2, done.out
        assert len(done.err.splitlines()) == 1 and done.out == "" and "Traceback" not in done.err
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return done.err

    return call


def sheet(attrs):
    content = base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_page_shows_truth_futures_and_other_actions(page_of, checkpoints, inputs):
    page, done = page_of(checkpoints["conditional"], "--data", inputs["episodes.safetensors"], "--horizon", 4)
    assert set(done.json) == KEYS
    assert done.json["showcases"] == len(page.all("section")) and done.json["output"] == "page.html"
    showcases = done.json["showcases"]
    assert len(page.all("figure", **{"class": "true"})) == showcases
    assert len(page.all("figure", **{"class": "imagined"})) == 3 * showcases
    assert len(page.all("figure", **{"class": "varied"})) == 3 * showcases
    assert len(page.all("svg")) == 2 * showcases
    assert page.all("details") == [{}], "figures and facts are folded"
    first = [tag for tag, _ in page.tags].index("section")
    assert "figure" in [tag for tag, _ in page.tags[first:]][:12], "the first clip follows the title"
    for name in ("conditional", "e6", "e9", "first action held", "actions mirrored", "actions of showcase 1"):
        assert name in page.text
    for attrs in page.all("img"):
        assert sheet(attrs).shape == (16, 6 * 16, 3) and attrs["alt"]


def test_a_picture_model_has_one_future(page_of, pictures, inputs):
    page, done = page_of(pictures, "--data", inputs["episodes.safetensors"], "--horizon", 4, "--count", 2)
    assert done.json["showcases"] == len(page.all("figure", **{"class": "imagined"})) == 2
    assert "the next 4: 1 future beside" in page.text and "seed" not in page.text and "temperature" not in page.text
    assert "The model imagines the same every time." in page.text and "mean of" not in done.out


def test_the_sheets_hold_what_was_recorded_and_imagined(page_of, checkpoints, inputs):
    words = ("--data", inputs["episodes.safetensors"], "--horizon", 4, "--count", 1, "--seed", 5)
    page, done = page_of(checkpoints["conditional"], *words)
    truth, first, second, *_ = (sheet(attrs) for attrs in page.all("img"))
    recorded = load_episodes(inputs["episodes.safetensors"])[0]
    assert (truth == np.concatenate(list(recorded.frames), axis=1)).all()
    assert (first[:, :32] == truth[:, :32]).all() and (first != second).any()
    model = WorldModel.from_pretrained(checkpoints["conditional"])
    frames = torch.from_numpy(recorded.frames).permute(0, 3, 1, 2)[None, :2]
    actions = torch.from_numpy(recorded.actions[1:5])[None]
    imagined = model.imagine(frames, actions, seed=[5]).frames[0]
    tiles = np.split(first[:, 32:], 4, axis=1)
    expected = imagined.permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(np.stack(tiles) - expected).max() <= 1
    assert "actions of showcase" not in page.text, "there is no other showcase to take them from"


def test_an_action_free_model_has_no_other_actions_and_says_so(page_of, checkpoints, inputs):
    page, done = page_of(checkpoints["action_free"], "--data", inputs["video.mp4"], "--horizon", 3, "--futures", 2)
    assert not page.all("figure", **{"class": "varied"})
    assert "This model takes no actions" in page.text and "Other actions" not in page.text
    assert done.json["showcases"] == 4, "windows are spread over the only recording"
    assert "cannot know" in page.text


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(page_of, checkpoints, inputs, tmp_path):
    page, _ = page_of(checkpoints["conditional"], "--data", inputs["episodes.safetensors"], "--horizon", 4)
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/png;base64,[\w+/=]+", "", raw))
    assert not page.all("link") and all(set(attrs) == set() for attrs in page.all("script"))
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    script = re.search(r"<script>(.*?)</script>", raw, flags=re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy["content"]
    assert "default-src 'none'" in policy["content"]
    assert not re.findall(r"\{\{\w+\}\}", raw)


def test_names_from_files_are_only_text(page_of, build, inputs, tmp_path):
    model = build("conditional")
    model.config = replace(model.config, name=NASTY, metadata={NASTY: NASTY})
    model.save_pretrained(tmp_path / "model")
    episode = load_episodes(inputs["episodes.safetensors"])[1]
    save_episodes(tmp_path / "<b>.safetensors", [replace(episode, key=NASTY, split="test")])
    page, _ = page_of(tmp_path / "model", "--data", tmp_path / "<b>.safetensors", "--horizon", 4, "--count", 1)
    assert len(page.all("script")) == 1 and not page.all("b")
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert page.text.count(NASTY) >= 4 and "<b>.safetensors" in page.text


def test_held_out_episodes_are_taken_where_there_are_any(page_of, checkpoints, inputs, tmp_path):
    first, second = load_episodes(inputs["episodes.safetensors"])
    save_episodes(tmp_path / "data.safetensors", [first])
    words = (checkpoints["conditional"], "--data", "data.safetensors", "--horizon", 4, "--count", 2)
    page, _ = page_of(*words)
    assert "e6" in page.text and "may have been trained on them" in page.text
    save_episodes(tmp_path / "data.safetensors", [first, replace(second, split="test")])
    page, _ = page_of(*words)
    assert "e9" in page.text and "e6" not in page.text and "held-out episode" in page.text


def test_the_episodes_of_the_checkpoint_are_the_default(page_of, refused, checkpoints, inputs, tmp_path):
    shutil.copytree(checkpoints["conditional"], tmp_path / "model")
    said = refused(tmp_path / "model")
    assert "comes without episodes; give some" in said
    shutil.copy(inputs["episodes.safetensors"], tmp_path / "model")
    page, _ = page_of(tmp_path / "model", "--horizon", 4)
    assert "e9" in page.text


def test_stride_and_start_of_a_model_and_an_episode_count(page_of, checkpoints, inputs, tmp_path):
    episode = load_episodes(inputs["episodes.safetensors"])[1]
    episode = replace(episode, actions=episode.actions[:, :2], meta={"start": 1})
    save_episodes(tmp_path / "x.safetensors", [episode])
    page, _ = page_of(checkpoints["plain"], "--data", "x.safetensors", "--horizon", 2, "--count", 1)
    assert "recorded frames 1 to 7, one of every 2" in page.text
    assert (sheet(page.all("img")[0]) == np.concatenate(list(episode.frames[1:8:2]), axis=1)).all()


def test_a_goal_comes_first(page_of, checkpoints, inputs):
    page, _ = page_of(checkpoints["goal"], "--data", inputs["actions3.npz"], "--horizon", 4, "--count", 1)
    truth = sheet(page.all("img")[0])
    assert "the goal and the last frame" in page.text and page.all("body")[0]["data-goal"] == "1"
    assert (truth[:, :16] == truth[:, -16:]).all()


def test_the_same_command_writes_the_same_page(page_of, checkpoints, inputs, tmp_path):
    words = (checkpoints["action_free"], "--data", inputs["plain.npz"], "--horizon", 3, "--count", 1, "--futures", 1)
    pages = []
    for more in ((), (), ("--seed", 1)):
        page_of(*words, *more)
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_one_future_frame_and_no_second_future_still_make_a_page(page_of, checkpoints, inputs):
    page, done = page_of(checkpoints["conditional"], "--data", inputs["actions3.npz"], "--horizon", 1, "--futures", 1)
    assert "best of" not in page.text and done.json["psnr"] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--count 0", "count is 0; expected at least 1"),
        ("--futures 0", "futures is 0; expected at least 1"),
        ("--horizon 0", "horizon is 0; expected at least 1"),
        ("--horizon 8", "horizon is 8, but no episode has the 10 frames that this needs; use a horizon of at most 7"),
        ("--stride 0", "stride is 0; expected at least 1"),
        ("--stride 9", "give a longer recording"),
        ("--output page.png", "output is page.png; expected a file that ends in .html"),
        ("--output .", "expected a file that ends in .html"),
        ("--camera-key image", "holds no .npz with named arrays; leave it out"),
        ("--data nothing.npz", "there is no file or folder nothing.npz"),
        ("--data nothing.safetensors", "there is no episode file nothing.safetensors"),
        ("--device abacus", "device 'abacus' cannot be used here"),
    ],
)
def test_a_bad_option_is_one_sentence(refused, checkpoints, inputs, options, sentence):
    words = {"--data": inputs["episodes.safetensors"], "--horizon": 4, "--output": "out/page.html"}
    name, value = options.split()
    words[name] = value
    assert sentence in refused(checkpoints["conditional"], *(word for pair in words.items() for word in pair))


@pytest.mark.parametrize(
    ("episode", "sentence"),
    [
        ({}, "episode 'x' has no actions, and this model needs 3 numbers a frame"),
        ({"actions": np.zeros((8, 2), np.float32)}, "has actions of 2 numbers; this model was trained with 3"),
        ({"frames": np.zeros((8, 16, 24, 3), np.uint8)}, "has frames of 24 x 16 pixels; this model takes 16 x 16"),
    ],
)
def test_episodes_that_do_not_fit_the_model_are_one_sentence(refused, checkpoints, tmp_path, episode, sentence):
    frames = np.zeros((8, 16, 16, 3), np.uint8)
    save_episodes(tmp_path / "x.safetensors", [Episode(**{"frames": frames, "key": "x", **episode})])
    assert sentence in refused(checkpoints["conditional"], "--data", "x.safetensors", "--horizon", 4)


def test_an_older_page_survives_a_command_that_fails(run, checkpoints, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    assert run("gallery", checkpoints["conditional"], "--data", "no.npz", "--output", "page.html").code == 2
    assert (tmp_path / "page.html").read_text() == "mine"
    (tmp_path / "taken").write_text("mine")
    done = run("gallery", checkpoints["conditional"], "--data", "no.npz", "--output", "taken/page.html")
    assert done.code == 2 and "taken is a file" in done.err
