"""Each equation as printed, in float64, and diffusers' trajectories (tests/data/sched_A.npz)."""

import numpy as np
import pytest
import torch
from conftest import DATA
from fill_rule import eps_fn, normal
from scipy import integrate, stats
from torch.utils._python_dispatch import TorchDispatchMode

from minibnn import schedule as s
from minibnn.errors import UserError

ARRAYS = np.load(DATA / "sched_A.npz")
ABAR = (1 - s.betas()).cumprod(0)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_betas_are_scaled_linear():
    expected = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(s.betas().numpy(), expected, rtol=1e-13)
    np.testing.assert_allclose(ABAR.numpy(), ARRAYS["alphas_cumprod_f64_compvis"], rtol=1e-13)
    np.testing.assert_allclose(s.alphas_cumprod().numpy(), ARRAYS["alphas_cumprod_f32_diffusers"], atol=5e-7)


def test_ddpm_eq4_q_sample():
    x0, eps, t = random(3, 4, 5, 6), random(3, 4, 5, 6, seed=1), torch.tensor([0, 500, 999])
    got = s.q_sample(x0, eps, ABAR[t])
    for b in range(3):
        abar = np.prod([1 - beta for beta in s.betas()[: t[b] + 1].tolist()])
        torch.testing.assert_close(got[b], np.sqrt(abar) * x0[b] + np.sqrt(1 - abar) * eps[b], **EXACT)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_add_noise_and_velocity_equal_diffusers(t):
    abar = torch.from_numpy(ARRAYS["alphas_cumprod_f32_diffusers"]).double()[t]
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    x0, eps = random(2, 4, 4, 4), random(2, 4, 4, 4, seed=1)
    times = torch.full((2,), t)
    torch.testing.assert_close(s.q_sample(x0, eps, abar), scheduler.add_noise(x0, eps, times), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s.velocity(x0, eps, abar), scheduler.get_velocity(x0, eps, times), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("t", "prev"), [(1, 0), (500, 499), (999, 979)])
def test_ddpm_eq6_7_posterior(t, prev):
    """As printed, and against Bayes' rule q(x_prev | x_t, x_0) ∝ q(x_t | x_prev) q(x_prev | x_0) by quadrature."""
    x0, x = 0.7, -0.3
    alpha = (ABAR[t] / ABAR[prev]).item()
    beta, abar_t, abar_prev = 1 - alpha, ABAR[t].item(), ABAR[prev].item()
    mean, variance = s.posterior(random(1) * 0 + x, random(1) * 0 + x0, ABAR[t], ABAR[prev])
    printed_mean = abar_prev**0.5 * beta / (1 - abar_t) * x0 + alpha**0.5 * (1 - abar_prev) / (1 - abar_t) * x
    torch.testing.assert_close(mean.item(), printed_mean, **EXACT)
    torch.testing.assert_close(variance.item(), (1 - abar_prev) / (1 - abar_t) * beta, **EXACT)

    def density(y):
        likelihood = stats.norm.pdf(x, alpha**0.5 * y, beta**0.5)
        return likelihood * stats.norm.pdf(y, abar_prev**0.5 * x0, (1 - abar_prev) ** 0.5)

    around = [printed_mean - 12 * variance.item() ** 0.5, printed_mean + 12 * variance.item() ** 0.5]
    mass = integrate.quad(density, *around)[0]
    first = integrate.quad(lambda y: y * density(y), *around)[0] / mass
    second = integrate.quad(lambda y: (y - first) ** 2 * density(y), *around)[0] / mass
    assert first == pytest.approx(printed_mean, rel=1e-7)
    assert second == pytest.approx(variance.item(), rel=1e-7)


def test_ddpm_eq15_x0_from_eps():
    x0, eps = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    x = s.q_sample(x0, eps, ABAR[300])
    printed = (x - (1 - ABAR[300]) ** 0.5 * eps) / ABAR[300] ** 0.5
    torch.testing.assert_close(s.x0_from_eps(x, eps, ABAR[300]), printed, **EXACT)
    torch.testing.assert_close(s.eps_from_x0(x, x0, ABAR[300]), eps, **EXACT)


def test_an_offset_adds_one_random_number_for_each_channel():
    """The variance of a channel's mean is 1/(hw) + offset², and within a channel nothing changes."""
    plain = s.training_noise((4000, 2, 3, 5), 0.0, 0.0, torch.Generator().manual_seed(3))
    offset = s.training_noise((4000, 2, 3, 5), 0.5, 0.0, torch.Generator().manual_seed(3))
    assert torch.equal(plain, torch.randn(4000, 2, 3, 5, generator=torch.Generator().manual_seed(3)))
    added = offset - plain
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert offset.mean((2, 3)).var().item() == pytest.approx(1 / 15 + 0.25, rel=0.05)
    assert abs(added[:, :, 0, 0].T.corrcoef()[0, 1]) < 0.05


