"""The measures of the bundled world: what they see, what they are blind to, and their formulas as printed.

The figures in the comments were measured when the tests were written, with `python -m minibnn world-measures` or here.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from minibnn import StableDiffusion, UserError
from minibnn.files.store import ASSETS
from minibnn.files.weights import open_weights, shapes_of
from minibnn.options.world import EyeOptions
from minibnn.pictures import to_tensor
from minibnn.world import damage, eye
from minibnn.world import measures as world_measures
from minibnn.world import scenes as world
from minibnn.world.classifier import ATTRIBUTES, random_scenes, reconstruct


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion.load("tiny")


@pytest.fixture(scope="module")
def training(sd):
    return reconstruct(sd, to_tensor([world.draw(scene) for scene in world.dog_scenes()]))


@pytest.fixture(scope="module")
def elsewhere(sd):
    """New pictures of the dog, two on each background, through the VAE: (20, 3, 64, 64)."""
    return reconstruct(sd, torch.cat([world_measures.dogs(background, 2, 31) for background in world.BACKGROUNDS]))


@pytest.fixture(scope="module")
def clean(sd):
    """Six clean drawings on each background, not those behind clean.json: (60, 3, 64, 64)."""
    return world_measures.clean_drawings(sd, 6, 32)


def noisy(images, amount):
    return damage.white_noise(images, amount, torch.Generator().manual_seed(1)).clamp(-1, 1)


def blotchy(images, amount):
    return damage.blotches(images, amount, torch.Generator().manual_seed(2)).clamp(-1, 1)


def falls(values, least):
    return all(a - b > least for a, b in itertools.pairwise(values))


# --- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "amounts"), [(noisy, (0.05, 0.1, 0.2)), (blotchy, (0.1, 0.2, 0.4)), (damage.blur, (0.5, 1, 1.5))]
)
def test_fidelity_falls_with_damage(training, elsewhere, spoil, amounts):
    """It falls from 0.21 (the nearest: 0.73) to −0.01 (0.14), 0.02 (0.20) and −0.05 (0.18)."""
    pictures = [elsewhere, *(spoil(elsewhere, amount) for amount in amounts)]
    for values in zip(*(world_measures.fidelity(images, training) for images in pictures), strict=True):
        assert falls([value.mean().item() for value in values], 0.002)


def test_fidelity_knows_the_subject(sd, training, elsewhere):
    """It goes by colours: 0.21 for the dog; −0.02 for the same dog in other colours, and for other drawings."""
    colours = ((200, 180, 60), (60, 40, 160))
    recoloured = torch.cat([world_measures.dogs(background, 2, 31, *colours) for background in world.BACKGROUNDS])
    others = to_tensor([world.draw(scene) for scene in random_scenes(20, 22)])
    pictures = (elsewhere, reconstruct(sd, recoloured), reconstruct(sd, others))
    dog, *rest = (world_measures.fidelity(images, training)[0].mean().item() for images in pictures)
    assert dog > max(rest) + 0.15 and abs(rest[0] - rest[1]) < 0.1


def test_fidelity_is_the_mean_and_the_largest_cosine(training, elsewhere):
    mean, nearest = world_measures.fidelity(elsewhere, training)
    a, b = (eye.bundled_eye()(images).double() for images in (elsewhere, training))
    cosine = [[(x @ y / x.norm() / y.norm()).item() for y in b] for x in a]
    assert mean.tolist() == pytest.approx([sum(row) / 6 for row in cosine], abs=1e-5)
    assert nearest.tolist() == pytest.approx([max(row) for row in cosine], abs=1e-5)
    assert world_measures.fidelity(training, training)[1].tolist() == pytest.approx([1] * 6, abs=1e-5)


def test_diversity_is_one_minus_the_mean_cosine_of_all_pairs(elsewhere):
    images = elsewhere[::5]
    unit = world_measures.features(images).double()
    pairs = [1 - (unit[i] @ unit[j]).item() for i in range(4) for j in range(4) if i != j]
    assert world_measures.diversity(images) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert world_measures.diversity(images[:1].repeat(3, 1, 1, 1)) == pytest.approx(0, abs=1e-5)
    assert world_measures.diversity(images) > 0.1


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spoil", "amounts"), [(noisy, (0.02, 0.05, 0.1, 0.2)), (blotchy, (0.1, 0.15, 0.2))])
def test_noise_rises_with_damage_on_every_background(clean, spoil, amounts):
    pictures = (clean, *(spoil(clean, amount) for amount in amounts))
    levels = [world_measures.noise(images).view(10, 6).mean(1) for images in pictures]
    for background, values in zip(world.BACKGROUNDS, torch.stack(levels, 1).tolist(), strict=True):
        assert falls(values[::-1], 0.05), (background, values)


def test_noise_is_blind_to_texture_and_subject(clean):
    """The energy of clean drawings is 0.1 on grass, 7.8 on brick; `noise` is −0.6 to 0.6. Grain of 0.05 adds 1.3."""
    measured = (1000 * world_measures.calm_energy(clean), world_measures.noise(clean))
    energy, grain = (values.view(10, 6).mean(1) for values in measured)
    assert energy.max() - energy.min() > 7 and grain.abs().max() < 1
    assert (world_measures.noise(noisy(clean, 0.05)) - world_measures.noise(clean)).mean() > 1
    places = [background for background in world.BACKGROUNDS for _ in range(6)]
    smooth = [i for i, background in enumerate(places) if background in ("grass", "snow", "sky", "night")]
    subjects = world_measures.recognise(clean[smooth])["subject"]
    assert len(set(subjects)) > 5 and world_measures.noise(clean[smooth]).abs().max() < 0.3


def test_noise_counts_the_spots_of_the_dog(elsewhere, clean):
    """The dog has 0.5, other drawings 0.0: what a model draws that has learned the dog has "noise" of that level."""
    assert world_measures.noise(elsewhere).mean() - world_measures.noise(clean).mean() == pytest.approx(0.51, abs=0.1)


def test_noise_is_wrong_where_blotches_hide_the_background_from_the_classifier(clean):
    """It takes snow with blotches of 0.4 for bricks, whose energy is then subtracted: −2.2 instead of 5."""
    snow = blotchy(clean, 0.4).view(10, 6, 3, 64, 64)[list(world.BACKGROUNDS).index("snow")]
    assert world_measures.recognise(snow)["background"].count("snow") < 6
    assert world_measures.noise(snow).mean() < 1000 * world_measures.calm_energy(snow).mean() - 3


def test_immerkaer_does_not_see_blotches(clean):
    """Blotches of 0.2 change it from 0.0085 to 0.0086: it sees only the finest grain, whereas `noise` sees both."""
    pictures = (clean, blotchy(clean, 0.2), noisy(clean, 0.05))
    before, after, grainy = (world_measures.immerkaer(images).mean().item() for images in pictures)
    assert after == pytest.approx(before, rel=0.05) and grainy > 4 * before


def test_calm_energy_ignores_outlines_and_sees_grain_of_both_sizes():
    square = -torch.ones(1, 3, 64, 64)
    square[..., 20:40, 20:40] = 1
    assert world_measures.calm_energy(square).item() < 1e-6
    white = noisy(torch.zeros(1, 3, 64, 64), 0.1)
    for grain in (white, damage.blur(white, 1.5) * 4):
        assert world_measures.calm_energy(grain).item() > 5e-4


def test_noise_subtracts_the_level_of_the_background_that_is_seen(clean, monkeypatch):
    images = clean[::6]
    monkeypatch.setattr(world_measures, "recognise", lambda images: {"background": ["snow"] * len(images)})
    wanted = 1000 * (world_measures.calm_energy(images) - world_measures._clean()["snow"])
    torch.testing.assert_close(world_measures.noise(images), wanted)


def test_immerkaer_1996_as_printed():
    """σ = √(π/2) / (6 (W−2) (H−2)) · Σ |I ∗ N| with scipy's convolution in float64; ours is the mean over colours."""
    images = torch.randn(2, 3, 11, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    for image, got in zip(images, world_measures.immerkaer(images).tolist(), strict=True):
        sums = [np.abs(signal.convolve2d(colour, n, mode="valid")).sum() for colour in image.numpy()]
        wanted = [math.sqrt(math.pi / 2) * s / (6 * (17 - 2) * (11 - 2)) for s in sums]
        assert got == pytest.approx(sum(wanted) / 3, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_immerkaer_finds_the_deviation_of_pure_noise_and_no_plane(sigma):
    x, y = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 96), indexing="ij")
    plane = (0.3 * x - 0.5 * y).expand(2, 3, 128, 96)
    assert world_measures.immerkaer(plane).max() < 1e-6
    got = world_measures.immerkaer(damage.white_noise(plane, sigma, torch.Generator().manual_seed(3)))
    assert got.tolist() == pytest.approx([sigma] * 2, rel=0.02)  # 3·128·96 values


