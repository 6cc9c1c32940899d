"""Time and memory of Bayesian linear layers: `python -m minibnn_kernels.bench` (CUDA), `… --predict` (anywhere).

For every random linear layer of SD v1.5's UNet, forward, backward and both, of

    plain    nn.Linear under autocast: no noise, weights cast to the compute dtype
    unfused  the paper's authors' layer: σ rewritten by a clamp, randn_like, multiply, add, F.linear
    fused, mixed, sample, auto    our paths (`bayes_linear.py`)
    floor    what no implementation can beat: bytes of x, μ, σ, y and their gradients over the measured bandwidth of a
             copy, or operations over the measured rate of a matmul, whichever takes longer

The cost model (`--predict`): a formulation is a list of GPU kernels, one after another. A kernel takes `launch` and the
longest of three: its bytes over the bandwidth, its multiplications and additions over the matmul rate, its normal numbers
over their rate. Each operand passes once through memory; what a fused kernel reads again comes from the cache for nothing.
Our own kernels reach only the share of the rates that their tiles occupy of the GPU: programs / multiprocessors, at most 1.

But: no autotuning; biases count as nothing in the model, and a Triton matmul as fast as the library's.
"""

import importlib.util

from minibnn.commands import BenchOptions

from minibnn.options import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":
    OPTIONS = parse(BenchOptions, "minibnn_kernels.bench")
    answer_ctrl_c_while_importing()

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from minibnn.unet import UNet, UNetConfig
from minibnn.weights import write_json, write_whole
from tqdm import tqdm

from minibnn import bayes, plot
from minibnn.errors import UserError

FORMULATIONS = ("plain", "unfused", "fused", "mixed", "sample", "auto")
PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Layer:
    """x (m, k) times a weight (n, k)."""

    m: int
    n: int
    k: int
    bias: bool


@dataclass(frozen=True)
class Device:
    """Bytes, floating-point operations and normals a second, multiprocessors, seconds to launch a kernel."""

    bandwidth: float
    matmul: float
    normals: float = 132 * 128 * 1.755e9 / 54  # H200: lanes × clock / instructions for one bit-exact normal (static count)
    processors: int = 132
    launch: float = 2e-6


H200 = Device(4.3e12, 790e12)  # measured copy and matmul rates of another program; the rest is assumed


# --- the layers -------------------------------------------------------------------------------------------------------


def sd15_layers(where, batch, resolution=512):
    """{Layer: how often} of the random linears of SD v1.5's UNet, from a forward on the meta device. Raises UserError."""
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


# --- the cost model ---------------------------------------------------------------------------------------------------


