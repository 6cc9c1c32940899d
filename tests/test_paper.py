"""The command `paper`: its plan, its shares, its tables; on a small model of SD's layout, with processes that die."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import small_paper
import torch
from photo_oracle import measured_slowly
from PIL import Image
from scipy import stats
from web import CHROMIUM, Page, in_a_browser

from minibnn.errors import UserError
from minibnn.files import claims as claims_module
from minibnn.files.claims import Claims, Task, perform
from minibnn.files.configs import RECIPE
from minibnn.files.failures import Failures
from minibnn.options.experiments import PaperOptions
from minibnn.options.parsing import parse
from minibnn.paper import command, dataset, deviations, kept, report, tables
from minibnn.paper import perform as perform_module
from minibnn.paper.dataset import SUBJECTS, Subject
from minibnn.paper.plan import ITEMS, Cell, Run, Study, plan, trainings
from minibnn.paper.statements import judge, statements
from minibnn.photo import measures as photo

ROOT = Path(__file__).parents[1]

# --- the data set -----------------------------------------------------------------------------------------------------


def test_the_data_set_has_30_subjects_of_15_classes():
    assert len(SUBJECTS) == 30 and len(set(SUBJECTS.values())) == 15
    assert sum(kind in dataset.LIVE for kind in SUBJECTS.values()) == 9
    assert (SUBJECTS["wolf_plushie"], SUBJECTS["rc_car"], SUBJECTS["dog8"]) == ("stuffed animal", "toy", "dog")


def test_prompts_of_both_sources():
    """Things are asked for in other places by the authors; cats and dogs are not; [V] has another word."""
    for kind, differ in (("teapot", 10), ("dog", 0), ("person", 0)):
        paper, authors = (dataset.prompts(source, kind) for source in ("paper", "authors"))
        assert len(set(paper)) == len(set(authors)) == 25
        alike = [words.replace("qwe", "sks") for words in authors]
        assert len(set(paper) - set(alike)) == differ
    assert "a qwe teapot floating in an ocean of milk" in dataset.prompts("authors", "teapot")
    assert "a sks teapot in a police outfit" in dataset.prompts("paper", "teapot")
    assert dataset.captions("paper", "dog") == ("a photo of a sks dog", "a photo of a dog")
    assert dataset.captions("authors", "dog") == ("a photo of qwe dog", "a photo of dog")


def test_folders_are_found_as_people_have_them(tmp_path):
    for name, count in (("dog6", 3), ("teapot", 2), ("rex", 1), ("references", 0)):
        (tmp_path / "dataset" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "dataset" / name / f"{i}.png")
    both = [Subject("dreambooth", "dog6", "dog", 3), Subject("dreambooth", "teapot", "teapot", 2)]
    assert dataset.find_subjects(tmp_path) == dataset.find_subjects(tmp_path / "dataset") == both
    assert dataset.find_subjects(tmp_path, ["rex=dog"]) == [Subject("dreambooth", "rex", "dog", 1)]
    for chosen, words in ((["rex"], "--classes rex is not a sub"), (["vase"], "--classes vase: there is no folder")):
        with pytest.raises(UserError, match=words):
            dataset.find_subjects(tmp_path, chosen)
    with pytest.raises(UserError, match="no subject of the DreamBooth data set in it"):
        dataset.find_subjects(tmp_path / "dataset" / "dog6")


# --- the plan ---------------------------------------------------------------------------------------------------------

FIVE = (0, 1, 2, 3, 4)
WHOLE = Study(
    RECIPE, "paper", ("main", "v14", "v20"), tuple(Subject("dreambooth", n, k, 5) for n, k in sorted(SUBJECTS.items())),
    tuple(Subject("celeba", f"p{i:02d}", "person", 15) for i in range(30)), FIVE, ITEMS, (0.003, 0.01, 0.1), (0.0, 0.1),
)


def runs_of(*items, **changes):
    return trainings(plan(replace(WHOLE, items=items, **changes)))


def test_the_runs_are_those_of_the_paper():
    """30 classes × 5 seeds × 6 methods on each data set; steps as App. H.1 and H.2 say."""
    table1 = runs_of("table1")
    assert len(table1) == 2 * 30 * 5 * 6
    steps = {(run.subject.data, run.method): {*measured} for run, measured in table1.items()}
    assert steps == {
        ("dreambooth", "dreambooth"): {200 * 5}, ("dreambooth", "lora"): {400 * 5}, ("dreambooth", "oft"): {200 * 5},
        ("celeba", "dreambooth"): {250 * 5}, ("celeba", "lora"): {400 * 5}, ("celeba", "oft"): {250 * 5},
    }
    table2 = runs_of("table2")
    assert len(table2) == 3 * 2 * 150
    assert {(run.model, run.bayes, run.lambda_kl, steps[-1]) for run, steps in table2.items()} == {
        ("main", False, 0.0, 1000), ("main", True, 0.0, 1000), ("v14", False, 0.0, 1000), ("v14", True, 0.1, 1000),
        ("v20", False, 0.0, 2000), ("v20", True, 0.0, 2000),
    }
    assert len(runs_of("table3")) == 6 * 150
    assert len(runs_of("fig8")) == 5 * 5 * 2 * 5 and max(run.pictures for run in runs_of("fig8")) == 15


@pytest.mark.parametrize("n", [4, 5, 6])
def test_checkpoints_lie_at_exact_multiples_of_the_number_of_pictures(n):
    subjects = (Subject("dreambooth", "dog6", "dog", n),)
    for run, steps in runs_of("fig7", subjects=subjects).items():
        assert steps == [100 * n, 150 * n, 200 * n, 300 * n, 400 * n] and run.pictures == n
    found = runs_of("fig2", subjects=subjects)
    assert {run.pictures for run in found} == set(range(1, n + 1)) and not any(run.bayes for run in found)
    assert all(steps == [s * run.pictures for s in (0, 25, 50, 100, 200, 400, 800)] for run, steps in found.items())


def test_a_training_serves_every_place_that_it_can():
    alone = runs_of("table1")
    assert len(runs_of("table1", "fig7", "fig13")) == len(alone)
    assert len(runs_of("table1", "table3")) == len(alone) + 4 * 150
    more = runs_of("table1", "table2", "table3", "fig7", "fig9", "fig13", models=("main",))
    # four ways of where; λ of the twin of v1.4, which is that of Fig. 9; two σ₀ besides 0.01
    assert len(more) == len(alone) + (4 + 1 + 2) * 150
    names = [run.name for run in runs_of(*ITEMS)]
    assert len(names) == len(set(names)) and all(name == name.strip() and "/" not in name for name in names)


def test_the_plan_is_pure_and_stable():
    assert plan(WHOLE) == plan(replace(WHOLE))
    subject = Subject("dreambooth", "dog6", "dog", 5)
    assert Run(subject, 5, 3).name == "dreambooth-dog6-5p-dreambooth-plain-s3"
    special = Run(subject, 5, 0, bayes=True, model="v14", where="up", sigma=0.1, lambda_kl=0.1)
    assert special.name == "dreambooth-dog6-5p-dreambooth-bnn-v14-up-sigma0.1-lambda0.1-s0"


# --- shares -----------------------------------------------------------------------------------------------------------


def test_the_place_of_a_process():
    assert command.place({}) == (0, 1, 0)
    assert command.place({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (5, 8, 1)
    assert command.place({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"}) == (3, 4, 3)
    array = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "3",
             "SLURM_ARRAY_TASK_STEP": "2"}
    assert command.place(array) == (2, 3, 0)
    assert command.place(array | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == (5, 6, 0)


def in_a_child(function):
    """Call a function in a fork of this process; returns the child's number. It never comes back."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(0)
    return child


