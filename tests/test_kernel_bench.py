"""The kernels' benchmark without a GPU: its layers, cost model, sums and picture; and its measuring with a false clock."""

import json
import math
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from minibnn_kernels import bench
from minibnn_kernels.bayes_linear import choose_path
from minibnn_kernels.bench import H200, Device, Layer

from minibnn.errors import UserError
from minibnn.options.commands import BenchOptions
from minibnn.options.parsing import parse

OURS = ("fused", "mixed", "sample")


def options(*words):
    return parse(BenchOptions, "minibnn_kernels.bench", list(words))


@pytest.fixture(scope="module")
def paper():
    return {batch: bench.sd15_layers("paper", batch) for batch in (1, 4)}


def test_the_layers_are_those_of_sd15(paper):
    """96 layers in 16 blocks; rows, columns and weights by hand from SD v1.5's widths and 64 × 64 latents."""
    expected = {}
    for width, tokens, blocks in ((320, 4096, 5), (640, 1024, 5), (1280, 256, 5), (1280, 64, 1)):
        for n, k, bias, count in (
            (width, width, False, 3), (width, width, True, 1), (8 * width, width, True, 1), (width, 4 * width, True, 1),
        ):  # fmt: skip
            expected[Layer(tokens, n, k, bias)] = count * blocks
    assert paper[1] == expected and sum(expected.values()) == 96
    assert paper[4] == {Layer(4 * layer.m, layer.n, layer.k, layer.bias): count for layer, count in expected.items()}
    assert sum(layer.n * layer.k * count for layer, count in paper[1].items()) == 198_246_400


def test_the_cost_model_by_hand():
    device, layer = Device(bandwidth=1e12, matmul=1e14, normals=1e11, processors=10, launch=1e-6), Layer(128, 640, 64, True)
    w, x, y = 640 * 64, 2 * 128 * 64, 2 * 128 * 640
    library = max((x + y + 2 * w) / 1e12, 2 * 128 * w / 1e14)
    assert bench.predict(layer, "plain", "forward", device) == pytest.approx(6 * w / 1e12 + library + 2e-6)
    sampling = max(10 * w / 1e12, w / 1e11)
    assert bench.predict(layer, "sample", "forward", device) == pytest.approx(sampling + library + 2e-6)
    assert bench.predict(layer, "fused", "forward", device) == pytest.approx(2 * w / 1e11 + 1e-6)  # 20 programs: none idle
    assert bench.predict(layer, "fused", "backward", device) == pytest.approx(
        2 * w / 1e11 / 0.2 + (x + y + 8 * w) / 1e12 + 2e-6  # dx has 2 programs, wgrad 10
    )
    both = sum(bench.predict(layer, "unfused", one, device) for one in ("forward", "backward"))
    assert bench.predict(layer, "unfused", "both", device) == pytest.approx(both)
    assert bench.saved_for_backward(layer, "unfused") == 6 * w and bench.saved_for_backward(layer, "mixed") == 0


def test_nothing_is_predicted_below_the_floor(paper):
    for layers in paper.values():
        for layer in layers:
            for one in bench.PASSES:
                least = bench.predict(layer, "floor", one, H200)
                assert all(bench.predict(layer, name, one, H200) >= least for name in ("unfused", *OURS))


def test_the_table_chooses_what_the_cost_model_finds_best(paper):
    for layers in paper.values():
        chosen = best = 0.0
        for layer, count in layers.items():
            times = [bench.predict(layer, name, "both", H200) for name in OURS]
            auto = bench.predict(layer, "auto", "both", H200)
            assert auto <= 1.05 * min(times), layer
            chosen, best = chosen + count * auto, best + count * min(times)
        assert chosen <= 1.01 * best
    assert choose_path(64, 1280, 1280, (7, 5)) == "sample"  # a T4 has no tensor cores for tl.dot


