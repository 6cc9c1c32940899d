"""The class pictures of prior preservation: the user's own, and those that the model draws.

Follows: DreamBooth (Ruiz et al. 2023, §3.3). A record beside the drawn ones says what they were drawn for, so that
trainings can share a folder, and none takes pictures of another class or model.
"""

import re
from pathlib import Path

import torch

from . import distributed
from .data import SUFFIXES, list_pictures
from .errors import UserError
from .files.store import read_json, write_json
from .options.kinds import full_name
from .pictures import save_png
from .progress import progress_bar

RECORD = ".class.json"
DRAWN = re.compile(r"drawn-\d{5,}\.png")


def places(folder, prompts):
    """{prompt: folder of its class pictures}: `folder` for a single one, else one in it for each, by the words.

    No two names differ in upper and lower case alone, which some file systems take for one, and none is too long.
    """
    prompts = list(dict.fromkeys(prompts))
    if len(prompts) == 1:
        return {prompts[0]: Path(folder)}
    found = {}
    for prompt in prompts:
        name = re.sub(r"\W+", "-", prompt).encode()[:250].decode(errors="ignore")  # file systems take 255 bytes
        while name.casefold() in (place.name.casefold() for place in found.values()):
            name += "-"
        found[prompt] = Path(folder) / name
    return found


def own(folder):
    """Pictures that the user put into a folder of class pictures; none if it is empty or absent."""
    folder = Path(folder)
    if not folder.is_dir() or not any(p.suffix.lower() in SUFFIXES for p in folder.iterdir()):
        return []
    return [p for p in list_pictures(folder, "--class-images") if not DRAWN.fullmatch(p.name)]


def record(prompt, model, resolution, guidance, digests=None):
    """What drawn class pictures depend on, to be kept beside them.

    model: its name or place. digests: `runs.digests_of` it, by which it is known wherever it lies; or None.
    """
    about = {"prompt": prompt, "model": full_name(model), "resolution": resolution, "guidance": guidance}
    return about | ({"digests": digests} if digests else {})


def difference(folder, made_for):
    """For what else than the `record` made_for the class pictures in a folder were drawn, in words; None: for it."""
    path = Path(folder) / RECORD
    before = {"guidance": made_for.get("guidance")}  # which version 0.2 does not say
    before |= read_json(path) if path.exists() else made_for
    was, now = before.pop("digests", None), made_for.get("digests")
    if was and now and was != now:
        return f"by another model than this one, {before.get('model')}"
    ignored = {"digests", "model"} if was and now else {"digests"}
    differing = [key for key in made_for if key not in ignored and before.get(key) != made_for[key]]
    return f"for {differing[0]} {before.get(differing[0])!r}, not {made_for[differing[0]]!r}" if differing else None


def check(folder, made_for, remedy="name another folder"):
    """Refuse class pictures drawn for something else than the `record` made_for. Raises UserError naming it."""
    if differs := difference(folder, made_for):
        raise UserError(f"--class-images {folder} was drawn {differs}; {remedy}")


def delete_drawn(folder):
    """Delete what was drawn into a folder of class pictures, and its record; the user's own pictures stay."""
    for path in Path(folder).glob("drawn-*.png"):
        if DRAWN.fullmatch(path.name):
            path.unlink()
    (Path(folder) / RECORD).unlink()  # last: without it a rest of them would pass for pictures of any class


def complete(sd, folder, count, made_for, group=16, sampler="ddim"):
    """Paths of `count` pictures in `folder`: the user's own first, then drawn ones; those missing are drawn now.

    made_for: a `record`, kept beside the pictures. Group i of 16 pictures is drawn with seed i in one batch, or
    in smaller ones if the GPU has no memory for it: an interrupted run goes on where it stopped, a larger count adds to
    it. Several processes share the groups.
    """
    folder = Path(folder)
    check(folder, made_for)
    drawn = [folder / f"drawn-{i:05d}.png" for i in range(count)]
    paths = (own(folder) + drawn)[:count]
    missing = {path for path in paths if not path.exists()}
    if not missing:
        return paths
    distributed.first_alone(write_json, folder / RECORD, made_for)
    seeds = [i // group for i in range(0, count, group) if missing.intersection(drawn[i : i + group])]
    mine = seeds[distributed.rank() :: distributed.world()]
    with progress_bar(total=len(missing), desc="class pictures", disable=distributed.rank() > 0) as bar:
        for seed in mine:
            names = drawn[seed * group : (seed + 1) * group]
            for path, picture in zip(names, draw_group(sd, len(names), seed, made_for, sampler), strict=True):
                if path in missing:
                    save_png(picture, path)
                    bar.update(distributed.world())  # the others do as much
    distributed.wait()
    return paths


def draw_group(sd, n, seed, made_for, sampler):
    """n pictures of a class from the noise of one seed, in one batch if the memory suffices."""
    at_once = n
    while True:
        try:
            prompts, size = [made_for["prompt"]] * n, made_for["resolution"]
            return sd.generate(prompts, guidance=made_for["guidance"], seed=seed, size=size, sampler=sampler,
                               batch_size=at_once, progress=False)
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once = -(-at_once // 2)
