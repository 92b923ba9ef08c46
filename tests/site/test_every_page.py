"""What holds on each page of the built book: nothing from elsewhere, no error, legible to everyone, on any screen."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import PAGES, SITE

# A finding of axe that is no fault, by its rule and the place it points to, with the reason. None so far.
WAIVED = {}


def test_it_asks_no_other_host_and_logs_no_error(visit, page_name):
    page = visit(page_name)
    assert page.foreign == []
    assert page.errors == []


def test_every_formula_is_rendered(visit, page_name):
    page = visit(page_name)
    written, rendered, broken = page.evaluate(
        "() => ['.math', '.math mjx-container', 'mjx-merror'].map(s => document.querySelectorAll(s).length)"
    )
    assert rendered >= written  # an align block is one formula of several lines
    assert broken == 0
    assert not re.search(r"\\\(|\\\[", page.inner_text("article, main"))


def test_it_fits_a_phone(visit, page_name):
    page = visit(page_name, width=390)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    # A box that hides what does not fit would pass; text must stay inside the screen, or in a box that scrolls.
    lost = page.evaluate(
        """() => [...document.querySelectorAll("article p, article li, article h1, article h2, article h3, article dt")]
        .filter(e => e.getBoundingClientRect().right > 391 && !e.closest("table, pre, .math, [style*=overflow]"))
        .map(e => e.textContent.slice(0, 80))"""
    )
    assert lost == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_has_no_serious_finding(visit, page_name, theme):
    page = visit(page_name, theme=theme)
    assert page.evaluate("() => document.documentElement.dataset.theme") == theme
    findings = [
        (finding["id"], node["target"][0], node["any"][0]["message"] if node["any"] else finding["help"])
        for finding in Axe().run(page).response["violations"]
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
