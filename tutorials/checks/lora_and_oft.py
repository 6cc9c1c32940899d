"""Checks of 11_lora_and_oft."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import Mistake, compare, equal, exercise, pair, random

WRONG, RIGHT = {}, {}


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products that are computed meanwhile."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.append(tuple(out.shape))
        return out


@exercise
def check_lora(fn):
    x, weight, down, up, alpha = random(4, 5), random(3, 5, seed=1), random(2, 5, seed=2), random(3, 2, seed=3), 6.0
    change = up @ down
    compare(
        fn(x, weight, down, up, alpha),
        x @ (weight + 3.0 * change).T,
        {
            "the change is scaled by α/r, not by α: r is the number of rows of A": x @ (weight + 6.0 * change).T,
            "the scale α/r is missing": x @ (weight + change).T,
            "W is missing: LoRA adds to the pretrained layer": x @ (3.0 * change).T,
            "α/r belongs to the change alone, not to W": 3.0 * x @ (weight + change).T,
            "α/r is applied twice, once for each matrix": x @ (weight + 9.0 * change).T,
            "r is the number of rows of A, not of its columns": x @ (weight + 1.2 * change).T,
            "α belongs to the change alone, and divided by r": 6.0 * x @ (weight + change).T,
        },
        "y",
    )
    wide = random(3, 5, seed=4), random(3, 3, seed=5)
    if not equal(fn(x, weight, *wide, alpha), x @ (weight + 2.0 * wide[1] @ wide[0]).T):
        raise Mistake("right for r = 2, wrong for r = 3: r is len(down)")
    with Products() as products:
        fn(x, weight, down, up, alpha)
    if {(3, 5), (5, 3)} & set(products.shapes):
        raise Mistake("B A was formed, a matrix as large as W: apply A to x first, then B to what comes out")
    if not torch.equal(torch.as_tensor(fn(x, weight, down, 0 * up, alpha)), x @ weight.T):
        raise Mistake("with B = 0 the output must be that of W alone, to the last bit: add the correction to x Wᵀ")


WRONG["lora"] = [
    (lambda x, weight, down, up, alpha: x @ (weight + alpha * up @ down).T, "not by α"),
    (lambda x, weight, down, up, alpha: x @ (up @ down * 3.0).T, "W is missing"),
    (lambda x, weight, down, up, alpha: 3.0 * x @ (weight + up @ down).T, "alone"),
    (lambda x, weight, down, up, alpha: x @ weight.T + alpha / down.shape[1] * x @ down.T @ up.T, "not of its columns"),
    (lambda x, weight, down, up, alpha: alpha * (x @ weight.T + x @ down.T @ up.T), "divided by r"),
    (lambda x, weight, down, up, alpha: x @ weight.T + alpha / 2 * (x @ down.T) @ up.T, "len(down)"),
    (lambda x, weight, down, up, alpha: x @ weight.T + alpha / len(down) * x @ (up @ down).T, "was formed"),
]
RIGHT["lora"] = [
    lambda x, weight, down, up, alpha: torch.nn.functional.linear(x, weight) + x @ down.T @ (alpha / len(down) * up).T,
]


@exercise
def check_for_diffusers(fn):
    down, up, alpha = random(2, 5, seed=2), random(3, 2, seed=3), 6.0
    got_down, got_up = pair(fn(down, up, alpha), "A and B")
    missing = got_up is None or got_down is None
    if not missing and (torch.as_tensor(got_down).shape, torch.as_tensor(got_up).shape) == (up.shape, down.shape):
        raise Mistake("return A first, then B")
    product = None if missing else torch.as_tensor(got_up) @ torch.as_tensor(got_down)
    compare(
        product,
        3.0 * up @ down,
        {
            "the program that opens the file computes W + B A: α/r must be in the file": up @ down,
            "both matrices were scaled: the product then has (α/r)²": 9.0 * up @ down,
            "α/r, not α: this program does not divide by the rank either": 6.0 * up @ down,
            "α/r: r is the number of rows of A, not of its columns": 1.2 * up @ down,
            "the scale was divided out; the other program does not multiply it in again": up @ down / 3.0,
        },
        "B A",
    )
    other = pair(fn(random(3, 5), random(4, 3, seed=1), alpha), "A and B")
    if not equal(torch.as_tensor(other[1]) @ torch.as_tensor(other[0]), 2.0 * random(4, 3, seed=1) @ random(3, 5)):
        raise Mistake("right for r = 2, wrong for r = 3: r is len(down)")
    if torch.as_tensor(got_down).shape != down.shape:
        raise Mistake(f"A has shape {tuple(torch.as_tensor(got_down).shape)}, expected {tuple(down.shape)}")


WRONG["for_diffusers"] = [
    (lambda down, up, alpha: (down, up), "must be in the file"),
    (lambda down, up, alpha: (3.0 * down, 3.0 * up), "both matrices"),
    (lambda down, up, alpha: (down, alpha * up), "not α"),
    (lambda down, up, alpha: (down, up / 3.0), "divided out"),
    (lambda down, up, alpha: (down, alpha / down.shape[1] * up), "not of its columns"),
    (lambda down, up, alpha: (down, alpha / 2 * up), "len(down)"),
    (lambda down, up, alpha: (up, alpha / len(down) * down), "A first"),
]
RIGHT["for_diffusers"] = [
    lambda down, up, alpha: ((alpha / len(down)) ** 0.5 * down, (alpha / len(down)) ** 0.5 * up),
    lambda down, up, alpha: (alpha / len(down) * down, up),
]


@exercise
def check_cayley(fn):
    q, eye = random(4, 4), torch.eye(4)
    s = (q - q.T) / 2
    right = (eye + s) @ torch.linalg.inv(eye - s)
    compare(
        fn(q),
        right,
        {
            "this is Rᵀ: the sign of S is swapped": right.T,
            "S = ½(Q − Qᵀ): the half is missing": (eye + 2 * s) @ torch.linalg.inv(eye - 2 * s),
            "Q itself is not skew: use S = ½(Q − Qᵀ)": (eye + q) @ torch.linalg.inv(eye - q),
            "S = ½(Q − Qᵀ), a difference: the sum is symmetric, and R no rotation": (eye + (q + q.T) / 2)
            @ torch.linalg.inv(eye - (q + q.T) / 2),
            "this is the matrix exponential of S, another way to a rotation; Cayley's is (I + S)(I − S)⁻¹":
                torch.linalg.matrix_exp(s),
            "I + S is a first step only, and no rotation: (I + S)(I − S)⁻¹": eye + s,
            "the inverse is missing": (eye + s) @ (eye - s),
        },
        "R",
    )
    if not torch.equal(torch.as_tensor(fn(torch.zeros(3, 3))), torch.eye(3)):
        raise Mistake("Q = 0 must give exactly I")


WRONG["cayley"] = [
    (lambda q: torch.linalg.solve(torch.eye(len(q)) + (q - q.T) / 2, torch.eye(len(q)) - (q - q.T) / 2), "swapped"),
    (lambda q: torch.linalg.solve(torch.eye(len(q)) - (q - q.T), torch.eye(len(q)) + (q - q.T)), "half is missing"),
    (lambda q: torch.linalg.solve(torch.eye(len(q)) - q, torch.eye(len(q)) + q), "not skew"),
    (lambda q: (torch.eye(len(q)) + (q - q.T) / 2) @ (torch.eye(len(q)) - (q - q.T) / 2), "inverse is missing"),
    (lambda q: torch.linalg.matrix_exp((q - q.T) / 2), "exponential"),
    (lambda q: torch.eye(len(q)) + (q - q.T) / 2, "a first step only"),
    (lambda q: torch.linalg.solve(torch.eye(len(q)) - (q + q.T) / 2, torch.eye(len(q)) + (q + q.T) / 2), "no rotation"),
]
RIGHT["cayley"] = [
    lambda q: (torch.eye(len(q)) + (q - q.T) / 2) @ torch.linalg.inv(torch.eye(len(q)) - (q - q.T) / 2),
    lambda q: 2 * torch.linalg.inv(torch.eye(len(q)) - (q - q.T) / 2) - torch.eye(len(q)),
]


@exercise
def check_rotated_weight(fn):
    weight = random(4, 4)
    rotations = [torch.linalg.matrix_exp(angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]])) for angle in (0.4, 1.1)]
    whole = torch.block_diag(*rotations)
    compare(
        fn(weight, rotations),
        weight @ whole.T,
        {
            "this rotates the outputs: the layer's *inputs* are rotated, W Rᵀ": whole @ weight,
            "the transpose is missing: y = W (Rᵀ x), so W Rᵀ": weight @ whole,
            "the same block everywhere: block i belongs to the i-th part of the inputs":
                weight @ torch.block_diag(*rotations[:1] * 2).T,
            "the blocks are in the wrong order": weight @ torch.block_diag(*rotations[::-1]).T,
        },
        "W Rᵀ",
    )
    weight, rotations = random(5, 9), [torch.linalg.qr(random(3, 3, seed=i))[0] for i in range(3)]
    if not equal(fn(weight, rotations), weight @ torch.block_diag(*rotations).T):
        raise Mistake("right for two blocks of size 2, wrong for three of size 3 and W (5, 9): use all of the list")


WRONG["rotated_weight"] = [
    (lambda weight, rotations: torch.block_diag(*rotations) @ weight, "inputs"),
    (lambda weight, rotations: weight @ torch.block_diag(*rotations), "transpose is missing"),
    (lambda weight, rotations: weight @ torch.block_diag(*rotations[:1] * 2).T, "same block"),
    (lambda weight, rotations: weight @ torch.block_diag(*rotations[:2]).T, "your code stopped"),
    (lambda weight, rotations: torch.cat([weight[:, :2] @ rotations[0].T, weight[:, 2:4] @ rotations[1].T], 1),
     "your code stopped"),
    (lambda weight, rotations: weight @ torch.block_diag(*rotations[::-1]).T, "wrong order"),
]
RIGHT["rotated_weight"] = [
    lambda weight, rotations: torch.cat(
        [part @ r.T for part, r in zip(weight.chunk(len(rotations), 1), rotations, strict=True)], 1
    ),
]


@exercise
def check_weight_std(fn):
    down, sigma, alpha = random(3, 5), 0.2, 6.0
    squares = (down**2).sum(0)
    compare(
        fn(down, sigma, alpha),
        2.0 * sigma * squares.sqrt(),
        {
            "the scale α/r is missing": sigma * squares.sqrt(),
            "the scale is α/r, not α": 6.0 * sigma * squares.sqrt(),
            "standard deviations of independent terms do not add up; variances do": 2.0 * sigma * down.abs().sum(0),
            "this is the variance: take the root": (2.0 * sigma) ** 2 * squares,
            "sum over the rank, one number for each input": 2.0 * sigma * (down**2).sum(1).sqrt(),
            "the entries of A enter squared, so that signs do not cancel": 2.0 * sigma * down.sum(0).abs(),
            "the spread of B's entries counts, that of A's rows does not: A is fixed, its squares are around 0":
                [2.0 * sigma * down.std(0, correction=c) for c in (0, 1)],
            "a sum over the r terms, not their mean": 2.0 * sigma * (squares / 3).sqrt(),
            "r is the number of rows of A, not of its columns": 1.2 * sigma * squares.sqrt(),
            "σ is a standard deviation already": 2.0 * sigma**0.5 * squares.sqrt(),
        },
        "the standard deviation",
    )


WRONG["weight_std"] = [
    (lambda down, sigma, alpha: sigma * down.norm(dim=0), "α/r is missing"),
    (lambda down, sigma, alpha: 2.0 * sigma * down.abs().sum(0), "variances do"),
    (lambda down, sigma, alpha: (2.0 * sigma * down.norm(dim=0)) ** 2, "take the root"),
    (lambda down, sigma, alpha: alpha * sigma * down.norm(dim=0), "not α"),
    (lambda down, sigma, alpha: alpha / down.shape[1] * sigma * down.norm(dim=0), "not of its columns"),
    (lambda down, sigma, alpha: alpha / len(down) * sigma * down.norm(dim=1), "one number for each input"),
    (lambda down, sigma, alpha: alpha / len(down) * sigma * down.std(0, correction=0), "around 0"),
]
