"""Progress without a terminal: a line a minute."""

import subprocess
import sys

import pytest

from minibnn import progress
from minibnn.progress import Lines, progress_bar


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    return Clock()


def test_a_line_a_minute_with_the_time_to_the_end(clock, capsys):
    bar = Lines(None, 900, "training", 100, clock)
    for _ in range(799):
        clock.now += 1
        bar.set_postfix(loss="0.5", refresh=False)
        bar.update()
    clock.now += 1
    bar.update()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 800 // 60 + 1
    assert lines[0] == "training: 160 of 900, 0:01:00, about 0:12:20 to go, loss 0.5"
    assert lines[-1] == "training: 900 of 900, 0:13:20, loss 0.5"


def test_what_is_done_within_a_minute_needs_no_line(clock, capsys):
    with Lines(None, 3, "drawing", 0, clock) as bar:
        clock.now += 59
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_iteration_counts_and_lengths_may_be_unknown(clock, capsys):
    seen = []
    for value in Lines(iter("abc"), None, "reading", 0, clock):
        seen.append(value)
        clock.now += 40
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == ["reading: 2, 0:01:20", "reading: 3, 0:02:00"]


def test_a_bar_is_for_terminals_and_notebooks(monkeypatch):
    assert type(progress_bar(range(3))) is Lines and progress_bar(range(3)).total == 3
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert type(progress_bar(range(3), disable=True)) is progress.tqdm
    assert list(progress_bar("ab", total=2)) == ["a", "b"]


def test_output_to_a_file_has_no_bars(tmp_path):
    script = "from minibnn.progress import progress_bar\nfor _ in progress_bar(range(50), desc='x'): pass"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
