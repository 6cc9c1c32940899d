"""Do the kernels run on this GPU? A rehearsal of everything that a training launches, before the training begins.

A kernel can fail on a machine that nobody has tried: no C compiler for Triton's launcher, a driver that is too old, too
little shared memory. Better a small layer finds that out than the first step.
"""

import torch

from . import network, reference
from .bayes_linear import bayes_linear, choose_path, sample_weights

PAIRS = [((48, 32), "weight"), ((48,), "bias"), ((5, 3), "weight")]  # a tile of either kind


def rehearse(device, dtype):
    """Run each kernel once on `device`, in `dtype`. Raises KernelFailure with the reason in one line."""
    try:
        faults = _draws(device, dtype) + _multiplies(device, dtype)
    except Exception as error:  # whatever it is, the user cannot mend it now, and training can go on without
        raise KernelFailure(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    if faults:
        raise KernelFailure(f"{faults[0]} differs from the reference")


class KernelFailure(RuntimeError):
    """The Triton kernels do not run here, or compute something else than they should."""


def _draws(device, dtype):
    """Everything at once, and one tensor: what is not equal to the reference in every bit."""
    generator = torch.Generator().manual_seed(0)
    mus, sigmas = ([torch.rand(size, generator=generator) for size, _ in PAIRS] for _ in range(2))
    seed, streams, domains = torch.tensor([2**40 + 7]), [0, 0, 1], [domain for _, domain in PAIRS]
    expected = [reference.sample_weights(m, s, seed, *source).to(dtype)
                for m, s, *source in zip(mus, sigmas, streams, domains, strict=True)]
    here = [[tensor.to(device) for tensor in tensors] for tensors in (mus, sigmas)]
    made, there = network.plan(*here, streams, domains), seed.to(device)
    thetas = network.draw(made, there, dtype)
    dmus, dsigmas = network.gradients(made, there, thetas)
    one = sample_weights(here[0][0], here[1][0], there, 0, dtype)
    noise = [reference.sample_weights(None, t.float(), seed, *source)
             for t, *source in zip(expected, streams, domains, strict=True)]
    pairs = {"a drawn weight": ([*thetas, one], [*expected, expected[0]]), "a gradient of μ": (dmus, expected),
             "a gradient of σ": (dsigmas, noise)}
    return [what for what, (got, wanted) in pairs.items()
            if not all(torch.equal(a.cpu(), b.to(a.dtype)) for a, b in zip(got, wanted, strict=True))]


def _multiplies(device, dtype):
    """A linear layer with and without bias, forward and backward, by the path that a large weight takes."""
    capability = torch.cuda.get_device_capability(device) if torch.device(device).type == "cuda" else None
    path, faults = choose_path(16, 1280, 1280, capability, dtype), []
    seed, shapes = torch.tensor([3], device=device), ((16, 32), (48, 32), (48, 32), (48,), (48,))
    for count in (3, 5):
        parts = [torch.ones(shape, device=device).requires_grad_() for shape in shapes[:count]]
        results = []
        for way in (path, "reference"):
            y = bayes_linear(*parts, seed=seed, compute_dtype=dtype, path=way)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), parts)])
        near = (torch.allclose(a, b, rtol=0, atol=0.02 * b.abs().max().item()) for a, b in zip(*results, strict=True))
        faults += [] if all(near) else ["a layer's result"]
    return faults
