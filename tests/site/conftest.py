"""The built book, on a server of its own, in headless Chromium, with every other host cut off."""

import contextlib
import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadScopeScheduling

from tools.check import chromium

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
# index.html only sends the browser on.
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts and path != SITE / "index.html"
)
NOTEBOOK_PAGES = [name for name in PAGES if (ROOT / name).with_suffix(".ipynb").exists()]


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send_error(self, code, *args, **kwargs):
        """Answer as a host does to whom the book has been uploaded."""
        page = (SITE / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page)


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing: a browser that closes a page breaks off what it was loading."""


def pytest_generate_tests(metafunc):
    for name, pages in {"page_name": PAGES, "notebook_page": NOTEBOOK_PAGES}.items():
        if name in metafunc.fixturenames:
            assert pages, "build the book first: make book"
            metafunc.parametrize(name, pages)


class ByPage(LoadScopeScheduling):
    """Gives one worker all tests of a page, which share a look at it, and all of test_address, which build a book.

    xdist_group with --dist loadgroup would say it in fewer words, but with pytest 9.2 and xdist 3.8 it groups nothing.
    """

    def _split_scope(self, nodeid):
        page = re.search(r"\[(book/.+?|[^/]+?)(\.html)?(-light|-dark)?\]$", nodeid)
        return page[1] if page else nodeid.partition("::")[0] if "test_address" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    return ByPage(config, log)


@pytest.fixture(scope="session")
def address():
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, name, theme="light"):
    """A page with its formulas. What it asked of other hosts, and its errors, are lists on it."""
    with browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.foreign, page.errors = [], []

        def only_this_host(route):
            if route.request.url.startswith(address):
                route.continue_()
            else:
                page.foreign.append(route.request.url)
                route.abort()

        page.route("**/*", only_this_host)
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"{address}/{name}")
        page.evaluate("() => window.MathJax?.startup?.promise")
        yield page


@pytest.fixture
def visit(browser, address):
    """Opens a page for a test that does something to it."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(opened(browser, address, name))


@pytest.fixture(scope="session")
def look(browser, address):
    """What there is to see on a page in a theme. Loading takes longest, so all tests of a page share one look."""

    @functools.cache
    def seen(name, theme):
        with opened(browser, address, name, theme) as page:
            facts = page.evaluate(
                """() => ({
                    theme: document.documentElement.dataset.theme,
                    written: document.querySelectorAll(".math").length,
                    rendered: document.querySelectorAll(".math mjx-container").length,
                    broken: document.querySelectorAll("mjx-merror").length,
                    copyButtons: document.querySelectorAll(".cell_input button.copybtn").length,
                    download: document.querySelector("a.btn-download-source-button")?.getAttribute("href"),
                })"""
            )
            facts["text"] = page.inner_text("article, main")
            facts |= {"foreign": [*page.foreign], "errors": [*page.errors]}  # before axe asks for files of its own
            # Where the page's first picture begins, its own number if it has one to move, and its head.
            facts |= page.evaluate(
                """() => {
                    const top = e => e && e.getBoundingClientRect().top + window.scrollY;
                    const first = (what) => top(document.querySelector(`article :is(${what})`));
                    const text = (what) => document.querySelector(`article ${what}`)?.textContent ?? "";
                    return {
                        figureTop: first("figure"), tableTop: first("table"),
                        squeezed: [...document.querySelectorAll("article img")].filter(e => e.clientWidth && Math.abs(
                            e.clientWidth / e.clientHeight * e.naturalHeight / e.naturalWidth - 1) > 0.02
                        ).map(e => e.alt),
                        standfirst: text("h1 + p.standfirst"), facts: text("p.standfirst + p.facts"),
                        codeBeforeFigure: [...document.querySelectorAll("article :is(details.hide, div.cell_input)")]
                            .filter(e => top(e) < first("figure")).length,
                    };
                }"""
            )
            facts["axe"] = Axe().run(page).response["violations"]
            # No code and no table needs to be scrolled sideways, in a fold neither.
            facts["cut"] = page.evaluate(
                """() => {
                    for (const fold of document.querySelectorAll("article details")) fold.open = true;
                    const margin = (document.querySelector("article") ?? document.body).getBoundingClientRect().right;
                    return [...document.querySelectorAll("article :is(pre, table)")]
                        .map(e => [e, Math.max(
                            e.scrollWidth - e.clientWidth, e.getBoundingClientRect().right - margin)])
                        .filter(([e, more]) => more > 1)
                        .map(([e, more]) => `${Math.round(more)} px of ${e.textContent.trim().slice(0, 60)}`);
                }"""
            )
            page.set_viewport_size({"width": 390, "height": 900})
            # The page's own scripts hear of the new size before the next frame is drawn.
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            facts["widthOnPhone"] = page.evaluate("() => document.documentElement.scrollWidth")
            # A box that hides what does not fit would pass; text must stay inside the screen, or in a box that scrolls.
            facts["lostOnPhone"] = page.evaluate(
                """() => [...document.querySelectorAll(
                    "article p, article li, article h1, article h2, article h3, article dt")]
                .filter(e => e.getBoundingClientRect().right > 391)
                .filter(e => !e.closest("table, pre, .math, [style*=overflow]"))
                .map(e => e.textContent.slice(0, 80))"""
            )
            return SimpleNamespace(**facts)

    return seen
