"""Drawing many tensors in one launch: ε, θ and gradients against the reference, to the last bit; and the rehearsal."""

import json

import pytest
import torch

pytest.importorskip("triton")
from minibnn_kernels import bayes_linear, network, reference, rehearsal
from test_kernels import DEVICE, SEED, PoisonedTorch

from minibnn.cli.train import fine_tune
from minibnn.errors import UserError
from minibnn.finetune import kernel
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

# Wide and narrow rows, tails in both directions, a convolution, biases, and something empty
SHAPES = [(17, 48), (37,), (5, 2, 2, 2), (2, 22), (20, 4), (0, 16), (16, 80), (3, 0), (1,)]
DOMAINS = ["weight" if len(shape) > 1 else "bias" for shape in SHAPES]


@pytest.fixture
def tensors(monkeypatch):
    """(μ's, σ's, streams); what the kernels forget to write is NaN, and what they write outside is seen."""
    monkeypatch.setattr(network, "torch", poisoned := PoisonedTorch())
    generator = torch.Generator().manual_seed(0)
    mus, sigmas = ([torch.rand(shape, generator=generator).to(DEVICE) for shape in SHAPES] for _ in range(2))
    yield mus, sigmas, list(range(3, 3 + len(SHAPES)))
    for memory in poisoned.memories:
        around = poisoned.AROUND
        assert memory[:around].isnan().all() and memory[-around:].isnan().all(), "written outside"


@pytest.mark.parametrize("dtype", bayes_linear.DTYPES)
def test_one_launch_draws_the_reference_and_another_makes_its_gradients(tensors, dtype):
    mus, sigmas, streams = tensors
    made = network.plan(mus, sigmas, streams, DOMAINS)
    thetas = network.draw(made, SEED, dtype)
    gradients = [torch.randn(shape, device=DEVICE).to(dtype) for shape in SHAPES]
    strided = [torch.stack([g, g])[1] if g.ndim < 2 else g.mT.contiguous().mT for g in gradients]
    dmus, dsigmas = network.gradients(made, SEED, strided)
    for i, (stream, domain) in enumerate(zip(streams, DOMAINS, strict=True)):
        theta = reference.sample_weights(mus[i].cpu(), sigmas[i].cpu(), SEED, stream, domain).to(dtype)
        assert torch.equal(thetas[i].cpu(), theta)
        assert thetas[i].shape == dmus[i].shape == dsigmas[i].shape == SHAPES[i]
        assert torch.equal(dmus[i], gradients[i].float())
        noise = reference.sample_weights(None, gradients[i].float().cpu(), SEED, stream, domain)
        assert torch.equal(dsigmas[i].cpu(), noise)


def test_only_what_the_kernels_can_read_is_planned():
    mu = torch.zeros(4, 6)
    for sigma in (torch.zeros(6, 4).mT, torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 5)):
        with pytest.raises(ValueError, match=r"needs contiguous float32 of \(4, 6\), not"):
            network.plan([mu], [sigma], [0], ["weight"])


# --- on a machine where the kernels do not run ------------------------------------------------------------------------


@pytest.fixture
def launch(monkeypatch):
    """launch(error) makes every launch raise it, and lets a CPU be taken for a GPU that has Triton."""

    def change(error=None):
        def fail(*_):
            raise error

        monkeypatch.setattr(kernel, "default_kernel", lambda device: "triton")
        if error:
            monkeypatch.setattr(bayes_linear, "_launch", fail)
            monkeypatch.setattr(network, "_launch", fail)

    return change


ERROR = RuntimeError("Failed to find C compiler.\nPlease specify via CC")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rehearsal_succeeds_here(dtype, launch, capsys):
    launch()
    assert kernel.choose_kernel("auto", DEVICE, dtype) == "triton" == kernel.choose_kernel("triton", DEVICE, dtype)
    assert capsys.readouterr().out == ""


def test_the_rehearsal_sees_wrong_numbers(monkeypatch):
    monkeypatch.setattr(rehearsal.reference, "LOG", (0.08, *reference.LOG[1:]))
    with pytest.raises(rehearsal.KernelFailure, match="a drawn weight differs from the reference"):
        rehearsal.rehearse(DEVICE, torch.float32)


def test_auto_trains_on_with_the_same_weights_and_triton_fails_loudly(launch, dog, tmp_path, capsys):
    runs = {}
    for asked in ("reference", "auto"):
        out = tmp_path / asked
        words = ["--images", str(dog), "--out", str(out), "--steps", "2", "--samples", "0", "--prior-weight", "0",
                 "--no-monitor", "--kernel", asked, "--device", DEVICE, "--where", "mid", "--method", "dreambooth"]
        launch(ERROR)
        fine_tune(parse(TrainOptions, "minibnn.train", words))
        runs[asked] = [json.loads(line)["diffusion"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert json.loads((out / "config.json").read_text())["options"]["kernel"] == "reference"
    assert runs["auto"] == runs["reference"] and len(runs["auto"]) == 2
    line = "the Triton kernels do not run here (RuntimeError: Failed to find C compiler.): --kernel reference draws"
    assert capsys.readouterr().out.count(line) == 1
    words[words.index("auto")], words[3] = "triton", str(tmp_path / "refused")
    with pytest.raises(UserError, match=r"--kernel triton does not run here \(RuntimeError: Failed to find C compiler"):
        fine_tune(parse(TrainOptions, "minibnn.train", words))
    assert not (tmp_path / "refused").exists()
