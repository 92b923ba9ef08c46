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


def numbers(text):
    return [float(number.replace("−", "-")) for number in re.findall(r"[-−]?\d+(?:\.\d+)?", text)]


def printed(name, cell_that_has):
    cells = nbformat.read(ROOT / f"{name}.ipynb", as_version=4).cells
    (cell,) = (c for c in cells if c.cell_type == "code" and cell_that_has in c.source)
    tables = [output.data["text/plain"] for output in cell.outputs if "text/html" in output.get("data", {})]
    return "".join([*(output.get("text", "") for output in cell.outputs), *tables])


def test_the_cliff_moves_by_keyboard_and_says_what_the_notebook_computes(visit):
    page = visit("book/theory/the-cliff.html")
    figure = page.locator("figure#cliff-thresholds")
    slider, says = figure.locator("input[type=range]"), figure.locator(".says")
    # Each row of the table: c, the step from which the run is in the valley, its longest step.
    table = printed("book/theory/the-cliff", "thresholds = [")
    rows = re.findall(r"^([\d.]+|inf) +(never|\d+) +([\d.]+)", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["0.01", "0.1", "1", "10", "100", "inf"]
    slider.focus()
    page.keyboard.press("Home")
    for c, step, longest in rows:
        while figure.locator("output").inner_text() != {"inf": "none"}.get(c, c):
            page.keyboard.press("ArrowRight")
        said = says.inner_text()
        assert f"Longest step {longest}." in said
        assert ("Not in the valley" if step == "never" else f"In the valley from step {step}.") in said
        assert said in figure.locator("svg").get_attribute("aria-label")
    assert not figure.locator(".still").is_visible()
    page.emulate_media(media="print")
    assert figure.locator(".still").is_visible()
    assert not figure.locator("svg").is_visible()
    assert page.errors == page.foreign == []


def test_the_front_page_plays_the_step_before_and_after_clipping(visit):
    page = visit("book/intro.html")
    page.emulate_media(reduced_motion="reduce")  # the last frame at once
    figure = page.locator("figure#cliff-thresholds-front")
    before = figure.locator("svg").inner_html()
    figure.locator("button").click()
    said = figure.locator(".says").inner_text()
    step, norm, length, c, cut = numbers(said)
    assert [step, norm, length, c, cut] == numbers(printed("book/intro", "def descend("))
    assert figure.locator("svg").inner_html() != before
    figure.locator("input[type=range]").press("ArrowRight")  # a reader who moves on sees the paths again
    assert "steps clipped" in figure.locator(".says").inner_text()


def test_a_folded_section_opens_where_a_link_leads_to_it(visit):
    page = visit("book/theory/the-cliff.html")
    fold = page.locator("section.fold > details").first
    assert not fold.evaluate("details => details.open")
    place = page.locator("section.fold").first.get_attribute("id")
    page.locator(f"article a[href='#{place}']:not(.headerlink)").first.click()
    page.wait_for_selector(f"section#{place} > details[open]")


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
