"""Options: from files, from an earlier run, under the names of other programs, and how --help shows them."""

import argparse
import dataclasses
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from minibnn import StableDiffusion, UserError
from minibnn.__main__ import COMMANDS, recipes
from minibnn.cli.settle import settle
from minibnn.neighbours.rewards import NETWORKS
from minibnn.options import aliases, configs
from minibnn.options.examples import EXAMPLES
from minibnn.options.experiments import PaperOptions
from minibnn.options.lab import Eq2Options, GainsOptions, ProbeOptions
from minibnn.options.neighbours import BpsOptions, GraftOptions, RectifiedOptions
from minibnn.options.parsing import build, is_word, meanings, parse, recipe_notes
from minibnn.options.results import PhotoOptions, RunReportOptions, SampleOptions
from minibnn.options.training import TrainOptions


def read(text, tmp_path, *words, options_class=TrainOptions):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    return parse(options_class, "x", ["--config", str(tmp_path / "a.toml"), *words])


# --- files of options -------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    text = 'images = ["p", "q"]\nlr = 1e-4\nbayes = false\nlr-warmup-steps = 3\nseed = 5\nsigma = 1\n'
    options = read(text, tmp_path, "--seed", "7")
    assert (options.images, options.lr, options.bayes, options.lr_warmup_steps) == (["p", "q"], 1e-4, False, 3)
    assert options.seed == 7 and options.accumulate == 1 and type(options.sigma) is float
    assert read('images = "p"', tmp_path).images == ["p"]
    assert read('prompt = ["a", "b"]\nseed = 2', tmp_path, options_class=SampleOptions).prompt == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr = 1", "no option lrr; did you mean lr?"),
        ("toast = 1", "no option toast\n"),
        ('lr = "fast"', "lr = 'fast' is not a number above 0"),
        ("lr = true", "lr = True is not a number above 0"),
        ("lr = nan", "lr = nan is not a number above 0"),
        ("steps = 2.5", "steps = 2.5 is not a whole number of at least 1"),
        ("steps = [3]", "steps = [3] is not a whole number of at least 1"),
        ("bayes = 1", "bayes = 1 is not true or false"),
        ('kernel = "fast"', "kernel = 'fast' is not one of auto, torch, reference, triton"),
        ("out = 3", "out = 3 is not a text"),
        ("images = []", "images = [] is not a text"),
        ('prompt = ["a", ""]', "prompt = ['a', ''] is not a text with at least one word in it"),
        ("seed = -1", "seed = -1 is not a whole number from 0 to 2^32 - 1"),
        ("[what]\nimages = 1", "no option what\n"),
        ("lr = ", "is not valid TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        read(text, tmp_path, "--images", "p")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and f"{tmp_path / 'a.toml'}" in error
    assert message in error


def test_other_files_are_refused_as_configuration(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"lr": 1}')
    (tmp_path / "a.txt").write_text("lr = 1")
    kinds = {"none.toml": "no such file", "a.json": "is not a config.json of a run", "a.txt": "file ends with .toml"}
    for name, message in kinds.items():
        with pytest.raises(UserError, match=message):
            configs.config_options(tmp_path / name, TrainOptions, {})


HARD = {
    "images": ["C:\\new\\photos", 'the "dog"'], "prompt": ["ein Hündchen\tσ\n\x7f\x01 🐕"], "lr": 5e-06, "bayes": False,
    "steps": 3, "alpha": 1e300, "where": "",
}


def test_saved_options_are_valid_toml_and_read_back_the_same(tmp_path):
    path = tmp_path / "a.toml"
    configs.write_options(path, HARD, TrainOptions)
    assert tomllib.loads(path.read_text(encoding="utf-8")) == HARD == configs.read_toml(path, TrainOptions)
    with pytest.raises(UserError, match="--save-config .*a.toml: File exists; name another file"):
        configs.write_options(path, HARD, TrainOptions)


def test_save_config_writes_what_was_given_and_stops(tmp_path, capsys):
    path = tmp_path / "my options.toml"
    words = ["--images", "p", "q", "--learning-rate", "1e-4", "--no-monitor", "--dtype", "bfloat16"]
    with pytest.raises(SystemExit) as stop:
        parse(TrainOptions, "minibnn train", [*words, "--save-config", str(path)])
    assert stop.value.code == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ")[1])
    assert command[:3] == ["python", "-m", "minibnn"] and command[-2:] == ["--config", str(path)]
    assert parse(TrainOptions, "x", ["--config", str(path)]) == parse(TrainOptions, "x", words)


def test_one_value_from_python_is_a_list_of_one():
    """Bug of an earlier version: but for `train` a prompt was taken letter by letter, and drawn five times."""
    for options_class in (SampleOptions, GraftOptions, RectifiedOptions, TrainOptions):
        assert options_class(prompt="a dog").prompt == ["a dog"]
        assert options_class(prompt=["a", "b"]).prompt == ["a", "b"] and options_class().prompt is None
    drawn = SampleOptions(adapter=Path("r"), adapter_scale=0.5)
    assert (drawn.adapter, drawn.adapter_scale) == (["r"], [0.5])
    assert RunReportOptions(runs="r").runs == ["r"] and GainsOptions(guidance=3.0).guidance == [3.0]
    assert RectifiedOptions().channels == RectifiedOptions.channels


def test_paths_from_python_can_be_written_as_json():
    """Bug of an earlier version: they ended in a TypeError, when config.json was written."""
    made = TrainOptions(images=[Path("a"), "b"], model=Path("m"), out=Path("o"))
    assert (made.images, made.model, made.out) == (["a", "b"], "m", "o")
    for options_class in (SampleOptions, GraftOptions, BpsOptions, RectifiedOptions, ProbeOptions):
        assert json.loads(json.dumps(dataclasses.asdict(options_class(model=Path("m")))))["model"] == "m"
    assert PhotoOptions(clip=Path("nets/clip")).clip == str(Path("nets/clip"))


# --- a run's own options ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The config.json of a run that was started, with relative paths, in another folder."""
    home = tmp_path / "home"
    (home / "runs" / "dog").mkdir(parents=True)
    options = TrainOptions(images="photos", out="runs/dog", class_images="runs/dog/class_images", lr=0.5, monitor=False,
                           tokenizer="/words", overwrite=True, prompt="a dog", sample_prompts="lines.txt", steps=9)
    record = {"format": "minibnn run", "options": dataclasses.asdict(options), "folder": str(home), "pictures": {}}
    (home / "runs" / "dog" / "config.json").write_text(json.dumps(record))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home / "runs" / "dog"


def test_resume_takes_its_options_from_the_run(run, monkeypatch):
    options = parse(TrainOptions, "x", ["--resume", "--out", str(run)])
    assert (options.lr, options.steps, options.prompt) == (0.5, 9, ["a dog"])
    assert options.resume and not options.overwrite and options.out == str(run)
    home = run.parents[1]
    assert options.images == [str(home / "photos")] and options.sample_prompts == str(home / "lines.txt")
    assert (options.model, options.tokenizer, options.class_images) == ("tiny-v2", "/words", None)
    options = parse(TrainOptions, "x", ["--resume", "--out", str(run), "--steps", "20", "--monitor-every", "2"])
    assert (options.steps, options.lr, options.monitor) == (20, 0.5, None)
    monkeypatch.chdir(home)  # where it was started, its paths stand as they were given
    assert parse(TrainOptions, "x", ["--resume", "--out", "runs/dog"]).images == ["photos"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": 5}, "folder is 5, but must be a text"),
        ({"options": {"lr": "fast"}}, "options.lr is 'fast', but must be"),
        ({"options": {"steps": 0}}, "steps = 0 is not a whole number of at least 1"),
        ({"options": [1]}, "options is a list, but must be an object"),
        ({"format": "minibnn bps"}, "is not a config.json of a run"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"options": {"lr": NaN}}', "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("words", [["--resume", "--out", "RUN"], ["--config", "RUN", "--out", "other"]])
def test_a_damaged_config_json_is_named(run, capsys, words, changes, message):
    """The two ways to it once read it twice, of which one let a folder that is a number through, as a traceback."""
    path = run / "config.json"
    text = changes if isinstance(changes, str) else json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse(TrainOptions, "x", [str(run) if word == "RUN" else word for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and str(path) in error and message in error


def test_a_run_resumes_without_what_its_config_does_not_say(run):
    (run / "config.json").write_text('{"format": "minibnn run", "options": {"images": "photos", "class_images": "c"}}')
    options = parse(TrainOptions, "x", ["--resume", "--out", str(run)])
    assert (options.images, options.class_images, options.steps) == (["photos"], "c", None)


def test_a_run_can_be_repeated_from_its_config(run):
    options = parse(TrainOptions, "x", ["--config", str(run), "--images", "others", "--lr", "1"])
    assert (options.images, options.lr, options.prompt) == (["others"], 1.0, ["a dog"])
    assert (options.out, options.resume, options.overwrite) == ("runs/others", False, False)


def test_another_method_takes_what_it_needs_and_leaves_what_was_settled_for_the_runs_own(run):
    """Bug of an earlier version: --where and the rate of DreamBooth came along, and LoRA was refused."""
    config = json.loads((run / "config.json").read_text())
    config["options"] |= {"where": "paper", "device": "cuda:1", "kernel": "triton", "seed": 5, "batch_size": 2,
                          "prior_weight": 3.0, "prior_target": "pretrained", "ema": 0.98}
    (run / "config.json").write_text(json.dumps(config))
    options = parse(TrainOptions, "x", ["--config", str(run), "--method", "lora", "--out", "b"])
    assert (options.where, options.lr, options.steps) == (None, None, None)
    assert (options.prior_weight, options.prior_target, options.ema) == (None, None, None)
    assert (options.method, options.seed, options.batch_size, options.prompt) == ("lora", 5, 2, ["a dog"])
    assert (options.device, options.kernel) == (None, "auto")  # those of this machine
    same = parse(TrainOptions, "x", ["--config", str(run), "--method", "dreambooth", "--out", "b"])
    assert (same.where, same.lr, same.steps, same.device) == ("paper", 0.5, 9, None)


def test_paths_of_a_file_of_options_are_those_of_its_folder(run, tmp_path, monkeypatch):
    """Of a run: those of the folder in which it was started. What is not there stays as it is written."""
    home = run.parents[1]
    (home / "photos").mkdir()
    for name in (str(run), str(run / "config.json")):
        options = parse(TrainOptions, "x", ["--config", name])
        assert options.images == [str(home / "photos")] and options.sample_prompts == "lines.txt"
        assert (options.model, options.tokenizer) == ("tiny-v2", "/words")
    (home / "a.toml").write_text('images = ["photos", "gone"]\nmodel = "tiny"\nout = "photos"\n')
    (home / "tiny").mkdir()  # a bundled model's name is no path
    options = parse(TrainOptions, "x", ["--config", "../home/a.toml"])
    assert [Path(path).resolve() for path in options.images] == [home / "photos", tmp_path / "elsewhere" / "gone"]
    assert (options.model, options.out) == ("tiny", "photos")
    monkeypatch.chdir(home)
    assert parse(TrainOptions, "x", ["--config", "a.toml"]).images == ["photos", "gone"]
    with pytest.raises(SystemExit):
        parse(TrainOptions, "minibnn train", ["--images", "photos", "--save-config", str(tmp_path / "b.toml")])
    assert tomllib.loads((tmp_path / "b.toml").read_text())["images"] == [str(home / "photos")]


def test_saved_paths_of_every_command_mean_the_same_elsewhere(tmp_path, monkeypatch):
    """Bugs of earlier versions: only paths of `train` were written for another folder, and `sigma1` and `eq2` looked
    for a model of their file beside the working folder."""
    home = tmp_path / "home"
    for name in ("home/runs/r", "home/runs/r3", "conf", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (home / "runs" / "m.json").write_text("{}")
    monkeypatch.chdir(home / "runs")
    for options_class, words in (
        (SampleOptions, ["--prompt", "a", "--adapter", "r3", "--unconditional-from", "r"]),
        (ProbeOptions, ["--base", "r"]), (RunReportOptions, ["r", "r3"]),
        (Eq2Options, ["--images", "r", "--model", "r3", "--measured", "m.json"]),
    ):
        monkeypatch.chdir(home / "runs")
        path = f"../../conf/{options_class.__name__}.toml"
        with pytest.raises(SystemExit):
            parse(options_class, "x", [*words, "--save-config", path])
        given = vars(build(options_class, "x").parse_args(words))
        monkeypatch.chdir(tmp_path / "elsewhere")
        options = parse(options_class, "x", ["--config", f"../conf/{options_class.__name__}.toml"])
        for name, value in given.items():
            there = [str(home / "runs" / each) for each in (value if isinstance(value, list) else [value])]
            expected = there if isinstance(value, list) else there[0]
            assert getattr(options, name) == (["a"] if name == "prompt" else expected)
    (home / "a.toml").write_text('model = "runs/r"\n')
    for options_class, words in ((ProbeOptions, []), (Eq2Options, ["--images", "p"])):
        found = parse(options_class, "x", ["--config", "../home/a.toml", *words]).model
        assert Path(found).resolve() == home / "runs" / "r"


def test_a_run_can_be_repeated_without_random_weights_or_class_pictures(run):
    """What was settled for them does not come along, which `train` would refuse."""
    config = json.loads((run / "config.json").read_text())
    config["options"] |= {"where": "all", "sigma": 0.02, "lambda_kl": 1.0, "kl": "p-q", "class_count": 7}
    (run / "config.json").write_text(json.dumps(config))
    plain = parse(TrainOptions, "x", ["--config", str(run), "--no-bayes", "--prior-weight", "0"])
    assert (plain.where, plain.sigma, plain.lambda_kl, plain.kl) == (None, None, 0.0, "q-p")
    assert plain.class_count is plain.class_images is None
    same = parse(TrainOptions, "x", ["--config", str(run)])
    assert (same.where, same.sigma, same.lambda_kl, same.kl, same.class_count) == ("all", 0.02, 1.0, "p-q", 7)


IN_A_FILE = {"sigma": 0.1, "where": "up", "kernel": "reference", "kl": "p-q", "lambda-kl": 1e-4, "prior-sigma": 0.02,
             "keep-posterior": True, "prior-target": "pretrained", "class-count": 7, "monitor-every": 5, "lr": 0.1}


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ([], []),
        (["--no-bayes"], ["sigma", "where", "kernel", "kl", "lambda-kl", "prior-sigma", "keep-posterior"]),
        (["--prior-weight", "0"], ["prior-target", "class-count"]), (["--lambda-kl", "0"], ["kl", "prior-sigma"]),
        (["--no-monitor"], ["monitor-every"]), (["--method", "oft", "--prior-weight", "1"], []),
        (["--method", "lora", "--prior-weight", "1"], ["where"]),
    ],
)
def test_a_file_does_not_contradict_what_is_typed(words, gone, tmp_path):
    """Bug of an earlier version: a file with sigma and --no-bayes was refused, as if both were typed."""
    path, sd = tmp_path / "a.toml", StableDiffusion.load("tiny")
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in IN_A_FILE.items()))
    fixed = ["--config", str(path), "--images", "tutorials/dog", "--device", "cpu", "--out", str(tmp_path / "run")]
    options = parse(TrainOptions, "x", [*fixed, *words])
    settle(options, sd, 6)
    for name in IN_A_FILE.keys() - {word.removeprefix("--") for word in words}:
        field = name.replace("-", "_")
        assert getattr(options, field) == (getattr(TrainOptions, field) if name in gone else IN_A_FILE[name]), name


@pytest.mark.parametrize(("text", "words"), [
    ("sigma = 0.1\n", ["--no-bayes", "--sigma", "0.3"]), ("bayes = false\nsigma = 0.3\n", [])])
def test_what_stands_in_one_place_may_not_contradict_itself(text, words, tmp_path):
    out = str(tmp_path / "run")
    options = read(text, tmp_path, "--images", "tutorials/dog", "--device", "cpu", "--out", out, *words)
    with pytest.raises(UserError, match="--sigma belongs to random weights"):
        settle(options, StableDiffusion.load("tiny"), 6)


def test_the_path_in_a_reward_is_looked_for_beside_the_file(tmp_path):
    """Bug of an earlier version: neither files nor --resume knew that --reward holds a path."""
    (tmp_path / "mine.py").touch()
    (tmp_path / "nets").mkdir()
    for text, expected in (("mine.py:f", f"{tmp_path}/mine.py:f"), ("clip:nets", f"clip:{tmp_path}/nets"),
                           ("aesthetic:nowhere", "aesthetic:nowhere"), ("redness", "redness")):
        assert read(f'reward = "{text}"', tmp_path, options_class=GraftOptions).reward == expected
    assert set(configs.REWARD_FOLDERS) == set(NETWORKS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "--resume needs --out, the folder of the run that is to go on"),
        (["--resume", "--out", "nowhere"], "no checkpoint in nowhere: nothing to resume; start without --resume"),
    ],
)
def test_resuming_nothing_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(TrainOptions, "x", words)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_an_experiment_is_told_twice_it_does_once():
    """Bug of an earlier version: a seed that was named twice was trained twice, and counted twice in intervals."""
    asked = parse(PaperOptions, "x", ["--seeds", "0", "1", "0", "--sigmas", "0.01", "0.01", "--lambdas", "0", "0.0"])
    assert (asked.seeds, asked.sigmas, asked.lambdas) == ([0, 1], [0.01], [0.0])
    classes = {options for _, options, *_ in COMMANDS.values() if options.__module__ == PaperOptions.__module__}
    lists = [(options, f.name) for options in classes for f in dataclasses.fields(options) if f.type is list]
    assert len(lists) > 20
    for options, name in lists:
        assert getattr(options(**{name: ["a", "b", "a"]}), name) == ["a", "b"], (options, name)


