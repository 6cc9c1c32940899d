"""Does the picture follow the hint? `python -m minibnn experiment bps`

Branches are trained on 12, 40 and 200 pairs (sketch, drawing, caption) of the world and then draw 24 unseen sketches
with their captions. A judge trained on the world says which pixels the drawn subject covers (intersection over union,
IoU, with the exact mask that the sketch was made from) and which subject, colour and background it is.

Compared under the same number of steps, pairs, batch and learning rate:
    base     the frozen model, which sees no hint
    bps      all 18 additions of the bundled model (38 in SD v1.5)
    skip     ControlNet's places: the encoder's features are added to the skips, the middle's to its output
    encoder  T2I-Adapter's places: additions in the encoder's units alone
The last two take the same branch; only the places where its features go differ. ControlNet proper also copies the UNet
and sees z_t, T2I-Adapter proper has a lighter encoder without time: neither is claimed to be reproduced.

Every run is kept in --work and not repeated; --runs N stops after N new ones and reports what there is. Leaves in --out
bps.json, or bps_anchors.json, to which the runs are added by their steps, variant, pairs and seed, and bps_STEPS.png.
"""

import contextlib
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..devices import choose_threads
from ..errors import UserError
from ..files.locks import locked
from ..files.schema import mapping, number, record
from ..files.store import read_json, write_json
from ..lab import sheets
from ..lab.intervals import require_scipy
from ..neighbours import bps, bps_branch
from ..options.experiments import BpsExperimentOptions
from ..pictures import grid, save_png, to_pil, to_tensor
from ..pipeline import StableDiffusion
from ..world import scenes as world
from ..world.classifier import random_scenes, reconstruct
from . import bps_anchors
from .bps_judge import drawn, judged, train_judge
from .records import check_alike

BATCH, LR, SAMPLE_STEPS, TESTS = 8, 3e-4, 8, 24
RUNS = [("base", 0), ("bps", 40), ("skip", 40), ("encoder", 40), ("bps", 12), ("bps", 200)]
JUDGED = ("IoU", "subject", "colour", "background")
RESULT = record(dict.fromkeys(JUDGED, number()), JUDGED)  # of a single run


