"""LoRA and OFT files of other programs: merged as those programs merge them, or refused by name.

The files are written by diffusers and peft in the test. kohya's sd-scripts are no package: their files are written here
in their documented layout (`networks/lora.py`), and read by diffusers and by a plain forward with two small layers.
"""

import copy
import json

import numpy as np
import pytest
import small_sd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minibnn import StableDiffusion, UserError, WeightsError
from minibnn.cli.sample import sample
from minibnn.finetune import adapter_names, oft
from minibnn.options.results import SampleOptions

diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
NAMES = {"attn1.to_q": 1, "attn2.to_k": 1, "attn2.to_v": 1, "attn1.to_out.0": 1}
EVERYWHERE = ["to_q", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv_shortcut", "ff.net.0.proj", "ff.net.2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{version: (our model, diffusers' pipeline)} with the same random weights, to be copied."""
    made = {}
    for version in ("v1", "v2"):
        folder = small_sd.make(tmp_path_factory.mktemp("small") / version, version, layers=1)
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        made[version] = StableDiffusion.load(folder), theirs
    return made


@pytest.fixture
def ours(models):
    return lambda version="v1": copy.deepcopy(models[version][0])


@pytest.fixture
def pipeline(models):
    def pipeline(version="v1"):
        parts = {name: copy.deepcopy(part) for name, part in models[version][1].components.items()}
        return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)

    return pipeline


def states(model):
    """{(part, name): weight} of a model without adapters, ours or diffusers'; transformers 5 omits "text_model."."""
    return {
        (part, name.removeprefix("text_model.")): value
        for part in ("unet", "text_encoder") for name, value in getattr(model, part).state_dict().items()
    }


def assert_merged(got, theirs, base, part="unet"):
    """The same weights within 1e-5, and not those of the base."""
    a, b, c = states(got), states(theirs), states(base)
    worst = max((a[key] - b[key]).abs().max().item() for key in a)
    assert worst < 1e-5, worst
    change = max((b[key] - c[key]).abs().max().item() for key in c if key[0] == part)
    assert change > 0.01, change


def fused(pipe, files, strengths=None):
    """The pipeline with these LoRA files in its weights."""
    names = [f"a{i}" for i in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters(names, strengths or [1.0] * len(files))
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
    return pipe


def random_adapter(network, seed=0, **settings):
    """Give a diffusers or transformers network a random LoRA; returns its config and tensors."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    network.add_adapter(config)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return config, peft.get_peft_model_state_dict(network)


# --- diffusers --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "alpha is the rank": {"r": 4, "lora_alpha": 4},
    "alpha is twice the rank": {"r": 4, "lora_alpha": 8},
    "alpha is a quarter of the rank": {"r": 16, "lora_alpha": 4},
    "rank-stabilised": {"r": 9, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 6, "rank_pattern": {"attn2.to_k": 2, r"up_blocks\.1\..*to_q": 7},
        "alpha_pattern": {"to_v": 3, "^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 12},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_diffusers_lora_with_its_settings_in_the_header(ours, pipeline, tmp_path, settings):
    """`lora_adapter_metadata`: without it the strength of all but the first would be another."""
    pipe = pipeline()
    config, tensors = random_adapter(pipe.unet, target_modules=list(NAMES), **settings)
    pipe.save_lora_weights(tmp_path, tensors, unet_lora_adapter_metadata=config.to_dict())
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
    theirs = fused(pipeline(), [tmp_path / "pytorch_lora_weights.safetensors"])
    assert_merged(ours().merge_adapter(tmp_path), theirs, ours())


def test_the_header_of_a_single_networks_file(ours, pipeline, tmp_path):
    """`unet.save_lora_adapter` writes names and settings without "unet."."""
    pipe = pipeline()
    random_adapter(pipe.unet, target_modules=list(NAMES), r=4, lora_alpha=10)
    pipe.unet.save_lora_adapter(tmp_path, adapter_name="default")
    theirs = pipeline()
    name = "pytorch_lora_weights.safetensors"
    theirs.unet.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, weight_name=name)
    theirs.unet.fuse_lora()
    theirs.unet.unload_lora()
    assert_merged(ours().merge_adapter(tmp_path), theirs, ours())


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_diffusers_lora_of_both_networks_and_of_convolutions(ours, pipeline, tmp_path, version):
    pipe = pipeline(version)
    unet, tensors = random_adapter(pipe.unet, target_modules=EVERYWHERE, r=4, lora_alpha=8)
    text, more = random_adapter(pipe.text_encoder, target_modules=["q_proj", "out_proj", "fc1"], r=3, lora_alpha=12)
    pipe.save_lora_weights(
        tmp_path, tensors, more, unet_lora_adapter_metadata=unet.to_dict(),
        text_encoder_lora_adapter_metadata=text.to_dict(),
    )
    merged, base = ours(version).merge_adapter(tmp_path), ours(version)
    theirs = fused(pipeline(version), [tmp_path / "pytorch_lora_weights.safetensors"])
    assert_merged(merged, theirs, base)
    assert_merged(merged, theirs, base, "text_encoder")


def test_strengths_of_several_at_once(ours, pipeline, tmp_path):
    """As `set_adapters([…], [0.7, -0.4])`."""
    files = []
    for seed in (1, 2):
        pipe = pipeline()
        config, tensors = random_adapter(pipe.unet, seed, target_modules=list(NAMES), r=2 * seed, lora_alpha=3)
        pipe.save_lora_weights(tmp_path / str(seed), tensors, unet_lora_adapter_metadata=config.to_dict())
        files.append(tmp_path / str(seed) / "pytorch_lora_weights.safetensors")
    merged = ours().merge_adapter(files[0], 0.7).merge_adapter(files[1], -0.4)
    assert_merged(merged, fused(pipeline(), files, [0.7, -0.4]), ours())


OLD = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_names_of_attention_processors(ours, pipeline, tmp_path, prefix):
    """`attn1.processor.to_q_lora.down.weight`, as the released scripts of the paper save a LoRA; diffusers reads it."""
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for name, layer in adapter_names.adaptable(ours().unet).items():
        for new, old in OLD.items():
            if name.endswith(f".{new}") and ".attn" in name:
                stem = prefix + name.removesuffix(new) + "processor." + old
                tensors[stem + ".down.weight"] = 0.1 * torch.randn(4, layer.in_features, generator=generator)
                tensors[stem + ".up.weight"] = 0.1 * torch.randn(layer.out_features, 4, generator=generator)
    assert len(tensors) == 160
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    theirs = pipeline()
    theirs.unet.load_lora_adapter(load_file(tmp_path / "pytorch_lora_weights.safetensors"), prefix=prefix[:-1] or None)
    theirs.unet.fuse_lora()
    theirs.unet.unload_lora()
    assert_merged(ours().merge_adapter(tmp_path), theirs, ours())


# --- peft -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS[name] for name in ("rank-stabilised", "patterns")])
def test_peft_lora(ours, pipeline, tmp_path, settings):
    unet = pipeline().unet
    config = peft.LoraConfig(init_lora_weights=False, target_modules=[*NAMES, "proj_in", "conv2"], **settings)
    check_peft(peft.get_peft_model(unet, config), ours, pipeline, tmp_path)


ROTATIONS = {
    "default": {}, "exact": {"use_cayley_neumann": False}, "two terms": {"num_cayley_neumann_terms": 2},
    "seven terms": {"num_cayley_neumann_terms": 7}, "constrained": {"coft": True, "eps": 0.3},
}


@pytest.mark.parametrize("settings", ROTATIONS.values(), ids=ROTATIONS)
def test_peft_oft(ours, pipeline, tmp_path, settings):
    unet = pipeline().unet
    config = peft.OFTConfig(r=2, oft_block_size=0, target_modules=["to_q", "to_v", "to_out.0"], **settings)
    model = peft.get_peft_model(unet, config)
    for name, parameter in model.named_parameters():
        if "oft_R" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    check_peft(model, ours, pipeline, tmp_path)


def test_peft_lora_of_the_text_encoder(ours, pipeline, tmp_path):
    pipe = pipeline("v2")
    config = peft.LoraConfig(init_lora_weights=False, target_modules=["k_proj", "fc2"], r=4, lora_alpha=7)
    pipe.text_encoder = peft.get_peft_model(pipe.text_encoder, config)
    pipe.text_encoder.save_pretrained(tmp_path)
    pipe.text_encoder = pipe.text_encoder.merge_and_unload()
    assert_merged(ours("v2").merge_adapter(tmp_path), pipe, ours("v2"), "text_encoder")


def check_peft(model, ours, pipeline, saved):
    """What a PeftModel of the UNet saves is merged as it merges itself."""
    model.save_pretrained(saved)
    theirs = pipeline()
    theirs.unet = peft.PeftModel.from_pretrained(theirs.unet, saved).merge_and_unload()
    assert_merged(ours().merge_adapter(saved), theirs, ours())


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8])
def test_neumann_is_pefts(terms):
    generator = torch.Generator().manual_seed(0)
    triangles = 0.2 * torch.randn(3, 10, generator=generator)
    module = peft.tuners.oft.layer.OFTRotationModule(3, 10, 5, 15)
    s = module._pytorch_skew_symmetric(triangles, 5)
    torch.testing.assert_close(oft.neumann(s, terms), module._cayley_batch(triangles, 5, True, terms))


# --- kohya's tools ----------------------------------------------------------------------------------------------------

DEFAULT = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out")
LOCON = (".conv1", ".conv2", ".conv_shortcut", ".time_emb_proj", "samplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def kohya_file(sd, path, endings, text=True, linear=False, varied=True):
    """A LoRA of kohya's sd-scripts: the down matrix has the layer's kernel, the up matrix has 1 × 1.

    varied: rank and α differ from layer to layer; else they are 4 and 1, the scripts' defaults. linear: write 1 × 1
    convolutions as matrices, as files made for SD v2 have them. Returns {(part, layer): (down, up, α/r)}.
    """
    generator, tensors, made = torch.Generator().manual_seed(7), {}, {}
    chosen = {"unet": endings, "text_encoder": TEXT if text else ()}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for i, (name, layer) in enumerate(adapter_names.adaptable(getattr(sd, part)).items()):
            if not name.endswith(chosen[part]):
                continue
            rank, alpha = (2 + i % 4, 1.0 + i % 3) if varied else (4, 1.0)
            out, into, *kernel = layer.weight.shape
            kernel = [] if linear and kernel == [1, 1] else kernel
            down = 0.1 * torch.randn(rank, into, *kernel, generator=generator)
            up = 0.1 * torch.randn(out, rank, *[1 for _ in kernel], generator=generator)
            stem = prefix + name.replace(".", "_")
            tensors |= {
                f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)
            }
            made[part, name] = down, up, alpha / rank
    save_file(tensors, path, {"ss_network_module": "networks.lora", "ss_network_dim": "4"})
    return made


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_kohyas_default_file_is_diffusers(ours, pipeline, tmp_path, version):
    """1 × 1 `proj_in` and `proj_out`, and the text encoder; diffusers 0.42 reads only one α for all layers rightly."""
    base = ours(version)
    kohya_file(base, tmp_path / "rex.safetensors", DEFAULT, varied=False)
    merged = ours(version).merge_adapter(tmp_path)  # the only file in the folder
    theirs = fused(pipeline(version), [tmp_path / "rex.safetensors"])
    assert_merged(merged, theirs, base)
    assert_merged(merged, theirs, base, "text_encoder")


def test_somebodys_lora_is_guided_by_the_model_without_it(ours, pipeline, tmp_path):
    """`sample --adapter THEIRS --unconditional-from BASE` against diffusers: ε(∅) of both networks without the LoRA."""
    sd = ours()
    sd.save(tmp_path / "sd")
    kohya_file(sd, tmp_path / "rex.safetensors", DEFAULT, varied=False)
    words = {"model": str(tmp_path / "sd"), "adapter": [str(tmp_path / "rex.safetensors")], "adapter_scale": [0.7]}
    words |= {"unconditional_from": str(tmp_path / "sd"), "guidance": 3.0, "steps": 4, "seed": 5, "device": "cpu"}
    [found] = sample(SampleOptions(prompt=["a photo of a dog"], out=str(tmp_path / "a.png"), **words))
    with_lora, without = fused(pipeline(), [tmp_path / "rex.safetensors"], [0.7]), pipeline()
    scheduler = diffusers.DDIMScheduler.from_config(sd.configs["scheduler"], clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(4)

    @torch.no_grad()
    def drawn(of_null):
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        for t in scheduler.timesteps:
            eps = [
                pipe.unet(x, t, pipe.text_encoder(sd.tokenizer([prompt]))[0]).sample
                for pipe, prompt in ((of_null, ""), (with_lora, "a photo of a dog"))
            ]
            x = scheduler.step(eps[0] + 3.0 * (eps[1] - eps[0]), t, x).prev_sample
        return ((without.vae.decode(x / 0.18215).sample[0] + 1) * 127.5).clamp(0, 255).permute(1, 2, 0)

    pixels = torch.tensor(np.array(found), dtype=torch.float32)
    assert (pixels - drawn(without)).abs().max() <= 0.6  # rounding takes 0.5
    assert (pixels - drawn(with_lora)).abs().max() > 3  # ordinary guidance is another picture


@pytest.mark.parametrize(("version", "linear"), [("v1", False), ("v1", True), ("v2", False)])
def test_kohyas_locon_computes_what_two_layers_beside_each_layer_compute(ours, tmp_path, version, linear):
    """kohya's `LoRAModule.forward`: layer(x) + up(down(x))·α/r, where `down` has the layer's stride and padding."""
    base = ours(version)
    made = kohya_file(base, tmp_path / "rex.safetensors", DEFAULT + LOCON, linear=linear)
    assert {name.split(".")[-1] for part, name in made if part == "unet"} >= {"conv", "conv1", "time_emb_proj"}
    beside = copy.deepcopy(base)
    for (part, name), (down, up, scale) in made.items():
        layer = getattr(beside, part).get_submodule(name)
        layer.forward = with_two_layers(layer, down, up, scale)
    merged = ours(version).merge_adapter(tmp_path / "rex.safetensors")
    ids = torch.randint(0, 659, (2, 77), generator=torch.Generator().manual_seed(1))
    x, t = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(2)), torch.tensor([20, 800])
    with torch.no_grad():
        outputs = [sd.unet(x, t, sd.text_encoder(ids)) for sd in (merged, beside, base)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5 * outputs[1].std()
    assert (outputs[1] - outputs[2]).abs().max() > 0.1 * outputs[1].std()


def with_two_layers(layer, down, up, scale):
    """The forward of a layer with a LoRA beside it."""
    if isinstance(layer, torch.nn.Linear):
        return lambda x: F.linear(x, layer.weight, layer.bias) + scale * F.linear(
            F.linear(x, down.flatten(1)), up.flatten(1)
        )
    down, up = (m if m.ndim == 4 else m[:, :, None, None] for m in (down, up))

    def forward(x):
        plain = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        return plain + scale * F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up)

    return forward


@pytest.mark.parametrize("spelling", ["lora_unet_{_}", "diffusion_model.{}"])
def test_names_of_the_single_file_layout(ours, pipeline, tmp_path, spelling):
    """What ComfyUI saves, and tools that train on a single file, against the same LoRA with kohya's names."""
    from minibnn.files import ldm

    base = ours()
    kohya_file(base, tmp_path / "a.safetensors", DEFAULT + LOCON, text=False)
    renamed = {}
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        stem, ending = name.split(".", 1)
        layer = next(n for n in adapter_names.adaptable(base.unet) if "lora_unet_" + n.replace(".", "_") == stem)
        single = ldm.ldm_name("unet", layer + ".weight", base.unet.config)[0]
        single = single.removeprefix("model.diffusion_model.").removesuffix(".weight")
        renamed[spelling.replace("{}", single).replace("{_}", single.replace(".", "_")) + "." + ending] = tensor
    save_file(renamed, tmp_path / "b.safetensors")
    a, b = (ours().merge_adapter(tmp_path / f"{n}.safetensors") for n in "ab")
    of_a, of_b = states(a), states(b)
    assert all(torch.equal(value, of_b[key]) for key, value in of_a.items())
    assert_merged(a, b, base)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "lora_unet_mid_block_attentions_0_proj_in.dora_scale": "it is a DoRA",
    "lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight": "a Tucker core",
    "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": "it is a LoHa",
    "lora_unet_mid_block_attentions_0_proj_in.lokr_w1": "it is a LoKr",
    "lora_unet_mid_block_attentions_0_proj_in.oft_blocks": "of OFT, peft's files are read",
    "lora_unet_mid_block_attentions_0_proj_in.diff_b": "whole differences",
    "lora_unet_mid_block_attentions_0_proj_in.on_input": "it is an",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "it was made for SDXL",
    "transformer.blocks.0.attn.to_q.lora_A.weight": "SD 3 or Flux",
    "emb_params": "textual inversion",
    "lora_unet_mid_block_attentions_7_proj_in.alpha": "1 of .* tensors belong to no layer of this model",
}


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_remains_is_refused_by_name(ours, pipeline, tmp_path, name, why):
    sd = ours()
    before = {key: value.clone() for key, value in states(sd).items()}
    kohya_file(sd, tmp_path / "a.safetensors", DEFAULT)
    save_file(load_file(tmp_path / "a.safetensors") | {name: torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=f"a.safetensors: .*{why}"):
        sd.merge_adapter(tmp_path / "a.safetensors")
    after = states(sd)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_doras_of_diffusers_and_peft_are_refused(ours, pipeline, tmp_path):
    pipe = pipeline()
    config, tensors = random_adapter(pipe.unet, target_modules=list(NAMES), r=4, use_dora=True)
    pipe.save_lora_weights(tmp_path / "a", tensors)
    with pytest.raises(WeightsError, match="it is a DoRA"):
        ours().merge_adapter(tmp_path / "a")
    pipe.save_lora_weights(tmp_path / "b", tensors, unet_lora_adapter_metadata=config.to_dict())
    with pytest.raises(WeightsError, match="in the header of .*: use_dora = True is not implemented"):
        ours().merge_adapter(tmp_path / "b")
    model = peft.get_peft_model(pipeline().unet, peft.LoHaConfig(target_modules=["to_q"]))
    model.save_pretrained(tmp_path / "c")
    with pytest.raises(WeightsError, match="adapter_config.json: .* is not implemented"):
        ours().merge_adapter(tmp_path / "c")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ('{"unet.r": 3}', "has rank 4, its settings say 3"),
        ('{"unet.lora_alpha": "4"}', "lora_alpha is '4', but must be a finite number"),
        ('{"unet.init_lora_weights": "pissa_niter_4"}', "init_lora_weights is 'pissa_niter_4', but must be one of"),
        ('{"unet.use_qalora": true}', "use_qalora = True is not implemented"),
        ('{"unet.bias": "all"}', "bias is 'all', but must be one of 'none'"),
        ('{"unet.alpha_pattern": {"(": 2}}', "is not a regular expression"), ("[1]", "holds a list and not an object"),
        ("{", "is not valid JSON"),
    ],
)
def test_settings_that_are_not_followed_are_refused(ours, pipeline, tmp_path, settings, why):
    pipe = pipeline()
    _, tensors = random_adapter(pipe.unet, target_modules=list(NAMES), r=4)
    tensors = {f"unet.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=why):
        ours().merge_adapter(tmp_path / "a.safetensors")


def test_infinite_numbers_rotations_with_a_strength_and_folders_of_several(ours, pipeline, tmp_path):
    sd = ours()
    kohya_file(sd, tmp_path / "a.safetensors", DEFAULT)
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[next(name for name in tensors if "lora_up" in name)].fill_(torch.nan)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="lora_up.weight holds NaN"):
        sd.merge_adapter(tmp_path / "b.safetensors")
    before = sd.unet.half().state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    with pytest.raises(WeightsError, match="after it was added, holds"):  # 65504 is the largest number of float16
        sd.merge_adapter(tmp_path / "a.safetensors", 1e7)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.items())
    with pytest.raises(WeightsError, match="no adapter in .*name one of its 2 .safetensors files"):
        sd.merge_adapter(tmp_path)
    config = peft.OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"])
    peft.get_peft_model(pipeline().unet, config).save_pretrained(tmp_path / "oft")
    config = json.loads((tmp_path / "oft" / "adapter_config.json").read_text())
    assert config["use_cayley_neumann"] is True
    with pytest.raises(WeightsError, match="is an OFT: a rotation has no strength, so that 0.5 cannot be taken"):
        sd.merge_adapter(tmp_path / "oft", 0.5)
