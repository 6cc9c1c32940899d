"""Full-size Stable Diffusion v1.5 or v2.1 with random weights: does it load and compute like diffusers'?

    python benchmarks/full_size.py make FOLDER    writes FOLDER/diffusers/, FOLDER/ldm.safetensors (float32, 2 × 4 GB,
                                                  v2 2 × 5 GB)
    python benchmarks/full_size.py check FOLDER   loads both layouts with minibnn and the folder with diffusers and
                                                  compares the outputs; prints peak memory and times
    python benchmarks/full_size.py train FOLDER --images PHOTOS
                                                  two training steps at 256 × 256 in bf16 on a CPU, with peak memory

With --version v2 it is v2.1: linear projections, another text encoder, v-prediction, attention in float32. The weights
are random, scaled so that activations keep their size; the tokenizer is the bundled one.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from minibnn import VAE, StableDiffusion, TextEncoder, UNet
from minibnn.files.configs import RECIPE, SD2_TEXT, SD2_UNET, SD_SCHEDULER, official_configs
from minibnn.files.layouts import check_config
from minibnn.files.store import ASSETS
from minibnn.networks.tokenizer import Tokenizer

CONFIGS = {  # what differs from v1.5; and what the UNet predicts
    "v1": ({"unet": {}, "vae": {}, "text_encoder": {}}, "epsilon"),
    "v2": (
        {"unet": SD2_UNET | {"upcast_attention": True}, "vae": {}, "text_encoder": SD2_TEXT}, "v_prediction",
    ),
}


def peak_gib():
    """Largest resident memory of this process so far, GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


@contextlib.contextmanager
def report(what):
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory so far {peak_gib():.2f} GiB", flush=True)


def random_network(network_class, config):
    """PyTorch's own initialisation: fan-in scaled, norms at 1."""
    torch.manual_seed(0)
    return network_class(check_config(network_class.Config, config, network_class.official_class)).eval()


def make(folder, version):
    values, predicts = CONFIGS[version]
    with report("random weights"):
        parts = [random_network(network, values[network.part]) for network in (UNet, VAE, TextEncoder)]
        configs = official_configs(*parts) | {"scheduler": SD_SCHEDULER | {"prediction_type": predicts}}
        sd = StableDiffusion(*parts, Tokenizer(ASSETS / "tiny" / "tokenizer"), configs, dict(RECIPE))
    with report("write the diffusers folder"):
        sd.save(folder / "diffusers")
    with report("write the single file"):
        sd.save_single_file(folder / "ldm.safetensors")


def check(folder, version):
    import diffusers
    import transformers

    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, 4, 32, 40, generator=generator), torch.tensor([501])
    values, _ = CONFIGS[version]
    width = {"v1": 768, "v2": 1024}[version]
    context, z = torch.randn(1, 77, width, generator=generator), torch.randn(1, 4, 16, 24, generator=generator)
    images = torch.rand(1, 3, 128, 192, generator=generator) * 2 - 1
    ids = torch.randint(0, 49408, (2, 77), generator=generator)

    def both_ways(vae, encoded, decoded):
        return torch.cat([encoded(vae.encode(images)).flatten(), decoded(vae.decode(z)).flatten()])

    sources = {
        "unet": (
            UNet, diffusers.UNet2DConditionModel,
            lambda n: n(x, t, context), lambda n: n(x, t, context).sample,
        ),
        "vae": (
            VAE, diffusers.AutoencoderKL,
            lambda n: both_ways(n, lambda moments: moments[0], lambda picture: picture),
            lambda n: both_ways(n, lambda out: out.latent_dist.mean, lambda out: out.sample),
        ),
        "text_encoder": (
            TextEncoder, transformers.CLIPTextModel,
            lambda n: n(ids), lambda n: n(ids).last_hidden_state,
        ),
    }
    worst = 0.0
    with torch.no_grad():
        for part, (ours, theirs, run_ours, run_theirs) in sources.items():
            file = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
            with report(f"{part}: load from the folder"):
                network = ours.from_file(folder / "diffusers" / part / file, values[part])
            with report(f"{part}: compute"):
                a = run_ours(network)
            with report(f"{part}: load from the single file"):
                state = ours.from_file(folder / "ldm.safetensors", values[part]).state_dict()
            same = all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
            del network, state
            with report(f"{part}: diffusers loads"):
                network = theirs.from_pretrained(folder / "diffusers" / part).eval()
            with report(f"{part}: diffusers computes"):
                b = run_theirs(network)
            del network
            error = ((a - b).abs().max() / b.std()).item()
            worst = max(worst, error if same else 1.0)
            print(f"{part}: max|d| / std = {error:.1e}; both layouts hold the same weights: {same}", flush=True)
    print("within 1e-4" if worst < 1e-4 else "NOT within 1e-4")
    raise SystemExit(worst >= 1e-4)


def train(folder, images):
    """The training command itself, in a process of its own so that only its memory counts."""
    out, classes = folder / "run", folder / "class_images"
    shutil.rmtree(out, ignore_errors=True)
    classes.mkdir(exist_ok=True)
    shutil.copy(sorted(p for p in Path(images).iterdir() if p.suffix in (".jpg", ".png"))[0], classes)
    command = [
        sys.executable, "-m", "minibnn.train",
        "--images", images, "--model", str(folder / "diffusers"), "--out", str(out),
        "--prompt", "a photo of a sks backpack", "--class-prompt", "a photo of a backpack",
        "--class-images", str(classes), "--class-count", "1",
        "--resolution", "256", "--steps", "2", "--dtype", "bfloat16", "--samples", "0",
    ]
    script = (
        "import resource, subprocess, sys, time; s = time.time(); c = subprocess.run(sys.argv[1:]).returncode; "
        "print(f'exit code {c}, {time.time() - s:.0f} s, peak memory "
        "{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB'); sys.exit(c)"
    )
    subprocess.run([sys.executable, "-c", script, *command], check=True)
    for line in (out / "log.jsonl").read_text().splitlines():
        print(json.loads(line))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check", "train"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images")
    parser.add_argument("--version", choices=CONFIGS, default="v1")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.what == "train":
        train(options.folder, options.images)
    else:
        {"make": make, "check": check}[options.what](options.folder, options.version)


if __name__ == "__main__":
    main()
