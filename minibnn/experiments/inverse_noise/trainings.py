"""Inverse noise correction, before and after, at equal and at fewer FLOPs: `python -m minibnn experiment inverse-noise`

Quality is the energy distance between drawn and fresh real samples, 2 E‖X−Y‖ − E‖X−X′‖ − E‖Y−Y′‖, unbiased: 0 for the
same distribution. FLOPs are those of the matrix products and convolutions of drawing one sample, counted by PyTorch.

    plane   three data sets in the plane, five seeds of everything: flow, corrector, noise. Beside the sampler and the
            corrected sampler stand two corrections without a network (`neighbours/fitted_noise.py`), and the same flow
            trained on for as long (in FLOPs) as inversion and corrector took.
    world   the bundled flow on the world's latents (one training), five seeds of corrector and noise

Criterion (settled before the runs): the corrector network is worth its training on a data set and an n where the
distances "gaussian − corrected with 20 steps", paired by seed, have a 95 % t-interval above 0; it is not where that
interval lies below 0; else no difference is shown. `spiral` was added for this question, because its inverse
noise should be curved.

Leaves inverse_noise.json, to which a later run with other --seeds adds if its other options are the same, and
inverse_noise.png. The bundled corrector is that of seed 0; `--bundle` writes it.
"""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ...devices import choose_threads, threads_kept
from ...errors import UserError
from ...files.locks import locked
from ...files.schema import items, mapping, number, record, text
from ...files.store import read_json, write_json
from ...files.weights import read_tensors, write_tensors
from ...lab.energy_distance import energy_distance
from ...lab.intervals import require_scipy
from ...neighbours import fitted_noise, flow
from ...options.kinds import refuse
from ...pictures import grid, save_png, to_pil
from ...pipeline import StableDiffusion
from ..records import check_alike
from .report import curves, report, tables

PLANE_STEPS, PLANE_LR, PLANE_BATCH, PLANE_POINTS = 1500, 5e-3, 256, 4000
EULER = (5, 10)
CORRECTOR_STEPS = (5, 10, 20)
PLANE_SEEDS = 5
ROWS = items(record({"what": text, "distance": number(), "FLOPs": number(0), "n": number(0)}, ("what",)))  # in the file


def ring(n, generator):
    """Eight Gaussians of standard deviation 0.15 on a circle of radius 1.5."""
    angle = torch.randint(0, 8, (n,), generator=generator) * np.pi / 4
    return 1.5 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.15 * torch.randn(n, 2, generator=generator)


def moons(n, generator):
    """Two interleaved half circles of radius 1.3 with noise of 0.1."""
    angle = torch.rand(n, generator=generator) * np.pi
    side = torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1
    points = side * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return 1.3 * points + 0.1 * torch.randn(n, 2, generator=generator)


def spiral(n, generator):
    """Two arms of one and a half turns, growing to a radius of 2, with noise of 0.05."""
    along = torch.rand(n, 1, generator=generator).sqrt()
    side = torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1
    points = 2 * side * along * torch.cat([(3 * np.pi * along).cos(), (3 * np.pi * along).sin()], dim=1)
    return points + 0.05 * torch.randn(n, 2, generator=generator)


DATA = (ring, moons, spiral)


@torch.no_grad()
def flops(velocity, x):
    """FLOPs of one evaluation of the velocity for one sample."""
    with FlopCounterMode(display=False) as counter:
        velocity(x[:1], x.new_zeros(1))
    return counter.get_total_flops()


def without_network(z, e):
    """[(name, noise made of e, FLOPs of one sample)]: the two corrections of `fitted_noise.py`, fitted to z."""
    mean, factor = fitted_noise.gaussian_of(z)
    cost = flops(lambda x, _: fitted_noise.gaussian_noise(x, mean, factor), e)
    return [
        ("scaled", fitted_noise.scale_of(z) * e, 0),
        ("gaussian", fitted_noise.gaussian_noise(e, mean, factor), cost),
    ]


