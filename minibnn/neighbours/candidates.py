"""The candidates of GRAFT: drawn a few at a time, rewarded, and kept on the disk, so that nothing is drawn twice.

At Stable Diffusion's size drawing takes hours and the pictures would fill the memory: what is kept of each is its
latent, its reward and the few numbers by which `--deduplicate` knows it again. Every file is written whole, and each
has noise of its own, so that a killed command goes on with the next one and ends with the same candidates.
"""

from pathlib import Path

import torch

from .. import data
from ..devices import autocast
from ..errors import UserError
from ..files.weights import read_tensors, write_tensors
from ..progress import progress_bar
from .graft import draw_batch, picture_key, pictures_of
from .rewards import rewards_of


def rewarded(sd, reward, prompts, options, number):
    """Draw one candidate for each prompt: {"x0" (n, 4, h, w), "reward" (n,), "key" (n, 48)}.

    options: GraftOptions. number: whose noise this is, of all that are drawn with the seed of the options. Raises
    UserError as `rewards_of`.
    """
    own = data.generator_of(options.seed, -1 - number)  # the steps of training have the numbers from 0 on
    with autocast(sd.device, getattr(torch, options.dtype)):
        x0, _ = draw_batch(sd, prompts, options, own)
        pictures = pictures_of(sd, x0)
    keys = torch.tensor([picture_key(picture) for picture in pictures], dtype=torch.uint8)
    return {"x0": x0, "reward": rewards_of(reward, pictures, prompts), "key": keys}


def draw_candidates(sd, reward, prompts, options, folder):
    """The candidates of all prompts, as of `rewarded`, `options.batch_size` in a file of the folder.

    Files that are there are read. Raises UserError, naming the file, when one does not fit.
    """
    parts, size = [], options.batch_size
    for i in progress_bar(range(0, len(prompts), size), desc="candidates"):
        path, some = Path(folder) / f"candidates-{i:06d}.safetensors", prompts[i : i + size]
        if not path.exists():
            write_tensors(path, rewarded(sd, reward, some, options, i))
        part = read_tensors(path)
        shapes = {name: (len(tensor), tensor.dim()) for name, tensor in part.items()}
        if shapes != {"x0": (len(some), 4), "reward": (len(some), 1), "key": (len(some), 2)}:
            raise UserError(f"{path} does not hold {len(some)} candidates: delete it, and it is drawn again")
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
