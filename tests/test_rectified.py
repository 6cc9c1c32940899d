"""Rectified flows in Stable Diffusion's layout: against InstaFlow's loop on diffusers' UNet, and closed forms."""

import json

import numpy as np
import pytest
import small_sd
import torch
from PIL import Image

from minibnn import StableDiffusion, UserError, data
from minibnn.files.weights import NotFinite, write_tensors
from minibnn.neighbours import beside, flow, rectified
from minibnn.options.neighbours import RectifiedOptions
from minibnn.options.parsing import parse
from minibnn.world import scenes as world

FAST = ["--euler-steps", "4", "--guidance", "1.5", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random UNet, whose velocities are scaled down until four steps can be inverted."""
    folder = tmp_path_factory.mktemp("flow")
    sd = StableDiffusion.load(small_sd.make(folder / "sd", layers=1))
    with torch.no_grad():
        sd.unet.conv_out.weight.mul_(0.1)
    sd.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def sd(model):
    return StableDiffusion.load(model)


@pytest.fixture
def pictures(tmp_path):
    """Five drawings, of which three have captions of their own."""
    rng = np.random.default_rng(0)
    for i in range(5):
        scene = world.random_scene(rng)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        world.draw(scene).save(tmp_path / "pictures" / f"{i}.png")
        if i < 3:
            (tmp_path / "pictures" / f"{i}.txt").write_text(world.caption(scene))
    return tmp_path / "pictures"


def command(*words):
    return rectified.train_or_draw(parse(RectifiedOptions, "minibnn rectified", [*map(str, words)]))


# --- conditions -------------------------------------------------------------------------------------------------------


def test_each_sample_is_inverted_under_its_own_condition():
    """v = −a·x + c with a and c of the sample: some contract soon, others late, and all keep their conditions."""
    a = torch.tensor([0.01, 0.9, 0.3, 0.6], dtype=torch.float64)
    c = torch.stack([a, torch.tensor([2.0, -1.0, 0.5, 3.0]).double()], dim=1)
    asked = []

    def velocity(x, s, condition):
        asked.append(len(x))
        return -condition[:, :1] * x + condition[:, 1:]

    n, x = 5, torch.linspace(-1, 2, 4, dtype=torch.float64)[:, None]
    z, _ = flow.invert(velocity, x, n, tolerance=1e-13, condition=lambda rows: c[rows])
    power, own = (1 - a / n) ** n, c[:, 1]
    shift = own / n * sum((1 - a / n) ** k for k in range(n))
    torch.testing.assert_close(z[:, 0], (x[:, 0] - shift) / power, rtol=1e-11, atol=1e-11)
    assert len(set(asked)) == 4  # one after the other was done
    torch.testing.assert_close(flow.euler(flow.under(velocity, c), z, n), x, rtol=1e-11, atol=1e-11)


class OnGPU(torch.Tensor):
    """Stands for a tensor of a GPU: one of the CPU, as indices are, cannot be indexed by it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__ and type(args[0]) is torch.Tensor:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        result = super().__torch_function__(function, types, args, kwargs)
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def test_the_inversion_computes_where_the_pictures_are():
    """Bug of an earlier version: on a GPU the first step of each inversion failed."""
    x, c = torch.linspace(-1, 2, 3)[:, None], torch.tensor([[0.01], [0.9], [0.3]])
    velocity = lambda y, s, a: -a * y  # noqa: E731
    expected, _ = flow.invert(velocity, x, 2, condition=lambda rows: c[rows])
    z, _ = flow.invert(velocity, x.as_subclass(OnGPU), 2, condition=lambda rows: c[rows].as_subclass(OnGPU))
    assert type(z) is OnGPU
    torch.testing.assert_close(z.cpu(), expected, rtol=0, atol=0)


def test_a_corrector_learns_what_its_condition_says():
    """Noise of mean 2 under one condition and −2 under the other, from one network."""

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(3, 1)

        def forward(self, x, s, condition):
            return self.body(torch.cat([x, s[:, None], condition], dim=1))

    torch.manual_seed(0)
    which = torch.arange(400) % 2
    contexts = torch.tensor([[1.0], [-1.0]])
    z = 2 * contexts[which] + 0.3 * torch.randn(400, 1)
    network = Shift()
    flow.fit(network, z, 300, 5e-2, 64, 0, condition=lambda rows: contexts[which[rows]])
    for condition in (1.0, -1.0):
        e = torch.randn(500, 1)
        out = flow.euler(flow.under(network, torch.full((500, 1), condition)), e, 20)
        assert out.mean().item() == pytest.approx(2 * condition, abs=0.2)


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_pictures_are_those_of_instaflows_loop_on_diffusers(model, sd, guidance):
    """`RectifiedFlowPipeline`: t = (1 − i/n)·1000, x ← x + v/n, v = v_∅ + w·(v_c − v_∅)."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet", local_files_only=True)
    prompts, n = ["a red car", "a dog on the beach"], 3
    null, texts = sd.encode_prompts(["", ""]), sd.encode_prompts(prompts)
    x = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for i in range(n):
            t = torch.ones(4) * (1 - i / n) * 1000
            of_null, of_text = unet(torch.cat([x, x]), t, torch.cat([null, texts])).sample.chunk(2)
            x = x + (of_null + guidance * (of_text - of_null)) / n
        expected = ((sd.decode_latents(x) + 1) * 127.5).permute(0, 2, 3, 1)
    found = rectified.draw(sd, prompts, n, guidance, 3, (48, 64), batch_size=1 if guidance == 1 else 8)
    for picture, pixels in zip(found, expected, strict=True):
        assert (torch.tensor(np.array(picture)).float() - pixels).abs().max() <= 0.6  # rounding takes 0.5


def test_a_new_corrector_changes_nothing_and_a_factor_scales_the_noise(sd, monkeypatch):
    torch.manual_seed(0)
    corrector, calls = rectified.Corrector((16, 32), 4, 32).eval(), []
    corrector.register_forward_hook(lambda *_: calls.append(1))
    plain, new = (
        rectified.draw(sd, ["a dog"], 3, 1.5, 0, (64, 64), correction=correction, corrector_steps=4)
        for correction in (None, corrector)
    )
    assert len(calls) == 4
    assert plain[0].tobytes() == new[0].tobytes()
    seen = []
    monkeypatch.setattr(rectified, "velocity_of", lambda *_: lambda x, s, c: (seen.append(x.clone()), 0 * x)[1])
    rectified.draw(sd, ["a dog"], 1, 1.5, 0, (64, 64))
    rectified.draw(sd, ["a dog"], 1, 1.5, 0, (64, 64), correction=1.25)
    torch.testing.assert_close(seen[1], 1.25 * seen[0])


# --- the command ------------------------------------------------------------------------------------------------------


def test_train_is_stopped_resumed_and_draws(model, sd, pictures, tmp_path, monkeypatch, capsys):
    """Inversions are kept; what is drawn from the inverse noise of a picture, under its caption, is the picture."""
    out, work = tmp_path / "run", tmp_path / "run.unfinished"
    words = ["--model", model, "--train", "--images", pictures, "--prompt", "a dog", "--out", out, *FAST]
    small = ["--channels", "16", "32", "--steps", "3"]
    real, calls, noises, seen = flow.invert, [], [], []

    def stopped(velocity, x, *more):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        z, residual = real(velocity, x, *more)
        own = more[-1](torch.arange(len(x)))
        seen.append((x, own, z.clone()))
        back = flow.euler(flow.under(velocity, own), z, 4)
        noises.append((back - x).abs().max().item())
        return z, residual

    monkeypatch.setattr(flow, "invert", stopped)
    with pytest.raises(KeyboardInterrupt, match=f"to go on: python -m minibnn rectified --resume --out {out}"):
        command(*words, *small)
    assert sorted(p.name for p in work.iterdir()) == ["inverse-000000.safetensors", "options.json"] and not out.exists()
    with pytest.raises(UserError, match="--resume continues it, --overwrite discards it"):
        command(*words, *small)
    with pytest.raises(UserError, match="--guidance is not what .*run.unfinished began with"):
        command("--resume", "--out", out, "--guidance", "2")
    (pictures / "3.txt").write_text("a cat")
    with pytest.raises(UserError, match="the pictures or captions are not those that .*run.unfinished began with"):
        command("--resume", "--out", out)
    (pictures / "3.txt").unlink()
    command("--resume", "--out", out)
    assert calls == [2, 2, 2, 1] and max(noises) < 1e-3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "run"]
    assert "5 of 5 pictures inverted" in capsys.readouterr().out
    corrector, config = rectified.load_corrector(out, sd)
    assert config["flow"] == beside.fingerprint(sd.unet, sd.text_encoder)
    assert (config["kept"], config["euler_steps"], config["guidance"], config["channels"]) == (5, 4, 1.5, [16, 32])
    assert corrector.unet.conv_out.weight.abs().max() > 0
    command(*words[:-len(FAST) - 1], tmp_path / "whole", *FAST, *small)
    assert (tmp_path / "whole" / "corrector.safetensors").read_bytes() == (
        out / "corrector.safetensors").read_bytes()
    x, own, z = map(torch.cat, zip(*seen[:3], strict=True))  # of pictures without noise, each under its caption
    captions = [(pictures / f"{i}.txt").read_text() if i < 3 else "a dog" for i in range(5)]
    images = torch.stack([data.load_picture(pictures / f"{i}.png", 64) for i in range(5)])
    torch.testing.assert_close(x, 0.18215 * sd.vae.encode(images)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own, sd.encode_prompts(captions), atol=1e-5, rtol=1e-4)
    assert config["factor"] == pytest.approx(z.square().mean().sqrt().item(), rel=1e-5)

    png = tmp_path / "a.png"
    drawn = command("--model", model, "--corrector", out, "--prompt", "a cat", "a dog", "--out", png, "--device", "cpu")
    assert "4 Euler steps, guidance 1.5: rows plain, factor, network, from the same noise" in capsys.readouterr().out
    with Image.open(png) as picture:
        assert picture.size == (2 * 64 + 2, 3 * 64 + 4) and json.loads(picture.info["minibnn"])["steps"] == 4
    assert [p.tobytes() for p in drawn[:2]] == [
        p.tobytes() for p in rectified.draw(sd, ["a cat", "a dog"], 4, 1.5, 0, (64, 64))]
    assert [p.tobytes() for p in drawn[2:4]] == [
        p.tobytes() for p in rectified.draw(sd, ["a cat", "a dog"], 4, 1.5, 0, (64, 64), correction=config["factor"])]
    assert drawn[0].tobytes() != drawn[2].tobytes() != drawn[4].tobytes()
    for option, number, own in (("--euler-steps", 5, 4), ("--guidance", 2, 1.5), ("--resolution", 128, 64)):
        with pytest.raises(UserError, match=f"{option} {number}: the corrector was trained for {own}"):
            command("--model", model, "--corrector", out, "--prompt", "x", option, number, "--out", tmp_path / "b.png")


def test_pictures_that_do_not_contract_are_left_out_or_refused(sd, tmp_path):
    """v = k·y has h·L = k/n: k = 1 contracts in one step, k = 3 does not."""
    contexts = torch.tensor([1.0, 3.0])
    options = RectifiedOptions(model="m", euler_steps=1, guidance=1.5, batch_size=6)
    velocity = lambda y, s, k: 0.5 * k[:, None] * y  # noqa: E731
    x = torch.ones(12, 2)
    which = torch.tensor([0] * 11 + [1])
    z, kept = rectified.inverse_noises(velocity, x, contexts, which, options, tmp_path)
    torch.testing.assert_close(z, x[:11] / 1.5, rtol=0, atol=1e-4)
    assert kept.tolist() == [0] * 11
    which[3] = 1
    with pytest.raises(UserError, match=r"does not contract: 1 of 6 .*with 1 Euler steps at guidance 1.5; take more"):
        rectified.inverse_noises(velocity, x[:6], contexts, which[:6], options, tmp_path / "other")
    write_tensors(tmp_path / "inverse-000000.safetensors", {"z": x})
    with pytest.raises(UserError, match="inverse-000000.safetensors does not hold the inverse noises"):
        rectified.inverse_noises(velocity, x, contexts, which, options, tmp_path)


def test_pictures_that_diverge_are_left_out(tmp_path):
    """v = k·y with k = 40: forty iterations grow beyond float32. Bug of an earlier version: their file was refused."""
    options = RectifiedOptions(model="m", euler_steps=1, guidance=1.5, batch_size=4)
    x, contexts, which = torch.ones(11, 2), torch.tensor([1.0, 40.0]), torch.tensor([0] * 10 + [1])
    velocity = lambda y, s, k: 0.5 * k[:, None] * y  # noqa: E731
    assert not flow.invert(velocity, x, 1, lost=1.0, condition=lambda rows: contexts[which[rows]])[0].isfinite().all()
    z, kept = rectified.inverse_noises(velocity, x, contexts, which, options, tmp_path)
    torch.testing.assert_close(z, x[:10] / 1.5, rtol=0, atol=1e-4)
    assert kept.tolist() == [0] * 10


@pytest.mark.parametrize("sizes", [(3, 2), (2, 3), (2, 9)])
def test_inversions_go_on_in_batches_of_another_size(tmp_path, sizes):
    """Bug of an earlier version: --resume allowed another --batch-size, and refused the files."""
    contexts, which = torch.tensor([1.0, 0.5]), torch.tensor([0, 1] * 4)
    x, asked = torch.arange(1.0, 9)[:, None].repeat(1, 2), []

    def velocity(y, s, k):
        asked.append(len(y))
        return 0.5 * k[:, None] * y

    before, after = (RectifiedOptions(model="m", euler_steps=1, guidance=1.5, batch_size=size) for size in sizes)
    rectified.inverse_noises(velocity, x[: 2 * sizes[0]], contexts, which, before, tmp_path)  # stopped after two
    asked.clear()
    z, kept = rectified.inverse_noises(velocity, x, contexts, which, after, tmp_path)
    torch.testing.assert_close(z, x / torch.tensor([1.5, 1.25]).repeat(4)[:, None], rtol=0, atol=1e-3)
    assert torch.equal(kept, which) and asked[0] == min(sizes[1], 8 - 2 * sizes[0])


@pytest.mark.parametrize("kind", ["run", "bps"])
def test_the_config_of_something_else_is_not_replaced(model, pictures, tmp_path, kind):
    """Bug of an earlier version: --overwrite made a run's folder one that no command opens."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(f'{{"format": "minibnn {kind}"}}')
    with pytest.raises(UserError, match="run.config.json is of something else and would be replaced: name another"):
        command("--model", model, "--train", "--images", pictures, "--out", tmp_path / "run", "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train"], "--train needs --images"), (["--images", "x"], "--images is for training: leave it out, or add"),
        (["--prompt", "x", "--steps", "9"], "--steps is for training"), (["--lr", "1"], "--lr is for training"),
        (["--prompt", "x", "--channels", "8"], "--channels is for training"),
        (["--train", "--images", "x", "--count", "2"], "--count is for drawing: leave it out, or --train"),
        (["--train", "--images", "x", "--dtype", "float16"], "--dtype is for drawing"),
        (["--train", "--images", "x", "--corrector", "y"], "--corrector is for drawing"),
        (["--train", "--images", "x", "--prompt", "a", "b"], "--train takes one --prompt"),
        (["--prompt", "x", "--corrector-steps", "3"], "--corrector-steps needs --corrector"),
        ([], "--prompt is required"), (["--prompt", "x", "--out", "a.jpg"], "must end with .png"),
        (["--train", "--images", "x", "--channels", "20"], "--channels must be multiples of 8"),
        (["--prompt", "x", "--guidance", "nan"], "guidance = nan"),
        (["--prompt", "x", "--corrector", "{}"], "is not a folder of `python -m minibnn rectified --train`"),
        (["--prompt", "x", "--resolution", "60"], "both must be positive multiples of 8"),
        (["--train", "--images", "{}/pictures"], "3.png has no caption: write 3.txt, or give --prompt"),
    ],
)
def test_mistakes(model, pictures, tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command("--model", model, *(word.format(tmp_path) for word in words))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "runs") == ["pictures"]
    assert not list(tmp_path.glob("runs/*"))


