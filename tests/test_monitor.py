"""The monitor: what it looks at and leaves, what it keeps, how it resumes, its advice; and the warm-up of the rate."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minibnn import StableDiffusion, data, runs, schedule
from minibnn.cli.settle import settle
from minibnn.cli.train import fine_tune
from minibnn.errors import UserError
from minibnn.files.store import ASSETS
from minibnn.lab import gain_law, gains, monitor, sigma1_estimate
from minibnn.lab.monitor import KEPT, Monitor
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.pictures import to_tensor
from minibnn.train import at_the_mean
from minibnn.world import measures as world_measures
from minibnn.world.captions import PLACES
from minibnn.world.classifier import reconstruct

NAMES = {"step", "fidelity", "noise", "sigma1 at 100", "sigma1 at 500", "sigma1 at 900"}
NAMES |= {f"gain {name} at {t}" for name in "cu" for t in (20, 100, 300, 600, 900)}


@pytest.fixture
def options(dog, tmp_path):
    def make(*arguments, out="run"):
        words = ["--images", str(dog), "--model", "tiny", "--out", str(tmp_path / out), "--samples", "0"]
        return parse(TrainOptions, "minibnn train", [*words, "--prior-weight", "0", *arguments])

    return make


def read(folder):
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def kept(folder):
    return sorted(path.name for path in (folder / "faithful").iterdir()) if (folder / "faithful").exists() else []


@pytest.fixture
def quick(monkeypatch):
    """Three sampling steps for each look."""
    monkeypatch.setattr(monitor, "STEPS", 3)


@pytest.fixture(scope="module")
def tiny():
    return StableDiffusion.load("tiny")


@pytest.fixture
def told(monkeypatch):
    """Let the monitor see these {step: (fidelity, noise)} instead of drawing."""

    def tell(seen):
        def look(self, sd, step):
            fidelity, noise = seen[step]
            return {"fidelity": fidelity, "noise": noise} | {f"sigma1 at {t}": 0.1 for t in monitor.TIMES}

        monkeypatch.setattr(monitor, "reconstruct", lambda sd, images: images)  # seen by nobody
        monkeypatch.setattr(Monitor, "look", look)

    return tell


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_curves_and_says_what_it_saw(quick, options, tmp_path, capsys):
    fine_tune(options("--steps", "3", "--monitor-every", "2"))
    run = tmp_path / "run"
    rows = read(run)
    assert [row["step"] for row in rows] == [0, 2, 3] and all(row.keys() == NAMES for row in rows)
    sd, pictures = StableDiffusion.load(run), data.load_pictures(data.list_pictures(options().images[0]), 64)
    watched = Monitor(options("--steps", "3", "--monitor-every", "2", "--resume"), sd, pictures)
    assert Image.open(run / "curves.png").size == (2 * 440, 900)
    assert Image.open(run / "curves.png").tobytes() == watched.chart().tobytes()  # with the last step's loss
    assert set(kept(run)) <= {"000002", "000003"} and kept(run)
    last = capsys.readouterr().out.splitlines()[-3]  # then comes how to draw with the run
    assert last.startswith("noise ") and str(run / "curves.png") in last

    # the same pictures, drawn and measured by hand with the model that the run leaves
    places = ("on the beach", "in the snow", "on a wooden floor")
    prompts = ["a photo of a sks dog"] * 3 + [f"a photo of a sks dog {place}" for place in places]
    images = to_tensor(sd.generate(prompts, 3, seed=0, batch_size=6, progress=False))
    seen = reconstruct(sd, pictures)
    assert rows[-1]["fidelity"] == pytest.approx(world_measures.fidelity(images, seen)[0].mean().item(), abs=1e-3)
    assert rows[-1]["noise"] == pytest.approx(world_measures.noise(images).mean().item(), abs=1e-2)
    predict, latents = sigma1_estimate.predictor(sd, prompts[0]), sigma1_estimate.latents_of(sd, pictures)
    found = sigma1_estimate.estimate_sigma1(predict, latents, sd.alphas_cumprod, (100, 500, 900), 2)
    assert [rows[-1][f"sigma1 at {t}"] for t in (100, 500, 900)] == pytest.approx(found.sigma1, rel=1e-3)
    measured = gains.measure(sd, latents[:2], prompts[0], draws=1)
    assert [rows[-1][f"gain u at {t}"] for t in gains.TIMES] == pytest.approx(gains.mean(measured.u), abs=1e-4)


def test_watching_does_not_change_training(quick, options, tmp_path):
    fine_tune(options("--steps", "2", "--monitor-every", "2", "--method", "lora", out="watched"))
    fine_tune(options("--steps", "2", "--no-monitor", "--method", "lora", out="alone"))
    watched, alone = (load_file(tmp_path / name / runs.STATE) for name in ("watched", "alone"))
    assert all(torch.equal(watched[name], alone[name]) for name in alone) and watched.keys() == alone.keys()
    left = {path.name for path in (tmp_path / "alone").iterdir()}
    assert not left & {"curves.jsonl", "curves.png", "faithful", "looks", "advice.json"}


@pytest.mark.parametrize(
    ("steps", "every", "looks"),
    [
        (900, None, list(range(0, 901, 150))), (10, None, [0, 2, 4, 6, 8, 10]), (3, None, [0, 1, 2, 3]),
        (7, 3, [0, 3, 6, 7]), (2, 50, [0, 2]),
    ],
)
def test_when_it_looks(options, tmp_path, told, tiny, monkeypatch, steps, every, looks):
    told(dict.fromkeys(range(steps + 1), (0.1, 0.0)))
    monkeypatch.setattr(Monitor, "keep", lambda *_: None)
    arguments = ["--steps", str(steps), *(["--monitor-every", str(every)] if every else [])]
    watch = Monitor(settle(options(*arguments), tiny, 6), tiny, torch.zeros(1, 3, 64, 64))
    watch.chart, watch.visible = lambda: Image.new("RGB", (2, 2)), 0.1
    for step in range(steps + 1):
        watch(SimpleNamespace(step=step, sd=tiny))
    assert [row["step"] for row in watch.rows] == looks


def test_measures_are_of_full_precision_whatever_the_dtype(options, tiny, monkeypatch):
    """Under bfloat16 the pictures are drawn in bfloat16; what is measured on them must not be."""
    for name in ("STEPS", "PAIRS"):  # a CPU is slow in bfloat16
        monkeypatch.setattr(monitor, name, 1)
    monkeypatch.setattr(monitor, "visible_noise", lambda sd, latents, world: 0.1)
    pictures = data.load_pictures(data.list_pictures(options().images[0])[:1], 64)
    watch = Monitor(settle(options("--dtype", "bfloat16", "--steps", "2"), tiny, 6), tiny, pictures)
    drawn, inside = [], []
    generate = StableDiffusion.generate

    def spy(self, *arguments, **settings):
        inside.append(torch.is_autocast_enabled("cpu"))
        drawn.append(generate(self, *arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(StableDiffusion, "generate", spy)
    row = watch.look(tiny, 0)
    assert inside == [True]
    images = to_tensor(drawn[0])
    assert row["noise"] == pytest.approx(world_measures.noise(images).mean().item(), abs=1e-6)
    assert row["fidelity"] == pytest.approx(world_measures.fidelity(images, watch.seen)[0].mean().item(), abs=1e-6)


# --- what it keeps ----------------------------------------------------------------------------------------------------

# {step: (fidelity, noise)}; at 3 noise has risen
COURSE = {0: (0.0, 0.1), 1: (0.5, 0.2), 2: (0.7, 0.3), 3: (0.9, 0.9), 4: (0.6, 0.5), 5: (0.4, 0.2)}


@pytest.mark.parametrize("method", ["dreambooth", "lora"])
def test_it_keeps_the_two_most_faithful_calm_steps(options, tmp_path, told, method):
    told(COURSE)
    own = ["--prompt", "a photo of a sks cat", "--method", method]
    means = {}

    @torch.no_grad()
    def eps_of(sd):
        return sd.predict_eps(torch.ones(1, 4, 8, 8), torch.tensor([300]), sd.encode_prompts(["a photo of a sks cat"]))

    def remember(training):
        with at_the_mean(training.sd):
            means[training.step] = eps_of(training.sd)

    fine_tune(options("--steps", "5", "--monitor-every", "1", "--lr", "1e-3", *own), [remember])
    run = tmp_path / "run"
    assert kept(run) == ["000002", "000004"]
    for name in kept(run):
        sd = StableDiffusion.load(run / "faithful" / name)
        assert sd.recipe["prompt"] == "a photo of a sks cat"  # the run's own, not the pretrained model's
        eps = eps_of(sd)
        distances = {step: (eps - other).abs().max().item() for step, other in means.items()}
        assert distances.pop(int(name)) < 1e-4 < min(distances.values())  # it is that step's model, and no other's


def test_resuming_goes_on_with_the_same_curves(options, tmp_path, told):
    told(COURSE)
    every = ["--monitor-every", "1", "--checkpoint-every", "3", "--method", "lora"]
    fine_tune(options("--steps", "5", *every, out="straight"))
    fine_tune(options("--steps", "3", *every, out="stopped"))
    (tmp_path / "stopped" / "faithful" / "notes.txt").write_text("mine")
    fine_tune(options("--steps", "5", "--resume", *every, out="stopped"))
    assert read(tmp_path / "stopped") == read(tmp_path / "straight")
    assert kept(tmp_path / "stopped") == [*kept(tmp_path / "straight"), "notes.txt"]


def test_looks_after_the_checkpoint_are_made_again(options, tmp_path, told):
    """Killed after step 4 with a checkpoint of step 2: what was seen at 3 and 4 is seen again, and not kept twice."""
    told(COURSE)
    lora = ["--method", "lora", "--monitor-every", "1"]
    fine_tune(options("--steps", "2", *lora))
    path = tmp_path / "run" / "curves.jsonl"
    sigmas = {f"sigma1 at {t}": 0.1 for t in monitor.TIMES}
    stale = [{"step": step, "fidelity": 9.0, "noise": 0.0} | sigmas for step in (3, 4)]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in stale))
    fine_tune(options("--steps", "5", *lora, "--resume"))
    found = {row["step"]: (row["fidelity"], row["noise"]) for row in read(tmp_path / "run")}
    assert found == COURSE and len(read(tmp_path / "run")) == len(COURSE)
    assert kept(tmp_path / "run") == ["000002", "000004"]


def test_overwriting_forgets_what_another_run_saw(options, tmp_path, told):
    told(COURSE)
    fine_tune(options("--steps", "2", "--monitor-every", "1", "--method", "lora"))
    fine_tune(options("--steps", "1", "--monitor-every", "1", "--method", "lora", "--overwrite"))
    assert [row["step"] for row in read(tmp_path / "run")] == [0, 1] and kept(tmp_path / "run") == ["000001"]


def test_what_a_killed_run_kept_is_not_lost(options, tmp_path, told):
    """Killed before its first checkpoint: the same command refuses to begin again, until it is told to overwrite."""

    class Killed(BaseException):
        pass

    def kill(training):
        if training.step == 2:
            raise Killed

    told(COURSE)
    words = ["--steps", "3", "--monitor-every", "1", "--method", "lora"]
    with pytest.raises(Killed):
        fine_tune(options(*words), [kill])
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in (run / "faithful").rglob("*") if path.is_file()}
    assert kept(run) == ["000001"] and before and not (run / runs.STATE).exists()
    with pytest.raises(UserError, match=f"^--out {run} exists: replace it with --overwrite, or name another$"):
        fine_tune(options(*words))
    assert before == {path: path.read_bytes() for path in (run / "faithful").rglob("*") if path.is_file()}
    fine_tune(options(*words, "--overwrite"))
    assert [row["step"] for row in read(run)] == [0, 1, 2, 3] and (run / runs.STATE).exists()


# --- its advice -------------------------------------------------------------------------------------------------------


def watch_of(tmp_path, rows, steps):
    """A monitor that has seen these (step, fidelity, noise), the models of all steps being there."""
    watch = Monitor.__new__(Monitor)
    watch.out, watch.world, watch.photographs = tmp_path, True, False
    watch.options = SimpleNamespace(steps=steps, null_dropout=0.0, bayes=True)
    watch.drawing, watch.visible = (schedule.alphas_cumprod(), 50, 7.5), 0.03
    watch.rows = [{"step": step, "fidelity": fidelity, "noise": noise} for step, fidelity, noise, *_ in rows]
    for row, (*_, gain) in zip(watch.rows, rows, strict=True):
        if isinstance(gain, tuple):  # c and u, the same at each time
            row |= {f"gain {name} at {t}": g for name, g in zip("cu", gain, strict=True) for t in gains.TIMES}
    for row in watch.rows:
        watch.folder(row["step"]).mkdir(parents=True, exist_ok=True)
    return watch


def test_noise_that_goes_again_is_said_to_be_gone(tmp_path):
    rows = [(0, None, 0.2), (10, 0.1, 0.9), (20, 0.2, 0.3), (30, 0.3, 1.0), (40, 0.5, 0.4), (50, 0.6, 0.3)]
    said = "noise rose at step 10, from 0.20 to 0.90, and was gone at step 40; the last step is the most faithful"
    assert watch_of(tmp_path, rows, 50).advice().startswith(said)



def test_advice_to_use_an_earlier_step(tmp_path):
    watch = watch_of(tmp_path, [(0, 0.1, 0.2), (10, 0.5, 0.3), (20, 0.8, 0.4), (30, 0.9, 1.8), (40, 0.7, 0.5)], 40)
    step_20, curves = tmp_path / "faithful" / "000020", tmp_path / "curves.png"
    said = "noise rose at step 30, from 0.20 to 1.80, and was gone at step 40; use step 20, the most faithful: --model"
    assert watch.advice() == f"{said} {step_20} ({curves})"
    assert watch.faithful() == [20, 40] and KEPT == 2


def test_a_training_that_was_too_short_is_told_so(tmp_path):
    """Bug: of a model that had learned nothing the step with the luckiest pictures was advised without a word."""
    watch = watch_of(tmp_path, [(0, -0.03, 0.2), (7, 0.04, 0.3), (14, 0.01, 0.3)], 14)
    hardly = "the subject is hardly learned (fidelity -0.03 before, 0.04 at most): try more --steps; use step 7, the "
    assert hardly in watch.advice()
    for rows in ([(0, 0.1, 0.2), (7, 0.3, 0.3)], [(0, None, 0.2), (7, None, 0.3)], [(0, 0.1, 0.2)]):
        assert watch_of(tmp_path, rows, 7).hardly_learned() is None


def test_advice_when_the_last_step_is_best(tmp_path):
    watch = watch_of(tmp_path, [(0, 0.1, 0.2), (10, 0.5, 0.3), (20, 0.6, 0.7)], 20)  # 0.7 is no rise of more than 0.5
    assert watch.advice() == (
        f"noise stayed low (0.70 at most, limit 0.70); the last step is the most faithful ({tmp_path / 'curves.png'})")


def test_nothing_is_called_faithful_where_that_was_not_measured(tmp_path):
    watch = watch_of(tmp_path, [(0, None, 0.2), (10, None, 0.3), (20, None, 1.8)], 20)
    assert "; use step 10, the latest before that: --model" in watch.advice()
    watch = watch_of(tmp_path, [(0, None, 0.2), (10, None, 0.3), (20, None, 0.4)], 20)
    assert watch.advice().startswith("noise stayed low (0.40 at most, limit 0.70); use the last step ")


def test_advice_when_every_step_is_noisy(tmp_path):
    watch = watch_of(tmp_path, [(0, 0.1, 0.2), (10, 0.5, 0.8), (20, 0.6, 0.9)], 20)
    assert watch.advice() == (
        "noise rose at step 10, from 0.20 to 0.80: at no step was it as low as before; try a smaller --lr "
        f"({tmp_path / 'curves.png'})"
    )


def test_advice_names_the_cause_and_remedies_that_fit(tmp_path):
    """Gains as they were measured in a network that fine-tuning made noisy; at step 20 they are harmless."""
    rows = [(0, 0.1, 0.2, (0.87, 0.87)), (10, 0.5, 0.3, (0.95, 0.94)), (20, 0.8, 0.4, (0.96, 0.96)),
            (30, 0.7, 1.8, (0.97, 0.985)), (40, 0.6, 2.5, (0.967, 0.994))]
    watch = watch_of(tmp_path, rows, 40)
    pictures, guidance = watch.advice().splitlines()
    assert pictures.startswith("noise rose at step 30, from 0.20 to 1.80; use step 20, the most faithful: --model ")
    guided = 7.5 * 0.967 - 6.5 * 0.994
    law = [gain_law.predicted_noise((500,), [g], schedule.alphas_cumprod(), 50) for g in (guided, 0.967)]
    assert guidance == (
        "from step 30 on guidance 7.5 leaves noise: its gain is 0.79 at t = 20, because that of the unconditional "
        f"prediction, 0.994, is above that with the prompt, 0.967; it adds {(law[0] ** 2 - law[1] ** 2) ** 0.5:.2f}, "
        "where 0.03 is seen; draw with --eta 1 or --guidance 2, or train with --null-dropout 0.1"
    )
    watch.options.null_dropout, watch.options.bayes = 0.1, False  # what was done is not advised
    assert watch.advice().endswith("draw with --eta 1 or --guidance 2")
    watch.visible = math.inf  # a decoder that hides all noise
    assert watch.advice().splitlines()[1].startswith("guidance is not the cause: guidance 7.5 adds noise to latents")


def test_advice_warns_before_the_pictures_show_it(tmp_path):
    rows = [(0, 0.1, 0.2, (0.87, 0.87)), (10, 0.5, 0.3, (0.96, 0.96)), (20, 0.8, 0.4, (0.967, 0.994))]
    assert watch_of(tmp_path, rows, 20).advice().endswith("; the pictures drawn here do not show it yet")
    assert "from step 20 on guidance 7.5 leaves noise" in watch_of(tmp_path / "b", rows, 20).advice()


def test_advice_does_not_blame_guidance_for_what_it_did_not_do(tmp_path):
    """Noise rose, but the gains say that guidance adds none: no way of drawing is advised. Without noise no word."""
    rows = [(0, 0.1, 0.2, (0.87, 0.87)), (10, 0.5, 2.3, (0.96, 0.95))]
    said = watch_of(tmp_path, rows, 10).advice()
    assert "guidance is not the cause: guidance 7.5 adds no visible noise" in said and "--eta" not in said
    rows[1] = (10, 0.5, 0.3, (0.96, 0.95))
    assert len(watch_of(tmp_path / "b", rows, 10).advice().splitlines()) == 1


def test_the_chart_marks_the_advised_step_and_has_gaps_for_looks_without_gains(tmp_path):
    rows = [(0, 0.1, 0.2), (10, 0.9, 0.3, (0.95, 0.94)), (20, 0.5, 0.3, (0.96, 0.96))]
    watch = watch_of(tmp_path, rows, 20)
    for row in watch.rows:
        row |= {f"sigma1 at {t}": 0.1 for t in monitor.TIMES}
    panels = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor.plot, "chart", lambda found, columns: panels.extend(found))
        watch.chart()
    assert [panel.mark for panel in panels] == [10] * 4
    assert [line.y for line in panels[3].lines] == [
        [None, pytest.approx(c), pytest.approx(d)] for c, d in ((0.95, 0.96), (0.94, 0.96), (1.015, 0.96))
    ]


def test_advice_names_no_model_that_is_not_there(tmp_path):
    watch = watch_of(tmp_path, [(0, 0.1, 0.2), (10, 0.9, 0.3), (20, 0.5, 0.3), (30, 0.4, 0.3)], 30)
    watch.folder(10).rmdir()  # not kept by the part of the run before --resume
    assert watch.faithful() == [20, 30] and "use step 20" in watch.advice()


def test_without_a_measure_of_fidelity_the_latest_calm_step_is_advised(tmp_path):
    watch = watch_of(tmp_path, [(0, None, 3.0), (10, None, 3.5), (20, None, 3.9), (30, None, 4.2)], 30)
    watch.world = False  # for photographs noise has risen from 1 grey level on
    assert watch.faithful() == [20, 10] and "noise rose at step 30, from 3.00 to 4.20; use step 20" in watch.advice()


# --- when it watches, and what it refuses before anything is written --------------------------------------------------


@pytest.mark.parametrize(
    ("model", "arguments", "watched"),
    [
        ("tiny", [], True), ("tiny", ["--no-monitor"], False), ("other", [], False), ("other", ["--monitor"], True),
        ("other", ["--no-monitor"], False), ("other", ["--monitor-every", "2"], True),
    ],
)
def test_it_is_on_for_the_bundled_model_and_where_asked_for(options, tiny, model, arguments, watched):
    assert settle(options("--model", model, *arguments), tiny, 6).monitor is watched


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-monitor", "--monitor-every", "2"], "--monitor-every belongs to the monitor: .* add --monitor"),
        (["--no-monitor", "--monitor-dino", "x"], "--monitor-dino belongs to the monitor: .* add --monitor"),
        (["--monitor-dino", "x"], "--monitor-dino is for photographs"),
        (
            ["--model", str(ASSETS / "tiny"), "--monitor-dino", "nowhere"],
            "--monitor-dino (needs transformers|nowhere: config.json is missing)",
        ),
    ],
)
def test_refusals_leave_no_folder(options, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        fine_tune(options("--steps", "1", *arguments))
    assert not (tmp_path / "run").exists()


# --- photographs ------------------------------------------------------------------------------------------------------


def test_photographs_without_dino(quick, options, tmp_path):
    """Any model but the bundled one: noise in grey levels, no fidelity."""
    StableDiffusion.load("tiny").save(tmp_path / "model")
    fine_tune(options("--model", str(tmp_path / "model"), "--steps", "1", "--monitor", "--method", "lora"))
    rows = read(tmp_path / "run")
    assert [row["fidelity"] for row in rows] == [None] * 2 and all(0.2 < row["noise"] < 20 for row in rows)
    assert Image.open(tmp_path / "run" / "curves.png").size == (2 * 440, 900)
    sd = StableDiffusion.load(tmp_path / "run")
    prompts = ["a photo of a sks dog"] * 3 + [f"a photo of a sks dog {place}" for place in PLACES]
    drawn = sd.generate(prompts, 3, seed=0, batch_size=6, progress=False)
    greys = np.stack([np.asarray(picture) for picture in drawn]).astype(float)
    n = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    response = sum(n[i, j] * greys[:, i : 62 + i, j : 62 + j] for i in range(3) for j in range(3))
    assert rows[-1]["noise"] == pytest.approx(math.sqrt(math.pi / 2) * np.abs(response).mean() / 6, rel=1e-2)


def test_the_bundled_model_at_another_resolution_is_watched_like_a_photograph(quick, options, tmp_path):
    """The classifier of backgrounds knows 64 × 64 pixels only."""
    fine_tune(options("--steps", "1", "--resolution", "32", "--method", "lora"))
    assert [row["fidelity"] for row in read(tmp_path / "run")] == [None, None]
    assert StableDiffusion.load(tmp_path / "run" / "faithful" / "000001").recipe["resolution"] == 32


# --- the rate's warm-up -----------------------------------------------------------------------------------------------


def rates(options):
    """The rate of each step of a training, read from its optimiser."""
    seen = []
    fine_tune(options, [lambda training: seen.append({group["lr"] for group in training.optimiser.param_groups})])
    assert all(len(rate) == 1 for rate in seen)
    return [rate.pop() for rate in seen[1:]]


def test_the_rate_rises_linearly_and_stays(options, tmp_path):
    arguments = ["--steps", "6", "--lr", "4e-4", "--no-monitor", "--method", "lora"]
    rising = [1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4]
    assert rates(options(*arguments, "--lr-warmup-steps", "4")) == pytest.approx(rising)
    assert rates(options(*arguments, out="without")) == pytest.approx([4e-4] * 6)
    states = [load_file(tmp_path / name / runs.STATE) for name in ("run", "without")]
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_warm_up_resumes_bit_for_bit(options, tmp_path):
    arguments = ["--lr-warmup-steps", "5", "--no-monitor", "--method", "lora"]
    fine_tune(options(*arguments, "--steps", "4", out="straight"))
    fine_tune(options(*arguments, "--steps", "2", out="stopped"))
    fine_tune(options(*arguments, "--steps", "4", "--resume", out="stopped"))
    straight, stopped = (load_file(tmp_path / name / runs.STATE) for name in ("straight", "stopped"))
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


def test_observers_see_every_step_and_may_draw(options):
    seen = []

    def observe(training):
        assert training.sd.unet.training
        with at_the_mean(training.sd):
            seen.append((training.step, training.sd.unet.training))

    fine_tune(options("--steps", "2", "--no-monitor", "--method", "lora"), [observe])
    assert seen == [(0, False), (1, False), (2, False)]
