"""The corruption experiment: prompts and plan, runs that are interrupted, what it draws with, criterion and report."""

import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from minibnn import StableDiffusion, UserError
from minibnn.cli.settle import settle
from minibnn.experiments import legends, prompts
from minibnn.experiments.corruption import report, trainings
from minibnn.experiments.corruption.measures import WorldMeasures
from minibnn.experiments.corruption.settings import SETTINGS, Run, log_spaced
from minibnn.experiments.corruption.stages import MARGIN, corruption_stage, noise_stage, verdict
from minibnn.experiments.views import View
from minibnn.files.rows import read_rows, write_rows
from minibnn.finetune import bayes
from minibnn.lab import intervals
from minibnn.lab.intervals import bold, in_words, interval
from minibnn.options.experiments import CorruptionOptions, ReportOptions
from minibnn.pictures import to_tensor
from minibnn.sample import guide
from minibnn.world import measures as world_measures
from minibnn.world import scenes as world

# --- the criterion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_intervals_are_those_of_the_printed_table_and_of_a_t_test(n, quantile):
    """Student's 97.5 % quantiles of n − 1 degrees of freedom, as tables print them."""
    values = np.random.default_rng(n).normal(0.3, 2, n)
    mean, low, high = interval(values)
    half = quantile * values.std(ddof=1) / math.sqrt(n)
    assert (mean, low, high) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=2e-4)
    assert (low, high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)), rel=1e-9)
    assert interval(torch.full((n,), 0.5)) == (0.5, 0.5, 0.5)


def test_scipy_is_asked_for_only_where_an_interval_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r'intervals need scipy: pip install -e "\.\[experiments\]"'):
        interval([0.1, 0.2])


def test_an_interval_in_words():
    assert in_words(0.05, 0.01, 0.09) == "+0.050 [+0.010, +0.090]"
    assert in_words(*interval([-0.5]), 4) == "-0.5000 (one seed)"
    for (low, high), said in {(0.01, 0.09): "more", (-0.09, -0.01): "less", (-0.01, 0.09): "not shown",
                              (0.0, 0.0): "not shown", interval([-0.5])[1:]: "not shown"}.items():
        assert intervals.verdict(low, high, "more", "less") == said
        assert bold("it", low, high) == ("it" if said == "not shown" else "**it**")


def test_one_seed_says_nothing():
    assert interval([0.5]) == (0.5, -math.inf, math.inf)
    assert corruption_stage([FALLS], [BUMP])[0] == "undecided"
    assert noise_stage([BUMP])[0] == "undecided"


def test_verdicts_need_all_differences_and_mind_the_margin():
    clear, small, open_ = (0.5, 0.3, 0.7), (0.005, -0.001, 0.011), (0.5, -0.1, 1.1)
    assert verdict([clear, clear], [0.02, 0.2]) == "present"
    assert verdict([clear, open_], [0.02, 0.2]) == "undecided"
    assert verdict([clear, small], [0.02, 0.02]) == "absent"
    assert verdict([clear, small], [0.02, 0.01]) == "undecided"  # the interval reaches the margin
    assert verdict([open_, small], [0.02, 0.02]) == "absent"  # one that is ruled out is enough
    assert verdict([(0.005, 0.001, 0.009)], [0.02]) == "present"  # above 0 comes first


FALLS = (0.0, 0.3, 0.5, 0.35, 0.2, 0.4, 0.6)  # improves, falls, recovers
RISES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6)
BUMP = (0.1, 0.2, 0.8, 1.5, 2.5, 1.2, 0.4)
FLAT = (0.1,) * 7


def seeds(curve, spread, offset=0.0, n=3):
    """The curve of n seeds, each shifted as a whole by up to `offset`, each point by up to `spread`, all balanced."""
    shifts = torch.linspace(-1, 1, n).double()
    points = torch.stack([shifts.roll(k) for k in range(len(curve))], 1)
    return (torch.tensor(curve).double() + offset * shifts[:, None] + spread * points).tolist()


def test_a_corruption_stage_is_seen_and_where():
    outcome, found, dip = corruption_stage(seeds(FALLS, 0.01), seeds(BUMP, 0.05))
    assert (outcome, dip) == ("present", 4)
    means = [round(mean, 6) for mean, _, _ in found.values()]
    assert means == pytest.approx([0.5 - 0.2, 0.6 - 0.2, 2.5 - 0.1, 2.5 - 0.4], abs=0.08)
    for values, (mean, low, high) in zip(([0.29, 0.3, 0.31], [0.39, 0.4, 0.41]), found.values(), strict=False):
        assert low < mean < high and abs(mean - sum(values) / 3) < 0.02


