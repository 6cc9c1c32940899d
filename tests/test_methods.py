"""The methods on the training command: what a run leaves, who opens it, resuming, refusals, posterior pictures."""

import gc
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_train import denoising_error

from minibnn import StableDiffusion, UNet, UserError, WeightsError, posterior, runs
from minibnn.cli.sample import sample
from minibnn.cli.train import fine_tune
from minibnn.files.store import ASSETS
from minibnn.finetune import adapters, methods, oft
from minibnn.options.parsing import parse
from minibnn.options.results import SampleOptions
from minibnn.options.training import TrainOptions

METHODS = ("lora", "oft")
QUIETLY = ["--samples", "0", "--no-monitor"]
EXPORTED_LORA = ("lora", "--rank", "3", "--alpha", "6", "--export", "kohya,peft")
BIG_STEPS = ["--lr", "0.02", "--steps", "4"]  # far enough from the start to be seen in a picture


@pytest.fixture(scope="module")
def make_run(dog, tmp_path_factory):
    """make_run(method, *arguments) -> folder of a finished run; the same arguments give the same folder."""
    made = {}

    def make(*arguments, name=None):
        key = name or arguments
        if key not in made or name:
            folder = made.get(key) or tmp_path_factory.mktemp("runs") / "run"
            words = ["--images", str(dog), "--model", "tiny", "--out", str(folder), *QUIETLY, "--method", *arguments]
            fine_tune(parse(TrainOptions, "minibnn.train", words))
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def options(dog, tmp_path):
    def options(*arguments, out="run"):
        words = ["--images", str(dog), "--model", "tiny", "--out", str(tmp_path / out), *QUIETLY, "--steps", "2"]
        return parse(TrainOptions, "minibnn.train", [*words, *arguments])

    return options


def state(folder):
    return load_file(folder / runs.STATE)


def trained(folder, *endings):
    """The trained tensors in a run's checkpoint whose names end in one of these words."""
    tensors = state(folder).items()
    return [tensor for name, tensor in tensors if name.startswith("weight/") and name.endswith(endings)]


