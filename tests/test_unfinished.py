"""What a command has begun: where it lies, who goes on with it, and that nothing else is deleted or mixed with it."""

import json

import pytest

from minibnn import UserError
from minibnn.options import unfinished
from minibnn.options.neighbours import BpsOptions, GraftOptions, RectifiedOptions
from minibnn.options.parsing import parse


def options(*words):
    return parse(GraftOptions, "minibnn graft", ["--reward", "redness", *map(str, words)])


def begin(options, out, pictures=None):
    """Begin, leave something to go on with, and be stopped by Ctrl-C; returns the folder."""
    with pytest.raises(KeyboardInterrupt), unfinished.begun(options, out, pictures) as work:
        (work / "done").write_text("half")
        raise KeyboardInterrupt
    return work


def test_ctrl_c_names_the_command_that_goes_on_and_an_end_leaves_nothing(tmp_path):
    out = tmp_path / "a run"
    with pytest.raises(KeyboardInterrupt, match=r"what is done is in .*; to go on: python -m minibnn graft --resume "
                       f"--out '{out}' --overwrite$"), unfinished.begun(options("--overwrite"), out) as work:
        (work / "done").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="^its own words$"), unfinished.begun(options("--resume", "--out", out),
                                                                                     out) as work:
        assert (work / "done").read_text() == "half"
        raise KeyboardInterrupt("its own words")
    with unfinished.begun(options("--resume", "--out", out), out) as work:
        assert (work / "done").exists()
    with unfinished.begun(options(), out) as work:
        (work / "done").write_text("half")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, RuntimeError])
def test_what_stops_before_anything_is_done_leaves_nothing(tmp_path, error):
    """Bug of an earlier version: after a reward that failed at once graft had to be told --resume or --overwrite."""
    with pytest.raises(error, match="^$|^no$"), unfinished.begun(options(), tmp_path / "run"):
        raise error(*["no"] * (error is not KeyboardInterrupt))
    assert not list(tmp_path.iterdir())


def test_it_lies_beside_the_folder_however_that_is_called(tmp_path, monkeypatch):
    """Bug of an earlier version: `--out .` was a traceback."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "a")
    for out, place in {".": tmp_path / "runs" / "a.unfinished", "..": tmp_path / "runs.unfinished",
                       "b/": "b.unfinished", "../c.d": "../c.d.unfinished", "/": "/.unfinished"}.items():
        assert str(unfinished.place(out)) == str(place)


def test_what_is_given_wins_over_what_was_begun_and_what_was_settled_for_another_value_goes(tmp_path):
    out = tmp_path / "run"
    begin(options("--rule", "threshold", "--minimum", 2, "--steps", 7, "--out", out), out)
    before = options("--resume", "--out", out)
    assert (before.rule, before.minimum, before.steps, before.resume) == ("threshold", 2.0, 7, True)
    changed = options("--resume", "--out", out, "--rule", "tilt", "--steps", 8)
    assert (changed.rule, changed.minimum, changed.steps) == ("tilt", GraftOptions.minimum, 8)
    same = options("--resume", "--out", out, "--rule", "threshold")
    assert same.minimum == 2.0


@pytest.mark.parametrize("content", [
    {"command": "graft", "options": {}}, {"command": 3, "options": {}, "pictures": {}}, {"options": {"rule": "tilt"}},
])
def test_a_damaged_file_is_named(tmp_path, content, capsys):
    """Bug of an earlier version: one without `rule` was a traceback."""
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished" / "options.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        options("--resume", "--out", tmp_path / "run", "--rule", "tilt")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'run.unfinished' / 'options.json'}: ")


def test_what_another_command_began_is_neither_resumed_nor_forgotten(tmp_path):
    """Bug of an earlier version: `--overwrite` deleted it."""
    out = tmp_path / "run"
    work = begin(BpsOptions(hints="pairs"), out)
    for words in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="run.unfinished was begun by the command bps, not by rectified: name anot"):
            if words == {"resume": True}:
                unfinished.going_on(words, RectifiedOptions, out)
            unfinished.check(RectifiedOptions(model="m", **words), out)
    (work / unfinished.FILE).write_text((work / unfinished.FILE).read_text().replace('"gains"', '"gain"'))
    unfinished.check(BpsOptions(hints="pairs", overwrite=True), out)  # of another version, but of the same command
    assert (work / unfinished.FILE).exists()


def test_a_folder_of_that_name_that_no_command_made_is_left_alone(tmp_path):
    work = tmp_path / "run.unfinished"
    work.mkdir()
    unfinished.check(options(), tmp_path / "run")  # empty, as a kill may leave it
    (work / "letter.txt").write_text("mine")
    for words in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="run.unfinished is needed, and holds something else: move it, or name"):
            unfinished.check(options(*words), tmp_path / "run")


def test_pictures_must_be_those_that_it_began_with(tmp_path):
    begun = options("--out", tmp_path / "run")
    begin(begun, tmp_path / "run", {"a.png": "0f"})
    unfinished.check_unchanged(begun, tmp_path / "run", {"out"}, {"a.png": "0f"})
    for others in ({"a.png": "0e"}, {}, {"a.png": "0f", "b.png": "0f"}):
        with pytest.raises(UserError, match="the pictures or captions are not those that .*run.unfinished began with"):
            unfinished.check_unchanged(begun, tmp_path / "run", {"out"}, others)


@pytest.mark.parametrize(("options_class", "words", "paths"), [
    (GraftOptions, ["--reward", "redness", "--model", "r"], ["model"]),
    (GraftOptions, ["--reward", "clip:nets/clip", "--model", "r"], ["reward", "model"]),
    (GraftOptions, ["--reward", "aesthetic:nets/clip", "--model", "r"], ["reward", "model"]),
    (GraftOptions, ["--reward", "mine.py:beauty", "--model", "r"], ["reward", "model"]),
    (BpsOptions, ["--hints", "pairs", "--model", "tiny", "--branch", "b"], ["hints", "branch"]),
    (RectifiedOptions, ["--model", "r", "--train", "--images", "pairs", "--prompt", "a"], ["model", "images"]),
])
def test_it_goes_on_from_another_working_folder(tmp_path, monkeypatch, options_class, words, paths):
    """Bug of an earlier version: relative paths were looked for in the folder of the second call."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    first = parse(options_class, "x", words)
    begin(first, "run")
    assert parse(options_class, "x", ["--resume", "--out", "run"]).model == first.model
    monkeypatch.chdir(elsewhere)
    again = parse(options_class, "x", ["--resume", "--out", str(home / "run")])
    there = {"clip:nets/clip": f"clip:{home}/nets/clip", "aesthetic:nets/clip": f"aesthetic:{home}/nets/clip"}
    expected = [there.get(getattr(first, name), str(home / getattr(first, name))) for name in paths]
    assert [getattr(again, name) for name in paths] == expected
    assert again.model == first.model or "model" in paths  # a bundled model's name is no path
    unfinished.check_unchanged(again, home / "run", {"resume", "out"})
    spelled = parse(options_class, "x", ["--resume", "--out", str(home / "run"), "--model", "../home/" + first.model])
    if "model" in paths:
        unfinished.check_unchanged(spelled, home / "run", {"resume", "out"})
    path = home / "run.unfinished" / "options.json"
    of_before = json.loads(path.read_text())
    del of_before["folder"]
    path.write_text(json.dumps(of_before))
    monkeypatch.chdir(home)
    assert parse(options_class, "x", ["--resume", "--out", "run"]).model == first.model
