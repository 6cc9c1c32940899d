"""HTML by pure functions: one self-contained file that opens without a server, without scripts and without other files.

    write_page("report.html", "My run", [section("Samples", strip(pictures, prompts)), section("Loss", chart(panels))])

Whatever is given as text is escaped; what a function here returns is `Html`, and is taken as it is. Pages fit a phone,
follow the reader's choice of light or dark, and forbid the browser to fetch or run anything
(Content-Security-Policy).
"""

import base64
import html
import io
import math
from pathlib import Path

from ..errors import visible
from ..files.store import write_text

LOSSLESS = 256 * 256  # pixels; larger pictures are embedded as JPEG, a tenth of the size
LARGEST = 768  # pixels of a side; larger ones are made smaller
SHOWN = 160  # least width on the page, in CSS pixels, up to which a picture is enlarged by whole numbers

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


class Html(str):
    """Text that is HTML already."""


def escape(text):
    """Any text as Html that shows it, control characters as \\x1b; Html stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(visible(str(text), " \n\t")))


def join(parts):
    """Texts and Html, one after the other."""
    return Html("".join(map(escape, parts)))


def element(name, content=(), attributes=None):
    """<name attributes>content</name>. content: text, Html, or a list of both; attributes: {name: text}."""
    inside = join([content] if isinstance(content, str) else content)
    return Html(f"{_start(name, attributes)}{inside}</{name}>")


def _start(name, attributes=None):
    written = "".join(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items())
    return Html(f"<{name}{written}>")


# --- text -------------------------------------------------------------------------------------------------------------


def paragraph(*content):
    """A paragraph of texts and Html."""
    return element("p", content)


def section(title, *content):
    """A heading and what stands under it."""
    return element("section", [element("h2", title), *content])


def details(summary, *content):
    """What a reader may unfold: closed at first, without a script."""
    return element("details", [element("summary", summary), *content])


def command(line):
    """A command line, which a reader can mark and copy."""
    return element("pre", element("code", line))


def table(head, rows, caption=None):
    """A table. head: texts; rows: lists of cells, each a text, Html, a number (four digits), or None for an empty one.

    The first cell of a row is its heading. On a narrow screen the table scrolls by itself, and the page does not.
    """
    lines = [element("tr", [element("th", cell, {"scope": "col"}) for cell in head])]
    for first, *others in rows:
        lines.append(element("tr", [element("th", shown(first), {"scope": "row"}), *map(_cell, others)]))
    titled = [element("caption", caption)] if caption else []
    body = [element("thead", lines[0]), element("tbody", lines[1:])]
    return scroll(element("table", titled + body), caption or "table")


def _cell(value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return element("td", shown(value), {"class": "number"} if number else None)


def shown(value):
    """A cell's value as text or Html."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else str(value)


def scroll(content, label):
    """Content that scrolls sideways by itself where it is wider than the screen. label: for those who cannot see it."""
    return element("div", content, {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": label})


# --- pictures ---------------------------------------------------------------------------------------------------------


def data_uri(image):
    """A PIL picture as the text data:image/…;base64,…: PNG if it is small, else JPEG."""
    image = image.convert("RGB")
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    kind, settings = ("png", {}) if image.width * image.height <= LOSSLESS else ("jpeg", {"quality": 90})
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(image, alt):
    """<img> of a PIL picture, within the page itself. A small one is enlarged by repeating pixels.

    alt: what it shows, for those who cannot see it.
    """
    zoom = max(1, SHOWN // image.width)
    size = {"width": str(zoom * image.width), "height": str(zoom * image.height)}
    return _start("img", {"src": data_uri(image), "alt": alt, **size} | ({"class": "pixels"} if zoom > 1 else {}))


def figure(content, caption):
    """A picture, chart or table (Html) with a caption below."""
    return element("figure", [content, element("figcaption", caption)])


def strip(images, captions):
    """PIL pictures side by side, as many as fit, each above its caption."""
    shown_ones = [figure(picture(image, caption), caption) for image, caption in zip(images, captions, strict=True)]
    return element("div", shown_ones, {"class": "strip"})


def picture_table(rows, row_labels, column_labels, marked=None):
    """PIL pictures (None: an empty place) in a labelled table; alt texts are made of both labels.

    marked: the number of the column that stands out.
    """
    mark = [{"class": "marked"} if j == marked else {} for j in range(len(column_labels))]
    titles = [element("th", label, {"scope": "col"} | own) for label, own in zip(column_labels, mark, strict=True)]
    lines = [element("tr", [element("td"), *titles])]
    for row, label in zip(rows, row_labels, strict=True):
        cells = [
            element("td", [picture(image, f"{label}, {title}")] if image else [], own)
            for image, title, own in zip(row, column_labels, mark, strict=True)
        ]
        lines.append(element("tr", [element("th", label, {"scope": "row"}), *cells]))
    return scroll(element("table", [element("thead", lines[0]), element("tbody", lines[1:])], {"class": "pictures"}),
                  "pictures")


# --- the page ---------------------------------------------------------------------------------------------------------


def page(title, parts):
    """A whole page as text. parts: what stands below the title, texts and Html."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = [
        _start("meta", {"charset": "utf-8"}),
        _start("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        _start("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        _start("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", title), element("style", Html(STYLE)),
    ]
    body = element("main", [element("h1", title), *parts])
    return Html(f'<!DOCTYPE html>\n<html lang="en">\n<head>{join(head)}</head>\n<body>{body}</body>\n</html>\n')


def write_page(path, title, parts):
    """Write a page whole. Raises UserError when the file cannot be written."""
    write_text(path, page(title, parts))
