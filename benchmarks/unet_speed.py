"""Is our UNet as fast as that of diffusers, in the tiny configuration: a training step, and drawing by DDIM?

    python benchmarks/unet_speed.py                              training steps at batch 1, 2 and 16
    python benchmarks/unet_speed.py --what drawing --repeats 5   50 steps of DDIM with guidance at batch 1 and 8
    python benchmarks/unet_speed.py --what compiled              ours by torch.compile against ours without it

Both sides alternate within one run and have the same weights; for drawing they also start from the same noise, and
diffusers' side is its UNet and its DDIMScheduler in the loop of its pipeline. Without a GPU it is the process whose
seconds are counted, so that other programs disturb little. The printed ratio is the median of the rounds' ratios.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from minibnn import StableDiffusion, devices, schedule
from minibnn.networks.transformer import same_prompt
from minibnn.networks.unet import UNet
from minibnn.sample import eps_of_joined
from minibnn.world.bundled import TINY

UNET_CONFIG, STEPS, GUIDANCE = TINY.unet, 50, 7.5


def alternate(a, b, repeats):
    """(median seconds of a(), of b(), the median of their ratios), called in turn."""
    clock, times = time.perf_counter if torch.cuda.is_available() else time.process_time, ([], [])
    warm = min(2, repeats)
    for i in range(repeats + warm):
        for f, results in zip((a, b), times, strict=True):
            start = clock()
            f()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= warm:
                results.append(clock() - start)
    return *map(statistics.median, times), statistics.median(a / b for a, b in zip(*times, strict=True))


def show(what, batch, a, b, ratio, names=("ours", "diffusers")):
    figures = f"{names[0]} {a * 1e3:7.1f} ms, {names[1]} {b * 1e3:7.1f} ms, ratio {ratio:.3f}"
    print(f"{what}, batch {batch:3d}: {figures}", flush=True)


def networks():
    """(ours, diffusers', the device): the same random weights."""
    from diffusers import UNet2DConditionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    ours = UNet(UNET_CONFIG).to(device)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(UNET_CONFIG).items()}
    theirs = UNet2DConditionModel.from_config({"sample_size": 8, **config}).to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, device


def training_step(options):
    ours, theirs, device = networks()
    optimisers = {n: torch.optim.AdamW(n.parameters(), 1e-5, fused=True) for n in (ours, theirs)}

    def step(network, predicted, target):
        F.mse_loss(predicted, target).backward()
        optimisers[network].step()
        optimisers[network].zero_grad()

    for batch in options.batch:
        x, t = torch.randn(batch, 4, 8, 8, device=device), torch.randint(0, 1000, (batch,), device=device)
        context = torch.randn(batch, 77, UNET_CONFIG.cross_attention_dim, device=device)
        times = alternate(
            lambda x=x, t=t, c=context: step(ours, ours(x, t, c), x),
            lambda x=x, t=t, c=context: step(theirs, theirs(x, t, c).sample, x),
            options.repeats,
        )
        show("training step", batch, *times)


@torch.no_grad()
def drawing(options):
    """50 steps of DDIM: prompts are encoded and latents decoded elsewhere."""
    from diffusers import DDIMScheduler

    ours, theirs, device = networks()
    sd = StableDiffusion.load("tiny").to(device)
    sd.unet, scheduler = ours.eval(), DDIMScheduler.from_config(sd.configs["scheduler"])
    theirs.eval()
    for batch in options.batch:
        x = torch.randn(batch, 4, 8, 8, device=device)
        context = torch.randn(2 * batch, 77, UNET_CONFIG.cross_attention_dim, device=device)

        def draw(x=x, context=context):
            def model(x, t):
                return eps_of_joined(sd, x, t, context, GUIDANCE)

            with same_prompt(sd.unet):
                return schedule.sample_ddim(model, x, schedule.timesteps(STEPS), sd.alphas_cumprod)

        def draw_theirs(x=x, context=context):
            scheduler.set_timesteps(STEPS, device=device)
            for t in scheduler.timesteps:
                eps_u, eps_c = theirs(scheduler.scale_model_input(torch.cat([x, x]), t), t, context).sample.chunk(2)
                x = scheduler.step(eps_u + GUIDANCE * (eps_c - eps_u), t, x).prev_sample
            return x

        difference = (draw() - draw_theirs()).abs().max() / x.std()
        assert difference < 1e-3, difference
        show(f"{STEPS} steps of DDIM", batch, *alternate(draw, draw_theirs, options.repeats))


def compiled(options):
    """Training steps and forwards as in drawing; the first line of each batch says how long compiling took."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    plain = UNet(UNET_CONFIG).to(device)
    fused, names = devices.compiled(plain), ("compiled", "plain")
    optimiser = torch.optim.AdamW(plain.parameters(), 1e-5, fused=True)
    for batch in options.batch:
        x, t = torch.randn(batch, 4, 8, 8, device=device), torch.randint(0, 1000, (batch,), device=device)
        context = torch.randn(batch, 77, UNET_CONFIG.cross_attention_dim, device=device)

        def step(network, x=x, t=t, context=context):
            F.mse_loss(network(x, t, context), x).backward()
            optimiser.step()
            optimiser.zero_grad()

        def forward(network, x=x, t=t, context=context):
            with torch.no_grad():
                return network(x, t, context)

        start = time.perf_counter()
        step(fused)
        difference = (forward(fused) - forward(plain)).abs().max() / forward(plain).std()
        print(f"compiled in {time.perf_counter() - start:.0f} s, difference {difference:.1e} of the standard deviation")
        for what, do in (("training step", step), ("forward", forward)):
            times = alternate(lambda do=do: do(fused), lambda do=do: do(plain), options.repeats)
            show(what, batch, *times, names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("training", "drawing", "compiled"), default="training")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", help="[1 2 16; drawing 1 8; compiled 2]")
    options = parser.parse_args()
    options.batch = options.batch or {"training": [1, 2, 16], "drawing": [1, 8], "compiled": [2]}[options.what]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    {"training": training_step, "drawing": drawing, "compiled": compiled}[options.what](options)


if __name__ == "__main__":
    main()
