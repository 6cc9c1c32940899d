"""The settings that `experiment recipe` tries."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """options: of `train`, beside the recipe's. captions: so many of the six pictures have one that names the place."""

    options: tuple = ()
    captions: int = 4


NOISE = ("--prior-target", "noise", "--prior-weight", "1", "--ema", "0", "--steps", "600")  # ordinary DreamBooth
FOUR = ("--prior-weight", "4", "--steps", "660")
LORA, OFT = ("--method", "lora", "--lr", "3e-3"), ("--method", "oft", "--lr", "2e-3")
RANK = ("--rank", "8")  # what the search found best with a teacher, so its controls have it too
TAUGHT = ("--prior-target", "pretrained", "--ema", "0.98")  # by the network beneath the adapters
SETTINGS = {
    "four-captions": Setting(),  # the first command
    "plain": Setting(captions=0),
    "three-captions": Setting(captions=3),
    "six-captions": Setting(captions=6),
    "noise-target": Setting((*NOISE, "--class-guidance", "1")),
    "noise-target-guided": Setting((*NOISE, "--class-guidance", "3")),
    "weight-four": Setting(FOUR),
    "weight-four-noise": Setting((*FOUR, "--prior-target", "noise", "--class-guidance", "1")),  # what the target brings
    "no-average": Setting(("--ema", "0")),
    "one-picture": Setting(("--batch-size", "1", "--steps", "900")),
    "low-rate": Setting(("--lr", "1e-4")),
    "high-rate": Setting(("--lr", "1e-3")),
    "no-prior": Setting(("--prior-weight", "0")),
    "light-prior": Setting(("--prior-weight", "1")),
    "heavy-prior": Setting(("--prior-weight", "9")),
    "more-class-pictures": Setting(("--class-count", "384")),
    "unguided-class-pictures": Setting(("--class-guidance", "1")),
    "null-dropout": Setting(("--null-dropout", "0.1")),
    "no-bayes": Setting(("--no-bayes",)),
    "norm-random": Setting(("--where", "norm")),
    "all-random": Setting(("--where", "all")),
    "half-sigma": Setting(("--sigma", "0.005")),
    "double-sigma": Setting(("--sigma", "0.02")),
    "lora": Setting(("--method", "lora")),
    "oft": Setting(("--method", "oft")),
    "lora-alone": Setting((*LORA, *RANK, "--prior-weight", "0", "--ema", "0", "--steps", "600")),
    "lora-noise": Setting((*LORA, *RANK, "--prior-target", "noise", "--ema", "0.98", "--prior-weight", "1",
                           "--steps", "600", "--class-guidance", "1")),
    "lora-taught-1": Setting((*LORA, *TAUGHT, "--prior-weight", "1", "--steps", "600")),
    "lora-taught-3": Setting((*LORA, *TAUGHT, "--prior-weight", "3", "--steps", "720")),
    "lora-taught-1-longer": Setting((*LORA, *TAUGHT, "--prior-weight", "1", "--steps", "900")),
    "lora-taught-1-rank-8": Setting((*LORA, *TAUGHT, "--prior-weight", "1", "--steps", "600", *RANK)),
    "oft-taught-1": Setting((*OFT, *TAUGHT, "--prior-weight", "1", "--steps", "600")),
    "oft-taught-1-longer": Setting((*OFT, *TAUGHT, "--prior-weight", "1", "--steps", "1200")),
    "oft-taught-1-rate": Setting((*OFT, *TAUGHT, "--prior-weight", "1", "--steps", "600", "--lr", "5e-3")),
    "oft-alone": Setting((*OFT, "--prior-weight", "0", "--ema", "0", "--steps", "1200")),
    "oft-noise": Setting((*OFT, "--prior-target", "noise", "--ema", "0.98", "--prior-weight", "1", "--steps", "1200",
                          "--class-guidance", "1")),
    "oft-taught-1-blocks-2": Setting((*OFT, *TAUGHT, "--prior-weight", "1", "--steps", "600", "--blocks", "2")),
}