# --- names of other programs ------------------------------------------------------------------------------------------


def test_the_names_of_diffusers_and_kohya_are_taken():
    theirs = shlex.split(
        'x --instance_data_dir=p --instance_prompt="a sks dog" --class_prompt "a dog" --learning_rate=1e-4 '
        "--max_train_steps 5 --train_batch_size=2 --gradient_accumulation_steps=3 --output_dir o --seed 4 "
        "--gradient_checkpointing --prior_loss_weight=0.5 --num_class_images 7 --lr_warmup_steps=1"
    )[1:]
    ours = shlex.split(
        'x --images p --prompt "a sks dog" --class-prompt "a dog" --lr 1e-4 --steps 5 --batch-size 2 --accumulate 3 '
        "--out o --seed 4 --gradient-checkpointing --prior-weight 0.5 --class-count 7 --lr-warmup-steps 1"
    )[1:]
    assert parse(TrainOptions, "x", theirs) == parse(TrainOptions, "x", ours)
    kohya = shlex.split("--train_data_dir p --network_dim 8 --network_alpha 4 --method lora --save_every_n_steps 2")
    options = parse(TrainOptions, "x", kohya)
    assert (options.rank, options.alpha, options.checkpoint_every) == (8, 4.0, 2)


def test_values_are_left_alone():
    flags = {"--prompt": "--prompt", "--out": "--out"}
    assert aliases.translate(["--prompt", "a_b", "-x", "--out=a_b=c"], flags) == [
        "--prompt", "a_b", "-x", "--out=a_b=c",
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--mixed_precision=fp16", "write --dtype bfloat16 or --dtype float16"),
        ("--resume_from_checkpoint", "write --resume --out RUN"),
        ("--learning-rat", "did you mean --lr?"),
        ("--instance-promt", "did you mean --prompt?"),
        ("--xformers", "leave it out: PyTorch's own fast attention is always used"),
        ("--imges", "did you mean --images?"),
        ("--qqq", "python -m x --help lists all"),
    ],
)
def test_other_names_are_answered_with_the_right_one(word, message, capsys):
    with pytest.raises(SystemExit):
        parse(TrainOptions, "x", ["--images", "p", word])
    assert capsys.readouterr().err == f"error: no option {word.split('=')[0]}; {message}\n"


