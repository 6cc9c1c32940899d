"""Line charts with Pillow alone, which commands write beside their numbers (the tutorials use matplotlib).

But: only lines with bands, on one or more panels, with a linear or a stretched x axis. Pillow's own font has neither
Greek letters nor raised or lowered digits, and so the picture says sigma1 where a label says σ₁. The same panels as
drawings in a web page: `minibnn/page/svg.py`.
"""

import math
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from ..options.plain import plain

WIDTH, HEIGHT = 440, 300  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 44
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#e377c2", "#bcbd22")


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

    mark: an x between the ends at which a dashed line stands. level: a y at which a dotted line lies, a threshold.
    """

    title: str
    lines: list = field(default_factory=list)
    x_label: str = "step"
    stretch: float = None
    mark: float = None
    level: float = None


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


def known(value):
    """Whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def bounded(line):
    """The numbers of the points of a Line between whose low and high the band lies."""
    there = [k for k, y in enumerate(line.y) if known(y)]
    return [k for k in there if line.low and known(line.low[k]) and known(line.high[k])]


class Axes:
    """Where the numbers of a panel stand in a picture of width × height, whose y points downwards.

    box: (left, top, right, bottom) of the axes. label: the room that the label of one line takes above all curves.
    """

    def __init__(self, panel, box, label=0):
        self.box, self.stretch = box, panel.stretch
        self.xs = [x for line in panel.lines for x in line.x]
        ys = [y for line in panel.lines for part in (line.y, line.low, line.high) for y in part or () if known(y)]
        self.empty = not ys
        if self.empty:
            return
        ys += [panel.level] if panel.level is not None else []
        self.x0, self.x1 = self._bend(min(self.xs)), self._bend(max(self.xs))
        margin = 0.05 * (max(ys) - min(ys)) or 0.5
        self.y0, self.y1 = min(ys) - margin, max(ys) + margin
        room = label / (box[3] - box[1])
        self.y1 += (self.y1 - self.y0) * room / (1 - room)

    def _bend(self, x):
        return math.log1p(x / self.stretch) if self.stretch else float(x)

    def place(self, x, y):
        """Numbers -> (across, down) in the picture."""
        left, top, right, bottom = self.box
        across = (self._bend(x) - self.x0) / ((self.x1 - self.x0) or 1.0)
        return left + across * (right - left), bottom - (y - self.y0) / (self.y1 - self.y0) * (bottom - top)

    def x_ticks(self):
        """[(x, across)]: round numbers or, on a stretched axis, the points' own; none nearer than 34 to the last."""
        found = []
        for x in sorted(set(self.xs)) if self.stretch else ticks(min(self.xs), max(self.xs), 6):
            across = self.place(x, self.y0)[0]
            if not found or across - found[-1][1] >= 34:
                found.append((x, across))
        return found

    def y_ticks(self):
        """[(y, down)] of round numbers."""
        return [(y, self.place(self.xs[0], y)[1]) for y in ticks(self.y0, self.y1)]


def _draw(panel):
    image = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    pen, font, small = ImageDraw.Draw(image), ImageFont.load_default(14), ImageFont.load_default(11)
    pen.text((LEFT, 8), plain(panel.title), "black", font)
    label_columns = 1 if len(panel.lines) <= 4 else 2
    box = LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM
    axes = Axes(panel, box, 13 * -(-len(panel.lines) // label_columns))
    if axes.empty:
        pen.text((LEFT, HEIGHT // 2), "nothing measured", "black", small)
        return image.convert("RGB")
    for y, down in axes.y_ticks():
        pen.line([(LEFT, down), (WIDTH - RIGHT, down)], "#e4e4e4")
        pen.text((LEFT - 6, down), f"{y:g}", "#444444", small, anchor="rm")
    for x, across in axes.x_ticks():
        pen.text((across, HEIGHT - BOTTOM + 6), f"{x:g}", "#444444", small, anchor="ma")
        pen.line([(across, HEIGHT - BOTTOM), (across, HEIGHT - BOTTOM + 4)], "#888888")
    pen.text((WIDTH - RIGHT, HEIGHT - 16), plain(panel.x_label), "#444444", small, anchor="ra")
    pen.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], "#888888")
    if panel.mark is not None:
        across = axes.place(panel.mark, axes.y0)[0]
        for y in range(TOP, HEIGHT - BOTTOM, 8):
            pen.line([(across, y), (across, y + 4)], "#444444")
    if panel.level is not None:
        down = axes.place(axes.xs[0], panel.level)[1]
        for x in range(LEFT, WIDTH - RIGHT, 6):
            pen.line([(x, down), (x + 1, down)], "#b00020")

    colours = [line.colour or COLOURS[i % len(COLOURS)] for i, line in enumerate(panel.lines)]
    for line, colour in zip(panel.lines, colours, strict=True):
        inside = bounded(line)
        if len(inside) > 1:
            band = Image.new("RGBA", image.size, (0, 0, 0, 0))
            lower, upper = ([axes.place(line.x[k], bound[k]) for k in inside] for bound in (line.low, line.high))
            ImageDraw.Draw(band).polygon(lower + upper[::-1], colour + "30")
            image.alpha_composite(band)
            pen = ImageDraw.Draw(image)
        points = [axes.place(x, y) for x, y in zip(line.x, line.y, strict=True) if known(y)]
        if line.joined:
            pen.line(points, colour, 2)
        for x, y in points:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
    for i, (line, colour) in enumerate(zip(panel.lines, colours, strict=True)):
        row, column = divmod(i, label_columns)
        end = WIDTH - RIGHT - 4 - (label_columns - 1 - column) * (WIDTH - LEFT - RIGHT) // 2
        pen.text((end, TOP + 2 + 13 * row), plain(line.label), colour, small, "ra", stroke_width=2, stroke_fill="white")
    return image.convert("RGB")
