"""Gains: against denoisers whose gain is known, by hand on a network; the advice that follows; the command."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from minibnn import StableDiffusion, data, runs, schedule
from minibnn.cli.gains import show_gains, usual
from minibnn.cli.train import fine_tune
from minibnn.errors import UserError
from minibnn.finetune import bayes
from minibnn.lab import eq2, gain_advice, gain_law, gains, monitor, sigma1_estimate
from minibnn.options.lab import GainsOptions
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

ABAR = schedule.alphas_cumprod().double()
TIMES = (1, 20, 300, 999)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(gain, memory, constant=0.0):
    """predict(x, t) = g_t·(x − √ᾱ_t m)/√(1−ᾱ_t) + constant: a denoiser with the gain g_t, a function of t."""
    return lambda x, t: gain(t) * (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt() + constant


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 5, 7)])
def test_a_linear_denoiser_has_its_gain_from_a_single_draw(shape):
    """Whatever it remembers, right or wrong, and whatever it adds that does not depend on the noise."""
    pictures = normal(*shape, seed=1)
    gain = lambda t: 0.4 + t / 1000  # noqa: E731
    predict = linear(gain, memory=normal(*shape[1:], seed=2), constant=normal(*shape[1:], seed=3))
    found = gains.slopes(predict, pictures, ABAR, TIMES, draws=1)
    assert found.shape == (4, 1, shape[0]) and found.dtype == torch.float64
    expected = torch.tensor([gain(t) for t in TIMES], dtype=torch.float64)[:, None, None].expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_a_gain_for_each_position_is_their_mean():
    """ε̂ = G(x − √ᾱ m)/√(1−ᾱ) with a diagonal G: the mean of the diagonal, within the standard error that is told."""
    diagonal = normal(4, 8, 8, seed=4) * 0.3 + 0.8
    found = gains.slopes(linear(lambda t: diagonal, 0.0), normal(2, 4, 8, 8), ABAR, (300,), draws=200, seed=7)
    error = gains.standard_error(found)[0]
    assert error == pytest.approx((2 * diagonal.var() / 256 / 400).sqrt().item(), rel=0.2)  # var of Σ g ε² / Σ ε²
    assert abs(gains.mean(found)[0] - diagonal.mean().item()) < 3 * error


def test_the_network_of_eq_2_has_the_gain_one_minus_sqrt_abar_k():
    """Eq. 2 as a gain: x̂_0 = x′ + k_t (x_t − √ᾱ_t x′) is a prediction of the noise with the gain 1 − √ᾱ_t k_t."""
    picture = normal(1, 4, 6, 6)
    for sigma1 in (0.0, 0.3, 4.8):
        found = gains.slopes(eq2.eps_model(picture, ABAR, sigma1), picture, ABAR, TIMES, draws=1)
        expected = [1 - (ABAR[t].sqrt() * eq2.gain(ABAR[t], sigma1)).item() for t in TIMES]
        assert gains.mean(found) == pytest.approx(expected, rel=1e-9)


def test_the_mean_colour_has_a_gain_of_its_own():
    """ε̂ = a·P(δ) + b·(1 − P)(δ) with P the mean of each channel: that part has the gain a, and all of it nearly b."""
    memory = normal(4, 6, 5, seed=5)

    def predict(x, t):
        deviation = (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt()
        colour = deviation.mean((2, 3), keepdim=True)
        return 0.3 * colour + 0.9 * (deviation - colour) + 0.2 * memory

    pictures = normal(2, 4, 6, 5, seed=6)
    colour = gains.slopes(predict, pictures, ABAR, TIMES, draws=2, part=gains.colour_of)
    torch.testing.assert_close(colour, torch.full_like(colour, 0.3), rtol=1e-10, atol=0)
    found = gains.slopes(predict, pictures, ABAR, (300,), draws=400)
    expected = 0.9 - 0.6 / 30  # 4 of 120 directions have 0.3
    assert abs(gains.mean(found)[0] - expected) < 4 * gains.standard_error(found)[0] < 0.01


def test_a_network_that_normalises_does_not_see_the_strength_of_noise():
    """ε̂ = a·δ/‖δ‖·√n + b·δ has the gain b in strength, and nearly a + b in all others."""
    memory = normal(4, 6, 5, seed=8)

    def predict(x, t):
        deviation = (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt()
        length = deviation.square().mean((1, 2, 3), keepdim=True).sqrt()
        return 0.7 * deviation / length + 0.2 * deviation

    found = gains.slopes(predict, memory[None], ABAR, TIMES, draws=3, part=gains.strength_of)
    torch.testing.assert_close(found, torch.full_like(found, 0.2), rtol=1e-9, atol=0)
    assert gains.mean(gains.slopes(predict, memory[None], ABAR, TIMES, draws=40))[0] == pytest.approx(0.9, abs=0.02)


def test_stein_the_gain_of_a_curved_denoiser_is_its_mean_slope():
    """ε̂ = tanh(a·ε) is no line; E⟨ε̂, ε⟩/d = a·E[1 − tanh²(a·ε)], here by quadrature."""
    a, grid = 0.7, torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / (2 * torch.pi) ** 0.5
    expected = torch.trapezoid(a * (1 - (a * grid).tanh().square()) * density, grid).item()
    memory = normal(4, 32, 32)
    predict = lambda x, t: (a * (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt()).tanh()  # noqa: E731
    found = gains.slopes(predict, memory[None], ABAR, (100,), draws=64)
    assert gains.mean(found)[0] == pytest.approx(expected, abs=4 * gains.standard_error(found)[0])
    assert gains.standard_error(found)[0] < 2e-3 * expected


def test_guidance_works_on_gains_as_on_predictions():
    """g = s·c − (s−1)·u, against the slopes of the guided prediction itself."""
    pictures, memory = normal(2, 4, 5, 5), normal(4, 5, 5, seed=1)
    c = linear(lambda t: 0.97, memory)
    u = lambda x, t: linear(lambda t: 1.02, 2 * memory)(x, t) + 0.1 * x.tanh()  # noqa: E731
    found = gains.Gains(TIMES, *(gains.slopes(p, pictures, ABAR, TIMES) for p in (c, u)))
    for s in (0.0, 1.0, 3.0, 7.5):
        guided = gains.slopes(lambda x, t: s * c(x, t) - (s - 1) * u(x, t), pictures, ABAR, TIMES)  # noqa: B023
        torch.testing.assert_close(found.guided(s), guided, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.guided(1), found.c) and torch.equal(found.guided(0), found.u)


def test_standard_errors():
    values = torch.tensor([[[1.0, 5.0], [2.0, 9.0], [3.0, 7.0]]], dtype=torch.float64)  # one time, 3 draws, 2 pictures
    # the variances over draws are 1 and 4, so that the mean of six has the variance (1/3 + 4/3)/4
    assert gains.standard_error(values) == pytest.approx([(5 / 12) ** 0.5])
    assert gains.mean(values) == [4.5] and gains.standard_error(values[:, :1]) == [float("inf")]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(micro):
    return StableDiffusion.load(micro)


def test_a_network_measured_by_hand(model):
    latents = normal(2, 4, 8, 8).float()
    found = gains.measure(model, latents, "a red car", "a dog", times=(100, 600), draws=2, seed=5, batch_size=3)
    noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for values, prompt in ((found.c, "a red car"), (found.u, "a dog")):
        for i, t in enumerate((100, 600)):
            for draw in range(2):
                for picture in range(2):
                    eps, (a, b) = noise[draw, picture], (ABAR[t].sqrt().item(), (1 - ABAR[t]).sqrt().item())
                    x = torch.stack([a * latents[picture] + b * eps, a * latents[picture] - b * eps])
                    with torch.no_grad():
                        out = model.unet(x, torch.tensor([t, t]), model.encode_prompts([prompt] * 2))
                    expected = ((out[0] - out[1]) / 2 * eps).sum() / eps.square().sum()
                    assert values[i, draw, picture].item() == pytest.approx(expected.item(), abs=2e-6)
    assert not torch.allclose(found.c, found.u)


def test_a_prediction_of_v_is_converted_first(model, monkeypatch):
    """A network that predicts v = √ᾱ ε̂ − √(1−ᾱ) x̂_0 of a linear denoiser has that denoiser's gain."""
    picture = normal(1, 4, 8, 8, seed=6).float()

    def velocity(x, t, context):
        abar = ABAR[t].float()[:, None, None, None]
        eps = 0.9 * (x - abar.sqrt() * picture) / (1 - abar).sqrt()
        return abar.sqrt() * eps - (1 - abar).sqrt() * (x - (1 - abar).sqrt() * eps) / abar.sqrt()

    model.configs["scheduler"]["prediction_type"] = "v_prediction"
    monkeypatch.setattr(model.unet, "forward", velocity)
    found = gains.measure(model, picture, "a car", times=(20, 300), draws=1)
    assert gains.mean(found.c) == pytest.approx([0.9, 0.9], abs=1e-4)


