"""Inverse noise without a network: what a second flow must beat to be worth its training.

Inverse noise correction (`flow.py`) trains a network to draw z = T⁻¹(data). Two closed forms ask for no training:

    scaled      z ≈ s·e               one number, the root mean square of z
    gaussian    z ≈ m + L·e, LLᵀ = Σ  mean and covariance of z; one matrix product for each sample

With D values a sample and n samples, Σ is Ledoit & Wolf's (2004) estimate: the sample covariance S, shrunk towards a
multiple of the identity by the share that makes the expected squared error least. With n ≫ D this is S itself.

But: whatever of z is not Gaussian (several modes, curved edges) is lost; that is the corrector network's chance.
"""

import torch

from ..errors import UserError


def scale_of(z):
    """The root mean square of all values of z (N, …): a number."""
    return z.square().mean().sqrt().item()


def shrunk_covariance(x):
    """Ledoit & Wolf's covariance of samples x (N, D): ((D, D), share of the identity in it, 0 … 1).

    With m = tr(S)/D, d² = ‖S − mI‖²/D and b² = min(d², Σ_k ‖x_k x_kᵀ − S‖²/(N²D)), all norms of Frobenius:
    Σ = (b²/d²)·mI + (1 − b²/d²)·S.   (Ledoit & Wolf 2004, eq. 14)
    """
    n, dimension = x.shape
    x = x - x.mean(0)
    s = x.T @ x / n
    level = s.trace() / dimension
    eye = torch.eye(dimension, dtype=x.dtype, device=x.device)
    spread = (s - level * eye).square().sum()
    error = (x.square().sum(1).square().sum() / n - s.square().sum()) / n  # Σ_k ‖x_k x_kᵀ − S‖² / N²
    share = (torch.minimum(error, spread) / spread).item() if spread > 0 else 1.0
    return share * level * eye + (1 - share) * s, share


def gaussian_of(z):
    """Mean (D,) and Cholesky factor (D, D) of the Gaussian fitted to z (N, …), D values each; float64 inside.

    Raises UserError where so few samples have no Gaussian.
    """
    flat = z.flatten(1).double()
    covariance, _ = shrunk_covariance(flat)
    factor, singular = torch.linalg.cholesky_ex(covariance)
    if singular or not factor.isfinite().all():
        raise UserError(f"{len(z)} samples of {flat.shape[1]} values are too few to fit a Gaussian: take more")
    return flat.mean(0).to(z.dtype), factor.to(z.dtype)


def gaussian_noise(e, mean, factor):
    """Standard normal e (B, …) -> noise of the fitted Gaussian, of the same shape."""
    return (mean + e.flatten(1) @ factor.T).reshape(e.shape)