PROBES = "sigma1 probe-zero probe-local probe-scaled probe-blank"
STAGE = "experiment:stage experiment:stage-views experiment:stage-starts"
TAKEN = {  # names of other programs: {option: the commands that take them as that}
    "instance-data-dir train-data-dir": {"--images": f"train pretrain-textured eq2 {PROBES} gains rectified {STAGE} "
                                                     "experiment:corruption experiment:sd-gains"},
    "instance-prompt": {"--prompt": f"train {PROBES} gains rectified experiment:stage-views experiment:stage-starts "
                                    "experiment:sd-gains"},
    "class-data-dir reg-data-dir": {"--class-images": "train"},
    "num-class-images": {"--class-count": "train"},
    "prior-loss-weight": {"--prior-weight": "train"},
    "pretrained-model-name-or-path": {"--model": f"train sample evaluate eq2 {PROBES} gains graft rectified bps paper "
                                                 f"{STAGE} experiment:recipe experiment:sd-gains"},
    "output-dir": {"--out": "train export pretrain pretrain-textured evaluate graft flow rectified bps paper "
                            + " ".join(name.replace(" ", ":") for name in COMMANDS if name.startswith("experiment "))},
    "learning-rate": {"--lr": "train graft flow rectified bps experiment:sd-gains experiment:graft"},
    "max-train-steps": {"--steps": "train pretrain-textured world-eye graft flow rectified bps experiment:corruption "
                                   "experiment:guidance experiment:sd-gains "
                                   "experiment:graft experiment:bps"},
    "num-inference-steps": {"--steps": "sample eq2 gains", "--euler-steps": "rectified",
                            "--sample-steps": "graft bps paper experiment:sd-gains experiment:graft"},
    "train-batch-size": {"--batch-size": "train graft rectified bps"},
    "gradient-accumulation-steps": {"--accumulate": "train"},
    "network-dim lora-rank": {"--rank": "train graft"},
    "network-alpha lora-alpha": {"--alpha": "train"},
    "checkpointing-steps save-every-n-steps": {"--checkpoint-every": "train graft bps"},
    "sample-every-n-steps validation-steps": {"--sample-every": "train"},
    "snr-gamma min-snr-gamma": {"--min-snr": "train"},
    "optimizer": {"--optimiser": "train"},
    "keep-optimizer save-state-on-train-end": {"--keep-optimiser": "train"},
    "guidance-scale": {"--guidance": "sample gains graft rectified bps"},
    "num-images-per-prompt": {"--count": "sample rectified experiment:sd-gains"},
    "config-file": {"--config": " ".join(name.replace(" ", ":") for name in COMMANDS)},
}


