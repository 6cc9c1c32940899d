"""The noise of random weights: where ε comes from, and θ = μ + σ∘ε with its gradients.

The source of ε is called `kernel`. "torch" is PyTorch's generator, which differs between CPU and GPU. "reference" and
"triton" give the same Philox stream on every device, in plain PyTorch and in the Triton kernels of `minibnn_kernels`.

A layer asks for its weights by `sample_tensor`, which draws them there and then, and makes ε again from its seed for
backward; with Triton, linear layers use a fused operator instead. Or `all_at_once.py` has drawn all weights before the
network's forward, with the same ε.
"""

import weakref

import torch


class WeightNoise:
    """The seed of the current forward and the source of ε (`kernel`), shared by all random layers of a network.

    at_once: may a network's weights be drawn all at once? static: `renew` writes into the tensor `seed`, once that is
    on the network's device, instead of making a new one, as a CUDA graph needs it; then a backward must come before the
    next `renew`, or else it raises.
    """

    def __init__(self, kernel: str = "torch") -> None:
        self.kernel, self.seed = kernel, torch.zeros(1, dtype=torch.int64)
        self.at_once, self.static = True, False
        self._forget()

    def _forget(self):
        self.drawn = {}  # {stream: (θ of the weight, θ of the bias or None)} of the current forward, if drawn at once
        self.plans = {}  # of the launches that draw at once: {dtype: (addresses, Plan)}
        self._earlier = []  # weak references to earlier seeds

    def __getstate__(self):
        """What a copy of a network takes along: not what belongs to a forward that has begun."""
        return {name: self.__dict__[name] for name in ("kernel", "seed", "at_once", "static")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()

    def renew(self, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        """Take the next seed from `generator`, on the CPU. A backward still to come keeps its own.

        device: of the network; the Triton kernels read the seed there, the other sources on the CPU.
        """
        seed = torch.randint(2**62, (1,), generator=generator)
        if self.kernel == "triton" and torch.device(device).type == "cuda":
            seed = seed.pin_memory().to(device, non_blocking=True)  # waits for nothing
        self.drawn = {}
        if self.static and self.seed.device == seed.device:
            self.seed.copy_(seed)
            return
        self._earlier = [ref for ref in (*self._earlier, weakref.ref(self.seed)) if ref() is not None]
        self.seed = seed

    def check(self):
        """Raises RuntimeError when a checkpointed forward is about to be computed again with other weights."""
        if torch.compiler.is_compiling() or not self._earlier or torch._C._current_graph_task_id() == -1:
            return  # this is a forward, and not one that is computed again within a backward
        if any(ref() is not None for ref in self._earlier):  # the graph of an earlier forward holds its seed
            raise RuntimeError(
                "the random weights were renewed between a checkpointed forward and its backward, which would "
                "compute with other weights: call backward() before the next renew()"
            )

    def drawn_for(self, stream):
        """(weight, bias) of a layer if they were drawn at once, else None."""
        self.check()
        return self.drawn.get(stream)


def epsilon(shape, seed, stream, device):
    """ε ~ N(0, I), float32. On one device it depends only on the shape, the seed and the layer's stream number."""
    apart = 0x9E3779B97F4A7C15 * (stream + 1)  # 2⁶⁴ / golden ratio: the seeds of neighbouring streams lie far apart
    generator = torch.Generator(device).manual_seed((int(seed) + apart) % 2**63)
    return torch.randn(shape, generator=generator, device=device)


# --- one tensor -------------------------------------------------------------------------------------------------------


def noise_like(like, seed, stream, domain, kernel):
    """ε in the shape, dtype and place of a tensor; "torch" knows no domains, see `numbered`."""
    if kernel == "torch":
        return epsilon(like.shape, seed, stream, like.device).to(like.dtype)
    from minibnn_kernels.reference import epsilon as philox

    return philox(seed, stream, len(like), like.shape[1:].numel(), domain, like.device).view(like.shape).to(like.dtype)


def _theta(mu, sigma, seed, stream, kernel, domain):
    """μ + σ∘ε, or σ∘ε if μ is None, with ε from the source that `kernel` names."""
    if torch.compiler.is_compiling():
        return torch.ops.minibnn.theta(mu, sigma, seed, stream, kernel, domain)
    if kernel == "triton":
        from minibnn_kernels.bayes_linear import sample_weights as fused

        return fused(None if mu is None else mu.contiguous(), sigma.contiguous(), seed, stream, sigma.dtype, domain)
    noise = noise_like(sigma, seed, stream, domain, kernel).mul_(sigma)
    return noise if mu is None else noise.add_(mu)


@torch.library.custom_op("minibnn::theta", mutates_args=())
def _theta_op(mu: torch.Tensor | None, sigma: torch.Tensor, seed: torch.Tensor, stream: int, kernel: str,
              domain: str) -> torch.Tensor:
    """The same as one operation, because torch.compile can trace neither a generator nor a launch."""
    return _theta(mu, sigma, seed, stream, kernel, domain)


@_theta_op.register_fake
def _(mu, sigma, seed, stream, kernel, domain):
    return torch.empty_like(sigma, memory_format=torch.contiguous_format)


class _SampleWeights(torch.autograd.Function):
    """θ = μ + σ∘ε, with ∂L/∂μ = ∂L/∂θ and ∂L/∂σ = ∂L/∂θ ∘ ε.   (paper, App. C, eq. 14)"""

    @staticmethod
    def forward(ctx, mu, sigma, seed, *source):
        ctx.save_for_backward(seed)
        ctx.source, ctx.pending = source, seed  # see `WeightNoise.check`
        return _theta(mu, sigma, seed, *source)

    @staticmethod
    def backward(ctx, grad):
        ctx.pending = None
        return grad, _theta(None, grad, *ctx.saved_tensors, *ctx.source), None, None, None, None


def sample_weights(mu, sigma, seed, stream, kernel="torch", domain="weight"):
    """A sample θ = μ + σ∘ε, differentiable in μ and σ; domain: "weight" or "bias".   (paper, §4.2, App. C)"""
    return _SampleWeights.apply(mu, sigma, seed, stream, kernel, domain)


def numbered(kernel, stream, domain):
    """The number of a layer's stream: with "torch" its bias has one of its own, otherwise a domain of its own."""
    return 2 * stream + (domain == "bias") if kernel == "torch" else stream


def sample_tensor(mu, sigma, noise, stream, domain="weight"):
    """θ of the current forward. noise: a WeightNoise; stream: the layer's number. A layer's bias has its own ε."""
    drawn = noise.drawn_for(stream)
    if drawn is not None:
        return drawn[domain == "bias"]
    return sample_weights(mu, sigma, noise.seed, numbered(noise.kernel, stream, domain), noise.kernel, domain)
