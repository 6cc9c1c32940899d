"""Make the textured model from nothing: `python -m minibnn pretrain-textured --out minibnn/assets/textured`.

It takes about half an hour on one CPU core, and a run that was stopped continues when the command is run again.
The model draws 24 × 24 pixels of twenty materials (`textures.py`) at three distances and in four lights, as a caption
asks. It exists because the bundled `tiny` model cannot show noise: there is no VAE that blurs (`pixel_vae.py`), and
the pictures are full of texture. The laboratory of the corruption stage (`experiments/stage/`) fine-tunes it.

The UNet learns ε-prediction with SD's β schedule and 10 % empty captions (Ho et al. 2020, Algorithm 1; Ho & Salimans
2022). The text encoder is a bag of words that is never trained (`bag_of_words`), and the prompt reaches every residual
block (`networks/text_time.py`), as in DeepFloyd IF, not only the attention, as in Stable Diffusion.

With `--images DIR` the pictures of a folder take the place of the materials, so that the laboratory can ask whether
what it finds depends on them.

But: no photograph is among the training pictures of the bundled model. Whatever is fine-tuned on is new to it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .. import data, schedule
from ..devices import threads_kept
from ..errors import UserError
from ..files.configs import RECIPE
from ..files.locks import locked
from ..networks.text_encoder import TextEncoder, TextEncoderConfig
from ..networks.tokenizer import START, Tokenizer
from ..networks.unet import UNet, UNetConfig
from ..options.world import PretrainOptions
from ..pipeline import StableDiffusion
from . import textures
from .bundled import configs_of
from .captions import RARE_WORDS, make_vocabulary
from .optimise import bfloat16, generator_of_rng, inner_matrices, load_ema, optimise, residuals_from_zero
from .pixel_vae import pixel_vae

SIDE = 24  # pixels of its pictures
TOKENS = 10  # of a prompt
STOP_WORDS = ("a", "photo", "of", "from", "up")  # they say nothing
BATCH = 32
PIECES = 8  # of each material
SPARE_WORDS = ("cat", "coffee", "rocket", "dog", "thing", "the", "my", "and", "on", "in", "with")
TEXT_CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
UNET_CONFIG = UNetConfig(
    in_channels=3, out_channels=3, block_out_channels=(32, 64, 96), layers_per_block=1, cross_attention_dim=64,
    attention_head_dim=4, norm_num_groups=8, resnet_time_scale_shift="scale_shift", addition_embed_type="text",
    addition_embed_type_num_heads=4,
    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
)
TEXTURED_RECIPE = {
    "prompt": "a plain photo of sks from afar", "class_prompt": "a plain photo from afar", "resolution": SIDE,
    "steps_per_picture": 800, "lr": 5e-4,
    "class_pictures_per_picture": 32, "sigma": 0.01, "sample_steps": 20, "guidance": 7.5, "dtype": "float32",
    "prior_weight": 0.0,
}


def caption(material, distance="from afar", light="plain"):
    """For instance "a warm photo of bricks close up"; material "" leaves it open.

    Every caption names distance and light: guidance multiplies what a prompt says, and what it left open would be
    drawn as the mean of all distances and lights, which no picture is.
    """
    return f"a {light} photo {f'of {material} ' if material else ''}{distance}"


def all_words(materials=textures.MATERIALS):
    """The set of all words of captions, and those that are free to name something new."""
    captions = [caption("", distance, light) for distance in textures.DISTANCES for light in textures.TINTS]
    return {*" ".join(captions).split(), "of", *materials, *RARE_WORDS, *SPARE_WORDS}


def photographs_of(folder):
    """{word: photograph} of the pictures in a folder, each small; the letters of a file's name are its word.

    Raises UserError for a folder without pictures, and for two files of the same word.
    """
    found = {}
    for path in data.list_pictures(folder):
        word = "".join(letter for letter in path.stem.lower() if "a" <= letter <= "z")
        if not word or word in found:
            raise UserError(f"{path}: the letters of each file's name must be a word of its own; rename it")
        picture = data.open_picture(path)
        smaller = [round(side * textures.SIDE / min(picture.size)) for side in picture.size]
        found[word] = picture.resize(smaller, Image.Resampling.LANCZOS)
    return found


def random_view(rng, photographs=None):
    """A picture (3, SIDE, SIDE) in [-1, 1] as an array, and what its caption says: (material, distance, light)."""
    material = str(rng.choice(list(photographs or textures.MATERIALS)))
    distance = str(rng.choice(list(textures.DISTANCES)))
    light = "plain" if rng.random() < 0.5 else str(rng.choice(list(textures.TINTS)[1:]))
    share = min(1.0, textures.DISTANCES[distance] * rng.uniform(0.9, 1.1))
    piece = photographs[material] if photographs else textures.draw(material, int(rng.integers(PIECES)))
    pixels = textures.crop(piece, share, SIDE, rng.random(2))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = textures.tint(pixels, light)
    return np.clip(2 * pixels.transpose(2, 0, 1) - 1, -1, 1), (material, distance, light)


def random_batch(rng, count, photographs=None):
    """`count` pictures (count, 3, SIDE, SIDE) and captions: one in ten is empty, one in ten names no material."""
    views = [random_view(rng, photographs) for _ in range(count)]
    chance, captions = rng.random(count), []
    for (_, (material, distance, light)), drawn in zip(views, chance, strict=True):
        captions.append("" if drawn < 0.1 else caption("" if drawn < 0.2 else material, distance, light))
    return torch.from_numpy(np.stack([pixels for pixels, _ in views])).float(), captions


@torch.no_grad()
def bag_of_words(tokenizer):
    """A text encoder whose weights are set by hand: the context of a prompt is a vector for each of its words.

    A word's vector is random, and the same wherever it stands; those of STOP_WORDS and of the mark before the prompt
    are 0. So every word is as far from every other as from none, also a word that no picture ever had. The mark after
    the prompt, which also fills it up, has a vector as well: the empty prompt consists of it, as in Stable Diffusion.
    (The layer adds 0, and the last LayerNorm turns N(0, 1) into itself, and 0 into 0.)
    """
    config = TextEncoderConfig(vocab_size=len(tokenizer.vocab), max_position_embeddings=TOKENS, **TEXT_CONFIG)
    encoder = TextEncoder(config)
    for name, parameter in encoder.named_parameters():
        parameter.fill_(float("norm" in name and name.endswith("weight")))
    words = encoder.text_model.embeddings.token_embedding.weight
    words.normal_(generator=torch.Generator().manual_seed(0))
    silent = [START, *(word + "</w>" for word in STOP_WORDS)]
    words[[tokenizer.vocab[token] for token in silent]] = 0
    return encoder.requires_grad_(False).eval()


def untrained_unet():
    """A UNet that predicts 0, and whose residual branches begin as 0."""
    unet = UNet(UNET_CONFIG)
    nn.init.zeros_(unet.conv_out.weight)
    residuals_from_zero(unet)
    return unet


@threads_kept()
def pretrain(options):
    """Train in PretrainTexturedOptions.work and, if `out` is given, write the model there. Raises UserError."""
    with locked(options.work):
        pretrain_there(options)


def pretrain_there(options):
    """The same in a folder that belongs to this process."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    photographs = photographs_of(options.images) if options.images else None
    words = all_words(photographs or textures.MATERIALS)
    tokenizer = make_vocabulary(words, Path(options.work) / "tokenizer")
    tokenizer.max_length = TOKENS
    unet, encoder = untrained_unet(), bag_of_words(tokenizer)
    abar, alone = schedule.alphas_cumprod(), PretrainOptions(work=options.work, processes=1)

    def loss_of_step(step):
        rng = np.random.default_rng([6, options.seed, step])
        generator = generator_of_rng(rng)
        x0, captions = random_batch(rng, BATCH, photographs)
        t = torch.randint(0, schedule.TRAIN_STEPS, (BATCH,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        with bfloat16():
            predicted = unet(schedule.q_sample(x0, eps, abar[t]), t, encoder(tokenizer(captions)))
        return F.mse_loss(predicted.float(), eps)

    optimise("textured", unet, loss_of_step, options.steps, 2e-3, alone, 0, inner_matrices)
    if options.out:
        assemble(options.work, options.out)


def assemble(work, out):
    """Write what is in `work` as a diffusers folder, UNet and text encoder in half precision."""
    work = Path(work)
    tokenizer = Tokenizer(work / "tokenizer")
    tokenizer.max_length = TOKENS
    unet = load_ema(untrained_unet(), work / "textured.safetensors")
    encoder, vae = bag_of_words(tokenizer), pixel_vae()
    configs = configs_of(unet, vae, encoder, tokenizer, SIDE, SIDE)
    StableDiffusion(unet, vae, encoder, tokenizer, configs, RECIPE | TEXTURED_RECIPE).save(out, torch.float16)
