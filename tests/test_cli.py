"""The command lines as a person meets them: one door, speed of --help, exit codes, one line for each mistake."""

import ast
import dataclasses
import inspect
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from minibnn.__main__ import COMMANDS, main
from minibnn.options.neighbours import FlowOptions
from minibnn.options.parsing import parse
from minibnn.options.results import SampleOptions
from minibnn.options.running import run
from minibnn.options.training import TrainOptions


def command(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, cwd=cwd)


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["minibnn", "train"], ["minibnn", "experiment", "bps"], ["minibnn.train"], ["minibnn.sample"]]
)
def test_help_needs_no_torch(words):
    script = (
        f"import sys, runpy; sys.argv = ['x', *{words[1:]}, '--help']\n"
        f"try: runpy.run_module('{words[0]}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "[default" not in result.stdout and "--seed" in result.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["experiment"], ["experiment", "--help"]])
def test_the_door_lists_every_command_once(capsys, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["minibnn", *words])
    main()
    lines = capsys.readouterr().out.splitlines()
    listed = [line[2:].split("  ")[0] for line in lines if line.startswith("  ")]
    assert listed == list(COMMANDS) and max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function_that_takes_its_options(name):
    _, options, function, *leading = COMMANDS[name]
    module, function = function.split(":")
    function = getattr(import_module(f"minibnn.{module}"), function)
    parameters = inspect.signature(function).parameters.values()  # of the function beneath its decorators
    wanted = [each for each in parameters if each.default is each.empty]
    assert len(wanted) == len(leading) + 1 and dataclasses.is_dataclass(options) and options.__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_a_command_reads_are_those_it_has(name):
    """`options.x` in the file of a command must be a field of its options: a misspelt one would end in a traceback."""
    _, options, function, *_ = COMMANDS[name]
    module = import_module(f"minibnn.{function.split(':')[0]}")
    of_same_file = [o for _, o, f, *_ in COMMANDS.values() if f.split(":")[0] == function.split(":")[0]]
    of_same_file += [value for key, value in vars(module).items() if key.endswith("Options")]
    known = {field.name for each in of_same_file for field in dataclasses.fields(each)}
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {a.attr for a in attributes if isinstance(a.value, ast.Name) and a.value.id == "options"}
    assert read <= known, read - known


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minibnn", "trian"], "error: no command trian; did you mean train?"),
        (["minibnn", "toast"], "error: no command toast; python -m minibnn --help lists them"),
        (["minibnn", "experiment", "graf"], "error: no command experiment graf; did you mean experiment graft?"),
        (["minibnn", "train", "--imges", "x"], "error: no option --imges; did you mean --images?"),
        (["minibnn.train", "--imges", "x"], "error: no option --imges; did you mean --images?"),
        (["minibnn.train"], "error: --images is required; python -m minibnn train --help explains it"),
        (
            ["minibnn.train", "--images", "x", "--steps", "0"],
            "error: --steps: '0' is not a whole number of at least 1",
        ),
        (
            ["minibnn.train", "--images", "x", "--batch-size", "-1"],
            "error: --batch-size: '-1' is not a whole number",
        ),
        (["minibnn.train", "--images", "x", "--lr=--"], "error: --lr: '--' is not a value"),
        (["minibnn.train", "--images", "x", "--lr", "0"], "error: --lr: '0' is not a number above 0"),
        (["minibnn.train", "--images", "x", "--lr", "nan"], "error: --lr: 'nan' is not a number above 0"),
        (
            ["minibnn.train", "--images", "x", "--prompt", " "],
            "error: --prompt: ' ' is not a text with at least one word in it",
        ),
        (["minibnn.train", "--images", "nowhere"], "error: --images nowhere: no such folder"),
        (["minibnn.train", "--images", __file__], f"error: --images {__file__}: is a file; name the folder"),
        (["minibnn.sample", "--prompt", "a dog", "--out", "a.jpg"], "error: --out a.jpg: the name must end with .png"),
        (
            ["minibnn.sample", "--prompt", "a dog", "--model", "nowhere"],
            "error: no model at nowhere: give a folder, a .safetensors file, or \"tiny-v2\" for the bundled model; "
            "minibnn downloads nothing, and docs/training.md#getting-stable-diffusion says how to fetch one",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tmp_path):
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_terminal_without_unicode_shows_the_help_all_the_same():
    result = subprocess.run(
        [sys.executable, "-m", "minibnn", "sigma1", "--help"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 0 and "--draws" in result.stdout and not result.stderr
    assert "Measure sigma1 of Eq. 2 in a model (Fig. 4). Look into one model" in result.stdout  # not the other probes'


@pytest.mark.parametrize("asked", [None, "ACTIVE"])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch, asked):
    monkeypatch.setattr("minibnn.__main__.run", lambda function, *arguments: None)
    monkeypatch.setattr("minibnn.__main__.answer_while_importing", lambda: None)
    monkeypatch.setattr(sys, "argv", ["minibnn", "--prompt", "a dog"])
    monkeypatch.setenv("OMP_WAIT_POLICY", asked or "")
    if not asked:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    main("sample")
    assert os.environ["OMP_WAIT_POLICY"] == (asked or "PASSIVE")


# --- options ----------------------------------------------------------------------------------------------------------


def test_defaults_and_kinds():
    options = parse(TrainOptions, "x", ["--images", "p", "--no-bayes", "--lr", "1e-4"])
    assert (options.bayes, options.lr, options.steps, options.model, options.seed) == (False, 1e-4, None, "tiny-v2", 0)
    options = parse(SampleOptions, "x", ["--prompt", "a dog", "a cat", "--guidance", "3"])
    assert (options.prompt, options.guidance, options.steps) == (["a dog", "a cat"], 3.0, None)


SEEDED = {o for _, o, *_ in COMMANDS.values() if any(f.name in ("seed", "seeds") for f in dataclasses.fields(o))}


@pytest.mark.parametrize("options_class", sorted(SEEDED, key=lambda c: c.__name__))
def test_seeds_are_those_that_every_generator_takes(options_class, capsys):
    fields = {f.name: f for f in dataclasses.fields(options_class)}
    name = "seed" if "seed" in fields else "seeds"
    required = [f.name for f in fields.values() if f.metadata["argparse"].get("required")]
    words = [word for each in required for word in (f"--{each.replace('_', '-')}", "a")]
    assert getattr(parse(options_class, "x", [*words, f"--{name}", str(2**32 - 1)]), name) in (2**32 - 1, [2**32 - 1])
    for seed in (str(2**32), "-1", "1.5"):
        with pytest.raises(SystemExit):
            parse(options_class, "x", [*words, f"--{name}", seed])
        expected = f"error: --{name}: {seed!r} is not a whole number from 0 to 2^32 - 1\n"
        # where several numbers may stand, argparse takes -1 for an option and complains about that
        assert capsys.readouterr().err == expected or (name, seed) == ("seeds", "-1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TrainOptions(),
            "out of memory: try --gradient-checkpointing, --dtype bfloat16, --optimiser adamw-bf16, a smaller "
            "--batch-size, a smaller --resolution",
        ),
        (
            SampleOptions(),
            "out of memory: try --dtype bfloat16, a smaller --batch-size, a smaller --width and --height",
        ),
        (FlowOptions(), "out of memory"),
    ],
)
def test_out_of_memory_names_only_options_that_the_command_has(options, message, capsys):
    def main(_):
        raise MemoryError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        run(main, options)
    signal.signal(signal.SIGINT, before)
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"


def test_help_shows_defaults_as_they_are_typed(capsys):
    with pytest.raises(SystemExit):
        parse(COMMANDS["eq2"][1], "x", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "[0.0 0.1 0.3 1.0 4.8]" in text and "sampling steps (DDIM) [50]" in text
    assert "replace OUT if it exists" in text and "exists [" not in text  # no default: no brackets


def test_import_is_lazy():
    script = (
        "import sys, minibnn; assert 'torch' not in sys.modules; minibnn.StableDiffusion\n"
        "assert 'torch' in sys.modules; assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
