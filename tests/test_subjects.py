"""Several subjects, captions beside pictures, own sample prompts, and what may change when a run is resumed."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minibnn import StableDiffusion, UserError, data, runs
from minibnn.cli.announcements import about_photographs, about_prompts, describe
from minibnn.cli.class_source import class_folders
from minibnn.cli.run_samples import sample_prompts
from minibnn.cli.settle import settle
from minibnn.cli.train import fine_tune
from minibnn.files.digests import of_model
from minibnn.finetune.methods import make_trainable
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions
from minibnn.train import Batches
from minibnn.world.captions import elsewhere


@pytest.fixture
def folders(dog, tmp_path):
    """Two folders with two and three pictures."""
    paths = sorted(dog.glob("*.png"))
    for name, some in (("rex", paths[:2]), ("tom", paths[2:5])):
        (tmp_path / name).mkdir()
        for path in some:
            shutil.copy(path, tmp_path / name)
    return [str(tmp_path / "rex"), str(tmp_path / "tom")]


@pytest.fixture
def options(folders, tmp_path, micro):
    def make(*words, images=folders):
        fixed = ["--model", str(micro), "--steps", "2", "--samples", "0", "--out", str(tmp_path / "run")]
        return parse(TrainOptions, "minibnn train", ["--images", *images, *fixed, *words])

    return make


TWO = ("--prompt", "a photo of a sks dog", "a photo of a zwx cat", "--class-prompt", "a photo of a dog",
       "a photo of a cat")


# --- several subjects -------------------------------------------------------------------------------------------------


def test_each_subject_is_trained_with_its_own_prompt_and_class(options, tmp_path):
    fine_tune(options(*TWO, "--class-count", "5"))
    run = tmp_path / "run"
    drawn = {path.parent.name: json.loads(path.read_text()) for path in run.glob("class_images/*/.class.json")}
    assert {name: record["prompt"] for name, record in drawn.items()} == {
        "a-photo-of-a-dog": "a photo of a dog", "a-photo-of-a-cat": "a photo of a cat",
    }
    counts = {folder.name: len(list(folder.glob("*.png"))) for folder in (run / "class_images").iterdir()}
    assert counts == {"a-photo-of-a-dog": 2, "a-photo-of-a-cat": 3}  # 5, shared as 2 and 3 pictures are
    config = json.loads((run / "config.json").read_text())
    assert len(config["pictures"]) == 5 and {name.split("/")[0] for name in config["pictures"]} == {"0", "1"}
    assert StableDiffusion.load(run).recipe["prompt"] == "a photo of a sks dog"
    fine_tune(parse(TrainOptions, "x", ["--resume", "--out", str(run), "--steps", "3"]))


def test_batches_pair_each_picture_with_its_prompt():
    sd = StableDiffusion.load("tiny")
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ["a red car", "a red car", "a blue car", "a dog", "a blue car"]
    expected = sd.encode_prompts(prompts)
    assert not torch.allclose(expected[0], expected[2])
    batches, seen = Batches(sd, [(images, prompts)], 2, seed=3), set()
    for i in range(5):
        _, context = batches(i, torch.Generator())
        picked = data.picked(5, i, 2, 3)
        torch.testing.assert_close(context, expected[picked], rtol=0, atol=1e-5)
        seen.update(picked)
    assert seen == set(range(5))


def test_one_class_serves_several_subjects(options):
    given = options(*TWO[:3], "--class-prompt", "a photo of a dog", "--class-count", "7")
    settled = settle(given, StableDiffusion.load("tiny"), 5)
    (only,) = class_folders(settled, [2, 3])
    assert (only.folder, only.count) == (settled.class_images, 7) and only.made_for["prompt"] == "a photo of a dog"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (TWO[:2], "--prompt: 1 given for 2 folders of --images; give one for each"),
        ((*TWO, "a cat"), "--class-prompt: 3 given for 2 folders of --images; give one, or one for each"),
        ((), "--prompt: 1 given for 2 folders"),
    ],
)
def test_prompts_that_do_not_fit_the_folders_are_refused(options, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        fine_tune(options(*words))
    assert not (tmp_path / "run").exists()


# --- captions ---------------------------------------------------------------------------------------------------------


def test_a_caption_beside_a_picture_replaces_the_prompt(folders, options, tmp_path, capsys, caplog):
    rex = tmp_path / "rex"
    first, second = sorted(path for path in rex.iterdir() if path.suffix == ".png")
    first.with_suffix(".txt").write_text("\ufeffa sks dog\n on the  beach\n", encoding="utf-8")
    pictures = data.list_pictures(rex)
    assert data.captions(pictures, "a dog") == ["a sks dog on the beach", "a dog"] and not caplog.records
    fine_tune(options("--prior-weight", "0", images=[str(rex)]))
    assert "2 pictures, 1 with a caption of its own, 2 steps" in capsys.readouterr().out
    without = ("--prior-weight", "0", "--no-captions", "--out", str(tmp_path / "without"))
    fine_tune(options(*without, images=[str(rex)]))
    first.with_suffix(".txt").write_text("another")
    fine_tune(options(*without, "--resume", images=[str(rex)]))  # bug of an earlier version: it was refused
    with pytest.raises(UserError, match="the pictures or their captions are not those that the run"):
        fine_tune(options("--prior-weight", "0", "--resume", images=[str(rex)]))


@pytest.mark.parametrize(("content", "message"), [(b" \n", "is empty: write"), (b"\xff\xfe", "not a caption in UTF-8")])
def test_broken_captions_are_refused(folders, options, tmp_path, content, message):
    path = sorted((tmp_path / "rex").iterdir())[0].with_suffix(".txt")
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fine_tune(options(images=folders[:1]))
    assert not (tmp_path / "run").exists()


def test_the_line_before_training_counts_captions_and_subjects(options):
    sd = StableDiffusion.load("tiny")
    settled = settle(options(*TWO), sd, 5)
    captions = ["a photo of a sks dog", "x", "a photo of a zwx cat", "y", "z"]
    make_trainable(sd.unet, settled)
    line = describe(settled, sd.unet, captions)
    assert line.startswith("5 pictures of 2 subjects, 3 with a caption of their own, 2 steps at lr ")


def test_photographs_for_the_bundled_model_are_warned_of(options, dog, tmp_path):
    settled, path = settle(options(*TWO), StableDiffusion.load("tiny"), 5), tmp_path / "photo.png"
    settled = dataclasses.replace(settled, model="tiny")
    assert about_photographs(settled, sorted(dog.glob("*.png"))) is None
    Image.new("RGB", (400, 255)).save(path)
    assert about_photographs(settled, [path]) is None
    Image.new("RGB", (400, 256)).save(path)
    assert "give Stable Diffusion as --model" in about_photographs(settled, [path])
    for model in ("sd", "textured"):  # the latter is there to learn a photograph
        assert about_photographs(dataclasses.replace(settled, model=model), [path]) is None
    assert about_prompts(settled) == (
        'prompt "a photo of a sks dog", "a photo of a zwx cat"; class prompt "a photo of a dog", "a photo of a cat"'
    )


# --- samples ----------------------------------------------------------------------------------------------------------


def prompts_of(options, *words):
    settled = settle(options("--prompt", "a sks dog", "--class-prompt", "a dog", *words, images=options().images[:1]),
                     StableDiffusion.load("tiny"), 2)
    return sample_prompts(settled)


def test_sample_prompts_come_from_a_file(options, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\na sks dog in a σ hat\n\n a dog \n", encoding="utf-8")
    words = ("--sample-prompts", str(path))
    assert prompts_of(options, *words, "--samples", "3") == ["a sks dog in a σ hat", "a dog", "a sks dog in a σ hat"]
    given = TrainOptions(images="p", prompt="a sks dog", sample_prompts=str(path))
    assert sample_prompts(given) == ["a sks dog in a σ hat", "a dog"]
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="--sample-prompts .*: there is no prompt in it"):
        fine_tune(options(*TWO, *words))
    assert not (tmp_path / "run").exists()


def test_samples_show_the_subject_places_and_the_class():
    one = sample_prompts(TrainOptions(images="p", prompt="a sks dog", class_prompt="a dog"))
    places = [f"a sks dog {place}" for place in ("on the beach", "in the snow", "on a wooden floor")]
    assert one == ["a sks dog"] * 4 + places + ["a dog"]
    two = sample_prompts(TrainOptions(images=["p", "q"], prompt=["a sks dog", "a zwx cat"], samples=5))
    assert two == ["a sks dog", "a zwx cat", "a sks dog on the beach", "a zwx cat on the beach", places[1]]


def test_samples_of_the_textured_model_name_what_it_knows():
    """Bug of an earlier version: places, of which it knows none, and for which its prompts have no room."""
    textured = StableDiffusion.load("textured")
    recipe = textured.recipe
    prompts = sample_prompts(TrainOptions(images="p", model="textured", prompt=recipe["prompt"],
                                          class_prompt=recipe["class_prompt"]))
    assert prompts == [recipe["prompt"]] * 4 + [
        "a warm photo of sks from afar", "a cold photo of sks from afar", "a plain photo of sks close up",
        recipe["class_prompt"],
    ]
    for prompt in prompts:
        assert all(f"{word}</w>" in textured.tokenizer.vocab for word in prompt.split())
        assert len(prompt.split()) + 2 <= textured.tokenizer.max_length
    assert elsewhere("my cat", "textured") == ["my cat"] * 3


# --- what may change on resume ----------------------------------------------------------------------------------------


def resume(out, *words):
    fine_tune(parse(TrainOptions, "x", ["--resume", "--out", str(out), *words]))


def test_a_finished_run_gives_other_files_without_training_again(options, folders, tmp_path):
    fine_tune(options("--method", "lora", "--prompt", "a sks dog", "--prior-weight", "0", images=folders[:1]))
    run = tmp_path / "run"
    before, log = load_file(run / runs.STATE), (run / "log.jsonl").read_text()
    resume(run, "--export", "kohya", "--keep-posterior", "--samples", "1", "--checkpoint-every", "1")
    assert {"lora_kohya.safetensors", "posterior.safetensors", "samples.png"} <= {p.name for p in run.iterdir()}
    after = load_file(run / runs.STATE)
    assert all(torch.equal(after[name], before[name]) for name in before) and log == (run / "log.jsonl").read_text()


def test_resuming_with_other_output_trains_the_same(options, folders, tmp_path):
    words = ("--prompt", "a sks dog", "--prior-weight", "0")
    fine_tune(options(*words, "--steps", "4", images=folders[:1]))
    straight = load_file(tmp_path / "run" / runs.STATE)
    shutil.rmtree(tmp_path / "run")
    fine_tune(options(*words, images=folders[:1]))
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "rex").rename(tmp_path / "photos")  # the same pictures elsewhere
    resume(moved, "--steps", "4", "--gradient-checkpointing", "--sample-every", "3", "--single-file",
           "--images", str(tmp_path / "photos"))
    stopped = load_file(moved / runs.STATE)
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


@pytest.mark.parametrize(
    "words", [("--lr", "1"), ("--batch-size", "2"), ("--seed", "1"), ("--sigma", "0.5"), ("--prompt", "a sks cat"),
              ("--kernel", "reference"), ("--dtype", "bfloat16"), ("--no-bayes",), ("--prior-weight", "1")],
)
def test_what_decides_the_training_may_not_change(options, folders, tmp_path, words):
    fine_tune(options("--prompt", "a sks dog", "--class-prompt", "a dog", "--prior-weight", "0", images=folders[:1]))
    with pytest.raises(UserError, match=f"{words[0].replace('no-', '')} is .* which decides what is trained"):
        resume(tmp_path / "run", *words)


def test_the_two_kernels_that_draw_the_same_may_change(options, folders, tmp_path, monkeypatch):
    fine_tune(options("--prompt", "a sks dog", "--prior-weight", "0", "--kernel", "reference", images=folders[:1]))
    run = tmp_path / "run"
    sd = StableDiffusion.load(runs.options_of(run).model)
    settled = settle(parse(TrainOptions, "x", ["--resume", "--out", str(run), "--kernel", "triton"]), sd, 2)
    runs.check_same_run(settled, data.list_pictures(folders[0]), of_model(sd))
