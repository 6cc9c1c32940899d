"""Kinds of values, and every JSON file that minibnn reads, with hostile values in every place."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from minibnn import StableDiffusion, UserError, runs
from minibnn.files import schema
from minibnn.files.configs import RECIPE, RECIPE_KINDS, check_scheduler
from minibnn.files.layouts import check_config
from minibnn.files.rows import read_rows
from minibnn.files.store import ASSETS, read_json, write_json
from minibnn.lab.drawn_by_eq2 import measured_sigma1
from minibnn.neighbours import beside, bps, graft_run, rectified
from minibnn.networks.text_encoder import TextEncoder
from minibnn.networks.tokenizer import Tokenizer
from minibnn.networks.unet import UNet
from minibnn.networks.vae import VAE
from minibnn.options.training import TrainOptions

TINY = ASSETS / "tiny"
HOSTILE = [None, True, 0, -1, 3, 10**30, 10**9, 1.5, 1e308, "x", "", "9", [], [[]], ["x"], [3], [-1, 0], {}, {"a": 1}]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (schema.integer(1, 5), [1, 5], [0, 6, True, 1.0, "1", None, [1]]),
        (schema.number(0, 1), [0, 0.5, 1], [10**400, -0.1, 1.1, math.nan, math.inf, True, "0", None]),
        (schema.number(above=0), [1e-300, 10**30], [0, -1, math.inf, 10**400]),
        (schema.text, ["", "a"], [None, 1, ["a"]]),
        (schema.truth, [True, False], [0, 1, None, "true"]),
        (schema.one_of("a", 1), ["a", 1], ["b", True, 1.0, None]),
        (schema.optional(schema.text), [None, "a"], [0]),
        (schema.either(schema.text, schema.integer()), ["a", 3], [None, 1.5]),
        (schema.items(schema.integer(), 1, 2), [[1], (1, 2)], [[], [1, 2, 3], ["a"], "a", {}, None]),
        (schema.mapping(schema.integer()), [{}, {"a": 1}], [{"a": "b"}, [], None]),
        (schema.record({"a": schema.text}, ("a",)), [{"a": "x", "b": 0}], [{}, {"a": 1}, [], None]),
    ],
)
def test_kinds_take_what_they_say(kind, good, bad):
    for value in good:
        kind(value, "it")
    for value in bad:
        with pytest.raises(schema.Unfit, match="^it( is|.*is missing|.*is .*, but must be )"):
            kind(value, "it")


def test_what_is_written_is_json_that_is_read_again(tmp_path):
    value = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": None}, "e": "NaN", "f": True, "g": 10**30}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value | {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": None}}


def test_the_message_names_place_key_and_value():
    kind = schema.record({"a": schema.record({"b": schema.items(schema.integer(0, 9))})})
    with pytest.raises(UserError, match="^x.json: a.b.2. is 10, but must be a whole number from 0 to 9$"):
        schema.fitting({"a": {"b": [1, 2, 10]}}, kind, "x.json")
    with pytest.raises(UserError, match="^x.json: it holds 3 and not an object$"):
        schema.fitting(3, kind, "x.json")
    with pytest.raises(UserError) as caught:
        schema.fitting({"a": {"b": ["y" * 10**6]}}, kind, "x.json")
    assert len(str(caught.value)) < 200


def test_options_come_back_from_json_as_they_were():
    kinds = schema.record(schema.fields_of(TrainOptions))
    written = {"images": ["a"], "prompt": "a dog", "steps": 3, "lr": 1e-4, "bayes": True, "method": "oft"}
    schema.fitting(written, kinds, "config.json")
    for name, value in {"steps": "3", "lr": "x", "bayes": 1, "method": "full", "model": 3, "images": 3}.items():
        with pytest.raises(UserError, match=f"config.json: {name} is "):
            schema.fitting(written | {name: value}, kinds, "config.json")


# --- hostile values in every place ------------------------------------------------------------------------------------


def hostile(values):
    """(values with one replaced by something hostile, or left out, at any depth; the way there)."""
    for key, value in values.items():
        yield {k: v for k, v in values.items() if k != key}, key
        for other in HOSTILE:
            yield values | {key: other}, f"{key} = {other!r}"
        if isinstance(value, dict):
            for changed, way in hostile(value):
                yield values | {key: changed}, f"{key}.{way}"


def only_user_errors(values, use):
    """Use each hostile form of the values; anything but success and UserError is a failure. Returns how many failed."""
    refused = 0
    for changed, way in hostile(values):
        try:
            use(changed)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), way
        except Exception as error:
            raise AssertionError(f"{way}: {type(error).__name__}: {error}") from error
    assert refused
    return refused


@pytest.mark.parametrize(("part", "network"), [("unet", UNet), ("vae", VAE), ("text_encoder", TextEncoder)])
def test_hostile_configurations_of_networks(part, network):
    def use(values):
        with torch.device("meta"):
            network(check_config(network.Config, values, part))

    only_user_errors(read_json(TINY / part / "config.json"), use)


def test_hostile_schedules_and_recipes():
    only_user_errors(read_json(TINY / "scheduler" / "scheduler_config.json"), check_scheduler)
    recipe = RECIPE | read_json(TINY / "recipe.json")
    only_user_errors(recipe, lambda values: schema.fitting(values, schema.record(RECIPE_KINDS), "recipe.json"))


def test_hostile_tokenizers(tmp_path):
    shutil.copytree(TINY / "tokenizer", tmp_path / "t")

    def written(name):
        def use(values):
            (tmp_path / "t" / name).write_text(json.dumps(values))
            Tokenizer(tmp_path / "t")(["a dog on the beach"])

        return use

    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        only_user_errors(read_json(TINY / "tokenizer" / name), written(name))
        shutil.copy(TINY / "tokenizer" / name, tmp_path / "t")
    few = dict(list(read_json(TINY / "tokenizer" / "vocab.json").items())[-3:])
    only_user_errors(few, written("vocab.json"))
    (tmp_path / "t" / "vocab.json").unlink()
    tokens = [{"content": "<|startoftext|>", "id": 0}]
    one = {"model": {"vocab": few, "merges": ["a b"]}, "added_tokens": tokens}
    only_user_errors(one, written("tokenizer.json"))


def test_a_tokenizer_of_another_model_is_named(micro, tmp_path):
    shutil.copytree(micro, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer" / "vocab.json"
    path.write_text(json.dumps(read_json(path) | {"more": 10**6}))
    with pytest.raises(UserError, match="has 1000001 ids, the text encoder only 659"):
        StableDiffusion.load(tmp_path / "m")


RUN = {
    "format": runs.FORMAT, "base": "tiny", "base_tokenizer": None, "pictures": {"a.png": "0"}, "threads": 1,
    "options": {"images": ["a"], "model": "tiny", "tokenizer": None, "prompt": ["a"], "class_prompt": None,
                "prediction_type": None, "resolution": 64, "method": "lora", "steps": 3, "lr": 0.1, "bayes": True},
}


def test_hostile_records_of_runs(tmp_path):
    def use(values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        if runs.find_config(tmp_path):
            runs.options_of(tmp_path)
            runs.base_of(tmp_path)

    only_user_errors(RUN, use)


def test_hostile_records_of_the_neighbours(tmp_path, micro):
    sd = StableDiffusion.load(micro)
    branch = {"model": "tiny", "hint_channels": 1, "factor": 8, "gains": "head-heavy"}
    corrector = {"model": "X", "euler_steps": 4, "guidance": 1.5, "resolution": 64, "factor": 1.0, "channels": [16, 24],
                 "latent_channels": 4, "context": sd.unet.config.cross_attention_dim}
    size = corrector["channels"], corrector["latent_channels"], corrector["context"]
    for kind, network, config, load in (
        ("branch", bps.Branch(sd.unet.config), branch, bps.load_branch),
        ("corrector", rectified.Corrector(*size), corrector, rectified.load_corrector),
    ):
        def use(values, load=load):
            (tmp_path / "config.json").write_text(json.dumps(values))
            load(tmp_path, sd)

        beside.save(network, tmp_path, kind, config)
        only_user_errors(json.loads((tmp_path / "config.json").read_text()), use)
    record = {"base": "tiny", "switch": 3, "options": {"tokenizer": None, "prediction_type": None}}
    only_user_errors(record, lambda values: schema.fitting(values, graft_run.KIND, "graft.json"))


def test_hostile_results(tmp_path):
    def use(values):
        (tmp_path / "m.json").write_text(json.dumps(values))
        measured_sigma1(tmp_path / "m.json")

    use({"command": "sigma1", "found": {"it": {"t": [1, 9], "sigma1": [10**30, 0.2]}}})
    only_user_errors({"command": "sigma1", "found": {"it": {"t": [1, 9], "sigma1": [0.1, 0.2]}}}, use)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"step": 1}\n{"step": 2, "x')
    assert read_rows(lines, {"step": schema.integer(0)}, ("step",)) == [{"step": 1}]
    for line in ('{"step": -1}', "3", '{"other": 1}', "null"):
        lines.write_text('{"step": 1}\n' + line + "\n")
        with pytest.raises(UserError, match="a.jsonl, line 2: "):
            read_rows(lines, {"step": schema.integer(0)}, ("step",))
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="a.jsonl is not text in UTF-8"):
        read_rows(Path(lines))
