"""Bayesian layers: weights as random variables, θ = μ + σ∘ε.

Follows: the paper's §4 and App. C-D ("Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and
Mitigating with Bayesian Neural Networks"); Blundell et al. 2015, "Weight Uncertainty in Neural Networks".

    here       paper
    mu         μ_θ    mean, starts at the pretrained weight; the parameters `weight` and `bias` of a layer
    sigma      σ_θ    standard deviation > 0, starts at `--sigma`; the parameters `weight_sigma` and `bias_sigma`
    eps        ε_θ    N(0, I), one draw for each layer and forward, shared by all rows of the batch

σ is stored itself, not as softplus(ρ): 800 Adam steps at 5e-6 move a stored σ = 0.01 by up to 40 %, a softplus by 0.4 %.
ε is never kept for backward but drawn again from its seed. In `eval()` a layer computes with μ.

The noise comes from PyTorch's generator (`kernel="torch"`: fast everywhere, but CPU and GPU draw different weights), or
from the Philox stream of `minibnn_kernels`, the same on every device: in plain PyTorch ("reference") or in Triton
kernels that make ε in registers ("triton").
"""

import torch
import torch.nn.functional as F
from torch import nn

SIGMA_MIN = 1e-7


class Draw:
    """The seed of the current forward, shared by all layers of one network; `kernel`: see the top of this file.

    `renew` makes a new tensor rather than writing into the old one: what an earlier forward saved stays as it was, so
    that its backward sees its own ε.
    """

    def __init__(self, kernel="torch"):
        self.kernel, self.seed = kernel, torch.zeros(1, dtype=torch.int64)

    def renew(self, generator, device="cpu"):
        """Take the next seed from `generator` (torch.Generator on the CPU), once for all layers."""
        self.seed = torch.randint(2**62, (1,), generator=generator)
        if self.kernel != "torch":
            self.seed = self.seed.to(device)


def epsilon(shape, seed, stream, device):
    """ε ~ N(0, I), float32, a function of the seed, the layer's stream number and the shape alone (on one device)."""
    generator = torch.Generator(device).manual_seed((int(seed) + 0x9E3779B97F4A7C15 * (stream + 1)) % 2**63)
    return torch.randn(shape, generator=generator, device=device)


def _theta(mu, sigma, seed, stream, kernel, domain):
    """μ + σ∘ε, or σ∘ε without μ, from the source of ε that `kernel` names."""
    if kernel == "torch":
        noise = epsilon(sigma.shape, seed, stream, sigma.device).to(sigma.dtype).mul_(sigma)
        return noise if mu is None else noise.add_(mu)
    if kernel == "reference":
        from minibnn_kernels.reference import sample_weights as philox

        return philox(mu, sigma, seed, stream, domain).to(sigma.dtype)
    from minibnn_kernels.bayes_linear import sample_weights as fused

    return fused(None if mu is None else mu.contiguous(), sigma.contiguous(), seed, stream, sigma.dtype, domain)


class _SampleWeights(torch.autograd.Function):
    """θ = μ + σ∘ε, with ∂L/∂μ = ∂L/∂θ and ∂L/∂σ = ∂L/∂θ ∘ ε.   (paper, App. C, eq. 14)"""

    @staticmethod
    def forward(ctx, mu, sigma, *source):
        ctx.source = source
        return _theta(mu, sigma, *source)

    @staticmethod
    def backward(ctx, grad):
        return grad, _theta(None, grad, *ctx.source), None, None, None, None


def sample_weights(mu, sigma, seed, stream, kernel="torch", domain="weight"):
    """One draw θ = μ + σ∘ε of the posterior; differentiable in μ and σ; shapes as μ.   (paper, §4.2 and App. C)

    kernel, domain: what makes ε, and "bias" for the second tensor of a layer; see the top of this file.
    """
    return _SampleWeights.apply(mu, sigma, seed, stream, kernel, domain)


