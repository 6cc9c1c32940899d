"""The fused Bayesian linear layer: sample the weights, then multiply, forward and backward, ε never stored.

    θ = μ + σ∘ε,  y = x θᵀ + b         dx = dy θ,  dμ = dyᵀ x,  dσ = dμ∘ε,  and the same for b   (ε as in forward)

x (M, K) activations; μ, σ (N, K) float32 masters; y (M, N). A tile of the forward kernel:

              k ──▶                            for each k tile:
          ┌───┬───┬───┐                           load μ, σ (BN × BK); make ε from (seed, n, k) in registers;
      n   │ θ │ θ │ θ │  BN rows of θ             θ = μ + σ·ε, rounded to the compute dtype
          └───┴───┴───┘                           load x (BM × BK);  acc += x θᵀ  on the tensor cores
      m   ┌───┬───┬───┐  ┌───┐                 add b = μ_b + σ_b·ε_b, store y (BM × BN)
          │ x │ x │ x │─▶│ y │  BM rows
          └───┴───┴───┘  └───┘                 θ exists for one tile at a time, never in memory.

dx walks n instead of k; the weight gradient walks m, and its epilogue multiplies dμ by ε to get dσ: each ε is made once.
There are no atomics: the same inputs give the same bits.

Paths: "fused" (the kernels above), "sample" (one kernel writes θ in the compute dtype, then the library multiplies; again in
backward), "reference" (`reference.py`, any device), "auto" (`choose_path`).

But: contiguous two-dimensional weights; exact random stream only, no PTX approximations.
"""

import os

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from . import reference
from .philox import bias_normals, normal_tile

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Tiles by kernel: (BM, BN, BK, warps). From offline compilation (no spills on sm_80 … sm_90), not from timings.
TILES = {"forward": (64, 64, 32, 8), "dx": (64, 64, 32, 8), "wgrad": (32, 64, 64, 8), "sample": (0, 32, 64, 4)}
TILES_FLOAT32 = TILES | {"forward": (64, 64, 16, 8), "dx": (64, 32, 32, 8), "wgrad": (64, 64, 16, 8)}  # no tensor cores


# --- 1. kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def rounded(v, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """float32 v in the compute dtype. The interpreter truncates to bfloat16 and cannot multiply it: there, float32
    values rounded to nearest even as bfloat16 take its place."""
    if INTERPRET and DTYPE == tl.bfloat16:
        bits = v.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True)
    else:
        return v.to(DTYPE)


@triton.jit
def load_tile(pointer, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A (ROWS, COLUMNS) tile of a contiguous (R, C) matrix, 0 outside it."""
    rows = row0 + tl.arange(0, ROWS)[:, None]
    columns = column0 + tl.arange(0, COLUMNS)[None, :]
    return tl.load(pointer + rows.to(tl.int64) * C + columns, mask=(rows < R) & (columns < C), other=0.0)