def flags_of(name):
    options_class = COMMANDS[name][1]
    return meanings(build(options_class, "x"), options_class)


def test_other_names_mean_the_same_in_every_command_that_takes_them():
    """Bugs of an earlier version: `train --num_inference_steps 50` trained for 50 steps, `sample --max_train_steps 800`
    drew with 800, and `graft --lora_alpha 8` set a temperature."""
    expected = {(command.replace(":", " "), f"--{name}", ours) for names, taken in TAKEN.items()
                for name in names.split() for ours, commands in taken.items() for command in commands.split()}
    found = {(command, name, *aliases.translate([name], flags_of(command))) for command in COMMANDS
             for name in aliases.SAME}
    assert {row for row in found if row[1] != row[2]} == expected


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("sample", "--max_train_steps", "`train` has it, as --steps; here --steps means sampling steps"),
        ("train", "--num_inference_steps=5", "`sample` has it, as --steps; here --steps means optimiser steps"),
        ("graft", "--lora_alpha", "`train` has it, as --alpha; here --alpha means a temperature"),
        ("sample", "--learning-rate", "`train` has it, as --lr"),
        ("evaluate", "--num-inference-steps", "`sample` has it, as --steps"),
        ("graft", "--num-inference-step", "did you mean --sample-steps?"),
    ],
)
def test_a_name_that_would_change_its_meaning_is_refused(command, word, message, capsys):
    with pytest.raises(SystemExit):
        parse(COMMANDS[command][1], "x", [word, "8"])
    assert capsys.readouterr().err == f"error: no option {word.split('=')[0]}; {message}\n"