# --- prompt fidelity --------------------------------------------------------------------------------------------------


def test_prompt_fidelity_compares_only_what_was_asked():
    scenes = (("car", "red", "snow"), ("dog", "blue", "beach"), ("star", "yellow", "night"))
    images = to_tensor([world.draw(world.Scene(*scene)) for scene in scenes])
    wanted = [
        {"subject": "car", "background": "beach"}, {"colour": "blue"},
        {"subject": "star", "colour": "red", "background": "night"},
    ]
    assert world_measures.prompt_fidelity(images, wanted) == {
        "subject": [True, None, True], "colour": [None, True, False], "background": [False, None, True],
    }
    with pytest.raises(ValueError):
        world_measures.prompt_fidelity(images, wanted[:2])


def test_the_classifier_recognises_clean_drawings_through_the_vae(clean):
    seen = world_measures.recognise(clean)
    truth = [background for background in world.BACKGROUNDS for _ in range(6)]
    assert sum(a == b for a, b in zip(seen["background"], truth, strict=True)) >= 58
    assert all(set(seen[name]) <= set(words) and len(seen[name]) == 60 for name, words in ATTRIBUTES.items())


def test_the_classifier_sees_the_place_through_noise(clean):
    """`noise` subtracts the energy of the background that is recognised, which must be right on noisy pictures too."""
    seen = world_measures.recognise(noisy(clean, 0.1))["background"]
    assert sum(a == b for a, b in zip(seen, [b for b in world.BACKGROUNDS for _ in range(6)], strict=True)) >= 54


