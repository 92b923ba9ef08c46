"""The page that ``python -m gradclip report --html`` writes, opened as a file, in a browser."""

import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from gradclip import NormHistory, report


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page on two runs: long, with spikes and a NaN; and short, logged after clipping."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    norms = 0.4 * np.exp(0.4 * random.normal(size=3000))
    norms[::500] *= 20
    norms[1234] = np.nan
    for name, values in (("long", norms), ("lying", np.minimum(60 * norms[:90] / 0.4, 40))):
        history = NormHistory()
        for norm in values:
            history.record(norm, max_norm=1.0, loss=2.0)
        history.to_csv(folder / f"{name}.csv")
    report.main([str(folder / "long.csv"), str(folder / "lying.csv"), "--html", str(folder / "report.html")])
    return folder / "report.html"


@pytest.fixture
def opened(browser, page_file):
    """Opens it in a theme and width; what it asked for and its errors are lists on it."""
    contexts = []

    def opening(theme="light", width=1280):
        contexts.append(browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_selector("#run-1 svg path", state="attached")
        return page

    yield opening
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_legible_to_everyone_on_any_screen(opened, page_file, theme, width):
    page = opened(theme, width)
    assert page.asked == [page_file.as_uri()]
    assert page.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (theme == "dark")
    assert [(found["id"], found["nodes"][0]["target"]) for found in Axe().run(page).response["violations"]] == []


def test_the_threshold_moves_by_keys_buttons_and_in_the_picture(opened):
    page = opened()
    figure = page.locator("#run-0")
    said, slider, drawing = figure.locator("output"), figure.locator("input"), figure.locator("svg")

    def share():
        """The share clipped as the page says it, which the picture's text alternative says too."""
        assert said.inner_text() in drawing.get_attribute("aria-label")
        assert said.inner_text() in slider.get_attribute("aria-valuetext")
        return re.search(r"clips (.+?) of 2999 norms", said.inner_text())[1]

    assert share() == "1%"
    assert figure.locator("b").inner_text() == "1"
    cut = figure.locator("clipPath rect")
    before = float(cut.get_attribute("height"))
    slider.focus()
    for _ in range(150):
        page.keyboard.press("ArrowLeft")
    assert float(cut.get_attribute("height")) > before  # more of the picture is blue
    assert int(share().rstrip("%")) > 10
    page.locator('button[data-run="run-0"]').nth(3).click()
    assert share() == "50%"
    page.keyboard.press("Home")
    assert share() == "100%"
    page.keyboard.press("End")
    assert share() == "none"
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 0.6 * box["height"], steps=3)
    page.mouse.up()
    assert share() not in ("none", "100%")
    assert page.errors == []


def test_the_picture_is_drawn_anew_for_another_width(opened):
    page = opened()
    page.locator('button[data-run="run-0"]').nth(3).click()
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_function("document.querySelector('#run-0 svg').viewBox.baseVal.width < 390")
    assert "clips 50% of" in page.locator("#run-0 output").inner_text()


def test_what_a_misleading_log_would_say_of_thresholds_is_left_out(opened):
    page = opened()
    assert page.locator('button[data-run="run-0"]').count() == 4
    assert page.locator('button[data-run="run-1"]').count() == 0
    assert "measured after clipping to 40" in page.locator("main").inner_text()