@torch.no_grad()
def output(unet):
    """ε̂ of a UNet, ours or diffusers', for fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 128, generator=generator)
    out = unet(x, torch.tensor([20, 800]), context)
    return out if isinstance(out, torch.Tensor) else out.sample


@pytest.fixture(scope="module")
def base():
    return output(StableDiffusion.load("tiny").unet)


@pytest.fixture
def pipe():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.StableDiffusionPipeline.from_pretrained(ASSETS / "tiny", torch_dtype=torch.float32)


def sd_config():
    return json.loads((ASSETS / "tiny" / "unet" / "config.json").read_text())


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bayes", ["--bayes", "--no-bayes"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_adapter_alone(make_run, base, method, bayes):
    run = make_run(method, bayes, *BIG_STEPS)
    files = {"lora": {"pytorch_lora_weights.safetensors"}, "oft": {"adapter_config.json", "adapter_model.safetensors"}}
    assert {p.name for p in run.iterdir()} == {"checkpoint", "config.json", "log.jsonl", "report.html"} | files[method]
    trained = {k.removeprefix("weight/") for k in state(run) if k.startswith("weight/")}
    parts = {"lora": {"down", "up"}, "oft": {"q"}}[method] | ({"up_sigma", "q_sigma"} if bayes == "--bayes" else set())
    assert trained and {k.rsplit(".", 1)[1] for k in trained} <= parts
    sigma = [v for k, v in state(run).items() if k.startswith("weight/") and k.endswith("_sigma")]
    assert bool(sigma) == (bayes == "--bayes") and all((v - 0.01).abs().max() > 1e-4 for v in sigma)
    sd = StableDiffusion.load(run)
    assert type(sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q) is torch.nn.Linear
    assert (output(sd.unet) - base).abs().max() > 0.05
    assert sd.recipe["prompt"] == "a photo of a sks dog"


@pytest.mark.parametrize("method", METHODS)
def test_what_opens_is_what_was_trained(make_run, method):
    """The file against the weights in the checkpoint, put into a fresh network by hand."""
    run = make_run(method, "--bayes", *BIG_STEPS)
    sd, weights = StableDiffusion.load("tiny"), state(run)
    settled = TrainOptions(**json.loads((run / "config.json").read_text())["options"])
    methods.make_trainable(sd.unet, settled)
    for name, parameter in sd.unet.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[f"weight/{name}"])
    torch.testing.assert_close(output(StableDiffusion.load(run).unet), output(sd.unet.eval()), rtol=0, atol=2e-5)


def test_alpha_over_rank_is_in_the_file(make_run, base):
    """rank 3, α 6: forgetting the factor 2 would halve the change."""
    run = make_run(*EXPORTED_LORA, *BIG_STEPS)
    ours = output(StableDiffusion.load(run).unet)
    for file in ("lora_kohya.safetensors", "adapter_model.safetensors"):
        other = StableDiffusion.load("tiny").merge_adapter(run / file)
        torch.testing.assert_close(output(other.unet), ours, rtol=0, atol=2e-5)
    weights = state(run)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    before = StableDiffusion.load("tiny").unet.get_submodule(name).weight
    after = StableDiffusion.load(run).unet.get_submodule(name).weight
    torch.testing.assert_close(after - before, 2 * weights[f"weight/{name}.up"] @ weights[f"weight/{name}.down"])
    assert (ours - base).abs().max() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_single_file_is_a_whole_model(make_run, method):
    run = make_run(method, "--single-file", *BIG_STEPS)
    whole, sd = UNet.from_file(run / "model.safetensors", sd_config()), StableDiffusion.load(run)
    torch.testing.assert_close(output(whole), output(sd.unet), rtol=0, atol=2e-5)


# --- other programs ---------------------------------------------------------------------------------------------------


def pictures(pipe, prompts, seed):
    pipe.scheduler = __import__("diffusers").DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return pipe(prompts, latents=start, num_inference_steps=12, guidance_scale=3.0, height=64, width=64).images


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "lora_kohya.safetensors"])
def test_diffusers_draws_the_same_picture_with_the_lora(make_run, pipe, file):
    pytest.importorskip("peft")
    run, prompts = make_run(*EXPORTED_LORA, *BIG_STEPS), ["a sks dog", "a car"]
    plain = pictures(pipe, prompts, 3)
    pipe.load_lora_weights(run, weight_name=file)
    theirs = pictures(pipe, prompts, 3)
    ours = StableDiffusion.load(run).generate(prompts, steps=12, guidance=3.0, seed=3, progress=False)
    for a, b, c in zip(ours, theirs, plain, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2
        assert np.abs(np.asarray(c, int) - np.asarray(b, int)).max() > 20


@pytest.mark.parametrize("arguments", [EXPORTED_LORA, ("oft", "--bayes")], ids=METHODS)
def test_peft_opens_the_run(make_run, pipe, arguments):
    peft = pytest.importorskip("peft")
    run = make_run(*arguments, *BIG_STEPS)
    theirs = output(peft.PeftModel.from_pretrained(pipe.unet, run).eval())
    torch.testing.assert_close(theirs, output(StableDiffusion.load(run).unet), rtol=0, atol=5e-5)
    files = [run / "adapter_model.safetensors", *run.glob("lora_kohya.safetensors")]
    for file in files:  # the file that peft reads, and the one with another place for α
        ours = StableDiffusion.load("tiny").merge_adapter(file)
        torch.testing.assert_close(output(ours.unet), theirs, rtol=0, atol=5e-5)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["lora"], ["lora", "--no-bayes"], ["lora", "--lambda-kl", "1e-4", "--dtype", "bfloat16"], ["oft"],
        ["oft", "--no-bayes", "--coft", "0.01"],
        ["oft", "--lambda-kl", "1e-4", "--kl", "p-q", "--gradient-checkpointing"],
    ],
    ids=" ".join,
)
def test_resume_is_bit_for_bit(options, tmp_path, arguments):
    arguments = ["--method", *arguments, "--lr", "0.01"]
    fine_tune(options(*arguments, "--steps", "4", out="straight"))
    fine_tune(options(*arguments, "--steps", "2", out="stopped"))
    halfway = state(tmp_path / "stopped")
    fine_tune(options(*arguments, "--steps", "4", "--resume", out="stopped"))
    straight, stopped = state(tmp_path / "straight"), state(tmp_path / "stopped")
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[k], stopped[k]) for k in straight)
    assert not all(torch.equal(straight[k], halfway[k]) for k in straight)


def test_another_rank_cannot_resume(options):
    fine_tune(options("--method", "lora"))
    with pytest.raises(UserError, match="--method is 'oft' but the run in .* has 'lora', which decides what is"):
        fine_tune(options("--resume", "--method", "oft", "--steps", "3"))
    with pytest.raises(UserError, match="--rank is 5 but the run in .* has 4, which decides what is trained: leave it"):
        fine_tune(options("--method", "lora", "--rank", "5", "--alpha", "4", "--steps", "3", "--resume"))


# --- training ---------------------------------------------------------------------------------------------------------


def test_constrained_oft_stays_in_its_ball(make_run):
    run = make_run("oft", "--coft", "0.01", *BIG_STEPS)
    norms = torch.cat([oft.skew(q).flatten(1).norm(dim=1) for q in trained(run, ".q")])
    assert norms.max() <= 0.01 / 2 * (1 + 1e-5) and norms.max() > 0.004


@pytest.mark.parametrize("method", METHODS)
def test_eq3_prior_of_an_adapter_is_centred_at_its_start(options, tmp_path, method):
    """A heavy λ pulls up and Q back to 0, where they began, and never pulls at down."""
    far = []
    for out, strength in (("free", "0"), ("held", "10")):
        fine_tune(options("--method", method, "--lr", "0.01", "--steps", "12", "--lambda-kl", strength, out=out))
        far.append(torch.cat([tensor.flatten() for tensor in trained(tmp_path / out, ".up", ".q")]).abs().mean())
    assert far[1] < 0.7 * far[0], far
    log = [json.loads(line) for line in (tmp_path / "held" / "log.jsonl").read_text().splitlines()]
    assert abs(log[0]["kl"]) < 1e-3 < log[-1]["kl"]


def tensor_bytes():
    """Bytes of all tensors alive, each storage once, without the fake tensors that compiling leaves."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        real = type(thing) in (torch.Tensor, torch.nn.Parameter)
        if real and thing.device.type == "cpu" and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("method", ["dreambooth", *METHODS])
