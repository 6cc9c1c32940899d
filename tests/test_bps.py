"""Bayesian Power Steering: the branch's anatomy on a small UNet, and its idea where everything has a closed form."""

import copy
import hashlib
import signal

import numpy as np
import pytest
import small_sd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minibnn import StableDiffusion, observers, schedule
from minibnn.errors import UserError
from minibnn.experiments.bps import anchors as bps_anchors
from minibnn.experiments.bps import judge as bps_judge
from minibnn.experiments.bps import pairs as bps_pairs
from minibnn.experiments.bps import places as bps_places
from minibnn.experiments.bps import variants as bps_variants
from minibnn.files.locks import LOCK
from minibnn.files.store import read_json, write_json
from minibnn.neighbours import beside, bps, bps_branch, bps_run
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.observers import CtrlC
from minibnn.options.experiments import BpsExperimentOptions
from minibnn.options.neighbours import BpsOptions
from minibnn.options.parsing import parse
from minibnn.world import scenes as world

SMALL = UNetConfig(block_out_channels=(32, 64, 128, 128), cross_attention_dim=16)
# What SD's UNet at this width takes in for latents of 16 x 16: channels and side of each unit's features.
SIZES = (
    [None, (32, 16), (32, 16), None, (64, 8), (64, 8), None, (128, 4), (128, 4), None, (128, 2), (128, 2)]
    + [(128, 2)]
    + [(128, 2)] * 3 + [(128, 4)] * 3 + [(64, 8)] * 3 + [(32, 16)] * 3
)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(SMALL).requires_grad_(False)


@pytest.fixture
def branch():
    torch.manual_seed(1)
    return bps_branch.Branch(SMALL)


def inputs(seed=0, batch=2):
    g = torch.Generator().manual_seed(seed)
    x, context = torch.randn(batch, 4, 16, 16, generator=g), torch.randn(batch, 7, 16, generator=g)
    return x, torch.tensor([3, 800])[:batch], context, torch.rand(batch, 1, 128, 128, generator=g)


def awaken(branch, seed=2):
    """Give every zero convolution weights, as training would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=g))


def hashed(module):
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


# --- §1e 1-5: anatomy -------------------------------------------------------------------------------------------------


def test_1_a_new_branch_changes_nothing(unet, branch):
    x, _, context, hint = inputs()
    with torch.no_grad():
        for t in (0, 1, 500, 999):
            times = torch.full((2,), t)
            plain = unet(x, times, context)
            assert plain.std() > 0.01  # or the test would be vacuous
            assert torch.equal(bps_branch.steered(unet, branch, x, times, context, hint), plain)
        awaken(branch)
        assert (bps_branch.steered(unet, branch, x, times, context, hint) - plain).abs().max() > 0.01


def test_1_afterwards_the_unet_is_as_before(unet, branch):
    x, t, context, hint = inputs()
    awaken(branch)
    before, keys = hashed(unet), list(unet.state_dict())
    with torch.no_grad():
        plain = unet(x, t, context)
        bps_branch.steered(unet, branch, x, t, context, hint)
        assert torch.equal(unet(x, t, context), plain)
        with pytest.raises(RuntimeError), bps_branch.added(unet, branch(hint, bps_branch.time_of(unet, t))):
            unet(x, t, context[..., :3])
        assert torch.equal(unet(x, t, context), plain)
    assert hashed(unet) == before and list(unet.state_dict()) == keys


def test_2_gradients_of_the_first_three_steps(unet, branch):
    """Step 1 reaches the 21 injected zero convolutions, step 2 all but what lies behind one, step 3 all."""
    before = hashed(unet)
    optimiser = torch.optim.SGD(branch.parameters(), 0.1)
    injected = [f"zeros.{i}." for i in (1, 2, 4, 5, 7, 8, 10, 11, 12)] + [f"decoder_zeros.{i}." for i in range(12)]
    zero_gradients = []
    for step in range(3):
        x, t, context, hint = inputs(step, 1)
        optimiser.zero_grad()
        F.mse_loss(bps_branch.steered(unet, branch, x, t, context, hint), inputs(step + 10, 1)[0]).backward()
        gradients = {name: p.grad for name, p in branch.named_parameters()}
        assert [name for name, g in gradients.items() if g is None] == []
        alive = [name for name, g in gradients.items() if g is not None and g.any()]
        if step == 0:
            assert len(alive) == 42
            assert all(any(name.startswith(start) for start in injected) for name in alive)
        zero_gradients.append(len(gradients) - len(alive))
        optimiser.step()
    assert zero_gradients == [190, 104, 0]
    assert all(p.grad is None for p in unet.parameters()) and hashed(unet) == before


def test_3_alignment_with_the_units(unet, branch):
    x, t, context, hint = inputs()
    features = branch(hint, bps_branch.time_of(unet, t))
    assert [None if f is None else (f.shape[1], f.shape[2]) for f in features] == SIZES
    assert len(features) == len(bps_branch.units(unet)) == 25
    seen = []
    for modules in bps_branch.units(unet):
        for module in modules:
            module.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    try:
        with torch.no_grad():
            unet(x, t, context)
    finally:
        for modules in bps_branch.units(unet):
            for module in modules:
                module._forward_hooks.clear()
    # Hooks fire in the order of execution; the sharing inside a unit shows as repeated shapes.
    pairs = zip(features, bps_branch.units(unet), strict=True)
    assert seen == [tuple(feature.shape) for feature, modules in pairs for _ in modules]


def test_3_38_additions_in_one_forward(unet, branch):
    x, t, context, hint = inputs()
    additions = []

    class Counted(torch.Tensor):
        """A feature that notes when it is added to something."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.add, torch.Tensor.__radd__, torch.Tensor.__add__):
                additions.append(args)
            return super().__torch_function__(function, types, args, kwargs or {}).as_subclass(torch.Tensor)

    with torch.no_grad():
        features = [None if f is None else f.as_subclass(Counted) for f in branch(hint, bps_branch.time_of(unet, t))]
        with bps_branch.added(unet, features):
            unet(x, t, context)
    assert len(additions) == 38  # 8 + 6 in the encoder, 3, 12 + 9 in the decoder; residual blocks alone would be 22


