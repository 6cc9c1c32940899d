"""How good are generated photographs? `python -m minibnn.photo_metrics --pictures DIR --training DIR --clip DIR …`

Follows: the paper's App. G, I and Fig. 13, and where these are silent (networks, sizes, pairs) the authors' own evaluation:
  Clip-T    cosine of the picture and its prompt, CLIP ViT-L/14
  Clip-I    mean cosine with the training pictures, CLIP ViT-L/14
  Dino      the same with the class token of DINO ViT-S/16
  Lpips     mean distance to the other pictures of its prompt, AlexNet, at 512 × 512
  Clip-IQA  "Good photo." against "Bad photo.", CLIP RN50

Needs transformers (`pip install -e .[metrics]`) for CLIP and DINO; no network is downloaded: each comes from a folder.

But: no picture is left out (the authors skip all-black ones and pairs of distance 0); prompts are cut to 77 tokens.

Shapes: n pictures, m training pictures, D embedding.
"""

import os

from ..options.commands import PhotoOptions
from ..options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(PhotoOptions, "minibnn.photo_metrics")
    answer_ctrl_c_while_importing()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no reports on the parts of a file that are not needed

import dataclasses
import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from ..data import list_pictures, open_picture
from ..devices import choose_device
from ..errors import UserError
from ..files.store import write_json
from ..pictures import to_tensor
from .loading import load_clip, load_clip_iqa, load_dino, load_lpips

LPIPS_SIDE = 512  # pixels, as the authors


# --- measures: pictures are PIL RGB, results one number a picture -----------------------------------------------------


@torch.no_grad()
def _embed(function, items, name, batch=8):
    """function(part of the list) -> (b, D), for all of it, as unit vectors (n, D) on the CPU."""
    starts = tqdm(range(0, len(items), batch), desc=name, disable=len(items) <= batch)
    return F.normalize(torch.cat([function(items[i : i + batch]).float().cpu() for i in starts]), dim=-1)


def clip_pictures(pictures, clip):
    """(n, D) unit vectors, CLIP's projected picture embeddings."""

    def embed(part):
        pixels = clip.processor(images=part, return_tensors="pt")["pixel_values"].to(clip.model.device)
        return clip.model.visual_projection(clip.model.vision_model(pixel_values=pixels).pooler_output)

    return _embed(embed, pictures, "CLIP")


def clip_prompts(prompts, clip):
    """(n, D) unit vectors, CLIP's projected text embeddings; each different prompt is computed once."""

    def embed(part):
        ids = clip.tokenizer(part).to(clip.model.device)
        return clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)

    different = sorted(set(prompts))
    return _embed(embed, different, "prompts")[[different.index(prompt) for prompt in prompts]]


def dino_pictures(pictures, dino):
    """(n, D) unit vectors, the class token after DINO's last layer norm."""

    def embed(part):
        pixels = dino.processor(images=part, return_tensors="pt")["pixel_values"].to(dino.model.device)
        return dino.model(pixel_values=pixels).last_hidden_state[:, 0]

    return _embed(embed, pictures, "DINO")


def clip_t(images, texts):
    """Clip-T: the cosine of each picture and its own prompt. images, texts (n, D) unit vectors -> (n,) in [-1, 1]."""
    return (images * texts).sum(-1)


def mean_similarity(images, training):
    """Clip-I and Dino: the mean cosine of each picture with all training pictures. (n, D), (m, D) unit -> (n,)."""
    return (images @ training.T).mean(1)


def prompt_groups(prompts):
    """The places of each prompt's pictures, a list of lists. Raises UserError for a prompt with only one."""
    groups = [[i for i, other in enumerate(prompts) if other == prompt] for prompt in dict.fromkeys(prompts)]
    for group in groups:
        if len(group) < 2:
            raise UserError(f"Lpips compares the pictures of one prompt, but {prompts[group[0]]!r} has one: leave out --lpips or draw more")
    return groups


@torch.no_grad()
def lpips_diversity(pictures, prompts, lpips):
    """Lpips: the mean distance of each picture to the others of its prompt, n numbers ≥ 0; larger is more diverse.

    Where all prompts have equally many pictures, the mean over pictures is the mean over pairs, as in App. G. Errors as
    `prompt_groups`.
    """
    result = torch.zeros(len(pictures))
    for group in tqdm(prompt_groups(prompts), desc="Lpips"):
        small = [pictures[i].resize((LPIPS_SIDE, LPIPS_SIDE), Image.Resampling.BILINEAR) for i in group]
        layers = [lpips(to_tensor([picture]).to(lpips.lin0.device)) for picture in small]
        for a, i in enumerate(group):
            for b, j in enumerate(group[:a]):
                distance = lpips.distance(layers[a], layers[b]).item() / (len(group) - 1)
                result[i] += distance
                result[j] += distance
    return result


@torch.no_grad()
def clip_iqa_quality(pictures, clip_iqa):
    """Clip-IQA: no-reference quality, n numbers in 0..1, at each picture's own size."""
    device = clip_iqa.anchors.device
    return torch.cat([clip_iqa(to_tensor([picture]).to(device)).cpu() for picture in tqdm(pictures, desc="Clip-IQA")])


