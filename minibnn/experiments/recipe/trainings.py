"""Does the first command personalise? `python -m minibnn experiment recipe` tries its recipe and others.

Three few-shot subjects of the picture world (six drawings each of a spotted dog, cat and fish) are trained with every
setting of `SETTINGS` and every seed, each by a `train` command of its own. Then pictures are drawn at θ = μ, from the
same noise for all, and judged by a network that was trained on drawings alone (`world/judge.py`). `MEASURES` says what
is measured. The seconds are those of the command; the class pictures are drawn once for each subject, by its first run.
Intervals are two-sided 95 % t-intervals over the runs of a setting. Leaves in --out: recipe.jsonl (a line for each run;
runs that are there are not repeated), recipe.md and recipe.png (of the command's first seed: a training picture, the
training prompt, six places, the class prompt twice).
"""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...devices import choose_threads, threads_kept
from ...files.locks import locked
from ...files.rows import read_rows, write_rows
from ...files.schema import integer, number, one_of, record
from ...files.store import read_json, write_text
from ...lab.energy_distance import permutation_test
from ...lab.intervals import interval, require_scipy
from ...lab.sheets import sheet
from ...pictures import grid, save_png, to_pil, to_tensor
from ...pipeline import StableDiffusion, place_of
from ...progress import progress_bar
from ...world import measures as world_measures
from ...world import scenes as world
from ...world.evaluate import open_model
from ...world.judge import judged, train_judge, validated
from ..children import train_apart
from ..records import check_alike, check_settings
from .settings import SETTINGS

EACH, TOLD, CLASS = 4, 8, 48  # pictures of each place, of the training prompt and of the class prompt
DRIFTED = 0.05  # below this p-value the class prompt has drifted
MEASURES = {
    "subject": "share of the pictures, four in each of ten places, that show the animal in its spotted coat",
    "place": "share of these pictures that show the place that was asked for",
    "both": "share of these pictures that are right in both",
    "told": f"share of {TOLD} pictures of the training prompt that show the subject",
    "leak": f"share of {CLASS} pictures of the class prompt in which the judge sees the spotted coat; of those of the "
            "pretrained model, which has never seen it, it says so in {least:.3f}",
    "varied": f"whether the class prompt has drifted: the p-value of a two-sample test (energy distance of features) "
              f"between those {CLASS} pictures and {CLASS} of the pretrained model is below {DRIFTED}",
    "drift": "the energy distance itself: how far the class prompt has moved; it is never below 0, and two samples of "
             "the pretrained model have {least:.3f}",
    "clipped": "percentage of the colour values of those pictures at an end of the scale, minus the pretrained model's",
    "noise": "energy of the pictures in places above that of clean drawings, minus the pretrained model's (10⁻³)",
}
LINE = {
    "setting": one_of(*SETTINGS), "subject": one_of(*world.ANIMALS), "seed": integer(0), "options": record({}),
    "seconds": number(0), "values": record(dict.fromkeys(MEASURES, number())),
}
SHOWN = ("beach", "snow", "night", "water", "fabric", "grass")
COLUMNS = [
    "a training\npicture", "training\nprompt", *(f"prompt with\n{place}" for place in SHOWN), *["class\nprompt"] * 2
]
SIDE, GAP = 128, 4  # of a picture of a strip, and between two of them, in pixels
PICTURE = f"""
![For each setting and subject a row: a training picture, then what is drawn for the training prompt, for six places and
twice for the class prompt.](recipe.png)

*One seed of each setting. The columns are a training picture, and what was drawn for the training prompt, for the
prompt with {", ".join(SHOWN)}, and, from two noises, for the class prompt.*
"""


def place_prompts(kind):
    """The forty prompts with their places: [("a photo of a sks dog on the grass", "grass"), …]."""
    return [(f"a photo of a sks {kind} {text}", name) for name, text in world.BACKGROUNDS.items()] * EACH


def draw(sd, prompts, seed):
    """Pictures of the prompts, (n, 3, 64, 64) in [-1, 1]."""
    return to_tensor(sd.generate(prompts, seed=seed, batch_size=16, progress=False))


@cache
def pretrained(model, kind):
    """What the pretrained model draws: CLASS pictures of the class (n, 3, 64, 64), and the noise of places."""
    sd = StableDiffusion.load(model)
    of_class = draw(sd, [f"a photo of a {kind}"] * CLASS, 3)
    places = draw(sd, [prompt.replace("sks ", "") for prompt, _ in place_prompts(kind)], 1)
    return of_class, world_measures.noise(places).mean().item()


