"""Early warning while training (`--monitor`): a few fixed pictures, σ₁ and the gains of guidance, at even intervals.

    looks/NNNNNN.png  the pictures of each look, with their prompts
    curves.jsonl      one line for each look
    curves.png        loss, fidelity, noise, σ₁ and gains against the step, drawn again at each look
    faithful/NNNNNN/  the two most faithful of the steps at which noise had not risen, as models to draw with
    advice.json       which of them to use, and why

For the bundled world the measures are those of `minibnn/world/measures.py`. For photographs noise is Immerkær's
estimate, and fidelity is Dino's if --monitor-dino names its folder. Without it the latest of the steps at which noise
had not risen counts as the most faithful.

The gains (`gains.py`) tell why noise rises, often before the pictures do: from them the law of gains predicts how much
noise the recipe's guidance and sampling steps leave. It counts as seen when as much noise in the latents of a training
picture makes the measure of noise rise by RISEN, the same limit as for the pictures that are drawn.

Where a bundled model learns photographs, it looks and draws its curves all the same, but keeps and advises no step.

But: the pictures are drawn at θ = μ with few steps of DDIM. That shows a trend, but not how good a picture can be.
"""

import dataclasses
import math
import shutil
from pathlib import Path

import torch

from ..errors import UserError
from ..files.rows import read_rows, write_rows
from ..files.store import write_json
from ..finetune import ema, methods
from ..options.kinds import WORLD, refuse
from ..photo import measures as photo_measures
from ..photo.loading import load_dino
from ..pictures import save_png, to_pil, to_tensor
from ..runs import find_config
from ..train import at_the_mean
from ..world import measures as world_measures
from ..world.captions import elsewhere
from ..world.classifier import reconstruct
from ..world.drawing import SIZE
from . import curves, gain_advice, gains, plot, sigma1_estimate
from .captioned import Group, save_sheet
from .curves import RISEN, TIMES

STEPS = 8  # of DDIM
DRAWS = 2
PAIRS = 2  # of noise at each time at which gains are measured
LEARNED = 0.1  # fidelity that is no more above the first look's says that the training was too short
KEPT = 2
LOOKS = 6  # in a run after the first, if --monitor-every is not given
NOTHING_KNOWN = ("fidelity and noise were learned from drawings alone and say nothing of photographs, so that the "
                 "monitor advises no step")
EVALUATIONS = 6 * STEPS  # for the six pictures of a look


def settle(options):
    """TrainOptions with `monitor` decided. Raises UserError for options that would be ignored or cannot be met."""
    asked = options.monitor_dino is not None or options.monitor_every is not None
    if options.monitor is False:
        refuse(options, ("monitor_dino", "monitor_every"), "belongs to the monitor: leave it out, or add --monitor")
    if options.monitor_dino is not None:
        if is_world(options.model, options.resolution):
            raise UserError("--monitor-dino is for photographs: what the bundled model draws is measured without it")
        load_dino(options.monitor_dino, option="--monitor-dino")  # before anything is written
    on = options.monitor or (options.monitor is None and (asked or options.model in WORLD))
    return dataclasses.replace(options, monitor=on)


def is_world(model, resolution):
    """True where the world's own measures work: for what was trained from the bundled model, at its size."""
    return model in WORLD and resolution == SIZE


def noise_of(images, world):
    """Noise of pictures (B, 3, H, W) in [-1, 1], by the world's measure or as in photographs: (B,)."""
    return world_measures.noise(images) if world else 127.5 * world_measures.immerkaer(images)


def risen(world):
    """How far noise must rise to be seen, in the units of `noise_of`."""
    return RISEN["world" if world else "photo"]


def visible_noise(sd, latents, world):
    """The least noise in latents (n, 4, h, w) that is seen in the picture (`gain_advice.visible_noise`)."""
    return gain_advice.visible_noise(sd, latents, lambda images: noise_of(images, world), risen(world))


