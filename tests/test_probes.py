"""The probes: on a network that is Eq. 2 itself, where every number is known; then as a user meets their commands."""

import dataclasses
import json
import math
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from scipy import stats

from minibnn import StableDiffusion, data, runs, schedule
from minibnn.__main__ import main
from minibnn.errors import UserError
from minibnn.files.store import ASSETS, write_json
from minibnn.lab import drawn_by_eq2, eq2, probes, sheets, sigma1_estimate
from minibnn.lab.models import Lab, mean_and_half_width, open_lab, write_found
from minibnn.options.lab import Eq2Options, ProbeOptions
from minibnn.options.training import TrainOptions

ABAR = schedule.alphas_cumprod()
OPTIONS = ProbeOptions(draws=6, batch_size=4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Eq2:
    """Stands for a StableDiffusion whose network is Eq. 2 around `pictures`; its "VAE" repeats pixels."""

    def __init__(self, pictures, sigma1):
        self.model = eq2.eps_model(pictures, ABAR, sigma1)
        weight = torch.zeros(8)
        config, quant_conv = SimpleNamespace(scaling_factor=1.0), SimpleNamespace(weight=weight)
        self.vae = SimpleNamespace(factor=8, config=config, quant_conv=quant_conv)
        self.vae.encode = lambda images: (torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))
        self.device = weight.device

    def encode_prompts(self, prompts):
        return torch.zeros(len(prompts), 77, 8)

    def predict_eps(self, x, t, context):
        assert context.shape == (len(x), 77, 8) and len(set(t.tolist())) == 1
        return self.model(x, int(t[0]))

    def decode_latents(self, x):
        return x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


def lab(sigma1, pictures=None, **options):
    pictures = random(2, 4, 8, 8) if pictures is None else pictures
    models = {"pretrained": Eq2(pictures, 0.1), "fine-tuned": Eq2(pictures, sigma1)}
    return Lab(dataclasses.replace(OPTIONS, **options), models, "a photo of a sks dog", pictures, ABAR)


def test_sigma1_command_finds_the_constant():
    _, found, lines = probes.sigma1(lab(0.5))
    assert found["fine-tuned"]["sigma1"][:5] == pytest.approx([0.5] * 5, rel=1e-3)
    assert found["pretrained"]["sigma1"][:5] == pytest.approx([0.1] * 5, rel=1e-2)
    json.dumps(found)
    assert len(lines) == 1 + 2 * (2 + len(sigma1_estimate.TIMES) + 1)


def test_probe_local_agrees_with_eq2_where_eq2_holds():
    """Fig. 5: ‖change of x̂_0‖² = k² ‖δ′‖²; §3.3's example at σ₁ = 4.8 gives 1.107."""
    _, found, lines = probes.probe_local(lab(4.8))
    k = eq2.gain(ABAR[100], 4.8).item()
    assert found["fine-tuned"]["change"][0] == pytest.approx(k**2, rel=1e-3)
    assert found["fine-tuned"]["change"][0] == pytest.approx(1.107, abs=2e-3)
    assert found["fine-tuned"]["total"][0] == pytest.approx(found["fine-tuned"]["Eq. 2 total"], rel=1e-3)
    assert found["fine-tuned"]["total"][0] > 1.5 and found["pretrained"]["change"][0] < 0.02
    assert found["fine-tuned"]["share of the change inside the region"] == pytest.approx(1, abs=1e-4)
    assert "2.65" in lines[-1] and "1.107" in lines[-1]


def test_local_noise_is_local():
    local = probes.local_noise(torch.zeros(50, 4, 8, 8), torch.Generator().manual_seed(0))
    assert ((local != 0).sum((1, 2, 3)) == 4 * 2 * 2).all() and (local[:, :, 4:6, 2:4] != 0).all()
    assert local[:, :, 4:6, 2:4].std() == pytest.approx(1, abs=0.1)


def test_probe_scaled_agrees_with_app_f():
    _, found, _ = probes.probe_scaled(lab(0.4, picture=1))
    root, k_t = ABAR[100].sqrt().item(), eq2.gain(ABAR[100], 0.4).item()
    # k = 0 is equally near to both pictures' rays, and may take the other one
    wanted = [1 + k_t * (k - root) for k in probes.SCALES]
    assert found["fine-tuned"]["scale"][2:] == pytest.approx(wanted[2:], rel=1e-4)
    assert found["fine-tuned"]["Eq. 2 scale"] == pytest.approx(wanted, rel=1e-3)
    assert found["fine-tuned"]["cosine"][2:] == pytest.approx([1] * 4, abs=1e-5)


@pytest.mark.parametrize("n", [2, 6, 40])
def test_intervals_of_draws_are_students(n):
    values = random(n, seed=n).double()
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert mean_and_half_width(values) == pytest.approx((values.mean().item(), (high - low) / 2))


def test_probe_zero_at_999_does_it_once():
    image, found, lines = probes.probe_zero(lab(0.5, t=999))
    assert list(found["pretrained"]) == ["one step, t = 999", "50 steps from t = 999"] and len(lines) == 5
    assert image.width < probes.probe_zero(lab(0.5))[0].width  # one column less


