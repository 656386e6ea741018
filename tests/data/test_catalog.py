"""The dataset table against the official tables, and the documentation against the table."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data import catalog
from ivideogpt.data.catalog import DATASETS, dataset_info
from ivideogpt.data.media import read_episode
from ivideogpt.data.mixtures import mixture_weights

OFFICIAL = Path(__file__).parents[2] / "../shared/data/official_datasets.json"
PAGE = Path(__file__).parents[2] / "docs" / "data-sources.md"


@pytest.fixture(scope="module")
def official():
    if not OFFICIAL.exists():
        pytest.skip(f"{OFFICIAL} is not here")
    return json.loads(OFFICIAL.read_text())


def test_every_official_dataset_has_a_row(official):
    names = {name for part in ("mixes", "named_mixes") for mix in official[part].values() for name, _ in mix}
    for table in ("base_stepsize", "loader_camera_key", "predict_camera_key", "converter_camera_key"):
        names |= set(official[table])
    assert set(DATASETS) == names | {"pusht", "metaworld"}


def test_rows_hold_the_official_cameras_and_strides(official):
    for name in set(DATASETS) - {"pusht", "metaworld"}:
        info = dataset_info(name)
        assert info.base_stride == official["base_stepsize"].get(name, 1), name
        assert info.camera_key == official["predict_camera_key"].get(name, "image"), name
        assert info.loader_camera_key == official["loader_camera_key"].get(name, "image"), name
        assert info.converter_camera_key == official["converter_camera_key"].get(name, "image"), name


def test_rows_hold_the_official_versions(official):
    versions = official["tfds_version"]
    for info in DATASETS.values():
        if info.source:
            assert info.version == versions.get(info.name, versions["default"]), info.name


def test_no_name_is_in_the_table_twice():
    assert len(catalog._ROWS) == len(DATASETS)


def test_numbered_views_are_read_from_one_source():
    assert {dataset_info(f"uiuc_d3field{view}").source for view in (1, 2, 3, 4)} == {"uiuc_d3field"}


@pytest.mark.parametrize(
    ("name", "video_stepsize", "stride"),
    [
        ("fractal20220817_data", 1, 1),
        ("bridge", 1, 2),
        ("asu_table_top_converted_externally_to_rlds", 1, 4),
        ("toto", 1, 10),
        ("toto", 2, 20),
        ("bair_robot_pushing", 1, 1),
        ("kuka", 0.1, 1),
    ],
)
def test_stride_follows_the_official_rule(name, video_stepsize, stride):
    assert dataset_info(name).stride(video_stepsize) == stride


@pytest.mark.parametrize("stepsize", [0, -1, float("nan"), float("inf")])
def test_stride_refuses_what_is_no_step(stepsize):
    with pytest.raises(UserError, match="video_stepsize"):
        dataset_info("bridge").stride(stepsize)


@pytest.mark.parametrize(
    ("name", "meant"), [("bair", "bair_robot_pushing"), ("Bridge", "bridge"), ("metawrld", "metaworld")]
)
def test_an_unknown_name_is_answered_with_the_closest(name, meant):
    with pytest.raises(UserError, match=f"'{name}'.*'{meant}'"):
        dataset_info(name)


def documented(heading: str) -> dict[str, list[str]]:
    """Cells of the first table below a heading of the page, by the first cell."""
    below = PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[-1]
    table = re.search(r"^\|.*\n\|---.*\n((?:\|.*\n)+)", below, flags=re.MULTILINE)
    assert table, f"no table below {heading}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    return {first: rest for first, *rest in rows}


def shown_licence(name: str) -> str:
    info = dataset_info(name)
    return f"[{info.licence}]({info.licence_url})" if info.licence else "not stated"


def test_the_page_lists_every_source_of_open_x_embodiment_as_the_table_has_it():
    selected = {dataset_info(name).source for name in mixture_weights("OXE_SELECT")}
    expected = {}
    for source in {info.source for info in DATASETS.values()} - {""}:
        gib = dataset_info(source).gib
        size = "not known" if gib is None else f"{gib:.2f}"
        expected[f"`{source}`"] = ["yes" if source in selected else "", size, shown_licence(source)]
    assert {name: cells[:3] for name, cells in documented("## Datasets of Open X-Embodiment").items()} == expected


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("BAIR robot pushing", "bair_robot_pushing"),
        ("RoboNet", "tfds_robonet"),
        ("VP2", "vp2_robodesk"),
        ("VP2", "vp2_robosuite"),
        ("Something-Something V2", "sthsth"),
    ],
)
def test_the_page_lists_the_other_sources_as_the_table_has_them(title, name):
    info = dataset_info(name)
    _, place, size, licence, _ = documented("# Data sources")[f"[{title}](#{title.lower().replace(' ', '-')})"]
    assert place.endswith(f"]({info.url})") and licence == shown_licence(name)
    assert info.gib is None or size == f"{info.gib:.2f} GiB"


def test_a_licence_stands_beside_the_page_that_states_it():
    for info in DATASETS.values():
        assert bool(info.licence) == bool(info.licence_url), info.name
        assert not info.licence or info.licence_url.startswith("https://"), info.name


def test_views_of_one_source_have_its_licence_and_size():
    for info in DATASETS.values():
        if info.source:
            source = dataset_info(info.source)
            assert (info.licence, info.licence_url, info.gib) == (source.licence, source.licence_url, source.gib)


def test_a_new_dataset_is_one_row(monkeypatch, tmp_path):
    row = catalog.oxe_row(
        "new_arm", base_stride=10, camera="front", further_cameras=("wrist",), version="2.0.0", gib=1.5
    )
    monkeypatch.setitem(DATASETS, "new_arm", row)
    info = dataset_info("new_arm")
    assert (info.camera_key, info.loader_camera_key, info.converter_camera_key) == ("front",) * 3
    assert info.source == "new_arm" and info.url == "gs://gresearch/robotics/new_arm/2.0.0"
    assert info.stride() == 3 and info.further_cameras == ("wrist",)
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", wrist=frames[::-1], front=frames)
    episode = read_episode(tmp_path / "a.npz", dataset_name="new_arm")
    assert np.array_equal(episode.frames, frames) and episode.meta["dataset"] == "new_arm"
    with pytest.raises(UserError, match="did you mean 'new_arm'"):
        dataset_info("new_ar")
