"""Checks of 08_inverse_noise."""

import torch

from minibnn.neighbours import flow

from . import Mistake, compare, equal, exercise, pair, random

WRONG, RIGHT = {}, {}


def turning(x, s):
    """A velocity that depends on place and time, with h·L < 1 for the steps used here. Raises Mistake."""
    if not torch.is_tensor(s) or s.shape != x.shape[:1]:
        full = "torch.full((len(x),), s, dtype=x.dtype)"
        raise Mistake(f"velocity(x, s) wants a time for each sample, a tensor (B,): {full}")
    return (-0.4 + torch.sin(3 * s))[:, None] * x + 1 + 0.3 * torch.cos(2 * x)


@exercise
def check_flow_pair(fn):
    x, e, s = random(4, 4), random(4, 4, seed=1), torch.tensor([0.0, 0.2, 0.7, 1.0])
    x_s, target = pair(fn(x, e, s), "the point x_s and the target")
    column = s[:, None]
    compare(
        x_s,
        (1 - column) * e + column * x,
        {
            "noise and data are swapped: s = 0 is noise, s = 1 is data": column * e + (1 - column) * x,
            "the noise has the weight 1 − s: at s = 1 nothing of it is left": e + column * x,
            "roots belong to diffusion; a rectified flow goes along straight lines":
                (1 - column).sqrt() * e + column.sqrt() * x,
            "each *row* has its own time: give s a second dimension, s[:, None]": (1 - s) * e + s * x,
        },
        "x_s",
    )
    compare(
        target,
        x - e,
        {
            "the sign is wrong: the velocity points from the noise to the data": e - x,
            "this is the rest of the way, x − x_s; the velocity is the same along the whole line": x - x_s.detach(),
            "the velocity is dx_s/ds, not x_s divided by s or multiplied by it": column * (x - e),
        },
        "the target",
    )


WRONG["flow_pair"] = [
    (lambda x, e, s: (s[:, None] * e + (1 - s[:, None]) * x, x - e), "swapped"),
    (lambda x, e, s: ((1 - s[:, None]) * e + s[:, None] * x, e - x), "sign"),
    (lambda x, e, s: ((1 - s[:, None]) * e + s[:, None] * x, (1 - s[:, None]) * (x - e)), "rest of the way"),
    (lambda x, e, s: (1 - s[:, None]) * e + s[:, None] * x, "two values"),
    (lambda x, e, s: ((1 - s) * e + s * x, x - e), "each *row*"),
    (lambda x, e, s: ((1 - s[:, None]).sqrt() * e + s[:, None].sqrt() * x, x - e), "roots belong"),
    (lambda x, e, s: ((1 - s[:, None]) * e + s[:, None] * x, s[:, None] * (x - e)), "dx_s/ds"),
    (lambda x, e, s: (e + s[:, None] * x, x - e), "1 − s"),
]


def _euler(z, steps, time, factor=1.0):
    for j in range(steps):
        z = z + factor * turning(z, torch.full((len(z),), time(j, steps))) / steps
    return z


@exercise
def check_euler(fn):
    z = random(5, 2)
    compare(
        fn(turning, z, 4),
        flow.euler(turning, z, 4),
        {
            "the velocity is asked at the right end of each step; step j begins at time j/n":
                _euler(z, 4, lambda j, n: (j + 1) / n),
            "the step is h = 1/n: you added the whole velocity n times": _euler(z, 4, lambda j, n: j / n, 4.0),
            "the time stays 0: it is j/n in step j": _euler(z, 4, lambda j, n: 0.0),
            "the time is j/n, a fraction instead of a step's number": _euler(z, 4, lambda j, n: j),
            "n steps begin at 0, 1/n, … and the last at 1 − 1/n: divide by n, not n − 1":
                _euler(z, 4, lambda j, n: j / (n - 1)),
            "one step is missing: j runs from 0 to n − 1": _one_less(z),
            "you went from data to noise: add h·v": _euler(z, 4, lambda j, n: j / n, -1.0),
        },
        "T(z)",
    )
    if not equal(fn(turning, z, 7), flow.euler(turning, z, 7)):
        raise Mistake("right for 4 steps, wrong for 7: use steps")


def _one_less(z):
    for j in range(3):
        z = z + turning(z, torch.full((len(z),), j / 4)) / 4
    return z


