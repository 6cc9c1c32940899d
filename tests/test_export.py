"""The command `export`: what other programs open is what the run draws, and says what it is."""

import json
import shutil

import pytest
import small_sd
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from minibnn import StableDiffusion, UNet, UserError
from minibnn.cli.export import export
from minibnn.cli.train import fine_tune
from minibnn.options.parsing import parse
from minibnn.options.results import ExportOptions
from minibnn.options.training import TrainOptions

PROMPT = "a photo of a sks dog"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_sd.make(tmp_path_factory.mktemp("small") / "sd-small", layers=1)


@pytest.fixture(scope="module")
def runs(small, dog, tmp_path_factory):
    """{method: folder of a run of it, far from its start}."""
    made = {}
    for method, more in (("lora", ["--rank", "3", "--alpha", "6"]), ("oft", []), ("dreambooth", [])):
        made[method] = tmp_path_factory.mktemp("runs") / "rex"
        words = ["--images", str(dog), "--model", str(small), "--out", str(made[method]), "--prompt", PROMPT]
        words += ["--method", method, "--prior-weight", "0", "--resolution", "32", "--steps", "2", "--lr", "0.02"]
        fine_tune(parse(TrainOptions, "x", [*words, "--samples", "0", "--no-monitor", *more]))
    return made


@pytest.fixture
def run_export(capsys):
    def run_export(run, *words):
        out = export(parse(ExportOptions, "minibnn export", [str(run), *words]))
        return out, capsys.readouterr().out

    return run_export


def weights(sd):
    return {(part, k): v for part in ("unet", "vae", "text_encoder") for k, v in getattr(sd, part).state_dict().items()}


def assert_close(a, b, tolerance):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    worst = max((a[k].float() - b[k].float()).abs().max().item() for k in a)
    assert worst <= tolerance, worst


def header_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("method", ["lora", "oft", "dreambooth"])
def test_a_single_file_is_the_whole_model(runs, small, run_export, tmp_path, method):
    """In half precision too; minibnn opens it at any size, because its header holds the configurations."""
    out, said = run_export(runs[method], "--to", "single-file")
    assert out == runs[method] / "model.safetensors" and f"{out}: " in said
    assert "warning: no web UI opens it" in said and "models/checkpoints" not in said
    assert f'from_single_file("{out}", config=FOLDER)' in said  # without it diffusers takes SD's sizes
    expected, tokenizer = StableDiffusion.load(runs[method]), small / "tokenizer"
    again = StableDiffusion.load(out, tokenizer)
    assert_close(again, expected, 0)
    assert (again.configs, again.recipe) == (expected.configs, expected.recipe)
    words = ["--to", "single-file", "--dtype", "float16", "--out", str(tmp_path / "h.safetensors")]
    half, _ = run_export(runs[method], *words)
    halved = StableDiffusion.load(half, tokenizer)
    assert halved.unet.conv_in.weight.dtype == torch.float16 and 0.45 < half.stat().st_size / out.stat().st_size < 0.6
    whole = weights(expected)
    assert all(torch.equal(value, whole[key].half()) for key, value in weights(halved).items())
    header = header_of(out)
    assert header["modelspec.title"] == "rex" and header["modelspec.trigger_phrase"] == PROMPT
    assert header["modelspec.architecture"] == "minibnn" and header["modelspec.prediction_type"] == "epsilon"
    with pytest.raises(UserError, match="model.safetensors exists; name another place or pass --overwrite"):
        run_export(runs[method], "--to", "single-file")
    run_export(runs[method], "--to", "single-file", "--overwrite")


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_lora_for_kohyas_tools(runs, small, run_export, tmp_path, dtype):
    words = ["--dtype", dtype] if dtype else []
    out, said = run_export(runs["lora"], "--to", "kohya", "--out", str(tmp_path / "rex.safetensors"), *words)
    merged = StableDiffusion.load(small).merge_adapter(out)
    assert_close(merged, StableDiffusion.load(runs["lora"]), 5e-4 if dtype else 1e-6)
    tensors = load_file(out)
    assert {float(v) for k, v in tensors.items() if k.endswith(".alpha")} == {6.0}
    kinds = {tensor.dtype for name, tensor in tensors.items() if name.endswith("weight")}
    assert kinds == {getattr(torch, dtype or "float32")}
    header = header_of(out)
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("3", "6")
    assert (header["ss_sd_model_name"], header["ss_output_name"]) == ("sd-small", "rex")
    assert json.loads(header["ss_tag_frequency"]) == {"rex": {PROMPT: 1}}
    assert header["modelspec.architecture"] == "minibnn/lora" and "ss_base_model_version" not in header
    assert f"its prompt: {PROMPT}" in said


