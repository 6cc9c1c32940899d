"""How good are generated photographs? `python -m minibnn photo-measures --pictures DIR --training DIR --clip DIR …`

Follows: the paper's App. G, I and Fig. 13, and the authors' own evaluation for what these do not say (networks, sizes,
pairs):
  Clip-T    cosine of the picture and its prompt, CLIP ViT-L/14
  Clip-I    mean cosine with the training pictures, CLIP ViT-L/14
  Dino      the same with the class token of DINO ViT-S/16
  Lpips     mean distance to the other pictures of its prompt, AlexNet, at 512 × 512
  Clip-IQA  "Good photo." against "Bad photo.", CLIP RN50

CLIP and DINO need transformers (`pip install -e .[metrics]`). Each network comes from a folder; none is downloaded.

But: no picture is left out (the authors skip all-black ones and pairs of distance 0); prompts are cut to 77 tokens.

Shapes: n pictures, m training pictures, D features. Pictures are PIL images in RGB.
"""

import dataclasses
import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from ..data import list_pictures, open_picture, read_prompts
from ..devices import choose_device
from ..errors import UserError
from ..files.store import write_json
from ..pictures import to_tensor
from ..progress import progress_bar
from .loading import load_clip, load_clip_iqa, load_dino, load_lpips

LPIPS_SIDE = 512  # pixels, as the authors
LOADERS = {"clip": load_clip, "dino": load_dino, "lpips": load_lpips, "clip_iqa": load_clip_iqa}


@torch.no_grad()
def _embed(function, items, name, batch=8):
    """Apply function(list of b items) -> (b, D) to all items: unit vectors (n, D) on the CPU."""
    starts = progress_bar(range(0, len(items), batch), desc=name, disable=len(items) <= batch)
    return F.normalize(torch.cat([function(items[i : i + batch]).float().cpu() for i in starts]), dim=-1)


def _pixels(network, pictures):
    return network.processor(images=pictures, return_tensors="pt")["pixel_values"].to(network.model.device)


def clip_pictures(pictures, clip):
    """CLIP's projected features of the pictures, as unit vectors (n, D)."""

    def embed(part):
        return clip.model.visual_projection(clip.model.vision_model(pixel_values=_pixels(clip, part)).pooler_output)

    return _embed(embed, pictures, "CLIP")


def clip_prompts(prompts, clip):
    """CLIP's projected features of the prompts, as unit vectors (n, D)."""

    def embed(part):
        ids = clip.tokenizer(part).to(clip.model.device)
        return clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)

    different = sorted(set(prompts))
    return _embed(embed, different, "prompts")[[different.index(prompt) for prompt in prompts]]


def dino_pictures(pictures, dino):
    """The class token after DINO's last layer norm, as unit vectors (n, D)."""
    return _embed(lambda part: dino.model(pixel_values=_pixels(dino, part)).last_hidden_state[:, 0], pictures, "DINO")


def clip_t(images, texts):
    """Clip-T, the cosine of each picture and its own prompt. images, texts: unit vectors (n, D) -> (n,) in [-1, 1]."""
    return (images * texts).sum(-1)


def mean_similarity(images, training):
    """Clip-I and Dino, the mean cosine with all training pictures: unit vectors (n, D), (m, D) -> (n,) in [-1, 1]."""
    return (images @ training.T).mean(1)


def prompt_groups(prompts):
    """For each prompt the list of its pictures' indices. Raises UserError for a prompt with only one picture."""
    groups = {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in prompts}
    for prompt, group in groups.items():
        if len(group) < 2:
            wish = "leave out --lpips or draw more"
            raise UserError(f"Lpips compares the pictures of one prompt, but {prompt!r} has one: {wish}")
    return list(groups.values())


@torch.no_grad()
def lpips_diversity(pictures, prompts, lpips):
    """Lpips, the mean distance of each picture to the others of its prompt: (n,), ≥ 0. Errors as `prompt_groups`.

    If all prompts have equally many pictures, the mean over the pictures is the mean over the pairs, as in App. G.
    """
    result = torch.zeros(len(pictures))
    for group in progress_bar(prompt_groups(prompts), desc="Lpips"):
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
    """Clip-IQA, the quality of each picture by itself, at its own size: (n,) in 0..1."""
    device = clip_iqa.anchors.device
    one_by_one = (to_tensor([picture]).to(device) for picture in progress_bar(pictures, desc="Clip-IQA"))
    return torch.cat([clip_iqa(image).cpu() for image in one_by_one])


def load_networks(folders, device):
    """{name: folder, or None} -> {name: network} of those that are given, the names as in LOADERS. Raises UserError."""
    return {name: load(folders[name], device) for name, load in LOADERS.items() if folders.get(name)}


