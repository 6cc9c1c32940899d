"""What a section writes down, at once: a JSON file with the machine, the figures, and the goals that they answer."""

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

import torch

from minibnn import __version__
from minibnn.files.store import write_json

QUERY = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw",
         "memory.total", "memory.used")


class Section:
    """One section: how much time it has, on what it computes, and its file, which is written after each figure."""

    def __init__(self, name, path, seconds, tiny):
        self.path, self.tiny, self.started, self.until = Path(path), tiny, time.time(), time.monotonic() + seconds
        self.record = {"section": name, "state": "running", "tiny": tiny, "budget": seconds, "machine": machine(),
                       "figures": {}, "goals": []}
        self.write()

    @property
    def device(self):
        return "cpu" if self.tiny else "cuda"

    @property
    def dtype(self):
        """Of the computation under autocast: torch.bfloat16, or torch.float16 where that is slow."""
        old = not self.tiny and torch.cuda.get_device_capability()[0] < 8
        return torch.float16 if old else torch.bfloat16

    def left(self):
        """Seconds that are left."""
        return self.until - time.monotonic()

    def measure(self, name, function, *arguments, needs=2.0):
        """function(*arguments), kept under this name; None when there is no time for it or it raises, which is noted.

        needs: seconds below which it is not begun; with --tiny there is always time.
        """
        start, value, figures = time.monotonic(), None, self.record["figures"]
        if self.left() < needs and not self.tiny:
            figures[name] = {"skipped": f"{self.left():.0f} s were left, {needs:.0f} are needed"}
        else:
            try:
                value = function(*arguments)
                figures[name] = value
            except Exception as error:  # the next figure may well be possible
                traceback.print_exc()
                figures[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        self.write()
        said = json.dumps(figures[name], default=str)
        print(f"  {name} ({time.monotonic() - start:.1f} s): {said[:300]}", flush=True)
        return value

    def goal(self, what, value, most=None, least=None):
        """Note a goal: value ≤ most, or value ≥ least, or a value that is true. None: not measured."""
        met, limited = None, most is not None or least is not None
        if value is not None and not (limited and self.tiny):  # figures of small sizes mean nothing
            met = bool(value) if not limited else value <= most if least is None else value >= least
        self.record["goals"].append({"goal": what, "value": value, "most": most, "least": least, "pass": met})
        self.write()

    def missing(self, what):
        """Note that a package is not installed."""
        self.record.setdefault("missing", []).append(what)
        print(f"  {what} is not installed: what needs it is left out", flush=True)

    def write(self):
        self.record["seconds"] = round(time.time() - self.started, 2)
        write_json(self.path, self.record)

    def end(self, state):
        self.record |= {"state": state, "machine at the end": clocks()}
        self.write()


def machine():
    """What the figures were measured on."""
    packages = {}
    for name in ("torch", "triton", "numpy", "diffusers", "safetensors"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "minibnn": __version__, "python": platform.python_version(),
            **packages, "CUDA of torch": torch.version.cuda, "cpu": cpu, "cores": os.cpu_count(),
            "load": os.getloadavg()[0], "command": " ".join(sys.argv), "gpu": clocks()}


def _cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def clocks():
    """{name, driver, clocks, temperature, …} as nvidia-smi tells; None where there is none."""
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(QUERY, (part.strip() for part in said.splitlines()[0].split(",")), strict=False))


def goals_table(folder, sections):
    """The goals of all sections that have left a file in the folder, as Markdown."""
    lines = ["| section | goal | value | limit | |", "|---|---|---|---|---|"]
    for name in sections:
        path = Path(folder) / f"{name}.json"
        record = json.loads(path.read_text()) if path.exists() else {"goals": []}
        for goal in record["goals"]:
            value, least = goal["value"], goal["least"]
            limit = f"≥ {least}" if least is not None else f"≤ {goal['most']}" if goal["most"] is not None else "yes"
            shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            where = f"{name} (tiny)" if record["tiny"] else name
            verdict = {True: "met", False: "MISSED", None: "not measured"}[goal["pass"]]
            lines.append(f"| {where} | {goal['goal']} | {shown} | {limit} | {verdict} |")
    return "\n".join(lines) + "\n"
