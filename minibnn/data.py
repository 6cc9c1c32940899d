"""A folder of pictures -> tensors and texts, and the order in which a training takes them.

Follows: DreamBooth (Ruiz et al. 2023, §3.3) and diffusers' `train_dreambooth.py`: pictures are centre-cropped to a
square; the latents' mean and log-variance are computed once and sampled at each step.

But: no augmentation.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from . import distributed
from .errors import UserError

log = logging.getLogger("minibnn")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OTHER_PICTURES = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".gif", ".svg")
TEXTS = (".txt", ".caption")


def list_pictures(folder, option="--images", notice=True):
    """The pictures of a folder, sorted by name; other files are skipped, with a notice. Raises UserError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        wrong = "is a file; name the folder that holds the pictures" if folder.exists() else "no such folder"
        raise UserError(f"{option} {folder}: {wrong}")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.suffix.lower() in SUFFIXES]
    captions = {caption_file(p) for p in pictures}
    if notice:
        skipped = [p for p in files if p not in pictures and p not in captions]
        for line in about_skipped(skipped, pictures, captioned=option == "--images"):
            log.warning("%s: %s", folder, line)
    if not pictures:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UserError(f"{option} {folder}: no pictures in it ({kinds}); convert others, such as HEIC, to PNG")
    return pictures


def about_skipped(files, pictures, captioned=True):
    """A line about the texts and one about the other files that are skipped beside these pictures; [] for none.

    captioned: whether pictures in this folder may have captions, which the texts could be meant to be.
    """
    texts = [path.name for path in files if captioned and path.suffix.lower() in TEXTS]
    others = [path.name for path in files if path.name not in texts]
    unread = sorted({path.suffix for path in files if path.suffix.lower() in OTHER_PICTURES})
    lines = []
    if texts and pictures:
        named = f"caption of {pictures[0].name} would be {caption_file(pictures[0]).name}"
        lines.append(f"skipping {counted(texts)}, no picture's caption: {shown(texts)}. The {named}")
    if others:
        convert = f". Convert {', '.join(unread)} to PNG" if unread else ""
        lines.append(f"skipping {counted(others)} that cannot be read: {shown(others)}; {len(pictures)} left{convert}")
    return lines


def counted(names):
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"


def shown(names, most=4):
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def caption_file(picture):
    """The text file that holds a picture's own caption, if it exists: NAME.txt beside NAME.png."""
    return picture.with_suffix(".txt")


def captions(pictures, prompt, own=True):
    """The caption of each picture: the words of its own file, or else the prompt. Raises UserError for an empty one.

    own: whether pictures may have captions of their own.
    """
    if not own:
        return [prompt] * len(pictures)
    found = []
    for path in map(caption_file, pictures):
        try:
            text = " ".join(path.read_text(encoding="utf-8-sig").split()) if path.exists() else prompt
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a caption in UTF-8 ({error})") from None
        if not text:
            raise UserError(f"{path} is empty: write the picture's caption into it, or remove it")
        found.append(text)
    return found


def read_prompts(path, option):
    """The prompts of a text file, one in each line; empty lines and those that begin with # count for nothing.

    Raises UserError naming the option when the file cannot be read or holds none.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: {error}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{option} {path}: there is no prompt in it; write one in each line")
    return prompts


def open_picture(path, background="white"):
    """A picture of any mode -> PIL RGB, upright, of its own size; `background` is the colour of transparent parts.

    Raises UserError naming the file when it is broken or absurdly large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size it is an error
            image = Image.open(path)
            return _to_rgb(ImageOps.exif_transpose(image), background)
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels to be opened safely; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise whatever their code runs into in a damaged file
        raise UserError(f"{path}: broken, or not a picture ({error}); remove it or save it again") from None


def load_picture(path, size):
    """A picture of any mode -> (3, size, size) float32 in [-1, 1], cropped to the central square; as `open_picture`."""
    image = open_picture(path)
    if min(image.size) < size:
        log.warning("%s: %d x %d pixels are fewer than the resolution of %d; it is enlarged", path, *image.size, size)
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def _to_rgb(image, background="white"):
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float64) / 257  # 16 bits -> 8 bits; PIL's own convert clips instead
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "F":  # 0 … 1 or 0 … 255, as programs for measurements write it
        values = np.nan_to_num(np.asarray(image))
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def load_pictures(paths, size):
    """List of n files -> (n, 3, size, size); errors as `load_picture`."""
    return torch.stack([load_picture(path, size) for path in paths])


class Pictures:
    """Files as a sequence of pictures (3, size, size); each is read when it is asked for. Errors as `load_picture`."""

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return load_picture(self.paths[i], self.size)


@torch.no_grad()
def latent_moments(vae, images, fill=distributed.fill):
    """n pictures (3, H, W) -> mean and logvar of the unscaled latents, each (n, 4, H/f, W/f), float32.

    images: a tensor (n, 3, H, W), or a sequence of n pictures, of which few at a time are in memory. fill: with
    `distributed.fill` all processes must call this; they share the work, and all get all latents.
    """
    weight, (height, width) = vae.quant_conv.weight, images[0].shape[1:]
    at_once = min(16, max(1, 4 * 512 * 512 // (height * width)))
    size = len(weight), height // vae.factor, width // vae.factor
    moments = torch.empty(len(images), *size, dtype=torch.float32, device=weight.device)

    def encode(start, end):
        return torch.cat(vae.encode(torch.stack([images[i] for i in range(start, end)]).to(weight)), dim=1)

    fill(moments, at_once, encode)
    return moments.chunk(2, dim=1)


def generator_of(seed, number):
    """A random generator of its own for each number (a step, an epoch) of a training with this seed."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def epoch_order(n, position, seed):
    """Which of n pictures is used at place `position` (0, 1, …) of the training: every epoch a new permutation.

    A function of its arguments alone, so that a resumed run goes on where it stopped.
    """
    epoch, place = divmod(position, n)
    return int(torch.randperm(n, generator=generator_of(seed, epoch))[place])


def picked(n, i, size, seed):
    """Which of n pictures are in batch i: a list of `size` numbers, in the order of `epoch_order`."""
    return [epoch_order(n, i * size + k, seed) for k in range(size)]
