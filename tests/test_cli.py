"""The command lines as a person meets them: speed of --help, exit codes, one line for each mistake."""

import dataclasses
import signal
import subprocess
import sys
import time

import pytest

from minibnn.options.commands import BpsOptions, FlowOptions, GraftOptions, SampleOptions, TrainOptions
from minibnn.options.parsing import option, parse, run, whole
from minibnn.options.probes import ModelOptions, ProbeOptions


def command(*words):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["minibnn.train", "minibnn.sample"])
def test_help_needs_no_torch(name):
    script = f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('{name}', run_name='__main__')\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    before = time.perf_counter()
    result = command(name, "--help")
    assert result.returncode == 0 and time.perf_counter() - before < 5
    assert "[default" not in result.stdout and "--seed" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minibnn.train", "--imges", "x"], "error: no option --imges; did you mean --images?"),
        (["minibnn.train"], "error: --images is required; python -m minibnn.train --help explains it"),
        (["minibnn.train", "--images", "x", "--steps", "0"], "error: argument --steps: '0' is not a whole number of at least 1"),
        (["minibnn.train", "--images", "x", "--batch-size", "-1"], "error: argument --batch-size: '-1' is not a whole number of at least 1"),
        (["minibnn.train", "--images", "x", "--lr", "0"], "error: argument --lr: '0' is not a number above 0"),
        (["minibnn.train", "--images", "x", "--lr", "nan"], "error: argument --lr: 'nan' is not a number above 0"),
        (["minibnn.train", "--images", "x", "--prompt", " "], "error: argument --prompt: ' ' is not a text that is not empty"),
        (["minibnn.train", "--images", "nowhere"], "error: --images nowhere: no such folder"),
        (["minibnn.sample", "--prompt", "a dog", "--out", "a.jpg"], "error: --out a.jpg: the name must end with .png"),
        (["minibnn.sample", "--prompt", "a dog", "--model", "nowhere"], 'error: no model at nowhere: give a folder, a .safetensors file, or "tiny" for the bundled model'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tmp_path):
    result = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [message]
    assert not list(tmp_path.iterdir())


def test_defaults_and_kinds():
    options = parse(TrainOptions, "x", ["--images", "p", "--no-bayes", "--lr", "1e-4"])
    assert (options.bayes, options.lr, options.steps, options.model, options.seed) == (False, 1e-4, None, "tiny", 0)
    options = parse(SampleOptions, "x", ["--prompt", "a dog", "a cat", "--guidance", "3"])
    assert (options.prompt, options.guidance, options.steps) == (["a dog", "a cat"], 3.0, None)


SEEDED = [TrainOptions, SampleOptions, GraftOptions, BpsOptions, FlowOptions, ProbeOptions, ModelOptions]


@pytest.mark.parametrize("options_class", SEEDED)
def test_seeds_are_those_that_every_generator_takes(options_class, capsys):
    needed = {"images": ["d"], "prompt": ["a dog"], "reward": ["redness"], "hints": ["d"]}
    required = [f.name for f in dataclasses.fields(options_class) if f.metadata["argparse"].get("required")]
    words = [word for name in required for word in (f"--{name}", *needed[name])]
    assert parse(options_class, "x", [*words, "--seed", str(2**63 - 1)]).seed == 2**63 - 1
    for seed in (str(2**63), "-1", "1.5"):
        with pytest.raises(SystemExit):
            parse(options_class, "x", [*words, "--seed", seed])
        assert capsys.readouterr().err == f"error: argument --seed: {seed!r} is not a whole number from 0 to 2^63 - 1\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainOptions(), "out of memory: try --gradient-checkpointing, --dtype bfloat16, a smaller --batch-size, a smaller --resolution"),
        (SampleOptions(), "out of memory: try --dtype bfloat16, a smaller --batch-size, a smaller --width and --height"),
        (FlowOptions(), "out of memory"),
    ],
)  # fmt: skip
def test_out_of_memory_names_only_options_that_the_command_has(options, message, capsys):
    def main(_):
        raise MemoryError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        run(main, options)
    signal.signal(signal.SIGINT, before)
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"


def test_help_shows_several_defaults_as_they_are_typed(capsys):
    @dataclasses.dataclass
    class Options:
        batch: list = option((1, 4), "batch sizes", "what", nargs="+", type=whole)
        resolution: int = option(512, "pixels of the picture", "what", type=whole)
        plot: str = option(None, "time against batch size", "what")

    with pytest.raises(SystemExit):
        parse(Options, "x", ["--help"])
    text = capsys.readouterr().out
    assert "batch sizes [1 4]" in text and "pixels of the picture [512]" in text
    assert "time against batch size\n" in text  # no default: no brackets


def test_import_is_lazy():
    script = "import sys, minibnn; assert 'torch' not in sys.modules; minibnn.StableDiffusion; assert 'torch' in sys.modules; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
