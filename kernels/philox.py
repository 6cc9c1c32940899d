"""The random stream of `reference.py`, function by function, in Triton: it makes a tile of ε in registers.

Each kernel calls `normal_tile` where it needs ε. Since ε depends on the element and not on the tile, forward, dx and
the weight gradient may cut the matrix into different tiles and still see the same weights.
"""

import triton
import triton.language as tl

from . import reference

# single numbers, because not every Triton can take numbers out of a constant tuple
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(coefficient) for coefficient in reference.LOG)
S0, S1, S2 = (tl.constexpr(coefficient) for coefficient in reference.SIN)
C0, C1, C2 = (tl.constexpr(coefficient) for coefficient in reference.COS)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32 tiles -> four uint32 tiles."""
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        high0, high1 = (p0 >> 32).to(tl.uint32), (p1 >> 32).to(tl.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1.to(tl.uint32), high0 ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log(u):
    """ln u for u in (0, 1)."""
    bits = u.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    large = m > 1.41421356
    e = ((bits >> 23) - 127 + large.to(tl.int32)).to(tl.float32)
    f = tl.where(large, m * 0.5, m) - 1.0
    z = f * f
    p = (((((((f * L0 + L1) * f + L2) * f + L3) * f + L4) * f + L5) * f + L6) * f + L7) * f + L8
    y = p * f * z + e * -2.12194440e-4 + z * -0.5
    return f + y + e * 0.693359375


@triton.jit
def box_muller(w_radius, w_angle):
    """Two uint32 words -> two float32 normals."""
    u = ((w_radius >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    r = tl.sqrt_rn(log(u) * -2.0)
    x = ((((w_angle >> 7) & 0x7FFFFF).to(tl.float32) + 0.5) * 1.1920928955078125e-07 - 0.5) * 1.57079632679
    z = x * x
    sin = ((z * S0 + S1) * z + S2) * z * x + x
    cos = ((z * C0 + C1) * z + C2) * z * z + z * -0.5 + 1.0
    odd, turned = (w_angle >> 30) % 2 == 1, w_angle >> 31 == 1  # the quadrant
    a, b = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    return r * tl.where(turned, -a, a), r * tl.where(turned, -b, b)


@triton.jit
def normal_tile(seed, stream, domain, row0, column0, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ε[row0 : row0 + ROWS, column0 : column0 + COLUMNS]. column0, COLUMNS: multiples of 4; seed points to an int64."""
    key = tl.load(seed)
    rows = row0 + tl.arange(0, ROWS)[:, None]
    groups = column0 // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    zero = (rows * 0 + groups * 0).to(tl.uint32)  # of the tile's shape, (ROWS, COLUMNS / 4)
    k0, k1 = zero + key.to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    c0, c1 = zero + groups.to(tl.uint32), zero + rows.to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, zero + stream, zero + domain, k0, k1)
    e0, e1 = box_muller(w0, w1)
    e2, e3 = box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(e0, e2), tl.join(e1, e3)), (ROWS, COLUMNS))  # (R, G, 2, 2), read as 0 1 2 3
