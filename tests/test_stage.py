"""The experiment on the corruption stage: what a run measures and leaves, and how the report judges it."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from minibnn import StableDiffusion
from minibnn.errors import UserError
from minibnn.experiments.stage import every_look, law, long_runs, report, settings, starts, tables, trainings
from minibnn.experiments.stage import views as stage_views
from minibnn.experiments.stage.settings import EARLY, LATE, MAIN, OTHER_PROMPTS, PNDM, SETTINGS, Setting
from minibnn.files.store import ASSETS
from minibnn.lab import gain_law, gains, plot
from minibnn.options.experiments import StageOptions, StageReportOptions, StageStartsOptions, StageViewsOptions
from minibnn.pictures import grid, save_png, to_pil
from minibnn.schedule import alphas_cumprod, sample_pndm, timesteps

TUTORIALS = Path(__file__).parents[1] / "tutorials"
CAT, WEIGHTS = str(TUTORIALS / "subjects" / "cat"), str(TUTORIALS / "results" / "stage_cat.safetensors")


@pytest.fixture
def short(monkeypatch):
    """Settings of two steps, drawn in two steps."""
    for name in ("plain", "bnn", "prior", "flat"):
        monkeypatch.setitem(SETTINGS, name, dataclasses.replace(SETTINGS[name], looks=(0, 2)))
    views = (dataclasses.replace(MAIN, steps=2), dataclasses.replace(MAIN, steps=2, average=True),
             dataclasses.replace(MAIN, steps=2, base=True))
    monkeypatch.setattr(trainings, "MAIN", views[0])
    monkeypatch.setattr(trainings, "PICTURES", 2)
    monkeypatch.setattr(trainings, "OTHER_PROMPTS", OTHER_PROMPTS[:2])
    monkeypatch.setattr(trainings, "views_at", lambda step, last: views)
    monkeypatch.setattr(trainings, "GAIN_DRAWS", 1)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_its_lines_and_strip_and_is_not_repeated(short, tmp_path, capsys):
    options = StageOptions(settings=["plain", "bnn"], images=[CAT], seeds=[3], out=str(tmp_path), keep=True)
    trainings.experiment(options)
    rows = lines(tmp_path / "plain-cat-textured-3.jsonl")
    assert [(r["step"], r["view"], r["group"]) for r in rows[:2]] == [
        (0, "ddim-2-g7.5", "training"), (0, "ddim-2-g7.5", "other")
    ]
    assert len(rows) == 2 * 3 * 2
    start = {r["view"]: r["fidelity"] for r in rows if r["step"] == 0 and r["group"] == "training"}
    assert len(set(start.values())) == 1  # before training neither the mean nor the base differs
    end = {r["view"]: r["fidelity"] for r in rows if r["step"] == 2 and r["group"] == "training"}
    assert len(set(end.values())) == 3
    bayes = lines(tmp_path / "bnn-cat-textured-3.jsonl")
    keys = ("fidelity", "noise", "c", "u", "loss")
    assert [rows[0][k] for k in keys] == [bayes[0][k] for k in keys]  # at θ = μ the BNN starts at the same network
    assert [rows[-1][k] for k in keys] != [bayes[-1][k] for k in keys]
    assert Image.open(tmp_path / "bnn-cat-textured-3.png").size == (4 * 52 - 4, 2 * 52 - 4)
    unet = StableDiffusion.load("textured").unet
    unet.load_state_dict(load_file(tmp_path / "bnn-cat-textured-3.safetensors"), strict=True)  # the means, by name
    written = (tmp_path / "plain-cat-textured-3.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    trainings.experiment(options)
    assert "0 of 2 runs" in capsys.readouterr().out
    assert (tmp_path / "plain-cat-textured-3.jsonl").stat().st_mtime_ns == written


def test_class_pictures_and_flat_drawings_are_used(short, tmp_path, monkeypatch):
    seen = {}

    def spy(training, given, batches, observers):
        seen[given.prior_weight] = batches
        for observer in observers:
            observer(training)

    monkeypatch.setattr(trainings, "train", spy)
    monkeypatch.setattr(trainings, "CLASS_PICTURES", 4)
    options = StageOptions(out=str(tmp_path))
    for name in ("prior", "flat"):
        trainings.perform(trainings.Run(name, CAT, 0, "textured"), options)
    assert len(seen[0.0].sources) == 1 and len(seen[1.0].sources) == 2
    assert len(list((tmp_path / "class-textured").glob("*.png"))) == 4
    views = {row["view"] for row in lines(tmp_path / "prior-cat-textured-0.jsonl")}  # of the first look alone
    assert views == {"ddim-2-g7.5", "ddim-2-g7.5-average", "ddim-2-g7.5-base", PNDM.name}
    flat = trainings.pictures_of(trainings.Run("flat", CAT, 0, "textured"), 24)
    cat = trainings.pictures_of(trainings.Run("plain", CAT, 0, "textured"), 24)
    from minibnn.world.texture_measures import noise_level

    assert noise_level(flat) < noise_level(cat)


@pytest.mark.parametrize(("name", "fixed"), [("bnn", True), ("bnn-trained", False)])
def test_sigma_stays_through_a_step_if_it_is_fixed(short, tmp_path, monkeypatch, name, fixed):
    real, seen = trainings.train, []

    def one_step(training, given, batches, observers):
        for observer in observers:
            observer(training)
        before = {key: value.clone() for key, value in training.sd.unet.state_dict().items()}
        real(training, dataclasses.replace(given, steps=1), batches)
        seen.extend((key, before[key], value) for key, value in training.sd.unet.state_dict().items())

    monkeypatch.setattr(trainings, "train", one_step)
    monkeypatch.setitem(SETTINGS, name, dataclasses.replace(SETTINGS[name], looks=(0, 2)))
    trainings.perform(trainings.Run(name, CAT, 0, "textured"), StageOptions(out=str(tmp_path)))
    sigmas = [(was, now) for key, was, now in seen if key.endswith("_sigma")]
    assert sigmas and all((was == 0.01).all() for was, _ in sigmas)
    assert all(torch.equal(was, now) == fixed for was, now in sigmas)
    assert not any(torch.equal(was, now) for key, was, now in seen if key.endswith("to_q.weight"))  # a step was made


@pytest.mark.parametrize(("option", "own", "other", "message"), [
    ("images", CAT, Path(CAT).with_name("rocket"), "other cat"),
    ("model", "textured", ASSETS / "tiny", "other model textured"),
])
def test_runs_of_another_subject_or_model_of_the_same_name_are_refused(tmp_path, option, own, other, message):
    asked = {"images": [CAT], "model": "textured", "out": str(tmp_path / "out")}
    trainings.make([], StageOptions(**asked))
    trainings.make([], StageOptions(**asked))
    named = tmp_path / Path(own).name
    shutil.copytree(other, named)
    with pytest.raises(UserError, match=message):
        trainings.make([], StageOptions(**(asked | {option: [str(named)] if option == "images" else str(named)})))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match="--settings plane: there are plain"):
        trainings.experiment(StageOptions(settings=["plane"], out=str(tmp_path)))
    with pytest.raises(UserError, match="two folders are called cat"):
        trainings.experiment(StageOptions(images=[CAT, str(tmp_path / "cat")], out=str(tmp_path)))
    with pytest.raises(UserError, match="no .jsonl of `experiment stage`"):
        report.report(StageReportOptions(runs=[str(tmp_path)], out=str(tmp_path)))


# --- the report -------------------------------------------------------------------------------------------------------


def made_up(fidelity, noise, c=1.0, u=1.0, looks=SETTINGS["plain"].looks):
    """A run with these values at every look (functions of the step), the same for all views and prompts."""
    rows = []
    for step in looks:
        for view in settings.views_at(step, looks[-1]):
            for group in ("training", "other"):
                rows.append({
                    "setting": "plain", "step": step, "view": view.name, "group": group, "fidelity": fidelity(step),
                    "noise": noise(step), "tint": 1 - fidelity(step), "spread": 0.1, "loss": 1 / (step + 1),
                    "times": [100, 300, 900], "c": [c] * 3, "u": [u] * 3,
                    "colour_c": [0.1, 0.4, 0.7], "colour_u": [0.1, 0.3, 0.6],
                })
    return rows


def test_the_criterion_is_a_fall_and_a_rise_beyond_their_intervals():
    falls = (0.30, 0.25, 0.41, 0.36)
    runs = {
        ("plain", "textured", "cat", seed): made_up(
            lambda step, fall=fall: 0.8 - fall * (step in LATE), lambda step: 20.0 * (step in LATE)
        ) for seed, fall in enumerate(falls)
    }
    mean, half = np.mean(falls), stats.t.ppf(0.975, 3) * stats.sem(falls)
    row = next(line for line in tables.stages(runs).splitlines() if "| 7.5 |" in line)
    assert f"**-{mean:.3f} [-{mean + half:.3f}, -{mean - half:.3f}]**" in row
    assert "| plain | textured | 4 |" in row and "1.000, 1.000, 1.00 | 0.40 |" in row
    assert tables.words((0.1, -0.2, 0.4)) == "+0.100 [-0.200, +0.400]"  # the interval holds 0: not bold
    assert EARLY < min(LATE)


def test_runs_of_one_seed_are_no_runs_of_their_own():
    """Bug: three subjects of two seeds, which rise together, counted as six, and showed a rise that others had not."""
    rises = {0: (0.27, 0.29, 0.25), 1: (0.20, 0.22, 0.24), 2: (-0.2, -0.22, -0.21)}
    values = {(subject, seed): rise for seed, own in rises.items() for subject, rise in zip("abc", own, strict=True)}
    values["a", 3] = 0.1  # a seed of which one subject is there
    units = [np.mean(own) for own in rises.values()] + [0.1]
    expected = np.mean(units), *stats.t.interval(0.95, 3, np.mean(units), stats.sem(units))
    assert tables.over_seeds(values) == pytest.approx(expected)
    assert tables.over_seeds({("a", 0): 0.5, ("b", 0): 0.6}) == (pytest.approx(0.55), -np.inf, np.inf)
    assert tables.words(tables.over_seeds({("a", 0): 0.5})) == "+0.500 (one seed)"


def test_levels_are_means_over_runs():
    runs = {("plain", "textured", "cat", seed): made_up(lambda step, seed=seed: step / 1000 + seed, lambda step: step)
            for seed in (0, 1)}
    (row,) = tables.levels(runs).splitlines()[2:]
    steps = (EARLY, *LATE)
    assert [cell.strip() for cell in row.split("|")[3:6]] == [
        "2", ", ".join(f"{step / 1000 + 0.5:.3f}" for step in steps), ", ".join(f"{step:.1f}" for step in steps)
    ]


def test_a_fall_and_a_recovery_are_told_apart():
    fidelity = {0: 0.0, 100: 0.3, 250: 0.6, 400: 0.2, 600: 0.4, 800: 0.5}
    runs = {("plain", "textured", "cat", seed): made_up(lambda step, s=seed: fidelity[step] + 0.1 * s, lambda step: 1.0)
            for seed in (0, 1)}
    cells = [cell.strip() for cell in tables.phases(runs).splitlines()[2].split("|")]
    assert cells[4] == "training" and cells[5].startswith("**-0.400 [") and cells[6].startswith("**+0.300 [")
    assert cells[7].startswith("+0.0 [") and cells[9].startswith("**+0.400")  # tint is 1 − fidelity here


def test_what_is_drawn_otherwise_at_every_look_stands_beside_the_law():
    """In units of `noise`, which is that of the mean of three colours, in percent."""
    def run(setting, fidelity, seed):
        rows = made_up(lambda step: fidelity + seed * (step in LATE), lambda step: step / 100, c=0.95, u=0.75)
        pndm = [dict(row, view=PNDM.name, noise=row["noise"] + 7) for row in rows if row["view"] == MAIN.name]
        return [dict(row, setting=setting) for row in rows if row["view"] != PNDM.name] + pndm

    runs = {("prior", "textured", "cat", seed): run("prior", 0.5, seed / 10) for seed in (0, 1)}
    runs |= {("prior-bnn", "textured", "cat", seed): run("prior-bnn", 0.8, seed / 10) for seed in (0, 1)}
    runs["plain", "textured", "cat", 0] = made_up(lambda step: step, lambda step: 1.0)  # not drawn so at every look
    first, second = every_look.every_look(runs).splitlines()[2:]
    cells = [cell.strip() for cell in second.split("|")[1:-1]]
    abar = alphas_cumprod()
    left = sample_pndm(lambda x, t: 2.25 * x / (1 - abar[t]).sqrt(), torch.ones(1, 1, 1, 1).double(),
                                timesteps(20), abar).abs().item()
    perfect = gain_law.noise_left([1.0] * 20, timesteps(20), abar)
    by_law = f"{100 * (left - perfect) / 3**0.5:.1f}"
    assert cells[:4] == ["prior-bnn", "textured", "2", "pndm-20-g7.5"] and float(by_law) > 1
    assert cells[4:7] == ["0.800, 0.800, 0.850, 0.850, 0.850", "8.0, 9.5, 11.0, 13.0, 15.0", ", ".join([by_law] * 5)]
    assert cells[7].startswith("+0.050 [") and cells[8] == "**+3.5 [+3.5, +3.5]**"
    assert cells[9].startswith("**+0.300 [") and cells[10] == "+0.0 [+0.0, +0.0]"
    assert first.startswith("| prior |") and first.endswith("|  |  |")
    assert "## Drawn otherwise at every look" in report.page(runs)
    del runs["prior", "textured", "cat", 0], runs["prior", "textured", "cat", 1]
    (alone,) = every_look.every_look(runs).splitlines()[2:]
    assert alone.endswith("|  |  |")


def test_longer_runs_are_told_to_their_end():
    def run(seed):
        rows = made_up(lambda step: step / 10_000 + seed * (step > 800), lambda step: 9 - step / 1000, 0.9, 1.0,
                       settings.LONG_LOOKS)
        return [dict(row, fidelity=0.5) if row["group"] == "other" else row for row in rows]

    runs = {("long", "textured", "cat", seed): run(seed / 10) for seed in (0, 1, 2)}
    first, second = long_runs.long_runs(runs).splitlines()[2:]
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[:5] == ["long", "textured", "cat", "3", "training"]
    assert cells[5] == "0.025, 0.040, 0.060, 0.080, 0.220, 0.280, 0.340, 0.420, 0.500"
    assert cells[6].endswith(", 5.0") and cells[8] == ", ".join(["0.100"] * 9)
    mean, half = 0.42, stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert cells[9] == f"**{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]**"
    assert cells[10] == "**-3.2 [-3.2, -3.2]**" and "| other |" in second and "| +0.000 [+0.000, +0.000] |" in second
    assert "## Five times as long" in report.page(runs)
    plain = {("plain", "textured", "cat", 0): made_up(lambda step: step, lambda step: 1.0)}
    assert long_runs.long_runs(plain) == ""


def test_longer_runs_of_several_subjects_are_told_together_and_apart():
    def run(rise):
        return made_up(lambda step: rise * (step > 800), lambda step: 9.0, looks=settings.LONG_LOOKS)

    rises = {"cat": (0.2, 0.4), "coffee": (0.3, 0.1)}  # a seed's mean is the unit: .25 and .25, not four numbers
    runs = {("long", "textured", subject, seed): run(rise)
            for subject, both in rises.items() for seed, rise in enumerate(both)}
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in long_runs.long_runs(runs).splitlines()[2:]]
    assert [row[2:5] for row in rows] == [[subject, number, group] for subject, number in
                                          (("all", "4"), ("cat", "2"), ("coffee", "2"))
                                          for group in ("training", "other")]
    half = stats.t.ppf(0.975, 1) * 0.1  # of two numbers that differ by 0.2
    assert [rows[i][9] for i in (0, 2, 4)] == [
        "**+0.250 [+0.250, +0.250]**", f"+0.300 [{0.3 - half:+.3f}, {0.3 + half:+.3f}]",
        f"+0.200 [{0.2 - half:+.3f}, {0.2 + half:+.3f}]"]


def test_the_pictures_of_a_longer_run_stand_by_their_steps(tmp_path):
    pictures = torch.rand(8 * len(settings.LONG_LOOKS), 3, 24, 24, generator=torch.Generator().manual_seed(0))
    drawn = to_pil(pictures * 2 - 1)
    save_png(grid(drawn, 8, zoom=trainings.ZOOM), tmp_path / "long-null-cat-textured-0.png")
    assert long_runs.long_strip(tmp_path, "long", "cat", 0) is None
    (tmp_path / "plain-cat-textured-0.png").touch()
    assert long_runs.long_strip(tmp_path, "plain", "cat", 0) is None  # is not a longer run
    shown = np.asarray(long_runs.long_strip(tmp_path, "long-null", "cat", 0)).astype(int)
    for picture in (drawn[0], drawn[13], drawn[-1]):  # each is somewhere, whole and at the same size
        wanted = np.asarray(picture.resize((48, 48), Image.Resampling.NEAREST)).astype(int)
        corners = np.argwhere((shown == wanted[0, 0]).all(-1))
        found = (shown[y : y + 48, x : x + 48] for y, x in corners)
        assert any(part.shape == wanted.shape and (part == wanted).all() for part in found)


def test_the_flat_drawing_is_one_subject_and_is_not_compared_with_photographs(tmp_path):
    options = StageOptions(settings=["plain", "flat"], images=["cat", "rocket"], seeds=[0, 1], out=str(tmp_path))
    planned = [(run.setting, run.subject, run.seed) for run in trainings.planned(options)]
    assert planned == [row for seed in (0, 1) for row in (
        ("plain", "cat", seed), ("flat", "cat", seed), ("plain", "rocket", seed))]
    runs = {(name, "textured", "cat", 0): made_up(lambda step: 0.5, lambda step: 1.0) for name in ("plain", "flat")}
    assert tables.cure(runs, "flat", "textured", MAIN, "noise") is None
    assert all(line.endswith("|  |  |") for line in tables.drawings(runs).splitlines() if line.startswith("| flat"))


def test_the_tint_is_the_distance_of_mean_colours():
    images = torch.zeros(2, 3, 4, 4)
    images[1] = 0.8
    pictures = torch.cat([images[:1] + 0.1, images[1:] - torch.tensor([0.3, 0.0, 0.0])[:, None, None]])
    pictures[0, 0, :2] += 0.5
    pictures[0, 0, 2:] -= 0.5  # which leaves the mean
    assert trainings.tint(pictures, images) == pytest.approx(((3 * 0.01 + 0.09) / 6) ** 0.5, rel=1e-5)


def test_what_goes_with_fidelity_is_a_rank_correlation():
    runs = {
        ("plain", "textured", "cat", seed): made_up(lambda step, s=seed: 0.1 * s + step / 1000, lambda step: -step)
        for seed in (0, 1)
    }
    cells = [cell.strip() for cell in tables.companions(runs).splitlines()[2].split("|")]
    assert cells[3] == "10" and cells[4] == "-1.00"  # tint is 1 − fidelity here
    fidelity = [0.1 * s + step / 1000 for s in (0, 1) for step in SETTINGS["plain"].looks[1:]]
    expected = stats.spearmanr(fidelity, [-step for _ in (0, 1) for step in SETTINGS["plain"].looks[1:]]).statistic
    assert cells[5] == f"{expected:+.2f}"


def test_a_cure_is_compared_at_the_same_steps_and_at_equal_loss():
    plain = made_up(lambda step: 0.9 - step / 2000, lambda step: step / 100)
    slow = made_up(lambda step: 0.9 - step / 4000, lambda step: step / 200)
    for row in slow:  # exactly plain at half the rate
        row["loss"] = 1 / (row["step"] / 2 + 1)
    runs = {(setting, "textured", "cat", seed): rows
            for setting, rows in (("plain", plain), ("bnn", slow)) for seed in (0, 1)}
    cells = tables.cures(runs).splitlines()[2].split("|")
    assert cells[4].strip().startswith("**+0.150")  # the mean of LATE is 600: 600/2000 − 600/4000
    assert float(cells[6].split("[")[0].strip(" *")) == pytest.approx(0, abs=0.02)  # no cure, merely slower
    assert float(cells[7].split("[")[0].strip(" *")) == pytest.approx(0, abs=0.4)
    head = tables.cures(runs).splitlines()[0].split("|")
    assert len(head) == len(cells) and [cells[i].strip() for i in (-5, -3)] == [cells[4].strip()] * 2  # at 3 and at 1
    assert "at guidance 3: fidelity" in head[-5] and "at guidance 1: fidelity" in head[-3]


def test_what_is_drawn_otherwise_is_compared_with_plain_by_subject_and_seed():
    """Seed 7, of which there is no plain run, counts for the means, and not for the differences."""
    runs = {(setting, "textured", "cat", seed): made_up(
        lambda step, s=seed, m=more: s / 10 + m + step / 8000, lambda step, s=seed, m=more: s - 10 * m)
        for setting, seed, more in (("plain", 0, 0), ("plain", 1, 0), ("offset", 7, 0.9), ("offset", 1, 0.1),
                                    ("offset", 0, 0.3))}
    rows = [[cell.strip() for cell in row.split("|")] for row in tables.drawings(runs).splitlines()[2:]]
    main, last = (next(row for row in rows if row[1] == "offset" and row[4] == view)
                  for view in (MAIN.name, "ddim-20-g1"))
    assert main[9].startswith("+0.200 [") and main[10].startswith("-2.0 [") and main[7] == main[8] == ""
    assert last[7].startswith("+0.000 [") and last[9:] == main[9:]
    assert [row[9] for row in rows if row[1] == "plain"][0] == ""
    assert tables.cure(runs, "offset", "textured", MAIN, "noise")[0] == pytest.approx(-2)
    assert tables.cure(runs, "offset", "photographs", MAIN, "noise") is None


def test_the_committed_page_is_that_of_the_committed_lines():
    results = Path(__file__).parents[1] / "tutorials" / "results"
    assert (results / "stage.md").read_text(encoding="utf-8") == report.page(report.read_runs([results]))


def test_the_law_predicts_the_noise_of_a_linear_denoiser():
    abar, times, runs = alphas_cumprod(), timesteps(20), {}
    for seed, gain in enumerate((0.7, 0.8, 0.9, 1.0)):
        left = gain_law.noise_left([gain] * 20, times, abar) - gain_law.noise_left([1.0] * 20, times, abar)
        rows = made_up(lambda step: 0.5, lambda step, left=left: 100 * left / 3**0.5, c=gain, u=gain)
        runs["plain", "textured", "cat", seed] = [
            row for row in rows if row["view"] in (MAIN.name, "ddim-20-g3", "ddim-20-g1")
        ]
    table = law.law(runs).splitlines()
    assert table[2].split("|")[5].strip() == "1.00"
    assert law.law_points(runs)[0][0] == pytest.approx(gain_law.noise_left([0.7] * 20, times, abar), rel=1e-6)


def test_the_report_is_written_from_lines_and_again_from_its_own(tmp_path):
    for setting, model in (("plain", "textured"), ("bnn", "textured"), ("bnn", "photographs")):
        for seed in (0, 1):
            rows = made_up(lambda step: step / 1000, lambda step, seed=seed: step / 100 + seed, c=0.9 + 0.05 * seed)
            name = f"{setting}-cat-{model}-{seed}"
            extra = {"run": name, "setting": setting, "model": f"runs/{model}", "subject": CAT, "seed": seed}
            text = "".join(json.dumps(row | extra) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
            Image.new("RGB", (8 * 52 - 4, len(SETTINGS["plain"].looks) * 52 - 4)).save(tmp_path / f"{name}.png")
    report.report(StageReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "out")))
    report.report(StageReportOptions(runs=[str(tmp_path / "out")], out=str(tmp_path / "again")))
    assert (tmp_path / "out" / "stage.md").read_text() == (tmp_path / "again" / "stage.md").read_text()
    shutil.copy(tmp_path / "out" / "stage.jsonl", tmp_path / "together.jsonl")  # each line twice now
    (tmp_path / "recipe.jsonl").write_text('{"setting": "plain", "subject": "dog", "seed": 0}\n')
    report.report(StageReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "twice")))
    assert (tmp_path / "out" / "stage.md").read_text() == (tmp_path / "twice" / "stage.md").read_text()
    other = json.loads((tmp_path / "together.jsonl").read_text().splitlines()[0]) | {"noise": 77.0}
    (tmp_path / "other.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(UserError, match="another run has the same name"):
        report.report(StageReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "no")))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "stage.jsonl", "stage.md", "stage.png", "gain_law.png", "stage_cat.png",
        "photographs_stage.png", "photographs_stage_cat.png",
    }
    two, one = (Image.open(tmp_path / "out" / f"{name}_cat.png").height for name in ("stage", "photographs_stage"))
    assert two - one == 102  # a row: plain, which was trained from one of the models only


def test_a_report_of_other_settings_has_no_curves_of_the_usual_ones(tmp_path):
    """Bugs of earlier versions: an IndexError after the tables, and R² = −∞ where one run gives nothing to predict."""
    rows = made_up(lambda step: step / 1000, lambda step: step / 100)
    extra = {"run": "four-cat-textured-0", "setting": "four", "model": "textured", "subject": CAT, "seed": 0}
    (tmp_path / "four-cat-textured-0.jsonl").write_text("".join(json.dumps(row | extra) + "\n" for row in rows))
    report.report(StageReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "out")))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"stage.jsonl", "stage.md", "gain_law.png"}
    page = (tmp_path / "out" / "stage.md").read_text(encoding="utf-8")
    assert "| ddim-20-g3 | 4 | 0.029 | 0.089 |  |  |  |" in page  # all gains are 1: they can explain no difference
    assert "| pndm-20-g7.5 | 1 | 0.029 | 0.139 |  |  |  |" in page


def test_settings_have_the_colour_of_what_is_varied():
    """Bug: the settings were more than the colours, so that two had one."""
    assert [law.family(name) for name in ("flat", "bnn-four", "null", "offset-bnn", "prior-bnn")] == [
        "plain", "weight noise alone", "empty prompt", "noise offset", "class pictures"]
    assert len({law.family(name) for name in SETTINGS}) <= len(plot.COLOURS)


def test_every_setting_is_a_way_of_training():
    assert all(isinstance(setting, Setting) and setting.looks[0] == 0 for setting in SETTINGS.values())
    assert {EARLY, *LATE} <= set(SETTINGS["plain"].looks)
    assert torch.tensor(SETTINGS["long"].looks).diff().min() > 0


def test_the_starting_noise_predicts_the_noise_of_a_picture(tmp_path, monkeypatch):
    """One number of the starting noise, its strength, and three of its colour: in the bundled weights they decide."""
    monkeypatch.setattr(starts, "SCALES", (1.0,))
    starts.starts(StageStartsOptions(out=str(tmp_path), images=CAT, weights=[WEIGHTS], count=8, seed=1))
    found = json.loads((tmp_path / "stage_starts.json").read_text())["weights"]["stage_cat"]
    assert found["strength c"][2] < 0.5 < 0.9 < found["all c"][2]  # the mean gain does not show it
    one, other = (found["drawn"][f"guidance 1, {name}"] for name in ("as it is", "both"))
    assert other["fidelity"] > one["fidelity"] + 0.1 and other["tint"] < 0.7 * one["tint"]
    own = found["drawn"]["guidance 1, the picture's colour"]
    expected = stats.spearmanr(found["strengths"], own["levels"]).statistic
    assert own["rank correlation"] == pytest.approx(expected) and expected > 0.5
    assert np.std(other["levels"]) < np.std(own["levels"]) / 2
    noise = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    assert found["strengths"] == pytest.approx(noise.std((2, 3), correction=0).square().mean(1).sqrt().tolist())


def test_weights_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two files are called stage_cat"):
        starts.starts(StageStartsOptions(out=str(tmp_path), images=CAT, weights=[WEIGHTS, f"elsewhere/{WEIGHTS}"]))


def test_the_law_of_a_surplus_is_that_of_its_own_gain():
    """With gains of 1 nothing is left of a surplus; with gains of 0 in strength all of it, scaled as √ᾱ is."""
    sd, ones = SimpleNamespace(alphas_cumprod=alphas_cumprod()), torch.ones(2, 1, 1, dtype=torch.float64)
    found = {"all": gains.Gains((20, 900), ones, ones), "strength": gains.Gains((20, 900), 0 * ones, 0 * ones)}
    first = sd.alphas_cumprod[951].double()
    left = starts.predicted(found, sd, 1.0, [0.9, 1.0, 1.1])
    assert left[1] == pytest.approx(gain_law.predicted_noise((20, 900), (1, 1), sd.alphas_cumprod, 20))
    assert left[2] - left[1] == pytest.approx(0.1 * (sd.alphas_cumprod[0] / first).sqrt().item(), rel=1e-6)
    assert left[0] == pytest.approx(abs(2 * left[1] - left[2]))


@pytest.mark.parametrize("command", ["views", "starts"])
def test_weights_of_something_else_are_refused(tmp_path, command):
    assets = TUTORIALS.parent / "minibnn" / "assets"
    path = str(assets / "textured" / "vae" / "diffusion_pytorch_model.safetensors")
    given = {"images": CAT, "out": str(tmp_path)}
    with pytest.raises(UserError, match="not weights of --model's UNet"):
        if command == "views":
            stage_views.views(StageViewsOptions(weights=path, **given))
        else:
            starts.starts(StageStartsOptions(weights=[path], **given))
    assert not list(tmp_path.iterdir())


def test_the_same_weights_drawn_in_nine_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_views, "STEPS", 10)
    monkeypatch.setattr(stage_views, "PICTURES", 3)
    stage_views.views(StageViewsOptions(weights=WEIGHTS, images=CAT, out=str(tmp_path)))
    found = json.loads((tmp_path / "stage_views.json").read_text())
    noise = {name: np.mean(values["noise"]) for name, values in found["ways"].items()}
    fidelity = {name: np.mean(values["fidelity"]) for name, values in found["ways"].items()}
    assert list(noise) == list(stage_views.WAYS)
    assert noise["guidance 7.5, eta = 1"] < noise["guidance 7.5"] - 1
    assert fidelity["guidance 1, colour and strength"] > fidelity["guidance 1, photo's colour"] > fidelity["guidance 1"]
