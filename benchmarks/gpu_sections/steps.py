"""Steps: whole training steps of SD v1.5 at batch 1 + 1, in the loop of the training command where it says "loop".

Each variant takes some steps to warm up, then steps that are timed, and then two that are profiled: the seconds that
its kernels take together ("busy") and the most expensive of them. A wall time far above "busy" is the host's.
"""

import importlib.util
import time

import torch
from torch import nn

from minibnn import schedule
from minibnn.finetune import bayes
from minibnn.train import fine_tuning, train

from . import authors, models, timing

VARIANTS = {  # options of the training
    "ours": {}, "ours, plain weights": {"bayes": False}, "ours, layer by layer": {"at_once": False},
    "ours, checkpointing": {"gradient_checkpointing": True}, "ours, adamw-bf16": {"optimiser": "adamw-bf16"},
    "ours, float32": {"dtype": "float32"},
}
THEIRS = "diffusers' UNet in our loop, plain weights"


def run(section):
    found, names = {}, ["ours", THEIRS, "the authors' loop, float32", *list(VARIANTS)[1:]]
    for name in names[:3] if section.tiny else names:
        if name == THEIRS and importlib.util.find_spec("diffusers") is None:
            section.missing("diffusers")
            continue
        function = of_authors if name.startswith("the authors") else of_loop
        found[name] = section.measure(name, function, section, name, needs=20)
    step = {name: figures and figures["step"] for name, figures in found.items()}
    ours, plain = step["ours"], step.get("ours, plain weights")
    section.goal("a step of ours with random weights / one of diffusers without", timing.ratio(ours, step.get(THEIRS)),
                 most=1.10)
    section.goal("a step of ours with random weights / ours without", timing.ratio(ours, plain), most=1.10)
    of_authors_loop = timing.ratio(step["the authors' loop, float32"], ours)
    section.goal("a step of the authors' loop / one of ours", of_authors_loop, least=5.0)
    whole = found["ours"]
    section.goal("kernels' share of a step of ours, the rest waits", whole and whole["busy"] / whole["step"]["median"],
                 least=0.9)


class Theirs(nn.Module):
    """diffusers' UNet, called as ours is."""

    def __init__(self, network, config):
        super().__init__()
        self.network, self.conv_in, self.config = network, network.conv_in, config

    def forward(self, x, t, context):
        return self.network(x, t, context).sample


def their_unet(section):
    from diffusers import UNet2DConditionModel

    config = models.unet_config(section.tiny)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    torch.manual_seed(0)
    with torch.device(section.device):
        return Theirs(UNet2DConditionModel.from_config({"sample_size": models.latents_side(section)} | values), config)


class Clock:
    """An observer of a training: seconds of each step, as the host sees them."""

    def __init__(self):
        self.times, self.last = [], None

    def __call__(self, training):
        now = time.perf_counter()
        if self.last:
            self.times.append(now - self.last)
        self.last = now


def of_loop(section, name):
    """{"step": seconds, "busy", "kernels", "top", "peak": bytes} of a variant in the loop of the training command."""
    warm, timed = (1, 1) if section.tiny else (8, 20)
    changes = dict(VARIANTS.get(name, {"bayes": False}))
    at_once = changes.pop("at_once", True)
    options = models.training_options(section, steps=warm, **changes)
    sd = models.model(section)
    if name == THEIRS:
        sd.unet = their_unet(section)
    training = fine_tuning(sd, options)
    if options.bayes:
        sd.unet.random_weights[0].at_once = at_once
    batches = models.batches(section, sd.unet.config)

    def go_on(steps, observers=()):
        more = models.training_options(section, steps=training.step + steps, **changes)
        train(training, more, batches, observers)
        timing.synchronise()

    timing.synchronise()
    go_on(warm)
    clock = Clock()
    start = time.perf_counter()
    peak = timing.peak(lambda: go_on(timed, [clock]))
    mean = (time.perf_counter() - start) / timed
    profile = timing.busy(lambda: go_on(2))
    profile |= {"busy": profile["busy"] / 2, "kernels": profile["kernels"] // 2}
    return {"step": timing.spread(clock.times) | {"mean": mean}, "peak": peak} | profile


def of_authors(section, name):
    """The same of the authors' loop."""
    network = models.unet(section).train()
    layers = authors.replace(network)
    optimiser = torch.optim.AdamW(network.parameters(), 5e-6, weight_decay=0.01)
    abar = schedule.alphas_cumprod().to(section.device)
    step = authors.training_step(network, layers, optimiser, abar, models.batches(section, network.config))
    step()
    times = timing.called(step, 20)
    peak, profile = timing.peak(step), timing.busy(step)
    random = sum(p.numel() for name, p in network.named_parameters() if name.endswith("_sigma"))
    assert all((p >= bayes.SIGMA_MIN).all() for name, p in network.named_parameters() if name.endswith("_sigma"))
    return {"step": times, "peak": peak, "random weights": random} | profile
