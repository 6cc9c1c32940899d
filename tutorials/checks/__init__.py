"""What the checks of all tutorials share. One module for each tutorial, one `check_*` for each exercise.

A check calls the student's function on small random tensors in float64 and compares the result with the right answer.
It compares a wrong result with what typical mistakes give, so that it can name the mistake. `WRONG["f"]`, beside
`check_f`, lists wrong answers and the words that their hints must contain; the tests try them all.
"""

import functools
import io
import sys
from pathlib import Path

import torch

TUTORIALS = Path(__file__).parents[1]  # the folder of the tutorials: `dog/`, `figures/`


class Mistake(AssertionError):
    """A wrong answer, in words; Jupyter shows only the words, without a traceback."""

    def _render_traceback_(self):
        return [f"✗ {self}"]


def random(*shape, seed=0):
    """Standard normal numbers in float64, always the same for a seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(a, b, tolerance=1e-9):
    """True if two numbers or tensors have the same shape and agree within `tolerance` · max(1, |b|)."""
    a, b = (torch.as_tensor(value).detach().double() for value in (a, b))
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * max(1, b.abs().max().item())).all())


def compare(got, expected, mistakes=None, what="the result", tolerance=1e-9):
    """Raises Mistake unless `got` equals `expected`: numbers or tensors.

    mistakes: {hint: what a typical mistake gives}; the hint is shown when `got` equals that.
    """
    expected = torch.as_tensor(expected).detach()
    for hint, value in (mistakes or {}).items():  # otherwise the check could not tell them apart
        assert not equal(value, expected, tolerance), f"the inputs of this check do not show: {hint}"
    if got is None:
        raise Mistake(f"{what} is None: is there a `return`?")
    try:
        got = torch.as_tensor(got).detach()
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"{what} is a {type(got).__name__}, not a number or a tensor") from None
    for hint, value in (mistakes or {}).items():
        if equal(got, value, tolerance):
            raise Mistake(hint)
    if got.shape != expected.shape:
        raise Mistake(f"{what} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    if not torch.isfinite(got).all():
        raise Mistake(f"{what} is not finite: is there a division by 0 or the root of a negative number?")
    if not equal(got, expected, tolerance):
        place = (got - expected).abs().argmax().item()
        wrong, right = got.flatten()[place].item(), expected.flatten()[place].item()
        where = f" (element {place} of the flattened tensor)" if got.ndim else ""
        raise Mistake(f"{what} is wrong: {wrong:.6g} where {right:.6g} is expected{where}")


def pair(got, names):
    """The student's answer as two values. Raises Mistake."""
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Mistake(f"return two values: {names}")
    return got


def exercise(check):
    """Decorator of every check: new tensors are float64 while it runs; prints the line of success."""

    @functools.wraps(check)
    def run(fn):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            check(fn)
        finally:
            torch.set_default_dtype(before)
        print(f"✓ {check.__name__.removeprefix('check_')}: correct")

    return run


def show(figure, name, alt):
    """Show a matplotlib figure below its cell, with the words `alt` for those who cannot see it.

    A script, which has no cells, writes it to figures/`name`.png.
    """
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight")
    plt.close(figure)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(buffer.getvalue(), alt=alt))
    else:
        path = TUTORIALS / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        print(f"{path}: {alt}")
