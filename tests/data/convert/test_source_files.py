"""Templates of paths, and text files of a source."""

import os

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_files import filled_template, read_text, visible_files
from ivideogpt.data.convert.tables import read_json


def test_templates_take_plain_fields_only():
    assert filled_template("a/{n:03d}-{name}.x", {"n": 7, "name": "b"}, "here") == "a/007-b.x"
    for template in ("{m}", "{n!r}", "{n.real}", "{n[0]}", "{}", "{n:999d}", "{n:>9}", "{", "{n:0{n}d}"):
        with pytest.raises(UserError, match="here is .*; it may use n, name"):
            filled_template(template, {"n": 7, "name": "b"}, "here")


def test_files_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff{}")
    with pytest.raises(UserError, match="a.json is not a readable JSON file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="deep.json is not a readable JSON file .*nested too deeply"):
        read_json(tmp_path / "deep.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is a FIFO"):
        read_text(tmp_path / "pipe.json", "JSON file")
    assert [path.name for path in visible_files(tmp_path)] == ["a.json", "deep.json"]
