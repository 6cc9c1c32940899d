"""The settings that `experiment recipe` tries."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """options: of `train`, beside the recipe's. captions: so many of the six pictures have one that names the place."""

    options: tuple = ()
    captions: int = 4


SETTINGS = {
    "plain": Setting(captions=0),
    "four-captions": Setting(),
    "three-captions": Setting(captions=3),
    "six-captions": Setting(captions=6),
    "no-prior": Setting(("--prior-weight", "0")),
    "half-rate": Setting(("--lr", "1e-4")),
    "null-dropout": Setting(("--null-dropout", "0.1")),
    "no-bayes": Setting(("--no-bayes",)),
    "more-class-pictures": Setting(("--class-count", "192")),
}
