"""The training command on the bundled model: what it leaves, resuming bit for bit, Ctrl-C, kill, and every refusal."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minibnn import StableDiffusion, UserError, class_pictures, data, runs, schedule
from minibnn.cli.announcements import about_class_pictures
from minibnn.cli.settle import settle
from minibnn.cli.train import fine_tune
from minibnn.files.store import read_json, write_json
from minibnn.files.weights import open_weights
from minibnn.finetune.kernel import default_kernel
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.train import Batches, make_optimiser

FAST = ["--class-count", "4", "--steps", "3", "--samples", "0", "--no-monitor"]


@pytest.fixture(scope="module")
def class_images(tmp_path_factory, dog):
    """Class pictures need not be good here; nobody wants to wait for drawn ones."""
    folder = tmp_path_factory.mktemp("class")
    for i, path in enumerate(sorted(dog.glob("*.png"))[:4]):
        (folder / f"{i}.png").write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def options(dog, tmp_path, class_images, micro):
    def make(*arguments, out="run"):
        words = ["--images", str(dog), "--out", str(tmp_path / out), "--class-images", str(class_images), *FAST]
        words += ["--model", str(micro)]
        return parse(TrainOptions, "minibnn.train", [*words, *arguments])

    return make


def state(folder):
    return load_file(Path(folder) / runs.STATE)


def assert_same_state(a, b):
    a, b = state(a), state(b)
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different[:5]


# --- what a run does --------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_at_the_mean_and_its_records(options, tmp_path, micro):
    fine_tune(options("--keep-posterior", "--single-file", "--sample-every", "2", "--samples", "2"))
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "checkpoint",
        "config.json",
        "log.jsonl",
        "report.html",
        "samples.png",
        "samples-000002.png",
        "model_index.json",
        "recipe.json",
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "posterior.safetensors",
        "model.safetensors",
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["lr"] == StableDiffusion.load(micro).recipe["lr"]  # settled values, not None

    trained, posterior = StableDiffusion.load(run), load_file(run / "posterior.safetensors")
    weights = trained.unet.state_dict()
    assert all(torch.equal(weights[k], posterior[k]) for k in weights)  # saved at θ = μ
    assert posterior.keys() - weights.keys() == {k for k in posterior if k.endswith("_sigma")} != set()
    base = StableDiffusion.load(micro).unet.state_dict()
    assert all(not torch.equal(weights[k], base[k]) for k in weights if not k.endswith("bias"))  # all of the UNet moved
    for part in ("vae", "text_encoder"):  # and nothing else
        before, after = getattr(StableDiffusion.load(micro), part).state_dict(), getattr(trained, part).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_class_pictures_are_drawn_and_kept_when_overwriting(dog, tmp_path, micro):
    words = ["--images", str(dog), "--out", str(tmp_path / "run"), "--class-count", "2", "--steps", "1"]
    words += ["--samples", "0", "--model", str(micro)]
    fine_tune(parse(TrainOptions, "minibnn.train", words))
    drawn = sorted((tmp_path / "run" / "class_images").glob("*.png"))
    times = [path.stat().st_mtime_ns for path in drawn]
    assert len(drawn) == 2
    fine_tune(parse(TrainOptions, "minibnn.train", [*words, "--overwrite", "--lr", "1e-5"]))
    assert [path.stat().st_mtime_ns for path in drawn] == times


def test_class_pictures_of_an_earlier_run_do_not_stand_in_the_way(dog, tmp_path, micro):
    """Bug: --overwrite with another class was refused for a folder that nobody had named. One's own pictures stay."""
    words = ["--images", str(dog), "--class-count", "3", "--steps", "1", "--samples", "0", "--model", str(micro)]
    cat = ["--prompt", "a sks cat", "--class-prompt", "a cat"]
    run, folder = ["--out", str(tmp_path / "run")], tmp_path / "run" / "class_images"

    def train(*more):
        fine_tune(parse(TrainOptions, "minibnn.train", [*words, *more]))

    train(*run)
    for name in ("own.png", "drawn-by-me.png"):
        (folder / name).write_bytes((dog / "00.png").read_bytes())
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    train(*run, *cat, "--overwrite")
    after = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert sorted(after) == ["drawn-00000.png", "drawn-by-me.png", "own.png"]  # three, one's own among them
    assert {name for name in after if after[name] == before[name]} == {"own.png", "drawn-by-me.png"}
    assert read_json(folder / class_pictures.RECORD)["prompt"] == "a cat"
    with pytest.raises(UserError, match="was drawn for guidance .*; leave --class-guidance out"):
        train(*run, *cat, "--resume", "--class-guidance", "2")
    with pytest.raises(UserError, match="was drawn for prompt 'a cat', not 'a photo of a dog'; name another folder"):
        train("--out", str(tmp_path / "other"), "--class-images", str(folder), "--overwrite")
    assert (folder / "drawn-00000.png").read_bytes() == after["drawn-00000.png"]


