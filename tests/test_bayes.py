"""Random weights: samples and their gradients (App. C), the KL divergence, and which layers --where makes random."""

import copy
import textwrap

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from minibnn import StableDiffusion
from minibnn.finetune import bayes
from minibnn.networks.unet import UNet, UNetConfig

D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_paper_eq14_gradients_of_theta_as_printed():
    """θ = μ + σ×ε as printed, and eq. 14: ∂L/∂μ = ∂L/∂θ, ∂L/∂σ = ∂L/∂θ × ε."""
    mu = torch.randn(5, 7, dtype=D, requires_grad=True)
    sigma = torch.rand(5, 7, dtype=D).add(0.1).requires_grad_()
    seed = torch.tensor([123])
    theta = bayes.sample_weights(mu, sigma, seed, stream=4)
    eps = bayes.epsilon((5, 7), seed, 4, "cpu").double()
    torch.testing.assert_close(theta, mu + sigma * eps, rtol=0, atol=1e-15)
    target = torch.randn(5, 7, dtype=D)
    (theta - target).pow(3).sum().backward()
    by_theta = 3 * (mu + sigma * eps - target).detach() ** 2
    torch.testing.assert_close(mu.grad, by_theta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.grad, by_theta * eps, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda m, s: bayes.sample_weights(m, s, seed, 4), (mu, sigma))


def test_epsilon_is_standard_normal_and_a_function_of_seed_and_stream():
    eps = bayes.epsilon((400, 500), torch.tensor(1), 0, "cpu")
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(eps, bayes.epsilon((400, 500), torch.tensor(1), 0, "cpu"))
    for seed, stream in ((2, 0), (1, 1), (2**62 - 1, 0)):
        other = bayes.epsilon((400, 500), torch.tensor(seed), stream, "cpu")
        assert abs(np.corrcoef(eps.flatten(), other.flatten())[0, 1]) < 0.01


