"""Mixtures by name and from files."""

import json
import sys

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data import mixtures
from ivideogpt.data.catalog import DATASETS
from ivideogpt.data.mixtures import Mixture, MixtureSource, load_mixture, mixture_names, mixture_weights, named_mixture

TOML = """
action_width = 7
[[sources]]
path = "stores/bridge"
weight = 3.0
stride = 2
camera = "wrist_image"
[[sources]]
path = "s3://bucket/kuka"
"""
needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")


@pytest.mark.parametrize("name", mixture_names())
def test_every_mixture_names_known_datasets_and_its_shares_sum_to_1(name):
    mixture = named_mixture(name, "stores")
    assert set(mixture_weights(name)) <= set(DATASETS)
    assert sum(mixture.probabilities) == pytest.approx(1)


def test_oxe_select_has_seven_large_sets_and_31_that_share_a_fifth():
    weights = mixture_weights("OXE_SELECT")
    assert len(weights) == 38 and sum(weights.values()) == pytest.approx(1)
    large = {name: weight for name, weight in weights.items() if weight > 0.01}
    assert len(large) == 7 and sum(large.values()) == pytest.approx(0.8)
    assert weights["bridge"] == 0.15 and weights["cmu_stretch"] == pytest.approx(0.2 / 31)
    assert mixture_weights("select") == weights


def test_with_something_something_the_robots_keep_85_percent():
    weights, robots = mixture_weights("OXE_SELECT_STHSTH"), mixture_weights("OXE_SELECT")
    assert weights.pop("sthsth") == 0.15
    assert weights == pytest.approx({name: 0.85 * weight for name, weight in robots.items()})
    assert named_mixture("select_sthsth", "stores").sources[-1].stride == 1  # as the official loader has it


def test_a_dataset_listed_twice_has_both_weights():
    assert mixture_weights("rtx_franka")["taco_play"] == 3.0


def test_an_unknown_mixture_is_refused_with_the_closest_one():
    with pytest.raises(UserError, match="there is no mixture 'OXE_SELEKT'; did you mean 'OXE_SELECT'?"):
        named_mixture("OXE_SELEKT", "stores")


def test_stores_of_a_named_mixture_have_the_names_of_their_datasets():
    source = named_mixture("bair", "s3://bucket/stores/", split="test").sources[0]
    assert source == MixtureSource(path="s3://bucket/stores/bair_robot_pushing", split="test")


@needs_toml
def test_a_mixture_is_read_from_toml_and_from_json(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML)
    mixture = load_mixture(tmp_path / "mine.toml")
    first, second = mixture.sources
    assert first.path == str(tmp_path / "stores" / "bridge") and second.path == "s3://bucket/kuka"
    assert (first.stride, first.camera, second.stride, mixture.action_width) == (2, "wrist_image", None, 7)
    assert mixture.probabilities == (0.75, 0.25)
    values = {
        "action_width": 7,
        "sources": [{"path": "stores/bridge", "weight": 3, "stride": 2, "camera": "wrist_image"}],
    }
    values["sources"].append({"path": "s3://bucket/kuka"})
    (tmp_path / "mine.json").write_text(json.dumps(values))
    assert load_mixture(tmp_path / "mine.json") == mixture


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [{"path": "a", "wieght": 1}]}, "unknown key 'wieght'; did you mean 'weight'?"),
        ({"source": []}, "unknown key 'source'; did you mean 'sources'?"),
        ({"sources": []}, "has no sources"),
        ({"sources": [{"weight": 1}]}, "has no 'path'"),
        ({"sources": [{"path": "a", "weight": 0}]}, "the weight of a is 0"),
        ({"sources": [{"path": "a", "stride": 0}]}, "the stride of a is 0"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, values, message):
    (tmp_path / "mine.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_mixture(tmp_path / "mine.json")


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="ends in .toml or .json"):
        load_mixture(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="does not exist"):
        load_mixture(tmp_path / "mine.json")
    (tmp_path / "mine.toml").write_text("[[sources]\n")
    if sys.version_info >= (3, 11):
        with pytest.raises(UserError, match="cannot be read as TOML"):
            load_mixture(tmp_path / "mine.toml")
        with pytest.raises(UserError, match="does not exist"):
            load_mixture(tmp_path / "yours.toml")
    monkeypatch.setattr(mixtures, "_toml_reader", lambda: None)
    with pytest.raises(UserError, match="write the mixture as JSON"):
        load_mixture(tmp_path / "mine.toml")


def test_a_mixture_without_sources_is_refused():
    with pytest.raises(UserError, match="no sources"):
        Mixture(sources=())


@pytest.mark.parametrize("width", [0, -1, 10**12])
def test_an_action_width_that_no_robot_has_is_refused(tmp_path, width):
    (tmp_path / "m.json").write_text(json.dumps({"sources": [{"path": "a"}], "action_width": width}))
    with pytest.raises(UserError, match=f"action_width is {width}; expected 1 to 4096"):
        load_mixture(tmp_path / "m.json")


def test_a_deep_mixture_file_is_one_sentence(tmp_path):
    (tmp_path / "m.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(UserError, match=r"m\.toml cannot be read as TOML"):
        load_mixture(tmp_path / "m.toml")
