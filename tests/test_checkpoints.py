"""Checkpoints and weights that are damaged, hostile or not finite: refused when read, and before they are written."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from minibnn import StableDiffusion, UserError, checkpoints, runs
from minibnn.cli import train as cli_train
from minibnn.cli.train import fine_tune
from minibnn.files import weights
from minibnn.finetune import ema
from minibnn.neighbours import flow
from minibnn.options.neighbours import FlowOptions
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.train import Training, make_optimiser

LORA = "pytorch_lora_weights.safetensors"


def options_of(dog, micro, out, *more):
    words = ["--images", str(dog), "--model", str(micro), "--out", str(out), "--samples", "0", "--prior-weight", "0"]
    return parse(TrainOptions, "train", [*words, "--method", "lora", "--lr", "0.01", *more])


@pytest.fixture(scope="module")
def trained(dog, micro, tmp_path_factory):
    """A run of two steps: its folder, and the tensors and the header of its checkpoint. Its LoRA lies beside it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    fine_tune(options_of(dog, micro, out, "--steps", "2"))
    shutil.copy(out / LORA, out.parent)
    with weights.open_weights(out / runs.STATE) as file:  # whose tensors may be views of a file that is written below
        tensors = {name: tensor.clone() for name, tensor in weights.read_tensors(out / runs.STATE).items()}
        return out, tensors, file.metadata()


def first(tensors, key):
    return min(name for name in tensors if name.startswith(key))


def changed(key, change):
    return lambda tensors, header: tensors.update({first(tensors, key): change(tensors[first(tensors, key)])})


