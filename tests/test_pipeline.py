"""The bundled model as a whole: what diffusers makes of it, seeds, errors, both export layouts."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minibnn import StableDiffusion, Tokenizer, UNet, UNetConfig, UserError
from minibnn.cli.sample import sample
from minibnn.files.store import write_json
from minibnn.files.weights import write_tensors
from minibnn.finetune import adapters, bayes
from minibnn.options.results import SampleOptions
from minibnn.pictures import columns_of, grid


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion.load("tiny")


def as_array(picture):
    return np.asarray(picture).astype(int)


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_diffusers_opens_the_saved_folder_and_draws_the_same_picture(sd, tmp_path, sampler):
    diffusers = pytest.importorskip("diffusers")
    sd.save(tmp_path / "saved")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    kind = diffusers.DDIMScheduler if sampler == "ddim" else diffusers.PNDMScheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **({} if sampler == "ddim" else {"skip_prk_steps": True}))
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red car on the beach", "a blue dog at night"]
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipe(
        prompts, latents=start.clone(), num_inference_steps=20, guidance_scale=5.0, height=64, width=64
    ).images
    ours = sd.generate(prompts, steps=20, guidance=5.0, seed=3, sampler=sampler, progress=False)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(as_array(a) - as_array(b)).max() <= 2


def test_every_part_of_the_folder_is_read_back(sd, tmp_path):
    sd.save(tmp_path / "a")
    again = StableDiffusion.load(tmp_path / "a")
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(sd, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before) and before.keys() == after.keys()
    assert (again.configs, again.recipe) == (sd.configs, sd.recipe)
    assert sd.tokenizer(["an orange cat"]).tolist() == again.tokenizer(["an orange cat"]).tolist()


def test_velocity_prediction(sd, tmp_path):
    """A network that predicts v = √ᾱ ε − √(1−ᾱ) x_0 gives the same ε̂ as one that predicts ε."""
    copy = StableDiffusion.load("tiny")
    copy.configs = copy.configs | {"scheduler": copy.configs["scheduler"] | {"prediction_type": "v_prediction"}}
    x, context = torch.randn(2, 4, 8, 8), sd.encode_prompts(["a dog", "a cat"])
    t = torch.tensor([100, 700])
    with torch.no_grad():
        eps, v_as_eps = sd.predict_eps(x, t, context), copy.predict_eps(x, t, context)
    abar = sd.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(v_as_eps, abar.sqrt() * eps + (1 - abar).sqrt() * x)


def test_a_model_is_printed_in_one_line_and_is_itself_alone(sd, tmp_path):
    """Bugs of an earlier version: print(sd) showed three whole networks, and set([sd]) raised TypeError."""
    numbers = sum(p.numel() for network in (sd.unet, sd.vae, sd.text_encoder) for p in network.parameters())
    assert repr(sd) == f"<StableDiffusion tiny: of no official size, {numbers / 1e6:.4g} M parameters, cpu, float32>"
    same, half = dataclasses.replace(sd), StableDiffusion.load("tiny", dtype=torch.float16)
    assert sd == sd and sd != same and {sd: 1, same: 2}[sd] == 1
    half.save_single_file(tmp_path / "a.safetensors")
    tokenizer = Path(sd.tokenizer.folder)
    single = StableDiffusion.load(tmp_path / "a.safetensors", tokenizer)
    assert repr(single).startswith(f"<StableDiffusion {tmp_path / 'a.safetensors'}: ") and "float16>" in repr(single)
    official = dataclasses.replace(sd, source="x")
    with torch.device("meta"):
        official.unet = UNet(UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20)))
    assert repr(official).startswith("<StableDiffusion x: SD v2, 8") and ", meta, float32>" in repr(official)


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_velocity_keeps_its_smallest_times_in_16_bits(sd, monkeypatch):
    """Bug: in bfloat16 ᾱ_1 = 0.9983 is 1, and a network that predicts v = 0 found no noise in x_1."""
    monkeypatch.setitem(sd.configs["scheduler"], "prediction_type", "v_prediction")
    monkeypatch.setattr(sd, "unet", lambda x, t, context: torch.zeros_like(x))
    found = sd.predict_eps(torch.ones(1, 4, 8, 8, dtype=torch.bfloat16), torch.tensor([1]), None)
    expected = (1 - sd.alphas_cumprod[1].double()).sqrt().item()
    torch.testing.assert_close(found.double(), torch.full((1, 4, 8, 8), expected).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prepare", [
    lambda unet: bayes.bayesianize(unet), lambda unet: adapters.attach_lora(unet, adapters.LAYERS, 2, 2.0)])
def test_what_no_official_file_can_hold_is_not_saved(sd, prepare, tmp_path):
    """Bug: a folder was written that could not be opened again."""
    other = dataclasses.replace(sd, unet=copy.deepcopy(sd.unet))
    prepare(other.unet)
    for save, place in ((other.save, tmp_path / "sd"), (other.save_single_file, tmp_path / "sd.safetensors")):
        with pytest.raises(UserError, match="the UNet holds .*, which no official file does"):
            save(place)
        assert not place.exists()


def test_guidance_as_printed(sd):
    """Ho & Salimans eq. 6: (1 + w) ε(c) − w ε(∅), with s = 1 + w; s = 1 needs no unconditional half."""
    x, context = torch.randn(1, 4, 8, 8), sd.encode_prompts(["a green fish"])
    empty = sd.encode_prompts([""])
    with torch.no_grad():
        conditional = sd.predict_eps(x, torch.tensor([301]), context)
        unconditional = sd.predict_eps(x, torch.tensor([301]), empty)
        w = 2.5
        printed = (1 + w) * conditional - w * unconditional
        torch.testing.assert_close(sd.guided_eps(x, 301, context, empty, 1 + w), printed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sd.guided_eps(x, 301, context, empty, 1), conditional, rtol=1e-5, atol=1e-6)


def test_a_seed_means_the_noise_of_the_contract(sd):
    """Batching and device must not change it: torch.randn(n, 4, h, w) from a CPU generator."""
    seen = []
    original = sd.unet.forward
    sd.unet.forward = lambda x, t, context: seen.append(x.clone()) or original(x, t, context)
    try:
        sd.generate(["a dog"] * 3, steps=1, guidance=1, seed=11, batch_size=2, progress=False)
    finally:
        del sd.unet.forward
    start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    assert torch.equal(torch.cat(seen), start)


def test_same_seed_same_picture_and_other_seed_another(sd):
    a, b, c = (sd.generate(["a dog"], steps=3, seed=seed, progress=False)[0] for seed in (1, 1, 2))
    assert a.tobytes() == b.tobytes() != c.tobytes()


def test_other_sizes(sd):
    picture = sd.generate(["a dog"], steps=2, size=(96, 40), progress=False)[0]
    assert picture.size == (96, 40)


def test_negative_prompt_changes_the_picture(sd):
    a, b = (sd.generate(["a dog"], steps=3, negative_prompt=p, progress=False)[0] for p in ("", "at night"))
    assert a.tobytes() != b.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 60}, "60 x 60.*multiples of 8"), ({"steps": 0}, "steps = 0"), ({"sampler": "euler"}, "'euler'"),
     ({"eta": 2}, "eta = 2"), ({"eta": 0.5, "sampler": "pndm"}, "for the sampler ddim only"),
     ({"guidance": float("nan")}, "guidance = nan"), ({"seed": 2**64}, "seed = 18446744073709551616 is outside")],
)
def test_bad_numbers_are_named(sd, arguments, message):
    with pytest.raises(UserError, match=message):
        sd.generate(["a dog"], progress=False, **arguments)


def test_long_prompts_are_cut_with_a_notice(sd, caplog):
    sd.encode_prompts(["dog " * 80])
    assert "the last 5 tokens" in caplog.text


# --- loading and exporting --------------------------------------------------------------------------------------------


def test_a_prompt_without_a_list_and_an_iterator_of_prompts(sd):
    """Bug of an earlier version: "a red car" was nine prompts of a letter each, and a generator was none."""
    expected = sd.encode_prompts(["a red car", "a dog"])
    assert torch.equal(sd.encode_prompts(prompt for prompt in ("a red car", "a dog")), expected)
    assert torch.equal(sd.tokenizer("a red car"), sd.tokenizer(["a red car"]))
    assert sd.encode_prompts("a red car").shape == (1, 77, expected.shape[2])
    assert torch.equal(sd.encode_prompts("a red car"), sd.encode_prompts(["a red car"]))


def test_single_file_round_trip_draws_the_same(sd, tmp_path):
    """The tiny networks are no SD v1.5, so that each is read with its own configuration."""
    from minibnn import VAE, TextEncoder

    sd.save_single_file(tmp_path / "one.safetensors")
    for network_class, part in ((UNet, "unet"), (VAE, "vae"), (TextEncoder, "text_encoder")):
        again = network_class.from_file(tmp_path / "one.safetensors", sd.configs[part])
        state = getattr(sd, part).state_dict()
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())


def test_fp16_variant_names(sd, tmp_path):
    sd.save(tmp_path / "m", torch.float16)
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (tmp_path / "m" / part / f"{name}.safetensors").rename(tmp_path / "m" / part / f"{name}.fp16.safetensors")
    again = StableDiffusion.load(tmp_path / "m", dtype=torch.float16)
    assert again.unet.conv_in.weight.dtype == torch.float16
    assert torch.equal(again.unet.conv_in.weight, sd.unet.conv_in.weight.half())


def test_a_tokenizer_saved_by_transformers_5(sd, tmp_path):
    """It writes one tokenizer.json instead of vocab.json and merges.txt."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(sd.tokenizer.folder)
    theirs.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    prompts = ["a photo of a sks dog", "an orange cat in front of a brick wall", "Zürich!"]
    assert Tokenizer(tmp_path)(prompts).tolist() == sd.tokenizer(prompts).tolist()


