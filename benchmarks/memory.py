"""How much memory does a GPU need to train Stable Diffusion v1.5? `python benchmarks/memory.py`, without a GPU.

Training steps of the real loop run on PyTorch's meta device, where tensors have a shape and a type but no contents, at
512 × 512 pixels and batch 1 + 1. Every tensor that comes into being is counted until it is freed: weights, gradients,
moments, what autograd keeps, and what is there for a moment. What a CUDA device would do differently is put in place:

    autocast    casts as on CUDA: linear layers, convolutions and attention in bfloat16, normalisation in float32
    attention   keeps its inputs, its output and one number a row, as flash attention does
    AdamW       updates in place, as the fused kernel does
    our kernels draw all random weights into one buffer, and leave two of gradients

But: not counted are the allocator's gaps, the workspaces of cuDNN and cuBLAS, and CUDA's own memory; "fits" leaves 1 GB
for them. 1 GB is 10⁹ bytes.
"""

import argparse
import contextlib
import weakref
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minibnn import StableDiffusion, train
from minibnn.finetune import adamw_bf16, all_at_once
from minibnn.neighbours import bps, bps_branch
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.training import TrainOptions

HALF, RESERVE, GB = torch.bfloat16, 1.0, 1e9
LORA = {"method": "lora", "rank": 4, "alpha": 4.0, "layers": "to_q,to_k,to_v,to_out.0", "prior_weight": 0.0}
VARIANTS = {  # options of the training
    "full, plain": {"bayes": False},
    "full, BNN": {},
    "full, BNN, λ > 0": {"lambda_kl": 1e-6},
    "full, BNN, checkpointing": {"gradient_checkpointing": True},
    "full, BNN, adamw-bf16": {"optimiser": "adamw-bf16"},
    "full, BNN, checkpointing, adamw-bf16": {"gradient_checkpointing": True, "optimiser": "adamw-bf16"},
    "full, plain, checkpointing, adamw-bf16": {
        "gradient_checkpointing": True, "optimiser": "adamw-bf16", "bayes": False},
    "full, plain, teacher": {"bayes": False, "prior_target": "pretrained"},
    "full, plain, teacher, checkpointing, adamw-bf16": {
        "gradient_checkpointing": True, "optimiser": "adamw-bf16", "bayes": False, "prior_target": "pretrained"},
    "LoRA, BNN": LORA,
    "LoRA, BNN, class pictures and their teacher": LORA | {"prior_weight": 1.0, "prior_target": "pretrained"},
    "LoRA, BNN, checkpointing": LORA | {"gradient_checkpointing": True},
}


class Memory(TorchDispatchMode):
    """Inside, every tensor is counted: bytes that live now (`live`), and the most there were (`peak`)."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        self.see(result)
        return result

    def see(self, tensors):
        """Count the memory of tensors that has not been seen yet, until it is freed; as CUDA does, in blocks of 512."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                size = -(-storage.nbytes() // 512) * 512
                self.seen.add(storage)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, size)

    def _gone(self, size):
        self.live -= size


class Flash(torch.autograd.Function):
    """The memory of flash attention: q, k, v (B, heads, N or L, d) and its output are kept, no table of N × L."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class CudaAutocast:
    """torch.autocast("cuda", torch.bfloat16) for the operations of the UNet, without CUDA.

    Its functions take the place of PyTorch's for the whole training, because checkpointed blocks are computed again in
    backward. Within `forward()` casts of the weights are kept, as autocast does.
    """

    kept = None  # {id of a weight: its cast}

    @contextlib.contextmanager
    def forward(self):
        self.kept = {}
        try:
            yield
        finally:
            self.kept = None

    def half(self, argument):
        if not torch.is_tensor(argument) or not argument.is_floating_point() or argument.dtype == HALF:
            return argument
        if self.kept is None or not argument.is_leaf or not argument.requires_grad:
            return argument.to(HALF)
        if id(argument) not in self.kept:
            self.kept[id(argument)] = argument.to(HALF)
        return self.kept[id(argument)]

    def functions(self):
        """[(torch.nn.functional, name, function)] of all that differ."""

        def in_half(function):
            return lambda *arguments: function(*map(self.half, arguments))

        def in_full(function):
            return lambda *arguments: function(*(a.float() if torch.is_tensor(a) else a for a in arguments))

        found = [(F, name, in_half(getattr(F, name))) for name in ("linear", "conv2d")]
        found += [(F, name, in_full(getattr(F, name))) for name in ("group_norm", "layer_norm")]
        found += [(F, "scaled_dot_product_attention", lambda *qkv, is_causal: Flash.apply(*map(self.half, qkv)))]
        return found


class FusedAdamW(torch.optim.Optimizer):
    """The memory of torch.optim.AdamW(fused=True): two moments for each parameter, and nothing for a moment."""

    def __init__(self, groups, lr, fused):
        super().__init__(groups, {"lr": lr})

    def step(self, closure=None):
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.state[parameter]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}


class Figures:
    """In the place of the loop's, whose numbers do not exist here."""

    def __init__(self, step, names, values):
        self.step, self.names = step, names

    def read(self):
        return dict.fromkeys(self.names, 0.0)