DAMAGES = {
    "a moment of another shape": (changed("exp_avg/", lambda t: t.flatten()[:2]), "exp_avg/.* is .2., but needs"),
    "a moment of another rank": (changed("exp_avg_sq/", lambda t: t[None]), "exp_avg_sq/.* is .1, .*, but needs"),
    "a weight of another shape": (changed("weight/", lambda t: t[:, :1]), "weight/.* but needs"),
    "a step that is a vector": (changed("step/", lambda t: t.repeat(3)), "step/.* is .3., but needs .."),
    "another type": (changed("exp_avg/", lambda t: t.half()), "exp_avg/.* cannot be a state of the optimiser"),
    "an integer": (changed("weight/", lambda t: t.int()), "weight/.* cannot be a state of the optimiser"),
    "a negative square": (changed("exp_avg_sq/", lambda t: t - 1), "exp_avg_sq/.* cannot be a state of the optimiser"),
    "a negative step": (changed("step/", lambda t: t - 9), "step/.* cannot be a state of the optimiser"),
    "NaN": (changed("weight/", lambda t: t * float("nan")), "weight/.* holds NaN or infinite values"),
    "an infinite moment": (changed("exp_avg/", lambda t: t + float("inf")), "exp_avg/.* holds NaN or infinite values"),
    "a missing tensor": (lambda tensors, header: tensors.pop(first(tensors, "exp_avg/")), "exp_avg/.* is none, but"),
    "a surplus tensor": (lambda tensors, header: tensors.update(more=torch.zeros(3)), "more is .3., but needs none"),
    "no header": (lambda tensors, header: header.clear(), "completed_steps is missing"),
    "no scaler": (lambda tensors, header: header.pop("scaler"), "scaler is missing"),
    "a scaler that is no JSON": (lambda tensors, header: header.update(scaler="{"), "scaler is not valid JSON"),
    "a scaler that is a list": (lambda tensors, header: header.update(scaler="[]"), "scaler is a list, but must be an"),
    "negative steps": (lambda tensors, header: header.update(completed_steps="-3"), "completed_steps is -3, but must"),
    "half a step": (lambda tensors, header: header.update(completed_steps="1.5"), "completed_steps is 1.5, but must"),
    "steps in words": (lambda tensors, header: header.update(completed_steps="two"), "completed_steps is not valid"),
    "steps without end": (lambda tensors, header: header.update(completed_steps="9" * 5000), "is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_named(trained, dog, micro, damage):
    """Bug of an earlier version: a moment of another shape crashed the process in the optimiser's fused kernel."""
    out, tensors, header = trained
    tensors, header = dict(tensors), {k: v for k, v in header.items() if k != "format"}
    hurt, message = DAMAGES[damage]
    hurt(tensors, header)
    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    weights.save_file(written, out / runs.STATE, header)
    with pytest.raises(UserError, match=f"state.safetensors.*{message}"):
        fine_tune(options_of(dog, micro, out, "--steps", "3", "--resume"))


def test_an_undamaged_checkpoint_is_accepted(trained, dog, micro):
    out, tensors, header = trained
    weights.save_file(tensors, out / runs.STATE, header)
    fine_tune(options_of(dog, micro, out, "--steps", "3", "--resume"))


# --- what a finished run keeps ----------------------------------------------------------------------------------------


def assert_equal(path, other):
    tensors, expected = weights.read_tensors(path), weights.read_tensors(other)
    assert tensors.keys() == expected.keys()
    assert not [name for name, value in tensors.items() if not torch.equal(value, expected[name])]


def resumed(out, *words):
    fine_tune(parse(TrainOptions, "train", ["--resume", "--out", str(out), *words]))


def test_a_finished_run_may_be_the_model_alone(trained, dog, micro, tmp_path):
    seen, out = [], tmp_path / "run"

    def look(training):
        if (out / runs.STATE).exists():
            seen.append((training.step, checkpoints.has_optimiser(out / runs.STATE)))

    words = ["--steps", "2", "--checkpoint-every", "1", "--no-keep-optimiser"]
    fine_tune(options_of(dog, micro, out, *words), [look])
    assert seen == [(2, True)]  # that of step 1: steps could follow
    assert not (out / "checkpoint").exists()
    assert_equal(out / LORA, trained[0].parent / LORA)
    with pytest.raises(UserError, match="is finished and kept no state of the optimiser .--keep-optimiser.*--overwrit"):
        resumed(out, "--steps", "3")


def test_a_run_that_stops_early_keeps_its_optimiser(dog, micro, tmp_path, trained):
    out = tmp_path / "run"

    def stop(training):
        if training.step == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        fine_tune(options_of(dog, micro, out, "--steps", "2", "--no-keep-optimiser"), [stop])
    assert checkpoints.has_optimiser(out / runs.STATE)
    resumed(out, "--keep-optimiser")
    expected = trained[1]
    assert all(torch.equal(value, expected[name]) for name, value in weights.read_tensors(out / runs.STATE).items())
    resumed(out, "--no-keep-optimiser")  # frees the space
    assert not (out / runs.STATE).exists()


def test_a_result_that_is_not_written_can_be_written_later_but_no_step_can_follow(
        dog, micro, tmp_path, trained, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cli_train.methods, "save_result", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="stopped while writing the result; to go on: .* --resume --out"):
            fine_tune(options_of(dog, micro, out, "--steps", "2", "--ema", "0.9", "--no-keep-optimiser"))
    assert not checkpoints.has_optimiser(out / runs.STATE)
    with pytest.raises(UserError, match="--steps 3: .* stopped after its last step, 2, and without --keep-optimiser"):
        resumed(out, "--steps", "3", "--keep-optimiser")
    resumed(out, "--keep-optimiser")  # there is none to keep
    fine_tune(options_of(dog, micro, tmp_path / "straight", "--steps", "2", "--ema", "0.9"))
    assert_equal(out / LORA, tmp_path / "straight" / LORA)
    assert not (out / "checkpoint").exists() and (tmp_path / "straight" / runs.STATE).exists()


@pytest.mark.parametrize(("words", "largest"), [
    ((), 83_333_333), (("--optimiser", "adamw-bf16"), 124_999_999), (("--ema", "0.9"), 62_499_999),
])
def test_a_checkpoint_below_a_gigabyte_is_kept_unless_the_options_say_otherwise(dog, micro, tmp_path, words, largest):
    """largest: how many numbers may be trained. Their bytes are predicted, and counted in a checkpoint."""
    sizes, options = [], options_of(dog, micro, tmp_path / "run", "--steps", "1", *words)
    fine_tune(options, [lambda training: sizes.append(checkpoints.size_of(training))])
    written = weights.read_tensors(tmp_path / "run" / runs.STATE)
    assert set(sizes) == {sum(tensor.nbytes for name, tensor in written.items() if not name.startswith("step/"))}
    for more in (0, 1):
        with torch.device("meta"):
            network = torch.nn.Linear(largest + more, 1, bias=False)
            training = Training(None, network, None, make_optimiser(network, 1e-3, options.optimiser), None)
            training.average = ema.attach(network, options.ema)
        assert checkpoints.is_kept(options, training) == (not more)
        for asked in (True, False):
            assert checkpoints.is_kept(replace(options, keep_optimiser=asked), training) == asked


@pytest.mark.parametrize("every", [0, 1])
def test_weights_that_are_not_finite_are_not_saved(dog, micro, tmp_path, every):
    """Bug of an earlier version: "the last checkpoint, after 1 steps, is good", and a quarter of it was NaN."""
    words = ["--steps", "3", "--lr", "3e38", "--checkpoint-every", str(every)]
    with pytest.raises(UserError, match="(NaN or infinite values|is nan at step 2.*); there is no checkpoint"):
        fine_tune(options_of(dog, micro, tmp_path / "run", *words))
    assert not (tmp_path / "run" / runs.STATE).exists()
    with pytest.raises(UserError, match="NaN or infinite values; there is no checkpoint"):  # after its only step
        fine_tune(options_of(dog, micro, tmp_path / "one", "--steps", "1", "--lr", "3e38"))
    assert not list((tmp_path / "one").glob("*.safetensors"))


def test_a_flow_that_diverges_is_not_saved(tmp_path):
    words = ["--train", "--lr", "1e30", "--pictures", "64", "--inverted", "48", "--steps", "3"]
    with pytest.raises(UserError, match="flow's loss is (nan|inf) at step|holds NaN or infinite values"):
        flow.train_or_draw(parse(FlowOptions, "flow", [*words, "--out", str(tmp_path / "f")]))
    words += ["--flow", str(flow.BUNDLED), "--out", str(tmp_path / "c")]
    with pytest.raises(UserError, match="corrector's loss is (nan|inf) at step|holds NaN or infinite values"):
        flow.train_or_draw(parse(FlowOptions, "flow", words))
    assert not list(tmp_path.rglob("*corrector.safetensors")) and not (tmp_path / "f" / "flow.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_one_value_among_many_that_is_not_finite_is_found(value, dtype):
    tensors = {"empty": torch.zeros(0), "whole": torch.arange(5), "large": torch.full((999,), 6e4).to(dtype)}
    if dtype != torch.float8_e5m2:  # whose largest value is 57344
        assert weights.not_finite(tensors) is None
    tensors = {"good": torch.ones(7).to(dtype), "bad": torch.ones(33, 31).to(dtype)}
    assert weights.not_finite(tensors) is None
    tensors["bad"][17, 5] = value
    assert weights.not_finite(tensors) == "bad"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_model_with_nan_or_whole_numbers_for_weights_is_refused(micro, tmp_path, part):
    shutil.copytree(micro, tmp_path / "m")
    (path,) = (tmp_path / "m" / part).glob("*.safetensors")
    tensors = weights.read_tensors(path)
    name = max(tensors)
    weights.save_file(tensors | {name: tensors[name] * float("nan")}, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"{path.name}: .* holds NaN or infinite values"):
        StableDiffusion.load(tmp_path / "m")
    weights.save_file(tensors | {name: tensors[name].int()}, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"{path.name}: {name} holds int32, no weights"):
        StableDiffusion.load(tmp_path / "m")


def test_what_was_there_stays_when_new_tensors_are_not_finite(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.write_tensors(path, {"a": torch.ones(3)}, {"note": json.dumps("good")})
    before = path.read_bytes()
    with pytest.raises(weights.NotFinite, match="a.safetensors is not written: b holds NaN"):
        weights.write_tensors(path, {"a": torch.ones(3), "b": torch.tensor([float("nan")])})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
