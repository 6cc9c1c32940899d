"""The experiment that chooses the first command's recipe: its judge, its two-sample test and its table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from minibnn.errors import UserError
from minibnn.experiments import children
from minibnn.experiments.recipe import trainings
from minibnn.files.rows import read_rows
from minibnn.lab.energy_distance import energy_distance, of_groups, permutation_test
from minibnn.options.experiments import RecipeOptions
from minibnn.world import judge
from minibnn.world import scenes as world


def test_energy_distance_is_that_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(1.0, 2.0, size=11)
    both = torch.tensor(np.concatenate([x, y]))[:, None]
    found = of_groups(torch.cdist(both, both).numpy(), np.arange(18) < 7)
    assert found == pytest.approx(stats.energy_distance(x, y) ** 2, rel=1e-12)


def test_energy_distance_of_few_points_has_no_bias():
    generator = torch.Generator().manual_seed(0)
    found = [energy_distance(*torch.randn(2, 4, 2, generator=generator)) for _ in range(2000)]
    assert abs(np.mean(found)) < 3 * stats.sem(found)


def test_permutation_test_is_uniform_under_one_distribution_and_sees_another():
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for seed in range(60):
        x, y = torch.randn(12, 3, generator=generator), torch.randn(15, 3, generator=generator)
        p_values.append(permutation_test(x, y, 99, seed)[1])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    x, y = torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator) + 1.5
    assert permutation_test(x, y)[1] < 0.01


def test_what_is_dressed_is_labelled_as_drawn():
    """A spotted coat is teal with white spots; a decoy is not labelled spotted, and keeps its place."""
    scenes = [world.Scene("cat", "red", "snow", seed=i) for i in range(60)]
    images, target = judge.dressed(scenes, 0)
    coats = [judge.COATS[i] for i in target["coat"]]
    assert {"spotted", "other", "red"} == set(coats)
    spotted = world.draw(world.Scene("cat", "red", "snow", spotted=True, seed=coats.index("spotted")))
    drawn = images[coats.index("spotted")]
    assert np.allclose((drawn.permute(1, 2, 0) / 2 + 0.5) * 255, np.asarray(spotted), atol=0.51)
    for i, coat in enumerate(coats):
        red = (images[i, 0] > 0.5) & (images[i, 1] < -0.5) & (images[i, 2] < -0.5)
        assert (int(red.sum()) > 150) == (coat == "red"), coat
    assert all(judge.JUDGED["background"][i] == "snow" for i in target["background"])


def line(setting, seed, subject="dog", both=0.5):
    values = dict.fromkeys(trainings.MEASURES, 0.25) | {"both": both}
    return {"setting": setting, "subject": subject, "seed": seed, "options": trainings.described(setting, "tiny-v2"),
            "seconds": 100.0, "values": values}


def cells(text):
    """The table of a page: {setting: {column: what stands there}}."""
    head, _, *rows = [
        [word.strip() for word in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


LEAST = {"drift": 0.05, "leak": 0.0278}


def test_table_has_the_interval_of_scipy_and_counts_drifts():
    lines = [line("plain", seed, both=both) for seed, both in enumerate((0.5, 0.6, 0.9))]
    lines[1]["values"]["varied"] = 0.049
    low, high = stats.t.interval(0.95, 2, np.mean([0.5, 0.6, 0.9]), stats.sem([0.5, 0.6, 0.9]))
    table = cells(trainings.markdown(lines, ["plain", "no-bayes"], {"subject": 1.0}, 0.9, LEAST))
    assert list(table) == ["plain"]
    assert table["plain"]["both"] == f"0.67 ({low:.2f} … {high:.2f})"
    assert table["plain"]["subject"] == "0.25 (0.25 … 0.25)"
    assert table["plain"]["varied"] == "1 of 3" and table["plain"]["captions"] == "0"


def test_page_explains_its_columns_and_shows_options_where_they_differ():
    alone, both = ([line(name, 0) for name in names] for names in (["plain"], ["plain", "no-bayes"]))
    text = trainings.markdown(alone, ["plain", "no-bayes"], {}, 1.0, LEAST)
    for column in list(cells(text)["plain"])[3:]:
        assert f"- **{column}**: " in text.split("\n| ")[0]
    assert "two samples of the pretrained model have 0.050\n" in text and "it says so in 0.028\n" in text
    assert "options of `train`" not in cells(text)["plain"]
    table = cells(trainings.markdown(both, ["plain", "no-bayes"], {}, 1.0, LEAST))
    assert [row["options of `train`"] for row in table.values()] == ["the recipe's", "`--no-bayes`"]


def test_page_names_the_command_of_each_set_of_seeds():
    lines = [line("four-captions", seed) for seed in (1, 0)] + [line("plain", 0), line("noise-target", 0)]
    lines += [line("noise-target", 1), line("plain", 0, "cat")]
    text = trainings.markdown(lines, ["four-captions", "plain", "noise-target"], {}, 1.0, LEAST)
    first = "The command is `python -m minibnn experiment recipe --settings four-captions noise-target --seeds 0 1`"
    assert f"{first}, and the same with `--settings plain --seeds 0`." in text


def test_what_is_clipped_is_counted_in_percent():
    images = torch.zeros(2, 3, 4, 5)
    images[0, :, 0] = 0.98  # 15 values of 120
    images[1, 1, 1, 1] = -1.0
    assert trainings.clipped(images) == pytest.approx(100 * 16 / 120)


def test_settings_share_class_pictures_that_are_drawn_alike():
    settings = trainings.SETTINGS.items()
    folders = {name: trainings.class_folder(Path("out"), "cat", setting) for name, setting in settings}
    others = dict.fromkeys(("noise-target", "weight-four-noise", "lora-noise", "oft-noise", "unguided-class-pictures"),
                           "1")
    others["noise-target-guided"] = "3"
    assert {name: folders.pop(name).name for name in others} == {n: f"cat-guidance-{g}" for n, g in others.items()}
    assert {folder.name for folder in folders.values()} == {"cat"}


def test_picture_has_every_picture_of_a_strip_below_its_label():
    drawn = torch.linspace(-1, 1, len(trainings.COLUMNS) - 1)[:, None, None, None].expand(-1, 3, 64, 64)
    strip = trainings.strip_of(Image.new("RGB", (64, 64), "red"), drawn)
    sheet = np.asarray(trainings.picture({"plain-dog": strip}))
    row = sheet[-60]  # through the middle of the pictures
    starts = np.flatnonzero((row != 255).any(-1) & np.r_[True, (row[:-1] == 255).all(-1)])
    assert len(starts) == len(trainings.COLUMNS) - 1  # the last is white
    assert (row[starts[0]] == (255, 0, 0)).all() and (np.diff(row[starts[1:], 0].astype(int)) > 0).all()
    assert all((sheet[:30, start : start + 60] < 128).any() for start in starts), "labels"


@pytest.mark.parametrize("folder", [".", "recipe_lora", "recipe_oft"])
def test_the_committed_runs_give_the_committed_table(folder):
    results = Path(__file__).parents[1] / "tutorials" / "results" / folder
    lines = read_rows(results / "recipe.jsonl", trainings.LINE, trainings.LINE)
    written = cells((results / "recipe.md").read_text(encoding="utf-8"))
    table = cells(trainings.markdown(lines, list(written), {}, 1.0, LEAST))
    for name, row in written.items():
        for column in ("runs", "captions", "subject", "place", "both", "told", "leak", "noise", "s"):
            assert row[column] == table[name][column], (name, column)
    assert sum(int(row["runs"]) for row in written.values()) == len(lines)
    runs = {name: [each for each in lines if each["setting"] == name] for name in written}
    assert trainings.commands(runs) in (results / "recipe.md").read_text(encoding="utf-8")


def test_plan_counts_what_is_missing_and_refuses_other_settings(tmp_path, capsys):
    (tmp_path / "recipe.jsonl").write_text(json.dumps(line("plain", 0)) + "\n")
    trainings.experiment(RecipeOptions(settings=("plain",), seeds=(0, 1), plan=True, out=str(tmp_path)))
    assert "5 of 6 runs are to be made" in capsys.readouterr().out
    other = {"options": {"model": "tiny-v2", "train": ["--lr", "1"], "captions": 0}}
    recipe = {"options": trainings.described("plain", "tiny-v2") | {"recipe": {"lr": 1}}}
    for changed, name in ((other, "train"), (recipe, "other recipe")):
        (tmp_path / "recipe.jsonl").write_text(json.dumps(line("plain", 0) | changed) + "\n")
        with pytest.raises(UserError, match=f"plain, dog, seed 0 was made with {name}"):
            trainings.experiment(RecipeOptions(settings=("plain",), plan=True, out=str(tmp_path)))
    del recipe["options"]["recipe"]  # as an earlier version wrote it
    (tmp_path / "recipe.jsonl").write_text(json.dumps(line("plain", 0) | recipe) + "\n")
    trainings.experiment(RecipeOptions(settings=("plain",), plan=True, out=str(tmp_path)))
    assert "8 of 9 runs are to be made" in capsys.readouterr().out
    with pytest.raises(UserError, match="--settings nonsense: there are four-captions, plain"):
        trainings.experiment(RecipeOptions(settings=("nonsense",), plan=True))


# --- a training as a process of its own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "^LoRA: the training was ended by SIGKILL$"),
        ("echo 10% done >&2; kill -TERM $$", "^LoRA: the training was ended by SIGTERM$"),
        ("exit 3", "^LoRA: the training ended with exit status 3, and said nothing$"),
        ("echo a >&2; echo b >&2; echo >&2; exit 2", "^LoRA: b$"),
    ],
)
def test_a_child_that_fails_says_why(script, message, tmp_path, monkeypatch):
    """Bug of an earlier version: `splitlines()[-1]` of nothing, an IndexError without the name of the run."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(python))
    with pytest.raises(UserError, match=message):
        children.train_apart("LoRA", [])


def test_a_child_is_a_training_command(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/words\nsleep 0.2\n")
    python.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(python))
    assert 0.2 <= children.train_apart("LoRA", ["--seed", "3"]) < 60
    assert (tmp_path / "words").read_text() == "-m minibnn train --seed 3\n"
