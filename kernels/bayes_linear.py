"""The fused Bayesian linear layer: it samples the weights and multiplies, forward and backward, without storing ε.

    θ = μ + σ∘ε,  y = x θᵀ + b         dx = dy θ,  dμ = dyᵀ x,  dσ = dμ∘ε,  and the same for b   (ε as in forward)

x (M, K) activations; μ, σ (N, K) float32 masters; y (M, N). A tile of the forward kernel:

              k ──▶                            for each k tile:
          ┌───┬───┬───┐                           load μ, σ (BN × BK); make ε from (seed, n, k) in registers;
      n   │ θ │ θ │ θ │  BN rows of θ             θ = μ + σ·ε, rounded to the compute dtype, that of x;
          └───┴───┴───┘                           load x (BM × BK);  acc += x θᵀ  on the tensor cores
      m   ┌───┬───┬───┐  ┌───┐                 add b = μ_b + σ_b·ε_b, store y (BM × BN)
          │ x │ x │ x │─▶│ y │  BM rows
          └───┴───┴───┘  └───┘                 θ exists for one tile at a time, never in memory.

The dx kernel walks along n instead of k. The weight gradient walks along m and ends by multiplying dμ by ε to get dσ,
so that it makes each ε once. There are no atomics: the same inputs give the same bits. A bias is a one-column matrix.
Paths: "fused" uses these kernels; "sample" lets one kernel write θ and PyTorch multiply, in forward and in backward;
"mixed" is "sample" with the fused weight gradient; "reference" is `reference.py`; "auto" lets `choose_path` decide.

But: first derivatives only; the exact random stream only, no PTX approximations. Read reference.py, philox.py first.
"""

import os

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .philox import normal_tile

DTYPES, PATHS = (torch.float32, torch.float16, torch.bfloat16), ("auto", "fused", "mixed", "sample", "reference")
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
WEIGHT, BIAS = tl.constexpr(reference.DOMAINS["weight"]), tl.constexpr(reference.DOMAINS["bias"])


# --- 1. kernels -------------------------------------------------------------------------------------------------------
@triton.jit
def rounded(v, DTYPE: tl.constexpr):
    """v in DTYPE. Triton's interpreter cannot multiply bfloat16: there it is float32, rounded to nearest even."""
    if INTERPRET and DTYPE == tl.bfloat16:
        bits = v.to(tl.float32).to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return v.to(DTYPE)


@triton.jit
def length(size):
    """The end of a loop, for `range`: with numpy 2.4 the interpreters of Triton 3.2 to 3.6 need a Python number."""
    if INTERPRET:
        return size.handle.data.item()
    return size


