"""`python -m minibnn.experiments NAME …`: each experiment is a module of this folder with a function `main(arguments)`."""

import sys
from importlib import import_module

from ..options.parsing import answer_ctrl_c_while_importing

NAMES = {
    "corruption": "fine-tune on 1-6 pictures with and without BNN, and measure the three phases",
    "report": "curves, verdicts and tables of what `corruption` measured",
    "methods": "DreamBooth, LoRA and OFT, each with and without BNN",
    "where": "which layers of the UNet to make Bayesian",
    "guidance": "fine-tuned models with and without the base's unconditional prediction",
    "graft": "GRAFT and P-GRAFT on the bundled world",
    "inverse-noise": "a flow's sampler inverted, and its noise learned",
    "bps": "hints that a picture must follow, from 12, 40 and 200 pairs",
}


def main():
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("python -m minibnn.experiments NAME …\n")
        for known, what in NAMES.items():
            print(f"  {known:16s}{what}")
        print("\nEach has its own --help.")
        return
    if name not in NAMES:
        print(f"error: no experiment {name}; there are {', '.join(NAMES)}", file=sys.stderr)
        raise SystemExit(2)
    answer_ctrl_c_while_importing()
    import_module(f".{name.replace('-', '_')}", __package__).main(arguments)


if __name__ == "__main__":
    main()