def test_a_corrector_of_another_flow_of_the_same_size_is_refused(model, sd, tmp_path, caplog):
    """Bug of an earlier version: it was taken without a word. One of an earlier version cannot be told."""
    config = {"model": "X", "euler_steps": 4, "guidance": 1.5, "factor": 1.0, "channels": [16], "latent_channels": 4,
              "resolution": 64, "context": 32}
    own = beside.fingerprint(sd.unet, sd.text_encoder)
    beside.save(rectified.Corrector((16,), 4, 32), tmp_path, "corrector", config | {"flow": own})
    half = StableDiffusion.load(model, dtype=torch.float16)
    rectified.load_corrector(tmp_path, sd)
    rectified.load_corrector(tmp_path, half)
    assert not caplog.text
    words = ["--corrector", tmp_path, "--prompt", "a dog", "--out", tmp_path / "a.png", "--device", "cpu"]
    with torch.no_grad():
        half.unet.conv_in.bias[0] += 0.01
    half.save(tmp_path / "other")
    with pytest.raises(UserError, match="was trained for the flow X, and this one has other weights: name that as"):
        command("--model", tmp_path / "other", *words)
    assert not (tmp_path / "a.png").exists()
    command("--model", model, *words, "--dtype", "bfloat16")  # the fingerprint is that of the file
    beside.save(rectified.Corrector((16,), 4, 32), tmp_path, "corrector", config)
    rectified.load_corrector(tmp_path, half)
    assert "does not say for which flow it was trained" in caplog.text


