"""Line charts: where points, bands and ticks are, what is left out, and that the font has every letter."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

from minibnn.experiments.corruption import report
from minibnn.lab import monitor, plot
from minibnn.lab.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, Panel, chart, ticks

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(*lines, **settings):
    return np.asarray(chart([Panel("", list(lines), **settings)], 1)).astype(int)


def where(image, colour):
    """(rows, columns) of the pixels of exactly this colour inside the axes."""
    rows, columns = np.nonzero((image == colour).all(-1))
    inside = (rows >= TOP) & (rows <= HEIGHT - BOTTOM + 2) & (columns <= WIDTH - RIGHT + 2)
    return rows[inside], columns[inside]


def columns_of(x, **settings):
    """The column of each point's centre. Each is drawn alone, with an invisible line that keeps the axis."""
    found = []
    for value in x:
        ends = Line("", [min(x), max(x)], [0, 1], colour="#ffffff")
        _, columns = where(pixels(ends, Line("", [value], [0.5], colour="#ff0000"), **settings), RED)
        found.append((columns.min() + columns.max()) / 2)
    return found


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 9.3), (-0.031, 0.42), (3, 3), (0, 1600), (-7, -6.99), (1e-7, 3e-7), (-2e6, 5e6), (0.95, 1.05)],
)
def test_ticks_are_round_even_and_within(low, high):
    found = ticks(low, high)
    assert found == sorted(set(found)) and all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in found)
    assert 1 <= len(found) <= 6 and (low == high or len(found) >= 2)
    if len(found) > 1:
        steps = np.diff(found)
        assert np.allclose(steps, steps[0], rtol=1e-6)
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-6
        assert found[0] - steps[0] < low and found[-1] + steps[0] > high  # no tick is missing at an end


def test_ticks_of_the_docstring():
    assert ticks(0, 9.3) == [0, 2, 4, 6, 8]


def test_points_are_where_their_numbers_say():
    left, right = LEFT, WIDTH - RIGHT
    middle = (left + right) / 2
    assert columns_of([0, 25, 50, 100]) == pytest.approx([left, (left + middle) / 2, middle, right], abs=1)
    assert columns_of([0, 25, 75], stretch=25) == pytest.approx([left, middle, right], abs=1)  # log 1, log 2, log 4
    rows = []
    for y in (0, 1, 4):
        image = pixels(Line("", [0, 2], [0, 4], colour="#ffffff"), Line("", [1], [y], colour="#ff0000"))
        found, _ = where(image, RED)
        rows.append((found.min() + found.max()) / 2)
    assert rows[0] > rows[1] > rows[2] and (rows[0] - rows[1]) * 3 == pytest.approx(rows[1] - rows[2], abs=4)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_points_without_a_number_are_left_out(missing):
    x, y, low, high = [0, 1, 2, 3], [0, 2, 1, 3], [-1, 1, 0, 2], [1, 3, 2, 4]
    without = Line("a", [0, 2, 3], [0, 1, 3], [-1, 0, 2], [1, 2, 4])
    assert np.array_equal(pixels(Line("a", x, [0, missing, 1, 3], low, high)), pixels(without))
    whole, blue = pixels(Line("a", x, y, low, high)), (31, 119, 180)
    for bound in (Line("a", x, y, [-1, missing, 0, 2], high), Line("a", x, y, low, [1, missing, 2, 4])):
        image = pixels(bound)  # the point stays, its band does not
        assert not np.array_equal(image, whole)
        assert where(image, blue)[0].max() == where(whole, blue)[0].max()


