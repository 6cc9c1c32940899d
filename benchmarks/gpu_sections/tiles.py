"""Tiles: the kernels with other tiles than those of the tables, which were chosen by compiling and not by timing."""

import importlib.util
from unittest import mock

import torch

from . import timing

SAMPLE = [(*size, warps) for size in ((8, 64), (8, 128), (16, 64), (32, 64), (16, 128)) for warps in (4, 8)]
WGRAD = ((32, 64, 64, 4), (64, 64, 32, 4), (64, 64, 64, 4), (64, 64, 64, 8), (64, 128, 64, 4), (64, 128, 64, 8),
         (64, 128, 128, 8), (128, 128, 64, 8), (32, 128, 64, 8), (32, 128, 128, 8))
FORWARD = ((64, 64, 32, 8), (64, 128, 32, 8), (128, 64, 32, 8), (64, 64, 64, 8), (128, 128, 32, 8))
SHAPES = ((8192, 2560, 320), (8192, 320, 320), (2048, 5120, 640), (2048, 640, 640), (512, 10240, 1280),
          (512, 1280, 5120))  # (M, N, K) of SD v1.5 at batch 2


def run(section):
    if importlib.util.find_spec("triton") is None:
        section.missing("triton")
        return
    from minibnn_kernels import bayes_linear as b

    shapes = [(8, 16, 16)] if section.tiny else SHAPES
    sweeps = {
        "sample": (b.sample_kernel, [(0, *tile) for tile in SAMPLE], [(0, 16, 64)] if section.tiny else
                   [(0, 10240, 1280), (0, 640, 640)], sample),
        "wgrad": (b.wgrad_kernel, WGRAD, shapes, wgrad), "forward": (b.forward_kernel, FORWARD, shapes, forward),
    }
    for name, (kernel, tiles, sizes, function) in sweeps.items():
        for tile in tiles[:1] if section.tiny else dict.fromkeys([b.TILES[kernel], *tiles]):
            table = b.TILES | {kernel: tile}
            with mock.patch.object(b, "TILES", table):
                section.measure(f"{name} {tile}", of_sizes, section, function, sizes, needs=5)


def of_sizes(section, function, sizes):
    """{"M x N x K": spread} of one tile."""
    return {" x ".join(map(str, size)): timing.of_device(function(section, *size), 10)
            for size in sizes}


def tensors(section, m, n, k):
    x, dy = torch.randn(m, k, device=section.device), torch.randn(m, n, device=section.device)
    mu, sigma = (torch.rand(n, k, device=section.device) for _ in range(2))
    return x.to(section.dtype), dy.to(section.dtype), mu, sigma, torch.tensor([1], device=section.device)


def sample(section, m, n, k):
    from minibnn_kernels.bayes_linear import sample_weights

    _, _, mu, sigma, seed = tensors(section, 1, n, k)
    return lambda: sample_weights(mu, sigma, seed, 0, section.dtype)


def wgrad(section, m, n, k):
    from minibnn_kernels import bayes_linear as b

    x, dy, mu, _, seed = tensors(section, m, n, k)
    dmu, dsigma = torch.empty_like(mu), torch.empty_like(mu)
    arguments = (dy, x, seed, 0, dmu, dsigma, None, None, m, n, k)
    return lambda: b._launch(b.wgrad_kernel, section.dtype, {"BN": n, "BK": k}, *arguments)


def forward(section, m, n, k):
    from minibnn_kernels import bayes_linear as b

    x, dy, mu, sigma, seed = tensors(section, m, n, k)
    arguments = (x, mu, sigma, None, None, seed, 0, dy, m, n, k)
    return lambda: b._launch(b.forward_kernel, section.dtype, {"BM": m, "BN": n}, *arguments)
