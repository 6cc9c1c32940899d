"""The table of methods: its statistics, its rows, what resuming reads.

The runs themselves are made by `python -m minibnn experiment methods`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from minibnn import StableDiffusion, UserError, runs
from minibnn.cli.announcements import about_class_pictures
from minibnn.cli.settle import settle
from minibnn.experiments import children, methods
from minibnn.experiments.prompts import world_prompts
from minibnn.files.configs import RECIPE
from minibnn.files.store import write_json
from minibnn.files.weights import write_tensors
from minibnn.finetune import methods as fine_tuning
from minibnn.options.experiments import MethodsOptions
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions


def test_intervals_are_those_of_a_t_test_over_seeds():
    """scipy's on the seeds' means; how far pictures of one seed lie apart does not count."""
    rng = np.random.default_rng(1)
    pictures = [list(rng.normal(seed, 0.5, 40)) for seed in range(4)]
    means = [np.mean(group) for group in pictures]
    expected = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    np.testing.assert_allclose(methods.over_seeds(pictures), (np.mean(means), *expected), rtol=1e-3)
    assert methods.over_seeds([[0.0, 1.0], [0.4, 0.6]]) == (0.5, 0.5, 0.5)
    assert methods.over_seeds([[0.0, 1.0]]) == (0.5, -np.inf, np.inf)


def fabricated(row, seed, shift):
    generator = np.random.default_rng(seed)  # pictures of one seed differ alike in every row
    values = {what: list(generator.normal(seed / 5, size=20) + shift) for what in methods.MEASURES}
    return {"row": row, "seed": seed, "seconds": 10, "memory": 500, "state": 3e6, "stored": 1e6, "values": values}


def test_differences_pair_the_same_pictures():
    shifts = {row: 0.1 if "BNN" in row else 0.0 for row in methods.ROWS}
    found = {(row, seed): fabricated(row, seed, shift) for row, shift in shifts.items() for seed in (0, 1, 2)}
    rows, differences = methods.summarise("methods", found, (0, 1, 2))
    for what in methods.MEASURES:
        np.testing.assert_allclose(differences["LoRA + BNN"][what], (0.1, 0.1, 0.1), atol=1e-12)  # no spread left
        mean, low, high = rows["LoRA + BNN"][what]
        assert high - low > 0.2
    text = methods.markdown(rows, differences, "with − without")
    assert text.count("**+0.100 (+0.100 … +0.100)**") == 3 * len(methods.MEASURES)
    for column in (*methods.MEASURES, *methods.SPENT):
        assert f"**{column}**" in text.partition("\n| ")[0]
    rows, differences = methods.summarise("where", found, (0, 1, 2))
    assert "\n| minus *none* | fidelity |" in methods.markdown(rows, differences, methods.COMPARED["where"])
    assert set(differences) == {"paper", "up", "norm", "cross-attention", "conv", "all"}
    np.testing.assert_allclose(differences["up"]["noise"], (0, 0, 0), atol=1e-12)
    text = methods.markdown(*methods.summarise("methods", found, (0,)), "with − without")
    assert "inf" not in text and text.count(" | +0.100 |") and "…" not in text  # one seed has no interval


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


def test_tables_do_not_mix_settings(tmp_path, capsys):
    """Steps (also the recipe's), pictures for each prompt, training pictures, and lines that do not say."""
    options = MethodsOptions(out=str(tmp_path), steps=300, plan=True)
    rest = dict.fromkeys(methods.COSTS, 1.0) | {"values": {name: [0.0] for name in methods.MEASURES}}
    line = {"row": "LoRA", "seed": 0, "steps": 300, "settings": methods.settings_of(options)} | rest
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    methods.table("methods", options)
    assert "17 of 18 runs are to be made" in capsys.readouterr().out
    (tmp_path / "dog").mkdir()
    for path in Path("tutorials/dog").iterdir():
        shutil.copy(path, tmp_path / "dog" / path.name)
    assert methods.settings_of(replace(options, images=str(tmp_path / "dog"))) == methods.settings_of(options)
    Image.new("RGB", (64, 64)).save(next((tmp_path / "dog").glob("*.png")))
    for changes, words in (
        ({"steps": 200}, "LoRA, seed 0 was made with steps = 300, not 200; name another --out"),
        ({"steps": None}, "steps = 300, not None"), ({"each": 1}, "each = 2, not 1"),
        ({"images": str(tmp_path / "dog")}, "was made with images = .*; name another --out"),
    ):
        with pytest.raises(UserError, match=words):
            methods.table("methods", replace(options, **changes))
    (tmp_path / "runs.jsonl").write_text(json.dumps(line | {"settings": {}}) + "\n")
    with pytest.raises(UserError, match="made with steps = unknown, not None"):
        methods.table("methods", replace(options, steps=None))


@pytest.mark.parametrize("words", [("--steps", "0"), ("--each", "0"), ("--seeds", "-1")])
def test_impossible_numbers_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(MethodsOptions, "x", list(words))
    assert "is not a whole number" in capsys.readouterr().err


def test_the_committed_runs_give_the_committed_tables():
    """Their settings are those that the tables state; every number of the tables follows from the lines."""
    folder = Path("tutorials/results")
    found = methods.read_runs(folder / "methods-runs.jsonl")
    options = MethodsOptions(steps=300)
    assert all(line["settings"] == methods.settings_of(options) for line in found.values())
    for name in methods.TABLES:
        rows, differences = methods.summarise(name, found, (0, 1, 2))
        text = methods.markdown(rows, differences, methods.COMPARED[name])
        assert text.strip() in (folder / f"{name}.md").read_text(encoding="utf-8")
        committed = json.loads((folder / f"{name}.json").read_text())
        assert committed["settings"]["images"] == methods.settings_of(options)["images"]
        for row, cells in committed["with − without"].items():
            for what, values in cells.items():
                np.testing.assert_allclose(values, differences[row][what], rtol=1e-6, atol=1e-9)


def test_measures_belong_to_their_pictures():
    """8 of the training prompt first; colours name no place."""
    wanted = [("a photo of a sks dog", {"subject": "dog"})] * 8 + world_prompts("sks", "dog")
    pictures = (torch.rand(20, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    training = torch.rand(2, 3, 64, 64) * 2 - 1
    values = methods.measure(list(pictures), wanted, training)
    assert {what: len(list_) for what, list_ in values.items()} == {
        "fidelity": 8, "fidelity, others": 12, "noise": 12, "dog": 12, "place": 10, "diversity": 1,
    }
    assert min(values["noise"]) > 10  # white noise, thousandths of energy


def test_a_run_is_charged_for_itself_alone(tmp_path, monkeypatch):
    """Time and memory are the child's, sizes those of its checkpoint and of its result; the folder is deleted."""
    options = MethodsOptions(out=str(tmp_path), images="tutorials/dog", steps=1)

    def costs_of_training(row, seed, options, folder):
        write_tensors(folder / runs.STATE, {"a": torch.zeros(1000)})
        write_tensors(folder / "pytorch_lora_weights.safetensors", {"b": torch.zeros(10)})
        write_json(folder / "config.json", {"format": runs.FORMAT, "options": {"steps": 600}})
        return {"seconds": 1.0, "memory": 2}

    class Fake:
        recipe = {"prompt": "p"}

        def generate(self, prompts, **_):
            return [np.full((64, 64, 3), i, np.uint8) for i in range(len(prompts))]

    monkeypatch.setattr(methods, "costs_of_training", costs_of_training)
    monkeypatch.setattr(methods.StableDiffusion, "load", lambda folder: Fake())
    line, strip = methods.perform("LoRA", 3, options, torch.rand(2, 3, 64, 64), {"steps": None})
    assert line["settings"] == {"steps": None}
    assert (line["row"], line["seed"], line["steps"], line["seconds"], line["memory"]) == ("LoRA", 3, 600, 1.0, 2)
    assert 4000 < line["state"] < 4400 and 40 < line["stored"] < 440
    assert [int(picture[0, 0, 0]) for picture in strip] == [0, 1, 2, 3, 8, 10, 12, 14, 16]
    assert not (tmp_path / "training").exists()


def test_only_rows_that_use_class_pictures_name_their_folder(tmp_path, monkeypatch):
    """Bug of an earlier version: each row of LoRA and OFT said that --class-images teaches nothing there."""
    seen, used = {}, SimpleNamespace(ru_utime=1.0, ru_stime=0.5, ru_maxrss=2**21)

    def train_apart(what, words, settings):
        seen[what] = words
        return 0, used

    monkeypatch.setattr(methods, "train_apart", train_apart)
    options, sd = MethodsOptions(out=str(tmp_path), images="tutorials/dog", steps=1), StableDiffusion.load("tiny")
    for row in methods.ROWS:
        methods.costs_of_training(row, 0, options, tmp_path / "x")
        asked = parse(TrainOptions, "train", seen[f"{row}, seed 0"])
        settled = settle(asked, sd, 6)
        assert about_class_pictures(asked, settled) is None
        own = str(tmp_path / "class_images")
        assert (settled.class_images == own) == (settled.prior_weight > 0) == (not row.startswith(("LoRA", "OFT")))


def test_a_child_that_fails_says_why(tmp_path):
    options = MethodsOptions(out=str(tmp_path), images=str(tmp_path / "nowhere"), steps=1)
    with pytest.raises(UserError, match="LoRA, seed 0: error: --images .*nowhere: no such folder"):
        methods.costs_of_training("LoRA", 0, options, tmp_path / "x")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "^LoRA: the training was ended by SIGKILL$"),
        ("echo 10% done >&2; kill -TERM $$", "^LoRA: the training was ended by SIGTERM$"),
        ("exit 3", "^LoRA: the training ended with exit status 3, and said nothing$"),
        ("echo a >&2; echo b >&2; echo >&2; exit 2", "^LoRA: b$"),
        ("exit $WANTED", "exit status 7"),
    ],
)
def test_a_child_that_dies_without_a_word_is_told(script, message, tmp_path, monkeypatch):
    """Bug of an earlier version: `splitlines()[-1]` of nothing, an IndexError without the name of the run."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(python))
    with pytest.raises(UserError, match=message):
        children.train_apart("LoRA", [], {"WANTED": "7"})
