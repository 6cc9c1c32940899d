"""Time and memory of Bayesian linear layers on a CUDA GPU: `python benchmarks/kernel.py`.

For every random linear layer of SD v1.5's UNet it times the forward pass, the backward pass, and both, of

    plain    nn.Linear under autocast: no noise, weights cast to the compute dtype
    unfused  the layer of the paper's authors: σ rewritten by a clamp, randn_like, multiply, add, F.linear
    fused, mixed, sample, auto    our paths (`kernels/bayes_linear.py`)
    floor    a time that no implementation can beat: the bytes of x, μ, σ, y and their gradients over the measured
             bandwidth of a copy, or the operations over the measured rate of a matmul, whichever takes longer

But: there is no autotuning. It has never run on a GPU; tutorial 10 has a model of what it should find.
"""

import importlib.util
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minibnn.errors import UserError
from minibnn.files.store import write_json
from minibnn.finetune import bayes
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.kinds import option, whole
from minibnn.options.parsing import parse
from minibnn.options.running import run

FORMULATIONS = ("plain", "unfused", "fused", "mixed", "sample", "auto")
PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class BenchOptions:
    """Time the fused Bayesian linear layer against plain and unfused ones at SD v1.5's shapes, on a CUDA GPU."""

    where: str = option("paper", "which layers, as in minibnn.train; linear ones count", "what", metavar="WHERE")
    batch: list = option((1, 4), "batch sizes", "what", nargs="+", type=whole, metavar="N")
    resolution: int = option(512, "pixels of the picture", "what", type=whole)
    dtype: str = option("bfloat16", "of the computation", "what", choices=("bfloat16", "float16"))
    out: str = option(None, "a JSON file with every layer's figures", "output", metavar="JSON")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class Layer:
    """x (m, k) times a weight (n, k)."""

    m: int
    n: int
    k: int
    bias: bool


def sd15_layers(where, batch, resolution=512):
    """{Layer: how often} of the random linears of SD v1.5's UNet, by a forward on the meta device. Raises UserError."""
    with torch.device("meta"):
        unet = UNet(UNetConfig()).eval()
        try:
            chosen = set(bayes.select(unet, where))
        except ValueError as error:
            raise UserError(f"--where: {error}") from None
        found = {}

        def see(module, inputs, output):
            x = inputs[0]
            layer = Layer(x.numel() // x.shape[-1], *module.weight.shape, module.bias is not None)
            found[layer] = found.get(layer, 0) + 1

        for name, module in unet.named_modules():
            if name in chosen and isinstance(module, torch.nn.Linear):
                module.register_forward_hook(see)
        size = resolution // 8
        with torch.no_grad():
            unet(torch.empty(batch, 4, size, size), torch.zeros(batch, dtype=torch.int64), torch.empty(batch, 77, 768))
    if not found:
        raise UserError(f"--where {where} has no linear layer, and only those are timed")
    return found


class RandLinear(torch.nn.Module):
    """The authors' formulation: every step is a PyTorch operation of its own, and a clamp rewrites σ."""

    def __init__(self, n, k, bias):
        super().__init__()
        self.weight, self.weight_sigma = (torch.nn.Parameter(torch.full((n, k), 0.01)) for _ in range(2))
        self.bias, self.bias_sigma = (torch.nn.Parameter(torch.full((n,), 0.01)) if bias else None for _ in range(2))

    def forward(self, x):
        self.weight_sigma.data = torch.clamp(self.weight_sigma.data, min=bayes.SIGMA_MIN)
        weight, bias = self.weight + self.weight_sigma * torch.randn_like(self.weight_sigma), None
        if self.bias is not None:
            self.bias_sigma.data = torch.clamp(self.bias_sigma.data, min=bayes.SIGMA_MIN)
            bias = self.bias + self.bias_sigma * torch.randn_like(self.bias_sigma)
        return F.linear(x, weight, bias)


def passes(layer, name, dtype, device):
    """({pass: a function without arguments that runs it once}, [x and every parameter], which get gradients)."""
    from minibnn_kernels.bayes_linear import bayes_linear

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.m, layer.k, generator=generator).to(device, dtype).requires_grad_()
    dy = torch.randn(layer.m, layer.n, generator=generator).to(device, dtype)
    if name == "plain":
        module = torch.nn.Linear(layer.k, layer.n, layer.bias).to(device)
    else:
        module = RandLinear(layer.n, layer.k, layer.bias).to(device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)

    def forward():
        with torch.autocast(torch.device(device).type, dtype):
            if name in ("plain", "unfused"):
                return module(x)
            parts = (module.weight, module.weight_sigma, module.bias, module.bias_sigma)
            return bayes_linear(x, *parts, seed=seed, path=name)

    inputs, y = [x, *module.parameters()], forward()
    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True),
        "both": lambda: torch.autograd.grad(forward(), inputs, dy),
    }, inputs


