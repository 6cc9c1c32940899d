"""The classifier and the judge of the world: they are trained once, read again, and refused when damaged."""

import math

import pytest
import torch
from torch import nn

from minibnn.errors import UserError
from minibnn.experiments.bps.judge import train_judge
from minibnn.experiments.recipe.trainings import experiment
from minibnn.options.experiments import RecipeOptions
from minibnn.options.world import EvaluateOptions
from minibnn.world import scenes as world
from minibnn.world.classifier import ATTRIBUTES, accuracy, fit_on_world, labels, random_scenes, right, train_classifier
from minibnn.world.damage import blur
from minibnn.world.evaluate import edge_energy, evaluate

SCENES = [world.Scene("dog", "red", "grass"), world.Scene("car", "blue", "beach"), world.Scene("dog", "green", "beach")]


@pytest.mark.parametrize("train", [train_classifier, train_judge])
def test_trained_once_then_read(train, tmp_path):
    path = tmp_path / "network.safetensors"
    first, again = train(path, 2, 4), train(path, 10**9, 4)  # the second would take years if it trained
    assert not first.training and not again.training
    other = train(tmp_path / "other.safetensors", 3, 4)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name


def test_what_each_step_draws_and_learns():
    seen, weights = [], []

    def loss_of(network, scenes, generator):
        seen.append((scenes, generator.initial_seed()))
        weights.append(network.weight.item())
        return network.weight.sum()

    class One(nn.Linear):
        def __init__(self):
            super().__init__(1, 1, bias=False)

    with pytest.raises(UserError):  # because the network cannot be written there
        fit_on_world(One, "/dev/null/one.safetensors", 3, 2, 6, 0.1, loss_of)
    assert seen == [(random_scenes(2, [6, step]), step) for step in range(3)]
    torch.manual_seed(0)
    assert weights[0] == One().weight.item() and weights[0] > weights[1] > weights[2]


@pytest.mark.parametrize("train", [train_classifier, train_judge])
def test_a_damaged_or_another_network_is_refused(train, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="network.safetensors is damaged or holds another network: delete it"):
        train(path)
    path.unlink()
    (train_judge if train is train_classifier else train_classifier)(path, 2, 2)
    with pytest.raises(UserError, match="holds another network"):
        train(path)


def test_right_counts_what_the_scenes_say():
    logits = {name: torch.eye(len(ATTRIBUTES[name]))[target] for name, target in labels(SCENES).items()}
    assert right(logits, SCENES) == {"subject": 1.0, "colour": 1.0, "background": 1.0}
    logits["colour"][0] = logits["colour"][1]
    assert right(logits, SCENES) == pytest.approx({"subject": 1.0, "colour": 2 / 3, "background": 1.0})
    images = torch.arange(3).view(3, 1, 1, 1)
    seen = accuracy(lambda part: {name: values[part.flatten()] for name, values in logits.items()}, images, SCENES)
    assert seen == right(logits, SCENES)


def test_a_file_in_the_place_of_the_folder_is_refused_before_minutes_of_work(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out is a file; name a folder"):
        evaluate(EvaluateOptions(out=str(tmp_path / "out")))


def test_a_model_of_another_size_is_refused_before_minutes_of_work(tmp_path):
    with pytest.raises(UserError, match="--model textured draws 24 x 24 pixels"):
        evaluate(EvaluateOptions(model="textured", out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="--model textured draws 24 x 24 pixels"):
        experiment(RecipeOptions(model="textured", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_edge_energy_of_a_wave_and_of_its_blur():
    """Of sin(kx) it is the mean of (2 sin(k/2) cos)² = 2 sin²(k/2), whatever the height; a blur lowers it."""
    x, k = torch.arange(65.0), 2 * torch.pi / 16  # four whole waves of differences
    wave = torch.sin(k * x).expand(1, 3, 7, 65)
    assert edge_energy(wave) == pytest.approx(2 * math.sin(k / 2) ** 2, rel=1e-5)
    assert edge_energy(wave.mT) == pytest.approx(edge_energy(wave), rel=1e-5)
    assert edge_energy(blur(wave, 2.0)) < 0.7 * edge_energy(wave)