def test_a_corrector_of_another_model_or_a_damaged_one_is_refused(sd, tmp_path):
    config = {"model": "X", "euler_steps": 4, "guidance": 1.5, "factor": 1.0, "channels": [16], "latent_channels": 4,
              "resolution": 64}
    beside.save(rectified.Corrector((16,), 4, 32), tmp_path, "corrector", config | {"context": 32})
    assert rectified.load_corrector(tmp_path, sd)[1]["model"] == "X"
    beside.save(rectified.Corrector((16,), 4, 16), tmp_path, "corrector", config | {"context": 16})
    with pytest.raises(UserError, match="was trained for X, a model of another size"):
        rectified.load_corrector(tmp_path, sd)
    beside.save(rectified.Corrector((16,), 4, 32), tmp_path, "corrector", config | {"context": 32, "channels": [24]})
    with pytest.raises(UserError, match="does not hold what config.json beside it says"):
        rectified.load_corrector(tmp_path, sd)
    beside.save(rectified.Corrector((16,), 4, 32), tmp_path, "corrector", config)
    with pytest.raises(UserError, match="context"):
        rectified.load_corrector(tmp_path, sd)
    broken = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(NotFinite):  # as after a kill: what there is of the new one does not go with the old config.json
        beside.save(broken, tmp_path, "corrector", config)
    assert [path.name for path in tmp_path.iterdir()] == ["corrector.safetensors"]