def test_a_spread_varies_the_strength_from_picture_to_picture():
    """The strengths have the asked deviation, beside the 1/√(2n) of white noise; within a picture only the scale."""
    white, spread = (s.training_noise((4000, 2, 10, 10), 0.3, x, torch.Generator().manual_seed(3)) for x in (0.0, 0.2))
    scale = spread / white
    torch.testing.assert_close(scale, scale[:, :1, :1, :1].expand_as(scale), rtol=1e-4, atol=1e-4)
    assert scale[:, 0, 0, 0].mean().item() == pytest.approx(1, abs=0.01)
    assert scale[:, 0, 0, 0].std().item() == pytest.approx(0.2, rel=0.04)
    assert s.noise_strength(spread).var().item() == pytest.approx(0.2**2 + 1 / 400, rel=0.1)


def test_noise_with_the_mean_of_a_picture_is_white_but_for_the_mean():
    noise, abar_t = random(3, 4, 6, 5), torch.tensor(0.09, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5])
    leaked = s.with_mean(mean, noise, abar_t)
    torch.testing.assert_close(leaked.mean((2, 3)), 0.3 * mean.double().expand(3, 4), **EXACT)
    torch.testing.assert_close(leaked.diff(dim=3), noise.diff(dim=3), **EXACT)
    assert torch.equal(leaked.std((2, 3)).round(decimals=9), noise.std((2, 3)).round(decimals=9))


def test_noise_of_a_given_strength_keeps_its_means_and_its_shape():
    noise = random(3, 4, 6, 5, seed=2) * 1.3
    scaled = s.with_strength(noise, 0.9)
    deviations = scaled - scaled.mean((2, 3), keepdim=True)
    assert deviations.square().mean((1, 2, 3)).tolist() == pytest.approx([0.81] * 3, rel=1e-12)
    torch.testing.assert_close(scaled.mean((2, 3)), noise.mean((2, 3)), **EXACT)
    assert s.noise_strength(scaled).tolist() == pytest.approx([0.9] * 3, rel=1e-12)
    ratio = deviations / (noise - noise.mean((2, 3), keepdim=True))
    assert (ratio.flatten(1).std(1) < 1e-9).all()  # one factor for each picture


def test_velocity_is_the_other_axis_of_the_rotation():
    """Salimans & Ho, App. D: x = cos φ x_0 + sin φ ε, v = dx/dφ = cos φ ε − sin φ x_0."""
    x0, eps = random(5), random(5, seed=1)
    phi = torch.arctan((1 - ABAR[400]).sqrt() / ABAR[400].sqrt())
    x, v = phi.cos() * x0 + phi.sin() * eps, phi.cos() * eps - phi.sin() * x0
    torch.testing.assert_close(s.velocity(x0, eps, ABAR[400]), v, **EXACT)
    torch.testing.assert_close(s.eps_from_v(x, v, ABAR[400]), eps, **EXACT)


def test_ddim_eq16_sigma():
    a, prev = ABAR[700], ABAR[650]
    printed = ((1 - prev) / (1 - a)).sqrt() * (1 - a / prev).sqrt()
    torch.testing.assert_close(s.ddim_sigma(a, prev, 1.0), printed, **EXACT)
    assert s.ddim_sigma(a, prev, 0.0) == 0


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_eq12_step(eta):
    x, eps, noise = (random(2, 4, 3, 3, seed=i) for i in range(3))
    a, prev = ABAR[700], ABAR[650]
    sigma = eta * ((1 - prev) / (1 - a)).sqrt() * (1 - a / prev).sqrt()
    predicted_x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    printed = prev.sqrt() * predicted_x0 + (1 - prev - sigma**2).sqrt() * eps + sigma * noise
    torch.testing.assert_close(s.ddim_step(x, eps, a, prev, eta, noise), printed, **EXACT)


def test_ddim_with_eta_1_is_ddpm():
    x, eps, noise = (random(2, 4, 3, 3, seed=i) for i in range(3))
    ddim = s.ddim_step(x, eps, ABAR[700], ABAR[650], 1.0, noise)
    torch.testing.assert_close(ddim, s.ddpm_step(x, eps, ABAR[700], ABAR[650], noise), **EXACT)


def test_plms_is_adams_bashforth():
    """The weights integrate a polynomial through the last predictions over the next step (t = 0 → 1)."""
    for k in range(1, 5):
        nodes = np.arange(-k + 1, 1)
        for power in range(k):
            exact = 1 / (power + 1)
            assert s.plms_eps([float(n) ** power for n in nodes]) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 500, 501, 999])