def test_each_forward_has_another_seed_and_each_bit_of_a_seed_counts():
    """On the CPU PyTorch's generator uses the lower 32 bits of a seed: 4 · 10⁹ samples of the weights."""
    noise, generator, seeds = bayes.WeightNoise(), seeded(), []
    for _ in range(2000):
        noise.renew(generator)
        seeds.append(int(noise.seed))
    assert len(set(seeds)) == 2000 and min(seeds) >= 0
    assert max(seeds) > 2**61  # all 62 bits are used
    base = bayes.epsilon((50,), torch.tensor(0), 0, "cpu")
    for bit in range(32):
        assert not torch.isclose(bayes.epsilon((50,), torch.tensor(2**bit), 0, "cpu"), base).all(), bit


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (3, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 7)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=1e-6), (2, 4, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(6, eps=1e-3), (3, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_with_one_draw_and_with_mu_in_eval(kind):
    make, shape = LAYERS[kind]
    plain = make().double()
    for p in plain.parameters():
        nn.init.normal_(p)
    noise, x = bayes.WeightNoise(), torch.randn(shape, dtype=D)
    layer = bayes.BAYESIAN[type(plain)](copy.deepcopy(plain), 0.3, noise, stream=2)
    assert torch.equal(layer.eval()(x), plain(x))

    layer.train()
    noise.renew(seeded())
    sampled = copy.deepcopy(plain)
    with torch.no_grad():
        sampled.weight += 0.3 * bayes.epsilon(plain.weight.shape, noise.seed, 4, "cpu").double()
        if plain.bias is not None:
            sampled.bias += 0.3 * bayes.epsilon(plain.bias.shape, noise.seed, 5, "cpu").double()
    torch.testing.assert_close(layer(x), sampled(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x), layer(x))  # the same forward, the same weights
    before = layer(x)
    noise.renew(seeded(1))
    assert not torch.equal(layer(x), before)


def test_the_philox_stream_is_that_of_the_kernels():
    """`kernel="reference"` and "triton" make the same θ (here in Triton's interpreter), with the same gradients."""
    from minibnn_kernels import reference

    plain, x = nn.Linear(6, 5), torch.randn(3, 6)
    results = []
    for kernel in ("reference", "triton"):
        noise = bayes.WeightNoise(kernel)
        noise.renew(seeded())
        layer = bayes.BayesLinear(plain, 0.2, noise, 7)
        y = layer(x)
        theta = plain.weight + 0.2 * reference.epsilon(noise.seed, 7, 5, 6)
        bias = plain.bias + 0.2 * reference.epsilon(noise.seed, 7, 5, 1, "bias")[:, 0]
        torch.testing.assert_close(y, x @ theta.T + bias)
        results.append(torch.autograd.grad(y.square().sum(), layer.parameters()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize(
    ("plain", "x"),
    [(nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)), (nn.GroupNorm(2, 4), torch.randn(2, 4, 3)),
     (nn.LayerNorm(4), torch.randn(2, 4))],
    ids=["conv", "group norm", "layer norm"],
)
def test_other_layers_draw_the_philox_stream_and_make_it_again(kernel, plain, x):
    from minibnn_kernels import reference

    shared, saved = bayes.WeightNoise(kernel), []
    shared.renew(seeded())
    layer = bayes.BAYESIAN[type(plain)](plain, 0.2, shared, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    expected = copy.deepcopy(plain)
    eps, eps_b = (
        reference.epsilon(shared.seed, 3, len(p), p[0].numel(), domain).reshape(p.shape)
        for p, domain in ((plain.weight, "weight"), (plain.bias, "bias"))
    )
    with torch.no_grad():
        expected.weight += 0.2 * eps
        expected.bias += 0.2 * eps_b
    torch.testing.assert_close(y, expected(x))
    assert not any(t.shape == eps.shape and torch.equal(t, eps) for t in saved)
    grads = torch.autograd.grad(y.square().sum(), (layer.weight, layer.weight_sigma, layer.bias, layer.bias_sigma))
    exact = torch.autograd.grad(expected(x).square().sum(), (expected.weight, expected.bias))
    torch.testing.assert_close(grads, (exact[0], exact[0] * eps, exact[1], exact[1] * eps_b), rtol=1e-4, atol=1e-4)


def test_bias_noise_is_one_value_for_each_output():
    layer = bayes.BayesLinear(nn.Linear(3, 1000), 0.01, bayes.WeightNoise(), 0)
    noise = bayes.sample_weights(layer.bias, layer.bias_sigma, layer.noise.seed, 1) - layer.bias
    assert noise.std().item() == pytest.approx(0.01, rel=0.1)
    assert noise.unique().numel() > 990


def test_backward_sees_the_draw_of_its_own_forward():
    """Two forwards before one backward, and recomputation under checkpointing."""
    noise = bayes.WeightNoise()
    layer = bayes.BayesLinear(nn.Linear(4, 4).double(), 0.5, noise, 0)
    x, gradients = torch.randn(2, 4, dtype=D), []
    for recompute in (False, True):
        layer.zero_grad()
        generator, losses = seeded(), []
        for _ in range(2):
            noise.renew(generator)
            out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            losses.append(out.square().sum())
            if recompute:
                losses.pop().backward()  # a checkpoint is recomputed with the seed of the present forward
        sum(losses).backward() if losses else None
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_of_the_weights_size_but_theta_is_saved():
    """ε is drawn again in backward: the graph keeps x and θ, as a plain layer keeps x and its weight."""
    layer = bayes.BayesLinear(nn.Linear(300, 200, bias=False), 0.1, bayes.WeightNoise(), 0)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(3, 300, requires_grad=True))
    assert sum(t.numel() >= 60000 for t in saved) == 1


def test_sigma_moves_in_training():
    """A σ stored as softplus(ρ) would move by 0.4 % here; stored itself, Adam moves it by its rate at each step."""
    noise = bayes.WeightNoise()
    layer, generator = bayes.BayesLinear(nn.Linear(8, 8), 0.01, noise, 0), seeded()
    optimiser = torch.optim.AdamW(layer.parameters(), 5e-6, weight_decay=0)
    x = torch.randn(16, 8)
    for _ in range(200):
        noise.renew(generator)
        layer(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        bayes.clamp_sigma(layer)
    moved = (layer.weight_sigma / 0.01 - 1).abs()
    assert moved.max() > 0.02
    assert layer.weight_sigma.min() >= bayes.SIGMA_MIN


def test_clamp_keeps_sigma_positive_and_lets_it_become_small():
    layer = bayes.BayesLinear(nn.Linear(2, 2), 0.01, bayes.WeightNoise(), 0)
    layer.weight_sigma.data = torch.tensor([[-1.0, 0.0], [1e-6, 0.01]])
    bayes.clamp_sigma(layer)
    torch.testing.assert_close(layer.weight_sigma, torch.tensor([[1e-7, 1e-7], [1e-6, 0.01]]), rtol=1e-6, atol=0)
    assert (layer.bias_sigma == 0.01).all()


# --- KL ---------------------------------------------------------------------------------------------------------------


def random_layer():
    layer = bayes.BayesLinear(nn.Linear(3, 4).double(), 0.02, bayes.WeightNoise(), 0)
    prior = {name: mu.detach() + 0.01 * torch.randn_like(mu) for name, (mu, _) in bayes.sigmas(layer).items()}
    layer.weight_sigma.data.uniform_(0.005, 0.05)
    return layer, prior


@pytest.mark.parametrize("direction", ["q-p", "p-q"])
def test_eq3_and_algorithm1_kl_is_a_sum_in_nats(direction):
    layer, prior = random_layer()
    expected = 0
    for name, (mu, sigma) in bayes.sigmas(layer).items():
        q, p = Normal(mu, sigma), Normal(prior[name], torch.tensor(0.01, dtype=D))
        expected += (kl_divergence(q, p) if direction == "q-p" else kl_divergence(p, q)).sum()
    got = bayes.kl(layer, prior, 0.01, direction)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    got.backward()
    assert layer.weight_sigma.grad.abs().min() > 0


def test_eq3_kl_by_monte_carlo():
    layer, prior = random_layer()
    exact, n = bayes.kl(layer, prior, 0.01).item(), 20000
    estimate = torch.zeros(n, dtype=D)
    for name, (mu, sigma) in bayes.sigmas(layer).items():
        q, p = Normal(mu.detach(), sigma.detach()), Normal(prior[name], torch.tensor(0.01, dtype=D))
        theta = q.sample((n,))
        estimate += (q.log_prob(theta) - p.log_prob(theta)).flatten(1).sum(1)
    assert estimate.mean().item() == pytest.approx(exact, abs=4 * estimate.std().item() / n**0.5)


def test_kl_to_the_starting_point_is_zero():
    layer = bayes.BayesLinear(nn.Linear(3, 4), 0.01, bayes.WeightNoise(), 0)
    prior = {name: mu.detach().clone() for name, (mu, _) in bayes.sigmas(layer).items()}
    for direction in ("q-p", "p-q"):
        assert abs(bayes.kl(layer, prior, 0.01, direction).item()) < 1e-5
    assert bayes.kl(nn.Linear(3, 4), {}, 0.01).item() == 0  # without random layers: a tensor, too


# --- a loop of one's own ----------------------------------------------------------------------------------------------


def test_the_loop_of_the_docstring_trains(micro, tmp_path, monkeypatch):
    """What `bayesianize` shows to a reader is executed as it stands there."""
    sd, renew, seeds = StableDiffusion.load(micro), bayes.WeightNoise.renew, []
    network, before = sd.unet, {name: value.clone() for name, value in sd.unet.state_dict().items()}
    names = {"sd": sd, "x0": torch.randn(2, 4, 8, 8, generator=seeded()), "steps": 3, "torch": torch,
             "context": sd.encode_prompts(["a dog", "a cat"])}
    monkeypatch.setattr(bayes.WeightNoise, "renew", lambda own, *more: (renew(own, *more), seeds.append(int(own.seed))))
    exec(textwrap.dedent(bayes.bayesianize.__doc__.split("λ = 1e-9:\n\n")[1]), names)
    assert len(set(seeds)) == 3 and names["loss"].isfinite()
    random = bayes.sigmas(network)
    assert random.keys() == names["prior"].keys() and len(random) > 20
    assert all(torch.equal(names["prior"][name], before[name]) for name in random)
    assert all(sigma.std() > 0 and sigma.min() > 0 for _, sigma in random.values())
    sd.save(tmp_path / "trained")
    after = StableDiffusion.load(tmp_path / "trained").unet.state_dict()
    assert after.keys() == before.keys() and not any(torch.equal(before[name], after[name]) for name in random)
    assert all(torch.equal(after[name], mu) for name, (mu, _) in random.items())


# --- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "share"),
    [("paper", 23.08), ("up", 12.02), ("norm", 0.0233), ("cross-attention", 5.115), ("paper,time", 26.32),
     ("up,time", 13.59), ("up,time,time-embedding", 13.83), ("paper,projections", 23.08), ("paper,paper", 23.08)],
)
def test_shares_of_sd15(where, share):
    with torch.device("meta"):
        unet = UNet()
        bayes.bayesianize(unet, where)
    assert 100 * bayes.random_share(unet) == pytest.approx(share, rel=5e-4)


def test_the_default_is_the_96_layers_of_the_authors():
    with torch.device("meta"):
        unet = UNet()
    names = bayes.select(unet, "paper")
    assert len(names) == 96
    assert not any("attn2" in name for name in names)
    assert len(bayes.select(unet, "down")) + len(bayes.select(unet, "mid")) + len(bayes.select(unet, "up")) == 96


def test_projections_are_linear_in_sd2_alone():
    """The authors' scripts convert every linear layer of the transformer blocks' modules: 128 in SD v2."""
    with torch.device("meta"):
        sd2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
        unet = UNet(UNetConfig(**sd2))
        assert not bayes.select(UNet(), "projections")
    names = bayes.select(unet, "paper,projections")
    assert len(names) == 128 and len(set(names) - set(bayes.select(unet, "paper"))) == 32
    assert all(name.endswith(("proj_in", "proj_out")) for name in set(names) - set(bayes.select(unet, "paper")))


def test_all_is_every_parameter(vectors):
    unet = vectors.network("unet")
    bayes.bayesianize(unet, "all")
    assert bayes.random_share(unet) == 1
    with pytest.raises(ValueError, match="where = 'everything' is not one of paper, norm"):
        bayes.select(unet, "paper,everything")


def test_posterior_mean_is_an_ordinary_unet(vectors):
    plain, unet = vectors.network("unet"), vectors.network("unet")
    bayes.bayesianize(unet, "paper,norm,conv", 0.1)
    x, t, context = vectors["in/x"], torch.tensor([3, 900]), vectors["in/ctx"]
    with torch.no_grad():
        assert torch.equal(unet(x, t, context), plain(x, t, context))
    mean = bayes.posterior_mean(unet)
    assert mean.keys() == plain.state_dict().keys()
    plain.load_state_dict(mean, strict=True)
