"""Make the notebooks of the tutorials from their sources: `python tutorials/build.py`.

    NN_name.py  ->  NN_name.ipynb         the student's: the body of every exercise is a NotImplementedError
                    NN_name_solved.ipynb  the same with the solutions and what they show

A solved notebook is executed if its code has changed since it was last; `python tutorials/build.py 03 05` executes
those of lessons 03 and 05 in any case.

A source is a script in the percent format, which editors and Jupyter know: `# %%` begins a cell of code, and
`# %% [markdown]` begins a cell of text, written as comments. An exercise's solution stands between two comments, at the
indentation of the code:

    # --- exercise 1: noise a picture
    return abar_t**0.5 * x0 + (1 - abar_t) ** 0.5 * eps
    # --- end

Both begin with a badge that opens them in Google Colab and a cell that fetches minibnn there. The student's notebooks
hold no outputs, and the same source gives the same bytes.
"""

import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
REPOSITORY = "minibnn/minibnn"  # owner/name on GitHub, from where Colab fetches the notebooks and the package
BRANCH = "main"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
EXERCISE = re.compile(r"^( *)# --- exercise (.+)\n(?:.*\n)*?\1# --- end$", re.MULTILINE)


def sources():
    """The tutorials' scripts, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def student_text(text):
    """The source with the solution of every exercise replaced by a NotImplementedError. Raises ValueError."""
    result, count = EXERCISE.subn(_stub, text)
    if not text.count("# --- exercise ") == text.count("# --- end") == count:
        raise ValueError("an exercise lacks its `# --- end` at the same indentation")
    return result


def _stub(match):
    indent, title = match[1], match[2]
    return f'{indent}# --- exercise {title}\n{indent}raise NotImplementedError("exercise {title}")\n{indent}# --- end'


def cells(text):
    """[(is markdown, text without the comment signs)] of a percent script."""
    result = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        markdown, body = kind.strip() == "[markdown]", body.strip("\n")
        if kind.strip() not in ("", "[markdown]"):
            raise ValueError(f"a cell begins with `# %%{kind}`: only `# %%` and `# %% [markdown]` are known")
        if markdown:
            lines = body.split("\n")
            if wrong := [line for line in lines if line != "#" and not line.startswith("# ")]:
                raise ValueError(f"in a cell of text, this line is no comment: {wrong[0]!r}")
            body = "\n".join(line[2:] for line in lines)
        result.append((markdown, body))
    return result


def notebook(text):
    """The notebook of a percent script, without outputs; a cell's id is made from its text, so two builds agree."""
    result, seen = new_notebook(metadata=METADATA), set()
    for markdown, body in cells(text):
        name = hashlib.sha256(body.encode()).hexdigest()[:8]
        while name in seen:
            name += "-"
        seen.add(name)
        result.cells.append((new_markdown_cell if markdown else new_code_cell)(body, id=name))
    nbformat.validate(result)
    return result


BADGE = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}/{name}.ipynb)

{other}"""

COLAB = """#@title On Google Colab run this cell first: it fetches minibnn. Elsewhere it does nothing.
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    if not os.path.isdir("/content/minibnn"):
        address = "https://github.com/{repository}"
        subprocess.run(["git", "clone", "-q", "--depth=1", address, "/content/minibnn"], check=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "/content/minibnn[lessons]"], check=True)
    os.chdir("/content/minibnn/tutorials")
    sys.path.insert(0, os.getcwd())
    from IPython.display import Image, display

    for picture in {pictures}:  # Colab does not show the pictures of the text
        display(Image(picture))"""


def opening(text, name, solved):
    """The two cells before a lesson: the badge, and the cell that fetches minibnn on Colab."""
    this, that = (f"{name}_solved", name) if solved else (name, f"{name}_solved")
    other = f"[The exercises]({that}.ipynb)" if solved else f"[The solved notebook, with its figures]({that}.ipynb)"
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/tutorials"
    prose = "\n".join(body for markdown, body in cells(text) if markdown)
    pictures = re.findall(r"!\[[^\]]*\]\(([^):]+)\)", prose)
    return (
        new_markdown_cell(BADGE.format(colab=colab, name=this, other=other), id="badge"),
        new_code_cell(
            COLAB.format(repository=REPOSITORY, pictures=pictures), id="colab", metadata={"cellView": "form"}
        ),
    )


def build(source):
    """{path: notebook} of the two notebooks of a source, without outputs. Raises ValueError naming what is wrong."""
    text, name, built = source.read_text(encoding="utf-8"), source.stem, {}
    try:
        for solved in (False, True):
            own = notebook(text if solved else student_text(text))
            own.cells[:0] = opening(text, name, solved)
            nbformat.validate(own)
            built[source.with_name(f"{name}{'_solved' * solved}.ipynb")] = own
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    return built


def run(notebook, folder):
    """Execute a notebook in `folder`, with the running interpreter as its kernel, and return it with its outputs."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    assert kernel.kernel_spec.argv[0] == sys.executable
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=kernel, timeout=3600, resources=resources, record_timing=False)
    client.owns_km = True  # so that it also ends the kernel
    one_thread = {"OMP_NUM_THREADS": "1"}  # the networks are small: more threads would mostly wait for one another
    client.execute(env=os.environ | one_thread | {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"})
    return notebook


def with_outputs_of(notebook, path):
    """True if the file's cells of code are those of `notebook`, which then has the file's outputs."""
    if not path.is_file():
        return False
    old, new = ([c for c in n.cells if c.cell_type == "code"] for n in (nbformat.read(path, 4), notebook))
    if [cell.source for cell in old] != [cell.source for cell in new] or not any(cell.outputs for cell in old):
        return False
    for before, cell in zip(old, new, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return True


def main(forced):
    for source in sources():
        for path, own in build(source).items():
            again = source.name[:2] in forced or not with_outputs_of(own, path)
            if path.stem.endswith("_solved") and again:
                print("running", path.name, flush=True)
                run(own, HERE)["metadata"] = METADATA  # without what the kernel adds
                for cell in own.cells:
                    if cell.cell_type == "code":  # warnings and progress bars say nothing to a reader
                        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            path.write_text(nbformat.writes(own) + "\n", encoding="utf-8", newline="\n")
            print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
