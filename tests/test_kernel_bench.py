"""The kernels' benchmark without a GPU: its layers, its measuring with a false clock, and tutorial 10's cost model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from minibnn_kernels.bayes_linear import choose_path
from test_tutorials import TUTORIALS, definitions

from minibnn.errors import UserError
from minibnn.options.parsing import parse

FILE = Path(__file__).parents[1] / "benchmarks" / "kernel.py"
SPEC = importlib.util.spec_from_file_location("kernel_benchmark", FILE)
bench = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = bench  # where dataclasses look for their module
SPEC.loader.exec_module(bench)
Layer = bench.Layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATES = (1e12, 1e14)  # bytes and operations a second


@pytest.fixture(scope="module")
def paper():
    return {batch: bench.sd15_layers("paper", batch) for batch in (1, 4)}


def test_the_layers_are_those_of_sd15(paper):
    """96 layers in 16 blocks; rows, columns and weights by hand from SD v1.5's widths and 64 × 64 latents."""
    expected = {}
    for width, tokens, blocks in ((320, 4096, 5), (640, 1024, 5), (1280, 256, 5), (1280, 64, 1)):
        expected |= {
            Layer(tokens, width, width, False): 3 * blocks,
            Layer(tokens, width, width, True): blocks,
            Layer(tokens, 8 * width, width, True): blocks,
            Layer(tokens, width, 4 * width, True): blocks,
        }
    assert paper[1] == expected and sum(expected.values()) == 96
    assert paper[4] == {Layer(4 * layer.m, layer.n, layer.k, layer.bias): count for layer, count in expected.items()}
    assert sum(layer.n * layer.k * count for layer, count in paper[1].items()) == 198_246_400
    with pytest.raises(UserError, match="--where: where = 'here' is not one of"):
        bench.sd15_layers("here", 1)
    for where in ("conv", "norm"):
        with pytest.raises(UserError, match=f"--where {where} has no linear layer"):
            bench.sd15_layers(where, 1)


# --- the cost model of tutorial 10 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predict():
    """predict(layer, formulation): seconds of both passes on an H200."""
    tutorial = definitions((TUTORIALS / "10_the_kernel.py").read_text(encoding="utf-8"))
    return lambda layer, name: tutorial["cost"](layer.m, layer.n, layer.k, name)


def test_the_cost_model_by_hand(predict):
    """A layer so large that every kernel fills the GPU, and one so small that the fused ones do not."""
    layer = Layer(4096, 10240, 1280, True)
    w, x, y = 10240 * 1280, 2 * 4096 * 1280, 2 * 4096 * 10240
    library = max((x + y + 2 * w) / 4.3e12, 2 * 4096 * w / 790e12)
    normals = w / (132 * 128 * 1.755e9 / 72)
    assert predict(layer, "plain") == pytest.approx(3 * library + 2 * 6 * w / 4.3e12 + 5 * 2e-6)
    unfused = 3 * library + normals + (8 + 12 + 12 + 6 + 6 + 12) * w / 4.3e12 + 10 * 2e-6
    assert predict(layer, "unfused") == pytest.approx(unfused)
    drawing = max(10 * w / 4.3e12, normals)
    times_eps = max(8 * w / 4.3e12, normals)
    sample = 3 * library + 2 * drawing + 6 * w / 4.3e12 + times_eps + 7 * 2e-6
    assert predict(layer, "sample") == pytest.approx(sample)
    gradient = max((x + y + 8 * w) / 4.3e12, 2 * 4096 * w / 790e12, normals)
    assert predict(layer, "mixed") == pytest.approx(2 * library + 2 * drawing + gradient + 5 * 2e-6)
    assert predict(layer, "fused") == pytest.approx(2 * 64 * normals + gradient + 3 * 2e-6)  # 64 tiles of rows
    small, w = Layer(128, 640, 64, True), 640 * 64
    made, moved = 2 * w / (132 * 128 * 1.755e9 / 72), 2 * 128 * (64 + 640) + 8 * w  # two tiles of rows
    forward, dx = (max(made, moved / 4.3e12) / (programs / 132) for programs in (20, 2))
    weights = max(made / 2, moved / 4.3e12) / (5 / 132)
    assert predict(small, "fused") == pytest.approx(forward + dx + weights + 3 * 2e-6)


def test_the_table_chooses_what_the_cost_model_finds_best(paper, predict):
    for layers in paper.values():
        chosen = best = 0.0
        for layer, count in layers.items():
            least = min(predict(layer, name) for name in ("fused", "mixed", "sample"))
            auto = predict(layer, choose_path(layer.m, layer.n, layer.k, (9, 0)))
            assert auto <= 1.05 * least, layer
            chosen, best = chosen + count * auto, best + count * least
        assert chosen <= 1.01 * best
    assert choose_path(64, 1280, 1280, (7, 5)) == "sample"  # a T4 has no tensor cores for tl.dot


# --- measuring --------------------------------------------------------------------------------------------------------