def test_random_weights_are_at_their_mean_even_in_training(model):
    latents = normal(1, 4, 8, 8).float()
    before = gains.measure(model, latents, "a car", draws=1)
    bayes.bayesianize(model.unet, "all", sigma=0.1)
    model.unet.train()
    after = gains.measure(model, latents, "a car", draws=1)
    assert model.unet.training
    assert torch.equal(before.c, after.c) and torch.equal(before.u, after.u)


def test_the_gain_is_what_sigma1_is_read_from(model):
    """σ₁'s estimate and the gain are two readings of the same slope: √ᾱ_t k_t = 1 − g_t, up to the noise of each."""
    latents = normal(1, 4, 8, 8, seed=8).float()
    predict = sigma1_estimate.predictor(model, "a car")
    k = sigma1_estimate.estimate_sigma1(predict, latents, model.alphas_cumprod, (300,), 64, resamples=2).gain[0]
    found = gains.slopes(predict, latents, model.alphas_cumprod, (300,), draws=64)
    assert 1 - ABAR[300].sqrt().item() * k == pytest.approx(gains.mean(found)[0], abs=0.01)


def test_another_unconditional_prediction(model):
    latents = normal(1, 4, 8, 8).float()
    own = gains.measure(model, latents, "a car", draws=1)
    zero = gains.measure(model, latents, "a car", draws=1, unconditional=lambda x, t: torch.zeros_like(x))
    assert torch.equal(own.c, zero.c) and not zero.u.any()
    assert dataclasses.astuple(own)[0] == gains.TIMES


