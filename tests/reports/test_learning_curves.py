"""The picture, the page and the command that draws runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivideogpt.commands.mbrl_plot import mbrl_plot
from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.results import grouped
from ivideogpt.mbrl.run_reader import RecordedEvaluation, RecordedRun
from ivideogpt.reports.learning_curves import curves_svg, write_png
from ivideogpt.reports.learning_curves_page import curves_page, duration, notes, number, percent

# It ends comments and tags, and is no formula.
NASTY = "</svg>--><script>alert(1)</script> & $\\frac{$"


def recorded(frames: int, value: float, episodes: int = 4) -> RecordedEvaluation:
    returns = tuple(value + 0.1 * i for i in range(episodes))
    successes = tuple(i < value for i in range(episodes))
    return RecordedEvaluation(
        env_frames=frames, returns=returns, successes=successes, seconds=frames / 2, imagined_transitions=frames
    )


def a_run(seed: int = 0, *, evaluations: int = 5, task: str = "reacher", method: str = "mbpo", **more) -> RecordedRun:
    slope = (1 if method == "mbpo" else 0.5) * (1 + 0.1 * seed)
    found = tuple(recorded(1000 * i, i * slope) for i in range(evaluations))
    given = {"folder": Path(f"runs/{method}-{seed}"), "preset": "debug", "settings": {}, "evaluations": found}
    return RecordedRun(task=task, method=method, seed=seed, **(given | more))


def two_methods() -> list[RecordedRun]:
    return [a_run(seed, method=method) for method in ("mbpo", "model-free") for seed in range(3)]


def write(folder: Path, run: RecordedRun) -> Path:
    folder.mkdir()
    about = {"preset": run.preset, "task": run.task, "seed": run.seed, "method": run.method, "settings": {}}
    (folder / "settings.json").write_text(json.dumps(about))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(vars(one)) + "\n" for one in run.evaluations))
    return folder


def picture(path: Path, groups, **options) -> np.ndarray:
    write_png(path, groups, **options)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels that have about that colour."""
    return int((np.abs(image - colour).max(axis=-1) < 12).sum())


def test_a_picture_shows_a_colour_for_each_group_and_a_row_for_each_task(tmp_path) -> None:
    one = picture(tmp_path / "one.png", grouped(two_methods()))
    assert one.shape[1] == 1500
    assert near(one, (0, 114, 178)) > 500 and near(one, (213, 94, 0)) > 500 and near(one, (0, 158, 115)) == 0
    two = picture(tmp_path / "two.png", grouped([*two_methods(), a_run(task="pusht")]))
    assert two.shape[0] > 1.5 * one.shape[0]
    assert near(two, (0, 158, 115)) == 0, "a method has another colour for another task"


def test_one_run_with_one_evaluation_is_drawn(tmp_path) -> None:
    only = a_run(evaluations=1)
    image = picture(tmp_path / "curves.png", grouped([only]))
    assert near(image, (0, 114, 178)) > 100
    single = replace(only, evaluations=(recorded(0, 3.0, episodes=1),))
    assert "no interval" in curves_page(grouped([single]), threshold=1.0)


def test_the_style_is_ours_whatever_matplotlib_is_set_to_and_stays_so(tmp_path) -> None:
    import matplotlib

    plain = picture(tmp_path / "plain.png", grouped(two_methods()))
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 6}):
        assert np.array_equal(picture(tmp_path / "other.png", grouped(two_methods())), plain)
        assert matplotlib.rcParams["font.size"] == 30


def test_the_svg_is_the_same_each_time_and_takes_the_colour_of_the_page() -> None:
    groups = grouped(two_methods())
    svg = curves_svg(groups, threshold=2.0)
    assert svg == curves_svg(groups, threshold=2.0) != curves_svg(groups)
    assert svg.startswith("<svg") and "currentColor" in svg and "#000000" not in svg and "#26282d" not in svg


