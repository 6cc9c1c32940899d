"""What a training step leaves out: waiting for the device, and a graph for the KL."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minibnn import StableDiffusion, train
from minibnn.cli.settle import settle
from minibnn.figures import Figures
from minibnn.finetune import bayes, weight_noise
from minibnn.finetune.kl_gradient import add_kl_gradient
from minibnn.options.training import TrainOptions


@pytest.mark.parametrize("direction", ["q-p", "p-q"])
def test_the_closed_kl_gradient_is_that_of_autograd(direction):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    bayes.bayesianize(network, "all", 0.02)
    prior = {name: mu.detach() + 0.1 * torch.randn_like(mu) for name, (mu, _) in bayes.sigmas(network).items()}
    for name, (_, sigma) in bayes.sigmas(network).items():
        sigma.data *= 1 + torch.rand_like(sigma)
        assert name in prior
    before = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    value = bayes.kl(network, prior, 0.03, direction)
    expected = torch.autograd.grad(value, list(network.parameters()))
    for name, parameter in network.named_parameters():
        parameter.grad = before[name].clone()
    assert add_kl_gradient(network, prior, 0.03, direction, 0.7) == value
    for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, before[name] + 0.7 * gradient, rtol=1e-12, atol=1e-12)


class Recorded:
    """Takes the place of Figures: finite figures, and a list of what happened."""

    events = []

    def __init__(self, step, names, values):
        assert values.device.type == "meta" and values.shape == (len(names),)
        self.step, self.names = step, names
        self.events.append(f"step {step}")

    def read(self):
        self.events.append(f"read {self.step}")
        return dict.fromkeys(self.names, 1.0)


@pytest.fixture
def on_meta(micro, monkeypatch):
    """run(**options): steps on the meta device, whose tensors hold no numbers: whatever would read one raises."""
    monkeypatch.setattr(train, "Figures", Recorded)
    monkeypatch.setattr(Recorded, "events", [])
    monkeypatch.setattr(train, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(weight_noise, "epsilon", lambda shape, seed, stream, device: torch.empty(shape, device=device))

    def run(**changes):
        sd = StableDiffusion.load(micro)
        words = {"images": ["somewhere"], "out": "nowhere", "steps": 3, "monitor": False, "device": "cpu"}
        options = settle(TrainOptions(**(words | changes)), sd, 6)
        pictures = torch.rand(4, 3, 64, 64)
        sources = [(pictures, ["a dog"] * 4), (pictures, ["a dog", "a cat"] * 2)]
        batches = train.Batches(sd, sources, options.batch_size, 0, options.null_dropout)
        batches.sources = [(*(x.to("meta") for x in tensors), which) for *tensors, which in batches.sources]
        batches.null = batches.null.to("meta")
        sd.unet.to("meta")
        training = train.fine_tuning(sd, options)
        assert training.optimiser.defaults["fused"], "the others wait"
        training.optimiser = torch.optim.SGD(sd.unet.parameters(), 1.0)  # the fused one does not know the meta device
        train.train(training, options, batches)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"prior_weight": 1.0, "null_dropout": 0.5, "accumulate": 2, "batch_size": 2},
        {"prior_weight": 1.0, "null_dropout": 0.5, "lambda_kl": 1e-3, "min_snr": 5.0},
        {"prior_weight": 1.0, "null_dropout": 0.5, "method": "lora"},
    ],
    ids=["accumulated", "KL, min-SNR", "lora"],
)
def test_a_step_reads_nothing_from_the_device_but_the_figures_of_the_step_before(on_meta, changes):
    on_meta(**changes)
    assert Recorded.events == ["step 1", "step 2", "read 1", "step 3", "read 2", "read 3"]


def test_the_meta_device_sees_what_would_wait(on_meta, monkeypatch):
    original = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *args: original(*args) if original(*args) > 0 else None)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        on_meta(prior_weight=1.0, null_dropout=0.5)


def test_figures_arrive_as_they_were_sent():
    values = torch.tensor([1.0, 2.5], dtype=torch.float64)
    assert Figures(7, ("a", "b"), values).read() == {"a": 1.0, "b": 2.5}


def test_figures_wait_for_the_gpu_that_sends_them(monkeypatch):
    """Bug: the event was recorded on the current GPU, not on that of --device, and nothing was waited for."""
    recorded = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=recorded.append))
    values = SimpleNamespace(is_cuda=True, device="cuda:1", detach=lambda: torch.ones(2))
    Figures(7, ("a", "b"), values)
    assert recorded == ["stream of cuda:1"]