def draw_tensor(mu, sigma, draw, stream, domain="weight"):
    """θ of this forward, from the stream that `draw` names. A layer's bias has noise of its own."""
    if draw.kernel == "torch":
        stream = 2 * stream + (domain == "bias")
    return sample_weights(mu, sigma, draw.seed, stream, draw.kernel, domain)


# --- layers -----------------------------------------------------------------------------------------------------------


def _make_bayesian(self, layer, sigma, draw, stream):
    """Take over the parameters of `layer` as means, under their own names, and add the standard deviations."""
    self.draw, self.stream = draw, stream
    self.weight = nn.Parameter(layer.weight.detach())
    self.weight_sigma = nn.Parameter(torch.full_like(layer.weight, sigma))
    self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())
    self.bias_sigma = None if layer.bias is None else nn.Parameter(torch.full_like(layer.bias, sigma))


def _weights(self):
    """(θ, bias) of this forward: a draw in training, the means otherwise."""
    if not self.training:
        return self.weight, self.bias
    weight = draw_tensor(self.weight, self.weight_sigma, self.draw, self.stream)
    if self.bias is None:
        return weight, None
    return weight, draw_tensor(self.bias, self.bias_sigma, self.draw, self.stream, "bias")


class BayesLinear(nn.Module):
    """y = x θᵀ + b with random θ (out, in) and b (out,)."""

    def __init__(self, layer, sigma, draw, stream):
        super().__init__()
        _make_bayesian(self, layer, sigma, draw, stream)

    def forward(self, x):
        if self.training and self.draw.kernel == "triton":
            from minibnn_kernels.bayes_linear import bayes_linear

            parameters = (self.weight, self.weight_sigma, self.bias, self.bias_sigma)
            return bayes_linear(x, *parameters, seed=self.draw.seed, stream=self.stream)
        return F.linear(x, *_weights(self))


class BayesConv2d(nn.Module):
    """Convolution with random kernel and bias."""

    def __init__(self, layer, sigma, draw, stream):
        super().__init__()
        _make_bayesian(self, layer, sigma, draw, stream)
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x):
        return F.conv2d(x, *_weights(self), self.stride, self.padding)


class BayesGroupNorm(nn.Module):
    """Group normalisation with random scale and shift."""

    def __init__(self, layer, sigma, draw, stream):
        super().__init__()
        _make_bayesian(self, layer, sigma, draw, stream)
        self.num_groups, self.eps = layer.num_groups, layer.eps

    def forward(self, x):
        return F.group_norm(x, self.num_groups, *_weights(self), self.eps)


class BayesLayerNorm(nn.Module):
    """Layer normalisation with random scale and shift."""

    def __init__(self, layer, sigma, draw, stream):
        super().__init__()
        _make_bayesian(self, layer, sigma, draw, stream)
        self.normalized_shape, self.eps = layer.normalized_shape, layer.eps

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, *_weights(self), self.eps)


BAYESIAN = {
    nn.Linear: BayesLinear, nn.Conv2d: BayesConv2d, nn.GroupNorm: BayesGroupNorm, nn.LayerNorm: BayesLayerNorm,
}  # fmt: skip


# --- which layers -----------------------------------------------------------------------------------------------------


def _in_transformer(name):
    """Self-attention and feed-forward of the transformer blocks: the authors' choice."""
    return ".transformer_blocks." in name and (".attn1." in name or ".ff." in name)


KINDS = {
    "paper": lambda name, layer: _in_transformer(name),
    "norm": lambda name, layer: isinstance(layer, (nn.GroupNorm, nn.LayerNorm)),
    "cross-attention": lambda name, layer: ".attn2." in name and isinstance(layer, nn.Linear),
    "time": lambda name, layer: "time_emb" in name,
    "conv": lambda name, layer: isinstance(layer, nn.Conv2d),
    "all": lambda name, layer: True,
}
REGIONS = {"up": "up_blocks.", "mid": "mid_block.", "down": "down_blocks."}


