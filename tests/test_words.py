"""Words that the bundled model does not know are named, with those that it knows."""

import pytest

from minibnn import StableDiffusion, Tokenizer
from minibnn.cli.sample import sample
from minibnn.options.results import SampleOptions
from minibnn.world import captions, scenes, words


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion.load("tiny")


def test_unknown_words_are_found_with_near_ones(sd):
    found = words.unknown_words(sd, "A rad giraffe, on the MOON with a dgo's hat!")
    assert list(found) == ["rad", "giraffe", "moon", "with", "dgo", "hat"]
    assert "red" in found["rad"] and "dog" in found["dgo"] and not found["giraffe"]


def test_every_caption_of_the_world_is_known(sd):
    every = {scenes.caption(scenes.Scene(*c)) for c in scenes.combinations() + scenes.combinations(held_out=True)}
    every |= {f"a photo of a {rare} dog in the snow" for rare in captions.RARE_WORDS} | {""}
    assert len(every) > 300 and words.advice(sd, every) is None
    assert not {word for word in words.known_words({}) if len(sd.tokenizer.encode(word)) != 1}


def test_the_words_of_a_training_are_known_to_its_model(sd):
    recipe = sd.recipe
    try:
        sd.recipe = recipe | {"prompt": "a photo of Rex the giraffe", "class_prompt": None}
        assert list(words.unknown_words(sd, "rex the giraffe on a moon")) == ["moon"]
    finally:
        sd.recipe = recipe


def test_other_vocabularies_are_left_alone(sd, clip_folder, monkeypatch):
    monkeypatch.setattr(sd, "tokenizer", Tokenizer(clip_folder))
    assert words.unknown_words(sd, "a giraffe on the moon") == {}


def test_sampling_says_it_and_draws_all_the_same(micro, tmp_path, caplog):
    out = tmp_path / "a.png"
    sample(SampleOptions(["a giraffe in the snow"], model=str(micro), steps=1, out=str(out)))
    (line,) = [record.getMessage() for record in caplog.records if "never seen" in record.getMessage()]
    assert line.startswith("this small model has never seen: giraffe. It knows the subjects ") and "in the snow" in line
    assert out.exists() and "\n" not in line
    caplog.clear()
    sample(SampleOptions(["a red car in the snow"], model=str(micro), steps=1, out=str(out), overwrite=True))
    assert not caplog.records