@pytest.mark.parametrize(
    ("fidelity", "noise", "outcome"),
    [
        (RISES, BUMP, "absent"),  # fidelity never falls
        (FALLS, FLAT, "absent"),  # no noise
        ((*FALLS[:5], 0.2, 0.19), BUMP, "absent"),  # no recovery of fidelity
        (FALLS, (0.1, 0.2, 0.8, 1.5, 2.5, 2.6, 2.7), "absent"),  # no recovery of noise
        (FALLS, tuple(v + 3 for v in reversed(RISES)), "absent"),  # noise below the pretrained model's
        ((0.0, 0.3, 0.5, 0.499, 0.498, 0.5, 0.6), BUMP, "absent"),  # falls by less than can be told from 0
    ],
)
def test_a_corruption_stage_needs_fall_noise_and_recovery(fidelity, noise, outcome):
    assert corruption_stage(seeds(fidelity, 1e-3), seeds(noise, 1e-3))[0] == outcome


def test_absent_is_said_of_the_whole_curve():
    """Two seeds that disagree by a factor at every step: a rising mean excludes nothing."""
    rising, noise = [[0, 0.3, 0.6, 0.9], [0, 0.1, 0.4, 0.5]], [[0, 1, 2, 0.5], [0, 0.2, 0.4, 1]]
    outcome, found, dip = corruption_stage(rising, noise)
    assert (outcome, dip) == ("undecided", 1)
    fall, _, _ = found["fidelity below its earlier maximum"]
    assert fall == pytest.approx(-0.2)  # below the maximum before it, not below itself
    fidelity = seeds((0.0, 0.5, 0.48, 0.6, 0.59, 0.8), 1e-3)  # dips at steps 2 and 4, deeper at 2
    calm_then_loud = seeds((0.5, 0.2, 0.1, 0.2, 2.0, 0.4), 1e-3)
    assert corruption_stage(fidelity, calm_then_loud)[::2] == ("undecided", 2)  # absent at 2, which is calm; not at 4
    assert noise_stage([[0, 2, -1, 1], [0, 2, 7, 1], [0, 2, -1, 1]])[0] == "present"
    assert noise_stage([[0, 2, 2.5, 2.4], [0, 2, 2.5, 2.4], [0, 2, 2.5, 1.6]])[0] == "undecided"


def test_seeds_that_disagree_leave_it_undecided():
    assert corruption_stage(seeds(FALLS, 0.15), seeds(BUMP, 0.05))[0] == "undecided"
    assert noise_stage(seeds(BUMP, 1.5))[0] == "undecided"


def test_differences_are_paired_by_seed():
    """Seeds that differ as a whole by far more than the effect: only a paired difference sees it."""
    assert corruption_stage(seeds(FALLS, 0.01, 2.0), seeds(BUMP, 0.05, 20.0))[0] == "present"
    assert noise_stage(seeds(BUMP, 0.05, 20.0))[0] == "present"


def test_a_noise_stage_is_a_bump_above_both_ends():
    outcome, found, peak = noise_stage(seeds(BUMP, 0.05))
    assert (outcome, peak) == ("present", 4)
    assert [mean for mean, _, _ in found.values()] == pytest.approx([2.4, 2.1], abs=0.1)
    no_recovery = (0.1, 0.2, 0.4, 0.8, 1.6, 2, 2.5)
    for curve in (FLAT, no_recovery, no_recovery[::-1]):  # the last of them does not rise
        assert noise_stage(seeds(curve, 1e-3))[0] == "absent"
    small = (0.1, 0.1, 0.15, 0.1, 0.1)
    assert noise_stage(seeds(small, 0.02))[0] == "absent"  # not told from 0, and surely below the margin of 0.2
    assert noise_stage(seeds(small, 1e-3))[0] == "present"  # told from 0: present, however small
    assert noise_stage(seeds(small, 0.2))[0] == "undecided"
    assert MARGIN == {"fidelity": 0.02, "noise": 0.2}


# --- prompts, settings, plan ------------------------------------------------------------------------------------------


def test_prompts_are_those_of_table_5():
    dogs, people = prompts.table5_object("sks", "backpack"), prompts.table5_subject("sks")
    assert len(set(dogs)) == len(set(people)) == 25
    assert dogs[0] == "a sks backpack in the jungle" and dogs[-1] == "a cube shaped sks backpack"
    for words in (
        "on a cobblestone street", "with a blue house in the background", "on top of a purple rug in a forest",
        "wearing a black top hat and a monocle", "in a purple wizard outfit",
    ):
        assert f"a sks backpack {words}" in dogs
    assert {"a red sks backpack", "a purple sks backpack", "a shiny sks backpack", "a wet sks backpack"} < set(dogs)
    for words in ("with snowflakes in their hair", "with forest green eyeshadow", "in a firefighter helmet", "yawning"):
        assert f"a photo of a sks person {words}" in people