def test_aliases_name_options_that_exist():
    flags = {flag for name in COMMANDS for flag in flags_of(name)}
    assert not [ours for ours in aliases.SAME.values() if ours not in flags]
    assert not [name for name in (*aliases.SAME, *aliases.INSTEAD) if name in flags or "_" in name]
    assert not set(aliases.SAME) & set(aliases.INSTEAD)
    for name, ours in aliases.SAME.items():
        assert ours in flags_of("sample" if name in aliases.DRAWING else "train").values()


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_its_options_take(name):
    assert len(EXAMPLES[name]) >= 2
    for line in EXAMPLES[name]:
        words = shlex.split(line)
        assert words[: 3 + len(name.split())] == ["python", "-m", "minibnn", *name.split()]
        values, rest = build(COMMANDS[name][1], "x").parse_known_args(words[3 + len(name.split()):])
        words_of_their_own = sum(is_word(field) for field in dataclasses.fields(COMMANDS[name][1]))
        assert not rest and len(vars(values)) == sum(word.startswith("--") for word in words) + words_of_their_own


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_numbers_and_examples(name):
    text = build(COMMANDS[name][1], f"minibnn {name}", EXAMPLES[name], recipes(COMMANDS[name][1])).format_help()
    assert all(line in text for line in EXAMPLES[name])
    assert not re.search(r"(\[|: )(recipe|\{\w+\})\]", text)


