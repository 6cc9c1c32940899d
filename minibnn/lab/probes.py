"""The probes of the paper's §3 and App. E-F, each as numbers and a picture: `python -m minibnn probe-zero` and others.

Each takes a Lab (the models side by side, and their training pictures as latents) and returns a PIL image, the numbers
for the JSON file, and the lines to print.

But: the models predict with the prompt alone, without guidance, at the posterior mean.
"""

import dataclasses

import torch

from ..devices import threads_kept
from ..pictures import to_pil
from .eq2 import gain
from .models import check_out, cosine, mean_and_half_width, open_lab, write_found
from .plot import Line, Panel, chart
from .sheets import beside
from .sigma1_estimate import TIMES, latents_of

PAPER_SIGMA1 = 4.8  # §3.3, after 1,000 steps
SIGMA1_HEAD = "    t   sigma_1,t [low, high]          loss     of Eq. 2's form   sigma_1 read from the loss"
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # the k of probe-scaled


def sigma1(lab):
    """σ₁,t at several t, and how much of the loss has the form of Eq. 2.   (Fig. 4)"""
    found, by_sigma, by_loss = {}, [], []
    lines = [f"{len(lab.latents)} pictures, {lab.options.draws} draws each; 95 % intervals; prompt {lab.prompt!r}"]
    for name, predict_eps in lab.predictors(lab.prompt):
        result = lab.estimate(predict_eps, lab.latents, TIMES)
        found[name] = dataclasses.asdict(result)
        columns = (result.t, result.sigma1, result.low, result.high, result.loss, result.explained, result.from_loss)
        form = "  {:3d}   {:.3f} [{:.3f}, {:.3f}]   {:10.4f}   {:12.1%}   {:14.3f}"
        lines += [f"{name}:", SIGMA1_HEAD, *(form.format(*row) for row in zip(*columns, strict=True))]
        lines.append(f"  mean  {result.mean:.3f} [{result.mean_low:.3f}, {result.mean_high:.3f}]")
        by_sigma.append(Line(name, result.t, result.sigma1, result.low, result.high))
        described = lab.abar[result.t].cpu() * torch.tensor(result.gain) ** 2
        by_loss.append(Line(f"{name}: loss", result.t, torch.tensor(result.loss).log10().tolist()))
        by_loss.append(Line(f"{name}: of Eq. 2's form", result.t, described.log10().tolist()))
    upper = Panel("sigma_1,t by least squares, 95 % intervals", by_sigma, "t")
    return chart([upper, Panel("log10 of the loss and of what Eq. 2 describes", by_loss, "t")]), found, lines


def probe_zero(lab):
    """x_t = 0, denoised: Eq. 2 makes a multiple of a training picture of it.   (Fig. 3)"""
    zero, times = torch.zeros_like(lab.latents[:1]), list(dict.fromkeys((999, lab.options.t)))
    labels = ["x_t = 0", *(f"one step\nt = {t}" for t in times), "50 steps\nfrom t = 999"]
    labels.insert(2, "its nearest\ntraining picture")
    rows, numbers, lines = [], {}, ["x_t = 0; Eq. 2 says: a multiple of a training picture (cosine 1)"]
    for name, predict_eps in lab.predictors(lab.prompt):
        found = {f"one step, t = {t}": lab.one_step(predict_eps, zero, t) for t in times}
        found["50 steps from t = 999"] = lab.all_steps(predict_eps, zero, 999, 50)
        numbers[name] = {}
        for what, x0 in found.items():
            cosines = cosine(lab.latents, x0[0])
            best = cosines.argmax().item()
            scale = ((x0[0] * lab.latents[best]).sum() / lab.latents[best].square().sum()).item()
            similar, cosines = cosines[best].item(), cosines.tolist()
            numbers[name][what] = {"picture": best, "cosine": similar, "scale": scale, "cosines": cosines}
            lines.append(f"  {name}, {what}: picture {best}, cosine {similar:.3f}, {scale:.2f} times it")
        shown = [zero, *found.values()]
        shown.insert(2, lab.latents[numbers[name]["one step, t = 999"]["picture"]][None])
        rows.append(lab.decode(torch.cat(shown)))
    return lab.sheet(rows, list(lab.models), labels), numbers, lines


