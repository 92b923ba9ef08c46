"""The movable figure of Why clipping works, moved by keyboard."""


def test_one_step_moves_by_keyboard_and_says_what_the_notebook_computes(visit):
    page = visit("book/theory/why-clipping-works.html")
    figure = page.locator("figure#why-step")
    said = figure.locator(".says")
    # The head of the page, and a row of its table.
    assert "Longest step ηc = 1. 19 steps to slope 0.001, 9 of them clipped." in said.inner_text()
    rate, threshold = figure.locator("input[type=range]").all()
    threshold.focus()
    while figure.locator("output").nth(1).inner_text() != "1":
        page.keyboard.press("ArrowLeft")
    assert "Longest step ηc = 0.5. 28 steps to slope 0.001, 19 of them clipped." in said.inner_text()
    assert said.inner_text() in figure.locator("svg").get_attribute("aria-label")
    threshold.press("End")
    assert "thrown out" in said.inner_text()
    rate.press("Home")
    assert "thrown out" not in said.inner_text()  # 0.001 survives without a threshold
    assert page.errors == page.foreign == []
