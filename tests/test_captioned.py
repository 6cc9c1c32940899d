"""Sheets of pictures with captions: each picture comes back from the file as it was, and nothing overlaps."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from minibnn.errors import UserError
from minibnn.lab import captioned
from minibnn.lab.captioned import Group, drawable, laid_out, read_sheet, save_sheet, shortened, wrap
from minibnn.pictures import save_png

FONT = ImageFont.load_default(12)


def noise(width, height, seed=0):
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pictures_and_captions_come_back_as_they_were(tmp_path):
    """Of different sizes, enlarged or not, in rows that are not full; captions of any letters."""
    groups = [
        Group("given", [(noise(64, 48, i), f"number {i}, σ₁ 犬 <b>") for i in range(5)], 2),
        Group("drawn after step 7", [(noise(200, 210, 9), "a photo of a very long prompt " * 4)]),
    ]
    path = tmp_path / "sheet.png"
    save_sheet(groups, path, {"step": 7})
    found, about = read_sheet(path)
    assert about == {"step": 7} and [group.title for group in found] == ["given", "drawn after step 7"]
    for group, other in zip(groups, found, strict=True):
        for (picture, caption), (read, said) in zip(group.pictures, other.pictures, strict=True):
            assert caption == said and np.array_equal(np.asarray(picture), np.asarray(read))


def test_groups_stand_side_by_side_and_nothing_overlaps():
    groups = [Group("a", [(noise(64, 64), "one two three four five six seven eight nine ten")] * 5, 3),
              Group("a title that is much wider than the one picture", [(noise(32, 32), "x")])]
    image, boxes = laid_out(groups)
    assert [len(own) for own in boxes] == [5, 1]
    every = [box for own in boxes for box in own]
    assert all(0 <= left < right <= image.width and 0 <= top < bottom <= image.height
               for left, top, right, bottom in every)
    for i, a in enumerate(every):
        assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in every[:i])
    assert boxes[1][0][0] > max(box[2] for box in boxes[0])
    pixels = np.asarray(image).astype(int)
    below = pixels[boxes[0][0][3] : boxes[0][3][1], : boxes[0][0][2]]
    assert (below < 128).any()  # the caption
    assert (pixels[:, -1] == 255).all() and (pixels[-1] == 255).all()


def test_a_long_caption_is_cut_on_the_sheet_and_kept_in_the_file(tmp_path):
    """Bug: a caption of hundreds of words made samples.png a column of text."""
    words = "a dog in the snow with a red ball " * 60
    short, long = ([Group("a", [(noise(64, 64), caption)])] for caption in ("a dog", words))
    lines = shortened(wrap(words, FONT, 192))
    assert len(lines) == 6 and lines[-1].endswith("...") and lines[:5] == wrap(words, FONT, 192)[:5]
    assert shortened(lines[:6]) == lines
    assert laid_out(long)[0].height < laid_out(short)[0].height + 6 * 20
    save_sheet(long, tmp_path / "a.png", {"step": 1})
    assert read_sheet(tmp_path / "a.png")[0][0].pictures[0][1] == words


@pytest.mark.parametrize("words", ["a photo of a dog", "Donaudampfschifffahrtsgesellschaft", "", "a  b", "WWWWWWWWW W"])
@pytest.mark.parametrize("width", [20, 60, 500])
def test_lines_fit_and_no_word_is_lost(words, width):
    lines = wrap(words, FONT, width)
    assert all(FONT.getlength(line) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(words.split())
    if width == 500:
        assert lines == ([" ".join(words.split())] if words else [])


def test_letters_that_the_font_lacks_are_spelled():
    assert drawable("it's é, σ₁ 犬", FONT) == "it's e, sigma1 ?"


def test_ordinary_pictures_are_no_sheets_and_damage_is_named(tmp_path):
    save_png(noise(8, 8), tmp_path / "plain.png")
    save_png(noise(8, 8), tmp_path / "drawn.png", {"prompt": "a dog"})
    assert read_sheet(tmp_path / "plain.png") is None and read_sheet(tmp_path / "drawn.png") is None
    (tmp_path / "broken.png").write_bytes((tmp_path / "plain.png").read_bytes()[:40])
    with pytest.raises(UserError, match="broken.png cannot be read as a picture"):
        read_sheet(tmp_path / "broken.png")
    save_png(noise(8, 8), tmp_path / "odd.png", {"groups": [{"title": 3, "pictures": []}], "about": {}})
    with pytest.raises(UserError, match=r"odd.png: groups\[0\].title is 3, but must be a text"):
        read_sheet(tmp_path / "odd.png")
    big = {"caption": "a", "box": [0, 0, 10**9, 10**9], "size": [10**6, 10**6]}
    save_png(noise(8, 8), tmp_path / "bomb.png", {"groups": [{"title": "", "pictures": [big]}], "about": {"step": 1}})
    with pytest.raises(UserError, match="bomb.png names a picture outside of itself"):
        read_sheet(tmp_path / "bomb.png")


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    for side, shown in ((64, 192), (100, 100), (192, 192), (256, 256)):
        ((left, top, right, bottom),), = laid_out([Group("", [(noise(side, side), "")])])[1]
        assert (right - left, bottom - top) == (shown, shown) and captioned.ENLARGED == 192