def test_a_run_stopped_while_it_drew_its_class_may_begin_with_another(tmp_path, dog, micro):
    words = ["--images", str(dog), "--out", str(tmp_path / "run"), "--class-count", "1", "--model", str(micro)]
    words += ["--steps", "1", "--samples", "0"]
    folder = tmp_path / "run" / "class_images"
    write_json(folder / class_pictures.RECORD, class_pictures.record("a cat", str(micro), 64, 3.0))
    with pytest.raises(UserError, match="was drawn for prompt 'a cat', not 'a photo of a dog'; --overwrite draws them"):
        fine_tune(parse(TrainOptions, "minibnn.train", words))
    fine_tune(parse(TrainOptions, "minibnn.train", [*words, "--overwrite"]))
    assert read_json(folder / class_pictures.RECORD)["prompt"] == "a photo of a dog"


def test_class_pictures_behind_a_link_are_of_others(tmp_path, dog, micro):
    """Bug: two runs shared a folder by links in their own, and --overwrite of one deleted the other's pictures."""
    shared, run = tmp_path / "shared", tmp_path / "run"
    write_json(shared / class_pictures.RECORD, class_pictures.record("a cat", str(micro), 64, 3.0))
    (shared / "drawn-00000.png").write_bytes((dog / "00.png").read_bytes())
    run.mkdir()
    (run / "class_images").symlink_to(shared)
    words = ["--images", str(dog), "--out", str(run), "--class-count", "1", "--model", str(micro), "--overwrite"]
    with pytest.raises(UserError, match="was drawn for prompt 'a cat', not 'a photo of a dog'; name another folder"):
        fine_tune(parse(TrainOptions, "minibnn.train", [*words, "--steps", "1", "--samples", "0"]))
    assert (shared / "drawn-00000.png").exists()


def test_a_run_goes_on_when_its_shared_class_pictures_have_become_others(tmp_path, dog, micro, monkeypatch):
    """Bug: "leave that out", where nothing was given, and with another folder "leave it out" as well."""
    shared, run = tmp_path / "shared", tmp_path / "run"
    words = ["--images", str(dog), "--class-count", "2", "--model", str(micro), "--samples", "0", "--out", str(run)]
    train = ["--class-images", str(shared), "--keep-optimiser", "--steps"]
    fine_tune(parse(TrainOptions, "minibnn.train", [*words, *train, "2"]))
    straight = state(run)
    drawn = {path.name: path.read_bytes() for path in shared.glob("*.png")}
    fine_tune(parse(TrainOptions, "minibnn.train", [*words, *train, "1", "--overwrite"]))
    elsewhere = ["--resume", "--out", str(run), "--steps", "2", "--class-images", str(tmp_path / "new")]
    with pytest.raises(UserError, match="is not the folder that the run in .* began with"):
        fine_tune(parse(TrainOptions, "minibnn.train", elsewhere))
    record = read_json(shared / class_pictures.RECORD)
    write_json(shared / class_pictures.RECORD, record | {"prompt": "a cat"})
    with pytest.raises(UserError, match="was drawn for prompt 'a cat', .*; name an empty folder, where they are drawn"):
        fine_tune(parse(TrainOptions, "minibnn.train", elsewhere[:-2]))
    fine_tune(parse(TrainOptions, "minibnn.train", elsewhere))
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").glob("*.png")} == drawn
    again = state(run)
    assert all(torch.equal(again[name], straight[name]) for name in straight) and again.keys() == straight.keys()


def test_diffusers_opens_a_run(options, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    fine_tune(options())
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "run")
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 77, 128)
    with torch.no_grad():
        ours = StableDiffusion.load(tmp_path / "run").unet(x, t, context)
        torch.testing.assert_close(ours, pipe.unet(x, t, context).sample, rtol=1e-5, atol=1e-5)


