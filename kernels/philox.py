"""The random stream of `reference.py` as Triton functions: a tile of ε from (seed, stream, rows, columns), nothing stored.

Every kernel calls `normal_tile` where it needs ε; since ε depends on the element and not on the tile, forward, dx and the
weight gradient may cut the matrix differently and still see the same weights.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32 tiles -> four uint32 tiles."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32), (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log(u):
    """ln u, Cephes' logf, for u in (0, 1)."""
    bits = u.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = m > 1.41421356
    e = ((bits >> 23) - 127 + large.to(tl.int32)).to(tl.float32)
    m = tl.where(large, m * 0.5, m)
    f = m - 1.0
    z = f * f
    y = f * 7.0376836292e-2 + -1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f + -1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f + -1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f + -2.4999993993e-1
    y = y * f + 3.3333331174e-1
    y = y * f * z
    y = y + e * -2.12194440e-4
    y = y + z * -0.5
    return f + y + e * 0.693359375


@triton.jit
def box_muller(w_radius, w_angle):
    """Two uint32 words -> two float32 normals."""
    u = ((w_radius >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    r = tl.sqrt_rn(log(u) * -2.0)
    quadrant = w_angle >> 30
    x = ((((w_angle >> 7) & 0x7FFFFF).to(tl.float32) + 0.5) * 1.1920928955078125e-07 - 0.5) * 1.57079632679
    z = x * x
    sin = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * x + x
    cos = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z + z * -0.5 + 1.0
    odd = (quadrant & 1) == 1
    a = tl.where(odd, -sin, cos)
    b = tl.where(odd, cos, sin)
    turned = quadrant >= 2
    return r * tl.where(turned, -a, a), r * tl.where(turned, -b, b)


@triton.jit
def normals(seed_ptr, stream, domain: tl.constexpr, rows, groups):
    """rows (R, 1), groups (1, G) int32 -> the four normals of each (row, group), each (R, G)."""
    seed = tl.load(seed_ptr)
    zero = (rows * 0 + groups * 0).to(tl.uint32)
    k0 = zero + (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = zero + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = philox(zero + groups.to(tl.uint32), zero + rows.to(tl.uint32), zero + stream.to(tl.uint32), zero + domain, k0, k1)
    e0, e1 = box_muller(w0, w1)
    e2, e3 = box_muller(w2, w3)
    return e0, e1, e2, e3


@triton.jit
def normal_tile(seed_ptr, stream, row0, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ε[row0 : row0 + ROWS, column0 : column0 + COLUMNS] of the weight domain; column0 and COLUMNS are multiples of 4."""
    rows = row0 + tl.arange(0, ROWS)[:, None]
    groups = column0 // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    e0, e1, e2, e3 = normals(seed_ptr, stream, 0, rows, groups)
    pairs = tl.join(tl.join(e0, e2), tl.join(e1, e3))  # (R, G, 2, 2), read as 0 1 2 3
    return tl.reshape(pairs, (ROWS, COLUMNS))


@triton.jit
def bias_normals(seed_ptr, stream, row0, ROWS: tl.constexpr):
    """ε[row0 : row0 + ROWS, 0] of the bias domain: one value for each output. (ROWS,)"""
    rows = row0 + tl.arange(0, ROWS)[:, None]
    e0, _, _, _ = normals(seed_ptr, stream, 1, rows, tl.zeros((1, 1), tl.int32))
    return tl.reshape(e0, (ROWS,))