WRONG["euler"] = [
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: (j + 1) / n), "right end"),
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: j / n, float(steps)), "whole velocity"),
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: 0.0), "time stays 0"),
    (lambda velocity, z, steps: _euler(z, 4, lambda j, n: j / n), "use steps"),
    (lambda velocity, z, steps: velocity(z, 0.0), "a time for each sample"),
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: j / n, -1.0), "add h·v"),
    (lambda velocity, z, steps: _one_less(z), "one step is missing"),
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: j), "of a step's number"),
    (lambda velocity, z, steps: _euler(z, steps, lambda j, n: j / (n - 1)), "not n − 1"),
]


def _euler_in_place(velocity, z, steps):
    for j in range(steps):
        z += velocity(z, torch.full((len(z),), j / steps)) / steps
    return z


RIGHT["euler"] = [_euler_in_place]


@exercise
def check_inverse_step(fn):
    x, s, h = random(6, 2), 0.3, 0.2
    right, _ = flow.inverse_step(turning, x, s, h, 60, 0.0)
    times = torch.full((6,), s)
    wrong_start = x
    for _ in range(60):
        wrong_start = wrong_start - h * turning(wrong_start, times)
    compare(
        fn(turning, x, s, h, 60),
        right,
        {
            "this is one step only, x − h·v(x): Euler backwards, not the inverse of Euler forwards; iterate":
                x - h * turning(x, times),
            "you subtract from y; subtract from x each time, y ← x − h·v(y): x stays what it is": wrong_start,
            "the step asked for the velocity at s, its beginning, not at its end, s + h":
                flow.inverse_step(turning, x, s + h, h, 60, 0.0)[0],
            "you added h·v; the inverse takes it away": flow.inverse_step(turning, x, s, -h, 60, 0.0)[0],
        },
        "y",
        tolerance=1e-8,
    )
    if equal(fn(turning, x, s, h, 2), right, 1e-8):
        raise Mistake("right for 60 iterations, but for 2 as well: use iterations")


def _subtract_from_y(velocity, x, s, h, iterations):
    y = x
    for _ in range(iterations):
        y = y - h * velocity(y, torch.full((len(x),), s))
    return y


WRONG["inverse_step"] = [
    (lambda velocity, x, s, h, iterations: x - h * velocity(x, torch.full((len(x),), s)), "one step only"),
    (_subtract_from_y, "subtract from x"),
    (lambda velocity, x, s, h, iterations: flow.inverse_step(velocity, x, s, -h, iterations, 0.0)[0], "takes it away"),
    (lambda velocity, x, s, h, iterations: x - h * velocity(x, s), "a time for each sample"),
    (lambda velocity, x, s, h, iterations: flow.inverse_step(velocity, x, s, h, 60, 0.0)[0], "use iterations"),
    (lambda velocity, x, s, h, iterations: flow.inverse_step(velocity, x, s, 1.0 * h, 8, 0.0)[0], "stopped early"),
    (lambda velocity, x, s, h, iterations: flow.inverse_step(velocity, x, s + h, h, iterations, 0.0)[0], "at its end"),
    (lambda velocity, x, s, h, iterations: flow.inverse_step(velocity, x, s, 1.0, iterations, 0.0)[0], ""),
]


def _undo(x, steps, order, time):
    for j in order(steps):
        x, _ = flow.inverse_step(turning, x, time(j, steps), 1 / steps, 60, 0.0)
    return x


@exercise
def check_invert(fn):
    z = random(5, 2)
    x = flow.euler(turning, z, 8)
    got = fn(turning, x, 8)
    compare(
        got,
        z,
        {
            "you undo the steps in the order in which they were made; the last one, of time (n−1)/n, comes first":
                _undo(x, 8, range, lambda j, n: j / n),
            "you ask at the end at which the undone step arrived, (j+1)/n; T asked at its beginning, j/n": _undo(
                x, 8, lambda n: reversed(range(n)), lambda j, n: (j + 1) / n
            ),
            "this goes forwards once more; undo the steps": flow.euler(turning, x, 8),
            "Euler with −v goes back only roughly; undo exactly what T did, with inverse_step": [
                flow.euler(lambda x, s, first=first: -turning(x, first - s), x, 8) for first in (1, 7 / 8)
            ],
        },
        "the noise from which T goes to x",
        tolerance=1e-4,  # as exact as `flow.invert` with its own tolerance; the mistakes are off by more than 0.01
    )
    if not equal(fn(turning, flow.euler(turning, z, 11), 11), z, 1e-4):
        raise Mistake("right for 8 steps, wrong for 11: use steps")