def test_parts_that_do_not_belong_together(sd, tmp_path):
    sd.save(tmp_path / "m")
    depth = UNet(dataclasses.replace(sd.unet.config, in_channels=5))
    write_tensors(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors", depth.state_dict())
    write_json(tmp_path / "m" / "unet" / "config.json", sd.configs["unet"] | {"in_channels": 5})
    with pytest.raises(UserError, match="not a text-to-image model: its UNet takes 5 channels"):
        StableDiffusion.load(tmp_path / "m")


def test_loading_errors(sd, tmp_path):
    with pytest.raises(UserError, match='no model at .*nowhere.*"tiny-v2"'):
        StableDiffusion.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model in .*empty"):
        StableDiffusion.load(tmp_path / "empty")
    sd.save_single_file(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="holds no tokenizer.*--tokenizer"):
        StableDiffusion.load(tmp_path / "one.safetensors")
    sd.save(tmp_path / "m")
    shutil.move(
        tmp_path / "m" / "vae" / "diffusion_pytorch_model.safetensors",
        tmp_path / "m" / "vae" / "diffusion_pytorch_model.bin",
    )
    with pytest.raises(UserError, match="pickle.*Convert"):
        StableDiffusion.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value"), [("beta_schedule", "linear"), ("rescale_betas_zero_snr", True), ("prediction_type", "sample")]
)
def test_schedules_that_are_not_implemented(sd, tmp_path, key, value):
    sd.save(tmp_path / "m")
    path = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"{key} = {value!r}"):
        StableDiffusion.load(tmp_path / "m")


