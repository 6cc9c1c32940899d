"""Guidance with the base's unconditional prediction, computed by hand from the networks: what does each model see?

The model and its base differ in every weight of UNet and text encoder, so that an exchanged network, prompt or text
encoder shows.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from minibnn import StableDiffusion
from minibnn.cli.sample import sample
from minibnn.neighbours import guidance
from minibnn.options.results import SampleOptions

diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a photo of a dog", "a red car on the beach"


@pytest.fixture(scope="module")
def models():
    """(model, base): the bundled model with small changes, and the bundled model with others."""
    pair = []
    for seed in (1, 2):
        sd, generator = StableDiffusion.load("tiny"), torch.Generator().manual_seed(seed)
        for parameter in [*sd.unet.parameters(), *sd.text_encoder.parameters()]:
            size = 0.05 * parameter.detach().abs().mean()
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
        pair.append(sd)
    return pair


@torch.no_grad()
def prediction(sd, x, t, prompt):
    """ε̂ of one model for one prompt, straight from its networks."""
    return sd.unet(x, torch.tensor([t] * len(x)), sd.text_encoder(sd.tokenizer([prompt])).expand(len(x), -1, -1))


@pytest.fixture
def x():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompt", ["", NEGATIVE])
def test_the_base_is_asked_with_the_negative_prompt(models, x, prompt):
    sd, base = models
    eps_base = guidance.unconditional_of(base, sd, prompt)
    assert_near(eps_base(x, 700), prediction(base, x, 700, prompt))
    others = [prediction(base, x, 700, NEGATIVE if prompt == "" else ""), prediction(sd, x, 700, prompt)]
    for other in others:  # what a mistake would give lies far away
        assert (prediction(base, x, 700, prompt) - other).abs().max() > 0.05


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_eq7_with_a_negative_prompt(models, x, scale):
    sd, base = models
    predict = guidance.one_condition(sd, guidance.unconditional_of(base, sd, NEGATIVE))
    own = sd.encode_prompts([""]).expand(2, -1, -1)  # must not be used
    eps_u, eps_c = prediction(base, x, 300, NEGATIVE), prediction(sd, x, 300, PROMPT)
    found = predict(x, 300, sd.encode_prompts([PROMPT]).expand(2, -1, -1), own, scale)
    assert_near(found, (1 - scale) * eps_u + scale * eps_c)


def test_the_command_draws_with_the_bases_negative_prompt(models, tmp_path, capsys):
    """`--unconditional-from BASE --negative-prompt …`, against a drawing by diffusers' DDIMScheduler."""
    sd, base = models
    for name, model in (("model", sd), ("base", base)):
        model.save(tmp_path / name)
    words = {
        "prompt": [PROMPT], "model": str(tmp_path / "model"), "unconditional_from": str(tmp_path / "base"),
        "negative_prompt": NEGATIVE, "steps": 5, "guidance": 3.0, "seed": 4, "device": "cpu",
    }
    sample(SampleOptions(out=str(tmp_path / "dog.png"), **words))
    scheduler = diffusers.DDIMScheduler.from_config(sd.configs["scheduler"], clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(5)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    for t in scheduler.timesteps.tolist():
        eps_u, eps_c = prediction(base, latent, t, NEGATIVE), prediction(sd, latent, t, PROMPT)
        latent = scheduler.step(eps_u + 3.0 * (eps_c - eps_u), t, latent).prev_sample
    with torch.no_grad():
        picture = sd.vae.decode(latent / sd.vae.config.scaling_factor)[0]
    expected = ((picture + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()
    with Image.open(tmp_path / "dog.png") as found:
        assert np.abs(np.asarray(found, dtype=np.float64) - expected).max() <= 0.6  # rounding takes 0.5
