"""A folder is worked in by one process at a time, and what a killed one left is removed."""

import subprocess
import sys

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import remove_leftovers
from ivideogpt.core.folder_lock import lock_folder

HOLD = (
    "import sys, time; from pathlib import Path; from ivideogpt.core.folder_lock import lock_folder\n"
    "lock_folder(Path(sys.argv[1]), activity='training'); print('locked', flush=True); time.sleep(60)"
)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another training is running in"):
            lock_folder(tmp_path, activity="training")
        first.kill()
    lock_folder(tmp_path, activity="training")
    lock_folder(tmp_path, activity="training")  # the same process


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".0badcafe.step-00000010").mkdir()
    (tmp_path / ".0badcafe.step-00000010" / "model.safetensors").write_bytes(b"x")
    for name in (".0badcafe.settings.json", ".hidden", ".lock", "settings.json"):
        (tmp_path / name).write_text("{}")
    remove_leftovers(tmp_path, tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", ".lock", "settings.json"}
