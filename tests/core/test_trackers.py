"""What trackers are given: files are read back; stand-ins for the services write down their calls."""

import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.run import Run
from ivideogpt.core.trackers import choose_tracker, open_tracker


class Notes:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.started, self.logged, self.shown, self.closed = [], [], [], 0

    def start(self, step):
        self.started.append(step)

    def log(self, step, values):
        self.logged.append((step, values))

    def image(self, name, path, step):
        self.shown.append((name, path, step))

    def close(self):
        self.closed += 1


class Service:
    """Stands in for the package of a service: every call, in order."""

    def __init__(self, name, refuses=None):
        self.__name__, self.refuses, self.calls = name, refuses, []

    def init(self, **arguments):
        if self.refuses is not None:
            raise self.refuses
        self.calls.append(("init", arguments))
        note = lambda verb: lambda *words, **named: self.calls.append((verb, words, named))  # noqa: E731
        return SimpleNamespace(log=note("log"), finish=note("finish"), define_metric=note("define_metric"))

    def finish(self):
        self.calls.append(("finish", (), {}))

    def Image(self, path):  # noqa: N802  as the packages call it
        return ("picture", path)

    def named(self, verb):
        return [call[1:] for call in self.calls if call[0] == verb]


def picture(folder, step):
    """A picture file that shows its step."""
    path = folder / f"{step}.png"
    Image.new("RGB", (4, 2), (step, 20, 30)).save(path)
    return path


