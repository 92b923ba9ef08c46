"""What a reader does: search, switch to dark, move the slider, copy, download, go on, get lost."""

import json
import posixpath
import re

import nbformat
import pytest

from conftest import PAGES, SITE
from tools.notebooks import ROOT, all_notebooks

NOTEBOOKS = [path.relative_to(ROOT).with_suffix("").as_posix() for path in all_notebooks()]


def test_the_search_finds_a_word(visit):
    page = visit("search.html?q=subnormal")
    page.wait_for_selector("#search-results li")
    found = page.inner_text("#search-results")
    assert "Mixed precision" in found
    assert "Glossary" in found
    page = visit("search.html?q=zzzzzz")
    page.wait_for_selector("text=did not match any documents")


def test_control_k_opens_the_search_and_enter_goes_there(visit):
    page = visit("book/quickstart.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("plateau")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li")
    assert "Choosing a threshold" in page.inner_text("#search-results")
    assert page.foreign == page.errors == []


def test_the_slider_moves_the_path_by_keyboard_too(visit):
    page = visit("book/theory/the-cliff.html")
    figure = page.locator(".cliff-move").first
    slider = figure.locator("input[type=range]")

    def state():
        return figure.locator(".outcome").inner_text(), figure.locator("svg").first.inner_html()

    said, drawn = state()
    assert "steps clipped" in said
    slider.fill(slider.get_attribute("max"))  # the last position is no threshold
    unclipped, loose = state()
    assert "No threshold" in unclipped
    assert loose != drawn
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert state() != (unclipped, loose)
    assert "No threshold" not in state()[0]


def test_the_switch_makes_the_page_dark_and_remembers_it(visit):
    page = visit("book/intro.html")

    def brightness():
        return page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )

    assert min(brightness()) > 200
    while page.evaluate("() => document.documentElement.dataset.theme") != "dark":
        page.locator("button.theme-switch-button:visible").first.click()
    assert max(brightness()) < 60
    page.goto(page.url.replace("intro", "quickstart"))
    assert max(brightness()) < 60


def test_a_keyboard_reaches_the_text_first(visit):
    page = visit("book/quickstart.html")
    page.keyboard.press("Tab")
    assert "Skip to main content" in page.evaluate("() => document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_can_be_downloaded_and_each_cell_copied(look, name):
    page = look(f"{name}.html", "light")
    cells = [c for c in nbformat.read(ROOT / f"{name}.ipynb", as_version=4).cells if c.cell_type == "code"]
    shown = [c for c in cells if not {"remove-cell", "remove-input"} & set(c.metadata.get("tags", []))]
    assert page.copyButtons == len(shown)
    file = (SITE / name).parent / page.download
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(
        (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")
    )


def test_the_pages_are_a_chain():
    """From the front page, "next" leads through every page of the book, and "previous" back."""

    def neighbour(name, kind):
        html = (SITE / name).read_text(encoding="utf-8")
        found = re.search(rf'<a class="{kind}"\s+href="([^"]+)"', html)
        return found and posixpath.normpath(posixpath.join(posixpath.dirname(name), found[1]))

    name, seen = "book/intro.html", []
    while name:
        seen.append(name)
        name = neighbour(name, "right-next")
        assert name is None or neighbour(name, "left-prev") == seen[-1]
    assert sorted(seen) == [name for name in PAGES if name.startswith("book/")]


def test_who_is_lost_is_led_back(visit):
    page = visit("book/theory/no-such-page.html")
    assert page.inner_text("article h1").startswith("Page not found")
    page.locator("article >> text=front page").click()
    page.wait_for_url("**/book/intro.html")
    page.wait_for_selector("article h1:has-text('Gradient clipping, across frameworks')")


def test_without_an_address_nothing_points_to_one():
    for name in PAGES:
        html = (SITE / name).read_text(encoding="utf-8")
        assert "colab.research" not in html
        assert 'property="og:' not in html
        assert "source-repository-button" not in html
    assert not (SITE / "sitemap.xml").exists()