def test_a_run_is_a_model_to_start_from(options, tmp_path):
    fine_tune(options("--steps", "1"))
    fine_tune(options("--steps", "1", "--model", str(tmp_path / "run"), out="second"))
    assert StableDiffusion.load(tmp_path / "second").recipe["resolution"] == 64


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--no-bayes", "--batch-size", "2", "--accumulate", "2"],
        ["--where", "norm,conv", "--lambda-kl", "1e-6", "--kl", "p-q"],
        ["--dtype", "bfloat16", "--gradient-checkpointing"],
        ["--dtype", "float16", "--prior-weight", "0"],
        ["--prior-target", "pretrained", "--ema", "0.9", "--null-dropout", "0.5"],
    ],
    ids=lambda a: " ".join(a) or "default",
)
def test_resume_is_bit_for_bit(options, tmp_path, arguments):
    fine_tune(options(*arguments, "--steps", "4", out="straight"))
    fine_tune(options(*arguments, "--steps", "2", out="stopped"))
    fine_tune(options(*arguments, "--steps", "4", "--resume", out="stopped"))
    assert_same_state(tmp_path / "straight", tmp_path / "stopped")
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("straight", "stopped")]
    assert logs[0] == logs[1]


def test_the_seed_fixes_everything_and_matters(options, tmp_path):
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        fine_tune(options("--seed", seed, out=out))
    assert_same_state(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_state(tmp_path / "a", tmp_path / "c")


def test_gradient_checkpointing_trains_the_same(options, tmp_path):
    fine_tune(options(out="a"))
    fine_tune(options("--gradient-checkpointing", out="b"))
    assert_same_state(tmp_path / "a", tmp_path / "b")


@torch.no_grad()
def denoising_error(model, dog, prompt):
    """Mean squared error of ε̂ on the training pictures, at fixed times and noises."""
    sd, generator = StableDiffusion.load(model), torch.Generator().manual_seed(5)
    x0 = sd.encode_pictures(data.load_pictures(sorted(dog.glob("*.png")), 64), generator).repeat(4, 1, 1, 1)
    t = torch.arange(100, 900, 200).repeat_interleave(6)
    eps = torch.randn(x0.shape, generator=generator)
    x_t = schedule.q_sample(x0, eps, sd.alphas_cumprod[t])
    return torch.nn.functional.mse_loss(
        sd.predict_eps(x_t, t, sd.encode_prompts([prompt]).expand(24, -1, -1)), eps
    ).item()


def test_training_learns_the_pictures(options, tmp_path, dog):
    fine_tune(options("--steps", "8", "--lr", "2e-4", "--prior-weight", "0", "--batch-size", "4", "--model", "tiny"))
    prompt = StableDiffusion.load("tiny").recipe["prompt"]
    before, after = (denoising_error(model, dog, prompt) for model in ("tiny", tmp_path / "run"))
    assert after < 0.9 * before, (before, after)


def test_sigma_moves_and_takes_no_weight_decay(options, tmp_path):
    fine_tune(options("--steps", "5"))
    tensors = state(tmp_path / "run")
    sigma = torch.cat([v.flatten() for k, v in tensors.items() if k.startswith("weight/") and k.endswith("_sigma")])
    assert (sigma - 0.01).abs().max() > 1e-5
    network = torch.nn.Linear(2, 2)
    network.weight_sigma = torch.nn.Parameter(torch.ones(2, 2))
    groups = make_optimiser(network, 1e-3).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.01), (1, 0.0)]


@pytest.mark.parametrize(("model", "batch", "steps"), [("tiny", 1, 900), ("tiny-v2", 4, 720)])
def test_the_recipe_of_a_bundled_model_decides_batch_and_steps(options, model, batch, steps):
    sd, given = StableDiffusion.load(model), options("--model", model)
    settled = settle(dataclasses.replace(given, steps=None, batch_size=None), sd, 6)
    assert (settled.batch_size, settled.steps) == (batch, steps)
    assert settle(dataclasses.replace(given, batch_size=2), sd, 6).batch_size == 2


@pytest.mark.parametrize(
    ("method", "expected"),
    [(name, (weight, "pretrained", 0.98)) for name, weight in (("dreambooth", 3.0), ("lora", 1.0), ("oft", 1.0))],
)
def test_the_recipe_of_tiny_v2_says_who_teaches_the_class(method, expected):
    given = TrainOptions(images="x", out="y", method=method)
    settled = settle(given, StableDiffusion.load("tiny-v2"), 6)
    assert (settled.prior_weight, settled.prior_target, settled.ema) == expected
    asked = dataclasses.replace(given, prior_weight=1.0, prior_target="noise", ema=0.5)
    settled = settle(asked, StableDiffusion.load("tiny-v2"), 6)
    assert (settled.prior_weight, settled.prior_target, settled.ema) == (1.0, "noise", 0.5)