class Counting(torch.nn.Module):
    """A velocity that counts how many samples it is asked for."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.samples = velocity, 0

    def forward(self, x, s):
        self.samples += len(x)
        return self.velocity(x, s)


def plane(data, seed):
    """One seed on one data set: a list of {"what", "n", "corrector steps", "FLOPs", "distance", …}."""
    generator = torch.Generator().manual_seed(seed)
    x, real = data(PLANE_POINTS, generator), data(PLANE_POINTS, generator)
    e = torch.randn(PLANE_POINTS, 2, generator=generator)
    main = trained(flow.VectorFlow, (2, 64), x, seed)
    cost, rows = flops(main, x), [{"what": "real", "distance": energy_distance(x, real), "FLOPs": 0}]

    def note(what, sampled, n, cost, **more):
        rows.append({"what": what, "n": n, "FLOPs": cost, "distance": energy_distance(sampled, real), **more})

    for n in (5, 10, 20, 40):
        note("flow", flow.sample(main, e, n), n, n * cost)
    for n in EULER:
        counting = Counting(main)
        try:
            z, residual = flow.inverse_noise(counting, x, n, lost=flow.LOST)
        except UserError as error:
            rows.append({"what": "refused", "n": n, "why": str(error)})
            continue
        corrector = trained(flow.VectorFlow, (2, 32), z, 1000 + seed)
        small = flops(corrector, x)
        inverse = {"residual": residual.max().item(), "spread of z": z.std().item(), "lost": 1 - len(z) / len(x)}
        for what, first, own in without_network(z, e):
            note(what, flow.sample(main, first, n), n, n * cost + own)
        for k in CORRECTOR_STEPS:
            drawn = flow.sample(main, e, n, corrector, k)
            note("corrected", drawn, n, n * cost + k * small, **{"corrector steps": k}, **inverse)
        other = 2 * n
        drawn = flow.sample(main, e, other, corrector, 20)
        note("corrector of another n", drawn, other, other * cost + 20 * small)
        extra = counting.samples * cost + 3 * PLANE_STEPS * PLANE_BATCH * small  # backward: about twice the forward
        longer = copy.deepcopy(main).requires_grad_(True)
        more = max(1, round(extra / (3 * PLANE_BATCH * cost)))
        flow.fit(longer, x, more, PLANE_LR, PLANE_BATCH, 2000 + seed, "as long")
        note("flow trained on", flow.sample(longer, e, n), n, n * cost, **{"more steps": more})
    return rows


def trained(kind, sizes, x, seed, steps=PLANE_STEPS, lr=PLANE_LR, batch=PLANE_BATCH):
    """A new velocity kind(*sizes), trained on x (N, …) and then frozen."""
    torch.manual_seed(seed)
    velocity = kind(*sizes)
    flow.fit(velocity, x, steps, lr, batch, seed)
    return velocity.requires_grad_(False)


def flow_file(options):
    """The world's flow: that of --flow, or the bundled one."""
    return Path(options.flow or flow.BUNDLED / "flow.safetensors")


def flow_hash(options):
    """Twelve digits that tell the world's flow from others. Raises UserError when its file cannot be read."""
    try:
        content = flow_file(options).read_bytes()
    except OSError as error:
        raise UserError(f"--flow {flow_file(options)} cannot be read: {error.strerror}") from None
    return hashlib.sha256(content).hexdigest()[:12]


def world_settings(options):
    """What the world's rows of all seeds share: {name: value}."""
    names = ("euler_steps", "inverted", "tests", "corrector_training")
    return {"flow": flow_hash(options)} | {name: getattr(options, name) for name in names}


def kept_noises(options):
    """The file of the inverse noises: another one for each flow and each setting."""
    name = f"inverse-{flow_hash(options)}-{options.euler_steps}-{options.inverted}-{options.tests}.safetensors"
    return Path(options.work) / name


def inverted_world(options, sd, main):
    """Latents, their inverse noises, fresh latents; kept in --work, because the inversion takes longest."""
    path = kept_noises(options)
    if not path.exists():
        data, real = flow.world_latents(sd, options.inverted, 0), flow.world_latents(sd, options.tests, 10_000)
        z, residual = flow.inverse_noise(main, data, options.euler_steps, lost=flow.LOST)
        again, _ = flow.inverse_noise(main, real, options.euler_steps, lost=flow.LOST)
        write_tensors(path, {"data": data, "real": real, "z": z, "residual": residual, "z of real": again})
    return read_tensors(path)


