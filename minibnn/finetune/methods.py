"""The methods DreamBooth, LoRA and OFT, each with or without random weights. They differ in what is trained.

    method       trained               random (--bayes)           what a run holds
    dreambooth   all of the UNet       layers that --where names  a diffusers folder
    lora         down and up matrices  the up matrices            pytorch_lora_weights.safetensors
    oft          Q of every layer      Q (or where --where says)  adapter_config.json, adapter_model.safetensors

Follows: the paper's App. D and H.1. The training in `train.py` calls `make_trainable` before its first step and
`constrain` after each.
"""

import contextlib
import dataclasses

from ..errors import UserError
from ..files.headers import about_run, lora_header, model_header
from ..files.hollow import hollow
from ..files.weights import write_tensors
from ..options.of_methods import OWN, OWNED, owners_of
from . import adapter_files, adapters, bayes
from .all_at_once import draw_at_once
from .kernel import room_at_once
from .weight_noise import WeightNoise

EXPORTS = ("kohya", "peft")
SETTLED = ("prior_weight", "prior_target", "sigma", "lr", "ema")  # by the recipe, where the command line says nothing


def settle(options, recipe):
    """Fill in what depends on the method, in TrainOptions and the model's recipe; returns both. Raises UserError."""
    for name in OWNED:
        if options.method not in owners_of(name) and getattr(options, name) is not None:
            why = "; what is random in lora is fixed (paper, App. D)" if name == "where" else ""
            raise UserError(f"--{name} belongs to --method {' or '.join(owners_of(name))}{why}")
    unknown = set((options.export or EXPORTS[0]).split(",")) - set(EXPORTS)
    if unknown:
        raise UserError(f"--export: {min(unknown)!r} is not one of {', '.join(EXPORTS)}")
    recipe = recipe | recipe["methods"].get(options.method, {})
    named = {name: recipe[name] for name in OWN[options.method] if name in recipe}
    defaults = OWN[options.method] | named | {name: recipe[name] for name in SETTLED}
    still_open = {name: default for name, default in defaults.items() if getattr(options, name) is None}
    asked, options = options.prior_target, dataclasses.replace(options, **still_open)
    if not options.prior_weight:
        if asked == "pretrained":
            raise UserError("--prior-target pretrained needs class pictures: add --prior-weight, for instance 1")
        options = dataclasses.replace(options, prior_target="noise")  # nothing is taught of the class
    if options.method == "lora" and options.alpha is None:
        options = dataclasses.replace(options, alpha=float(options.rank))
    return options, recipe


def check(unet, options):
    """Raises UserError, naming the option, when the method does not fit the network; the network stays as it is."""
    if options.method != "dreambooth":
        with blamed_on("--layers"):
            adapters.select(unet, options.layers)
        if options.where:
            with blamed_on("--where"):
                adapters.regions(options.where)
    with blamed_on({"lora": "--rank", "oft": "--blocks"}.get(options.method, "--where")), hollow():
        make_trainable(type(unet)(unet.config), options)


@contextlib.contextmanager
def blamed_on(option):
    """Inside, a ValueError becomes a UserError that names the option."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def make_trainable(unet, options):
    """Prepare the UNet in place for options.method; returns its WeightNoise. Raises ValueError as `adapters` does.

    DreamBooth without BNN changes nothing: all weights of a UNet are trainable.
    """
    noise = WeightNoise(options.kernel)
    sigma = options.sigma if options.bayes else None
    if options.method == "lora":
        adapters.attach_lora(unet, options.layers, options.rank, options.alpha, sigma, noise, options.seed)
    elif options.method == "oft":
        adapters.attach_oft(unet, options.layers, options.blocks, sigma, noise, options.where)
    elif options.bayes:
        noise = bayes.bayesianize(unet, options.where, sigma, options.kernel)
    if options.bayes:
        draw_at_once(unet, noise)
        noise.at_once = room_at_once(unet, options.ema, options.lambda_kl, 4 if options.dtype == "float32" else 2)
    return noise


def constrain(unet, options):
    """Keep σ positive, and Q of constrained OFT within its ball, after an optimiser step."""
    bayes.clamp_sigma(unet)
    if options.coft:
        adapters.constrain(unet, options.coft)


def describe(unet, options):
    """What is trained and what is random, in words."""
    means = [p for name, p in unet.named_parameters() if not name.endswith("_sigma")]
    trained, total = sum(p.numel() for p in means if p.requires_grad) / 1e6, sum(p.numel() for p in means) / 1e6
    share = f"{100 * bayes.random_share(unet):.3g} %"
    random = "without random weights"
    if options.bayes:
        way = "all at once" if unet.random_weights[0].at_once else "layer by layer"
        random = f"{share} of the UNet random, σ₀ = {options.sigma:g}, drawn {way}"
    return f"{options.method} trains {trained:.4g} M of {total:.4g} M parameters, {random}"


def write_result(sd, options, folder):
    """Write what is trained, at the mean of the posterior, into `folder`; returns in words what was written."""
    if options.method == "dreambooth":
        dataclasses.replace(sd, unet=plain_unet(sd.unet)).save(folder)
        return "a diffusers folder"
    if options.method == "lora":
        _write_lora(sd, options, folder, "diffusers")
    else:
        header = model_header(about_run(sd, options), "oft", "peft")
        adapter_files.write_oft(adapter_files.oft_of(sd.unet), folder, options.model, header)
    opener = "diffusers' load_lora_weights" if options.method == "lora" else "peft"
    name = "a LoRA" if options.method == "lora" else "an OFT"
    return f"{name} run for {options.model}, which {opener} opens too"


def _write_lora(sd, options, folder, program):
    path = folder if program == "peft" else folder / adapter_files.FILES[program]
    header = lora_header(about_run(sd, options))
    adapter_files.write_lora(adapter_files.lora_of(sd.unet), path, program, options.model, header)


def plain_unet(unet):
    """A UNet without random weights that shares the means of `unet`."""
    with hollow():
        plain = type(unet)(unet.config)
    plain.load_state_dict(bayes.posterior_mean(unet), strict=True, assign=True)
    return plain


def save_result(sd, options, out):
    """Write the run's result and return in words what it is; sd.unet becomes a plain UNet at the posterior mean."""
    if options.keep_posterior:
        trained = {n: p for n, p in sd.unet.named_parameters() if p.requires_grad}
        write_tensors(out / "posterior.safetensors", trained)
    kind = write_result(sd, options, out)
    if options.method == "dreambooth":
        sd.unet = plain_unet(sd.unet)
        return kind
    for program in options.export.split(",") if options.export else ():
        _write_lora(sd, options, out, program)
    adapters.merge(sd.unet)
    return kind
