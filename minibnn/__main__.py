"""The one door for all commands: `python -m minibnn COMMAND …`, or `minibnn COMMAND …` after an installation."""

import difflib
import json
import os
import sys
from importlib import import_module
from pathlib import Path

from . import __version__
from .files.configs import RECIPE, complete_recipe
from .options import experiments, lab, neighbours, results, training, world
from .options.examples import EXAMPLES
from .options.kinds import DEFAULT, WORLD
from .options.parsing import fail, parse
from .options.running import answer_while_importing, one_line, own_output, run

COMMANDS = {  # name: (what it does, its options, module:function, what the function takes before the options)
    "train": ("fine-tune a model on a few pictures", training.TrainOptions, "cli.train:fine_tune"),
    "sample": ("draw pictures with a model or a run", results.SampleOptions, "cli.sample:sample"),
    "export": ("write a run's result for ComfyUI, AUTOMATIC1111, diffusers or peft",
               results.ExportOptions, "cli.export:export"),
    "report": ("make the page of a training run: pictures, curves, options",
               results.RunReportOptions, "cli.report:report"),
    "photo-measures": ("measure photographs: Clip-T, Clip-I, Dino, Lpips, Clip-IQA",
                       results.PhotoOptions, "photo.measures:measure_photos"),
    # the picture world, of which the bundled model is made
    "world": ("draw the picture world", world.WorldOptions, "world.scenes:make_drawings"),
    "pretrain": ("make the bundled model from nothing", world.PretrainOptions, "world.pretrain:pretrain"),
    "pretrain-textured": ("make the textured model from nothing",
                          world.PretrainTexturedOptions, "world.textured:pretrain"),
    "evaluate": ("judge whether the bundled model draws what a caption says",
                 world.EvaluateOptions, "world.evaluate:evaluate"),
    "world-measures": ("show what each measure of drawings sees", world.MeasuresOptions, "world.measures:validate"),
    "world-eye": ("train the network that measures fidelity", world.EyeOptions, "world.eye:train_eye"),
    # the laboratory: the paper's Eq. 2 and probes that look into models
    "eq2": ("draw pictures by Eq. 2 alone (§3.2)", lab.Eq2Options, "lab.drawn_by_eq2:draw_by_eq2"),
    "sigma1": ("measure σ₁ of Eq. 2 in a model (Fig. 4)", lab.ProbeOptions, "lab.probes:look", "sigma1"),
    "probe-zero": ("denoise x_t = 0 (Fig. 3)", lab.ProbeOptions, "lab.probes:look", "probe-zero"),
    "probe-local": ("add noise in a small region (Fig. 5)", lab.ProbeOptions, "lab.probes:look", "probe-local"),
    "probe-scaled": ("denoise k times a picture (Fig. 12)", lab.ProbeOptions, "lab.probes:look", "probe-scaled"),
    "probe-blank": ("denoise a blank picture (Fig. 10b)", lab.ProbeOptions, "lab.probes:look", "probe-blank"),
    "gains": ("measure whether guidance leaves noise: the gains with and without the prompt",
              lab.GainsOptions, "cli.gains:show_gains"),
    # the neighbours
    "graft": ("train on own samples that a reward accepts", neighbours.GraftOptions, "neighbours.graft_run:graft"),
    "flow": ("draw with a flow, and correct its noise", neighbours.FlowOptions, "neighbours.flow:train_or_draw"),
    "rectified": ("draw with a rectified flow in Stable Diffusion's layout, and correct its noise",
                  neighbours.RectifiedOptions, "neighbours.rectified:train_or_draw"),
    "bps": ("steer a frozen model by sketches or maps", neighbours.BpsOptions, "neighbours.bps_run:train_or_draw"),
    # the experiments
    "paper": ("the paper's tables and figures, shared out among processes",
              experiments.PaperOptions, "paper.command:paper"),
    "experiment corruption": ("measure the three phases of few-shot fine-tuning, with and without BNN",
                              experiments.CorruptionOptions, "experiments.corruption.trainings:experiment"),
    "experiment stage": ("measure the corruption stage of the textured model, its cause and its cures",
                         experiments.StageOptions, "experiments.stage.trainings:experiment"),
    "experiment stage-report": ("judge the stage of the textured model, and draw its curves",
                                experiments.StageReportOptions, "experiments.stage.report:report"),
    "experiment stage-views": ("draw the same fine-tuned weights in nine ways",
                               experiments.StageViewsOptions, "experiments.stage.views:views"),
    "experiment stage-starts": ("ask whether the starting noise predicts the noise of a picture",
                                experiments.StageStartsOptions, "experiments.stage.starts:starts"),
    "experiment report": ("judge what `experiment corruption` measured, and draw its curves",
                          experiments.ReportOptions, "experiments.corruption.report:report"),
    "experiment recipe": ("measure what captions and options bring: is the subject right, and its place?",
                          experiments.RecipeOptions, "experiments.recipe.trainings:experiment"),
    "experiment guidance": ("guide with the base model's unconditional prediction",
                            experiments.GuidanceOptions, "experiments.guidance.trainings:experiment"),
    "experiment sd-gains": ("measure whether the corruption stage of Stable Diffusion is one of guidance",
                            experiments.SdGainsOptions, "experiments.sd_gains.trainings:experiment"),
    "experiment graft": ("compare GRAFT and P-GRAFT with their limits",
                         experiments.GraftExperimentOptions, "experiments.graft:experiment"),
    "experiment inverse-noise": ("measure flows with and without inverse noise correction",
                                 experiments.InverseNoiseOptions, "experiments.inverse_noise.trainings:experiment"),
    "experiment bps": ("measure how well pictures follow hints, from 12, 40 and 200 pairs",
                       experiments.BpsExperimentOptions, "experiments.bps.pairs:experiment"),
}

