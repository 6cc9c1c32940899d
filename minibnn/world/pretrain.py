"""Make the bundled model from nothing: `python -m minibnn pretrain --work runs/pretrain --out minibnn/assets/tiny`.

It takes about two hours on two CPU cores. A run that was stopped goes on when the command is given again. The stages:
1. `vae`: pictures of the world <-> latents (Kingma & Welling 2014; trained without SD's adversarial loss).
2. `text`: a text encoder that learns to tell subject, colour and background from the caption. This stands for CLIP's
   pretraining. Afterwards the text encoder is frozen, as CLIP is in SD.
3. `unet`: ε-prediction on the latents with SD's β schedule, 10 % empty captions, EMA (Ho et al. 2020, Algorithm 1).

The UNet and the text encoder never see the combinations and the spotted animals of `scenes.is_held_out`. The VAE, as
that of SD, is trained on a wider world: it also sees random colours and spots.

But: CPU only, with one process and thread for each core; the processes average their gradients.
"""

import contextlib
import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import schedule
from ..errors import UserError
from ..files.configs import RECIPE, SD_SCHEDULER, official_configs
from ..files.locks import locked
from ..files.weights import open_weights, write_tensors
from ..networks.text_encoder import TextEncoder, TextEncoderConfig
from ..networks.tokenizer import END, START, Tokenizer
from ..networks.unet import UNet, UNetConfig
from ..networks.vae import VAE, VAEConfig, sample_latents
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from . import scenes as world
from .captions import RARE_WORDS, SPARE_WORDS, all_words, make_vocabulary, random_caption

VAE_CONFIG = VAEConfig(block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8)
TEXT_CONFIG = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
UNET_CONFIG = UNetConfig(
    block_out_channels=(64, 128, 192), layers_per_block=1, cross_attention_dim=128, attention_head_dim=4,
    norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
)
TINY_RECIPE = {
    "prompt": "a photo of a sks dog", "class_prompt": "a photo of a dog", "resolution": 64, "steps_per_picture": 150,
    "lr": 2e-4, "class_pictures_per_picture": 16, "sigma": 0.01, "sample_steps": 25, "guidance": 3.0,
    "dtype": "float32",
    "methods": {
        "lora": {"steps_per_picture": 100, "lr": 1e-3, "prior_weight": 0.0},
        "oft": {"steps_per_picture": 100, "lr": 1e-3, "prior_weight": 0.0},
    },
}
VAE_BATCH, TEXT_BATCH, UNET_BATCH = 16, 32, 64  # for each step, over all processes
KL_WEIGHT = 3e-5  # on the mean over latent values, beside a squared error that is a mean over pixels
SCALE_DRAWINGS = 512  # so many drawings decide the scale of the latents
SUBJECT_WEIGHT = 3.0  # a pixel of the subject counts four times as much as one of the background

# --- one optimiser for all stages -------------------------------------------------------------------------------------


def optimise(name, module, loss_of_step, steps, lr, options, rank):
    """Minimise with AdamW: warm-up, constant rate, linear decay over the last fifth. Returns the EMA of the weights.

    loss_of_step(step) returns a scalar. All its random numbers depend on `step` and `rank` alone, so that a run which
    is resumed goes on as if it had not stopped. Rank 0 writes WORK/`name`.safetensors every 250 steps.
    """
    parameters = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values(), lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = {key: value.detach().clone() for key, value in parameters.items()}
    path = Path(options.work) / f"{name}.safetensors"
    first = _restore(path, parameters, ema, optimiser) if path.exists() else 0
    bar = progress_bar(range(first, steps), initial=first, total=steps, desc=name, disable=rank > 0)
    smooth = None
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 200, (steps - step) / (0.2 * steps))
        loss = loss_of_step(step)
        loss.backward()
        if options.processes > 1:
            gradients = [p.grad for p in parameters.values()]
            flat = nn.utils.parameters_to_vector(gradients)
            dist.all_reduce(flat)
            nn.utils.vector_to_parameters(flat / options.processes, gradients)
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], 1 - decay)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == steps):
            _save(path, step + 1, parameters, ema, optimiser)
    return ema


