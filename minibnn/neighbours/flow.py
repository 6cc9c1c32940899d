"""Flow matching, Euler sampling and inverse noise correction: `python -m minibnn flow --train --out runs/flow`.

Follows: rectified flow (Liu et al. 2023); inverse noise correction (INC) of arXiv 2510.02692, §4 and Algorithm 6.

    here      meaning
    s         time, 0 = noise, 1 = data (the other way round than in `schedule`)
    e, x      standard normal noise, data;  x_s = (1−s)·e + s·x
    v(x, s)   velocity network; learns x − e
    T         the sampler: n Euler steps x_{j+1} = x_j + h·v(x_j, j·h), h = 1/n

With an imperfect v and finitely many steps, T turns normal noise into something near the data. INC leaves v alone: it
asks from which noises z = T⁻¹(x) the sampler *would* have hit the data, and a second, smaller flow, the corrector,
learns to draw such z. Because T is invertible, nothing is lost: KL(data ‖ T(q)) = KL(T⁻¹(data) ‖ q).

A velocity may also take a condition, one for each sample, as third argument: v(x, s, c). `rectified.py` has such ones.

But: a corrector serves only the number of steps n that it was trained for.
"""

import contextlib
import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.locks import locked
from ..files.schema import fitting, integer, record, text
from ..files.store import ASSETS, parse_json
from ..files.weights import load_state, open_weights, read_tensors, write_tensors
from ..networks.unet import UNet, UNetConfig, time_sinusoid
from ..options.kinds import refuse
from ..pictures import grid, save_png, to_pil, to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..train import Diverged
from ..world import scenes as world

BUNDLED = ASSETS / "flow"
MAIN, CORRECTOR = (32, 64), (16, 32)  # channels of the bundled networks
ITERATIONS = 40  # at most, to invert a step
REACHED = 1e-4  # the residual up to which a drawing counts as inverted
TRAINING = ("pictures", "inverted", "euler_steps", "steps", "lr")  # options that are for --train
LOST = 0.1  # the largest share of drawings that may fail to be inverted; the corrector is trained without them


# --- flow matching ----------------------------------------------------------------------------------------------------


def flow_loss(velocity, x, e, s):
    """E‖(x − e) − v(x_s, s)‖² per value, x_s = s·x + (1−s)·e.   (Liu et al. 2023, eq. 1)

    x, e (B, …): data and noise; s (B,): times in [0, 1].
    """
    time = s.reshape(-1, *[1] * (x.ndim - 1))
    return F.mse_loss(velocity(time * x + (1 - time) * e, s), x - e)


def euler(velocity, x, steps):
    """T: from noise to data in n steps, x_{j+1} = x_j + h·v(x_j, j·h), j = 0 … n−1, h = 1/n."""
    for j in range(steps):
        x = x + velocity(x, x.new_full((len(x),), j / steps)) / steps
    return x


def under(velocity, condition):
    """v(x, s) of a velocity v(x, s, condition), under one condition for each sample: (B, …)."""
    return lambda x, s: velocity(x, s, condition)


# --- its inverse ------------------------------------------------------------------------------------------------------