# --- how the eye was trained ------------------------------------------------------------------------------------------


def test_simclr_eq1_as_printed():
    """ℓ(i,j) = −log exp(sim(z_i,z_j)/τ) / Σ_k 1[k≠i] exp(sim(z_i,z_k)/τ), its mean over pairs, in float64."""
    z = torch.randn(10, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    z[5:] += 0.5 * z[:5]
    tau, total, right = eye.TAU, 0, 0

    def sim(u, v):
        return (u @ v / (u.norm() * v.norm())).item()

    for i in range(10):
        j = (i + 5) % 10
        others = [math.exp(sim(z[i], z[k]) / tau) for k in range(10) if k != i]
        total -= math.log(math.exp(sim(z[i], z[j]) / tau) / sum(others))
        right += max(others) == math.exp(sim(z[i], z[j]) / tau)
    loss, recognised = eye.contrastive_loss(z)
    assert loss.item() == pytest.approx(total / 10, rel=1e-12)
    assert 0 < right < 10 and recognised == pytest.approx(right / 10)


def seen_affine(size, area, seed, n=16):
    """What `crop` did to pictures of their own coordinates: [flip · side, centre x, side, centre y], each (n,)."""
    where = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64)
    ramps = torch.stack([where.expand(64, 64), where[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(n, 3, 64, 64)
    out = eye.crop(ramps, size, area, torch.Generator().manual_seed(seed)).double()
    a, b = size // 4, size - 1 - size // 4  # away from the border, where there are no neighbours to interpolate
    found = []
    for line in (out[:, 0, size // 2], out[:, 1, :, size // 2]):  # across, down
        found += [(line[:, b] - line[:, a]) * size / (2 * (b - a)), (line[:, b] + line[:, a]) / 2]
    return found


def test_crops_are_squares_of_the_share_asked_for_inside_the_picture_either_way_round():
    across, x, side, y = seen_affine(32, (0.4, 0.9), 5, 64)
    torch.testing.assert_close(across.abs(), side, rtol=0, atol=1e-4)
    assert (across > 0).any() and (across < 0).any()
    assert (side**2).min() > 0.4 - 1e-4 and (side**2).max() < 0.9 + 1e-4 and (side**2).std() > 0.1
    for centre in (x, y):
        assert (centre.abs() + side).max() < 1 + 1e-4 and centre.std() > 0.05
    assert not torch.allclose(x, y)


def test_crops_interpolate_like_scipy():
    n, size = 4, 48
    images = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    got = eye.crop(images, size, (0.3, 1.0), torch.Generator().manual_seed(7))
    across, x, side, y = (value.numpy() for value in seen_affine(size, (0.3, 1.0), 7, n))
    centres = (2 * np.arange(size) + 1) / size - 1
    for i in range(n):
        affine = ((side[i], y[i]), (across[i], x[i]))  # of rows, of columns
        where = np.meshgrid(*(((scale * centres + shift + 1) * 64 - 1) / 2 for scale, shift in affine), indexing="ij")
        for colour in range(3):
            wanted = ndimage.map_coordinates(images[i, colour].numpy().astype(float), where, order=1, mode="reflect")
            assert np.abs(got[i, colour].numpy() - wanted).max() < 2e-4


def test_a_crop_of_everything_is_the_picture_or_its_mirror():
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    found = set()
    for image, got in zip(images, eye.crop(images, 64, (1.0, 1.0), torch.Generator().manual_seed(9)), strict=True):
        same, mirrored = (torch.allclose(got, wanted, atol=1e-4) for wanted in (image, image.flip(-1)))
        assert same != mirrored
        found.add(same)
    assert found == {True, False}


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_blur_equals_scipy(sigma):
    images = torch.rand(2, 3, 21, 34, generator=torch.Generator().manual_seed(10))
    wanted = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=3)
    assert np.abs(damage.blur(images, sigma).numpy() - wanted).max() < 1e-6


def test_damages_have_the_deviation_asked_for():
    zero = torch.zeros(40, 3, 64, 64)
    amounts = torch.linspace(0.1, 0.4, 40).view(-1, 1, 1, 1)
    got = damage.white_noise(zero, amounts, torch.Generator().manual_seed(11)).std((1, 2, 3))
    torch.testing.assert_close(got, amounts.flatten(), rtol=0.05, atol=0)
    smooth = damage.blotches(zero, 0.2, torch.Generator().manual_seed(12))
    assert smooth.std().item() == pytest.approx(0.2, rel=1e-4)
    assert (smooth[..., 1:] - smooth[..., :-1]).std() < 0.2 * smooth.std()  # neighbours are alike; white noise has 1.4
    assert torch.equal(smooth, damage.blotches(zero, 0.2, torch.Generator().manual_seed(12)))


def test_four_states_are_the_picture_and_three_damages_of_it(elsewhere):
    images = elsewhere[:6]
    states = eye.four_states(images, torch.Generator().manual_seed(13))
    assert states.shape == (24, 3, 64, 64) and states.abs().max() <= 1
    assert torch.equal(states[:6], images)
    grain = [world_measures.immerkaer(part).mean().item() for part in states.split(6)]
    assert grain[3] < grain[0] < grain[1] and (states[12:18] - images).square().mean() > 1e-3


def test_pairs_show_two_things_at_one_place_and_never_the_tutorials_dog():
    drawn = eye.pictures(12, 14)
    places = world_measures.recognise(drawn)["background"]
    assert drawn.shape == (24, 3, 64, 64) and places[::2] == places[1::2] and len(set(places)) > 3
    assert torch.equal(drawn, eye.pictures(12, 14))
    assert (drawn[::2] - drawn[1::2]).abs().amax((1, 2, 3)).min() > 0.3

    def teal_pixels(images):
        difference = images - (torch.tensor(world.TEAL) / 127.5 - 1).view(3, 1, 1)
        return (difference.abs().amax(1) < 0.02).flatten(1).sum(1)

    assert teal_pixels(to_tensor([world.draw(s) for s in world.dog_scenes()])).min() > 50
    assert teal_pixels(drawn).max() < 20


def test_training_leaves_a_network_that_the_measures_can_use(tmp_path, monkeypatch):
    few = eye.pictures(6, 15)
    monkeypatch.setattr(eye, "pictures", lambda pairs, seed: few)
    eye.train_eye(EyeOptions(steps=11, out=str(tmp_path / "fidelity.safetensors")))
    monkeypatch.setattr(eye, "ASSETS", tmp_path)
    eye.bundled_eye.cache_clear()
    try:
        assert world_measures.features(few).norm(dim=1).tolist() == pytest.approx([1] * 12, abs=1e-5)
    finally:
        eye.bundled_eye.cache_clear()


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_shipped_networks_are_small_and_whole():
    networks = {"fidelity.safetensors": eye.bundled_eye(), "classifier.safetensors": world_measures.classifier()}
    for name, network in networks.items():
        assert (ASSETS / name).stat().st_size <= 1e6 and not network.training
        assert all(torch.isfinite(p).all() and not p.requires_grad for p in network.parameters())
        with open_weights(ASSETS / name) as file:
            assert len(shapes_of(file)) == len(network.state_dict())
    assert world_measures._clean().keys() == world.BACKGROUNDS.keys()


def test_the_eye_takes_pictures_of_other_sizes():
    for shape in ((1, 3, 32, 32), (2, 3, 57, 91)):
        assert eye.bundled_eye()(torch.rand(shape)).shape == (shape[0], 128)


@pytest.mark.parametrize("what", ["fidelity", "classifier", "clean"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, what):
    monkeypatch.setattr(eye, "ASSETS", tmp_path)
    monkeypatch.setattr(world_measures, "ASSETS", tmp_path)
    functions = {"fidelity": eye.bundled_eye, "classifier": world_measures.classifier, "clean": world_measures._clean}
    function = functions[what]
    function.cache_clear()
    try:
        with pytest.raises(UserError, match=f"{what}.*(: no such file| is missing)") as error:
            function()
        assert "\n" not in str(error.value)
    finally:
        function.cache_clear()
