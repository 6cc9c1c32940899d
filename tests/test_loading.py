"""Models as people meet them: single files of several tools, weights in several files, what a UNet predicts."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import small_sd
import torch
from safetensors.torch import load_file, save_file

from minibnn import StableDiffusion, UserError, WeightsError, pipeline
from minibnn.__main__ import COMMANDS
from minibnn.files import single_file
from minibnn.files.hollow import hollow
from minibnn.files.weights import open_weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{version: folder}, and beside each folder VERSION.safetensors without what minibnn adds to the header."""
    root, made = tmp_path_factory.mktemp("small"), {}
    for version in ("v1", "v2"):
        made[version] = small_sd.make(root / version, version)
        sd = StableDiffusion.load(made[version])
        sd.save_single_file(root / f"{version}.safetensors")
        save_file(load_file(root / f"{version}.safetensors"), root / f"{version}.safetensors", {"format": "pt"})
    return made


@pytest.fixture
def foreign(models, tmp_path, monkeypatch):
    """foreign(version, more tensors, header) -> the single file of another program; these small sizes become SD's."""

    def foreign(version, more=None, header=None):
        sd = StableDiffusion.load(models[version])
        monkeypatch.setattr(pipeline, "SD2_UNET", sd.configs["unet"])
        monkeypatch.setattr(pipeline, "SD2_TEXT", sd.configs["text_encoder"])
        monkeypatch.setattr(pipeline.VAE, "from_file", lambda *_: sd.vae)
        path = tmp_path / f"{version}.safetensors"
        tensors = load_file(models[version].with_name(f"{version}.safetensors"))
        save_file(tensors | (more or {}), path, {"format": "pt"} | (header or {}))
        return path

    return foreign


# --- single files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_other_half_of_clip_is_ignored(models, foreign, prefix):
    """`cond_stage_model.logit_scale` and `.text_projection`, as ComfyUI and others saved them with SD v1."""
    more = {f"cond_stage_model.{prefix}logit_scale": torch.ones(()), "cond_stage_model.text_projection": torch.eye(3)}
    more[f"cond_stage_model.{prefix}text_projection.weight"] = torch.eye(3)
    path, sd = foreign("v1", more), StableDiffusion.load(models["v1"])
    again = type(sd.text_encoder).from_file(path, sd.configs["text_encoder"]).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in sd.text_encoder.state_dict().items())
    with pytest.raises(WeightsError, match="1 not expected: cond_stage_model.logit_scales"):
        path = foreign("v1", {"cond_stage_model.logit_scales": torch.ones(())})
        type(sd.text_encoder).from_file(path, sd.configs["text_encoder"])


V, EPS = "v_prediction", "epsilon"
SAYS = {
    "nothing": ({}, {}, None, EPS),
    "ComfyUI's marker": ({"v_pred": torch.zeros(0)}, {}, None, V),
    "ModelSpec says v": ({}, {"modelspec.prediction_type": "v"}, None, V),
    "ModelSpec says epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, None, EPS),
    "AUTOMATIC1111's yaml": ({}, {}, 'model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n', V),
    "a yaml of ε": ({}, {}, "model:\n  params:\n    parameterization: eps\n", EPS),
}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("more", "header", "yaml", "expected"), SAYS.values(), ids=SAYS)
def test_what_a_file_says_that_it_predicts(foreign, version, more, header, yaml, expected):
    path = foreign(version, more, header)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    found = single_file.describe(path)
    assert (found.v2, found.configs, found.predicts) == (version == "v2", None, expected)
    assert found.guessed == (version == "v2" and not (more or header or yaml))


@pytest.mark.parametrize(("spread", "expected"), [(0.05, EPS), (0.2, V)])
def test_sd2_without_a_word_is_judged_as_comfyui_does(models, foreign, caplog, spread, expected):
    """By the standard deviation of one bias; the word of the user goes before it."""
    wide = torch.linspace(-1, 1, 16) * spread / torch.linspace(-1, 1, 16).std(correction=0)
    path = foreign("v2", {single_file.LAST_BIAS: wide})
    sd = StableDiffusion.load(path, models["v2"] / "tokenizer")
    assert sd.v_prediction == (expected == V) and sd.recipe["resolution"] == (768 if expected == V else 512)
    assert f"by its weights it is {expected}, else pass the other one (--prediction-type)" in caplog.text
    caplog.clear()
    assert StableDiffusion.load(path, models["v2"] / "tokenizer", prediction_type=V).v_prediction
    assert not caplog.text


def test_a_schedule_that_ends_at_pure_noise_is_refused(foreign):
    with pytest.raises(UserError, match="ztsnr.*not implemented"):
        single_file.describe(foreign("v2", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}))


