"""A user's program, for the type checker (`test_types.py`): what is right passes, what is wrong must be seen.

A line with `type: ignore` is wrong; were it not seen, the ignore would be unused, and that is an error.
"""

from pathlib import Path
from typing import assert_type

import torch
from PIL.Image import Image

from minibnn import (
    VAE,
    StableDiffusion,
    TextEncoder,
    Tokenizer,
    UNet,
    UNetConfig,
    UserError,
    VAEConfig,
    WeightsError,
    bayesianize,
    clamp_sigma,
    kl,
    posterior_mean,
    sigmas,
)


def right(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> None:
    sd = assert_type(StableDiffusion.load("tiny", dtype=torch.float16), StableDiffusion)
    pictures: list[Image] = sd.generate(["a dog"], steps=10, guidance=3, size=(64, 96), seed=1)
    pictures[0].save("dog.png")
    sd.generate("one prompt", sampler="pndm")
    eps = sd.predict_eps(x, t, sd.encode_prompts(["a dog"]))
    sd.decode_latents(sd.encode_pictures(sd.guided_eps(x, 3, context, context, 7.5)) + eps).mean()
    mean, logvar = sd.vae.encode(x)
    (sd.vae.decode(mean) + logvar + sd.unet.forward(x, t, context)).sum()
    assert_type(sd.v_prediction, bool)
    sd.to("cpu").save(Path("folder"))
    sd.save_single_file("model.safetensors", torch.float16)
    sd.merge_adapter("runs/rex").alphas_cumprod.sum()
    UNet(UNetConfig(cross_attention_dim=128))
    assert_type(UNet.from_file("unet.safetensors", {"cross_attention_dim": 128}), UNet)
    assert_type(VAE.from_file(Path("vae.safetensors")).config, VAEConfig)
    TextEncoder.from_file("text.safetensors").forward(assert_type(sd.tokenizer, Tokenizer)(["a dog"]))
    noise = bayesianize(sd.unet, "up,norm", sigma=0.01)
    noise.renew(torch.Generator())
    prior = {name: mu.detach() for name, (mu, sigma) in sigmas(sd.unet).items() if sigma.mean() > 0}
    kl(sd.unet, prior, 0.01, "p-q").backward()
    clamp_sigma(sd.unet)
    UNet(sd.unet.config).load_state_dict(assert_type(posterior_mean(sd.unet), dict[str, torch.Tensor]))
    error: UserError = WeightsError("a weights error is a user's error")
    raise error


def wrong(sd: StableDiffusion) -> None:
    StableDiffusion.load(3)  # type: ignore[arg-type]
    StableDiffusion.load("tiny", d_type=torch.float16)  # type: ignore[call-arg]
    sd.save(folder=3)  # type: ignore[arg-type]
    sd.unet.forward(1)  # type: ignore[call-arg]
    sd.generates(["a dog"])  # type: ignore[attr-defined]
    print(sd.recipe.lr)  # type: ignore[attr-defined]
    Tokenizer()  # type: ignore[call-arg]
    UNetConfig(heads=8)  # type: ignore[call-arg]
    bayesianize(sd.unet, sigma="small")  # type: ignore[arg-type]
    posterior_mean(sd.unet, 0.01)  # type: ignore[call-arg]
    sd.tokenizer.encode(["a dog"])  # type: ignore[arg-type]
    import minibnn

    print(minibnn.StableDifusion)  # type: ignore[attr-defined]
