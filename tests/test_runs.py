"""A run names what it was trained from, and what opens it opens that: model, tokenizer and prediction type."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibnn import StableDiffusion, UserError, posterior, runs
from minibnn.checkpoints import STATE
from minibnn.cli.train import fine_tune
from minibnn.files.digests import of_model
from minibnn.lab.models import open_lab
from minibnn.options.lab import ProbeOptions
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.pipeline import open_base


@pytest.fixture(scope="module")
def adapter_run(dog, micro, tmp_path_factory):
    """A LoRA run that says that it was trained on an LDM file of SD v2, with a tokenizer beside it and v-prediction."""
    folder = tmp_path_factory.mktemp("v2")
    words = ["--images", str(dog), "--out", str(folder / "run"), "--model", str(micro), "--method", "lora",
             "--steps", "1", "--samples", "0", "--keep-posterior", "--lr", "0.01"]
    fine_tune(parse(TrainOptions, "train", words))
    (folder / "base.safetensors").touch()
    (folder / "tokens").mkdir()
    path = folder / "run" / "config.json"
    config = json.loads(path.read_text())
    config["base"], config["base_tokenizer"] = str(folder / "base.safetensors"), str(folder / "tokens")
    config["options"] |= {"model": "base.safetensors", "tokenizer": "tokens", "prediction_type": "v_prediction"}
    path.write_text(json.dumps(config))
    return folder / "run"


@pytest.fixture
def opened(monkeypatch, micro):
    """What StableDiffusion.load was given for the base, which it here replaces by the model that the run really has."""
    given, original = [], StableDiffusion.load.__func__

    def load(cls, path, tokenizer=None, dtype=None, prediction_type=None):
        if Path(path).name != "base.safetensors":
            return original(cls, path, tokenizer, dtype, prediction_type)
        given.append((Path(path), tokenizer and Path(tokenizer), prediction_type))
        return original(cls, micro)

    monkeypatch.setattr(StableDiffusion, "load", classmethod(load))
    return given


OPENERS = {"load": lambda run: StableDiffusion.load(run), "posterior": posterior.open_run, "base": open_base}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_base_is_opened_as_it_was_trained(adapter_run, opened, opener, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths of the training mean nothing here
    OPENERS[opener](adapter_run)
    folder = adapter_run.parent
    assert opened == [(folder / "base.safetensors", folder / "tokens", "v_prediction")]


def test_what_is_given_by_hand_wins(adapter_run, opened):
    StableDiffusion.load(adapter_run, tokenizer="mine", prediction_type="epsilon")
    assert opened[0][1:] == (Path("mine"), "epsilon")


def test_the_posterior_of_a_v2_adapter_draws_around_the_trained_mean(adapter_run, opened):
    """Bug of an earlier version: tokenizer and prediction type were dropped, and the run was refused or misread."""
    sd, random = posterior.open_run(adapter_run)
    assert type(sd.recipe["prompt"]) is str  # not the list of prompts that the run has, one for each subject
    assert random and all(name.endswith(".up") for name in random)
    for name, (mu, sigma) in random.items():
        assert torch.equal(sd.unet.get_parameter(name), mu) and (sigma > 0).all()


def test_runs_of_the_first_version_open_by_their_own_words(adapter_run, opened, monkeypatch):
    """config.json without base_tokenizer: the tokenizer's path is taken as the training had it."""
    path = adapter_run / "config.json"
    before = path.read_text()
    config = json.loads(before)
    del config["base_tokenizer"]
    path.write_text(json.dumps(config))
    monkeypatch.chdir(adapter_run.parent)
    try:
        open_base(adapter_run)
    finally:
        path.write_text(before)
    assert opened[0][1] == Path("tokens")


def test_a_base_that_is_gone_is_named(adapter_run):
    base = adapter_run.parent / "base.safetensors"
    base.rename(base.with_name("moved"))
    try:
        with pytest.raises(UserError, match="was trained from the model base.safetensors, which is not there: put"):
            StableDiffusion.load(adapter_run)
    finally:
        base.with_name("moved").rename(base)


