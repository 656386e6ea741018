import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ivideogpt.core.config import closest, from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Grid:
    height: int = 4
    width: int = 4


@dataclass(frozen=True, kw_only=True)
class Model:
    channels: int
    dropout: float = 0.0
    kind: Literal["small", "large"] = "small"
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    names: list[str] = field(default_factory=list)
    scale: float | None = None
    limit: int | str = 3
    grid: Grid = Grid()
    extra_grid: Grid | None = None
    grids: tuple[Grid, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    anything: Any = None
    normalize: bool = True


FULL = Model(
    channels=3,
    dropout=0.5,
    kind="large",
    widths=(4, 5, 6),
    pair=(2, 0.25),
    names=["a", "b"],
    scale=2.0,
    limit="many",
    grid=Grid(height=8),
    extra_grid=Grid(width=2),
    grids=(Grid(), Grid(height=1)),
    rates={"x": 1.0},
    anything={"free": [1, None]},
    normalize=False,
)


@pytest.mark.parametrize("config", [Model(channels=1), FULL], ids=["defaults", "full"])
def test_config_comes_back_from_json_as_it_was(config):
    assert from_dict(Model, json.loads(json.dumps(to_dict(config)))) == config


def test_an_int_is_a_float_where_one_is_wanted():
    value = from_dict(Model, {"channels": 1, "dropout": 1}).dropout
    assert value == 1.0
    assert isinstance(value, float)


def test_an_unknown_key_names_the_closest_and_its_place():
    with pytest.raises(UserError, match="config.json has an unknown key 'chanels'; did you mean 'channels'"):
        from_dict(Model, {"chanels": 3}, where="config.json")


def test_an_unknown_nested_key_says_where_it_is():
    with pytest.raises(UserError, match="grid has an unknown key 'heigth'; did you mean 'height'"):
        from_dict(Model, {"channels": 3, "grid": {"heigth": 3}})


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="no 'channels'"):
        from_dict(Model, {})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("channels", "3", "int"),
        ("channels", True, "int"),
        ("channels", 3.0, "int"),
        ("channels", None, "int"),
        ("dropout", False, "float"),
        ("kind", "medium", "one of 'small', 'large'"),
        ("widths", [1, "2"], "int"),
        ("widths", 3, "a list of int"),
        ("pair", [1], "a list of 2: int, float"),
        ("scale", "big", "float"),
        ("limit", 0.5, "int or str"),
        ("grid", 3, "an object"),
        ("grids", [{"height": "x"}], "int"),
        ("rates", {"x": "y"}, "float"),
        ("normalize", 1, "bool"),
    ],
)
def test_a_wrong_type_names_the_field_the_value_and_what_was_expected(name, value, expected):
    with pytest.raises(UserError) as error:
        from_dict(Model, {"channels": 1, name: value})
    assert name in str(error.value)
    assert expected in str(error.value)


def test_values_that_are_no_object_are_refused():
    with pytest.raises(UserError, match="expected an object"):
        from_dict(Model, [1])  # pyright: ignore[reportArgumentType]


def test_closest_takes_dashes_for_underscores_and_gives_none_for_nothing_near():
    assert closest("num_step", ["num-steps", "seed"]) == "num-steps"
    assert closest("zzz", ["num-steps", "seed"]) is None


def test_json_files_come_back_and_leave_no_temporary(tmp_path):
    save_json(tmp_path / "new" / "a.json", {"x": [1, "é", None]})
    assert load_json(tmp_path / "new" / "a.json") == {"x": [1, "é", None]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_json_that_cannot_hold_the_values_leaves_the_old_file(tmp_path):
    save_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(UserError, match="finite"):
        save_json(tmp_path / "a.json", {"x": float("nan")})
    assert load_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_a_bad_json_file_is_a_user_error_that_names_it(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="a.json"):
        load_json(tmp_path / "a.json")


def test_a_missing_json_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_json(tmp_path / "a.json")