def test_prompts_of_the_world_ask_for_what_the_classifier_judges():
    wanted = prompts.world_prompts("sks", "dog")
    assert len(wanted) == len({text for text, _ in wanted}) == 12
    assert ("a sks dog in the snow", {"subject": "dog", "background": "snow"}) in wanted
    assert ("a red sks dog", {"subject": "dog"}) in wanted  # "red sks" leaves open what the colour is to be
    assert {want.get("background") for _, want in wanted} == {*world.BACKGROUNDS, None}


def test_steps_are_log_spaced_and_reach_the_end():
    assert log_spaced(1600) == [0, 25, 50, 100, 200, 400, 800, 1600]
    assert log_spaced(1000) == [0, 25, 50, 100, 200, 400, 800, 1000]
    assert log_spaced(25) == [0, 25] and log_spaced(3) == [0, 3]


def options(dog, tmp_path, **changes):
    return dataclasses.replace(CorruptionOptions(), images=str(dog), out=str(tmp_path / "out"), **changes)


def test_every_setting_makes_options_that_training_accepts(dog, tmp_path):
    """Each is one change, its runs have names of their own, and `settle` finds nothing wrong with it."""
    sd, names, alone = StableDiffusion.load("tiny"), set(), {}
    for name, setting in SETTINGS.items():
        assert len({view.name for view in setting.views}) == len(setting.views)
        for it in (Run(name, 2, b, 1) for b in setting.bayes):
            names.add(it.name)
            made = trainings.train_options(it, options(dog, tmp_path), tmp_path)
            assert (made.bayes, made.seed, made.samples, made.monitor) == (it.bayes, 1, 0, False)
            settle(made, sd, 2)
            alone[it.name] = made
            assert report._parts(it.name) == (name, 2, "bnn" if it.bayes else "plain")
    assert len(names) == sum(len(setting.bayes) for setting in SETTINGS.values())
    for name, made in alone.items():
        reference = alone["main-2-bnn-1" if "bnn" in name else "main-2-plain-1"]
        changed = [f.name for f in dataclasses.fields(made) if getattr(made, f.name) != getattr(reference, f.name)]
        setting = SETTINGS[report._parts(name)[0]]
        wanted = {option for option, value in setting.options.items() if value != SETTINGS["main"].options.get(option)}
        assert set(changed) - {"out"} == wanted | ({"steps"} if setting.steps != SETTINGS["main"].steps else set())


