"""The benchmark for a short hour on a GPU, tried on a CPU: every section's code, and what happens when time is over."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark: gpu.py, and `record` of its sections."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu"), importlib.import_module("gpu_sections.record")


def test_every_section_runs_at_small_sizes_on_a_cpu(tmp_path):
    """In a process of its own, as on a GPU; nothing may fail, and gates must pass."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(records) == {
        "gates", "ceilings", "tiles", "layers", "steps", "sampling", "end-to-end", "memory",
    }
    for name, record in records.items():
        assert record["state"] == "done", name
        bad = {what: figure for what, figure in record["figures"].items() if {"failed", "skipped"} & set(figure)}
        assert record["figures"] and not bad, (name, bad)
        for goal in record["goals"]:
            of_size = goal["most"] is not None or goal["least"] is not None
            assert goal["pass"] is (None if of_size else True), (name, goal)
    assert "stopped" in records["end-to-end"]["figures"]["stopped"], "it was not stopped on the way"
    assert records["gates"]["machine"]["torch"] and records["gates"]["machine"]["command"]
    table = (tmp_path / "goals.md").read_text()
    assert "| gates (tiny) |" in table and "MISSED" not in table


class Sections:
    """Stands in for a module of a section."""

    @staticmethod
    def run(section):
        section.measure("one", lambda: {"value": 1}, needs=0)
        section.measure("two", lambda: 1 / 0, needs=0)
        section.goal("small", 3.0, most=2.0)
        section.goal("large", 3.0, least=2.0)
        section.goal("unknown", None, least=2.0)
        section.measure("too long", lambda: {}, needs=1e9)
        section.measure("hangs", time.sleep, 60, needs=0)


def test_what_was_measured_before_a_section_hangs_is_kept(bench, monkeypatch, tmp_path, capfd):
    gpu, record = bench
    monkeypatch.setattr(gpu, "GRACE", 1)
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: Sections)
    state = gpu.run_section("gates", tmp_path / "gates.json", 4, False)
    assert "stopped after 5 s" in state
    kept = json.loads((tmp_path / "gates.json").read_text())
    assert kept["figures"]["one"] == {"value": 1} and "ZeroDivisionError" in kept["figures"]["two"]["failed"]
    assert "are needed" in kept["figures"]["too long"]["skipped"] and "hangs" not in kept["figures"]
    assert [goal["pass"] for goal in kept["goals"]] == [False, True, None]
    table = record.goals_table(tmp_path, ["gates", "steps"])
    assert [line.split("|")[-2].strip() for line in table.splitlines()[2:]] == ["MISSED", "met", "not measured"]


def test_a_section_that_raises_says_so(bench, monkeypatch, tmp_path, capfd):
    gpu, _ = bench
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: None)
    assert "AttributeError" in gpu.run_section("gates", tmp_path / "gates.json", 5, True)


def test_the_seconds_are_shared_and_what_is_left_over_goes_on(bench):
    gpu, _ = bench
    assert gpu.shares(["steps", "sampling"], 540) == pytest.approx(540 * 220 / 340)
    assert gpu.shares(["sampling"], 300) == 300
