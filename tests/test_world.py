"""The world's drawings: a seed fixes them, they differ where captions differ, and what is held out is never drawn."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minibnn.errors import UserError
from minibnn.options.world import WorldOptions
from minibnn.world import scenes as world
from minibnn.world.captions import RARE_WORDS, all_words, make_vocabulary, random_caption


def array(scene):
    return np.asarray(world.draw(scene)).astype(float)


def test_size_of_the_world():
    assert len(world.SUBJECTS) >= 12 and len(world.COLOURS) >= 8 and len(world.BACKGROUNDS) >= 8
    assert world.draw(world.Scene("dog", "red", "grass")).size == (64, 64)
    seen, held_out = world.combinations(), world.combinations(held_out=True)
    assert len(seen) + len(held_out) == 960 and len(held_out) == 47
    for position in range(3):  # no subject, colour or background is held out as a whole
        assert {c[position] for c in seen} == {c[position] for c in seen + held_out}


def test_drawings_are_fixed_by_their_seed():
    a, b = (world.random_scene(np.random.default_rng(5)) for _ in range(2))
    assert a == b and np.array_equal(array(a), array(b))
    assert world.random_scene(np.random.default_rng(6)) != a


def test_every_subject_colour_and_background_shows():
    base = world.Scene("dog", "red", "grass")
    for field, values in (("subject", world.SUBJECTS), ("colour", world.COLOURS), ("background", world.BACKGROUNDS)):
        for a, b in itertools.combinations(values, 2):
            difference = np.abs(array(replace(base, **{field: a})) - array(replace(base, **{field: b})))
            assert difference.max() > 40, (a, b)


def test_pose_moves_the_subject_and_leaves_the_background():
    scene = world.Scene("star", "yellow", "night", x=26, seed=3)
    moved = replace(scene, x=38)
    mask, moved_mask = (world.subject_mask(s, world.draw(s)) for s in (scene, moved))
    assert np.array_equal(np.roll(mask, 12, axis=1), moved_mask)
    outside = (mask + moved_mask) == 0
    assert np.array_equal(array(scene)[outside], array(moved)[outside])
    tilted = replace(world.Scene("dog", "red", "tiles"), tilt=10)
    assert not np.array_equal(array(tilted), array(replace(tilted, tilt=0)))


def test_mirror_is_a_mirror():
    scene = world.Scene("car", "blue", "snow", x=32, seed=1)
    mask, other = (world.subject_mask(s, world.draw(s)) for s in (scene, replace(scene, mirror=True)))
    assert (mask != other[:, ::-1]).mean() < 0.02


def test_edges_are_anti_aliased():
    scene = world.Scene("heart", "white", "night", tilt=7)
    values = array(scene)[world.subject_mask(scene, world.draw(scene)) > 0].mean(-1)
    assert np.unique(values.round()).size > 20


def test_the_dog_of_the_tutorials_is_what_the_command_draws(dog):
    files = sorted(dog.glob("*.png"))
    assert [f.name for f in files] == [f"{i:02d}.png" for i in range(6)]
    scenes = list(world.dog_scenes())
    for path, scene in zip(files, scenes, strict=True):
        assert world.is_held_out(scene)
        assert np.abs(np.asarray(Image.open(path)).astype(int) - array(scene)).max() <= 1
    assert len({s.background for s in scenes}) == 6


def test_captions():
    assert world.caption(world.Scene("car", "red", "beach")) == "a red car on the beach"
    assert world.caption(world.Scene("cat", "orange", "night")) == "an orange cat at night"
    assert world.caption(next(world.dog_scenes())) == "a dog on the grass"
    rng = np.random.default_rng(0)
    some = {random_caption(world.Scene("car", "red", "beach"), rng) for _ in range(200)}
    parts = itertools.product(("", "a photo of "), ("a red car", "a car"), ("", " on the beach"))
    assert some == {"".join(words) for words in parts}


@pytest.mark.parametrize("seed", range(3))
def test_random_scenes_stay_inside(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        scene = world.random_scene(rng)
        assert not world.is_held_out(scene)
        mask = world.subject_mask(scene, world.draw(scene))
        assert 0.02 < mask.mean() < 0.6


def test_every_word_of_the_vocabulary_is_one_token(tmp_path):
    tokenizer = make_vocabulary(all_words(), tmp_path)
    assert all(len(tokenizer.encode(word)) == 1 for word in all_words())
    assert len(tokenizer.encode("unheard")) > 1  # other words are split into letters and are not lost
    caption_words = set(world.caption(world.Scene("dog", "red", "brick")).split())
    assert not caption_words & set(RARE_WORDS)


def test_the_vocabulary_is_read_alike_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = make_vocabulary(all_words(), tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    prompts = ["a photo of a sks dog on the beach", "an orange cat in front of a brick wall", "zzz Dogs!", ""]
    ids = theirs(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ours(prompts).tolist() == ids


def test_the_command_writes_what_it_is_told_to(tmp_path):
    out, dog, pairs = tmp_path / "new" / "sheet.png", tmp_path / "dog", tmp_path / "pairs"
    world.make_drawings(WorldOptions(out=str(out), dog=str(dog), pairs=str(pairs), count=2, hint="mask"))
    assert Image.open(out).size == (12 * 66 - 2, 6 * 66 - 2)
    assert sorted(p.name for p in dog.glob("*.png")) == [f"{i:02d}.png" for i in range(6)]
    assert [p.read_text() for p in sorted(dog.glob("*.txt"))][1] == "a photo of a sks dog in front of a brick wall\n"
    names = [f"{i:03d}{suffix}" for i in range(2) for suffix in (".hint.png", ".png", ".txt")]
    assert sorted(p.name for p in pairs.iterdir()) == names
    with pytest.raises(UserError, match="sheet.png exists: name another file or pass --overwrite"):
        world.make_drawings(WorldOptions(out=str(out)))
    world.make_drawings(WorldOptions(out=str(out), overwrite=True))


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="nothing to draw: give --out PNG, --dog DIR or --pairs DIR"):
        world.make_drawings(WorldOptions())
    with pytest.raises(UserError, match="--out a.jpg: the name must end with .png"):
        world.make_drawings(WorldOptions(out="a.jpg", dog=str(tmp_path / "dog")))
    assert not (tmp_path / "dog").exists()
    for option, path in (("out", "file/a.png"), ("dog", "file"), ("pairs", "file")):
        with pytest.raises(UserError, match="cannot write .*/file/"):
            world.make_drawings(WorldOptions(**{option: str(tmp_path / path)}))
