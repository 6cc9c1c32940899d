"""Line charts with Pillow alone, which commands write beside their numbers (the tutorials use matplotlib).

But: only lines with bands, on one or more panels, with a linear or a stretched x axis. Pillow's own font has neither
Greek letters nor raised or lowered digits, and so labels say sigma_1.
"""

import math
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 440, 300  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 44
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


@dataclass
class Line:
    """One curve, y against x, and a shaded band between low and high if they are given.

    Points whose y is None or no finite number are left out; so are such points of the band. joined: draw the line from
    point to point, and not the points alone.
    """

    label: str
    x: list
    y: list
    low: list = None
    high: list = None
    colour: str = None
    joined: bool = True


@dataclass
class Panel:
    """One set of axes. stretch: show x as log(1 + x/stretch), on which 0 has a place; with None x is linear.

    mark: an x between the ends at which a dashed line stands.
    """

    title: str
    lines: list = field(default_factory=list)
    x_label: str = "step"
    stretch: float = None
    mark: float = None


def ticks(low, high, count=5):
    """About `count` round numbers from low to high: `ticks(0, 9.3)` is [0, 2, 4, 6, 8]."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= count)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(panels, columns=2):
    """One PIL picture of all panels, row by row."""
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (min(columns, len(panels)) * WIDTH, rows * HEIGHT), "white")
    for i, panel in enumerate(panels):
        sheet.paste(_draw(panel), ((i % columns) * WIDTH, (i // columns) * HEIGHT))
    return sheet


def _known(value):
    return value is not None and math.isfinite(value)


def _draw(panel):
    image = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    pen, font, small = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(11)
    pen.text((LEFT, 8), panel.title, "black", font)
    xs = [x for line in panel.lines for x in line.x]
    ys = [y for line in panel.lines for part in (line.y, line.low, line.high) for y in part or () if _known(y)]
    if not ys:
        pen.text((LEFT, HEIGHT // 2), "nothing measured", "black", small)
        return image.convert("RGB")
    bend = (lambda x: math.log1p(x / panel.stretch)) if panel.stretch else float
    x0, x1 = bend(min(xs)), bend(max(xs))
    margin = 0.05 * (max(ys) - min(ys)) or 0.5
    y0, y1 = min(ys) - margin, max(ys) + margin
    label_columns = 1 if len(panel.lines) <= 4 else 2
    room = 13 * -(-len(panel.lines) // label_columns) / (HEIGHT - TOP - BOTTOM)  # for the labels, above all curves
    y1 += (y1 - y0) * room / (1 - room)

    def place(x, y):
        across = (bend(x) - x0) / ((x1 - x0) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    for y in ticks(y0, y1):
        height = place(min(xs), y)[1]
        pen.line([(LEFT, height), (WIDTH - RIGHT, height)], "#e4e4e4")
        pen.text((LEFT - 6, height), f"{y:g}", "#444444", small, anchor="rm")
    last = -math.inf
    for x in sorted(set(xs)) if panel.stretch else ticks(min(xs), max(xs), 6):
        across = place(x, y0)[0]
        if across - last >= 34:
            pen.text((across, HEIGHT - BOTTOM + 6), f"{x:g}", "#444444", small, anchor="ma")
            pen.line([(across, HEIGHT - BOTTOM), (across, HEIGHT - BOTTOM + 4)], "#888888")
            last = across
    pen.text((WIDTH - RIGHT, HEIGHT - 16), panel.x_label, "#444444", small, anchor="ra")
    pen.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], "#888888")
    if panel.mark is not None:
        across = place(panel.mark, y0)[0]
        for y in range(TOP, HEIGHT - BOTTOM, 8):
            pen.line([(across, y), (across, y + 4)], "#444444")

    colours = [line.colour or COLOURS[i % len(COLOURS)] for i, line in enumerate(panel.lines)]
    for line, colour in zip(panel.lines, colours, strict=True):
        known = [k for k, y in enumerate(line.y) if _known(y)]
        bounded = [k for k in known if line.low and _known(line.low[k]) and _known(line.high[k])]
        if len(bounded) > 1:
            band = Image.new("RGBA", image.size, (0, 0, 0, 0))
            lower, upper = ([place(line.x[k], bound[k]) for k in bounded] for bound in (line.low, line.high))
            ImageDraw.Draw(band).polygon(lower + upper[::-1], colour + "30")
            image.alpha_composite(band)
            pen = ImageDraw.Draw(image)
        points = [place(line.x[k], line.y[k]) for k in known]
        if line.joined:
            pen.line(points, colour, 2)
        for x, y in points:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
    for i, (line, colour) in enumerate(zip(panel.lines, colours, strict=True)):
        row, column = divmod(i, label_columns)
        end = WIDTH - RIGHT - 4 - (label_columns - 1 - column) * (WIDTH - LEFT - RIGHT) // 2
        pen.text((end, TOP + 2 + 13 * row), line.label, colour, small, "ra", stroke_width=2, stroke_fill="white")
    return image.convert("RGB")
