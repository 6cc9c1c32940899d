"""The library of web pages: well-formed, complete in one file, every text escaped, and readable for everybody."""

import math

import numpy as np
import pytest
from PIL import Image
from web import CHROMIUM, Page, in_a_browser

from minibnn.lab.plot import Line, Panel
from minibnn.page import html, svg

NASTY = '<script>alert("1")</script> & \'a\' <img src=http://x.y/z onerror=b> é σ₁ 犬 \x00\x1b[31m \udc80'


def noise(width, height, seed=0):
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def everything(words):
    """A page that puts the same words into every place that takes a text."""
    picture, line = noise(8, 6), Line(words, [0, 1, 2], [1.0, math.nan, 3.0], [0.5, 0, 2], [1.5, 2, 4])
    panels = [Panel(words, [line, Line(words, [1], [2.0], joined=False)], words, mark=1, level=2.5), Panel(words)]
    return html.page(words, [
        words, html.paragraph(words, html.element("b", words)), html.command(words),
        html.section(words, html.details(words, html.table([words] * 2, [[words, words], [words, 1.5]], words))),
        html.strip([picture], [words]), html.figure(html.picture(picture, words), words),
        html.picture_table([[picture, None]], [words], [words, words], marked=1),
        html.scroll(words, words), svg.charts(panels),
    ])


def test_every_text_is_shown_and_none_is_obeyed():
    page, plain = Page(everything(NASTY)), Page(everything("words"))
    assert [name for name, *_ in page.elements] == [name for name, *_ in plain.elements]
    assert [sorted(a) for _, a, _ in page.elements] == [sorted(a) for _, a, _ in plain.elements]
    assert page.needs() == [] and plain.needs() == []
    seen = NASTY.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\udc80", r"\udc80")
    assert page.said().count(seen) == plain.said().count("words") > 20
    assert all(alt.startswith(seen) for alt, _ in page.pictures())
    everything(NASTY).encode("utf-8")


def test_the_oracle_sees_what_a_page_would_need():
    outside = '<p onclick="a"><img src="http://x/y.png" alt="z"></p><link href="a.css">'
    outside += "<style>p {background: url(b)}</style>"
    assert len(Page(outside).needs()) == 5
    for broken in ("<p><b></p></b>", "<p>", "</p>"):
        with pytest.raises(AssertionError):
            Page(broken)
    with pytest.raises((AssertionError, OSError, AttributeError)):
        Page('<img src="data:image/png;base64,AAAA" alt="a">').pictures()


def test_small_pictures_are_kept_to_the_pixel_and_large_ones_nearly():
    small, large = noise(64, 48), Image.linear_gradient("L").resize((1000, 500)).convert("RGB")
    (_, first), (_, second) = Page(html.picture(small, "a") + html.picture(large, "b")).pictures()
    assert np.array_equal(np.asarray(first), np.asarray(small)) and first.format == "PNG"
    assert second.size == (768, 384) and second.format == "JPEG"
    difference = np.asarray(second).astype(int) - np.asarray(large.resize((768, 384)))
    assert np.abs(difference).mean() < 2
    assert large.size == (1000, 500)  # the picture that was given stays as it is


@pytest.mark.parametrize(("size", "shown", "kind"), [
    ((64, 48), (128, 96), "pixels"), ((160, 160), (160, 160), None), ((512, 256), (512, 256), None),
    ((3, 5), (159, 265), "pixels"),
])
def test_small_pictures_are_enlarged_by_whole_numbers(size, shown, kind):
    (attributes,) = Page(html.picture(noise(*size), "a")).all("img")
    assert (int(attributes["width"]), int(attributes["height"])) == shown and attributes.get("class") == kind


def test_a_table_holds_its_cells_in_order():
    page = Page(html.table(["a", "b"], [["x", 1.23456], [2, None], ["y", True], ["z", math.nan]], "about"))
    assert [text for text, _ in page.texts] == ["about", "a", "b", "x", "1.235", "2", "–", "y", "True", "z", "–"]
    kinds = [attributes.get("scope") for name, attributes, _ in page.elements if name == "th"]
    assert kinds == ["col", "col", "row", "row", "row", "row"]
    assert [a.get("class") for a in page.all("td")] == ["number", None, None, "number"]


def test_the_marked_column_stands_out():
    page = Page(html.picture_table([[noise(4, 4), None, noise(4, 4)]] * 2, ["p", "q"], ["1", "2", "3"], marked=2))
    assert [a.get("class") for a in page.all("td")][1:] == [None, None, "marked"] * 2
    assert [alt for alt, _ in page.pictures()] == ["p, 1", "p, 3", "q, 1", "q, 3"]


# --- charts -----------------------------------------------------------------------------------------------------------


def numbers(attributes, *names):
    return [float(attributes[name]) for name in names]


