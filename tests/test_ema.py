"""The moving average of the weights: against diffusers', in a real training; what a run draws, saves and resumes."""

import pytest
import torch
from safetensors.torch import load_file

from minibnn import StableDiffusion, runs
from minibnn.cli.train import fine_tune
from minibnn.errors import UserError
from minibnn.finetune import ema
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.train import at_the_mean


@pytest.fixture
def options(dog, micro, tmp_path):
    def make(*words, out="run"):
        common = ["--images", dog, "--model", micro, "--samples", 0, "--prior-weight", 0, "--lr", 0.01]
        return parse(TrainOptions, "train", [*map(str, common), "--out", str(tmp_path / out), *map(str, words)])

    return make


def trained(network):
    return {name: p for name, p in network.named_parameters() if p.requires_grad and not name.endswith("_sigma")}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_averages_are_diffusers_and_the_run_is_made_of_them(options, tmp_path, decay):
    """Also with random weights: μ is averaged; σ is not, and is that of the last step."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    seen = []

    def follow(training):
        parameters = list(trained(training.network).values())
        if training.step == 0:
            seen.append(training_utils.EMAModel(parameters, decay=decay))
            return
        seen[0].step(parameters)
        for mean, theirs in zip(training.average.mean.values(), seen[0].shadow_params, strict=True):
            torch.testing.assert_close(mean, theirs, rtol=1e-5, atol=1e-7)

    fine_tune(options("--steps", 5, "--ema", decay, "--keep-posterior"), [follow])
    run = tmp_path / "run"
    result, state = StableDiffusion.load(run).unet.state_dict(), load_file(run / runs.STATE)
    names = [key.removeprefix("ema/") for key in state if key.startswith("ema/")]
    assert len(names) == len(seen[0].shadow_params) == len(result)
    assert all(torch.equal(result[name], state[f"ema/{name}"]) for name in names)
    moved = [(state[f"weight/{name}"] - result[name]).abs().max() for name in names]
    assert max(moved) > 1e-3  # the last step is somewhere else
    posterior = load_file(run / "posterior.safetensors")
    for name, value in posterior.items():
        assert torch.equal(value, state[f"weight/{name}" if name.endswith("_sigma") else f"ema/{name}"])


@pytest.mark.parametrize("method", ["dreambooth", "lora", "oft"])
def test_it_resumes_bit_for_bit_and_changes_no_training(options, tmp_path, method):
    words = ("--method", method, "--seed", 3)
    fine_tune(options("--steps", 4, "--ema", 0.5, *words, out="straight"))
    fine_tune(options("--steps", 2, "--ema", 0.5, *words, out="halves"))
    fine_tune(options("--steps", 4, "--ema", 0.5, "--resume", *words, out="halves"))
    fine_tune(options("--steps", 4, *words, out="without"))
    straight, halves, without = (load_file(tmp_path / out / runs.STATE) for out in ("straight", "halves", "without"))
    assert straight.keys() == halves.keys() and all(torch.equal(straight[key], halves[key]) for key in straight)
    assert without.keys() == {key for key in straight if not key.startswith("ema/")} != straight.keys()
    assert all(torch.equal(without[key], straight[key]) for key in without)
    drawn = [StableDiffusion.load(tmp_path / out).unet.state_dict() for out in ("straight", "halves", "without")]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not all(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])
    with pytest.raises(UserError, match="--ema is 0.9 but the run in .* has 0.5, which decides what is trained"):
        fine_tune(options("--steps", 5, "--ema", 0.9, "--resume", *words, out="halves"))


def test_pictures_of_a_training_are_drawn_with_the_average(options):
    checked = []

    def look(training):
        before = {name: p.clone() for name, p in trained(training.network).items()}
        means = {name: mean.clone() for name, mean in training.average.mean.items()}
        with at_the_mean(training.sd), ema.averaged(training.network):  # nested: still the average
            assert all(torch.equal(p, means[name]) for name, p in trained(training.network).items())
        assert all(torch.equal(p, before[name]) for name, p in trained(training.network).items())
        assert all(torch.equal(mean, means[name]) for name, mean in training.average.mean.items())
        checked.append(any(not torch.equal(before[name], means[name]) for name in means))

    fine_tune(options("--steps", 3, "--ema", 0.9, "--method", "lora"), [look])
    assert checked == [False, False, True, True]  # after the first step they are the weights


def test_what_the_monitor_keeps_is_the_average(options, tmp_path, monkeypatch):
    from minibnn.lab import monitor

    monkeypatch.setattr(monitor, "STEPS", 1)
    fine_tune(options("--steps", 3, "--ema", 0.9, "--monitor-every", 3, "--method", "lora"))
    (kept,) = (tmp_path / "run" / "faithful").iterdir()
    (name,) = (path.name for path in kept.glob("*.safetensors"))
    result, theirs = load_file(tmp_path / "run" / name), load_file(kept / name)
    assert result.keys() == theirs.keys() and all(torch.equal(result[key], theirs[key]) for key in result)
