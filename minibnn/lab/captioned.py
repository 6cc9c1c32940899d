"""Pictures with their captions on one sheet, and the sheet's file, from which each picture can be read back.

    save_sheet([Group("a photo of a sks dog", [(picture, "on the beach"), …])], "samples.png", {"step": 900})
    read_sheet("samples.png")  ->  the groups again, and {"step": 900}

Where each picture stands is kept in the PNG itself, as text.
"""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..files.schema import fitting, integer, items, record, text
from ..files.store import parse_json
from ..options.plain import plain
from ..pictures import save_png

INK, FAINT = "#1c1e21", "#5d646c"
LINES = 6  # of a caption at most: the whole of it is kept in the file
ENLARGED = 192  # pixels of a side up to which small pictures are enlarged by whole numbers
BOX = items(integer(0), 4, 4)
HELD = record({"groups": items(record({
    "title": text, "pictures": items(record({"caption": text, "box": BOX, "size": items(integer(1), 2, 2)},
                                            ("caption", "box", "size"))),
}, ("title", "pictures"))), "about": record({"step": integer(0)})}, ("groups", "about"))


@dataclass
class Group:
    """Pictures under one title. pictures: [(PIL picture, caption)], equally large ones; columns: in a row."""

    title: str
    pictures: list
    columns: int = 4


def laid_out(groups):
    """One PIL picture of all groups, side by side, and where their pictures stand: (image, [[box, …], …]).

    A box is (left, top, right, bottom). Captions are wrapped, and long ones cut; letters that Pillow's own font lacks
    are spelled.
    """
    side = max(picture.width for group in groups for picture, _ in group.pictures)
    size = max(12, side * max(1, ENLARGED // side) // 18)
    titles, captions = ImageFont.load_default(size + 3), ImageFont.load_default(size)
    gap, boxes, images, texts = size // 2, [], [], []
    left, lowest = gap, 0
    for group in groups:
        zoom = max(1, ENLARGED // group.pictures[0][0].width)
        width, height = (zoom * length for length in group.pictures[0][0].size)
        title = drawable(group.title, titles)
        texts.append((left, gap, title, titles, INK))
        boxes.append([])
        down = gap + 2 * size
        for start in range(0, len(group.pictures), group.columns):
            below = down + height
            for column, (picture, caption) in enumerate(group.pictures[start : start + group.columns]):
                x, y = left + column * (width + gap), down + height + 2
                boxes[-1].append((x, down, x + width, down + height))
                images.append((picture.resize((width, height), Image.Resampling.NEAREST), (x, down)))
                for line in shortened(wrap(drawable(caption, captions), captions, width)):
                    texts.append((x, y, line, captions, FAINT))
                    y += size + 3
                below = max(below, y)
            down = below + gap
        columns = min(group.columns, len(group.pictures))
        needed = max(columns * (width + gap), titles.getlength(title) + gap)
        left, lowest = left + round(needed) + 2 * gap, max(lowest, down)
    image = Image.new("RGB", (left - 2 * gap, lowest), "white")
    pen = ImageDraw.Draw(image)
    for picture, place in images:
        image.paste(picture, place)
    for x, y, words, font, colour in texts:
        pen.text((x, y), words, colour, font)
    return image, boxes


def drawable(words, font):
    """The words with each letter that a font lacks spelled in ASCII."""
    box = bytes(font.getmask("\uffff"))  # what is drawn in place of a letter that is lacking
    return "".join(c if c.isascii() or bytes(font.getmask(c)) != box else plain(c) for c in words)


def wrap(words, font, width):
    """Lines no wider than `width` pixels, broken between words where that is possible."""
    lines = []
    for word in words.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width and len(word) > 1:  # a word that is too long is cut
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


def shortened(lines):
    """The first LINES, the last of which ends with "..." if there were more."""
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][:-3] + "..."]


def save_sheet(groups, path, about):
    """Write a sheet as PNG. about: {"step": number} and what else should be kept beside it, for JSON."""
    image, boxes = laid_out(groups)
    held = [
        {"title": group.title, "pictures": [
            {"caption": caption, "box": box, "size": picture.size}
            for (picture, caption), box in zip(group.pictures, own, strict=True)
        ]} for group, own in zip(groups, boxes, strict=True)
    ]
    save_png(image, path, {"groups": held, "about": about})


def read_sheet(path):
    """(groups, about) of a sheet's file; None if it is an ordinary picture. Raises UserError when it is damaged."""
    try:
        with Image.open(path) as file:
            words = file.info.get("minibnn", "null")
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error})") from None
    found = parse_json(words, path)
    if not isinstance(found, dict) or "groups" not in found:
        return None
    fitting(found, HELD, path)
    groups = []
    for group in found["groups"]:
        for left, top, right, bottom, width, height in ([*each["box"], *each["size"]] for each in group["pictures"]):
            if not (left < right <= image.width and top < bottom <= image.height
                    and width <= right - left and height <= bottom - top):
                raise UserError(f"{path} names a picture outside of itself; it is damaged")
        cut = [(image.crop(each["box"]).resize(each["size"], Image.Resampling.NEAREST), each["caption"])
               for each in group["pictures"]]
        groups.append(Group(group["title"], cut))
    return groups, found["about"]
