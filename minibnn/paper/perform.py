"""One training of the paper, and what is drawn and measured of it at its steps.

The training is that of the command `train`: the same options, settled in the same way, the same loop. But it writes no
checkpoint and no result, which for Stable Diffusion are 17 GB: what is wanted are pictures at θ = μ, and a training
that was interrupted gives the same weights when it is done again. `kept.py` says what is kept of it.
"""

import dataclasses
import gc
import math
import time
from pathlib import Path

import torch

from .. import class_pictures, data
from ..cli.class_source import class_folders, class_source
from ..cli.settle import settle
from ..devices import autocast, choose_threads, make_deterministic
from ..experiments.prompts import world_prompts
from ..files.store import write_json
from ..finetune import bayes
from ..observers import Progress
from ..options.kinds import WORLD
from ..options.training import TrainOptions
from ..photo import measures as photo
from ..pictures import save_png
from ..pipeline import StableDiffusion
from ..train import Batches, Diverged, at_the_mean, fine_tuning, train
from . import dataset, judges
from .kept import folder_of, measures_of
from .plan import OFT_WHERE, WHERE

AUTHORS_CLASS_PICTURES = 200  # for each class in all; the paper: 200 for each training picture


@dataclasses.dataclass
class Bench:
    """What all runs of a process share. options: PaperOptions; paths: {model of `plan.MODELS`: path}."""

    options: object
    study: object
    paths: dict
    device: str
    dtype: str
    networks: dict = None  # of the photo measures, read when the first run needs them

    @property
    def out(self):
        return Path(self.options.out)

    @property
    def tiny(self):
        """Whether it is a bundled model that draws the picture world, and these are the twins of the tables."""
        return self.options.model in WORLD


# --- what is trained --------------------------------------------------------------------------------------------------


def open_model(bench, name):
    """A pretrained model of the study, in float32 on the CPU.

    --tokenizer and --prediction-type are for single files: a folder has its own. What they predict is in doubt for SD
    v2 alone, and so the option means v2.0 where it is given.
    """
    options, path = bench.options, bench.paths[name]
    is_file, meant = Path(path).is_file(), "v20" if "v20" in bench.paths else "main"
    predicts = options.prediction_type if is_file and name == meant else None
    return StableDiffusion.load(path, options.tokenizer if is_file else None, torch.float32, predicts)


def captions_of(bench, subject):
    """(training prompt, class prompt) of a subject; the bundled model knows the word sks and an article alone."""
    return dataset.captions("paper" if bench.tiny else bench.study.source, subject.kind)


def captions_of_pictures(bench, files, prompt):
    """The caption of each training picture: the prompt, as in the paper.

    The pictures of the bundled models have captions of their own, some of which name a place. From the prompt alone
    these models, unlike Stable Diffusion, do not learn the subject in places where they were not shown it.
    """
    return data.captions(files, prompt, own=bench.tiny)


def wanted_of(bench, subject):
    """[(prompt, what a picture must show)] of all pictures that are drawn of a subject: each prompt `each` times."""
    if bench.tiny:
        prompts = world_prompts(dataset.WORDS["paper"], subject.kind)
    else:
        prompts = [(prompt, {}) for prompt in dataset.prompts(bench.study.source, subject.kind)]
    return [each for each in prompts for _ in range(bench.options.each)]


def images_of(bench, run):
    """The files of the pictures that a run is trained on."""
    given = bench.options.celeba if run.subject.data == "celeba" else bench.options.data
    return data.list_pictures(dataset.root_of(given) / run.subject.name)[: run.pictures]


def has_prior(bench, run):
    """Does the run learn class pictures too? In the paper only DreamBooth does, in the authors' scripts all do."""
    return run.method == "dreambooth" or bench.study.source == "authors"


def class_count(bench, run):
    """How many class pictures a run learns from."""
    if bench.study.source == "authors":
        return min(AUTHORS_CLASS_PICTURES, bench.study.recipe["class_pictures_per_picture"] * 6)
    return bench.study.recipe["class_pictures_per_picture"] * run.pictures


def class_folder(bench, run):
    """Where the class pictures of a run lie: one folder for each class and pretrained model."""
    return bench.out / "class_images" / f"{run.model}-{run.subject.kind.replace(' ', '-')}"


def class_task(folder):
    """The name of the work of drawing the class pictures in a folder of `class_folder`."""
    return f"class-{folder.name}"


def train_options(bench, run, steps):
    """The TrainOptions of a run, as the command `train` takes them."""
    options, (prompt, class_prompt) = bench.options, captions_of(bench, run.subject)
    own = {
        "images": [str(images_of(bench, run)[0].parent)], "model": bench.paths[run.model],
        "tokenizer": options.tokenizer, "prediction_type": options.prediction_type,
        "prompt": [prompt], "class_prompt": [class_prompt], "class_images": str(class_folder(bench, run)),
        "class_count": class_count(bench, run), "prior_weight": 1.0 if has_prior(bench, run) else 0.0,
        "prior_target": "noise", "ema": 0.0,  # as in the paper, whatever the model's recipe says
        "method": run.method, "bayes": run.bayes, "lambda_kl": run.lambda_kl, "steps": steps,
        "dtype": bench.dtype, "device": bench.device, "seed": run.seed, "samples": 0,
        "monitor": False, "gradient_checkpointing": options.gradient_checkpointing, "out": str(folder_of(bench, run)),
    }
    if run.bayes:
        own |= {"sigma": run.sigma, "kernel": options.kernel}
    if run.lambda_kl:
        own["kl"] = "p-q" if bench.study.source == "authors" else "q-p"
    if run.method == "dreambooth" and run.bayes:
        own["where"] = WHERE[bench.study.source][run.where]
    if run.method == "oft" and run.bayes:
        own["where"] = OFT_WHERE[bench.study.source]
    return TrainOptions(**own)


