"""What cannot be written is refused before the work begins."""

import re
import signal
from pathlib import Path

import pytest

from minibnn import UserError
from minibnn.options.experiments import RecipeOptions
from minibnn.options.lab import ProbeOptions
from minibnn.options.outputs import check_outputs
from minibnn.options.running import run
from minibnn.options.world import EvaluateOptions, PretrainOptions


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    yield tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]  # nothing is left of the trial


@pytest.mark.parametrize(("name", "why"), [
    ("file", "is a file; name a folder"), ("file/new", "Not a directory"), ("loop", "symbolic links"),
    ("loop/new", "symbolic links"), ("n" * 300, "name too long"),
])
def test_a_place_that_cannot_be_written_is_refused(name, why, folder):
    with pytest.raises(UserError, match=f"^--out {re.escape(str(folder / name))} .*{why}"):
        check_outputs(EvaluateOptions(out=str(folder / name)))
    with pytest.raises(UserError, match="^--work "):
        check_outputs(PretrainOptions(work=str(folder / name)))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a file system in which nobody can make files")
def test_it_is_tried_and_not_guessed():
    with pytest.raises(UserError, match="^--out /proc/no/new cannot be written: "):
        check_outputs(EvaluateOptions(out="/proc/no/new"))


def test_folders_that_are_not_there_and_files_that_may_be_replaced_pass(folder):
    check_outputs(EvaluateOptions(out=str(folder / "a" / "b")))
    check_outputs(ProbeOptions(out=str(folder / "file")))
    check_outputs(ProbeOptions())  # beside us, under a name of the command's own


def test_commands_begin_with_it_but_a_plan_writes_nothing(folder, capsys):
    done, before = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit):
        run(done.append, RecipeOptions(out=str(folder / "file")))
    assert not done and capsys.readouterr().err.count("\n") == 1
    run(done.append, RecipeOptions(out=str(folder / "file"), plan=True))
    assert len(done) == 1
    for number, handler in before.items():
        signal.signal(number, handler)