def test_lambda_zero_keeps_no_second_copy_of_the_weights(options, method):
    """Measured: with λ > 0 exactly the start values of what is random are kept beside the network."""
    alive, random = [], []

    def observe(training):
        if training.step == 1:
            alive.append(tensor_bytes())
            parameters = training.sd.unet.named_parameters()
            random.append(4 * sum(p.numel() for n, p in parameters if n.endswith("_sigma")))

    for out, strength in (("a", "0"), ("b", "0"), ("c", "1e-9")):
        arguments = ("--steps", "1", "--prior-weight", "0", "--method", method, "--lambda-kl", strength)
        fine_tune(options(*arguments, out=out), [observe])
    assert abs(alive[1] - alive[0]) < 20_000  # what varies without reason
    assert alive[2] - alive[1] == pytest.approx(random[0], abs=20_000) and random[0] > 90_000


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_learns_the_pictures(options, tmp_path, dog, method):
    fine_tune(options("--method", method, "--steps", "6", "--lr", "0.01", "--batch-size", "4"))
    before, after = (denoising_error(model, dog, "a photo of a sks dog") for model in ("tiny", tmp_path / "run"))
    assert after < 0.9 * before, (before, after)


def test_defaults_of_the_paper_app_h1():
    """Recipe of official models: rates, steps for each picture, prior preservation for DreamBooth only."""
    from minibnn.files.configs import RECIPE

    expected = {"dreambooth": (5e-6, 200, 1.0), "lora": (1e-4, 400, 0.0), "oft": (1e-4, 200, 0.0)}
    for method, values in expected.items():
        settled, recipe = methods.settle(TrainOptions(images="x", method=method), RECIPE)
        assert (settled.lr, recipe["steps_per_picture"], settled.prior_weight) == values
        assert settled.sigma == 0.01
    settled, _ = methods.settle(TrainOptions(images="x", method="lora", rank=8), RECIPE)
    assert (settled.rank, settled.alpha, settled.layers) == (8, 8.0, "to_q,to_k,to_v,to_out.0")
    settled, _ = methods.settle(TrainOptions(images="x", method="oft", prior_weight=0.5, lr=1.0), RECIPE)
    assert (settled.blocks, settled.prior_weight, settled.lr) == (4, 0.5, 1.0)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lora", "--where", "paper"], "--where belongs to --method dreambooth or oft; what is random"),
        (["--method", "oft", "--rank", "2"], "--rank belongs to --method lora"),
        (["--rank", "2"], "--rank belongs to --method lora"),
        (["--layers", "to_q"], "--layers belongs to --method lora or oft"),
        (["--method", "oft", "--where", "up,norm"], "--where: where = 'norm' is not a part of a UNet; those of"),
        (["--method", "lora", "--coft", "0.1"], "--coft belongs to --method oft"),
        (["--method", "oft", "--export", "kohya"], "--export belongs to --method lora"),
        (["--method", "lora", "--export", "kohya,a1111"], "--export: 'a1111' is not one of kohya, peft"),
        (["--method", "lora", "--rank", "65"], "--rank: .*to_q: rank 65 is larger than a layer of 64 inputs and 64"),
        (["--method", "oft", "--blocks", "5"], "--blocks: .*to_q: 5 blocks do not divide a layer of 64 inputs"),
        (["--method", "lora", "--layers", "to_q,to_z"], "--layers: no linear layer is called to_z"),
        (["--method", "lora", "--no-bayes", "--keep-posterior"], "--lambda-kl and --keep-posterior need --bayes"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_wrong_combinations_leave_no_folder(options, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        fine_tune(options(*arguments))
    assert not (tmp_path / "run").exists()


def changed(run, folder, change):
    """A copy of a LoRA run's file with `change({name: tensor})` applied."""
    tensors = load_file(run / "pytorch_lora_weights.safetensors")
    folder.mkdir(exist_ok=True)
    save_file(change(dict(tensors)), folder / "pytorch_lora_weights.safetensors")
    return folder


def test_a_lora_for_another_model_is_one_clear_line(make_run, tmp_path):
    run, sd = make_run("lora", "--bayes", *BIG_STEPS), StableDiffusion.load("tiny")
    before = output(sd.unet)

    def widen(tensors):
        return {k: torch.cat([v, v], 1) if ".down." in k else v for k, v in tensors.items()}

    def deepen(tensors):
        return tensors | {k.replace("up_blocks.1", "up_blocks.9"): v.clone() for k, v in tensors.items()}

    wider, deeper = changed(run, tmp_path / "a", widen), changed(run, tmp_path / "b", deepen)
    misfit = r"unet\..*lora.down.weight is \[4, 128\], this model needs \[4, 64\]"
    with pytest.raises(WeightsError, match=f"was made for another model: {misfit}"):
        sd.merge_adapter(wider)
    surplus = "belong to no layer of this model, as unet.up_blocks.9.*made for another model"
    with pytest.raises(WeightsError, match=surplus):
        sd.merge_adapter(deeper)
    with pytest.raises(WeightsError, match="holds no LoRA or OFT for this model"):
        sd.merge_adapter(ASSETS / "tiny" / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match="no adapter in"):
        sd.merge_adapter(tmp_path)
    with pytest.raises(WeightsError, match="it is a LoRA: pass its base as --model and this as --adapter"):
        StableDiffusion.load(run / "pytorch_lora_weights.safetensors")
    assert torch.equal(output(sd.unet), before)  # nothing was changed by halves


def test_a_run_finds_its_base_or_says_which_it_was(options, tmp_path, monkeypatch):
    sd = StableDiffusion.load("tiny")
    sd.save(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    fine_tune(options("--method", "lora", "--model", "base"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    StableDiffusion.load(tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="run was trained from the model base, which is not there.*--adapter .*run"):
        StableDiffusion.load(tmp_path / "run")
    StableDiffusion.load(tmp_path / "moved").merge_adapter(tmp_path / "run")
    (tmp_path / "run" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match="the run in .* is not finished; to go on: python -m minibnn train --resume"):
        StableDiffusion.load(tmp_path / "run")


def test_an_adapter_run_is_a_model_to_start_from(make_run, options, tmp_path):
    run = make_run("lora", "--bayes", *BIG_STEPS)
    fine_tune(options("--method", "oft", "--model", str(run), "--lr", "1e-6"))
    torch.testing.assert_close(  # so small a rate leaves it at the LoRA, far from the bundled model
        output(StableDiffusion.load(tmp_path / "run").unet), output(StableDiffusion.load(run).unet), rtol=0, atol=2e-3
    )


# --- pictures from the posterior --------------------------------------------------------------------------------------


DREAMBOOTH = ("dreambooth", "--where", "norm,up", "--prior-weight", "0")


@pytest.mark.parametrize("arguments", [DREAMBOOTH, ("lora",), ("oft",)], ids=lambda a: a[0])
def test_draws_are_of_the_trained_posterior(make_run, arguments):
    rate = ("--lr", "1e-3") if arguments[0] == "dreambooth" else ()
    run = make_run(*arguments, *BIG_STEPS, *rate, "--keep-posterior")
    sd, random = posterior.open_run(run)
    at_mean = output(StableDiffusion.load(run).unet)
    torch.testing.assert_close(output(sd.unet), at_mean, rtol=0, atol=2e-5)
    kept = load_file(run / "posterior.safetensors")
    assert {name + "_sigma" for name in random} == {name for name in kept if name.endswith("_sigma")} != set()

    name = max(random, key=lambda n: random[n][0].numel())
    posterior.set_weights(sd.unet, random, 5)
    standard = (sd.unet.get_parameter(name).detach() - kept[name]) / kept[name + "_sigma"]
    assert standard.mean().abs() < 5 / standard.numel() ** 0.5 and standard.std().item() == pytest.approx(1, abs=0.1)
    first = output(sd.unet)
    posterior.set_weights(sd.unet, random, 6)
    assert (output(sd.unet) - first).abs().max() > 1e-3 < (first - at_mean).abs().max()
    posterior.set_weights(sd.unet, random, 5)
    assert torch.equal(output(sd.unet), first)
    posterior.set_weights(sd.unet, random)
    torch.testing.assert_close(output(sd.unet), at_mean, rtol=0, atol=2e-5)


def test_posterior_samples_are_shown_with_mean_and_deviation(make_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = make_run("oft", *BIG_STEPS, "--keep-posterior")
    arguments = ["--prompt", "a sks dog", "a car", "--steps", "4", "--posterior-samples", "3", "--out", "p.png"]
    sample(parse(SampleOptions, "x", ["--model", str(run), *arguments]))
    names = [f"{i:03d}{what}.png" for i in range(2) for what in ("", "-01", "-02", "-03", "-mean", "-deviation")]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == sorted(names)
    drawn = np.stack([np.asarray(Image.open(tmp_path / "p" / f"001-0{k}.png"), float) for k in (1, 2, 3)])
    assert np.abs(np.asarray(Image.open("p/001-mean.png")) - drawn.mean(0)).max() <= 0.5
    deviation = np.sqrt(((drawn - drawn.mean(0)) ** 2).sum(0) / 2).astype(float)
    deviation = np.sqrt((deviation**2).mean(-1))
    assert np.abs(np.asarray(Image.open("p/001-deviation.png"))[..., 0] - np.minimum(255, 4 * deviation)).max() <= 0.51
    assert f"picture 1: the 3 draws deviate by {deviation.mean():.1f} of 255 grey levels" in capsys.readouterr().out
    plain = StableDiffusion.load(run).generate(["a sks dog", "a car"], steps=4, progress=False)
    for i in range(2):  # the first of each row: at the mean of the weights
        assert np.abs(np.asarray(plain[i], int) - np.asarray(Image.open(f"p/{i:03d}.png"), int)).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny", "--posterior-samples", "4"], "holds no posterior.safetensors.*--keep-posterior"),
        (["--posterior-samples", "1"], "--posterior-samples needs at least 2"),
        (["--adapter", "nowhere"], "nowhere: no such file"),
    ],
)
def test_posterior_refusals(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        sample(parse(SampleOptions, "x", ["--prompt", "a dog", "--out", str(tmp_path / "p.png"), *arguments]))


def test_an_adapter_on_the_command_line(make_run, tmp_path):
    run = make_run("lora", "--bayes", *BIG_STEPS)
    words = ["--model", "tiny", "--prompt", "a dog", "--steps", "3", "--out", str(tmp_path / "a.png")]
    words += ["--adapter", str(run / "pytorch_lora_weights.safetensors")]
    a = sample(parse(SampleOptions, "x", words))
    b = StableDiffusion.load(run).generate(["a dog"], steps=3, progress=False)
    assert np.array_equal(np.asarray(a[0]), np.asarray(b[0]))
    assert not adapters.adapters(StableDiffusion.load(run).unet)
