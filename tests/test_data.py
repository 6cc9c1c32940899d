"""Pictures of every kind, broken ones, and the order in which they are used."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from minibnn import StableDiffusion, UserError, data
from minibnn.files.configs import complete_recipe
from minibnn.files.store import read_json, write_json


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
    assert "skipping 1 file that cannot be read as pictures: notes.txt" in caplog.text


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


def test_class_pictures_are_cached_completed_and_the_users_own_come_first(tmp_path, dog):
    sd = StableDiffusion.load("tiny")
    sd.recipe["sample_steps"] = 1
    folder, made_for = tmp_path / "class", data.class_record("a dog", "tiny", 64, 3.0)
    first = data.class_pictures(sd, folder, 3, made_for, group=2)
    content = [p.read_bytes() for p in first]
    first[1].unlink()
    more = data.class_pictures(sd, folder, 4, made_for, group=2)
    assert [p.read_bytes() for p in more[:3]] == content  # the missing one is drawn as before
    (folder / "own.png").write_bytes((dog / "00.png").read_bytes())
    assert [p.name for p in data.class_pictures(sd, folder, 2, made_for)] == ["own.png", "drawn-00000.png"]
    with pytest.raises(UserError, match="was drawn for prompt 'a dog', not 'a cat'"):
        data.class_pictures(sd, folder, 2, made_for | {"prompt": "a cat"})


def test_class_pictures_are_drawn_with_the_guidance_of_their_record(tmp_path):
    sd = StableDiffusion.load("tiny")
    sd.recipe["sample_steps"] = 2
    (path,) = data.class_pictures(sd, tmp_path, 1, data.class_record("a photo of a dog", "tiny", 64, 1.0))
    (own,) = sd.generate(["a photo of a dog"], guidance=1.0, seed=0, progress=False)
    (guided,) = sd.generate(["a photo of a dog"], seed=0, progress=False)
    assert Image.open(path).tobytes() == own.tobytes() != guided.tobytes()
    with pytest.raises(UserError, match="was drawn for guidance 1.0, not 3.0"):
        data.check_class_pictures(tmp_path, data.class_record("a photo of a dog", "tiny", 64, 3.0))
    record = read_json(tmp_path / data.CLASS_RECORD)
    del record["guidance"]  # as version 0.2 wrote it
    write_json(tmp_path / data.CLASS_RECORD, record)
    data.check_class_pictures(tmp_path, data.class_record("a photo of a dog", "tiny", 64, 3.0))


def test_class_pictures_have_the_guidance_of_the_recipe_if_it_names_no_other():
    assert [complete_recipe(own)["class_guidance"] for own in ({}, {"guidance": 3.0}, {"class_guidance": 1.0})] == [
        7.5, 3.0, 1.0
    ]


def test_class_pictures_know_their_model_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def record(model):
        return data.class_record("a dog", model, 64, 7.5)

    for was, now in (("sd", "./sd"), ("./sd", "sd"), ("sd", str(tmp_path / "sd")), ("tiny", "tiny")):
        write_json(tmp_path / data.CLASS_RECORD, record(was))
        data.check_class_pictures(tmp_path, record(now))
    for was, now in (("sd", "sd2"), ("tiny", "./tiny"), ("./tiny", "tiny")):  # a folder called tiny is not the bundled
        write_json(tmp_path / data.CLASS_RECORD, record(was))
        with pytest.raises(UserError, match="was drawn for model"):
            data.check_class_pictures(tmp_path, record(now))
    assert record("./sd")["model"] == str(tmp_path / "sd")  # also from another folder


def test_a_class_folder_without_pictures_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    assert data.own_class_pictures(tmp_path) == data.own_class_pictures(tmp_path / "none") == []