def select(unet, where):
    """Names of the layers that `where` chooses: words joined by commas.

    Words of KINDS add layers. Words of REGIONS mean the "paper" layers there, and restrict everything to those blocks:
    "up,time" is self-attention, feed-forward and time projections of the up blocks. Raises ValueError for other words.
    """
    words = where.split(",")
    for word in words:
        if word not in KINDS and word not in REGIONS:
            raise ValueError(f"where = {word!r} is not one of {', '.join([*KINDS, *REGIONS])}")
    regions = tuple(REGIONS[word] for word in words if word in REGIONS)
    kinds = [KINDS[word] for word in words if word in KINDS] + [KINDS["paper"]] * bool(regions)
    return [
        name
        for name, layer in unet.named_modules()
        if type(layer) in BAYESIAN and name.startswith(regions or "") and any(kind(name, layer) for kind in kinds)
    ]


def bayesianize(unet, where="paper", sigma=0.01, kernel="torch"):
    """Replace the chosen layers by Bayesian ones in place, μ at the present weights; returns the shared `Draw`.

    Call `draw.renew(generator)` before each training forward. kernel: "torch", "reference" or "triton".
    """
    draw = Draw(kernel)
    for stream, name in enumerate(select(unet, where)):
        parent, _, child = name.rpartition(".")
        parent = unet.get_submodule(parent)
        layer = getattr(parent, child)
        setattr(parent, child, BAYESIAN[type(layer)](layer, sigma, draw, stream).train(layer.training))
    return draw


def sigmas(network):
    """{name of μ: (μ, σ)} of all random parameters."""
    parameters = dict(network.named_parameters())
    return {n[: -len("_sigma")]: (parameters[n[: -len("_sigma")]], p) for n, p in parameters.items() if n.endswith("_sigma")}


def random_share(network):
    """Share of the network's parameters that are random, 0..1; each counts once, as its mean."""
    random = sum(mu.numel() for mu, _ in sigmas(network).values())
    total = sum(p.numel() for n, p in network.named_parameters() if not n.endswith("_sigma"))
    return random / total


@torch.no_grad()
def clamp_sigma(network):
    """σ ← max(σ, 1e-7) after each optimiser step, as in the authors' code: σ stays a standard deviation."""
    for _, sigma in sigmas(network).values():
        sigma.clamp_(min=SIGMA_MIN)


def posterior_mean(network):
    """State dict at θ = μ with the plain network's names: what is saved for inference.   (paper, §4.2 "Inference")"""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("_sigma")}


# --- the regularisation loss ------------------------------------------------------------------------------------------


def gaussian_kl(mu_q, sigma_q, mu_p, sigma_p):
    """KL(N(μ_q, σ_q²) ‖ N(μ_p, σ_p²)) in nats, element by element.

    log(σ_p/σ_q) + (σ_q² + (μ_q − μ_p)²)/(2σ_p²) − 1/2
    """
    sigma_q, sigma_p = (torch.as_tensor(s, dtype=mu_q.dtype, device=mu_q.device) for s in (sigma_q, sigma_p))
    return torch.log(sigma_p / sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2) - 0.5


def kl(network, prior_means, prior_sigma, direction="q-p"):
    """L_r, the sum over all random parameters, in nats: a scalar tensor.

    direction "q-p": KL(Q_W(θ) ‖ P(θ)) as in the paper's Eq. 3; "p-q": KL(P ‖ Q) as in its Algorithm 1 and the authors'
    code. prior_means: {name of μ: θ_0}, the pretrained values; prior_sigma: σ of P(θ) = N(θ_0, σ²).
    """
    total = 0.0
    for name, (mu, sigma) in sigmas(network).items():
        if direction == "q-p":
            terms = gaussian_kl(mu, sigma, prior_means[name], prior_sigma)
        else:
            terms = gaussian_kl(prior_means[name], prior_sigma, mu, sigma)
        total = total + terms.sum()
    return total
