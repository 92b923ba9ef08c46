"""What holds on each page of the built book: nothing from elsewhere, no error, legible to everyone, on any screen."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from conftest import PAGES, ROOT, SITE

# Pages to look something up: their first screen shows a table.
TABLE_FIRST = {"book/frameworks/side-by-side.html", "book/reference/claims-checked.html"}

# A finding of axe that is no fault, by its rule and the place it points to, with the reason. None so far.
WAIVED = {}


def test_it_asks_no_other_host_and_logs_no_error(look, page_name):
    page = look(page_name, "light")
    assert page.foreign == []
    assert page.errors == []


def test_every_formula_is_rendered(look, page_name):
    page = look(page_name, "light")
    assert page.rendered >= page.written  # an align block is one formula of several lines
    assert page.broken == 0
    assert not re.search(r"\\\(|\\\[", page.text)


def test_it_fits_a_phone(look, page_name):
    page = look(page_name, "light")
    assert page.widthOnPhone <= 390
    assert page.lostOnPhone == []


def test_its_picture_is_on_the_first_screen(look, notebook_page):
    page = look(notebook_page, "light")
    top = page.tableTop if notebook_page in TABLE_FIRST else page.figureTop
    assert top is not None
    assert top < 900  # of the 900 pixels that a laptop shows
    if notebook_page not in TABLE_FIRST:
        assert page.codeBeforeFigure == 0


def test_no_picture_is_squeezed(look, page_name):
    assert look(page_name, "light").squeezed == []


def test_its_head_says_what_it_is_for_and_how_long_it_runs(look, notebook_page):
    page = look(notebook_page, "light")
    assert page.standfirst
    if notebook_page != "book/intro.html":
        seconds = json.loads((ROOT / "book/running_times.json").read_text())[notebook_page.replace(".html", ".ipynb")][
            "seconds"
        ]
        assert re.match(rf"\d+ min · runs in {seconds:.0f} s · for .+ · needs .+", page.facts)


def test_no_code_and_no_table_is_cut_at_the_margin(look, page_name):
    assert look(page_name, "light").cut == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_has_no_serious_finding(look, page_name, theme):
    page = look(page_name, theme)
    assert page.theme == theme
    findings = [
        (finding["id"], node["target"][0], node["any"][0]["message"] if node["any"] else finding["help"])
        for finding in page.axe
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]
    assert [finding for finding in findings if finding[:2] not in WAIVED] == []


class Links(HTMLParser):
    """The targets and the places of a page."""

    def __init__(self, html):
        super().__init__()
        self.targets, self.places = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.places |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        self.targets += [attributes[key] for key in ("href", "src") if attributes.get(key)]


PARSED = {name: Links((SITE / name).read_text(encoding="utf-8")) for name in PAGES}


def test_every_link_inside_the_book_leads_somewhere(page_name):
    dead = []
    for target in PARSED[page_name].targets:
        link = urlsplit(urljoin(f"http://book/{page_name}", target)) if "://" not in target else None
        if link is None or link.netloc != "book" or target.startswith(("mailto:", "data:", "javascript:")):
            continue
        path = unquote(link.path.lstrip("/"))
        there = (SITE / path).is_file()
        place = unquote(link.fragment)
        if not there or (place and path in PARSED and place not in PARSED[path].places):
            dead.append(target)
    assert dead == []
