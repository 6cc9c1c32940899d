"""The commands of README, docs/ and --help are given as they are written, in the folder of a reader who has followed
them, only with less to do: small models and few steps. What is not given is in UNDONE, with the reason."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import small_paper
import torch
from conftest import make_micro

from minibnn import StableDiffusion
from minibnn.__main__ import COMMANDS, recipes
from minibnn.options.examples import EXAMPLES
from minibnn.options.parsing import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]

# What is added to a command that begins with these words (the longest such beginning counts), so that it has less to
# do: of an option that stands twice the last one counts.
LESS = {
    "train": "--steps 2 --samples 0 --class-count 1 --resolution 32 --no-monitor",
    "train --images tutorials/dog": "--steps 2 --samples 1 --class-count 1 --monitor-every 2",
    "train --images tutorials/dog --lr 1e-4 --no-bayes --save-config": "",
    "train --resume": "--steps 3 --samples 1",
    "sample": "--steps 2",
    "sample --model runs/dog --unconditional-from": "--steps 2 --unconditional-from quick",
    "photo-measures": "",
    "export": "",
    "report": "",
    "world": "",
    "sigma1": "--draws 2",
    "probe-zero": "--draws 2",
    "probe-local": "--draws 2",
    "probe-scaled": "--draws 2",
    "probe-blank": "--draws 2",
    "eq2": "--manifold-size 10 --steps 2",
    "gains": "--draws 1",
    "gains --model runs/dog --guidance 1 3 7.5 --unconditional-from": "--draws 1 --unconditional-from quick",
    "graft": "--steps 1 --candidates 2 --groups 1 --sample-steps 2 --evaluate 1",
    "flow": "",
    "rectified": "--euler-steps 2 --resolution 32",
    "rectified --model flow/ --train": "--resolution 32 --steps 1 --channels 8",
    "rectified --model FLOW_FOLDER --train": "--resolution 32 --steps 1 --channels 8",
    "rectified --model flow/ --corrector": "--corrector-steps 2 --resolution 32 --count 1",
    "experiment": "",
    "paper": "--sample-steps 1 --each 2",
    "bps": "--steps 1 --sample-steps 1 --batch-size 2",
    "bps --hints sketches": "--sample-steps 1",
    "bps --hints others": "--sample-steps 1",
}
UNDONE = {  # {the beginning of a command: why it is not given here}
    "evaluate": "draws 750 pictures, which takes minutes",
    "pretrain": "takes hours",
    "pretrain-textured": "takes hours",
    "world-measures": "takes half a minute; tests/test_metrics.py measures the same",
    "world-eye": "takes minutes",
    "graft --resume": "goes on with what was stopped; tests/test_graft.py stops and resumes",
    "bps --resume": "goes on with what was stopped; tests/test_bps.py stops and resumes",
    "flow --train": "takes minutes; tests/test_flow.py trains a small one",
    "paper": "takes minutes; tests/test_paper.py makes the tables of small models",
    "paper --model SD_FOLDER": "the same as in docs/paper.md",
    "experiment": "takes minutes or hours; those that have a plan show it here",
}
PLANNED = ("paper", "experiment")  # of these the commands with --plan are given
LITTLE = "--method lora --steps 2 --samples 0 --no-monitor"
EARLIER = (  # what the reader has done before
    f'train --images photos/rex --model sd --prompt "a photo of a sks dog" --resolution 32 --out runs/rex {LITTLE}',
    f"train --images tutorials/dog --model quick {LITTLE}",
    "export runs/rex --to kohya --out lora.safetensors",
    "export runs/rex --to kohya --out somebodys.safetensors",
    "sample --model runs/rex --prompt a --count 2 --steps 2 --out rex.png",
    "sample --model runs/rex --prompt a --count 2 --steps 2 --out drawn.png",
    "world --pairs pairs --count 2",
    "world --pairs sketches --count 2",
    "world --pairs others --count 2",
    "bps --hints pairs --out runs/bps --steps 1 --sample-steps 1",
)


def commands_in(text):
    """The commands of minibnn in the blocks and the code spans of a page: lists of words, as ["train", "--images", …].

    A span without an option or a folder only names a command.
    """
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`(python -m minibnn[. ][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [re.search(r"python -m minibnn[. ](.*)", line.replace("\n", " ")) for line in (*blocks, *spans)]
    commands = [shlex.split(match[1], comments=True) for match in found if match]
    return [words for words in commands if len(words) > length_of(words)]


def length_of(words):
    return 2 if words[0] == "experiment" else 1


def longest(table, words):
    """The longest key of a table with which a command begins, or None."""
    return max((key for key in table if words[: len(key.split())] == key.split()), key=len, default=None)


def give(words):
    """Do what a command does, in this process; what it would refuse to replace is deleted before."""
    length = length_of(words)
    name = " ".join(words[:length])
    _, options_class, place, *leading = COMMANDS[name]
    options = parse(options_class, f"minibnn {name}", words[length:], recipes=recipes(options_class))
    out = getattr(options, "out", None)
    if out and not getattr(options, "resume", False):
        for path in (Path(out), Path(out).with_suffix("")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    module, function = place.split(":")
    getattr(import_module(f"minibnn.{module}"), function)(*leading, options)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of a reader: photographs, models, networks, and what earlier commands have left."""
    home = tmp_path_factory.mktemp("reader")
    for name in ("dog", "subjects/cat"):
        shutil.copytree(ROOT / "tutorials" / name, home / "tutorials" / name)
    shutil.copytree(home / "tutorials" / "dog", home / "photos" / "rex")
    shutil.copytree(home / "tutorials" / "subjects" / "cat", home / "photos" / "tom")
    make_micro(home / "quick")  # in the place of the bundled model
    small_paper.make(home, subjects=("dog6",))
    for name in ("sd", "stable-diffusion-v1-5", "SD_FOLDER"):
        (home / name).symlink_to(home / "sd-v1")
    shutil.copytree(home / "sd-v1", home / "models" / "sd")  # whereto the reader has moved it
    for name in ("00.png", "00.txt", "01.png", "01.txt"):
        shutil.copy(home / "tutorials" / "dog" / name, home / "photos")
    (home / "prompts.txt").write_text("a sks dog\na dog\n")
    (home / "rewards.py").write_text("def roundness(pictures, prompts):\n    return [0.9] * len(pictures)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        sd = StableDiffusion.load("sd")
        sd.save_single_file("sd.safetensors")
        with torch.no_grad():
            sd.unet.conv_out.weight.mul_(0.02)  # a velocity that can be inverted
        for folder in ("flow", "FLOW_FOLDER"):
            sd.save(folder)
        for line in EARLIER:
            give(shlex.split(line))
    return home


def commands_of(page):
    if page == "--help":
        return [shlex.split(line)[3:] for lines in EXAMPLES.values() for line in lines]
    return commands_in((ROOT / page).read_text(encoding="utf-8"))


def to_give(page):
    """The commands of a page that are given: those of README's on its own page alone."""
    known = commands_of("README.md") if page != "README.md" else []
    given = [words for words in commands_of(page) if words not in known]
    return [words for words in given if not (why := longest(UNDONE, words)) or "--plan" in words and why in PLANNED]


@pytest.mark.parametrize("page", [*PAGES, "--help"])
def test_the_commands_of_a_page_run_one_after_another(page, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(reader, tmp_path / "reader", symlinks=True))
    for words in to_give(page):
        try:
            give([*words, *LESS[longest(LESS, words)].split()])
        except SystemExit as end:  # --save-config ends so
            assert end.code == 0, words


def test_what_is_not_given_is_documented_and_most_is_given():
    """So that neither table can rot."""
    every = [words for page in [*PAGES, "--help"] for words in commands_of(page)]
    for key in (*LESS, *UNDONE):
        assert any(words[: len(key.split())] == key.split() for words in every), key
    assert sum(len(to_give(page)) for page in [*PAGES, "--help"]) >= 60
