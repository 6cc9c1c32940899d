"""The loop of everything that is pretrained here: AdamW or Muon, an average of the weights, checkpoints to resume."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..files.weights import open_weights, write_tensors
from ..progress import progress_bar


def optimise(name, module, loss_of_step, steps, lr, options, rank, muon=None):
    """Minimise: warm-up, constant rate, linear decay over the last fifth. Returns the EMA of the weights.

    loss_of_step(step) returns a scalar. All its random numbers depend on `step` and `rank` alone, so that a run which
    is resumed goes on as if it had not stopped. Rank 0 writes WORK/`name`.safetensors every 250 steps. Muon (Jordan et
    al. 2024) moves the matrices for whose name muon(name) is true, and AdamW the rest; without `muon`, it moves all.
    """
    parameters = dict(module.named_parameters())
    steppers = Steppers(parameters, lr, muon)
    ema = {key: value.detach().clone() for key, value in parameters.items()}
    path = Path(options.work) / f"{name}.safetensors"
    first = _restore(path, parameters, ema, steppers) if path.exists() else 0
    bar = progress_bar(range(first, steps), initial=first, total=steps, desc=name, disable=rank > 0)
    smooth = None
    for step in bar:
        loss = loss_of_step(step)
        loss.backward()
        if options.processes > 1:
            gradients = [p.grad for p in parameters.values()]
            flat = nn.utils.parameters_to_vector(gradients)
            dist.all_reduce(flat)
            nn.utils.vector_to_parameters(flat / options.processes, gradients)
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        steppers.step(lr * min(1, (step + 1) / 200, (steps - step) / (0.2 * steps)))
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], 1 - decay)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == steps):
            _save(path, step + 1, parameters, ema, steppers)
    return ema


def all_matrices(name):
    """Whether Muon moves the parameter of this name, if it is a matrix: yes."""
    return True


def inner_matrices(name):
    """The same, but not for a UNet's first and last layer, whose sizes Muon would take too long to find."""
    return not name.startswith(("conv_in.", "conv_out."))


class Steppers:
    """Muon for the matrices that `muon` names, kernels of convolutions as matrices (out, rest), AdamW for the rest.

    Muon moves a matrix by its orthogonalised momentum, scaled so that AdamW's rate fits (Liu et al. 2025).
    """

    def __init__(self, parameters, lr, muon):
        if muon and not hasattr(torch.optim, "Muon"):
            raise UserError(f"PyTorch {torch.__version__} has no Muon, which this training needs: install 2.9 or newer")
        self.parameters = parameters
        by_muon = [key for key, p in parameters.items() if muon and p.dim() > 1 and muon(key)]
        as_matrix = {key: nn.Parameter(parameters[key].data.view(len(parameters[key]), -1)) for key in by_muon}
        self.moved = parameters | as_matrix  # a matrix and its parameter share their memory
        rest = [p for key, p in parameters.items() if key not in as_matrix]
        self.optimisers = [torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.01)]
        if muon:
            matrices = list(as_matrix.values())
            self.optimisers.append(torch.optim.Muon(matrices, lr, 0.01, adjust_lr_fn="match_rms_adamw"))

    def step(self, lr):
        """One step at the rate `lr`; afterwards the gradients are gone."""
        for key, moved in self.moved.items():
            moved.grad = self.parameters[key].grad.view(moved.shape)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad()
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self):
        """Of each parameter: {name of the moment: tensor in the parameter's own or its matrix's shape}."""
        states = {parameter: state for optimiser in self.optimisers for parameter, state in optimiser.state.items()}
        return {key: states[moved] for key, moved in self.moved.items()}

    def restore(self, key, state):
        """Take up the state of the parameter `key`."""
        moved = self.moved[key]
        owner = next(o for o in self.optimisers for g in o.param_groups if any(moved is p for p in g["params"]))
        owner.state[moved] = state


def _save(path, step, parameters, ema, steppers):
    tensors = {}
    for key, state in steppers.state().items():
        tensors |= {f"weight/{key}": parameters[key], f"ema/{key}": ema[key]}
        tensors |= {f"{name}/{key}": moment for name, moment in state.items() if name != "step"}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path, parameters, ema, steppers):
    with open_weights(path) as file:
        step, stored = int(file.metadata()["step"]), set(file.keys())
        for key, value in parameters.items():
            value.data.copy_(file.get_tensor(f"weight/{key}"))
            ema[key].copy_(file.get_tensor(f"ema/{key}"))
            moments = {name: file.get_tensor(f"{name}/{key}").clone()
                       for name in ("exp_avg", "exp_avg_sq", "momentum_buffer") if f"{name}/{key}" in stored}
            steppers.restore(key, moments | {"step": torch.tensor(float(step))})
    return step


def residuals_from_zero(network):
    """Let each residual branch of a UNet or VAE begin as 0, as LDM's code does: the network then learns sooner."""
    for name, module in network.named_modules():
        if name.endswith((".conv2", ".to_out.0", ".proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def generator_of_rng(rng):
    """A generator of PyTorch whose seed comes from `rng`, a numpy Generator."""
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


@contextlib.contextmanager
def bfloat16():
    """Inside, a CPU computes in bfloat16, with plain attention: for few keys it trains faster than the fused one."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def load_ema(network, path, prefix=""):
    """Fill the network with the averaged weights of a finished stage."""
    with open_weights(path) as file:
        network.load_state_dict({name: file.get_tensor(f"ema/{prefix}{name}") for name in network.state_dict()})
    return network.eval()
