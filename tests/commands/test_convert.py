"""``ivideogpt convert``: one command from a downloaded dataset to a store."""

import importlib
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ivideogpt.cli import main
from ivideogpt.commands.convert import convert
from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.convert.importers import IMPORTERS

WRITERS = Path(__file__).parents[1] / "data" / "convert"


@pytest.fixture
def bair(monkeypatch, tmp_path):
    """A folder of BAIR files: 3 trajectories for training, 1 for testing."""
    monkeypatch.syspath_prepend(str(WRITERS))
    made = importlib.import_module("tfrecord_files")
    random = np.random.default_rng(0)

    def trajectory():
        pictures = {name: random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8) for name in ("image", "aux1_image")}
        return pictures | {"action": random.normal(size=(30, 4)), "position": random.normal(size=(30, 3))}

    made.write_bair(tmp_path / "bair", [trajectory(), trajectory()])
    made.write_bair(tmp_path / "bair", [trajectory()], first=2)
    made.write_bair(tmp_path / "bair", [trajectory()], split="test")
    return tmp_path / "bair"


def test_a_dataset_becomes_a_store(bair, tmp_path, capsys):
    assert main(["convert", "bair", str(bair), str(tmp_path / "store"), "--workers", "0"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["episodes"] == {"test": 1, "train": 3} and said["frames"] == {"test": 30, "train": 90}
    assert said["dataset"] == "bair_robot_pushing"
    store = EpisodeStore(tmp_path / "store")
    assert store.facts.dataset.url == dataset_info("bair_robot_pushing").url != ""
    episode = store[store.find("traj_00002")]
    assert (episode.frames.shape, episode.actions.shape, episode.state.shape) == ((30, 64, 64, 3), (30, 4), (30, 3))


@pytest.mark.skipif(sys.platform == "win32", reason="worker processes are started another way")
def test_worker_processes_write_the_same_store(bair, tmp_path):
    convert("bair", (str(bair), str(tmp_path / "one")), workers=0)
    convert("bair", (str(bair), str(tmp_path / "two")), workers=2)
    one, two = EpisodeStore(tmp_path / "one"), EpisodeStore(tmp_path / "two")
    assert one.keys == two.keys and one.splits == two.splits
    for index in range(len(one)):
        np.testing.assert_array_equal(one[index].frames, two[index].frames)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bare", "SRC", "DST"], "no kind 'bare' of source; did you mean 'bair'"),
        (["bair", "SRC"], "convert bair got 1 words after it; expected SRC DST"),
        (["oxe", "SRC", "DST"], "convert oxe got 2 words after it; expected NAME SRC DST"),
        (["bair", "SRC", "DST", "--partial"], "convert bair has no option --partial; it has none"),
        (["oxe", "bridge", "SRC", "DST", "--fps", "3"], "convert oxe has no option --fps; it has --cameras, --partial"),
        (["oxe", "brige", "SRC", "DST"], "no dataset named 'brige'; did you mean 'bridge'"),
        (["oxe", "bridge", "SRC", "DST"], "there is no features.json in SRC/bridge/0.1.0"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "DST").exists()


@pytest.mark.parametrize("kind", IMPORTERS)
def test_every_kind_has_a_reader_whose_options_the_command_has(kind):
    module = IMPORTERS[kind].load()
    source, *options = inspect.signature(module.tasks).parameters.values()
    assert source.name == "source"
    assert {option.kind for option in options} <= {inspect.Parameter.KEYWORD_ONLY}
    mine = set(inspect.signature(convert).parameters)
    for option in options:
        assert option.name in mine or option.name == IMPORTERS[kind].positional, f"convert has no --{option.name}"


def test_a_source_of_another_make_leaves_no_store(bair, tmp_path):
    (bair / "train" / "traj_2_to_2.tfrecords").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"traj_2_to_2\.tfrecords ends within the record at byte 0"):
        convert("bair", (str(bair), str(tmp_path / "store")), workers=0)
    with pytest.raises(UserError):
        EpisodeStore(tmp_path / "store")


def test_a_partial_conversion_grows_with_the_download(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(WRITERS))
    made = importlib.import_module("tfrecord_files")
    picture = simplejpeg.encode_jpeg(np.zeros((128, 128, 3), np.uint8), 90)
    tree = made.group(steps=made.sequence(made.group(observation=made.group(image=made.image(128, 128, 3)))))
    record = made.example({"steps/observation/image": [picture] * 2})
    folder = made.write_dataset(tmp_path / "bridge" / "0.1.0", "bridge", tree, {"train": [[record], [record] * 2]})
    first = folder / "bridge-train.tfrecord-00000-of-00002"
    first.rename(tmp_path / "later")
    words = ["convert", "oxe", "bridge", str(tmp_path), str(tmp_path / "store"), "--workers=0"]
    assert main(words) == 2
    assert "1 of 2 files are missing" in capsys.readouterr().err
    assert main([*words, "--partial"]) == 0
    assert EpisodeStore(tmp_path / "store").keys == ["train_eps_00000001", "train_eps_00000002"]
    (tmp_path / "later").rename(first)
    assert main([*words, "--partial"]) == 0
    assert EpisodeStore(tmp_path / "store").keys == [f"train_eps_0000000{i}" for i in (1, 2, 0)]  # train before val


def test_other_options_are_not_mixed_into_a_store(tmp_path, capsys):
    from ivideogpt.data.render import write_mp4

    source = tmp_path / "videos"
    source.mkdir()
    for index in range(4):
        write_mp4(source / f"{index}.mp4", np.full((5, 32, 32, 3), 40 * index, np.uint8), fps=5, shortest_side=32)
    target = str(tmp_path / "store")
    assert main(["convert", "video", str(source), target, "--workers", "0", "--val-every", "2"]) == 0
    assert sorted(EpisodeStore(target).splits) == ["train", "train", "val", "val"]
    assert main(["convert", "video", str(source), target, "--workers", "0", "--val-every", "2"]) == 0
    assert main(["convert", "video", str(source), target, "--workers", "0"]) == 2
    assert "was converted with val_every 2, not with no options" in capsys.readouterr().err


def test_frames_may_be_stored_at_the_size_of_the_training(tmp_path, capsys):
    """The pixels are those that training makes of whole frames; JPEG files of them are small and nearly the same."""
    from ivideogpt.data.clips import ClipSpec
    from ivideogpt.data.loader import ClipLoader
    from ivideogpt.data.mixture_reader import as_mixture
    from ivideogpt.data.render import write_mp4

    source = tmp_path / "videos"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8).repeat(40, 1).repeat(40, 2)
    write_mp4(source / "a.mp4", noise, fps=5, shortest_side=240)
    words = ["convert", "video", str(source)]
    assert main([*words, str(tmp_path / "whole"), "--workers", "0"]) == 0
    for name, options in (("small", ()), ("raw", ("--quality", "0"))):
        assert main([*words, str(tmp_path / name), "--workers", "0", "--size", "64", *options]) == 0
    whole, small, raw = (EpisodeStore(tmp_path / name) for name in ("whole", "small", "raw"))
    assert whole[0].frames.shape == (12, 240, 320, 3) and small[0].frames.shape == (12, 64, 64, 3)
    spec = ClipSpec(context_frames=2, frames=12, size=64)
    loaders = [ClipLoader(as_mixture(str(store.folder)), spec, batch_size=1, seed=0) for store in (whole, raw)]
    first, second = (next(iter(loader)).frames for loader in loaders)
    assert (first - second).abs().max() < 2.5 / 255
    error = small[0].frames.astype(float) - raw[0].frames
    assert 0 < (error**2).mean() < 255**2 / 10**4.2, "42 dB"
    assert small.num_bytes < raw.num_bytes / 2 and raw.num_bytes > 12 * 64 * 64 * 3
    small.verify()
    capsys.readouterr()
    assert main([*words, str(tmp_path / "small"), "--workers", "0"]) == 2
    assert "was converted with quality 98, size 64, not with no options" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none"), "--size", "0"]) == 2
    assert "size is 0; expected 1 to 4096 pixels" in capsys.readouterr().err
    for options, sentence in (
        (("--quality", "90"), "quality is 90, but there is no size: it is of frames that --size makes smaller"),
        (("--quality", "101", "--size", "32"), "quality is 101; expected 1 to 100, or 0"),
    ):
        assert main([*words, str(tmp_path / "none"), *options]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_jpeg_files_are_made_smaller_and_squares_are_cropped():
    from ivideogpt.data.convert.smaller_frames import with_frame_size
    from ivideogpt.data.convert.source_episode import JpegFrames, Omission, SourceEpisode
    from ivideogpt.data.store.writer import ShardTask, ShardTasks

    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 200  # the square in the centre
    files = [simplejpeg.encode_jpeg(picture, 95)] * 2
    episode = SourceEpisode(key="a", cameras={"image": JpegFrames(files=files, height=32, width=64)})
    left_out = Omission(items="episodes", reason="they are damaged")
    tasks = ShardTasks([ShardTask("all", lambda: iter([episode, left_out]))], [left_out], sources="1 file")
    small = with_frame_size(tasks, 8)
    assert (small.omissions, small.sources) == (tasks.omissions, "1 file")
    given, omitted = small[0].read()
    assert omitted is left_out and given.cameras["image"].shape == (2, 8, 8, 3)
    assert given.cameras["image"][0, :, 0].max() < 20 and given.cameras["image"][0, :, 4].min() > 180
    (cropped, _) = with_frame_size(tasks, 8, centre_crop=True)[0].read()
    assert cropped.cameras["image"].min() > 180
    damaged = SourceEpisode(key="a", cameras={"image": JpegFrames(files=[files[0], b"no"], height=32, width=64)})
    with pytest.raises(UserError, match="frame 1 of camera 'image' of episode 'a': a picture is no readable JPEG"):
        list(with_frame_size(ShardTasks([ShardTask("all", lambda: iter([damaged]))]), 8)[0].read())
