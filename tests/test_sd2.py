"""Stable Diffusion v2-base and v2.1 from end to end, in their layout at a hundredth of the width, against diffusers."""

import numpy as np
import pytest
import small_sd
import torch

from minibnn import StableDiffusion
from minibnn.cli.export import export
from minibnn.cli.sample import sample
from minibnn.cli.train import fine_tune
from minibnn.options.parsing import parse
from minibnn.options.results import ExportOptions, SampleOptions
from minibnn.options.training import TrainOptions

diffusers = pytest.importorskip("diffusers")
PROMPTS = ["a photo of a sks dog", "a red car"]
MODELS = {"v2-base": "epsilon", "v2.1": "v_prediction"}


@pytest.fixture(scope="module", params=MODELS)
def trained(request, dog, tmp_path_factory):
    """(the base's folder, a run of DreamBooth, a run of LoRA), both with BNN and far from their start."""
    root = tmp_path_factory.mktemp("sd2")
    base = small_sd.make(root / "sd2", "v2", MODELS[request.param])
    made = [base]
    for method, more in (("dreambooth", ["--lr", "0.003"]), ("lora", ["--rank", "3", "--alpha", "6", "--lr", "0.03"])):
        words = ["--images", str(dog), "--model", str(base), "--prompt", PROMPTS[0], "--out", str(root / method)]
        words += ["--method", method, "--prior-weight", "0", "--steps", "4", "--samples", "0", "--no-monitor", *more]
        fine_tune(parse(TrainOptions, "x", words))
        made.append(root / method)
    return made


def theirs(pipe):
    """Pictures of a diffusers pipeline, as arrays of integers."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    images = pipe(PROMPTS, latents=start, num_inference_steps=8, guidance_scale=4.0, height=64, width=64).images
    return np.stack([np.asarray(image, int) for image in images])


def ours(sd):
    images = sd.generate(PROMPTS, steps=8, guidance=4.0, seed=3, size=64, progress=False)
    return np.stack([np.asarray(image, int) for image in images])


def assert_same(a, b, other=None):
    assert np.abs(a - b).max() <= 2
    assert b.std() > 5 and (other is None or np.abs(b - other).max() > 20)


def pipeline(folder):
    return diffusers.StableDiffusionPipeline.from_pretrained(folder)


def test_the_base_draws_what_diffusers_draws(trained):
    assert_same(ours(StableDiffusion.load(trained[0])), theirs(pipeline(trained[0])))


def test_a_fine_tuned_model_is_diffusers_too_as_folder_and_as_single_file(trained):
    """from_single_file renames OpenCLIP's tensors by itself; half precision would be another picture."""
    base, run, _ = trained
    sd = StableDiffusion.load(run)
    assert sd.v_prediction == StableDiffusion.load(base).v_prediction
    assert_same(ours(sd), theirs(pipeline(run)), ours(StableDiffusion.load(base)))
    file = export(ExportOptions(run=str(run), to="single-file"))
    again = StableDiffusion.load(file, base / "tokenizer")
    assert again.v_prediction == sd.v_prediction
    assert_same(ours(again), ours(sd))
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        file, config=str(run), local_files_only=True, torch_dtype=torch.float32
    )
    assert pipe.scheduler.config.prediction_type == sd.configs["scheduler"]["prediction_type"]
    assert_same(theirs(pipe), ours(sd))


@pytest.mark.parametrize("program", ["diffusers", "kohya"])
def test_a_lora_draws_the_same_in_diffusers(trained, tmp_path, program):
    base, _, run = trained
    file = export(ExportOptions(run=str(run), to=program, out=str(tmp_path / "rex.safetensors")))
    pipe = pipeline(base)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    assert_same(ours(StableDiffusion.load(run)), theirs(pipe), ours(StableDiffusion.load(base)))


def test_the_command_draws_from_a_single_file_with_a_lora(trained, tmp_path):
    base, _, run = trained
    file = export(ExportOptions(run=str(base), to="single-file", out=str(tmp_path / "sd2.safetensors")))
    words = ["--model", str(file), "--tokenizer", str(base / "tokenizer"), "--adapter", str(run), "--steps", "8"]
    words += ["--guidance", "4", "--seed", "3", "--width", "64", "--height", "64", "--prompt", *PROMPTS]
    pictures = sample(parse(SampleOptions, "x", [*words, "--out", str(tmp_path / "a.png")]))
    assert_same(np.stack([np.asarray(p, int) for p in pictures]), ours(StableDiffusion.load(run)))
    halved = sample(parse(SampleOptions, "x", [*words, "--adapter-scale", "0.5", "--out", str(tmp_path / "b.png")]))
    assert np.abs(np.asarray(halved[0], int) - np.asarray(pictures[0], int)).max() > 5