def _save(path, step, parameters, ema, optimiser):
    tensors = {}
    for key, value in parameters.items():
        state = optimiser.state[value]
        tensors |= {f"weight/{key}": value, f"ema/{key}": ema[key]}
        tensors |= {f"{name}/{key}": state[name] for name in ("exp_avg", "exp_avg_sq")}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path, parameters, ema, optimiser):
    with open_weights(path) as file:
        step = int(file.metadata()["step"])
        for key, value in parameters.items():
            value.data.copy_(file.get_tensor(f"weight/{key}"))
            ema[key].copy_(file.get_tensor(f"ema/{key}"))
            moments = {name: file.get_tensor(f"{name}/{key}").clone() for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[value] = {"step": torch.tensor(float(step)), **moments}
    return step


def generator_of_rng(rng):
    """A generator of PyTorch whose seed comes from `rng`, a numpy Generator."""
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


@contextlib.contextmanager
def bfloat16():
    """Inside, a CPU computes in bfloat16, with plain attention: for few keys it trains faster than the fused one."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


# --- stage 1: the VAE -------------------------------------------------------------------------------------------------


def wide_picture(rng):
    """A drawing for the VAE, every second one in random colours and then often with spots, and its subject's mask."""
    scene, main, accent = world.random_scene(rng), None, None
    if rng.random() < 0.5:
        main, accent = (tuple(int(c) for c in rng.integers(10, 250, 3)) for _ in range(2))
        scene = dataclasses.replace(scene, spotted=scene.subject in world.ANIMALS and rng.random() < 0.5)
    picture = world.draw(scene, main, accent)
    return picture, world.subject_mask(scene, picture)


def train_vae(options, rank):
    """Stage 1: returns the VAE."""
    torch.manual_seed(0)
    vae = VAE(VAE_CONFIG)

    def loss_of_step(step):
        rng = np.random.default_rng([1, step, rank])
        generator = generator_of_rng(rng)
        pictures, masks = zip(*(wide_picture(rng) for _ in range(VAE_BATCH // options.processes)), strict=True)
        images = to_tensor(pictures)
        weight = 1 + SUBJECT_WEIGHT * torch.from_numpy(np.stack(masks))[:, None]
        weight = weight / weight.mean()
        with bfloat16():
            mean, logvar = (x.float() for x in vae.encode(images))
            decoded = vae.decode(sample_latents(mean, logvar, generator)).float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        error = (decoded - images) * weight
        return (error * (decoded - images)).mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl

    vae.load_state_dict(optimise("vae", vae, loss_of_step, options.vae_steps, 2e-3, options, rank))
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


@torch.no_grad()
def encode_world(vae, count, rank):
    """`count` scenes with the mean and the logvar of their latents, each (count, 4, 8, 8)."""
    rng = np.random.default_rng([3, rank])
    scenes = [world.random_scene(rng) for _ in range(count)]
    moments = []
    for i in progress_bar(range(0, count, 64), desc="latents", disable=rank > 0):
        images = to_tensor([world.draw(scene) for scene in scenes[i : i + 64]])
        moments.append(torch.cat(vae.encode(images), dim=1))
    return scenes, *torch.cat(moments).chunk(2, dim=1)


@torch.no_grad()
def latent_scale(vae):
    """1 / the standard deviation of the latents of the world's drawings; SD's is 0.18215."""
    rng = np.random.default_rng(5)
    mean, logvar = vae.encode(to_tensor([world.draw(world.random_scene(rng)) for _ in range(SCALE_DRAWINGS)]))
    return round(1 / math.sqrt(mean.var() + logvar.exp().mean()), 5)


def train_unet(vae, encoder, tokenizer, options, rank):
    """Stage 3: leaves the UNet in WORK."""
    scale = latent_scale(vae)
    data = cache(lambda: encode_world(vae, options.pictures // options.processes, rank))  # not if all steps are done
    context_of = cache(torch.no_grad()(lambda caption: encoder(tokenizer([caption]))[0]))
    torch.manual_seed(2)
    unet = UNet(UNET_CONFIG)
    nn.init.zeros_(unet.conv_out.weight)
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

    optimise("unet", unet, loss_of_step, options.unet_steps, 8e-4, options, rank)


# --- command ----------------------------------------------------------------------------------------------------------


def worker(rank, options):
    """What each process does: all stages, with its share of the pictures."""
    work = Path(options.work)
    torch.set_num_threads(1)
    if options.processes > 1:
        init = f"file://{work.resolve()}/rendezvous"
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=options.processes)
    tokenizer = Tokenizer(work / "tokenizer")
    vae, encoder = train_vae(options, rank), train_text(tokenizer, options, rank)
    train_unet(vae, encoder, tokenizer, options, rank)


def load_ema(network, path, prefix=""):
    """Fill the network with the averaged weights of a finished stage."""
    with open_weights(path) as file:
        network.load_state_dict({name: file.get_tensor(f"ema/{prefix}{name}") for name in network.state_dict()})
    return network.eval()


def assemble(work, out):
    """Write what the stages left in `work` as a diffusers folder in half precision, with the bundled model's recipe."""
    tokenizer = Tokenizer(work / "tokenizer")
    encoder = TextEncoder(TextEncoderConfig(vocab_size=len(tokenizer.vocab), **TEXT_CONFIG))
    load_ema(encoder, work / "text.safetensors", "0.")
    vae, unet = (load_ema(network, work / f"{name}.safetensors")
                 for name, network in (("vae", VAE(VAE_CONFIG)), ("unet", UNet(UNET_CONFIG))))
    vae.config = dataclasses.replace(vae.config, scaling_factor=latent_scale(vae))
    configs = official_configs(unet, vae, encoder)
    configs["unet"]["sample_size"], configs["vae"]["sample_size"] = 8, 64
    tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    configs["text_encoder"] |= {key: tokenizer.vocab[token] for key, token in tokens.items()}
    configs["scheduler"] = SD_SCHEDULER | {"_class_name": "DDIMScheduler"}
    StableDiffusion(unet, vae, encoder, tokenizer, configs, RECIPE | TINY_RECIPE).save(out, torch.float16)


def pretrain(options):
    """Train all stages in PretrainOptions.work and, if `out` is given, write the model there. Raises UserError."""
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
            assemble(work, options.out)
