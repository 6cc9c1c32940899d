"""README and docs/: every command can be given as it stands, and every link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from minibnn.__main__ import COMMANDS
from minibnn.options.aliases import translate
from minibnn.options.parsing import build, meanings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tutorials/RESULTS.md")]
PAGES += sorted(ROOT.glob("docs/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def commands_of(text):
    """The command lines of minibnn in the fenced blocks of a page, as lists of words: ["train", "--images", …]."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.search(r"python -m minibnn[. ](.*)", line):
                found.append(shlex.split(match[1], comments=True))
    return found


@each_page
def test_every_command_is_one_that_the_parser_takes(page):
    for words in commands_of(page.read_text(encoding="utf-8")):
        length = 2 if words[0] == "experiment" else 1
        options_class = COMMANDS[" ".join(words[:length])][1]
        parser = build(options_class, "x")
        words = translate(words[length:], meanings(parser, options_class))
        values, rest = parser.parse_known_args(words)
        assert not rest, rest
        assert len(vars(values)) >= len({word.split("=")[0] for word in words if word.startswith("--")})


def test_commands_are_found():
    text = "a\n```\npip x && python -m minibnn.train --images p \\\n    --lr 1  # why\n```\n`python -m minibnn world`"
    assert commands_of(text) == [["train", "--images", "p", "--lr", "1"]]
    assert sum(len(commands_of(page.read_text(encoding="utf-8"))) for page in PAGES) >= 10


@each_page
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target


def anchor(heading):
    """What GitHub makes of a heading: "## Disk, memory" -> "disk-memory"."""
    return re.sub(r"[^\w -]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-")


@each_page
def test_every_link_into_a_page_finds_its_heading(page):
    for target, name in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        assert name in map(anchor, re.findall(r"^#+ (.+)$", text, re.MULTILINE)), f"{target}#{name}"


def test_the_map_names_every_file():
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    files = [path.relative_to(ROOT) for path in ROOT.glob("minibnn/**/*.py") if path.name != "__init__.py"]
    assert len(files) > 100
    assert not [str(path) for path in files if f"](../{path.as_posix()})" not in text]


def test_the_method_has_as_many_lines_as_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"The method is about ([\d,]+) lines in ten files: (.*?)\.\s+What lies", readme, re.DOTALL)
    files = re.findall(r"\((minibnn/[\w/]+\.py)\)", said[2])
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert len(set(files)) == 10 and int(said[1].replace(",", "")) == round(lines, -2)