HEADINGS = {  # the command that begins a part of the list: what the part is about
    "train": "With your own pictures:", "world": "The picture world and the bundled models:",
    "eq2": "The paper's Eq. 2, and looks into models:", "graft": "Methods of neighbouring papers:",
    "paper": "The experiments:",
}


def recipes(options_class):
    """The numbers that --help shows: {whose: recipe}, of SD and of the bundled model that the command takes."""
    default = getattr(options_class, "model", None)
    model = default if default in WORLD else DEFAULT
    own = json.loads((Path(__file__).parent / "assets" / model / "recipe.json").read_text(encoding="utf-8"))
    return {"SD": RECIPE, model: complete_recipe(own)}


def main(*words):
    """Run the command that the words and then the command line name. Exits as `options/running.py` says."""
    with own_output(), one_line():
        dispatch([*words, *sys.argv[1:]])


def dispatch(words):
    """The same for a whole command line, with plain output; raises what `one_line` explains."""
    if words == ["--version"]:
        print(f"minibnn {__version__}")
        return
    if not words or words[0] in ("-h", "--help") or words in (["experiment"], ["experiment", "--help"]):
        print("python -m minibnn COMMAND …")
        for name, (what, *_) in COMMANDS.items():
            if name in HEADINGS:
                print(f"\n{HEADINGS[name]}")
            print(f"  {name:27s}{what}")
        print("\npython -m minibnn COMMAND --help lists the options of one.")
        return
    length = 2 if words[0] == "experiment" else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        fail(f"no command {name}; " + (f"did you mean {near[0]}?" if near else "python -m minibnn --help lists them"))
    what, options_class, function, *leading = COMMANDS[name]
    about = f"{what[0].upper()}{what[1:]}. {options_class.__doc__}" if leading else None  # several have these options
    # before torch is imported, so that it answers at once
    shown = EXAMPLES.get(name, ()), recipes(options_class), about
    options = parse(options_class, f"minibnn {name}", words[length:], *shown)
    # Threads that wait for others should sleep: on a busy machine those that spin take the time of those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    answer_while_importing()
    module, function = function.split(":")
    run(getattr(import_module(f"minibnn.{module}"), function), *leading, options)


if __name__ == "__main__":
    main()
