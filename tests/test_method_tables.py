"""The table of methods: its statistics, its rows, what resuming reads. The runs themselves are `python -m minibnn.experiments methods`."""

import json

import numpy as np
import pytest
import torch

from minibnn import UserError, runs
from minibnn import methods as fine_tuning
from minibnn.commands import TrainOptions
from minibnn.configs import RECIPE
from minibnn.experiments import methods
from minibnn.experiments.prompts import world_prompts
from minibnn.options import parse
from minibnn.weights import write_json, write_tensors


def test_bootstrap_sees_seeds_and_pictures():
    """Equal seeds: the spread of a mean over pictures. Different seeds: as wide as they are apart."""
    rng = np.random.default_rng(1)
    pictures = [list(rng.normal(2, 0.5, 400)) for _ in range(3)]
    mean, low, high = methods.bootstrap(pictures)
    assert mean == pytest.approx(np.mean(pictures), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 1200**0.5, rel=0.35)  # measured: 1.2 × that, for the seeds' own means
    mean, low, high = methods.bootstrap([[0.0] * 50, [1.0] * 50, [2.0] * 50])
    assert mean == 1 and low <= 1 / 3 and high >= 5 / 3
    assert methods.bootstrap([[0.5], [0.5]]) == (0.5, 0.5, 0.5)


def fabricated(row, seed, shift):
    generator = np.random.default_rng(seed)  # pictures of one seed differ alike in every row
    values = {what: list(generator.normal(size=20) + shift) for what in methods.MEASURES}
    return {"row": row, "seed": seed, "seconds": 10, "memory": 500, "state": 3e6, "stored": 1e6, "values": values}


def test_differences_pair_the_same_pictures():
    found = {(row, seed): fabricated(row, seed, 0.1 if "BNN" in row else 0.0) for row in methods.ROWS for seed in (0, 1, 2)}
    rows, differences = methods.summarise("methods", found, (0, 1, 2))
    for what in methods.MEASURES:
        np.testing.assert_allclose(differences["LoRA + BNN"][what], (0.1, 0.1, 0.1), atol=1e-12)  # no spread left
        mean, low, high = rows["LoRA + BNN"][what]
        assert high - low > 0.2
    text = methods.markdown(rows, differences)
    assert text.count("**+0.100 (+0.100 … +0.100)**") == 3 * len(methods.MEASURES)
    _, differences = methods.summarise("where", found, (0, 1, 2))
    assert set(differences) == {"paper", "up", "norm", "cross-attention", "conv", "all"}
    np.testing.assert_allclose(differences["up"]["noise"], (0, 0, 0), atol=1e-12)


def test_every_row_is_a_training_command_that_settles():
    for row, words in methods.ROWS.items():
        options, _ = fine_tuning.settle(parse(TrainOptions, "x", ["--images", "x", *words]), RECIPE)
        assert options.bayes == (row not in ("DreamBooth", "LoRA", "OFT"))
        assert (options.prior_weight == 0) == (options.method != "dreambooth")
        if "BNN" not in row and options.bayes:
            assert options.where == row


def test_a_torn_line_is_made_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert methods.read_runs(path) == {}
    line = json.dumps({"row": "LoRA", "seed": 1})
    path.write_text(line + "\n" + line.replace("1", "2")[:-4])
    assert set(methods.read_runs(path)) == {("LoRA", 1)}


def test_tables_do_not_mix_numbers_of_steps(tmp_path):
    (tmp_path / "runs.jsonl").write_text(json.dumps({"row": "LoRA", "seed": 0, "steps": 300}) + "\n")
    options = methods.MethodsOptions(out=str(tmp_path), steps=200, plan=True)
    with pytest.raises(UserError, match="holds runs of 300 steps; name another --out"):
        methods.table("methods", options)


def test_measures_belong_to_their_pictures():
    """8 of the training prompt first; colours name no place."""
    wanted = [("a photo of a sks dog", {"subject": "dog"})] * 8 + world_prompts("sks", "dog")
    pictures = (torch.rand(20, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    training = torch.rand(2, 3, 64, 64) * 2 - 1
    values = methods.measure(list(pictures), wanted, training)
    assert {what: len(list_) for what, list_ in values.items()} == {
        "fidelity": 8, "fidelity, others": 12, "noise": 12, "dog": 12, "place": 10, "diversity": 1,
    }  # fmt: skip
    assert min(values["noise"]) > 10  # white noise, thousandths of energy


def test_a_run_is_charged_for_itself_alone(tmp_path, monkeypatch):
    """Processor time and memory are the child's; sizes are those of its checkpoint and of its result; the folder goes."""
    options = methods.MethodsOptions(out=str(tmp_path), images="tutorials/dog", steps=1)

    def train_apart(row, seed, options, folder):
        write_tensors(folder / runs.STATE, {"a": torch.zeros(1000)})
        write_tensors(folder / "pytorch_lora_weights.safetensors", {"b": torch.zeros(10)})
        write_json(folder / "config.json", {"format": runs.FORMAT, "options": {"steps": 600}})
        return {"seconds": 1.0, "memory": 2}

    class Fake:
        recipe = {"prompt": "p"}

        def generate(self, prompts, **_):
            return [np.full((64, 64, 3), i, np.uint8) for i in range(len(prompts))]

    monkeypatch.setattr(methods, "train_apart", train_apart)
    monkeypatch.setattr(methods.StableDiffusion, "load", lambda folder: Fake())
    line, strip = methods.perform("LoRA", 3, options, torch.rand(2, 3, 64, 64))
    assert (line["row"], line["seed"], line["steps"], line["seconds"], line["memory"]) == ("LoRA", 3, 600, 1.0, 2)
    assert 4000 < line["state"] < 4400 and 40 < line["stored"] < 440
    assert [int(picture[0, 0, 0]) for picture in strip] == [0, 1, 2, 3, 8, 10, 12, 14, 16]
    assert not (tmp_path / "training").exists()


def test_a_child_that_fails_says_why(tmp_path):
    options = methods.MethodsOptions(out=str(tmp_path), images=str(tmp_path / "nowhere"), steps=1)
    with pytest.raises(UserError, match="LoRA, seed 0: error: --images .*nowhere: no such folder"):
        methods.train_apart("LoRA", 0, options, tmp_path / "x")