def test_measuring_counts_every_layer_and_every_pass():
    """Small layers, without a GPU in Triton's interpreter; the clock only looks at what it is given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, calls = {Layer(5, 8, 4, True): 3, Layer(3, 4, 8, False): 2}, []

    def timer(function):
        calls.append(function())
        return 1e-3 * (1 if isinstance(calls[-1], torch.Tensor) else 2)

    rows = bench.measure(layers, torch.bfloat16, device, timer, lambda function: len(function()) * 2**20, (9, 0))
    assert [row["count"] for row in rows] == [3, 2]
    for row, parameters in zip(rows, ({"plain": 2, "other": 4}, {"plain": 1, "other": 2}), strict=True):
        for name in bench.FORMULATIONS:
            gradients = 1 + parameters.get(name, parameters["other"])
            times = {one: row[name][one] for one in (*bench.PASSES, "peak")}
            assert times == {"forward": 1e-3, "backward": 2e-3, "both": 2e-3, "peak": gradients * 2**20}
        layer = Layer(**row["layer"])
        biases = layer.n * layer.bias
        assert {name: row[name]["kept"] for name in bench.FORMULATIONS} == dict.fromkeys(bench.FORMULATIONS, 8) | {  # ours: the seed
            "plain": bench.saved_for_backward(layer, "plain"),
            "unfused": bench.saved_for_backward(layer, "unfused") + 4 * biases,  # the bias's ε is kept, too
        }
    sums = bench.totals(rows, H200)
    assert [sums["fused"][one] for one in bench.PASSES] == pytest.approx([5e-3, 1e-2, 1e-2]) and sums["fused"]["peak"] == 5 * 2**20
    assert sums["unfused"]["kept"] == 3 * (6 * 32 + 4 * 8) + 2 * 6 * 32
    assert sums["floor"]["both"] > 0
    assert all(call.dtype == torch.bfloat16 for call in calls if isinstance(call, torch.Tensor))


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "sample"), ((9, 0), "mixed")])
def test_auto_is_what_this_gpu_would_choose(capability, chosen):
    """A layer of a large weight: a T4 cannot multiply in our kernels' way."""
    device, clock = "cuda" if torch.cuda.is_available() else "cpu", iter(range(100))

    def timer(function):
        function()
        return next(clock)  # no two alike

    [row] = bench.measure({Layer(2, 16, 8, False): 1}, torch.float16, device, timer, lambda function: 0, capability)
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


def test_report_and_picture(paper):
    by_batch = {batch: bench.totals(bench.predicted(layers, H200), H200) for batch, layers in paper.items()}
    table = bench.report(by_batch[1]).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [*bench.FORMULATIONS, "floor"]
    auto = by_batch[1]["auto"]
    row = next(line for line in table if line.startswith("| auto")).split("|")
    assert [float(cell) for cell in row[2:6]] == pytest.approx([*(auto[one] * 1e3 for one in bench.PASSES), 1.0], abs=0.005)
    image = bench.picture(by_batch)
    assert image.size[0] > 1000 and len(image.getcolors(2**24)) > 20


def test_without_a_gpu_only_predictions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA GPU; --predict prints"):
        bench.main(options())
    words = ["--predict", "--out", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"), "--batch", "1", "2"]
    bench.main(options(*words))
    printed = capsys.readouterr().out
    assert "predicted, not measured: 4.30 TB/s, 790 TFLOP/s" in printed and "96 linears, 198 M weights" in printed
    saved = json.loads((tmp_path / "out.json").read_text())
    assert set(saved["totals"]) == {"1", "2"} and len(saved["layers"]["1"]) == 16
    assert all(math.isfinite(saved["totals"]["2"]["auto"][what]) for what in (*bench.PASSES, "kept"))
    assert (tmp_path / "out.png").stat().st_size > 5000
    with pytest.raises(UserError, match="out.json exists; --overwrite"):
        bench.main(options(*words))
    with pytest.raises(UserError, match="--where: where = 'here' is not one of"):
        bench.main(options("--predict", "--where", "here"))
    for where in ("conv", "norm"):
        with pytest.raises(UserError, match=f"--where {where} has no linear layer"):
            bench.main(options("--predict", "--where", where))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without one")
def test_the_command_says_so_in_one_line():
    result = subprocess.run([sys.executable, "-m", "minibnn_kernels.bench"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: this benchmark needs a CUDA GPU; --predict prints what the cost model expects\n"
