"""Is the corruption stage of Stable Diffusion one of guidance? `python -m minibnn experiment sd-gains --model SD`

Fine-tunes on one photograph without class pictures, as in the paper's §3.3, in four arms: plain, plain with the empty
prompt for a tenth of the pictures (--null-dropout), with an offset of the noise (--noise-offset), and with Bayesian
weights. A fifth, with `--class-prompt`, has class pictures, as DreamBooth has: in the textured model they took the
noise away with DDIM, because the prediction for the empty prompt stayed as it was, and brought it with PNDM. At seven
steps it measures the gains of the predictions with and without the prompt (`lab/gains.py`), over all directions, in
that of the mean colour and in that of the noise's strength, and draws the same checkpoint at guidance 1 and 7.5, with
η = 0 and 1, with PNDM, and from starting noise that has the photograph's mean colour. Noise is Immerkær's estimate in
grey levels. Beside it stand the noise that the law of gains predicts and its measured counterpart: the noise in which
the pictures of a drawing, encoded again, differ (`noise_between`). `verdict.py` has the criterion.

Leaves in --out ARM.jsonl (a line for each step), sd-gains.json, sd-gains.png (curves) and sd-gains-sheet.png. What is
there is not measured again; an interrupted arm goes on from its last checkpoint.

But: one seed and one photograph, no interval. It has not been run on SD yet.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ... import data
from ...checkpoints import STATE
from ...cli.train import fine_tune
from ...devices import training_dtype
from ...errors import UserError
from ...files.locks import locked
from ...files.rows import read_rows, write_rows
from ...files.store import write_json
from ...lab import gain_advice, gain_law, gains, monitor, sheets
from ...lab.sigma1_estimate import latents_of
from ...options.training import TrainOptions
from ...photo import loading
from ...photo import measures as photo
from ...pictures import grid, save_png, to_pil, to_tensor
from ...runs import fingerprint
from ...train import at_the_mean
from ..records import note_shared
from ..views import draw
from .verdict import DRAWINGS, GUIDANCE, curves, judge

ARMS = {
    "plain": {"bayes": False}, "null": {"bayes": False, "null_dropout": 0.1},
    "offset": {"bayes": False, "noise_offset": 0.1}, "bnn": {"bayes": True},
    "prior": {"bayes": False, "prior_weight": 1.0, "class_count": 64},
}
CHECKPOINTS = 4  # in an arm
THUMBNAIL = 128  # pixels of a picture in the sheet


def looks(steps):
    """The seven steps that are looked at: `looks(1600)` is [0, 50, 100, 200, 400, 800, 1600]."""
    return sorted({0, *(round(steps / 2**k) for k in range(6))})


class Look:
    """An observer of a Training: measures and draws at the steps of `looks`; its rows are kept in ARM.jsonl."""

    def __init__(self, arm, options):
        self.arm, self.options, self.steps = arm, options, looks(options.steps)
        self.path = Path(options.out) / f"{arm}.jsonl"
        self.rows = read_rows(self.path)
        self.latents = self.visible = self.dino = self.seen = None

    def __call__(self, training):
        if training.step in self.steps and training.step not in {row["step"] for row in self.rows}:
            sd = training.sd
            with at_the_mean(sd, getattr(torch, training_dtype(str(sd.device)))):
                self.keep({"arm": self.arm, "step": training.step} | self.look(sd, training.step))

    def keep(self, row):
        self.rows.append(row)
        write_rows(self.path, self.rows)

    def start(self, sd):
        """What is needed once: the photograph as latents, how much noise in them is seen, and Dino if it is given."""
        pictures = photograph(self.options, sd.recipe["resolution"])
        self.latents = latents_of(sd, pictures)
        visible = monitor.visible_noise(sd, self.latents, world=False)
        self.visible = visible if math.isfinite(visible) else None  # None: the decoder hides all noise
        if self.options.dino:
            self.dino = loading.load_dino(self.options.dino, sd.device)
            self.seen = photo.dino_pictures(to_pil(pictures), self.dino)

    @torch.no_grad()
    def look(self, sd, step):
        """Everything that is known of one checkpoint, as a dict for JSON."""
        if self.latents is None:
            self.start(sd)
        found, colour, strength = (gains.measure(sd, self.latents, self.options.prompt, part=part)
                                   for part in (gains.all_of, gains.colour_of, gains.strength_of))
        steps = self.options.sample_steps or sd.recipe["sample_steps"]
        reading = gain_advice.Reading(
            found.times, gains.mean(found.c), gains.mean(found.u), sd.alphas_cumprod.cpu(), steps
        )
        row = {
            "t": list(found.times), "c": reading.c, "u": reading.u, "guided": reading.guided(GUIDANCE),
            "colour c": gains.mean(colour.c), "colour u": gains.mean(colour.u),
            "strength c": gains.mean(strength.c), "strength u": gains.mean(strength.u),
            "standard error": gains.standard_error(found.guided(GUIDANCE)),
            "added noise": reading.added(GUIDANCE), "visible noise": self.visible, "drawings": {},
        }
        shown = []
        start_mean = self.latents.float().cpu().mean((0, 2, 3))
        for name, view in DRAWINGS.items():
            pictures = draw(sd, replace(view, steps=steps), [self.options.prompt] * self.options.count, seed=1,
                            batch_size=4, mean=start_mean)
            alike = photo.mean_similarity(photo.dino_pictures(pictures, self.dino), self.seen) if self.dino else None
            images = to_tensor(pictures)
            row["drawings"][name] = {
                "noise": monitor.noise_of(images, world=False).mean().item(),
                "predicted": reading.noise(view.guidance, view.eta, sampler=view.sampler),
                "noise between": gain_law.noise_between(latents_of(sd, images).cpu()),
                "fidelity": None if alike is None else alike.mean().item(),
            }
            shown.append(pictures[0].resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))
        save_png(grid(shown, len(shown)), strip(self.options, self.arm, step))
        return row


def photograph(options, resolution):
    """The first picture of --images as (1, 3, H, W)."""
    return data.load_pictures(data.list_pictures(options.images)[:1], resolution)


def strip(options, arm, step):
    """Where one picture of each drawing of a checkpoint is kept, side by side."""
    return Path(options.out) / "strips" / f"{arm}-{step:06d}.png"


# --- training ---------------------------------------------------------------------------------------------------------


def perform(arm, options):
    """Train and measure one arm, from where it stopped; its rows. What training leaves, 14 GB for SD, is deleted."""
    look, work = Look(arm, options), Path(options.out) / "training" / arm
    first = Path(options.out) / f"{next(iter(ARMS))}.jsonl"
    if not look.rows and arm != next(iter(ARMS)) and (rows := read_rows(first)):
        look.keep(rows[0] | {"arm": arm})  # before the first step all arms are the same model
        shutil.copy(strip(options, rows[0]["arm"], 0), strip(options, arm, 0))
    if look.steps[-1] not in {row["step"] for row in look.rows}:
        folder = work.with_name("photograph")
        folder.mkdir(parents=True, exist_ok=True)
        path = data.list_pictures(options.images)[0]
        shutil.copy(path, folder / path.name)
        try:
            fine_tune(train_options(arm, options, folder, work), [look])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped in the arm {arm}: the same command goes on") from None
    shutil.rmtree(work, ignore_errors=True)
    return look.rows


def train_options(arm, options, folder, work):
    """The options with which the command `train` makes an arm."""
    resume = (work / STATE).exists()
    own = {"prior_weight": 0.0} | ARMS[arm]
    if own["prior_weight"]:  # drawn beside the arm, whose folder is deleted
        own |= {"class_prompt": [options.class_prompt], "class_images": str(work.with_name("class_images"))}
    return TrainOptions(
        images=[str(folder)], model=options.model, tokenizer=options.tokenizer, prompt=[options.prompt],
        prediction_type=options.prediction_type, steps=options.steps, lr=options.lr,
        gradient_checkpointing=options.gradient_checkpointing, device=options.device, seed=options.seed, samples=0,
        monitor=False, checkpoint_every=max(1, options.steps // CHECKPOINTS), out=str(work), resume=resume,
        overwrite=not resume, **own,
    )


def claim(options):
    """Note what all arms share. Raises UserError if the folder holds results made with something else."""
    names = ("model", "tokenizer", "prediction_type", "prompt", "steps", "lr", "count", "sample_steps", "dino", "seed")
    names += ("class_prompt",) if "prior" in options.arms else ()
    own = {name: getattr(options, name) for name in names}
    note_shared(options.out, own | {"images": fingerprint(data.list_pictures(options.images)[:1], captions=False)})


def experiment(options):
    """Do what SdGainsOptions ask for, as far as it is not done yet; returns what is written as JSON."""
    if options.steps < 32:
        raise UserError(f"--steps {options.steps}: at least 32 are needed for seven different steps")
    if options.count < 2:
        raise UserError("--count 1: at least 2 pictures of each drawing are needed, to see in which noise they differ")
    data.list_pictures(options.images)  # raises UserError if there is none
    arms = [arm for arm in ARMS if arm in options.arms]
    if "plain" not in arms:
        raise UserError("--arms: plain is needed, with which the others are compared")
    if "prior" in arms and not options.class_prompt:
        raise UserError('--class-prompt is required for the arm prior, for instance "a photo of a dog"')
    evaluations = sum(2 if view.guidance != 1 else 1 for view in DRAWINGS.values()) * options.count
    times = options.sample_steps or "the recipe's"
    print(
        f"{len(arms)} trainings of {options.steps} steps; {6 * len(arms) + 1} checkpoints, each drawn with "
        f"{evaluations} evaluations of the UNet for each of {times} sampling steps"
    )
    if options.plan:
        return None
    with locked(options.out):
        return experiment_there(options, arms)


def experiment_there(options, arms):
    """The same in a folder that belongs to this process."""
    claim(options)
    found = {arm: perform(arm, options) for arm in arms}
    out = Path(options.out)
    save_png(curves(found), out / "sd-gains.png")
    save_png(pictures_of(found, options), out / "sd-gains-sheet.png")
    result = judge(found)
    write_json(out / "sd-gains.json", {"command": "experiment sd-gains"} | result | {"rows": found})
    print(f"{result['verdict']}\n{out / 'sd-gains.json'}: the figures; sd-gains.png, sd-gains-sheet.png: the pictures")
    return result


def pictures_of(found, options):
    """The sheet: a row for each arm and drawing, a column for each step."""
    rows, labels, across = [], [], THUMBNAIL + 2  # the gap of a grid
    for arm, kept in found.items():
        strips = [Image.open(strip(options, arm, row["step"])) for row in kept]
        for i, name in enumerate(DRAWINGS):
            rows.append([s.crop((i * across, 0, i * across + THUMBNAIL, THUMBNAIL)) for s in strips])
            labels.append(f"{arm}\n" + name.replace(", ", "\n"))
    return sheets.sheet(rows, labels, [f"step {row['step']}" for row in found["plain"]])
