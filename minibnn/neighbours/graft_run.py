"""The command of GRAFT and P-GRAFT (`graft.py`): from a reward to a run's folder, and opening such a run.

    python -m minibnn graft --reward red_thing_on_grass --switch 500 --out runs/red
    python -m minibnn graft --resume --out runs/red

The run's folder appears when all is done. Until then OUT.unfinished holds the options, the candidates and, once the
training has been stopped, its checkpoint; --resume goes on from there.
"""

import dataclasses
import shlex
from pathlib import Path

import torch

from .. import runs, schedule
from ..checkpoints import STATE
from ..data import read_prompts
from ..devices import autocast, choose_device, choose_threads, threads_kept, training_dtype
from ..errors import UserError
from ..files import schema
from ..files.folders import new_folder, restore
from ..files.locks import locked
from ..files.store import read_json, write_json
from ..finetune import methods
from ..finetune.adapter_files import FILES as ADAPTER_FILES
from ..options import unfinished
from ..options.kinds import BUNDLED, WORLD, full_name, refuse
from ..pictures import grid, save_png
from ..pipeline import StableDiffusion
from ..sample import check_numbers
from ..world import scenes as world
from . import rejection
from .candidates import draw_candidates
from .graft import (
    Switched,
    accept,
    draw_latents,
    pictures_of,
    time_at,
    train_on_accepted,
    training_options,
)
from .guidance import share_weights
from .rewards import load_reward, rewards_of

RECORD = "graft.json"
OWN_NAMES = {  # what a run writes, and --overwrite replaces
    RECORD, "samples.png", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "recipe.json", "model_index.json",
    "config.json", ADAPTER_FILES["diffusers"],
}
KIND = schema.record({  # what it must hold so that the run can be opened
    "base": schema.text, "switch": schema.integer(0, 998),
    "options": schema.record({
        "tokenizer": schema.optional(schema.text), "prediction_type": schema.optional(schema.text),
        "guidance": schema.number(), "sample_steps": schema.integer(1, 999), "resolution": schema.integer(1, 2**13),
    }, required=("tokenizer", "prediction_type")),
}, required=("base", "switch", "options"))
OWN = {"keep": "top-k", "minimum": "threshold", "alpha": "tilt"}  # options of one rule alone
ANY_TIME = {"out", "resume", "overwrite", "device", "gradient_checkpointing", "checkpoint_every", "evaluate"}
BEFORE_TRAINING = {  # what --resume may change, beside those, until there is a checkpoint of the training
    "rule", "keep", "minimum", "alpha", "deduplicate", "method", "rank", "layers", "switch", "steps", "lr",
}


def check_folder(options, out):
    """Refuse a folder that is not to be replaced, or that holds what the run is made from. Raises UserError."""
    if out.exists() and not (options.overwrite and (out / RECORD).exists()):
        why = ", it is not a run of this command" if options.overwrite else " or pass --overwrite"
        raise UserError(f"--out {out} exists: name another{why}")
    strange = sorted({path.name for path in out.iterdir()} - OWN_NAMES) if out.exists() else []
    if strange:
        raise UserError(f"--out {out} holds {strange[0]}, which this command did not write: move it, or name another")
    for name in ("model", "tokenizer", "prompts_from"):
        value = getattr(options, name)
        if value and not (name == "model" and value in BUNDLED) and Path(value).resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out} would replace --{name.replace('_', '-')} {value}: name another")
    if options.model not in BUNDLED and out.resolve().is_relative_to(Path(options.model).resolve()):
        raise UserError(f"--out {out} lies inside --model {options.model}: name another")
    if not out.name.strip("."):
        raise UserError(f"--out {out}: name the folder by its own name, from outside of it")
    unfinished.check(options, out)


def settle(options, sd):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError."""
    prompts = list(options.prompt or [])
    if options.prompts_from:
        prompts += read_prompts(options.prompts_from, "--prompts-from")
    if not prompts and options.model in WORLD:
        prompts = [world.article(f"{subject} on the grass") for subject in world.SUBJECTS]
    if not prompts:
        raise UserError("--prompt or --prompts-from is required for this model")
    device = choose_device(options.device)
    options = dataclasses.replace(
        options,
        prompt=prompts,
        prompts_from=None,  # they are in `prompt` now
        tokenizer=options.tokenizer and str(Path(options.tokenizer).resolve()),  # for opening the run
        sample_steps=options.sample_steps or sd.recipe["sample_steps"],
        resolution=options.resolution or sd.recipe["resolution"],
        device=device,
        dtype=options.dtype or training_dtype(device),
    )
    if options.sample_steps >= schedule.TRAIN_STEPS:
        raise UserError(f"--sample-steps {options.sample_steps} is outside 1..{schedule.TRAIN_STEPS - 1}")
    check_numbers("ddim", options.eta, options.guidance, options.seed)
    if options.resolution % sd.vae.factor:
        raise UserError(f"--resolution {options.resolution} is not a multiple of {sd.vae.factor}")
    noisiest, switch = int(schedule.timesteps(options.sample_steps)[0]), options.switch
    if switch >= noisiest:
        raise UserError(f"--switch {switch} leaves nothing to the fine-tuned model: the sampler starts at {noisiest}")
    for name, rule in OWN.items():
        refuse(options, [name] if options.rule != rule else [], f"belongs to --rule {rule}, not to {options.rule}")
    if options.rule == "top-k" and options.keep > options.candidates:
        raise UserError(f"--keep {options.keep} of --candidates {options.candidates} is impossible")
    settled = training_options(options, sd.recipe)
    methods.check(sd.unet, settled)
    return dataclasses.replace(options, **{name: getattr(settled, name) for name in ("rank", "layers", "lr")})


@threads_kept()
def graft(options):
    """Run GraftOptions from candidates to the run's folder; returns its record. Raises UserError, KeyboardInterrupt."""
    out = Path(options.out)
    check_folder(options, out)
    with locked(out.parent, f".{out.name}.lock"):
        restore(out)
        check_folder(options, out)  # again: it may have changed since
        return graft_there(options, out)


