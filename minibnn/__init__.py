"""minibnn: Bayesian few-shot fine-tuning of Stable Diffusion, from scratch.

    from minibnn import StableDiffusion
    sd = StableDiffusion.load("tiny-v2")
    sd.generate(["a red car on the beach"])[0].save("car.png")

Names are imported when they are first used (PEP 562), so that `python -m minibnn.train --help` needs no torch. What a
type checker sees of them is in `__init__.pyi`.
"""

__version__ = "0.2.0"

_HOME = {
    "StableDiffusion": "pipeline", "UNet": "networks.unet", "UNetConfig": "networks.unet",
    "VAE": "networks.vae", "VAEConfig": "networks.vae", "TextEncoder": "networks.text_encoder",
    "TextEncoderConfig": "networks.text_encoder", "Tokenizer": "networks.tokenizer", "UserError": "errors",
    "WeightsError": "files.weights", "bayesianize": "finetune.bayes", "kl": "finetune.bayes",
    "sigmas": "finetune.bayes", "clamp_sigma": "finetune.bayes", "posterior_mean": "finetune.bayes",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'minibnn' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
