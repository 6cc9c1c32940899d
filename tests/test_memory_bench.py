"""The count of a training's memory without a GPU: by hand for a small network, and what must hold for the UNet."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
from minibnn.networks.unet import UNetConfig

SMALL = UNetConfig(
    block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=4, layers_per_block=1, cross_attention_dim=32,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("memory")


def test_what_a_forward_keeps_by_hand(bench):
    """Linear keeps its input and ReLU its output; the first layer's output is freed. All are multiples of 512 bytes."""
    with torch.device("meta"):
        network, x = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 512)), torch.empty(64, 128)
    memory = bench.Memory()
    memory.see([*network.parameters(), x])
    weights = 4 * (128 * 256 + 256 + 256 * 512 + 512)
    assert memory.live == weights + 4 * 64 * 128
    with memory:
        y = network(x)
        assert memory.live == weights + 4 * 64 * (128 + 256 + 512)
        y.sum().backward()
        del y
    assert memory.live == 2 * weights + 4 * 64 * 128  # gradients, and x


def test_a_training_of_the_unet(bench, monkeypatch):
    monkeypatch.setattr(bench.adamw_bf16, "CHUNK", 2**10)
    variants = ("full, plain", "full, BNN", "full, BNN, checkpointing", "full, BNN, adamw-bf16", "LoRA, BNN")
    found = {name: bench.measure(SMALL, 8, bench.VARIANTS[name]) for name in variants}
    with torch.device("meta"):
        numbers = sum(p.numel() for p in bench.UNet(SMALL).parameters())
        tensors = len(list(bench.UNet(SMALL).parameters()))
    plain = found["full, plain"]
    assert 4 * numbers <= plain["weights"] <= 4 * numbers + 512 * tensors
    moments = plain["kept"] - plain["weights"]
    assert 8 * numbers <= moments <= 8 * numbers + 3 * 512 * tensors
    assert plain["peak"] >= plain["kept"] + 4 * numbers, "with all gradients at hand"
    saved = found["full, BNN"]["kept"] - found["full, BNN, adamw-bf16"]["kept"]
    random = found["full, BNN"]["kept"] - plain["kept"]  # σ and its moments: 12 bytes for each random number
    assert saved == pytest.approx(4 * (numbers + random / 12), rel=0.2)
    assert found["full, BNN, checkpointing"]["peak"] < found["full, BNN"]["peak"]
    assert found["LoRA, BNN"]["peak"] < 0.6 * plain["peak"]


@pytest.mark.parametrize(("method", "copies"), [("lora", 0), ("dreambooth", 1)])
def test_only_dreambooth_keeps_a_second_unet_to_teach_the_class(bench, method, copies):
    """Nothing else is kept. The batch's context is counted where the teacher cuts it, and not where no one does."""
    changes = bench.LORA if method == "lora" else {}
    noise, taught = (bench.measure(SMALL, 8, changes | {"prior_weight": 1.0, "prior_target": target})
                     for target in ("noise", "pretrained"))
    context = 512 * -(-2 * 77 * SMALL.cross_attention_dim * 4 // 512)
    assert taught["kept"] - noise["kept"] == copies * noise["weights"] + context


def test_a_training_of_a_branch(bench):
    """Weights of both networks; at the peak also the branch's gradients and moments, and what autograd keeps."""
    with torch.device("meta"):
        frozen, branch = bench.UNet(SMALL), bench.bps_branch.Branch(SMALL)
    counts = [sum(-(-4 * p.numel() // 512) * 512 for p in part.parameters()) for part in (frozen, branch)]
    whole, less = (bench.measure_bps(SMALL, 16, 16, checkpointing) for checkpointing in (False, True))
    assert whole["weights"] == less["weights"] == sum(counts)
    least = sum(counts) + 3 * counts[1]
    assert least < less["peak"] < 0.6 * whole["peak"]