def rms(x):
    """Root mean square of each sample: (B, …) -> (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def inverse_step(velocity, x, s, h, iterations, tolerance, condition=None):
    """Solve y + h·v(y, s) = x by y ← x − h·v(y, s), from y = x, until each residual ‖y + h·v(y, s) − x‖ is small.

    This converges if h·L < 1, with L the Lipschitz constant of v(·, s). Returns y and, for each sample, the RMS
    residual of the iterate before y, which with h·L < 1 bounds the residual of y.   (arXiv 2510.02692, Algorithm 6)
    condition: a function of the indices of samples that gives their conditions; None: v takes none.
    """
    y, residual, active = x.clone(), x.new_full((len(x),), torch.inf), torch.arange(len(x))
    for _ in range(iterations):
        v = under(velocity, condition(active)) if condition else velocity
        better = x[active] - h * v(y[active], x.new_full((len(active),), s))
        residual[active], y[active] = rms(better - y[active]), better
        active = active[~(residual[active] <= tolerance).cpu()]  # a residual that is NaN stays active
        if not len(active):
            break
    return y, residual


def invert(velocity, x, steps, tolerance=1e-5, lost=0.0, condition=None):
    """T⁻¹: data -> the noises from which `euler` with as many steps arrives there, and the largest residual of each.

    The velocity is evaluated at the left end of each step, as T does. Where the iteration does not reach the tolerance,
    its result is not the inverse. Raises UserError, naming step and residual, if that happens to a larger share of the
    samples than `lost` allows. condition: as for `inverse_step`.
    """
    residual = x.new_zeros(len(x))
    for j in reversed(range(steps)):
        x, left = inverse_step(velocity, x, j / steps, 1 / steps, ITERATIONS, tolerance, condition)
        residual = torch.where(left <= residual, residual, left)  # NaN wins
        bad = (~(residual <= tolerance)).sum().item()
        if bad > lost * len(x):
            raise UserError(
                f"the inversion does not contract at Euler step {j + 1} of {steps}: after {ITERATIONS} iterations "
                f"{bad} of {len(x)} residuals are above {tolerance:g}, the largest is {residual.max():.2g}; "
                "take more Euler steps, or a smoother flow (noise of 0.001 on the data helps)"
            )
    return x, residual


@torch.no_grad()
def inverse_noise(velocity, x, steps, tolerance=REACHED, lost=0.0, batch=250):
    """The noises of data x (N, …) and their residuals, computed batch by batch; raises UserError as `invert`.

    Samples that do not reach the tolerance, in each batch at most the share `lost`, are left out.
    """
    parts = []
    for part in progress_bar(x.split(batch), desc="inverse noise"):
        z, residual = invert(velocity, part, steps, tolerance=tolerance, lost=lost)
        parts.append((z[residual <= tolerance], residual[residual <= tolerance]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@torch.no_grad()
def sample(velocity, e, steps, corrector=None, corrector_steps=10):
    """Noise e (B, …) -> data; with a corrector first to the inverse noise, then by the untouched sampler."""
    z = e if corrector is None else euler(corrector, e, corrector_steps)
    return euler(velocity, z, steps)


# --- networks and training --------------------------------------------------------------------------------------------


class VectorFlow(nn.Module):
    """v(x, s) for vectors x (B, D): a multilayer perceptron that also takes sines and cosines of the time."""

    def __init__(self, dimension=2, width=64, layers=3):
        super().__init__()
        sizes = [dimension + 16] + [width] * layers
        hidden = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*hidden, nn.Linear(width, dimension))

    def forward(self, x, s):
        return self.body(torch.cat([x, time_sinusoid(1000 * s, 16).to(x.dtype)], dim=1))


class LatentFlow(nn.Module):
    """v(x, s) for latents x (B, 4, h, w): SD's UNet at two levels, without prompts."""

    def __init__(self, channels):
        super().__init__()
        self.unet = UNet(UNetConfig(
            block_out_channels=channels, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
            norm_num_groups=8, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        ))
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x, s):
        return self.unet(x, 1000 * s, x.new_zeros(len(x), 1, 8))