def untrained(model, judge, kinds):
    """{"leak", "drift": of the pretrained model itself, the mean over the subjects}: what these measures have at least.
    """
    leaks, drifts = [], []
    for kind in kinds:
        before = pretrained(model, kind)[0]
        again = draw(StableDiffusion.load(model), [f"a photo of a {kind}"] * CLASS, 5)
        leaks += [coat == "spotted" for coat in judged(judge, before)["coat"]]
        drifts.append(permutation_test(*map(world_measures.features, (again, before)), permutations=0)[0])
    return {"leak": float(np.mean(leaks)), "drift": float(np.mean(drifts))}


def clipped(images):
    """Percentage of the values of images (n, 3, H, W) in [-1, 1] that lie at an end: garish pictures have more."""
    return 100 * (images.abs() > 0.97).float().mean().item()


def shown(seen, kind):
    """Which pictures show the animal in its spotted coat, as the judge saw them: a list of bool."""
    return [who == kind and coat == "spotted" for who, coat in zip(seen["subject"], seen["coat"], strict=True)]


def measure(sd, model, judge, kind):
    """{measure: value} of a fine-tuned model, and the pictures of its row."""
    prompts = place_prompts(kind)
    places = draw(sd, [prompt for prompt, _ in prompts], 1)
    told, of_class = draw(sd, [f"a photo of a sks {kind}"] * TOLD, 2), draw(sd, [f"a photo of a {kind}"] * CLASS, 4)
    seen, seen_told, seen_class = (judged(judge, images) for images in (places, told, of_class))
    subject = shown(seen, kind)
    place = [name == want for name, (_, want) in zip(seen["background"], prompts, strict=True)]
    before, noise_before = pretrained(model, kind)
    distance, p_value = permutation_test(*map(world_measures.features, (of_class, before)))
    values = {
        "subject": np.mean(subject), "place": np.mean(place), "both": np.mean(np.logical_and(subject, place)),
        "told": np.mean(shown(seen_told, kind)),
        "leak": np.mean([coat == "spotted" for coat in seen_class["coat"]]),
        "varied": p_value, "drift": distance, "clipped": clipped(of_class) - clipped(before),
        "noise": world_measures.noise(places).mean().item() - noise_before,
    }
    chosen = [places[list(world.BACKGROUNDS).index(name)] for name in SHOWN]
    return {name: round(float(value), 4) for name, value in values.items()}, torch.stack(
        [told[0], *chosen, *of_class[:2]]
    )


def class_folder(out, kind, setting):
    """Where the class pictures are that runs of this setting share with those that draw them alike."""
    words, name = setting.options, "--class-guidance"
    return out / "class_images" / (f"{kind}-guidance-{words[words.index(name) + 1]}" if name in words else kind)


def described(name, model):
    """What a line of recipe.jsonl says of its setting; the model's recipe decides what the setting leaves open."""
    setting, recipe = SETTINGS[name], place_of(model) / "recipe.json"
    own = {"recipe": read_json(recipe)} if recipe.exists() else {}
    return {"model": model, "train": list(setting.options), "captions": setting.captions} | own


def perform(name, kind, seed, options, judge):
    """Train and measure one run; returns its line and its row of pictures."""
    out = Path(options.out)
    setting, folder = SETTINGS[name], out / "training"
    images = out / "subjects" / f"{kind}-{setting.captions}"
    world.write_subject(images, kind, setting.captions)
    words = [
        "--model", options.model, "--images", str(images), "--out", str(folder), "--prompt", f"a photo of a sks {kind}",
        "--class-prompt", f"a photo of a {kind}", "--seed", str(seed), "--class-images",
        str(class_folder(out, kind, setting)), "--samples", "0", "--no-monitor", "--overwrite", *setting.options,
    ]
    seconds = train_apart(f"{name}, {kind}, seed {seed}", words)
    values, pictures = measure(StableDiffusion.load(folder), options.model, judge, kind)
    shutil.rmtree(folder)
    return {"setting": name, "subject": kind, "seed": seed, "options": described(name, options.model),
            "seconds": round(seconds, 1), "values": values}, pictures


# --- the table --------------------------------------------------------------------------------------------------------


