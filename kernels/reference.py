"""The random stream in plain PyTorch. The ε and θ of the Triton kernels must equal it to the last bit.

ε[n, k] is a function of (seed, stream, domain, n, k) alone: no tile size, device or order can change it. Philox4x32-10
(Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") scrambles the counter (k // 4, n, stream, domain)
under the 64-bit key `seed` into four words that look random. It does so in ten rounds of two multiplications, whose
high and low halves are mixed with each other and with a key that grows by a constant. Box-Muller turns two uniform
numbers into two normal ones: one gives a radius, whose square is exponential, and the other an angle.

    w0 ─ u = (w0>>9 + ½)/2²³ ─ r = √(−2 ln u) ──┬── r cos φ, r sin φ  →  ε[n, 4j], ε[n, 4j+1]
    w1 ─ quadrant and φ ────────────────────────┘        w2, w3       →  ε[n, 4j+2], ε[n, 4j+3]

Logarithm, sine and cosine are Cephes' float32 polynomials, written as single multiplications and additions in a fixed
order: every machine that rounds correctly then gives the same bits. |ε| is at most √(−2 ln 2⁻²⁴) = 5.77.
But: it is slow on a CPU.
"""

import torch

MASK = 0xFFFFFFFF
DOMAINS = {"weight": 0, "bias": 1}
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def philox(counter, key):
    """Philox4x32-10: four counter words (int64 tensors or ints in 0..2³²−1) and two key words -> four such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2⁶⁴ in int64; shift and mask still give the exact halves
        high0, high1 = (p0 >> 32) & MASK, (p1 >> 32) & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & MASK, high0 ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def polynomial(coefficients, x):
    """Horner's scheme, one rounding for each operation."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def log(u):
    """ln u for normal float32 u > 0: u = 2^e·m with m in [√½, √2), then a polynomial in f = m − 1."""
    bits = u.view(torch.int32)
    m = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    large = m > 1.41421356
    e = ((bits >> 23) - 127 + large).float()
    f = torch.where(large, m * 0.5, m) - 1.0
    z = f * f
    y = polynomial(LOG, f) * f * z + e * -2.12194440e-4 + z * -0.5
    return f + y + e * 0.693359375


def box_muller(w_radius, w_angle):
    """Two words -> two normals, float32."""
    u = ((w_radius >> 9).float() + 0.5) * 2.0**-23
    r = torch.sqrt((log(u) * -2.0).double()).float()  # torch's float32 sqrt is not correctly rounded on every CPU
    x = ((((w_angle >> 7) & 0x7FFFFF).float() + 0.5) * 2.0**-23 - 0.5) * 1.57079632679
    z = x * x
    sin = polynomial(SIN, z) * z * x + x
    cos = polynomial(COS, z) * z * z + z * -0.5 + 1.0
    odd, turned = (w_angle >> 30) % 2 == 1, w_angle >> 31 == 1  # the quadrant
    a, b = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    return r * torch.where(turned, -a, a), r * torch.where(turned, -b, b)


def epsilon(seed, stream, n, k, domain="weight", device="cpu"):
    """ε (n, k), float32. seed: int or int64 tensor of one element; stream: int ≥ 0; domain: "weight" or "bias"."""
    seed, groups = int(seed), -(-k // 4)
    j, rows = torch.arange(groups, device=device), torch.arange(n, device=device)[:, None]
    w0, w1, w2, w3 = philox((j, rows, stream, DOMAINS[domain]), (seed & MASK, (seed >> 32) & MASK))
    normals = torch.stack([*box_muller(w0, w1), *box_muller(w2, w3)], dim=-1)  # (n, k/4, 4)
    return normals.reshape(n, 4 * groups)[:, :k].contiguous()


def sample_weights(mu, sigma, seed, stream, domain="weight"):
    """θ = μ + σ∘ε, or σ∘ε if μ is None, in float32 and the shape of σ: (N, ...), read as N rows, or (N,) for a bias."""
    n, k = len(sigma), sigma.shape[1:].numel()
    noise = sigma.float() * epsilon(seed, stream, n, k, domain, sigma.device).reshape(sigma.shape)
    return noise if mu is None else mu.float() + noise
