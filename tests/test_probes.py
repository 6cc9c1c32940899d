"""The commands of `python -m minibnn.corruption`: on a network that is Eq. 2 itself, where every number is known; then as a user meets them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from scipy import stats

from minibnn import pictures, schedule
from minibnn.errors import UserError
from minibnn.lab import eq2, probes, sigma1_estimate
from minibnn.lab.drawn_by_eq2 import judge, predicted
from minibnn.lab.models import Lab, interval, open_lab
from minibnn.options.probes import COMMANDS, ModelOptions, ProbeOptions, choose
from minibnn.pipeline import BUNDLED

ABAR = schedule.alphas_cumprod()
OPTIONS = ProbeOptions(draws=6, batch_size=4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Eq2:
    """Stands for a StableDiffusion whose network is Eq. 2 around `pictures`; its "VAE" repeats pixels."""

    def __init__(self, pictures, sigma1):
        self.model = eq2.eps_model(pictures, ABAR, sigma1)
        weight = torch.zeros(())
        self.vae = SimpleNamespace(factor=8, config=SimpleNamespace(scaling_factor=1.0), quant_conv=SimpleNamespace(weight=weight))
        self.vae.encode = lambda images: (torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))
        self.device = weight.device

    def encode_prompts(self, prompts):
        return torch.zeros(len(prompts), 77, 8)

    def predict_eps(self, x, t, context):
        assert context.shape == (len(x), 77, 8) and len(set(t.tolist())) == 1
        return self.model(x, int(t[0]))

    def decode_latents(self, x):
        return x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


def lab(sigma1, pictures=None):
    pictures = random(2, 4, 8, 8) if pictures is None else pictures
    return Lab({"pretrained": Eq2(pictures, 0.1), "fine-tuned": Eq2(pictures, sigma1)}, "a photo of a sks dog", pictures, ABAR)


def test_sigma1_command_finds_the_constant():
    _, found, lines = probes.sigma1(lab(0.5), OPTIONS)
    assert found["fine-tuned"]["sigma1"][:5] == pytest.approx([0.5] * 5, rel=1e-3)
    assert found["pretrained"]["sigma1"][:5] == pytest.approx([0.1] * 5, rel=1e-2)
    json.dumps(found)
    assert len(lines) == 1 + 2 * (2 + len(sigma1_estimate.TIMES) + 1)


def test_probe_local_agrees_with_eq2_where_eq2_holds():
    """Fig. 5: ‖change of x̂_0‖² = k² ‖δ′‖²; §3.3's example at σ₁ = 4.8 gives 1.107."""
    _, found, lines = probes.probe_local(lab(4.8), OPTIONS)
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
    _, found, _ = probes.probe_scaled(lab(0.4), dataclasses.replace(OPTIONS, picture=1))
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
    mean, half = interval(values)
    assert mean == pytest.approx(values.mean()) and half == pytest.approx((high - low) / 2, rel=1e-3 if n <= 10 else 0.12)


def test_probe_zero_at_999_does_it_once():
    image, found, lines = probes.probe_zero(lab(0.5), dataclasses.replace(OPTIONS, t=999))
    assert list(found["pretrained"]) == ["one step, t = 999", "50 steps from t = 999"] and len(lines) == 5
    assert image.width < probes.probe_zero(lab(0.5), OPTIONS)[0].width  # one column less


def test_probe_zero_finds_the_picture():
    """Fig. 3: Eq. 2 makes 1 − √ᾱ k_t times a training picture of x_t = 0."""
    pictures = torch.stack([2 * random(4, 8, 8), random(4, 8, 8, seed=1)])  # the second is nearer to 0
    _, found, _ = probes.probe_zero(lab(0.5, pictures), OPTIONS)
    for t in (999, 100):
        one = found["fine-tuned"][f"one step, t = {t}"]
        assert one["picture"] == 1 and one["cosine"] == pytest.approx(1, abs=1e-5)
        assert one["scale"] == pytest.approx(1 - (ABAR[t].sqrt() * eq2.gain(ABAR[t], 0.5)).item(), rel=1e-3)
    drawn = found["pretrained"]["50 steps from t = 999"]
    assert drawn["cosine"] == pytest.approx(1, abs=1e-3) and drawn["scale"] == pytest.approx(1, abs=0.02)


def test_probe_blank_measures_the_noise_that_is_left():
    """App. E: around x′ = 0 one step leaves √ᾱ k of the noise, and no prompt is used."""
    asked = []
    own = lab(0.5, torch.zeros(1, 4, 8, 8))
    for sd in own.models.values():
        sd.encode_prompts = lambda prompts: asked.append(prompts) or torch.zeros(len(prompts), 77, 8)
    _, found, _ = probes.probe_blank(own, OPTIONS)
    share = (ABAR[100].sqrt() * eq2.gain(ABAR[100], 0.5)).item()
    assert found["fine-tuned"]["latent 0"]["one step"]["noise left"][0] == pytest.approx(share, rel=0.03)
    assert found["pretrained"]["latent 0"]["one step"]["noise left"][0] < 0.1
    # ten steps follow the ODE: σ₁ is left of √(ᾱσ₁² + 1−ᾱ)
    spread = [(ABAR[t] * 0.25 + 1 - ABAR[t]).sqrt().item() for t in (0, 100)]
    expected = spread[0] / spread[1] * (1 - ABAR[100]).sqrt() / ((1 - ABAR[100]) / ABAR[100]).sqrt()
    assert found["fine-tuned"]["latent 0"]["ten steps"]["noise left"][0] == pytest.approx(expected.item(), rel=0.05)
    assert asked == [[""], [""]]


