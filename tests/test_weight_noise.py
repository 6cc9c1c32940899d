"""All of a network's weights drawn at once: the same ε, θ and gradients as layer by layer; and when a seed is stale."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")
from minibnn_kernels import reference

from minibnn.finetune import bayes, methods
from minibnn.finetune.adapters import attach_lora, attach_oft
from minibnn.finetune.all_at_once import draw_at_once, draw_weights
from minibnn.finetune.kernel import fits_at_once, room_at_once
from minibnn.finetune.weight_noise import WeightNoise
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

KERNELS = ("torch", "reference", "triton")
SMALL = UNetConfig(
    block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=8, attention_head_dim=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)


class Net(nn.Module):
    """Every kind of layer that can be random; `middle` can be computed twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.first, self.layer_norm, self.last = nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 3)
        self.checkpointing = False

    def middle(self, x):
        return torch.tanh(self.layer_norm(self.first(x)))

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).mT  # (B, 6, H, W) -> (B, HW, 6)
        return self.last(checkpoint(self.middle, x, use_reentrant=False) if self.checkpointing else self.middle(x))


def prepared(kernel, at_once, dtype=torch.float32):
    torch.manual_seed(0)
    net = Net().to(dtype)
    noise = bayes.bayesianize(net, "all", 0.1, kernel)
    draw_at_once(net, noise)
    noise.at_once = at_once
    return net, noise, torch.randn(2, 4, 3, 5, dtype=dtype), torch.Generator().manual_seed(1)


