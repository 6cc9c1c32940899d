"""Class pictures: the user's own and drawn ones, and what a record beside them refuses."""

from pathlib import Path

import pytest
from PIL import Image

from minibnn import StableDiffusion, UserError, class_pictures
from minibnn.files.configs import complete_recipe
from minibnn.files.store import read_json, write_json


def test_class_pictures_are_cached_completed_and_the_users_own_come_first(tmp_path, dog):
    sd = StableDiffusion.load("tiny")
    sd.recipe["sample_steps"] = 1
    folder, made_for = tmp_path / "class", class_pictures.record("a dog", "tiny", 64, 3.0)
    first = class_pictures.complete(sd, folder, 3, made_for, group=2)
    content = [p.read_bytes() for p in first]
    first[1].unlink()
    more = class_pictures.complete(sd, folder, 4, made_for, group=2)
    assert [p.read_bytes() for p in more[:3]] == content  # the missing one is drawn as before
    (folder / "own.png").write_bytes((dog / "00.png").read_bytes())
    assert [p.name for p in class_pictures.complete(sd, folder, 2, made_for)] == ["own.png", "drawn-00000.png"]
    with pytest.raises(UserError, match="was drawn for prompt 'a dog', not 'a cat'"):
        class_pictures.complete(sd, folder, 2, made_for | {"prompt": "a cat"})


def test_class_pictures_are_drawn_with_the_guidance_of_their_record(tmp_path):
    sd = StableDiffusion.load("tiny")
    sd.recipe["sample_steps"] = 2
    (path,) = class_pictures.complete(sd, tmp_path, 1, class_pictures.record("a photo of a dog", "tiny", 64, 1.0))
    (own,) = sd.generate(["a photo of a dog"], guidance=1.0, seed=0, progress=False)
    (guided,) = sd.generate(["a photo of a dog"], seed=0, progress=False)
    assert Image.open(path).tobytes() == own.tobytes() != guided.tobytes()
    with pytest.raises(UserError, match="was drawn for guidance 1.0, not 3.0"):
        class_pictures.check(tmp_path, class_pictures.record("a photo of a dog", "tiny", 64, 3.0))
    record = read_json(tmp_path / class_pictures.RECORD)
    del record["guidance"]  # as version 0.2 wrote it
    write_json(tmp_path / class_pictures.RECORD, record)
    class_pictures.check(tmp_path, class_pictures.record("a photo of a dog", "tiny", 64, 3.0))


def test_class_pictures_have_the_guidance_of_the_recipe_if_it_names_no_other():
    assert [complete_recipe(own)["class_guidance"] for own in ({}, {"guidance": 3.0}, {"class_guidance": 1.0})] == [
        7.5, 3.0, 1.0
    ]


def test_class_pictures_know_their_model_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def record(model):
        return class_pictures.record("a dog", model, 64, 7.5)

    for was, now in (("sd", "./sd"), ("./sd", "sd"), ("sd", str(tmp_path / "sd")), ("tiny", "tiny")):
        write_json(tmp_path / class_pictures.RECORD, record(was))
        class_pictures.check(tmp_path, record(now))
    for was, now in (("sd", "sd2"), ("tiny", "./tiny"), ("./tiny", "tiny")):  # a folder called tiny is not the bundled
        write_json(tmp_path / class_pictures.RECORD, record(was))
        with pytest.raises(UserError, match="was drawn for model"):
            class_pictures.check(tmp_path, record(now))
    assert record("./sd")["model"] == str(tmp_path / "sd")  # also from another folder


def test_class_pictures_know_their_model_by_its_weights_where_those_were_noted(tmp_path):
    def record(model, digests):
        return class_pictures.record("a dog", model, 64, 7.5, digests)

    was, other = {"unet": "0", "vae": "1"}, {"unet": "0", "vae": "2"}
    write_json(tmp_path / class_pictures.RECORD, record("/old/sd", was))
    class_pictures.check(tmp_path, record("/new/sd", was))  # it has moved
    with pytest.raises(UserError, match="was drawn by another model than this one, /old/sd; name another"):
        class_pictures.check(tmp_path, record("/old/sd", other))
    class_pictures.check(tmp_path, record("/old/sd", None))  # as by a command that does not look at the weights
    with pytest.raises(UserError, match="was drawn for model '/old/sd', not '/new/sd'"):
        class_pictures.check(tmp_path, record("/new/sd", None))
    write_json(tmp_path / class_pictures.RECORD, record("/old/sd", None))
    with pytest.raises(UserError, match="was drawn for model '/old/sd', not '/new/sd'"):
        class_pictures.check(tmp_path, record("/new/sd", was))


def test_each_class_has_a_folder_of_its_own():
    """Bug: two prompts that differ in a sign shared one, and each refused the other's pictures."""
    assert class_pictures.places("c", ["a dog", "a dog"]) == {"a dog": Path("c")}
    assert [path.name for path in class_pictures.places("c", ["a dog!", "a dog?", "a cat", "a dog,"]).values()] == [
        "a-dog-", "a-dog--", "a-cat", "a-dog---"]


def test_no_file_system_takes_two_classes_for_one_or_a_name_for_too_long(tmp_path):
    """Bugs: on macOS and Windows "A dog" and "a dog" had one folder; a long prompt was an OSError."""
    names = [path.name for path in class_pictures.places("c", ["A dog", "a dog", "a DOG"]).values()]
    assert names == ["A-dog", "a-dog-", "a-DOG--"]
    long = [start + "ü犬" * 100 for start in ("a ", "b ", "a  ")]
    for path in class_pictures.places(tmp_path, long).values():
        path.mkdir()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_class_folder_without_pictures_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    assert class_pictures.own(tmp_path) == class_pictures.own(tmp_path / "none") == []
