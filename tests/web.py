"""What a web page is, read by an HTML parser: its elements, texts and pictures; and whether it needs anything else."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")  # Debian's; None where there is none
MEASURE = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    return {
      excess: root.scrollWidth - root.clientWidth,
      pictures: [...page.images].map((image) => [image.complete, image.naturalWidth, image.clientWidth]),
      charts: [...page.querySelectorAll("svg")].map((chart) => chart.clientWidth),
      cells: [...page.querySelectorAll("th, td")].map((cell) => [cell.clientWidth, cell.clientHeight]),
      overlaps: [...page.querySelectorAll("td img")].filter((image) => image.clientWidth > image.parentNode.clientWidth)
        .length,
      ink: frame.contentWindow.getComputedStyle(page.body).color,
    };
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
});
"""
VOID = {"meta", "img", "br", "hr", "link", "input"}  # elements without an end


class Page(HTMLParser):
    """Reads a page of well-formed HTML; raises AssertionError where a tag is not closed or closes another one.

    elements: [(name, {attribute: value}, names of those around it)]. texts: [(text, name of the element around it)].
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes), (name, attributes)
        self.elements.append((name, dict(attributes), tuple(self.open)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open and self.open[-1] == name, f"</{name}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append((data, self.open[-1] if self.open else ""))

    def all(self, name):
        """The attributes of all elements of this name."""
        return [attributes for kind, attributes, _ in self.elements if kind == name]

    def said(self, name=None):
        """All text, or that directly within elements of this name."""
        return "\n".join(text for text, around in self.texts if name in (None, around))

    def pictures(self):
        """[(alt text, PIL picture)]; each must be within the page, whole and described."""
        found = []
        for attributes in self.all("img"):
            kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", attributes["src"]).groups()
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
            assert image.format.lower() == kind and attributes["alt"].strip()
            found.append((attributes["alt"], image))
        return found

    def needs(self):
        """What the page would fetch or run: addresses outside of it, scripts, and handlers of events."""
        found = [name for name, *_ in self.elements if name in ("script", "iframe", "object", "embed", "link", "base")]
        for name, attributes, _ in self.elements:
            for key, value in attributes.items():
                refers = key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
                if key.startswith("on") or (refers and not value.startswith(("data:", "#"))):
                    found.append(f"{name} {key}={value}")
                if key == "style" and ("url(" in value or "@import" in value):
                    found.append(value)
        return found + re.findall(r"url\([^)]*\)|@import[^;]*", self.said("style"))


def in_a_browser(text, widths, folder):
    """Open a page in Chromium at these widths, in CSS pixels: ([what was measured at each], what it complained about).

    Measured are "excess", by how many pixels the page is wider than the screen; "pictures", for each whether it is
    loaded, its own width and its width on the page; the widths of the "charts"; width and height of the "cells" of
    tables; "overlaps", how many pictures are wider than their cells; and the colour of the "ink".
    """
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>' for width in widths)
    path = folder / "frames.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><script>{MEASURE}</script>{frames}", encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(done.stdout.rsplit("<pre>", 1)[1].split("</pre>")[0]), complaints
