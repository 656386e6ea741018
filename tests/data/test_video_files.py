"""Videos and GIFs: the film and not its cover, upright and mirrored frames, frames that were merged, transparency."""

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.media import read_episode
from ivideogpt.data.render import write_gif

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def corner():
    """Uint8 [16 24 3]: black with a red corner at the top left and a blue one at the bottom left."""
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:6, :6], picture[-6:, :6] = RED, BLUE
    return picture


def write_video(path, streams):
    """A video file; ``streams``: (codec, frames) each."""
    with av.open(str(path), "w") as container:
        for codec, frames, *change in streams:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for setting in change:
                setting(stream)
        for stream, (_, frames, *_) in zip(container.streams.video, streams, strict=True):
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())


@pytest.mark.parametrize(
    ("degrees", "mirrored", "flipped", "turn"),
    [
        (0, False, False, lambda p: p),
        (90, False, False, lambda p: np.rot90(p)),
        (-90, False, False, lambda p: np.rot90(p, -1)),
        (180, False, False, lambda p: np.rot90(p, 2)),
        (0, True, False, lambda p: p[:, ::-1]),
        (0, False, True, lambda p: p[::-1]),
        (90, True, False, lambda p: np.rot90(p)[:, ::-1]),
        (-90, True, False, lambda p: np.rot90(p, -1)[:, ::-1]),
    ],
)
def test_frames_are_turned_and_mirrored_as_a_player_shows_them(tmp_path, corner, degrees, mirrored, flipped, turn):
    def setting(stream):
        stream.set_display_rotation(degrees, hflip=mirrored, vflip=flipped)

    write_video(tmp_path / "a.mp4", [("libx264", [corner] * 3, setting)])
    frames = read_episode(tmp_path / "a.mp4").frames
    assert frames.shape[1:] == turn(corner).shape
    assert np.abs(frames[1].astype(int) - turn(corner)).mean() < 12


def test_a_crooked_video_is_refused(tmp_path, corner):
    write_video(tmp_path / "a.mp4", [("libx264", [corner] * 3, lambda stream: stream.set_display_rotation(45))])
    with pytest.raises(UserError, match="no multiple of 90 degrees"):
        read_episode(tmp_path / "a.mp4")


@pytest.mark.parametrize("film_first", [False, True])
def test_a_cover_picture_is_not_the_film(tmp_path, corner, film_first):
    cover = np.full((120, 160, 3), 77, np.uint8)
    streams = [("mjpeg", [cover]), ("libx264", [corner] * 8)]
    write_video(tmp_path / "a.mp4", streams[::-1] if film_first else streams)
    episode = read_episode(tmp_path / "a.mp4")
    assert episode.frames.shape == (8, 16, 24, 3) and episode.meta["fps"] == 10


def test_two_films_in_one_file_are_refused(tmp_path, corner):
    write_video(tmp_path / "a.mp4", [("libx264", [corner] * 3), ("libx264", [corner[::-1]] * 4)])
    with pytest.raises(UserError, match=r"has 2 films \(streams 0, 1\)"):
        read_episode(tmp_path / "a.mp4")


def test_a_playlist_called_a_video_opens_no_other_file(tmp_path, corner):
    write_video(tmp_path / "secret.mp4", [("libx264", [corner] * 3)])
    for name, text in (
        ("a.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"),
        ("b.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="cannot be decoded as a video"):
            read_episode(tmp_path / name)


def test_a_transparent_video_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "bgra"
        pixels = np.full((16, 24, 4), 255, np.uint8)
        for alpha in (255, 100):
            pixels[..., 3] = alpha
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgra")))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="partly transparent"):
        read_episode(tmp_path / "a.mkv")


# GIFs


def save_gif(path, frames, duration, **options):
    images = [Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, **options)


def shades(count):
    return [np.full((8, 8, 3), 20 * k, np.uint8) for k in range(count)]


def test_frames_that_a_gif_merged_come_back(tmp_path):
    frames = np.stack([shades(5)[k] for k in (0, 0, 1, 2, 2, 2, 3, 4, 4)])
    write_gif(tmp_path / "a.gif", frames, fps=10, shortest_side=8)
    with Image.open(tmp_path / "a.gif") as stored:
        assert stored.n_frames == 5
    episode = read_episode(tmp_path / "a.gif")
    assert episode.meta["fps"] == 10 and np.abs(episode.frames.astype(int) - frames).max() < 4


def test_times_that_differ_by_rounding_are_one_rate(tmp_path):
    save_gif(tmp_path / "a.gif", shades(6), [30, 30, 40, 30, 30, 40])
    episode = read_episode(tmp_path / "a.gif")
    assert len(episode) == 6 and episode.meta["fps"] == pytest.approx(30)


@pytest.mark.parametrize("times", [[100, 100, 250, 100], [0, 100, 100, 100]])
def test_times_of_no_common_rate_are_refused(tmp_path, times):
    save_gif(tmp_path / "a.gif", shades(4), times)
    with pytest.raises(UserError, match="save it at a constant rate"):
        read_episode(tmp_path / "a.gif")


def test_a_gif_without_times_has_no_rate(tmp_path):
    save_gif(tmp_path / "a.gif", shades(4), 0)
    episode = read_episode(tmp_path / "a.gif")
    assert len(episode) == 4 and episode.meta["fps"] is None


def test_a_transparent_gif_is_refused(tmp_path):
    frames = []
    for row in range(3):
        pixels = np.full((64, 64, 4), (200, 40, 90, 255), np.uint8)
        pixels[10 + 15 * row :] = (200, 40, 90, 0)
        frames.append(Image.fromarray(pixels, "RGBA"))
    save_gif(tmp_path / "a.gif", frames, 100, disposal=2)
    with pytest.raises(UserError, match="partly transparent"):
        read_episode(tmp_path / "a.gif")


def test_a_gif_that_stores_only_changes_is_whole(tmp_path):
    frames = [np.full((16, 16, 3), 200, np.uint8) for _ in range(4)]
    for k, frame in enumerate(frames):
        frame[4 * k : 4 * k + 4, :4] = (10, 20, 30)
    save_gif(tmp_path / "a.gif", frames, 100, optimize=True)
    assert np.abs(read_episode(tmp_path / "a.gif").frames.astype(int) - np.stack(frames)).max() < 4
