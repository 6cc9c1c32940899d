"""Pictures as PIL images and as tensors, grids of them, and PNG files."""


import json
import math

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from .files.store import write_whole


def to_tensor(pictures):
    """List of RGB pictures -> (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(images):
    """(B, 3, H, W) in [-1, 1] -> list of RGB pictures, rounded as diffusers rounds."""
    array = ((images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(a) for a in array]


def columns_of(prompts, count):
    """How many pictures stand side by side, for a number of prompts and of pictures for each.

    Several pictures of several prompts: a row for each prompt. Otherwise four, or as many as make the grid a square.
    """
    if prompts > 1 and count > 1:
        return count
    pictures = prompts * count
    return min(pictures, max(4, math.ceil(math.sqrt(pictures))))


def grid(pictures, columns, zoom=1):
    """One picture of all, row by row, with a white gap; `zoom` enlarges small pictures by repeating pixels."""
    width, height = (zoom * side for side in pictures[0].size)
    gap = 2 * zoom
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        place = ((i % columns) * (width + gap), (i // columns) * (height + gap))
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet


def save_png(picture, path, settings=None, optimize=False):
    """Write a PNG whole. settings: kept in it as JSON, under the text key "minibnn"; optimize: smaller, but slower."""
    info = PngImagePlugin.PngInfo()
    if settings is not None:
        info.add_text("minibnn", json.dumps(settings, ensure_ascii=False))
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=info, optimize=optimize))
