"""Options that several commands have."""

from .kinds import DEFAULT, option, seed_number

DTYPES = ("float32", "bfloat16", "float16")


def model_option(more="", default=DEFAULT):
    """--model of every command that opens one; more: what its help adds."""
    return option(default, '"tiny-v2", "tiny" or "textured" (bundled), a diffusers folder, a run, or an LDM .safetensors file' + more, "what", metavar="MODEL")


def tokenizer_option():
    return option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")


def prediction_type_option():
    return option(None, "what an LDM file predicts [as it says; SD v2: else as its weights look]", "what", choices=("epsilon", "v_prediction"))


def device_option(group):
    return option(None, "cpu, cuda, cuda:1, mps, ... [cuda if there is one]", group, metavar="DEVICE")


def seed_option(group, help="fixes all that is random"):
    return option(0, help, group, type=seed_number)
