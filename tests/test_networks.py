"""The three networks against float64 outputs of diffusers and transformers (tests/data), and each typical bug."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minibnn.networks import layers, text_encoder, transformer, unet
from minibnn.networks.vae import sample_latents


@pytest.mark.parametrize("small", [False, True])
class TestVectors:
    def test_unet(self, vectors, small):
        network, prefix = vectors.network("unet", small), "small/" * small
        with torch.no_grad():
            for t in vectors.times:
                out = network(vectors["in/x"], torch.full((2,), t), vectors["in/ctx"])
                vectors.check(f"{prefix}unet.eps.t{t}", out)
            mixed = network(vectors["in/x"], vectors["out/unet.mixed_t"], vectors["in/ctx"])
        vectors.check(f"{prefix}unet.eps.mixed", mixed)

    def test_vae(self, vectors, small):
        network, prefix = vectors.network("vae", small), "small/" * small
        with torch.no_grad():
            mean, logvar = network.encode(vectors["in/image"])
            vectors.check(f"{prefix}vae.mean", mean)
            vectors.check(f"{prefix}vae.logvar", logvar)
            vectors.check(f"{prefix}vae.decode", network.decode(vectors["in/z"]))

    def test_text_encoder(self, vectors, small):
        prefix = "small/" * small
        with torch.no_grad():
            for act in ("quick_gelu", "gelu"):
                network = vectors.network("text", small, hidden_act=act)
                vectors.check(f"{prefix}clip.{act}.last_hidden_state", network(vectors["in/ids"]))
            network = vectors.network("text", small)
            vectors.check(f"{prefix}clip.quick_gelu.len9", network(vectors["in/ids"][:, :9]))


def test_time_embedding(vectors):
    network, times = vectors.network("unet"), torch.tensor(vectors.times)
    sinusoid = unet.time_sinusoid(times, 32)
    vectors.check("unet.time_sinusoid", sinusoid)
    vectors.check("unet.time_embedding", network.time_embedding(sinusoid))


def test_vaswani_sinusoid_as_printed():
    """PE(pos, 2i) = sin(pos/10000^(2i/d)), PE(pos, 2i+1) = cos(…): here all cosines, then all sines."""
    out = unet.time_sinusoid(torch.tensor([0, 7, 999]), 10).double()
    for row, position in enumerate((0, 7, 999)):
        for i in range(5):
            angle = torch.tensor(position / 10000 ** (2 * i / 10), dtype=torch.float64)
            torch.testing.assert_close(out[row, i], angle.cos(), rtol=0, atol=1e-4)
            torch.testing.assert_close(out[row, 5 + i], angle.sin(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_vaswani_eq1_attention_as_printed(causal):
    """softmax(QKᵀ/√d_k) V in each head of d_k channels, the heads side by side; numpy in float64 is the oracle."""
    heads, d = 3, 5
    q, k, v = torch.randn(3, 2, 7, heads * d, dtype=torch.float64)
    out = layers.attention(q, k, v, heads, causal=causal)
    for picture in range(2):
        for head in range(heads):
            own = slice(d * head, d * head + d)
            scores = (q[picture, :, own].numpy() @ k[picture, :, own].numpy().T) / d**0.5
            if causal:
                scores[np.triu_indices(7, 1)] = -np.inf
            weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            expected = weights @ v[picture, :, own].numpy()
            np.testing.assert_allclose(out[picture, :, own].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_kingma_and_welling_eq10_as_printed():
    """z = μ + σ ⊙ ε with ε ~ N(0, I), where σ² = exp(logvar)."""
    mean, logvar = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    z = sample_latents(mean, logvar, torch.Generator().manual_seed(3))
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    expected = mean.numpy() + np.sqrt(np.exp(logvar.numpy())) * eps.double().numpy()
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_shazeer_geglu_as_printed():
    """GEGLU(x, W, V, b, c) = GELU(xW + b) ⊗ (xV + c), GELU(z) = z Φ(z); the official weight stacks V above W."""
    module, x = transformer.GEGLU(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    (v, w), (c, b) = module.proj.weight.chunk(2), module.proj.bias.chunk(2)
    z = x @ w.T + b
    printed = z * torch.special.ndtr(z) * (x @ v.T + c)
    torch.testing.assert_close(module(x), printed, rtol=1e-12, atol=1e-12)


def test_every_block(vectors):
    network, seen = vectors.network("unet"), {}
    names = ["conv_in", "mid_block", *(f"{d}_blocks.{i}" for d in ("down", "up") for i in range(4))]
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out[0] if isinstance(out, tuple) else out})
        )
    t = int(vectors["out/unet.block.t"])
    with torch.no_grad():
        network(vectors["in/x"], torch.full((2,), t), vectors["in/ctx"])
    for name in names:
        vectors.check(f"unet.block.{name}", seen[name][:1])


def test_gradients(vectors):
    network = vectors.network("unet")
    out = network(vectors["in/x"], vectors["out/unet.mixed_t"], vectors["in/ctx"])
    loss = F.mse_loss(out, vectors["in/noise"])
    loss.backward()
    vectors.check("train.loss", loss)
    norm = torch.stack([p.grad.double().norm() for p in network.parameters()]).norm()
    vectors.check("train.grad_norm_all", norm)
    keys = [k for k in vectors.arrays if k.startswith("out/train.grad.")]
    assert len(keys) == 8
    for key in keys:
        name = key.removeprefix("out/train.grad.")
        vectors.check(f"train.grad.{name}", network.get_parameter(name).grad[:64])


def test_gradient_checkpointing_computes_each_block_twice_and_changes_nothing(vectors):
    gradients = []
    for checkpointing in (False, True):
        network, calls = vectors.network("unet"), []
        network.gradient_checkpointing = checkpointing
        blocks = [*network.down_blocks, network.mid_block, *network.up_blocks]
        for block in blocks:
            block.register_forward_pre_hook(lambda block, inputs, calls=calls: calls.append(block))
        network(vectors["in/x"], vectors["out/unet.mixed_t"], vectors["in/ctx"]).square().mean().backward()
        assert [calls.count(block) for block in blocks] == [1 + checkpointing] * len(blocks)
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("upcast", [False, True])
def test_upcast_attention_multiplies_in_float32(vectors, monkeypatch, upcast):
    """In 16 bits and under autocast; what follows gets the weights' dtype back."""
    seen = []

    def see(q, k, v, heads):
        seen.append({tensor.dtype for tensor in (q, k, v)} | {torch.is_autocast_enabled("cpu")})
        return layers.attention(q, k, v, heads)

    monkeypatch.setattr(transformer, "attention", see)
    inputs = vectors["in/x"], vectors["out/unet.mixed_t"], vectors["in/ctx"]
    network = vectors.network("unet", upcast_attention=upcast)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(*inputs).dtype == torch.bfloat16
    assert seen and all(one == ({torch.float32, False} if upcast else {torch.bfloat16, True}) for one in seen)
    seen.clear()
    with torch.no_grad():
        half = (tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in inputs)
        assert network.bfloat16()(*half).dtype == torch.bfloat16
    assert seen and all(one == {torch.float32 if upcast else torch.bfloat16, False} for one in seen)


