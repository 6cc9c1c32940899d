"""The noise of random weights: where ε comes from, and θ = μ + σ∘ε with its gradients.

The source of ε is called `kernel`. "torch" is PyTorch's generator, which differs between CPU and GPU. "reference" and
"triton" give the same Philox stream on every device, in plain PyTorch and in the Triton kernels of `minibnn_kernels`.

The weights of a network are drawn in one of two ways, with the same ε:

    all at once      before the network's forward: one operation of autograd makes every θ (`draw_weights`), and with
                     Triton one launch; the layers multiply as ordinary ones do
    layer by layer   within each layer; with Triton and linear layers by the fused operator, which keeps nothing

ε is not kept for backward but made again from its seed, except on a CPU, where drawing takes long and memory is cheap.
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
        self._earlier, self._plans = [], {}  # weak references to earlier seeds; {dtype: (addresses, Plan)}

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

    def taken(self, stream):
        """(weight, bias) of a layer if they were drawn at once, else None."""
        self.check()
        return self.drawn.get(stream)


def epsilon(shape, seed, stream, device):
    """ε ~ N(0, I), float32. On one device it depends only on the shape, the seed and the layer's stream number."""
    generator = torch.Generator(device).manual_seed((int(seed) + 0x9E3779B97F4A7C15 * (stream + 1)) % 2**63)
    return torch.randn(shape, generator=generator, device=device)


# --- one tensor -------------------------------------------------------------------------------------------------------


def _noise(like, seed, stream, domain, kernel):
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
    noise = _noise(sigma, seed, stream, domain, kernel).mul_(sigma)
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
    drawn = noise.taken(stream)
    if drawn is not None:
        return drawn[domain == "bias"]
    return sample_weights(mu, sigma, noise.seed, numbered(noise.kernel, stream, domain), noise.kernel, domain)


# --- all at once ------------------------------------------------------------------------------------------------------


class _DrawAll(torch.autograd.Function):
    """θ = μ + σ∘ε of many tensors in the dtype `dtype`, with the gradients of `_SampleWeights`.

    sources: [(number of the stream, domain)] of the tensors; parameters: their μ's, then their σ's.
    """

    @staticmethod
    def forward(ctx, noise, sources, dtype, *parameters):
        mus, sigmas = parameters[: len(sources)], parameters[len(sources) :]
        ctx.noise, ctx.pending, ctx.kernel, ctx.sources = weakref.ref(noise), noise.seed, noise.kernel, sources
        ctx.plan, kept = None, []
        if noise.kernel == "triton":
            from minibnn_kernels import network

            ctx.plan = _plan(noise, dtype, mus, sigmas, sources)
            thetas = network.draw(ctx.plan, noise.seed, dtype)
        else:
            thetas, on_cpu = [], mus[0].device.type == "cpu"
            for mu, sigma, (stream, domain) in zip(mus, sigmas, sources, strict=True):
                eps = _noise(sigma, noise.seed, stream, domain, noise.kernel)
                kept += [eps] if on_cpu else []
                thetas.append((eps * sigma if on_cpu else eps.mul_(sigma)).add_(mu).to(dtype))
        ctx.save_for_backward(noise.seed, *kept)
        return tuple(thetas)

    @staticmethod
    def backward(ctx, *grads):
        seed, *kept = ctx.saved_tensors
        noise = ctx.noise()
        if noise is not None and noise.seed is ctx.pending:
            noise.drawn = {}  # the end of this forward's weights; their memory is wanted
        ctx.pending = None
        if ctx.plan is not None:
            from minibnn_kernels import network

            dmus, dsigmas = network.gradients(ctx.plan, seed, grads)
            return None, None, None, *dmus, *dsigmas
        dmus = [grad.float() if grad.dtype in (torch.bfloat16, torch.float16) else grad for grad in grads]
        again = (_noise(dmu, seed, *place, ctx.kernel) for dmu, place in zip(dmus, ctx.sources, strict=True))
        return None, None, None, *dmus, *(dmu * eps for dmu, eps in zip(dmus, kept or again, strict=True))


def _plan(noise, dtype, mus, sigmas, sources):
    """The Plan of the Triton launches: made once, and again when a parameter has moved."""
    places = [tensor.data_ptr() for tensor in (*mus, *sigmas)]
    if noise._plans.get(dtype, (None,))[0] != places:
        from minibnn_kernels import network

        noise._plans[dtype] = places, network.plan(mus, sigmas, *zip(*sources, strict=True))
    return noise._plans[dtype][1]


def draw_weights(network):
    """Draw θ of all random layers of a network for one forward, in the dtype that autocast asks for.

    `draw_at_once` has this done before each forward in training; call it yourself only where that forward is compiled.
    """
    noise, layers = network.random_weights
    noise.check()
    groups, noise.drawn = {}, {}
    for layer in layers:
        if layer.training:
            for name in layer.RANDOM:
                mu, sigma = getattr(layer, name), getattr(layer, f"{name}_sigma")
                if sigma is not None:
                    kind = mu.device.type
                    autocast = kind != "meta" and torch.is_autocast_enabled(kind) and not layer.FULL_PRECISION
                    dtype = torch.get_autocast_dtype(kind) if autocast else mu.dtype
                    groups.setdefault(dtype, []).append((layer, name, mu, sigma))
    for dtype, members in groups.items():
        layers, names, mus, sigmas = zip(*members, strict=True)
        domains = ["bias" if name == "bias" else "weight" for name in names]
        streams = [numbered(noise.kernel, layer.stream, domain) for layer, domain in zip(layers, domains, strict=True)]
        thetas = _DrawAll.apply(noise, list(zip(streams, domains, strict=True)), dtype, *mus, *sigmas)
        for layer, domain, theta in zip(layers, domains, thetas, strict=True):
            weight, bias = noise.drawn.get(layer.stream, (None, None))
            noise.drawn[layer.stream] = (weight, theta) if domain == "bias" else (theta, bias)


def _before_forward(network, inputs):
    noise, _ = network.random_weights
    if network.training and noise.at_once and not torch.compiler.is_compiling():
        draw_weights(network)


def draw_at_once(network, noise):
    """From now on draw the weights of a network's random layers all at once, before each forward in training.

    noise: their WeightNoise, whose `at_once` can turn it off. Call it once, after the random layers were put in.
    """
    layers = [layer for layer in network.modules() if getattr(layer, "noise", None) is noise]
    network.random_weights = noise, layers
    network.random_weights_hook = network.register_forward_pre_hook(_before_forward)


def draw_no_more(network):
    """Undo `draw_at_once`, if it was done: for a network without random layers."""
    if hasattr(network, "random_weights"):
        network.random_weights_hook.remove()
        del network.random_weights, network.random_weights_hook