def wait_for(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_claim_is_taken_once_and_given_back(tmp_path):
    claims, others = Claims(tmp_path), Claims(tmp_path)
    with claims.take("a") as claim:
        assert claim.path.name == "a.1" and others.take("a") is None and others.take("b") is not None
        assert others.holder("a").startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.glob("a.*")) and others.holder("a") is None
    with pytest.raises(ValueError, match="x"), others.take("a"):
        raise ValueError("x")
    assert claims.take("a") is not None


def test_the_claim_of_a_dead_process_is_taken_over_by_one_alone(tmp_path):
    def hold():
        with Claims(tmp_path).take("a"):
            time.sleep(60)

    child, claims = in_a_child(hold), Claims(tmp_path)
    wait_for(lambda: (claims.holder("a") or "").startswith(f"process {child} "))
    assert claims.take("a") is None
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: claims.holder("a") is None)  # the child is not waited for: bug: it counts as alive for that
    taken = claims.take("a")
    assert taken.path.name == "a.2" and claims.take("a") is None and Claims(tmp_path).take("a") is None
    with taken:
        pass
    assert not list(tmp_path.glob("a.*"))
    os.waitpid(child, 0)


def test_of_another_machine_only_the_touch_is_seen(tmp_path):
    claims = Claims(tmp_path, patience=100)
    (tmp_path / "a.1").write_text(json.dumps({"process": 1, "where": "elsewhere 4026531836"}))
    assert claims.take("a") is None and claims.holder("a") == "process 1 on elsewhere"
    long_ago = time.time() - 101
    os.utime(tmp_path / "a.1", (long_ago, long_ago))
    assert claims.holder("a") is None and claims.take("a").path.name == "a.2"
    (tmp_path / "b.1").write_text('{"proc')  # just begun
    assert claims.take("b") is None
    killed = time.time() - 11  # before it had written who it is
    os.utime(tmp_path / "b.1", (killed, killed))
    assert claims.take("b").path.name == "b.2"


