"""What do random weights cost the processor? `python benchmarks/host_cost.py`, on a CPU.

    launching   a GPU does nothing before the CPU has told it to. The UNet of SD v1.5, with its 686 tensors and 96
                random layers but of few channels, goes forward and backward on the CPU, where what a GPU would compute
                for random weights is left out: Triton launches nothing, and the authors' ε is memory as it was found.
                What remains is mostly the time of Python and of PyTorch's dispatcher.
    tiny        a training step of the bundled model at batch 1, everything computed, with and without random weights

The variants of a table alternate within one run. Times are those of the process, not of the clock on the wall, so that
other programs disturb little. But: launching's plain matrix products and its float32 without autocast are the CPU's.
"""

import argparse
import functools
import statistics
import time
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from minibnn import StableDiffusion
from minibnn.finetune import bayes
from minibnn.finetune.all_at_once import draw_at_once
from minibnn.networks.unet import UNet, UNetConfig

FEW_CHANNELS = UNetConfig(block_out_channels=(32, 64, 64, 64), attention_head_dim=4, cross_attention_dim=32)


class RandLinear(nn.Module):
    """The authors' layer without its arithmetic on ε: a clamp rewrites σ, then one operation after another."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_sigma = nn.Parameter(torch.full_like(layer.weight, 0.01))
        self.bias_sigma = None if layer.bias is None else nn.Parameter(torch.full_like(layer.bias, 0.01))

    def forward(self, x):
        self.weight_sigma.data = torch.clamp(self.weight_sigma.data, min=bayes.SIGMA_MIN)
        weight, bias = self.weight + self.weight_sigma * torch.empty_like(self.weight_sigma), None
        if self.bias is not None:
            self.bias_sigma.data = torch.clamp(self.bias_sigma.data, min=bayes.SIGMA_MIN)
            bias = self.bias + self.bias_sigma * torch.empty_like(self.bias_sigma)
        return F.linear(x, weight, bias)


def alternate(functions, rounds):
    """[[seconds of the process]] of each function, called in turn; three rounds warm up."""
    times = [[] for _ in functions]
    for i in range(rounds + 3):
        for function, results in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if i >= 3:
                results.append(time.process_time() - start)
    return times


def show(names, times, base):
    """The table: median, least, and the median of the ratios to `base` round by round."""
    print("| | median ms | least ms | times as long as " + base + " |")
    print("|---|---|---|---|")
    of_base = times[names.index(base)]
    for name, own in zip(names, times, strict=True):
        ratio = statistics.median(a / b for a, b in zip(own, of_base, strict=True))
        print(f"| {name} | {statistics.median(own) * 1e3:.1f} | {min(own) * 1e3:.1f} | {ratio:.3f} |", flush=True)


def unet_with(how):
    """(a UNet of SD v1.5's topology and few channels, its WeightNoise). how: "plain", "authors", or how ours draws."""
    torch.manual_seed(0)
    unet, noise = UNet(FEW_CHANNELS).train(), bayes.WeightNoise()
    if how == "authors":
        for name in bayes.select(unet, "paper"):
            unet.set_submodule(name, RandLinear(unet.get_submodule(name)))
    elif how != "plain":
        noise = bayes.bayesianize(unet, "paper", 0.01, "triton")
        draw_at_once(unet, noise)
        noise.at_once = how == "ours, all at once"
    return unet, noise


def launching(rounds):
    """Forward and backward of a network as large as SD's in everything but its channels."""
    from minibnn_kernels import bayes_linear, network

    torch.set_flush_denormal(True)  # memory as it was found may hold numbers that are slow to multiply
    names = ["plain", "authors", "ours, layer by layer", "ours, all at once"]
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    generator = torch.Generator().manual_seed(0)

    def step(unet, noise):
        noise.renew(generator)
        unet(x, t, context).sum().backward()
        unet.zero_grad()

    steps = [functools.partial(step, *unet_with(name)) for name in names]
    nothing = mock.Mock(return_value=None)
    with (
        mock.patch.object(bayes_linear, "_launch", nothing), mock.patch.object(network, "_launch", nothing),
        mock.patch.object(bayes_linear, "INTERPRET", True),  # else a CPU would take the reference
        mock.patch.object(bayes_linear, "choose_path", lambda *_: "mixed"),
    ):
        show(names, alternate(steps, rounds), "authors")


def tiny(rounds):
    """A training step of the bundled model: forward, backward, clipping, AdamW, clamp."""
    names, steps = ["plain", "layer by layer, ε drawn twice", "all at once, ε kept"], []
    for name in names:
        unet, noise = StableDiffusion.load("tiny").unet.train(), bayes.WeightNoise()
        if name != "plain":
            noise = bayes.bayesianize(unet, "paper", 0.01)
            draw_at_once(unet, noise)
            noise.at_once = name.startswith("all")
        optimiser = torch.optim.AdamW(unet.parameters(), 1e-6, fused=True)
        steps.append(functools.partial(train, unet, noise, optimiser, torch.Generator().manual_seed(0)))
    show(names, alternate(steps, rounds), "plain")


def train(unet, noise, optimiser, generator):
    """One step on random latents of 64 × 64 pixels."""
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.randint(0, 1000, (1,), generator=generator)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    noise.renew(generator)
    F.mse_loss(unet(x, t, context), x).backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    bayes.clamp_sigma(unet)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("launching", "tiny"), default=("launching", "tiny"))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {options.rounds} rounds")
    for what in options.what:
        print(f"\n{what}")
        {"launching": launching, "tiny": tiny}[what](options.rounds)


if __name__ == "__main__":
    main()
