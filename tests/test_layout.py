"""The order of the house: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The rooms of minibnn, from the ground floor up: its packages, and the modules that stand beside them. A module may
# import modules of its own room and of the rooms before it, whether at its top or inside a function.
ORDER = (
    "errors", "files", "options", "networks", "finetune", "progress",
    "devices", "distributed", "figures", "schedule", "pictures", "data", "class_pictures", "checkpoints", "runs",
    "ownership", "sample", "pipeline", "train", "observers", "posterior",
    "photo", "world", "lab", "disk", "page", "neighbours", "cli", "experiments", "paper", "__main__",
)
ANYWHERE = "minibnn.__version__"  # all that a module may take from minibnn/__init__.py, which imports from everywhere


def modules_of(root, package):
    """{dotted name: file} of a package's modules; a folder's `__init__.py` has the folder's name."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_door(node):
    """Is it the block `if __name__ == "__main__":`?"""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports_of(name, path):
    """[(line, dotted name, inside a function?)] of what a module imports; the block of its command line is left out."""
    found = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node, inside):
        if is_door(node):
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            found.extend((node.lineno, f"{start}.{alias.name}", inside) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def faults(root, order):
    """What is wrong with the imports of minibnn/ and kernels/ in the folder `root`: sentences, each with its line."""
    modules, edges, wrong = modules_of(root, "minibnn"), {}, []
    rooms = {room: height for height, room in enumerate(order)}
    for name, path in modules.items():
        room = name.split(".")[1] if "." in name else None  # None: minibnn/__init__.py
        if room is not None and room not in rooms:
            wrong.append(f"{path.relative_to(root)} stands in no room of ORDER")
            continue
        for line, target, inside in imports_of(name, path):
            place = f"{path.relative_to(root)}:{line} imports {target}"
            if target.split(".")[0] == "minibnn_kernels" and not (inside and room == "finetune"):
                wrong.append(f"{place}: only functions of finetune/ may import the kernels")
            if target.split(".")[0] != "minibnn" or target == ANYWHERE:
                continue
            module = target if target in modules else target.rpartition(".")[0]
            if module == "minibnn":
                wrong.append(f"{place}: take it from the module where it is defined")
                continue
            edges.setdefault(name, {})[module] = place
            if room is None or rooms.get(module.split(".")[1], -1) > rooms[room]:
                wrong.append(f"{place}, which stands above it")
    for name, path in modules_of(root, "kernels").items():
        wrong.extend(
            f"{path.relative_to(root)}:{line} imports {target}: the kernels stand alone"
            for line, target, _ in imports_of(name, path) if target.split(".")[0] == "minibnn"
        )
    return wrong + [f"a circle: {' -> '.join(circle)}" for circle in circles(edges)]


def circles(edges):
    """Circles of {module: the modules that it imports}, each once, as lists that end where they begin."""
    found, done = [], set()

    def walk(module, way):
        if module in way:
            found.append([*way[way.index(module):], module])
        elif module not in done:
            for target in edges.get(module, ()):
                walk(target, [*way, module])
            done.add(module)

    for module in edges:
        walk(module, [])
    return found


def test_every_module_imports_only_what_stands_below_it():
    assert not faults(ROOT, ORDER), "\n" + "\n".join(faults(ROOT, ORDER))


def test_every_room_exists():
    """So that the list above cannot rot."""
    for room in ORDER:
        assert (ROOT / "minibnn" / room).is_dir() or (ROOT / "minibnn" / f"{room}.py").is_file(), room


@pytest.fixture
def house(tmp_path):
    """house({file: text}) -> the faults of a small tree of two rooms, `low` and `high`, with these files changed."""
    files = {
        "minibnn/__init__.py": '__version__ = "1"', "minibnn/low/__init__.py": "", "minibnn/low/a.py": "import math",
        "minibnn/low/b.py": "from . import a\nfrom .. import __version__", "minibnn/finetune/bayes.py": "",
        "minibnn/high.py": "from .low import a, b\nfrom .low.a import pi", "kernels/one.py": "from . import two",
    }

    def build(changed):
        for name, text in (files | changed).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return faults(tmp_path, ("low", "finetune", "high"))

    return build


def test_the_small_tree_is_in_order(house):
    assert house({}) == []
    assert house({"minibnn/low/a.py": "x = 1\nif __name__ == '__main__':\n    from minibnn.high import main"}) == []
    assert house({"minibnn/finetune/bayes.py": "def f():\n    import minibnn_kernels.two"}) == []
    assert house({"minibnn/low/deep/__init__.py": "", "minibnn/low/deep/c.py": "from ..b import f\nfrom . import d",
                  "minibnn/low/deep/d.py": "from ... import __version__"}) == []


UPWARD = "minibnn/low/a.py:3 imports minibnn.high, which stands above it"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("low/a.py", "import math\n\nimport minibnn.high", UPWARD),
        ("low/a.py", "import math\n\nfrom .. import high", UPWARD),
        ("low/a.py", "import math\n\nfrom minibnn import high", UPWARD),
        ("low/a.py", "def f():\n    if f:\n        from .. import high", UPWARD),
        ("low/a.py", "\n\nfrom ..high import f", UPWARD.replace("high,", "high.f,")),
        ("low/__init__.py", "from ..high import f",
         "minibnn/low/__init__.py:1 imports minibnn.high.f, which stands above it"),
        ("low/deep/c.py", "from ...high import f",
         "minibnn/low/deep/c.py:1 imports minibnn.high.f, which stands above it"),
        ("low/a.py", "from .b import f", "a circle: minibnn.low.a -> minibnn.low.b -> minibnn.low.a"),
        ("low/a.py", "from .. import UNet",
         "minibnn/low/a.py:1 imports minibnn.UNet: take it from the module where it is defined"),
        ("cellar.py", "", "minibnn/cellar.py stands in no room of ORDER"),
        ("finetune/bayes.py", "import minibnn_kernels.two",
         "minibnn/finetune/bayes.py:1 imports minibnn_kernels.two: only functions of finetune/ may import the kernels"),
        ("high.py", "def f():\n    from minibnn_kernels import two",
         "minibnn/high.py:2 imports minibnn_kernels.two: only functions of finetune/ may import the kernels"),
        ("../kernels/one.py", "def f():\n    from minibnn.low import a",
         "kernels/one.py:2 imports minibnn.low.a: the kernels stand alone"),
    ],
)
def test_the_check_sees(house, name, text, expected):
    found = house({f"minibnn/{name}": text})
    assert expected in found, found


def loaded_by(module):
    """Names of the modules that a Python process has loaded after importing a module."""
    script = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_training_loads_nothing_from_above():
    names = loaded_by("minibnn.train")
    rooms = ORDER[ORDER.index("train") + 1 :]
    assert "minibnn.pipeline" in names and "torch" in names
    assert not [name for name in names if name.startswith("minibnn.") and name.split(".")[1] in rooms]


@pytest.mark.parametrize("module", ["minibnn", "minibnn.__main__"])
def test_what_answers_at_once_loads_no_torch(module):
    """The package itself, and all that reads a command line and files of options."""
    names = loaded_by(module)
    assert module in names and "torch" not in names
