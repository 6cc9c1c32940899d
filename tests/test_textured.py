"""The textured model: its pictures, its VAE set by hand, its measures, and the command that makes it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch_versions import needs_muon

from minibnn import StableDiffusion
from minibnn.errors import UserError
from minibnn.options.world import PretrainTexturedOptions
from minibnn.world import textured, textures
from minibnn.world.pixel_vae import pixel_vae
from minibnn.world.texture_measures import noise_level, ssim

diffusers = pytest.importorskip("diffusers")


def pictures(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([textured.random_view(rng)[0] for _ in range(count)])).float()


# --- the materials ----------------------------------------------------------------------------------------------------


def test_spectral_noise_has_the_slope_of_its_name():
    """Field 1987: amplitude ∝ 1/fˢ, so that the spectrum of power falls with slope −2s."""
    power = np.mean([
        np.abs(np.fft.fft2(textures.spectral_noise(np.random.default_rng(seed), 1.2))) ** 2 for seed in range(8)
    ], axis=0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(textures.SIDE), np.fft.fftfreq(textures.SIDE)))
    within = (f > 0.03) & (f < 0.3)
    slope = np.polyfit(np.log(f[within]), np.log(power[within]), 1)[0]
    assert slope == pytest.approx(-2.4, abs=0.2)  # clipping to [0, 1] flattens it a little


@pytest.mark.parametrize("name", textures.MATERIALS)
def test_every_material_is_textured_and_another_seed_is_another_piece(name):
    one, other = (np.asarray(textures.draw(name, seed), dtype=float) for seed in (0, 1))
    assert one.shape == (textures.SIDE, textures.SIDE, 3)
    assert one.std() > 10 and np.abs(one - other).mean() > 5  # of 255
    grey = one.mean(-1)
    assert np.abs(grey - ndimage.gaussian_filter(grey, 2)).mean() > 1  # a flat drawing has less: see below


def test_crops_are_resampled_squares_and_tints_keep_the_range():
    picture = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
    whole = textures.crop(picture, 1.0, 24)
    expected = picture.crop((8, 0, 56, 48)).resize((24, 24), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(whole, np.asarray(expected) / 255, atol=1 / 255)
    corner = textures.crop(picture, 0.5, 24, (0, 1))
    np.testing.assert_allclose(corner, np.asarray(picture.crop((40, 0, 64, 24))) / 255, atol=1e-6)
    grey = textures.tint(whole, "gray")
    assert np.ptp(grey, axis=-1).max() < 1e-6
    warm, cold = (textures.tint(whole, light).mean((0, 1)) for light in ("warm", "cold"))
    assert warm[0] > warm[2] and cold[0] < cold[2]


def test_captions_say_what_the_view_shows_and_some_say_less():
    images, captions = textured.random_batch(np.random.default_rng(3), 400)
    assert images.shape == (400, 3, textured.SIDE, textured.SIDE) and images.abs().max() <= 1
    named = sum(any(f" {material}" in caption for material in textures.MATERIALS) for caption in captions)
    assert 12 <= captions.count("") <= 80 and 270 <= named <= 360
    assert textured.caption("bricks", "very close", "warm") == "a warm photo of bricks very close"
    assert textured.caption("") == "a plain photo from afar"
    assert {word for caption in captions for word in caption.split()} <= textured.all_words()


def test_plain_light_changes_nothing_and_every_view_is_a_picture():
    rng = np.random.default_rng(5)
    for _ in range(60):
        pixels, (material, distance, light) = textured.random_view(rng)
        assert np.isfinite(pixels).all() and np.abs(pixels).max() <= 1
        assert textured.caption(material, distance, light).count(" ") == 6  # all captions are of one length
    pixels = np.random.default_rng(6).random((4, 4, 3))
    assert textures.tint(pixels, "plain") is pixels


def test_the_empty_prompt_has_a_vector_of_its_own_and_stop_words_have_none(tmp_path):
    tokenizer = textured.make_vocabulary(textured.all_words(), tmp_path)
    tokenizer.max_length = textured.TOKENS
    encoder = textured.bag_of_words(tokenizer)
    empty, said = encoder(tokenizer(["", "a plain photo of sks from afar"]))
    silent = [i for i, vector in enumerate(said) if vector.abs().max() < 1e-5]
    assert silent == [0, 1, 3, 4, 6]  # the mark before the prompt, "a", "photo", "of", "from"
    assert torch.allclose(empty[1:], empty[1:2].expand(9, -1)) and empty[1].std() > 0.5
    assert torch.equal(said[-2:], empty[-2:])  # the mark after the prompt stands for nothing everywhere
    assert not torch.allclose(said[5], said[2])  # sks is no light


def test_photographs_take_the_place_of_the_materials(tmp_path):
    for name, size, colour in (("Moss_1.png", (300, 200), "green"), ("rust.jpg", (200, 400), "red")):
        Image.new("RGB", size, colour).save(tmp_path / name)
    photographs = textured.photographs_of(tmp_path)
    assert {word: picture.size for word, picture in photographs.items()} == {"moss": (192, 128), "rust": (128, 256)}
    images, captions = textured.random_batch(np.random.default_rng(1), 60, photographs)
    red = images[:, 0].mean((1, 2)) > images[:, 1].mean((1, 2))
    for caption, is_red, picture in zip(captions, red, images, strict=True):
        if "gray" not in caption and ("moss" in caption or "rust" in caption):
            assert bool(is_red) == ("rust" in caption), caption
        assert picture.std((1, 2)).max() < 0.1  # one colour
    Image.new("RGB", (9, 9)).save(tmp_path / "moss2.png")
    with pytest.raises(UserError, match="moss2.png: the letters"):
        textured.photographs_of(tmp_path)


# --- its VAE ----------------------------------------------------------------------------------------------------------


def test_the_pixel_vae_is_the_identity_in_both_directions_and_in_diffusers():
    x = torch.cat([pictures(), torch.ones(1, 3, 24, 24), -torch.ones(1, 3, 24, 24)])
    vae = pixel_vae()
    with torch.no_grad():
        mean, logvar = vae.encode(x)
        assert (mean - x).abs().max() < 1e-4 and (vae.decode(mean) - x).abs().max() < 2e-4  # 8-bit pixels: 8e-3
        assert (logvar == -30).all()
        noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        assert (vae.decode(noisy) - noisy).abs().max() < 2e-3  # what a trained VAE would take away
        theirs = diffusers.AutoencoderKL(
            latent_channels=3, block_out_channels=(8,), norm_num_groups=1, down_block_types=["DownEncoderBlock2D"],
            up_block_types=["UpDecoderBlock2D"],
        )
        theirs.load_state_dict(vae.state_dict())
        assert (theirs.eval().encode(x).latent_dist.mean - x).abs().max() < 1e-4
        assert (theirs.decode(x).sample - x).abs().max() < 1e-4


# --- its measures -----------------------------------------------------------------------------------------------------


def ssim_by_scipy(x, y):
    """Wang et al. 2004 with the same window, from scipy's filter, for pictures (3, H, W) as arrays."""
    def mean(a):
        return ndimage.gaussian_filter(a, (0, 1.5, 1.5), truncate=2)[:, 3:-3, 3:-3]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, c = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.02**2, 0.06**2
    return ((2 * mx * my + c1) * (2 * c + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_equals_scipys_windows_and_falls_with_noise():
    x = pictures(4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for amount in (0.05, 0.3):
        y = (x + amount * noise).clamp(-1, 1)
        expected = [ssim_by_scipy(a.numpy(), x[:1][0].numpy()) for a in y]
        assert ssim(y, x[:1]).tolist() == pytest.approx(expected, abs=2e-4)
    assert ssim(x, x[:1])[0] == pytest.approx(1)
    values = [ssim((x[:1] + amount * noise[:1]).clamp(-1, 1), x[:1]).item() for amount in (0, 0.1, 0.2, 0.4)]
    assert values == sorted(values, reverse=True)


def test_the_noise_level_is_the_standard_deviation_of_white_noise():
    flat = torch.zeros(8, 3, 64, 64)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
    grey = noise.mean(1, keepdim=True).expand_as(noise)  # the same in the three colours
    assert noise_level(flat + 0.1 * noise).mean().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert noise_level(flat + 0.1 * grey).mean().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    ramp = torch.linspace(-1, 1, 64).expand_as(flat)
    assert noise_level(ramp).max() < 1e-6  # what is smooth is no noise


# --- the model --------------------------------------------------------------------------------------------------------


@needs_muon
def test_diffusers_opens_what_pretraining_makes_and_draws_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(textured, "BATCH", 2)
    textured.pretrain(PretrainTexturedOptions(work=str(tmp_path / "work"), out=str(tmp_path / "out"), steps=2))
    ours = StableDiffusion.load(tmp_path / "out")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    prompt = "a warm photo of bricks from afar"
    start = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    expected = theirs(prompt, num_inference_steps=3, guidance_scale=7.5, latents=start, output_type="np").images[0]
    picture = ours.generate([prompt], 3, 7.5, 4, progress=False)[0]
    assert picture.size == (24, 24)
    np.testing.assert_allclose(np.asarray(picture) / 255, expected, atol=1.5 / 255)
    assert ours.tokenizer([prompt]).shape == (1, textured.TOKENS)
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["addition_embed_type"] == "text"


@needs_muon
def test_another_seed_is_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(textured, "BATCH", 2)
    weights = []
    for seed in (0, 1):
        textured.pretrain(PretrainTexturedOptions(
            work=str(tmp_path / f"w{seed}"), out=str(tmp_path / f"m{seed}"), steps=1, seed=seed
        ))
        weights.append(StableDiffusion.load(tmp_path / f"m{seed}").unet.conv_in.weight)
    assert not torch.equal(*weights)
