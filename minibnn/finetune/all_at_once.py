"""All random weights of a network drawn before its forward: the ε of `weight_noise.py`, but faster.

Optional, and to be skipped at a first reading: without it each layer draws its own weights, with the same ε.

    all at once      one operation of autograd for each dtype makes every θ, with Triton in one launch; layers multiply
                     as usual
    layer by layer   each layer makes its own; with Triton and linear layers by the fused operator, which keeps nothing

ε is made again for backward from its seed, except on a CPU, where drawing takes long and memory is cheap.

But: all of θ is in memory at once, 0.37 GiB for SD v1.5 in half precision. `kernel.py` decides whether there is room.
"""

import weakref

import torch

from .weight_noise import noise_like, numbered


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
                eps = noise_like(sigma, noise.seed, stream, domain, noise.kernel)
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
        again = (noise_like(dmu, seed, *place, ctx.kernel) for dmu, place in zip(dmus, ctx.sources, strict=True))
        return None, None, None, *dmus, *(dmu * eps for dmu, eps in zip(dmus, kept or again, strict=True))


def _plan(noise, dtype, mus, sigmas, sources):
    """The Plan of the Triton launches: made once, and again when a parameter has moved."""
    places = [tensor.data_ptr() for tensor in (*mus, *sigmas)]
    if noise.plans.get(dtype, (None,))[0] != places:
        from minibnn_kernels import network

        noise.plans[dtype] = places, network.plan(mus, sigmas, *zip(*sources, strict=True))
    return noise.plans[dtype][1]


def draw_weights(network):
    """Draw θ of all random layers of a network for one forward, in the dtype that autocast asks for.

    `draw_at_once` has this done before each forward in training; call it yourself only where that forward is compiled.
    """
    noise, layers = network.random_weights
    noise.check()
    noise.drawn = {}
    for dtype, random in random_parameters(layers).items():
        places, mus, sigmas = zip(*random, strict=True)
        sources = [(numbered(noise.kernel, *place), place[1]) for place in places]
        thetas = _DrawAll.apply(noise, sources, dtype, *mus, *sigmas)
        for (stream, domain), theta in zip(places, thetas, strict=True):
            weight, bias = noise.drawn.get(stream, (None, None))
            noise.drawn[stream] = (weight, theta) if domain == "bias" else (theta, bias)


def random_parameters(layers):
    """What is random in layers that train: {dtype that θ is wanted in: [((number of the layer, domain), μ, σ)]}."""
    found = {}
    for layer in layers:
        if not layer.training:
            continue
        for name in layer.RANDOM:
            mu, sigma = getattr(layer, name), getattr(layer, f"{name}_sigma")
            if sigma is not None:
                place = layer.stream, "bias" if name == "bias" else "weight"
                found.setdefault(dtype_of(layer, mu), []).append((place, mu, sigma))
    return found


def dtype_of(layer, mu):
    """The dtype in which a layer multiplies now: that of autocast, unless the layer keeps full precision."""
    kind = mu.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind) and not layer.FULL_PRECISION
    return torch.get_autocast_dtype(kind) if autocast else mu.dtype


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