def test_the_laboratory_takes_a_base_by_hand_where_the_runs_own_is_gone(adapter_run, micro, dog):
    base = adapter_run.parent / "base.safetensors"
    base.rename(base.with_name("moved"))
    try:
        lab = open_lab(ProbeOptions(model=str(adapter_run), base=str(micro), images=str(dog), device="cpu"))
    finally:
        base.with_name("moved").rename(base)
    plain, adapted = (dict(lab.models[name].unet.named_parameters()) for name in ("pretrained", "fine-tuned"))
    changed = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert changed and all(".attn" in name for name in changed)
    assert lab.prompt == "a photo of a sks dog"


def test_an_unfinished_adapter_run_is_no_model(adapter_run, tmp_path):
    (tmp_path / "config.json").write_text((adapter_run / "config.json").read_text())
    with pytest.raises(UserError, match="is not finished; it has no checkpoint; run"):
        StableDiffusion.load(tmp_path)


def test_config_files_of_others_are_no_runs(tmp_path):
    assert runs.find_config(tmp_path) is None and runs.options_of(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert runs.find_config(tmp_path) is None and not runs.is_adapter_run(tmp_path)
    with pytest.raises(UserError, match="is not a run of minibnn"):
        runs.base_of(tmp_path)


def train(*words):
    fine_tune(parse(TrainOptions, "train", [*words, "--out", "run"]))
    return load_file(Path("run") / STATE)


@pytest.fixture
def project(dog, micro, tmp_path, monkeypatch):
    """A project's folder, in which one works, with the model sd and the pictures in it, and what two steps lead to.

    The run in it has one step.
    """
    folder = tmp_path / "project"
    shutil.copytree(micro, folder / "sd")
    shutil.copytree(dog, folder / "dog")
    monkeypatch.chdir(folder)
    words = ["--images", "dog", "--model", "sd", "--method", "lora", "--samples", "0", "--no-monitor"]
    straight = train(*words, "--keep-optimiser", "--steps", "2", "--overwrite")
    train(*words, "--keep-optimiser", "--steps", "1", "--overwrite")
    return folder, straight


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_where_its_model_has_moved_to(project, monkeypatch):
    """Bug: it could not: another --model was refused, although it was the same."""
    folder, straight = project
    (folder / "sd").rename(folder.parent / "models")
    with pytest.raises(UserError, match="trained from the model sd, which is not there: put it back, or .* as --model"):
        train("--resume", "--steps", "2")
    with pytest.raises(UserError, match="no model at nowhere"):
        train("--resume", "--steps", "2", "--model", "nowhere")
    assert_same(train("--resume", "--steps", "2", "--model", str(folder.parent / "models")), straight)
    assert runs.base_of("run")[0] == str(folder.parent / "models")


def test_a_run_goes_on_in_a_project_that_has_moved(project, monkeypatch):
    """Bug: its model and its pictures were sought where the project had been."""
    folder, straight = project
    moved = folder.rename(folder.with_name("elsewhere"))
    monkeypatch.chdir(moved)
    assert_same(train("--resume", "--steps", "2"), straight)


def test_a_run_of_an_earlier_version_goes_on_from_elsewhere(project, monkeypatch):
    """Its model is known by its place alone, which is written otherwise there."""
    folder, straight = project
    config = json.loads(Path("run/config.json").read_text())
    del config["model"]
    Path("run/config.json").write_text(json.dumps(config))
    monkeypatch.chdir(folder.parent)
    fine_tune(parse(TrainOptions, "train", ["--resume", "--steps", "2", "--out", "project/run"]))
    assert_same(load_file(folder / "run" / STATE), straight)


@pytest.mark.parametrize(("part", "file"), [
    ("unet", "unet/diffusion_pytorch_model.safetensors"), ("vae", "vae/diffusion_pytorch_model.safetensors"),
    ("text_encoder", "text_encoder/model.safetensors"), ("tokenizer", "tokenizer/vocab.json"),
    ("schedule", "scheduler/scheduler_config.json"),
])
def test_a_run_does_not_go_on_with_another_model(project, part, file):
    """Bug: another model in the place of the first was taken for it."""
    path = project[0] / "sd" / file
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        name = sorted(tensors)[-1]
        flat = tensors[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        save_file(tensors, path)
    elif part == "tokenizer":
        words = json.loads(path.read_text())
        first, second = sorted(words)[:2]
        path.write_text(json.dumps(words | {first: words[second], second: words[first]}))
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.0121}))
    with pytest.raises(UserError, match=f"--model sd is not that which the run in run began with, .* another {part};"):
        train("--resume", "--steps", "2")


