"""Is our UNet as fast as diffusers', and is `layers.attention` the fastest choice here?

    python benchmarks/unet_speed.py              training step of the tiny configuration, ours / diffusers'
    python benchmarks/unet_speed.py --attention  fused attention against two matmuls and a softmax

Both sides alternate within one run; the printed ratio is that of the medians.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from minibnn.networks.unet import UNet
from minibnn.world.pretrain import UNET_CONFIG

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        print(f"training step, batch {batch:3d}: ours {a * 1e3:7.1f} ms, diffusers {b * 1e3:7.1f} ms, ratio {a / b:.3f}")


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(q, k, v):
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


SHAPES = (  # batch, heads, queries, keys, channels per head: the tiny model's, then SD's at 256 × 256 pixels
    (2, 4, 64, 64, 16), (2, 4, 64, 77, 16), (16, 4, 64, 64, 16), (16, 4, 16, 77, 32), (2, 8, 1024, 1024, 40), (2, 8, 1024, 77, 40),
)  # fmt: skip


def attention(options):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, dtype in DTYPES.items():
        for b, h, n, length, d in SHAPES:
            q, k, v = (torch.randn(b, m, h * d, device=device, dtype=dtype) for m in (n, length, length))
            words = f"{name:9s} batch {b:2d}, {h} heads of {d}, {n:4d} queries, {length:4d} keys"
            for what, train in (("forward", False), ("with backward", True)):
                leaves = [x.clone().requires_grad_(train) for x in (q, k, v)]

                def run(kernel, leaves=leaves, train=train, h=h, q=q):
                    out = kernel(*(x.unflatten(-1, (h, -1)).transpose(1, 2) for x in leaves)).transpose(1, 2).flatten(-2)
                    if train:
                        out.backward(q)

                x, y = alternate(lambda run=run: run(fused), lambda run=run: run(by_hand), options.repeats)
                print(f"{words}, {what:13s}: fused {x * 1e3:8.2f} ms, by hand {y * 1e3:8.2f} ms, ratio {x / y:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 16])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    attention(options) if options.attention else training_step(options)


if __name__ == "__main__":
    main()
