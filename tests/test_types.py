"""The public names are typed: mypy passes a user's program and sees each of its mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

import minibnn

ROOT = Path(__file__).parents[1]


def mypy(program, tmp_path):
    words = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path), str(program)]
    return subprocess.run([sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_users_program_is_checked(tmp_path):
    pytest.importorskip("mypy")
    result = mypy(ROOT / "tests" / "typed_use.py", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_program_uses_every_public_name():
    text = (ROOT / "tests" / "typed_use.py").read_text(encoding="utf-8")
    assert not [name for name in minibnn.__all__ if name not in text and name != "TextEncoderConfig"]
    assert (ROOT / "minibnn" / "py.typed").exists()


def test_what_the_type_checker_sees_is_what_is_there():
    """The imports of `__init__.pyi` name the same objects as `__getattr__` gives at run time."""
    lines = (ROOT / "minibnn" / "__init__.pyi").read_text(encoding="utf-8").splitlines()
    seen = {}
    for words in (line.split() for line in lines if line.startswith("from ")):
        seen[words[3]] = words[1].lstrip(".")
        assert words[3] == words[5]
    assert seen == minibnn._HOME
