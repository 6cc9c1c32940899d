"""Bayesian layers, whose weights are random variables: θ = μ + σ∘ε.

Follows: the paper's §4 and App. C-D ("Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and
Mitigating with Bayesian Neural Networks"); Blundell et al. 2015, "Weight Uncertainty in Neural Networks".

    here       paper
    mu         μ_θ    mean, starts at the pretrained weight; the parameters `weight` and `bias` of a layer
    sigma      σ_θ    standard deviation > 0, starts at `--sigma`; the parameters `weight_sigma` and `bias_sigma`
    epsilon    ε_θ    N(0, I), new for each layer and each forward, shared by all rows of the batch

In `eval()` a layer computes with μ. We store σ itself and not ρ of softplus(ρ): 800 Adam steps at 5e-6 move a stored
σ = 0.01 by up to 40 %, but a softplus by only 0.4 %. Where ε comes from is told in `weight_noise.py`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .weight_noise import WeightNoise, sample_tensor
from .weight_noise import epsilon as epsilon
from .weight_noise import sample_weights as sample_weights

SIGMA_MIN = 1e-7


# --- layers -----------------------------------------------------------------------------------------------------------


class BayesLayer(nn.Module):
    """A random layer: the parameters of an ordinary `layer` are its means and keep their names.

    Their standard deviations all start at `sigma`. noise and stream are as in `sample_tensor`.
    """

    SETTINGS = ()  # what else it takes over from the ordinary layer
    RANDOM, FULL_PRECISION = ("weight", "bias"), False  # for `all_at_once.draw_weights`

    def __init__(self, layer, sigma, noise, stream):
        super().__init__()
        self.noise, self.stream = noise, stream
        self.weight = nn.Parameter(layer.weight.detach())
        self.weight_sigma = nn.Parameter(torch.full_like(layer.weight, sigma))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())
        self.bias_sigma = None if layer.bias is None else nn.Parameter(torch.full_like(layer.bias, sigma))
        for name in self.SETTINGS:
            setattr(self, name, getattr(layer, name))

    def weights(self):
        """(weight, bias) of this forward: a sample in training, the means otherwise."""
        if not self.training:
            return self.weight, self.bias
        weight = sample_tensor(self.weight, self.weight_sigma, self.noise, self.stream)
        if self.bias is None:
            return weight, None
        return weight, sample_tensor(self.bias, self.bias_sigma, self.noise, self.stream, "bias")


class BayesLinear(BayesLayer):
    """y = x θᵀ + b with random θ (out, in) and b (out,)."""

    def forward(self, x):
        if self.training and self.noise.kernel == "triton" and self.noise.drawn_for(self.stream) is None:
            from minibnn_kernels.bayes_linear import bayes_linear

            parameters = (self.weight, self.weight_sigma, self.bias, self.bias_sigma)
            return bayes_linear(x, *parameters, seed=self.noise.seed, stream=self.stream)
        return F.linear(x, *self.weights())


class BayesConv2d(BayesLayer):
    """A convolution with random kernel and bias."""

    SETTINGS = ("stride", "padding")

    def forward(self, x):
        return F.conv2d(x, *self.weights(), self.stride, self.padding)


class BayesGroupNorm(BayesLayer):
    """Group normalisation with random scale and shift."""

    SETTINGS, FULL_PRECISION = ("num_groups", "eps"), True  # under autocast normalisation stays in float32

    def forward(self, x):
        return F.group_norm(x, self.num_groups, *self.weights(), self.eps)


class BayesLayerNorm(BayesLayer):
    """Layer normalisation with random scale and shift."""

    SETTINGS, FULL_PRECISION = ("normalized_shape", "eps"), True

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, *self.weights(), self.eps)


BAYESIAN = {
    nn.Linear: BayesLinear, nn.Conv2d: BayesConv2d, nn.GroupNorm: BayesGroupNorm, nn.LayerNorm: BayesLayerNorm,
}


# --- which layers -----------------------------------------------------------------------------------------------------


KINDS = {  # "paper" is the authors' choice: self-attention and feed-forward of the transformer blocks
    "paper": lambda name, layer: ".transformer_blocks." in name and (".attn1." in name or ".ff." in name),
    "norm": lambda name, layer: isinstance(layer, (nn.GroupNorm, nn.LayerNorm)),
    "cross-attention": lambda name, layer: ".attn2." in name and isinstance(layer, nn.Linear),
    "time": lambda name, layer: "time_emb" in name,
    "projections": lambda name, layer: name.endswith((".proj_in", ".proj_out")) and isinstance(layer, nn.Linear),
    "conv": lambda name, layer: isinstance(layer, nn.Conv2d),
    "all": lambda name, layer: True,
}
EVERYWHERE = {"time-embedding": lambda name, layer: name.startswith("time_embedding.")}  # it lies in no block
REGIONS = {"up": "up_blocks.", "mid": "mid_block.", "down": "down_blocks."}


def select(unet, where):
    """The names of the layers that `where`, words joined by commas, chooses.

    A word of KINDS adds layers. A word of REGIONS adds the "paper" layers and restricts everything to its blocks:
    "up,time" means self-attention, feed-forward and time projections of the up blocks. A word of EVERYWHERE adds layers
    that no region excludes. "projections" are linear in SD v2, where the authors' scripts make them random too, and
    convolutions, which it leaves alone, in SD v1. Raises ValueError.
    """
    words = where.split(",")
    for word in words:
        if word not in KINDS | EVERYWHERE | REGIONS:
            raise ValueError(f"where = {word!r} is not one of {', '.join([*KINDS, *EVERYWHERE, *REGIONS])}")
    regions = tuple(REGIONS[word] for word in words if word in REGIONS)
    kinds = [KINDS[word] for word in words if word in KINDS] + [KINDS["paper"]] * bool(regions)
    free = [EVERYWHERE[word] for word in words if word in EVERYWHERE]

    def is_chosen(name, layer):
        inside = name.startswith(regions or "") and any(kind(name, layer) for kind in kinds)
        return inside or any(kind(name, layer) for kind in free)

    return [name for name, layer in unet.named_modules() if type(layer) in BAYESIAN and is_chosen(name, layer)]


def bayesianize(unet: nn.Module, where: str = "paper", sigma: float = 0.01, kernel: str = "torch") -> WeightNoise:
    """Replace the chosen layers by Bayesian ones in place, with μ at the present weights; returns their WeightNoise.

    kernel: "torch", "reference" or "triton". Raises ValueError where `select` does.

    A training loop of your own, on a CPU, where sd is a StableDiffusion, x0 (B, 4, h, w) are latents, context
    (B, 77, d) is that of their prompts, steps is perhaps 1000, and λ = 1e-9:

        from minibnn import UNet, bayesianize, clamp_sigma, kl, posterior_mean, sigmas

        noise = bayesianize(sd.unet.train(), "paper", sigma=0.01)  # in eval mode it computes with μ
        prior = {name: mu.detach().clone() for name, (mu, _) in sigmas(sd.unet).items()}
        optimiser = torch.optim.AdamW(sd.unet.parameters(), lr=1e-4, weight_decay=0.0)  # decay would pull σ to 0
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            t = torch.randint(1000, (len(x0),), generator=generator)
            eps = torch.randn(x0.shape, generator=generator)
            abar = sd.alphas_cumprod[t][:, None, None, None]
            x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
            noise.renew(generator, sd.device)  # before each forward: other weights
            loss = (sd.predict_eps(x_t, t, context) - eps).square().mean() + 1e-9 * kl(sd.unet, prior, 0.01)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            clamp_sigma(sd.unet)  # σ stays above 0
        mean = UNet(sd.unet.config)
        mean.load_state_dict(posterior_mean(sd.unet))
        sd.unet = mean.eval()  # without random weights, to draw with and to save
    """
    noise = WeightNoise(kernel)
    for stream, name in enumerate(select(unet, where)):
        layer = unet.get_submodule(name)
        unet.set_submodule(name, BAYESIAN[type(layer)](layer, sigma, noise, stream).train(layer.training))
    return noise


def sigmas(network: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """{name of μ: (μ, σ)} of all random parameters; both have the shape of the weight."""
    parameters = dict(network.named_parameters())
    means = [name.removesuffix("_sigma") for name in parameters if name.endswith("_sigma")]
    return {name: (parameters[name], parameters[name + "_sigma"]) for name in means}


def random_share(network):
    """The share of the network's parameters that are random, 0..1. A mean and its σ count as one parameter."""
    random = sum(mu.numel() for mu, _ in sigmas(network).values())
    total = sum(p.numel() for n, p in network.named_parameters() if not n.endswith("_sigma"))
    return random / total


@torch.no_grad()
def mean_of(sigmas, empty):
    """The mean of all elements of a list of positive tensors, as a scalar on their device; `empty` of no tensor."""
    if not sigmas:
        return empty
    return torch.stack(torch._foreach_norm(sigmas, 1)).sum() / sum(sigma.numel() for sigma in sigmas)


@torch.no_grad()
def clamp_sigma(network: nn.Module) -> None:
    """σ ← max(σ, 1e-7) after each optimiser step, as in the authors' code, so that σ stays a standard deviation."""
    random = [parameter for name, parameter in network.named_parameters() if name.endswith("_sigma")]
    if random:
        torch._foreach_clamp_min_(random, SIGMA_MIN)


def posterior_mean(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights at θ = μ under the plain network's names, to be saved for inference.   (paper, §4.2 "Inference")"""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("_sigma")}


# --- the regularisation loss ------------------------------------------------------------------------------------------


def gaussian_kl(mu_q, sigma_q, mu_p, sigma_p):
    """KL(N(μ_q, σ_q²) ‖ N(μ_p, σ_p²)) in nats, for each element: log(σ_p/σ_q) + (σ_q² + (μ_q − μ_p)²)/(2σ_p²) − 1/2."""
    sigma_q, sigma_p = (s.to(mu_q) if torch.is_tensor(s) else mu_q.new_full((), s) for s in (sigma_q, sigma_p))
    return torch.log(sigma_p / sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2) - 0.5


def kl(network: nn.Module, prior_means: dict[str, torch.Tensor], prior_sigma: float,
       direction: str = "q-p") -> torch.Tensor:
    """The loss L_r: the sum of the KL divergence over all random parameters, in nats, as a scalar tensor.

    direction "q-p": KL(Q_W(θ) ‖ P(θ)), as in the paper's Eq. 3; "p-q": KL(P ‖ Q), as in its Algorithm 1 and in the
    authors' code. The prior is P(θ) = N(θ_0, σ²): prior_means is {name of μ: θ_0}, prior_sigma is its σ.
    """
    total = next(network.parameters()).new_zeros(())
    for name, (mu, sigma) in sigmas(network).items():
        if direction == "q-p":
            terms = gaussian_kl(mu, sigma, prior_means[name], prior_sigma)
        else:
            terms = gaussian_kl(prior_means[name], prior_sigma, mu, sigma)
        total = total + terms.sum()
    return total
