"""The command of GRAFT and P-GRAFT (`graft.py`): from a reward to a run's folder, and opening such a run.

    python -m minibnn graft --reward red_thing_on_grass --switch 500 --out runs/red

But: no resuming: the folder appears when all is done.
"""

import dataclasses
import shlex
from pathlib import Path

import torch

from .. import schedule
from ..data import full_name, read_prompts
from ..devices import choose_device, choose_threads, unscaled_dtype
from ..errors import UserError
from ..files import schema
from ..files.folders import new_folder, restore
from ..files.locks import locked
from ..files.store import read_json, write_json
from ..options.commands import GraftOptions
from ..options.kinds import BUNDLED, WORLD
from ..pictures import grid, save_png
from ..pipeline import StableDiffusion
from ..sample import check_numbers
from ..world import scenes as world
from . import rejection
from .graft import Switched, accept, draw_latents, picture_key, pictures_of, train_on_accepted
from .rewards import load_reward, rewards_of

RECORD = "graft.json"
OWN_NAMES = {  # what a run writes, and --overwrite replaces
    RECORD, "samples.png", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "recipe.json", "model_index.json",
}
KIND = schema.record({  # what it must hold so that the run can be opened
    "base": schema.text, "switch": schema.integer(0, 998),
    "options": schema.record({name: schema.optional(schema.text) for name in ("tokenizer", "prediction_type")},
                             required=("tokenizer", "prediction_type")),
}, required=("base", "switch", "options"))
OWN = {"keep": "top-k", "minimum": "threshold", "alpha": "tilt"}  # options of one rule alone


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
        tokenizer=options.tokenizer and str(Path(options.tokenizer).resolve()),  # for opening the run
        sample_steps=options.sample_steps or sd.recipe["sample_steps"],
        lr=options.lr or sd.recipe["lr"],
        resolution=options.resolution or sd.recipe["resolution"],
        device=device,
        dtype=options.dtype or unscaled_dtype(device),
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
        if options.rule != rule and getattr(options, name) != getattr(GraftOptions, name):
            raise UserError(f"--{name} belongs to --rule {rule}, not to {options.rule}")
    if options.rule == "top-k" and options.keep > options.candidates:
        raise UserError(f"--keep {options.keep} of --candidates {options.candidates} is impossible")
    return options


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
    reward = load_reward(options.reward, choose_device(options.device))
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd)
    choose_threads(options.device, sd.unet)
    sd.to(options.device)
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    x0, states = draw_latents(sd, prompts, options, options.seed, [options.switch])
    pictures = pictures_of(sd, x0)
    rewards = rewards_of(reward, pictures, prompts)
    kept = accept(rewards, options)
    if options.deduplicate:
        keys = [(prompt, picture_key(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
        kept = rejection.deduplicate(kept, keys, torch.Generator().manual_seed(options.seed))
    samples, count = len(rewards), int(kept.sum())
    if not count:
        raise UserError(f"--rule {options.rule} accepts none of {samples} samples, whose rewards are "
                        f"{rewards.min():g}..{rewards.max():g}; draw more or ask for less")
    before, of_kept = rewards.mean().item(), rewards[kept].mean().item()
    print(f"{count} of {samples} samples kept: mean reward {before:.4g}, of the kept {of_kept:.4g}")

    contexts = torch.cat([sd.encode_prompts([prompts[i]]).cpu() for i in kept.nonzero()[:, 0].tolist()])
    train_on_accepted(sd, contexts, x0[kept], states[options.switch][1], options)
    sd.recipe |= {name: getattr(options, name) for name in ("guidance", "sample_steps", "resolution")}
    record = {
        "base": full_name(options.model), "switch": options.switch, "options": dataclasses.asdict(options),
        "samples": samples, "kept": count, "reward_before": before, "reward_kept": of_kept,
    }
    with new_folder(out) as temporary:
        sd.to("cpu").save(temporary)
        if options.evaluate:
            sd = open_graft_run(temporary, record).to(options.device)
            fresh = [options.prompt[i % len(options.prompt)] for i in range(options.evaluate)]
            pictures = pictures_of(sd, draw_latents(sd, fresh, options, options.seed + 1)[0])
            after = record["reward_after"] = rewards_of(reward, pictures, fresh).mean().item()
            save_png(grid(pictures[:24], 8, zoom=max(1, 128 // options.resolution)), temporary / "samples.png")
            print(f"mean reward {before:.4g} -> {after:.4g} on {options.evaluate} fresh samples")
        write_json(temporary / RECORD, record)
    drawing = ("--model", str(out), "--prompt", options.prompt[0], "--eta", f"{options.eta:g}", "--out", "picture.png")
    print(f"done: python -m minibnn.sample {shlex.join(drawing)}")
    return record


def open_graft_run(folder, record=None, dtype=None):
    """Open a run of this command: a StableDiffusion whose UNet is `Switched`, or plain for GRAFT. Raises UserError.

    `StableDiffusion.load(folder)` opens the fine-tuned model alone. record: the content of graft.json, if it is not
    there yet.
    """
    record = record or read_json(Path(folder) / RECORD, KIND)
    sd = StableDiffusion.load(folder, dtype=dtype)
    if record["switch"]:
        options = record["options"]
        base = StableDiffusion.load(record["base"], options["tokenizer"], dtype, options["prediction_type"])
        sd.unet = Switched(sd.unet, base.unet, record["switch"])
    return sd