def kept_for_backward(forward, inputs):
    """Bytes that autograd keeps of a forward, beside its inputs: ε and θ, where they are kept."""
    saved = {}

    def see(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        y = forward()  # held until the sum is done, so that no memory is used twice
    own = {tensor.untyped_storage().data_ptr() for tensor in [*inputs, y]}
    return sum(size for place, size in saved.items() if place not in own)


def cuda_timer(function, repeats=30):
    """Median seconds of function(), by CUDA events, with the cache emptied before each run."""
    spoil = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times = []
    for i in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        spoil.zero_()  # the launch is hidden behind this, as behind other work in a network
        start.record()
        function()
        end.record()
        end.synchronize()
        if i >= 5:  # the first ones compile and warm up
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def cuda_peak(function):
    """Bytes that function() needs at its peak, beside what exists already."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def gpu_rates(timer):
    """(bytes a second of a copy, operations a second of a bfloat16 matmul), measured here."""
    a, b = (torch.empty(2**28, dtype=torch.uint8, device="cuda") for _ in range(2))
    square = torch.randn(8192, 8192, device="cuda").bfloat16()
    return 2 * a.numel() / timer(lambda: b.copy_(a)), 2 * 8192**3 / timer(lambda: square @ square)


def floor(layer, rates):
    """{pass: seconds} below which no layer with weights μ + σ∘ε stays: everything is read and written once."""
    x, y, parameters = 2 * layer.m * layer.k, 2 * layer.m * layer.n, 8 * layer.n * layer.k  # bytes
    operations, (bandwidth, matmul) = 2 * layer.m * layer.n * layer.k, rates
    forward = max((x + parameters + y) / bandwidth, operations / matmul)
    backward = max((2 * (x + parameters) + y) / bandwidth, 2 * operations / matmul)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def measure(layers, dtype, device, timer, peak, capability, rates, progress=iter):
    """[{"layer", "count", formulation: {pass: seconds, "kept", "peak": bytes}}]; timer, peak: function() -> number.

    capability: the GPU's, which decides what "auto" is; rates: as `gpu_rates` returns them.
    """
    from minibnn_kernels.bayes_linear import choose_path

    rows = []
    for layer, count in progress(layers.items()):
        row = {"layer": vars(layer), "count": count}
        for name in FORMULATIONS[:-1]:
            runs, inputs = passes(layer, name, dtype, device)
            row[name] = {one: timer(runs[one]) for one in PASSES}
            row[name] |= {"kept": kept_for_backward(runs["forward"], inputs), "peak": peak(runs["both"])}
        row["auto"] = row[choose_path(layer.m, layer.n, layer.k, capability)]
        row["floor"] = floor(layer, rates) | {"kept": 0, "peak": 0}
        rows.append(row)
    return rows


def totals(rows):
    """{formulation: {pass: seconds of all layers, "kept": bytes of all layers, "peak": bytes of the largest layer}}."""
    return {
        name: {what: sum(row["count"] * row[name][what] for row in rows) for what in (*PASSES, "kept")}
        | {"peak": max(row[name]["peak"] for row in rows)}
        for name in (*FORMULATIONS, "floor")
    }


def report(sums):
    """The table of one batch size, Markdown: milliseconds, how many times as long as "auto" it takes, and memory."""
    lines = [
        "| | forward ms | backward ms | both ms | both / auto | kept for backward, MiB | peak of one layer, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in sums.items():
        times = " | ".join(f"{values[one] * 1e3:.2f}" for one in PASSES)
        ratio = values["both"] / sums["auto"]["both"]
        kept, peak = values["kept"] / 2**20, values["peak"] / 2**20
        lines.append(f"| {name} | {times} | {ratio:.2f} | {kept:.0f} | {peak:.0f} |")
    return "\n".join(lines)


def main(options):
    """Raises UserError."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed: pip install triton (Linux)")
    if not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA GPU")
    if options.out and Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; --overwrite replaces it")
    layers = {batch: sd15_layers(options.where, batch, options.resolution) for batch in options.batch}
    rates, capability = gpu_rates(cuda_timer), torch.cuda.get_device_capability()
    where = f"measured on {torch.cuda.get_device_name()}"
    print(f"{where}: {rates[0] / 1e12:.2f} TB/s, {rates[1] / 1e12:.0f} TFLOP/s, torch {torch.__version__}")
    rows = {}
    for batch, found in layers.items():
        weights = sum(layer.n * layer.k * count for layer, count in found.items())
        print(f"\nbatch {batch}: {sum(found.values())} linears, {weights / 1e6:.0f} M weights, --where {options.where}")
        dtype = getattr(torch, options.dtype)
        rows[batch] = measure(found, dtype, "cuda", cuda_timer, cuda_peak, capability, rates, tqdm)
        print(report(totals(rows[batch])))
    if options.out:
        sums = {batch: totals(found) for batch, found in rows.items()}
        rates = {"bandwidth": rates[0], "matmul": rates[1]}
        write_json(options.out, {"what": where, **rates, "totals": sums, "layers": rows})


if __name__ == "__main__":
    run(main, parse(BenchOptions, "benchmarks.kernel"))