def markdown(lines, names, right, whole, least):
    """The page: what its columns mean, and what each setting gives and how long it takes.

    right, whole: of `validated`. least: of `untrained`.
    """
    ran = {name: own for name in names if (own := [line for line in lines if line["setting"] == name])}
    more = {name: f"`{' '.join(SETTINGS[name].options)}`" for name in ran if SETTINGS[name].options}
    columns = ["setting", "captions", "runs", *MEASURES, "s", *(["options of `train`"] if more else [])]
    rows = [
        "# What the recipe and others give", "",
        "A run fine-tunes the bundled model on six drawings of a spotted animal, with one subject and one seed. Its "
        "pictures are judged by a network that was trained on drawings alone. On new drawings this judge is right "
        f"{', '.join(f'about the {name} in {share:.1%}' for name, share in right.items())}, and of new drawings of the "
        f"few-shot subjects in all places it gets {whole:.1%} right in all three. {commands(ran)}", "",
        "- **captions**: so many of the six training pictures have a caption that names the place",
        *(f"- **{name}**: {text.format(least=least.get(name))}" for name, text in MEASURES.items()),
        "- **s**: seconds of the whole command", "",
        "Shares are between 0 and 1. A cell is the mean over the runs, with its 95 % t-interval; under *varied* it is "
        "the number of runs that drifted.", "",
        f"| {' | '.join(columns)} |", "|---" * len(columns) + "|",
    ]
    for name, own in ran.items():
        cells = [cell(what, [line["values"][what] for line in own]) for what in MEASURES]
        cells.append(f"{np.mean([line['seconds'] for line in own]):.0f}")
        cells += [more.get(name, "the recipe's")] if more else []
        rows.append(f"| {name} | {SETTINGS[name].captions} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def commands(ran):
    """The commands that make the runs {setting: its lines}, one for each set of seeds, as a sentence."""
    named = {}
    for name, own in ran.items():
        named.setdefault(tuple(sorted({line["seed"] for line in own})), []).append(name)
    words = [f"--settings {' '.join(names)} --seeds {' '.join(map(str, seeds))}" for seeds, names in named.items()]
    others = "".join(f", and the same with `{each}`" for each in words[1:])
    return f"The command is `python -m minibnn experiment recipe {words[0]}`{others}."


def cell(what, values):
    """One measure of the runs of a setting, in words."""
    if what == "varied":
        return f"{sum(value < DRIFTED for value in values)} of {len(values)}"
    mean, low, high = interval(values)
    return f"{mean:.2f}" + (f" ({low:.2f} … {high:.2f})" if len(values) > 1 else "")


@threads_kept()
def experiment(options):
    """Perform the runs of RecipeOptions that are not there yet; write the table. Raises UserError."""
    out = Path(options.out)
    check_settings(options.settings, SETTINGS)
    network = open_model(options.model).unet
    path = out / "recipe.jsonl"
    found = {(line["setting"], line["subject"], line["seed"]): line for line in read_rows(path, LINE, tuple(LINE))}
    for (name, kind, seed), line in found.items():
        now, was = described(name, options.model), line["options"]  # lines of before do not name the recipe
        check_alike(was, {key: now[key] for key in now if key in was}, f"{path}: {name}, {kind}, seed {seed}")
    wanted = [(name, kind, seed) for name in options.settings for seed in options.seeds for kind in options.subjects]
    todo = [run for run in wanted if run not in found]
    print(f"{len(todo)} of {len(wanted)} runs are to be made")
    if options.plan:
        return
    require_scipy()
    choose_threads("cpu", network)
    with locked(out):
        make(todo, found, options)


def make(todo, found, options):
    """Perform these runs, add them to found {run: line}, and write the table; --out is ours alone."""
    out = Path(options.out)
    judge = train_judge(out / "judge.safetensors")
    for name, kind, seed in progress_bar(todo, desc="runs"):
        line, pictures = perform(name, kind, seed, options, judge)
        if seed == options.seeds[0]:
            strip = strip_of(world.draw(next(world.animal_scenes(kind))), pictures)
            save_png(strip, out / "strips" / f"{name}-{kind}.png")
        found[name, kind, seed] = line
        write_rows(out / "recipe.jsonl", found.values())
    paths = [out / "strips" / f"{name}-{kind}.png" for name in options.settings for kind in options.subjects]
    strips = {path.stem: Image.open(path) for path in paths if path.exists()}
    least = untrained(options.model, judge, options.subjects)
    text = markdown(list(found.values()), options.settings, *validated(judge), least)
    if strips:
        save_png(picture(strips).quantize(96), out / "recipe.png", optimize=True)
        text += PICTURE
    write_text(out / "recipe.md", text)
    print(text)


def picture(strips):
    """The strips {setting-subject: PIL image} below one another, with what each column shows."""
    places = range(0, next(iter(strips.values())).width, SIDE + GAP)
    rows = [[strip.crop((x, 0, x + SIDE, SIDE)) for x in places] for strip in strips.values()]
    return sheet(rows, list(strips), COLUMNS)


def strip_of(first, pictures):
    """The first training picture and the drawn ones side by side."""
    return grid([first, *to_pil(pictures)], len(pictures) + 1, zoom=2)