def graft_there(options, out):
    """The same into a folder that belongs to this process and may be replaced."""
    if options.resume:
        trained = (unfinished.place(out) / STATE).exists()
        unfinished.check_unchanged(options, out, ANY_TIME if trained else ANY_TIME | BEFORE_TRAINING)
    reward = load_reward(options.reward, choose_device(options.device))
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd)
    choose_threads(options.device, sd.unet)
    with unfinished.begun(options, out) as work:
        record = make(options, sd.to(options.device), reward, work, unfinished.to_go_on(options, out))
    drawing = ("--model", str(out), "--prompt", options.prompt[0], "--eta", f"{options.eta:g}", "--out", "picture.png")
    print(f"done: python -m minibnn sample {shlex.join(drawing)}")
    return record


def make(options, sd, reward, work, go_on):
    """From candidates to the finished folder of the run; returns its record. go_on: the command that resumes."""
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    found = draw_candidates(sd, reward, prompts, options, work)
    rewards = found["reward"]
    kept = chosen(found, prompts, options)
    samples, count = len(rewards), int(kept.sum())
    if not count:
        raise UserError(f"--rule {options.rule} accepts none of {samples} samples, whose rewards are "
                        f"{rewards.min():g}..{rewards.max():g}; ask for less, without drawing again: {go_on}")
    before, of_kept = rewards.mean().item(), rewards[kept].mean().item()
    print(f"{count} of {samples} samples kept: mean reward {before:.4g}, of the kept {of_kept:.4g}")

    contexts = {prompt: sd.encode_prompts([prompt]).cpu()[0] for prompt in options.prompt}
    sd.vae.cpu()
    sd.text_encoder.cpu()  # training needs neither
    t = time_at(options.switch, schedule.timesteps(options.sample_steps))
    of_kept_ones = [contexts[prompts[i]] for i in kept.nonzero()[:, 0].tolist()]
    train_on_accepted(sd, of_kept_ones, found["x0"][kept], t, options, work, go_on)
    record = {
        "base": full_name(options.model), "switch": options.switch, "options": dataclasses.asdict(options),
        "samples": samples, "kept": count, "reward_before": before, "reward_kept": of_kept,
    }
    with new_folder(Path(options.out)) as temporary:
        save(sd, options, temporary)
        if options.evaluate:
            after = record["reward_after"] = evaluated(options, record, reward, temporary)
            print(f"mean reward {before:.4g} -> {after:.4g} on {options.evaluate} fresh samples")
        write_json(temporary / RECORD, record)
    return record


def chosen(found, prompts, options):
    """Which candidates are kept: (n,) bool. found: as of `draw_candidates`."""
    kept = accept(found["reward"], options)
    if not options.deduplicate:
        return kept
    keys = [(prompt, tuple(key)) for prompt, key in zip(prompts, found["key"].tolist(), strict=True)]
    return rejection.deduplicate(kept, keys, torch.Generator().manual_seed(options.seed))


def save(sd, options, folder):
    """Write what was trained: a model, or a LoRA with the config.json by which it finds its base."""
    sd.recipe |= {name: getattr(options, name) for name in ("guidance", "sample_steps", "resolution")}
    settled = training_options(options, sd.recipe)
    methods.save_result(sd, settled, folder)
    if options.method == "lora":
        runs.start(settled, [], folder=folder)


def evaluated(options, record, reward, folder):
    """The mean reward of fresh samples of the run in a folder, of which samples.png shows some."""
    sd = open_graft_run(folder, record).to(options.device)
    fresh = [options.prompt[i % len(options.prompt)] for i in range(options.evaluate)]
    rewards, shown, dtype = [], [], getattr(torch, options.dtype)
    with autocast(sd.device, dtype):
        latents, _ = draw_latents(sd, fresh, options, options.seed + 1)
    for part in latents.split(options.batch_size):
        with autocast(sd.device, dtype):
            pictures = pictures_of(sd, part)
        rewards.append(rewards_of(reward, pictures, fresh[len(shown) : len(shown) + len(pictures)]))
        shown += pictures
    save_png(grid(shown[:24], 8, zoom=max(1, 128 // options.resolution)), folder / "samples.png")
    return torch.cat(rewards).mean().item()


def open_graft_run(folder, record=None, dtype=None, tokenizer=None, prediction_type=None):
    """Open a run of this command: a StableDiffusion whose UNet is `Switched`, or plain for GRAFT. Raises UserError.

    `StableDiffusion.load(folder)` opens the fine-tuned model alone. record: the content of graft.json, if it is not
    there yet. dtype, tokenizer, prediction_type: as for `load`.
    """
    record = record or read_json(Path(folder) / RECORD, KIND)
    sd, options = StableDiffusion.load(folder, tokenizer, dtype, prediction_type), record["options"]
    sd.recipe |= {name: options[name] for name in ("guidance", "sample_steps", "resolution") if name in options}
    if record["switch"]:
        told = (tokenizer or options["tokenizer"], dtype, prediction_type or options["prediction_type"])
        base = StableDiffusion.load(record["base"], *told)
        share_weights(base, sd)
        sd.unet = Switched(sd.unet, base.unet, record["switch"])
    return sd
