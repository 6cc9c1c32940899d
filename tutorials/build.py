"""Make the notebooks of the tutorials from their sources: `python tutorials/build.py`.

    NN_name.py  ->  NN_name.ipynb         the student's: the body of every exercise is a NotImplementedError
                    NN_name_solved.ipynb  the same with the solutions

A source is a script in the percent format, which editors and Jupyter know: `# %%` begins a cell of code, and
`# %% [markdown]` begins a cell of text, written as comments. An exercise's solution stands between two comments, at the
indentation of the code:

    # --- exercise 1: noise a picture
    return abar_t**0.5 * x0 + (1 - abar_t) ** 0.5 * eps
    # --- end

The notebooks hold no outputs, and the same source gives the same bytes.
"""

import hashlib
import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
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


def build(source):
    """{path: text} of the two notebooks of a source. Raises ValueError naming what is wrong."""
    text = source.read_text(encoding="utf-8")
    try:
        return {
            source.with_suffix(".ipynb"): nbformat.writes(notebook(student_text(text))) + "\n",
            source.with_name(source.stem + "_solved.ipynb"): nbformat.writes(notebook(text)) + "\n",
        }
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


if __name__ == "__main__":
    for source in sources():
        for path, text in build(source).items():
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path.name)