def draw_class_pictures(bench, run, count):
    """Draw the class pictures of all runs that share this one's; what an interrupted call has drawn stays."""
    sd = open_model(bench, run.model)
    make_deterministic(bench.device)
    choose_threads(bench.device, sd.unet)
    sd.to(bench.device)
    made_for = class_pictures.record(
        captions_of(bench, run.subject)[1], bench.paths[run.model], sd.recipe["resolution"], sd.recipe["class_guidance"]
    )
    sampler = "pndm" if bench.study.source == "authors" else "ddim"
    with autocast(sd.device, getattr(torch, bench.dtype)):
        class_pictures.complete(sd, class_folder(bench, run), count, made_for, sampler=sampler)


def perform(bench, run, steps):
    """Train a run and leave the pictures and measures of those of its steps that are not there yet."""
    missing = [each for each in steps if not measures_of(bench, run, each).exists()]
    before = allocated(bench)
    sd = open_model(bench, run.model)
    files = images_of(bench, run)
    options = settle(train_options(bench, run, missing[-1]), sd, len(files))
    images = data.load_pictures(files, options.resolution)
    make_deterministic(options.device)
    choose_threads(options.device, sd.unet)
    sd.to(options.device)
    judge = judge_of(bench, sd, images)
    sources = [(images, captions_of_pictures(bench, files, options.prompt[0]))]
    if options.prior_weight:
        sources += class_source(options, sd, class_folders(options, [len(files)]))
    batches = Batches(sd, sources, options.batch_size, options.seed)
    training = fine_tuning(sd, options)
    observer = Observer(bench, run, missing, judge, before)
    try:
        with Progress(None, training, options.steps, run.name) as progress:
            train(training, options, batches, [progress, observer])
    except Diverged as error:
        write_json(folder_of(bench, run) / "diverged.json", {"run": run.name, "why": str(error)})
        return  # it has no costs, since the seconds of its steps are not known
    write_json(bench.out / "costs" / f"{run.name}.json", observer.costs(training))


def allocated(bench):
    """Bytes of the GPU that a process holds between two runs, its photo networks above all; 0 on a CPU."""
    if not bench.device.startswith("cuda"):
        return 0
    gc.collect()  # what a run that failed has left
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(bench.device)


def judge_of(bench, sd, images):
    """The judge of runs that are trained on these pictures."""
    if bench.tiny:
        return judges.WorldJudge(sd, images)
    if bench.networks is None:
        bench.networks = photo.load_networks(network_folders(bench.options), bench.device)
    return judges.PhotoJudge(bench.networks, images)


def network_folders(options):
    """{name of a photo network: its folder in --networks}."""
    return {name: str(Path(options.networks) / name) for name in photo.LOADERS}


class Observer:
    """Watches a training: draws and measures at the missing steps, and takes the time of the rest.

    before: bytes of the GPU that do not belong to the training.
    """

    def __init__(self, bench, run, missing, judge, before=0):
        self.bench, self.run, self.missing, self.judge, self.before = bench, run, missing, judge, before
        self.wanted = wanted_of(bench, run.subject)
        self.seconds, self.peak, self.resumed = 0.0, 0, None

    def __call__(self, training):
        device = training.sd.device
        if self.resumed is not None and training.step in self.missing:
            training.check()  # which waits for the step's figures, and so for the device
            self.seconds += time.perf_counter() - self.resumed
            if device.type == "cuda":
                self.peak = max(self.peak, torch.cuda.max_memory_allocated(device) - self.before)
        if training.step in self.missing:
            with at_the_mean(training.sd, getattr(torch, self.bench.dtype)):
                self.draw(training.sd, training.step)
        if self.resumed is None or training.step in self.missing:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            self.resumed = time.perf_counter()

    def draw(self, sd, step):
        """Draw the pictures of a step and measure them."""
        bench, file = self.bench, measures_of(self.bench, self.run, step)
        settings = {"steps": bench.options.sample_steps or sd.recipe["sample_steps"], "guidance": sd.recipe["guidance"],
                    "seed": self.run.seed, "sampler": "ddim" if bench.tiny else "pndm"}
        prompts = [prompt for prompt, _ in self.wanted]
        pictures = sd.generate(prompts, **settings, batch_size=bench.options.batch_size, progress=False)
        values, each = self.judge(pictures, self.wanted), bench.options.each
        if not all(math.isfinite(value) for of_each in values.values() for value in of_each):
            raise Diverged(f"the pictures after step {step} have no measures")
        for i, picture in enumerate(pictures) if bench.options.keep_pictures else ():
            path = file.with_name(f"{i // each:02d}-{i % each}.png")
            save_png(picture, path, settings | {"prompt": prompts[i], "model": f"{self.run.name}, step {step}"})
        found = judges.cases(values)
        for name, i in found.items():
            save_png(pictures[i], file.with_name(f"{name}.png"), settings | {"prompt": prompts[i]})
        write_json(file, {"run": self.run.name, "steps": step, "prompts": prompts, "values": values, "cases": found})

    def costs(self, training):
        """What the training took up to the last measured step, without drawing and measuring."""
        network, cuda = training.network, training.sd.device.type == "cuda"
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return {
            "run": self.run.name, "seconds of a step": self.seconds / max(1, self.missing[-1]),
            "random share": bayes.random_share(network) if self.run.bayes else 0.0,
            "trained bytes": 4 * sum(p.numel() * p.element_size() for p in trained),  # itself, gradient, two moments
            "peak bytes": self.peak if cuda else None,
            "device": torch.cuda.get_device_name(training.sd.device) if cuda else "CPU",
        }