@pytest.mark.parametrize("prediction_type", [EPS, V])
def test_an_own_file_says_all(tmp_path, caplog, prediction_type):
    folder = small_sd.make(tmp_path / "m", "v2", prediction_type)
    sd = StableDiffusion.load(folder)
    sd.save_single_file(tmp_path / "m.safetensors")
    again = StableDiffusion.load(tmp_path / "m.safetensors", folder / "tokenizer")
    assert (again.configs, again.recipe) == (sd.configs, sd.recipe) and not caplog.text
    assert again.v_prediction == (prediction_type == V)
    header = json.dumps({"unet": {}, "vae": {}, "text_encoder": {}, "scheduler": 3, "recipe": {}})
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "bad.safetensors", {"minibnn": header})
    with pytest.raises(UserError, match="minibnn in the header of .*: scheduler is 3, but must be an object"):
        StableDiffusion.load(tmp_path / "bad.safetensors", folder / "tokenizer")


def test_a_folder_says_what_it_predicts(models, caplog):
    sd = StableDiffusion.load(models["v2"], prediction_type=V)
    assert not sd.v_prediction and "says that it predicts epsilon; that is taken, and not v_prediction" in caplog.text


def test_wherever_a_model_can_be_named_its_prediction_type_can():
    """Except where the models are those of the picture world, bundled or folders, which say it, or rectified flows,
    folders that predict a velocity of another kind."""
    for name, (_, options, *_) in COMMANDS.items():
        fields = {field.name for field in dataclasses.fields(options)}
        exempt = name in ("evaluate", "experiment recipe", "pretrain", "rectified")
        exempt = exempt or name.startswith("experiment stage")
        if fields & {"model", "base"} and not exempt:
            assert {"prediction_type", "tokenizer"} <= fields, name


# --- weights in several files -----------------------------------------------------------------------------------------


@pytest.fixture
def sharded(models, tmp_path):
    """The small model as diffusers and transformers save it in pieces."""
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(models["v1"])
    pipe.save_pretrained(tmp_path / "m", max_shard_size="300KB")
    assert len(list((tmp_path / "m" / "unet").glob("*-of-*.safetensors"))) > 2
    assert not (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    return tmp_path / "m"


def test_weights_in_several_files(models, sharded):
    whole, pieces = StableDiffusion.load(models["v1"]), StableDiffusion.load(sharded)
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(whole, part).state_dict(), getattr(pieces, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for index in sharded.rglob("*.index.json"):  # the names of half-precision weights in older repositories
        index.rename(index.with_name(index.name.replace("index", "index.fp16")))
    assert StableDiffusion.load(sharded).unet.conv_in.weight.equal(whole.unet.conv_in.weight)


def test_weights_in_several_files_that_do_not_fit_together(sharded):
    index = next((sharded / "unet").glob("*.index.json"))
    content = json.loads(index.read_text())
    name, piece = next(iter(content["weight_map"].items()))

    def fails(weight_map, message):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            open_weights(index)

    other = next(p for p in content["weight_map"].values() if p != piece)
    fails(content["weight_map"] | {name: other}, f"says that {name} is in {other}, but it is not")
    fails(content["weight_map"] | {name: "../secret.safetensors"}, "which is not a file of the same folder")
    fails({name: 3}, "but must be a text")
    index.write_text("{}")
    with pytest.raises(UserError, match="weight_map is missing"):
        StableDiffusion.load(sharded)
    index.write_text(json.dumps(content))
    (sharded / "unet" / piece).unlink()
    with pytest.raises(WeightsError, match=f"{piece}: no such file"):
        StableDiffusion.load(sharded)


def test_drawing_starts_without_pytorchs_compiler():
    """It takes two seconds to import, and PyTorch does so for any arithmetic on the device "meta"."""
    script = (
        "import sys\n"
        "from minibnn import StableDiffusion\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "StableDiffusion.load('tiny').generate(['a dog'], 1, progress=False)\n"
        "StableDiffusion.load('textured')\n"
        "assert ('torch._dynamo' in sys.modules) == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_hollow_networks_have_shapes_and_the_next_ones_weights_again():
    with hollow():
        layer = torch.nn.Linear(3, 2)
    assert layer.weight.device.type == layer.bias.device.type == "meta" and layer.weight.shape == (2, 3)
    torch.manual_seed(0)
    after = torch.nn.Linear(3, 2).weight
    torch.manual_seed(0)
    torch.testing.assert_close(after, torch.nn.init.kaiming_uniform_(torch.empty(2, 3), math.sqrt(5)))
