"""Does a model of the picture world draw what the caption says? `python -m minibnn evaluate --out runs/evaluate`

A classifier, trained on fresh drawings, recognises subject, colour and background of the drawn pictures: the one that
comes with minibnn, or, with --train-classifier, a new one, as that one was made. Its own accuracy is measured too, on
new drawings and on drawings that went through the VAE, as well as the VAE's PSNR. The classifier was trained to
overlook blur; therefore the sharpness of the pictures is measured beside it (`edge_energy`). Everything is seeded. The
command takes a few minutes, and about 20 more with --train-classifier.

It writes evaluation.json and sheets of samples, and what it trains as classifier.safetensors, which is then read again.
"""

from pathlib import Path

import torch

from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.store import write_json
from ..options.kinds import WORLD
from ..pictures import grid, save_png, to_pil, to_tensor
from ..pipeline import StableDiffusion
from . import measures
from . import scenes as world
from .classifier import accuracy, random_scenes, reconstruct, train_classifier


def psnr(a, b):
    """The mean over pictures of 10 log10(peak²/MSE) in dB; the values are in [-1, 1], so that the peak is 2."""
    return (10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)))).mean().item()


def edge_energy(images):
    """How strong the edges are: the mean square of the differences between neighbours, in x and in y. A number ≥ 0."""
    return sum(images.diff(dim=dim).square().mean().item() for dim in (2, 3))


def open_model(model):
    """A model that draws pictures of the world's size, which these measures take. Raises UserError for another one."""
    sd = StableDiffusion.load(model)
    side = sd.recipe["resolution"]
    if side != world.SIZE:
        raise UserError(f"--model {model} draws {side} x {side} pixels, and what is measured are the drawings of "
                        f"{world.SIZE} x {world.SIZE} of {' and '.join(WORLD)}: name one of these or a run of theirs")
    return sd


@threads_kept()
def evaluate(options):
    """Measure the model of EvaluateOptions, print and write the figures. Raises UserError."""
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    sd = open_model(options.model)
    choose_threads("cpu", sd.unet)
    classifier = train_classifier(out / "classifier.safetensors") if options.train_classifier else measures.classifier()

    real = random_scenes(2000, 7)
    drawings = to_tensor([world.draw(s) for s in real])
    dogs = to_tensor([world.draw(s) for s in world.dog_scenes()])
    decoded = reconstruct(sd, drawings[:500])
    result = {
        "classifier on real drawings": accuracy(classifier, drawings, real),
        "classifier on real drawings through the VAE": accuracy(classifier, decoded, real[:500]),
        "VAE PSNR in dB": {
            "drawings": psnr(drawings[:500], decoded), "the tutorial's dog": psnr(dogs, reconstruct(sd, dogs)),
        },
        "edges through the VAE": {"drawings": edge_energy(decoded) / edge_energy(drawings[:500])},
    }
    for name, count in {"captions": options.captions, "held-out combinations": -(-options.captions // 2)}.items():
        scenes = random_scenes(count, 8, name != "captions")
        pictures = sd.generate([world.caption(s) for s in scenes], seed=0, batch_size=50)
        drawn, right = to_tensor(pictures), to_tensor([world.draw(s) for s in scenes])
        result[name] = accuracy(classifier, drawn, scenes) | {"edges": edge_energy(drawn) / edge_energy(right)}
        save_png(grid(pictures[:48], 12, zoom=2), out / f"{name.replace(' ', '-')}.png")
    pairs = torch.stack([drawings[:8], decoded[:8]], dim=1).flatten(0, 1)
    save_png(grid(to_pil(pairs), 16, zoom=2), out / "vae.png")

    write_json(out / "evaluation.json", result)
    print(f"{out}: figures and pictures")
    for what, values in result.items():
        print(f"{what:45s} " + "  ".join(f"{k} {v:.1%}" if v < 10 else f"{k} {v:.1f}" for k, v in values.items()))
