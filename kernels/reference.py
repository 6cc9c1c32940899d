"""The random stream and the operator in plain PyTorch: what the Triton kernels must equal, to the last bit for ε and θ.

ε[n, k] is a function of (seed, stream, domain, n, k) alone. Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As
Easy as 1, 2, 3") turns the counter (k // 4, n, stream, domain) under the 64-bit key `seed` into four 32-bit words, and
Box-Muller turns these into the four normals of k = 4j, 4j+1, 4j+2, 4j+3:

    w0 ─ u = (w0>>9 + ½)/2²³ ─ r = √(−2 ln u) ──┬── r cos φ, r sin φ  →  ε[n, 4j], ε[n, 4j+1]
    w1 ─ quadrant and φ ────────────────────────┘        w2, w3       →  ε[n, 4j+2], ε[n, 4j+3]

Logarithm, sine and cosine are Cephes' float32 polynomials, written as single multiplications and additions in a fixed
order: every machine that rounds correctly then gives the same bits. |ε| ≤ √(−2 ln 2⁻²⁴) = 5.77.

But: slow (seconds for 1280 × 1280 on a CPU). It is the reference, and the CPU path of `--kernel reference`.
"""

import torch
import torch.nn.functional as F

MASK = 0xFFFFFFFF
DOMAINS = {"weight": 0, "bias": 1}
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def philox(counter, key):
    """Philox4x32-10: four counter words (int64 tensors or ints in 0..2³²−1), two key words -> four words alike."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2⁶⁴, so that shift and mask give the exact high and low halves
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        high0, low0 = (p0 >> 32) & MASK, p0 & MASK
        high1, low1 = (p1 >> 32) & MASK, p1 & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _polynomial(coefficients, x):
    """Horner's scheme, one rounding for each operation."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _log(u):
    """ln u for normal float32 u > 0: u = 2^e·m with m in [√½, √2), then a polynomial in m − 1."""
    bits = u.view(torch.int32)
    e = (bits >> 23) - 127
    m = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    large = m > 1.41421356
    m, e = torch.where(large, m * 0.5, m), (e + large.int()).float()
    f = m - 1.0
    z = f * f
    y = _polynomial(LOG, f) * f * z
    y = y + e * -2.12194440e-4
    y = y + z * -0.5
    return f + y + e * 0.693359375


def box_muller(w_radius, w_angle):
    """Two words -> two normals, float32."""
    u = ((w_radius >> 9).float() + 0.5) * 2.0**-23
    # torch's float32 sqrt is not correctly rounded on every CPU; through float64 it is
    r = torch.sqrt((_log(u) * -2.0).double()).float()
    quadrant = w_angle >> 30
    x = ((((w_angle >> 7) & 0x7FFFFF).float() + 0.5) * 2.0**-23 - 0.5) * 1.57079632679
    z = x * x
    sin = _polynomial(SIN, z) * z * x + x
    cos = _polynomial(COS, z) * z * z + z * -0.5 + 1.0
    odd = (quadrant & 1) == 1
    a, b = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    turned = quadrant >= 2
    return r * torch.where(turned, -a, a), r * torch.where(turned, -b, b)


def epsilon(seed, stream, n, k, domain="weight", device="cpu"):
    """ε of shape (n, k), float32. seed: int or int64 tensor of one element; stream: int ≥ 0; domain: "weight" or "bias"."""
    seed = int(seed)
    groups = -(-k // 4)
    j = torch.arange(groups, device=device).expand(n, groups)
    rows = torch.arange(n, device=device)[:, None].expand(n, groups)
    other = torch.full_like(j, stream), torch.full_like(j, DOMAINS[domain])
    words = philox((j, rows, *other), (seed & MASK, (seed >> 32) & MASK))
    normals = [*box_muller(words[0], words[1]), *box_muller(words[2], words[3])]
    return torch.stack(normals, dim=-1).reshape(n, 4 * groups)[:, :k].contiguous()  # (n, k/4, 4) -> (n, k)


def sample_weights(mu, sigma, seed, stream, domain="weight"):
    """θ = μ + σ∘ε, float32, shape of μ: (n, k), or (n,) for a bias."""
    rows = mu.reshape(len(mu), -1)
    eps = epsilon(seed, stream, *rows.shape, domain, mu.device).reshape(mu.shape)
    return mu.float() + sigma.float() * eps


def bayes_linear(x, mu, sigma, bias_mu=None, bias_sigma=None, *, seed, stream=0, compute_dtype=None):
    """y = x θᵀ + b with θ rounded to the compute dtype; autograd gives the gradients. Arguments as `bayes_linear.py`."""
    dtype = compute_dtype or x.dtype
    theta = sample_weights(mu, sigma, seed, stream).to(dtype)
    bias = None if bias_mu is None else sample_weights(bias_mu, bias_sigma, seed, stream, "bias").to(dtype)
    return F.linear(x.to(dtype), theta, bias)