def test_plan_says_what_would_be_done_and_leaves_nothing(dog, tmp_path, capsys):
    changes = {"settings": ("main", "sigma-0.1"), "pictures": (1, 4), "seeds": (0, 1), "steps": 100}
    trainings.experiment(options(dog, tmp_path, **changes, plan=True))
    said = "12 of 12 runs are to be made: 1200 steps, 48 measurements of a checkpoint\n"
    assert capsys.readouterr().out == said
    assert not (tmp_path / "out").exists()

    for name, steps in {"main-1-plain-0": (0, 25, 50, 100), "main-1-bnn-0": (0, 25)}.items():  # done; interrupted
        write_rows(tmp_path / "out" / f"{name}.jsonl", [{"step": step} for step in steps])
    trainings.experiment(options(dog, tmp_path, **changes, plan=True))
    assert capsys.readouterr().out == "11 of 12 runs are to be made: 1100 steps, 42 measurements of a checkpoint\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": ["mian"]}, "--settings mian: there are main, views"),
        ({"pictures": [7]}, "--pictures 7: .* holds 6"),
        ({"images": "nowhere"}, "--images nowhere: no such folder"),
    ],
)
def test_what_cannot_be_planned_is_refused(dog, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        trainings.experiment(dataclasses.replace(options(dog, tmp_path), **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_runs_of_one_kind(dog, tmp_path):
    """Lines and sheets are told apart by the run's name and step alone."""
    (tmp_path / "out").mkdir()
    trainings.claim(options(dog, tmp_path))
    trainings.claim(options(dog, tmp_path, settings=("prior",), seeds=(7,), steps=3))  # names and steps tell these
    with pytest.raises(UserError, match="experiment.json was made with word = sks, not xyz; name another --out"):
        trainings.claim(options(dog, tmp_path, each=3, word="xyz"))
    shutil.copytree(dog, tmp_path / "others")
    next((tmp_path / "others").glob("*.png")).unlink()
    with pytest.raises(UserError, match="made with other images"):
        trainings.claim(options(tmp_path / "others", tmp_path))


def test_what_is_named_twice_is_done_once(dog, tmp_path):
    planned = trainings.planned(options(dog, tmp_path, settings=("main", "main"), seeds=(0, 0), pictures=(1,)))
    assert [it.name for it in planned] == ["main-1-plain-0", "main-1-bnn-0"]


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Two sampling steps, checkpoints at 0, 1 and the last step, σ₁ at one time, three other prompts."""
    generate = StableDiffusion.generate

    def draw(self, prompts, steps, guidance, **settings):
        return generate(self, prompts, 2, guidance, **settings)

    monkeypatch.setattr(StableDiffusion, "generate", draw)
    monkeypatch.setattr(trainings, "log_spaced", lambda last: [0, 1, last])
    monkeypatch.setattr(trainings, "SIGMA1_TIMES", (100,))
    monkeypatch.setattr(trainings, "SIGMA1_DRAWS", 2)
    monkeypatch.setattr(trainings, "TRAINING_PICTURES", 2)
    monkeypatch.setattr(trainings, "world_prompts", lambda *words: prompts.world_prompts(*words)[8:11])


def rows_of(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]


def test_an_interrupted_run_goes_on_and_measures_the_same(quick, dog, tmp_path, monkeypatch):
    views = (View(average=True), View(base=True))
    monkeypatch.setitem(SETTINGS, "sigma-0.5", dataclasses.replace(SETTINGS["main"], views=views))
    it = Run("sigma-0.5", 2, True, 3)  # with a dot in its name
    straight, stopped = (options(dog, tmp_path / name, each=1, steps=3) for name in ("straight", "stopped"))
    trainings.perform(it, straight)
    rows = rows_of(tmp_path / "straight" / "out" / f"{it.name}.jsonl")
    assert [(row["step"], row["view"], row["group"]) for row in rows] == [
        (step, view, group) for step in (0, 1, 3) for view in ("ddim-25-g3-average", "ddim-25-g3-base")
        for group in ("training", "other")
    ]
    assert {row["run"] for row in rows} == {"sigma-0.5-2-bnn-3"}

    measure = trainings.Observer.measure

    def interrupted(self, step, sd):
        if step == 3:
            raise KeyboardInterrupt
        measure(self, step, sd)

    monkeypatch.setattr(trainings.Observer, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainings.perform(it, stopped)
    path = tmp_path / "stopped" / "out" / f"{it.name}.jsonl"
    assert rows_of(path) == rows[:8]
    path.write_text(path.read_text() + '{"run": "sigma-0.5-2-b')  # and its last line is torn

    first_rows = Image.open(path.with_suffix(".png"))
    measured = []

    def noted(self, step, sd):
        measured.append(step)
        measure(self, step, sd)

    monkeypatch.setattr(trainings.Observer, "measure", noted)
    trainings.perform(it, stopped)
    assert measured == [3] and rows_of(path) == rows
    assert {p.name for p in path.parent.iterdir()} == {f"{it.name}.jsonl", f"{it.name}.png", "training"}
    assert not any((path.parent / "training").iterdir())
    sheet, whole = (Image.open(tmp_path / name / "out" / f"{it.name}.png") for name in ("stopped", "straight"))
    assert first_rows.height == 2 * 66 - 2 and sheet.tobytes() == whole.tobytes()  # rows drawn before the stop are kept
    trainings.perform(it, stopped)  # all is there
    assert measured == [3]

    for average, base, alike in ((rows[0], rows[2], True), (rows[-4], rows[-2], False)):  # alike before training
        fidelity, noise = (abs(average[name] - base[name]) for name in ("fidelity", "noise"))
        assert (fidelity < 2e-4 and noise < 2e-3) == alike


def test_runs_of_like_names_have_folders_of_their_own(quick, dog, tmp_path, monkeypatch):
    """Several at once: one run must never train on another's pictures."""
    seen = {}

    def remember(chosen, observers):
        (images,) = chosen.images
        seen[chosen.sigma, chosen.seed] = (images, sorted(p.name for p in Path(images).iterdir()))

    monkeypatch.setattr(trainings, "fine_tune", remember)
    monkeypatch.setattr(trainings, "clean", lambda *folders: None)
    for it in (Run("sigma-0.1", 1, True, 0), Run("sigma-0.1", 3, True, 1), Run("sigma-0.03", 2, True, 0)):
        trainings.perform(it, options(dog, tmp_path, steps=4))
    assert [names for _, names in seen.values()] == [["00.png"], ["00.png", "01.png", "02.png"], ["00.png", "01.png"]]
    assert len({folder for folder, _ in seen.values()}) == 3


@pytest.fixture
def watching(dog, tmp_path):
    """An observer of a model whose weights the test moves itself; sigma parameters beside, as in a BNN."""

    def make(*views):
        SETTINGS["views-of-the-test"] = dataclasses.replace(SETTINGS["main"], views=views)
        it = Run("views-of-the-test", 1, True, 0)
        sd = StableDiffusion.load("tiny", dtype=torch.float32)
        bayes.bayesianize(sd.unet, "norm", 0.01)
        observer = trainings.Observer(it, options(dog, tmp_path, each=1, steps=4))
        return observer, sd, lambda step: observer(SimpleNamespace(step=step, sd=sd))

    yield make
    SETTINGS.pop("views-of-the-test", None)


def test_the_running_mean_is_that_of_all_steps_and_then_forgets(watching, monkeypatch):
    observer, sd, look = watching(View(average=True))
    monkeypatch.setattr(trainings.Observer, "measure", lambda *_: None)
    weight = sd.unet.conv_in.weight
    values = [weight.detach().clone()]
    look(0)
    for step in range(1, 5):
        values.append(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            weight.copy_(values[-1])
        look(step)
    torch.testing.assert_close(observer.average["conv_in.weight"], torch.stack(values).mean(0), rtol=0, atol=1e-6)
    assert torch.equal(weight, values[-1])  # training is not touched
    before = observer.average["conv_in.weight"].clone()
    look(150)
    expected = 0.99 * before + 0.01 * values[-1]
    torch.testing.assert_close(observer.average["conv_in.weight"], expected, rtol=0, atol=1e-6)
    assert not any(name.endswith("_sigma") for name in observer.average)
    assert len(observer.average) == len(StableDiffusion.load("tiny").unet.state_dict())


def test_nothing_is_averaged_where_no_view_asks_for_it(watching, monkeypatch):
    """The running mean is a second UNet in memory."""
    observer, _, look = watching(View(), View(base=True))
    monkeypatch.setattr(trainings.Observer, "measure", lambda *_: None)
    look(0)
    look(1)
    assert not observer.average and observer.base is not None


def test_views_draw_with_the_mean_and_with_the_bases_prediction(watching, monkeypatch):
    observer, sd, look = watching(View(average=True), View(base=True), View("pndm", 50, 7.5))
    monkeypatch.setattr(trainings.Observer, "measure", lambda *_: None)
    look(0)
    weight = sd.unet.conv_in.weight
    start = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    look(1)
    drawn = []

    def generate(self, prompts, steps, scale, seed, sampler, eta, batch_size, progress, predictor, start):
        drawn.append((steps, scale, seed, sampler, self.unet.conv_in.weight.detach().clone(), predictor))
        return ["picture"] * len(prompts)

    monkeypatch.setattr(StableDiffusion, "generate", generate)
    sd.unet.eval()
    for view in observer.views:
        assert observer.generate(sd, view, ["a", "b"]) == ["picture"] * 2
        assert torch.equal(weight, 1.5 * start)
    assert [d[:4] for d in drawn] == [(25, 3.0, 1, "ddim"), (25, 3.0, 1, "ddim"), (50, 7.5, 1, "pndm")]
    torch.testing.assert_close(drawn[0][4], 1.25 * start)
    assert torch.equal(drawn[1][4], 1.5 * start) and drawn[0][5] is None is drawn[2][5]

    x, context = torch.randn(2, 4, 8, 8), sd.encode_prompts(["a dog", "a sks dog"])
    with torch.no_grad():
        got = drawn[1][5](x, 300, context, None, 3.0)
        t = torch.full((2,), 300)
        tiny = StableDiffusion.load("tiny", dtype=torch.float32)
        free = tiny.predict_eps(x, t, tiny.encode_prompts([""]).expand_as(context))
        torch.testing.assert_close(got, guide(free, sd.predict_eps(x, t, context), 3.0))
        own = sd.predict_eps(x, t, sd.encode_prompts([""]).expand_as(context))
        assert not torch.allclose(got, guide(own, sd.predict_eps(x, t, context), 3.0), atol=1e-3)


def test_measures_are_means_over_pictures():
    sd = StableDiffusion.load("tiny")
    training = to_tensor([world.draw(scene) for scene in world.dog_scenes()])[:2]
    dogs = [world.Scene("dog", "red", "snow", seed=1), world.Scene("dog", "red", "beach")]
    pictures = [world.draw(scene) for scene in [*dogs, world.Scene("car", "red", "snow", x=30)]]
    places = [{"background": "snow"}, {}, {"background": "beach"}]
    wanted = [(prompt, {"subject": "dog"} | place) for prompt, place in zip("aba", places, strict=True)]
    measures = WorldMeasures(sd, training)
    got, images = measures(pictures, wanted), to_tensor(pictures)
    mean, nearest = world_measures.fidelity(images, measures.seen)
    noise = world_measures.noise(images)
    assert got == {
        "fidelity": pytest.approx(mean.mean().item(), abs=1e-5),
        "nearest": pytest.approx(nearest.mean().item(), abs=1e-5),
        "noise": pytest.approx(noise.mean().item(), abs=1e-5),
        "worst_noise": pytest.approx(noise.quantile(0.9).item(), abs=1e-5),
        "immerkaer": pytest.approx(world_measures.immerkaer(images).mean().item(), abs=1e-5),
        "diversity": pytest.approx(world_measures.diversity(images[[0, 2]]), abs=1e-5),
        "subject": pytest.approx(2 / 3, abs=1e-5), "background": 0.5,
    }
    assert measures(pictures, [("a", {}), ("b", {}), ("c", {})])["diversity"] is None


def test_training_pictures_go_to_the_device_of_the_model():
    """They are loaded on the CPU, and the VAE may be elsewhere; what is measured stays on the CPU."""
    seen = []

    class Elsewhere:
        def encode(self, images):
            seen.append(images.device.type)
            return torch.zeros(len(images), 4, 8, 8), None

        def decode(self, latents):
            return torch.rand(len(latents), 3, 64, 64)

    sd = SimpleNamespace(vae=Elsewhere(), device=torch.device("meta"))
    assert WorldMeasures(sd, torch.rand(2, 3, 64, 64)).seen.shape == (2, 3, 64, 64) and seen == ["meta"]


def test_the_command_measures_a_run_in_a_process_of_its_own(dog, tmp_path):
    """It goes on with a run whose first step is there."""
    lines = tmp_path / "where-norm-1-bnn-0.jsonl"
    lines.write_text('{"step": 0, "group": "training"}\n')
    words = ["--settings", "where-norm", "--pictures", "1", "--seeds", "0", "--steps", "1", "--each", "1"]
    command = [sys.executable, "-m", "minibnn", "experiment", "corruption", *words, "--images", str(dog)]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 of 1 runs are to be made: 1 steps, 1 measurements of a checkpoint\n"
    rows = read_rows(lines)
    assert [(row["step"], row["group"]) for row in rows] == [(0, "training"), (1, "training"), (1, "other")]
    assert rows[1]["sigma1"]["t"] == list(trainings.SIGMA1_TIMES)
    assert rows[1]["subject"] > 0.5  # one step after the pretrained model it draws dogs
    assert Image.open(lines.with_suffix(".png")).size == (14 * 66 - 2, 64)


# --- the report -------------------------------------------------------------------------------------------------------

STEPS = (0, 25, 50, 100, 200, 400, 800)


def rows_for(setting, n, kind, seed, fidelity=FALLS, noise=BUMP):
    """Lines as the experiment writes them, of one run."""
    sigma1 = {"t": [20, 100], "sigma1": [0.1, 0.2 + seed], "loss": [1.0, 0.5], "explained": [0.2, 0.4], "mean": 0.3}
    rows = []
    for k, step in enumerate(STEPS[: len(fidelity)]):
        for group in ("training", "other"):
            row = {"run": f"{setting}-{n}-{kind}-{seed}", "step": step, "view": "ddim-25-g3", "group": group}
            rows.append(row | {
                "seconds": 1.0, "fidelity": fidelity[k], "nearest": 0.9, "noise": noise[k], "worst_noise": 2.0,
                "immerkaer": 0.01, "diversity": 0.3, "subject": 1.0, "background": 0.5 if group == "other" else None,
                "sigma1": sigma1,
            })
    return rows


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    for name in {row["run"] for row in rows}:
        lines = [json.dumps(row) + "\n" for row in rows if row["run"] == name]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def some_runs(setting="main", n=4, kinds=("plain", "bnn"), gain=0.1):
    """Three seeds that differ by 2 as a whole; BNN has `gain` more fidelity and 5 times `gain` less noise always."""
    rows = []
    for seed in range(3):
        for kind in kinds:
            better = gain if kind == "bnn" else 0.0
            fidelity = [v + 2 * seed + better + 0.001 * ((seed + k) % 3) for k, v in enumerate(FALLS)]
            noise = [v + 2 * seed - 5 * better + 0.001 * ((seed + 2 * k) % 3) for k, v in enumerate(BUMP)]
            rows += rows_for(setting, n, kind, seed, fidelity, noise)
    return rows


def loaded(tmp_path, rows):
    write(tmp_path / "runs", rows)
    return report.read_all([tmp_path / "runs"])


def test_bootstrap_is_that_of_scipy():
    values = np.random.default_rng(0).normal(1, [0.5, 2, 0.1], (6, 3))
    low, high = report.bootstrap(values.tolist())
    for k in range(3):
        settings = {"n_resamples": 20_000, "method": "percentile", "rng": np.random.default_rng(1)}
        wanted = stats.bootstrap((values[:, k],), np.mean, **settings)
        spread = stats.sem(values[:, k])
        assert low[k] == pytest.approx(wanted.confidence_interval.low, abs=0.25 * spread)  # 2000 resamples: ± 0.06
        assert high[k] == pytest.approx(wanted.confidence_interval.high, abs=0.25 * spread)
    assert report.bootstrap(values.tolist()) == (low, high)  # of a fixed seed


def test_tables_take_the_runs_that_are_complete(tmp_path):
    rows = some_runs() + rows_for("main", 4, "plain", 3, FALLS[:4]) + rows_for("main", 2, "plain", 0)
    rows = loaded(tmp_path, random.Random(0).sample(rows, len(rows)))  # in any order
    steps, found, values = report.table(rows, "main", 4, "plain", "ddim-25-g3", "other", "fidelity")
    assert (steps, found) == (list(STEPS), [0, 1, 2])
    assert values[1] == pytest.approx([v + 2 + 0.001 * ((1 + k) % 3) for k, v in enumerate(FALLS)], abs=1e-3)
    sigma1 = report.table(rows, "main", 4, "plain", "ddim-25-g3", "other", "sigma1")[2]
    assert sigma1 == [[0.2 + s] * 7 for s in range(3)]
    assert report.table(rows, "main", 9, "plain", "ddim-25-g3", "other", "noise") == ([], [], [])
    assert math.isnan(report.table(rows, "main", 4, "plain", "ddim-25-g3", "training", "background")[2][0][0])


def test_tables_of_runs_with_other_steps_do_not_mix(tmp_path):
    other = rows_for("main", 1, "plain", 1)
    for row in other:
        row["step"] = {800: 1000}.get(row["step"], row["step"])
    rows = loaded(tmp_path, rows_for("main", 1, "plain", 0) + other)
    steps, found, _ = report.table(rows, "main", 1, "plain", "ddim-25-g3", "other", "noise")
    assert (steps, found) == (list(STEPS), [0])


def test_curves_are_means_with_bootstrap_bands(tmp_path):
    rows = loaded(tmp_path, some_runs())
    curve = report.line(rows, "main", 4, "plain", "ddim-25-g3", "other", "noise", "plain")
    values = torch.tensor(report.table(rows, "main", 4, "plain", "ddim-25-g3", "other", "noise")[2])
    assert curve.y == pytest.approx(values.mean(0).tolist()) and curve.x == list(STEPS)
    low, high = report.bootstrap(values.tolist())
    assert curve.low == pytest.approx(low) and curve.high == pytest.approx(high)
    one = [report.shorten(row) for row in rows_for("main", 4, "bnn", 0)]
    alone = report.line(one, "main", 4, "bnn", "ddim-25-g3", "other", "noise", "BNN")
    assert alone.low is None and alone.high is None
    assert report.line(rows, "prior", 4, "plain", "ddim-25-g3", "other", "noise", "x") is None


def cells(markdown, *start):
    """The cells of the one line of a table that begins with these."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    (found,) = [line for line in lines if line[: len(start)] == list(start)]
    return found


def test_verdicts_of_the_report(tmp_path):
    rising = [row for seed in range(3) for row in rows_for("lr-5e-5", 1, "plain", seed, RISES, FLAT)]
    begun = rows_for("main", 1, "plain", 0, FALLS[:2])
    text = report.verdicts(loaded(tmp_path, some_runs() + rising + rows_for("prior", 1, "plain", 0) + begun))
    view = "ddim-25-g3"
    assert cells(text, "main", "4", "plain", view)[4:6] == ["3", "present"]
    assert cells(text, "main", "4", "plain", view)[6].startswith("step 200: +0.30")
    assert cells(text, "main", "4", "plain", view)[7] == "present"
    assert cells(text, "lr-5e-5", "1", "plain", view)[4:6] == ["3", "absent"]
    stage, fall = cells(text, "prior", "1", "plain", view)[5:7]
    assert stage == "undecided" and "(one seed)" in fall
    assert "| main | 1 |" not in text  # has two steps so far


def test_effects_are_paired_by_seed(tmp_path):
    text = report.effects(loaded(tmp_path, some_runs()))
    for step in ("200", "800"):  # the step of plain's highest noise, and the last
        fidelity, noise, place, diversity = cells(text, "main", "4", "ddim-25-g3", step)[4:]
        assert (fidelity, noise) == ("+0.100 [+0.100, +0.100]", "-0.500 [-0.500, -0.500]")
        assert (place, diversity) == ("+0.000 [+0.000, +0.000]",) * 2


def test_effects_of_settings_that_only_the_bnn_knows(tmp_path):
    """σ₀, λ and where are compared with main's plain runs, at the seeds that both have."""
    two = [row for row in some_runs("sigma-0.1", kinds=("bnn",), gain=0.2) if not row["run"].endswith("2")]
    text = report.effects(loaded(tmp_path, some_runs(kinds=("plain",)) + two))
    assert cells(text, "sigma-0.1", "4", "ddim-25-g3", "200")[4] == "+0.200 [+0.200, +0.200]"
    unlike = report.effects(loaded(tmp_path / "runs", some_runs("prior", kinds=("bnn",)) + some_runs(kinds=("plain",))))
    assert "prior" not in unlike  # which has plain runs of its own, and they are missing


def test_the_report_is_made_again_from_its_own_lines(tmp_path, capsys):
    write(tmp_path / "runs", some_runs() + some_runs(n=1, kinds=("plain",)) + some_runs("sigma-0.03", kinds=("bnn",)))
    Image.new("RGB", (20, 10), "red").save(tmp_path / "runs" / "main-4-bnn-0.png")
    first, again = tmp_path / "first", tmp_path / "again"
    report.report(ReportOptions(runs=[str(tmp_path / "runs")], out=str(first)))
    assert capsys.readouterr().out == f"{first / 'corruption.md'}: 168 lines of 12 runs\n"
    assert {p.name for p in first.iterdir()} == {
        "corruption.jsonl", "corruption.md", "corruption-main-4-ddim-25-g3.png", "corruption-main-1-ddim-25-g3.png",
        "corruption-sigma-0.03-4-ddim-25-g3.png", "corruption-pictures-ddim-25-g3.png", "corruption-main-4-bnn-0.webp",
    }
    (first / "graft.jsonl").write_text('{"reward": 1}\n')  # another experiment's
    report.report(ReportOptions(runs=[str(first)], out=str(again)))
    for name in ("corruption.jsonl", "corruption.md", "corruption-main-4-ddim-25-g3.png"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    text = (first / "corruption.md").read_text()
    assert text.count("| main | 4 |") == 2 + 2 and text.count("| sigma-0.03 | 4 |") == 1 + 2


def test_two_seeds_have_no_band(tmp_path, capsys):
    write(tmp_path / "runs", [row for row in some_runs() if not row["run"].endswith("2")])
    report.report(ReportOptions(runs=[str(tmp_path / "runs")], out=str(tmp_path / "out")))
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["corruption-pictures-ddim-25-g3.png"]


def test_the_committed_tables_are_those_of_the_committed_lines():
    results = Path(__file__).parents[1] / "tutorials" / "results"
    rows = report.read_all([results])
    assert (results / "corruption.md").read_text() == report.page(rows)


def test_a_table_without_a_meaning_for_each_column_is_refused():
    table = "| setting | noise | at guidance 3 | loss |\n|---|---|---|---|\n| a | 1 | 2 | 3 |"
    assert legends.explained(table, [None, "in percent", legends.LIKE_THE_LAST, "of what"]) == (
        f"- **noise**, **at guidance 3**: in percent\n- **loss**: of what\n\n{table}"
    )
    for columns in (3, 5):
        with pytest.raises(ValueError, match="zip"):
            legends.explained(table, ["what"] * columns)


def test_a_setting_that_is_gone_is_named(tmp_path):
    write(tmp_path, rows_for("lr-1", 4, "plain", 0))
    with pytest.raises(UserError, match="lr-1-4-plain-0.jsonl: the setting of lr-1-4-plain-0 is not in"):
        report.read_all([tmp_path])


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="--runs .*: no .jsonl of `experiment corruption` in it"):
        report.report(ReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
