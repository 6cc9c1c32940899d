"""Make the bundled model from nothing: `python -m minibnn pretrain --work runs/pretrain --out minibnn/assets/tiny`.

`--model tiny-v2` makes the other one (`bundled.py`).

It takes about two hours on two CPU cores. A run that was stopped continues when the command is run again. The stages:
1. `vae`: pictures of the world <-> latents (Kingma & Welling 2014; trained without SD's adversarial loss). Then, for
   `tiny-v2`, `decoder`: the decoder alone.
2. `text`: a text encoder that learns to tell subject, colour and background from the caption. This stands for CLIP's
   pretraining. Afterwards the text encoder is frozen, as CLIP is in SD.
3. `unet`: ε-prediction on the latents with SD's β schedule, 10 % empty captions, EMA (Ho et al. 2020, Algorithm 1).

The UNet and the text encoder never see the combinations of `scenes.is_held_out`, and the UNet sees no animals with the
few-shot subjects' spots. The VAE, as that of SD, is trained on a wider world: it also sees random colours and spots. So
does the UNet of `tiny-v2`: a quarter of its pictures are animals with spots in two random colours, which must not both
be near those of the few-shot subjects.

But: CPU only, with one process and thread for each core; the processes average their gradients.
"""

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from .. import schedule
from ..errors import UserError
from ..files.configs import RECIPE
from ..files.locks import locked
from ..files.weights import open_weights
from ..networks.text_encoder import TextEncoder, TextEncoderConfig
from ..networks.tokenizer import END, Tokenizer
from ..networks.unet import UNet
from ..networks.vae import VAE, sample_latents
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from . import scenes as world
from .bundled import LATENT_SIDE, TEXT_CONFIG, WORLD_MODELS, configs_of
from .captions import RARE_WORDS, SPARE_WORDS, all_words, make_vocabulary, random_caption
from .optimise import all_matrices, bfloat16, generator_of_rng, inner_matrices, load_ema, optimise, residuals_from_zero

VAE_BATCH, TEXT_BATCH, UNET_BATCH = 16, 32, 64  # for each step, over all processes
KL_WEIGHT = 3e-5  # on the mean over latent values, beside a squared error that is a mean over pixels
NEAR = 100  # so near, in RGB values of 0 to 255, to both colours of the few-shot subjects no pretrained animal comes
SCALE_DRAWINGS = 512  # so many drawings decide the scale of the latents

# --- stage 1: the VAE -------------------------------------------------------------------------------------------------


def wide_picture(rng, spotted, animals):
    """A drawing for the VAE, every second one in random colours and then often with spots, and its subject's mask."""
    scene, main, accent = world.random_scene(rng), None, None
    if rng.random() < 0.5:
        main, accent = (tuple(int(c) for c in rng.integers(10, 250, 3)) for _ in range(2))
        if animals and rng.random() < animals:
            scene = dataclasses.replace(scene, subject=str(rng.choice(world.ANIMALS)))
        scene = dataclasses.replace(scene, spotted=scene.subject in world.ANIMALS and rng.random() < spotted)
    picture = world.draw(scene, main, accent)
    return picture, world.subject_mask(scene, picture)


def wide_batch(rng, bundled, count):
    """`count` pictures (count, 3, 64, 64) in [-1, 1], and how much each pixel counts, (count, 1, 64, 64), 1 on average.
    """
    pictures, masks = zip(
        *(wide_picture(rng, bundled.spotted, bundled.animals) for _ in range(count)), strict=True
    )
    weight = 1 + bundled.subject_weight * torch.from_numpy(np.stack(masks))[:, None]
    return to_tensor(pictures), weight / weight.mean()


def train_vae(options, bundled, rank):
    """Stage 1: returns the VAE."""
    torch.manual_seed(0)
    vae = VAE(bundled.vae)
    if bundled.residuals_from_zero:
        residuals_from_zero(vae)

    def loss_of_step(step):
        rng = np.random.default_rng([1, step, rank])
        generator = generator_of_rng(rng)
        images, weight = wide_batch(rng, bundled, VAE_BATCH // options.processes)
        with bfloat16():
            mean, logvar = (x.float() for x in vae.encode(images))
            decoded = vae.decode(sample_latents(mean, logvar, generator)).float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        error = (decoded - images) * weight
        return (error * (decoded - images)).mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl

    muon = all_matrices if bundled.muon else None
    ema = optimise("vae", vae, loss_of_step, options.vae_steps, bundled.vae_lr, options, rank, muon)
    vae.load_state_dict(ema)
    return vae.eval()


def decoding_parts(vae):
    """What turns latents into pictures."""
    return nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})