# --- summary ----------------------------------------------------------------------------------------------------------


def cases(values):
    """Which pictures stand for the best, average and worst case (App. I): {"best": i, "average": i, "worst": i}.

    values: {"Clip-T": (n,), "Dino": (n,), "Clip-IQA": (n,)}. Kept are the pictures within the top 90 % (rounded up) of
    both Clip-T and Dino; of these, best has the highest Clip-IQA and average the one nearest to their mean. Worst is the
    lowest Clip-IQA of all pictures, unfiltered, as in Fig. 13.
    """
    quality = values["Clip-IQA"]
    n = len(quality)
    top = -(-9 * n // 10)
    kept = set.intersection(*(set(values[k].argsort(descending=True, stable=True)[:top].tolist()) for k in ("Clip-T", "Dino")))
    kept = torch.tensor(sorted(kept))
    nearest = (quality[kept] - quality[kept].mean()).abs().argmin()
    return {
        "best": kept[quality[kept].argmax()].item(), "average": kept[nearest].item(), "worst": quality.argmin().item(),
    }  # fmt: skip


def summary(values):
    """{measure: (n,)} -> {"mean": {measure: number}}, and "best", "average", "worst" if `cases` has all that it needs.

    Each case also names its "picture", counted from 0.
    """
    rows = {"mean": {name: numbers.mean().item() for name, numbers in values.items()}}
    if {"Clip-T", "Dino", "Clip-IQA"} <= values.keys():
        for case, i in cases(values).items():
            rows[case] = {"picture": i} | {name: numbers[i].item() for name, numbers in values.items()}
    return rows


# --- command ----------------------------------------------------------------------------------------------------------


def by_number(path):
    """Sorting key of names as people count: 2.png before 10.png."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", path.name)]


def read_prompts(path, files, pictures):
    """The prompt of each picture, from a text file or, if path is None, from what `minibnn.sample` wrote into the PNGs."""
    if path is not None:
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {path} cannot be read ({error})") from None
        if not lines or len(files) % len(lines):
            raise UserError(f"--prompts {path}: {len(lines)} prompts for {len(files)} pictures do not divide evenly")
        return [line for line in lines for _ in range(len(files) // len(lines))]
    prompts = []
    for file, picture in zip(files, pictures, strict=True):
        try:
            prompts.append(json.loads(picture.info["minibnn"])["prompt"])
        except (KeyError, TypeError, json.JSONDecodeError):
            raise UserError(f"{file} holds no prompt of minibnn.sample; give --prompts FILE") from None
    return prompts


def measure(options):
    """Measure, write JSON, print a table. Raises UserError."""
    if not (options.clip or options.dino or options.lpips or options.clip_iqa):
        raise UserError("no network is given: pass --clip, --dino, --lpips or --clip-iqa DIR; --help says which")
    if Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out: {options.out} exists; name another file or pass --overwrite")
    if (options.clip or options.dino) and not options.training:
        raise UserError("--training DIR is required with --clip and --dino")
    device = choose_device(options.device)
    files = sorted(list_pictures(options.pictures, "--pictures"), key=by_number)
    pictures = [open_picture(file) for file in files]
    training = [open_picture(file) for file in list_pictures(options.training, "--training")] if options.training else []
    prompts = read_prompts(options.prompts, files, pictures) if options.clip or options.lpips else None

    if options.lpips:
        prompt_groups(prompts)

    loaders = {"clip": load_clip, "dino": load_dino, "lpips": load_lpips, "clip_iqa": load_clip_iqa}
    given = {name: load(getattr(options, name), device) for name, load in loaders.items() if getattr(options, name)}
    values = {}
    if "clip" in given:
        images = clip_pictures(pictures, given["clip"])
        values["Clip-T"] = clip_t(images, clip_prompts(prompts, given["clip"]))
        values["Clip-I"] = mean_similarity(images, clip_pictures(training, given["clip"]))
    if "dino" in given:
        values["Dino"] = mean_similarity(dino_pictures(pictures, given["dino"]), dino_pictures(training, given["dino"]))
    if "lpips" in given:
        values["Lpips"] = lpips_diversity(pictures, prompts, given["lpips"])
    if "clip_iqa" in given:
        values["Clip-IQA"] = clip_iqa_quality(pictures, given["clip_iqa"])

    rows = summary(values)
    each = [
        {"file": file.name} | ({"prompt": prompts[i]} if prompts else {}) | {name: v[i].item() for name, v in values.items()}
        for i, file in enumerate(files)
    ]
    write_json(options.out, {"options": dataclasses.asdict(options), "summary": rows, "pictures": each})
    print(f"{'':8s}" + "".join(f"{name:>10s}" for name in values))
    for case, row in rows.items():
        numbers = "".join(f"{row[name]:10.4f}" for name in values)
        print(f"{case:8s}{numbers}" + (f"  {files[row['picture']].name}" if "picture" in row else ""))
    print(f"{options.out}: {len(files)} pictures")


if __name__ == "__main__":
    run(measure, OPTIONS)