def test_machines_of_one_name_are_told_apart(tmp_path, monkeypatch):
    """A process of another machine called localhost is not taken for a dead one of this."""
    claims = Claims(tmp_path)
    with claims.take("a"):
        machine, boot, space = claims_module.here().split()
        monkeypatch.setattr(claims_module, "here", lambda: f"{machine} {boot[::-1]} {space}")
        monkeypatch.setattr(claims_module, "lives", lambda process: False)
        assert claims.take("a") is None
        monkeypatch.undo()


def test_a_claim_that_is_just_being_given_back_is_looked_at_again(tmp_path, monkeypatch):
    """Who has seen it in a listing must not claim the work beside one who lists after it is gone."""
    claims = Claims(tmp_path)
    monkeypatch.setattr(claims, "_last", lambda name: 1)
    assert claims.take("a") is None and not list(tmp_path.glob("a.*"))
    (tmp_path / "b.1").write_text("{}")
    os.utime(tmp_path / "b.1", (time.time() - 11,) * 2)

    def gone(path, encoding):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", gone)  # after its age was asked for
    assert claims.take("b") is None and claims.holder("b") is None


def test_a_living_claim_is_touched(tmp_path):
    with Claims(tmp_path, patience=0.2).take("a") as claim:
        os.utime(claim.path, (0, 0))
        end = time.monotonic() + 30
        while claim.path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_tasks_are_done_once_by_many_and_after_what_they_need(tmp_path):
    """Six processes, of which three are killed while they work: every task is done, none begins before its needs."""
    names = [f"t{i}" for i in range(12)]
    work = tmp_path / "work"
    work.mkdir()

    def tasks():
        def do(name, i):
            assert i < 4 or (work / names[i % 4]).exists()
            with open(work / "begun", "a") as file:
                file.write(f"{name}\n")
            time.sleep(0.05)
            (work / name).touch()

        return [Task(name, lambda name=name, i=i: do(name, i), (work / name).exists, (names[i % 4],) if i > 3 else ())
                for i, name in enumerate(names)]

    children = [
        in_a_child(lambda rank=rank: perform(tasks(), Claims(tmp_path / "c"), 2 * rank, lambda _: None, 0.01))
        for rank in range(6)
    ]
    for child in children[:3]:
        time.sleep(0.06)
        os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes[3:] == [0, 0, 0] and all((work / name).exists() for name in names)
    begun = (work / "begun").read_text().split()
    assert set(begun) == set(names) and len(begun) <= len(names) + 3  # at most what the dead had begun is begun twice


def one_that_fails(tmp_path, done, whole=("a", "b", "c")):
    """Tasks of which "b" and what needs it, "d", fail; `done` is the list of what was begun."""
    def do(name):
        done.append(name)
        if name == "b" and not (tmp_path / "mended").exists():
            raise ValueError("the picture\nis broken")
        (tmp_path / name).touch()

    return [Task(name, lambda name=name: do(name), (tmp_path / name).exists, ("b",) if name == "d" else ())
            for name in (*whole, "d")]


def test_what_fails_is_left_out_and_tried_again_by_the_next_command(tmp_path):
    """The others go on; each process tries it once, all together twice; what needs it is left out with it."""
    claims, done, said = Claims(tmp_path / "claims"), [], []
    tasks = one_that_fails(tmp_path, done)
    here, there, third = (Failures(tmp_path / "failed") for _ in range(3))
    assert perform(tasks, claims, told=said.append, poll=0.01, failures=here) == ["b", "d"]
    assert done == ["a", "b", "c"] and "b failed, and is left out: ValueError: the picture is broken" in said
    for beside in (there, third):  # they began before it failed; by then it has failed twice
        perform(tasks, claims, told=said.append, poll=0.01, failures=beside)
    assert done == ["a", "b", "c", "b"]
    noted = Failures(tmp_path / "failed").noted()
    assert noted["b"]["tries"] == 2 and "raise ValueError" in noted["b"]["traceback"] and list(noted) == ["b"]
    (tmp_path / "mended").touch()
    assert perform(tasks, claims, told=said.append, poll=0.01, failures=Failures(tmp_path / "failed")) == []
    assert done[4:] == ["b", "d"] and not Failures(tmp_path / "failed").noted()
    with pytest.raises(ValueError, match="broken"):
        (tmp_path / "mended").unlink()
        (tmp_path / "b").unlink()
        perform(tasks, claims, told=said.append)
    assert not list((tmp_path / "claims").iterdir())


def test_a_process_in_which_everything_fails_ends(tmp_path):
    """A machine whose GPU is broken must not go through the whole list."""
    begun = []

    def fail(name):
        begun.append(name)
        raise RuntimeError("CUDA error")

    tasks = [Task(name, lambda name=name: fail(name), lambda: False) for name in "abcdef"]
    with pytest.raises(UserError, match="3 runs failed one after the other, the last, c, with: RuntimeError: CUDA"):
        perform(tasks, Claims(tmp_path / "claims"), told=begun.append, failures=Failures(tmp_path / "failed"))
    assert [name for name in begun if len(name) == 1] == ["a", "b", "c"]


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_paper.make(tmp_path_factory.mktemp("paper"), ("dog6", "teapot"), people=1)


@pytest.fixture(scope="module")
def quickly():
    """Three prompts, and Lpips on small pictures, here and in forks of this process."""
    before = dataset.prompts, photo.LPIPS_SIDE
    dataset.prompts, photo.LPIPS_SIDE = lambda source, kind: before[0](source, kind)[:6:2], 64
    yield
    dataset.prompts, photo.LPIPS_SIDE = before


ALL = ("--only", "table1", "fig9", "fig13", "--seeds", "0", "1", "--sigmas", "0.01", "0.1", "--lambdas", "0",
       "--classes", "dog6")


@pytest.fixture(scope="module")
def whole(made, quickly):
    """The tables of one process that nobody disturbed, and its bench."""
    options = parse(PaperOptions, "x", small_paper.words(made, *ALL))
    command.paper(options)
    return command.open_bench(options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())
            if path.name not in ("costs.json",)}


def test_four_processes_two_of_them_killed_make_the_same_tables(made, whole, tmp_path):
    """To the last digit: whoever was killed, and whenever, its runs are done again by others and none is lost."""
    out = tmp_path / "out"
    words = ["paper", *small_paper.words(made, *ALL), "--out", out]

    def as_process(rank):
        def before():
            os.environ.update({"SLURM_PROCID": str(rank), "SLURM_NTASKS": "4"})

        return before

    processes = [forked.start(words, cwd=tmp_path, before=as_process(rank)) for rank in range(4)]
    rng = random.Random(time.time_ns())
    for killed in rng.sample(processes, 2):
        count = len(list(out.glob("runs/*/*/measures.json")))
        end = time.monotonic() + 300
        while len(list(out.glob("runs/*/*/measures.json"))) == count and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(rng.random())
        killed.send(signal.SIGKILL)
    ends = [process.wait(900) for process in processes]
    assert sorted(code for code, _, _ in ends) in ([-9, -9, 0, 0], [-9, 0, 0, 0]), ends
    assert contents(out / "tables") == contents(whole.out / "tables")
    folders = out / "runs", whole.out / "runs"
    assert len({frozenset(path.relative_to(folder) for path in folder.rglob("*.png")) for folder in folders}) == 1


def test_every_number_follows_from_the_pictures_on_the_disk(whole):
    """Each place of Table 1, again from the PNG files with the photo measures one picture at a time, and numpy."""
    networks = photo.load_networks({name: whole.options.networks + "/" + name for name in photo.LOADERS}, "cpu")
    lines = json.loads((whole.out / "tables" / "table1.json").read_text())["rows"]
    assert len(lines) == 6 * 5 and all(line["runs"] == line["of"] for line in lines)
    cells = [cell for cell in plan(whole.study) if cell.item == "table1"]
    for row, column in (("DreamBooth", "DreamBooth data set"), ("OFT + BNN", "DreamBooth data set")):
        of_seed = {}
        for cell in (cell for cell in cells if (cell.row, cell.column) == (row, column)):
            folder = whole.out / "runs" / cell.run.name / f"{cell.steps:06d}"
            assert len(list(folder.glob("??-?.png"))) == 6
            training = [Image.open(path).convert("RGB") for path in perform_module.images_of(whole, cell.run)]
            of_seed.setdefault(cell.run.seed, []).append(measured_slowly(folder, training, networks))
        means = {seed: np.mean(values, axis=0) for seed, values in of_seed.items()}
        found = [line for line in lines if (line["row"], line["column"]) == (row, column)]
        assert [line["measure"] for line in found] == ["Clip-T", "Clip-I", "Dino", "Lpips", "Clip-IQA"]
        np.testing.assert_allclose([line["mean"] for line in found], np.mean(list(means.values()), axis=0), atol=2e-6)
        np.testing.assert_allclose([line["deviation"] for line in found], np.std(list(means.values()), axis=0, ddof=1),
                                   atol=2e-6)


def test_the_page_on_the_paper_has_the_table_of_differences():
    assert deviations.markdown() in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_the_report_says_it_all(whole):
    text = (whole.out / "report.md").read_text()
    for words in ("Table 1: methods", "| LoRA + BNN | DreamBooth data set |", "with − without", "Figure 13: the worst",
                  "figures/fig13-worst.png", "BNNs improve image fidelity with every method", deviations.markdown()):
        assert words in text, words
    for name in ("fig9.png", "fig13-worst.png", "table1-best.png", "table1-average.png"):
        assert Image.open(whole.out / "figures" / name).width > 100
    page = Page((whole.out / "report.html").read_text())
    assert page.needs() == [] and "OFT + BNN" in page.said() and "exclude 0" in page.said()
    alts = [alt for alt, _ in page.pictures()]
    assert "OFT + BNN, dog6" in alts and "DreamBooth, dog6" in alts


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_page_opens_in_a_browser_and_fits_a_phone(whole, tmp_path):
    found, complaints = in_a_browser((whole.out / "report.html").read_text(), [390, 1280], tmp_path)
    assert not complaints and all(measured["excess"] == 0 and len(measured["charts"]) == 6 for measured in found)
    assert all(loaded and own > 0 and shown > 50 for measured in found for loaded, own, shown in measured["pictures"])


def test_what_is_done_is_not_done_again_and_what_is_damaged_is_told(whole, monkeypatch, capsys):
    monkeypatch.setattr(command, "perform_run", None)
    command.paper(whole.options)
    assert "0 of 14 runs to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="paper.json was made with each = 2, not 3; name another --out"):
        command.paper(replace(whole.options, each=3))
    path = next(whole.out.glob("runs/*-lora-bnn-s1/*/measures.json"))
    text = path.read_text()
    held = json.loads(text)
    held["values"]["Dino"].pop()
    path.write_text(json.dumps(held))
    try:
        with pytest.raises(UserError, match="Dino has 5 values for 6 pictures; delete its folder"):
            report.report(whole, plan(whole.study))
    finally:
        path.write_text(text)


def test_a_run_that_fails_stops_no_other_and_is_named(whole, tmp_path, monkeypatch, capsys):
    """In the report, with its reason; the command ends with an error, and when it is given again all is well."""
    shutil.copytree(whole.out, tmp_path / "out")
    for name in ("dreambooth-dog6-2p-lora-plain-s0", "dreambooth-dog6-2p-oft-plain-s1"):
        shutil.rmtree(tmp_path / "out" / "runs" / name)
    options = replace(whole.options, out=str(tmp_path / "out"))
    draw = perform_module.Observer.draw

    def broken(self, sd, step):
        if self.run.method == "lora":
            raise RuntimeError("out of luck <b>")
        draw(self, sd, step)

    monkeypatch.setattr(perform_module.Observer, "draw", broken)
    with pytest.raises(UserError, match="1 of 15 failed, dreambooth-dog6-2p-lora-plain-s0 first: .* tries them again"):
        command.paper(options)
    table = json.loads((tmp_path / "out" / "tables" / "table1.json").read_text())
    assert table["failed"] == {"dreambooth-dog6-2p-lora-plain-s0": "RuntimeError: out of luck <b>"}
    assert [(line["runs"], line["of"]) for line in table["rows"] if line["row"] == "LoRA"] == [(1, 2)] * 5
    assert "lora-plain-s0 (RuntimeError: out of luck <b>)" in (tmp_path / "out" / "report.md").read_text()
    assert "out of luck <b>" in Page((tmp_path / "out" / "report.html").read_text()).said()
    monkeypatch.undo()
    capsys.readouterr()
    command.paper(options)
    assert "1 of 14 runs to do" in capsys.readouterr().out
    assert contents(tmp_path / "out" / "tables") == contents(whole.out / "tables")


def test_a_run_that_diverged_is_not_counted_as_work(whole, tmp_path):
    shutil.copytree(whole.out, tmp_path / "out")
    bench = command.open_bench(replace(whole.options, out=str(tmp_path / "out")))
    run = next(run for run in trainings(plan(bench.study)) if run.method == "oft")
    shutil.rmtree(kept.folder_of(bench, run))
    assert command.estimate.work(bench, trainings(plan(bench.study))).runs == 1
    kept.folder_of(bench, run).mkdir()
    (kept.folder_of(bench, run) / "diverged.json").write_text("{}")
    left = command.estimate.work(bench, trainings(plan(bench.study)))
    assert (left.runs, left.steps, left.pictures) == (0, 0, 0)


def test_a_run_that_diverges_has_no_costs(whole, tmp_path, monkeypatch):
    """Bug of an earlier version: its steps took 0.0 seconds, which Table 3 averaged with those of the others."""
    bench = command.open_bench(replace(whole.options, out=str(tmp_path / "out")))
    run, steps = next((run, steps) for run, steps in trainings(plan(bench.study)).items() if run.method == "lora")
    broken = lambda pictures, wanted: {"Dino": [math.nan] * len(pictures)}  # noqa: E731
    monkeypatch.setattr(perform_module, "judge_of", lambda *given: broken)
    perform_module.perform(bench, run, steps)
    why = json.loads((kept.folder_of(bench, run) / "diverged.json").read_text())["why"]
    assert "have no measures" in why and not (tmp_path / "out" / "costs").exists()
    assert (whole.out / "costs" / f"{run.name}.json").exists()


def test_what_a_single_file_needs_is_not_forced_on_folders(made, monkeypatch):
    """--tokenizer and --prediction-type are of single files; the latter of v2.0's, where there is one."""
    asked = []
    load = lambda path, *more: asked.append((Path(path).name, *more))  # noqa: E731
    monkeypatch.setattr(perform_module.StableDiffusion, "load", load)
    files = [made / name for name in ("v15.safetensors", "v20.safetensors")]
    for path in files:
        path.touch()
    words = small_paper.words(made, "--tokenizer", "tok", "--prediction-type", "v_prediction")
    for more in (("--model", str(files[0])), ("--model", str(files[0]), "--model-v20", str(files[1])), ()):
        bench = command.open_bench(parse(PaperOptions, "x", [*words, *more]))
        for name in bench.paths:
            perform_module.open_model(bench, name)
    f32 = torch.float32
    assert asked == [
        ("v15.safetensors", "tok", f32, "v_prediction"),
        ("v15.safetensors", "tok", f32, None), ("v20.safetensors", "tok", f32, "v_prediction"),
        ("sd-v1", None, f32, None),
    ]


def test_people_have_their_own_folder_and_prompts(made):
    """Those of --celeba, five pictures at most, a quarter more steps, no prompt of an object."""
    bench = command.open_bench(parse(PaperOptions, "x", small_paper.words(made, "--celeba", str(made / "celeba"))))
    runs = {cell.run: cell for cell in plan(bench.study) if cell.column == "CelebA"}
    assert len(runs) == 6 * 5
    run = next(run for run in runs if run.method == "dreambooth")
    assert perform_module.images_of(bench, run)[0].parent == made / "celeba" / "p0" and run.pictures == 2
    words = [words for words, _ in perform_module.wanted_of(bench, run.subject)]
    assert words[:2] == ["a photo of a sks person wearing sunglasses"] * 2 and words[2] != words[0]
    asked = perform_module.train_options(bench, run, 3)
    assert (asked.prompt, asked.class_prompt) == (["a photo of a sks person"], ["a photo of a person"])
    assert asked.class_images.endswith("class_images/main-person")


def test_the_authors_scripts_are_followed_where_they_differ(made):
    """Prior preservation for all, 200 class pictures at most, their words, layers without time."""
    class_count, has_prior = perform_module.class_count, perform_module.has_prior
    train_options = perform_module.train_options
    for source, prior, where in (("paper", False, "paper,time,projections"), ("authors", True, "paper,projections")):
        options = parse(PaperOptions, "x", small_paper.words(made, "--as", source))
        bench = command.open_bench(options)
        subject = bench.study.subjects[0]
        lora, bnn = Run(subject, 2, 0, "lora"), Run(subject, 2, 0, bayes=True)
        assert has_prior(bench, lora) == prior and has_prior(bench, bnn)
        assert (train_options(bench, lora, 3).prior_weight, train_options(bench, bnn, 3).where) == (float(prior), where)
        assert class_count(bench, bnn) == (12 if prior else 4)
        assert bench.dtype == "float32" and train_options(bench, lora, 3).where is None
        oft = [train_options(bench, Run(subject, 2, 0, "oft", bayes), 3).where for bayes in (False, True)]
        assert oft == [None, None if source == "paper" else "up"]
        assert (train_options(bench, bnn, 3).prior_target, train_options(bench, bnn, 3).ema) == ("noise", 0.0)
    bench.study.recipe["class_pictures_per_picture"] = 200
    assert class_count(bench, bnn) == 200


@pytest.mark.parametrize(("each", "pictures"), [("2", 12), ("3", 18)])
def test_the_plan_is_told_with_hours_and_leaves_nothing(made, quickly, tmp_path, capsys, each, pictures):
    """Bug of an earlier version: the trial with --each 3 drew a prompt once, which has no diversity then."""
    options = parse(PaperOptions, "x", small_paper.words(made, "--only", "fig13", "--seeds", "0", "--plan", "--each",
                                                         each, "--classes", "dog6", "--out", str(tmp_path / "out")))
    command.paper(options)
    said = capsys.readouterr().out
    assert "fig13: 2 runs, 4 steps" in said
    assert f"2 of 2 runs to do: 4 steps, {pictures} pictures to draw and measure, 4 class pictures; about 0.0" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "no model at nowhere"), (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--networks", "nowhere"], "--clip nowhere/clip: config.json is missing"),
        (["--each", "1"], "--each 1: diversity compares"), (["--classes", "rex"], "--classes rex is not a subject"),
        (["--celeba", "nowhere"], "--celeba nowhere: no such folder"),
        (["--only", "table2"], "--model-v14 or --model-v20 is required"),
        (["--model", "tiny", "--model-v14", "tiny"], "--model tiny has no other models"),
        (["--model", "tiny-v2", "--celeba", "nowhere"], "--model tiny-v2 has no other models"),
        (["--model-v20", "nowhere"], "no model at nowhere"), (["--model-v20", "EMPTY"], "no model in .*empty: a diff"),
        (["--data", "EMPTY", "--classes", "torn=dog"], "torn/1.png: broken, or not a picture"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(made, tmp_path, words, message):
    """By --plan too, which may be all that is asked for."""
    (tmp_path / "empty" / "torn").mkdir(parents=True)
    (tmp_path / "empty" / "torn" / "1.png").write_bytes(b"no picture")
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in words]
    for more in ((), ("--plan",)):
        given = small_paper.words(made, "--out", str(tmp_path / "out"), *words, *more)
        with pytest.raises(UserError, match=message):
            command.paper(parse(PaperOptions, "x", given))
    assert not (tmp_path / "out").exists()


# --- tables -----------------------------------------------------------------------------------------------------------


def fabricated(shift, subjects=3, seeds=4):
    """Cells of Table 1's DreamBooth rows with values of one measure: those with BNN are higher by `shift` and noise."""
    rng = np.random.default_rng(0)
    found = []
    for i, seed, bayes in itertools.product(range(subjects), range(seeds), (False, True)):
        run = Run(Subject("dreambooth", f"s{i}", "dog", 5), 5, seed, bayes=bayes)
        value = i + 0.1 * seed + bayes * shift + 0.01 * rng.normal()
        found.append((Cell("table1", "DreamBooth" + " + BNN" * bayes, "x", run, 1000), {"Dino": value}, None))
    return found


def test_means_deviations_and_intervals_are_those_of_numpy_and_scipy():
    found = fabricated(0.5)
    grid = np.array([values["Dino"] for _, values, _ in found]).reshape(3, 4, 2)
    for line, k in zip(tables.rows_of("table1", found), (0, 1), strict=True):
        of_seeds = grid[:, :, k].mean(0)
        assert line["mean"] == pytest.approx(of_seeds.mean(), rel=1e-12)
        assert line["deviation"] == pytest.approx(of_seeds.std(ddof=1), rel=1e-12)
        assert (line["runs"], line["of"]) == (12, 12)
    (line,) = tables.differences("table1", found)
    of_subjects = (grid[:, :, 1] - grid[:, :, 0]).mean(1)
    test = stats.ttest_1samp(of_subjects, 0).confidence_interval(0.95)
    assert (line["difference"], line["low"], line["high"]) == pytest.approx((of_subjects.mean(), *test), rel=1e-9)
    assert line["over"] == "3 subjects"
    (line,) = tables.differences("table1", fabricated(0.5, subjects=1))
    assert line["over"] == "4 seeds" and line["low"] < line["difference"] < line["high"]
    (line,) = tables.differences("table1", fabricated(0.5, 1, 1))
    assert line["low"] is None and line["over"] == "1 seed"


def test_what_is_missing_is_counted_and_not_guessed():
    found = [(cell, values if i % 5 else None, None) for i, (cell, values, _) in enumerate(fabricated(0.5))]
    lines = tables.rows_of("table1", found)
    assert [(line["runs"], line["of"]) for line in lines] == [(9, 12), (10, 12)]
    known = [values["Dino"] for cell, values, _ in found if values and not cell.run.bayes]
    seeds = [cell.run.seed for cell, values, _ in found if values and not cell.run.bayes]
    means = [statistics.fmean(v for v, s in zip(known, seeds, strict=True) if s == seed) for seed in set(seeds)]
    assert lines[0]["mean"] == pytest.approx(statistics.fmean(means))
    nothing = [(cell, None, None) for cell, _, _ in found]
    assert tables.rows_of("table1", nothing) == [] and tables.differences("table1", nothing) == []


def test_statements_are_judged_by_sign_and_interval():
    def line(difference, low, high, measure="Dino", column="x"):
        return {"measure": measure, "difference": difference, "low": low, "high": high, "row": "r", "column": column}

    assert judge([line(0.1, 0.05, 0.2), line(0.3, 0.1, 0.5)]) == "yes"
    assert judge([line(0.1, -0.05, 0.2), line(0.3, 0.1, 0.5)]) == judge([line(0.1, None, None)]) == "on average"
    assert judge([line(-0.1, -0.2, -0.05), line(0.3, 0.1, 0.5)]) == judge([line(0.0, 0.0, 0.0)]) == "no"
    assert judge([line(-0.1, -0.2, -0.05, "noise")]) == "yes" and judge([]) == "–"
    found = {s["says"]: s["verdict"] for s in statements(
        {"fig7": []}, {"fig7": [line(-0.1, -0.2, -0.01, column=100.0), line(0.1, 0.05, 0.2, column=200.0)]})}
    assert found["BNNs raise image fidelity above 100 steps a picture (§5.2)"] == "yes"
    assert found["BNNs lower image fidelity at 100 steps a picture (§5.2)"] == "yes"
    assert found["BNNs improve quality at every number of steps (§5.2)"] == "–"
    unfinished = [s["says"] for s in statements({"fig7": []}, {"fig7": []})]
    assert unfinished == ["BNNs improve quality at every number of steps (§5.2)"]  # nothing of steps not known yet

    def place(row, column, mean, measure="Dino"):
        return {"row": row, "column": column, "mean": mean, "measure": measure}

    moderate = [place("sigma", s, m) for s, m in ((0.01, 0.2), (0.03, 0.5), (0.1, 0.1))]
    falls = [place("lambda", w, m) for w, m in ((0.0, 0.5), (1.0, 0.2))]
    found = {s["says"]: s["verdict"] for s in statements({"fig9": moderate + falls}, {})}
    assert found["image fidelity is best at a moderate σ₀ (§5.3)"] == "on average"
    assert found["a larger λ lowers image fidelity (§5.3)"] == "on average"
    assert found["a larger λ raises diversity (§5.3)"] == "–"


def test_csv_has_all_digits():
    lines = tables.rows_of("table1", fabricated(1 / 3))
    text = tables.csv_text(lines).splitlines()
    assert text[0] == "item,row,column,measure,mean,deviation,runs,of"
    assert math.isclose(float(text[1].split(",")[4]), lines[0]["mean"], rel_tol=0, abs_tol=0)
    assert tables.csv_text([]) == ""


# --- the bundled model ------------------------------------------------------------------------------------------------


class Captions(Exception):
    """Ends a training before its first step; holds the captions of its pictures."""


@pytest.mark.parametrize("model", ["tiny-v2", None])
def test_the_twins_alone_take_the_captions_of_their_pictures(made, tmp_path, monkeypatch, model):
    """None: a model in the layout of SD, whose pictures are captioned with the prompt as in the paper."""
    shutil.copytree(Path("tutorials/dog"), tmp_path / "dog")
    own = ["--model", model] if model else small_paper.words(made)
    options = parse(PaperOptions, "x", [*own, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    bench = command.open_bench(replace(options, classes=["dog"] if model else ["dog=dog"]))
    run = next(run for run in trainings(plan(bench.study)) if (run.method, run.bayes) == ("lora", False))

    def batches(sd, sources, batch_size, seed):
        raise Captions(*sources[0][1])

    monkeypatch.setattr(perform_module, "Batches", batches)
    with pytest.raises(Captions) as found:
        perform_module.perform(bench, run, [1])
    places = ["on the grass", "in front of a brick wall", "under a blue sky", "on a wooden floor"] if model else []
    prompt = "a photo of a sks dog"
    assert list(found.value.args) == [f"{prompt} {place}" for place in places] + [prompt] * (6 - len(places))


def test_the_twins_measure_drawings(tmp_path):
    from minibnn.paper.judges import WORLD, cases

    options = parse(PaperOptions, "x", ["--out", str(tmp_path / "out")])
    bench = command.open_bench(options)
    assert [subject.name for subject in bench.study.subjects] == ["dog"] and bench.study.items == ITEMS
    assert {cell.column for cell in plan(bench.study) if cell.item == "table1"} == {"drawings: dog"}
    assert bench.options.batch_size == 16
    steps = {run.name: steps[-1] for run, steps in trainings(plan(replace(bench.study, items=("table1", )))).items()}
    assert steps["dreambooth-dog-6p-dreambooth-bnn-s0"] == 720
    values = dict.fromkeys(WORLD, [0.1, 0.2, 0.3]) | {"noise": [5.0, 1.0, 2.0]}
    assert cases(values) == {"best": 1, "average": 2, "worst": 0}
    assert torch.tensor(values["noise"]).argmax() == 0
