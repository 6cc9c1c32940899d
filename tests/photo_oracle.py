"""The paper's five measures of a folder of pictures, one picture and one pair at a time."""

import itertools
import json

import numpy as np
from PIL import Image

from minibnn.photo import measures as photo


def measured_slowly(folder, training, networks, side=64):
    """(Clip-T, Clip-I, Dino, Lpips, Clip-IQA) of the pictures that `paper` kept in a folder: means of single values.

    training: PIL pictures as they are in the data set; side: of the square that the training sees of them. Every
    embedding is made alone; the prompts are those that the PNG files name.
    """
    files = sorted(folder.glob("??-?.png"))
    pictures = [Image.open(path).convert("RGB") for path in files]
    prompts = [json.loads(Image.open(path).info["minibnn"])["prompt"] for path in files]
    squares = [square(picture, side) for picture in training]
    similar = []
    for embed, name in ((photo.clip_pictures, "clip"), (photo.dino_pictures, "dino")):
        seen = [embed([picture], networks[name])[0] for picture in squares]
        drawn = [embed([picture], networks[name])[0] for picture in pictures]
        similar.append(np.mean([[float(a @ b) for b in seen] for a in drawn]))
        if name == "clip":
            words = [photo.clip_prompts([prompt], networks["clip"])[0] for prompt in prompts]
            text = np.mean([float(a @ b) for a, b in zip(drawn, words, strict=True)])
    of_prompt = []
    for prompt in dict.fromkeys(prompts):
        group = [picture for picture, other in zip(pictures, prompts, strict=True) if other == prompt]
        pairs = itertools.combinations(group, 2)
        distances = [photo.lpips_diversity(list(pair), ["x", "x"], networks["lpips"])[0].item() for pair in pairs]
        of_prompt.append(np.mean(distances))
    quality = [photo.clip_iqa_quality([picture], networks["clip_iqa"])[0].item() for picture in pictures]
    return [text, *similar, np.mean(of_prompt), np.mean(quality)]


def square(picture, side):
    """The central square of a picture, as large as the training sees it."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    box = (left, top, left + short, top + short)
    return picture.crop(box).resize((side, side), Image.Resampling.LANCZOS)
