"""Line charts as drawings within a web page: the panels of `lab/plot.py` in the reader's colours, light or dark.

    html.section("Curves", svg.charts([plot.Panel("loss", [plot.Line("subject", steps, losses)])]))

Pointing at a place of a curve shows its numbers. Legends stand below the axes, so that they hide no curve.
"""

from ..lab.plot import Axes, bounded, known
from .html import element

WIDTH, HEIGHT = 440, 270  # without the legend; in units that are about a pixel
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 40
LEGEND = 16  # height of a row of the legend
COLOURS = 8  # that the style sheet knows: --c0 … --c7
DOTS = 40  # curves of more points have no dots


def charts(panels):
    """Panels side by side, as many as fit."""
    return element("div", [element("figure", chart(panel)) for panel in panels], {"class": "charts"})


def chart(panel):
    """One plot.Panel as an <svg> element."""
    rows = -(-len(panel.lines) // 2)
    height = HEIGHT + rows * LEGEND
    axes = Axes(panel, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    drawn = [element("title", panel.title), text(LEFT, 18, panel.title, kind="title")]
    if axes.empty:
        drawn.append(text(LEFT, HEIGHT // 2, "nothing measured"))
    else:
        drawn += frame(axes, panel)
        for i, line in enumerate(panel.lines):
            drawn += curve(axes, line, f"var(--c{i % COLOURS})")
    for i, line in enumerate(panel.lines):
        drawn += legend(i, line)
    return element("svg", drawn, {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": described(panel)})


def described(panel):
    """A panel for those who cannot see it: its title, and from where to where each curve goes."""
    said = []
    for line in panel.lines:
        there = [(x, y) for x, y in zip(line.x, line.y, strict=True) if known(y)]
        if there:
            said.append(f"{line.label} from {there[0][1]:.3g} to {there[-1][1]:.3g}")
    return f"{panel.title}: {', '.join(said) or 'nothing measured'}"


def frame(axes, panel):
    """Axes, grid, numbers, and what is marked."""
    left, top, right, bottom = axes.box
    drawn = []
    for y, down in axes.y_ticks():
        drawn += [rule(left, down, right, down, "grid"), text(left - 6, down + 4, f"{y:g}", "end")]
    drawn += [text(across, bottom + 15, f"{x:g}", "middle") for x, across in axes.x_ticks()]
    drawn.append(text(right, bottom + 31, panel.x_label, "end"))
    drawn.append(element("path", (), {"class": "axis", "d": f"M{left} {top}V{bottom}H{right}"}))
    if panel.mark is not None:
        across = axes.place(panel.mark, axes.y0)[0]
        drawn.append(rule(across, top, across, bottom, "mark"))
    if panel.level is not None:
        down = axes.place(axes.xs[0], panel.level)[1]
        drawn.append(rule(left, down, right, down, "level"))
    return drawn


def curve(axes, line, colour):
    """A plot.Line: its band, itself, and its points with their numbers."""
    drawn, inside = [], bounded(line)
    if len(inside) > 1:
        edge = [axes.place(line.x[k], line.high[k]) for k in inside]
        edge += [axes.place(line.x[k], line.low[k]) for k in reversed(inside)]
        drawn.append(element("polygon", (), {"class": "band", "points": points(edge), "style": f"fill: {colour}"}))
    there = [(x, y) for x, y in zip(line.x, line.y, strict=True) if known(y)]
    places = [axes.place(x, y) for x, y in there]
    if line.joined:
        way = {"class": "curve", "points": points(places), "style": f"stroke: {colour}"}
        drawn.append(element("polyline", (), way))
    if len(there) <= DOTS or not line.joined:
        for (x, y), (across, down) in zip(there, places, strict=True):
            numbers = element("title", f"{line.label}: {y:.4g} at {x:g}")
            place = {"cx": f"{across:.1f}", "cy": f"{down:.1f}", "r": "3", "style": f"fill: {colour}"}
            drawn.append(element("circle", numbers, place))
    return drawn


def legend(i, line):
    """The name of line i beside its colour, two in a row."""
    row, column = divmod(i, 2)
    x, y = LEFT + column * (WIDTH - LEFT) // 2, HEIGHT + 8 + row * LEGEND
    colour = f"stroke: var(--c{i % COLOURS})"
    return [rule(x, y - 4, x + 16, y - 4, "curve", colour), text(x + 21, y, line.label)]


def rule(x0, y0, x1, y1, kind, style=None):
    """A straight line of a class of the style sheet."""
    place = {"x1": f"{x0:.1f}", "y1": f"{y0:.1f}", "x2": f"{x1:.1f}", "y2": f"{y1:.1f}", "class": kind}
    return element("line", (), place | ({"style": style} if style else {}))


def text(x, y, words, anchor="start", kind=None):
    """Words at a place, which is their start, middle or end."""
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor} | ({"class": kind} if kind else {})
    return element("text", words, place)


def points(places):
    """[(across, down)] as an attribute."""
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
