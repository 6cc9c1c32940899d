"""Figures with Pillow alone: a sheet of labelled pictures, and curves with intervals.

Curves are drawn at twice the size and reduced, so that lines are smooth.

But: only what this package shows (tutorials use matplotlib); Pillow's own font has no Greek, so labels say sigma_1.
"""

import math

from PIL import Image, ImageDraw, ImageFont

from .weights import write_whole

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#555555")
INK, PALE = "#222222", "#dddddd"


def save(image, path):
    """Write a PNG whole."""
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


def sheet(rows, row_labels, column_labels, zoom=1):
    """Pictures in a table. rows: lists of equally large PIL images, None for an empty place; labels may hold line breaks."""
    font, gap = ImageFont.load_default(12), 6
    width, height = (zoom * side for side in next(p for row in rows for p in row if p).size)
    width_of_cell = max([width, *(_size(label, font)[0] for label in column_labels)]) + gap
    left = max(_size(label, font)[0] for label in row_labels) + 2 * gap
    top = max(_size(label, font)[1] for label in column_labels) + 2 * gap
    image = Image.new("RGB", (left + len(column_labels) * width_of_cell, top + len(rows) * (height + gap)), "white")
    pen = ImageDraw.Draw(image)
    for j, label in enumerate(column_labels):
        pen.multiline_text((left + j * width_of_cell, gap), label, INK, font)
    for i, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + i * (height + gap)
        pen.multiline_text((gap, y + (height - _size(label, font)[1]) / 2), label, INK, font)
        for j, picture in enumerate(row):
            if picture:
                image.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left + j * width_of_cell, y))
    return image


def _size(text, font):
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(box[2]), math.ceil(box[3])


def curves(series, title, x_label, y_label, log_x=False, log_y=False, size=(560, 320)):
    """A plot. series: list of (label, xs, ys, lows or None, highs or None); values that are not finite are left out.

    log_x, log_y: logarithmic axes, where values ≤ 0 are drawn at the lower edge.
    """
    scale, (width, height) = 2, size
    image = Image.new("RGB", (scale * width, scale * height), "white")
    pen, font = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(12 * scale)
    legend = max(_size(label, font)[0] for label, *_ in series) + 34 * scale
    box = (70 * scale, 26 * scale, width * scale - legend - 14 * scale, (height - 42) * scale)
    every_y = [y for _, _, ys, low, high in series for values in (ys, low or [], high or []) for y in values]
    across = _Axis([x for _, xs, *_ in series for x in xs], log_x, box[0], box[2])
    up = _Axis(every_y, log_y, box[3], box[1])
    for tick in up.ticks():
        pen.line((box[0], up(tick), box[2], up(tick)), PALE, scale)
        pen.text((box[0] - 5 * scale, up(tick)), f"{tick:g}", INK, font, anchor="rm")
    for tick in across.ticks():
        pen.line((across(tick), box[3], across(tick), box[3] + 4 * scale), INK, scale)
        pen.text((across(tick), box[3] + 6 * scale), f"{tick:g}", INK, font, anchor="mt")
    pen.line((box[0], box[3], box[2], box[3]), INK, scale)
    pen.text((box[0], 6 * scale), title, INK, font)
    pen.text(((box[0] + box[2]) / 2, height * scale - 6 * scale), x_label, INK, font, anchor="mb")
    upright = Image.new("L", (box[3] - box[1], 16 * scale))
    ImageDraw.Draw(upright).text((upright.width / 2, 8 * scale), y_label, 255, font, anchor="mm")
    image.paste(Image.new("RGB", upright.size[::-1], INK), (2 * scale, box[1]), upright.rotate(90, expand=True))
    for i, (label, xs, ys, low, high) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        if low:
            ends = [(x, a, b) for x, a, b in zip(xs, low, high, strict=True) if math.isfinite(a) and math.isfinite(b)]
            band = [(across(x), up(b)) for x, _, b in ends] + [(across(x), up(a)) for x, a, _ in reversed(ends)]
            if len(ends) > 1:
                pen.polygon(band, fill=colour + "40")
        points = [(across(x), up(y)) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        pen.line(points, colour, 2 * scale, joint="curve")
        for x, y in points:
            pen.ellipse((x - 2.5 * scale, y - 2.5 * scale, x + 2.5 * scale, y + 2.5 * scale), colour)
        y = box[1] + (10 + 16 * i) * scale
        pen.line((box[2] + 12 * scale, y, box[2] + 30 * scale, y), colour, 2 * scale)
        pen.text((box[2] + 36 * scale, y), label, INK, font, anchor="lm")
    return image.reduce(scale)


class _Axis:
    """A value -> its place between `start` and `end`."""

    def __init__(self, values, log, start, end):
        values = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        self.low, self.high = min(values), max(values)
        if not log:
            self.low = min(self.low, 0.0) if self.low < 0.5 * self.high else self.low
        if self.low == self.high:
            self.low, self.high = (self.low / 2, self.high * 2) if log else (self.low - 0.5, self.high + 0.5)
        self.log, self.start, self.end = log, start, end

    def __call__(self, value):
        low, high = self.low, self.high
        value = max(value, low)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self):
        """Round numbers along the axis, about five; 1, 2, 5 times powers of ten where it is logarithmic."""
        if self.log:
            tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high / self.low > 200 else (1, 2, 5)
            return [t for ten in tens for s in steps if self.low <= (t := s * 10.0**ten) <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def beside(images):
    """PIL images next to one another, on white."""
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    x = 0
    for image in images:
        whole.paste(image, (x, 0))
        x += image.width
    return whole
