"""minibnn against diffusers and transformers: random weights shared by name, odd sizes, three precisions.

Tolerances are twice to five times what was measured (max|d| / std of the reference; float32 about 2e-6).
The VAE is compared in float64, because float32 noise grows to 3e-5 in its decoder.
"""

import pytest
import torch
from conftest import NETWORKS

from minibnn.files.layouts import check_config
from minibnn.networks import layers

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SD2 = {
    "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True, "cross_attention_dim": 40,
    "upcast_attention": True,
}
IF = {"resnet_time_scale_shift": "scale_shift", "addition_embed_type": "text", "addition_embed_type_num_heads": 8}
ODD_LEVELS = {
    "block_out_channels": [32, 64, 96], "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def relative(got, reference):
    return ((got.double() - reference.double()).abs().max() / reference.double().std()).item()


def pair(vectors, part, oracle, **changes):
    """(ours, theirs) with the same random weights."""
    network_class, config_class = NETWORKS[part]
    config = vectors.config(part, **changes)
    theirs = oracle(config).eval()
    ours = network_class(check_config(config_class, config, part)).eval()
    prefix = "" if part != "text" or next(iter(theirs.state_dict())).startswith("text_model.") else "text_model."
    ours.load_state_dict({prefix + k: v for k, v in theirs.state_dict().items() if "position_ids" not in k})
    return ours, theirs


def unet_pair(vectors, **changes):
    torch.manual_seed(0)
    return pair(vectors, "unet", diffusers.UNet2DConditionModel.from_config, **changes)


@pytest.mark.parametrize("changes", [{}, SD2, ODD_LEVELS, IF], ids=["SD v1", "SD v2", "three levels", "IF"])
@pytest.mark.parametrize("size", [(16, 24), (13, 10), (8, 8)])
def test_unet(vectors, changes, size):
    ours, theirs = unet_pair(vectors, **changes)
    x, t = torch.randn(3, 4, *size), torch.tensor([7, 333, 999])
    context = torch.randn(3, 33, ours.config.cross_attention_dim)
    with torch.no_grad():
        assert relative(ours(x, t, context), theirs(x, t, context).sample) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_unet_in_half_precision(vectors, dtype, tolerance):
    ours, theirs = unet_pair(vectors)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([10, 600]), torch.randn(2, 77, 48)
    with torch.no_grad():
        reference = theirs(x, t, context).sample
        out = ours.to(dtype)(x.to(dtype), t, context.to(dtype))
    assert out.dtype == dtype
    assert relative(out, reference) < tolerance


def test_unet_compiles_into_one_graph(vectors):
    two_levels = {key: ODD_LEVELS[key][1:] for key in ("block_out_channels", "down_block_types")}
    two_levels["up_block_types"] = ODD_LEVELS["up_block_types"][:2]
    network = vectors.network("unet", **ODD_LEVELS | two_levels)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([10, 600]), torch.randn(2, 9, 48)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(x, t, context), network(x, t, context)) < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_vae(vectors, size):
    torch.manual_seed(1)
    ours, theirs = (network.double() for network in pair(vectors, "vae", diffusers.AutoencoderKL.from_config))
    images = torch.rand(3, 3, *size, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        mean, logvar = ours.encode(images)
        posterior = theirs.encode(images).latent_dist
        assert relative(mean, posterior.mean) < 1e-10
        assert relative(logvar, posterior.logvar) < 1e-10
        assert relative(ours.decode(mean), theirs.decode(mean).sample) < 1e-10


def test_vae_names_sizes_it_cannot_encode(vectors):
    with pytest.raises(ValueError, match="60 x 64 pixels.*multiples of 8"):
        vectors.network("vae").encode(torch.zeros(1, 3, 64, 60))


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [77, 33, 1])
def test_text_encoder(vectors, act, length):
    torch.manual_seed(2)

    def oracle(config):
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))

    ours, theirs = pair(vectors, "text", oracle, hidden_act=act)
    ids = torch.randint(0, 1000, (3, length))
    with torch.no_grad():
        assert relative(ours(ids), theirs(ids).last_hidden_state) < 1e-5


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_softmax_of_scaled_products(dtype, train):
    q, k, v = (torch.randn(2, n, 48).to(dtype).requires_grad_(train) for n in (9, 5, 5))
    heads = [x.detach().double().unflatten(-1, (4, 12)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].mT / 12**0.5).softmax(-1)
    reference = (weights @ heads[2]).transpose(1, 2).flatten(-2)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert relative(layers.attention(q, k, v, 4).detach(), reference) < tolerance
