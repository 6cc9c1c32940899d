"""The whole paper by one command: `python -m minibnn paper --model SD --data dreambooth/ --networks nets/ --out OUT`.

Plans the runs that the tables need, does those that are not done, and writes the tables. Any number of processes given
the same command and the same --out share the runs, on one machine or on many (`files/claims.py`): by hand, under
torchrun, or as tasks or an array of SLURM.
"""

import os
import time
from dataclasses import replace

import torch

from .. import data
from ..devices import choose_device, threads_kept, training_dtype
from ..errors import UserError
from ..experiments.records import check_alike
from ..files.claims import Claims, Task, perform
from ..files.configs import RECIPE_KINDS, complete_recipe
from ..files.failures import Failures
from ..files.schema import record
from ..files.store import read_json, write_json
from ..lab.intervals import require_scipy
from ..options.kinds import WORLD, full_name
from ..photo.measures import load_networks
from ..pipeline import place_of
from ..runs import fingerprint
from . import dataset, estimate
from .kept import failures_folder, is_done
from .perform import (
    Bench,
    class_folder,
    class_task,
    draw_class_pictures,
    has_prior,
    images_of,
    network_folders,
    open_model,
)
from .perform import perform as perform_run
from .plan import ITEMS, MODELS, Study, plan, trainings
from .report import report


def place(environment):
    """(number of this process, how many there are, its number on its machine), as torchrun and SLURM say it.

    An array of SLURM counts on over its tasks. (0, 1, 0) where nobody says anything.
    """

    def number(name, default=0):
        return int(environment[name]) if environment.get(name, "").isdigit() else default

    if "RANK" in environment:
        return number("RANK"), number("WORLD_SIZE", 1), number("LOCAL_RANK")
    tasks, array = number("SLURM_NTASKS", 1), number("SLURM_ARRAY_TASK_COUNT", 1)
    step = number("SLURM_ARRAY_TASK_STEP", 1) or 1
    of_array = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN")) // step
    return of_array * tasks + number("SLURM_PROCID"), array * tasks, number("SLURM_LOCALID")


def device_of(asked, local):
    """--device; or a GPU of its own for each process of a machine, where it sees several."""
    if asked in (None, "cuda") and torch.cuda.is_available():
        asked = f"cuda:{local % torch.cuda.device_count()}"
    return choose_device(asked)


def recipe_of(model):
    """The recipe of a pretrained model, without opening it. Raises UserError when it is not there."""
    path = place_of(model)
    own = path / "recipe.json"
    return complete_recipe(read_json(own, record(RECIPE_KINDS)) if own.is_file() else {})


def open_bench(options, local=0):
    """The Bench of PaperOptions, with its study. Raises UserError for whatever cannot be, before anything is done."""
    paths = {"main": options.model, "v14": options.model_v14, "v20": options.model_v20}
    paths = {name: path for name, path in paths.items() if path}
    recipes = {name: recipe_of(path) for name, path in paths.items()}
    tiny = options.model in WORLD
    items = list(options.only or [item for item in ITEMS if item != "table2" or len(paths) > 1 or tiny])
    if "table2" in items and len(paths) == 1 and not tiny:
        raise UserError("--only table2 compares pretrained models: --model-v14 or --model-v20 is required")
    if not tiny and not options.networks:
        raise UserError("--networks is required for photographs: a folder with clip/, dino/, lpips/ and clip_iqa/ "
                        "(docs/photo-measures.md says how to fetch them)")
    if not tiny and not options.data:
        raise UserError("--data is required: the folder of the DreamBooth data set, github.com/google/dreambooth")
    if tiny and (len(paths) > 1 or options.celeba):
        raise UserError(f"--model {options.model} has no other models and no people: leave out --model-v14, "
                        "--model-v20, --celeba")
    if options.each < 2:
        raise UserError("--each 1: diversity compares the pictures of one prompt, of which at least 2 are needed")
    if tiny:
        options = replace(options, data=options.data or "tutorials", classes=options.classes or ["dog"])
    options = replace(options, batch_size=options.batch_size or (16 if tiny else 4))
    found = tuple(dataset.find_subjects(options.data, options.classes))
    people = tuple(dataset.find_people(options.celeba)) if options.celeba else ()
    device = device_of(options.device, local)
    half = training_dtype(device) if options.as_ == "paper" else "float32"
    study = Study(recipes["main"], options.as_, tuple(paths), found, people, tuple(options.seeds),
                  tuple(items), tuple(options.sigmas), tuple(options.lambdas), not tiny)
    return Bench(options, study, paths, device, options.dtype or half)


