"""Tables of pictures with labels, and pictures side by side.

Labels are plain ASCII, because Pillow's own font has no other letters.
"""

import math

from PIL import Image, ImageDraw, ImageFont

INK = "#222222"


def sheet(rows, row_labels, column_labels, zoom=1):
    """Pictures in a labelled table; labels may hold line breaks.

    rows: lists of equally large PIL images, with None for an empty place.
    """
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


def beside(images):
    """PIL images next to one another, on white."""
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    x = 0
    for image in images:
        whole.paste(image, (x, 0))
        x += image.width
    return whole
