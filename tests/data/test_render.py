"""Pictures: sizes, marks and files that are whole or absent."""

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data import render
from ivideogpt.data.media import read_episode
from ivideogpt.data.render import grid, side_by_side, write_gif, write_mp4, write_strip

CONTEXT, IMAGINED, PAPER = render._CONTEXT, render._IMAGINED, render._PAPER


def colours(picture):
    packed = np.unique(np.asarray(picture).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]))
    return {(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in packed}


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 16, 20, 3), dtype=np.uint8)


def test_small_videos_are_enlarged_without_smoothing(tmp_path, frames):
    frames = np.repeat(frames[:, :1, :1], 8, axis=1).repeat(8, axis=2)
    write_mp4(tmp_path / "video.mp4", frames)
    assert read_episode(tmp_path / "video.mp4").frames.shape == (6, 256, 256, 3)
    enlarged = render._enlarged(frames, 256)
    assert np.array_equal(enlarged[:, ::32, ::32], frames)


def test_videos_play_in_browsers(tmp_path, frames):
    write_mp4(tmp_path / "video.mp4", frames)
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 6)
    content = (tmp_path / "video.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_odd_sides_are_made_even(tmp_path, frames):
    write_mp4(tmp_path / "video.mp4", frames[:, :15, :19], shortest_side=1)
    assert read_episode(tmp_path / "video.mp4").frames.shape == (6, 16, 20, 3)


def test_a_strip_marks_context_and_imagination(tmp_path, frames):
    write_strip(tmp_path / "strip.png", {"true": frames, "imagined": frames}, context_frames=2)
    found = colours(Image.open(tmp_path / "strip.png"))
    assert {CONTEXT, IMAGINED, PAPER} <= found
    write_strip(tmp_path / "strip.png", {"true": frames})
    assert not {CONTEXT, IMAGINED} & colours(Image.open(tmp_path / "strip.png"))


def test_a_strip_shows_every_frame_of_every_row(tmp_path):
    # Each frame has a colour of its own, also where the strip goes on below.
    shades = np.array([[index, 255 - index, 77] for index in range(40)], np.uint8)
    first = np.broadcast_to(shades[:, None, None], (40, 64, 64, 3))
    second = first.copy()
    second[..., 2] = 99
    write_strip(tmp_path / "strip.png", {"true": first, "imagined": second}, context_frames=2, title="two rows")
    found = colours(Image.open(tmp_path / "strip.png"))
    assert {tuple(shade) for shade in shades} | {(r, g, 99) for r, g, _ in shades.tolist()} <= found


def test_a_video_side_by_side_shows_all_rows_and_the_time(frames):
    video = side_by_side({"true": frames, "imagined": 255 - frames}, context_frames=2)
    assert video.dtype == np.uint8 and len(video) == 6
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    for index in range(6):
        found = colours(video[index])
        assert tuple(frames[index, 3, 4]) in found and tuple(255 - frames[index, 3, 4]) in found
    # The progress line: nothing imagined has been shown while the context is.
    assert IMAGINED not in colours(video[1]) and IMAGINED in colours(video[2])


def test_a_grid_shows_all_clips_of_a_row_next_to_each_other_and_rows_below_one_another():
    colour = {("true", 0): 10, ("true", 1): 60, ("ours", 0): 110, ("ours", 1): 160}
    shades = np.arange(5, dtype=np.uint8)[:, None, None, None]
    clips = {
        row: [np.broadcast_to(shades + np.uint8(colour[row, k]), (5, 64, 64, 3)) for k in range(2)]
        for row in ("true", "ours")
    }
    video = grid(clips, context_frames=2)
    assert video.dtype == np.uint8 and len(video) == 5 and video.shape[1] % 2 == video.shape[2] % 2 == 0
    corners = {}
    for place, shade in colour.items():
        found = np.argwhere((video[3] == shade + 3).all(axis=-1))
        corners[place] = found.min(axis=0)
        assert (found.max(axis=0) - corners[place] == 255).all()  # 64 px, four times
    assert corners["true", 0][0] == corners["true", 1][0] < corners["ours", 0][0] == corners["ours", 1][0]
    assert corners["true", 0][1] == corners["ours", 0][1] < corners["true", 1][1] == corners["ours", 1][1]
    assert IMAGINED not in colours(video[1]) and IMAGINED in colours(video[2])


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_rows_of_a_grid_that_do_not_match_are_a_user_error(frames, counts):
    with pytest.raises(UserError, match="expected equally many in each"):
        grid({"true": [frames] * counts[0], "ours": [frames] * counts[1]})


def test_long_labels_stay_in_their_panel(tmp_path, frames):
    label = "a very long label " * 20
    assert side_by_side({label: frames}).shape == side_by_side({"true": frames}).shape
    write_strip(tmp_path / "strip.png", {label: frames}, title=label)
    assert Image.open(tmp_path / "strip.png").width < 1400


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_folders_are_made_and_files_replaced(tmp_path, frames, write):
    path = tmp_path / "new" / "folder" / "video"
    write(path, frames)
    first = path.read_bytes()
    write(path, frames[:3])
    assert path.read_bytes() != first
    assert [file.name for file in path.parent.iterdir()] == ["video"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, frames, monkeypatch):
    path = tmp_path / "video.mp4"
    write_mp4(path, frames)
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(UserError, match="disk full; choose another place"):
        write_mp4(path, frames)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(tmp_path, wrong):
    for write in (write_mp4, write_gif):
        with pytest.raises(UserError, match=r"expected uint8 \[t h w 3\]"):
            write(tmp_path / "video", wrong)
    with pytest.raises(UserError, match="row 'true'"):
        side_by_side({"true": wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -4, float("nan")])
def test_impossible_rates_are_refused(tmp_path, frames, fps):
    for write in (write_mp4, write_gif):
        with pytest.raises(UserError, match="fps is"):
            write(tmp_path / "video", frames, fps=fps)


def test_rows_must_fit_together(tmp_path, frames):
    with pytest.raises(UserError, match=r"true \[6, 16, 20, 3\], imagined \[4, 16, 20, 3\]"):
        side_by_side({"true": frames, "imagined": frames[:4]})
    with pytest.raises(UserError, match="no rows"):
        write_strip(tmp_path / "strip.png", {})
    with pytest.raises(UserError, match="context_frames is 7; expected 0 to 6"):
        write_strip(tmp_path / "strip.png", {"true": frames}, context_frames=7)
