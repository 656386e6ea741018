"""The registry of importers: a new kind of source is one module and one line, and the command reports what it omits."""

import json
import sys
import types
from functools import partial

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.data.convert.importers import IMPORTERS, Importer
from ivideogpt.data.convert.source_episode import EXAMPLES, Omission, SourceEpisode, merged_omissions, omission
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import ShardTask, ShardTasks


def read_dummy(count):
    for index in range(count):
        yield SourceEpisode(
            key=f"episode {index}",
            cameras={"image": np.full((4, 8, 8, 3), index, np.uint8)},
            omissions=(Omission(items="last actions", reason="they lead to no recorded frame"),),
        )
    yield Omission(items="episodes", reason="they have no steps", names=("empty",))


@pytest.fixture
def dummy(monkeypatch):
    module = types.ModuleType("dummy_importer")
    module.FACTS = StoreFacts(name="dummy")
    tasks = [ShardTask("train-00000", partial(read_dummy, 2)), ShardTask("train-00001", partial(read_dummy, 0))]
    module.tasks = lambda source: ShardTasks(tasks, omission("files", "they are notes", ["a.txt"]))
    monkeypatch.setitem(sys.modules, "ivideogpt.data.convert.dummy_importer", module)
    monkeypatch.setitem(IMPORTERS, "dummy", Importer("dummy_importer", "nothing"))


def test_a_new_importer_is_a_module_and_a_line_in_the_registry(dummy, tmp_path, capsys):
    words = ["convert", "dummy", str(tmp_path), str(tmp_path / "store"), "--workers", "0"]
    for _ in range(2):  # what is left out is reported again by a conversion that has nothing to do
        assert main(words) == 0
        *_, sentence, values = capsys.readouterr().out.splitlines()
        assert sentence == (
            "stored 2 episodes with 8 frames; left out or moved: 1 files (they are notes: a.txt); "
            "2 last actions (they lead to no recorded frame); 2 episodes (they have no steps: empty and 1 more)"
        )
        assert [entry["count"] for entry in json.loads(values)["left_out"]] == [1, 2, 2]
    notes = EpisodeStore(tmp_path / "store").facts.dataset.notes
    assert notes["left_out"][0] == {"items": "files", "reason": "they are notes", "count": 1, "names": ["a.txt"]}


def test_omissions_of_one_reason_are_added_up():
    many = merged_omissions(
        [*omission("files", "no", "abcd"), *omission("files", "no", "e"), *omission("files", "x", "")]
    )
    assert len(many) == 1 and many[0].count == 5 and many[0].names == ("a", "b", "c") and len(many[0].names) == EXAMPLES
    assert str(many[0]) == "5 files (no: a, b, c and 2 more)"


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_says_what_it_reads(name):
    assert IMPORTERS[name].summary and callable(IMPORTERS[name].load().tasks)
