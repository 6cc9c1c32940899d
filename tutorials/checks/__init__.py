"""What the checks of all tutorials share. One module for each tutorial, one `check_*` for each exercise.

A check calls the student's function on small random tensors in float64 and compares the result with the right answer.
It compares a wrong result with what typical mistakes give, so that it can name the mistake. `WRONG["f"]`, beside
`check_f`, lists wrong answers and the words that their hints must contain; `RIGHT["f"]`, where there is one, lists
right answers that are written differently. The tests try them all.

A failed check shows a few words and nothing else: neither its own code, which holds the answers, nor Python's frames.
"""

import functools
import inspect
import io
import itertools
import linecache
import sys
import traceback
from pathlib import Path

import torch

TUTORIALS = Path(__file__).parents[1]  # the folder of the tutorials: `dog/`, `figures/`


class Mistake(AssertionError):
    """A wrong answer, in words; Jupyter shows only the words, without a traceback."""

    def _render_traceback_(self):
        return [f"✗ {self}"]


class NotDone(NotImplementedError):
    """An exercise that still has its `raise NotImplementedError`; Jupyter shows only the words."""

    def _render_traceback_(self):
        return [f"✎ {self}"]


def random(*shape, seed=0):
    """Standard normal numbers in float64, always the same for a seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(a, b, tolerance=1e-9):
    """True if two numbers or tensors have the same shape and agree within `tolerance` · max(1, |b|)."""
    a, b = (torch.as_tensor(value).detach().double() for value in (a, b))
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * max(1, b.abs().max().item())).all())


def compare(got, expected, mistakes=None, what="the result", tolerance=1e-9):
    """Raises Mistake unless `got` equals `expected`: numbers or tensors.

    mistakes: {hint: what a typical mistake gives, or a list of what it gives in several forms}; the hint is shown when
    `got` equals that. Mistakes that can be made anywhere (a sign, a factor, a square, a transpose, float32) need not be
    listed: `relation` finds them.
    """
    expected = torch.as_tensor(expected).detach()
    known = [(hint, value) for hint, values in (mistakes or {}).items()
             for value in (values if isinstance(values, list) else [values])]
    for hint, value in known:  # otherwise the check could not tell them apart
        assert not equal(value, expected, tolerance), f"the inputs of this check do not show: {hint}"
    for (hint, value), (other, second) in itertools.combinations(known, 2):
        assert hint == other or not equal(value, second, tolerance), f"nobody is told: {other}, but: {hint}"
    if got is None:
        raise Mistake(f"{what} is None: is there a `return`?")
    try:
        got = torch.as_tensor(got).detach()
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"{what} is a {type(got).__name__}, not a number or a tensor") from None
    for hint, value in known:
        if equal(got, value, tolerance):
            raise Mistake(hint)
    hint = relation(got, expected, tolerance)
    if got.shape != expected.shape:
        raise Mistake(f"{what} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}{hint}")
    if not torch.isfinite(got).all():
        raise Mistake(f"{what} is not finite: is there a division by 0 or the root of a negative number?")
    if not equal(got, expected, tolerance):
        if equal(got, expected, 1e-5):
            raise Mistake(
                f"{what} is right to a few digits only: was it computed in float32 (`.float()`, "
                "`dtype=torch.float32`), rounded, or stopped early? Compute with the precision of what is given"
            )
        place = (got - expected).abs().argmax().item()
        wrong, right = got.flatten()[place].item(), expected.flatten()[place].item()
        where = f" (element {place} of the flattened tensor)" if got.ndim else ""
        raise Mistake(f"{what} is wrong: {wrong:.6g} where {right:.6g} is expected{where}{hint}")


def relation(got, right, tolerance=1e-9):
    """How a wrong answer is related to the right one, as the end of a sentence; empty if no simple relation is seen."""
    got, right = got.double(), right.double()

    def same(value):
        return equal(got, value, tolerance)

    if got.shape != right.shape:
        if got.ndim == right.ndim == 2 and same(right.T):
            return ": it is transposed"
        if got.numel() == right.numel() and equal(got.flatten(), right.flatten(), tolerance):
            return ": the numbers are right, the shape is not"
        if right.ndim == 0 and equal(got.sum(), right, tolerance):
            return ": add its elements up"
        if right.ndim == 0 and equal(got.mean(), right, tolerance):
            return ": take the mean of its elements"
        if got.ndim == 0 and right.ndim and (same(right.sum()) or same(right.mean())):
            return ": too much was added up, one number is wanted for each element"
        return ""
    if same(-right):
        return ": the sign is wrong everywhere"
    for factor, words in ((2, "twice"), (0.5, "half of")):
        if same(factor * right):
            return f": everywhere {words} what is right"
    if same(right**2):
        return ": this is the square of what is right"
    if bool((right >= 0).all()) and same(right.sqrt()):
        return ": this is the root of what is right; square it"
    if bool((right != 0).all()) and same(1 / right):
        return ": this is one over what is right"
    if got.numel() < 3:
        return ""
    if got.ndim == 2 and got.shape[0] == got.shape[1] and same(right.T):
        return ": it is transposed"
    factor = (got * right).sum() / (right * right).sum()
    if same(factor * right):
        return f": everywhere {factor:.6g} times what is right, so a constant factor is wrong"
    if same(right + (got - right).mean()):
        return f": everywhere {(got - right).mean():+.6g} off, so a constant term is wrong"
    if same(right.flip(0)):
        return ": the order is reversed"
    return ""


def pair(got, names):
    """The student's answer as two values. Raises Mistake."""
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Mistake(f"return two values: {names}")
    return got


