"""Inverse noise without a network: the covariance as printed, the noise's moments, and the contest with a network."""

import pytest
import torch

from minibnn.errors import UserError
from minibnn.experiments.inverse_noise import report as inverse_noise_report
from minibnn.experiments.inverse_noise import trainings as inverse_noise_trainings
from minibnn.neighbours import fitted_noise


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_ledoit_wolf_2004_eq_14_as_printed():
    """Σ = (b²/d²) m I + (a²/d²) S with the inner product tr(ABᵀ)/D, each sum written out."""
    x = normal(12, 5) @ normal(5, 5, seed=1) + 3
    n, dimension = x.shape
    centred, eye = x - x.mean(0), torch.eye(5, dtype=torch.float64)
    s = sum(torch.outer(row, row) for row in centred) / n
    m = (s * eye).sum() / dimension
    d2 = ((s - m * eye) ** 2).sum() / dimension
    b2 = min(sum(((torch.outer(row, row) - s) ** 2).sum() / dimension for row in centred) / n**2, d2)
    found, share = fitted_noise.shrunk_covariance(x)
    assert 0.05 < share < 0.95 and share == pytest.approx((b2 / d2).item(), rel=1e-10)
    torch.testing.assert_close(found, b2 / d2 * m * eye + (d2 - b2) / d2 * s, rtol=1e-10, atol=1e-12)


def test_shrinkage_is_nearer_to_the_truth_with_few_samples_and_vanishes_with_many():
    truth = torch.diag(torch.linspace(0.5, 2, 30, dtype=torch.float64))
    few = normal(40, 30, seed=2) @ truth.sqrt()
    shrunk, share = fitted_noise.shrunk_covariance(few)
    plain = torch.cov(few.T, correction=0)
    assert share > 0.3 and (shrunk - truth).norm() < 0.7 * (plain - truth).norm()
    assert fitted_noise.shrunk_covariance(normal(20_000, 3, seed=3) @ normal(3, 3, seed=4))[1] < 0.01
    assert fitted_noise.shrunk_covariance(torch.ones(4, 2, dtype=torch.float64))[1] == 1  # no spread at all


def test_the_noise_has_mean_and_covariance_of_what_it_was_fitted_to():
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    z = normal(50_000, 2, seed=5) @ mixing.T + torch.tensor([1.0, -2.0])
    drawn = fitted_noise.gaussian_noise(normal(50_000, 2, seed=6), *fitted_noise.gaussian_of(z))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(drawn.T), mixing @ mixing.T, rtol=0, atol=0.03)
    latents = normal(6, 4, 3, 2, seed=7).float()
    assert fitted_noise.gaussian_noise(latents, *fitted_noise.gaussian_of(latents)).shape == latents.shape
    assert fitted_noise.scale_of(torch.tensor([[3.0, -4.0]])) == pytest.approx(12.5**0.5)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_are_refused(n):
    """Of two samples the estimate is the plain covariance, which is singular."""
    with pytest.raises(UserError, match=f"{n} samples of 8 values are too few"):
        fitted_noise.gaussian_of(normal(n, 8))


def test_the_rivals_cost_nothing_or_one_product():
    z = normal(50, 3, seed=8)
    found = inverse_noise_trainings.without_network(z, normal(9, 3, seed=9))
    rows = {name: (noise, cost) for name, noise, cost in found}
    assert rows["scaled"][1] == 0 and rows["gaussian"][1] == 2 * 3 * 3
    assert rows["scaled"][0].shape == rows["gaussian"][0].shape == (9, 3)


def test_a_contest_is_paired_by_seed_and_leaves_out_what_is_missing():
    def rows(gaussian, network):
        return [
            {"what": "gaussian", "n": 5, "distance": gaussian}, {"what": "flow", "n": 10, "distance": 1.0},
            {"what": "corrected", "n": 5, "corrector steps": 20, "distance": network},
            {"what": "corrected", "n": 5, "corrector steps": 10, "distance": 9.0},
        ]

    seeds = [rows(0.3, 0.1), rows(0.5, 0.2), rows(0.2, 0.1)]
    world = [row | {"seed": 4} for row in rows(0.1, 0.4)] + [{"what": "real", "distance": 0.0}]
    found = inverse_noise_report.contests({"moons": seeds}, world)
    assert [(data, n, what, count) for data, n, what, *_, count in found] == [
        ("moons", 5, "gaussian", 3), ("moons", 5, "flow with 10 steps", 3),
        ("world", 5, "gaussian", 1), ("world", 5, "flow with 10 steps", 1),
    ]
    middle, low, high = found[0][3:6]
    assert middle == pytest.approx(0.2) and low < 0.2 < high and found[2][3] == pytest.approx(-0.3)
