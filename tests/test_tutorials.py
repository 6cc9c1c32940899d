"""The tutorials: solutions pass, stubs and typical wrong answers fail with the right hint, the solved notebooks run.

What the text shows (links, names, figures, mathematics) is in order.
"""

import ast
import base64
import dataclasses
import linecache
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
sys.path.insert(0, str(TUTORIALS))

import build  # noqa: E402
from checks import Mistake, compare, equal, exercise, relation  # noqa: E402

from minibnn.__main__ import COMMANDS  # noqa: E402

SOURCES = build.sources()
PAGES = [*SOURCES, *sorted(TUTORIALS.glob("*.md")), *sorted(TUTORIALS.glob("results/*.md"))]
each_tutorial = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
MAX_FIGURE = 200_000  # bytes


def checks_of(source):
    return import_module(f"checks.{source.stem[3:]}")


def definitions(text):
    """The functions of a tutorial, without its experiments: only imports, functions and classes are executed."""
    tree = ast.parse(text)
    tree.body = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))]
    space = {"__name__": "tutorial"}
    lines = text.splitlines(True)
    linecache.cache["tutorial"] = (len(text), None, lines, "tutorial")  # Triton reads its kernels' source
    exec(compile(tree, "tutorial", "exec"), space)
    return space


EXERCISES = [(source, name) for source in SOURCES for name in checks_of(source).WRONG]
each_exercise = pytest.mark.parametrize(
    ("source", "name"), EXERCISES, ids=lambda x: x if isinstance(x, str) else x.stem[:2]
)


# --- the exercises ----------------------------------------------------------------------------------------------------


@each_exercise
def test_the_check_passes_on_the_solution_and_fails_on_the_stub(source, name, capsys):
    text, check = source.read_text(encoding="utf-8"), getattr(checks_of(source), f"check_{name}")
    check(definitions(text)[name])
    assert "✓" in capsys.readouterr().out
    with pytest.raises(NotImplementedError, match="exercise "):
        check(definitions(build.student_text(text))[name])


@each_exercise
def test_right_answers_that_are_written_differently_pass(source, name):
    for right in getattr(checks_of(source), "RIGHT", {}).get(name, ()):
        getattr(checks_of(source), f"check_{name}")(right)


@each_exercise
def test_wrong_answers_fail_with_the_right_hint(source, name, capsys):
    module = checks_of(source)
    wrong_answers = module.WRONG[name]
    assert len(wrong_answers) >= 2
    for wrong, words in [*wrong_answers, (lambda *inputs, **named: None, "")]:
        with pytest.raises(Mistake) as failure:
            getattr(module, f"check_{name}")(wrong)
        assert words in str(failure.value)
    assert "✓" not in capsys.readouterr().out


@each_tutorial
def test_every_exercise_has_its_check_and_is_checked(source):
    text = source.read_text(encoding="utf-8")
    names = list(checks_of(source).WRONG)
    checks = {name[6:] for name in vars(checks_of(source)) if name.startswith("check_")}
    assert set(names) == checks
    assert all(re.search(rf"^check_{name}\({name}\)$", text, re.MULTILINE) for name in names)
    titles = re.findall(r"# --- exercise (\d+): .", text)
    assert titles == [str(i + 1) for i in range(len(names))] and len(names) >= 3


def test_compare_tells_wrong_answers_from_right_ones():
    compare(1.0 + 1e-12, 1.0)
    compare([1, 2], (1.0, 2.0))
    for got, words in (
        (None, "return"),
        ("x", "str"),
        (2.0, "2 where 1 is expected"),
        (float("nan"), "finite"),
        ([1.0], "shape (1,), expected ()"),
        (3.0, "thrice"),
    ):
        with pytest.raises(Mistake, match=re.escape(words)):
            compare(got, 1.0, {"thrice": 3.0})
    with pytest.raises(AssertionError, match="do not show: once"):
        compare(1.0, 1.0, {"once": 1.0})
    for got in (2.0, 3.0):
        with pytest.raises(Mistake, match="more than once"):
            compare(got, 1.0, {"more than once": [2.0, 3.0]})
    with pytest.raises(AssertionError, match="nobody is told: two, but: twice"):
        compare(1.0, 1.0, {"twice": 2.0, "two": 2.0})
    third = torch.tensor(1 / 3, dtype=torch.float64)
    with pytest.raises(Mistake, match="float32"):
        compare(third.float(), third)
    compare(third.float(), third, tolerance=1e-5)
    with pytest.raises(Mistake, match="0.3333 where") as failure:
        compare(0.3333, third)
    assert "float32" not in str(failure.value)
    assert not equal([1.0, 2.0], 1.0)