def test_nothing_that_a_file_says_becomes_markup() -> None:
    runs = [a_run(task=NASTY, preset=f"{NASTY}{i}", settings={NASTY: f"{NASTY}{i}"}) for i in range(2)]
    runs.append(a_run(task=NASTY, preset=f"{NASTY}0", settings={NASTY: NASTY}))
    page = curves_page(grouped([*runs, a_run(folder=Path("<b>run</b>"))]), threshold=2.0)
    assert "<script" not in page and "<b>run" not in page and "&lt;b&gt;run" in page
    assert page.count("<svg") == page.count("</svg>") == 1


def test_the_page_fetches_nothing() -> None:
    page = curves_page(grouped(two_methods()))
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    names = ('xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"')
    for name in names:
        page = page.replace(name, "")
    assert not any(word in page for word in ("http:", "https:", "<link", "@import", " src="))


def test_the_page_says_what_was_reached_when_and_at_what_cost() -> None:
    runs = [a_run(seed, settings={"agent.batch_size": 8}) for seed in range(3)]
    runs += [a_run(seed, method="model-free", settings={"agent.batch_size": 16}) for seed in range(3)]
    page = curves_page(grouped(runs), threshold=3.4)
    for text in ("4.55<small>4.15 to 4.95</small>", "33 min", "agent.batch_size", "seed 0: 4,000, seed 1: 3,000"):
        assert text in page, text
    assert "Return of 3.4 first reached" in page and "All tasks together" not in page
    assert "first reached" not in curves_page(grouped(runs))


def test_the_notes_name_few_seeds_uneven_ends_and_what_was_left_out() -> None:
    enough = [a_run(seed) for seed in range(5)]
    assert notes(grouped(enough)) == []
    uneven = [*enough, a_run(0, evaluations=3, method="model-free"), a_run(1, evaluations=4, method="model-free")]
    few, left_out, ends = notes(grouped(uneven))
    assert few.startswith("model-free: 2 seeds; an interval over so few is too narrow")
    assert left_out == "model-free: evaluations that only some of the seeds have, in the thin lines alone: 1."
    assert "mbpo 4,000, model-free 2,000" in ends and "after 2,000, which all have: mbpo 2." in ends
    (alone,) = notes(grouped([a_run()]))
    assert alone.startswith("mbpo: one seed; the interval is over the episodes")


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.0, 12.345, 1234.5, float("nan"))] == ["0", "12.35", "1,234", "-"]
    assert [percent(x) for x in (0.0, 0.666, 1.0, float("nan"))] == ["0 %", "67 %", "100 %", "-"]
    assert [duration(x) for x in (8.4, 59.9, 60, 3599, 3720)] == ["8 s", "1 min", "1 min", "1 h 00 min", "1 h 02 min"]


def test_the_command_writes_both_and_ends_with_a_json_line(tmp_path, capsys) -> None:
    folders = [write(tmp_path / f"{i}", run) for i, run in enumerate(two_methods())]
    mbrl_plot(tuple(folders), out=tmp_path / "out", threshold=100.0)
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(printed[-1], parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert Path(found["curves"]).is_file() and Path(found["page"]).read_text().startswith("<!doctype html>")
    assert set(found["groups"]) == {"mbpo", "model-free"}
    group = found["groups"]["mbpo"]
    assert group["seeds"] == [0, 1, 2] and group["env_frames"] == group["best_env_frames"] == 4000
    assert group["return_low"] <= group["return"] <= group["return_high"]
    assert group["first_reached"] == {"0": None, "1": None, "2": None}
    assert any(line.startswith("mbpo") and "4.55" in line for line in printed)


def test_what_the_command_cannot_use_is_said_before_anything_is_written(tmp_path) -> None:
    good = write(tmp_path / "good", a_run())
    with pytest.raises(UserError, match="no run to sum up"):
        mbrl_plot((), out=tmp_path / "out")
    with pytest.raises(UserError, match="threshold is nan"):
        mbrl_plot((good,), out=tmp_path / "out", threshold=float("nan"))
    with pytest.raises(UserError, match="is no run of reinforcement learning"):
        mbrl_plot((good, tmp_path), out=tmp_path / "out")
    with pytest.raises(UserError, match="is a file; choose a folder"):
        mbrl_plot((good,), out=good / "settings.json")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_extra_is_named() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import ivideogpt.reports.learning_curves"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "matplotlib is not installed; run: pip install 'ivideogpt[rl]'" in done.stderr