def test_probe_zero_finds_the_picture():
    """Fig. 3: Eq. 2 makes 1 − √ᾱ k_t times a training picture of x_t = 0."""
    pictures = torch.stack([2 * random(4, 8, 8), random(4, 8, 8, seed=1)])  # the second is nearer to 0
    _, found, _ = probes.probe_zero(lab(0.5, pictures))
    for t in (999, 100):
        one = found["fine-tuned"][f"one step, t = {t}"]
        assert one["picture"] == 1 and one["cosine"] == pytest.approx(1, abs=1e-5)
        assert one["scale"] == pytest.approx(1 - (ABAR[t].sqrt() * eq2.gain(ABAR[t], 0.5)).item(), rel=1e-3)
    drawn = found["pretrained"]["50 steps from t = 999"]
    assert drawn["cosine"] == pytest.approx(1, abs=1e-3) and drawn["scale"] == pytest.approx(1, abs=0.02)


def test_an_infinite_sigma1_goes_through_json_to_eq2(tmp_path):
    """Bug of an earlier version: `sigma1` wrote Infinity, which is no JSON, and `eq2 --measured` refused its file."""
    own = lab(0.5)
    own.models["fine-tuned"].model = lambda x, t: -x  # it removes none of the noise
    image, found, lines = probes.sigma1(own)
    write_found(tmp_path / "it.png", "sigma1", OPTIONS, image, found, lines)
    written = json.loads((tmp_path / "it.json").read_text(), parse_constant=pytest.fail)["found"]["fine-tuned"]
    assert found["fine-tuned"]["sigma1"] == [math.inf] * 7 and written["sigma1"] == written["high"] == [None] * 7
    assert drawn_by_eq2.measured_sigma1(tmp_path / "it.json").tolist() == [math.inf] * 1000
    curve = {"t": [100, 300, 500], "sigma1": [0.3, None, 0.5]}
    write_json(tmp_path / "it.json", {"command": "sigma1", "found": {"a": curve}})
    between = drawn_by_eq2.measured_sigma1(tmp_path / "it.json")
    assert between[[100, 101, 300, 499, 500]].tolist() == [0.3, math.inf, math.inf, math.inf, 0.5]


def test_probe_blank_measures_the_noise_that_is_left():
    """App. E: around x′ = 0 one step leaves √ᾱ k of the noise, and no prompt is used."""
    asked = []
    own = lab(0.5, torch.zeros(1, 4, 8, 8))
    for sd in own.models.values():
        sd.encode_prompts = lambda prompts: asked.append(prompts) or torch.zeros(len(prompts), 77, 8)
    _, found, _ = probes.probe_blank(own)
    share = (ABAR[100].sqrt() * eq2.gain(ABAR[100], 0.5)).item()
    assert found["fine-tuned"]["latent 0"]["one step"]["noise left"][0] == pytest.approx(share, rel=0.03)
    assert found["pretrained"]["latent 0"]["one step"]["noise left"][0] < 0.1
    # ten steps follow the ODE: σ₁ is left of √(ᾱσ₁² + 1−ᾱ)
    spread = [(ABAR[t] * 0.25 + 1 - ABAR[t]).sqrt().item() for t in (0, 100)]
    expected = spread[0] / spread[1] * (1 - ABAR[100]).sqrt() / ((1 - ABAR[100]) / ABAR[100]).sqrt()
    assert found["fine-tuned"]["latent 0"]["ten steps"]["noise left"][0] == pytest.approx(expected.item(), rel=0.05)
    assert asked == [[""], [""]]


def test_the_table_of_eq2(dog, tmp_path, monkeypatch):
    """More σ₁, more noise and less similarity, whatever the set; σ₁ = 0 repeats pictures of the set."""
    monkeypatch.setattr(drawn_by_eq2, "COUNT", 6)
    measured, out = tmp_path / "sigma1.json", tmp_path / "table.png"
    found = {"a": {"t": [0], "sigma1": [9]}, "b": {"t": [100, 300], "sigma1": [0.3, 0.3]}}
    measured.write_text(json.dumps({"command": "sigma1", "found": found}))
    given = {"images": str(dog), "manifold_size": 12, "steps": 20, "measured": str(measured), "out": str(out)}
    drawn_by_eq2.draw_by_eq2(Eq2Options(sigma1=[0.0, 0.3, 1.0], **given))
    found = json.loads(out.with_suffix(".json").read_text())["found"]
    assert Image.open(out).width > 400 and list(found) == ["12 others", "6 training pictures", "one of them"]
    for name, places in found.items():
        assert places[0]["noise"] < 0.08 < 0.2 < places[1]["noise"] < 0.4 < 0.9 < places[2]["noise"] < 1.1
        assert places[0]["similarity"] > places[1]["similarity"] > places[2]["similarity"]
        assert (places[0]["similarity"] > 0.99) == (name != "12 others")
        assert places[3]["noise"] == pytest.approx(places[1]["noise"]) and places[3]["sigma1"] == "sigma_1,t measured"
    measured.write_text(json.dumps({"command": "probe-zero"}))
    with pytest.raises(UserError, match="not written by the command sigma1"):
        drawn_by_eq2.draw_by_eq2(Eq2Options(overwrite=True, **given))


