"""The same fine-tuned weights, drawn in nine ways: `python -m minibnn experiment stage-views`.

Training has ended; all that changes is how the weights are drawn from. What the network knows of the picture is seen
at guidance 1, what guidance with an untrained ε(∅) makes of it at 7.5, and what is repaired by fresh noise (η = 1), by
the pretrained model's ε(∅) ("null"), and by starting noise that has the picture's mean colour ("colour") and a strength
of exactly 1 ("strength"). The weights are those that `experiment stage --keep` leaves; the bundled ones are of "plain",
cat, seed 0, after 800 steps.

Leaves in --out stage_views.png, a row for each way, and stage_views.json: fidelity and noise (`texture_measures.py`),
and the gains c and u that explain them.
"""

from dataclasses import replace
from pathlib import Path

from ... import data
from ...files.store import write_json
from ...files.weights import load_state, read_tensors
from ...lab import gains, sigma1_estimate
from ...lab.sheets import sheet
from ...pictures import save_png, to_pil, to_tensor
from ...pipeline import StableDiffusion
from ...world.texture_measures import noise_level, ssim
from ..views import View, draw

PICTURES, STEPS = 8, 50
NO_UNET = "these are not weights of --model's UNet; take those that `experiment stage --keep` left"
WAYS = {
    "guidance 1": View(guidance=1.0), "guidance 3": View(guidance=3.0), "guidance 7.5": View(guidance=7.5),
    "guidance 7.5, eta = 1": View(guidance=7.5, eta=1.0),
    "guidance 3, pretrained null": View(guidance=3.0, base=True),
    "guidance 7.5, pretrained null": View(guidance=7.5, base=True),
    "guidance 1, photo's colour": View(guidance=1.0, colour=True),
    "guidance 1, colour and strength": View(guidance=1.0, colour=True, strength=True),
    "guidance 7.5, colour and strength": View(guidance=7.5, colour=True, strength=True),
}


def views(options):
    """Draw, measure and write. Raises UserError for weights that do not fit the model."""
    sd, base = StableDiffusion.load(options.model), StableDiffusion.load(options.model)
    state = {name: p.float() for name, p in read_tensors(options.weights).items()}
    load_state(sd.unet, state, f"{options.weights}: {NO_UNET}")
    picture = data.load_pictures(data.list_pictures(options.images)[:1], sd.recipe["resolution"])
    latents = sigma1_estimate.latents_of(sd, picture)
    found = gains.measure(sd, latents, options.prompt, draws=16)
    rows, numbers = [], {"times": found.times, "c": gains.mean(found.c), "u": gains.mean(found.u), "ways": {}}
    for name, view in WAYS.items():
        drawn = draw(sd, replace(view, steps=STEPS), [options.prompt] * PICTURES, options.seed, PICTURES, base,
                     latents.mean((0, 2, 3)))
        rows.append([*to_pil(picture), *drawn])
        pictures = to_tensor(drawn)
        numbers["ways"][name] = {
            "fidelity": ssim(pictures, picture).tolist(),
            "noise": (100 * (noise_level(pictures) - noise_level(picture))).tolist(),
        }
        means = {what: sum(values) / PICTURES for what, values in numbers["ways"][name].items()}
        print(f"{name:33s} fidelity {means['fidelity']:.2f}, noise {means['noise']:+.1f}")
    labels = ["the photo", *(f"noise {i + 1}" for i in range(PICTURES))]
    ways = [name.replace(", ", ",\n") for name in WAYS]
    save_png(sheet(rows, ways, labels, 3).quantize(256), Path(options.out) / "stage_views.png", optimize=True)
    settings = {"weights": Path(options.weights).name, "prompt": options.prompt, "seed": options.seed, "steps": STEPS}
    write_json(Path(options.out) / "stage_views.json", settings | numbers)
