"""Progress without a terminal: a line a minute."""

import io
import subprocess
import sys

import pytest
from tqdm import tqdm

from minibnn import progress
from minibnn.progress import Course, Lines, progress_bar


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
    assert type(progress_bar(range(3), disable=True)) is progress.Bar
    assert list(progress_bar("ab", total=2)) == ["a", "b"]


def test_output_to_a_file_has_no_bars(tmp_path):
    script = "from minibnn.progress import progress_bar\nfor _ in progress_bar(range(50), desc='x'): pass"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""


# --- the time to the end ----------------------------------------------------------------------------------------------


def test_longer_work_counts_where_it_is_still_to_come(clock):
    """Steps of 2 s, looks of 10 s after the steps 0, 3, 6 and 9, and samples at the end, as long as 2 looks."""
    course, due = Course(9, {0, 3, 6, 9}, 2, clock), {}
    for step in range(10):
        if step:
            clock.now += 2
        course.passed(step)
        due[step] = course.to_go()
        if step in (0, 3, 6, 9):
            clock.now += 10
    assert due[0] is None and due[1] is None  # no step of ordinary length has been seen yet
    assert {step: due[step] for step in range(2, 10)} == {
        2: 7 * 2 + 5 * 10, 3: 6 * 2 + 5 * 10, 4: 5 * 2 + 4 * 10, 5: 4 * 2 + 4 * 10, 6: 3 * 2 + 4 * 10,
        7: 2 * 2 + 3 * 10, 8: 2 + 3 * 10, 9: 3 * 10,
    }


def test_a_resumed_training_begins_in_the_middle(clock):
    course = Course(100, (), 0, clock)
    for step in range(60, 64):
        course.passed(step)
        clock.now += 3
    assert course.to_go() == 37 * 3


def test_a_time_that_is_given_is_shown(clock, capsys, monkeypatch):
    with Lines(None, 100, "training", 0, clock) as bar:
        bar.to_go = 3600
        clock.now += 60
        bar.update(50)
    assert capsys.readouterr().err == "training: 50 of 100, 0:01:00, about 1:00:00 to go\n"
    shown = io.StringIO()
    bar = progress.Bar(None, "training", 100, file=shown)
    bar.to_go = 100.0
    bar.update(50)
    bar.refresh()
    assert "<01:40," in shown.getvalue().split("\r")[-1]
    assert bar.format_dict["rate"] == tqdm.format_dict.fget(bar)["rate"]  # what is shown as it/s is not bent to it
    bar.to_go = 0.0
    bar.update(50)
    bar.close()
    assert "100/100 [00:00<00:00, " in shown.getvalue() and "?" not in shown.getvalue().split("\r")[-1]
