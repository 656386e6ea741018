"""A folder that is no episode store is called what it is, with the command that converts it."""

import pytest

from ivideogpt.commands.inputs import check_is_store
from ivideogpt.core.errors import UserError

FOLDERS = {
    "lerobot": (
        "meta/info.json",
        "a LeRobot dataset, not an episode store; .* ivideogpt convert lerobot",
    ),
    "bridge": ("1.0.0/features.json", "an RLDS dataset.*ivideogpt convert oxe bridge"),
    "fractal": ("fractal-train.tfrecord-00000-of-00001", "an RLDS dataset.*ivideogpt convert rlds"),
    "tokens": ("tokens.json", "a folder of tokens"),
    "model": ("config.json", "a checkpoint"),
    "videos": ("a.mp4", "a folder of recordings, not an episode store; convert it first: ivideogpt convert video"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_kind_of_a_folder_is_said(tmp_path, name):
    file, said = FOLDERS[name]
    path = tmp_path / name / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=said):
        check_is_store(tmp_path / name)


@pytest.mark.parametrize("words", [("data", "lr"), ("predict", "pusht-64", "--input", "lr"),
                                   ("evaluate", "pusht-64", "--data", "lr"),
                                   ("train-tokenizer", "robot-64", "--data", "lr", "--run", "x")])  # fmt: skip
def test_every_command_that_reads_episodes_says_it(run, tmp_path, words):
    (tmp_path / "lr" / "meta").mkdir(parents=True)
    (tmp_path / "lr" / "meta" / "info.json").write_text("{}")
    done = run(*words)
    assert done.code == 2 and "ivideogpt convert lerobot lr STORE" in done.err and len(done.err.splitlines()) == 1


def test_stores_and_unknown_folders_are_left_to_their_readers(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index.parquet").touch()
    for name in ("store", "nowhere", ".", "s3://bucket/store"):
        check_is_store(tmp_path / name if "://" not in name else name)
