"""The picture of a training loop shows each line, crosses out the wrong ones, and nothing sticks out of it."""

import itertools

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from book.frameworks.loop_picture import RIGHT, WRONG, draw_loop, parse
from tools.notebooks import BOOK

LOOP = """
  for x, y in batches:
-     clip(grads)           # there are none yet
      loss.backward()
+     clip(grads)           # here

      optimizer.step()
-     clip(grads)           # too late: the update has been made
"""


@pytest.fixture
def ax():
    plt.switch_backend("agg")
    with plt.style.context(BOOK / "book.mplstyle"):
        yield draw_loop(LOOP)
    plt.close("all")


def texts(ax):
    return [t for t in ax.texts if t.get_text()]


def test_lines_are_read_like_a_diff():
    assert parse(LOOP)[:4] == [
        (" ", " for x, y in batches:", ""),
        ("-", "     clip(grads)", "there are none yet"),
        (" ", "     loss.backward()", ""),
        ("+", "     clip(grads)", "here"),
    ]
    assert parse(LOOP)[4] == (" ", "", "")
    with pytest.raises(ValueError, match="begins with"):
        parse("loss.backward()")


def test_every_line_and_note_is_drawn_in_order(ax):
    lines = parse(LOOP)
    drawn = sorted((t.get_position()[1], t.get_position()[0], t.get_text()) for t in texts(ax))
    assert [t for _, x, t in drawn if x == 0] == [line.code for line in lines if line.code]
    assert [t for _, x, t in drawn if x > 0] == [line.note for line in lines if line.note]


def test_the_wrong_places_and_only_they_are_crossed_out(ax):
    wrong = [y for y, line in enumerate(parse(LOOP)) if line.kind == "-"]
    assert [tuple(line.get_ydata()) for line in ax.lines] == [(y, y) for y in wrong]
    assert [t.get_position()[1] for t in texts(ax) if t.get_text() == "✗"] == wrong
    assert [t.get_position()[1] for t in texts(ax) if t.get_text() == "✓"] == [3]


def test_colours_tell_right_from_wrong_and_so_do_signs(ax):
    colours = {t.get_text(): to_hex(t.get_color()).upper() for t in texts(ax)}
    assert colours["✓"] == colours["here"] == RIGHT
    assert colours["✗"] == colours["there are none yet"] == WRONG


def test_nothing_overlaps_or_sticks_out(ax):
    ax.figure.canvas.draw()
    boxes = {t: t.get_window_extent() for t in texts(ax)}
    page = ax.figure.bbox
    for box in boxes.values():
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
    for line in ax.lines:  # the stroke goes through the code from its first letter to its last
        (code,) = (b for t, b in boxes.items() if t.get_position() == (0, line.get_ydata()[0]))
        assert ax.transData.transform((line.get_xdata()[1], 0))[0] == pytest.approx(code.x1, abs=3)
    for y in {t.get_position()[1] for t in boxes}:
        row = sorted((b for t, b in boxes.items() if t.get_position()[1] == y), key=lambda b: b.x0)
        for left, right in itertools.pairwise(row):
            assert left.x1 < right.x0
