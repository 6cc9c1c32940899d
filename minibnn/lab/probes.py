"""What the commands of `python -m minibnn.corruption` do: each probe of the paper's §3 and App. E-F, as numbers and a picture.

Each takes a Lab (the models side by side, their training pictures as latents) and the options, and returns
(image, numbers, lines): a PIL image, what goes into the JSON file, and what is printed.

But: predictions use the prompt alone, without guidance, at the posterior mean.
"""

import dataclasses
import math

import torch

from .. import schedule
from ..files.store import write_json
from ..pictures import beside, save_png, sheet, to_pil
from .drawn_by_eq2 import predicted
from .eq2 import gain
from .models import all_steps, check_out, cosine, interval, noises, one_step, open_lab
from .plot import Line, Panel, chart
from .sigma1_estimate import TIMES, estimate_sigma1, latents_of, predictor

PAPER_SIGMA1 = 4.8  # §3.3, after 1,000 steps


def log10(values):
    """Logarithms, None where there is none."""
    return [math.log10(v) if v > 0 else None for v in values]


# --- the commands -----------------------------------------------------------------------------------------------------


def sigma1(lab, options):
    found, lines, by_sigma, by_loss = {}, [f"{len(lab.latents)} pictures, {options.draws} draws each; 95 % intervals; prompt {lab.prompt!r}"], [], []
    for name, sd in lab.models.items():
        result = estimate_sigma1(predictor(sd, lab.prompt), lab.latents, lab.abar, TIMES, options.draws, options.seed, options.batch_size)
        found[name] = dataclasses.asdict(result)
        lines += [f"{name}:", "    t   sigma_1,t [low, high]          loss     of Eq. 2's form   sigma_1 read from the loss"]
        for t, s, low, high, loss, share, other in zip(result.t, result.sigma1, result.low, result.high, result.loss, result.explained, result.from_loss, strict=True):
            lines.append(f"  {t:3d}   {s:.3f} [{low:.3f}, {high:.3f}]   {loss:10.4f}   {share:12.1%}   {other:14.3f}")
        lines.append(f"  mean  {result.mean:.3f} [{result.mean_low:.3f}, {result.mean_high:.3f}]")
        by_sigma.append(Line(name, result.t, result.sigma1, result.low, result.high))
        matched = [a * k**2 for a, k in zip(lab.abar[result.t].tolist(), result.gain, strict=True)]
        by_loss += [Line(f"{name}: loss", result.t, log10(result.loss)), Line(f"{name}: of Eq. 2's form", result.t, log10(matched))]
    image = chart([
        Panel("sigma_1,t by least squares, 95 % intervals", by_sigma, "t"),
        Panel("log10 of the loss and of what Eq. 2 describes", by_loss, "t"),
    ])  # fmt: skip
    return image, found, lines


def probe_zero(lab, options):
    zero = torch.zeros_like(lab.latents[:1])
    rows, numbers, lines = [], {}, ["x_t = 0; Eq. 2 says: a multiple of a training picture (cosine 1)"]
    times = list(dict.fromkeys((999, options.t)))
    first, *others = [*(f"one step\nt = {t}" for t in times), "50 steps\nfrom t = 999"]
    labels = ["x_t = 0", first, "its nearest\ntraining picture", *others]
    for name, sd in lab.models.items():
        predict_eps = predictor(sd, lab.prompt)
        found = {f"one step, t = {t}": one_step(predict_eps, zero, t, lab.abar, 1) for t in times}
        found["50 steps from t = 999"] = all_steps(predict_eps, zero, 999, lab.abar, 50)
        numbers[name] = {}
        for what, x0 in found.items():
            similar = cosine(lab.latents, x0[0])
            best = similar.argmax().item()
            scale = (x0[0] * lab.latents[best]).sum() / lab.latents[best].square().sum()
            numbers[name][what] = {"picture": best, "cosine": similar[best].item(), "scale": scale.item(), "cosines": similar.tolist()}
            lines.append(f"  {name}, {what}: picture {best}, cosine {similar[best]:.3f}, {scale:.2f} times it")
        first, *others = found.values()
        best = lab.latents[numbers[name]["one step, t = 999"]["picture"]][None]
        rows.append(lab.decode(torch.cat([zero, first, best, *others])))
    return sheet(rows, list(lab.models), labels, lab.zoom), numbers, lines


