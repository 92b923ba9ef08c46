"""Tables of the book: aligned in a terminal and in a browser, and compared by column."""

import doctest
import importlib.util

import pytest

from tools.notebooks import BOOK
from tools.outputs import columns_of

SPEC = importlib.util.spec_from_file_location("bookstyle", BOOK / "bookstyle.py")
bookstyle = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bookstyle)
TABLE = bookstyle.Table({"rule": ["a<b", "none"], "lost steps": [-8, 120]}, {"lost steps": ".1f"})


def test_the_example_of_its_documentation():
    assert doctest.testmod(bookstyle) == (0, 1)


def test_html_is_aligned_and_escaped():
    html = TABLE._repr_html_()
    assert '<th style="text-align:left">rule</th><th style="text-align:right">lost steps</th>' in html
    assert '<td style="text-align:left">a&lt;b</td><td style="text-align:right">−8.0</td>' in html


@pytest.mark.parametrize("html", [True, False])
def test_a_tolerance_can_name_a_column(html):
    shown = TABLE._repr_html_() if html else repr(TABLE)
    assert set(columns_of(shown, {"columns": {"lost steps": {"factor": 2}}}, html).values()) == {"lost steps"}


def test_a_format_for_a_column_that_is_not_there():
    with pytest.raises(ValueError, match=r"not there: \['steps'\]; there are \['rule'\]"):
        bookstyle.Table({"rule": ["none"]}, {"steps": ".1f"})
