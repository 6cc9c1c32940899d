"""OFT: a linear layer whose input is rotated, block by block, before the pretrained weight sees it.

Follows: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", and its constrained variant
COFT; the paper's App. D; blocks over the layer's inputs, as the authors' code and peft have them.

    y = W Rᵀ x + b,    R = (I + ½(Q−Qᵀ)) (I − ½(Q−Qᵀ))⁻¹,    Q (r, b, b) with r·b = in, starts at 0, so that R = I

The paper writes W = R W₀, because its weights are (in, out) and ours (out, in). R is orthogonal for every Q (Cayley);
so Q is what is random, θ_Q = μ + σ∘ε. R is computed in float32 even under autocast, and it rotates the weight
instead of the input, because rounding R to half precision would spoil it.

But: linear layers only; no block sharing, no dropout of blocks; trained with the exact inverse, no Neumann series.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .adapter_layer import Adapter
from .weight_noise import sample_tensor


def skew(q):
    """S = ½(Q − Qᵀ), of the same shape (…, b, b)."""
    return (q - q.mT) / 2


def cayley(q):
    """R = (I + S)(I − S)⁻¹ with S = ½(Q − Qᵀ), by a linear solve: (…, b, b) -> (…, b, b).   (paper, App. D)

    It is computed as I + 2 (I − S)⁻¹ S, which is rounded less: |RᵀR − I| < 2e-7 instead of 9e-7 in float32.
    """
    s, eye = skew(q), torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return eye + 2 * torch.linalg.solve_ex(eye - s, s).result  # never singular; `solve` would make the host wait


def neumann(s, terms):
    """R ≈ I + 2 (S + S² + …) + Sᵖ with p = max(3, terms − 1), which peft computes by default in place of an inverse.

    For peft's own files alone: its S has the other sign than in its exact map, and R is not orthogonal.
    """
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)
    if terms < 3:
        return eye + 2 * s * (terms > 1)
    total, power = eye + 2 * s, s
    for _ in range(max(3, terms - 1) - 2):
        power = power @ s
        total = total + 2 * power
    return total + power @ s


def rotate(weight, r):
    """W Rᵀ with block-diagonal R: weight (out, in), r (blocks, b, b) -> (out, in), float32 or float64."""
    blocks = weight.to(r.dtype).unflatten(1, r.shape[:2])  # (out, in) -> (out, blocks, b)
    return torch.einsum("onj,nij->oni", blocks, r).flatten(1)


def project(q, eps):
    """COFT: scale every block of q (r, b, b) with ‖½(Q − Qᵀ)‖ > ε/√r (Frobenius norm) back onto that ball."""
    norm = skew(q).flatten(1).norm(dim=1)[:, None, None]
    return q * (eps / len(q) ** 0.5 / norm.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1)


class OftLinear(Adapter):
    """blocks: r; sigma: initial standard deviation of Q, or None for plain weights.

    Raises ValueError when the layer's inputs cannot be divided into that many blocks of at least 2 inputs.
    """

    RANDOM, FULL_PRECISION = ("q",), True  # for `all_at_once.draw_weights`

    def __init__(self, layer, blocks, sigma, noise, stream):
        if layer.in_features % blocks or layer.in_features < 2 * blocks:
            raise ValueError(f"{blocks} blocks do not divide a layer of {layer.in_features} inputs")
        super().__init__(layer, noise, stream)
        size = layer.in_features // blocks
        self.q = nn.Parameter(layer.weight.new_zeros(blocks, size, size))
        self.q_sigma = None if sigma is None else nn.Parameter(torch.full_like(self.q, sigma))

    def merged_weight(self, q=None):
        """W Rᵀ for the given Q, or else for its mean, in float32 or float64."""
        q = self.q if q is None else q
        with torch.autocast(q.device.type, enabled=False):
            return rotate(self.weight, cayley(q.to(torch.promote_types(q.dtype, torch.float32))))

    def adapted(self, x):
        random = self.q_sigma is not None and self.training
        q = sample_tensor(self.q, self.q_sigma, self.noise, self.stream) if random else self.q
        return F.linear(x, self.merged_weight(q).to(self.weight.dtype), self.bias)
