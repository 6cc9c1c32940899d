"""Does the bundled model draw what the caption says? `python -m minibnn.evaluate --out runs/evaluate`

An independent classifier, trained here on fresh drawings of the world, judges subject, colour and background of drawn
pictures; its own accuracy on unseen real drawings is printed first, and on real drawings that went through the VAE.
Beside it the VAE's PSNR. Everything is seeded; takes about five minutes on two cores.

Leaves classifier.safetensors (used again), evaluation.json and a sheet of samples.
"""

from ..options.commands import EvaluateOptions
from ..options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(EvaluateOptions, "minibnn.evaluate")
    answer_ctrl_c_while_importing()

from pathlib import Path

import torch

from ..errors import UserError
from ..files.store import write_json, write_whole
from ..pictures import grid, to_pil, to_tensor
from ..pipeline import StableDiffusion
from . import scenes as world
from .classifier import accuracy, random_scenes, reconstruct, train_classifier


def psnr(a, b):
    """Mean over pictures of 10 log10(peak²/MSE) in dB, with values in [-1, 1] and so a peak of 2."""
    return (10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)))).mean().item()


def evaluate(options):
    """Judge a model and write what was found (EvaluateOptions). Raises UserError."""
    if options.captions < 2:
        raise UserError(f"--captions {options.captions}: at least 2, for half as many held-out ones are drawn beside them")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    sd = StableDiffusion.load(options.model)
    classifier = train_classifier(out / "classifier.safetensors")
    result = {}

    real = random_scenes(2000, 7)
    drawings = to_tensor([world.draw(s) for s in real])
    result["classifier on real drawings"] = accuracy(classifier, drawings, real)
    decoded = reconstruct(sd, drawings[:500])
    result["classifier on real drawings through the VAE"] = accuracy(classifier, decoded, real[:500])
    dogs = to_tensor([world.draw(s) for s in world.dog_scenes()])
    result["VAE PSNR in dB"] = {"drawings": psnr(drawings[:500], decoded), "the tutorial's dog": psnr(dogs, reconstruct(sd, dogs))}

    for name, held_out, count in (("captions", False, options.captions), ("held-out combinations", True, options.captions // 2)):
        scenes = random_scenes(count, 8, held_out)
        pictures = sd.generate([world.caption(s) for s in scenes], seed=0, batch_size=50)
        result[name] = accuracy(classifier, to_tensor(pictures), scenes)
        sheet = grid(pictures[:48], 12, zoom=2)
        write_whole(out / f"{name.replace(' ', '-')}.png", lambda path, sheet=sheet: sheet.save(path, format="PNG"))
    pairs = [p for i in range(8) for p in (to_pil(drawings[i : i + 1])[0], to_pil(decoded[i : i + 1])[0])]
    sheet = grid(pairs, 16, zoom=2)
    write_whole(out / "vae.png", lambda path: sheet.save(path, format="PNG"))

    write_json(out / "evaluation.json", result)
    for what, values in result.items():
        print(f"{what:45s} " + "  ".join(f"{k} {v:.1%}" if v <= 1 else f"{k} {v:.1f}" for k, v in values.items()))


if __name__ == "__main__":
    run(evaluate, OPTIONS)
