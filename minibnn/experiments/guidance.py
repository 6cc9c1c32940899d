"""Guidance with and without the base's unconditional prediction.

    python -m minibnn experiment guidance --runs runs/dog

Draws 16 pictures for each run and each scale, of the training prompt and of four places, from the same noise for all.
Runs are folders of `python -m minibnn.train`, of any method. Measured (see `world/measures.py`):

    fidelity    cosine to the training pictures, mean over all
    place       share of the pictures with a place whose background is judged to be the prompted one
    noise       high-frequency energy of calm areas above clean drawings', × 1000
    clipped     share of channel values at 0 or 255: saturation

guidance-samples.png has a row for each run without and with the base. It shows the scales 1.5, 3 and 7.5 with four
pictures each: the training prompt, beach, snow and night. guidance.json keeps earlier runs of the same base, prompt and
pictures.
"""

from pathlib import Path

from PIL import Image

from .. import data
from ..devices import choose_threads
from ..errors import UserError
from ..files.schema import mapping, number, record
from ..files.store import read_json, write_json
from ..lab.plot import Line, Panel, chart
from ..lab.sheets import sheet
from ..neighbours import guidance
from ..pictures import save_png, to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..runs import fingerprint
from ..world import measures as world_measures
from ..world import scenes as world
from ..world.classifier import reconstruct
from .records import check_alike

SCALES = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5)
PLACES = ("beach", "snow", "night", "wood")
MEASURES = ("fidelity", "place", "noise", "clipped")
CELLS = mapping(record(dict.fromkeys(MEASURES, number()), MEASURES))
TABLE = record({"own": CELLS, "base": CELLS}, required=("own", "base"))  # of a run, in guidance.json


def prompts_and_places(prompt):
    """Four times the prompt alone, then three times each with four places: 16 prompts, 16 places or None."""
    places = [None] * 4 + [place for place in PLACES for _ in range(3)]
    return [f"{prompt} {world.BACKGROUNDS[place]}" if place else prompt for place in places], places


def measure(pictures, places, training):
    """MEASURES of the pictures of one scale; training: the decoded training pictures (n, 3, 64, 64)."""
    images, wanted = to_tensor(pictures), [{"background": place} if place else {} for place in places]
    told = [right for right in world_measures.prompt_fidelity(images, wanted)["background"] if right is not None]
    return {
        "fidelity": world_measures.fidelity(images, training)[0].mean().item(),
        "place": sum(told) / len(told),
        "noise": world_measures.noise(images).mean().item(),
        "clipped": (images.abs() == 1).float().mean().item(),
    }


def names_of(runs):
    """{folder's name: folder}. Raises UserError when two have the same name, under which results are kept."""
    named = {Path(folder).resolve().name: folder for folder in runs}
    if len(named) < len(runs):
        raise UserError(f"--runs {' '.join(runs)}: two folders have the same name; rename one")
    return named


def kept_runs(path, settings):
    """The earlier results in a file, {name: table}. Raises UserError when they were made with other settings."""
    kind = record({"runs": mapping(TABLE)}, required=("runs",))
    before = read_json(path, kind) if path.exists() else settings | {"runs": {}}
    check_alike(before, settings, path)
    return before["runs"]


def experiment(options):
    """Draw and measure the runs of GuidanceOptions, and write figures, pictures and curves."""
    runs = names_of(options.runs)
    base = StableDiffusion.load(options.base, options.tokenizer, prediction_type=options.prediction_type)
    choose_threads("cpu", base.unet)
    prompts, places = prompts_and_places(options.prompt)
    files = data.list_pictures(options.images)
    training = reconstruct(base, data.load_pictures(files, base.recipe["resolution"]))
    out = Path(options.out)
    path = out / "guidance.json"
    settings = {"base": options.base, "prompt": options.prompt, "images": fingerprint(files), "seed": 0}
    result = settings | {"runs": kept_runs(path, settings)}
    shown, labels = [], []
    for run_name, folder in runs.items():
        sd = StableDiffusion.load(folder)
        with_base = guidance.one_condition(sd, guidance.unconditional_of(base, sd))
        table = {"own": {}, "base": {}}
        for name, predictor in (("own", None), ("base", with_base)):
            shown.append([])
            labels.append(f"{run_name}\n{name}")
            for scale in progress_bar(SCALES, desc=f"{folder}, unconditional: {name}"):
                pictures = sd.generate(prompts, guidance=scale, batch_size=16, predictor=predictor, progress=False)
                table[name][f"{scale:g}"] = measure(pictures, places, training)
                if scale in (1.5, 3.0, 7.5):
                    shown[-1] += [pictures[i] for i in (0, 4, 7, 10)]
        result["runs"][run_name] = table
        write_json(path, result)
    columns = [f"{scale:g}" if i == 0 else "" for scale in (1.5, 3, 7.5) for i in range(4)]
    picture = sheet(shown, labels, columns).quantize(256, dither=Image.Dither.NONE)
    save_png(picture, out / "guidance-samples.png", optimize=True)
    save_png(curves(result), out / "guidance.png")
    print_table(result)


def curves(result):
    """The measures over the scale, a panel for each: a PIL picture."""
    panels = []
    for key in MEASURES:
        lines = [
            Line(f"{name}, {source}", list(SCALES), [cells[f"{scale:g}"][key] for scale in SCALES])
            for name, table in result["runs"].items() for source, cells in table.items()
        ]
        panels.append(Panel(key, lines, "guidance"))
    return chart(panels, columns=4)


def print_table(result):
    """Print the measures as a Markdown table."""
    print("| run | unconditional | measure | " + " | ".join(f"{s:g}" for s in SCALES) + " |")
    print("|---|---|---|" + "---|" * len(SCALES))
    for run_name, table in result["runs"].items():
        for name, cells in table.items():
            for key in MEASURES:
                values = " | ".join(f"{cells[f'{s:g}'][key]:.2f}" for s in SCALES)
                print(f"| {run_name} | {name} | {key} | {values} |")