def test_an_exact_model_draws_its_one_picture_exactly(steps):
    """Bug of an earlier version: above 500 steps the last one ended at ᾱ_0 and left noise."""
    times, noise = s.timesteps(steps), lambda i: random(2, 4, 3, 3, seed=i)

    def model(x, t):
        return (x - ABAR[t].sqrt() * 0.7) / (1 - ABAR[t]).sqrt()

    drawn = s.sample_ddpm(model, noise(5000), times, ABAR, noise)
    torch.testing.assert_close(drawn, torch.full_like(drawn, 0.7), rtol=1e-9, atol=0)
    some = s.pairs(times[: -(-steps // 2)], ABAR, 1.0)  # not all of them
    assert [t for t, *_ in some] == times[: len(some)].tolist() and some[-1][2] == 1.0
    assert all(now[2] == following[1] for now, following in zip(some, some[1:], strict=False))


def test_timesteps():
    assert s.timesteps(4).tolist() == [751, 501, 251, 1]
    assert s.timesteps(50)[0] == 981
    for bad in (0, -3, 1000):
        with pytest.raises(UserError, match=f"steps = {bad}"):
            s.timesteps(bad)


@pytest.mark.parametrize(
    "name",
    ["ddim.n20.eta0.0", "ddim.n20.eta1.0", "ddim_v.n20", "pndm.n20", "ddim.n50.eta0.0", "ddim.n50.eta1.0",
     "ddim_v.n50", "pndm.n50", "ddpm.n25", "ddpm.n1000"],
)
def test_trajectories_equal_diffusers(name):
    abar = torch.from_numpy(ARRAYS["alphas_cumprod_f32_diffusers"]).double()
    kind, steps = name.split(".")[0], int(name.split(".n")[1].split(".")[0])
    start = torch.from_numpy(normal("sched.xT", (2, 4, 4, 4))).double()
    states, times = [], []

    def model(x, t):
        states.append(x)
        times.append(t)
        out = torch.from_numpy(eps_fn(x.numpy(), t))
        return s.eps_from_v(x, out, abar[t]) if kind == "ddim_v" else out

    def noise(i):
        return torch.from_numpy(normal(f"sched.noise.{i}", (2, 4, 4, 4))).double()

    if kind == "ddpm":
        end = s.sample_ddpm(model, start, s.timesteps(steps, offset=0), abar, noise)
    elif kind == "pndm":
        end = s.sample_pndm(model, start, s.timesteps(steps), abar)
    else:
        end = s.sample_ddim(model, start, s.timesteps(steps), abar, float("eta1.0" in name), noise)
    assert times == ARRAYS[name + ".timesteps"].tolist()
    states.append(end)
    reference, kept = ARRAYS[name + ".x"], ARRAYS[name + ".kept"]
    error = max(np.abs(states[k].numpy() - r).max() for k, r in zip(kept, reference, strict=True))
    # diffusers computes DDPM's 1 − ᾱ_t/ᾱ_{t−1} in float32, where it cancels: measured 1.2e-5; the others 2.4e-7.
    assert error / np.abs(reference).max() < (3e-5 if kind == "ddpm" else 5e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 25])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pndm_equals_diffusers_scheduler(prediction, steps):
    """Without Runge-Kutta steps, with a toy network that predicts ε or v; in float64, against diffusers itself."""
    scheduler = pytest.importorskip("diffusers").PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False, prediction_type=prediction,
    )
    scheduler.set_timesteps(steps)
    abar, is_v = scheduler.alphas_cumprod.double(), prediction == "v_prediction"
    start = random(2, 4, 4, 4)

    def network(x, t):
        return torch.from_numpy(eps_fn(x.numpy(), int(t)))

    def predicted_eps(x, t):
        return s.eps_from_v(x, network(x, t), abar[t]) if is_v else network(x, t)

    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t), t, theirs).prev_sample
    ours = s.sample_pndm(predicted_eps, start, s.timesteps(steps), abar, is_v)
    # measured: 1.7e-6, since diffusers' coefficients are float32; combining ε for a network of v: 0.2 and more
    assert (ours - theirs).abs().max() < 5e-6 * theirs.std()


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_those_of_diffusers(gamma):
    """Their formula for ε as in train_dreambooth.py and for v as in train_text_to_image.py, from their compute_snr."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.training_utils import compute_snr

    t = torch.arange(1000)
    snr = compute_snr(diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), t)
    base = torch.stack([snr, gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
    # float32 loses digits of 1 − ᾱ at early times: measured 2e-5
    abar = s.alphas_cumprod()
    torch.testing.assert_close(s.min_snr_weight(abar, gamma, False), base / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(s.min_snr_weight(abar, gamma, True), base / (snr + 1), rtol=1e-4, atol=0)
    assert s.min_snr_weight(abar, gamma, False)[-1] == 1 and s.min_snr_weight(abar, gamma, False)[0] < 0.1


class Copies(TorchDispatchMode):
    """Notes operations that bring a tensor from the CPU to another device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, inputs = function(*args, **kwargs or {}), [a for a in args if torch.is_tensor(a)]
        if torch.is_tensor(out) and out.device.type != "cpu" and any(a.device.type == "cpu" for a in inputs):
            self.seen.append(str(function))
        return out


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_step_of_sampling_brings_nothing_to_the_device(eta):
    """A GPU would have to finish its work first. The meta device stands for it here."""
    x = torch.empty(2, 4, 8, 8, device="meta")
    abar = s.alphas_cumprod()
    with Copies() as copies:
        s.sample_ddim(lambda x, t: x, x, s.timesteps(4), abar, eta, lambda i: torch.empty_like(x))
        s.sample_pndm(lambda x, t: x, x, s.timesteps(4), abar, v_prediction=True)
    assert copies.seen == []
    with Copies() as copies:
        s.q_sample(x, x, abar[:2])
    assert copies.seen, "the check sees a copy"