@pytest.mark.parametrize(("model", "rank"), [("tiny", 4), ("tiny-v2", 8)])
def test_the_recipe_may_say_the_rank_of_a_lora(model, rank):
    given = TrainOptions(images="x", out="y", method="lora")
    sd = StableDiffusion.load(model)
    settled = settle(given, sd, 6)
    assert (settled.rank, settled.alpha) == (rank, float(rank))
    settled = settle(dataclasses.replace(given, rank=2), sd, 6)
    assert (settled.rank, settled.alpha) == (2, 2.0)
    assert settle(dataclasses.replace(given, method="oft"), sd, 6).rank is None


def test_batches_hold_subject_first_then_class(options, dog):
    sd = StableDiffusion.load("tiny")
    settled = settle(options("--batch-size", "2"), sd, 6)
    images = torch.rand(6, 3, 64, 64) * 2 - 1
    sources = [(images, settled.prompt * 6), (images[:2], settled.class_prompt * 2)]
    x0, context = Batches(sd, sources, 2, 0)(0, torch.Generator().manual_seed(0))
    assert x0.shape == (4, 4, 8, 8) and context.shape == (4, 77, 128)
    expected = sd.encode_prompts([*settled.prompt, *settled.class_prompt])
    torch.testing.assert_close(context, expected.repeat_interleave(2, 0), rtol=1e-5, atol=1e-5)  # other batches: 1e-6


@pytest.fixture(scope="module")
def two_sources():
    """make(null_dropout, size) -> Batches of five pictures of a subject and three of its class; prompts by hand."""
    sd = StableDiffusion.load("tiny")
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sources = [(images[:5], ["a photo of a sks dog"] * 5), (images[5:], ["a photo of a dog"] * 3)]
    return lambda null_dropout, size=2, seed=0, class_null=None: Batches(
        sd, sources, size, seed, null_dropout, class_null,
    ), sd


def test_null_dropout_is_the_share_of_pictures_with_the_empty_prompt(two_sources):
    make, sd = two_sources
    names = ("a photo of a sks dog", "a photo of a dog", "")
    contexts = dict(zip(names, sd.encode_prompts(names), strict=True))
    batches, seen = make(0.1, size=4), []
    for i in range(500):
        _, context = batches(i, torch.Generator().manual_seed(i))
        of_place = [[name for name, own in contexts.items() if (row - own).abs().max() < 1e-3] for row in context]
        assert all(len(found) == 1 for found in of_place)
        own = [*[names[0]] * 4, *[names[1]] * 4]
        assert all(found in ([name], [""]) for found, name in zip(of_place, own, strict=True))
        seen.append([found == [""] for found in of_place])
    seen = torch.tensor(seen, dtype=torch.float64)
    for part, expected in ((seen, 0.1), (seen[:, :4], 0.1), (seen[:, 4:], 0.1), (seen[:, 0] * seen[:, 1], 0.01)):
        error = (expected * (1 - expected) / part.numel()) ** 0.5
        assert abs(part.mean().item() - expected) < 4 * error  # subject, class, and each picture on its own