def test_a_lora_for_diffusers(runs, small, run_export, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    expected = StableDiffusion.load(runs["lora"])
    file, _ = run_export(runs["lora"], "--to", "diffusers", "--out", str(tmp_path / "l.safetensors"))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(small)
    pipe.load_lora_weights(tmp_path, weight_name="l.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    ours = expected.unet.state_dict()
    assert max((v - ours[k]).abs().max() for k, v in pipe.unet.state_dict().items()) < 1e-6
    assert_close(StableDiffusion.load(small).merge_adapter(file), expected, 1e-6)
    assert header_of(file)["ss_network_alpha"] == "3"  # α/r is in the matrices


@pytest.mark.parametrize(("method", "words"), [("lora", ["--merge"]), ("oft", []), ("dreambooth", [])])
def test_a_whole_folder_for_diffusers(runs, run_export, tmp_path, method, words):
    diffusers = pytest.importorskip("diffusers")
    words = ["--to", "diffusers", "--dtype", "float16", "--out", str(tmp_path / "whole"), *words]
    out, said = run_export(runs[method], *words)
    assert f'StableDiffusionPipeline.from_pretrained("{out}")' in said
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out)
    ours = StableDiffusion.load(runs[method]).unet.state_dict()
    assert all(torch.equal(v.half(), ours[k].half()) for k, v in pipe.unet.state_dict().items())


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_a_run_whose_model_has_moved_is_exported_with_its_new_place(runs, small, run_export, tmp_path, method, caplog):
    """Bug: the refusal named options that `export` lacks."""
    expected, _ = run_export(runs[method], "--to", "single-file", "--out", str(tmp_path / "before.safetensors"))
    moved = shutil.copytree(small, tmp_path / "moved")
    run = shutil.copytree(runs[method], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["base"] = config["options"]["model"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is not there: put it back, .*`export .*run --base BASE`"):
        run_export(run, "--to", "single-file", "--out", str(tmp_path / "out.safetensors"))
    out, _ = run_export(run, "--to", "single-file", "--base", str(moved), "--out", str(tmp_path / "out.safetensors"))
    ours, theirs = load_file(out), load_file(expected)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert header_of(out)["modelspec.trigger_phrase"] == PROMPT
    words = ["--merge"] if method == "lora" else []
    run_export(run, "--to", "diffusers", "--base", str(moved), "--out", str(tmp_path / "whole"), *words)
    assert not caplog.messages
    whole = StableDiffusion.load(tmp_path / "whole")
    assert_close(whole, StableDiffusion.load(runs[method]), 0)
    assert whole.recipe["prompt"] == PROMPT
    other = StableDiffusion.load(small)
    with torch.no_grad():
        other.unet.conv_in.weight[0] += 0.1
    other.save(tmp_path / "other")
    run_export(run, "--to", "single-file", "--base", str(tmp_path / "other"), "--out", str(tmp_path / "b.safetensors"))
    assert f"other is not the model that {run} was trained from: it has another unet" in caplog.text


def test_a_single_file_that_has_moved_is_opened_as_the_training_opened_it(small, dog, run_export, tmp_path, caplog):
    """Bug: with --base the run's tokenizer and its v-prediction were forgotten."""
    sd = StableDiffusion.load(small)
    sd.save_single_file(tmp_path / "sd.safetensors")
    sd.tokenizer.save(tmp_path / "tokens")
    words = ["--images", str(dog), "--model", str(tmp_path / "sd.safetensors"), "--out", str(tmp_path / "run"),
             "--tokenizer", str(tmp_path / "tokens"), "--prediction-type", "v_prediction", "--prompt", PROMPT,
             "--method", "lora", "--resolution", "32", "--steps", "1", "--samples", "0", "--no-monitor"]
    fine_tune(parse(TrainOptions, "x", words))
    moved = (tmp_path / "sd.safetensors").rename(tmp_path / "moved.safetensors")
    out, _ = run_export(tmp_path / "run", "--to", "single-file", "--base", str(moved))
    assert header_of(out)["modelspec.prediction_type"] == "v" and not caplog.messages


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_an_adapter_for_peft(runs, small, run_export, tmp_path, method):
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    out, said = run_export(runs[method], "--to", "peft", "--out", str(tmp_path / "p"))
    assert f'PeftModel.from_pretrained(pipe.unet, "{out}")' in said
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(small)
    merged = peft.PeftModel.from_pretrained(pipe.unet, out).merge_and_unload().state_dict()
    ours = StableDiffusion.load(runs[method]).unet.state_dict()
    assert max((v - merged[k]).abs().max() for k, v in ours.items()) < 1e-6
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(small)


def test_a_model_that_is_no_run(small, run_export, tmp_path):
    out, _ = run_export(small, "--to", "single-file", "--out", str(tmp_path / "a.safetensors"))
    assert_close(StableDiffusion.load(out, small / "tokenizer"), StableDiffusion.load(small), 0)
    words = ["--to", "diffusers", "--tokenizer", str(small / "tokenizer"), "--out", str(tmp_path / "b")]
    back, _ = run_export(out, *words)
    assert_close(StableDiffusion.load(back), StableDiffusion.load(small), 0)


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("oft", ["--to", "kohya"], "--to kohya: .* is an OFT, which no LoRA can hold; --to single-file writes a file"),
        ("dreambooth", ["--to", "kohya"], "is a whole model and not a LoRA; --to single-file"),
        ("dreambooth", ["--to", "peft"], "is a whole model and not a LoRA"),
        ("dreambooth", ["--to", "diffusers"], "--out is required: .* is for diffusers already; for a copy"),
        ("oft", ["--to", "diffusers"], "--out is required: name a folder for the whole model"),
        ("lora", ["--to", "diffusers", "--merge"], "--out is required: name a folder for the whole model"),
        ("lora", ["--to", "diffusers"], "--out is required: .* is for diffusers already"),
        ("oft", ["--to", "peft"], "--out is required"),
        ("oft", ["--to", "peft", "--base", "tiny"], "--base is for a run of LoRA or OFT that becomes a whole model"),
        ("lora", ["--to", "diffusers", "--base", "tiny"], r"--base is for .* \(of LoRA with --merge\)"),
        ("dreambooth", ["--to", "single-file", "--base", "tiny"], "--base is for a run of LoRA or OFT"),
        ("oft", ["--to", "peft", "--out", "RUN", "--overwrite"], "is what was trained, and stays as it is"),
        ("dreambooth", ["--to", "diffusers", "--out", "RUN", "--overwrite"], "is what was trained, and stays"),
        ("lora", ["--to", "diffusers", "--out", "RUN/pytorch_lora_weights.safetensors", "--overwrite"], "stays as it"),
        ("lora", ["--to", "kohya", "--out", "RUN/pytorch_lora_weights.safetensors", "--overwrite"], "belongs to"),
        ("lora", ["--to", "single-file", "--out", "RUN/checkpoint/state.safetensors", "--overwrite"], "belongs to"),
        ("lora", ["--to", "kohya", "--out", "rex"], "--out rex: the name must end with .safetensors"),
        ("lora", ["--to", "peft", "--out", "RUN/config.json"], "is a file; name a folder"),
        ("oft", ["--to", "diffusers", "--merge", "--out", "x"], "--merge is for --to diffusers and a run of LoRA"),
    ],
)
def test_refusals(runs, run_export, method, words, message):
    words = [word.replace("RUN", str(runs[method])) for word in words]
    with pytest.raises(UserError, match=message):
        run_export(runs[method], *words)


def test_a_run_that_is_not_there_is_no_whole_model(run_export, tmp_path):
    with pytest.raises(UserError, match="no model at .*nowhere: give a folder"):
        run_export(tmp_path / "nowhere", "--to", "kohya")


def test_a_folder_of_something_else_is_no_run(run_export, tmp_path):
    with pytest.raises(UserError, match="holds neither a run nor a model"):
        run_export(tmp_path, "--to", "kohya")


def test_words_that_are_missing(capsys):
    for words, message in (([], "RUN is required"), (["runs/rex"], "--to is required"), (["a", "b"], "no option b")):
        with pytest.raises(SystemExit):
            parse(ExportOptions, "minibnn export", words)
        assert message in capsys.readouterr().err


def test_the_closing_lines_name_the_folders_of_each_program(tmp_path):
    """For networks of the official sizes, which are too large to write here."""
    from minibnn.cli import programs
    from minibnn.files import headers

    with torch.device("meta"):
        assert headers.family_of(UNet().config) == "v1"
    for version, base, name in (("v1", "sd_v1", "stable-diffusion-v1"), ("v2", "sd_v2_v", "stable-diffusion-v2-768-v")):
        header = headers.lora_header(headers.About("rex", "sd", version, version == "v2", 768, ("a sks dog",)))
        assert header["ss_base_model_version"] == base and header["ss_v2"] == str(version == "v2")
        assert header["modelspec.architecture"] == name + "/lora" and header["modelspec.resolution"] == "768x768"
    (tmp_path / "rex.safetensors").write_bytes(b"0" * 3_140_000)
    said = programs.how_to_open(tmp_path / "rex.safetensors", "kohya", header)
    assert said.splitlines() == [
        f"{tmp_path}/rex.safetensors: 3.14 MB",
        "  ComfyUI: copy it to ComfyUI/models/loras",
        "  AUTOMATIC1111, Forge: copy it to stable-diffusion-webui/models/Lora, and write <lora:rex:1> in the prompt",
        f'  diffusers: pipe.load_lora_weights("{tmp_path}", weight_name="rex.safetensors")',
        "  its prompt: a sks dog",
    ]
    assert "ComfyUI/models/checkpoints" in programs.how_to_open(tmp_path / "rex.safetensors", "single-file", header)
