"""The tokenizer with CLIP's official merges against transformers' ids, and its errors."""

import json

import pytest
from conftest import DATA

from minibnn.errors import UserError
from minibnn.networks.tokenizer import END, START, Tokenizer, split_words

CASES = json.loads((DATA / "tokenizer.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=[f"{i:02d}" for i in range(len(CASES))])
def test_ids_equal_transformers(clip_folder, case):
    assert Tokenizer(clip_folder)([case["prompt"]])[0].tolist() == case["hf"]


def test_cases_cover_the_two_behaviours():
    assert sum(not case["agree"] for case in CASES) == 8  # where OpenAI's tokenizer differs, transformers is followed


def test_loads_in_transformers_and_agrees(clip_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer(str(clip_folder / "vocab.json"), str(clip_folder / "merges.txt"))
    prompts = ["a photo of a sks dog", "Zürich, 3 o'clock — señor!", "x" * 300, "a\u0301 e\u0301"]
    ids = theirs(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert Tokenizer(clip_folder)(prompts).tolist() == ids


def added(content):
    """A special token as the official JSON files write it."""
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


SPECIAL = {"bos_token": added(START), "eos_token": added(END), "unk_token": added(END)}
CONFIG = {
    **{name: {"__type": "AddedToken", **token} for name, token in SPECIAL.items()}, "add_prefix_space": False,
    "do_lower_case": True, "errors": "replace", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
}
SETTINGS = {  # (special_tokens_map.json, tokenizer_config.json, id of the padding)
    "SD v1.5": (SPECIAL | {"pad_token": END}, CONFIG | {"pad_token": END}, 49407),
    "SD v2": (SPECIAL | {"pad_token": "!"}, CONFIG | {"pad_token": END}, 0),
    "the map alone": (SPECIAL | {"pad_token": "!"}, None, 0),
    "the configuration alone": (None, CONFIG | {"pad_token": {"__type": "AddedToken", **added("!")}}, 0),
    "the map overrules": (SPECIAL | {"pad_token": END}, CONFIG | {"pad_token": "!"}, 49407),
    "neither": (None, None, 49407),
}


@pytest.mark.parametrize("written_by", ["the official repository", "transformers", "ours"])
@pytest.mark.parametrize("case", SETTINGS)
def test_special_tokens_equal_transformers(clip_folder, tmp_path, case, written_by):
    """Which token pads, and that "!" inside a prompt is that token where it pads, on the official vocabulary."""
    transformers = pytest.importorskip("transformers")
    special, config, pad = SETTINGS[case]
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    for name, values in (("special_tokens_map.json", special), ("tokenizer_config.json", config)):
        if values:
            (tmp_path / name).write_text(json.dumps(values))
    theirs, folder = transformers.CLIPTokenizer.from_pretrained(tmp_path), tmp_path
    if written_by == "transformers":
        theirs.save_pretrained(folder := tmp_path / "saved")
        assert (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists()
    elif written_by == "ours":
        Tokenizer(tmp_path).save(folder := tmp_path / "saved")
        theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    prompts = ["a dog", "a dog!", "wow! a cat", "!", "a !dog", "hello!!", "what!? no", "", f"a{END}b ! c"]
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    got = Tokenizer(folder)(prompts).tolist()
    assert got == expected
    assert got[0] == [49406, 320, 1929, 49407, *[pad] * 73]
    assert got[3][1] == (0 if pad == 0 else 256)


def test_words():
    assert split_words("it's 42!?") == ["it", "'s", "4", "2", "!?"]
    assert split_words("½ x²") == ["½", "x", "²"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "vocab.json is missing"),
        ({"vocab.json": "{}"}, "merges.txt is missing"),
        ({"vocab.json": "{", "merges.txt": ""}, "vocab.json is not valid JSON"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "vocab.json: a is 'b', but must be a whole number"),
        ({"vocab.json": '{"a": -1}', "merges.txt": ""}, "vocab.json: a is -1, but must be a whole number from 0"),
        ({"vocab.json": "[]", "merges.txt": ""}, "vocab.json holds no JSON object"),
        ({"tokenizer.json": '{"model": {"vocab": [], "merges": 3}}'}, "added_tokens is missing|vocab is a list"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "not CLIP's format"),
    ],
)
def test_errors_name_the_file(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Tokenizer(tmp_path)