def test_bands_are_shaded_between_low_and_high():
    x = [0, 10]
    ends = Line("", x, [0, 4], colour="#ffffff")
    bare = {y: pixels(ends, Line("", x, [y, y], colour="#0000ff")) for y in (0, 1, 2)}
    row = {y: where(image, BLUE)[0].mean() for y, image in bare.items()}
    image = pixels(ends, Line("", x, [1, 1], [0, 0], [2, 2], colour="#0000ff"))
    rows = np.nonzero((image != bare[1]).any(-1)[:, LEFT + 90])[0]
    assert len(rows) > np.ptp(rows) - 8  # no hole but for the line itself
    assert (rows.min(), rows.max()) == (pytest.approx(row[2], abs=2.5), pytest.approx(row[0], abs=2.5))
    tint = image[int((row[1] + row[2]) / 2), (LEFT + WIDTH - RIGHT) // 2]
    assert tint[2] == 255 and 150 < tint[0] < 255  # lighter than the line, so that it shows through


def test_a_line_of_one_point_is_a_point_and_has_no_band():
    image = pixels(Line("", [5], [2.0], [1.0], [3.0], colour="#ff0000"))
    rows, columns = where(image, RED)
    assert len(rows) > 8 and np.ptp(rows) <= 5 and np.ptp(columns) <= 5


@pytest.mark.parametrize("lines", [[], [Line("a", [0, 1], [None, math.nan])], [Line("a", [], [])]])
def test_nothing_measured_is_said(lines):
    image = pixels(*lines)
    assert np.array_equal(image, pixels()) and (image < 128).any()
    assert not np.array_equal(image, pixels(Line("", [0, 1], [0, 0])))


def test_panels_stand_row_by_row():
    panels = [Panel(title, [Line("l", [0, 1], [0, i])]) for i, title in enumerate("abcde")]
    sheet = chart(panels, 3)
    assert sheet.size == (3 * WIDTH, 2 * HEIGHT)
    for i, panel in enumerate(panels):
        place = ((i % 3) * WIDTH, (i // 3) * HEIGHT)
        assert sheet.crop((*place, place[0] + WIDTH, place[1] + HEIGHT)).tobytes() == chart([panel]).tobytes()
    assert chart(panels[:2], 3).size == (2 * WIDTH, HEIGHT)


def test_curves_have_their_own_colours_and_names():
    lines = [Line(name, [0, 1], [i, i]) for i, name in enumerate(("plain", "BNN"))]
    image = pixels(*lines)
    for colour in plot.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert len(where(image, rgb)[0]) > 100
    assert not np.array_equal(image, pixels(lines[0], Line("other", [0, 1], [1, 1])))


def test_every_letter_of_the_charts_can_be_drawn(monkeypatch):
    """Pillow's own font draws a box in place of a letter that it lacks, such as a Greek one."""
    drawn, draw = [], plot.chart
    monkeypatch.setattr(plot, "chart", lambda panels, columns: drawn.extend(panels))
    for world in (True, False):
        watch = monitor.Monitor.__new__(monitor.Monitor)
        watch.world, watch.out, watch.drawing = world, Path("nowhere"), (None, 50, 7.5)
        watch.photographs = False
        watch.rows = [{"step": 0, "fidelity": 0.0, "noise": 0.0} | {f"sigma1 at {t}": 0.0 for t in monitor.TIMES}]
        watch.chart()
    report.curves([], "main", 1, "view")
    report.by_pictures([], "main", "view", [])
    font = ImageFont.load_default(14)
    box = bytes(font.getmask("\uffff"))
    assert bytes(font.getmask("σ")) == box
    words, write = ["plain BNN 1 pictures 0123456789e+-."], ImageDraw.ImageDraw.text

    def text(pen, place, word, *rest, **more):
        words.append(word)
        write(pen, place, word, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw(drawn, 4)
    assert len(drawn) == 17 and any("sigma1" in word for word in words)
    assert [letter for letter in set("".join(words)) - {" "} if bytes(font.getmask(letter)) == box] == []


def test_a_mark_stands_at_its_place_and_nowhere_without():
    ends = Line("", [0, 100], [0, 1], colour="#ffffff")
    rows, columns = where(pixels(ends, mark=25), (0x44, 0x44, 0x44))
    middle = LEFT + (WIDTH - RIGHT - LEFT) / 4
    assert set(columns.tolist()) <= {int(middle), round(middle)} and len(set(rows.tolist())) > 100
    assert not len(where(pixels(ends), (0x44, 0x44, 0x44))[0])


def test_points_alone_are_not_joined():
    assert len(where(pixels(Line("", [0, 9], [0, 1], colour="#ff0000", joined=False)), RED)[0]) < 70
    assert len(where(pixels(Line("", [0, 9], [0, 1], colour="#ff0000")), RED)[0]) > 300
