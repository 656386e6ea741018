"""Uploads: each kind, everything that must be refused, and that nothing stays behind."""

import io
import os
import socket
import struct
import tempfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.media import read_episode
from ivideogpt.data.render import write_gif, write_mp4
from ivideogpt.serve import uploads
from ivideogpt.serve.guard import Limits
from ivideogpt.serve.uploads import read_upload, resized_upload

LIMITS = Limits()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def picture(frame, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def video(frames, path, side=32):
    write_mp4(path, frames, shortest_side=side)
    return path.read_bytes()


def gif(frames, path, side=16):
    write_gif(path, frames, shortest_side=side)
    return path.read_bytes()


def refusal(served, name, body):
    """Status and sentence of an upload that must be refused."""
    answer = served.upload(name, body)
    assert answer.status_code >= 400, answer.text
    sentence = answer.json()["error"]
    assert sentence and "\n" not in sentence and "ivideogpt-" not in sentence
    return answer.status_code, sentence


# What is taken


def test_an_npz_is_an_episode_with_actions(start, recorded, temporary):
    served = start()
    body = npz(frames=recorded.frames, actions=recorded.actions)
    answer = served.upload("push.npz", body)
    assert answer.status_code == 201
    about = answer.json()
    expected = {"name": "push.npz", "frames": 24, "actions": True, "uploaded": True, "familiar": True}
    assert about == expected | {"id": about["id"]}
    assert served.get("/api/world").json()["episodes"][1] == about
    player = served.player()
    assert player.open(about["id"])["true_steps"] == 22
    assert np.allclose(player.step()["action"], recorded.actions[1])
    assert player.ask("truth", first=1, count=1)["picture"] == recorded.frames[2].tobytes()
    assert served.get(f"/api/episodes/{about['id']}/picture").status_code == 200


def test_pictures_without_actions_can_be_played_on(start, recorded, temporary, tmp_path):
    served = start()
    frames = recorded.frames[:5]
    # In natural order: 2 comes before 10; what is no picture is passed over.
    order = {"b/10.png": 3, "b/2.png": 2, "b/1.jpeg": 1, "a.JPG": 0, "b/__MACOSX/._x.png": 4}
    entries = {name: picture(frames[i], "PNG" if "png" in name else "JPEG", quality=95) for name, i in order.items()}
    entries |= {"readme.txt": b"hello", ".hidden.png": b"x", "../../../evil.png": entries["b/10.png"]}
    files = {
        "pictures.zip": (zipped(entries), 5),
        "video.mp4": (video(frames, tmp_path / "v.mp4"), 5),
        "video.gif": (gif(frames, tmp_path / "v.gif"), 5),
        "bare.npz": (npz(image=frames), 5),
    }
    for name, (body, count) in files.items():
        about = served.upload(name, body).json()
        assert (about["frames"], about["actions"]) == (count, False), (name, about)
        player = served.player()
        player.open(about["id"])
        assert "recorded without actions" in player.ask("step", action="episode")["message"]
        assert player.step(action=[0.5, -1])["psnr"] is not None
        shown = [player.hear() for _ in range(2) if player.tell("truth", first=0, count=1) is None]
        if name == "pictures.zip":  # ../../../evil.png, a.JPG, b/1.jpeg ...
            assert shown[0]["picture"] != frames[0].tobytes()
            assert player.ask("truth", first=2, count=1)["picture"] == frames[2].tobytes()
    assert not (tmp_path.parent / "evil.png").exists()


def test_frames_are_resized_like_those_of_predict(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    (tmp_path / "x.npz").write_bytes(npz(image=frames))
    ours = read_upload(tmp_path / "x.npz", "x.npz", 16, LIMITS).frames
    theirs = read_episode(tmp_path / "x.npz", size=16).frames
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert resized_upload(frames[0], 16).shape == (16, 16, 3)


def test_names_are_made_harmless(start, recorded):
    served = start()
    body = npz(frames=recorded.frames)
    for name, kept in [
        ("../../etc/x.npz", "x.npz"),
        ("C:\\files\\y.npz", "y.npz"),
        ("a\x1b[31m\nb.NPZ", "a[31mb.NPZ"),
        ("x" * 300 + ".npz", "x" * 80 + ".npz"),
    ]:
        assert served.upload(name, body).json()["name"] == kept


# What is refused


def test_what_is_no_recording_is_one_sentence(start, recorded, temporary, tmp_path):
    served = start()
    good = npz(frames=recorded.frames, actions=recorded.actions)
    clip = video(recorded.frames, tmp_path / "v.mp4")
    png = picture(recorded.frames[0])
    deep = Image.fromarray(np.zeros((16, 16), np.uint16))
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    for name, body, status, sentence in [
        ("x.txt", b"hello", 415, "x.txt ends in '.txt'; expected .npz, .mp4, .gif, .zip"),
        ("x", b"hello", 415, "x ends in ''"),
        ("", good, 400, "the upload has no name"),
        ("x.npz", b"", 400, "the file is empty"),
        ("x.npz", b"hello" * 10, 400, "x.npz is no zip archive"),
        ("x.npz", good[: len(good) // 2], 400, "x.npz is no zip archive"),
        ("x.npz", good[:100] + b"\0" * 100 + good[200:], 400, "x.npz"),
        ("x.npz", npz(frames=recorded.frames, actions=recorded.actions[:5]), 400, "has 5 rows for 24 frames"),
        ("x.npz", npz(frames=recorded.frames, actions=np.ones((24, 3), np.float32)), 400, "actions of 3 numbers"),
        ("x.npz", npz(frames=recorded.frames, actions=np.full((24, 2), np.nan)), 400, "NaN or infinity"),
        ("x.npz", npz(frames=recorded.frames[:1]), 400, "has 1 frames; expected at least 2 to start from"),
        ("x.npz", npz(actions=recorded.actions), 400, "x.npz has no array of frames"),
        ("x.npz", npz(frames=np.array([{}])), 400, "Python objects, which are never unpickled"),
        ("x.npz", zipped({"frames.npy": b"hello"}), 400, "x.npz is not a readable .npz file"),
        ("x.mp4", b"hello" * 10, 400, "x.mp4 cannot be read"),
        ("x.mp4", clip[: len(clip) // 2], 400, "x.mp4 cannot be read"),
        ("x.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", 400, "x.mp4 cannot be read"),
        ("x.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 400, "x.mp4 cannot be read"),
        ("x.gif", b"GIF89a", 400, "x.gif cannot be read"),
        ("x.gif", png, 400, "x.gif cannot be read"),
        ("x.zip", b"PK", 400, "x.zip is no zip archive"),
        ("x.zip", zipped({"a.txt": b"1"}), 400, "x.zip has no png or jpg pictures"),
        ("x.zip", zipped({"1.png": png, "2.png": png[:60]}), 400, "picture '2.png' of x.zip is not a readable"),
        ("x.zip", zipped({"1.png": png, "2.png": b"GIF89a"}), 400, "picture '2.png' of x.zip is not a readable"),
        ("x.zip", zipped({"1.png": png, "2.png": picture(recorded.frames[0][:8])}), 400, "make all frames the same"),
        ("x.zip", zipped({"1.png": buffer.getvalue()}), 400, "more than 8 bits a channel"),
        ("x.zip", zipped({"1.png": picture(np.zeros((16, 16, 4), np.uint8))}), 400, "partly transparent"),
        ("x.zip", zipped({"1.png": png}), 400, "has 1 frames; expected at least 2"),
        ("x.zip", zipped({"1.png": png}, zipfile.ZIP_LZMA), 400, "packed in an unusual way"),
    ]:
        found = refusal(served, name, body)
        assert found[0] == status and sentence in found[1], (name, found)
    assert len(served.get("/api/world").json()["episodes"]) == 1


def header(shape):
    """An .npy file that claims a shape and holds next to nothing."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 100


def huge_png(side):
    """A zip of two PNGs that say they have side x side pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size, packed = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), zlib.compress(b"\0" * 10**7, 9)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return zipped({"1.png": content, "2.png": content})


def huge_gif(side):
    size = struct.pack("<HH", side, side)
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"


def test_bombs_are_refused_before_they_unfold(start, recorded, temporary, tmp_path):
    served = start(limits=Limits(decoded_bytes=2**22, upload_frames=60))
    zeros = b"\0" * (5 * 2**20)
    bomb = zipped({"frames.npy": zeros})
    assert len(bomb) < 2**13
    many = np.zeros((61, 4, 4, 3), np.uint8)
    many_colours = many + np.arange(61)[:, None, None, None].astype(np.uint8)  # equal frames would become one
    entries = zipped({f"{i:05}": b"" for i in range(25_000)})
    lying = bytearray(zipped({"1.png": b"\0" * 2**20}))
    # The directory says that the picture has ten bytes.
    place = lying.rfind(b"PK\x01\x02")
    lying[place + 24 : place + 28] = struct.pack("<I", 10)
    clip = bytearray(video(recorded.frames, tmp_path / "c.mp4"))
    place = clip.find(b"stsz")
    clip[place + 8 : place + 16] = struct.pack(">II", 1, 2**31)  # every sample has one byte
    fragment = struct.pack(">I4sI4sII", 24, b"moof", 16, b"trun", 0, 2**30)
    for name, body, sentence in [
        ("x.mp4", bytes(clip), "x.mp4 states 2147483648 samples in one track"),
        ("x.mp4", fragment, "x.mp4 states 1073741824 samples in one track"),
        ("x.mp4", struct.pack(">I4s4s", 12, b"moov", b"cmov"), "x.mp4 has a packed header"),
        ("x.npz", bomb, "unpacked; expected at most 4194304"),
        ("x.zip", zipped({"1.png": zeros}), "unpacked; expected at most 4194304"),
        ("x.npz", zipped({"frames.npy": header((10**6, 10**4, 10**4, 3))}), "but not as many numbers"),
        ("x.npz", zipped({"frames.npy": header((10**30, 1, 1, 3))}), "but not as many numbers"),
        ("x.npz", npz(frames=many), "more than 60 frames"),
        ("x.gif", gif(many_colours, tmp_path / "m.gif", 4), "x.gif has more than 60 frames"),
        ("x.mp4", video(np.repeat(recorded.frames, 3, axis=0), tmp_path / "m.mp4", 16), "more than 60 frames"),
        ("x.zip", huge_png(5_000), "pictures of 5000 x 5000 pixels; expected at most 10,000,000"),
        ("x.zip", huge_png(20_000), "x.zip has pictures of far too many pixels"),
        ("x.gif", huge_gif(5_000), "pictures of 5000 x 5000 pixels"),
        ("x.gif", huge_gif(60_000), "x.gif has pictures of far too many pixels"),
        ("x.zip", entries, "x.zip has too many entries"),
        ("x.zip", zipped({f"{i}.png": b"" for i in range(61)}), "has 61 pictures"),
        ("x.zip", bytes(lying), "x.zip"),
    ]:
        found = refusal(served, name, body)
        assert found[0] == 400 and sentence in found[1], (name, found)


def test_a_picture_larger_than_allowed_is_refused_in_every_kind(recorded, tmp_path):
    large = np.zeros((2, 64, 64, 3), np.uint8)
    limits = Limits(picture_pixels=1000, total_pixels=10**6)
    bodies = {
        "x.mp4": video(large, tmp_path / "a.mp4", 64),
        "x.gif": gif(large + np.array([0, 9], np.uint8)[:, None, None, None], tmp_path / "a.gif", 64),
        "x.zip": zipped({"1.png": picture(large[0]), "2.png": picture(large[0])}),
        "x.npz": npz(frames=large),
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(UserError, match=f"{name}.* has pictures of 64 x 64 pixels; expected at most 1,000"):
            read_upload(tmp_path / name, name, 16, limits)
        with pytest.raises(UserError, match=f"{name} has more than 5,000 pixels in all"):
            read_upload(tmp_path / name, name, 16, Limits(total_pixels=5000))


def test_a_video_that_understates_its_frames_is_stopped(tmp_path, monkeypatch, recorded):
    (tmp_path / "x.mp4").write_bytes(video(recorded.frames, tmp_path / "a.mp4"))
    checked = []
    check = uploads._check_amount
    monkeypatch.setattr(uploads, "_check_amount", lambda *given: checked.append(given) or check(*given))
    with pytest.raises(UserError, match="more than 5 frames"):
        # As if the header had said nothing.
        read_upload(tmp_path / "x.mp4", "x.mp4", 16, Limits(upload_frames=5))
    checked.clear()
    frames = list(uploads._video((tmp_path / "x.mp4").open("rb"), "x.mp4", LIMITS))
    with pytest.raises(UserError, match="more than 5 frames"):
        uploads._gathered(iter(frames), "x.mp4", 16, Limits(upload_frames=5), crop=False)


def test_a_body_is_counted_while_it_comes(start, temporary):
    served = start(limits=Limits(upload_bytes=100_000))

    def chunks(count):
        for _ in range(count):
            yield b"\0" * 10_000

    for body in (b"\0" * 100_001, chunks(11), chunks(60)):  # the last two come without a Content-Length
        status, sentence = refusal(served, "x.npz", body)
        assert status == 413 and sentence == "the file has more than 100000 bytes; upload a part of it"
    assert refusal(served, "x.npz", b"\0" * 100_000)[0] == 400


def test_uploads_count_against_a_total_and_expire(start, clock, recorded):
    served = start(limits=Limits(uploads=3, idle_seconds=0.8))
    body = npz(frames=recorded.frames)
    played, *others = (served.upload("x.npz", body).json()["id"] for _ in range(3))
    assert refusal(served, "x.npz", body) == (
        429,
        "there are as many uploads as the server keeps; wait until one expires",
    )
    player = served.player()
    player.open(played)
    until = time.monotonic() + 600
    while len(served.get("/api/world").json()["episodes"]) > 2:  # a world in use keeps its episode
        assert time.monotonic() < until
        clock.now += 0.1
        player.step(action=[0.5, -1])
        time.sleep(0.1)
    for _ in range(20):
        clock.now += 0.1
        player.step(action=[0.5, -1])
    assert [entry["id"] for entry in served.get("/api/world").json()["episodes"]] == ["0", played]
    assert served.get(f"/api/episodes/{others[0]}/picture").status_code == 404
    assert served.upload("x.npz", body).status_code == 201


def test_uploads_count_against_a_total_of_memory(start, recorded):
    served = start(limits=Limits(upload_memory=3 * recorded.frames.nbytes // 2))
    assert served.upload("x.npz", npz(frames=recorded.frames)).status_code == 201
    assert refusal(served, "x.npz", npz(frames=recorded.frames))[0] == 429


def test_an_upload_that_breaks_off_leaves_nothing(start, temporary):
    served = start()
    with socket.create_connection(("127.0.0.1", served.port)) as half:
        half.sendall(
            f"POST /api/episodes?name=x.npz HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
            "Content-Length: 1000\r\n\r\n12345".encode()
        )
        until = time.monotonic() + 600
        while not os.listdir(temporary) and time.monotonic() < until:
            time.sleep(0.01)
        assert os.listdir(temporary)
    while os.listdir(temporary) and time.monotonic() < until:
        time.sleep(0.01)


def test_a_bug_in_reading_is_told_and_leaves_nothing(start, recorded, temporary, monkeypatch, caplog):
    served = start()
    monkeypatch.setattr("ivideogpt.serve.app.read_upload", lambda *_, **__: 1 / 0)
    assert refusal(served, "x.npz", npz(frames=recorded.frames))[0] == 500
    assert "ZeroDivisionError" in caplog.text
    assert served.get("/healthz").status_code == 200


def test_damaged_files_are_refused_with_a_sentence(start, recorded, temporary, tmp_path):
    served = start()
    video = tmp_path / "x.mp4"
    write_mp4(video, recorded.frames[:6], fps=5, shortest_side=32)
    gif = tmp_path / "x.gif"
    write_gif(gif, recorded.frames[:6], fps=5, shortest_side=32)
    whole = {"x.npz": npz(frames=recorded.frames[:6]), "x.mp4": video.read_bytes(), "x.gif": gif.read_bytes()}
    random = np.random.default_rng(0)
    for name, content in whole.items():
        for _ in range(150):
            damaged = bytearray(content)
            for _ in range(int(random.integers(1, 6))):
                damaged[int(random.integers(0, min(len(damaged), 600)))] = int(random.integers(0, 256))
            (tmp_path / "damaged").write_bytes(bytes(damaged))
            try:
                read_upload(tmp_path / "damaged", name, 16, LIMITS)
            except UserError as error:
                assert "\n" not in str(error)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 64, 64, 3), }"
    for text in (header, b"-" * 9000):
        body = b"\x93NUMPY\x02\x00" + len(text + b"\n").to_bytes(4, "little") + text + b"\n"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("frames.npy", body)
        assert refusal(served, "x.npz", packed.getvalue())[0] == 400
