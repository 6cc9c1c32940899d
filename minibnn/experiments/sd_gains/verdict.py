"""What `experiment sd-gains` has found of Stable Diffusion: its criterion, its verdict and its curves.

The criterion, fixed before any run on SD, looks at the plain arm at guidance 7.5 with η = 0:

    stage       noise lies more than 1 grey level above the pretrained model's at the noisiest step, and fidelity (with
                --dino) below its earlier maximum
    mechanism   there (1) the law of gains says that guidance adds more noise than the decoder hides, and the same
                weights have less than half of the rise (2) at guidance 1 and (3) with η = 1
    colour      there the same weights have less than half of the rise from noise of the photograph's mean colour

PNDM, which the paper draws with, decides nothing; its pictures and their noise stand beside the others.
"""

import numpy as np

from ...lab import monitor, plot
from ..views import View

GUIDANCE = 7.5
BY_PLAIN, BY_COLOUR, BY_PNDM = (f"guidance {GUIDANCE:g}, {how}" for how in ("eta 0", "own colour", "PNDM"))
DRAWINGS = {f"guidance {s:g}, eta {eta:g}": View(guidance=s, eta=eta) for s in (1.0, GUIDANCE) for eta in (0.0, 1.0)}
DRAWINGS[BY_COLOUR] = View(guidance=GUIDANCE, colour=True)  # the stage is looked for by BY_PLAIN
DRAWINGS[BY_PNDM] = View(guidance=GUIDANCE, sampler="pndm")


def judge(found):
    """By the criterion above: {"verdict", "stage", "mechanism", …}. found: {arm: rows}, among them "plain"."""
    def noise(row, name=BY_PLAIN):
        return row["drawings"][name]["noise"]

    first, *rest = found["plain"]
    worst = max(rest, key=noise)
    rise = noise(worst) - noise(first)
    fidelity = [row["drawings"][BY_PLAIN]["fidelity"] for row in found["plain"] if row["step"] <= worst["step"]]
    fell = None if fidelity[-1] is None else max(fidelity[:-1]) - fidelity[-1]
    stage = rise > monitor.risen(world=False) and (fell is None or fell > 0)
    result = {"step": worst["step"], "rise": rise, "fidelity fell by": fell, "stage": stage}
    result |= {f"R2 of {name}": explained(found, name) for name in ("noise", "noise between")}
    if not stage:
        said = f"no stage: noise at guidance {GUIDANCE:g} rose by {rise:.1f} grey levels at most"
        if rise > monitor.risen(world=False):
            said += ", where fidelity was as high as ever"
        widest = max(u - c for row in rest for u, c in zip(row["u"], row["c"], strict=True))
        return result | {"mechanism": None, "verdict": f"{said}; u rose above c by {widest:.3f} at most"}
    left = {name: noise(worst, name) - noise(first) for name in DRAWINGS}
    checks = {
        "the gains predict it": worst["visible noise"] is not None and worst["added noise"] > worst["visible noise"],
        "guidance 1 removes it": left["guidance 1, eta 0"] < rise / 2,
        "eta 1 removes it": left[f"guidance {GUIDANCE:g}, eta 1"] < rise / 2,
    }
    result |= {"mechanism": all(checks.values()), "checks": checks, "rise of each drawing": left}
    result["colour"] = left[BY_COLOUR] < rise / 2
    if result["mechanism"]:
        said = "this is the paper's stage by this mechanism"
    else:
        missed = "; ".join(name for name, held in checks.items() if not held)
        said = f"this is not the paper's stage by this mechanism, because these conditions are not met: {missed}"
    result["verdict"] = (
        f"{said}: at step {worst['step']} noise rose by {rise:.1f} grey levels, guidance 1 leaves "
        f"{left['guidance 1, eta 0']:+.1f}, eta 1 {left[f'guidance {GUIDANCE:g}, eta 1']:+.1f}, and starting noise of "
        f"the photograph's mean colour {left[BY_COLOUR]:+.1f}; with PNDM it rose by {left[BY_PNDM]:.1f}"
    )
    for arm in (arm for arm in found if arm != "plain"):
        same = next(row for row in found[arm] if row["step"] == worst["step"])
        ddim, pndm = (noise(same, name) - noise(first, name) for name in (BY_PLAIN, BY_PNDM))
        result["verdict"] += f"; {arm}: {ddim:+.1f}, with PNDM {pndm:+.1f}"
    return result


def explained(found, name):
    """R² of a line through predicted and measured noise of all drawings; None where one of them never varies."""
    pairs = [(d["predicted"], d[name]) for rows in found.values() for row in rows for d in row["drawings"].values()]
    predicted, measured = np.array(pairs).T
    if len(pairs) < 3 or not predicted.std() or not measured.std():
        return None
    return float(np.corrcoef(predicted, measured)[0, 1] ** 2)


def curves(found):
    """The curves of all arms as one PIL picture."""
    last = found["plain"][-1]["step"]
    settings = {"x_label": "step", "stretch": last / 32}
    both = plot.Panel("gains with the prompt (c) and without (u), mean over t", **settings)
    guided = plot.Panel(f"gain at guidance {GUIDANCE:g}, mean over t", **settings)
    noise = plot.Panel("noise of the plain arm (grey levels)", **settings)
    against = plot.Panel("noise between pictures: measured against predicted", x_label="predicted")
    for arm, rows in found.items():
        steps, mean = [row["step"] for row in rows], lambda name, rows=rows: [float(np.mean(row[name])) for row in rows]
        both.lines += [plot.Line(f"c, {arm}", steps, mean("c")), plot.Line(f"u, {arm}", steps, mean("u"))]
        guided.lines.append(plot.Line(arm, steps, mean("guided")))
        drawn = [drawing for row in rows for drawing in row["drawings"].values()]
        predicted, measured = [d["predicted"] for d in drawn], [d["noise between"] for d in drawn]
        against.lines.append(plot.Line(arm, predicted, measured, joined=False))
    for name in DRAWINGS:
        y = [row["drawings"][name]["noise"] for row in found["plain"]]
        noise.lines.append(plot.Line(name, [row["step"] for row in found["plain"]], y))
    return plot.chart([both, guided, noise, against])
