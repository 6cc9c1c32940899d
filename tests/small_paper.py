"""All that the command `paper` needs, at a hundredth of the width: SD, the photo networks and a data set.

    python tests/small_paper.py FOLDER      makes it, and prints a command that uses it
"""

import shutil
import sys
from pathlib import Path

import small_photo
import small_sd
from conftest import make_vocabulary

from minibnn.files.store import read_json, write_json

ROOT = Path(__file__).parents[1]
SUBJECTS = {"cat": "subjects/cat", "dog6": "dog", "teapot": "subjects/coffee"}  # names of the data set: our pictures
QUICK = {"steps_per_picture": 1, "class_pictures_per_picture": 2, "lr": 1e-3, "sample_steps": 2}


def make(root, subjects=tuple(SUBJECTS), pictures=2, people=0, layers=1, versions=("v1",)):
    """Write sd-v1/ (and sd-v2/), nets/, dreambooth/ and celeba/ into a folder, and return it."""
    for version in versions:
        folder = small_sd.make(root / f"sd-{version}", version, layers=layers)
        recipe = read_json(folder / "recipe.json")
        lora = recipe["methods"]["lora"] | {"steps_per_picture": 2}
        write_json(folder / "recipe.json", recipe | QUICK | {"methods": recipe["methods"] | {"lora": lora}})
    (root / "vocabulary").mkdir(parents=True)
    small_photo.make(root / "nets", make_vocabulary(root / "vocabulary"))
    chosen = [("dreambooth/dataset", name) for name in subjects] + [("celeba", f"p{i}") for i in range(people)]
    for data, name in chosen:
        (root / data / name).mkdir(parents=True)
        source = ROOT / "tutorials" / SUBJECTS.get(name, "subjects/rocket")
        for path in sorted(source.glob("*.png"))[:pictures]:
            shutil.copy(path, root / data / name / path.name)
    return root


def words(root, *more):
    """The command line of `paper` on what `make` made; OUT is in the same folder."""
    folders = {"--model": "sd-v1", "--data": "dreambooth", "--networks": "nets", "--out": "out"}
    given = [word for option, name in folders.items() for word in (option, str(root / name))]
    return [*given, "--each", "2", "--device", "cpu", *more]


if __name__ == "__main__":
    made = make(Path(sys.argv[1]), people=2, versions=("v1", "v2"))
    print("python -m minibnn paper", *words(made, "--celeba", str(made / "celeba"), "--model-v14", str(made / "sd-v1"),
                                            "--model-v20", str(made / "sd-v2"), "--seeds", "0", "1"))