@contextlib.contextmanager
def skip_only(unet, features):
    """Add features of the encoder's units to the UNet's skips, and that of the middle to the middle's output."""
    encoder = sum(len(block.resnets) + len(block.downsamplers) for block in unet.down_blocks) + 1
    skips, handles = list(features[:encoder]), []
    for block in unet.up_blocks:
        for resnet in block.resnets:
            feature = skips.pop()

            def add(module, args, feature=feature):
                own = args[0].shape[1] - feature.shape[1]
                return torch.cat([args[0][:, :own], args[0][:, own:] + feature], dim=1), *args[1:]

            handles.append(resnet.register_forward_pre_hook(add))
    handles.append(unet.mid_block.register_forward_hook(lambda module, args, out: out + features[encoder]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SkipBranch(bps_branch.Branch):
    """As `Branch`, but with features for conv_in and the downsamplers too, whose results are skips; no decoder."""

    def __init__(self, config):
        super().__init__(config)
        for i, unit in enumerate(self.encoder):
            if isinstance(unit, torch.nn.Conv2d):
                self.zeros[i] = bps_branch.zero_conv(unit.out_channels, unit.out_channels)

    def forward(self, hint, time):
        h, features = torch.nn.functional.pixel_unshuffle(hint, self.factor), []
        for unit, zero, gain in zip(self.encoder, self.zeros, self.gains, strict=False):
            h = unit(h, time) if isinstance(unit, bps_branch.TimedBlock) else unit(h)
            features.append(gain * zero(h))
        for block in self.middle:
            h = block(h, time)
        return [*features, self.gains[-1] * self.zeros[-1](h)]


def encoder_only(unet, features):
    """Additions in the encoder's units alone."""
    encoder = sum(len(block.resnets) + len(block.downsamplers) for block in unet.down_blocks) + 1
    return bps_branch.added(unet, features[:encoder] + [None] * (len(features) - encoder))


VARIANTS = {  # name: (branch, where its features go)
    "base": (bps_branch.Branch, bps_branch.added), "bps": (bps_branch.Branch, bps_branch.added),
    "skip": (SkipBranch, skip_only), "encoder": (bps_branch.Branch, encoder_only),
}


def world_pairs(count, seed):
    """Scenes, sketches (n, 1, 64, 64) in [0, 1], pictures (n, 3, 64, 64), exact masks (n, 64, 64)."""
    scenes = random_scenes(count, seed, held_out=False)
    images, masks = drawn(scenes)
    return scenes, torch.from_numpy(np.stack([world.outline(mask.numpy()) for mask in masks]))[:, None], images, masks


def trained(sd, variant, count, seed, steps):
    """A branch of this variant, trained on `count` pairs; new for 0."""
    kind, inject = VARIANTS[variant]
    torch.manual_seed(seed)
    branch = kind(sd.unet.config)
    if count:
        scenes, hints, images, _ = world_pairs(count, [11, seed])
        pairs = bps.Pairs(sd, hints, images, [world.caption(scene) for scene in scenes])
        bps.train_branch(sd, branch, pairs, steps, LR, BATCH, seed, inject=inject)
    return branch


def one(sd, judge, variant, count, seed, steps):
    """Train one branch and judge what it draws: {measure: value}, the pictures."""
    inject, started = VARIANTS[variant][1], time.process_time()
    branch = trained(sd, variant, count, seed, steps)
    seconds = time.process_time() - started
    scenes, hints, _, masks = world_pairs(TESTS, 12)
    captions = [world.caption(scene) for scene in scenes]
    pictures = bps.draw_steered(sd, branch.eval(), hints, captions, SAMPLE_STEPS, None, seed, TESTS, inject)
    return {**judged(judge, to_tensor(pictures), masks, scenes), "training seconds": round(seconds, 1)}, pictures


def run_file(options, variant, count, seed):
    """The file of a single run's figures; its first eight pictures are in a PNG beside it."""
    return Path(options.work) / f"steps-{options.steps}" / f"{variant}-{count}-{seed}.json"


def compare_anchors(sd, judge, options):
    """Do the runs of `bps_anchors.py` that are not there yet, and print and keep all that are."""
    if set(options.variants) != set(BpsExperimentOptions.variants):
        raise UserError("--variants does not go with --anchors, which compares two ways to guide one variant")
    path = Path(options.out) / "bps_anchors.json"
    fixed = {"steps": options.steps, "pairs": 40, "hints": TESTS, "sampling steps": SAMPLE_STEPS}
    found = kept(path, fixed, {"seeds": mapping(mapping(RESULT))}).get("seeds", {})
    tests, left = world_pairs(TESTS, 12), options.runs
    for seed in options.seeds:
        run = run_file(options, "anchors", 40, seed)
        if not run.exists():
            if not left:
                continue  # later ones may be there
            left -= 1
            branch = trained(sd, "bps", 40, seed, options.steps)
            write_json(run, bps_anchors.measure(sd, judge, branch, tests, seed, SAMPLE_STEPS))
        found[str(seed)] = read_json(run, mapping(RESULT))
    write_json(path, fixed | {"seeds": found})
    if found:
        print(bps_anchors.table(list(found.values()), JUDGED))


def kept(path, fixed, of_runs):
    """What a file of --out holds, {} without one. of_runs: what its runs must be, {name: kind}.

    Raises UserError if it was made with other settings than `fixed`, {name: value}.
    """
    if not path.exists():
        return {}
    found = read_json(path, record(of_runs))
    check_alike(found, fixed, path)
    return found


def experiment(options):
    """Do the runs of BpsExperimentOptions that are not there yet, and report all that are."""
    with locked(options.out, ".bps.lock"):
        experiment_there(options)


def experiment_there(options):
    """The same in a folder that belongs to this process."""
    sd = StableDiffusion.load("tiny")
    choose_threads("cpu", sd.unet)
    judge = train_judge(Path(options.work) / "judge.safetensors")
    if options.anchors:
        require_scipy()
        return compare_anchors(sd, judge, options)
    out, key = Path(options.out), f"{options.steps} steps"
    fixed = {"batch": BATCH, "lr": LR, "sampling steps": SAMPLE_STEPS, "hints": TESTS}
    before = kept(out / "bps.json", fixed, {key: mapping(mapping(RESULT))})
    results, left = before.get(key, {}), options.runs
    for variant, count in RUNS:
        for seed in options.seeds if variant in options.variants else ():
            path = run_file(options, variant, count, seed)
            if not path.exists():
                if not left:
                    continue  # later ones may be there
                left -= 1
                result, pictures = one(sd, judge, variant, count, seed, options.steps)
                save_png(grid(pictures[:8], 8), path.with_suffix(".png"))
                write_json(path, result)
                print(path.stem, result, flush=True)
            results.setdefault(f"{variant} {count}", {})[str(seed)] = read_json(path, RESULT)

    scenes, hints, images, masks = world_pairs(TESTS, 12)
    limit = {
        "real drawings": judged(judge, images, masks, scenes),
        "real drawings through the VAE": judged(judge, reconstruct(sd, images), masks, scenes),
    }
    write_json(out / "bps.json", fixed | {"judge": limit} | before | {key: results})
    picture, path = sheet(options, hints, images), out / f"bps_{options.steps}.png"
    if not path.exists() or picture.height >= Image.open(path).height:  # fewer runs replace no sheet of more
        save_png(picture, path, optimize=True)
    for name, values in limit.items():
        print(f"{name:32s}" + "".join(f"  {key} {values[key]:.3f}" for key in JUDGED))
    for name, runs in results.items():
        print(f"{name:32s}", end="")
        for key in JUDGED:
            values = np.array([run[key] for run in runs.values()])
            print(f"  {key} {values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}", end="")
        print()


def sheet(options, hints, images):
    """Eight columns: a hint, its drawing, and what each of the runs of the first seed drew for it, if it is there."""
    rows = {"sketch": grid(to_pil(2 * hints[:8].expand(-1, 3, -1, -1) - 1), 8), "drawing": grid(to_pil(images[:8]), 8)}
    for variant, count in sorted(RUNS):
        path = run_file(options, variant, count, options.seeds[0]).with_suffix(".png")
        if path.exists():
            rows[f"{variant}, {count} pairs" if count else "frozen"] = Image.open(path)
    return sheets.sheet([[row] for row in rows.values()], list(rows), [""]).quantize(256)  # a third of the bytes
