"""The built book, on a server of its own, in headless Chromium, with every other host cut off."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tools.check import chromium

SITE = Path(__file__).parents[2] / "_build" / "html"
# index.html only sends the browser on.
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts and path != SITE / "index.html"
)


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
    if "page_name" in metafunc.fixturenames:
        assert PAGES, "build the book first: make book"
        metafunc.parametrize("page_name", PAGES)


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


@pytest.fixture
def visit(browser, address):
    """Opens a page and waits for its formulas. What it asked of other hosts, and its errors, are lists on it."""
    contexts = []

    def open_page(name, *, theme="light", width=1280):
        context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
        contexts.append(context)
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
        return page

    yield open_page
    for context in contexts:
        context.close()