def test_3_features_arrive_at_their_place(unet, branch):
    """The first unit that is changed is the first whose feature is not zero, and its skip is changed with it."""
    x, t, context, hint = inputs()
    features = [None if f is None else torch.zeros_like(f) for f in branch(hint, bps_branch.time_of(unet, t))]
    features[5] += 1.0
    outputs = {}
    handles = [
        module.register_forward_hook(lambda module, args, out, key=(k, i): outputs.setdefault(key, []).append(out))
        for k, modules in enumerate(bps_branch.units(unet)) for i, module in enumerate(modules)
    ]
    with torch.no_grad():
        unet(x, t, context)
        with bps_branch.added(unet, features):
            unet(x, t, context)
    for handle in handles:
        handle.remove()
    changed = [key for key, (plain, steered) in outputs.items() if not torch.equal(plain, steered)]
    assert min(changed) == (5, 1)  # these hooks came first: they see the first module's output before 1 is added
    assert {k for k, _ in changed} == set(range(5, 25)) - {6, 9}


def test_4_time_and_hint_but_not_z(unet, branch):
    x, t, context, hint = inputs()
    awaken(branch)
    with torch.no_grad():
        early, late = (branch(hint, bps_branch.time_of(unet, torch.full((2,), value))) for value in (10, 900))
        for k in range(13):
            assert early[k] is None or (early[k] - late[k]).abs().max() > 1e-3
        time = bps_branch.time_of(unet, t)
        pairs = zip(branch(hint, time)[13:], branch(1 - hint, time)[13:], strict=True)
        assert all((a - b).abs().max() > 1e-3 for a, b in pairs)
        for block in branch.modules():
            if isinstance(block, bps_branch.TimedBlock):
                block.time.weight.zero_()
        same = [branch(hint, bps_branch.time_of(unet, torch.full((2,), value))) for value in (10, 900)]
    assert all(a is None or torch.equal(a, b) for a, b in zip(*same, strict=True))  # also the decoder: it has no time


def test_5_a_gain_is_a_factor(unet, branch):
    """Gains 16, 8, 4, 2 and 16 moved into the zero convolutions give the same output."""
    x, t, context, hint = inputs()
    awaken(branch)
    assert [branch.gains[i] for i in (1, 2, 4, 5, 7, 8, 10, 11, 12)] == [16, 16, 8, 8, 4, 4, 2, 2, 16]
    torch.manual_seed(1)
    equal = bps_branch.Branch(SMALL, gains="equal")
    assert set(equal.gains) == {1.0}
    equal.load_state_dict(branch.state_dict())
    with torch.no_grad():
        different = bps_branch.steered(unet, equal, x, t, context, hint)
        for zero, gain in zip(equal.zeros, branch.gains, strict=True):
            for parameter in zero.parameters():  # conv_in and the downsamplers have none
                parameter *= gain
        out = bps_branch.steered(unet, equal, x, t, context, hint)
        reference = bps_branch.steered(unet, branch, x, t, context, hint)
    assert (out - reference).abs().max() < 1e-6 * reference.std()
    assert (different - reference).abs().max() > 1e-2 * reference.std()


@pytest.mark.parametrize(("channels", "millions"), [(1, 672.09), (3, 672.46), (4, 672.65)])
def test_parameters_for_sd15(channels, millions):
    """Sketch, layout, style: those of the released branch (692.37 …) less 20.3 M that nothing there uses."""
    with torch.device("meta"):
        branch, sd15 = bps_branch.Branch(UNetConfig(), channels), UNet()
    assert round(sum(p.numel() for p in branch.parameters()) / 1e6, 2) == millions
    widths = (320, 320, 640, 1280)  # of conv_in and the three downsamplers
    unused = sum(9 * width**2 + width for width in widths)
    assert round(unused / 1e6, 1) == 20.3 and not [p for i in (0, 3, 6, 9) for p in branch.zeros[i].parameters()]
    assert (len(bps_branch.units(sd15)), sum(map(len, bps_branch.units(sd15)))) == (25, 38)


@pytest.mark.parametrize("side", [8, 11])
def test_the_bundled_model_and_odd_sizes(side):
    sd = StableDiffusion.load("tiny")
    branch = bps_branch.Branch(sd.unet.config)
    awaken(branch)
    assert (len(bps_branch.units(sd.unet)), sum(map(len, bps_branch.units(sd.unet)))) == (13, 18)
    x, t, context = torch.randn(2, 4, side, side + 1), torch.tensor([5, 600]), torch.randn(2, 77, 128)
    hint = torch.rand(2, 1, 8 * side, 8 * side + 8)
    with torch.no_grad():
        assert (bps_branch.steered(sd.unet, branch, x, t, context, hint) - sd.unet(x, t, context)).abs().max() > 1e-3
        with pytest.raises(UserError, match="hint of .* this model and picture size need"):
            bps_branch.steered(sd.unet, branch, x, t, context, hint[..., :-8])


