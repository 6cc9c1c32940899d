"""Early warning while training (`--monitor`): a few fixed pictures at even intervals, their fidelity and noise, and σ₁.

    curves.jsonl      one line for each look
    curves.png        fidelity, noise and σ₁ against the step, drawn again at each look
    faithful/NNNNNN/  the two most faithful of the steps at which noise had not risen, as models to draw with

For the bundled world the measures are those of `metrics.py`. For photographs noise is Immerkær's estimate, and fidelity is
Dino's if --monitor-dino names its folder; without it the latest step without noise counts as the most faithful.

The pictures are drawn at θ = μ with few steps of DDIM: enough to see a trend, not to judge a picture.
"""

import json
import shutil
from pathlib import Path

import torch

from ..errors import UserError
from ..files.store import write_text, write_whole
from ..finetune import methods
from ..pictures import to_pil
from ..train import at_the_mean
from ..world import measures as world_measures
from ..world.classifier import reconstruct
from ..world.drawing import SIZE
from . import plot, sigma1_estimate

STEPS = 8  # of DDIM
TIMES = (100, 500, 900)  # at which σ₁ is measured
DRAWS = 2
KEPT = 2
LOOKS = 6  # in a run after the first, if --monitor-every is not given
PLACES = ("on the beach", "in the snow", "on a wooden floor")
RISEN = {"world": 0.5, "photo": 1.0}  # how far noise must rise: 10⁻³ of energy; grey levels of 255


def settle(options):
    """--monitor as the other options mean it: TrainOptions -> True or False. Raises UserError, before anything is written,
    for what contradicts itself or cannot be measured."""
    asked = options.monitor_dino is not None or options.monitor_every is not None
    if options.monitor is False and asked:
        raise UserError("--monitor-dino and --monitor-every contradict --no-monitor")
    if options.monitor_dino is not None:
        if is_world(options):
            raise UserError("--monitor-dino is for photographs: what the bundled model draws is measured without it")
        open_dino(options)
    return options.monitor or (options.monitor is None and (asked or options.model == "tiny"))


def is_world(options):
    """True where the world's own measures work; their classifier knows one size."""
    return options.model == "tiny" and options.resolution == SIZE


def open_dino(options, device="cpu"):
    from ..photo.loading import load_dino

    return load_dino(options.monitor_dino, device, "--monitor-dino")


class Monitor:
    """An observer of `train`: monitor(step, sd) looks every `every` steps; `advice()` says what it saw."""

    def __init__(self, options, sd, images):
        self.options, self.out = options, Path(options.out)
        self.every = options.monitor_every or -(-options.steps // LOOKS)
        self.path = self.out / "curves.jsonl"
        self.rows = []
        if options.resume and self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.world = is_world(options)
        self.dino = self.seen = None
        with at_the_mean(sd):
            self.latents = sigma1_estimate.latents_of(sd, images)
            if self.world:
                self.seen = reconstruct(sd, images.to(sd.device)).cpu()
        if options.monitor_dino:
            from ..photo.measures import dino_pictures

            self.dino = open_dino(options, sd.device)
            self.seen = dino_pictures(to_pil(images), self.dino)

    def __call__(self, step, sd):
        if step and step % self.every and step != self.options.steps:
            return
        self.rows = [row for row in self.rows if row["step"] < step]  # a resumed run looks again at its checkpoint
        self.rows.append({"step": step} | self.look(sd))
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        chart = self.chart()
        write_whole(self.out / "curves.png", lambda path: chart.save(path, format="PNG"))
        self.keep(sd)

    def look(self, sd):
        """Draw six pictures and measure them."""
        prompts = [self.options.prompt] * 3 + [f"{self.options.prompt} {place}" for place in PLACES]
        size, at_once = self.options.resolution, 6 if self.world else 1
        with at_the_mean(sd, getattr(torch, self.options.dtype)):
            pictures = sd.generate(prompts, STEPS, seed=0, size=size, batch_size=at_once, progress=False)
            predict, latents = sigma1_estimate.predictor(sd, self.options.prompt), self.latents.to(sd.device)
            sigma1 = sigma1_estimate.estimate_sigma1(predict, latents, sd.alphas_cumprod, TIMES, DRAWS, resamples=10)
        images = pictures.to_tensor(pictures)  # measured in full precision
        if self.world:
            fidelity, noise = world_measures.fidelity(images, self.seen)[0], world_measures.noise(images)
        else:
            fidelity, noise = self.photo_fidelity(pictures), 127.5 * world_measures.immerkaer(images)
        row = {"fidelity": None if fidelity is None else fidelity.mean().item(), "noise": noise.mean().item()}
        return row | {f"sigma1 at {t}": s for t, s in zip(TIMES, sigma1.sigma1, strict=True)}

    def photo_fidelity(self, pictures):
        """Mean Dino similarity to the training photographs, or None without Dino."""
        if self.dino is None:
            return None
        from ..photo.measures import dino_pictures, mean_similarity

        return mean_similarity(dino_pictures(pictures, self.dino), self.seen)

    def chart(self):
        steps = [row["step"] for row in self.rows]

        def line(name):
            return plot.Line(name, steps, [row[name] for row in self.rows])

        noise = "noise above clean drawings (x 1000)" if self.world else "noise (grey levels, Immerkaer)"
        panels = [
            plot.Panel("fidelity to the training pictures", [line("fidelity")]),
            plot.Panel(noise, [line("noise")]),
            plot.Panel("sigma_1 of Eq. 2", [line(f"sigma1 at {t}") for t in TIMES]),
        ]
        return plot.chart(panels, 3)

    def calm(self):
        """Lines at which noise had not risen above that of the first."""
        limit = self.rows[0]["noise"] + RISEN["world" if self.world else "photo"]
        return [row for row in self.rows if row["noise"] <= limit]

    def faithful(self):
        """The steps to keep, the most faithful first; never step 0, which is the pretrained model."""
        rows = [row for row in self.calm() if row["step"] and (row is self.rows[-1] or self.folder(row["step"]).exists())]
        rows.sort(key=lambda row: (row["fidelity"] if row["fidelity"] is not None else 0, row["step"]), reverse=True)
        return [row["step"] for row in rows[:KEPT]]

    def keep(self, sd):
        """Save the present step if it is among the most faithful, and then delete what no longer is."""
        wanted = [self.folder(step) for step in self.faithful()]
        now = self.folder(self.rows[-1]["step"])
        if now in wanted:
            methods.write_result(sd, self.options, now)
            shutil.copy(self.out / "config.json", now / "config.json")
        for old in now.parent.glob("[0-9]" * 6):
            if old not in wanted:
                shutil.rmtree(old)

    def folder(self, step):
        return self.out / "faithful" / f"{step:06d}"

    def advice(self):
        """One line: when noise rose, and which step to use."""
        calm = {row["step"] for row in self.calm()}
        risen = next((row for row in self.rows if row["step"] not in calm), None)
        first = self.rows[0]["noise"]
        said = f"noise rose at step {risen['step']}, from {first:.2f} to {risen['noise']:.2f}" if risen else "noise never rose"
        seen = f"({self.out / 'curves.png'})"
        if not self.faithful():
            return f"{said}: at no step was it as low as before; try a smaller --lr  {seen}"
        best = self.faithful()[0]
        if best == self.options.steps:
            return f"{said}; the last step is the most faithful  {seen}"
        return f"{said}; use step {best}: --model {self.folder(best)}  {seen}"