def run_python(code, folder):
    """What a program of its own prints; it finds this file's functions."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def train(folder, trackers, *, steps, log_every=2, save_every=0, stop_at=None, ranks=None):
    """A loop whose loss is 1 / step; ``stop_at``: it is killed after that update."""
    run = Run(folder, device="cpu", log_every=log_every, save_every=save_every, trackers=trackers, ranks=ranks)
    for done in run.updates("test", run.resume(), steps):
        step = done + 1
        saves = run.is_save_step(step, last=steps)
        run.log(step, loss=1 / step, **({"validation": float(step)} if saves else {}))
        if saves:
            run.show(step, samples=picture(folder, step))
            run.save(step)
        if step == stop_at:
            raise KeyboardInterrupt


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()


def scalars(folder):
    found = events(folder)
    return {name: [(p.step, p.value) for p in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_a_tracker_gets_printed_steps_and_those_of_checkpoints(tmp_path):
    notes = Notes()
    train(tmp_path, [notes], steps=7, log_every=3, save_every=5)
    assert notes.started == [0] and notes.closed == 1
    assert [step for step, _ in notes.logged] == [3, 5, 6, 7]
    assert notes.shown == [("samples", tmp_path / f"{step}.png", step) for step in (5, 7)]
    assert notes.logged[1] == (5, {"loss": 0.2, "validation": 5.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 7  # the log has every step


def test_trackers_are_closed_when_a_loop_breaks(tmp_path):
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [notes], steps=7, stop_at=2)
    assert notes.closed == 1


def test_a_resumed_run_starts_its_trackers_where_it_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [], steps=8, save_every=2, stop_at=5)
    notes = Notes()
    train(tmp_path, [notes], steps=8, save_every=2)
    assert notes.started == [4] and [step for step, _ in notes.logged] == [6, 8]


def test_only_the_first_rank_tracks(tmp_path):
    notes = Notes()
    ranks = Ranks(1, 1)
    train(tmp_path, [notes], steps=2, ranks=ranks)
    assert not notes.started and not notes.logged and not notes.shown


def test_a_figure_that_is_not_finite_is_not_sent(tmp_path):
    notes = Notes()
    run = Run(tmp_path, device="cpu", log_every=1, trackers=[notes])
    run.log(1, loss=1.0, psnr=float("inf"))
    assert notes.logged == [(1, {"loss": 1.0})]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    board = lambda: [open_tracker("tensorboard", tmp_path, {})]  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, board(), steps=9, log_every=1, save_every=3, stop_at=5)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3, 4, 5]
    train(tmp_path, board(), steps=9, log_every=4, save_every=3)
    found = scalars(tmp_path)
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 6, 8, 9]  # 4 and 5 of before are gone
    assert found["validation"] == [(3, 3.0), (6, 6.0), (9, 9.0)]
    assert found["loss"][-1][1] == pytest.approx(1 / 9)


def test_tensorboard_shows_each_picture_once_and_as_it_is(tmp_path):
    pytest.importorskip("tensorboard")
    board = lambda: [open_tracker("tensorboard", tmp_path, {})]  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, board(), steps=9, save_every=3, stop_at=5)
    train(tmp_path, board(), steps=9, save_every=3)
    shown = events(tmp_path).Images("samples")
    assert [event.step for event in shown] == [3, 6, 9]
    for event in shown:
        with Image.open(io.BytesIO(event.encoded_image_string)) as found:
            assert found.size == (4, 2) and found.convert("RGB").getpixel((3, 1)) == (event.step, 20, 30)


def test_a_finished_run_starts_no_tracker(tmp_path):
    train(tmp_path, [], steps=2)
    notes = Notes()
    train(tmp_path, [notes], steps=2)
    assert not notes.started and not notes.logged


def test_wandb_is_given_the_settings_and_one_run_for_a_folder(tmp_path, monkeypatch):
    wandb = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for steps in (2, 4):
        train(tmp_path / "run", [open_tracker("wandb", tmp_path / "run", {"a.b": 3})], steps=steps)
    (first,), (second,) = wandb.named("init")
    assert first == second and first["resume"] == "allow"
    assert (first["project"], first["name"], first["config"]) == ("ivideogpt", "run", {"a.b": 3})
    assert first["dir"] == str(tmp_path / "run")
    assert not set(first["id"]) & set("/\\#?%:")
    assert [words[0] for words, _ in wandb.named("log")] == [
        {"update": 2, "loss": 0.5, "validation": 2.0},
        {"update": 2, "samples": ("picture", str(tmp_path / "run" / "2.png"))},
        {"update": 4, "loss": 0.25, "validation": 4.0},
        {"update": 4, "samples": ("picture", str(tmp_path / "run" / "4.png"))},
    ]
    assert (("*",), {"step_metric": "update"}) in wandb.named("define_metric")
    assert len(wandb.named("finish")) == 2


def test_the_project_of_wandb_is_the_environments(tmp_path, monkeypatch):
    wandb = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "robots")
    train(tmp_path, [open_tracker("wandb", tmp_path, {})], steps=1)
    assert wandb.named("init")[0][0]["project"] == "robots"


def test_trackio_knows_a_folder_by_a_name_of_its_own(tmp_path, monkeypatch):
    trackio = Service("trackio")
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for place, steps in (("a", 2), ("a", 4), ("b", 2)):
        folder = tmp_path / place / "run"
        train(folder, [open_tracker("trackio", folder, {"a": 1}, "wm")], steps=steps)
    names = [arguments["name"] for (arguments,) in trackio.named("init")]
    assert names[0] == names[1] != names[2] and all(name.startswith("wm-") for name in names)
    curves, samples = trackio.named("log")[:2]
    assert curves == (({"loss": 0.5, "validation": 2.0},), {"step": 2})
    assert samples == (({"samples": ("picture", str(tmp_path / "a" / "run" / "2.png"))},), {"step": 2})


def test_the_real_trackio_keeps_every_point_of_a_run_that_went_on(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code = (
        "import sys; from pathlib import Path; from tests.core.test_trackers import train; "
        "from ivideogpt.core.trackers import open_tracker; folder = Path(sys.argv[1]); "
        "[train(folder, [open_tracker('trackio', folder, {'a': 1}, 'wm')], steps=n, save_every=2) for n in (2, 6)]; "
        "print('last')"
    )
    said = run_python(code, tmp_path / "run")
    assert said.splitlines()[-1] == "last", "nothing is said at exit"
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        steps = [step for (step,) in connection.execute("select step from metrics order by id") if step]
    assert set(steps) == {2, 4, 6}


def test_the_real_wandb_keeps_a_run_here_when_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    code = (
        "import sys; from pathlib import Path; from tests.core.test_trackers import train; "
        "from ivideogpt.core.trackers import open_tracker; folder = Path(sys.argv[1]); "
        "train(folder, [open_tracker('wandb', folder, {'a': 1}, 'wm')], steps=4)"
    )
    run_python(code, tmp_path / "run")
    (stored,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    held = stored.read_bytes()
    assert all(word in held for word in (b"loss", b"validation", b"samples", b"ivideogpt"))


def test_a_service_that_refuses_is_a_user_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Service("wandb", refuses=RuntimeError("no API key\nconfigured")))
    with pytest.raises(UserError, match="wandb could not start .no API key configured.; .*WANDB_MODE=offline"):
        train(tmp_path, [open_tracker("wandb", tmp_path, {})], steps=2)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("name", "extra"), [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "train")])
def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed; run: pip install 'ivideogpt\[{extra}\]'"):
        choose_tracker(name)


def test_auto_is_tensorboard_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert choose_tracker("auto") == "none"
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace(__spec__="there"))
    assert choose_tracker("auto") == "tensorboard"


def test_no_tracker_is_a_choice(tmp_path):
    assert choose_tracker("none") == "none" and open_tracker("none", tmp_path, {}) is None


def test_an_unknown_tracker_is_a_user_error():
    with pytest.raises(UserError, match="tracker is 'tensorbord'; did you mean 'tensorboard'"):
        choose_tracker("tensorbord")


def test_a_run_without_trackers_imports_no_tracker(tmp_path):
    program = (
        "import json, sys; from ivideogpt.core.run import Run; Run(sys.argv[1], device='cpu').log(1, loss=1.0);"
        "print(json.dumps([name for name in ('tensorboard', 'wandb', 'trackio') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
