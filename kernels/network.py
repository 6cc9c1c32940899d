"""All random weights of a network in one launch, and the gradients of μ and σ in another.

    θ = μ + σ∘ε  of every tensor  →  one buffer in the compute dtype; each layer's weight is a part of it
    dμ = dθ,  dσ = dθ∘ε           →  two float32 buffers, after the layers have multiplied as usual

A launch of its own for each of a network's 144 tensors would cost more of the CPU's time than of the GPU's. Here each
program finds out which tile of which tensor is its own:

    owners[program] = row of the table      table: where μ and σ lie, where θ goes, its shape, its stream, …

ε is that of `bayes_linear.py` to the last bit, because it depends on (seed, stream, element) alone. The price is
memory: the buffer of θ, as long as a backward may need it, and one of dθ at the end of the backward pass; in 16 bits
0.37 GiB each for the 198 M random weights of SD v1.5, where the fused layer keeps nothing.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from . import reference
from .bayes_linear import addresses, rounded, theta_tile
from .philox import normal_tile

# Rows and columns of a tile. WIDE: rows of a multiple of 16 numbers, read 16 bytes at a time; NARROW: all others
WIDE, NARROW, WARPS = (16, 64), (256, 4), 4
FIELDS = tl.constexpr(9)  # of a row: addresses of μ and σ, place of θ, N, K, stream, domain, first program, is it wide?


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def corner(row, program, BN: tl.constexpr, BK: tl.constexpr):
    """Where in its tensor the tile of this program begins: row, column."""
    tile, columns = program - tl.load(row + 7).to(tl.int32), tl.cdiv(tl.load(row + 4).to(tl.int32), BK)
    return tile // columns * BN, tile % columns * BK


@triton.jit
def shape(row, ALIGNED: tl.constexpr):
    """(N, K) of a tensor; the compiler is told whether its rows are of a multiple of 16 numbers."""
    K = tl.load(row + 4).to(tl.int32)
    if ALIGNED:
        K = tl.multiple_of(K, 16)
    return tl.load(row + 3).to(tl.int32), K


@triton.jit
def draw_tile(row, program, seed, theta, BN: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr):
    """One tile of θ = μ + σ∘ε."""
    n0, k0 = corner(row, program, BN, BK)
    N, K = shape(row, ALIGNED)
    mu, sigma = (tl.load(row).to(tl.pointer_type(tl.float32)), tl.load(row + 1).to(tl.pointer_type(tl.float32)))
    start = tl.load(row + 2)
    if ALIGNED:
        mu, sigma, start = tl.multiple_of(mu, 16), tl.multiple_of(sigma, 16), tl.multiple_of(start, 16)
    stream, domain = tl.load(row + 5).to(tl.int32), tl.load(row + 6).to(tl.int32)
    tile = theta_tile(mu, sigma, seed, stream, domain, n0, k0, N, K, BN, BK)
    where, exists = addresses(theta + start, n0, k0, N, K, BN, BK)
    tl.store(where, rounded(tile, theta.dtype.element_ty), mask=exists)


@triton.jit
def gradient_tile(row, program, seed, dtheta, dmu, dsigma, BN: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr):
    """One tile of dμ = dθ and dσ = dθ∘ε."""
    n0, k0 = corner(row, program, BN, BK)
    N, K = shape(row, ALIGNED)
    start = tl.load(row + 2)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    stream, domain = tl.load(row + 5).to(tl.int32), tl.load(row + 6).to(tl.int32)
    where, exists = addresses(dtheta + start, n0, k0, N, K, BN, BK)
    tile = tl.load(where, mask=exists, other=0.0).to(tl.float32)
    where, exists = addresses(dmu + start, n0, k0, N, K, BN, BK)
    tl.store(where, tile, mask=exists)
    where, exists = addresses(dsigma + start, n0, k0, N, K, BN, BK)
    tl.store(where, tile * normal_tile(seed, stream, domain, n0, k0, BN, BK), mask=exists)


@triton.jit
def draw_kernel(table, owners, seed, theta,
                WIDE_N: tl.constexpr, WIDE_K: tl.constexpr, NARROW_N: tl.constexpr, NARROW_K: tl.constexpr):
    """θ of all tensors, in the compute dtype, each from its place in `theta` on."""
    program = tl.program_id(0)
    row = table + tl.load(owners + program) * FIELDS
    if tl.load(row + 8) == 1:
        draw_tile(row, program, seed, theta, WIDE_N, WIDE_K, True)
    else:
        draw_tile(row, program, seed, theta, NARROW_N, NARROW_K, False)


@triton.jit
def gradient_kernel(table, owners, seed, dtheta, dmu, dsigma,
                    WIDE_N: tl.constexpr, WIDE_K: tl.constexpr, NARROW_N: tl.constexpr, NARROW_K: tl.constexpr):
    """dμ and dσ of all tensors, in float32, from dθ in the compute dtype."""
    program = tl.program_id(0)
    row = table + tl.load(owners + program) * FIELDS
    if tl.load(row + 8) == 1:
        gradient_tile(row, program, seed, dtheta, dmu, dsigma, WIDE_N, WIDE_K, True)
    else:
        gradient_tile(row, program, seed, dtheta, dmu, dsigma, NARROW_N, NARROW_K, False)


# --- launchers --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plan:
    """Which program does what, for some tensors as they lie in memory now."""

    table: torch.Tensor  # (tensors, FIELDS) int64
    owners: torch.Tensor  # (programs,) int32: rows of the table
    shapes: list  # of the tensors
    starts: list  # where each begins in the buffers
    size: int  # of a buffer, in elements

    def parts(self, buffer):
        """Views of a buffer, one for each tensor, in its shape."""
        return [buffer[i : i + s.numel()].view(s) for i, s in zip(self.starts, self.shapes, strict=True)]


def plan(mus, sigmas, streams, domains):
    """The Plan for pairs of contiguous float32 tensors μ, σ (N, ...) on one device.

    streams: an int ≥ 0 for each pair; domains: "weight" or "bias". A plan holds for as long as the tensors stay where
    they are. Raises ValueError for tensors that cannot be drawn so.
    """
    rows, starts, programs, size = [], [], 0, 0
    for mu, sigma, stream, domain in zip(mus, sigmas, streams, domains, strict=True):
        for tensor in (mu, sigma):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.shape != mu.shape:
                found = f"{tensor.dtype}, {tuple(tensor.shape)}, {tensor.stride()}"
                raise ValueError(f"drawing at once needs contiguous float32 of {tuple(mu.shape)}, not {found}")
        n, k = len(mu), mu.shape[1:].numel()
        places = mu.data_ptr(), sigma.data_ptr()
        wide = k % 16 == 0 and not any(place % 16 for place in places)
        rows.append((*places, size, n, k, stream, reference.DOMAINS[domain], programs, wide))
        starts.append(size)
        bn, bk = WIDE if wide else NARROW
        programs += triton.cdiv(n, bn) * triton.cdiv(k, bk)
        size += triton.cdiv(n * k, 16) * 16
    table, device = torch.tensor(rows, dtype=torch.int64), mus[0].device
    counts = torch.diff(table[:, 7], append=torch.tensor([programs]))
    owners = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32), counts)
    return Plan(table.to(device), owners.to(device), [mu.shape for mu in mus], starts, size)


def _launch(kernel, made, seed, *buffers):
    """One program for each tile of each tensor."""
    with torch.cuda.device_of(made.table):
        tiles = dict(zip(("WIDE_N", "WIDE_K", "NARROW_N", "NARROW_K"), (*WIDE, *NARROW), strict=True))
        arguments = (made.table, made.owners, seed, *buffers)
        kernel[(len(made.owners),)](*arguments, **tiles, num_warps=WARPS, enable_fp_fusion=False)


def draw(made, seed, dtype):
    """[θ = μ + σ∘ε] of a Plan's tensors, in `dtype` (one of `bayes_linear.DTYPES`): views of one new buffer.

    seed: int64 tensor of one element on the tensors' device.
    """
    theta = torch.empty(made.size, dtype=dtype, device=made.table.device)
    _launch(draw_kernel, made, seed, theta)
    return made.parts(theta)


def gradients(made, seed, dthetas):
    """([dμ], [dσ]) in float32 for the gradients of what `draw` returned for this seed: views of two new buffers."""
    pieces, padding = [], dthetas[0].new_zeros(15)
    for start, end, gradient in zip(made.starts, [*made.starts[1:], made.size], dthetas, strict=True):
        pieces.append(gradient.reshape(-1))
        if gap := end - start - gradient.numel():
            pieces.append(padding[:gap])
    dtheta = torch.cat(pieces)
    dmu, dsigma = (torch.empty(made.size, device=dtheta.device) for _ in range(2))
    _launch(gradient_kernel, made, seed, dtheta, dmu, dsigma)
    return made.parts(dmu), made.parts(dsigma)
