"""Ceilings: what this GPU can do at best, against which everything else is to be read."""

import importlib.util

import torch

from . import timing


def run(section):
    small = section.tiny
    section.measure("copy, bytes a second", copy, section, 2**20 if small else 2**30)
    for dtype in (section.dtype, torch.float32):
        name = str(dtype).removeprefix("torch.")
        section.measure(f"matmul, operations a second, {name}", matmul, section, 64 if small else 8192, dtype)
    section.measure("torch.randn, normals a second", randn, section, 2**10 if small else 2**27)
    if importlib.util.find_spec("triton") is None:
        section.missing("triton")
        return
    section.measure("our stream, normals a second, one tensor", ours, section, (4, 8) if small else (16384, 8192))
    rate = section.measure("our stream, θ a second, all weights of SD v1.5 at once", at_once, section)
    section.goal("SD v1.5's 198 M random weights are drawn in 1 ms", rate and 198.2464e6 / rate["rate"] * 1e3, most=1.0)


def rate(amount, times):
    """{"rate": amount a second at the median, and the seconds}."""
    return {"rate": amount / times["median"], "seconds": times}


def copy(section, size):
    """Bytes read and written."""
    a, b = (torch.empty(size, dtype=torch.uint8, device=section.device) for _ in range(2))
    return rate(2 * size, timing.of_device(lambda: b.copy_(a)))


def matmul(section, side, dtype):
    a = torch.randn(side, side, device=section.device).to(dtype)
    return rate(2 * side**3, timing.of_device(lambda: a @ a, 10))


def randn(section, size):
    out = torch.empty(size, device=section.device)
    return rate(size, timing.of_device(out.normal_))


def ours(section, shape):
    """θ of one large tensor, drawn in the compute dtype."""
    from minibnn_kernels.bayes_linear import sample_weights

    mu, sigma = (torch.rand(shape, device=section.device) for _ in range(2))
    seed = torch.tensor([1], device=section.device)
    return rate(mu.numel(), timing.of_device(lambda: sample_weights(mu, sigma, seed, 0, section.dtype)))


def at_once(section):
    """θ of the random layers of SD v1.5, or of a few small tensors, in one launch."""
    from kernel import sd15_layers
    from minibnn_kernels import network

    shapes = [(5, 8)]
    if not section.tiny:
        shapes = [size for layer, count in sd15_layers("paper", 1).items() for size in [(layer.n, layer.k)] * count]
    mus, sigmas = ([torch.rand(shape, device=section.device) for shape in shapes] for _ in range(2))
    made = network.plan(mus, sigmas, list(range(len(shapes))), ["weight"] * len(shapes))
    seed = torch.tensor([1], device=section.device)
    times = timing.of_device(lambda: network.draw(made, seed, section.dtype))
    return rate(sum(mu.numel() for mu in mus), times)
