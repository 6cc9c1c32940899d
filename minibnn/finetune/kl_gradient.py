"""λ·KL added to the gradients by its closed form: no graph of 2 numbers for every weight, and once a step.

    KL(N(μ, σ²) ‖ N(μ_p, σ_p²))     ∂/∂μ = (μ − μ_p)/σ_p²     ∂/∂σ = σ/σ_p² − 1/σ
    KL(N(μ_p, σ_p²) ‖ N(μ, σ²))     ∂/∂μ = (μ − μ_p)/σ²       ∂/∂σ = 1/σ − (σ_p² + (μ − μ_p)²)/σ³

The derivatives of `bayes.gaussian_kl`, which says what the divergence is. KL does not depend on the forward: with
`--accumulate`, and in several processes, it belongs to the step.
"""

import torch

from . import bayes


@torch.no_grad()
def add_kl_gradient(network, prior_means, prior_sigma, direction, strength):
    """Add strength·∂KL to every `.grad` of μ and σ; returns the KL itself as a scalar tensor.

    The other arguments are as in `bayes.kl`.
    """
    for name, (mu, sigma) in bayes.sigmas(network).items():
        away = mu - prior_means[name]
        if direction == "q-p":
            by_mu, by_sigma = away / prior_sigma**2, sigma / prior_sigma**2 - 1 / sigma
        else:
            by_mu, by_sigma = away / sigma**2, 1 / sigma - (prior_sigma**2 + away**2) / sigma**3
        mu.grad.add_(by_mu, alpha=strength)
        sigma.grad.add_(by_sigma, alpha=strength)
    return bayes.kl(network, prior_means, prior_sigma, direction)
