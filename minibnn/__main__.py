"""The one door for all commands: `python -m minibnn COMMAND …`, or `minibnn COMMAND …` after an installation."""

import os
import sys
from importlib import import_module

from .options import commands, experiments
from .options.parsing import answer_ctrl_c_while_importing, fail, parse, run

PHASES = "fine-tune on 1-6 pictures with and without BNN, and measure the three phases"
COMMANDS = {  # name: (what it does, its options, module:function, what the function takes before the options)
    "train": ("fine-tune a model on a few pictures", commands.TrainOptions, "cli.train:fine_tune"),
    "sample": ("draw pictures with a model or a run", commands.SampleOptions, "cli.sample:sample"),
    "world": ("drawings of the picture world", commands.WorldOptions, "world.scenes:make_drawings"),
    "pretrain": ("make the bundled model from nothing", commands.PretrainOptions, "world.pretrain:pretrain"),
    "evaluate": ("does it draw what the caption says?", commands.EvaluateOptions, "world.evaluate:evaluate"),
    "world-measures": ("what each measure of drawings sees", commands.MeasuresOptions, "world.measures:validate"),
    "world-eye": ("train the network behind fidelity", commands.EyeOptions, "world.eye:train_eye"),
    "photo-measures": ("Clip-T, Clip-I, Dino, Lpips, Clip-IQA", commands.PhotoOptions, "photo.measures:measure_photos"),
    "sigma1": ("σ₁ of Eq. 2 in a model (Fig. 4)", commands.ProbeOptions, "lab.probes:look", "sigma1"),
    "eq2": ("pictures that Eq. 2 alone draws (§3.2)", commands.Eq2Options, "lab.drawn_by_eq2:draw_by_eq2"),
    "probe-zero": ("x_t = 0 denoised (Fig. 3)", commands.ProbeOptions, "lab.probes:look", "probe-zero"),
    "probe-local": ("noise in a small region (Fig. 5)", commands.ProbeOptions, "lab.probes:look", "probe-local"),
    "probe-scaled": ("k times a picture denoised (Fig. 12)", commands.ProbeOptions, "lab.probes:look", "probe-scaled"),
    "probe-blank": ("a blank picture denoised (Fig. 10b)", commands.ProbeOptions, "lab.probes:look", "probe-blank"),
    "graft": ("learn from own samples that a reward accepts", commands.GraftOptions, "neighbours.graft:graft"),
    "flow": ("a flow, and its inverse noise correction", commands.FlowOptions, "neighbours.flow:train_or_draw"),
    "bps": ("steer a frozen model by hints", commands.BpsOptions, "neighbours.bps:train_or_draw"),
    "experiment corruption": (PHASES, experiments.CorruptionOptions, "experiments.corruption:experiment"),
    "experiment report": ("curves, verdicts, tables of these", experiments.ReportOptions, "experiments.report:report"),
    "experiment methods": ("Table 1, small", experiments.MethodsOptions, "experiments.methods:table", "methods"),
    "experiment where": ("Table 3, small", experiments.MethodsOptions, "experiments.methods:table", "where"),
    "experiment guidance": ("with the base's ε(∅)", experiments.GuidanceOptions, "experiments.guidance:experiment"),
    "experiment graft": ("GRAFT on the world", experiments.GraftExperimentOptions, "experiments.graft:experiment"),
    "experiment inverse-noise": ("flows", experiments.InverseNoiseOptions, "experiments.inverse_noise:experiment"),
    "experiment bps": ("hints from few pairs", experiments.BpsExperimentOptions, "experiments.bps:experiment"),
}


def main(*words):
    """Run the command that the words and then the command line name. Exits with 2 after a mistake, 130 after Ctrl-C."""
    words = [*words, *sys.argv[1:]]
    if not words or words[0] in ("-h", "--help"):
        print("python -m minibnn COMMAND …\n")
        for name, (what, *_) in COMMANDS.items():
            print(f"  {name:27s}{what}")
        print("\npython -m minibnn COMMAND --help lists the options of one.")
        return
    length = 2 if words[0] == "experiment" else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        near = [known for known in COMMANDS if known.startswith(words[0])] or ["python -m minibnn --help lists them"]
        fail(f"no command {name}; {', '.join(near)}")
    _, options_class, function, *leading = COMMANDS[name]
    options = parse(options_class, f"minibnn {name}", words[length:])  # before torch is imported: it answers at once
    # Threads that wait for others should sleep: on a busy machine those that spin take the time of those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    answer_ctrl_c_while_importing()
    module, function = function.split(":")
    run(getattr(import_module(f"minibnn.{module}"), function), *leading, options)


if __name__ == "__main__":
    main()
