import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder, write_atomic, write_text_atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_replaces_the_old_one(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "old")
    write_text_atomic(tmp_path / "a.txt", "new é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new é"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "old")

    def fail(path):
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomic(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    def write(path):
        assert path.suffix == ".mp4"
        path.write_bytes(b"")

    write_atomic(tmp_path / "a.mp4", write)


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "a.txt", "text")


def write_config(text):
    def write(folder):
        (folder / "part").mkdir()
        (folder / "part" / "config.json").write_text(text)

    return write


def test_a_replaced_folder_holds_only_the_new_content(tmp_path):
    target = tmp_path / "deep" / "model"
    replace_folder(target, write_config("old"))
    (target / "part" / "left over").write_text("")
    replace_folder(target, write_config("new"))
    assert (target / "part" / "config.json").read_text() == "new"
    assert names(target / "part") == ["config.json"]
    assert names(target.parent) == ["model"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    replace_folder(tmp_path / "model", write_config("old"))

    def fail(folder):
        write_config("half")(folder)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        replace_folder(tmp_path / "model", fail)
    assert (tmp_path / "model" / "part" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_of_someone_else_is_never_deleted(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        replace_folder(tmp_path / "home", write_config("new"))
    assert names(tmp_path / "home") == ["thesis.tex"]
    assert names(tmp_path) == ["home"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError, match="is a file"):
        replace_folder(tmp_path / "model", write_config("new"))