# --- what follows from them -------------------------------------------------------------------------------------------


def reading(c, u, steps=50):
    times = gains.TIMES
    return gain_advice.Reading(times, [c] * 5, [u] * 5, schedule.alphas_cumprod(), steps)


def test_a_verdict_names_the_cause_and_only_remedies_that_work():
    seen, train = 0.05, ["--null-dropout 0.1"]
    case = reading(0.98, 1.01)  # guided: 0.785 with 7.5, 0.92 with 3
    added = case.added(7.5)
    left = [gain_law.noise_left([g] * 50, schedule.timesteps(50), schedule.alphas_cumprod()) for g in (0.785, 0.98)]
    assert added == pytest.approx((left[0] ** 2 - left[1] ** 2) ** 0.5, rel=1e-6) and added > seen
    assert gain_advice.remedies(case, 7.5, seen) == ["--eta 1", "--guidance 3"]
    assert gain_advice.verdict(case, 7.5, seen, train) == (
        "guidance 7.5 leaves noise: its gain is 0.78 at t = 20, because that of the unconditional prediction, 1.010, "
        f"is above that with the prompt, 0.980; it adds {added:.2f}, where 0.05 is seen; draw with --eta 1 or "
        "--guidance 3, or train with --null-dropout 0.1"
    )
    assert gain_advice.verdict(case, 7.5, seen, []).endswith("draw with --eta 1 or --guidance 3")
    assert gain_advice.verdict(case, 3.0, seen, train).startswith("guidance 3 adds no visible noise: 0.")
    assert gain_advice.remedies(case, 3.0, seen) == [] == gain_advice.remedies(case, 1.0, 0.0)


def test_figures_that_are_compared_are_told_apart():
    """Bug: "that of the unconditional prediction, 0.905, is above that with the prompt, 0.905"."""
    said = gain_advice.verdict(reading(0.90491, 0.90503), 7.5, 0.0, [])
    assert "unconditional prediction, 0.9050, is above that with the prompt, 0.9049;" in said
    assert gain_advice.apart(0.1, 0.1, 2)[0].startswith("0.10") and gain_advice.apart(1.0, 2.0, 2) == ("1.00", "2.00")


def test_where_ancestral_sampling_cannot_help_it_is_not_advised():
    """At guided gains below one half it does not forget, and a guidance of 1.5 still adds too much."""
    case = reading(1.0, 1.2)
    assert case.guided(7.5) == pytest.approx([-0.3] * 5)
    assert case.added(1.5) > 0.02 and gain_advice.remedies(case, 7.5, 0.02) == ["--guidance 1"]


