"""Every official layout loads; what does not fit says why; what is written opens elsewhere."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from conftest import NETWORKS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minibnn.files import layouts, ldm, store, weights
from minibnn.files.configs import SD2_TEXT, SD2_UNET
from minibnn.files.layouts import check_config, find_tensors
from minibnn.files.weights import WeightsError
from minibnn.networks.text_encoder import TextEncoder, TextEncoderConfig
from minibnn.networks.unet import UNet
from minibnn.networks.vae import VAE


def meta(part, config=None):
    network_class, config_class = NETWORKS[part]
    with torch.device("meta"):
        return network_class(check_config(config_class, config, part))


def shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


# --- names and shapes of the official files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "config", "manifest", "parameters"),
    [
        ("unet", None, "sd15_diffusers_unet", 859_520_964),
        ("vae", None, "sd15_diffusers_vae_new", 83_653_863),
        ("text", None, "sd15_diffusers_text_encoder_noposids", 123_060_480),
        ("unet", SD2_UNET, "sd20base_diffusers_unet", 865_910_724),
        ("unet", SD2_UNET, "sd21_768v_diffusers_unet", 865_910_724),
        ("text", SD2_TEXT, "sd2_diffusers_text_encoder_noposids", 340_387_840),
    ],
)
def test_state_dict_equals_the_official_file(manifests, part, config, manifest, parameters):
    network = meta(part, config)
    assert shapes(network) == manifests[manifest]
    assert sum(p.numel() for p in network.parameters()) == parameters


LAYOUTS = [
    ("unet", "unet", None, "sd15_diffusers_unet"),
    ("unet", "unet", None, "sd15_ldm_emaonly"),
    ("unet", "unet", None, "sd15_ldm_minimal"),
    ("unet", "unet", None, "sd15_ldm_pruned_with_ema"),
    ("unet", "unet", SD2_UNET, "sd2_ldm_emaonly"),
    ("vae", "vae", None, "sd15_diffusers_vae_old"),
    ("vae", "vae", None, "sd15_diffusers_vae_new"),
    ("vae", "vae", None, "sd15_ldm_emaonly"),
    ("vae", "vae", None, "sd15_ldm_pruned_with_ema"),
    ("vae", "vae", None, "sd2_ldm_emaonly"),
    ("text", "text_encoder", None, "sd15_diffusers_text_encoder_posids"),
    ("text", "text_encoder", None, "sd15_transformers5_text_encoder_inmemory"),
    ("text", "text_encoder", None, "sd15_ldm_emaonly"),
    ("text", "text_encoder", None, "sd15_ldm_minimal"),
    ("text", "text_encoder", None, "sd15_ldm_pruned_with_ema"),
    ("text", "text_encoder", SD2_TEXT, "sd2_diffusers_text_encoder_posids"),
    ("text", "text_encoder", SD2_TEXT, "sd2_ldm_emaonly"),
]


@pytest.mark.parametrize(("part", "component", "config", "manifest"), LAYOUTS)
def test_every_layout_is_recognised(manifests, part, component, config, manifest):
    network = meta(part, config)
    file = {name: tuple(shape) for name, shape in manifests[manifest].items()}
    found = find_tensors(component, network, file)
    assert found.keys() == network.state_dict().keys()
    places = list(found.values())
    assert len(set(places)) == len(places)  # no tensor of the file is taken twice


def test_names_equal_the_official_table(manifests):
    for part, component in (("unet", "unet"), ("vae", "vae"), ("text", "text_encoder")):
        table, config = manifests["sd15_diffusers_to_ldm_map"][component], meta(part).config
        assert {name: ldm.ldm_name(component, name, config)[0] for name in table} == table


def test_single_file_export_equals_the_official_names_and_shapes(manifests):
    parts = {"unet": meta("unet"), "vae": meta("vae"), "text_encoder": meta("text")}
    tensors = layouts.single_file_tensors(parts, openclip=False)
    assert {k: list(v.shape) for k, v in tensors.items()} == manifests["sd15_ldm_minimal"]
    parts = {"unet": meta("unet", SD2_UNET), "vae": meta("vae"), "text_encoder": meta("text", SD2_TEXT)}
    ours = {k: list(v.shape) for k, v in layouts.single_file_tensors(parts, openclip=True).items()}
    official = manifests["sd2_ldm_emaonly"]
    assert ours.items() <= official.items()
    assert not [k for k in official.keys() - ours.keys() if k.startswith("cond_stage_model")]


# --- real files, small networks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(vectors):
    return {"unet": vectors.network("unet"), "vae": vectors.network("vae"), "text_encoder": vectors.network("text")}


def config_of(network):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(network.config).items()}


def assert_same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_single_file_round_trip_is_bit_exact(small, tmp_path, caplog):
    path = tmp_path / "model.safetensors"
    tensors = layouts.single_file_tensors(small, openclip=False)
    unneeded = {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(())}
    unneeded[layouts.POSITION_IDS] = torch.arange(77).float()[None]
    weights.write_tensors(path, tensors | unneeded)
    for network_class, part in ((UNet, "unet"), (VAE, "vae"), (TextEncoder, "text_encoder")):
        assert_same(network_class.from_file(path, config_of(small[part])), small[part])
    assert "the model weights are used, not the EMA weights" in caplog.text


def test_openclip_round_trip_is_bit_exact(vectors, small, tmp_path):
    text = vectors.network("text", hidden_act="gelu")
    tensors = layouts.single_file_tensors({"unet": small["unet"], "text_encoder": text}, openclip=True)
    layer = f"{ldm.OPENCLIP}transformer.resblocks.3."  # the last layer of CLIP, which SD v2 leaves out
    surplus = {layer + "ln_1.weight": torch.ones(48), ldm.OPENCLIP + "logit_scale": torch.ones(())}
    weights.write_tensors(tmp_path / "v2.safetensors", tensors | surplus)
    assert_same(TextEncoder.from_file(tmp_path / "v2.safetensors", config_of(text)), text)


def test_old_vae_names_and_convolution_shapes(small, tmp_path):
    state = {}
    for name, value in small["vae"].state_dict().items():
        for new, old in layouts.OLD_VAE_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = value[:, :, None, None].contiguous() if "attentions" in name and value.ndim == 2 else value
    assert any("proj_attn" in name for name in state)
    save_file(state, tmp_path / "vae.safetensors")
    assert_same(VAE.from_file(tmp_path / "vae.safetensors", config_of(small["vae"])), small["vae"])


@pytest.mark.parametrize("position_ids", [None, torch.arange(77)[None], torch.arange(77).half()[None]])
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoder_variants(small, tmp_path, position_ids, prefix):
    state = {k.replace("text_model.", prefix): v for k, v in small["text_encoder"].state_dict().items()}
    state |= {"vision_model.post_layernorm.weight": torch.ones(3), "logit_scale": torch.ones(())}  # a whole CLIPModel
    if position_ids is not None:
        state[prefix + "embeddings.position_ids"] = position_ids
    save_file(state, tmp_path / "model.safetensors")
    config = {"text_config": config_of(small["text_encoder"]), "vision_config": {}}
    assert_same(TextEncoder.from_file(tmp_path / "model.safetensors", config), small["text_encoder"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_file_dtype_is_kept_unless_asked(small, tmp_path, dtype):
    path = tmp_path / "unet.safetensors"
    save_file({k: v.to(dtype) for k, v in small["unet"].state_dict().items()}, path)
    assert UNet.from_file(path, config_of(small["unet"])).conv_in.weight.dtype == dtype
    assert UNet.from_file(path, config_of(small["unet"]), torch.float32).conv_in.weight.dtype == torch.float32


# --- errors -----------------------------------------------------------------------------------------------------------


def test_missing_surplus_and_wrong_tensors_are_listed(small, tmp_path):
    state = dict(small["unet"].state_dict())
    for i in range(4):
        del state[f"down_blocks.{i}.resnets.0.conv1.weight"], state[f"down_blocks.{i}.resnets.0.conv1.bias"]
    state |= {"surplus.weight": torch.zeros(2), "conv_out.bias": torch.zeros(5)}
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError) as error:
        UNet.from_file(tmp_path / "bad.safetensors", config_of(small["unet"]))
    message = str(error.value)
    assert "bad.safetensors" in message
    assert "8 missing: down_blocks.0.resnets.0.conv1.weight" in message and "(4 more)" in message
    assert "1 not expected: surplus.weight" in message
    assert "1 of another shape: conv_out.bias [5] instead of [4]" in message


def test_each_kind_of_misfit_alone_is_refused(small, tmp_path):
    state = small["unet"].state_dict()
    changes = {
        "1 missing: conv_out.bias": {"conv_out.bias": None},
        "1 not expected: surplus.weight": {"surplus.weight": torch.zeros(2)},
        "1 of another shape: conv_out.bias": {"conv_out.bias": torch.zeros(5)},
    }
    for message, change in changes.items():
        tensors = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=message):
            UNet.from_file(tmp_path / "bad.safetensors", config_of(small["unet"]))


@pytest.mark.parametrize(
    ("part", "names", "message"),
    [
        ("unet", {"conditioner.embedders.0.x": [1], "model.diffusion_model.out.2.bias": [4]}, "SDXL"),
        ("unet", {"model.diffusion_model.joint_blocks.0.x": [1]}, "SD 3, Flux"),
        ("unet", {"unet.down_blocks.0.lora_A.weight": [4, 320]}, "LoRA"),
        ("unet", {"text_model.final_layer_norm.bias": [768]}, "there is no UNet in it"),
        ("vae", {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [320, 768]}, "this is a UNet"),
        ("unet", {"conv_in.weight": [320, 9, 3, 3], "x.attn2.to_k.weight": [320, 768]}, "inpainting"),
    ],
)
def test_the_likely_reason_is_named(part, names, message):
    with pytest.raises(WeightsError, match=message):
        find_tensors(part, meta(part), {k: tuple(v) for k, v in names.items()})


def test_sd2_file_with_sd1_config_is_named(manifests):
    file = {name: tuple(shape) for name, shape in manifests["sd20base_diffusers_unet"].items()}
    with pytest.raises(WeightsError, match="looks like SD v2"):
        find_tensors("unet", meta("unet"), file)


def test_damaged_and_foreign_files(small, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="pickle.*Convert"):
        UNet.from_file(tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="no such file"):
        UNet.from_file(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("this is no safetensors file at all")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        UNet.from_file(tmp_path / "text.safetensors")
    save_file(small["unet"].state_dict(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cut.safetensors.*damaged"):
        UNet.from_file(tmp_path / "cut.safetensors", config_of(small["unet"]))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ("unet", {"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
        ("unet", {"a_future_key": 3}, "a_future_key = 3"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv = False"),
        ("text", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ],
)
def test_configurations_that_are_not_implemented(part, values, message):
    with pytest.raises(store.UserError, match=message.replace("(", r"\(")):
        meta(part, values)


def test_configurations_written_by_present_libraries_are_accepted():
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    with torch.device("meta"):
        unet = dict(diffusers.UNet2DConditionModel(cross_attention_dim=768).config)
        vae = dict(diffusers.AutoencoderKL().config)
    assert meta("unet", unet).config.cross_attention_dim == 768
    assert meta("vae", vae | {"block_out_channels": [64, 64], "norm_num_groups": 32}).factor == 2
    whole = transformers.CLIPConfig().to_dict()["text_config"] | {"max_length": 20, "top_k": 50, "id2label": {"0": "x"}}
    assert meta("text", whole).config.hidden_size == 512


def test_official_configurations_are_accepted():
    unet = {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "sample_size": 64, "act_fn": "silu",
        "dual_cross_attention": False, "downsample_padding": 1, "class_embed_type": None,
        "attention_head_dim": [5, 10, 20, 20],
    }
    assert meta("unet", unet).config.heads == (5, 10, 20, 20)
    text = {"_name_or_path": "x", "architectures": ["CLIPModel"], "bos_token_id": 0, "dropout": 0.0}
    text["torch_dtype"] = "float32"
    assert meta("text", text).config == TextEncoderConfig()


# --- memory and writing -----------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys, json
def peak():
    return int([l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]) * 1024
from minibnn.networks.unet import UNet, UNetConfig
import torch, safetensors.torch
before = peak()
UNet.from_file(sys.argv[1], json.loads(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_the_weights(tmp_path):
    config = {"block_out_channels": [256, 512, 512, 512], "cross_attention_dim": 768}
    path = tmp_path / "unet.safetensors"
    save_file({k: torch.zeros(v.shape).half() for k, v in meta("unet", config).state_dict().items()}, path)
    size = path.stat().st_size
    assert size > 2e8  # so that the interpreter's own noise is small beside it
    command = [sys.executable, "-c", MEMORY, path, json.dumps(config)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 1.15 * size


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.safetensors"
    weights.write_tensors(path, {"a": torch.arange(3)})
    old = path.read_bytes()

    def interrupted(temporary):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(store.UserError, match="cannot write .*file.safetensors: .*No space left.*free some space"):
        store.write_whole(path, interrupted)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == ["file.safetensors"]
    assert load_file(path)["a"].tolist() == [0, 1, 2]


def test_the_same_tensors_make_the_same_bytes(tmp_path):
    """Bug of an earlier version: safetensors' order of the metadata is another one each time."""
    words = ["ünïcode 🐶", "a\tb\nc\x01\x7f", 'quo"te\\', "</>&", ""]
    note = {f"key {i} {word}": word for i, word in enumerate(words * 3)}
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
    tensors = {f"ü.{i}": torch.arange(3 + i).to(dtype) for i, dtype in enumerate(dtypes)}
    for name in ("a", "b"):
        weights.write_tensors(tmp_path / name, tensors, note)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == note | {"format": "pt"}
    read = load_file(tmp_path / "a")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
