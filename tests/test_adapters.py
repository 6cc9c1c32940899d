"""LoRA and OFT: against peft and closed forms, without and with random weights; putting in, merging, taking out."""

import copy

import pytest
import torch
from torch import nn

from minibnn import UNet
from minibnn.finetune import adapters, all_at_once, bayes, lora, oft, weight_noise

D = torch.float64
LORA = {"layers": "to_q,to_out.0", "rank": 3, "alpha": 5.0}
OFT = {"layers": "to_q,to_out.0", "blocks": 2}
KINDS = {"lora": (adapters.attach_lora, LORA), "oft": (adapters.attach_oft, OFT)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lora_layer(sigma=None, noise=None, bias=True, seed=0):
    """A LoRA whose `up` has left its start, on a layer of odd sizes, in float64."""
    torch.manual_seed(seed)
    layer = lora.LoraLinear(nn.Linear(7, 5, bias=bias).double(), 3, 4.5, sigma, noise, 2, seeded(seed))
    nn.init.normal_(layer.up)
    return layer


def oft_layer(sigma=None, noise=None, dtype=D):
    torch.manual_seed(0)
    layer = oft.OftLinear(nn.Linear(12, 5).to(dtype), 3, sigma, noise, 2)
    nn.init.normal_(layer.q, std=0.3)
    return layer


def moved(network):
    """The network with every trainable parameter away from its start."""
    generator = seeded(5)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture
def call(vectors):
    x, t, context = vectors["in/x"], torch.tensor([3, 900]), vectors["in/ctx"]

    def call(unet):
        with torch.no_grad():
            return unet(x, t, context)

    return call


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_eq3_is_w_plus_scaled_b_a():
    """h = W₀x + (α/r)·BAx, Hu et al. 2021, eq. 3 and §4.1."""
    layer, x = lora_layer(), torch.randn(2, 4, 7, dtype=D)
    expected = x @ (layer.weight + 4.5 / 3 * layer.up @ layer.down).T + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_lora_is_pefts(bias):
    """The same output and the same gradients as peft's layer with the same matrices."""
    peft = pytest.importorskip("peft")
    layer, x = lora_layer(bias=bias), torch.randn(2, 4, 7, dtype=D)
    plain = nn.Linear(7, 5, bias=bias).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    config = peft.LoraConfig(r=3, lora_alpha=4.5, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(plain), config, autocast_adapter_dtype=False).double()
    a, b = theirs.base_model.model[0].lora_A.default.weight, theirs.base_model.model[0].lora_B.default.weight
    a.data.copy_(layer.down.data), b.data.copy_(layer.up.data)
    y, z = layer(x), theirs(x)
    torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
    y.pow(3).sum().backward()
    z.pow(3).sum().backward()
    torch.testing.assert_close(layer.down.grad, a.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.up.grad, b.grad, rtol=1e-10, atol=1e-10)
    assert layer.weight.grad is None


def test_lora_starts_like_diffusers_script():
    """`init_lora_weights="gaussian"`: A ~ N(0, 1/r²), B = 0."""
    layer = lora.LoraLinear(nn.Linear(4000, 90), 8, 8, None, None, 0, seeded())
    assert layer.down.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert layer.up.count_nonzero() == 0


def test_app_d_only_the_up_matrix_of_lora_is_random():
    noise = bayes.WeightNoise()
    layer, x = lora_layer(0.2, noise), torch.randn(6, 7, dtype=D)
    assert {n for n, _ in layer.named_parameters() if n.endswith("_sigma")} == {"up_sigma"}
    plain = copy.deepcopy(layer)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    noise.renew(seeded(1))
    with torch.no_grad():
        plain.up += 0.2 * bayes.epsilon(plain.up.shape, noise.seed, 4, "cpu").double()
    layer.train()
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    assert all(layer.get_parameter(name).grad.abs().min() > 0 for name in ("down", "up", "up_sigma"))


def test_lora_draws_the_kernels_stream():
    from minibnn_kernels import reference

    x, results = torch.randn(6, 7), []
    for kernel in ("reference", "triton"):
        noise = bayes.WeightNoise(kernel)
        layer = lora_layer(0.2, noise).float()
        noise.renew(seeded())
        y = layer(x)
        up = reference.sample_weights(layer.up, layer.up_sigma, noise.seed, 2)
        torch.testing.assert_close(y, x @ (layer.weight + 1.5 * up @ layer.down).T + layer.bias)
        results.append(torch.autograd.grad(y.square().sum(), (layer.down, layer.up, layer.up_sigma)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


# --- OFT --------------------------------------------------------------------------------------------------------------


def test_app_d_cayley_map():
    """R = (I + 0.5(Q − Qᵀ))(I − 0.5(Q − Qᵀ))⁻¹ as printed."""
    q, eye = torch.randn(3, 9, 9, dtype=D), torch.eye(9, dtype=D)
    expected = (eye + 0.5 * (q - q.mT)) @ torch.linalg.inv(eye - 0.5 * (q - q.mT))
    torch.testing.assert_close(oft.cayley(q), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("size", "sigma"), [(2, 0.01), (80, 0.01), (192, 0.01), (320, 0.01), (320, 0.1), (1280, 0.01)])
def test_r_is_orthogonal(size, sigma):
    """In float32, for a sample of Q around a mean that has moved.

    Measured: 2e-7 at most, and for σ = 0.1 3e-7 on an AMD EPYC, 2.1e-6 on an Intel Xeon. 320 roundings leave 2e-5.
    """
    mean = 0.01 * torch.randn(2, size, size, generator=seeded(1))
    q = bayes.sample_weights(mean, torch.full_like(mean, sigma), torch.tensor([7]), 3)
    r = oft.cayley(q).double()
    assert (r.mT @ r - torch.eye(size, dtype=D)).abs().max() < 1e-5
    assert (r - torch.eye(size)).abs().max() > 1e-3
    assert torch.linalg.det(r).min() > 0.99  # a rotation, not a reflection


def test_oft_gradients():
    noise = bayes.WeightNoise()
    q = torch.randn(2, 3, 3, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(oft.cayley, q)
    weight, sigma = torch.randn(5, 6, dtype=D), torch.full((2, 3, 3), 0.1, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, s: oft.rotate(weight, oft.cayley(bayes.sample_tensor(q, s, noise, 1))), (q, sigma)
    )


def test_oft_is_pefts():
    """peft's parameter is the upper triangle of −½(Q − Qᵀ); `use_cayley_neumann=False` is the exact inverse."""
    peft = pytest.importorskip("peft")
    layer, x = oft_layer(dtype=torch.float32), torch.randn(2, 4, 12)
    plain = nn.Linear(12, 5)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    config = peft.OFTConfig(r=3, oft_block_size=0, target_modules=["0"], use_cayley_neumann=False)
    theirs = peft.get_peft_model(nn.Sequential(plain), config)
    upper = torch.triu_indices(4, 4, 1)
    theirs.base_model.model[0].oft_R.default.weight.data.copy_(-oft.skew(layer.q)[:, upper[0], upper[1]])
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)  # measured: 5e-7
    torch.testing.assert_close(layer.merged()(x), theirs.merge_and_unload()(x), rtol=1e-5, atol=1e-5)


def test_oft_keeps_what_rotations_keep():
    """W Rᵀ (W Rᵀ)ᵀ = W Wᵀ: lengths of and angles between the neurons (Qiu et al. 2023), also for a sample."""
    noise = bayes.WeightNoise()
    layer = oft_layer(0.2, noise)
    noise.renew(seeded())
    theta = layer(torch.eye(12, dtype=D)) - layer.bias  # (in, out) = θᵀ
    torch.testing.assert_close(theta.T @ theta, layer.weight @ layer.weight.T, rtol=1e-6, atol=1e-6)
    assert (theta.T - layer.weight).abs().max() > 0.1


def test_app_d_only_q_of_oft_is_random():
    noise = bayes.WeightNoise()
    layer, x = oft_layer(0.2, noise), torch.randn(6, 12, dtype=D)
    assert {n for n, _ in layer.named_parameters() if n.endswith("_sigma")} == {"q_sigma"}
    plain = copy.deepcopy(layer)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    noise.renew(seeded(1))
    with torch.no_grad():
        plain.q += 0.2 * bayes.epsilon(plain.q.shape, noise.seed, 4, "cpu").double()
    layer.train()
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    assert layer.q.grad.abs().sum() > 0 and layer.q_sigma.grad.abs().sum() > 0
    outputs = []
    for kernel in ("reference", "triton"):
        layer.noise = bayes.WeightNoise(kernel)
        layer.noise.renew(seeded(2))
        outputs.append(layer.float()(x.float()))
    torch.testing.assert_close(*outputs)
    assert not torch.equal(outputs[0], plain(x).float())


def test_coft_projects_as_peft():
    peft = pytest.importorskip("peft")
    q = torch.randn(4, 5, 5, generator=seeded())
    q[1] *= 1e-4
    q[2] = 0
    got, norm = oft.skew(oft.project(q, 0.3)), oft.skew(q).flatten(1).norm(dim=1)
    assert (got.flatten(1).norm(dim=1) <= 0.15 * (1 + 1e-6)).all()
    assert torch.equal(got[1:3], oft.skew(q)[1:3])  # inside the ball: untouched
    torch.testing.assert_close(got[0] * norm[0], oft.skew(q)[0] * 0.15)
    module = peft.tuners.oft.layer.OFTRotationModule(4, 10, 5, 20, coft=True, eps=0.3)
    upper = torch.triu_indices(5, 5, 1)
    projected = module._project_batch(-oft.skew(q)[:, upper[0], upper[1]], eps=0.3)
    torch.testing.assert_close(-got[:, upper[0], upper[1]], projected)


def test_autocast_does_not_touch_r():
    """In bfloat16 the rotation alone would lose 3 digits: the rotated weight is rounded once, as any weight is."""
    layer, x = oft_layer(dtype=torch.float32), torch.randn(6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        rotated = oft.rotate(layer.weight.double(), oft.cayley(layer.q.double())).float()
        expected = nn.functional.linear(x, rotated, layer.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


# --- in the UNet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [None, 0.01], ids=["plain", "bayes"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_the_output_is_the_bases_to_the_last_bit(vectors, call, kind, sigma):
    attach, settings = KINDS[kind]
    unet = vectors.network("unet")
    before = call(unet)
    total = sum(p.numel() for p in unet.parameters())
    attach(unet, **settings, sigma=sigma, noise=bayes.WeightNoise())
    assert torch.equal(call(unet), before)
    names = {n for n, p in unet.named_parameters() if p.requires_grad}
    assert names and {n.rsplit(".", 1)[1] for n in names} <= {"down", "up", "up_sigma", "q", "q_sigma"}
    assert sum(p.numel() for p in unet.parameters() if not p.requires_grad) == total
    assert all(".attn1." in n or ".attn2." in n for n in names)
    assert not torch.equal(call(moved(unet)), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_the_network_is_the_base_and_draws_nothing(vectors, call, kind, dtype):
    """To the last bit, in the midst of a training with random weights, which then goes on as if nothing had been."""
    attach, settings = KINDS[kind]
    unet, noise = vectors.network("unet"), bayes.WeightNoise()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        before = call(unet)
        attach(unet, **settings, sigma=0.01, noise=noise)
        all_at_once.draw_at_once(moved(unet).train(), noise)
        noise.renew(seeded())
        adapted, drawn, random = call(unet), dict(noise.drawn), torch.get_rng_state()
        assert drawn and not torch.equal(adapted, before)
        noise.renew(seeded())
        with adapters.switched_off(unet):
            assert torch.equal(call(unet), before)
        assert not noise.drawn and torch.equal(torch.get_rng_state(), random)
        assert torch.equal(call(unet), adapted)
    assert all(module.training for module in unet.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_merge(vectors, call, kind):
    attach, settings = KINDS[kind]
    unet = vectors.network("unet")
    base, before = call(unet), {k: v.clone() for k, v in unet.state_dict().items()}
    attach(unet, **settings)
    adapted, attached = call(moved(unet)), adapters.adapters(unet)
    adapters.merge(unet)
    assert unet.state_dict().keys() == before.keys()
    scale = (adapted - base).abs().max().item()
    torch.testing.assert_close(call(unet), adapted, rtol=0, atol=(1e-4 if kind == "lora" else 0) * scale)
    assert scale > 0.01
    for name, adapter in attached.items():  # merging leaves the weights it replaces as they were
        assert torch.equal(adapter.weight, before[name + ".weight"])
        assert not torch.equal(unet.get_submodule(name).weight, adapter.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_after_merging_nothing_is_drawn(vectors, call, kind):
    """Bug of an earlier version: the noise of all removed adapters was drawn before each forward in training."""
    unet, noise = vectors.network("unet"), bayes.WeightNoise()
    KINDS[kind][0](unet, sigma=0.01, noise=noise)
    all_at_once.draw_at_once(unet, noise)
    other = copy.deepcopy(unet)
    adapters.merge(unet)
    call(unet.train())
    assert not noise.drawn and not unet._forward_pre_hooks and not hasattr(unet, "random_weights")
    call(other.train())  # a copy made before draws on, until it is merged itself
    drawn = other.random_weights[0].drawn
    assert len(drawn) == len(adapters.adapters(other)) > 0
    drawn.clear()
    adapters.merge(other)
    call(other)
    assert not drawn and not other._forward_pre_hooks


@pytest.mark.parametrize(("kind", "trained", "random"), [("lora", 797_184, 399_360), ("oft", 23_304_192, 23_304_192)])
def test_sizes_for_sd15(kind, trained, random):
    """Rank 4, four blocks, on the 128 attention projections."""
    with torch.device("meta"):
        unet = UNet()
        KINDS[kind][0](unet, sigma=0.01, noise=bayes.WeightNoise())
    sizes = {n: p.numel() for n, p in unet.named_parameters() if p.requires_grad}
    assert len(adapters.adapters(unet)) == 128
    assert sum(v for n, v in sizes.items() if not n.endswith("_sigma")) == trained
    assert sum(v for n, v in sizes.items() if n.endswith("_sigma")) == random


def test_layers_are_chosen_by_the_ends_of_their_names(vectors):
    unet = vectors.network("unet")
    blocks = sum(name.endswith(".attn1") for name, _ in unet.named_modules())
    assert len(adapters.select(unet)) == 8 * blocks
    assert len(adapters.select(unet, "to_k,attn2.to_v")) == 3 * blocks
    assert len(adapters.select(unet, "ff.net.0.proj,linear_1")) == blocks + 1
    for words in ("to_q,to_x", "o_q", "to_q,", "conv_in"):
        with pytest.raises(ValueError, match="no linear layer is called"):
            adapters.select(unet, words)


def test_ranks_and_blocks_that_do_not_fit_leave_the_network_alone(vectors):
    unet = vectors.network("unet")
    smallest = min(min(unet.get_submodule(n).weight.shape) for n in adapters.select(unet))
    adapters.attach_lora(copy.deepcopy(unet), rank=smallest)
    with pytest.raises(ValueError, match=f"to_q: rank {smallest + 1} is larger than a layer of .* inputs and "):
        adapters.attach_lora(unet, rank=smallest + 1)
    with pytest.raises(ValueError, match="to_q: 7 blocks do not divide a layer of"):
        adapters.attach_oft(unet, blocks=7)
    with pytest.raises(ValueError, match="blocks do not divide"):  # blocks of 1 × 1 cannot turn anything
        adapters.attach_oft(unet, blocks=smallest)
    assert not adapters.adapters(unet) and all(p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize(
    ("attach", "size"), [(adapters.attach_lora, {"rank": 2}), (adapters.attach_oft, {"blocks": 2})])
def test_random_weights_need_no_noise_of_the_callers(vectors, call, attach, size):
    """Bug of an earlier version: with sigma alone the first forward in training ended in an AttributeError."""
    unet = vectors.network("unet")
    plain, drawn = call(unet), []
    noise = attach(unet, sigma=0.1, **size)
    for seed in (0, 1, 0):
        noise.renew(seeded(seed))
        drawn.append(call(unet.train()))
    assert torch.equal(drawn[0], drawn[2]) and (drawn[0] - drawn[1]).abs().max() > 1e-3
    torch.testing.assert_close(call(unet.eval()), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("where", "begins"), [("up", "up_blocks."), ("mid,down", ("mid_block.", "down_blocks."))])
def test_q_is_random_in_the_blocks_that_are_named(vectors, call, where, begins):
    """As in the up blocks of the authors' script; elsewhere Q is trained without noise. At the mean nothing differs."""
    unet, noise = vectors.network("unet"), weight_noise.WeightNoise()
    everywhere, plain = copy.deepcopy(unet), call(unet)
    adapters.attach_oft(everywhere, blocks=2, sigma=0.1, noise=noise)
    adapters.attach_oft(unet, blocks=2, sigma=0.1, noise=noise, where=where)
    random = {name for name, adapter in adapters.adapters(unet).items() if adapter.q_sigma is not None}
    assert random == {name for name in adapters.adapters(everywhere) if name.startswith(begins)}
    assert 0 < len(random) < len(adapters.adapters(unet)) and all(
        adapter.q.requires_grad for adapter in adapters.adapters(unet).values())
    all_at_once.draw_at_once(unet, noise)
    drawn = []
    for at_once in (True, False):
        noise.at_once = at_once
        noise.renew(seeded())
        drawn.append(call(unet.train()))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)
    assert (drawn[0] - plain).abs().max() > 1e-3
    torch.testing.assert_close(call(unet.eval()), plain, rtol=1e-4, atol=1e-5)


def test_constrain_holds_every_block_in_its_ball(vectors):
    unet = vectors.network("unet")
    adapters.attach_oft(unet, blocks=2)
    adapters.constrain(moved(unet), 0.01)
    for adapter in adapters.adapters(unet).values():
        torch.testing.assert_close(oft.skew(adapter.q).flatten(1).norm(dim=1), torch.full((2,), 0.01 / 2**0.5))
