"""A run names what it was trained from, and what opens it opens that: model, tokenizer and prediction type."""

import json
from pathlib import Path

import pytest
import torch

from minibnn import StableDiffusion, UserError, posterior, runs
from minibnn.cli.train import fine_tune
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