def test_gains_far_above_one_overshoot_in_large_steps():
    c, u = [1.0] * 5, [0.3, 1.0, 1.0, 1.0, 1.0]  # guided with 7.5: 5.55 at t = 20, 1 from 100 on
    case = gain_advice.Reading(gains.TIMES, c, u, schedule.alphas_cumprod(), 20)
    named = dict(remedy.split() for remedy in gain_advice.remedies(case, 7.5, 0.03))
    assert case.added(7.5) > 0.03 >= case.added(float(named["--guidance"]))
    assert dataclasses.replace(case, steps=int(named["--steps"])).added(7.5) <= 0.03
    said = gain_advice.verdict(case, 7.5, 0.03, ["--null-dropout 0.1"])
    assert "its gains, up to 5.55, overshoot in 20 steps" in said and "train" not in said


def test_noise_that_the_decoder_hides_is_not_kept_quiet():
    said = gain_advice.verdict(reading(0.98, 1.01), 7.5, float("inf"), [])
    assert said.endswith("but the decoder does not show it as noise")
    assert "adds no visible noise" in gain_advice.verdict(reading(0.98, 0.98), 7.5, float("inf"), [])


def test_what_training_may_still_do():
    trained = lambda **o: gain_advice.training_remedies(SimpleNamespace(**o))  # noqa: E731
    assert trained(null_dropout=0.0, bayes=True) == ["--null-dropout 0.1"] == gain_advice.training_remedies(None)
    assert trained(null_dropout=0.2, bayes=True) == [] == trained(null_dropout=0.2, bayes=False)
    assert trained(bayes=False) == ["--null-dropout 0.1"]  # a run of an earlier version; random weights add noise


def test_visible_noise_is_where_the_measure_has_risen():
    """A decoder that shows latents as they are, and the standard deviation as the measure, in closed form."""
    sd = SimpleNamespace(device=torch.device("cpu"), decode_latents=lambda x: x)
    measure = lambda images: images.std().reshape(1)  # noqa: E731
    picture = normal(2, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    found = gain_advice.visible_noise(sd, picture, measure, 0.005)
    assert 0.08 < found < 0.16  # √(1 + 0.1²) is 1.005
    assert (picture[:1] + found * noise).std() - picture[:1].std() == pytest.approx(0.005, rel=0.2)
    assert gain_advice.visible_noise(sd, picture, measure, 9.0) == float("inf")
    assert gain_advice.visible_noise(sd, 0 * picture, measure, 0.005) == pytest.approx(0.005, rel=0.02)


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words):
    return show_gains(parse(GainsOptions, "minibnn gains", list(map(str, words))))


def test_the_command_on_a_model(micro, dog, tmp_path, capsys):
    words = ["--model", micro, "--images", dog, "--prompt", "a photo of a sks dog", "--times", 100, 600, "--draws", 2]
    found = command(*words, "--guidance", 1, 7.5, "--out", tmp_path / "gains.json")
    said = capsys.readouterr().out
    assert found["verdict"] in said and "guidance 7.5" in said and "with eta 1" in said
    assert said.startswith("6 pictures, 2 draws each, prompt 'a photo of a sks dog'")
    written = json.loads((tmp_path / "gains.json").read_text())
    assert written["found"] == found and written["options"]["guidance"] == [1.0, 7.5]

    sd = StableDiffusion.load(micro)
    latents = sigma1_estimate.latents_of(sd, data.load_pictures(data.list_pictures(dog), 64))
    own = gains.measure(sd, latents, "a photo of a sks dog", times=(100, 600), draws=2)
    assert found["guided"]["7.5"]["mean"] == pytest.approx(gains.mean(own.guided(7.5)), abs=1e-5)
    assert found["without"]["standard error"] == pytest.approx(gains.standard_error(own.u), rel=1e-3)
    colour = gains.measure(sd, latents, "a photo of a sks dog", times=(100, 600), draws=2, part=gains.colour_of)
    assert found["parts"]["mean colour"]["mean"] == pytest.approx(gains.mean(colour.c), abs=1e-5)
    assert found["parts"]["mean colour"]["mean"] != pytest.approx(gains.mean(own.c), abs=1e-3) and "mean colour" in said
    strength = gains.measure(sd, latents, "a photo of a sks dog", times=(100, 600), draws=2, part=gains.strength_of)
    assert found["parts"]["strength"]["mean"] == pytest.approx(gains.mean(strength.c), abs=1e-5)
    law = gain_law.predicted_noise((100, 600), gains.mean(own.guided(7.5)), sd.alphas_cumprod, 25)
    assert found["noise"]["7.5"]["eta 0"] == pytest.approx(law, rel=1e-4)
    with pytest.raises(UserError, match="gains.json exists; name another file or pass --overwrite"):
        command(*words, "--out", tmp_path / "gains.json")
    found = command(*words, "--out", tmp_path / "gains.json", "--overwrite", "--draws", 1)
    assert found["without"]["standard error"] == [None, None]