def kept_bytes(unet, branch, inject, dtype, checkpointing):
    """What autograd keeps of one steered forward, in bytes; the gradients of the branch; how often the blocks ran."""
    x, t, context, hint = inputs()
    unet.gradient_checkpointing = branch.gradient_checkpointing = checkpointing
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    if inject is bps_branch.added:  # the others do not use all of the branch
        own = [*branch.encoder, *branch.middle, *branch.decoder]
        blocks += [unit for unit in own if not isinstance(unit, nn.Conv2d)]
    calls, weights = [], {p.untyped_storage().data_ptr() for p in [*unet.parameters(), *branch.parameters()]}
    handles = [block.register_forward_pre_hook(lambda block, inputs: calls.append(block)) for block in blocks]
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = bps_branch.steered(unet, branch, x, t, context, hint, inject)
            kept = sum(sizes.values())
        gradients = torch.autograd.grad(out.float().square().mean(), list(branch.parameters()), allow_unused=True)
    finally:
        unet.gradient_checkpointing = False
        for handle in handles:
            handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    return kept, gradients, {calls.count(block) for block in blocks}


@pytest.mark.parametrize(
    ("inject", "dtype"),
    [(bps_branch.added, torch.float32), (bps_branch.added, torch.bfloat16), (bps_variants.skip_only, torch.float32)],
)
def test_checkpointing_computes_each_block_twice_with_the_hint(unet, inject, dtype):
    """Same bits of the gradients, and less that is kept. What backward computes again is steered too, though the block
    that steers the forward is over by then."""
    torch.manual_seed(1)
    branch = (bps_variants.SkipBranch if inject is bps_variants.skip_only else bps_branch.Branch)(SMALL)
    awaken(branch)
    whole, expected, once = kept_bytes(unet, branch, inject, dtype, False)
    kept, gradients, twice = kept_bytes(unet, branch, inject, dtype, True)
    assert once == {1} and kept < 0.6 * whole
    assert twice == ({1, 2} if inject is bps_variants.skip_only else {2})  # the UNet's encoder is frozen there
    for a, b in zip(expected, gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


# --- §1e 6: the posterior of a Gaussian, in closed form ---------------------------------------------------------------

A = torch.tensor([[1.0, 0.5], [-0.3, 0.8]])
NOISE = 0.5  # standard deviation of the hint
ABAR = torch.linspace(0.02, 0.98, 25)


def exact_m(z, c, abar):
    """z_0 ~ N(0, I): z_0 | z_t ~ N(√ᾱ z_t, (1−ᾱ) I), so c | z_t ~ N(√ᾱ A z_t, (1−ᾱ) A Aᵀ + s² I) and

    M = −√(1−ᾱ) ∇_z log p(c | z_t) = −√(1−ᾱ) √ᾱ Aᵀ V⁻¹ (c − √ᾱ A z_t)."""
    v = (1 - abar)[:, None, None] * (A @ A.T) + NOISE**2 * torch.eye(2)
    root = abar.sqrt()[:, None]
    return -(1 - abar).sqrt()[:, None] * root * torch.linalg.solve(v, c - root * z @ A.T) @ A


def prior_eps(z, abar):
    """The exact ε* of the prior N(0, I): √(1−ᾱ) z."""
    return (1 - abar).sqrt()[:, None] * z


class Head(nn.Module):
    """M̂ = W(ᾱ) [z_t, c] with a small network W, zero at first. `sees_z=False`: added to the output, blind for z_t."""

    def __init__(self, sees_z=True):
        super().__init__()
        self.sees_z = sees_z
        self.body = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 8))
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(self, z, c, abar):
        w = self.body(torch.stack([abar, (1 - abar).sqrt()], dim=1)).unflatten(1, (2, 4))
        return (w @ torch.cat([z if self.sees_z else 0 * z, c], dim=1)[..., None])[..., 0]


def toy_pairs(n, seed):
    g = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, 2, generator=g)
    return z0, z0 @ A.T + NOISE * torch.randn(n, 2, generator=g)