def test_a_relation_is_named():
    right = torch.tensor([[1.0, 2.0], [5.0, 4.0]], dtype=torch.float64)
    for got, words in (
        (-right, "sign"),
        (2 * right, "twice"),
        (right / 2, "half of"),
        (right**2, "square of"),
        (right.sqrt(), "root of"),
        (1 / right, "one over"),
        (right.T, "transposed"),
        (0.3 * right, "0.3 times"),
        (right + 0.25, "+0.25 off"),
        (right.flip(0), "reversed"),
        (right.flatten(), "the shape is not"),
        (right.sum(), "too much was added up"),
        (right + torch.tensor([[0, 0], [0, 1.0]]), ""),
    ):
        assert words in relation(got, right) and bool(words) == bool(relation(got, right)), words
        with pytest.raises(Mistake, match=re.escape(relation(got, right)) + "$"):
            compare(got, right)
    for got, words in ((right, "add its elements up"), (4 * right, "the mean"), (torch.tensor(-12.0), "sign")):
        assert words in relation(got, torch.tensor(12.0)), words


FAILING = """from checks import compare, exercise

@exercise
def check_double(fn):
    secret = "the answer is 2x"
    compare(fn(3.0), 6.0, {"a secret hint": 9.0})
# %%
def double(x):
    raise NotImplementedError("exercise 1: double")
check_double(double)
# %%
def double(x):
    y = x + "1"
    return y
check_double(double)
# %%
check_double(lambda x: 3 * x)
# %%
check_double(lambda x: object())
# %%
check_double(lambda x: 2 * x)"""


def test_a_failed_check_shows_words_and_no_frame():
    """In a notebook, where Run all stops at an unsolved exercise, and where a student's code may raise anything."""
    notebook = build.notebook("# %%\n" + FAILING)
    for cell in notebook.cells:
        cell.metadata["tags"] = ["raises-exception"]
    shown = [
        "\n".join(output.get("traceback", [output.get("text")])).strip()
        for cell in run(notebook, TUTORIALS).cells for output in cell.outputs
    ]
    assert shown == [
        "✎ exercise 1: double: not done yet. Write your lines in the place of `raise NotImplementedError`.",
        "✗ your code stopped with TypeError: unsupported operand type(s) for +: 'float' and 'str'\n"
        '  in the line  y = x + "1"',
        "✗ a secret hint",
        "✗ the result is a object, not a number or a tensor",
        "✓ double: correct",
    ]


IN_PLACE = """def f(a, b, x):
    x += 1
    b[0] += 1
    return a.add_(1)"""


def test_a_check_gives_copies_and_names_no_frame_of_its_own():
    seen, student = torch.ones(2), {}
    exec(compile(IN_PLACE, "cell", "exec"), student)

    @exercise
    def check_f(fn):
        compare(fn(seen, [seen], x=seen), 2 * seen)
        raise AssertionError("badly chosen inputs")

    with pytest.raises(AssertionError, match="badly chosen") as failure:
        check_f(student["f"])
    assert type(failure.value) is AssertionError and seen.tolist() == [1.0, 1.0]
    with pytest.raises(Mistake, match="cannot be used: AttributeError") as failure:
        exercise(lambda fn: fn().missing)(eval("lambda: 1"))
    assert failure.value.__suppress_context__ or failure.value.__context__ is None
    assert len(failure.traceback) == 2  # the test and the decorator