def local_noise(noise, generator):
    """δ′ like noise (B, 4, h, w): standard normal in a square of a quarter of the side, 0 elsewhere."""
    h, w = noise.shape[-2:]
    region = torch.zeros_like(noise)
    region[..., h // 2 : h // 2 + max(1, h // 4), w // 4 : w // 4 + max(1, w // 4)] = 1
    return region * torch.randn(noise.shape, generator=generator).to(noise)


def probe_local(lab, options):
    t, abar_t, noise = options.t, lab.abar[options.t], noises(options, lab.latents)
    picture = lab.latents[options.picture][None]
    x = schedule.q_sample(picture, noise, abar_t)
    local = local_noise(noise, torch.Generator().manual_seed(options.seed + 1))
    energy = local.square().sum((1, 2, 3))
    paper = gain(abar_t, PAPER_SIGMA1).item() ** 2
    numbers = {"t": t, f"Eq. 2 with sigma_1 = {PAPER_SIGMA1}": paper, "most that Eq. 2 allows, 1/abar": 1 / abar_t.item()}
    lines = [f"δ′ in a small region at t = {t}, {options.draws} draws; ‖change of x̂_0‖²/‖δ′‖², then ‖x̂_0 − x′‖²/‖δ′‖²"]
    rows = []
    for name, sd in lab.models.items():
        predict_eps = predictor(sd, lab.prompt)
        k = estimate_sigma1(predict_eps, picture, lab.abar, [t], options.draws, options.seed, options.batch_size).gain[0]
        without, with_it = (one_step(predict_eps, y, t, lab.abar, options.batch_size) for y in (x, x + local))
        moved = (with_it - without).square().sum((1, 2, 3))
        inside = ((with_it - without) * (local != 0)).square().sum((1, 2, 3)) / moved
        change, total = interval(moved / energy), interval((with_it - picture).square().sum((1, 2, 3)) / energy)
        expected = (k**2 * (x + local - abar_t.sqrt() * picture).square().sum((1, 2, 3)) / energy).mean().item()
        numbers[name] = {
            "gain": k, "change": change, "Eq. 2 change": k**2, "total": total, "Eq. 2 total": expected,
            "share of the change inside the region": inside.mean().item(),
        }  # fmt: skip
        lines.append(
            f"  {name}: {change[0]:.3f} ± {change[1]:.3f}, Eq. 2 with its own σ₁: {k**2:.3f};   "
            f"{total[0]:.3f} ± {total[1]:.3f}, Eq. 2: {expected:.3f};   {inside.mean():.0%} of the change inside"
        )
        shown = torch.cat([picture, (x + local)[:1] / abar_t.sqrt(), without[:1], with_it[:1]])
        rows.append([*lab.decode(shown), *to_pil(_difference(sd, with_it[:1], without[:1]))])
    lines.append(f"  Eq. 2 with the paper's σ₁ = {PAPER_SIGMA1}: {paper:.3f}; with any σ₁: at most {1 / abar_t:.3f}; printed in §3.3 for t = 100: 2.65")
    labels = ["x'", "noisy, with\nlocal noise", "denoised\nwithout it", "denoised\nwith it", "4 times the\ndifference"]
    return sheet(rows, list(lab.models), labels, lab.zoom), numbers, lines


def _difference(sd, a, b):
    """Four times the difference of two decoded latents, about grey."""
    return 4 * (sd.decode_latents(a) - sd.decode_latents(b))


SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def probe_scaled(lab, options):
    t, picture = options.t, lab.latents[options.picture]
    root = lab.abar[t].sqrt().item()
    x = torch.stack([k * picture for k in SCALES])
    rows, labels, numbers, plots = [lab.decode(x)], ["x_t = k x'"], {"t": t, "k": SCALES}, []
    lines = [f"x_t = k·x′ at t = {t}; Eq. 2 says x̂_0 = (1 + k_t (k − √ᾱ)) x′"]
    for name, sd in lab.models.items():
        predict_eps = predictor(sd, lab.prompt)
        k_t = estimate_sigma1(predict_eps, picture[None], lab.abar, [t], options.draws, options.seed, options.batch_size).gain[0]
        x0 = one_step(predict_eps, x, t, lab.abar, options.batch_size)
        scale, similar = ((x0 * picture).sum((1, 2, 3)) / picture.square().sum()).tolist(), cosine(x0, picture).tolist()
        expected = [1 + k_t * (k - root) for k in SCALES]
        numbers[name] = {"gain": k_t, "scale": scale, "Eq. 2 scale": expected, "cosine": similar}
        lines.append(f"  {name} (k_t = {k_t:.3f}):")
        lines += [f"    k = {k:.2f}: {s:.3f} x′, Eq. 2 {e:.3f}; cosine {c:.3f}" for k, s, e, c in zip(SCALES, scale, expected, similar, strict=True)]
        rows.append(lab.decode(x0))
        labels.append(f"{name},\ndenoised")
        plots += [Line(name, SCALES, scale), Line(f"Eq. 2 for {name}", SCALES, expected)]
    pictures = sheet(rows, labels, [f"k = {k:g}" for k in SCALES], lab.zoom)
    plot = chart([Panel(f"length of the denoised k x' along x', t = {t}", plots, "k")])
    return beside([pictures, plot]), numbers, lines


def probe_blank(lab, options):
    t, abar_t, noise = options.t, lab.abar[options.t], noises(options, lab.latents)
    sd = next(iter(lab.models.values()))
    grey = latents_of(sd, torch.zeros(1, 3, *(side * sd.vae.factor for side in lab.latents.shape[-2:])))
    rows, labels, numbers = [], [], {"t": t}
    lines = [f"no prompt, t = {t}, {options.draws} draws: rms error of x̂_0 over the rms of the noise (1: none removed), and in grey levels of 255"]
    for name, sd in lab.models.items():
        predict_eps, numbers[name] = predictor(sd, ""), {}
        for what, clean in (("latent 0", torch.zeros_like(grey)), ("grey picture", grey)):
            x = schedule.q_sample(clean, noise, abar_t)
            one = one_step(predict_eps, x, t, lab.abar, options.batch_size)
            ten = torch.cat([all_steps(predict_eps, part, t, lab.abar, 10) for part in x.split(options.batch_size)])
            amount = ((1 - abar_t) / abar_t).sqrt()
            found = {}
            for steps, x0 in (("one step", one), ("ten steps", ten)):
                left = interval((x0 - clean).square().mean((1, 2, 3)).sqrt() / amount)
                pixels = (sd.decode_latents(x0) - sd.decode_latents(clean)).square().mean().sqrt().item() * 127.5
                found[steps] = {"noise left": left, "grey levels": pixels}
                lines.append(f"  {name}, {what}, {steps}: {left[0]:.3f} ± {left[1]:.3f}; {pixels:.1f}")
            numbers[name][what] = found
            rows.append(lab.decode(torch.cat([clean, x[:1] / abar_t.sqrt(), one[:1], ten[:1]])))
            labels.append(f"{name},\n{what}")
    return sheet(rows, labels, ["clean", "noisy", "denoised,\none step", "denoised,\nten steps"], lab.zoom), numbers, lines


PROBES = {"sigma1": sigma1, "probe-zero": probe_zero, "probe-local": probe_local, "probe-scaled": probe_scaled, "probe-blank": probe_blank}


def look(command, options):
    """Do one command and leave its PNG and JSON. Raises UserError."""
    out = check_out(options, command)
    if command == "model":
        image, numbers, lines = predicted(options)
    else:
        image, numbers, lines = PROBES[command](open_lab(options), options)
    save_png(image, out)
    write_json(out.with_suffix(".json"), {"command": command, "options": dataclasses.asdict(options), "found": numbers})
    print("\n".join([*lines, f"{out}: the picture; {out.with_suffix('.json')}: the numbers"]))
