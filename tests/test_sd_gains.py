"""The experiment on SD's gains: from end to end on a small random model of SD's layout; and its criterion."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from minibnn.errors import UserError
from minibnn.experiments.sd_gains import trainings, verdict
from minibnn.networks.unet import UNet
from minibnn.options.experiments import SdGainsOptions
from minibnn.options.parsing import parse
from minibnn.pipeline import StableDiffusion


def options(micro, dog, out, *words):
    fast = ["--sample-steps", "2", "--count", "2", "--steps", "32", "--lr", "1e-3"]
    return parse(SdGainsOptions, "x", ["--model", str(micro), "--images", str(dog), "--out", str(out), *fast, *words])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_seven_steps():
    assert trainings.looks(1600) == [0, 50, 100, 200, 400, 800, 1600]
    assert len(trainings.looks(32)) == 7


def test_from_end_to_end_with_an_interruption(micro, dog, tmp_path, monkeypatch, capsys):
    """Stopped in the second arm: the same command goes on, repeats nothing, and finds what it finds without a stop."""
    real, calls = trainings.Look.look, []

    def look(self, sd, step):
        calls.append((self.arm, step))
        if calls[-1] == ("bnn", 16) and calls.count(calls[-1]) == 1:
            raise KeyboardInterrupt
        return real(self, sd, step)

    monkeypatch.setattr(trainings.Look, "look", look)
    chosen = options(micro, dog, tmp_path / "out", "--arms", "bnn", "plain")
    with pytest.raises(KeyboardInterrupt, match="stopped in the arm bnn: the same command goes on"):
        trainings.experiment(chosen)
    result = trainings.experiment(chosen)
    steps = [0, 1, 2, 4, 8, 16, 32]
    assert calls == [("plain", s) for s in steps] + [("bnn", s) for s in (1, 2, 4, 8, 16, 16, 32)]
    assert trainings.experiment(chosen) == result and len(calls) == 14  # all is there

    out, rows = tmp_path / "out", {arm: rows_of(tmp_path / "out" / f"{arm}.jsonl") for arm in ("plain", "bnn")}
    assert [row["step"] for row in rows["plain"]] == [row["step"] for row in rows["bnn"]] == steps
    assert rows["plain"][0] | {"arm": "bnn"} == rows["bnn"][0] and rows["plain"][3]["c"] != rows["bnn"][3]["c"]
    assert list(rows["bnn"][-1]["drawings"]) == [
        "guidance 1, eta 0", "guidance 1, eta 1", "guidance 7.5, eta 0", "guidance 7.5, eta 1",
        "guidance 7.5, own colour", "guidance 7.5, PNDM",
    ]
    last = rows["plain"][-1]
    noise = {name: drawing["noise"] for name, drawing in last["drawings"].items()}
    assert len({noise[f"guidance 7.5, {how}"] for how in ("own colour", "PNDM", "eta 0")}) == 3
    assert last["colour c"] != last["c"] and len(last["colour u"]) == len(last["t"])
    written = json.loads((out / "sd-gains.json").read_text())
    assert written["verdict"] == result["verdict"] in capsys.readouterr().out
    assert Image.open(out / "sd-gains.png").size == (880, 600)
    sheet = Image.open(out / "sd-gains-sheet.png")
    assert sheet.width > 7 * trainings.THUMBNAIL and sheet.height > 8 * trainings.THUMBNAIL
    assert not (out / "training" / "plain").exists() and not (out / "training" / "bnn").exists()
    others = {"--seed": "seed = 0, not 1", "--dino": "dino = None, not 1", "--tokenizer": "tokenizer = None, not 1"}
    for name, was in others.items():
        with pytest.raises(UserError, match=f"was made with {was}; name another --out"):
            trainings.experiment(options(micro, dog, out, "--arms", "plain", name, "1"))


def test_null_dropout_is_an_arm_of_its_own(micro, dog, tmp_path):
    chosen = options(micro, dog, tmp_path)
    made = {arm: trainings.train_options(arm, chosen, tmp_path, tmp_path / arm) for arm in trainings.ARMS}
    assert {arm: (o.bayes, o.null_dropout, o.noise_offset) for arm, o in made.items()} == {
        "plain": (False, 0.0, 0.0), "null": (False, 0.1, 0.0), "offset": (False, 0.0, 0.1), "bnn": (True, 0.0, 0.0),
        "prior": (False, 0.0, 0.0),
    }
    assert all(o.checkpoint_every == 8 and o.overwrite for o in made.values())
    assert {arm: o.prior_weight for arm, o in made.items()} == dict.fromkeys(made, 0) | {"prior": 1}


def test_class_pictures_are_an_arm_that_may_come_later(micro, dog, tmp_path, monkeypatch):
    """Their pictures stay when the arm is stopped, and its class cannot be another afterwards."""
    monkeypatch.setitem(trainings.ARMS, "prior", trainings.ARMS["prior"] | {"class_count": 3})
    out, prior = tmp_path / "out", ("--arms", "plain", "prior", "--class-prompt", "a photo of a dog")
    trainings.experiment(options(micro, dog, out, "--arms", "plain"))
    real = trainings.Look.look
    monkeypatch.setattr(trainings.Look, "look", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainings.experiment(options(micro, dog, out, *prior))
    drawn = {path: path.stat().st_mtime_ns for path in (out / "training" / "class_images").glob("*.png")}
    assert len(drawn) == 3
    monkeypatch.setattr(trainings.Look, "look", real)
    result = trainings.experiment(options(micro, dog, out, *prior))
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    rows = {arm: rows_of(out / f"{arm}.jsonl") for arm in ("plain", "prior")}
    assert rows["plain"][0] | {"arm": "prior"} == rows["prior"][0] and rows["plain"][-1]["c"] != rows["prior"][-1]["c"]
    assert "prior" in result["verdict"] or not result["stage"]
    with pytest.raises(UserError, match="class_prompt = a photo of a dog, not a cat; name another --out"):
        trainings.experiment(options(micro, dog, out, *prior[:-1], "a cat"))


def test_the_plan_does_nothing(micro, dog, tmp_path, capsys):
    assert trainings.experiment(options(micro, dog, tmp_path / "out", "--plan")) is None
    assert "4 trainings of 32 steps; 25 checkpoints, each drawn with 20 evaluations" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_laboratorys_page_says_what_it_costs(micro, dog, tmp_path, monkeypatch):
    """At 5 training steps or 25 evaluations for one picture in a second, and counted on one checkpoint."""
    counted, forward = [], UNet.forward

    def counting(unet, x, *rest, **more):
        counted.append(len(x))
        return forward(unet, x, *rest, **more)

    monkeypatch.setattr(UNet, "forward", counting)
    usual = parse(SdGainsOptions, "x", ["--model", str(micro), "--images", str(dog), "--out", str(tmp_path)])
    trainings.Look("plain", replace(usual, sample_steps=50)).look(StableDiffusion.load(micro), 0)
    steps, looks = usual.steps * len(usual.arms), 6 * len(usual.arms) + 1
    prior = 6 * sum(counted) + 100 * trainings.ARMS["prior"]["class_count"]
    minutes = (steps / 5 + looks * sum(counted) / 25) / 60
    page = (Path(__file__).parents[1] / "docs" / "laboratory.md").read_text(encoding="utf-8")
    said = (
        f"it needs {steps:,} training steps and about {round(looks * sum(counted), -3):,} evaluations of the UNet, "
        f"{minutes:.0f} minutes at", f"{usual.steps:,} steps and {round(prior, -3):,} evaluations more"
    )
    assert all(words in " ".join(page.split()) for words in said), said


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--steps", "31"], "--steps 31: at least 32"), (["--arms", "bnn"], "--arms: plain is needed"),
     (["--count", "1"], "--count 1: at least 2"),
     (["--arms", "plain", "prior"], "--class-prompt is required for the arm prior"),
     (["--images", "nowhere"], "--images nowhere: no such folder")],
)
def test_refusals(micro, dog, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        trainings.experiment(options(micro, dog, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


# --- the criterion ----------------------------------------------------------------------------------------------------


def arm(noises, added=0.2, visible=0.05, fidelity=(None, None, None)):
    """Rows at steps 0, 50, 100 with these noises of the six drawings."""
    return [
        {"step": 50 * i, "c": [0.97], "u": [0.99], "guided": [0.84], "added noise": added, "visible noise": visible,
         "drawings": {
             name: {"noise": n, "noise between": n / 50, "predicted": n / 100, "fidelity": f}
             for name, n in zip(verdict.DRAWINGS, six, strict=True)
         }}
        for i, (six, f) in enumerate(zip(noises, fidelity, strict=True))
    ]


CLEAN, NOISY, EVERYWHERE = (2,) * 6, (2.5, 2, 12, 4, 3, 9), (11, 11, 12, 11, 11, 11)  # in the order of DRAWINGS


@pytest.mark.parametrize(
    ("noises", "settings", "stage", "mechanism", "said"),
    [
        ((CLEAN, CLEAN, NOISY), {}, True, True, "this is the paper's stage by this mechanism: at step 100 noise rose "
         "by 10.0 grey levels, guidance 1 leaves +0.5, eta 1 +2.0, and starting noise of the photograph's mean colour "
         "+1.0; with PNDM it rose by 7.0"),
        ((CLEAN, CLEAN, EVERYWHERE), {}, True, False, "not met: guidance 1 removes it; eta 1 removes it"),
        ((CLEAN, NOISY, CLEAN), {"added": 0.01}, True, False, "not met: the gains predict it: at step 50"),
        ((CLEAN, NOISY, CLEAN), {"visible": None}, True, False, "not met: the gains predict it"),
        ((CLEAN, CLEAN, CLEAN), {}, False, None, "no stage: noise at guidance 7.5 rose by 0.0 grey levels at most; "
         "u rose above c by 0.020 at most"),
        ((CLEAN, CLEAN, NOISY), {"fidelity": (0.2, 0.5, 0.7)}, False, None, "where fidelity was as high as ever"),
        ((CLEAN, CLEAN, NOISY), {"fidelity": (0.2, 0.5, 0.4)}, True, True, "this is the paper's stage"),
    ],
)
def test_the_verdict(noises, settings, stage, mechanism, said):
    found = verdict.judge({"plain": arm(noises, **settings)})
    assert (found["stage"], found["mechanism"]) == (stage, mechanism) and said in found["verdict"]
    if stage:
        assert found["colour"] == (noises[2] != EVERYWHERE)


def test_the_other_arms_stand_beside_it_and_r2_is_that_of_a_line():
    found = {"plain": arm((CLEAN, CLEAN, NOISY)), "bnn": arm((CLEAN, CLEAN, (2, 2, 3, 2, 2, 4)))}
    judged = verdict.judge(found)
    assert judged["verdict"].endswith("; bnn: +1.0, with PNDM +2.0") and judged["R2 of noise"] == pytest.approx(1.0)
    found["bnn"][0]["drawings"]["guidance 1, eta 0"]["predicted"] = 9.0
    assert verdict.explained(found, "noise between") < 0.5
    assert verdict.explained({"plain": arm((CLEAN, CLEAN, CLEAN))}, "noise") is None
