"""What the paper's text says of its tables and figures, put to our numbers.

    yes         every difference has the sign that the paper says, and every interval excludes 0
    on average  every difference has that sign; some interval does not exclude 0, or there is none
    no          some difference has the other sign, or is 0
    –           not measured
"""

from .judges import LOWER
from .tables import by_role

METHODS = "BNNs improve {} with every method (§5.1)"
MODELS = "BNNs improve {} with every pretrained model (§5.2)"
WORDS = {"text": "text prompt fidelity", "fidelity": "image fidelity", "diversity": "diversity", "quality": "quality"}


def judge(differences):
    """The verdict on lines of `tables.differences`, of which each should be above 0 (below, where less is better)."""
    if not differences:
        return "–"
    signs = [-1 if line["measure"] in LOWER else 1 for line in differences]
    if any(sign * line["difference"] <= 0 for sign, line in zip(signs, differences, strict=True)):
        return "no"
    ends = [line["low"] if sign > 0 else line["high"] for sign, line in zip(signs, differences, strict=True)]
    certain = all(end is not None and sign * end > 0 for sign, end in zip(signs, ends, strict=True))
    return "yes" if certain else "on average"


def statements(tables, differences):
    """[{"item", "says", "verdict", "figures"}]. tables, differences: {item: lines of `rows_of`, `differences`}."""
    found = []

    def say(item, says, verdict, figures=""):
        found.append({"item": item, "says": says, "verdict": verdict, "figures": figures})

    for item, words in (("table1", METHODS), ("table2", MODELS)):
        for role in WORDS if item in tables else ():
            lines = of_role(differences[item], role)
            say(item, words.format(WORDS[role]), judge(lines), spread(lines))
    if "fig7" in tables:
        lines = of_role(differences["fig7"], "quality")
        say("fig7", "BNNs improve quality at every number of steps (§5.2)", judge(lines), spread(lines))
        columns = sorted({line["column"] for line in differences["fig7"]})
        for word, chosen in (("above", columns[1:]), ("at", columns[:1])) if columns else ():
            lines = [line for line in of_role(differences["fig7"], "fidelity") if line["column"] in chosen]
            if word == "at":
                lines = [line | {"difference": -line["difference"], "low": minus(line["high"]),
                                 "high": minus(line["low"])} for line in lines]
            change = "raise" if word == "above" else "lower"
            says = f"BNNs {change} image fidelity {word} {columns[0]:g} steps a picture (§5.2)"
            say("fig7", says, judge(lines), spread(lines))
    for role in ("fidelity", "quality") if "fig8" in tables else ():
        lines = of_role(differences["fig8"], role)
        say("fig8", f"BNNs improve {WORDS[role]} from every number of pictures (§5.2)", judge(lines), spread(lines))
    if "fig9" in tables:
        for role in ("fidelity", "quality"):
            say("fig9", f"{WORDS[role]} is best at a moderate σ₀ (§5.3)", *inside(curve(tables["fig9"], "sigma", role)))
        for role, way in (("diversity", 1), ("fidelity", -1)):
            change = "raises" if way > 0 else "lowers"
            points = curve(tables["fig9"], "lambda", role)
            say("fig9", f"a larger λ {change} {WORDS[role]} (§5.3)", *ends(points, way))
    if "table3" in tables:
        for role, way in (("text", 1), ("fidelity", -1)):
            change = "raise" if way > 0 else "lower"
            pair = [value_of(tables["table3"], row, role) for row in ("default", "default + cross-attention")]
            says = f"BNNs in cross-attention too {change} {WORDS[role]} (§5.3)"
            say("table3", says, *ends(list(enumerate(pair)) if None not in pair else [], way))
    return found


def of_role(lines, role):
    name = by_role({line["measure"] for line in lines}, role)
    return [line for line in lines if line["measure"] == name]


def minus(value):
    return None if value is None else -value


def spread(lines):
    """The differences in words: "Dino +0.0123 … +0.0456"."""
    if not lines:
        return ""
    values = [line["difference"] for line in lines]
    return f"{lines[0]['measure']} {min(values):+.4f}" + (f" … {max(values):+.4f}" if len(values) > 1 else "")


def value_of(lines, row, role):
    """The mean of a measure in a row without columns, or None."""
    return next((line["mean"] for line in of_role(lines, role) if line["row"] == row), None)


def curve(lines, row, role):
    """[(column, goodness)] of a row: the measure that plays a role, its sign turned where less is better."""
    own = [line for line in of_role(lines, role) if line["row"] == row and line["mean"] is not None]
    return sorted((line["column"], -line["mean"] if line["measure"] in LOWER else line["mean"]) for line in own)


def inside(points):
    """(verdict, figures) of "the best is between the ends" on three points or more."""
    if len(points) < 3:
        return "–", ""
    best = max(range(len(points)), key=lambda i: points[i][1])
    return "on average" if 0 < best < len(points) - 1 else "no", f"best at {points[best][0]:g}"


def ends(points, way):
    """(verdict, figures) of "it rises (way 1) or falls (−1) from the first point to the last"."""
    if len(points) < 2:
        return "–", ""
    change = points[-1][1] - points[0][1]
    return "on average" if way * change > 0 else "no", f"{change:+.4f}"