def test_an_answer_that_draws_its_own_noise_is_told_so():
    @exercise
    def check_zero(fn):
        compare(fn(), 0.0)

    for fn, told in ((lambda: torch.randn(()), True), (lambda: 1.0, False)):
        with pytest.raises(Mistake) as failure:
            check_zero(fn)
        assert ("drew random numbers of its own" in str(failure.value)) == told
    check_zero(lambda: 0 * torch.randn(()))


# --- the notebooks ----------------------------------------------------------------------------------------------------


def committed(path):
    return nbformat.read(path, 4)


def picture_in(output):
    """The bytes of the picture in an output of a cell, and its alternative text; or None."""
    for kind in ("image/png", "image/jpeg"):
        if kind in output.get("data", {}):
            return base64.b64decode(output.data[kind]), output.metadata.get(kind, {}).get("alt")
    return None


@each_tutorial
def test_the_committed_notebooks_are_built_from_the_source(source):
    for path, built in build.build(source).items():
        own = committed(path)
        for cell in own.cells:
            if cell.cell_type == "code" and path.stem.endswith("_solved"):
                cell.outputs, cell.execution_count = [], None
        assert own == built, f"{path.name} is out of date: python tutorials/build.py"
        assert not re.search(r"(?<!\\)\\u[0-9a-f]{4}", path.read_text(encoding="utf-8"))  # readable in a diff
        for i, cell in enumerate(built.cells):
            if cell.cell_type == "code":
                compile(cell.source, f"{path.name}, cell {i}", "exec")


@each_tutorial
def test_a_committed_solved_notebook_shows_every_figure_and_every_check(source):
    own = committed(source.with_name(f"{source.stem}_solved.ipynb"))
    if not any(cell.get("outputs") for cell in own.cells):
        pytest.skip("its code has changed since it was executed: python tutorials/build.py")
    for cell in own.cells:
        if cell.cell_type == "code":
            assert not [output for output in cell.outputs if output.get("name") == "stderr" or "ename" in output]
            pictures = [output for output in cell.outputs if picture_in(output)]
            assert len(pictures) == len(re.findall(r"^show\(", cell.source, re.MULTILINE))
            if checks := re.findall(r"^check_(\w+)\(", cell.source, re.MULTILINE):
                assert [f"✓ {name}: correct" for name in checks] == cell.outputs[0].text.strip().split("\n")


def test_all_solved_notebooks_together_are_small():
    assert sum(path.stat().st_size for path in TUTORIALS.glob("*_solved.ipynb")) < 2_000_000


def test_the_cell_for_colab_fetches_minibnn_there_and_does_nothing_elsewhere(monkeypatch, tmp_path, capsys):
    text = SOURCES[0].read_text(encoding="utf-8")
    badge, cell = build.opening(text, SOURCES[0].stem, solved=False)
    assert f"github/{build.REPOSITORY}/blob/{build.BRANCH}/tutorials/{SOURCES[0].stem}.ipynb" in badge.source
    assert (TUTORIALS / f"{SOURCES[0].stem}_solved.ipynb").is_file() and "_solved.ipynb" in badge.source
    assert "figures/01_samplers.png" in cell.source
    ran = []
    import IPython.display

    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    monkeypatch.setattr("os.chdir", lambda path: ran.append(path))
    monkeypatch.setattr("os.getcwd", lambda: str(TUTORIALS))
    monkeypatch.setattr(sys, "path", [])
    exec(cell.source, {})
    assert ran == [] and sys.path == []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(IPython.display, "display", ran.append)
    monkeypatch.setattr(IPython.display, "Image", lambda path: path)
    exec(cell.source, {})
    clone, install, folder, *pictures = ran
    assert clone[:2] == ["git", "clone"] and clone[-2].endswith(build.REPOSITORY) and sys.path == [str(TUTORIALS)]
    assert folder == f"{clone[-1]}/tutorials" and install[-1] == f"{clone[-1]}[lessons]"
    assert pictures and all((TUTORIALS / picture).is_file() for picture in pictures)


def test_no_notebook_is_left_over():
    built = {path for source in SOURCES for path in build.build(source)}
    assert set(TUTORIALS.glob("*.ipynb")) == built