def kernels(layer, name, direction):
    """[(bytes, operations, normals, programs or None)] of a formulation in 16-bit compute; direction: forward, backward."""
    m, n, k = layer.m, layer.n, layer.k
    x, y, w, ops = 2 * m * k, 2 * m * n, n * k, 2 * m * n * k  # bytes, bytes, weights, operations
    rows, columns, depth = (-(-size // 64) for size in (m, n, k))  # tiles of 64, as in TILES
    cast, library = (6 * w, 0, 0, None), (x + y + 2 * w, ops, 0, None)
    sample, times_epsilon = (10 * w, 0, w, None), (8 * w, 0, w, None)
    unfused = [(8 * w, 0, 0, None), (4 * w, 0, w, None), (12 * w, 0, 0, None), (12 * w, 0, 0, None), cast, library]
    dx, wgrad = (x + y + 8 * w, ops, rows * w, rows * depth), (x + y + 8 * w, ops, w, columns * depth)
    return {
        ("plain", "forward"): [cast, library],
        ("plain", "backward"): [library, library, cast],
        ("unfused", "forward"): unfused,
        ("unfused", "backward"): [library, library, cast, (12 * w, 0, 0, None)],
        ("sample", "forward"): [sample, library],
        ("sample", "backward"): [sample, library, library, cast, times_epsilon],
        ("fused", "forward"): [(x + y + 8 * w, ops, rows * w, rows * columns)],
        ("fused", "backward"): [dx, wgrad],
        ("mixed", "forward"): [sample, library],
        ("mixed", "backward"): [sample, library, wgrad],
    }[name, direction]


def predict(layer, name, direction, device):
    """Seconds."""
    if direction == "both":
        return predict(layer, name, "forward", device) + predict(layer, name, "backward", device)
    if name == "floor":
        return floor(layer, direction, device)
    if name == "auto":
        name = choose(layer)
    total = 0.0
    for size, operations, normals, programs in kernels(layer, name, direction):
        share = 1.0 if programs is None else min(1.0, programs / device.processors)
        busy = max(size / device.bandwidth, operations / device.matmul, normals / device.normals)
        total += busy / share + device.launch
    return total


def floor(layer, direction, device):
    """Seconds below which no layer with weights μ + σ∘ε stays: everything read and written once, no launches."""
    x, y, parameters = 2 * layer.m * layer.k, 2 * layer.m * layer.n, 8 * layer.n * layer.k
    operations = 2 * layer.m * layer.n * layer.k
    size, operations = {
        "forward": (x + parameters + y, operations),
        "backward": (y + x + parameters + x + parameters, 2 * operations),
    }[direction]
    return max(size / device.bandwidth, operations / device.matmul)


def saved_for_backward(layer, name):
    """Bytes of the weights' size that a formulation keeps between forward and backward, beside its parameters."""
    return {"plain": 2, "unfused": 4 + 2}.get(name, 0) * layer.n * layer.k


def choose(layer, capability=(9, 0)):
    """The path of "auto" on a GPU of this compute capability; (9, 0): H200."""
    from .bayes_linear import choose_path

    return choose_path(layer.m, layer.n, layer.k, capability)


# --- measuring --------------------------------------------------------------------------------------------------------


class RandLinear(torch.nn.Module):
    """The authors' formulation: every step a PyTorch operation of its own, with σ rewritten by a clamp."""

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
    """({pass: a function of no arguments} that runs the layer once, [x and every parameter], which get gradients)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.m, layer.k, generator=generator).to(device, dtype).requires_grad_()
    dy = torch.randn(layer.m, layer.n, generator=generator).to(device, dtype)
    if name in ("plain", "unfused"):
        make = torch.nn.Linear if name == "plain" else RandLinear
        module = make(layer.k, layer.n, layer.bias) if name == "plain" else make(layer.n, layer.k, layer.bias)
        module.to(device)
        inputs, compute = [x, *module.parameters()], lambda: module(x)
    else:
        from .bayes_linear import bayes_linear

        module, seed = RandLinear(layer.n, layer.k, layer.bias).to(device), torch.zeros(1, dtype=torch.int64, device=device)
        inputs, parts = [x, *module.parameters()], (module.weight, module.weight_sigma, module.bias, module.bias_sigma)

        def compute():
            return bayes_linear(x, *parts, seed=seed, path=name)

    def forward():
        with torch.autocast(torch.device(device).type, dtype):
            return compute()

    y = forward()
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
        y = forward()  # held until the sum is done: no memory is used twice
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


def measure(layers, dtype, device, timer, peak, capability, progress=iter):
    """[{"layer", "count", formulation: {pass: seconds, "kept", "peak": bytes}}]; timer, peak: function() -> number."""
    rows = []
    for layer, count in progress(layers.items()):
        row = {"layer": vars(layer), "count": count}
        for name in FORMULATIONS[:-1]:
            runs, inputs = passes(layer, name, dtype, device)
            row[name] = {one: timer(runs[one]) for one in PASSES}
            row[name] |= {"kept": kept_for_backward(runs["forward"], inputs), "peak": peak(runs["both"])}
        row["auto"] = row[choose(layer, capability)]
        rows.append(row)
    return rows


def measured_device(timer):
    """Bandwidth of a copy and rate of a bfloat16 matmul here."""
    a, b = torch.empty(2**28, dtype=torch.uint8, device="cuda"), torch.empty(2**28, dtype=torch.uint8, device="cuda")
    bandwidth = 2 * a.numel() / timer(lambda: b.copy_(a))
    square = torch.randn(8192, 8192, device="cuda").bfloat16()
    return Device(bandwidth, 2 * 8192**3 / timer(lambda: square @ square))


# --- the report -------------------------------------------------------------------------------------------------------


def predicted(layers, device):
    """As `measure`, from the cost model, which knows nothing of the peak."""
    rows = []
    for layer, count in layers.items():
        row = {"layer": vars(layer), "count": count}
        for name in FORMULATIONS:
            row[name] = {one: predict(layer, name, one, device) for one in PASSES}
            row[name] |= {"kept": saved_for_backward(layer, name), "peak": None}
        rows.append(row)
    return rows


def totals(rows, device):
    """{formulation: {pass: seconds, "kept": bytes, of all layers}}, with the floor; "peak": the largest of one layer."""
    sums = {n: {what: sum(r["count"] * r[n][what] for r in rows) for what in (*PASSES, "kept")} for n in FORMULATIONS}
    for name in FORMULATIONS:
        sums[name]["peak"] = None if rows[0][name]["peak"] is None else max(row[name]["peak"] for row in rows)
    least = {one: sum(r["count"] * predict(Layer(**r["layer"]), "floor", one, device) for r in rows) for one in PASSES}
    return sums | {"floor": least | {"kept": 0, "peak": None}}


def report(sums):
    """The table of one batch size, Markdown: milliseconds, how many times as long as "auto" it takes, and memory."""
    lines = ["| | forward ms | backward ms | both ms | both / auto | kept for backward, MiB | peak of the largest layer, MiB |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, values in sums.items():
        times = " | ".join(f"{values[one] * 1e3:.2f}" for one in PASSES)
        ratio = values["both"] / sums["auto"]["both"]
        peak = "" if values["peak"] is None else f"{values['peak'] / 2**20:.0f}"
        lines.append(f"| {name} | {times} | {ratio:.2f} | {values['kept'] / 2**20:.0f} | {peak} |")
    return "\n".join(lines)


def picture(by_batch):
    """Time against batch size, a panel for each pass. by_batch: {batch: totals}."""
    batches = sorted(by_batch)
    names = list(by_batch[batches[0]])
    return plot.chart([
        plot.Panel(f"{one}, ms", [plot.Line(n, batches, [by_batch[b][n][one] * 1e3 for b in batches]) for n in names], "batch")
        for one in PASSES
    ], columns=3)  # fmt: skip


def main(options):
    """Raises UserError."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed: pip install triton (Linux)")
    if not options.predict and not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA GPU; --predict prints what the cost model expects")
    if options.out and Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists; --overwrite replaces it")
    dtype = getattr(torch, options.dtype)
    device = Device(options.bandwidth * 1e12, options.matmul * 1e12) if options.predict else measured_device(cuda_timer)
    where = "predicted, not measured" if options.predict else f"measured on {torch.cuda.get_device_name()}"
    print(f"{where}: {device.bandwidth / 1e12:.2f} TB/s, {device.matmul / 1e12:.0f} TFLOP/s, torch {torch.__version__}")
    by_batch, rows = {}, {}
    for batch in options.batch:
        layers = sd15_layers(options.where, batch, options.resolution)
        weights = sum(layer.n * layer.k * count for layer, count in layers.items())
        print(f"\nbatch {batch}: {sum(layers.values())} linears, {weights / 1e6:.0f} M weights, --where {options.where}")
        if options.predict:
            rows[batch] = predicted(layers, device)
        else:
            rows[batch] = measure(layers, dtype, "cuda", cuda_timer, cuda_peak, torch.cuda.get_device_capability(), tqdm)
        by_batch[batch] = totals(rows[batch], device)
        print(report(by_batch[batch]))
    if options.out:
        write_json(options.out, {"what": where, "device": vars(device), "totals": by_batch, "layers": rows})
    if options.plot:
        write_whole(options.plot, lambda temporary: picture(by_batch).save(temporary, format="PNG"))


if __name__ == "__main__":
    run(main, OPTIONS)
