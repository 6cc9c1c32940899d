"""Checks of 10_the_kernel. Kernels run on small matrices that lie in larger memory, so that what they read or write
outside is seen; they run in Triton's interpreter, or on a GPU where the interpreter is not asked for."""

import contextlib
import inspect
import os

import torch
import triton
import triton.language as tl
from minibnn_kernels import reference
from minibnn_kernels.bayes_linear import load, store
from minibnn_kernels.philox import normal_tile

from . import Mistake, compare, equal, exercise, pair, random

WRONG = {}
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
GUARD = 4096  # elements before and after a matrix
OUTSIDE = 1000.0


class Matrix:
    """A float32 matrix with a guard of OUTSIDE around it in memory."""

    def __init__(self, values):
        self.shape, self.size = values.shape, values.numel()
        self.memory = torch.full((GUARD + self.size + GUARD,), OUTSIDE, dtype=torch.float32, device=DEVICE)
        self.view = self.memory[GUARD : GUARD + self.size].view(self.shape)
        self.view.copy_(values)

    def outside(self, address):
        """Is this address in the guard?"""
        start = self.memory.data_ptr()
        place = (address - start) // self.memory.element_size()
        return 0 <= place < GUARD or GUARD + self.size <= place < len(self.memory)

    def untouched(self):
        """Is the guard as it was?"""
        return bool((self.memory[:GUARD] == OUTSIDE).all() and (self.memory[GUARD + self.size :] == OUTSIDE).all())

    def unmasked(self, rows, columns):
        """What a tile that forgets its mask reads: the next row's beginning beyond a row's end."""
        places = torch.arange(rows, device=DEVICE)[:, None] * self.shape[1] + torch.arange(columns, device=DEVICE)
        return self.memory[GUARD + places].double().cpu()

    def value(self):
        return self.view.double().cpu()


@contextlib.contextmanager
def watched_loads():
    """A list of the lowest and highest addresses of each load meanwhile; empty on a GPU, where nobody can watch."""
    seen = []
    if DEVICE != "cpu":
        yield seen
        return
    from triton.runtime.interpreter import interpreter_builder as builder

    load = builder.create_masked_load

    def noting(pointers, mask, *rest):
        if mask.data.any():
            addresses = pointers.data[mask.data]
            seen.extend((int(addresses.min()), int(addresses.max())))
        return load(pointers, mask, *rest)

    builder.create_masked_load = noting
    try:
        yield seen
    finally:
        del builder.create_masked_load


def read_inside(addresses, **matrices):
    """Raises Mistake if a kernel has read outside a matrix, also where nothing came of it."""
    for name, matrix in matrices.items():
        if any(map(matrix.outside, addresses)):
            raise Mistake(f"the result is right, but the kernel reads outside {name}: give each tl.load its mask")


def launch(kernel, grid, *arguments):
    """Run a student's kernel; the addresses of its loads. Raises Mistake, or NotImplementedError for the stub."""
    if not isinstance(kernel, (triton.JITFunction, triton.runtime.interpreter.InterpretedFunction)):
        raise Mistake("this is no kernel: keep `@triton.jit` above the function")
    if "raise NotImplementedError" in inspect.getsource(kernel.fn):
        raise NotImplementedError("exercise is not done yet")
    try:
        with watched_loads() as addresses:
            kernel[grid](*(a.view if isinstance(a, Matrix) else a for a in arguments), enable_fp_fusion=False)
        return addresses
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Mistake(f"the kernel stopped: {cause}") from None


def wrote_everything(**matrices):
    """Raises Mistake if a kernel wrote outside a matrix or left elements out."""
    for name, matrix in matrices.items():
        if not matrix.untouched():
            raise Mistake(
                f"the kernel writes outside {name}: give tl.store a mask, rows < … and columns < … "
                "(the tail of the last tiles)"
            )
        if torch.isnan(matrix.view).any():
            raise Mistake(
                f"some elements of {name} were never written: does every program store its whole tile? Does the tile's "
                "place come from the program_id and the tile size that the docstring names?"
            )


