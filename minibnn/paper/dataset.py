"""The paper's data: which subject of the DreamBooth data set is of which class, and what is drawn of it.

Follows: `prompts_and_classes.txt` of github.com/google/dreambooth, for classes and prompts; the paper's Table 5, which
has that file's prompts for live subjects, and its App. H.1; the scripts that the authors released, for theirs.

    source     rare word   captions                       prompts drawn of an object
    paper      sks         "a photo of a sks backpack"    Table 5, whatever the object is
    authors    qwe         "a photo of qwe backpack"      the file's: those of Table 5 for cats and dogs alone

The paper writes the rare word as [V]; sks is that of DreamBooth's usual scripts.
"""

from dataclasses import dataclass
from pathlib import Path

from ..data import list_pictures
from ..errors import UserError
from ..experiments.prompts import OBJECT, OBJECT_ADJECTIVES, table5_object, table5_subject

SUBJECTS = {  # of the data set: its class word
    "backpack": "backpack", "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "berry_bowl": "bowl",
    "can": "can", "candle": "candle", "cat": "cat", "cat2": "cat", "clock": "clock", "colorful_sneaker": "sneaker",
    "dog": "dog", "dog2": "dog", "dog3": "dog", "dog5": "dog", "dog6": "dog", "dog7": "dog", "dog8": "dog",
    "duck_toy": "toy", "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy",
    "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy", "red_cartoon": "cartoon", "robot_toy": "toy",
    "shiny_sneaker": "sneaker", "teapot": "teapot", "vase": "vase", "wolf_plushie": "stuffed animal",
}
LIVE = ("cat", "dog")
SHARED = OBJECT[:10]  # the first ten of Table 5 are asked of things as well
THINGS = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)
WORDS = {"paper": "sks", "authors": "qwe"}
PERSON_PICTURES = 5  # of each person of CelebA-HQ (paper, §5)


@dataclass(frozen=True)
class Subject:
    """data: "dreambooth" or "celeba"; kind: the class word; pictures: how many there are."""

    data: str
    name: str
    kind: str
    pictures: int


def captions(source, kind):
    """(caption of the training pictures, caption of the class pictures). source: "paper" or "authors"."""
    article = "a " if source == "paper" else ""
    return f"a photo of {article}{WORDS[source]} {kind}", f"a photo of {article}{kind}"


def prompts(source, kind):
    """The 25 prompts that are drawn of a subject of this class."""
    word = WORDS[source]
    if kind == "person":
        return table5_subject(word)
    if source == "paper" or kind in LIVE:
        return table5_object(word, kind)
    return [f"a {word} {kind} {rest}" for rest in SHARED + THINGS] + [f"a {a} {word} {kind}" for a in OBJECT_ADJECTIVES]


# --- folders ----------------------------------------------------------------------------------------------------------


def root_of(folder, option="--data"):
    """The folder that holds the subjects' folders: `folder`, or its `dataset`, as in the repository."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder")
    return folder / "dataset" if (folder / "dataset").is_dir() else folder


def find_subjects(folder, chosen=None):
    """The subjects of the DreamBooth data set in a folder: a list of Subject, in the order of their names.

    chosen: names of --classes; a subject that is not of the data set is named with its class, as "rex=dog". Raises
    UserError naming what is missing or unknown.
    """
    root = root_of(folder)
    wanted = dict(SUBJECTS)
    if chosen:
        wanted = {}
        for word in chosen:
            name, _, kind = word.partition("=")
            if not kind and name not in SUBJECTS:
                known = "a subject of the DreamBooth data set"
                raise UserError(f"--classes {name} is not {known}; name its class too, as in {name}=dog")
            wanted[name] = kind or SUBJECTS[name]
    there = {name: kind for name, kind in wanted.items() if (root / name).is_dir()}
    if chosen and (missing := sorted(wanted.keys() - there.keys())):
        raise UserError(f"--classes {missing[0]}: there is no folder {root / missing[0]}")
    if not there:
        raise UserError(f"--data {folder}: no subject of the DreamBooth data set in it; its folders are called "
                        f"{', '.join(list(SUBJECTS)[:3])}, …")
    counts = {name: len(list_pictures(root / name, "--data")) for name in sorted(there)}
    return [Subject("dreambooth", name, there[name], count) for name, count in counts.items()]


def find_people(folder):
    """The people in a folder: each a folder of its own. Raises UserError if there are none."""
    root = root_of(folder, "--celeba")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"--celeba {folder}: no folders in it; it needs one for each person")
    return [Subject("celeba", name, "person", len(list_pictures(root / name, "--celeba"))) for name in names]
