"""Options as diffusers' scripts and kohya's sd-scripts call them: taken as ours, or answered with the right ones.

Any option may be written with _ for -. A name of another program counts only where the command has no option of that
name itself, and has one of the same meaning: --steps are optimiser steps in `train` and sampling steps in `sample`.
`flags` is always {flag: what it means} of a command: the flag itself, unless its field says otherwise (kinds.option).
"""

DRAWING = {  # another program's name: the meaning, which is also the option's name in `sample`, but for its --steps
    "--num-inference-steps": "--sample-steps",
    "--guidance-scale": "--guidance",
    "--num-images-per-prompt": "--count",
}

SAME = {  # the same, with the names of `train`
    "--instance-data-dir": "--images", "--train-data-dir": "--images",
    "--instance-prompt": "--prompt",
    "--class-data-dir": "--class-images", "--reg-data-dir": "--class-images",
    "--num-class-images": "--class-count",
    "--prior-loss-weight": "--prior-weight",
    "--pretrained-model-name-or-path": "--model",
    "--output-dir": "--out",
    "--learning-rate": "--lr",
    "--max-train-steps": "--steps",
    "--train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulate",
    "--network-dim": "--rank", "--lora-rank": "--rank",
    "--network-alpha": "--alpha", "--lora-alpha": "--alpha",
    "--checkpointing-steps": "--checkpoint-every", "--save-every-n-steps": "--checkpoint-every",
    "--sample-every-n-steps": "--sample-every", "--validation-steps": "--sample-every",
    "--snr-gamma": "--min-snr", "--min-snr-gamma": "--min-snr",
    "--optimizer": "--optimiser",
    "--keep-optimizer": "--keep-optimiser", "--save-state-on-train-end": "--keep-optimiser",
    "--config-file": "--config",
} | DRAWING

STEPS = {"--steps": "optimiser steps", "--sample-steps": "sampling steps"}  # these two meanings in words

INSTEAD = {  # another kind of value, or nothing to ask for
    "--mixed-precision": "--dtype bfloat16 or --dtype float16",
    "--use-8bit-adam": "--optimiser adamw-bf16",
    "--optimizer-type": "--optimiser adamw or --optimiser adamw-bf16",
    "--resume-from-checkpoint": "--resume --out RUN",
    "--validation-prompt": "--sample-prompts FILE, with one prompt in each line",
    "--network-module": "--method lora or --method oft",
    "--save-model-as": "--export",
    "--output-name": "--out FOLDER",
    "--enable-xformers-memory-efficient-attention": "leave it out: PyTorch's own fast attention is always used",
    "--xformers": "leave it out: PyTorch's own fast attention is always used",
    "--sdpa": "leave it out: PyTorch's own fast attention is always used",
    "--center-crop": "leave it out: pictures are always cropped to their centre",
    "--with-prior-preservation": "--prior-weight 1, or nothing where that is the default",
    "--caption-extension": "leave it out: captions are read from NAME.txt beside NAME.png",
    "--train-text-encoder": "leave it out: the text encoder is not trained here",
}


def translate(words, flags):
    """Words of a command line -> the same with our names of options. flags: {flag: meaning} of the command.

    Example: translate(["--learning_rate=1e-4"], {"--lr": "--lr"}) == ["--lr=1e-4"].
    """
    translated, ours = [], names(flags)
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--") and name not in flags:
            name = ours.get(name.replace("_", "-"), name)
        translated.append(name + equals + value)
    return translated


def names(flags):
    """{name, with - for _: our flag} of all that a command takes, of its own and of other programs."""
    ours = {meaning: flag for flag, meaning in flags.items()}
    theirs = {name: ours[meaning] for name, meaning in SAME.items() if meaning in ours}
    return theirs | {flag: flag for flag in flags}


def instead(name, flags):
    """What to do about another program's option that the command does not take, in words; None for any other name."""
    name = name.replace("_", "-")
    if name in SAME:
        home, ours = ("sample" if name in DRAWING else "train"), SAME[name]
        ours = "--steps" if ours == "--sample-steps" else ours
        other = f"; here {ours} means {STEPS.get(flags[ours], flags[ours])}" if ours in flags else ""
        return f"`{home}` has it, as {ours}{other}"
    words = INSTEAD.get(name, "")
    if words.startswith("--") and words.split()[0] in flags:
        return f"write {words}"
    return words if words.startswith("leave") else None
