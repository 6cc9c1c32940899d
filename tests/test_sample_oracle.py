"""Whole drawings against diffusers' DDIMScheduler, one picture at a time; and rounding to grey levels."""

import numpy as np
import pytest
import torch

from minibnn import StableDiffusion
from minibnn.pictures import to_pil, to_tensor

diffusers = pytest.importorskip("diffusers")
image_processor = pytest.importorskip("diffusers.image_processor")

PROMPTS = ["a red car", "a photo of a dog", "a blue house on the beach", "", "a green tree in the snow"]
STEPS, SEED, GUIDANCE, NEGATIVE = 6, 11, 3.0, "a red car"


@torch.no_grad()
def drawn_alone(sd, i, eta):
    """Picture i of PROMPTS as numbers 0..255, (H, W, 3), not rounded: networks of ours, everything else diffusers'."""
    generator = torch.Generator().manual_seed(SEED)  # one draw for all starts, then one for the noise of all steps
    x = torch.randn(len(PROMPTS), 4, 8, 8, generator=generator)[i : i + 1]
    noise = torch.randn(STEPS, len(PROMPTS), 4, 8, 8, generator=generator)[:, i : i + 1]
    scheduler = diffusers.DDIMScheduler.from_config(sd.configs["scheduler"], clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(STEPS)
    wanted, unwanted = (sd.text_encoder(sd.tokenizer([prompt])) for prompt in (PROMPTS[i], NEGATIVE))
    for k, t in enumerate(scheduler.timesteps):
        eps_u, eps_c = (sd.unet(x, t[None], context) for context in (unwanted, wanted))
        eps = eps_u + GUIDANCE * (eps_c - eps_u)
        x = scheduler.step(eps, t, x, eta=eta, variance_noise=noise[k] if eta else None).prev_sample
    picture = sd.vae.decode(x / sd.vae.config.scaling_factor)[0]
    return ((picture + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_every_picture_of_several_batches_is_the_one_drawn_alone(eta):
    sd = StableDiffusion.load("tiny")
    drawn = sd.generate(
        PROMPTS, steps=STEPS, guidance=GUIDANCE, seed=SEED, negative_prompt=NEGATIVE, eta=eta, batch_size=2,
        progress=False,
    )
    assert len(drawn) == len(PROMPTS)
    for i, picture in enumerate(drawn):
        expected = drawn_alone(sd, i, eta)
        distance = np.abs(np.asarray(picture, dtype=np.float64) - expected)
        assert distance.max() <= 0.55, f"picture {i}: {distance.max():.2f} grey levels"  # rounding takes 0.5
        assert expected.std() > 20, "a picture without contrast would prove little"


def test_grey_levels_are_rounded_and_clipped_as_diffusers_does():
    levels = torch.arange(256.0).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for shift in (-0.4, 0.0, 0.4):
        (picture,) = to_pil((levels + shift) / 127.5 - 1)
        assert np.array_equal(np.asarray(picture), levels[0].permute(1, 2, 0).numpy())
    images = 1.3 * torch.randn(3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    theirs = image_processor.VaeImageProcessor().postprocess(images, output_type="pil")
    for ours, picture in zip(to_pil(images), theirs, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(picture))
        assert np.asarray(ours).min() == 0 and np.asarray(ours).max() == 255
    assert torch.equal(to_tensor(to_pil(to_tensor(theirs))), to_tensor(theirs))