def test_null_dropout_changes_prompts_and_nothing_else(two_sources):
    """The same latents, and the same numbers from the step's generator afterwards, whatever the share."""
    make, sd = two_sources
    left = []
    for share in (0.0, 0.3, 1.0):
        generator = torch.Generator().manual_seed(3)
        x0, context = make(share)(7, generator)
        left.append((x0, torch.rand(4, generator=generator)))
        assert torch.equal(x0, left[0][0]) and torch.equal(left[-1][1], left[0][1])
    assert torch.equal(context, sd.encode_prompts([""] * 4))  # of the share 1
    dropped = [make(0.5, size=8, seed=seed)(i, generator)[1] for seed, i in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(dropped[0], dropped[1])  # a function of seed and step
    assert not torch.equal(dropped[0], dropped[2]) and not torch.equal(dropped[0], dropped[3])


def test_null_dropout_trains_the_unconditional_prediction(options, tmp_path):
    """All pictures at the share 1: the same weights as a training with another prompt, since none is ever seen."""
    common = ["--null-dropout", "1", "--prior-weight", "0"]
    fine_tune(options(*common, out="a"))
    fine_tune(options(*common, "--prompt", "a sks cat", out="b"))
    assert_same_state(tmp_path / "a", tmp_path / "b")
    fine_tune(options("--prior-weight", "0", out="c"))
    with pytest.raises(AssertionError):
        assert_same_state(tmp_path / "a", tmp_path / "c")


def test_class_pictures_may_have_a_share_of_their_own(two_sources):
    """All class pictures and no subject; then a quarter of the class, ± 4 standard deviations of 1,600 draws."""
    make, sd = two_sources
    null = sd.encode_prompts([""])[0]
    dropped = (make(0.0, class_null=1.0)(0, torch.Generator())[1] == null).all((1, 2))
    assert dropped.tolist() == [False, False, True, True]
    batches = make(0.0, size=16, class_null=0.25)
    seen = torch.stack([(batches(i, torch.Generator())[1] == null).all((1, 2)) for i in range(100)])
    assert not seen[:, :16].any() and abs(seen[:, 16:].float().mean() - 0.25) < 4 * (0.25 * 0.75 / 1600) ** 0.5


def test_the_pretrained_model_teaches_the_class(options, monkeypatch):
    """A quarter of the class pictures has the empty prompt; the share of the subject's is another. Else no teacher."""
    import minibnn.cli.train as module

    began, real = [], module.train

    def note(training, given, batches, observers):
        began.append((training.pretrained, batches.nulls.tolist()))
        return real(training, given, batches, observers)

    monkeypatch.setattr(module, "train", note)
    fine_tune(options("--prior-target", "pretrained", "--batch-size", "2", "--null-dropout", "0.1", out="a"))
    fine_tune(options("--prior-weight", "0", out="b"))
    fine_tune(options("--prior-weight", "1", out="c"))
    (teacher, shares), (none, alone), (noise, _) = began
    assert teacher and none is noise is None
    with pytest.raises(UserError, match="--prior-target pretrained needs class pictures: add --prior-weight"):
        fine_tune(options("--prior-target", "pretrained", "--prior-weight", "0", out="d"))
    assert shares == pytest.approx([0.1, 0.1, 0.25, 0.25]) and alone == [0.0]


@pytest.mark.parametrize(
    "arguments",
    [["lora"], ["oft", "--blocks", "2"], ["lora", "--dtype", "bfloat16", "--gradient-checkpointing", "--ema", "0.9"]],
    ids=" ".join,
)
def test_an_adapter_learns_from_the_network_beneath_it_what_it_would_from_a_copy(
    options, tmp_path, monkeypatch, arguments
):
    """With random weights, bit for bit, in 4 steps and when it is resumed after 2.

    The weights are moved in memory beforehand, to where a copy would lie. A file that is mapped begins anywhere, and a
    product of matrices adds in another order there: the last bits of the prediction differ.
    """
    import minibnn.cli.train
    import minibnn.train as module

    def aligned(sd, given):
        for parameter in sd.unet.parameters():
            parameter.data = parameter.data.clone()
        return module.fine_tuning(sd, given)

    monkeypatch.setattr(minibnn.cli.train, "fine_tuning", aligned)
    words = ["--method", *arguments, "--lr", "0.01", "--prior-target", "pretrained", "--prior-weight", "1"]
    fine_tune(options(*words, "--steps", "4", out="beneath"))
    fine_tune(options(*words, "--steps", "2", out="stopped"))
    fine_tune(options(*words, "--steps", "4", "--resume", out="stopped"))
    predictor_of = module.predictor_of
    monkeypatch.setattr(module, "predictor_of", lambda unet, dtype: predictor_of(copy.deepcopy(unet), dtype))
    fine_tune(options(*words, "--steps", "4", out="copy"))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("beneath", "stopped", "copy")]
    assert logs[0] == logs[1] == logs[2]
    for name in ("stopped", "copy"):
        assert_same_state(tmp_path / "beneath", tmp_path / name)


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan", "often"])
def test_null_dropout_is_a_share(options, share, capsys):
    with pytest.raises(SystemExit):
        options("--null-dropout", share)
    assert f"--null-dropout: '{share}' is not a number from 0 to 1" in capsys.readouterr().err


# --- stopping ---------------------------------------------------------------------------------------------------------


