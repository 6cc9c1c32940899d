"""Sketches by Sobel's masks, against scipy; and `bps --edges` from end to end on a small Stable Diffusion."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_sd import make

from minibnn.errors import UserError
from minibnn.files.store import read_json
from minibnn.neighbours import bps, bps_run, edges
from minibnn.options.neighbours import BpsOptions
from minibnn.world import scenes as world


def test_the_gradient_is_scipys():
    images = torch.rand(2, 3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for image, found in zip(images, edges.gradient_length(images), strict=True):
        grey = image.mean(0).numpy()
        across, down = (ndimage.sobel(grey, axis, mode="nearest") / 8 for axis in (1, 0))
        np.testing.assert_allclose(found[0].numpy(), np.hypot(across, down), rtol=1e-12, atol=1e-12)


def test_a_sketch_is_the_strong_edges_and_nothing_of_a_flat_picture():
    """A step of 1 beside one of 0.1: the strong one is 1 on both sides of its line, the weak one is left out."""
    image = torch.zeros(1, 1, 6, 12)
    image[..., 4:], image[..., 9:] = 1.0, 1.1
    found = edges.sketch(image)[0, 0]
    assert found[:, 3:5].eq(1).all() and found.sum() == 12
    assert edges.sketch(torch.full((2, 3, 5, 5), 0.3)).abs().max() == 0
    assert torch.allclose(edges.sketch(0.5 * image), edges.sketch(image))  # whatever the contrast


def test_bps_learns_and_draws_from_edges_alone(tmp_path):
    """Photos and captions are enough, at any size of picture; what the branch then sees are sketches of one channel."""
    model = make(tmp_path / "sd", layers=1)
    world.write_pairs(tmp_path / "photos", 2, 0, "sketch")
    for hint in (tmp_path / "photos").glob("*.hint.png"):
        hint.unlink()
    given = {"hints": str(tmp_path / "photos"), "model": str(model), "sample_steps": 1, "device": "cpu"}
    bps_run.train_or_draw(BpsOptions(**given, edges=True, steps=1, batch_size=1, out=str(tmp_path / "run")))
    assert read_json(tmp_path / "run" / "config.json")["edges"] is True
    bps_run.train_or_draw(BpsOptions(**given, edges=True, branch=str(tmp_path / "run"), out=str(tmp_path / "drawn")))
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["000.png", "001.png", "samples.png"]
    hints, images, _ = bps.read_pairs(tmp_path / "photos", 1, 64, edges=True)
    assert (hints - edges.sketch((images + 1) / 2)).abs().max() < 5e-6 and hints.max() == 1  # other batches: 4e-7


def test_what_edges_cannot_do(tmp_path):
    with pytest.raises(UserError, match="no NAME.png in it, whose edges"):
        bps.picture_files(tmp_path)
    with pytest.raises(UserError, match="leave out --hint-channels 3"):
        bps_run.check(BpsOptions(hints=str(tmp_path), edges=True, hint_channels=3), tmp_path / "run")
