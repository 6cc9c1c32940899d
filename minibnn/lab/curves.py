"""What a training has left of its course, and the curves of that.

    log.jsonl     a line for each step: losses and the mean σ (`observers.py`)
    curves.jsonl  a line for each look of the monitor: fidelity, noise, σ₁ and gains (`monitor.py`)
    advice.json   which step the monitor advises, and why

"prior" of log.jsonl is the loss on class pictures, "diffusion" that on the subject's.
"""

from pathlib import Path

from ..files.schema import integer, items, number, optional, record, text
from ..files.store import read_json
from .gains import TIMES as GAIN_TIMES
from .gains import guided_gain
from .plot import Line, Panel

TIMES = (100, 500, 900)  # at which the monitor measures σ₁
RISEN = {"world": 0.5, "photo": 1.0}  # how far noise must rise to be seen: 10⁻³ of energy; grey levels of 255
WINDOWS = 60  # of steps, over whose losses the curve is the mean

STEP = {"step": integer(1)} | dict.fromkeys(("diffusion", "prior", "kl", "sigma"), number())  # of log.jsonl
LOOK = {"step": integer(0), "fidelity": optional(number()), "noise": number()}  # of curves.jsonl
LOOK |= {f"sigma1 at {t}": optional(number()) for t in TIMES}  # null: it is infinite
ADVICE = {"step": optional(integer(1)), "model": optional(text), "guidance": number(), "said": items(text)}


def advice_of(run):
    """What advice.json of the run in this folder says: {"step", "model", "guidance", "said"}; None if there is none.

    "model" is the folder, within the run's, of the step that is advised; None if that is the run itself, or none.
    Raises UserError when it is damaged.
    """
    path = Path(run) / "advice.json"
    return read_json(path, record(ADVICE, required=ADVICE)) if path.exists() else None


def panels(steps, looks, world, guidance, advised=None):
    """The panels of curves.png and of a run's page.

    steps, looks: rows of log.jsonl and curves.jsonl, perhaps []. world: whether noise and fidelity are the bundled
    world's measures. guidance: with which the gains are combined. advised: the step to mark.
    """
    found = of_steps(steps) + (of_looks(looks, world, guidance) if looks else [])
    for panel in found:
        within = [x for line in panel.lines for x in line.x]
        if advised is not None and within and min(within) <= advised <= max(within):
            panel.mark, panel.x_label = advised, "step (dashed: the one to use)"
    return found


def of_steps(rows):
    """The loss, its mean over WINDOWS parts of the training, and the mean σ where weights are random."""
    if not rows:
        return []
    parts = [rows[i * len(rows) // WINDOWS : (i + 1) * len(rows) // WINDOWS] for i in range(WINDOWS)]
    parts = [part for part in parts if part]
    ends = [part[-1]["step"] for part in parts]
    means = {name: [sum(row[name] for row in part) / len(part) for part in parts] for name in STEP if name != "step"}
    loss = [Line("on the subject", ends, means["diffusion"])]
    loss += [Line("on the class", ends, means["prior"])] if any(means["prior"]) else []
    found = [Panel("loss, mean over neighbouring steps", loss)]
    if first := rows[0]["sigma"]:
        change = [100 * (value / first - 1) for value in means["sigma"]]
        found.append(Panel("σ of the random weights, change in %", [Line(f"mean σ, first {first:.3g}", ends, change)]))
    if any(means["kl"]):
        found.append(Panel("KL divergence from the prior", [Line("KL", ends, means["kl"])]))
    return found


def of_looks(rows, world, guidance):
    """Fidelity where it was measured, noise with the level from which it has risen, σ₁ and gains."""
    steps = [row["step"] for row in rows]
    noise = "noise above clean drawings (× 1000)" if world else "noise (grey levels, Immerkær)"
    c, u = ([mean_gain(row, name) for row in rows] for name in "cu")
    guided = [None if x is None else guided_gain(x, y, guidance) for x, y in zip(c, u, strict=True)]
    named = (("with the prompt", c), ("without", u), (f"guidance {guidance:g}", guided))
    fidelity = [row["fidelity"] for row in rows]
    found = [Panel("fidelity to the training pictures", [Line("fidelity", steps, fidelity)])]
    found = [] if all(value is None for value in fidelity) else found
    finite = any(row[f"sigma1 at {t}"] is not None for row in rows for t in TIMES)
    sigma1 = "σ₁ of Eq. 2" if finite else "σ₁ of Eq. 2: infinite, as no noise is removed"
    return [
        *found, Panel(noise, [Line("noise (risen above the dotted line)", steps, [row["noise"] for row in rows])],
              level=rows[0]["noise"] + RISEN["world" if world else "photo"]),
        Panel(sigma1, [Line(f"at t = {t}", steps, [row[f"sigma1 at {t}"] for row in rows]) for t in TIMES]),
        Panel("gains, mean over t (below 1 noise stays)", [Line(name, steps, values) for name, values in named],
              level=1.0),
    ]


def mean_gain(row, name):
    """The mean over t of the gains "c" (with the prompt) or "u" (without) of a look; None where it has none."""
    values = [row.get(f"gain {name} at {t}") for t in GAIN_TIMES]
    return None if None in values else sum(values) / len(values)
