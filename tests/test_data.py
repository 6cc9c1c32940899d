"""Pictures of every kind, broken ones, and the order in which they are used."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from minibnn import UserError, data


def gradient(size=(40, 30)):
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return np.stack([x * 255 // size[0], y * 255 // size[1], np.full_like(x, 60)], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1"])
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tiff"])
def test_every_mode_and_format_loads(tmp_path, mode, suffix):
    image, path = Image.fromarray(gradient()).convert(mode), tmp_path / f"a.{suffix}"
    try:
        image.save(path)
    except OSError:
        pytest.skip(f"Pillow does not write {mode} as {suffix}")
    tensor = data.load_picture(path, 16)
    assert tensor.shape == (3, 16, 16) and tensor.min() >= -1 and tensor.max() <= 1
    plain = data._to_rgb(Image.open(path))
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.abs(np.asarray(plain).astype(int) - gradient()).mean() < 6


def test_values_and_centre_crop(tmp_path):
    array = np.zeros((20, 60, 3), np.uint8)
    array[:, 20:40] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (data.load_picture(tmp_path / "a.png", 20) == 1).all()


def test_exif_rotation(tmp_path):
    array = np.zeros((20, 20, 3), np.uint8)
    array[:10] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn right to see it upright"
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=exif, quality=100)
    picture = data.load_picture(tmp_path / "a.jpg", 20)
    assert picture[:, :, 12:].mean() > 0.9 and picture[:, :, :8].mean() < -0.9


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    picture = data.load_picture(tmp_path / "a.png", 64)
    assert picture.mean().abs() < 0.02 and picture.min() == -1 and picture.max() == 1


def test_transparent_becomes_white(tmp_path):
    array = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (data.load_picture(tmp_path / "a.png", 8) == 1).all()


def test_broken_pictures_are_named(tmp_path):
    path = tmp_path / "broken.jpg"
    Image.fromarray(gradient((200, 200))).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="broken.jpg: broken"):
        data.load_picture(path, 16)
    path.write_text("no picture")
    with pytest.raises(UserError, match="broken.jpg: broken"):
        data.load_picture(path, 16)


def test_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.fromarray(gradient((100, 100))).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # Pillow warns from here on: large, but loaded
    assert data.load_picture(tmp_path / "bomb.png", 16).shape == (3, 16, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="bomb.png: too many pixels"):
        data.load_picture(tmp_path / "bomb.png", 16)


def test_small_pictures_warn(tmp_path, caplog):
    Image.fromarray(gradient((20, 30))).save(tmp_path / "a.png")
    data.load_picture(tmp_path / "a.png", 64)
    assert "20 x 30 pixels are fewer than the resolution of 64" in caplog.text


def test_folders(tmp_path, caplog):
    with pytest.raises(UserError, match="none: no such folder"):
        data.list_pictures(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no pictures in it"), caplog.at_level(logging.WARNING):
        data.list_pictures(tmp_path)
    for name in ("b.PNG", "a.jpeg", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in data.list_pictures(tmp_path)] == ["a.jpeg", "b.PNG"]
    told = caplog.messages[-1]
    assert told == f"{tmp_path}: skipping 1 file, no picture's caption: notes.txt. The caption of a.jpeg would be a.txt"


def test_files_that_are_skipped_are_told_by_what_they_are(tmp_path, caplog):
    """Bug: captions of other names were called pictures that cannot be read and should be converted from HEIC."""
    for name in ("a.png", "a.txt", "b.png", "A.TXT", "a.png.txt", "c.txt", "model.pdf"):
        (tmp_path / name).touch()
    data.list_pictures(tmp_path)
    assert [line.removeprefix(f"{tmp_path}: ") for line in caplog.messages] == [
        "skipping 3 files, no picture's caption: A.TXT, a.png.txt, c.txt. The caption of a.png would be a.txt",
        "skipping 1 file that cannot be read: model.pdf; 2 left",
    ]
    caplog.clear()
    for name in ("1.HEIC", "2.heic", "3.gif", "4.html", "5.md"):
        (tmp_path / name).touch()
    data.list_pictures(tmp_path)
    told = "skipping 6 files that cannot be read: 1.HEIC, 2.heic, 3.gif, 4.html, …; 2 left. "
    assert caplog.messages[1] == f"{tmp_path}: {told}Convert .HEIC, .gif, .heic to PNG"
    caplog.clear()
    data.list_pictures(tmp_path, notice=False)
    assert not caplog.messages


def test_every_epoch_is_a_permutation():
    epochs = [[data.epoch_order(6, 6 * e + i, seed=3) for i in range(6)] for e in range(20)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15
    assert epochs != [[data.epoch_order(6, 6 * e + i, seed=4) for i in range(6)] for e in range(20)]


def test_latent_moments_equal_the_vae(vectors):
    vae = vectors.network("vae")
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    mean, logvar = data.latent_moments(vae, images)
    expected = vae.encode(images)
    torch.testing.assert_close(mean, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logvar, expected[1], rtol=1e-4, atol=1e-4)