def test_points_of_a_chart_stand_where_their_numbers_say():
    page = Page(svg.chart(Panel("t", [Line("a", [0, 25, 100], [0.0, 1.0, 4.0])], mark=25, level=1.0)))
    (x0, y0), (x1, y1), (x2, y2) = (numbers(circle, "cx", "cy") for circle in page.all("circle"))
    assert (x0, x2) == (svg.LEFT, svg.WIDTH - svg.RIGHT) and x1 == pytest.approx(x0 + (x2 - x0) / 4, abs=0.1)
    assert y0 > y1 > y2 and (y0 - y1) * 3 == pytest.approx(y1 - y2, abs=0.3)
    assert svg.TOP < y2 and y0 < svg.HEIGHT - svg.BOTTOM
    (polyline,) = page.all("polyline")
    assert polyline["points"] == f"{x0:.1f},{y0:.1f} {x1:.1f},{y1:.1f} {x2:.1f},{y2:.1f}"
    (mark,) = (line for line in page.all("line") if line["class"] == "mark")
    (level,) = (line for line in page.all("line") if line["class"] == "level")
    assert numbers(mark, "x1", "x2") == [x1, x1] and numbers(level, "y1", "y2") == [y1, y1]
    assert "a: 4 at 100" in page.said("title")


def test_a_stretched_axis_and_what_has_no_number():
    lines = [Line("a", [0, 25, 75], [0.0, 1.0, 2.0]), Line("b", [0, 25, 75], [None, math.inf, 0.5], joined=False)]
    page = Page(svg.chart(Panel("t", lines, stretch=25)))
    across = [numbers(circle, "cx")[0] for circle in page.all("circle")]
    left, right = svg.LEFT, svg.WIDTH - svg.RIGHT
    assert across == pytest.approx([left, (left + right) / 2, right, right], abs=0.1)  # log 1, log 2, log 4
    assert len(page.all("polyline")) == 1
    (drawn,) = page.all("svg")
    assert drawn["aria-label"] == "t: a from 0 to 2, b from 0.5 to 0.5" and drawn["role"] == "img"


def test_a_band_encloses_its_bounds():
    page = Page(svg.chart(Panel("t", [Line("a", [0, 1, 2], [1.0, 1.0, 1.0], [0.0, None, 0.0], [2.0, 2.0, 2.0])])))
    (band,) = page.all("polygon")
    corners = [tuple(map(float, place.split(","))) for place in band["points"].split()]
    assert len(corners) == 4 and corners[0][1] == corners[1][1] < corners[2][1] == corners[3][1]
    assert [x for x, _ in corners] == [svg.LEFT, svg.WIDTH - svg.RIGHT, svg.WIDTH - svg.RIGHT, svg.LEFT]


def test_nothing_measured_is_said():
    for lines in ([], [Line("a", [0, 1], [None, math.nan])]):
        page = Page(svg.chart(Panel("t", lines)))
        assert "nothing measured" in page.said("text") and not page.all("circle") and not page.all("line")[len(lines):]


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_all_of_it_on_a_phone_and_on_a_desk(tmp_path):
    wide = html.picture_table([[noise(64, 64)] * 9], ["a photo of a dog"], [f"step {i}" for i in range(9)])
    parts = [
        html.strip([noise(64, 64)] * 3, ["x" * 90] * 3), wide, html.command("python -m minibnn " + "--option " * 40),
        html.table(["a"] * 30, [["b"] * 30]), html.picture(noise(700, 20), "a wide one"),
        svg.charts([Panel("loss", [Line("a", [0, 1], [0, 1])])] * 2),
    ]
    text = html.page("<script>document.body.innerHTML = ''</script>" + "y" * 200, parts)
    found, complaints = in_a_browser(text, [390, 1280], tmp_path)
    assert not complaints
    for measured, width in zip(found, (390, 1280), strict=True):
        assert measured["excess"] == 0
        assert len(measured["pictures"]) == 13 and len(measured["charts"]) == 2
        assert all(loaded and own > 0 and 100 < shown <= width for loaded, own, shown in measured["pictures"])
        assert all(300 < shown < width for shown in measured["charts"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_tables_are_on_a_phone_what_they_are_on_a_desk(tmp_path):
    """Bug of an earlier version: they shrank first, so that "--deterministic" became two lines and texts one word."""
    words = ["word", "a sentence of several words, which needs two or three lines", "x" * 300]
    rows = [["--gradient-checkpointing", *[word] * 4] for word in words]
    pictures = html.picture_table([[noise(512, 512)] * 3], ["a photo of a dog"], ["step 1", "step 2", "step 3"])
    text = html.page("tables", [html.table(["σ₁ at t = 100"] * 5, rows), pictures])
    (phone, desk), _ = in_a_browser(text, [390, 1280], tmp_path)
    assert phone["cells"] == desk["cells"] and phone["excess"] == desk["excess"] == 0
    widths, heights = zip(*phone["cells"], strict=True)
    assert heights[0] == heights[5] < heights[10] < heights[15]  # titles and names in one line, longer texts in several
    assert max(widths[:20]) <= 16 * 16 and phone["overlaps"] == desk["overlaps"] == 0
