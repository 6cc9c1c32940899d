"""The corruption stage in the textured model, measured: `python -m minibnn experiment stage`.

Follows: the paper's §3.1 and §5. A run fine-tunes on one picture (or four) with the training loop of `train.py`. At the
steps of `settings.py` it draws the training prompt and four other prompts at θ = μ, always from the same noise,
and measures how close they are to the picture (SSIM), how noisy (Immerkær) and how tinted, and the gains c and u of the
network around the picture (`lab/gains.py`), over all directions and in that of the mean colour, which tell the cause.
`report.py` has the criterion, the tables and the plots.

Leaves in --out, for each run, NAME.jsonl (a line for each look, view and group of prompts) and NAME.png (a row for each
look at guidance 7.5: four pictures of the training prompt, four of the others), and with --keep NAME.safetensors, the
last weights of the UNet in half precision. A run whose lines are there is not repeated, and a run that is interrupted
leaves nothing.
"""

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import class_pictures, data
from ...cli.settle import settle
from ...devices import threads_kept
from ...files.locks import locked
from ...files.rows import write_rows
from ...files.weights import write_tensors
from ...finetune import bayes
from ...lab import gains, sigma1_estimate
from ...options.training import TrainOptions
from ...pictures import grid, save_png, to_pil, to_tensor
from ...pipeline import StableDiffusion, place_of
from ...progress import progress_bar
from ...runs import fingerprint
from ...train import Batches, at_the_mean, fine_tuning, train
from ...world import scenes, textures
from ...world.texture_measures import noise_level, ssim
from ..records import check_names, check_settings, note_shared
from ..views import draw
from .settings import MAIN, OTHER_PROMPTS, PICTURES, PLAIN, SETTINGS, views_at

GAIN_DRAWS = 8  # pairs of noises at each time
LOSS_DRAWS = 64  # of time and noise, for the conditional loss; the same at every look
CLASS_PICTURES = 64  # for prior preservation
ZOOM = 2  # of the strips of pictures
FORGETS = 0.98  # of the running mean of the weights, a step


@dataclass(frozen=True)
class Run:
    """One fine-tuning: a setting, a folder of pictures, a seed, and a pretrained model (a bundled one or a folder)."""

    setting: str
    subject: str
    seed: int
    model: str

    @property
    def name(self):
        return f"{self.setting}-{Path(self.subject).name}-{Path(self.model).name}-{self.seed}"


class Observer:
    """Watches a training: measures at the setting's looks, and keeps the running mean of μ."""

    def __init__(self, run, images, prompt):
        self.run, self.setting, self.images = run, SETTINGS[run.setting], images
        self.groups = {"training": [prompt] * PICTURES, "other": list(OTHER_PROMPTS)}
        self.rows, self.strips, self.average, self.base = [], [], None, None
        self.began = time.process_time()

    @torch.no_grad()
    def __call__(self, training):
        unet, step = training.sd.unet, training.step
        means = {n: p for n, p in unet.named_parameters() if not n.endswith("_sigma")}
        if self.average is None:
            self.average = {name: p.detach().clone() for name, p in means.items()}
        share = max(1 - FORGETS, 1 / (step + 1))  # a running mean at first
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in means.values()], share)
        if step in self.setting.looks:
            with at_the_mean(training.sd):
                self.look(training.sd, step)

    def look(self, sd, step):
        """Measure one checkpoint."""
        if self.base is None:  # the first look is before the first step; random layers then have their means in place
            self.base = copy.copy(sd)
            self.base.unet = copy.deepcopy(sd.unet).eval()
            self.latents = sigma1_estimate.latents_of(sd, self.images)
        prompt = self.groups["training"][0]
        found, colour = (gains.measure(sd, self.latents, prompt, draws=GAIN_DRAWS, part=part)
                         for part in (gains.all_of, gains.colour_of))
        shared = {
            "run": self.run.name, **dataclasses.asdict(self.run), "step": step,
            "seconds": round(time.process_time() - self.began, 1),
            "times": found.times, "c": rounded(gains.mean(found.c)), "u": rounded(gains.mean(found.u)),
            "colour_c": rounded(gains.mean(colour.c)), "colour_u": rounded(gains.mean(colour.u)),
            "loss": round(self.loss(sd), 5),
        }
        for view in dict.fromkeys((*views_at(step, self.setting.looks[-1]), *self.setting.everywhere)):
            prompts = [prompt for group in self.groups.values() for prompt in group]
            pictures = to_tensor(self.draw(sd, view, prompts))
            if view == MAIN:
                self.strips += pictures.split(1)
            for number, group in enumerate(self.groups):
                part = pictures[PICTURES * number : PICTURES * (number + 1)]
                near = torch.stack([ssim(part, image[None]) for image in self.images])  # (n, PICTURES)
                excess = 100 * (noise_level(part).mean() - noise_level(self.images).mean())
                self.rows.append(shared | {
                    "view": view.name, "group": group, "fidelity": round(near.amax(0).mean().item(), 4),
                    "noise": round(excess.item(), 3), "spread": round(part.std(0).mean().item(), 4),
                    "tint": round(tint(part, self.images), 4),
                })

    def loss(self, sd):
        """The conditional loss around the training pictures, with the same times and noises at every look."""
        generator = torch.Generator().manual_seed(77)
        t = torch.randint(0, 1000, (LOSS_DRAWS,), generator=generator)
        x0 = self.latents[torch.arange(LOSS_DRAWS) % len(self.latents)]
        eps = torch.randn(x0.shape, generator=generator)
        abar = sd.alphas_cumprod[t][:, None, None, None]
        context = sd.encode_prompts(self.groups["training"][:1]).expand(LOSS_DRAWS, -1, -1)
        return (sd.predict_eps(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t, context) - eps).square().mean().item()

    def draw(self, sd, view, prompts):
        """Pictures of the prompts as the view draws them, with the run's seed at every look."""
        own = [p for n, p in sd.unet.named_parameters() if not n.endswith("_sigma")]
        kept = [p.detach().clone() for p in own]
        if view.average:
            torch._foreach_copy_(own, list(self.average.values()))
        try:
            return draw(sd, view, prompts, 9000 + self.run.seed, len(prompts), self.base, self.latents.mean((0, 2, 3)))
        finally:
            torch._foreach_copy_(own, kept)