@exercise
def check_philox_round(fn):
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    (c0, c1, c2, c3), (k0, k1), low = counter, key, 0xFFFFFFFF
    a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57

    def words(*four):
        return torch.tensor(four, dtype=torch.float64)

    got = fn(counter, key)
    right = ((b >> 32) ^ c1 ^ k0, b & low, (a >> 32) ^ c3 ^ k1, a & low)
    if isinstance(got, (tuple, list)) and tuple(got) != right and sorted(map(int, got)) == sorted(right):
        raise Mistake("the four words are right, their order is not: high, low, high, low, that of c2's product first")
    compare(
        got,
        words((b >> 32) ^ c1 ^ k0, b & low, (a >> 32) ^ c3 ^ k1, a & low),
        {
            "the products' halves go crosswise: the first new word is the high half of c2's product, not of c0's":
                words((a >> 32) ^ c1 ^ k0, a & low, (b >> 32) ^ c3 ^ k1, b & low),
            "the keys are swapped: k0 goes into the first new word, k1 into the third":
                words((b >> 32) ^ c1 ^ k1, b & low, (a >> 32) ^ c3 ^ k0, a & low),
            "the key is missing: ^ k0 and ^ k1": words((b >> 32) ^ c1, b & low, (a >> 32) ^ c3, a & low),
            "the products do not fit into 32 bits: keep the low half with & 0xFFFFFFFF":
                words((b >> 32) ^ c1 ^ k0, b, (a >> 32) ^ c3 ^ k1, a),
        },
        "the four words",
        tolerance=0,
    )


def _round_straight(c, k):
    a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
    return (a >> 32) ^ c[1] ^ k[0], a & 0xFFFFFFFF, (b >> 32) ^ c[3] ^ k[1], b & 0xFFFFFFFF


def _round_without_key(c, k):
    a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
    return (b >> 32) ^ c[1], b & 0xFFFFFFFF, (a >> 32) ^ c[3], a & 0xFFFFFFFF


def _in_order(c, k):
    first, second, third, fourth = _round_without_key(c, k)
    return first ^ k[0], second, third ^ k[1], fourth


def _round_too_large(c, k):
    a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
    return (b >> 32) ^ c[1] ^ k[0], b, (a >> 32) ^ c[3] ^ k[1], a


WRONG["philox_round"] = [
    (lambda c, k: _round_without_key(c, k)[:1] + (0, 0, 0), "wrong"),
    (lambda c, k: _in_order(c, k[::-1]), "keys are swapped"), (lambda c, k: _in_order(c, k)[::-1], "their order"),
    (_round_straight, "crosswise"), (_round_without_key, "the key is missing"), (_round_too_large, "low half"),
]