def test_measuring_counts_every_layer_and_every_pass():
    """Small layers, without a GPU in Triton's interpreter; the clock only looks at what it is given."""
    layers, calls = {Layer(5, 8, 4, True): 3, Layer(3, 4, 8, False): 2}, []

    def timer(function):
        calls.append(function())
        return 1e-3 * (1 if isinstance(calls[-1], torch.Tensor) else 2)

    rows = bench.measure(layers, torch.bfloat16, DEVICE, timer, lambda f: len(f()) * 2**20, (9, 0), RATES)
    assert [row["count"] for row in rows] == [3, 2]
    for row, parameters in zip(rows, ({"plain": 2, "other": 4}, {"plain": 1, "other": 2}), strict=True):
        for name in bench.FORMULATIONS:
            gradients = 1 + parameters.get(name, parameters["other"])
            times = {one: row[name][one] for one in (*bench.PASSES, "peak")}
            assert times == {"forward": 1e-3, "backward": 2e-3, "both": 2e-3, "peak": gradients * 2**20}
        n, k, bias = (row["layer"][what] for what in ("n", "k", "bias"))
        kept = {name: row[name]["kept"] for name in bench.FORMULATIONS}
        assert kept == dict.fromkeys(bench.FORMULATIONS, 8) | {  # ours: the seed
            "plain": 2 * n * k,  # the weight in 16 bits
            "unfused": (4 + 2) * n * k + 4 * n * bias,  # ε, and θ in 16 bits; the bias's ε, too
        }
    sums = bench.totals(rows)
    assert [sums["fused"][one] for one in bench.PASSES] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert sums["fused"]["peak"] == 5 * 2**20
    assert sums["unfused"]["kept"] == 3 * (6 * 32 + 4 * 8) + 2 * 6 * 32
    forward = 3 * (2 * 5 * 4 + 2 * 5 * 8 + 8 * 32) + 2 * (2 * 3 * 8 + 2 * 3 * 4 + 8 * 32)
    assert sums["floor"]["forward"] == pytest.approx(forward / 1e12)  # so small that bytes alone count
    assert all(call.dtype == torch.bfloat16 for call in calls if isinstance(call, torch.Tensor))


def test_the_floor_of_a_layer_of_many_rows_is_its_multiplications():
    floor = bench.floor(Layer(16384, 1280, 1280, False), RATES)
    operations = 2 * 16384 * 1280 * 1280 / 1e14
    assert floor == pytest.approx({"forward": operations, "backward": 2 * operations, "both": 3 * operations})


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "sample"), ((9, 0), "mixed")])
def test_auto_is_what_this_gpu_would_choose(capability, chosen):
    """A layer of a large weight: a T4 cannot multiply in our kernels' way."""
    clock = iter(range(100))

    def timer(function):
        function()
        return next(clock)  # no two alike

    layers = {Layer(1, 16, 8, False): 1}
    [row] = bench.measure(layers, torch.float16, DEVICE, timer, lambda function: 0, capability, RATES)
    assert row["auto"] == row[chosen] != row["mixed" if chosen == "sample" else "sample"]


def test_the_unfused_layer_is_the_authors():
    layer = bench.RandLinear(50, 40, True)
    with torch.no_grad():
        layer.weight_sigma.fill_(-1.0)
        layer.bias_sigma.fill_(-1.0)
    assert layer(torch.randn(2, 40)).shape == (2, 50)
    assert (layer.weight_sigma == 1e-7).all() and (layer.bias_sigma == 1e-7).all()
    with torch.no_grad():
        layer.weight_sigma.fill_(0.5)
    y = layer(torch.eye(40)) - 0.01  # its weights, transposed
    assert y.std().item() == pytest.approx(0.5, rel=0.1) and not torch.equal(y, layer(torch.eye(40)) - 0.01)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_report_and_the_file(tmp_path, monkeypatch, capsys):
    """As on a GPU that takes 1 ms for everything but "auto", which takes 2 ms."""

    def measure(layers, *_):
        figures = {name: {"forward": 1e-3, "backward": 1e-3, "both": 2e-3, "kept": 2**20, "peak": 0} for name in names}
        figures["auto"] = dict.fromkeys(bench.PASSES, 2e-3) | {"kept": 0, "peak": 0}
        return [{"layer": vars(layer), "count": count} | figures for layer, count in layers.items()]

    names = (*bench.FORMULATIONS, "floor")
    for name, value in {"is_available": True, "get_device_name": "GPU", "get_device_capability": (9, 0)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(bench, "gpu_rates", lambda timer: RATES)
    monkeypatch.setattr(bench, "measure", measure)
    options = parse(bench.BenchOptions, "benchmarks.kernel", ["--out", str(tmp_path / "out.json"), "--batch", "1", "2"])
    bench.main(options)
    printed = capsys.readouterr().out
    assert "measured on GPU: 1.00 TB/s, 100 TFLOP/s" in printed and "batch 2: 96 linears, 198 M weights" in printed
    table = [line for line in printed.split("batch 2")[0].splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == list(names)
    assert table[3] == "| unfused | 96.00 | 96.00 | 192.00 | 1.00 | 96 | 0 |"
    assert table[7] == "| auto | 192.00 | 192.00 | 192.00 | 1.00 | 0 | 0 |"
    saved = json.loads((tmp_path / "out.json").read_text())
    assert set(saved["totals"]) == {"1", "2"} and len(saved["layers"]["1"]) == 16
    assert saved["totals"]["2"]["plain"]["forward"] == pytest.approx(0.096)
    with pytest.raises(UserError, match="out.json exists; --overwrite"):
        bench.main(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without one")
def test_without_a_gpu_the_command_says_so_in_one_line():
    result = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: this benchmark needs a CUDA GPU\n"