@triton.jit
def addresses(matrix, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the elements of a (ROWS, COLUMNS) tile of a contiguous (R, C) matrix lie, and which of them exist."""
    rows, columns = row0 + tl.arange(0, ROWS)[:, None], column0 + tl.arange(0, COLUMNS)[None, :]
    return matrix + rows.to(tl.int64) * C + columns, (rows < R) & (columns < C)


@triton.jit
def load(matrix, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Read a tile, which is 0 outside the matrix."""
    where, exists = addresses(matrix, row0, column0, R, C, ROWS, COLUMNS)
    return rounded(tl.load(where, mask=exists, other=0.0), matrix.dtype.element_ty)


@triton.jit
def store(tile, matrix, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile, rounded to the matrix's dtype, and nothing outside the matrix."""
    where, exists = addresses(matrix, row0, column0, R, C, ROWS, COLUMNS)
    tl.store(where, rounded(tile, matrix.dtype.element_ty), mask=exists)


@triton.jit
def theta_tile(mu, sigma, seed, stream, domain, n0, k0, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """θ = μ + σ∘ε for one tile, in float32. If μ is None, only σ∘ε."""
    theta = load(sigma, n0, k0, N, K, BN, BK) * normal_tile(seed, stream, domain, n0, k0, BN, BK)
    if mu is not None:
        theta += load(mu, n0, k0, N, K, BN, BK)
    return theta


@triton.jit(do_not_specialize=["stream"])
def sample_kernel(mu, sigma, seed, stream, theta, N, K, DOMAIN: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """θ = μ + σ∘ε, written in the compute dtype. With dμ for σ and without μ, it computes dσ = dμ∘ε."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    store(theta_tile(mu, sigma, seed, stream, DOMAIN, n0, k0, N, K, BN, BK), theta, n0, k0, N, K, BN, BK)


@triton.jit(do_not_specialize=["stream", "M"])
def forward_kernel(x, mu, sigma, bias_mu, bias_sigma, seed, stream, y, M, N, K,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = x (μ + σ∘ε)ᵀ + b."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, length(K), BK):
        theta = rounded(theta_tile(mu, sigma, seed, stream, WEIGHT, n0, k0, N, K, BN, BK), x.dtype.element_ty)
        acc += tl.dot(load(x, m0, k0, M, K, BM, BK), tl.trans(theta), input_precision="ieee")
    if bias_mu is not None:  # the bias is one column, and the tile is 0 beside it
        bias = tl.sum(theta_tile(bias_mu, bias_sigma, seed, stream, BIAS, n0, 0, N, 1, BN, 4), axis=1)
        acc += rounded(bias, x.dtype.element_ty).to(tl.float32)[None, :]
    store(acc, y, m0, n0, M, N, BM, BN)


@triton.jit(do_not_specialize=["stream", "M"])
def dx_kernel(dy, mu, sigma, seed, stream, dx, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """dx = dy θ, with the same θ as in forward."""
    m0, k0 = tl.program_id(0) * BM, tl.program_id(1) * BK
    acc = tl.zeros((BM, BK), tl.float32)
    for n0 in range(0, length(N), BN):
        theta = rounded(theta_tile(mu, sigma, seed, stream, WEIGHT, n0, k0, N, K, BN, BK), dy.dtype.element_ty)
        acc += tl.dot(load(dy, m0, n0, M, N, BM, BN), theta, input_precision="ieee")
    store(acc, dx, m0, k0, M, K, BM, BK)


@triton.jit(do_not_specialize=["stream", "M"])
def wgrad_kernel(dy, x, seed, stream, dmu, dsigma, dbias_mu, dbias_sigma, M, N, K,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BB: tl.constexpr = 16):
    """dμ = dyᵀ x and dσ = dμ∘ε; the programs of the first k tile then walk along m once more, for the bias."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    acc = tl.zeros((BN, BK), tl.float32)
    for m0 in range(0, length(M), BM):
        dy_tile = load(dy, m0, n0, M, N, BM, BN)
        acc += tl.dot(tl.trans(dy_tile), load(x, m0, k0, M, K, BM, BK), input_precision="ieee")
    store(acc, dmu, n0, k0, N, K, BN, BK)
    store(acc * normal_tile(seed, stream, WEIGHT, n0, k0, BN, BK), dsigma, n0, k0, N, K, BN, BK)
    if dbias_mu is not None:  # noqa: SIM102 (after "and" Triton 3.2 would compile the rest for None, too)
        if k0 == 0:
            parts = tl.zeros((BB, BN), tl.float32)
            for m0 in range(0, length(M), BB):
                parts += load(dy, m0, n0, M, N, BB, BN).to(tl.float32)
            total = tl.sum(parts, axis=0)[:, None]
            store(total, dbias_mu, n0, 0, N, 1, BN, 1)
            store(total * normal_tile(seed, stream, BIAS, n0, 0, BN, 4), dbias_sigma, n0, 0, N, 1, BN, 4)


# --- 2. launchers -----------------------------------------------------------------------------------------------------
# (BM, BN, BK, warps), chosen by compiling for sm_80 … sm_90 without register spills, not by timing; 0: no such axis
TILES = {forward_kernel: (64, 64, 32, 8), dx_kernel: (64, 64, 32, 8), wgrad_kernel: (64, 128, 64, 8),
         sample_kernel: (0, 16, 64, 4)}
TILES_FLOAT32 = TILES | {forward_kernel: (64, 64, 16, 8), dx_kernel: (64, 16, 64, 8), wgrad_kernel: (64, 64, 16, 8)}


def _launch(kernel, dtype, result, *arguments):
    """One program for each tile of the result, {axis: length}; no fused multiply-adds, which would change ε."""
    table = TILES_FLOAT32 if dtype == torch.float32 else TILES
    tile = {axis: size for axis, size in zip(("BM", "BN", "BK", "num_warps"), table[kernel], strict=True) if size}
    grid = tuple(triton.cdiv(length, tile[axis]) for axis, length in result.items())
    if 0 in grid:
        return
    with torch.cuda.device_of(next(a for a in arguments if torch.is_tensor(a))):  # Triton launches on the current GPU
        kernel[grid](*arguments, **tile, enable_fp_fusion=False)


def sample_weights(mu, sigma, seed, stream, dtype, domain="weight", path="sample"):
    """θ = μ + σ∘ε, or σ∘ε if μ is None, in `dtype` and the shape of σ: (N, ...), or (N,) in the domain "bias"."""
    if path == "reference" or (sigma.device.type == "cpu" and not INTERPRET):
        return reference.sample_weights(mu, sigma, seed, stream, domain).to(dtype)
    theta, n, k = torch.empty(sigma.shape, dtype=dtype, device=sigma.device), len(sigma), sigma.shape[1:].numel()
    _launch(sample_kernel, dtype, {"BN": n, "BK": k}, mu, sigma, seed, stream, theta, n, k, reference.DOMAINS[domain])
    return theta


def choose_path(m, n, k, capability, dtype=torch.bfloat16):
    """The path of "auto", by a cost model (tutorial 10) and not by timing. capability: the GPU's; None: no GPU.

    dtype: of the computation. An exact float32 product has no tensor cores, and the library's is the faster one then.
    """
    if 0 in (m, n, k) or (capability is None and not INTERPRET):
        return "reference"
    tensor_cores = dtype != torch.float32 and (capability is None or capability >= (8, 0))  # those that tl.dot can use
    return "mixed" if tensor_cores and n * k >= 120 * m else "sample"  # a large weight gives wgrad enough programs


# --- 3. the operator: x (M, K) in the compute dtype -------------------------------------------------------------------
@torch.library.custom_op("minibnn::bayes_linear", mutates_args=())
def _forward(x: Tensor, mu: Tensor, sigma: Tensor, bias_mu: Tensor | None, bias_sigma: Tensor | None, seed: Tensor,
             stream: int, path: str) -> Tensor:
    (m, k), n = x.shape, len(mu)
    if path == "fused":
        y = torch.empty(m, n, dtype=x.dtype, device=x.device)
        arguments = (x, mu, sigma, bias_mu, bias_sigma, seed, stream, y, m, n, k)
        _launch(forward_kernel, x.dtype, {"BM": m, "BN": n}, *arguments)
        return y
    bias = None if bias_mu is None else sample_weights(bias_mu, bias_sigma, seed, stream, x.dtype, "bias", path)
    return F.linear(x, sample_weights(mu, sigma, seed, stream, x.dtype, path=path), bias)


@_forward.register_fake
def _(x, mu, sigma, bias_mu, bias_sigma, seed, stream, path):
    return x.new_empty(len(x), len(mu))


@torch.library.custom_op(
    "minibnn::bayes_linear_backward", mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor mu, Tensor sigma, Tensor seed, SymInt stream, bool has_bias, str path)"
    " -> Tensor[]",  # in words, because PyTorch 2.6 cannot read `-> list[Tensor]`
)
def _backward(dy, x, mu, sigma, seed, stream, has_bias, path):
    (m, k), n = x.shape, len(mu)
    if path == "fused":
        dx = torch.empty(m, k, dtype=x.dtype, device=x.device)
        _launch(dx_kernel, x.dtype, {"BM": m, "BK": k}, dy, mu, sigma, seed, stream, dx, m, n, k)
    else:
        dx = dy @ sample_weights(mu, sigma, seed, stream, x.dtype, path=path)
    if path in ("fused", "mixed"):
        shapes, no_bias = ([(n, k), (n, k), (n,), (n,)], ()) if has_bias else ([(n, k), (n, k)], (None, None))
        gradients = [torch.empty(shape, device=x.device) for shape in shapes]
        arguments = (dy, x, seed, stream, *gradients, *no_bias, m, n, k)
        _launch(wgrad_kernel, x.dtype, {"BN": n, "BK": k}, *arguments)
        return [dx, *gradients]
    dmu = (dy.mT @ x).float()
    gradients = [dx, dmu, sample_weights(None, dmu, seed, stream, torch.float32, "weight", path)]
    if has_bias:
        dbias = dy.sum(0, dtype=torch.float32)
        gradients += [dbias, sample_weights(None, dbias, seed, stream, torch.float32, "bias", path)]
    return gradients


@_backward.register_fake
def _(dy, x, mu, sigma, seed, stream, has_bias, path):
    like = (x, mu, mu, mu[:, 0], mu[:, 0]) if has_bias else (x, mu, mu)
    return [torch.empty_like(tensor) for tensor in like]


def _save(ctx, inputs, output):
    x, mu, sigma, bias_mu, _, seed, ctx.stream, ctx.path = inputs
    ctx.has_bias = bias_mu is not None
    ctx.save_for_backward(x, mu, sigma, seed)  # ε and θ, as large as μ, are not saved but made again
    ctx.pending = seed  # lives until backward, also where checkpointing saves nothing: who holds it can be asked


def _differentiate(ctx, dy):
    ctx.pending = None
    with torch.autocast(dy.device.type, enabled=False):  # which may be on around backward() too
        gradients = _backward(dy.contiguous(), *ctx.saved_tensors, ctx.stream, ctx.has_bias, ctx.path)
    return *gradients, *[None] * (8 - len(gradients))  # seed, stream and path, and an absent bias, have none


_forward.register_autograd(_differentiate, setup_context=_save)


def bayes_linear(x, mu, sigma, bias_mu=None, bias_sigma=None, *, seed, stream=0, compute_dtype=None, path="auto"):
    """y = x (μ + σ∘ε)ᵀ + b with ε = `reference.epsilon(seed, stream, N, K)`; differentiable in all but the seed.

    x (..., K) may have any leading dimensions; mu and sigma (N, K), bias_mu and bias_sigma (N,) or None are float32.
    The bias has its own noise, `reference.epsilon(seed, stream, N, 1, "bias")`. seed: int64 tensor of one element on
    x's device, another one on each rank of DDP. stream: int ≥ 0, another one for each layer. compute_dtype: one of
    DTYPES; None takes autocast's, or else x's. Returns (..., N) in that dtype. Raises ValueError, naming both shapes.
    """
    if (bias_mu is None) != (bias_sigma is None):
        raise ValueError("give both bias_mu and bias_sigma, or neither")
    tensors = {"mu": mu, "sigma": sigma, "bias_mu": bias_mu, "bias_sigma": bias_sigma, "seed": seed.reshape(-1)}
    shapes = {"mu": (len(mu), *x.shape[-1:]), "sigma": (len(mu), *x.shape[-1:]), "seed": (1,)}
    for name, tensor in tensors.items():
        shape, dtype = shapes.get(name, (len(mu),)), torch.int64 if name == "seed" else torch.float32
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, x.device):
            given = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ValueError(f"with x {tuple(x.shape)}: {name} must be {shape} {dtype} on {x.device}, not {given}")
    kind = x.device.type
    dtype = compute_dtype or (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)
    if dtype not in DTYPES or path not in PATHS:
        raise ValueError(f"compute_dtype {dtype} must be one of {DTYPES}, and path {path!r} one of {PATHS}")
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).to(dtype).contiguous()
    if path == "auto":
        capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else None
        path = choose_path(len(rows), *mu.shape, capability, dtype)
    if 0 in (len(rows), *mu.shape):
        path = "reference"
    parameters = (p if p is None else p.contiguous() for p in (mu, sigma, bias_mu, bias_sigma))
    with torch.autocast(kind, enabled=False):  # F.linear must keep the dtype
        return _forward(rows, *parameters, seed, stream, path).reshape(*x.shape[:-1], len(mu))