def world_rows(options, sd):
    """The bundled flow: the same rows for each seed of the corrector."""
    main, _ = flow.load_flow(flow_file(options), flow.MAIN)
    kept, n = inverted_world(options, sd, main), options.euler_steps
    data, real, z, pictures = kept["data"], kept["real"], kept["z"], []
    cost, worst = flops(main, data), kept["residual"].max().item()
    true = flow.sample(main, kept["z of real"], n)
    rows = [
        {"what": "inverted", "n": n, "of": len(data), "kept": len(z), "residual": worst, "spread of z": z.std().item()},
        {"what": "real", "distance": energy_distance(data, real)},
        {"what": "from true inverse noise", "n": n, "distance": energy_distance(true, data)},
    ]
    for seed in options.seeds:
        e = torch.randn(options.tests, 4, 8, 8, generator=torch.Generator().manual_seed(seed))

        def note(what, drawn, n, cost, seed=seed, **more):
            distance = energy_distance(drawn, real)
            rows.append({"what": what, "seed": seed, "n": n, **more, "FLOPs": cost, "distance": distance})
            return drawn[:12]

        plain = [note("flow", flow.sample(main, e, steps), steps, steps * cost) for steps in (n, 2 * n, 4 * n)]
        for what, first, own in without_network(z, e):
            note(what, flow.sample(main, first, n), n, n * cost + own)
        corrector = trained(flow.LatentFlow, [flow.CORRECTOR], z, 1000 + seed, options.corrector_training, 2e-3, 64)
        small = flops(corrector, data)
        corrected = {}
        for k in CORRECTOR_STEPS:
            drawn = flow.sample(main, e, n, corrector, k)
            corrected[k] = note("corrected", drawn, n, n * cost + k * small, **{"corrector steps": k})
        pictures += [plain[0], corrected[10]]
        if options.bundle and seed == 0:
            note_of_seed_0 = {"euler_steps": str(n), "seed": "0"}
            flow.save_flow(flow_file(options).with_name("corrector.safetensors"), corrector, note_of_seed_0)
    sheet = grid(to_pil(sd.decode_latents(torch.cat(pictures[:2]))), 12, zoom=1)
    save_png(sheet, Path(options.out) / "inverse_noise_world.png", optimize=True)
    return rows


@threads_kept()
def experiment(options):
    """Do the parts that InverseNoiseOptions ask for, add them to what is there, and report all. Raises UserError."""
    require_scipy()
    if "world" not in options.parts:
        of_world = ("flow", "seeds", "euler_steps", "inverted", "tests", "corrector_training", "bundle")
        refuse(options, of_world, "is for the part world: leave it out, or add world to --parts")
    if options.bundle and 0 not in options.seeds:
        raise UserError("--bundle keeps the corrector of seed 0: add 0 to --seeds")
    if min(options.tests, options.inverted) < 3:
        raise UserError("--tests and --inverted: at least 3, since samples are compared as distributions")
    if "world" in options.parts:
        flow_hash(options)  # a missing or damaged file is told now, and not after the plane
        flow.load_flow(flow_file(options), flow.MAIN)
    with locked(options.out, ".inverse_noise.lock"):
        experiment_there(options)


def kept_result(path, options):
    """What the experiment's file holds; {} without one. Raises UserError if its world was made with other settings."""
    kind = record({"plane": mapping(items(ROWS)), "world": ROWS, "world settings": record({})})
    result = read_json(path, kind) if path.exists() else {}
    if "world" in options.parts:
        if "world" in result:
            check_alike(result.get("world settings", {}), world_settings(options), path)
        result["world settings"] = world_settings(options)
    return result


def experiment_there(options):
    """The same in a folder that belongs to this process."""
    out = Path(options.out)
    path = out / "inverse_noise.json"
    result = kept_result(path, options)
    sd = StableDiffusion.load("tiny")
    choose_threads("cpu", sd.unet)
    if "plane" in options.parts:
        for data in DATA:
            seeds = result.setdefault("plane", {}).setdefault(data.__name__, [])
            while len(seeds) < PLANE_SEEDS:
                seeds.append(plane(data, len(seeds)))
                write_json(path, result)
    if "world" in options.parts:
        new = world_rows(options, sd)
        old = [row for row in result.get("world", []) if row.get("seed", options.seeds[0]) not in options.seeds]
        result["world"] = old + new
        write_json(path, result)
    result["tables"] = tables(result)
    write_json(path, result)
    report(result)
    save_png(curves(result["tables"]), out / "inverse_noise.png")