def train_head(z0, c, head, steps, seed=0):
    """The ε loss, with a falling rate."""
    g, optimiser = torch.Generator().manual_seed(seed), torch.optim.Adam(head.parameters(), 2e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        i, abar = torch.randint(len(z0), (256,), generator=g), ABAR[torch.randint(len(ABAR), (256,), generator=g)]
        eps = torch.randn(256, 2, generator=g)
        z = schedule.q_sample(z0[i], eps, abar)
        loss = F.mse_loss(prior_eps(z, abar) + head(z, c[i], abar), eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return head


@torch.no_grad()
def relative_error(head, seed=1):
    """‖M̂ − M‖ / ‖M‖ over fresh (z_t, c) of the joint distribution."""
    z0, c = toy_pairs(4000, seed)
    abar = ABAR.repeat(160)
    z = schedule.q_sample(z0, torch.randn(4000, 2, generator=torch.Generator().manual_seed(seed)), abar)
    exact = exact_m(z, c, abar)
    return ((head(z, c, abar) - exact).norm() / exact.norm()).item()


def test_6_m_is_the_gradient_of_the_log_likelihood():
    """The closed form against autograd through torch.distributions, and Bayes' rule against the exact posterior's ε."""
    z0, c = (x.double() for x in toy_pairs(6, 3))
    for abar in (0.05, 0.5, 0.95):
        z = z0.clone().requires_grad_()
        a = A.double()
        v = (1 - abar) * a @ a.T + NOISE**2 * torch.eye(2).double()
        log_p = torch.distributions.MultivariateNormal(abar**0.5 * z @ a.T, v).log_prob(c).sum()
        by_autograd = -((1 - abar) ** 0.5) * torch.autograd.grad(log_p, z)[0]
        abars = torch.full((6,), abar).double()
        with torch.no_grad():
            for i in range(6):  # exact_m works in the dtype of A
                got = exact_m(z[i : i + 1].float(), c[i : i + 1].float(), abars[:1].float())
                torch.testing.assert_close(got[0].double(), by_autograd[i], rtol=1e-4, atol=1e-5)
        covariance = torch.linalg.inv(torch.eye(2).double() + a.T @ a / NOISE**2)
        mean = c @ a @ covariance.T / NOISE**2
        spread = abar * covariance + (1 - abar) * torch.eye(2).double()
        posterior_eps = (1 - abar) ** 0.5 * torch.linalg.solve(spread, (z.detach() - abar**0.5 * mean).T).T
        torch.testing.assert_close((1 - abar) ** 0.5 * z.detach() + by_autograd, posterior_eps, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def heads():
    torch.manual_seed(0)
    first = Head()
    return {n: train_head(*toy_pairs(n, 5), copy.deepcopy(first), 800) for n in (10, 100, 4000)}


def test_6_the_head_approaches_m_with_more_pairs(heads):
    """Relative error of M̂ on a grid; the bounds leave room for the seed."""
    errors = {n: relative_error(head) for n, head in heads.items()}
    assert errors[10] > 1.5 * errors[100] > 1.5 * errors[4000]
    assert errors[100] < 0.45 and errors[4000] < 0.15


def test_6_a_hint_without_information_steers_nothing():
    """With permuted hints M is 0: ‖M̂‖/‖ε‖ stays below 0.05."""
    z0, c = toy_pairs(20_000, 6)
    c = c[torch.randperm(len(c), generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    head = train_head(z0, c, Head(), 400)
    abar = ABAR.repeat(160)
    eps = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        m = head(schedule.q_sample(z0[:4000], eps, abar), c[:4000], abar)
    assert m.norm() / eps.norm() < 0.05


def test_6_a_head_that_is_blind_for_z_cannot_do_it(heads):
    """Added to the output and without z_t it gets the part linear in c only."""
    torch.manual_seed(0)
    blind = train_head(*toy_pairs(4000, 5), Head(sees_z=False), 800)
    assert relative_error(blind) > 0.5 > 3 * relative_error(heads[4000])


def test_6_samples_of_the_posterior(heads):
    """DDIM from noise with ε* + M̂ for one hint: mean and covariance of the closed form."""
    c = torch.tensor([1.0, -0.5])
    covariance = torch.linalg.inv(torch.eye(2) + A.T @ A / NOISE**2)
    mean = covariance @ A.T @ c / NOISE**2
    abar, z = torch.linspace(0.02, 0.98, 97), torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for now, following in zip(abar, [*abar[1:], torch.tensor(0.9999)], strict=True):
            now_all = now.expand(4000)
            eps = prior_eps(z, now_all) + heads[4000](z, c.expand(4000, 2), now_all)
            z = schedule.ddim_step(z, eps, now, following)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0, atol=0.06)


# --- §1e 7: a prior helps where there are few samples -----------------------------------------------------------------


CENTRES = 1.5 * torch.stack([(torch.arange(8) * np.pi / 4).cos(), (torch.arange(8) * np.pi / 4).sin()], dim=1)
SPREAD = 0.1


def ring_eps(z, abar):
    """The exact ε* of the pretrained model: a ring of 8 equal Gaussians."""
    variance = (abar * SPREAD**2 + 1 - abar)[:, None]
    d = z[:, None] - abar.sqrt()[:, None, None] * CENTRES
    weight = (-d.square().sum(2) / (2 * variance)).softmax(1)
    return (1 - abar).sqrt()[:, None] * (weight[..., None] * d).sum(1) / variance


def ring_pairs(n, seed):
    """Points of the ring, each with a hint: roughly where it lies, N(z_0, 0.5² I)."""
    g = torch.Generator().manual_seed(seed)
    z0 = CENTRES[torch.randint(8, (n,), generator=g)] + SPREAD * torch.randn(n, 2, generator=g)
    return z0, z0 + 0.5 * torch.randn(n, 2, generator=g)


def ring_network():
    """(z_t, c, ᾱ, √(1−ᾱ)) -> 2 values, zero at first."""
    body = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    for parameter in body[-1].parameters():
        nn.init.zeros_(parameter)
    return body, lambda z, abar, c: body(torch.cat([z, c, abar[:, None], (1 - abar[:, None]).sqrt()], dim=1))


def fit_ring(model, parameters, z0, c, steps, seed):
    g, optimiser = torch.Generator().manual_seed(seed), torch.optim.AdamW(parameters, 3e-3, weight_decay=0.1)
    for _ in range(steps):
        i, abar = torch.randint(len(z0), (128,), generator=g), 0.001 + 0.998 * torch.rand(128, generator=g)
        eps = torch.randn(128, 2, generator=g)
        loss = F.mse_loss(model(schedule.q_sample(z0[i], eps, abar), abar, c[i]), eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def sample_ring(model, c, seed):
    """DDIM with 60 steps: (n, 4), the points beside their hints."""
    z, abar = torch.randn(c.shape, generator=torch.Generator().manual_seed(seed)), torch.linspace(0.001, 0.999, 60)
    for now, following in zip(abar, abar[1:], strict=False):
        z = schedule.ddim_step(z, model(z, now.expand(len(c)), c), now, following)
    return torch.cat([z, c], dim=1)


def energy_distance(a, b):
    """2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, unbiased."""
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (2 * torch.cdist(a, b).mean() - sum(within)).item()


def test_7_the_prior_is_used():
    """100 pairs: the steered prior beats a network from scratch trained 8 times as long, and the prior itself.

    It does so with 5 seeds of 5. The prior is exact and pairs are conditional on hints: this shows that a prior can
    help, and is not the paper's Fig. 2 itself.
    """
    target, hints = torch.cat(ring_pairs(1000, 99), dim=1), ring_pairs(1000, 98)[1]
    prior = energy_distance(sample_ring(lambda z, abar, c: ring_eps(z, abar), hints, 0), target)
    for seed in range(5):
        few = ring_pairs(100, 100 + seed)
        torch.manual_seed(seed)
        (body, head), (alone, scratch) = ring_network(), ring_network()

        def steered(z, abar, c, head=head):
            return ring_eps(z, abar) + head(z, abar, c)

        fit_ring(steered, body.parameters(), *few, 60, seed)
        fit_ring(scratch, alone.parameters(), *few, 480, seed)
        ours, theirs = (energy_distance(sample_ring(model, hints, seed), target) for model in (steered, scratch))
        assert ours < theirs and ours < prior / 4


# --- pairs, training and the command ----------------------------------------------------------------------------------


def test_outline_is_the_border_of_the_mask():
    mask = np.zeros((7, 9), np.float32)
    mask[2:6, 3:8] = 1
    expected = mask.copy()
    expected[3:5, 4:7] = 0
    assert np.array_equal(world.outline(mask), expected)


@pytest.fixture
def pairs(tmp_path):
    world.write_pairs(tmp_path / "pairs", 3, 0, "sketch")
    return tmp_path / "pairs"


def options(pairs, **changes):
    settings = {"hints": str(pairs), "out": str(pairs.parent / "run"), "sample_steps": 2}
    training = {} if "branch" in changes else {"steps": 2, "batch_size": 2}
    return BpsOptions(**settings | training | changes)


def test_pairs_are_exact(pairs):
    hints, images, captions = bps.read_pairs(pairs, 1, 64)
    scene = world.random_scene(np.random.default_rng(0))
    picture = world.draw(scene)
    assert captions[0] == world.caption(scene) and hints.shape == (3, 1, 64, 64) and images.shape == (3, 3, 64, 64)
    assert np.array_equal(hints[0, 0].numpy(), world.outline(world.subject_mask(scene, picture)))
    assert torch.equal(images[0], torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1)


def test_captions_and_hints_are_read_as_those_of_all_commands(pairs):
    """Bug of an earlier version: Notepad's mark and the end of a line stood in the prompt, hints lay on their side, and
    those of 16 bits were white."""
    (pairs / "000.txt").write_bytes("\ufeffa dog\r\non grass \n".encode())
    mark = Image.new("L", (64, 48))
    mark.putpixel((5, 40), 255)  # of a picture that is to be turned by 90 degrees to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    mark.save(pairs / "000.hint.png", exif=exif)
    Image.new("RGB", (48, 64)).save(pairs / "000.png")
    Image.fromarray(np.full((64, 64), 0x8000, np.uint16)).save(pairs / "001.hint.png")
    clear = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    clear.putpixel((3, 4), (255, 255, 255, 255))
    clear.save(pairs / "002.hint.png")
    _, _, captions = bps.read_pairs(pairs, 1, 64)
    assert captions[0] == "a dog on grass"
    upright = bps.read_hint(pairs / "000.hint.png", 1)[0]
    assert upright.shape == (64, 48) and upright.nonzero().tolist() == [[5, 7]]
    assert bps.read_hint(pairs / "001.hint.png", 3).unique().tolist() == pytest.approx([128 / 255])
    assert bps.read_hint(pairs / "002.hint.png", 1)[0].nonzero().tolist() == [[4, 3]]


def test_command_trains_draws_and_repeats_itself(pairs, tmp_path, capsys):
    before = hashed(StableDiffusion.load("tiny").unet)
    bps_run.train_or_draw(options(pairs))
    run = tmp_path / "run"
    assert sorted(p.name for p in run.iterdir()) == ["branch.safetensors", "config.json", "samples.png"]
    bps_run.train_or_draw(options(pairs, out=str(tmp_path / "again")))
    assert (run / "branch.safetensors").read_bytes() == (tmp_path / "again" / "branch.safetensors").read_bytes()
    (pairs / "000.png").unlink()  # drawing needs hints and captions only
    bps_run.train_or_draw(options(pairs, branch=str(run), out=str(tmp_path / "drawn")))
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["000.png", "001.png", "002.png", "samples.png"]
    assert "hints and pictures" in capsys.readouterr().out
    assert hashed(StableDiffusion.load("tiny").unet) == before
    with pytest.raises(UserError, match="exists: name another"):
        bps_run.train_or_draw(options(pairs))


def test_a_stopped_training_goes_on_to_the_same_branch(tmp_path, monkeypatch):
    """In Stable Diffusion's layout: stopped after the first of three steps, resumed, the same bits as in one go."""
    model, pairs = small_sd.make(tmp_path / "sd", layers=1), tmp_path / "pairs"
    world.write_pairs(pairs, 3, 0, "sketch")
    run, work = tmp_path / "run", tmp_path / "run.unfinished"
    words = ["--hints", pairs, "--model", model, "--edges", "--steps", 3, "--batch-size", 2, "--sample-steps", 2,
             "--lr", "1e-3", "--resolution", 64, "--device", "cpu"]

    def command(*more):
        bps_run.train_or_draw(parse(BpsOptions, "minibnn bps", [*map(str, more)]))

    with monkeypatch.context() as context:
        context.setattr(CtrlC, "__enter__", lambda self: (vars(self).update(asked=True, before={}), self)[1])
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1, .* python -m minibnn bps --resume --out"):
            command(*words, "--out", run)
    assert sorted(p.name for p in work.iterdir()) == ["checkpoint", "options.json"] and not run.exists()
    with pytest.raises(UserError, match="--resume continues it, --overwrite discards it"):
        command(*words, "--out", run)
    with pytest.raises(UserError, match="--lr is not what .*run.unfinished began with"):
        command("--resume", "--out", run, "--lr", "1e-4")
    changed, real = pairs / "001.txt", (pairs / "001.txt").read_text()
    changed.write_text("a cat")
    with pytest.raises(UserError, match="the pictures or captions are not those that .*run.unfinished began with"):
        command("--resume", "--out", run)
    changed.write_text(real)
    run.mkdir()
    (run / LOCK).touch()  # as a kill leaves it; bug of an earlier version: "--out exists"
    command("--resume", "--out", run, "--gradient-checkpointing")  # which changes no bit
    assert not work.exists()
    command(*words, "--out", tmp_path / "whole")
    a, b = (tmp_path / name / "branch.safetensors" for name in ("run", "whole"))
    assert a.read_bytes() == b.read_bytes()
    drawn = tmp_path / "drawn"
    command("--hints", pairs, "--model", model, "--edges", "--branch", run, "--sample-steps", 2, "--out", drawn)
    assert (drawn / "002.png").exists()


def test_training_learns_and_leaves_the_rest_alone():
    """Steps on one pair lower its error at a fixed time and noise; UNet, VAE and text encoder keep their bits."""
    sd = StableDiffusion.load("tiny")
    scene = world.random_scene(np.random.default_rng(3))
    picture = world.draw(scene)
    hint = torch.from_numpy(world.outline(world.subject_mask(scene, picture)))[None, None]
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 127.5 - 1
    pair = bps.Pairs(sd, hint, image, [world.caption(scene)])
    t, eps = torch.full((8,), 600), torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x_t = schedule.q_sample(pair.mean * sd.vae.config.scaling_factor, eps, sd.alphas_cumprod[t])
    context = sd.encode_prompts(pair.captions).expand(8, -1, -1)
    before = [hashed(part) for part in (sd.unet, sd.vae, sd.text_encoder)]
    torch.manual_seed(0)
    branch, errors = bps_branch.Branch(sd.unet.config), []
    for steps in (1, 24):  # the first step already moves, and reports the error of the untrained branch
        losses = bps.train_branch(sd, branch, pair, steps, 2e-4, 4)
        assert len(losses) == steps
        with torch.no_grad():
            predicted = bps_branch.steered(sd.unet, branch, x_t, t, context, hint.expand(8, -1, -1, -1))
            errors.append(F.mse_loss(predicted, eps).item())
    with torch.no_grad():
        base = F.mse_loss(sd.unet(x_t, t, context), eps).item()
    assert errors[-1] < 0.9 * base, (base, errors)
    assert [hashed(part) for part in (sd.unet, sd.vae, sd.text_encoder)] == before


def test_guidance_on_the_hint_starts_from_the_frozen_model():
    """One step of DDIM to the end: ε̂ = ε(∅) + 3·(ε(c, y) − ε(∅)), where ε(∅) does not see the hint."""
    sd = StableDiffusion.load("tiny")
    branch = bps_branch.Branch(sd.unet.config)
    awaken(branch)
    hint = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)), schedule.timesteps(1)
    null, own = sd.encode_prompts(["", "a dog"]).split(1)
    with torch.no_grad():
        eps_u, eps_c = sd.unet(x, t, null), bps_branch.steered(sd.unet, branch, x, t, own, hint)
        steered_u = bps_branch.steered(sd.unet, branch, x, t, null, hint)
    abar = sd.alphas_cumprod

    def picture(u):
        x0 = schedule.ddim_step(x, u + 3 * (eps_c - u), abar[t[0]], abar[0])
        return ((sd.decode_latents(x0)[0] + 1) * 127.5).permute(1, 2, 0)

    for guide_hint, u, other in ((True, eps_u, steered_u), (False, steered_u, eps_u)):
        [found] = bps.draw_steered(sd, branch, hint, ["a dog"], 1, 3.0, 4, guide_hint=guide_hint)
        pixels = torch.tensor(np.array(found)).float()
        assert (pixels - picture(u)).abs().max() <= 0.6 < 3 < (pixels - picture(other)).abs().max()
        [other] = bps.draw_steered(sd, branch, hint, ["a dog"], 1, 3.0, 4, guide_hint=guide_hint, negatives=[""])
        assert np.array_equal(found, other)


def test_guidance_away_from_another_prompt():
    """With the caption itself there is nothing to guide away from: the scale does not matter."""
    sd = StableDiffusion.load("tiny")
    branch = bps_branch.Branch(sd.unet.config)
    awaken(branch)
    hints, captions = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)), ["a dog", "a cat", "a tree"]

    def drawn(scale, negatives=None):
        pictures = bps.draw_steered(sd, branch, hints, captions, 2, scale, 4, 2, negatives=negatives)
        return np.stack([np.array(picture) for picture in pictures]).astype(float)

    assert abs(drawn(7.5, captions) - drawn(1.0)).max() <= 1 < 3 < abs(drawn(7.5) - drawn(1.0)).max()
    rotated = abs(drawn(7.5, captions[1:] + captions[:1]) - drawn(1.0)).max((1, 2, 3))
    assert (rotated > 3).all()


def test_a_training_goes_on_to_no_fewer_steps_than_are_done(pairs, tmp_path, monkeypatch):
    """Bug of an earlier version: --steps 1 gave the branch of step 2, whose config.json said 1."""
    with monkeypatch.context() as context:
        context.setattr(beside, "save", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            bps_run.train_or_draw(options(pairs, steps=2))
    words = ["--resume", "--out", str(tmp_path / "run"), "--steps"]
    with pytest.raises(UserError, match="--steps 1 lies before the checkpoint, which is after step 2"):
        bps_run.train_or_draw(parse(BpsOptions, "minibnn bps", [*words, "1"]))
    bps_run.train_or_draw(parse(BpsOptions, "minibnn bps", [*words, "3"]))
    assert read_json(tmp_path / "run" / "config.json")["steps"] == 3


def test_checkpoints_on_the_way_and_guidance_on_the_hint_are_asked_for_by_options(pairs, monkeypatch):
    saved, guided, draw = [], [], bps_run.draw_steered
    monkeypatch.setattr(observers, "save_checkpoint", lambda out, training, keep: saved.append((training.step, keep)))
    monkeypatch.setattr(bps_run, "draw_steered", lambda *given, guide_hint: guided.append(guide_hint) or draw(*given))
    bps_run.train_or_draw(options(pairs, steps=3, checkpoint_every=2, guide_hint=True))
    assert saved == [(2, True), (3, True)] and guided == [True]  # with the optimiser: more steps may follow


class TestMistakes:
    def refused(self, pairs, words, **changes):
        with pytest.raises(UserError, match=words):
            bps_run.train_or_draw(options(pairs, **changes))
        assert not (pairs.parent / "run").exists()

    def test_no_hints(self, tmp_path):
        (tmp_path / "nothing").mkdir()
        self.refused(tmp_path / "nothing", r"no NAME.hint.png")

    def test_wrong_size(self, pairs):
        Image.new("L", (32, 64)).save(pairs / "001.hint.png")
        self.refused(pairs, r"001.hint.png is 32 x 64 pixels, not 64 x 64")

    def test_missing_caption_or_picture(self, pairs):
        (pairs / "002.txt").write_text(" \n")
        self.refused(pairs, r"002.txt is empty")
        (pairs / "002.txt").unlink()
        self.refused(pairs, r"002.txt is missing: it holds the caption of 002.png")
        (pairs / "000.png").unlink()
        self.refused(pairs, r"000.png")

    @pytest.mark.parametrize("edges", [False, True])
    def test_no_folder_of_hints(self, pairs, edges):
        self.refused(pairs, "--hints nowhere: there is no such folder", hints="nowhere", edges=edges)

    def test_broken_hint(self, pairs):
        (pairs / "000.hint.png").write_bytes(b"no picture")
        self.refused(pairs, r"000.hint.png: broken, or not a picture")

    def test_resolution_and_loss(self, pairs):
        self.refused(pairs, "--resolution 60", resolution=60)
        self.refused(pairs, "the loss is .* at step 2; try a smaller --lr", lr=1e30)

    def test_another_models_branch(self, pairs, tmp_path):
        config = {"model": "X", "hint_channels": 1, "factor": 8, "gains": "equal"}
        beside.save(bps_branch.Branch(SMALL), tmp_path / "other", "branch", config)
        self.refused(pairs, "trained for X", branch=str(tmp_path / "other"))
        self.refused(pairs, "pairs is not a folder of `python -m minibnn bps`", branch=str(pairs))

    def test_a_damaged_branch(self, pairs, tmp_path):
        config = {"model": "X", "hint_channels": 1, "factor": 8, "gains": "equal"}
        for name in config:
            less = {key: value for key, value in config.items() if key != name}
            beside.save(bps_branch.Branch(SMALL), tmp_path / "b", "branch", less)
            self.refused(pairs, f"config.json: {name} is missing", branch=str(tmp_path / "b"))

    @pytest.mark.parametrize("branch", [None, "b"])
    def test_what_cannot_be_drawn_is_said_before_training(self, pairs, branch, monkeypatch):
        monkeypatch.setattr(bps_run, "train_branch", None)
        monkeypatch.setattr(bps_run, "load_branch", None)
        changes = {"branch": branch} if branch else {}
        self.refused(pairs, "--sample-steps 2000 is outside 1..999", sample_steps=2000, **changes)
        self.refused(pairs, "guidance = nan is not a finite number", guidance=float("nan"), **changes)

    def test_training_options_beside_a_branch(self, pairs):
        numbers = {"steps": 5, "lr": 1e-3, "batch_size": 4, "resolution": 32, "hint_channels": 3, "resume": True,
                   "gradient_checkpointing": True}
        for name, value in {**numbers, "gains": "equal"}.items():
            words = f"--{name.replace('_', '-')} is for training; with --branch"
            self.refused(pairs, words, branch="b", **{name: value})

    def test_a_caption_of_another_encoding(self, pairs):
        (pairs / "001.txt").write_bytes("ein grüner Hund".encode("latin-1"))
        self.refused(pairs, "001.txt is not a caption in UTF-8")

    def test_a_hint_of_too_many_pixels(self, pairs, monkeypatch):
        hint = pairs / "000.hint.png"
        assert bps.read_hint(hint, 1).shape == (1, 64, 64)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
        with pytest.raises(UserError, match="000.hint.png: too many pixels"):
            bps.read_hint(hint, 1)

    def test_hint_to_draw_of_a_size_that_is_no_multiple(self, pairs, tmp_path):
        sd = StableDiffusion.load("tiny")
        with pytest.raises(UserError, match="60 x 64 pixels: both must be multiples of 8"):
            bps.draw_steered(sd, bps_branch.Branch(sd.unet.config), torch.zeros(1, 1, 64, 60), ["a dog"])


def test_the_experiment_pairs_the_anchors_by_seed():
    """Means, and the differences with their t-interval: of two seeds .15 and .45 to "own", none to the caption's."""
    seeds = [{f"{name} {w:g}": {"IoU": 0.5 + (name != "own") * gain * w}
              for name in bps_anchors.ANCHORS for w in bps_anchors.SCALES} for gain in (0.1, 0.3)]
    lines = bps_anchors.table(seeds, ("IoU",)).splitlines()
    means = "0.500 | 0.800 | 0.800"  # 0.15 · 12.706 = 1.906
    assert lines[2] == f"| 1.5 | IoU | {means} | +0.300 [-1.606, +2.206] | +0.000 [+0.000, +0.000] |"
    assert len(lines) == 5


class TestTheExperiment:
    FIGURES = dict.fromkeys(bps_judge.JUDGED, 0.5)

    def asked(self, tmp_path, *words):
        words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), *words]
        return parse(BpsExperimentOptions, "experiment bps", words)

    def test_it_adds_seeds_to_the_anchors(self, tmp_path, monkeypatch):
        found = {f"{name} {w:g}": self.FIGURES for name in bps_anchors.ANCHORS for w in bps_anchors.SCALES}
        made = []
        monkeypatch.setattr(bps_anchors, "trained", lambda sd, variant, count, seed, steps: made.append(seed))
        monkeypatch.setattr(bps_anchors, "measure", lambda *_: found)

        def compared(*words):
            bps_anchors.compare(None, None, self.asked(tmp_path, "--part", "anchors", *words))
            return list(read_json(tmp_path / "bps_anchors.json")["seeds"])

        assert compared("--seeds", "0", "1") == ["0", "1"]
        assert compared("--seeds", "1", "2") == ["0", "1", "2"] and made == [0, 1, 2]
        with pytest.raises(UserError, match="was made with steps = 60, not 180; name another --out"):
            compared("--steps", "180")

    def test_parts_settle_what_they_compare(self, tmp_path):
        with pytest.raises(UserError, match="--variants does not go with --part places"):
            bps_pairs.experiment(self.asked(tmp_path, "--part", "places", "--variants", "bps"))

    def test_it_reports_every_run_that_is_there(self, tmp_path, monkeypatch):
        heights = [40, 20, 60]
        monkeypatch.setattr(bps_pairs, "one", lambda *_: (self.FIGURES, [Image.new("RGB", (4, 4))] * 8))
        monkeypatch.setattr(bps_pairs, "judged", lambda *_: self.FIGURES)
        monkeypatch.setattr(bps_pairs, "reconstruct", lambda sd, images: images)
        monkeypatch.setattr(bps_pairs, "side_by_side", lambda *_: Image.new("L", (4, heights.pop(0))))

        def found(*words):
            bps_pairs.compare(None, None, self.asked(tmp_path, *words))
            return read_json(tmp_path / "bps.json"), Image.open(tmp_path / "bps_60.png").height

        whole, height = found("--variants", "base", "skip", "--seeds", "0", "1")
        seeds = {"0": self.FIGURES, "1": self.FIGURES}
        assert whole["60 steps"] == {"base 0": seeds, "skip 40": seeds} and height == 40
        assert found("--variants", "base", "--seeds", "0") == (whole, 40)  # bug: a part replaced all
        added, height = found("--variants", "skip", "--seeds", "5")
        assert added["60 steps"] == whole["60 steps"] | {"skip 40": seeds | {"5": self.FIGURES}} and height == 60
        write_json(tmp_path / "bps.json", whole | {"batch": 4})
        with pytest.raises(UserError, match="was made with batch = 4, not 8; name another --out"):
            found()

    def test_each_set_of_places_enters_at_its_best(self, tmp_path, monkeypatch, capsys):
        """Skips are best with equal gains at 1e-2, an end; all places with head-heavy gains, 0.1 above them."""
        best = {"all": ("head-heavy", 1e-3, 0.8), "skips": ("equal", 1e-2, 0.7), "encoder": ("equal", 1e-3, 0.8)}
        asked = []

        def one(sd, judge, places, gains, lr, seed, steps, tests):
            asked.append((seed, tests))
            own, rate, iou = best[places]
            return self.FIGURES | {"IoU": iou + seed % 100 / 1000 if (gains, lr) == (own, rate) else 0.3 + lr}

        monkeypatch.setattr(bps_places, "one", one)
        monkeypatch.setattr(bps_places, "world_pairs", lambda count, seed: seed)
        bps_places.compare(None, None, self.asked(tmp_path, "--part", "places", "--seeds", "0", "2"))
        said = capsys.readouterr().out.splitlines()
        assert "| skips | equal | 0.01, an end of its list | 0.701 | 2 |" in said  # seeds 0 and 2: 0.7 and 0.702
        assert "| all | head-heavy | 0.001 | 0.801 | 2 |" in said
        assert "| all − skips | +0.100 [+0.100, +0.100] | better |" in said
        assert "| all − encoder | +0.000 [+0.000, +0.000] | not shown |" in said
        assert "| all equal | equal | 0.01, an end of its list | 0.310 | 2 |" in said
        own, other = ({each for each in asked if (each[0] >= 100) == tuning} for tuning in (True, False))
        assert {tests for _, tests in own} == {13} and {tests for _, tests in other} == {12}  # no sketch serves both
        count = len(asked)
        bps_places.compare(None, None, self.asked(tmp_path, "--part", "places", "--seeds", "2", "4"))
        assert len(asked) == count + 4 and "| all | head-heavy | 0.001 | 0.802 | 3 |" in capsys.readouterr().out