def test_similarity_and_noise():
    training = random(2, 4, 3, 3)
    found = drawn_by_eq2.similarity_and_noise(torch.stack([training[1], 2 * training[0]]), training, training)
    assert found["similarity"] == pytest.approx(1, abs=1e-6)
    assert found["noise"] == pytest.approx((training[0].square().mean() / 2).sqrt().item(), rel=1e-5)


# --- as a user meets them ---------------------------------------------------------------------------------------------


def test_a_run_names_its_base_and_pictures(dog, tmp_path, monkeypatch):
    """A run of relative --model and --tokenizer, looked into from another folder without repeating its options."""
    home = tmp_path / "home"
    shutil.copytree(ASSETS / "tiny", home / "base")
    shutil.move(home / "base" / "tokenizer", home / "words")
    monkeypatch.chdir(home)
    options = TrainOptions(str(dog), "base", "words", "v_prediction", "a photo of a sks dog", out="run")
    runs.start(options, data.list_pictures(dog))
    shutil.copytree(ASSETS / "tiny", home / "run", dirs_exist_ok=True)  # as if it were the result
    monkeypatch.chdir(tmp_path)
    loaded, load = {}, StableDiffusion.load

    def spy(path, tokenizer=None, dtype=None, prediction_type=None):
        loaded[os.fspath(path)] = tokenizer, prediction_type
        return load(path, tokenizer, dtype, prediction_type)

    monkeypatch.setattr(StableDiffusion, "load", spy)
    opened = open_lab(ProbeOptions(model=os.path.join("home", "run")))
    assert loaded == {str(home / "base"): (str(home / "words"), "v_prediction"), "home/run": (None, None)}
    assert list(opened.models) == ["pretrained", "fine-tuned"]
    assert opened.latents.shape == (6, 4, 8, 8) and opened.prompt == "a photo of a sks dog"
    alone = open_lab(ProbeOptions("tiny", images=str(dog)))
    assert list(alone.models) == ["model"]
    torch.testing.assert_close(alone.latents, opened.latents)
    shown = opened.models["fine-tuned"].decode_latents(opened.latents)
    assert shown.shape == (6, 3, 64, 64) and shown.std() > 0.3


COMMANDS = [*probes.PROBES, "eq2"]


def test_every_command_leaves_a_picture_and_numbers(dog, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "TIMES", (100, 500))
    for command in COMMANDS:
        out = tmp_path / f"{command}.png"
        words = ["--manifold-size", "3", "--steps", "4", "--sigma1", "0.2"] if command == "eq2" else ["--draws", "2"]
        monkeypatch.setattr(sys, "argv", ["minibnn", command, "--images", str(dog), *words, "--out", str(out)])
        main()
        assert Image.open(out).width > 300
        written = json.loads(out.with_suffix(".json").read_text())
        assert written["command"] == command and written["options"]["seed"] == 0 and written["found"]
    assert len(list(tmp_path.iterdir())) == 2 * len(COMMANDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--images is required: tiny-v2 is not a run"),
        ({"images": "DOG", "picture": 6}, "--picture 6: .* holds 6 pictures"),
        ({"images": "DOG", "t": 1000}, "--t 1000 is outside 1..999"),
        ({"images": "DOG", "draws": 1}, "at least 2"),
        ({"images": "DOG", "out": "a.jpg"}, "must end with .png"),
        ({"images": "DOG", "out": "there.png"}, "there.png exists; name another file or pass --overwrite"),
        ({"images": "DOG", "out": "numbers.png"}, "numbers.json exists"),
    ],
)
def test_mistakes(changes, message, dog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").touch()
    (tmp_path / "numbers.json").touch()
    changes = {k: str(dog) if v == "DOG" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        probes.look("probe-zero", dataclasses.replace(OPTIONS, **changes))
    assert {p.name for p in tmp_path.iterdir()} == {"there.png", "numbers.json"}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_sheet_places_pictures_and_leaves_gaps_white():
    red, green = (Image.new("RGB", (10, 8), colour) for colour in ("red", "green"))
    image = sheets.sheet([[red, None], [None, green]], ["a", "b"], ["left\ncolumn", "right"], zoom=3)
    at = {"red": (255, 0, 0), "green": (0, 128, 0)}
    everywhere = [(x, y) for x in range(image.width) for y in range(image.height)]
    places = {name: [xy for xy in everywhere if image.getpixel(xy) == colour] for name, colour in at.items()}
    assert all(len(p) == 30 * 24 for p in places.values())
    assert min(places["green"])[0] > max(places["red"])[0]
    assert min(y for _, y in places["green"]) > max(y for _, y in places["red"])
