"""Is a training step of our UNet as fast as one of diffusers' UNet, in the tiny configuration?

    python benchmarks/unet_speed.py

Both sides alternate within one run; the printed ratio is that of the medians.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from minibnn.networks.unet import UNet
from minibnn.world.pretrain import UNET_CONFIG


def alternate(a, b, repeats):
    """Median seconds of a() and b(), called in turn."""
    times = ([], [])
    for i in range(repeats + 2):
        for f, results in zip((a, b), times, strict=True):
            start = time.perf_counter()
            f()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= 2:  # the first two warm up
                results.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def training_step(options):
    from diffusers import UNet2DConditionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    ours = UNet(UNET_CONFIG).to(device)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(UNET_CONFIG).items()}
    theirs = UNet2DConditionModel.from_config({"sample_size": 8, **config}).to(device)
    theirs.load_state_dict(ours.state_dict())
    optimisers = {n: torch.optim.AdamW(n.parameters(), 1e-5, fused=True) for n in (ours, theirs)}

    def step(network, predicted, target):
        F.mse_loss(predicted, target).backward()
        optimisers[network].step()
        optimisers[network].zero_grad()

    for batch in options.batch:
        x, t = torch.randn(batch, 4, 8, 8, device=device), torch.randint(0, 1000, (batch,), device=device)
        context = torch.randn(batch, 77, UNET_CONFIG.cross_attention_dim, device=device)
        a, b = alternate(
            lambda x=x, t=t, c=context: step(ours, ours(x, t, c), x),
            lambda x=x, t=t, c=context: step(theirs, theirs(x, t, c).sample, x),
            options.repeats,
        )
        figures = f"ours {a * 1e3:7.1f} ms, diffusers {b * 1e3:7.1f} ms, ratio {a / b:.3f}"
        print(f"training step, batch {batch:3d}: {figures}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 16])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    training_step(options)


if __name__ == "__main__":
    main()