@pytest.mark.parametrize(("name", "rates"), [
    ("train", "tiny-v2 0.0003, lora 0.003, oft 0.002]"), ("graft", "tiny 0.0002, lora and oft 0.001]"),
])
def test_help_tells_the_recipe_of_the_model_that_the_command_takes(name, rates):
    """Bug of an earlier version: `graft`, which takes tiny, told the rates of tiny-v2."""
    options_class = COMMANDS[name][1]
    text = " ".join(build(options_class, "x", recipes=recipes(options_class)).format_help().split())
    assert f"learning rate of AdamW [SD 5e-06, lora and oft 0.0001; {rates}" in text


def test_recipes_are_told_in_words():
    recipe = {"lr": 1e-5, "sigma": 0.01, "steps": 200, "dtype": None,
              "methods": {"lora": {"lr": 1e-4}, "oft": {"lr": 1e-4, "steps": 100}}}
    notes = recipe_notes({"SD": recipe, "bundled": recipe | {"steps": 50}})
    assert notes == {
        "lr": "1e-05, lora and oft 0.0001", "sigma": "0.01", "steps": "SD 200, oft 100; bundled 50, oft 100",
    }


def test_version(capsys):
    import minibnn

    for words in (["--version"], ["--images", "x", "--version"]):
        with pytest.raises(SystemExit):
            parse(TrainOptions, "x", words)
        assert capsys.readouterr().out == f"minibnn {minibnn.__version__}\n"


def test_a_parser_gives_only_what_was_given():
    assert build(TrainOptions, "x").parse_args(["--seed", "0"]) == argparse.Namespace(seed=0)


@pytest.mark.parametrize("words", [["--out", ""], ["--class-images="], ["--images", "x", ""], ["--config", ""]])
def test_an_empty_value_as_of_an_unset_variable_is_refused(words, capsys):
    """As a path it would be the present folder, and --overwrite would delete there."""
    with pytest.raises(SystemExit):
        parse(TrainOptions, "train", ["--images", "x", *words])
    assert re.fullmatch(r"error: --[a-z-]+ is empty: .*leave it out\n", capsys.readouterr().err)


def test_an_empty_text_that_means_something_is_taken():
    assert parse(SampleOptions, "sample", ["--prompt", "a dog", "--negative-prompt", ""]).negative_prompt == ""


def test_options_that_cannot_be_written_leave_no_file(tmp_path):
    with pytest.raises(UserError, match="--save-config .*a.toml: .*name another file"):
        configs.write_options(tmp_path / "a.toml", {"prompt": "a name that is no UTF-8: \udcff"}, TrainOptions)
    assert not list(tmp_path.iterdir())