def fit(velocity, x, steps, lr, batch, seed, label="flow", condition=None):
    """Train on data x (N, …) with Adam, the rate falling to 0 along half a cosine; returns the losses.

    condition: as for `inverse_step`. Raises UserError when the loss is not finite.
    """
    optimiser = torch.optim.Adam(velocity.parameters(), lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator, losses = torch.Generator().manual_seed(seed), []
    bar = progress_bar(range(steps), desc=label)
    for step in bar:
        which = torch.randint(len(x), (batch,), generator=generator)
        e = torch.randn((batch, *x.shape[1:]), generator=generator, dtype=x.dtype).to(x.device)
        s = torch.rand(batch, generator=generator, dtype=x.dtype).to(x.device)
        loss = flow_loss(under(velocity, condition(which)) if condition else velocity, x[which], e, s)
        if not torch.isfinite(loss):
            raise Diverged(f"the {label}'s loss is {loss.item()} at step {step + 1}; try a smaller --lr")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(velocity.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
    return losses


# --- the world's pictures, as latents of the bundled VAE --------------------------------------------------------------


def world_latents(sd, count, seed):
    """Latents of `count` random drawings: (count, 4, 8, 8)."""
    rng, generator, parts = np.random.default_rng(seed), torch.Generator().manual_seed(seed), []
    for start in progress_bar(range(0, count, 64), desc="latents"):
        images = to_tensor([world.draw(world.random_scene(rng)) for _ in range(min(64, count - start))])
        parts.append(sd.encode_pictures(images, generator))
    return torch.cat(parts)


def save_flow(path, flow, note):
    """Half-precision weights; note: {str: str}, kept in the file's header."""
    write_tensors(path, {name: tensor.half() for name, tensor in flow.state_dict().items()}, note)


def load_flow(path, channels):
    """A saved LatentFlow and its note. Raises UserError if the file is missing, damaged or of other channels."""
    flow, state = LatentFlow(channels), {name: tensor.float() for name, tensor in read_tensors(path).items()}
    load_state(flow, state, f"{path} is not a flow with {channels} channels")
    return flow.eval().requires_grad_(False), open_weights(path).metadata()


def bundled_or_own(folder=None):
    """(flow, corrector, n) of a folder that the command below has made; None: the bundled ones. Raises UserError."""
    folder = Path(folder or BUNDLED)
    flow, _ = load_flow(folder / "flow.safetensors", MAIN)
    corrector, note = load_flow(folder / "corrector.safetensors", CORRECTOR)
    note = fitting(note, record({"euler_steps": text}, ("euler_steps",)), folder / "corrector.safetensors")
    place = f"{folder / 'corrector.safetensors'}: euler_steps"
    return flow, corrector, fitting(parse_json(note["euler_steps"], place), integer(1, 10**6), place)


# --- command ----------------------------------------------------------------------------------------------------------


@threads_kept()
def train_or_draw(options):
    """Train a flow and its corrector (`--train --out FOLDER`), or draw with given ones (`--flow FOLDER --out PNG`)."""
    out = Path(options.out or ("runs/flow" if options.train else "flow.png"))
    if out.exists() and not options.overwrite:
        raise UserError(f"--out {out} exists: name another or pass --overwrite")
    if not options.train:
        refuse(options, TRAINING, "is for training: leave it out, or add --train")
    if not options.train and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    if options.train and out.is_file():
        raise UserError(f"--out {out} is a file; with --train name a folder")
    with locked(out) if options.train else contextlib.nullcontext():
        train_or_draw_there(out, options)


def train_or_draw_there(out, options):
    """The same, training first with --train; then the folder `out` belongs to this process."""
    sd = StableDiffusion.load("tiny")
    choose_threads("cpu", sd.unet)
    flow, corrector, n = train_both(sd, out, options) if options.train else bundled_or_own(options.flow)
    e = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(options.seed))
    latents = torch.cat([sample(flow, e, n), sample(flow, e, n, corrector)])
    path = out / "samples.png" if options.train else out
    save_png(grid(to_pil(sd.decode_latents(latents)), 12, zoom=2), path)
    print(f"{path}: above without, below with inverse noise correction; {n} Euler steps")


def train_both(sd, out, options):
    """Train a flow, or take that of --flow, and a corrector for it, and save both in a folder: (flow, corrector, n)."""
    torch.manual_seed(options.seed)
    flow, corrector, n = LatentFlow(MAIN), LatentFlow(CORRECTOR), options.euler_steps
    if options.flow:
        flow, note = load_flow(Path(options.flow) / "flow.safetensors", MAIN)
    latents = world_latents(sd, options.pictures, options.seed)
    if not options.flow:
        fit(flow, latents, options.steps, options.lr, 64, options.seed)
        note = {"seed": str(options.seed)}
    (out / "corrector.safetensors").unlink(missing_ok=True)  # it belonged to another flow
    save_flow(out / "flow.safetensors", flow.requires_grad_(False), note)  # now, because the inversion may be refused
    try:
        chosen = latents[: options.inverted]
        z, residual = inverse_noise(flow, chosen, n, lost=LOST)
    except UserError as error:
        again = f"{shlex.join(('--train', '--flow', str(out), '--out', str(out), '--overwrite'))} goes on from there"
        raise UserError(f"{error}; the flow is in {out}: {again}") from None
    print(f"{len(z)} of {len(chosen)} drawings inverted: largest residual {residual.max():.1e}, "
          f"mean {z.mean():+.3f}, standard deviation {z.std():.3f}")
    fit(corrector, z, options.steps, options.lr, 64, options.seed + 1, "corrector")
    save_flow(out / "corrector.safetensors", corrector, {"euler_steps": str(n), "seed": str(options.seed)})
    return flow, corrector, n