def exercise(check):
    """Decorator of every check: it shows words instead of frames, and prints the line of success.

    New tensors are float64 while the check runs, and the student's function is given copies of its tensors, so that an
    answer may be computed in place.
    """

    @functools.wraps(check)
    def run(fn):
        before, chance = torch.get_default_dtype(), torch.get_rng_state()
        torch.set_default_dtype(torch.float64)
        try:
            check(with_copies(fn))
        except Exception as error:
            failure = in_words(error, fn)
            if isinstance(failure, Mistake) and not torch.equal(chance, torch.get_rng_state()):
                failure = Mistake(
                    f"{failure}\n  Your function drew random numbers of its own, so that each call gives something "
                    "else: compute with what it is given"
                )
        else:
            failure = None
        finally:
            torch.set_default_dtype(before)
        if failure is not None:
            raise failure
        print(f"✓ {check.__name__.removeprefix('check_')}: correct")

    return run


def copied(value):
    """A tensor's copy, through which gradients still flow; lists and tuples of them; anything else as it is."""
    if torch.is_tensor(value):
        return value.clone()
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def with_copies(fn):
    """`fn` called with copies of its tensors. What is no plain function (a Triton kernel) stays as it is."""
    if not inspect.isfunction(fn):
        return fn

    @functools.wraps(fn)
    def call(*inputs, **named):
        return fn(*map(copied, inputs), **{name: copied(value) for name, value in named.items()})

    return call


def in_words(error, fn):
    """The exception to raise instead of `error`, without any frame: a Mistake, or NotDone for an unsolved exercise.

    An AssertionError of the check itself, which says that its inputs are badly chosen, is returned as it is.
    """
    if isinstance(error, Mistake):
        return Mistake(str(error))
    if isinstance(error, NotImplementedError):
        return NotDone(f"{error}: not done yet. Write your lines in the place of `raise NotImplementedError`.")
    own = getattr(getattr(fn, "__code__", None), "co_filename", None)
    line = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == own]
    what = f"{type(error).__name__}: {error}"
    if "Boolean value of Tensor" in what:
        what += " (a tensor is neither true nor false; to ask whether there is one, write `is None`)"
    if line:
        code = linecache.getline(own, line[-1]).strip()
        return Mistake(f"your code stopped with {what}" + (f"\n  in the line  {code}" if code else ""))
    if isinstance(error, AssertionError):
        return error
    return Mistake(f"what your function returned cannot be used: {what}")


def show(figure, name, alt):
    """Show a matplotlib figure below its cell, with the words `alt` for those who cannot see it.

    A script, which has no cells, writes it to figures/`name`.png.
    """
    import matplotlib.pyplot as plt
    from PIL import Image as Pillow

    raw, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=80, bbox_inches="tight")
    plt.close(figure)
    image = Pillow.open(raw).convert("RGB")
    if image.getcolors(4096):  # lines and words, which a palette shows as well in a third of the bytes
        image.quantize(256, dither=Pillow.Dither.NONE).save(buffer, format="png", optimize=True)
    elif "ipykernel" in sys.modules:  # pictures; a notebook that holds its outputs must stay small
        image.save(buffer, format="jpeg", quality=90, optimize=True)
    else:
        image.save(buffer, format="png", optimize=True)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(buffer.getvalue(), alt=alt))
    else:
        path = TUTORIALS / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        print(f"{path}: {alt}")
