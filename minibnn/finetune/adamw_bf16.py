"""AdamW whose two moments are kept in bfloat16, rounded stochastically: 4 bytes a trained number instead of 8.

Follows: AdamW (Loshchilov & Hutter 2019, Algorithm 2); stochastic rounding (Gupta et al. 2015, §3).

    m ← β₁m + (1−β₁)g     v ← β₂v + (1−β₂)g²     θ ← (1 − lr·w)θ − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)

The weights stay float32, and all arithmetic is; only what waits for the next step is rounded. bfloat16 has 8 bits of
precision, and a step changes v by a thousandth of g²: rounded to the nearest, v would stand still while g shrinks.
Rounded up or down at random, with the probabilities that make the mean right, it moves as it should on average.
The random bits of a step come from (seed, step), so that a training that is resumed rounds as it would have.
"""

import torch

# Parameters are updated in groups of at most so many elements; a larger one is a group by itself. The float32 copies
# of a group take 24 bytes an element: 0.4 GB for a full one, 0.7 GB for the largest tensor of SD v1.5.
CHUNK = 2**24


def stochastic_bfloat16(x, generator):
    """Float32 x -> bfloat16, one of its two neighbours, with the mean x. generator: on the device of x.

    bfloat16 is the upper half of a float32. What is added to the lower half carries over with the right probability.
    """
    noise = torch.randint(2**16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()


def generator_of(seed, step, device):
    """The source of a step's random bits."""
    number = (seed * 1_000_003 + step) % 2**63  # a CPU's generator sees the lower 32 bits alone
    return torch.Generator(device).manual_seed(number)


def chunks(parameters):
    """Consecutive parts of a list of tensors, each of at most CHUNK elements, or of one tensor."""
    part, size = [], 0
    for parameter in parameters:
        if part and size + parameter.numel() > CHUNK:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    if part:
        yield part


def flat(tensors):
    """All elements as one float32 vector."""
    return torch.cat([tensor.flatten() for tensor in tensors]).float()


def shaped(vector, tensors):
    """The parts of a vector in the shapes of the tensors."""
    parts = vector.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class AdamWBfloat16(torch.optim.Optimizer):
    """torch.optim.AdamW for float32 parameters, with its state under the same names: "step", "exp_avg", "exp_avg_sq".

    seed: of the rounding. All parameters must have been trained for equally many steps.
    """

    def __init__(self, parameters, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, seed=0):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure=None):
        """One step from the gradients in `.grad`; parameters without one stay. closure: none, for GradScaler's sake."""
        generator = None
        for group in self.param_groups:
            for parameters in chunks([p for p in group["params"] if p.grad is not None]):
                step = self._count(parameters)
                if generator is None:
                    generator = generator_of(self.seed, step, parameters[0].device)
                self._update(parameters, group, step, generator)

    def _count(self, parameters):
        """Make what is missing of the state; returns the number t of this step."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                moments = (torch.zeros_like(parameter, dtype=torch.bfloat16) for _ in range(2))
                state |= dict(zip(("step", "exp_avg", "exp_avg_sq"), (torch.zeros(()), *moments), strict=True))
            state["step"] = state["step"].cpu() + 1  # on the CPU already, unless a checkpoint was just loaded
        return int(self.state[parameters[0]]["step"])

    def _update(self, parameters, group, step, generator):
        states = [self.state[parameter] for parameter in parameters]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        (beta1, beta2), lr = group["betas"], group["lr"]
        gradient = flat([parameter.grad for parameter in parameters])
        mean = flat(means).lerp_(gradient, 1 - beta1)
        square = flat(squares).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        torch._foreach_copy_(means, shaped(stochastic_bfloat16(mean, generator), means))
        torch._foreach_copy_(squares, shaped(stochastic_bfloat16(square, generator), squares))
        root = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        change = mean.mul_(-lr / (1 - beta1**step)).div_(root)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, shaped(change, parameters))