def test_a_stub_replaces_the_solution_only():
    text = "# %%\ndef f(x):\n    # --- exercise 1: double\n    y = x\n\n    return 2 * y\n    # --- end\n\n\nf(1)\n"
    stub = '    # --- exercise 1: double\n    raise NotImplementedError("exercise 1: double")\n    # --- end\n'
    assert build.student_text(text) == "# %%\ndef f(x):\n" + stub + "\n\nf(1)\n"
    assert build.cells(text + "# %% [markdown]\n# a\n#\n# b\n") == [(False, text[5:].strip()), (True, "a\n\nb")]
    for bad in (text.replace("    # --- end", "# --- end"), text.replace("    # --- end\n", "")):
        with pytest.raises(ValueError, match="lacks its"):
            build.student_text(bad)
    for bad in ("# %% [raw]\nx\n", "# %% [markdown]\nx\n"):
        with pytest.raises(ValueError):
            build.cells(bad)
    twice = build.notebook("# %%\nx = 1\n# %%\nx = 1\n")
    assert twice.cells[0].id != twice.cells[1].id


NO_NETWORK = """import socket

def refuse(*address, **options):
    raise OSError("a tutorial needs no network")

socket.getaddrinfo = socket.create_connection = refuse"""


SHORTER = {  # long experiments of the lessons, done for a few steps: what is asked here is whether a notebook runs
    "01_schedules": {
        "20_000, generator": "200, generator", "100, 250, 500]": "100]", "rounds=6, size": "rounds=1, size",
        "timesteps(steps), sd": "timesteps(steps // 5), sd",
    },
    "02_corruption_equations": {"for step in range(41):": "for step in range(4):", "draws=24": "draws=8"},
    "03_three_phases": {
        "for _ in range(50):": "for _ in range(3):", "def gains_at(t, draws=8)": "def gains_at(t, draws=1)",
        "cat_prompt, draws=4, part": "cat_prompt, draws=1, part", "[cat_prompt] * 8, 20,": "[cat_prompt] * 2, 5,",
    },
    "04_bayes_linear": {"steps=1500, draws=4": "steps=100, draws=4", "steps=1500, draws=16": "steps=100, draws=16"},
    "05_the_cure": {
        "steps=1500, draws": "steps=100, draws", "STEPS = 40": "STEPS = 3", "seeds=2):": "seeds=1):",
        "steps=12, seed=1": "steps=2, seed=1",
    },
    "06_guidance": {
        "scale, steps=2000": "scale, steps=50", ", 1500, 0.2, 1)": ", 150, 0.2, 1)", ", 600, 0.2, 3)": ", 60, 0.2, 3)",
        ", 400, 0.1,": ", 9, 0.1,", "range(199, -1, -4)": "range(199, -1, -40)",
    },
    "07_graft": {
        ", 1500, 0, 1)": ", 150, 0, 1)", "data, 300, states": "data, 9, states", "700], 6": "700], 2",
        "TIMES = schedule.timesteps(50)": "TIMES = schedule.timesteps(20)",
    },
    "08_inverse_noise": {"main, data, 1500": "main, data, 100", "corrector, z, 1500": "corrector, z, 100"},
    "09_bps": {
        "steps=100, lr=3e-4": "steps=2, lr=3e-4", "new_captions, steps=10)": "new_captions, steps=2)",
        "world(40,": "world(12,", "range(40)": "range(12)", "full((40,)": "full((12,)", "randn(40,": "randn(12,",
    },
    "10_the_kernel": {"steps=300, lr": "steps=30, lr", "(32, 8), (8, 64)": "(64, 64)"},
    "11_lora_and_oft": {"method, steps=60": "method, steps=3", "steps=12, seed=4": "steps=2, seed=4"},
}


def shortened(source):
    """The text of a lesson whose long experiments take a few steps."""
    text = source.read_text(encoding="utf-8")
    for old, new in SHORTER.get(source.stem, {}).items():
        assert old in text, f"{source.name} no longer has {old!r}"
        text = text.replace(old, new)
    return text


