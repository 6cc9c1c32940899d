"""Guidance with a base's unconditional prediction: printed equations, Gaussians, a learned toy, the bundled model."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from minibnn import StableDiffusion, UserError, posterior, schedule
from minibnn.cli.sample import sample
from minibnn.experiments.guidance import corruption_runs
from minibnn.experiments.guidance.trainings import ANCHORS, MEASURES, QUESTIONS, SCALES, experiment, measure, report
from minibnn.files.weights import write_tensors
from minibnn.neighbours import guidance
from minibnn.options.experiments import GuidanceOptions
from minibnn.options.results import SampleOptions
from minibnn.pictures import to_tensor
from minibnn.sample import guide
from minibnn.world import scenes as world

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the equations ----------------------------------------------------------------------------------------------------


def test_ho_and_salimans_eq6_as_printed():
    """ε̃ = (1 + w)·ε(z, c) − w·ε(z); our scale s is their 1 + w."""
    uncond, cond = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1)
    for w in (-1.0, 0.0, 1.5, 6.5):
        torch.testing.assert_close(guide(uncond, cond, 1 + w), (1 + w) * cond - w * uncond, **EXACT)


def test_upm_eq6_plain_guidance():
    uncond, cond = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1)
    for g in (0.0, 1.0, 2.5, 7.5):
        torch.testing.assert_close(guide(uncond, cond, g), uncond + g * (cond - uncond), **EXACT)


def test_upm_eq7_unconditional_of_the_base():
    """Its second form: (1 − γ)·ε_ψ(x_t, ∅) + γ·ε_θ(x_t, c)."""
    base, cond = normal(2, 4, 3, 7), normal(2, 4, 3, 7, seed=1)
    for g in (0.0, 1.0, 2.5, 7.5):
        torch.testing.assert_close(guide(base, cond, g), (1 - g) * base + g * cond, **EXACT)


def test_upm_eq8_two_conditions():
    base, first, both = (normal(2, 4, 3, 5, seed=i) for i in range(3))
    printed = base + 1.5 * (first - base) + 7.5 * (both - first)
    torch.testing.assert_close(guidance.guide_two(base, first, both, 1.5, 7.5), printed, **EXACT)


def test_upm_schedule_map_as_printed():
    abar = schedule.alphas_cumprod().double()
    base = schedule.alphas_cumprod(0.0001, 0.02)[::60].double()  # coarse: 17 times
    tau = guidance.schedule_map(abar, base)
    for t in range(1000):
        distances = [abs((1 - base[k].item()) - (1 - abar[t].item())) for k in range(len(base))]
        assert distances[tau[t]] == min(distances)


# --- the map between schedules ----------------------------------------------------------------------------------------


def linear():
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def cosine():
    """ᾱ of Nichol & Dhariwal 2021."""
    s = torch.arange(1000, dtype=torch.float64) / 1000
    return (torch.cos((s + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)).square()


def test_map_between_unlike_schedules_is_nearest_and_monotone():
    ours, theirs = cosine(), linear()
    tau = guidance.schedule_map(ours, theirs)
    gaps = (theirs[:-1] - theirs[1:]) / 2
    half = torch.maximum(torch.cat([gaps[:1], gaps])[tau], torch.cat([gaps, gaps[-1:]])[tau])
    inside = (ours <= theirs[0]) & (ours >= theirs[-1])
    assert inside.sum() > 950 and ((theirs[tau] - ours).abs() <= half + 1e-15)[inside].all()
    assert (tau.diff() >= 0).all() and tau.diff().max() > 1
    assert torch.equal(guidance.schedule_map(theirs, theirs), torch.arange(1000))


def gaussian_eps(x, abar, mean, std):
    """Exact ε̂ for data N(mean, std²): √(1−ᾱ)·(x − √ᾱ·mean)/(ᾱ·std² + 1 − ᾱ), −√(1−ᾱ) times the score."""
    return (1 - abar) ** 0.5 * (x - abar**0.5 * mean) / (abar * std**2 + 1 - abar)


def test_with_the_map_a_base_of_another_schedule_draws_its_own_distribution():
    """γ = 0 draws unconditional samples of the base, N(0, 2²); without the map their spread is wrong."""
    ours, theirs = cosine(), linear()
    tau = guidance.schedule_map(ours, theirs)

    def std_with(times):
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)  # the sampler is affine in x: two points tell all
        for t in range(990, 0, -1):
            x = schedule.ddim_step(x, gaussian_eps(x, theirs[times[t]], 0.0, 2.0), ours[t], ours[t - 1])
        return (x[1] - x[0]).item()

    assert std_with(tau) == pytest.approx(2, abs=0.03)
    assert abs(std_with(torch.arange(1000)) - 2) > 0.2


# --- exact numbers ----------------------------------------------------------------------------------------------------


def sampled(eps_u, scale, steps=2000):
    """Mean and std of x_0 for x_T ~ N(0, 1), ᾱ = cos² and guided exact Gaussians, which make the sampler affine."""
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    abar = torch.cos(torch.linspace(0.9999, 0, steps + 1, dtype=torch.float64) * np.pi / 2) ** 2
    for a, b in zip(abar, abar[1:], strict=False):
        eps = guide(gaussian_eps(x, a, *eps_u), gaussian_eps(x, a, 1.0, 0.5), scale)
        x = schedule.ddim_step(x, eps, a, b)
    assert (x[2] - 2 * x[1] + x[0]).abs() < 1e-6  # affine indeed
    return x[1].item(), (x[2] - x[1]).abs().item()


@pytest.mark.parametrize(
    ("scale", "upm", "plain"),
    [(0, (0.00, 2.00), (0.80, 0.60)), (1, (1.00, 0.50), (1.00, 0.50)), (1.5, (1.10, 0.250), (1.085, 0.455)),
     (2, (1.13, 0.125), (1.156, 0.418)), (3, (1.125, 0.031), (1.277, 0.347))],
)
def test_exact_numbers_with_a_good_and_a_degraded_unconditional(scale, upm, plain):
    """Base N(0, 2²), conditional N(1, .5²), degraded unconditional N(.8, .6²)."""
    assert sampled((0.0, 2.0), scale) == pytest.approx(upm, abs=0.01)
    assert sampled((0.8, 0.6), scale) == pytest.approx(plain, abs=0.01)


def test_the_guided_ode_does_not_draw_the_product_of_densities():
    """p_ψ^{1−γ} p_θ(·|c)^γ at t = 0 is N(1.032, .359²) for γ = 2; the sampler draws something much narrower."""
    precision = (1 - 2) / 2**2 + 2 / 0.5**2
    product = (2 * 1.0 / 0.5**2 / precision, precision**-0.5)
    assert product == pytest.approx((1.032, 0.359), abs=0.001)
    assert abs(sampled((0.0, 2.0), 2)[1] - product[1]) > 0.2


# --- two conditions ---------------------------------------------------------------------------------------------------


def test_two_conditions_reduce_to_one_and_to_none():
    base, first, both = (normal(2, 3, seed=i) for i in range(3))
    torch.testing.assert_close(guidance.guide_two(base, first, both, 1.0, 1.0), both, **EXACT)
    torch.testing.assert_close(guidance.guide_two(base, first, both, 3.0, 3.0), guide(base, both, 3.0), **EXACT)
    assert torch.equal(guidance.guide_two(base, first, both, 0.0, 0.0), base)
    moved = guidance.guide_two(base, first + 1e3, both, 2.0, 3.0) - guidance.guide_two(base, first, both, 2.0, 3.0)
    torch.testing.assert_close(moved, torch.full_like(base, (2.0 - 3.0) * 1e3), rtol=1e-9, atol=1e-9)


# --- a learned toy ----------------------------------------------------------------------------------------------------

MODES = 1.5 * torch.tensor([[np.cos(k * np.pi / 3), np.sin(k * np.pi / 3)] for k in range(6)], dtype=torch.float32)
SPREAD, NULL = 0.25, 6
TOY = schedule.alphas_cumprod(0.001, 0.02, 200)


def toy_data(label, generator):
    return MODES[label] + SPREAD * torch.randn(len(label), 2, generator=generator)


class ToyNet(nn.Module):
    """ε̂ for points (B, 2) at times (B,), label 0-5, or 6 for none."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(7, 16)
        self.body = nn.Sequential(nn.Linear(2 + 16 + 3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x, t, label):
        a = TOY[t][:, None]
        return self.body(torch.cat([x, self.label(label), a, a.sqrt(), (1 - a).sqrt()], 1))


def fit(net, data, labels, steps, dropout, seed):
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        pick = torch.randint(len(data), (256,), generator=generator)
        label = torch.where(torch.rand(256, generator=generator) < dropout, NULL, labels[pick])
        t = torch.randint(200, (256,), generator=generator)
        eps = torch.randn(256, 2, generator=generator)
        loss = (net(schedule.q_sample(data[pick], eps, TOY[t]), t, label) - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.requires_grad_(False)


def true_unconditional(x, t):
    """−√(1−ᾱ) ∇log p_t of the six modes, all equally likely."""
    a = TOY[t]
    variance = a * SPREAD**2 + 1 - a
    means = a.sqrt() * MODES
    weight = torch.softmax(-torch.cdist(x, means).square() / (2 * variance), 1)
    return (1 - a).sqrt() * (x - weight @ means) / variance


def toy_sample(eps_u, net, label, scale):
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(9))
    labels = torch.full((300,), label)
    for t in range(199, -1, -4):
        eps = eps_u(x, t)
        if scale:
            eps = guide(eps, net(x, torch.full((300,), t), labels), scale)
        x = schedule.ddim_step(x, eps, TOY[t], TOY[t - 4] if t >= 4 else torch.ones(()))
    return x


def energy_distance(a, b):
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def nothing(net):
    return lambda x, t: net(x, torch.full((len(x),), t), torch.full((len(x),), NULL))


def test_learned_toy_the_base_comes_closer_to_true_guidance():
    """Fine-tuned on 5 % of the data with 10 % dropout; a base of other data must make it worse."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = torch.randint(6, (2000,), generator=generator)
    data = toy_data(labels, generator)
    base = fit(ToyNet(), data, labels, 1500, 0.2, 1)
    finetuned = ToyNet()
    finetuned.load_state_dict(base.state_dict())
    few = (labels < 2).nonzero()[:100, 0]
    finetuned = fit(finetuned, data[few], labels[few], 400, 0.1, 2)
    elsewhere = torch.randn(2000, 2, generator=generator) * 0.3 + torch.tensor([0.0, -2.0])
    wrong = fit(ToyNet(), elsewhere, labels, 600, 0.2, 3)

    real = toy_data(torch.arange(600) % 6, torch.Generator().manual_seed(5))
    spoiled, kept = (energy_distance(toy_sample(nothing(net), None, 0, 0), real) for net in (finetuned, base))
    assert spoiled > 3 * kept, "the precondition: fine-tuning spoils the unconditional prediction"
    for scale in (2, 3, 5):
        goal = toy_sample(true_unconditional, finetuned, 0, scale)
        upm, plain, bad = (
            energy_distance(toy_sample(nothing(net), finetuned, 0, scale), goal) for net in (base, finetuned, wrong)
        )
        assert upm < plain and upm < bad


# --- the bundled model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return StableDiffusion.load("tiny")


@pytest.fixture(scope="module")
def finetuned(base):
    """A model that differs from its base in all weights of the UNet."""
    sd = StableDiffusion.load("tiny")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in sd.unet.parameters():
            p.add_(0.1 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0)
    return sd


@contextlib.contextmanager
def changed(sd, function):
    """Within, function(original, x, t, context) stands for the UNet."""
    original = sd.unet.forward
    sd.unet.forward = lambda x, t, context: function(original, x, t, context)
    try:
        yield
    finally:
        del sd.unet.forward


def draw(sd, predictor, scale, **settings):
    settings |= {"steps": 3, "seed": 4, "progress": False}
    pictures = sd.generate(["a red dog", "a cat"], guidance=scale, predictor=predictor, **settings)
    return np.stack([np.asarray(p) for p in pictures]).astype(int)


def test_a_base_that_is_the_model_itself_is_plain_guidance(finetuned):
    """Against two separate evaluations, up to float32's rounding, at most 3e-6 on three instruction sets."""
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([401, 401])
    context, empty = finetuned.encode_prompts(["a dog", "a cat"]), finetuned.encode_prompts(["", ""])
    predict = guidance.one_condition(finetuned, guidance.unconditional_of(finetuned, finetuned))
    with torch.no_grad():
        unconditional, conditional = (finetuned.predict_eps(x, t, c) for c in (empty, context))
        guided = unconditional + 3.0 * (conditional - unconditional)
        torch.testing.assert_close(predict(x, 401, context, None, 3.0), guided, rtol=1e-5, atol=1e-5)
    assert np.abs(draw(finetuned, predict, 3.0) - draw(finetuned, None, 3.0)).max() <= 1


def test_scale_1_is_independent_of_the_base_and_scale_0_of_the_model(finetuned, base):
    predict = guidance.one_condition(finetuned, guidance.unconditional_of(base, finetuned))
    assert (draw(finetuned, predict, 1.0) == draw(finetuned, None, 1.0)).all()
    zero, of_base = draw(finetuned, predict, 0.0), draw(base, None, 0.0)
    assert np.abs(zero - of_base).max() <= 1
    assert np.abs(zero - draw(finetuned, None, 0.0)).max() > 10


def test_evaluations_and_what_the_fine_tuned_model_is_asked(finetuned, base):
    """One of the base and one of the model for each step; the model never sees the empty prompt."""
    empty, seen = finetuned.encode_prompts([""]), {"base": 0, "model": 0}

    def counted(name):
        def function(original, x, t, context):
            seen[name] += 1
            assert bool((context == empty).all()) == (name == "base")
            return original(x, t, context)

        return function

    with changed(finetuned, counted("model")), changed(base, counted("base")):
        eps_base = guidance.unconditional_of(base, finetuned)
        draw(finetuned, guidance.one_condition(finetuned, eps_base), 2.0)
    assert seen == {"base": 3, "model": 3}


def test_a_base_that_predicts_v_and_has_another_schedule(finetuned, base):
    """The base is asked at τ(t), and ε = √ᾱ v + √(1−ᾱ) x with the base's ᾱ at τ."""
    other = StableDiffusion.load("tiny")
    changes = {"prediction_type": "v_prediction", "beta_start": 0.002, "beta_end": 0.02}
    other.configs = other.configs | {"scheduler": other.configs["scheduler"] | changes}
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 600
    tau = int((other.alphas_cumprod - finetuned.alphas_cumprod[t]).abs().argmin())
    assert tau < 500
    with torch.no_grad():
        v = base.unet(x, torch.tensor([tau, tau]), base.encode_prompts(["", ""]))
        expected = other.alphas_cumprod[tau].sqrt() * v + (1 - other.alphas_cumprod[tau]).sqrt() * x
        got = guidance.unconditional_of(other, finetuned)(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_base_shares_what_is_equal():
    """As after LoRA: the attention projections differ, everything else is in memory once, and nothing else changes."""
    tuned, base = StableDiffusion.load("tiny"), StableDiffusion.load("tiny")
    with torch.no_grad():
        for name, parameter in tuned.unet.named_parameters():
            if name.endswith("to_q.weight"):
                parameter.mul_(1.5)
    x, context = torch.ones(1, 4, 8, 8), base.encode_prompts([""])
    with torch.no_grad():
        before = base.predict_eps(x, torch.tensor([301]), context)
        guidance.share_weights(base, tuned)
        assert torch.equal(guidance.unconditional_of(base, tuned)(x, 301), before)
    for part in ("unet", "vae", "text_encoder"):
        ours = dict(getattr(tuned, part).named_parameters())
        for name, parameter in getattr(base, part).named_parameters():
            own = part == "unet" and name.endswith("to_q.weight")
            assert (parameter is ours[name]) != own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_or_with_another_decoder_is_accepted(finetuned, dtype):
    other = StableDiffusion.load("tiny", dtype=dtype)
    with torch.no_grad():
        other.vae.decoder.conv_out.weight.add_(1)
    guidance.check_same_latents(finetuned, other)


def test_unlike_latent_spaces_are_refused(finetuned):
    other = StableDiffusion.load("tiny")
    other.vae.config = dataclasses.replace(other.vae.config, scaling_factor=other.vae.config.scaling_factor * 1.2)
    with pytest.raises(UserError, match="another latent space: the same picture's latents differ by 20%"):
        guidance.check_same_latents(finetuned, other)
    other.vae.config = dataclasses.replace(finetuned.vae.config, latent_channels=16)
    with pytest.raises(UserError, match="the base has 16 latent channels, the model 4"):
        guidance.check_same_latents(finetuned, other)
    other = StableDiffusion.load("tiny")
    with torch.no_grad():
        other.vae.encoder.conv_in.weight.mul_(-1)
    with pytest.raises(UserError, match="another latent space"):
        guidance.unconditional_of(other, finetuned)


# --- the command ------------------------------------------------------------------------------------------------------


def test_sample_takes_the_unconditional_from_a_base(finetuned, base, tmp_path):
    finetuned.save(tmp_path / "run")
    words = {"prompt": ["a dog at night"], "model": str(tmp_path / "run"), "steps": 2, "guidance": 2.0}
    more = {"unconditional_from": "tiny", "negative_prompt": "a cat", "out": str(tmp_path / "a.png")}
    [got] = sample(SampleOptions(**words, **more))
    predict = guidance.one_condition(finetuned, guidance.unconditional_of(base, finetuned, "a cat"))
    [expected] = finetuned.generate(words["prompt"], steps=2, guidance=2.0, progress=False, predictor=predict)
    assert got.tobytes() == expected.tobytes()
    settings = json.loads(Image.open(tmp_path / "a.png").info["minibnn"])
    assert (settings["unconditional_from"], settings["guidance"]) == ("tiny", 2.0)


def test_posterior_samples_leave_the_base_alone(base, tmp_path):
    """The run's means are the base's weights here: shared, the base would draw with the run's random ones."""
    run = tmp_path / "run"
    base.save(run)
    weight = base.unet.conv_in.weight.detach()
    random = {"conv_in.weight": weight, "conv_in.weight_sigma": torch.full_like(weight, 0.05)}
    write_tensors(run / "posterior.safetensors", random)
    words = {"prompt": ["a dog at night"], "steps": 2, "guidance": 3.0}
    more = {"unconditional_from": "tiny", "posterior_samples": 2, "out": str(tmp_path / "a.png")}
    got = sample(SampleOptions(**words, **more, model=str(run)))
    sd, random = posterior.open_run(run)
    predict = guidance.one_condition(sd, guidance.unconditional_of(base, sd))
    expected = posterior.generate_with_draws(
        sd, random, 2, 0, lambda: sd.generate(*words.values(), progress=False, predictor=predict)
    )
    for a, [b] in zip(got[:3], expected, strict=True):  # at the mean, and two draws
        assert a.tobytes() == b.tobytes()
    assert len({a.tobytes() for a in got[:3]}) == 3


def test_mistakes_of_the_command(base, tmp_path):
    out = str(tmp_path / "a.png")
    with pytest.raises(UserError, match="no model at .*nowhere"):
        sample(SampleOptions(prompt=["a dog"], unconditional_from=str(tmp_path / "nowhere"), out=out))
    base.save(tmp_path / "other")
    config = tmp_path / "other" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    message = "--unconditional-from .*other: the base has another latent space.*take the model"
    with pytest.raises(UserError, match=message):
        sample(SampleOptions(prompt=["a dog"], model="tiny", unconditional_from=str(tmp_path / "other"), out=out))
    assert not (tmp_path / "a.png").exists()


def test_the_experiment_measures_what_it_says(dog):
    """The subject's own pictures are more faithful than white ones, and seen to be where they are; white is clipped."""
    pictures = [world.draw(scene) for scene in world.dog_scenes()]
    training = to_tensor(pictures)
    figures = measure(pictures, list(world.DOG_BACKGROUNDS), training)
    assert figures["place"] == 1 and figures["clipped"] < 0.01
    white = measure([Image.new("RGB", (64, 64), "white")] * 2, ["grass", None], training)
    assert white["clipped"] == 1 and white["place"] == 0 and white["fidelity"] < figures["fidelity"]


def row(seed, kind="cat"):
    """A training in which the base is better by .1 · (seed + 1) at 1.5, and by nothing that can be told elsewhere."""
    def cells(shift):
        return {f"{w:g}": dict.fromkeys(MEASURES, 0.0) | {"fidelity": shift * (w == 1.5)} for w in SCALES}

    all_cells = {name: cells(0.1 * (seed + 1) if name == "base" else 0.0) for name in ANCHORS}
    all_cells["none"] = {"1": dict.fromkeys(MEASURES, 0.0)}
    gains = {"t": [20, 100, 300, 600, 900]} | dict.fromkeys(("c", *ANCHORS), [0.9] * 5)
    return {"method": "lora", "subject": kind, "seed": seed, "steps": 1, "cells": all_cells, "gains": gains,
            "drift": {"own": 0.5, "base": 0.25}}


def test_the_experiments_report_pairs_seeds_and_names_what_it_can_tell():
    text = report([row(seed) for seed in (2, 0, 1)])
    assert "### lora, cat, 3 runs" in text and len(QUESTIONS) >= 12 and "all subjects" not in text
    assert "| base − own, w = 1.5 | +0.200 [-0.048, +0.448] | not shown |" in text  # ± 4.303 · 0.1/√3
    assert "| class drift: own − base | +0.250 [+0.250, +0.250] | more |" in text
    assert "| base | fidelity |  | 0.20 | 0.00 | 0.00 |" in text and "| none | fidelity | 0.00 |  |  |  |" in text
    both = report([row(seed, kind) for seed in (0, 1, 2) for kind in ("cat", "dog")])
    assert "### lora, all subjects, 6 runs" in both  # twice the same: sd .1·√(4/5) = .0894, ± 2.5706 · .0894/√6 = .094
    assert "| base − own, w = 1.5 | +0.200 [+0.106, +0.294] | more |" in both.partition("all subjects")[2]


def test_the_page_of_loras_alone_has_no_curves(tmp_path, capsys):
    """Bug of an earlier version: after its trainings, whose curves are drawn of DreamBooth, it divided by zero."""
    (tmp_path / "guidance.jsonl").write_text(json.dumps(row(0)) + "\n")
    experiment(GuidanceOptions(method="lora", subjects=["cat"], seeds=[0, 0], steps=1, out=str(tmp_path)))
    assert "### lora, cat, 1 runs" in capsys.readouterr().out and not (tmp_path / "guidance.png").exists()


def test_the_laboratorys_lines_are_paired_by_seed():
    def row(setting, view, seed, value):
        return {"run": f"{setting}-4-plain-{seed}", "view": view, "step": 400, "group": "other", "noise": value}

    rows = [row("base", "ddim-25-g3-base", seed, 1.0 + seed) for seed in range(4)]
    rows += [row("pndm", "ddim-25-g3", seed, 0.5 * seed) for seed in range(3)] + [row("main", "ddim-25-g3", 3, 9.0)]
    n, middle, low, high = corruption_runs.difference(rows, ("base 3", "own 3"), 400, "other", "noise")
    assert (n, middle) == (3, pytest.approx(1.5)) and low < 1.5 < high
    assert corruption_runs.difference(rows, ("base 7.5", "own 3"), 400, "other", "noise") is None
