"""Terminals and pipes that are not UTF-8: nothing breaks, and formulas stay readable."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minibnn.options.plain import plain

ROOT = Path(__file__).parents[1]


def in_encoding(encoding, *words):
    """Run Python with stdin, stdout and stderr in this encoding; returns its exit code and what it wrote, as text."""
    own = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, *words], capture_output=True, timeout=300, env=own)
    return result.returncode, result.stdout.decode(encoding), result.stderr.decode(encoding)


EVERY_HELP = """
import sys
from minibnn.__main__ import COMMANDS, main
for name in ["", *COMMANDS]:
    sys.argv = ["minibnn", *name.split(), "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, name
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_help_of_every_command_can_be_written(encoding):
    code, text, errors = in_encoding(encoding, "-c", EVERY_HELP)
    assert code == 0 and not errors and ("weight λ of" if encoding == "utf-8" else "weight lambda of") in text
    assert not re.search(r"\?\w|\w\?\w", text) and text.count("examples:") > 20


@pytest.mark.parametrize("encoding", ["ascii"])
def test_a_run_reports_and_fails_in_any_encoding(encoding, micro, dog, tmp_path):
    words = ["-m", "minibnn", "train", "--images", str(dog), "--model", str(micro), "--steps", "1", "--samples", "0"]
    words += ["--prior-weight", "0", "--prompt", "a σ Hündchen 犬", "--out", str(tmp_path / "ß")]
    code, text, errors = in_encoding(encoding, *words)
    assert code == 0 and "sigma0 = 0.01" in text and "snow" in text and "Traceback" not in errors
    code, _, errors = in_encoding(encoding, "-m", "minibnn", "train", "--images", "犬σ")
    assert code == 2 and errors == "error: --images \\u72acsigma: no such folder\n"


def test_names_of_files_are_not_those_of_others_without_their_accents():
    """Bug: ü.png was written u.png, which is another file."""
    assert "ü.png, o\u0308, F\xf6tos 🐶".encode("ascii", "plain") == rb"\xfc.png, o\u0308, F\xf6tos \U0001f436"
    assert "θ = μ + σ∘ε, ᾱ_t ≥ √ᾱ₁ – ε(∅)".encode("ascii", "plain") == (
        b"theta = mu + sigma*eps, alpha_t >= sqrt alpha1 - eps(empty)")


def test_a_name_that_is_not_utf8_is_named(micro, dog, tmp_path):
    """Bug: "a text is not valid in its encoding: save it as UTF-8", of a picture's name."""
    shutil.copytree(dog, tmp_path / "dog")
    try:
        os.rename(tmp_path / "dog" / "00.png", os.fsencode(tmp_path / "dog") + b"/F\xf6to.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    words = ["-m", "minibnn", "train", "--images", str(tmp_path / "dog"), "--model", str(micro), "--steps", "1"]
    words += ["--prior-weight", "0", "--samples", "0", "--out", str(tmp_path / "run")]
    code, _, errors = in_encoding("utf-8", *words)
    assert code == 2 and "error: the name 'F\\udcf6to.png' is not valid UTF-8: rename that file" in errors


def test_plain_text():
    assert plain("ᾱ_t → σ₁ é 犬 ‖x‖² ≥ ½") == "alpha_t -> sigma1 e ? ||x||2 >= 12"
    assert plain("Immerkær, Straße, Łódź, Øre") == "Immerkaer, Strasse, Lodz, Ore"
    assert plain("only ASCII\n") == "only ASCII\n"


def test_every_file_is_opened_with_its_encoding():
    """Text files are UTF-8 everywhere, also on Windows, where Python's own default is another."""
    wrong = []
    for path in sorted(ROOT.glob("minibnn/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2])
            told = any(keyword.arg == "encoding" for keyword in node.keywords)
            is_text = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
            is_text |= name == "open" and isinstance(node.func, ast.Name) and not binary
            if is_text and not told:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong
