"""What an experiment keeps in --out: one process at a time writes it, and results of other settings do not mix."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from minibnn.errors import UserError
from minibnn.experiments import graft
from minibnn.experiments.bps import anchors, pairs, places
from minibnn.experiments.guidance import trainings as guidance
from minibnn.experiments.inverse_noise import trainings as inverse_noise
from minibnn.files.locks import locked
from minibnn.files.store import read_json, write_json
from minibnn.options import experiments
from minibnn.options.parsing import parse

RESULTS = Path(__file__).parents[1] / "tutorials" / "results"
EXPERIMENTS = {
    pairs: experiments.BpsExperimentOptions, graft: experiments.GraftExperimentOptions,
    guidance: experiments.GuidanceOptions, inverse_noise: experiments.InverseNoiseOptions,
}


@pytest.mark.parametrize("module", EXPERIMENTS, ids=lambda module: module.__name__.split(".")[2])
def test_two_processes_do_not_lose_each_others_lines(module, tmp_path, monkeypatch):
    """Bug of an earlier version: both read the file, and the later one wrote it without the lines of the other."""
    began, name = [], module.__name__.split(".")[2]
    monkeypatch.setattr(module, "experiment_there", began.append)
    options = parse(EXPERIMENTS[module], "x", ["--out", str(tmp_path)])
    with locked(tmp_path, f".{name}.lock"), pytest.raises(UserError, match="is in use by"):
        module.experiment(options)
    assert began == []
    module.experiment(options)
    assert began == [options] and not list(tmp_path.iterdir())


def test_the_committed_results_can_be_added_to(tmp_path, monkeypatch, capsys):
    """Bug of an earlier version: `experiment graft` refused its own results, made when a rule had another name."""
    for path in RESULTS.glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def never(*given):
        raise AssertionError("it is there")

    words = ["--out", str(tmp_path), "--seeds"]
    monkeypatch.setattr(graft, "one_seed", never)
    graft.experiment(parse(EXPERIMENTS[graft], "x", [*words, "0", "1", "2", "3", "4", "5"]))
    assert "| GRAFT | 0.85 ± 0.06 |" in capsys.readouterr().out
    monkeypatch.setattr(guidance, "one_run", never)
    guidance.experiment(parse(EXPERIMENTS[guidance], "x", [*words, "0"]))
    assert "### dreambooth, dog, 5 runs" in capsys.readouterr().out
    own = inverse_noise.kept_result(tmp_path / "inverse_noise.json", inverse_noise_options())
    assert own == read_json(RESULTS / "inverse_noise.json")
    for module in (pairs, places):
        monkeypatch.setattr(module, "one", never)
    monkeypatch.setattr(pairs, "reconstruct", lambda sd, images: images)
    monkeypatch.setattr(pairs, "judged", lambda *given: dict.fromkeys(pairs.JUDGED, 0.5))
    monkeypatch.setattr(pairs, "side_by_side", lambda *given: Image.new("L", (4, 4)))
    monkeypatch.setattr(anchors, "trained", never)
    for part in (pairs, anchors, places):
        part.compare(None, None, parse(EXPERIMENTS[pairs], "x", [*words, "0", "1", "2", "3", "4"]))
    for name in ("bps.json", "bps_anchors.json", "bps_places.json"):
        assert read_json(tmp_path / name) == read_json(RESULTS / name)


def inverse_noise_options(*words):
    return parse(experiments.InverseNoiseOptions, "x", list(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "plane", "--bundle"], "--bundle is for the part world: leave it out, or add world to --parts"),
        (["--parts", "plane", "--tests", "9"], "--tests is for the part world"),
        (["--seeds", "1", "2", "--bundle"], "--bundle keeps the corrector of seed 0: add 0 to --seeds"),
        (["--flow", "nowhere"], "--flow nowhere cannot be read: No such file"),
    ],
)
def test_options_of_inverse_noise_that_would_do_nothing_are_refused(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        inverse_noise.experiment(inverse_noise_options("--out", str(tmp_path), *words))


def test_inverse_noise_averages_only_seeds_of_the_same_settings(tmp_path, monkeypatch):
    """Bug of an earlier version: whatever --flow, --inverted, --tests and --corrector-training, rows were added."""
    def rows(options, sd):
        return [{"what": "flow", "n": 10, "seed": seed, "FLOPs": 1e6, "distance": 0.1} for seed in options.seeds]

    monkeypatch.setattr(inverse_noise, "world_rows", rows)
    monkeypatch.setattr(inverse_noise, "plane", lambda data, seed: [])

    def added(*words):
        inverse_noise.experiment(inverse_noise_options("--out", str(tmp_path), "--parts", "world", *words))
        return [row["seed"] for row in read_json(tmp_path / "inverse_noise.json")["world"]]

    flow = inverse_noise.flow_file(inverse_noise_options())
    (tmp_path / "same").write_bytes(flow.read_bytes())
    save_file(load_file(flow), tmp_path / "other", {"euler_steps": "7"})  # another file is another flow
    assert added("--seeds", "0", "1") == [0, 1]
    assert added("--seeds", "1", "2", "--flow", str(tmp_path / "same")) == [0, 1, 2]
    for option, value in {"tests": 9, "inverted": 9, "corrector_training": 9, "euler_steps": 9}.items():
        with pytest.raises(UserError, match=f"was made with {option} = [0-9]+, not 9; name another --out"):
            added(f"--{option}", str(value))
    with pytest.raises(UserError, match="was made with flow = "):
        added("--flow", str(tmp_path / "other"))
    inverse_noise.experiment(inverse_noise_options("--out", str(tmp_path), "--parts", "plane"))  # has no such settings
    kept = json.loads((tmp_path / "inverse_noise.json").read_text())
    write_json(tmp_path / "inverse_noise.json", {name: value for name, value in kept.items() if "settings" not in name})
    with pytest.raises(UserError, match="was made with flow = unknown, not "):
        added()