def test_vae_encoder_shifts_with_its_input(vectors):
    """Moving a picture by f pixels moves its latent by one place, unless convolutions were padded on all sides."""
    network = vectors.network("vae")
    f = network.factor
    big = torch.randn(1, 3, 28 * f, 28 * f, generator=torch.Generator().manual_seed(0))
    for norm in (m for m in network.modules() if isinstance(m, nn.GroupNorm)):  # only these see the whole picture
        norm.forward = lambda x: x
    network.encoder.mid_block.attentions[0].forward = lambda x: x
    with torch.no_grad():
        a, _ = network.encode(big[..., : 27 * f, : 27 * f])
        b, _ = network.encode(big[..., f:, f:])
    assert torch.allclose(a[..., 13:15, 13:15], b[..., 12:14, 12:14], atol=1e-5 * a.std().item())


# --- each row of the table of typical bugs moves an output by more than the tolerance ---------------------------------


def set_eps(network, kind, eps, where=""):
    for name, module in network.named_modules():
        if isinstance(module, kind) and where in name:
            module.eps = eps


def resnet_norms(network, eps):
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm) and ("resnets" in name or name == "conv_norm_out"):
            module.eps = eps


def transformer_norms(network, eps):
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm) and name.endswith("norm") and "attentions" in name:
            module.eps = eps


def set_heads(network, heads):
    for module in network.modules():
        if isinstance(module, transformer.Attention):
            module.heads = heads


def set_groups(network):
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 16


def symmetric_padding(network):
    for module in network.modules():
        if isinstance(module, layers.Downsample):
            module.symmetric, module.conv.padding = True, (1, 1)


