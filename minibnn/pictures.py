"""Pictures as PIL images and as tensors; grids and labelled sheets of them; PNG files.

Labels are plain ASCII, because Pillow's own font has no other letters.
"""

import json
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .files.store import write_whole

INK = "#222222"


def to_tensor(pictures):
    """List of RGB pictures -> (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(images):
    """(B, 3, H, W) in [-1, 1] -> list of RGB pictures, rounded as diffusers rounds."""
    array = ((images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(a) for a in array]


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


def sheet(rows, row_labels, column_labels, zoom=1):
    """Pictures in a labelled table; labels may hold line breaks.

    rows: lists of equally large PIL images, with None for an empty place.
    """
    font, gap = ImageFont.load_default(12), 6
    width, height = (zoom * side for side in next(p for row in rows for p in row if p).size)
    width_of_cell = max([width, *(_size(label, font)[0] for label in column_labels)]) + gap
    left = max(_size(label, font)[0] for label in row_labels) + 2 * gap
    top = max(_size(label, font)[1] for label in column_labels) + 2 * gap
    image = Image.new("RGB", (left + len(column_labels) * width_of_cell, top + len(rows) * (height + gap)), "white")
    pen = ImageDraw.Draw(image)
    for j, label in enumerate(column_labels):
        pen.multiline_text((left + j * width_of_cell, gap), label, INK, font)
    for i, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + i * (height + gap)
        pen.multiline_text((gap, y + (height - _size(label, font)[1]) / 2), label, INK, font)
        for j, picture in enumerate(row):
            if picture:
                image.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left + j * width_of_cell, y))
    return image


def _size(text, font):
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(box[2]), math.ceil(box[3])


def beside(images):
    """PIL images next to one another, on white."""
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    x = 0
    for image in images:
        whole.paste(image, (x, 0))
        x += image.width
    return whole
