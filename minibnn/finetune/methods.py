"""The fine-tuning methods: DreamBooth, LoRA, OFT, each with or without random weights. They differ in what is trainable.

    method       trained               random (--bayes)                    what a run holds
    dreambooth   all of the UNet       layers that --where names           a diffusers folder
    lora         down and up matrices  the up matrices                     pytorch_lora_weights.safetensors
    oft          Q of every block      Q                                   adapter_config.json, adapter_model.safetensors

Follows: the paper's App. D and H.1. The loop in `train.py` knows nothing of this.
"""

import dataclasses

import torch

from ..errors import UserError
from ..files.store import write_tensors
from . import adapter_files, adapters, bayes

OWN = {"dreambooth": ("where",), "lora": ("rank", "alpha", "layers", "export"), "oft": ("blocks", "coft", "layers")}
DEFAULTS = {
    "dreambooth": {"where": "paper"},
    "lora": {"rank": 4, "layers": adapters.LAYERS},
    "oft": {"blocks": 4, "layers": adapters.LAYERS},
}
EXPORTS = ("kohya", "peft")


def settle(options, recipe):
    """Fill in what depends on the method. options: TrainOptions; recipe: the model's. Raises UserError naming an option."""
    for name in {name for names in OWN.values() for name in names} - set(OWN[options.method]):
        if getattr(options, name) is not None:
            owners = " or ".join(method for method, names in OWN.items() if name in names)
            why = "; what is random in lora and oft is fixed (paper, App. D)" if name == "where" else ""
            raise UserError(f"--{name} belongs to --method {owners}{why}")
    unknown = set((options.export or EXPORTS[0]).split(",")) - set(EXPORTS)
    if unknown:
        raise UserError(f"--export: {min(unknown)!r} is not one of {', '.join(EXPORTS)}")
    recipe = recipe | recipe["methods"].get(options.method, {})
    defaults = DEFAULTS[options.method] | {name: recipe[name] for name in ("prior_weight", "sigma", "lr")}
    defaults |= {name: value for name in defaults if (value := getattr(options, name)) is not None}
    options = dataclasses.replace(options, **defaults)
    if options.method == "lora" and options.alpha is None:
        options = dataclasses.replace(options, alpha=float(options.rank))
    return options, recipe


def check(unet, options):
    """Raises UserError, naming the option, when the method does not fit the network; the network stays as it is."""
    at_fault = "--where"
    try:
        if options.method != "dreambooth":
            at_fault = "--layers"
            adapters.select(unet, options.layers)
            at_fault = "--rank" if options.method == "lora" else "--blocks"
        with torch.device("meta"):
            make_trainable(type(unet)(unet.config), options)
    except ValueError as error:
        raise UserError(f"{at_fault}: {error}") from None


def make_trainable(unet, options):
    """Prepare the UNet in place for options.method; returns the shared `bayes.Draw`. Raises ValueError as `adapters`."""
    draw = bayes.Draw(options.kernel)
    sigma = options.sigma if options.bayes else None
    if options.method == "lora":
        adapters.attach_lora(unet, options.layers, options.rank, options.alpha, sigma, draw, options.seed)
    elif options.method == "oft":
        adapters.attach_oft(unet, options.layers, options.blocks, sigma, draw)
    elif options.bayes:
        draw = bayes.bayesianize(unet, options.where, sigma, options.kernel)
    return draw


def constrain(unet, options):
    """After each optimiser step: σ stays positive, constrained OFT stays constrained."""
    bayes.clamp_sigma(unet)
    if options.coft:
        adapters.constrain(unet, options.coft)


def describe(unet, options):
    """What is trained and what is random, in words."""
    trained = sum(p.numel() for n, p in unet.named_parameters() if p.requires_grad and not n.endswith("_sigma"))
    total = sum(p.numel() for n, p in unet.named_parameters() if not n.endswith("_sigma"))
    random = f"{100 * bayes.random_share(unet):.3g} % of the UNet random, σ₀ = {options.sigma:g}" if options.bayes else "no BNN"
    return f"{options.method} trains {trained / 1e6:.3g} M of {total / 1e6:.4g} M parameters, {random}"


def write_result(sd, options, folder):
    """Write what is trained, at the mean of the posterior, into `folder`; the network stays as it is. Returns what it is."""
    if options.method == "dreambooth":
        dataclasses.replace(sd, unet=plain_unet(sd.unet)).save(folder)
        return "diffusers folder"
    if options.method == "lora":
        adapter_files.write_diffusers_lora(sd.unet, folder)
    else:
        adapter_files.write_peft_oft(sd.unet, folder, options.model)
    opener = "diffusers' load_lora_weights" if options.method == "lora" else "peft"
    return f"{options.method} run for {options.model}, which {opener} opens too"


def plain_unet(unet):
    """A UNet without random weights that shares the means of `unet`."""
    with torch.device("meta"):
        plain = type(unet)(unet.config)
    plain.load_state_dict(bayes.posterior_mean(unet), strict=True, assign=True)
    return plain


def save_result(sd, options, out):
    """Write the run's result and make sd.unet that: a plain UNet at the mean of the posterior. Returns what it is."""
    if options.keep_posterior:
        trained = {n: p for n, p in sd.unet.named_parameters() if p.requires_grad}
        write_tensors(out / "posterior.safetensors", trained)
    kind = write_result(sd, options, out)
    if options.method == "dreambooth":
        sd.unet = plain_unet(sd.unet)
        return kind
    formats = (options.export or "").split(",")
    if "kohya" in formats:
        adapter_files.write_kohya_lora(sd.unet, out)
    if "peft" in formats:
        adapter_files.write_peft_lora(sd.unet, out, options.model)
    adapters.merge(sd.unet)
    return kind
