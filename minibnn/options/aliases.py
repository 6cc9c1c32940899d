"""Options as diffusers' scripts and kohya's sd-scripts call them: taken as ours, or answered with the right ones.

Any option may be written with _ for -. A name of another program counts only where the command has no option of that
name itself, and has the option that it stands for.
"""

SAME = {  # the same meaning and the same kind of value
    "--instance-data-dir": "--images", "--train-data-dir": "--images",
    "--instance-prompt": "--prompt",
    "--class-data-dir": "--class-images", "--reg-data-dir": "--class-images",
    "--num-class-images": "--class-count",
    "--prior-loss-weight": "--prior-weight",
    "--pretrained-model-name-or-path": "--model",
    "--output-dir": "--out",
    "--learning-rate": "--lr",
    "--max-train-steps": "--steps", "--num-inference-steps": "--steps",
    "--train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulate",
    "--network-dim": "--rank", "--lora-rank": "--rank",
    "--network-alpha": "--alpha", "--lora-alpha": "--alpha",
    "--checkpointing-steps": "--checkpoint-every", "--save-every-n-steps": "--checkpoint-every",
    "--sample-every-n-steps": "--sample-every", "--validation-steps": "--sample-every",
    "--snr-gamma": "--min-snr", "--min-snr-gamma": "--min-snr",
    "--optimizer": "--optimiser",
    "--keep-optimizer": "--keep-optimiser", "--save-state-on-train-end": "--keep-optimiser",
    "--guidance-scale": "--guidance",
    "--num-images-per-prompt": "--count",
    "--config-file": "--config",
}

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
    """Words of a command line -> the same with our names of options. flags: the options that the command has.

    Example: translate(["--learning_rate=1e-4"], {"--lr"}) == ["--lr=1e-4"].
    """
    translated = []
    for word in words:
        name, equals, value = word.partition("=")
        hyphens = name.replace("_", "-")
        ours = hyphens if hyphens in flags else SAME.get(hyphens)
        if name.startswith("--") and name not in flags and ours in flags:
            name = ours
        translated.append(name + equals + value)
    return translated


def instead(name, flags):
    """What to write instead of another program's option, in words; None for a name that is in neither table."""
    words = INSTEAD.get(name.replace("_", "-"), "")
    if words.startswith("--") and words.split()[0] in flags:
        return f"write {words}"
    return words if words.startswith("leave") else None