def run(notebook, folder):
    """Execute a notebook in `folder`, with the running interpreter as its kernel and without a network."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    return build.run(notebook, folder)


@each_tutorial
def test_the_solved_notebook_runs(source, tmp_path):
    folder = shutil.copytree(TUTORIALS, tmp_path / "tutorials", ignore=shutil.ignore_patterns("*.ipynb", "__pycache__"))
    before = sorted(folder.rglob("*.*"))
    notebook = run(build.notebook(shortened(source)), folder)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert printed.count("✓") == len(checks_of(source).WRONG)
    errors = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert "Warning" not in errors
    pictures = [found for found in map(picture_in, outputs) if found]
    assert pictures, "a tutorial shows at least one figure"
    for picture, alt in pictures:
        assert len(picture) <= MAX_FIGURE
        assert alt, "show(figure, name, alt) gives a figure its words"
    after = [path for path in sorted(folder.rglob("*.*")) if "__pycache__" not in path.parts]
    assert after == before  # nothing is written


def test_a_notebook_that_names_what_minibnn_lacks_fails(tmp_path):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="no attribute 'train_ch3'"):
        run(build.notebook("# %%\nimport minibnn.errors\nminibnn.errors.train_ch3\n"), tmp_path)


# --- the text ---------------------------------------------------------------------------------------------------------


def text_of(page):
    """The text of a page; of a tutorial, without its cells of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        text = "\n\n".join(body for markdown, body in build.cells(text) if markdown)
    return text


def markdown_of(page):
    """The text of a page, without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def mathematics_faults(text):
    """What some viewer would show wrong: displayed equations inside a paragraph, own macros, loose signs."""
    faults = []
    prose = []
    for paragraph in re.split(r"\n\s*\n", text):
        body = re.sub(r"`[^`]*`", "", paragraph.strip())
        if "$$" in body:
            if not (body.startswith("$$") and body.endswith("$$") and body.count("$$") == 2 and len(body) > 4):
                faults.append(f"$$ is not alone on its paragraph: {paragraph}")
            if r"\begin{align}" in body or r"\begin{equation" in body or r"\begin{align*}" in body:
                faults.append(f"use aligned: {paragraph}")
        else:
            prose.append(body)
            if r"\begin" in body:
                faults.append(f"displayed mathematics without $$: {paragraph}")
        for bad in (r"\tag", r"\newcommand", r"\def", r"\textcolor", r"\label"):
            if re.search(re.escape(bad) + r"(?![a-z])", body):
                faults.append(f"{bad}: {paragraph}")
    for paragraph in prose:
        for line in paragraph.split("\n") if "|" in paragraph else [paragraph]:
            pieces = line.replace(r"\$", "").split("$")
            if len(pieces) % 2 == 0:
                faults.append(f"an odd number of $: {line}")
            for inside in pieces[1::2]:
                if not inside or inside != inside.strip():
                    faults.append(f"a space beside $: {line}")
                if "|" in inside and "|" in paragraph[:1]:
                    faults.append(f"| in a table's formula: use \\mid or \\Vert: {line}")
    return faults


@each_page
def test_mathematics_renders_everywhere(page):
    assert not mathematics_faults(markdown_of(page))


def test_the_linter_of_mathematics_sees_faults():
    assert not mathematics_faults(
        "Let $x_t$ be\n\n$$x = \\begin{aligned}a&=b\\end{aligned}$$\n\nand `$HOME` or\n\n| a | $b$ |"
    )
    for bad in (
        "see\n$$x$$",
        "$$x$$\nwhere",
        "$$x$$ and $$y$$",
        "\\begin{align}a\\end{align}",
        "$$\\begin{align}a\\end{align}$$",
        "$$x \\tag{1}$$",
        "an $x",
        "an $ x $ b",
        "$$\\newcommand{\\a}{b}$$",
        "| $p(a|b)$ | c |",
    ):
        assert mathematics_faults(bad), bad


@each_page
def test_links_and_pictures_exist(page):
    text = markdown_of(page)
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text, re.DOTALL):
        assert len(alt) > 10, f"{target} needs words for those who cannot see it"
        assert (page.parent / target).stat().st_size <= MAX_FIGURE
    for target in re.findall(r"\]\((.*?)\)", text):
        assert target.startswith("https://") or (page.parent / target.split("#")[0]).exists(), target
    assert "<img" not in text and "base64" not in text


def wrong_references(text):
    """The files, names in files (`file.py:name`), commands and options in a text that the repository does not have."""
    wrong = []
    folders = r"minibnn|kernels|tests|benchmarks|tutorials(?!/NN)"
    for path, name in re.findall(rf"\b((?:{folders})/[\w/]+\.py)(?::(\w+))?", text):
        if not (ROOT / path).is_file():
            wrong.append(path)
            continue
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        defined |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        if name and name not in defined:
            wrong.append(f"{path}:{name}")
    one_line = text.replace("\\\n", "")
    for line in re.findall(r"(?:python -m minibnn[ .]|`(?=(?:sample|train) ))(\w[^`\n]*)", one_line):
        command = " ".join(line.split()[: 2 if line.startswith("experiment ") else 1])
        if command not in COMMANDS:
            wrong.append(command)
            continue
        known = {field.name for field in dataclasses.fields(COMMANDS[command][1])} | {"config", "save_config"}
        options = [option.replace("-", "_") for option in re.findall(r" --([a-z][\w-]*)", line)]
        wrong += [f"{command} --{option}" for option in options if option.removeprefix("no_") not in known]
    return wrong


TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    assert not wrong_references(text_of(page))


def test_a_wrong_reference_is_found():
    right = "`minibnn/lab/eq2.py:expected_loss`, `python -m minibnn experiment corruption --settings all`, "
    right += "`sample --posterior-samples 8`,\npython -m minibnn.train --images dog \\\n    --no-bayes  # plain"
    assert not wrong_references(right)
    for old, new, found in (
        ("lab/eq2.py", "corruption.py", "minibnn/corruption.py"),
        (":expected_loss", ":expected", "minibnn/lab/eq2.py:expected"),
        ("experiment corruption", "experiment dogs", "experiment dogs"),
        ("experiment corruption", "metrics", "metrics"),
        ("--posterior-samples", "--first-prompt", "sample --first_prompt"),
        ("--no-bayes", "--no-noise", "train --no_noise"),
    ):
        assert wrong_references(right.replace(old, new)) == [found]


def test_the_notation_page_names_what_the_code_has():
    """Every name of the column "in code" is a variable, argument or attribute somewhere in minibnn or in a tutorial."""
    known = {"B", "C", "H", "W"}
    for path in [*ROOT.glob("minibnn/**/*.py"), *SOURCES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            known |= {
                getattr(node, field)
                for field in ("id", "arg", "attr", "name")
                if isinstance(getattr(node, field, None), str)
            }
    page = (TUTORIALS / "NOTATION.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.split("\n") if line.startswith("| $")]
    names = [
        name for row in rows for code in re.findall(r"`(.*?)`", row[2]) for name in re.findall(r"[A-Za-z_]\w*", code)
    ]
    assert len(rows) > 30 and len(names) >= len(rows)
    assert not [name for name in names if name not in known]


@each_tutorial
def test_the_index_lists_it(source):
    index = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    assert f"({source.stem}.ipynb)" in index and f"({source.stem}_solved.ipynb)" in index


@each_tutorial
def test_the_first_cell_of_code_is_short(source):
    """It imports from at most six packages, has no paths and no downloads, and prints the versions."""
    first = next(body for markdown, body in build.cells(source.read_text(encoding="utf-8")) if not markdown)
    imports = [n for n in ast.parse(first).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    packages = {name.split(".")[0] for n in imports for name in [getattr(n, "module", None) or n.names[0].name]}
    assert 1 <= len(packages) <= 6 and len(imports) <= 10 and "__version__" in first
    assert "sys.path" not in source.read_text(encoding="utf-8") and "chdir" not in source.read_text(encoding="utf-8")


@each_tutorial
def test_lines_have_at_most_120_characters(source):
    """All code, and all text that can be wrapped: not tables, pictures and displayed equations."""
    lines = source.read_text(encoding="utf-8").split("\n")
    assert not [line for line in lines if len(line) > 120 and not line.startswith(("# |", "# ![", "# $$"))]
