"""Gates: do the kernels compile, run and agree with the reference to the last bit, and a training with itself?"""

import contextlib
import importlib.util
import os
import subprocess
import sys

import torch

from minibnn.train import fine_tuning, train

from . import ROOT, models

SHAPES = ((320, 320), (2560, 320), (640, 2560), (10240, 1280))  # (N, K) of SD v1.5
ERRORS = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # parts of the largest value


def run(section):
    if importlib.util.find_spec("triton") is None:
        section.missing("triton")
    else:
        for dtype in (torch.bfloat16,) if section.tiny else (torch.float32, torch.float16, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            if not section.tiny:  # slow in Triton's interpreter, and tested elsewhere
                passes(section, f"every kernel compiles, runs and agrees, {name}", rehearsed, section.device, dtype)
            passes(section, f"layers against float64, {name}", layers_agree, section, dtype)
        for n, k in ((5, 22),) if section.tiny else SHAPES:
            passes(section, f"θ, {n} x {k}, equals the reference to the last bit", theta_agrees, section, n, k)
        passes(section, "drawing all at once equals the reference to the last bit", network_agrees, section)
    passes(section, "two trainings of the same seed have the same bits", repeats, section)
    if importlib.util.find_spec("triton") is not None:
        passes(section, "all at once, layer by layer and the reference train alike", ways_agree, section)
    if not section.tiny:
        passes(section, "a training step does not wait for the GPU", never_waits, section)
        section.measure("tests of the kernels", tests, section, needs=30)


def passes(section, what, function, *arguments):
    """Note a gate: the function returns a dictionary with "pass"."""
    result = section.measure(what, function, *arguments)
    section.goal(what, False if result is None else result["pass"])


def rehearsed(device, dtype):
    """What a training does before its first step; raises where it would go on without the kernels."""
    from minibnn_kernels.rehearsal import rehearse

    rehearse(device, dtype)
    return {"pass": True}


def theta_agrees(section, n, k):
    """The kernel on the device, the reference on the device and, of the first rows, on the CPU."""
    from minibnn_kernels import reference
    from minibnn_kernels.bayes_linear import sample_weights

    seed = torch.tensor([987654321987], device=section.device)
    mu, sigma = (torch.rand(n, k, device=section.device) for _ in range(2))
    theta = sample_weights(mu, sigma, seed, 5, torch.float32)
    differ = (theta != reference.sample_weights(mu, sigma, seed.cpu(), 5)).sum().item()
    rows = min(n, 64)
    on_cpu = reference.sample_weights(mu[:rows].cpu(), sigma[:rows].cpu(), seed.cpu(), 5)
    differ_from_cpu = (theta[:rows].cpu() != on_cpu).sum().item()
    return {"pass": differ == differ_from_cpu == 0, "elements": n * k, "differ": differ,
            "differ from the CPU's": differ_from_cpu}


def layers_agree(section, dtype):
    """y and all gradients of the three paths against float64 autograd with the same ε: the largest error."""
    from minibnn_kernels import reference
    from minibnn_kernels.bayes_linear import bayes_linear

    m, n, k = (5, 4, 6) if section.tiny else (1000, 648, 1280)
    generator, worst = torch.Generator().manual_seed(0), {}
    x, mu = (torch.randn(rows, k, generator=generator) for rows in (m, n))
    sigma, bias_mu, bias_sigma = (torch.rand(size, generator=generator) for size in ((n, k), (n,), (n,)))
    dy, seed = torch.randn(m, n, generator=generator).to(dtype), torch.tensor([7])
    parts = [x.to(dtype).float(), mu, sigma, bias_mu, bias_sigma]
    wide = [part.double().requires_grad_() for part in parts]
    noise = [reference.epsilon(7, 0, n, *size).double() for size in ((k,), (1, "bias"))]
    theta, bias = wide[1] + wide[2] * noise[0], wide[3] + wide[4] * noise[1][:, 0]
    y = wide[0] @ theta.T + bias
    expected = [y, *torch.autograd.grad(y, wide, dy.double())]
    for path in ("fused",) if section.tiny else ("fused", "mixed", "sample"):
        here = [part.to(section.device).requires_grad_() for part in parts]
        y = bayes_linear(*here, seed=seed.to(section.device), compute_dtype=dtype, path=path)
        results = [y, *torch.autograd.grad(y, here, dy.to(section.device))]
        errors = (((a.cpu().double() - b).abs().max() / b.abs().max()).item()
                  for a, b in zip(results, expected, strict=True))
        worst[path] = max(errors)
    return {"pass": max(worst.values()) <= ERRORS[dtype], "limit": ERRORS[dtype], "largest errors": worst}


def network_agrees(section):
    """θ, dμ and dσ of tensors of many shapes, drawn in one launch."""
    from minibnn_kernels import network, reference

    shapes = ((5, 6), (3,)) if section.tiny else ((1280, 5120), (10240,), (320, 4, 3, 3), (2560, 320))
    mus, sigmas = ([torch.rand(shape, device=section.device) for shape in shapes] for _ in range(2))
    domains, streams = ["weight" if len(shape) > 1 else "bias" for shape in shapes], list(range(len(shapes)))
    seed = torch.tensor([2**41 + 3], device=section.device)
    made, differ = network.plan(mus, sigmas, streams, domains), 0
    thetas = network.draw(made, seed, section.dtype)
    _, dsigmas = network.gradients(made, seed, thetas)
    for i, source in enumerate(zip(streams, domains, strict=True)):
        expected = reference.sample_weights(mus[i], sigmas[i], seed.cpu(), *source).to(section.dtype)
        differ += (thetas[i] != expected).sum().item()
        noise = reference.sample_weights(None, expected.float(), seed.cpu(), *source)
        differ += (dsigmas[i] != noise).sum().item()
    return {"pass": differ == 0, "differ": differ}


def small_training(section, steps=3, at_once=True, watch=contextlib.nullcontext, **changes):
    """Train a small network some steps in the loop of the command; returns its weights and losses."""
    sd = models.model(section) if section.tiny else small_model(section)
    options = models.training_options(section, steps=steps, lr=1e-3, **changes)
    training = fine_tuning(sd, options)
    if options.bayes and not at_once:
        training.sd.unet.random_weights[0].at_once = False
    losses = []

    def see(training):
        losses.append(training.losses)

    with watch():
        train(training, options, models.batches(section, sd.unet.config), [] if watch is forbidden else [see])
    weights = torch.cat([p.detach().flatten() for p in sd.unet.parameters()])
    return weights, [figures["diffusion"] for figures in losses if figures]


def small_model(section):
    """A model with the small UNet on the GPU."""
    sd = models.StableDiffusion.load("tiny").to(section.device)
    config = models.unet_config(True)
    torch.manual_seed(0)
    sd.unet = models.UNet(config).to(section.device)
    return sd


def repeats(section):
    """Training twice, with the deterministic kernels of PyTorch asked for as the command does."""
    from minibnn.devices import make_deterministic

    make_deterministic(section.device)
    changes = {"kernel": "torch"} if section.tiny else {}
    (first, losses), (second, _) = (small_training(section, **changes) for _ in range(2))
    differ = (first != second).sum().item()
    return {"pass": differ == 0 and bool(first.isfinite().all()), "differ": differ, "losses": losses}


def ways_agree(section):
    """Losses of three steps; each way draws the same ε."""
    found, ours = {}, models.kernel(section)
    ways = {"all at once": (ours, True), "layer by layer": (ours, False), "reference": ("reference", True)}
    for name, (kernel, at_once) in ways.items():
        _, found[name] = small_training(section, steps=1 if section.tiny else 3, kernel=kernel, at_once=at_once)
    expected = torch.tensor(found["reference"])
    away = max((torch.tensor(losses) / expected - 1).abs().max().item() for losses in found.values())
    return {"pass": away < 0.02, "limit": 0.02, "largest relative difference": away, "losses": found}


@contextlib.contextmanager
def forbidden():
    """Inside, whatever makes the host wait for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def never_waits(section):
    small_training(section)  # compiles the kernels, which may wait
    small_training(section, steps=4, watch=forbidden)
    return {"pass": True}


def tests(section):
    """The kernels' own tests, on this GPU; their last lines."""
    if importlib.util.find_spec("pytest") is None:
        section.missing("pytest")
        return {"pass": None}
    files = [str(ROOT / "tests" / f"test_kernel{name}.py") for name in ("s", "_network", "_training")]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files], cwd=ROOT, text=True,
        capture_output=True, timeout=max(section.left() - 5, 10), env=os.environ | {"PYTHONPATH": path},
    )
    return {"pass": done.returncode == 0, "end": done.stdout[-3000:]}


