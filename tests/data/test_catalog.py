"""The dataset table against the official tables."""

import json
from pathlib import Path

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data import catalog
from ivideogpt.data.catalog import DATASETS, dataset_info

OFFICIAL = Path(__file__).parents[2] / "../shared/data/official_datasets.json"


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