def local_noise(noise, generator):
    """δ′ of the shape of `noise` (B, 4, h, w): standard normal in a square of a quarter of the side, 0 elsewhere."""
    h, w = noise.shape[-2:]
    region = torch.zeros_like(noise)
    region[..., h // 2 : h // 2 + max(1, h // 4), w // 4 : w // 4 + max(1, w // 4)] = 1
    return region * torch.randn(noise.shape, generator=generator).to(noise)


def probe_local(lab):
    """A noisy training picture with more noise δ′ in a small region: is it removed or kept?   (Fig. 5, §3.3)"""
    t, abar_t, picture = lab.options.t, lab.abar[lab.options.t], lab.latents[lab.options.picture][None]
    x = lab.noised(picture)
    local = local_noise(x, torch.Generator().manual_seed(lab.options.seed + 1))
    energy, paper, most = local.square().sum((1, 2, 3)), gain(abar_t, PAPER_SIGMA1).item() ** 2, 1 / abar_t.item()
    numbers = {"t": t, f"Eq. 2 with sigma_1 = {PAPER_SIGMA1}": paper, "most that Eq. 2 allows, 1/abar": most}
    lines = [
        f"δ′ in a small region at t = {t}, {lab.options.draws} draws; ‖change of x̂_0‖²/‖δ′‖², then ‖x̂_0 − x′‖²/‖δ′‖²"
    ]
    labels = ["x'", "noisy, with\nlocal noise", "denoised\nwithout it", "denoised\nwith it", "4 times the\ndifference"]
    rows = []
    for name, predict_eps in lab.predictors(lab.prompt):
        k = lab.estimate(predict_eps, picture, [t]).gain[0]
        without, with_it = (lab.one_step(predict_eps, y, t) for y in (x, x + local))
        moved = (with_it - without).square()
        inside = ((moved * (local != 0)).sum((1, 2, 3)) / moved.sum((1, 2, 3))).mean().item()
        squares = (moved, (with_it - picture).square(), k**2 * (x + local - abar_t.sqrt() * picture).square())
        change, total, (expected, _) = (mean_and_half_width(s.sum((1, 2, 3)) / energy) for s in squares)
        numbers[name] = {
            "gain": k, "change": change, "Eq. 2 change": k**2, "total": total, "Eq. 2 total": expected,
            "share of the change inside the region": inside,
        }
        lines.append(
            f"  {name}: {change[0]:.3f} ± {change[1]:.3f}, Eq. 2 with its own σ₁: {k**2:.3f};   "
            f"{total[0]:.3f} ± {total[1]:.3f}, Eq. 2: {expected:.3f};   {inside:.0%} of the change inside"
        )
        after, before = (lab.models[name].decode_latents(y[:1]) for y in (with_it, without))
        shown = torch.cat([picture, (x + local)[:1] / abar_t.sqrt(), without[:1], with_it[:1]])
        rows.append([*lab.decode(shown), *to_pil(4 * (after - before))])
    lines.append(
        f"  Eq. 2 with the paper's σ₁ = {PAPER_SIGMA1}: {paper:.3f}; with any σ₁: at most {most:.3f}; "
        "printed in §3.3 for t = 100: 2.65"
    )
    return lab.sheet(rows, list(lab.models), labels), numbers, lines


def probe_scaled(lab):
    """x_t = k x′, denoised: Eq. 2 makes another multiple of x′ of it.   (App. F, Fig. 12)"""
    t, picture = lab.options.t, lab.latents[lab.options.picture]
    x = torch.stack([k * picture for k in SCALES])
    rows, labels, numbers, plots = [lab.decode(x)], ["x_t = k x'"], {"t": t, "k": SCALES}, []
    lines = [f"x_t = k·x′ at t = {t}; Eq. 2 says x̂_0 = (1 + k_t (k − √ᾱ)) x′"]
    for name, predict_eps in lab.predictors(lab.prompt):
        k_t = lab.estimate(predict_eps, picture[None], [t]).gain[0]
        x0 = lab.one_step(predict_eps, x, t)
        scale, similar = ((x0 * picture).sum((1, 2, 3)) / picture.square().sum()).tolist(), cosine(x0, picture).tolist()
        expected = [1 + k_t * (k - lab.abar[t].sqrt().item()) for k in SCALES]
        numbers[name] = {"gain": k_t, "scale": scale, "Eq. 2 scale": expected, "cosine": similar}
        lines.append(f"  {name} (k_t = {k_t:.3f}):")
        for row in zip(SCALES, scale, expected, similar, strict=True):
            lines.append("    k = {:.2f}: {:.3f} x′, Eq. 2 {:.3f}; cosine {:.3f}".format(*row))
        rows.append(lab.decode(x0))
        labels.append(f"{name},\ndenoised")
        plots += [Line(name, SCALES, scale), Line(f"Eq. 2 for {name}", SCALES, expected)]
    plot = chart([Panel(f"length of the denoised k x' along x', t = {t}", plots, "k")])
    return beside([lab.sheet(rows, labels, [f"k = {k:g}" for k in SCALES]), plot]), numbers, lines


def probe_blank(lab):
    """Blank pictures with noise, denoised without a prompt: how much noise is left?   (App. E, Fig. 10b)"""
    t, abar_t, sd = lab.options.t, lab.abar[lab.options.t], next(iter(lab.models.values()))
    grey = latents_of(sd, torch.zeros(1, 3, *(side * sd.vae.factor for side in lab.latents.shape[-2:])))
    rows, labels, numbers, amount = [], [], {"t": t}, ((1 - abar_t) / abar_t).sqrt()
    lines = [
        f"no prompt, t = {t}, {lab.options.draws} draws: rms error of x̂_0 over the rms of the noise (1: none removed), "
        "and in grey levels of 255"
    ]
    for name, predict_eps in lab.predictors(""):
        decode, numbers[name] = lab.models[name].decode_latents, {}
        for what, clean in (("latent 0", torch.zeros_like(grey)), ("grey picture", grey)):
            x, found = lab.noised(clean), {}
            one, ten = lab.one_step(predict_eps, x, t), lab.all_steps(predict_eps, x, t, 10)
            for steps, x0 in (("one step", one), ("ten steps", ten)):
                left = mean_and_half_width((x0 - clean).square().mean((1, 2, 3)).sqrt() / amount)
                levels = (decode(x0) - decode(clean)).square().mean().sqrt().item() * 127.5
                found[steps] = {"noise left": left, "grey levels": levels}
                lines.append(f"  {name}, {what}, {steps}: {left[0]:.3f} ± {left[1]:.3f}; {levels:.1f}")
            numbers[name][what] = found
            rows.append(lab.decode(torch.cat([clean, x[:1] / abar_t.sqrt(), one[:1], ten[:1]])))
            labels.append(f"{name},\n{what}")
    return lab.sheet(rows, labels, ["clean", "noisy", "denoised,\none step", "denoised,\nten steps"]), numbers, lines


PROBES = {f.__name__.replace("_", "-"): f for f in (sigma1, probe_zero, probe_local, probe_scaled, probe_blank)}


@threads_kept()
def look(command, options):
    """Do one of PROBES and leave its PNG and JSON. options: ProbeOptions. Raises UserError."""
    out = check_out(options, command)
    write_found(out, command, options, *PROBES[command](open_lab(options)))
