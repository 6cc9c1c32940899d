"""The page of a training run: that it tells the truth about the run, shows all its pictures, and needs nothing else."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from web import CHROMIUM, Page, in_a_browser

from minibnn import runs
from minibnn.cli.report import report
from minibnn.cli.sample import which_step
from minibnn.cli.train import fine_tune
from minibnn.errors import UserError
from minibnn.files.store import read_json
from minibnn.lab import curves, monitor
from minibnn.lab.captioned import read_sheet
from minibnn.options.parsing import parse
from minibnn.options.results import RunReportOptions
from minibnn.options.training import TrainOptions
from minibnn.page.record import read_run, repeating
from minibnn.page.run import write_report

PROMPT = "<script>alert(1)</script> a sks 'dog' & friends"


@pytest.fixture(scope="module")
def run(dog, micro, tmp_path_factory):
    """A run of four steps with two looks, samples on the way, class pictures and a nasty prompt."""
    folder = tmp_path_factory.mktemp("report") / "my run"
    words = ["--images", str(dog), "--model", str(micro), "--out", str(folder), "--prompt", PROMPT, "--no-captions",
             "--class-prompt", "a photo of a dog", "--class-count", "3", "--steps", "4", "--monitor-every", "2",
             "--samples", "5", "--sample-every", "2", "--no-bayes", "--lr", "1e-4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "STEPS", 2)
        fine_tune(parse(TrainOptions, "train", words))
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def page_of(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def same(a, b):
    return np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b.convert("RGB")))


def test_a_training_leaves_its_page_complete_and_whole(run, dog):
    page = page_of(run)
    assert "photographs" not in page.said()
    assert page.needs() == [] and PROMPT in page.said("h1") and "4 of 4 steps are done" in page.said("p")
    pictures = page.pictures()
    alts = [alt for alt, _ in pictures]
    paths = sorted(dog.glob("*.png"))
    assert alts[:6] == [f"{path.name}: {PROMPT}" for path in paths]
    assert all(same(picture, Image.open(path)) for (_, picture), path in zip(pictures, paths, strict=False))
    assert alts[6:9] == ["a photo of a dog"] * 3  # of the class
    assert alts[9:14] == [PROMPT] * 4 + [f"{PROMPT} on the beach"]
    assert len([alt for alt in alts if alt.endswith(", step 2")]) == 5 + 6  # samples on the way, and a look
    assert len([alt for alt in alts if alt.endswith(", step 4")]) == 5 + 6  # once, of two files
    titles = page.said("text")
    for curve in ("loss, mean", "noise", "σ₁ of Eq. 2", "gains"):
        assert curve in titles
    assert [said.removesuffix(".") for said in page.said("p").splitlines() if said.startswith("Noise ")]
    assert (read_json(run / "config.json")["torch"] in page.said("td")) and "--no-bayes" in page.said("code")


def test_samples_and_looks_are_what_the_pages_show(run):
    """The sheets can be read back, and hold what the page shows; the first look is there before the first step."""
    groups, about = read_sheet(run / "samples.png")
    assert [group.title for group in groups] == ["training pictures", "drawn after step 4"] and about == {"step": 4}
    shown = dict(page_of(run).pictures())
    assert same(shown[f"{PROMPT} on the beach"], groups[1].pictures[4][0])
    assert sorted(path.name for path in (run / "looks").iterdir()) == ["000000.png", "000002.png", "000004.png"]
    (look,), about = read_sheet(run / "looks" / "000002.png")
    assert about == {"step": 2} and len(look.pictures) == 6 and look.title.startswith("step 2 of 4")
    assert same(shown[f"{PROMPT} in the snow, step 2"], look.pictures[4][0])


def test_the_advised_step_is_marked_in_curves_and_pictures(copy):
    advice = read_json(copy / "advice.json")
    (copy / "advice.json").write_text(json.dumps(advice | {"step": 2, "model": "faithful/000002"}))
    write_report(copy)
    page = page_of(copy)
    marks = [attributes for attributes in page.all("line") if attributes["class"] == "mark"]
    assert len(marks) == len(page.all("svg")) == 4 and len({mark["x1"] for mark in marks}) <= 2
    marked = [attributes for name, attributes, _ in page.elements if name in ("th", "td") and "class" in attributes
              and attributes["class"] == "marked"]
    assert len(marked) == 1 + 6  # the title and a picture for each prompt


def test_the_printed_command_trains_the_same(run, tmp_path, monkeypatch):
    """Every option comes back as it was settled."""
    words = shlex.split(repeating(read_run(run)))
    assert words[:4] == ["python", "-m", "minibnn", "train"]
    options, before = parse(TrainOptions, "train", words[4:]), runs.options_of(run)
    own = str(run / "class_images")
    differ = {name for name in vars(before) if getattr(options, name) != getattr(before, name)}
    assert differ <= {"class_images"} and before.class_images == own and options.class_images is None


def test_a_run_is_shown_as_far_as_it_is(copy):
    """Stopped early: no samples, a line of the log cut off, no advice; and its pictures are gone."""
    (copy / "samples.png").unlink()
    (copy / "samples-000002.png").unlink()
    (copy / "samples-000004.png").unlink()
    (copy / "advice.json").unlink()
    shutil.rmtree(copy / "looks")
    lines = (copy / "log.jsonl").read_text().splitlines()
    (copy / "log.jsonl").write_text("\n".join(lines[:2]) + '\n{"step": 3, "diff')
    config = read_json(copy / "config.json")
    config["options"]["images"] = ["gone"]
    (copy / "config.json").write_text(json.dumps(config))
    write_report(copy)
    page = page_of(copy)
    assert "2 of 4 steps are done" in page.said("p") and "gone: no such folder" in page.said("p")
    assert page.pictures() == [] and len(page.all("svg")) == 4 and page.needs() == []
    for name in ("log.jsonl", "curves.jsonl"):
        (copy / name).unlink()
    write_report(copy)
    assert "0 of 4 steps" in page_of(copy).said("p") and not page_of(copy).all("svg")


def test_pictures_that_have_changed_are_not_shown_as_those_of_the_run(copy, dog, tmp_path, caplog):
    """Bug: captions that were written after the training stood beside its pictures. Other files are said once."""
    images = Path(shutil.copytree(dog, tmp_path / "dog"))
    (images / "g.heic").touch()
    config = read_json(copy / "config.json")
    config["options"]["images"] = [str(images)]
    (copy / "config.json").write_text(json.dumps(config))
    caplog.clear()
    assert len(read_run(copy).training) and not read_run(copy).missing and not caplog.records
    first, second = sorted(images.glob("*.png"))[:2]
    shutil.copy(first, second)
    found = read_run(copy)
    assert found.training == [] and found.missing == [
        "The training pictures cannot be shown: they, or their captions, have changed since."
    ]


def test_a_picture_that_cannot_be_read_stops_no_training(micro, dog, tmp_path, monkeypatch):
    """Bug: a picture that could not be read when the page was made, as on a share that is away, ended the training."""
    words = ["--images", str(dog), "--model", str(micro), "--out", str(tmp_path / "run"), "--steps", "2", "--samples",
             "0", "--method", "lora", "--monitor", "--monitor-every", "1"]
    real = Path.read_bytes

    def read_bytes(path):
        if path.suffix == ".png" and (tmp_path / "run" / "curves.jsonl").exists():
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    fine_tune(parse(TrainOptions, "x", words))
    (told,) = [line for line in read_run(tmp_path / "run").missing if "training pictures" in line]
    assert "Permission denied" in told and (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()


def test_of_several_subjects_none_is_shown_where_one_is_gone(copy, dog, tmp_path):
    config = read_json(copy / "config.json")
    config["options"]["images"] = [str(dog), str(tmp_path / "gone")]
    (copy / "config.json").write_text(json.dumps(config))
    found = read_run(copy)
    assert found.training == [] and "gone: no such folder" in found.missing[0] and len(found.missing) == 1


def test_class_pictures_of_an_earlier_run_are_not_shown(copy, dog):
    """Bug: what runs of other classes had left in the folder stood on the page."""
    shutil.rmtree(copy / "class_images", ignore_errors=True)
    for name in ("class_images/drawn-00000.png", "class_images/a-cat/drawn-00000.png"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dog / "00.png", copy / name)
    config = read_json(copy / "config.json")
    for prompts, shown in ((["a dog"], ["a dog"]), (["a cat", "a dog"], ["a cat"]), (None, [])):
        config["options"]["class_prompt"] = prompts
        (copy / "config.json").write_text(json.dumps(config))
        assert [prompt for _, prompt in read_run(copy).of_class] == shown


def test_looks_that_a_resumed_run_has_forgotten_are_not_shown(copy):
    rows = (copy / "curves.jsonl").read_text().splitlines()
    (copy / "curves.jsonl").write_text("\n".join(rows[:2]) + "\n")
    assert [step for step, _ in read_run(copy).seen] == [0, 2]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("config.json", '{"format": "minibnn run", "options": {"lr": "fast"}}', "options.lr is 'fast'"),
    ("log.jsonl", '{"step": 1}\n', "log.jsonl, line 1: diffusion is missing"),
    ("curves.jsonl", '{"step": 0, "noise": "much"}\n', "curves.jsonl, line 1: "),
    ("advice.json", '{"step": 0}', "advice.json: "),
    ("samples.png", "no picture", "samples.png cannot be read as a picture"),
])
def test_damage_is_named(copy, name, text, message):
    (copy / name).write_text(text)
    with pytest.raises(UserError) as error:
        write_report(copy)
    assert message in str(error.value)


def test_the_command_writes_pages_and_refuses_what_it_cannot_do(copy, tmp_path, capsys):
    (copy / "report.html").unlink()
    out = tmp_path / "dog.html"
    assert report(RunReportOptions([str(copy)])) == [copy / "report.html"]
    assert report(RunReportOptions([str(copy)], str(out))) == [out]
    assert out.read_bytes() == (copy / "report.html").read_bytes()
    assert str(out) in capsys.readouterr().out
    for options, message in (
        (RunReportOptions([str(copy)], str(out)), "exists; name another file or pass --overwrite"),
        (RunReportOptions([str(copy)], str(tmp_path / "dog.png")), "the name must end with .html"),
        (RunReportOptions([str(copy)] * 2, str(out)), "--out names one file"),
        (RunReportOptions([str(tmp_path / "nowhere")]), "there is no such folder"),
        (RunReportOptions([str(tmp_path)]), "is not a training run of minibnn"),
    ):
        with pytest.raises(UserError, match=message):
            report(options)
    assert parse(RunReportOptions, "report", ["a", "b", "--out", "c.html"]).runs == ["a", "b"]


def test_a_page_that_cannot_be_made_stops_no_training(dog, micro, tmp_path, monkeypatch, caplog):
    def fail(run):
        raise UserError("no page today")

    monkeypatch.setattr("minibnn.cli.train.write_report", fail)
    words = ["--images", str(dog), "--model", str(micro), "--out", str(tmp_path / "run"), "--prior-weight", "0",
             "--steps", "1", "--samples", "0", "--method", "lora"]
    fine_tune(parse(TrainOptions, "train", words))
    assert "the page of the run is not made: no page today" in caplog.text and (tmp_path / "run" / runs.STATE).exists()


def test_photographs_on_a_bundled_model_get_a_warning_and_no_verdict(tmp_path, monkeypatch, capsys):
    """Bug of an earlier version: the monitor named a most faithful step, by measures that know drawings alone."""
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    Image.effect_noise((300, 256), 90).convert("RGB").save(photos / "1.png")
    monkeypatch.setattr(monitor, "STEPS", 2)
    words = ["--images", str(photos), "--model", "tiny-v2", "--out", str(out), "--prior-weight", "0", "--steps", "2",
             "--monitor-every", "1", "--samples", "0", "--method", "lora"]
    fine_tune(parse(TrainOptions, "train", words))
    shutil.rmtree(photos)  # what is known of them stays with the run
    write_report(out)
    texts = [text for text, around in page_of(out).texts if around in ("p", "strong")]
    assert texts[0].startswith("Pictures of this size are taken for photographs, and the bundled model knows drawings")
    said = "\n".join([*texts, capsys.readouterr().out])
    assert said.count(monitor.NOTHING_KNOWN[1:]) == 2 and "faithful" not in said and "use step" not in said
    advice = curves.advice_of(out)
    assert advice["step"] is advice["model"] is None and not (out / "faithful").exists()
    assert not [attributes for attributes in page_of(out).all("line") if attributes["class"] == "mark"]


def test_sample_says_which_step_it_opens(copy):
    """The run itself is its last step; where another one is advised, one line says so and how to open that."""
    advice = read_json(copy / "advice.json")
    (copy / "advice.json").write_text(json.dumps(advice | {"step": 4, "model": None}))
    assert which_step(str(copy)) is None and which_step("tiny") is None
    (copy / "faithful" / "000002").mkdir(exist_ok=True)
    (copy / "advice.json").write_text(json.dumps(advice | {"step": 2, "model": "faithful/000002"}))
    step = copy / "faithful" / "000002"
    assert which_step(str(copy)) == (
        f"{copy} draws as after its last step; its monitor advises step 2: --model {step}"
    )
    shutil.rmtree(step)
    assert which_step(str(copy)) is None


# --- the curves -------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_equal_parts_of_the_training():
    rows = [{"step": step, "diffusion": float(step), "prior": 0.0, "kl": 0.0, "sigma": 0.0} for step in range(1, 121)]
    (loss,) = curves.of_steps(rows)
    assert loss.lines[0].x == list(range(2, 121, 2)) and loss.lines[0].y == [step - 0.5 for step in range(2, 121, 2)]
    rows = [row | {"prior": 0.5, "kl": 2.0, "sigma": 0.01} for row in rows[:7]]
    loss, sigma, kl = curves.of_steps([row | {"sigma": 0.01 + 0.001 * (row["step"] - 1)} for row in rows])
    assert sigma.lines[0].y == pytest.approx([0, 10, 20, 30, 40, 50, 60]) and sigma.lines[0].label.endswith("0.01")
    assert [line.label for line in loss.lines] == ["on the subject", "on the class"]
    assert loss.lines[0].x == sigma.lines[0].x == kl.lines[0].x == list(range(1, 8)) and kl.lines[0].y == [2.0] * 7
    assert curves.of_steps([]) == []


def test_the_level_of_noise_is_that_from_which_it_has_risen():
    row = {"fidelity": 0.5, "noise": 0.25} | {f"sigma1 at {t}": 0.1 for t in curves.TIMES}
    for world, level in ((True, 0.75), (False, 1.25)):
        noise = curves.of_looks([{"step": 0} | row, {"step": 9} | row | {"noise": 0.75}], world, 7.5)[1]
        assert noise.level == level
    marked = curves.panels([], [{"step": 0} | row, {"step": 9} | row], True, 7.5, advised=5)
    assert [panel.mark for panel in marked] == [5] * 4
    assert [panel.mark for panel in curves.panels([], [{"step": 9} | row], True, 7.5, advised=5)] == [None] * 4


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_of_a_run(run, tmp_path):
    text = (run / "report.html").read_text(encoding="utf-8")
    (phone,), complaints = in_a_browser(text.replace("<details>", "<details open>"), [390], tmp_path)
    assert not complaints and phone["excess"] == 0
    assert len(phone["pictures"]) == len(page_of(run).pictures()) and len(phone["charts"]) == 4
    assert all(loaded and own == 64 and shown >= 100 for loaded, own, shown in phone["pictures"])