def test_an_adapter_run_as_a_model_is_known_by_its_file(project, monkeypatch):
    """Bug: it was known by the merged weights, the last bits of which are others on another processor."""
    more = ["--images", "dog", "--model", "run", "--method", "lora", "--samples", "0", "--no-monitor", "--steps", "1"]

    def train_on(*words):
        fine_tune(parse(TrainOptions, "train", [*words, "--out", "on"]))

    train_on(*more, "--keep-optimiser")
    merge = StableDiffusion.merge_adapter

    def merged_elsewhere(sd, *given):
        merge(sd, *given)
        weight = next(p for name, p in sd.unet.named_parameters() if name.endswith("to_q.weight"))
        weight.data = torch.nextafter(weight.data, torch.tensor(9.0))
        return sd

    monkeypatch.setattr(StableDiffusion, "merge_adapter", merged_elsewhere)
    train_on("--resume", "--steps", "2")
    path = Path("run/pytorch_lora_weights.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="--model run is not that which the run in on began with, .* another unet;"):
        train_on("--resume", "--steps", "3")


def test_a_run_can_be_moved_after_it_went_on_from_elsewhere(project, monkeypatch):
    """Bug: then its config.json had the former places, as absolute paths."""
    folder, straight = project
    Path("prompts.txt").write_text("a sks dog\n")
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "sd").mkdir()  # another thing of that name
    monkeypatch.chdir(elsewhere)
    words = ["--resume", "--steps", "1", "--out", str(folder / "run"), "--sample-prompts", "../project/prompts.txt"]
    fine_tune(parse(TrainOptions, "train", words))
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["folder"] == str(folder) and config["options"]["model"] == "sd"
    assert config["options"]["images"] == ["dog"] and Path(config["options"]["sample_prompts"]).is_absolute()
    moved = folder.rename(folder.with_name("moved"))
    monkeypatch.chdir(moved)
    (moved / "prompts.txt").unlink()
    assert_same(train("--resume", "--steps", "2", "--samples", "0", "--sample-prompts", "sd/recipe.json"), straight)


def test_what_is_gone_is_not_sought_among_the_files_of_another_project(project, monkeypatch):
    """Bug: a file of the same name in the working folder was taken in its place."""
    folder, _ = project
    other = folder.parent / "other"
    shutil.copytree(folder / "dog", other / "dog")
    shutil.rmtree(folder / "dog")
    monkeypatch.chdir(other)
    with pytest.raises(UserError, match=f"--images {folder}/dog: no such folder"):
        fine_tune(parse(TrainOptions, "train", ["--resume", "--out", str(folder / "run"), "--steps", "2"]))


def test_a_run_without_its_pictures_in_config_says_so_in_one_line(project):
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["pictures"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"not those that the run in run began with: 00.png, .* and \d+ more new$"):
        train("--resume", "--steps", "2")


def test_a_run_that_did_not_note_its_model_goes_on_with_the_same_path_alone(project):
    """Runs of an earlier version."""
    folder, straight = project
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["model"]
    path.write_text(json.dumps(config))
    shutil.copytree("sd", "copy")
    with pytest.raises(UserError, match="--model is 'copy' but the run in run has 'sd', which decides"):
        train("--resume", "--steps", "2", "--model", "copy")
    Path("sd").rename("gone")
    with pytest.raises(UserError, match="from the model sd, which is not there: put it back, or a link to it$"):
        train("--resume", "--steps", "2")
    Path("sd").symlink_to("gone")
    assert_same(train("--resume", "--steps", "2"), straight)


def test_pictures_that_are_others_are_named(project):
    pictures = sorted(Path("dog").glob("*.png"))
    shutil.copy(pictures[0], pictures[1])
    Path("dog/new.png").write_bytes(pictures[0].read_bytes())
    pictures[2].unlink()
    told = f"began with: {pictures[1].name} changed; {pictures[2].name}.* gone; new.png new"
    with pytest.raises(UserError, match=told):
        train("--resume", "--steps", "2")


def test_digests_do_not_depend_on_the_kind_of_file(micro, tmp_path):
    sd = StableDiffusion.load(micro)
    sd.save_single_file(tmp_path / "model.safetensors")
    sd.tokenizer.save(tmp_path / "tokens")
    single = StableDiffusion.load(tmp_path / "model.safetensors", tokenizer=tmp_path / "tokens")
    assert of_model(sd) == of_model(single)