def bilinear(patch):
    original = F.interpolate
    patch.setattr(F, "interpolate", lambda x, mode, **k: original(x, mode="bilinear", **k))


def scale_by_channels(patch):
    def wrong(q, k, v, heads, causal=False):
        return ((q @ k.transpose(-1, -2)) / q.shape[-1]).softmax(-1) @ v

    patch.setattr("minibnn.networks.vae.attention", wrong)


def frequency_shift(patch):
    def wrong(t, channels):
        half = channels // 2
        angle = t[:, None] * torch.exp(-torch.log(torch.tensor(1e4)) / (half - 1) * torch.arange(half))
        return torch.cat([angle.cos(), angle.sin()], -1)

    patch.setattr(unet, "time_sinusoid", wrong)


def reversed_skips(patch):
    original, cat = unet.UpBlock.forward, torch.cat

    def wrong(self, *inputs):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(torch, "cat", lambda tensors, dim: cat(tensors[::-1], dim))
            return original(self, *inputs)

    patch.setattr(unet.UpBlock, "forward", wrong)


def swapped_sinusoid(patch):
    original = unet.time_sinusoid
    patch.setattr(unet, "time_sinusoid", lambda t, c: original(t, c).roll(c // 2, dims=-1))


BUGS = {  # name of the table's row: (parts it must show in, set, on the network, on the code)
    "unet resnet GN eps 1e-5->1e-6": ("unet", "small", lambda n: resnet_norms(n, 1e-6), None),
    "unet transformer GN eps 1e-6->1e-5": ("unet", "small", lambda n: transformer_norms(n, 1e-5), None),
    "unet LN eps 1e-5->1e-6": ("unet", "small", lambda n: set_eps(n, nn.LayerNorm, 1e-6), None),
    "vae GN eps 1e-6->1e-5": ("enc dec", "small", lambda n: set_eps(n, nn.GroupNorm, 1e-5), None),
    "clip LN eps 1e-5->1e-6": ("clip", "small", lambda n: set_eps(n, nn.LayerNorm, 1e-6), None),
    "unet 4 heads not 8": ("unet", "main", lambda n: set_heads(n, 4), None),
    "sin/cos not flipped": ("unet", "main", None, swapped_sinusoid),
    "freq_shift 1": ("unet", "main", None, frequency_shift),
    "GEGLU tanh gelu": ("unet", "main", None, lambda p: p.setattr(
        transformer.F, "gelu", lambda x, gelu=F.gelu: gelu(x, approximate="tanh"))),
    "clip gelu not quick": ("clip", "main", None, lambda p: p.setitem(
        text_encoder.ACTIVATIONS, "quick_gelu", text_encoder.F.gelu)),
    "clip no causal mask": ("clip", "main", None, lambda p: p.setattr(
        text_encoder, "attention", lambda q, k, v, heads, causal: layers.attention(q, k, v, heads))),
    "vae encoder symmetric pad": ("enc", "main", symmetric_padding, None),
    "vae attn scale 1/C": ("enc dec", "main", None, scale_by_channels),
    "upsample bilinear": ("unet dec", "main", None, bilinear),
    "groups 16 not 8": ("unet enc dec", "main", set_groups, None),
    "skip order reversed in concat": ("unet", "main", None, reversed_skips),
}


@pytest.mark.parametrize("bug", BUGS)
def test_vectors_catch(vectors, monkeypatch, bug):
    parts, which, on_network, on_code = BUGS[bug]
    if on_code:
        on_code(monkeypatch)
    small, prefix = which == "small", "small/" * (which == "small")
    for part in parts.split():
        network = vectors.network({"unet": "unet", "enc": "vae", "dec": "vae", "clip": "text"}[part], small)
        if on_network:
            on_network(network)
        with torch.no_grad():
            if part == "unet":
                key = "unet.eps.t500"
                out = network(vectors["in/x"], torch.full((2,), 500), vectors["in/ctx"])
            elif part == "enc":
                key, out = "vae.mean", network.encode(vectors["in/image"])[0]
            elif part == "dec":
                key, out = "vae.decode", network.decode(vectors["in/z"])
            else:
                key, out = "clip.quick_gelu.last_hidden_state", network(vectors["in/ids"])
        error, tolerance = vectors.error(prefix + key, out)
        assert error > 3 * tolerance, f"{part}: {error:.1e} hides within the tolerance {tolerance:.1e}"
