"""The tokenizer with CLIP's official merges against transformers' ids, and its errors."""

import json

import pytest
from conftest import DATA

from minibnn.errors import UserError
from minibnn.networks.tokenizer import Tokenizer, split_words

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


def test_sd2_pads_with_zero(clip_folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "!", "model_max_length": 77}')
    assert Tokenizer(tmp_path)(["a dog"])[0, :6].tolist() == [49406, 320, 1929, 49407, 0, 0]


def test_words():
    assert split_words("it's 42!?") == ["it", "'s", "4", "2", "!?"]
    assert split_words("½ x²") == ["½", "x", "²"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "vocab.json is missing"),
        ({"vocab.json": "{}"}, "merges.txt is missing"),
        ({"vocab.json": "{", "merges.txt": ""}, "damaged"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "not CLIP's format"),
    ],
)
def test_errors_name_the_file(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Tokenizer(tmp_path)