def start_command(dog, class_images, micro, out, *arguments):
    command = [sys.executable, "-m", "minibnn.train", "--images", str(dog), "--class-images", str(class_images),
               "--model", str(micro), "--out", str(out), *FAST, "--steps", "4000", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_steps(out, steps, process):
    for _ in range(600):
        log = Path(out) / "log.jsonl"
        if log.exists() and len(log.read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("training did not start")


def test_ctrl_c_saves_and_says_how_to_go_on(options, tmp_path, dog, class_images, micro):
    out = tmp_path / "run"
    process = start_command(dog, class_images, micro, out)
    wait_for_steps(out, 3, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "train --resume --out" in errors.splitlines()[-1] and "Traceback" not in errors
    done = len((out / "log.jsonl").read_text().splitlines())
    fine_tune(options("--steps", str(done + 1), "--resume"))
    fine_tune(options("--steps", str(done + 1), out="straight"))
    assert_same_state(out, tmp_path / "straight")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_kill_leaves_the_last_checkpoint(options, tmp_path, dog, class_images, micro):
    out = tmp_path / "run"
    process = start_command(dog, class_images, micro, out, "--checkpoint-every", "2")
    wait_for_steps(out, 5, process)
    process.kill()
    process.communicate(timeout=60)
    done = int(open_weights(out / runs.STATE).metadata()["completed_steps"])
    with open(out / "log.jsonl", "a") as log:
        log.write('{"step": "after the checkpoint, and to be done again"}\n')
    fine_tune(options("--steps", str(done + 3), "--resume", "--checkpoint-every", "2"))
    fine_tune(options("--steps", str(done + 3), "--checkpoint-every", "2", out="straight"))
    assert_same_state(out, tmp_path / "straight")
    assert (out / "log.jsonl").read_text() == (tmp_path / "straight" / "log.jsonl").read_text()


def test_nan_names_the_step_and_the_good_checkpoint(options, tmp_path, monkeypatch):
    original, calls = schedule.q_sample, []

    def broken(x0, eps, abar):
        calls.append(1)
        return original(x0, eps, abar) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(schedule, "q_sample", broken)
    with pytest.raises(
        UserError, match="the loss is nan at step 3; try a smaller --lr; the last checkpoint, after 2 steps, is good"
    ):
        fine_tune(options("--checkpoint-every", "1"))
    monkeypatch.setattr(schedule, "q_sample", original)
    fine_tune(options("--checkpoint-every", "1", "--resume"))


# --- refusals: one line that names the option, and no folder left -----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "no checkpoint in .*run"),
        (["--where", "paper,here"], "--where: where = 'here' is not one of"),
        (["--resolution", "60"], "--resolution 60 is not a multiple of 8"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--device", "toaster"], "--device toaster"),
        (["--model", "nowhere"], "no model at nowhere"),
        (["--no-bayes", "--lambda-kl", "1"], "--lambda-kl and --keep-posterior need --bayes"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--device", "meta"], "--device meta is not one of cpu, cuda"),
        (["--prompt", "a sks cat"], "--class-prompt is required"),
        (["--no-bayes", "--sigma", "0.3"], "--sigma belongs to random weights: leave it out, or add --bayes"),
        (["--no-bayes", "--where", "all"], "--where belongs to random weights"),
        (["--no-bayes", "--kernel", "reference"], "--kernel belongs to random weights"),
        (["--no-bayes", "--kl", "p-q"], "--kl belongs to random weights"),
        (["--kl", "p-q"], "--kl belongs to the KL divergence: leave it out, or add --lambda-kl"),
        (["--prior-sigma", "1", "--method", "lora"], "--prior-sigma belongs to the KL divergence"),
    ],
)
def test_refusals_leave_no_folder(options, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        fine_tune(options(*arguments))
    assert not (tmp_path / "run").exists()


def test_training_without_pictures_is_refused():
    """Bug of an earlier version: a TypeError, from Python."""
    with pytest.raises(UserError, match="--images is required"):
        fine_tune(TrainOptions())


@pytest.mark.parametrize("method", ["dreambooth", "lora", "oft"])
def test_what_a_plain_run_was_settled_for_can_be_asked_for(options, method):
    """The report of a run prints such a command. A run that is resumed may hold more, of an earlier version."""
    sd = StableDiffusion.load("tiny")
    settled = settle(options("--no-bayes", "--method", method), sd, 6)
    assert settle(settled, sd, 6) == settled and settled.kernel == "torch"
    settle(dataclasses.replace(settled, sigma=0.3, kl="p-q", prior_sigma=1.0, resume=True), sd, 6)


@pytest.mark.parametrize(("arguments", "note"), [
    (["--method", "lora", "--class-prompt", "a dog"], "note: --class-prompt, --class-count, --class-images teach "
     "nothing here: --method lora uses no class pictures unless --prior-weight is given"),
    (["--prior-weight", "0"], "note: --class-count, --class-images teach nothing here: --prior-weight 0 means no class "
     "pictures"),
    (["--method", "lora", "--prior-weight", "1"], None), ([], None),
])
@pytest.mark.parametrize("resumed", [False, True])
def test_options_of_class_pictures_that_are_not_used_are_noted(options, arguments, note, resumed):
    asked = dataclasses.replace(options(*arguments), resume=resumed)
    assert about_class_pictures(asked, settle(asked, StableDiffusion.load("tiny"), 6)) == (None if resumed else note)


def test_the_kernel_needs_a_gpu(options, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="--kernel triton needs a GPU; on a CPU --kernel reference draws the same"):
        fine_tune(options("--kernel", "triton", "--device", "cpu"))
    assert not (tmp_path / "run").exists()


def test_a_mac_has_no_float64_for_the_reference(options, monkeypatch):
    monkeypatch.setattr("minibnn.cli.settle.choose_device", lambda wanted: wanted)
    sd = StableDiffusion.load("tiny")
    with pytest.raises(UserError, match="--kernel reference computes in float64, which mps does not have; say --k"):
        settle(options("--kernel", "reference", "--device", "mps"), sd, 6)
    assert settle(options("--device", "mps"), sd, 6).kernel == "torch"


def test_the_kernel_is_settled_by_the_device(options, tmp_path, monkeypatch):
    sd = StableDiffusion.load("tiny")
    assert settle(options("--device", "cpu"), sd, 6).kernel == "torch"
    assert settle(options("--device", "cpu", "--kernel", "reference"), sd, 6).kernel == "reference"
    for capability, installed, expected in (
        ((7, 5), True, "triton"),
        ((9, 0), True, "triton"),
        ((7, 0), True, "torch"),
        ((9, 0), False, "torch"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        monkeypatch.setattr(
            "minibnn.finetune.kernel.importlib.util.find_spec", lambda name, i=installed: object() if i else None
        )
        assert default_kernel("cuda:0") == expected


def test_prompt_is_required_except_for_the_bundled_model(options, tmp_path):
    sd = StableDiffusion.load("tiny")
    sd.recipe["prompt"] = sd.recipe["class_prompt"] = None
    sd.save(tmp_path / "other")
    with pytest.raises(UserError, match="--prompt is required"):
        fine_tune(options("--model", str(tmp_path / "other")))
    with pytest.raises(UserError, match="--class-prompt is required"):
        fine_tune(options("--model", str(tmp_path / "other"), "--prompt", "a sks dog"))


def test_existing_folders_are_kept(options, tmp_path):
    fine_tune(options("--steps", "1"))
    with pytest.raises(UserError, match="exists: go on with --resume, replace it with --overwrite"):
        fine_tune(options("--steps", "1"))
    with pytest.raises(UserError, match="--lr is 0.1 but the run in .* has .*, which decides what is trained"):
        fine_tune(options("--lr", "0.1", "--resume"))
    fine_tune(options("--steps", "1", "--overwrite", "--seed", "9"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 9
    with pytest.raises(UserError, match="--steps 1 lies before the checkpoint, which is after step 2"):
        fine_tune(options("--steps", "2", out="two"))
        fine_tune(options("--steps", "1", "--resume", out="two"))
    (tmp_path / "mine").mkdir()
    for name, content in (
        ("config.json", '{"model_type": "clip"}'),
        ("log.jsonl", "{}"),
    ):  # names of ours, but not ours
        (tmp_path / "mine" / name).write_text(content)
        with pytest.raises(UserError, match="exists: replace it with --overwrite"):
            fine_tune(options(out="mine"))
        assert (tmp_path / "mine" / name).read_text() == content
        (tmp_path / "mine" / name).unlink()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run of minibnn"):
        fine_tune(options("--overwrite", out="mine"))
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="not a run of minibnn"):
        fine_tune(options("--overwrite", out="mine"))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_overwrite_never_deletes_what_it_is_given(options, tmp_path, dog):
    fine_tune(options("--steps", "1"))
    photos = tmp_path / "run" / "photos"
    photos.mkdir()
    (photos / "00.png").write_bytes((dog / "00.png").read_bytes())
    with pytest.raises(UserError, match="--overwrite would delete --images .*photos"):
        fine_tune(options("--images", str(photos), "--overwrite"))
    assert (photos / "00.png").exists()


def test_a_resumed_run_that_has_all_its_steps_says_so(options, capsys):
    fine_tune(options("--steps", "1"))
    assert "what is left is to write the result" not in capsys.readouterr().out
    fine_tune(options("--steps", "1", "--resume"))
    assert "all 1 steps are done already; what is left is to write the result\n" in capsys.readouterr().out


def test_a_moved_run_resumes_but_not_with_other_pictures(options, tmp_path, dog):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in dog.iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    fine_tune(options("--images", str(photos), "--steps", "1"))
    (tmp_path / "run").rename(tmp_path / "moved")
    fine_tune(options("--images", str(photos), "--steps", "2", "--resume", out="moved"))
    (photos / "00.png").write_bytes((dog / "01.png").read_bytes())
    with pytest.raises(UserError, match="the pictures or their captions are not those that the run .* began with"):
        fine_tune(options("--images", str(photos), "--steps", "3", "--resume", out="moved"))


def test_a_run_of_an_earlier_version_resumes_as_it_began(options, tmp_path, micro):
    """Version 0.2 did not know --class-guidance and --prior-target; the recipe of its model may now give others."""
    fine_tune(options("--steps", "1"))
    model = tmp_path / "model"
    shutil.copytree(micro, model)
    now = {"class_guidance": 1.0, "prior_target": "pretrained", "ema": 0.9}
    write_json(model / "recipe.json", read_json(model / "recipe.json") | now)
    config = read_json(tmp_path / "run" / "config.json")
    for name in ("class_guidance", "prior_target"):
        del config["options"][name]
    config["options"]["ema"] = None
    config["options"]["model"] = str(model)
    write_json(tmp_path / "run" / "config.json", config)
    fine_tune(parse(TrainOptions, "minibnn.train", ["--resume", "--out", str(tmp_path / "run"), "--steps", "2"]))
    fine_tune(options("--steps", "2", out="straight"))
    assert_same_state(tmp_path / "run", tmp_path / "straight")


def test_a_run_without_class_pictures_resumes_whoever_was_to_teach(options, tmp_path):
    """Bug: runs of tiny-v2 that record a teacher, which they have not, were refused."""
    fine_tune(options("--steps", "1", "--method", "lora"))
    config = read_json(tmp_path / "run" / "config.json")
    assert config["options"]["prior_weight"] == 0
    config["options"]["prior_target"] = "pretrained"
    write_json(tmp_path / "run" / "config.json", config)
    fine_tune(parse(TrainOptions, "minibnn.train", ["--resume", "--out", str(tmp_path / "run"), "--steps", "2"]))
    assert runs.options_of(tmp_path / "run").steps == 2


def test_a_run_stopped_before_its_first_checkpoint_starts_again(options, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(class_pictures, "complete", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped while drawing class pictures; to go on, run the same"):
        fine_tune(options())
    monkeypatch.undo()
    fine_tune(options())
    assert (tmp_path / "run" / "model_index.json").exists()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(options, tmp_path, monkeypatch):
    original, calls = torch.nn.utils.clip_grad_norm_, []

    def broken(parameters, limit):
        calls.append(1)
        return original(parameters, limit) * (float("inf") if len(calls) == 3 else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(
        UserError, match="the norm of the gradient is inf at step 3; try .*; the last checkpoint, after 2 steps"
    ):
        fine_tune(options("--checkpoint-every", "1"))
    assert all(torch.isfinite(v).all() for v in state(tmp_path / "run").values())


def test_a_scheduler_file_without_prediction_type(options, tmp_path, micro):
    """As in the official SD v1.5 folder: it predicts ε."""
    sd = StableDiffusion.load(micro)
    for name, said in (("epsilon", "epsilon"), ("velocity", "v_prediction"), ("none", None)):
        sd.configs["scheduler"]["prediction_type"] = said
        if said is None:
            del sd.configs["scheduler"]["prediction_type"]
        sd.save(tmp_path / f"of-{name}")
        fine_tune(options("--model", str(tmp_path / f"of-{name}"), "--steps", "1", out=name))
    assert_same_state(tmp_path / "none", tmp_path / "epsilon")
    none, velocity = state(tmp_path / "none"), state(tmp_path / "velocity")
    assert not all(torch.equal(none[key], velocity[key]) for key in none)


def test_a_run_remembers_its_prompts_and_resolution(options, tmp_path):
    fine_tune(options("--steps", "1", "--prompt", "a sks cat", "--class-prompt", "a cat", "--resolution", "32"))
    recipe = StableDiffusion.load(tmp_path / "run").recipe
    assert (recipe["prompt"], recipe["class_prompt"], recipe["resolution"]) == ("a sks cat", "a cat", 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_training_and_drawing_on_a_gpu(options, tmp_path, dtype):
    arguments = ("--device", "cuda", "--dtype", dtype, "--samples", "2")
    fine_tune(options(*arguments, "--steps", "4", out="straight"))
    fine_tune(options(*arguments, "--steps", "2", out="stopped"))
    fine_tune(options(*arguments, "--steps", "4", "--resume", out="stopped"))
    assert_same_state(tmp_path / "straight", tmp_path / "stopped")