def tint(pictures, images):
    """How far the mean colours are from that of the nearest of `images`: rms over pictures and colours; white is 1."""
    apart = torch.cdist(pictures.mean((2, 3)), images.mean((2, 3))).amin(1)
    return (apart.square().mean() / 3).sqrt().item()


def rounded(values):
    return [round(value, 5) for value in values]


def pictures_of(run, resolution):
    """The pictures of a run: (n, 3, H, W) in [-1, 1]."""
    setting = SETTINGS[run.setting]
    if setting.flat:  # the picture world's drawing that is most unlike the materials: flat colour with few edges
        drawing = scenes.draw(scenes.Scene("dog", "red", "grass"))
        pixels = textures.crop(drawing, 1.0, resolution)
        return torch.from_numpy(pixels.transpose(2, 0, 1))[None] * 2 - 1
    return data.load_pictures(data.list_pictures(run.subject)[: setting.pictures], resolution)


def train_options(run, sd, options):
    """TrainOptions of this run, settled."""
    setting = SETTINGS[run.setting]
    asked = TrainOptions(**(PLAIN | setting.options | {
        "images": [run.subject], "model": run.model, "seed": run.seed, "steps": setting.looks[-1], "device": "cpu",
        "monitor": False, "samples": 0, "out": str(Path(options.out) / run.name), "class_count": CLASS_PICTURES,
        "class_images": str(Path(options.out) / f"class-{Path(run.model).name}"),
    }))
    return settle(asked, sd, setting.pictures)


def perform(run, options):
    """Train and measure one run, and leave its two files."""
    sd = StableDiffusion.load(run.model)
    given = train_options(run, sd, options)
    images = pictures_of(run, given.resolution)
    (prompt,), sources = given.prompt, [(images, given.prompt * len(images))]
    if given.prior_weight:
        made_for = class_pictures.record(given.class_prompt[0], run.model, given.resolution, given.class_guidance)
        paths = class_pictures.complete(sd, given.class_images, given.class_count, made_for)
        sources.append((data.load_pictures(paths, given.resolution), given.class_prompt * len(paths)))
    batches = Batches(sd, sources, given.batch_size, given.seed, given.null_dropout)
    training = fine_tuning(sd, given)
    if SETTINGS[run.setting].fixed_sigma:
        for _, sigma in bayes.sigmas(sd.unet).values():
            sigma.requires_grad_(False)
    observer = Observer(run, images, prompt)
    train(training, given, batches, [observer])
    if options.keep:
        means = {name: p.half() for name, p in bayes.posterior_mean(sd.unet).items()}
        write_tensors(Path(options.out) / f"{run.name}.safetensors", means)
    strip = to_pil(torch.cat(observer.strips))
    save_png(grid(strip, 2 * PICTURES, ZOOM), Path(options.out) / f"{run.name}.png", optimize=True)
    write_rows(Path(options.out) / f"{run.name}.jsonl", observer.rows)  # last: it says that the run is done


def planned(options):
    """The runs that the options name, the seeds in the outer loop. Raises UserError for what cannot be."""
    check_settings(options.settings, SETTINGS)
    check_names([Path(subject).name for subject in options.images], "--images: two folders")
    runs = []
    for seed in options.seeds:
        for number, subject in enumerate(options.images):
            for setting in options.settings:
                if not (SETTINGS[setting].flat and number):  # the same drawing whatever the subject is
                    runs.append(Run(setting, subject, seed, options.model))
    return runs


@threads_kept()
def experiment(options):
    """Perform all runs that are not yet there."""
    out, runs = Path(options.out), planned(options)
    todo = [run for run in runs if not (out / f"{run.name}.jsonl").exists()]
    print(f"{len(todo)} of {len(runs)} runs are to be made")
    if options.plan:
        return
    torch.set_num_threads(1)
    with locked(out):
        make(todo, options)


def make(todo, options):
    """Perform these runs; --out is ours alone."""
    seen = {Path(subject).name: fingerprint(data.list_pictures(subject), captions=False) for subject in options.images}
    model = place_of(options.model)
    weights = [model] if model.is_file() else sorted(model.glob("unet/*.safetensors"))
    seen[f"model {Path(options.model).name}"] = fingerprint(weights, captions=False)
    note_shared(options.out, seen)
    for run in progress_bar(todo, desc="runs"):
        perform(run, options)