def result(net, x):
    y = net(x)
    return [y, *torch.autograd.grad(y.float().square().sum(), list(net.parameters()))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_at_once_gives_the_bits_of_layer_by_layer(kernel):
    results = []
    for at_once in (True, False):
        net, noise, x, generator = prepared(kernel, at_once)
        noise.renew(generator)
        results.append(result(net, x))
        assert noise.drawn == {}  # forgotten when backward is done
    assert len(results[0]) == 1 + 2 * 9
    for a, b in zip(*results, strict=True):
        if kernel == "triton":  # there linear layers multiply in other kernels
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_theta_of_each_layer_is_the_stream_of_its_own(kernel):
    net, noise, x, generator = prepared(kernel, True)
    noise.renew(generator)
    y = net(x)
    assert sorted(noise.drawn) == list(range(5))
    for layer in (net.conv, net.norm, net.first, net.layer_norm, net.last):
        for name, theta in zip(("weight", "bias"), noise.drawn[layer.stream], strict=True):
            mu, sigma = getattr(layer, name), getattr(layer, f"{name}_sigma")
            if mu is None:
                assert theta is None
            elif kernel == "torch":
                eps = bayes.epsilon(mu.shape, noise.seed, 2 * layer.stream + (name == "bias"), "cpu")
                assert torch.equal(theta, eps * sigma + mu)
            else:
                assert torch.equal(theta, reference.sample_weights(mu, sigma, noise.seed, layer.stream, name))
    y.sum().backward()


@pytest.mark.parametrize("kernel", KERNELS)
def test_under_autocast_weights_are_drawn_in_its_dtype_and_norms_in_float32(kernel):
    net, noise, x, generator = prepared(kernel, True)
    noise.renew(generator)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
        dtypes = {stream: weight.dtype for stream, (weight, _) in noise.drawn.items()}
    norms = {net.norm.stream, net.layer_norm.stream}
    assert dtypes == {s: torch.float32 if s in norms else torch.bfloat16 for s in range(5)}
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    exact, noise, x, generator = prepared(kernel, True, torch.float32)
    noise.renew(generator)
    wanted = result(exact, x)[1:]
    for p, grad in zip(net.parameters(), wanted, strict=True):
        assert (p.grad - grad).norm() < 0.05 * grad.norm()


@pytest.mark.parametrize("attach", ["lora", "oft"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_adapters_are_drawn_at_once_too(attach, kernel):
    results = []
    for at_once in (True, False):
        torch.manual_seed(0)
        unet, noise = UNet(SMALL), WeightNoise(kernel)
        if attach == "lora":
            attach_lora(unet, "to_q", 2, 2.0, 0.1, noise, 0)
        else:
            attach_oft(unet, "to_q", 4, 0.1, noise)
        draw_at_once(unet.train(), noise)
        noise.at_once = at_once
        noise.renew(torch.Generator().manual_seed(3))
        x, context = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 8)
        y = unet(x, torch.tensor([7]), context)
        assert bool(noise.drawn) == at_once
        random = [p for name, p in unet.named_parameters() if name.endswith("_sigma")]
        results.append([y, *torch.autograd.grad(y.square().sum(), random)])
    assert len(results[0]) > 2
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- the right seed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_a_checkpoint_is_computed_again_with_its_own_weights_or_refused(kernel, at_once):
    net, noise, x, generator = prepared(kernel, at_once)
    noise.renew(generator)
    expected = result(net, x)
    net.checkpointing = True
    for _ in range(1 if kernel == "triton" else 2):  # a second time: what the first left behind does not disturb
        for a, b in zip(result(net, x), expected, strict=True):
            assert torch.equal(a, b)
    y = net(x)
    noise.renew(generator)
    with pytest.raises(RuntimeError, match="renewed between a checkpointed forward and its backward"):
        y.sum().backward()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_forward_with_new_weights_does_not_make_an_old_checkpoint_right(at_once):
    net, noise, x, generator = prepared("torch", at_once)
    net.checkpointing = True
    noise.renew(generator)
    y = net(x)
    net(x)
    noise.renew(generator)
    net(x)
    with pytest.raises(RuntimeError, match="renewed between a checkpointed forward"):
        y.sum().backward()


@pytest.mark.parametrize("kernel", ["torch", "reference"])
def test_without_checkpoints_backward_may_come_after_the_next_draw(kernel):
    net, noise, x, generator = prepared(kernel, True)
    noise.renew(generator)
    expected, losses = result(net, x), []
    for _ in range(2):
        generator.manual_seed(1)
        noise.renew(generator)
        losses.append(net(x).square().sum())
        noise.renew(generator)
        net(x)
    for grad, wanted in zip(torch.autograd.grad(sum(losses), list(net.parameters())), expected[1:], strict=True):
        torch.testing.assert_close(grad, 2 * wanted, rtol=1e-5, atol=1e-5)


def test_a_static_seed_stays_one_tensor_and_a_late_backward_is_refused():
    """A CUDA graph reads the seed where it was when it was captured."""
    net, noise, x, generator = prepared("reference", True)
    noise.renew(generator)
    noise.static, seed, before = True, noise.seed, noise.seed.clone()
    noise.renew(generator)
    assert noise.seed is seed and seed != before
    y = net(x)
    noise.renew(generator)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_copy_of_a_network_takes_no_forward_along():
    net, noise, x, generator = prepared("torch", True)
    noise.renew(generator)
    y = net(x)
    other = copy.deepcopy(net)
    its_noise, its_layers = other.random_weights
    assert its_noise.drawn == {} and its_noise is other.conv.noise and its_noise is not noise
    assert its_layers[0] is other.conv and torch.equal(other(x), y)


@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_compiles_into_one_graph(kernel):
    net, noise, x, generator = prepared(kernel, True)
    noise.renew(generator)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for _ in range(2):  # the second draw needs no second compilation, and is another one
        noise.renew(generator)
        got, wanted = result(compiled, x), result(net, x)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    draw_weights(net)  # eagerly, before the compiled forward
    assert len(noise.drawn) == 5


# --- by memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gibibytes", "fits"), [(22, True), (14, False)])
def test_sd15_is_drawn_at_once_where_24_gb_are_free(gibibytes, fits):
    """859.5 M means and 198.2 M standard deviations are trained: 11.8 GiB of gradients and moments, 0.7 of θ and dθ."""
    assert fits_at_once(gibibytes * 2**30, 1_057_800_000, 198_300_000) == fits
    assert fits_at_once(int(16.57 * 2**30), 1_057_800_000, 198_300_000)
    assert not fits_at_once(int(16.55 * 2**30), 1_057_800_000, 198_300_000)
    assert not fits_at_once(int(17 * 2**30), 1_057_800_000, 198_300_000, itemsize=4)
    assert fits_at_once(2**30, 1_200_000, 400_000)  # a LoRA, on a card where nothing but activations is left


@pytest.mark.parametrize("deterministic", [False, True])
def test_other_programs_do_not_decide_where_every_run_is_to_give_the_same_bits(deterministic, monkeypatch):
    """Of 24 GiB this process holds 1 and keeps 2 more; the others leave 20 or 3. The drawing wants some 16."""
    gpu = SimpleNamespace(device=torch.device("cuda"), requires_grad=True, numel=lambda: 859_500_000)
    sigma = SimpleNamespace(numel=lambda: 198_300_000, requires_grad=True)
    names = [("weight", gpu), ("weight_sigma", sigma)]
    network = SimpleNamespace(parameters=lambda: (p for _, p in names), named_parameters=lambda: names)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
    found = []
    for free in (20, 3):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 24 * 2**30))
        found.append(room_at_once(network))
    assert found == [True, deterministic]


@pytest.mark.parametrize("room", [True, False])
def test_training_takes_what_there_is_room_for_and_says_so(room, monkeypatch):
    monkeypatch.setattr(methods, "room_at_once", lambda *given: room)
    options = parse(TrainOptions, "minibnn.train", ["--images", "x", "--where", "up", "--sigma", "0.1"])
    options, unet = dataclasses.replace(options, kernel="torch"), UNet(SMALL)
    noise = methods.make_trainable(unet.train(), options)
    assert noise.at_once == room
    way = "all at once" if room else "layer by layer"
    assert methods.describe(unet, options).endswith(f"drawn {way}")
    unet(torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 5, 8))
    assert bool(noise.drawn) == room