class Monitor:
    """An observer of a Training (`minibnn/train.py`): it looks every `every` steps, and `advice()` says what it saw."""

    def __init__(self, options, sd, images):
        self.options, self.out = options, Path(options.out)
        self.every = options.monitor_every or -(-options.steps // LOOKS)
        self.path = self.out / "curves.jsonl"
        self.rows = read_rows(self.path, curves.LOOK, curves.LOOK) if options.resume else []
        self.world = is_world(options.model, options.resolution)
        self.photographs = self.world and (find_config(self.out) or {}).get("photographs", False)
        self.dino = self.seen = self.visible = None
        self.drawing = sd.alphas_cumprod.cpu(), sd.recipe["sample_steps"], sd.recipe["guidance"]
        with at_the_mean(sd):
            self.latents = sigma1_estimate.latents_of(sd, images)
            if self.world:
                self.seen = reconstruct(sd, images.to(sd.device)).cpu()
        if options.monitor_dino:
            self.dino = load_dino(options.monitor_dino, sd.device, "--monitor-dino")
            self.seen = photo_measures.dino_pictures(to_pil(images), self.dino)

    def __call__(self, training):
        step = training.step
        if not self.looks_after(step):
            return
        self.rows = [row for row in self.rows if row["step"] < step]  # a resumed run looks again at its checkpoint
        self.rows.append({"step": step} | self.look(training.sd, step))
        write_rows(self.path, self.rows)
        self.save_chart()
        self.keep(training.sd)
        self.write_advice()

    def looks_after(self, step):
        """Whether it looks after this step."""
        return step % self.every == 0 or step == self.options.steps

    def look(self, sd, step):
        """Draw six pictures, show and measure them, and measure σ₁ and the gains: {name of the curve: number}."""
        prompt = self.options.prompt[0]  # of several subjects the first is watched
        prompts = [prompt] * 3 + elsewhere(prompt, self.options.model)
        size, at_once = self.options.resolution, 6 if self.world else 1
        with at_the_mean(sd, getattr(torch, self.options.dtype)):
            pictures = sd.generate(prompts, STEPS, seed=0, size=size, batch_size=at_once, progress=False)
            predict, latents = sigma1_estimate.predictor(sd, prompt), self.latents.to(sd.device)
            sigma1 = sigma1_estimate.estimate_sigma1(predict, latents, sd.alphas_cumprod, TIMES, DRAWS, resamples=10)
            few = latents[:PAIRS]
            gain = gains.measure(sd, few, prompt, draws=PAIRS // len(few), batch_size=2 * at_once)
            if self.visible is None:
                self.visible = visible_noise(sd, latents, self.world)
        title = f"step {step} of {self.options.steps}, drawn with {STEPS} steps of DDIM"
        shown = [Group(title, list(zip(pictures, prompts, strict=True)), 3)]
        save_sheet(shown, self.out / "looks" / f"{step:06d}.png", {"step": step})
        images, fidelity = to_tensor(pictures), None  # measured in full precision
        noise = noise_of(images, self.world)
        if self.world:
            fidelity = world_measures.fidelity(images, self.seen)[0]
        elif self.dino:
            shown = photo_measures.dino_pictures(pictures, self.dino)
            fidelity = photo_measures.mean_similarity(shown, self.seen)
        row = {"fidelity": None if fidelity is None else fidelity.mean().item(), "noise": noise.mean().item()}
        found = (s if math.isfinite(s) else None for s in sigma1.sigma1)
        row |= {f"sigma1 at {t}": s for t, s in zip(TIMES, found, strict=True)}
        for name, values in (("c", gain.c), ("u", gain.u)):
            row |= {f"gain {name} at {t}": g for t, g in zip(gain.times, gains.mean(values), strict=True)}
        return row

    def reading(self, row):
        """What a look found out about the gains, a `gain_advice.Reading`; None for a look of an earlier version."""
        if f"gain c at {gains.TIMES[0]}" not in row:
            return None
        c, u = ([row[f"gain {name} at {t}"] for t in gains.TIMES] for name in "cu")
        abar, steps, _ = self.drawing
        return gain_advice.Reading(gains.TIMES, c, u, abar, steps)

    def save_chart(self):
        """Draw curves.png. To be called again after the last step, whose line in log.jsonl comes after the look."""
        save_png(self.chart(), self.out / "curves.png")

    def chart(self):
        """The curves as a PIL picture."""
        steps, best = read_rows(self.out / "log.jsonl", curves.STEP, curves.STEP), (self.faithful() or [None])[0]
        return plot.chart(curves.panels(steps, self.rows, self.world, self.drawing[2], best), 2)

    @property
    def limit(self):
        """The noise above which it has risen, by that of the first look."""
        return self.rows[0]["noise"] + risen(self.world)

    def calm(self):
        """The rows at which noise had not risen above that of the first."""
        return [row for row in self.rows if row["noise"] <= self.limit]

    def faithful(self):
        """The steps to keep, the most faithful first; never step 0, which is the pretrained model.

        Empty where a model of the world learns photographs, whose fidelity and noise its measures do not know.
        """
        if self.photographs:
            return []
        there = [row for row in self.calm() if row is self.rows[-1] or self.folder(row["step"]).exists()]
        best = sorted(((row["fidelity"] or 0, row["step"]) for row in there if row["step"]), reverse=True)
        return [step for _, step in best[:KEPT]]

    def keep(self, sd):
        """Save the present step if it is among the most faithful, and then delete what no longer is."""
        wanted = [self.folder(step) for step in self.faithful()]
        now = self.folder(self.rows[-1]["step"])
        if now in wanted:
            with ema.averaged(sd.unet):
                methods.write_result(sd, self.options, now)
            shutil.copy(self.out / "config.json", now / "config.json")
        for old in now.parent.glob("[0-9]" * 6):
            if old not in wanted and not old.is_symlink() and find_config(old):  # the user's own stay
                shutil.rmtree(old)

    def folder(self, step):
        return self.out / "faithful" / f"{step:06d}"

    def write_advice(self):
        """Leave advice.json (`curves.py`)."""
        best = (self.faithful() or [None])[0]
        elsewhere = best is not None and best != self.options.steps
        write_json(self.out / "advice.json", {
            "step": best, "model": str(self.folder(best).relative_to(self.out)) if elsewhere else None,
            "guidance": self.drawing[2], "said": self.advice().splitlines(),
        })

    def advice(self):
        """When noise rose and which step to use; and, in a second line where there is something to say, the cause."""
        if self.photographs:
            return NOTHING_KNOWN
        return "\n".join(filter(None, [self.about_pictures(), self.about_guidance()]))

    def about_guidance(self):
        """Whether guidance leaves noise with the last weights, why and what helps; None where there is none at all."""
        readings = [(row["step"], reading) for row in self.rows if (reading := self.reading(row))]
        if not readings:
            return None
        (*_, guidance), (_, last) = self.drawing, readings[-1]
        said = gain_advice.verdict(last, guidance, self.visible, gain_advice.training_remedies(self.options))
        noisy = self.rows[-1] not in self.calm()
        if last.added(guidance) <= self.visible:
            return f"guidance is not the cause: {said}" if noisy else None
        onset = readings[-1][0]
        for step, reading in reversed(readings):
            if reading.added(guidance) <= self.visible:
                break
            onset = step
        return f"from step {onset} on {said}" + ("" if noisy else "; the pictures drawn here do not show it yet")

    def hardly_learned(self):
        """Words for a training in which fidelity has hardly risen, so that no step is to be advised for it; or None."""
        before, *after = (row["fidelity"] for row in self.rows)
        if None in (before, *after) or not after or max(after) - before >= LEARNED:
            return None
        fidelity = f"{before:.2f} before, {max(after):.2f} at most"
        return f"the subject is hardly learned (fidelity {fidelity}): try more --steps"

    def about_pictures(self):
        """One line: when noise rose, and which step to use."""
        first, calm, best = self.rows[0]["noise"], self.calm(), self.faithful()
        highest, seen = max(row["noise"] for row in self.rows), f"({self.out / 'curves.png'})"
        said = f"noise stayed low ({highest:.2f} at most, limit {self.limit:.2f})"
        if len(calm) < len(self.rows):
            noisy = next(row for row in self.rows if row not in calm)
            said = f"noise rose at step {noisy['step']}, from {first:.2f} to {noisy['noise']:.2f}"
            if self.rows[-1] in calm:
                last = max(row["step"] for row in self.rows if row not in calm)
                said += f", and was gone at step {min(row['step'] for row in calm if row['step'] > last)}"
        if not best:
            return f"{said}: at no step was it as low as before; try a smaller --lr {seen}"
        measured = self.rows[-1]["fidelity"] is not None
        if learned := self.hardly_learned():
            said += f"; {learned}"
        if best[0] == self.options.steps:
            return f"{said}; {'the last step is the most faithful' if measured else 'use the last step'} {seen}"
        why = "the most faithful" if measured else "the latest before that"
        return f"{said}; use step {best[0]}, {why}: --model {self.folder(best[0])} {seen}"