def test_predicted_table(dog, tmp_path, monkeypatch):
    """More σ₁, more noise and less similarity, whatever the set; σ₁ = 0 repeats pictures of the set."""
    monkeypatch.setattr("minibnn.predicted.COUNT", 6)
    measured = tmp_path / "sigma1.json"
    measured.write_text(json.dumps({"command": "sigma1", "found": {"a": {"t": [0], "sigma1": [9]}, "b": {"t": [100, 300], "sigma1": [0.3, 0.3]}}}))
    options = ModelOptions(images=str(dog), manifold_size=12, sigma1=[0.0, 0.3, 1.0], steps=20, measured=str(measured))
    image, found, _ = predicted(options)
    assert image.width > 400 and list(found) == ["12 others", "6 training pictures", "one of them"]
    for name, places in found.items():
        assert places[0]["noise"] < 0.08 < 0.2 < places[1]["noise"] < 0.4 < 0.9 < places[2]["noise"] < 1.1
        assert places[0]["similarity"] > places[1]["similarity"] > places[2]["similarity"]
        assert (places[0]["similarity"] > 0.99) == (name != "12 others")
        assert places[3]["noise"] == pytest.approx(places[1]["noise"]) and places[3]["sigma1"] == "sigma_1,t measured"
    with pytest.raises(UserError, match="not written by the command sigma1"):
        measured.write_text(json.dumps({"command": "probe-zero"}))
        predicted(options)


def test_judge():
    training = random(2, 4, 3, 3)
    found = judge(torch.stack([training[1], 2 * training[0]]), training, training)
    assert found["similarity"] == pytest.approx(1, abs=1e-6)
    assert found["noise"] == pytest.approx((training[0].square().mean() / 2).sqrt().item(), rel=1e-5)


# --- as a user meets them ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, dog):
    """The bundled model posing as a run, with slightly other weights."""
    folder = tmp_path_factory.mktemp("runs") / "dog"
    shutil.copytree(BUNDLED / "tiny", folder)
    options = {"images": str(dog), "model": "tiny", "prompt": "a photo of a sks dog"}
    (folder / "config.json").write_text(json.dumps({"format": "minibnn run", "options": options}))
    return folder


def test_a_run_names_its_base_and_pictures(run, dog):
    opened = open_lab(ProbeOptions(model=str(run)))
    assert list(opened.models) == ["pretrained", "fine-tuned"]
    assert opened.latents.shape == (6, 4, 8, 8) and opened.prompt == "a photo of a sks dog"
    alone = open_lab(ProbeOptions(images=str(dog)))
    assert list(alone.models) == ["model"]
    torch.testing.assert_close(alone.latents, opened.latents)
    shown = opened.models["fine-tuned"].decode_latents(opened.latents)
    assert shown.shape == (6, 3, 64, 64) and shown.std() > 0.3


def test_every_command_leaves_a_picture_and_numbers(dog, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "TIMES", (100, 500))
    for command in COMMANDS:
        out = tmp_path / f"{command}.png"
        words = ["--manifold-size", "3", "--steps", "4", "--sigma1", "0.2"] if command == "model" else ["--draws", "2"]
        probes.look(*choose([command, "--images", str(dog), *words, "--out", str(out)]))
        assert Image.open(out).width > 300
        written = json.loads(out.with_suffix(".json").read_text())
        assert written["command"] == command and written["options"]["seed"] == 0 and written["found"]
    assert len(list(tmp_path.iterdir())) == 2 * len(COMMANDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--images is required: tiny is no run"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prob-zero"], f"error: no command prob-zero; one of {', '.join(COMMANDS)}"),
        (["probe-zero", "--modle", "x"], "error: no option --modle; did you mean --model?"),
        (["model"], "error: --images is required; python -m minibnn.corruption model --help explains it"),
        (["sigma1", "--draws", "0"], "error: argument --draws: '0' is not a whole number of at least 1"),
    ],
)
def test_mistyped_words(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        choose(words)
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines() == [message]


def test_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        choose([])
    usage = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in usage for name in COMMANDS)
    words = [sys.executable, "-m", "minibnn.corruption", "sigma1", "--model", "nowhere"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ['error: no model at nowhere: give a folder, a .safetensors file, or "tiny" for the bundled model']


def test_help_needs_no_torch():
    script = "import sys, runpy; sys.argv = ['x', 'sigma1', '--help']\ntry: runpy.run_module('minibnn.corruption', run_name='__main__')\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_sheet_places_pictures_and_leaves_gaps_white():
    red, green = (Image.new("RGB", (10, 8), colour) for colour in ("red", "green"))
    image = pictures.sheet([[red, None], [None, green]], ["a", "b"], ["left\ncolumn", "right"], zoom=3)
    at = {"red": (255, 0, 0), "green": (0, 128, 0)}
    places = {name: [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == colour] for name, colour in at.items()}
    assert all(len(p) == 30 * 24 for p in places.values())
    assert min(places["green"])[0] > max(places["red"])[0] and min(y for _, y in places["green"]) > max(y for _, y in places["red"])
