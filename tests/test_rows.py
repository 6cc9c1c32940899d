"""Files of lines: what is written can be read again, and an unfinished list of rows leaves the earlier file."""

import json

import pytest

from minibnn.files.rows import read_rows, write_rows
from minibnn.files.store import append_text


def test_written_rows_can_be_read_and_added_to(tmp_path):
    path, rows = tmp_path / "new" / "a.jsonl", [{"step": 1, "text": "two\nlines, σ"}, {"step": 2, "mean": [0.1, None]}]
    write_rows(path, iter(rows))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == rows
    append_text(path, '{"step": 3}\n')  # after the end of the last line, as a training does
    assert read_rows(path) == [*rows, {"step": 3}]
    write_rows(path, [])
    assert path.read_bytes() == b"" and read_rows(path) == []


def test_rows_that_cannot_be_written_leave_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_rows(path, [{"step": 1}])
    with pytest.raises(TypeError):
        write_rows(path, [{"step": 1}, {"step": {2}}])
    assert read_rows(path) == [{"step": 1}] and list(tmp_path.iterdir()) == [path]
