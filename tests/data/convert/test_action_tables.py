"""Tables of actions: names of columns, row indices of pandas, and what can be read in two ways."""

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.action_tables import read_action_table


def table(tmp_path, text, frames=None, name="a.csv"):
    (tmp_path / name).write_text(text)
    return read_action_table(tmp_path / name, frames)


@pytest.mark.parametrize("first", ["", "Unnamed: 0", "index", "frame"])
@pytest.mark.parametrize("start", [0, 1])
def test_a_column_that_counts_the_rows_is_no_action(tmp_path, first, start):
    rows = "".join(f"{row + start},0.{row},0.5\n" for row in range(4))
    actions = table(tmp_path, f"{first},x,y\n{rows}")
    assert actions.names == ("x", "y") and actions.values.tolist() == [[row / 10, 0.5] for row in range(4)]
    assert [entry.reason for entry in actions.omissions] == ["they count the rows"]


def test_names_that_are_numbers_are_names(tmp_path):
    """pandas names the columns of an array 0, 1, 2."""
    rows = ["0.5,1.5,2.5", "0.25,1.25,2.25"]
    assert table(tmp_path, "\n".join(["0,1,2", *rows])).values.shape == (2, 3)
    indexed = table(tmp_path, "\n".join([",0,1,2", "0," + rows[0], "1," + rows[1]]))
    assert indexed.names == ("0", "1", "2") and indexed.values.tolist() == [[0.5, 1.5, 2.5], [0.25, 1.25, 2.25]]
    integers = "0,1,2\n5,5,5\n6,6,6\n"
    assert table(tmp_path, integers, frames=2).names == ("0", "1", "2")  # one line more than frames
    assert table(tmp_path, integers, frames=4).values.shape == (3, 3)  # one line less
    with pytest.raises(UserError, match="line 1 is 0,1,2, which may be the numbers of the columns or an action"):
        table(tmp_path, integers, frames=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,\n1,2\n3,4\n", "has no name for column 2"),
        (",x\n5,2\n3,4\n", "has no name for column 1"),
        ("x,1\n1,2\n", "line 1 holds names and numbers"),
        ("0,0.5\n1,0.5\n2,0.5\n", "has a first column that counts the rows, as an index does"),
        ("1_0,2\n", "line 1 holds names and numbers"),
        ("x,y\n1_0,2\n", "line 2 has '1_0'; expected a number"),
        ("\x00", "has no lines of numbers|not a readable CSV"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


def test_tables_without_an_index_are_read_whole(tmp_path):
    assert table(tmp_path, "0\n1\n2\n").values[:, 0].tolist() == [0, 1, 2]
    assert table(tmp_path, "x,y\n0,5\n2,5\n").values.tolist() == [[0, 5], [2, 5]]
    assert table(tmp_path, "\ufeffx,y\n0,5\n", name="B.CSV").names == ("x", "y")
    np.save(tmp_path / "c.npy", np.arange(6).reshape(3, 2))
    (tmp_path / "c.npy").rename(tmp_path / "C.NPY")
    assert read_action_table(tmp_path / "C.NPY").values.shape == (3, 2)