def check(bench, todo):
    """Open all that the runs `todo` will need. Raises UserError for what is broken: now, and not after days."""
    for name in dict.fromkeys(run.model for run in todo):
        open_model(bench, name)
    for path in dict.fromkeys(path for run in todo for path in images_of(bench, run)):
        data.open_picture(path)
    if todo and not bench.tiny:
        bench.networks = load_networks(network_folders(bench.options), bench.device)


def settings_of(bench):
    """What all runs of a folder share besides their names."""
    options, study = bench.options, bench.study
    folders = {"dreambooth": (options.data, study.subjects), "celeba": (options.celeba, study.people)}
    pictures = {}
    for name, (folder, subjects) in folders.items():
        for subject in subjects:
            files = data.list_pictures(dataset.root_of(folder) / subject.name)
            pictures |= {f"{name}/{subject.name}/{file}": held for file, held in fingerprint(files).items()}
    own = {f"model {MODELS[name]}": full_name(path) for name, path in bench.paths.items()}
    own |= {"as": study.source, "each": options.each, "sample steps": options.sample_steps, "dtype": bench.dtype}
    own |= {"networks": options.networks and full_name(options.networks), "prediction type": options.prediction_type}
    return own, pictures


def agree(bench, claims):
    """Note what the runs of a folder share. Raises UserError if earlier ones had something else."""
    path, (own, pictures) = bench.out / "paper.json", settings_of(bench)

    def note():
        before = read_json(path) if path.exists() else {}
        known = before.get("pictures", {})
        check_alike(before, {name: value for name, value in own.items() if name in before}, path)
        check_alike(known, {name: value for name, value in pictures.items() if name in known}, path)
        write_json(path, before | own | {"pictures": known | pictures})
        noted.append(True)

    noted = []
    perform([Task("settings", note, lambda: bool(noted))], claims, told=lambda _: None, poll=0.2)


def tasks_of(bench, todo):
    """The class pictures and the runs as tasks, each after what it needs. todo: {run: its steps}."""
    tasks, drawn = [], {}
    for folder, (run, count) in estimate.class_pictures(bench, todo).items():
        drawn[folder] = class_task(folder)
        tasks.append(Task(
            drawn[folder], lambda run=run, count=count: draw_class_pictures(bench, run, count),
            lambda folder=folder, count=count: all((folder / f"drawn-{i:05d}.png").exists() for i in range(count)),
        ))
    for run, steps in todo.items():
        needs = (drawn[class_folder(bench, run)],) if has_prior(bench, run) else ()
        tasks.append(Task(run.name, lambda run=run, steps=steps: perform_run(bench, run, steps),
                          lambda run=run, steps=steps: is_done(bench, run, steps), needs))
    return tasks


@threads_kept()
def paper(options):
    """Do what PaperOptions ask for. Raises UserError, KeyboardInterrupt."""
    require_scipy()
    rank, world, local = place(os.environ)
    bench = open_bench(options, local)
    cells = plan(bench.study)
    todo = trainings(cells)
    left = estimate.work(bench, todo)
    left_to_do = {run: steps for run, steps in todo.items() if not is_done(bench, run, steps)}
    check(bench, left_to_do)
    if options.plan:
        for item in bench.study.items:
            own = trainings([cell for cell in cells if cell.item == item])
            print(f"{item}: {len(own)} runs, {sum(steps[-1] for steps in own.values())} steps")
        print(estimate.describe(left), flush=True)
        if left.runs:
            print(estimate.describe(left, *estimate.estimate(bench, todo, left)))
        return
    print(f"process {rank} of {world} on {bench.device}: {estimate.describe(left)}", flush=True)
    claims = Claims(bench.out / "claims")
    agree(bench, claims)
    tasks = tasks_of(bench, todo)
    try:
        lost = perform(tasks, claims, first=len(tasks) * rank // world, failures=Failures(failures_folder(bench)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped: the same command goes on with the runs that are not done") from None
    claim = claims.take("report")  # None: another process is writing the same
    if claim:
        with claim:
            items = report(bench, cells)
        print(f"{bench.out / 'report.html'}: {', '.join(items)}; {bench.out / 'tables'}: the numbers")
    while lost and not claim and claims.holder("report"):  # torchrun kills all when one ends with an error
        time.sleep(0.5)
    if lost:
        raise UserError(f"{len(lost)} of {len(tasks)} failed, {lost[0]} first: {bench.out / 'report.html'} says why; "
                        "the same command tries them again")