@exercise
def check_box_muller(fn):
    u, v = (torch.rand(50, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    r, phi = (-2 * u.log()).sqrt(), 2 * torch.pi * v
    both = torch.stack(pair(fn(u, v), "the two normals"))
    right = torch.stack([r * phi.cos(), r * phi.sin()])
    compare(
        both,
        right,
        {
            "the radius is the root of −2 ln u: the factor 2 is missing": right / 2**0.5,
            "the radius is √(−2 ln u), this is its square": torch.stack([r**2 * phi.cos(), r**2 * phi.sin()]),
            "the angle is 2π v, the whole circle": torch.stack([r * v.cos(), r * v.sin()]),
            "twice the same number: the second is r sin φ": torch.stack([r * phi.cos(), r * phi.cos()]),
            "the two are interchanged: r cos φ first, then r sin φ": right.flip(0),
        },
        "the two normals",
    )


def _polar(r, phi):
    return r * phi.cos(), r * phi.sin()


WRONG["box_muller"] = [
    (lambda u, v: _polar((-u.log()).sqrt(), 2 * torch.pi * v), "factor 2"),
    (lambda u, v: _polar((-2 * u.log()).sqrt(), v), "whole circle"),
    (lambda u, v: _polar((-2 * u.log()).sqrt(), 2 * torch.pi * v)[:1] * 2, "twice the same"),
    (lambda u, v: _polar((-2 * u.log()).sqrt(), 2 * torch.pi * v)[::-1], "interchanged"),
]


SEED = 12345


def seed():
    return torch.tensor([SEED], device=DEVICE)


def noise(n, k):
    return reference.epsilon(SEED, 0, n, k).double()


def tiled(n, k, rows, columns):
    """The ε of a kernel that makes the first tile's noise in every tile."""
    first = noise(rows, columns)
    return first.repeat(-(-n // rows), -(-k // columns))[:n, :k]


@exercise
def check_theta_kernel(fn):
    n, k = 10, 37
    mu, sigma = Matrix(random(n, k)), Matrix(random(n, k, seed=1).abs())
    theta = Matrix(torch.full((n, k), float("nan")))
    addresses = launch(fn, (2, 3), mu, sigma, seed(), theta, n, k, 8, 16)
    wrote_everything(θ=theta)
    transposed = sigma.memory[GUARD : GUARD + n * k].double().cpu().reshape(k, n).T
    m, s, repeated = mu.value(), sigma.value(), tiled(n, k, 8, 16)
    compare(
        theta.value(),
        m + s * noise(n, k),
        {
            "σ is read transposed: row n and column k of σ stand at n·K + k, as of μ": m + transposed * noise(n, k),
            "every tile got the same ε: give normal_tile this tile's n0 and k0": m + s * repeated,
            "ε is missing": m + s,
        },
        "θ",
        tolerance=1e-5,
    )
    read_inside(addresses, μ=mu, σ=sigma)


@triton.jit
def _theta_unmasked(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    where = (n0 + tl.arange(0, BN)[:, None]) * K + k0 + tl.arange(0, BK)[None, :]
    tl.store(theta + where, tl.load(mu + where) + tl.load(sigma + where) * normal_tile(seed, 0, 0, n0, k0, BN, BK))


@triton.jit
def _theta_transposed(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = n0 + tl.arange(0, BN)[:, None], k0 + tl.arange(0, BK)[None, :]
    inside = (n < N) & (k < K)
    s = tl.load(sigma + k * N + n, mask=inside, other=0.0)
    t = tl.load(mu + n * K + k, mask=inside, other=0.0) + s * normal_tile(seed, 0, 0, n0, k0, BN, BK)
    tl.store(theta + n * K + k, t, mask=inside)


@triton.jit
def _theta_same_noise(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = n0 + tl.arange(0, BN)[:, None], k0 + tl.arange(0, BK)[None, :]
    inside, where = (n < N) & (k < K), n * K + k
    s = tl.load(sigma + where, mask=inside, other=0.0)
    t = tl.load(mu + where, mask=inside, other=0.0) + s * normal_tile(seed, 0, 0, 0, 0, BN, BK)
    tl.store(theta + where, t, mask=inside)


@triton.jit
def _theta_loads_unmasked(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = n0 + tl.arange(0, BN)[:, None], k0 + tl.arange(0, BK)[None, :]
    t = tl.load(mu + n * K + k) + tl.load(sigma + n * K + k) * normal_tile(seed, 0, 0, n0, k0, BN, BK)
    tl.store(theta + n * K + k, t, mask=(n < N) & (k < K))


@triton.jit
def _theta_turned(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(1) * BN, tl.program_id(0) * BK
    n, k = n0 + tl.arange(0, BN)[:, None], k0 + tl.arange(0, BK)[None, :]
    inside, where = (n < N) & (k < K), n * K + k
    s = tl.load(sigma + where, mask=inside, other=0.0)
    t = tl.load(mu + where, mask=inside, other=0.0) + s * normal_tile(seed, 0, 0, n0, k0, BN, BK)
    tl.store(theta + where, t, mask=inside)


WRONG["theta_kernel"] = [
    (_theta_unmasked, "outside θ"), (_theta_transposed, "transposed"), (_theta_same_noise, "same ε"),
    (_theta_loads_unmasked, "reads outside μ"), (_theta_turned, "program_id"),
]


@exercise
def check_forward_kernel(fn):
    m, n, k = 20, 70, 100
    x, mu, sigma = Matrix(random(m, k)), Matrix(random(n, k, seed=1)), Matrix(random(n, k, seed=2).abs())
    y = Matrix(torch.full((m, n), float("nan")))
    addresses = launch(fn, (2, 3), x, mu, sigma, seed(), y, m, n, k, 16, 32, 64)
    wrote_everything(y=y)
    theta, wide = mu.value() + sigma.value() * noise(n, k), 128
    tail = mu.unmasked(n, wide) + sigma.unmasked(n, wide) * noise(n, wide)
    by_row_tile = torch.cat([
        x.value()[m0 : m0 + 16] @ (mu.value() + sigma.value() * noise(m0 + 32, k)[m0:][torch.arange(n) % 32]).T
        for m0 in (0, 16)
    ])
    same_noise = mu.value() + sigma.value() * tile_noise(n, k, 64)
    compare(
        y.value(),
        x.value() @ theta.T,
        {
            "the last k tile lacks its mask: beyond K the next row is read": x.unmasked(m, wide) @ tail.T,
            "every k tile got the same ε: give normal_tile the k0 of the loop": x.value() @ same_noise.T,
            "only the last k tile is left: add to acc": x.value()[:, 64:] @ theta[:, 64:].T,
            "ε depends on the weight (n, k): give normal_tile n0, not the rows m0 of x": by_row_tile,
            "the columns after the last full k tile are missing": x.value()[:, :64] @ theta[:, :64].T,
        },
        "y",
        tolerance=1e-5,
    )
    read_inside(addresses, x=x, μ=mu, σ=sigma)


def tile_noise(n, k, width):
    """The first k tile's ε in every k tile."""
    return noise(n, width).repeat(1, -(-k // width))[:, :k]


@triton.jit
def _forward_tail(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        w = (n0 + tl.arange(0, BN)[:, None]) * K + k0 + tl.arange(0, BK)[None, :]
        theta = tl.load(mu + w) + tl.load(sigma + w) * normal_tile(seed, 0, 0, n0, k0, BN, BK)
        tile = tl.load(x + (m0 + tl.arange(0, BM)[:, None]) * K + k0 + tl.arange(0, BK)[None, :])
        acc += tl.dot(tile, tl.trans(theta), input_precision="ieee")
    store(acc, y, m0, n0, M, N, BM, BN)


@triton.jit
def _theta_tile(mu, sigma, seed, n0, k0, N, K, of_n0, of_k0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of θ at row n0 and column k0, with the ε of another place."""
    eps = normal_tile(seed, 0, 0, of_n0, of_k0, ROWS, COLUMNS)
    return load(mu, n0, k0, N, K, ROWS, COLUMNS) + load(sigma, n0, k0, N, K, ROWS, COLUMNS) * eps


@triton.jit
def _forward_same_noise(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        theta = _theta_tile(mu, sigma, seed, n0, k0, N, K, n0, 0, BN, BK)
        acc += tl.dot(load(x, m0, k0, M, K, BM, BK), tl.trans(theta), input_precision="ieee")
    store(acc, y, m0, n0, M, N, BM, BN)


@triton.jit
def _forward_by_row_tile(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        theta = _theta_tile(mu, sigma, seed, n0, k0, N, K, m0, k0, BN, BK)
        acc += tl.dot(load(x, m0, k0, M, K, BM, BK), tl.trans(theta), input_precision="ieee")
    store(acc, y, m0, n0, M, N, BM, BN)


@triton.jit
def _forward_x_unmasked(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        theta = _theta_tile(mu, sigma, seed, n0, k0, N, K, n0, k0, BN, BK)
        tile = tl.load(x + (m0 + tl.arange(0, BM)[:, None]) * K + k0 + tl.arange(0, BK)[None, :])
        acc += tl.dot(tile, tl.trans(theta), input_precision="ieee")
    store(acc, y, m0, n0, M, N, BM, BN)


@triton.jit
def _forward_tiles_interchanged(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BN):
        theta = _theta_tile(mu, sigma, seed, n0, k0, N, K, n0, k0, BN, BN)
        acc += tl.dot(load(x, m0, k0, M, K, BM, BK), tl.trans(theta), input_precision="ieee")
    store(acc, y, m0, n0, M, N, BM, BN)


WRONG["forward_kernel"] = [
    (_forward_tail, "last k tile"), (_forward_same_noise, "same ε"), (_forward_by_row_tile, "rows m0"),
    (_forward_x_unmasked, "reads outside x"), (_forward_tiles_interchanged, "the kernel stopped"),
]


@exercise
def check_gradient_kernel(fn):
    m, n, k = 40, 18, 150
    dy, x = Matrix(random(m, n)), Matrix(random(m, k, seed=1))
    dmu, dsigma = (Matrix(torch.full((n, k), float("nan"))) for _ in range(2))
    addresses = launch(fn, (2, 3), dy, x, seed(), dmu, dsigma, m, n, k, 32, 16, 64)
    wrote_everything(dμ=dmu, dσ=dsigma)
    right = dy.value().T @ x.value()
    compare(
        dmu.value(),
        right,
        {
            "dμ is dyᵀ x, without ε: ∂θ/∂μ is 1": right * noise(n, k),
            "the rows after the last full m tile are missing": dy.value()[:32].T @ x.value()[:32],
            "the last m tile lacks its mask: beyond M lies other memory": dy.unmasked(64, n).T @ x.unmasked(64, k),
        },
        "dμ",
        tolerance=1e-5,
    )
    compare(dsigma.value() * 0 + 1, right * 0 + 1, {}, "dσ")  # finite
    if equal(dsigma.value(), right, 1e-5):
        raise Mistake("dσ lacks its ε: θ = μ + σ∘ε, so dσ = dμ∘ε")
    if equal(dsigma.value(), right**2, 1e-5):
        raise Mistake("this is dμ², without any ε: dσ = dμ∘ε, so make the tile's noise and multiply by it")
    if not equal(dsigma.value(), right * noise(n, k), 1e-5):
        raise Mistake(
            "dσ is wrong though dμ is right: it needs the ε of forward, so the same seed, stream 0, and this tile's n0 "
            "and k0, in this order"
        )
    read_inside(addresses, dy=dy, x=x)


@triton.jit
def _dmu_tile(dy, x, n0, k0, last, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The tile of dyᵀ x at row n0 and column k0, from the row tiles that begin before `last`."""
    acc = tl.zeros((BN, BK), tl.float32)
    for m0 in range(0, last, BM):
        acc += tl.dot(tl.trans(load(dy, m0, n0, M, N, BM, BN)), load(x, m0, k0, M, K, BM, BK), input_precision="ieee")
    return acc


@triton.jit
def _gradient_without_noise(dy, x, seed, dmu, dsigma, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    dmu_tile = _dmu_tile(dy, x, n0, k0, M, M, N, K, BM, BN, BK)
    store(dmu_tile, dmu, n0, k0, N, K, BN, BK)
    store(dmu_tile, dsigma, n0, k0, N, K, BN, BK)


@triton.jit
def _gradient_other_noise(dy, x, seed, dmu, dsigma, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    dmu_tile = _dmu_tile(dy, x, n0, k0, M, M, N, K, BM, BN, BK)
    store(dmu_tile, dmu, n0, k0, N, K, BN, BK)
    store(dmu_tile * normal_tile(seed, 1, 0, n0, k0, BN, BK), dsigma, n0, k0, N, K, BN, BK)


@triton.jit
def _gradient_short(dy, x, seed, dmu, dsigma, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    dmu_tile = _dmu_tile(dy, x, n0, k0, M - BM + 1, M, N, K, BM, BN, BK)
    store(dmu_tile, dmu, n0, k0, N, K, BN, BK)
    store(dmu_tile * normal_tile(seed, 0, 0, n0, k0, BN, BK), dsigma, n0, k0, N, K, BN, BK)


@triton.jit
def _gradient_squared(dy, x, seed, dmu, dsigma, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    dmu_tile = _dmu_tile(dy, x, n0, k0, M, M, N, K, BM, BN, BK)
    store(dmu_tile, dmu, n0, k0, N, K, BN, BK)
    store(dmu_tile * dmu_tile, dsigma, n0, k0, N, K, BN, BK)


WRONG["gradient_kernel"] = [
    (_gradient_without_noise, "lacks its ε"), (_gradient_other_noise, "the ε of forward"),
    (_gradient_short, "last full m tile"), (_gradient_squared, "without any ε"),
]