WRONG["invert"] = [
    (lambda velocity, x, steps: _undo(x, steps, range, lambda j, n: j / n), "comes first"),
    (lambda velocity, x, steps: _undo(x, steps, lambda n: reversed(range(n)), lambda j, n: (j + 1) / n),
     "T asked at its beginning"),
    (lambda velocity, x, steps: x, "wrong"),
    (lambda velocity, x, steps: _undo(x, 8, lambda n: reversed(range(n)), lambda j, n: j / n), "use steps"),
    (lambda velocity, x, steps: _undo(x, steps, lambda n: reversed(range(n)), lambda j, n: 1 - (j + 1) / n),
     "comes first"),
    (lambda velocity, x, steps: flow.euler(velocity, x, steps), "forwards once more"),
    (lambda velocity, x, steps: flow.euler(lambda x, s: -velocity(x, 1 - s), x, steps), "undo exactly"),
]
RIGHT["invert"] = [lambda velocity, x, steps: flow.invert(velocity, x, steps)[0]]


def _affine(steps, slope, shift):
    a = (1 + slope / steps) ** steps
    return a, sum((1 + slope / steps) ** k for k in range(steps)) * shift / steps


@exercise
def check_affine_inverse_noise(fn):
    mean, std, steps, slope, shift = 1.5, 0.3, 20, -0.4, 1.0
    a, b = _affine(steps, slope, shift)
    got = pair(fn(mean, std, steps, slope, shift), "mean and standard deviation")
    for value in got:
        if not torch.isfinite(torch.as_tensor(value, dtype=torch.float64)).all():
            raise Mistake("not finite")
    compare(
        got[0],
        (mean - b) / a,
        {
            "this is where T takes the data; the inverse noise is where T⁻¹ takes it": a * mean + b,
            "subtract B before you divide by A": mean / a - b,
            "B is missing: T(z) = A z + B": mean / a,
            "this is the flow with infinitely many steps; T has n":
                (mean + shift / slope * (1 - torch.exp(torch.tensor(slope)))) * torch.exp(torch.tensor(-slope)),
        },
        "the mean",
    )
    compare(
        got[1],
        std / a,
        {
            "T⁻¹ divides by A": std * a,
            "this is the variance": (std / a) ** 2,
            "B moves the distribution, it does not widen it": (std - b) / a,
        },
        "the standard deviation",
    )
    a, b = _affine(5, 0.7, -0.2)
    if not equal(torch.tensor(pair(fn(0.4, 1.2, 5, 0.7, -0.2), "both")), torch.tensor([(0.4 - b) / a, 1.2 / a])):
        raise Mistake("right for one sampler, wrong for another: use all five arguments")


def _forward(mean, std, steps, slope, shift):
    a, b = _affine(steps, slope, shift)
    return a * mean + b, a * std


def _inverse(mean, std, steps, slope, shift):
    a, b = _affine(steps, slope, shift)
    return (mean - b) / a, std / a


def _variance(mean, std, steps, slope, shift):
    a, b = _affine(steps, slope, shift)
    return (mean - b) / a, (std / a) ** 2


WRONG["affine_inverse_noise"] = [
    (_forward, "where T takes the data"),
    (_variance, "the variance"),
    (lambda mean, std, steps, slope, shift: (mean - 1) / 0.67, "two values"),
    (lambda mean, std, steps, slope, shift: _inverse(1.5, 0.3, 20, -0.4, 1.0), "all five arguments"),
    (lambda mean, std, steps, slope, shift: _inverse(mean, std, 20, slope, shift), "all five arguments"),
    (lambda mean, std, steps, slope, shift: (mean / _affine(steps, slope, shift)[0], std), "B is missing"),
    (lambda mean, std, *flow: (mean / _affine(*flow)[0] - _affine(*flow)[1], std), "subtract B before"),
    (lambda mean, std, *flow: (_inverse(mean, std, *flow)[0], std * _affine(*flow)[0]), "divides by A"),
]