@triton.jit
def store_tile(pointer, row0, column0, R, C, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile into a contiguous (R, C) matrix, nothing outside it."""
    rows = row0 + tl.arange(0, ROWS)[:, None]
    columns = column0 + tl.arange(0, COLUMNS)[None, :]
    tl.store(pointer + rows.to(tl.int64) * C + columns, tile, mask=(rows < R) & (columns < C))


@triton.jit
def theta_tile(mu, sigma, seed, stream, n0, k0, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """θ = μ + σ∘ε for one tile, float32."""
    eps = normal_tile(seed, stream, n0, k0, BN, BK)
    return load_tile(mu, n0, k0, N, K, BN, BK) + load_tile(sigma, n0, k0, N, K, BN, BK) * eps


@triton.jit
def sample_kernel(mu, sigma, seed, stream, theta, N, K, DTYPE: tl.constexpr, INTERPRET: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """θ = μ + σ∘ε, written in the compute dtype."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    tile = theta_tile(mu, sigma, seed, stream, n0, k0, N, K, BN, BK)
    store_tile(theta, n0, k0, N, K, rounded(tile, DTYPE, INTERPRET), BN, BK)


@triton.jit
def times_epsilon_kernel(dmu, seed, stream, dsigma, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """dσ = dμ∘ε."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    tile = load_tile(dmu, n0, k0, N, K, BN, BK) * normal_tile(seed, stream, n0, k0, BN, BK)
    store_tile(dsigma, n0, k0, N, K, tile, BN, BK)


@triton.jit
def forward_kernel(x, mu, sigma, bias_mu, bias_sigma, seed, stream, y, M, N, K, HAS_BIAS: tl.constexpr, DTYPE: tl.constexpr,
                   INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """y = x (μ + σ∘ε)ᵀ + b."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        theta = rounded(theta_tile(mu, sigma, seed, stream, n0, k0, N, K, BN, BK), DTYPE, INTERPRET)
        tile = rounded(load_tile(x, m0, k0, M, K, BM, BK), DTYPE, INTERPRET)
        acc += tl.dot(tile, tl.trans(theta), input_precision="ieee")
    if HAS_BIAS:
        n = n0 + tl.arange(0, BN)
        noise = bias_normals(seed, stream, n0, BN)
        bias = tl.load(bias_mu + n, mask=n < N, other=0.0) + tl.load(bias_sigma + n, mask=n < N, other=0.0) * noise
        acc += rounded(bias, DTYPE, INTERPRET).to(tl.float32)[None, :]
    store_tile(y, m0, n0, M, N, rounded(acc, DTYPE, INTERPRET), BM, BN)


@triton.jit
def dx_kernel(dy, mu, sigma, seed, stream, dx, M, N, K, DTYPE: tl.constexpr, INTERPRET: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """dx = dy θ, with the θ of forward."""
    m0, k0 = tl.program_id(0) * BM, tl.program_id(1) * BK
    acc = tl.zeros((BM, BK), tl.float32)
    for n0 in range(0, N, BN):
        theta = rounded(theta_tile(mu, sigma, seed, stream, n0, k0, N, K, BN, BK), DTYPE, INTERPRET)
        tile = rounded(load_tile(dy, m0, n0, M, N, BM, BN), DTYPE, INTERPRET)
        acc += tl.dot(tile, theta, input_precision="ieee")
    store_tile(dx, m0, k0, M, K, rounded(acc, DTYPE, INTERPRET), BM, BK)


@triton.jit
def wgrad_kernel(dy, x, seed, stream, dmu, dsigma, dbias_mu, dbias_sigma, M, N, K, HAS_BIAS: tl.constexpr, DTYPE: tl.constexpr,
                 INTERPRET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """dμ = dyᵀ x and dσ = dμ∘ε; the programs of the first k tile also sum the bias gradients."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    acc = tl.zeros((BN, BK), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for m0 in range(0, M, BM):
        dy_tile = rounded(load_tile(dy, m0, n0, M, N, BM, BN), DTYPE, INTERPRET)
        x_tile = rounded(load_tile(x, m0, k0, M, K, BM, BK), DTYPE, INTERPRET)
        acc += tl.dot(tl.trans(dy_tile), x_tile, input_precision="ieee")
        total += tl.sum(dy_tile.to(tl.float32), axis=0)
    store_tile(dmu, n0, k0, N, K, acc, BN, BK)
    store_tile(dsigma, n0, k0, N, K, acc * normal_tile(seed, stream, n0, k0, BN, BK), BN, BK)
    if HAS_BIAS and k0 == 0:
        n = n0 + tl.arange(0, BN)
        tl.store(dbias_mu + n, total, mask=n < N)
        tl.store(dbias_sigma + n, total * bias_normals(seed, stream, n0, BN), mask=n < N)


# --- 2. launchers -----------------------------------------------------------------------------------------------------


def _launch(kernel, name, rows, columns, arguments, settings):
    """One program for each tile of a (rows, columns) result; `enable_fp_fusion=False` keeps ε equal to the reference."""
    bm, bn, bk, warps = (TILES_FLOAT32 if settings.get("DTYPE") == tl.float32 else TILES)[name]
    tiles = {"BN": bn, "BK": bk} | ({"BM": bm} if bm else {})
    of_result = {"forward": (bm, bn), "dx": (bm, bk), "wgrad": (bn, bk), "sample": (bn, bk)}[name]
    grid = (triton.cdiv(rows, of_result[0]), triton.cdiv(columns, of_result[1]))
    if min(grid) > 0:
        kernel[grid](*arguments, **settings, **tiles, num_warps=warps, enable_fp_fusion=False)


def sample_weights(mu, sigma, seed, stream, dtype):
    """θ = μ + σ∘ε of shape (N, K) in `dtype`, by the sample kernel."""
    theta = torch.empty(mu.shape, dtype=dtype, device=mu.device)
    settings = {"DTYPE": DTYPES[dtype], "INTERPRET": INTERPRET}
    _launch(sample_kernel, "sample", *mu.shape, (mu, sigma, seed, stream, theta, *mu.shape), settings)
    return theta


def choose_path(m, n, k, device):
    """The path of "auto". On a GPU from the cost model, not from measurements: fused while a sampled weight serves few rows."""
    if device.type == "cpu" and not INTERPRET:
        return "reference"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "sample"  # no tensor cores for tl.dot there
    return "fused" if m <= 256 and n >= k else "sample"


def _bias(bias_mu, bias_sigma, seed, stream, dtype):
    """The random bias by the reference: N values are few."""
    return None if bias_mu is None else reference.sample_weights(bias_mu, bias_sigma, seed, stream, "bias").to(dtype)


# --- 3. the operator --------------------------------------------------------------------------------------------------


@torch.library.custom_op("minibnn::bayes_linear", mutates_args=())
def _forward(x: torch.Tensor, mu: torch.Tensor, sigma: torch.Tensor, bias_mu: torch.Tensor | None, bias_sigma: torch.Tensor | None,
             seed: torch.Tensor, stream: int, dtype: torch.dtype, path: str) -> torch.Tensor:  # fmt: skip
    if path == "reference":
        return reference.bayes_linear(x, mu, sigma, bias_mu, bias_sigma, seed=seed, stream=stream, compute_dtype=dtype)
    (m, k), n = x.shape, len(mu)
    if path == "sample":
        return F.linear(x.to(dtype), sample_weights(mu, sigma, seed, stream, dtype), _bias(bias_mu, bias_sigma, seed, stream, dtype))
    y = torch.empty(m, n, dtype=dtype, device=x.device)
    arguments = (x, mu, sigma, mu if bias_mu is None else bias_mu, mu if bias_mu is None else bias_sigma, seed, stream, y, m, n, k)
    settings = {"HAS_BIAS": bias_mu is not None, "DTYPE": DTYPES[dtype], "INTERPRET": INTERPRET}
    _launch(forward_kernel, "forward", m, n, arguments, settings)
    return y


@_forward.register_fake
def _(x, mu, sigma, bias_mu, bias_sigma, seed, stream, dtype, path):
    return x.new_empty((len(x), len(mu)), dtype=dtype)


@torch.library.custom_op("minibnn::bayes_linear_backward", mutates_args=())
def _backward(dy: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, sigma: torch.Tensor, seed: torch.Tensor, stream: int,
              has_bias: bool, dtype: torch.dtype, path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    (m, k), n = x.shape, len(mu)
    if path == "fused" and m > 0:
        dx = torch.empty(m, k, dtype=dtype, device=x.device)
        dmu, dsigma = (torch.empty(n, k, dtype=torch.float32, device=x.device) for _ in range(2))
        dbias_mu, dbias_sigma = (torch.empty(n if has_bias else 0, dtype=torch.float32, device=x.device) for _ in range(2))
        settings = {"DTYPE": DTYPES[dtype], "INTERPRET": INTERPRET}
        _launch(dx_kernel, "dx", m, k, (dy, mu, sigma, seed, stream, dx, m, n, k), settings)
        arguments = (dy, x, seed, stream, dmu, dsigma, dbias_mu, dbias_sigma, m, n, k)
        _launch(wgrad_kernel, "wgrad", n, k, arguments, settings | {"HAS_BIAS": has_bias})
        return dx.to(x.dtype), dmu, dsigma, dbias_mu, dbias_sigma

    dy, x_compute = dy.to(dtype), x.to(dtype)
    dmu = (dy.mT @ x_compute).float()
    dbias_mu = dy.float().sum(0) if has_bias else dmu.new_empty(0)
    dbias_sigma = dbias_mu * reference.epsilon(seed, stream, n, 1, "bias", x.device)[:, 0] if has_bias else dmu.new_empty(0)
    if path == "reference" or m == 0:
        theta, dsigma = reference.sample_weights(mu, sigma, seed, stream).to(dtype), dmu * reference.epsilon(seed, stream, n, k, device=x.device)  # fmt: skip
    else:
        theta, dsigma = sample_weights(mu, sigma, seed, stream, dtype), torch.empty_like(dmu)
        _launch(times_epsilon_kernel, "sample", n, k, (dmu, seed, stream, dsigma, n, k), {})
    return (dy @ theta).to(x.dtype), dmu, dsigma, dbias_mu, dbias_sigma


@_backward.register_fake
def _(dy, x, mu, sigma, seed, stream, has_bias, dtype, path):
    n = len(mu) if has_bias else 0
    weight, bias = (lambda: mu.new_empty(mu.shape, dtype=torch.float32)), (lambda: mu.new_empty(n, dtype=torch.float32))
    return torch.empty_like(x), weight(), weight(), bias(), bias()


def _save(ctx, inputs, output):
    x, mu, sigma, bias_mu, _, seed, ctx.stream, ctx.dtype, ctx.path = inputs
    ctx.has_bias = bias_mu is not None
    ctx.save_for_backward(x, mu, sigma, seed)  # nothing else of the weights' size: ε and θ are made again


def _differentiate(ctx, dy):
    x, mu, sigma, seed = ctx.saved_tensors
    dx, dmu, dsigma, dbias_mu, dbias_sigma = torch.ops.minibnn.bayes_linear_backward(
        dy.contiguous(), x, mu, sigma, seed, ctx.stream, ctx.has_bias, ctx.dtype, ctx.path
    )
    bias = (dbias_mu, dbias_sigma) if ctx.has_bias else (None, None)
    return dx, dmu, dsigma, *bias, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


# --- 4. the public function -------------------------------------------------------------------------------------------


def bayes_linear(x, mu, sigma, bias_mu=None, bias_sigma=None, *, seed, stream=0, compute_dtype=None, path="auto"):
    """y = x (μ + σ∘ε)ᵀ + b with ε = `reference.epsilon(seed, stream, N, K)`; differentiable in all but the seed.

    x (..., K), any leading dimensions, also none or empty; mu, sigma (N, K) float32; bias_mu, bias_sigma (N,) float32 or both
    None, with ε_b = epsilon(seed, stream, N, 1, domain="bias"). seed: int64 tensor of one element on x's device; stream: int
    ≥ 0, one number for each layer. compute_dtype: float32, float16 or bfloat16; None: autocast's, else x's. Returns (..., N)
    in the compute dtype. Raises ValueError, naming both shapes, dtypes or devices. Under DDP give each rank its own seed.
    """
    if mu.ndim != 2 or sigma.shape != mu.shape or x.shape[-1:] != mu.shape[1:]:
        raise ValueError(f"x (..., K), mu and sigma (N, K) do not fit: {tuple(x.shape)}, {tuple(mu.shape)}, {tuple(sigma.shape)}")
    if (bias_mu is None) != (bias_sigma is None):
        raise ValueError("give both bias_mu and bias_sigma, or neither")
    if bias_mu is not None and not bias_mu.shape == bias_sigma.shape == mu.shape[:1]:
        raise ValueError(f"bias_mu and bias_sigma must be ({len(mu)},): {tuple(bias_mu.shape)}, {tuple(bias_sigma.shape)}")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ValueError(f"seed must be one int64, not {seed.numel()} of {seed.dtype}")
    for name, tensor in (("mu", mu), ("sigma", sigma), ("bias_mu", bias_mu), ("bias_sigma", bias_sigma), ("seed", seed)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x is on {x.device} but {name} on {tensor.device}")
        if tensor is not None and name != "seed" and tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {tensor.dtype}")
    if compute_dtype is None:
        autocast = torch.is_autocast_enabled(x.device.type)
        compute_dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if compute_dtype not in DTYPES:
        raise ValueError(f"compute_dtype {compute_dtype} is not one of {list(DTYPES)}")
    if path not in ("auto", "fused", "sample", "reference"):
        raise ValueError(f'path {path!r} is not one of "auto", "fused", "sample", "reference"')
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if path == "auto":
        path = choose_path(len(rows), *mu.shape, x.device)
    y = _forward(rows, mu.contiguous(), sigma.contiguous(), bias_mu, bias_sigma, seed, stream, compute_dtype, path)
    return y.reshape(*x.shape[:-1], len(mu))