def measure_pictures(pictures, prompts, seen, networks):
    """n pictures and their n prompts -> {measure: (n,)} for the networks of `load_networks`.

    seen: what `remember` made of the m training pictures; without any, Clip-I is left out.
    """
    values = {}
    if "clip" in networks:
        images = clip_pictures(pictures, networks["clip"])
        values["Clip-T"] = clip_t(images, clip_prompts(prompts, networks["clip"]))
        if seen:
            values["Clip-I"] = mean_similarity(images, seen["clip"])
    if "dino" in networks:
        values["Dino"] = mean_similarity(dino_pictures(pictures, networks["dino"]), seen["dino"])
    if "lpips" in networks:
        values["Lpips"] = lpips_diversity(pictures, prompts, networks["lpips"])
    if "clip_iqa" in networks:
        values["Clip-IQA"] = clip_iqa_quality(pictures, networks["clip_iqa"])
    return values


def remember(training, networks):
    """What Clip-I and Dino need of m training pictures: {"clip": (m, D), "dino": (m, D)}; {} if there are none."""
    if not training:
        return {}
    features = {"clip": clip_pictures, "dino": dino_pictures}
    return {name: embed(training, networks[name]) for name, embed in features.items() if name in networks}


def cases(values):
    """Which pictures are the best, average and worst case (App. I): {"best": i, "average": i, "worst": i}.

    values: {"Clip-T": (n,), "Dino": (n,), "Clip-IQA": (n,)}. The worst picture has the lowest Clip-IQA of all, as in
    Fig. 13. The others are chosen among those in the top 90 % (rounded up) of Clip-T and in that of Dino: the best has
    the highest Clip-IQA, the average one the Clip-IQA nearest to the mean.
    """
    quality = values["Clip-IQA"]
    ranks = [values[name].argsort(descending=True, stable=True).argsort() for name in ("Clip-T", "Dino")]
    (kept,) = torch.where(torch.maximum(*ranks) < -(-9 * len(quality) // 10))
    best, nearest = quality[kept].argmax(), (quality[kept] - quality[kept].mean()).abs().argmin()
    return {"best": kept[best].item(), "average": kept[nearest].item(), "worst": quality.argmin().item()}


def summary(values):
    """{measure: (n,)} -> {"mean": {measure: number}}; if `cases` has what it needs, also its three cases.

    The case of one picture holds, beside its measures, the picture's index as "picture".
    """
    rows = {"mean": {name: numbers.mean().item() for name, numbers in values.items()}}
    if {"Clip-T", "Dino", "Clip-IQA"} <= values.keys():
        for case, i in cases(values).items():
            rows[case] = {"picture": i} | {name: numbers[i].item() for name, numbers in values.items()}
    return rows


# --- command ----------------------------------------------------------------------------------------------------------


def by_number(path):
    """A key that sorts names by the numbers in them: 2.png before 10.png."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", path.name))]


def prompts_of(path, files, pictures):
    """The prompt of each picture: from a text file, or from what the command `sample` wrote into the PNG files."""
    if path is not None:
        lines = read_prompts(path, "--prompts")
        if len(files) % len(lines):
            raise UserError(f"--prompts {path}: {len(lines)} prompts for {len(files)} pictures do not divide evenly")
        return [line for line in lines for _ in range(len(files) // len(lines))]
    prompts = []
    for file, picture in zip(files, pictures, strict=True):
        try:
            prompts.append(json.loads(picture.info["minibnn"])["prompt"])
        except (KeyError, TypeError, json.JSONDecodeError):
            raise UserError(f"{file} holds no prompt of `minibnn sample`; give --prompts FILE") from None
    return prompts


def measure_photos(options):
    """Measure the pictures of PhotoOptions, write JSON and print a table. Raises UserError."""
    if not (options.clip or options.dino or options.lpips or options.clip_iqa):
        raise UserError("no network is given: pass --clip, --dino, --lpips or --clip-iqa DIR; --help says which")
    if Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out: {options.out} exists; name another file or pass --overwrite")
    if options.dino and not options.training:
        raise UserError("--training DIR is required with --dino, which compares with the training pictures")
    device = choose_device(options.device)
    files = sorted(list_pictures(options.pictures, "--pictures"), key=by_number)
    pictures = [open_picture(file) for file in files]
    examples = list_pictures(options.training, "--training") if options.training else []
    training = [open_picture(file) for file in examples]
    prompts = prompts_of(options.prompts, files, pictures) if options.clip or options.lpips else None
    if options.lpips:
        prompt_groups(prompts)  # before the networks are read

    networks = load_networks({name: getattr(options, name) for name in LOADERS}, device)
    values = measure_pictures(pictures, prompts, remember(training, networks), networks)
    rows = summary(values)
    columns = {"file": [file.name for file in files]} | ({"prompt": prompts} if prompts else {})
    columns |= {name: numbers.tolist() for name, numbers in values.items()}
    each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_json(options.out, {"options": dataclasses.asdict(options), "summary": rows, "pictures": each})
    print(f"{'':8s}" + "".join(f"{name:>10s}" for name in values))
    for case, row in rows.items():
        numbers = "".join(f"{row[name]:10.4f}" for name in values)
        print(f"{case:8s}{numbers}" + (f"  {files[row['picture']].name}" if "picture" in row else ""))
    print(f"{options.out}: {len(files)} pictures")