def train_decoder(vae, options, bundled, rank):
    """The rest of stage 1: the decoder alone learns on, for the squared error, while the latents stay as they are.

    Follows: Stability AI's `sd-vae-ft-mse`.
    """
    parts = decoding_parts(vae).train()

    def loss_of_step(step):
        rng = np.random.default_rng([6, step, rank])
        generator = generator_of_rng(rng)
        images, weight = wide_batch(rng, bundled, VAE_BATCH // options.processes)
        with bfloat16():
            with torch.no_grad():
                moments = [x.float() for x in vae.encode(images)]
            decoded = vae.decode(sample_latents(*moments, generator)).float()
        return ((decoded - images).square() * weight).mean()

    muon = all_matrices if bundled.muon else None
    ema = optimise("decoder", parts, loss_of_step, options.decoder_steps, bundled.vae_lr, options, rank, muon)
    parts.load_state_dict(ema)
    return vae.eval()


# --- stage 2: the text encoder ----------------------------------------------------------------------------------------


def train_text(tokenizer, options, rank):
    """Stage 2: returns the text encoder.

    From the state at each position from the end token on, linear heads must tell subject, colour and background, or
    that the caption does not name them.
    """
    torch.manual_seed(1)
    encoder = TextEncoder(TextEncoderConfig(vocab_size=len(tokenizer.vocab), **TEXT_CONFIG))
    for embedding in (encoder.text_model.embeddings.token_embedding, encoder.text_model.embeddings.position_embedding):
        nn.init.normal_(embedding.weight, std=0.2)
    choices = (list(world.SUBJECTS), list(world.COLOURS), list(world.BACKGROUNDS.values()))
    heads = nn.ModuleList(nn.Linear(TEXT_CONFIG["hidden_size"], len(c) + 1) for c in choices)

    def loss_of_step(step):
        rng = np.random.default_rng([2, step, rank])
        captions = [random_caption(world.random_scene(rng), rng) for _ in range(TEXT_BATCH // options.processes)]
        for i in np.flatnonzero(rng.random(len(captions)) < 0.5):  # other words must not change the answer
            words = captions[i].split(" ")
            words.insert(rng.integers(1, len(words)), str(rng.choice(RARE_WORDS + SPARE_WORDS)))
            captions[i] = " ".join(words)
        ids = tokenizer(captions)
        hidden, after, loss = encoder(ids), ids == tokenizer.vocab[END], 0
        for head, names in zip(heads, choices, strict=True):
            target = torch.tensor([next((i for i, n in enumerate(names) if n in c), len(names)) for c in captions])
            loss = loss + F.cross_entropy(head(hidden)[after], target[:, None].expand_as(ids)[after])
        return loss

    ema = optimise("text", nn.ModuleList([encoder, heads]), loss_of_step, options.text_steps, 1e-3, options, rank)
    encoder.load_state_dict({key.removeprefix("0."): value for key, value in ema.items() if key.startswith("0.")})
    return encoder.eval()


# --- stage 3: the UNet ------------------------------------------------------------------------------------------------


def unet_scene(rng, spotted):
    """A scene of the UNet's, and its colours if it is, with the chance `spotted`, an animal with spots, else None."""
    scene = world.random_scene(rng)
    if not spotted or rng.random() >= spotted:
        return scene, (None, None)
    while True:
        main, accent = (tuple(int(c) for c in rng.integers(10, 250, 3)) for _ in range(2))
        if max(math.dist(main, world.TEAL), math.dist(accent, world.MAGENTA)) > NEAR:
            break
    return dataclasses.replace(scene, subject=str(rng.choice(world.ANIMALS)), spotted=True), (main, accent)


@torch.no_grad()
def encode_world(vae, count, spotted, rank):
    """`count` scenes with the mean and the logvar of their latents, each (count, C, 8, 8)."""
    rng = np.random.default_rng([3, rank])
    scenes, colours = zip(*(unet_scene(rng, spotted) for _ in range(count)), strict=True)
    moments = []
    for i in progress_bar(range(0, count, 64), desc="latents", disable=rank > 0):
        images = to_tensor([world.draw(scenes[j], *colours[j]) for j in range(i, min(i + 64, count))])
        moments.append(torch.cat(vae.encode(images), dim=1))
    return scenes, *torch.cat(moments).chunk(2, dim=1)


@torch.no_grad()
def latent_scale(vae):
    """1 / the standard deviation of the latents of the world's drawings; SD's is 0.18215."""
    rng = np.random.default_rng(5)
    mean, logvar = vae.encode(to_tensor([world.draw(world.random_scene(rng)) for _ in range(SCALE_DRAWINGS)]))
    return round(1 / math.sqrt(mean.var() + logvar.exp().mean()), 5)


def train_unet(vae, encoder, tokenizer, options, bundled, rank):
    """Stage 3: leaves the UNet in WORK."""
    scale, pictures = latent_scale(vae), options.pictures // options.processes
    data = cache(lambda: encode_world(vae, pictures, bundled.unet_spotted, rank))  # not if all steps are done
    context_of = cache(torch.no_grad()(lambda caption: encoder(tokenizer([caption]))[0]))
    torch.manual_seed(2)
    unet = UNet(bundled.unet)
    nn.init.zeros_(unet.conv_out.weight)
    if bundled.residuals_from_zero:
        residuals_from_zero(unet)
    abar = schedule.alphas_cumprod()

    def loss_of_step(step):
        scenes, mean, logvar = data()
        rng = np.random.default_rng([4, step, rank])
        generator = generator_of_rng(rng)
        picked = rng.integers(len(scenes), size=UNET_BATCH // options.processes)
        captions = ["" if rng.random() < 0.1 else random_caption(scenes[i], rng) for i in picked]
        x0 = sample_latents(mean[picked], logvar[picked], generator) * scale
        t = torch.randint(0, 1000, (len(picked),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        x_t = schedule.q_sample(x0, eps, abar[t])
        with bfloat16():
            predicted = unet(x_t, t, torch.stack([context_of(c) for c in captions]))
        return F.mse_loss(predicted.float(), eps)

    muon = inner_matrices if bundled.muon else None
    optimise("unet", unet, loss_of_step, options.unet_steps, bundled.unet_lr, options, rank, muon)


# --- command ----------------------------------------------------------------------------------------------------------


def worker(rank, options):
    """What each process does: all stages, with its share of the pictures."""
    work = Path(options.work)
    torch.set_num_threads(1)
    if options.processes > 1:
        init = f"file://{work.resolve()}/rendezvous"
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=options.processes)
    tokenizer, bundled = Tokenizer(work / "tokenizer"), WORLD_MODELS[options.model]
    vae = train_vae(options, bundled, rank)
    if options.decoder_steps:
        train_decoder(vae, options, bundled, rank)
    encoder = train_text(tokenizer, options, rank)
    train_unet(vae, encoder, tokenizer, options, bundled, rank)


def assemble(work, out, bundled):
    """Write what the stages left in `work` as a diffusers folder in half precision, with the model's recipe."""
    tokenizer = Tokenizer(work / "tokenizer")
    encoder = TextEncoder(TextEncoderConfig(vocab_size=len(tokenizer.vocab), **TEXT_CONFIG))
    load_ema(encoder, work / "text.safetensors", "0.")
    vae, unet = (load_ema(network, work / f"{name}.safetensors")
                 for name, network in (("vae", VAE(bundled.vae)), ("unet", UNet(bundled.unet))))
    if (work / "decoder.safetensors").exists():
        load_ema(decoding_parts(vae), work / "decoder.safetensors")
    vae.config = dataclasses.replace(vae.config, scaling_factor=latent_scale(vae))
    configs = configs_of(unet, vae, encoder, tokenizer, LATENT_SIDE, world.SIZE)
    StableDiffusion(unet, vae, encoder, tokenizer, configs, RECIPE | bundled.recipe).save(out, torch.float16)


def pretrain(options):
    """Train all stages in PretrainOptions.work and, if `out` is given, write the model there. Raises UserError.

    Where a number of steps is not given, it is the model's own.
    """
    own = WORLD_MODELS[options.model].steps
    options = dataclasses.replace(options, **{name: own[name] for name in own if getattr(options, name) is None})
    least = min(VAE_BATCH, options.pictures)
    if options.processes > least:
        raise UserError(f"--processes {options.processes}: each needs a picture of the {least} at once")
    work = Path(options.work)
    with locked(work):
        for path in work.glob("*.safetensors"):
            open_weights(path)  # tells before the processes start if it is damaged
        make_vocabulary(all_words(), work / "tokenizer")
        (work / "rendezvous").unlink(missing_ok=True)
        try:  # the processes are daemons, so that they end with this one
            torch.multiprocessing.spawn(worker, (options,), nprocs=options.processes, daemon=True)
        except torch.multiprocessing.ProcessRaisedException as error:
            kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
            if kind.rpartition(".")[2] not in ("UserError", "WeightsError"):
                raise
            raise UserError(message) from None
        if options.out:
            assemble(work, options.out, WORLD_MODELS[options.model])
