"""The command `python -m minibnn export RUN --to kohya`: the result of a run as a file that another program opens.

    --to          a run of LoRA            a run of OFT              any other run or model
    single-file   a whole model            a whole model             a whole model
    diffusers     a LoRA (or, --merge,     a whole model's folder    a whole model's folder
                  a whole model's folder)
    peft          a LoRA                   an OFT                    –
    kohya         a LoRA                   –                         –

Whole models and adapters are those of the posterior mean, as the run itself holds them.
"""

import logging
from pathlib import Path

import torch

from .. import runs
from ..errors import UserError
from ..files import headers
from ..files.store import read_json
from ..files.weights import open_weights
from ..finetune import adapter_files
from ..finetune.adapter_settings import PEFT, PEFT_CONFIG
from ..neighbours import graft_run
from ..pipeline import StableDiffusion, place_of
from . import programs

log = logging.getLogger("minibnn")


def export(options):
    """Do what ExportOptions ask for; returns the path that was written. Raises UserError."""
    dtype = options.dtype and getattr(torch, options.dtype)
    source = Path(options.run)
    method = adapter_of(source)
    whole = options.to == "single-file" or (options.to == "diffusers" and (method != "lora" or options.merge))
    check(options, method, whole)
    out = destination(options, source, method, whole)
    if whole:
        header = write_whole_model(options, source, out, dtype)
    else:
        header = write_adapter(options, source, out, method, dtype)
    kind = options.to if whole or options.to != "diffusers" else "lora"
    print(programs.how_to_open(out, kind, header))
    record = source / graft_run.RECORD
    if record.is_file() and (switch := read_json(record, graft_run.KIND)["switch"]):
        print(f"this is the fine-tuned half of P-GRAFT, made for times above {switch}; from there on its base draws in "
              "`python -m minibnn sample`")
    return out


def adapter_of(source):
    """"lora" or "oft" for a run of these, else None."""
    if source.is_dir() and runs.is_adapter_run(source):
        return runs.options_of(source).method
    return None


def check(options, method, whole):
    """Refuse what no file of that program can hold. Raises UserError."""
    if options.base and not (whole and method):
        raise UserError("--base is for a run of LoRA or OFT that becomes a whole model: with --to single-file, or "
                        "--to diffusers (of LoRA with --merge)")
    if options.merge and not (options.to == "diffusers" and method == "lora"):
        raise UserError("--merge is for --to diffusers and a run of LoRA; a single file always holds the whole model")
    if whole or method == "lora" or (method, options.to) == ("oft", "peft"):
        return
    place_of(options.run)
    if not method and Path(options.run).is_dir() and not (Path(options.run) / "unet").is_dir():
        raise UserError(f"{options.run} holds neither a run nor a model: name the folder of a finished training")
    what = "an OFT, which no LoRA can hold" if method == "oft" else "a whole model and not a LoRA"
    raise UserError(f"--to {options.to}: {options.run} is {what}; --to single-file writes a file for every web UI")


def destination(options, source, method, whole):
    """Where to write: --out, or a place in the run's folder. Raises UserError rather than replace anything unasked."""
    own = None  # what the run itself holds in this form
    if options.to == "diffusers":
        own = source if whole else source / adapter_files.DIFFUSERS
    elif (options.to, method) == ("peft", "oft"):
        own = source
    places = {"single-file": source / "model.safetensors", "kohya": source / adapter_files.KOHYA, "peft": source}
    out = Path(options.out) if options.out else places.get(options.to)
    if not options.out and (own or not source.is_dir() or runs.find_config(source) is None):
        there = f"{own} is for {options.to} already; for a copy name a place" if own else "name a place for the file"
        if options.to == "diffusers" and (method == "oft" or options.merge):  # the run holds an adapter alone
            there = "name a folder for the whole model"
        raise UserError(f"--out is required: {there}")
    if own and out.resolve() == own.resolve():
        raise UserError(f"--out {out} is what was trained, and stays as it is; name another place")
    folder = options.to == "peft" or (whole and options.to == "diffusers")
    if folder and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if not folder and out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name must end with .safetensors")
    for path in (out / PEFT, out / PEFT_CONFIG) if options.to == "peft" else (out,):
        of_the_run = source.is_dir() and path.resolve().is_relative_to(source.resolve()) and out not in places.values()
        if path.exists() and (of_the_run or path.resolve() == source.resolve()):
            raise UserError(f"--out {path} belongs to {source}, and stays as it is; name another place")
        if path.exists() and not options.overwrite:
            raise UserError(f"--out: {path} exists; name another place or pass --overwrite")
    return out


def write_whole_model(options, source, out, dtype):
    """Write a single file or a diffusers folder, with every adapter merged; returns its header."""
    run = runs.options_of(source) if source.is_dir() else None
    if options.base:
        sd = on_base(options, source, run)
    else:
        sd = StableDiffusion.load(options.run, options.tokenizer, prediction_type=options.prediction_type)
    if run is None:
        family = headers.family_of(sd.unet.config)
        about = headers.About(source.stem, source.stem, family, sd.v_prediction, sd.recipe["resolution"], ())
    else:
        about = headers.about_run(sd, run)
    header = headers.model_header(about)
    if options.to == "single-file":
        sd.save_single_file(out, dtype, header)
    else:
        sd.save(out, dtype)
    return header


def on_base(options, source, run):
    """--base with the adapter of a run merged, opened as that training opened its own; a notice if it is another."""
    own_tokenizer, own_type = runs.tokenizer_of(source), run.prediction_type
    if not Path(options.base).is_file():  # a folder has its own
        own_tokenizer = own_type = None
    sd = StableDiffusion.load(options.base, options.tokenizer or own_tokenizer,
                              prediction_type=options.prediction_type or own_type)
    if other := runs.other_parts(source, runs.digests_of(sd, options.base)):
        log.warning("--base %s is not the model that %s was trained from: it has another %s", options.base, source,
                    " and ".join(other))
    sd.recipe |= runs.subject_of(run)
    return sd.merge_adapter(source)


def write_adapter(options, source, out, method, dtype):
    """Write a run's LoRA or OFT; returns its header."""
    run = runs.options_of(source)
    with open_weights(source / (adapter_files.DIFFUSERS if method == "lora" else PEFT)) as file:
        header = headers.ours(file.metadata() or {})
    if method == "lora":
        lora = adapter_files.read_run_lora(source, run.alpha)
        adapter_files.write_lora(lora, out, options.to, run.model, header, dtype)
    else:
        rotations = adapter_files.read_run_oft(source)
        adapter_files.write_oft(rotations, out, run.model, header, dtype)
    return header
