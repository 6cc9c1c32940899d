"""The command that made the bundled model: it can be resumed, and tells mistakes in one line."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch_versions import needs_muon

from minibnn import StableDiffusion
from minibnn.errors import UserError
from minibnn.options.world import PretrainOptions
from minibnn.world import scenes
from minibnn.world.captions import random_caption
from minibnn.world.optimise import Steppers, all_matrices, inner_matrices, optimise
from minibnn.world.pretrain import NEAR, pretrain, unet_scene, worker


@pytest.fixture
def spawned(monkeypatch):
    """`torch.multiprocessing.spawn` calls its only worker in this process; returns the options of all calls."""
    calls, threads = [], torch.get_num_threads()

    def spawn(function, args, nprocs, daemon):
        assert function is worker and nprocs == 1 and daemon
        calls.append(args[0])
        function(0, *args)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    yield calls
    torch.set_num_threads(threads)


@pytest.fixture
def options(tmp_path):
    paths = {"work": str(tmp_path / "work"), "out": str(tmp_path / "model")}
    steps = {"vae_steps": 1, "decoder_steps": 1, "text_steps": 1, "unet_steps": 1}
    return PretrainOptions("tiny-v2", **paths, **steps, pictures=64, processes=1)


@needs_muon
def test_a_model_from_nothing_and_a_damaged_checkpoint(options, spawned, tmp_path, monkeypatch):
    for name in ("VAE_BATCH", "TEXT_BATCH", "UNET_BATCH"):
        monkeypatch.setattr(f"minibnn.world.pretrain.{name}", 4)
    monkeypatch.setattr("minibnn.world.pretrain.SCALE_DRAWINGS", 16)
    pretrain(options)
    assert StableDiffusion.load(options.out).generate(["a dog"], 1)[0].size == (64, 64)
    (tmp_path / "work" / "vae.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="vae.safetensors .* is damaged"):
        pretrain(options)
    assert len(spawned) == 1


def test_the_unet_sees_spotted_animals_but_none_like_the_few_shot_subjects():
    drawn, plain = (
        [unet_scene(rng, share) for _ in range(2000)]
        for rng, share in ((np.random.default_rng(0), 0.25), (np.random.default_rng(0), 0.0))
    )
    spotted = [(scene, colours) for scene, colours in drawn if scene.spotted]
    assert binomtest(len(spotted), len(drawn), 0.25).pvalue > 0.001  # scipy's binomial distribution
    assert {scene.subject for scene, _ in spotted} == set(scenes.ANIMALS)
    for scene, (main, accent) in spotted:
        far = np.linalg.norm(np.subtract(main, scenes.TEAL)), np.linalg.norm(np.subtract(accent, scenes.MAGENTA))
        assert max(far) > NEAR
        assert not set(random_caption(scene, np.random.default_rng(1)).split()) & set(scenes.COLOURS)
    rng = np.random.default_rng(0)  # a model without them has the scenes it had before there were any
    assert plain == [(scenes.random_scene(rng), (None, None)) for _ in range(2000)]


@pytest.mark.parametrize("muon", [None, *(pytest.param(f, marks=needs_muon) for f in (all_matrices, inner_matrices))])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(muon, tmp_path):
    def train(folder, stop=None):
        torch.manual_seed(0)
        module = torch.nn.Sequential(OrderedDict(conv_in=torch.nn.Conv1d(3, 4, 1), mid=torch.nn.Conv1d(4, 2, 1)))

        def loss_of_step(step):
            if step == stop:
                raise KeyboardInterrupt
            return module(torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(step))).square().mean()

        options = PretrainOptions(work=str(folder), processes=1)
        return optimise("a", module, loss_of_step, 300, 1e-2, options, 0, muon)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", 260)  # its last checkpoint is that of step 250
    resumed = train(tmp_path / "stopped")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@needs_muon
def test_muon_moves_a_kernel_orthogonally_and_adamw_the_rest():
    """As a matrix (out, rest), a kernel's step has singular values of about one size, unlike those of its gradient.

    The rate is that of AdamW: 0.2 √max(out, rest) times it (Liu et al. 2025, Eq. 4).
    """
    torch.manual_seed(0)
    module = torch.nn.Conv2d(6, 8, 3)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    steppers = Steppers(dict(module.named_parameters()), 1e-3, all_matrices)
    module(torch.randn(4, 6, 9, 9) * torch.tensor([1.0, 3, 9, 1, 1, 1]).view(6, 1, 1)).square().sum().backward()
    gradient = torch.linalg.svdvals(module.weight.grad.flatten(1))
    steppers.step(1e-3)
    moved = torch.linalg.svdvals((module.weight - 0.99999 * before["weight"]).flatten(1))
    assert gradient.max() > 5 * gradient.min()
    assert moved.min() > 0.5e-3 * 0.2 * 54**0.5 and moved.max() < 1.5e-3 * 0.2 * 54**0.5
    assert torch.allclose((module.bias - before["bias"]).abs(), torch.tensor(1e-3), rtol=0.02)  # Adam's first step


def test_what_a_process_reports_is_one_line_too(options, monkeypatch):
    def spawn(*_, **__):
        raise torch.multiprocessing.ProcessRaisedException(f"\n\n-- Process 1 terminated:\n  File x\n{last}\n", 1, 2)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    last = "minibnn.errors.UserError: cannot write vae.safetensors: disk full; free some"
    with pytest.raises(UserError, match="^cannot write vae.safetensors: disk full; free some$"):
        pretrain(options)
    last = "ValueError: a bug"
    with pytest.raises(torch.multiprocessing.ProcessRaisedException):
        pretrain(options)


@pytest.mark.parametrize(("processes", "pictures", "least"), [(17, 48000, 16), (3, 2, 2)])
def test_processes_without_a_picture_are_refused(options, processes, pictures, least, tmp_path):
    with pytest.raises(UserError, match=f"--processes {processes}: each needs a picture of the {least} at once"):
        pretrain(dataclasses.replace(options, processes=processes, pictures=pictures))
    assert not (tmp_path / "work").exists()
