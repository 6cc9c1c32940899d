import gzip
import json
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles must not look for anything on the net
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several processes of tests share the cores

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before the kernels are imported: without a GPU they run in Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fill_rule import fill

from minibnn import StableDiffusion
from minibnn.files.layouts import check_config
from minibnn.networks.text_encoder import TextEncoder, TextEncoderConfig
from minibnn.networks.tokenizer import END, START, byte_symbols
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.networks.vae import VAE, VAEConfig

os.fsync = lambda _: None  # flushing every file to the disk protects from power cuts; nobody cuts it here
DATA = Path(__file__).parent / "data"
NETWORKS = {"unet": (UNet, UNetConfig), "vae": (VAE, VAEConfig), "text": (TextEncoder, TextEncoderConfig)}


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C as in a terminal: a shell starts what runs in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def manifests():
    return json.loads(gzip.decompress((DATA / "manifests.json.gz").read_bytes()))


class Vectors:
    """Set A: configurations, inputs, outputs, tolerances, and networks filled by rule."""

    def __init__(self):
        settings = json.loads((DATA / "models_A.json").read_text())
        self.base, self.overlay, self.noise = settings["base"], settings["config"], settings["fp32_noise_over_std"]
        self.times = settings["config"]["ts"]
        self.arrays = np.load(DATA / "models_A.npz")

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[key])

    def config(self, part, **changes):
        return {**self.base[part], **self.overlay[part], **changes}

    def network(self, part, small=False, **changes):
        network_class, config_class = NETWORKS[part]
        network = network_class(check_config(config_class, self.config(part, **changes), part))
        state = {k: torch.from_numpy(fill(k, v.shape, "", small)) for k, v in network.state_dict().items()}
        network.load_state_dict(state)
        return network.eval()

    def error(self, key, got):
        """(max|d| / std(reference), tolerance)."""
        reference = self["out/" + key].double()
        scale = reference.std() if reference.numel() > 1 else reference.abs()
        error = (got.detach().double() - reference).abs().max() / scale
        return error.item(), max(5e-5, 8 * self.noise.get(key, 0))

    def check(self, key, got):
        error, tolerance = self.error(key, got)
        assert error <= tolerance, f"{key}: {error:.2e} > {tolerance:.2e}"


@pytest.fixture(scope="session")
def vectors():
    return Vectors()


@pytest.fixture(scope="session")
def dog():
    return Path(__file__).parents[1] / "tutorials" / "dog"


def make_micro(folder):
    """Write the bundled model with a random UNet of a fortieth of its size, which need not be good but quick."""
    sd = StableDiffusion.load("tiny")
    torch.manual_seed(0)
    config = {
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    sd.configs["unet"] |= config
    sd.unet = UNet(check_config(UNetConfig, sd.configs["unet"], "UNet"))
    sd.save(folder)


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """The folder of a small, quick model."""
    folder = tmp_path_factory.mktemp("micro") / "model"
    make_micro(folder)
    return folder


def make_vocabulary(folder):
    """Write vocab.json and merges.txt as in the official repositories, and return the folder."""
    merges = gzip.decompress((DATA / "clip_merges_48894.txt.gz").read_bytes()).decode().strip().splitlines()
    merges = [line for line in merges if not line.startswith("#version")]
    symbols = list(byte_symbols().values())
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges] + [START, END]
    assert len(tokens) == 49408
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """vocab.json and merges.txt as in the official repositories."""
    return make_vocabulary(tmp_path_factory.mktemp("clip"))