@contextlib.contextmanager
def as_on_cuda():
    """Inside, a training on the meta device takes the memory of one on CUDA."""
    from minibnn_kernels import network

    draw_all, autocast = all_at_once._DrawAll.apply, CudaAutocast()

    def in_half(noise, sources, dtype, *parameters):
        return draw_all(noise, sources, HALF, *parameters)

    changes = [
        (train, "autocast", lambda *_: autocast.forward()), (bps, "autocast", lambda *_: autocast.forward()),
        (train, "Figures", Figures),
        (torch.optim, "AdamW", FusedAdamW), (network, "_launch", lambda *_: None),
        (all_at_once._DrawAll, "apply", in_half), (adamw_bf16, "generator_of", lambda *_: None),
        *autocast.functions(),
    ]
    with contextlib.ExitStack() as stack:
        for where, name, value in changes:
            stack.enter_context(mock.patch.object(where, name, value))
        yield


def measure(config, side, changes):
    """{"weights", "kept", "peak": bytes} of three training steps: before them, after them, and the most between.

    config: UNetConfig; side: height and width of the latents; changes: options of the training.
    """
    settled = {"images": ["pictures"], "where": None if changes.get("method") else "paper", "sigma": 0.01, "lr": 5e-6,
               "batch_size": 1, "prior_weight": 1.0, "dtype": "float32", "kernel": "triton", "steps": 3}
    options = TrainOptions(**settled | changes)
    sd, memory = StableDiffusion.load("tiny"), Memory()
    rows = 2 if options.prior_weight else 1
    with torch.device("meta"):
        sd.unet = UNet(config)
        x0 = torch.empty(rows, config.in_channels, side, side)
        context = torch.empty(rows, 77, config.cross_attention_dim)
    memory.see(list(sd.unet.parameters()))
    weights = memory.live
    with as_on_cuda(), memory:
        training = train.fine_tuning(sd, options)
        train.train(training, options, lambda i, generator: (x0, context))
        kept = memory.live
    return {"weights": weights, "kept": kept, "peak": memory.peak}


class NoPairs:
    """Latents, hints and captions of pairs whose contents do not matter, in the place of `bps.Pairs`."""

    def __init__(self, config, side, count):
        self.mean = self.logvar = torch.empty(count, config.in_channels, side, side, device="meta")
        self.hints, self.captions = torch.empty(count, 1, 8 * side, 8 * side, device="meta"), [""] * count


def measure_bps(config, side, batch_size, gradient_checkpointing):
    """{"weights", "peak": bytes} as of `measure`, of three training steps of a BPS branch beside the frozen UNet."""
    sd, memory, pairs = StableDiffusion.load("tiny"), Memory(), NoPairs(config, side, batch_size)
    with torch.device("meta"):
        sd.unet, branch = UNet(config), bps_branch.Branch(config)
    sd.encode_prompts = lambda prompts: torch.empty(len(prompts), 77, config.cross_attention_dim, device="meta")
    memory.see([*sd.unet.parameters(), *branch.parameters()])
    weights = memory.live
    with as_on_cuda(), memory:
        bps.train_branch(sd, branch, pairs, 3, 1e-5, batch_size, gradient_checkpointing=gradient_checkpointing)
    return {"weights": weights, "peak": memory.peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[12, 16, 24])
    options = parser.parse_args()
    side = f"{options.resolution} × {options.resolution}"
    batches = "batch 1 + 1 (LoRA: 1, or 1 + 1 with class pictures; BPS: as said)"
    print(f"torch {torch.__version__}, SD v1.5, bfloat16, {side}, {batches}")
    sizes = "".join(f" fits {size:g} GB |" for size in options.gigabytes)
    print(f"| training | at its peak, GB |{sizes}\n|---|---|" + "---|" * len(options.gigabytes))

    def show(name, measured):
        peak = measured["peak"] / GB
        fits = "".join(f" {'yes' if peak + RESERVE <= size else 'no'} |" for size in options.gigabytes)
        print(f"| {name} | {peak:.2f} |{fits}", flush=True)

    for name, changes in VARIANTS.items():
        show(name, measure(UNetConfig(), options.resolution // 8, changes))
    for batch_size, checkpointing in ((1, False), (1, True), (4, False), (4, True), (16, False), (16, True)):
        measured = measure_bps(UNetConfig(), options.resolution // 8, batch_size, checkpointing)
        show(f"BPS, batch {batch_size}{', checkpointing' * checkpointing}", measured)


if __name__ == "__main__":
    main()