# --- the command ------------------------------------------------------------------------------------------------------


def test_sample_writes_pictures_with_their_settings(tmp_path):
    options = SampleOptions(prompt=["a red car", "a dog"], count=2, steps=2, out=str(tmp_path / "grid.png"), seed=5)
    pictures = sample(options)
    assert len(pictures) == 4
    files = sorted((tmp_path / "grid").iterdir())
    assert [f.name for f in files] == ["000.png", "001.png", "002.png", "003.png"]
    stored = Image.open(files[3])
    assert stored.tobytes() == pictures[3].tobytes()
    settings = json.loads(stored.info["minibnn"])
    assert (settings["prompt"], settings["seed"], settings["steps"], settings["number"]) == ("a dog", 5, 2, 3)
    assert Image.open(tmp_path / "grid.png").size == grid(pictures, 2).size
    with pytest.raises(UserError, match="grid.png exists"):
        sample(options)


@pytest.mark.parametrize(
    ("prompts", "count", "columns"),
    [(1, 1, 1), (1, 3, 3), (1, 4, 4), (1, 6, 4), (1, 16, 4), (1, 17, 5), (3, 1, 3), (5, 1, 4), (20, 1, 5), (2, 6, 6)],
)
def test_many_pictures_make_a_grid_and_no_strip(prompts, count, columns):
    assert columns_of(prompts, count) == columns


def test_a_strength_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(UserError, match="--adapter-scale is the strength of --adapter, and none is given"):
        sample(SampleOptions(prompt="a dog", adapter_scale=0.3, out=str(tmp_path / "a.png")))


def test_pictures_beyond_the_first_thousand(tmp_path, monkeypatch):
    def generate(_sd, prompts, *_, **__):
        return [Image.new("RGB", (2, 2), (i % 256, i // 256, 0)) for i in range(len(prompts))]

    monkeypatch.setattr(StableDiffusion, "generate", generate)
    options = SampleOptions(prompt=["a red car", "a dog"], count=501, out=str(tmp_path / "grid.png"), overwrite=True)
    sample(options)
    folder = tmp_path / "grid"
    stored = Image.open(folder / "1001.png")
    settings = json.loads(stored.info["minibnn"])
    assert stored.getpixel((0, 0)) == (1001 % 256, 3, 0) and (settings["prompt"], settings["number"]) == ("a dog", 1001)
    own = ("own.png", "12.png", "100-mean-of-mine.png")
    for name in own:
        (folder / name).touch()
    for name in ("1001-01.png", "000-100.png", "1001-mean.png"):
        (folder / name).write_bytes((folder / "1001.png").read_bytes())
    sample(dataclasses.replace(options, count=1))
    assert sorted(p.name for p in folder.iterdir()) == sorted(["000.png", "001.png", *own])
    sample(dataclasses.replace(options, prompt=["a dog"], count=16))
    assert Image.open(tmp_path / "grid.png").size == (4 * 2 + 3 * 2, 4 * 2 + 3 * 2)