def test_the_verdict_is_on_the_models_own_guidance_and_noise_is_seen_as_the_monitor_sees_it(dog, micro, monkeypatch):
    """Bug of an earlier version: the bundled model, which draws with 3, was judged at 7.5 and by grey levels."""
    judged = []

    def visible_noise(sd, latents, world):
        judged.append(world)
        return 0.1

    monkeypatch.setattr(monitor, "visible_noise", visible_noise)
    fast = ["--images", dog, "--prompt", "a dog", "--times", 300, "--draws", 1]
    found = command("--model", micro, *fast)
    assert list(found["guided"]) == ["1", "3"] and "guidance 3 " in found["verdict"]
    command("--model", "tiny", *fast)
    assert judged == [False, True]
    assert [usual(scale) for scale in (7.5, 3.0, 2.0, 1.0)] == [[1.0, 3.0, 7.5], [1.0, 3.0], [1.0, 2.0], [1.0]]


class NoFloat64(torch.Tensor):
    """A tensor that refuses float64, as tensors on Apple's GPUs do, until it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        if function is torch.Tensor.cpu:
            return arguments[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, arguments, settings or {})
        if isinstance(found, NoFloat64) and found.dtype == torch.float64:
            raise TypeError("no float64 on this device")
        return found


def test_what_is_measured_on_a_device_without_float64_is_the_same():
    plain = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    found = {}
    for kind in (torch.Tensor, NoFloat64):
        latents, abar = plain.as_subclass(kind), schedule.alphas_cumprod()
        with pytest.raises(TypeError) if kind is NoFloat64 else contextlib.nullcontext():
            latents.double()
        predict = lambda x, t: 0.9 * x + x.square() / 7  # noqa: E731
        gain = gains.slopes(predict, latents, abar, (100, 900), draws=2)
        sigma1 = sigma1_estimate.estimate_sigma1(predict, latents, abar, (100, 900), 2, resamples=10)
        found[kind] = gain, sigma1
    assert torch.equal(found[torch.Tensor][0], found[NoFloat64][0]) and found[torch.Tensor][1] == found[NoFloat64][1]


def test_a_runs_pictures_are_found_from_another_folder(dog, micro, tmp_path, monkeypatch):
    """Relative paths are those of the folder in which it was started, also where the new one has the same names."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes((dog / "00.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    words = ["--images", "photos", "--model", micro, "--out", "run", "--method", "lora", "--steps", 1, "--samples", 0,
             "--no-bayes"]
    fine_tune(parse(TrainOptions, "minibnn train", list(map(str, words))))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "photos").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert runs.images_of(tmp_path / "run") == [str(tmp_path / "photos")]
    command("--model", tmp_path / "run", "--times", 300, "--draws", 1)
    (tmp_path / "photos").rename(tmp_path / "moved")  # those of the present folder are others
    assert runs.images_of(tmp_path / "run") == [str(tmp_path / "photos")]


@pytest.mark.parametrize("method", ["dreambooth", "lora"])
def test_the_command_on_a_run(micro, dog, tmp_path, method, capsys):
    """It finds pictures and prompt by itself, merges the adapter, and takes another's unconditional prediction."""
    words = ["--images", dog, "--model", micro, "--out", tmp_path / "run", "--method", method, "--lr", 0.01]
    words += ["--steps", 2, "--prior-weight", 0, "--samples", 0]
    fine_tune(parse(TrainOptions, "minibnn train", list(map(str, words))))
    fast = ["--model", tmp_path / "run", "--times", 300, "--draws", 1]
    own, base = command(*fast), command(*fast, "--unconditional-from", micro)
    before = command("--model", micro, *fast[2:], "--images", dog)
    assert own["with the prompt"] == base["with the prompt"] != before["with the prompt"]
    assert own["without"] != base["without"] == before["without"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "--model nowhere: there is no such file or folder"),
        ([], "--images is required: tiny-v2 is not a run"),
        (["--images", "tutorials/dog", "--times", "1000"], r"--times 1000 is outside 0\.\.999"),
        (["--images", "tutorials/dog", "--guidance", "nan"], "--guidance nan is not a finite number"),
        (["--images", "tutorials/dog", "--steps", "1000"], r"steps = 1000 is outside 1\.\.999"),
    ],
)
def test_refusals(words, message):
    with pytest.raises(UserError, match=message):
        command(*words)
